# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""How each step of a plan is done to a server, and what proves that it was."""

from __future__ import annotations

import contextlib
import functools
import typing

from . import hardware, memory, odometer
from .drain import CUT, FATES, Drain
from .errors import (
    Divided,
    DrainTimeout,
    InDoubt,
    LifecycleError,
    NoMemory,
    ServerError,
    SwitchingError,
    Unreachable,
    Unresponsive,
)
from .freed import Freed
from .gates import Gates
from .host import Host
from .plan import (
    ACTIVE,
    DRAIN,
    FIRST_ANSWER,
    LOADING,
    RECORD,
    RELOAD,
    SLEEP,
    SLEEPING,
    START,
    STOP,
    STOPPED,
    VERIFY,
    WAIT,
    WAKE,
    Step,
    stopped_instead,
)  # fmt: skip
from .readiness import Readiness
from .result import Steps, step_record

if typing.TYPE_CHECKING:
    from .page_cache import Warmer


# A server that any of these is done to is no place for requests of the gateway.
_DISTURBING = (DRAIN, SLEEP, STOP, RELOAD)


class Executor:
    """Does the steps of one switch, confirms each and writes it down.

    C(asked) is when the switch was asked for, by the host's clock; C(to_record) is as in Readiness. C(steps) and
    C(warnings) are for the result. C(held) are the models that a drain has paused, and that have not slept or ended
    since. To be told: C(ending), who is to end and so can't keep requests; C(rung) of the escalation that all further
    steps belong to; C(warming), the model whose weights are read ahead, and the reader.
    """

    def __init__(self, host: Host, asked: float, to_record: str | None = None) -> None:
        self.host = host
        self.asked = asked
        self.settings = host.settings
        self.steps: Steps = []
        self.warnings: list[str] = []
        self.gates = Gates(host, self.warnings)
        self.readiness = Readiness(host, to_record, self.warnings)
        self.held: set[str] = set()
        self.ending: set[str] = set()
        self.rung = ""
        self.warming: tuple[str, Warmer] | None = None
        # What the sleep of a model is to do with requests.
        self._modes: dict[str, str] = {}
        self.freed = Freed(host)

    def run(self, step: Step, act: typing.Callable[[Step], str | None] | None = None, rung: str = "") -> None:
        """Do one step, confirm it and write it down."""
        actions: dict[str, typing.Callable[[Step], str | None]] = {
            DRAIN: self._drain,
            SLEEP: self._sleep,
            WAKE: self._wake,
            START: self._start,
            STOP: self._stop,
            VERIFY: self._verify,
            RELOAD: self._reload,
            RECORD: self._record_canary,
            FIRST_ANSWER: self._first_answer,
        }
        started = self.host.clock()
        record = step_record(step)
        record["started_seconds"] = round(started - self.asked, 3)
        if rung or self.rung:
            record["escalation"] = rung or self.rung
        self.steps.append(record)
        self.host.tell_step("step_begun", record)
        try:
            if step.action in _DISTURBING:
                self.gates.close(step.model)
            if step.action not in (VERIFY, WAIT):
                self.host.lock.check()
            note = (act or actions[step.action])(step)
            if note:
                record["note"] = self.host.mask("; ".join(filter(None, (record.get("note"), note))))
        except BaseException as error:
            if isinstance(error, SwitchingError):
                error.masked(self.host.mask)  # before it is cut short
            record["failed"] = self.host.mask(str(error)) or type(error).__name__
            raise
        finally:
            record["seconds"] = round(self.host.clock() - started, 3)
            self.host.tell_step("step_ended", record)
        if step.action in (STOP, SLEEP, VERIFY):
            self.held.discard(step.model)
            self.host.lock.settle(step.model)
        if step.action in (WAKE, VERIFY) and self.warming and self.warming[0] == step.model:
            self.end_warming()

    def end_warming(self) -> None:
        """Have nothing more read ahead, and write down what was with the step that it was read for."""
        if not self.warming:
            return
        name, warmer = self.warming
        self.warming = None
        warmed = warmer.stop()
        note = warmed.note
        record = next((d for d in reversed(self.steps) if d["model"] == name and d["action"] in (WAKE, START)), None)
        if record and warmed.size:
            record["warm"] = round((warmed.cached + warmed.read) / warmed.size, 2)
        if note and record and "failed" not in record:
            record["note"] = "; ".join(filter(None, (record.get("note"), note)))

    def instead(self, step: Step) -> Step:
        """What is done instead of a step, for what was not known of a server when that was planned."""
        if step.action != SLEEP or self.host.models[step.model].sleep_level != "auto":
            return step
        if step.level == 1 and memory.remembered_shared(self.host.stack_dir):
            step = Step(SLEEP, step.model, 2)  # seen by the drain for the first time
        if step.level != 2:
            return step
        reason = ""
        with contextlib.suppress(ServerError):
            reason = self.host.servers[step.model].no_level_2()
        if not reason:
            return step
        if step.choice and step.choice.measured and not memory.remembered_shared(self.host.stack_dir):
            return Step(SLEEP, step.model, 1)  # where two levels were to choose from, the RAM holds the weights
        self.warnings.append(stopped_instead(step.model, reason))
        return Step(STOP, step.model)

    def stopped(self, name: str) -> bool:
        """Whether this switch has stopped the model."""
        return any(done["action"] == STOP and done["model"] == name and "failed" not in done for done in self.steps)

    def drained(self, name: str) -> bool:
        """Whether this switch has drained the model's server and not woken it since: its requests are accounted for."""
        moves = (DRAIN, WAKE, START, VERIFY)
        done = [step for step in self.steps if step["model"] == name and step["action"] in moves]
        return bool(done) and done[-1]["action"] == DRAIN and ("failed" not in done[-1] or "requests" in done[-1])

    def running(self, name: str) -> int | None:
        """How many requests a stop of a server would cut; None where it does not say, 0 where it is gone or dead."""
        server = self.host.servers[name]
        try:
            counts = server.count_requests() if server.is_healthy() else (0, 0)
        except Unreachable:
            # It may only have stopped to listen.
            return 0 if self.host.lifecycles[name].process().running is False else None
        except ServerError:
            return None
        return None if counts is None else sum(counts)

    def _drain(self, step: Step) -> str:
        server = self.host.servers[step.model]
        # Before the drain: nvidia-smi may take its time, and nothing may come between the drain and the sleep.
        self.freed.before_drain(step.model)
        seen = self.host.seen.get(step.model)
        usual = seen is not None and seen.state == ACTIVE and not seen.held
        # What this switch has woken and not proved may have lost its adapters by that.
        usual = usual and step.model not in self.readiness.begun
        recorded = self.readiness.before_sleep(self.host.models[step.model]) if usual else ""
        by_looking = seen is not None and (seen.unknown or (seen.state == SLEEPING and seen.doubtful))
        drain = Drain(server, self.settings, self.host.wait, step.model in self.ending, self.host.clock, by_looking)
        drain.before = functools.partial(self.gates.wait_until_idle, step.model)
        if not by_looking:
            self.host.lock.begin(step.model, DRAIN)
        try:
            outcome = drain.run()
        except SwitchingError:
            if not drain.held and not by_looking:
                self.host.lock.settle(step.model)
            raise
        finally:
            if drain.held:
                self.held.add(step.model)
            if drain.requests:
                self._record_of(step)["requests"] = drain.requests
        self._modes[step.model] = outcome.mode
        return "; ".join(filter(None, (recorded, outcome.note)))

    def _record_of(self, step: Step) -> dict[str, typing.Any]:
        """What is written down of the step that is under way."""
        return next(done for done in reversed(self.steps) if done["model"] == step.model)

    def _sleep(self, step: Step) -> None:
        server = self.host.servers[step.model]
        self.freed.before_sleep(step.model, step.level or 1)
        self.host.lock.begin(step.model, SLEEP)
        self.host.forget_proof(step.model)
        try:
            server.sleep(step.level or 1, self._modes.get(step.model, "wait"))
        except Unresponsive:
            # The answer may be all that is lost. One that still waits for requests is not asleep, whatever it says.
            if not self.host.wait(lambda: server.observe().asleep, self.settings.probe_timeout_seconds):
                if step.model not in self.held and self.settings.drain_timeout_action != "abort":
                    self._check_idle(step)
                raise
        mode, paused = self._modes.get(step.model, "wait"), step.model in self.held
        if paused and mode != "wait":
            # The drain that was broken off ends now too, and leaves the gauge at its own level 0. To ask a sleeping
            # server again does nothing but put that right; not by abort, which would cut what has come since.
            server.sleep(step.level or 1, "keep" if mode == "keep" else "wait")
        self._confirm_sleep(step, paused)
        if not paused and not server.can_cut():
            self._check_idle(step)
        self.freed.after_sleep(step.model, step.level or 1)

    def _confirm_sleep(self, step: Step, paused: bool) -> None:
        """Wait until a server proves that it sleeps."""
        server, told = self.host.servers[step.model], self.host.clock()
        patience = min(self.settings.probe_timeout_seconds, self.settings.request_timeout_seconds)

        def asleep() -> bool:
            nonlocal told
            try:
                # A server that a drain has paused says that it sleeps, and has all its memory.
                proved = server.is_asleep() if paused else server.is_sleeping()
            except InDoubt:
                # Its metrics may never be readable: they are not waited for as long as for a sleep.
                if self.host.clock() - told >= patience:
                    raise
                return False
            told = self.host.clock()
            return proved

        if not self.host.wait(asleep, self.settings.request_timeout_seconds):
            raise ServerError(
                f"{step.model} accepted the call to sleep but is still awake after "
                f"{self.settings.request_timeout_seconds:g} s (request_timeout_seconds)"
            )

    def _check_idle(self, step: Step) -> None:
        """A server that held nothing may have been given a request before it slept, and have it still."""
        counts = None
        with contextlib.suppress(ServerError):
            counts = self.host.servers[step.model].count_requests()
        if not counts or not counts[0]:
            return
        why = f"{step.model} received {counts[0]} requests while it was put to sleep, and can't hold them"
        action = self.settings.drain_timeout_action
        if action == "abort":
            self._record_of(step)["requests"] = {**dict.fromkeys(FATES, 0), CUT: counts[0]}
            raise ServerError(why)
        for again in (WAKE, VERIFY):
            self.run(Step(again, step.model, step.level if again == WAKE else None))
        raise DrainTimeout(f"{why} (drain_timeout_action is {action}), so it was woken")

    def _check_memory(self, name: str, need: memory.Need, gpus: typing.Mapping[int, hardware.Gpu] | None) -> None:
        """Raise NoMemory where the GPUs have less free than the model will take, also after a moment."""
        memory.await_free(self.host.models[name], need, gpus, self.host.wait, self.settings.probe_timeout_seconds)

    def _is_of_this_start(self, name: str) -> bool:
        """Whether what is remembered of a model's memory was measured since its server was started."""
        start = memory.remembered_of(self.host.stack_dir, name)
        return start != "" and start == self.host.lifecycles[name].start_id()

    def _wake(self, step: Step) -> str | None:
        if step.level == 0:  # it has all its memory
            self.readiness.begun.setdefault(step.model, False)
            self.host.servers[step.model].resume()
            return None
        shared = memory.remembered_shared(self.host.stack_dir)
        kept = step.model in self.freed.kept and not shared
        need = None if kept else memory.remembered(self.host.stack_dir).get(step.model)
        gpus: typing.Mapping[int, hardware.Gpu] | None = None
        # One that is half awake holds a part of that itself.
        if (need or shared) and step.model not in self.host.lock.doubtful:
            gpus = self.freed.read_gpus()
            measured = need and self._is_of_this_start(step.model) if shared else True
            if not measured:
                need = memory.wake_need(self.host.models[step.model], step.level, gpus)
            try:
                self._check_memory(step.model, need or {}, gpus)
            except NoMemory:
                # Where it is the RAM, the whole host would suffer.
                if shared or (self._is_of_this_start(step.model) and not self.freed.has_kept(step.model, need or {})):
                    raise
                # It has what it needs, or somebody else has started it since, maybe with less: its next sleep tells.
                with contextlib.suppress(OSError):
                    memory.remember(self.host.stack_dir, step.model, {})
        if not shared:
            odometer.note_wake(self.host.stack_dir, self.host.models[step.model], gpus)
        self.readiness.fresh.discard(step.model)
        if step.level != 1:
            self.readiness.reloaded.add(step.model)
        self.host.lock.begin(step.model, WAKE)
        self.host.forget_proof(step.model)
        self.readiness.begun.setdefault(step.model, False)
        server = self.host.servers[step.model]
        self.readiness.listed.setdefault(step.model, server.adapters)
        cut = server.cut_held(step.level)
        if cut != 0:
            self._record_of(step)["requests"] = {**dict.fromkeys(FATES, 0), CUT: cut}
        return server.wake(step.level)

    def _reload(self, step: Step) -> str | None:
        self.readiness.reloaded.add(step.model)
        return self.host.servers[step.model].reload()

    def _start(self, step: Step) -> None:
        model = self.host.models[step.model]
        gpus = self.freed.read_gpus()
        divided = memory.divided_problem(model, gpus)
        if divided:
            raise Divided(divided)
        self._check_memory(step.model, memory.load_need(model, gpus), gpus)
        if gpus:
            # It only makes a later check of memory sharper: no reason to fail a switch.
            with contextlib.suppress(OSError):
                memory.remember(self.host.stack_dir, step.model, {}, gpus=gpus)
        odometer.record(self.host.stack_dir, {step.model: None})
        # Not by intent but in the course of this switch: then its answer has to be the one known.
        self.readiness.begun[step.model] = bool(self.rung) or self.stopped(step.model)
        self.host.lock.begin(step.model, START)
        self.host.lifecycles[step.model].start()
        self.readiness.fresh.add(step.model)

    def _stop(self, step: Step) -> None:
        *earlier, this = [done for done in self.steps if done["model"] == step.model]
        seen = self.host.seen.get(step.model)
        if earlier and not self.drained(step.model) and not (seen and seen.state in (LOADING, STOPPED)):
            # On a rung: what it has been given since it was woken.
            cut = self.running(step.model)
            if cut != 0:
                this["requests"] = {**dict.fromkeys(FATES, 0), CUT: cut}
        elif not earlier and seen and seen.uncounted:
            this["requests"] = {**dict.fromkeys(FATES, 0), CUT: None}
        lifecycle = self.host.lifecycles[step.model]
        self.freed.forget_gpus()  # more will be free

        def gone() -> bool:
            return self.host.servers[step.model].observe().state == STOPPED

        process = lifecycle.process()
        # Where nothing of ours runs but the port answers, the lifecycle can tell why it can't stop that.
        if process.running is not False or process.remains or not gone():
            lifecycle.stop()
        if not self.host.wait(gone, self.settings.request_timeout_seconds):
            raise LifecycleError(
                f"{step.model} was stopped, but port {self.host.models[step.model].host_port} still answers: its "
                "server was not started by this stack, so end it by hand"
            )

    def _verify(self, step: Step) -> str | None:
        try:
            return self.readiness.prove(self.host.models[step.model])
        finally:
            seconds = self.readiness.answer_seconds.pop(step.model, None)
            if seconds is not None:
                self._record_of(step)["answer_seconds"] = round(seconds, 3)

    def _first_answer(self, step: Step) -> str:
        """Have a long prompt answered. The switch is done, whatever becomes of that."""
        wanted = self.host.models[step.model].first_answer_tokens
        try:
            length = self.host.servers[step.model].complete(wanted, 1, self.settings.request_timeout_seconds)
        except ServerError as error:
            self.warnings.append(f"{step.model} is ready, but its first answer (first_answer_tokens) failed: {error}")
            return "no answer"
        return f"a prompt of {length} tokens"

    def _record_canary(self, step: Step) -> str:
        return self.readiness.record(self.host.models[step.model])
