# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What proves that a server is ready: it is healthy and awake, and answers as it should."""

from __future__ import annotations

import contextlib
import typing

from . import canary
from .errors import IdleDrafts, ServerDied, ServerError, Unreachable, Unresponsive, WrongAnswer
from .host import Host
from .inventory import Model
from .kinds import TEXT


class Readiness:
    """The readiness of a host's servers in the course of one switch.

    C(to_record) is the model whose answer is to be recorded, so that it is not compared; to C(warnings) is added what
    the result has to warn of. C(begun) are the models whose servers were woken or started, and whether that was
    because something had failed; C(fresh) those that this switch has started or seen begin, and not woken since;
    C(reloaded) those that it has woken from level 2, or maybe from that; C(listed) the adapters that one had before it
    was woken; C(starts) which start of a server has been proved, since asking may cost a docker command; C(wrong) the
    models that answer otherwise than recorded; C(answer_seconds) how long it took last to see that each answers so.
    """

    def __init__(self, host: Host, to_record: str | None, warnings: list[str]) -> None:
        self.host = host
        self.to_record = to_record
        self.warnings = warnings
        self.begun: dict[str, bool] = {}
        self.fresh: set[str] = set()
        self.reloaded: set[str] = set()
        self.listed: dict[str, dict[str, str] | None] = {}
        self.starts: dict[str, str] = {}
        self.wrong: set[str] = set()
        self.answer_seconds: dict[str, float] = {}

    def prove(self, model: Model) -> str | None:
        """Wait until the server is healthy and awake and, unless turned off, answers as it should; return a note."""
        server = self.host.servers[model.id]
        listens = False

        def ready() -> bool:
            nonlocal listens
            listens = True
            try:
                if not server.is_healthy():
                    if model.id not in self.fresh or not server.may_be_loading():
                        self._raise_dead(model)
                    return False  # it listens while it loads
                return not server.is_sleeping()
            except Unreachable:
                listens = False
            except Unresponsive:
                pass
            return False

        def check_alive() -> None:
            if listens:
                return  # so it lives, even if it was started by somebody else and its process is not known here
            process = self.host.lifecycles[model.id].process()
            if process.running is False:
                code = "" if process.exit_code is None else f" with exit code {process.exit_code}"
                raise ServerDied(f"{model.id}'s server ended{code} while the switch waited for it").with_log(
                    self.host.last_lines(model)
                )

        if not self.host.wait(ready, self.host.settings.ready_timeout_seconds, check_alive):
            raise ServerError(
                f"{model.id} is not ready after {self.host.settings.ready_timeout_seconds:g} s "
                "(max_retries x health_check_interval_seconds)"
            ).with_log(self.host.last_lines(model))
        if model.id == self.to_record or not model.ready_completion:
            return None
        began = self.host.clock()
        try:
            notes = [self._prove_answer(model), self._prove_drafts(model)]
        finally:
            self.answer_seconds[model.id] = self.host.clock() - began
        # The answer may have been its last. Who only takes long now has just given one.
        with contextlib.suppress(Unresponsive):
            self._check_engine(model)
        return "; ".join(filter(None, notes)) or None

    def _check_engine(self, model: Model) -> None:
        """Raise ServerError where a server says that its engine is dead, or what else keeps it from telling."""
        if not self.host.servers[model.id].is_healthy():
            self._raise_dead(model)

    def _raise_dead(self, model: Model) -> typing.NoReturn:
        raise ServerError(f"{model.id}'s engine died (/health answers 503)").with_log(self.host.last_lines(model))

    def _prove_answer(self, model: Model) -> str | None:
        """See that a server answers, and as it should; what is worth knowing about that."""
        server = self.host.servers[model.id]
        if not canary.applies(model):
            kind = server.prove().kind
            return None if kind == TEXT else f"answers ({kind})"
        came = canary.WOKEN
        if model.id in self.fresh:
            came = canary.RESTARTED if self.begun.get(model.id) else canary.STARTED
        start = self.starts[model.id] = self.host.lifecycles[model.id].start_id()
        try:
            verdict = canary.prove(server, model, self.host.stack_dir, start, came)
            if self._has_adapters(model):
                from . import adapters  # noqa: PLC0415 - few models have any

                before = self.listed.get(model.id, server.adapters)
                if model.id in self.begun and not start:
                    before = None  # what is missing may have been lost by a start that nobody knows of
                verdict = verdict.also(adapters.prove(server, model, self.host.stack_dir, start, came, before))
            self.wrong.discard(model.id)
        except WrongAnswer:
            self.wrong.add(model.id)
            raise
        except OSError as error:
            verdict = canary.Verdict("", f"the canary answer of {model.id} could not be recorded: {error}")
        if verdict.warning:
            self.warnings.append(verdict.warning)
        return verdict.note

    def _prove_drafts(self, model: Model, to_record: bool = False) -> str:
        """See that a server's drafts are worth something, where they may not be; what is worth knowing about that."""
        server, fresh = self.host.servers[model.id], model.id in self.fresh
        if fresh and model.sleep_level == "2" and model.draft_weights is None:
            with contextlib.suppress(ServerError):
                server.count_requests()  # for what its metrics tell beside that
        reloaded = model.id in self.reloaded
        if not server.drafts or not (to_record or reloaded or (fresh and self._may_sleep_at_level_2(model))):
            return ""
        from . import drafts  # noqa: PLC0415 - few models have any, and every switch would wait for it

        if fresh and not self.begun.get(model.id):
            return drafts.record(server, model, self.host.stack_dir)
        # A server that was awake already may have been woken by a switch before this one.
        known_good = fresh or (to_record and not reloaded)
        verdict = drafts.prove(server, model, self.host.stack_dir, known_good)
        may_restart = not fresh and not to_record and "restart" in self.host.settings.escalation
        if verdict.warning and may_restart and model.drafts == "restart":
            raise IdleDrafts(verdict.warning)
        if verdict.warning:
            self.warnings.append(verdict.warning)
        return verdict.note

    def _may_sleep_at_level_2(self, model: Model) -> bool:
        """Whether its drafts may have to be compared one day: else a start need not wait until they are measured."""
        if model.sleep_level != "auto":
            return model.sleep_level == "2"
        with contextlib.suppress(ServerError):
            return not self.host.servers[model.id].no_level_2()
        return False

    def before_sleep(self, model: Model) -> str:
        """Record the answers of adapters that came since an awake model was proved; what is worth knowing of that."""
        if not canary.applies(model) or model.id in self.wrong or not self._has_adapters(model):
            return ""
        from . import adapters  # noqa: PLC0415 - few models have any

        start = self.host.lifecycles[model.id].start_id
        verdict = adapters.before_sleep(self.host.servers[model.id], model, self.host.stack_dir, start)
        if verdict.warning:
            self.warnings.append(verdict.warning)
        return verdict.note

    def _has_adapters(self, model: Model) -> bool:
        """Whether a server listed LoRA adapters when it was asked last, or did when it was known good."""
        if self.host.servers[model.id].adapters:
            return True
        known = canary.read(model, self.host.stack_dir)
        return known is not None and bool(known.adapters)

    def record(self, model: Model) -> str:
        """Record the answer that the model gives now as the right one."""
        try:
            start = self.host.lifecycles[model.id].start_id()
            verdict = canary.record(self.host.servers[model.id], model, self.host.stack_dir, start)
            if self._has_adapters(model):
                from . import adapters  # noqa: PLC0415 - few models have any

                more = adapters.record(self.host.servers[model.id], model, self.host.stack_dir, start)
                verdict = verdict.also(more)
            self.warnings += [verdict.warning] if verdict.warning else []
            return "; ".join(filter(None, (verdict.note, self._prove_drafts(model, to_record=True))))
        except OSError as error:
            # The switch is done, whatever becomes of its record.
            self.warnings.append(f"the canary answer of {model.id} could not be recorded: {error}")
            return "not recorded"
