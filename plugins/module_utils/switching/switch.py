# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The switch: lock the host, observe its servers, plan, do it, prove the result, or put back what was there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
import typing

from . import canary, capacity, changes, records
from . import wanted as record
from .errors import ChangedSince, LifecycleError, NotProvisioned, SwitchFailed, SwitchingError
from .host import PROOF, Host
from .inventory import ESCALATION, Inventory, Model, Switching
from .lifecycle import ComposeService, Lifecycle, for_model
from .lock import HostLock
from .mend import Mender
from .perform import Performer
from .plan import (
    ACTIVE,
    DISABLED,
    LOADING,
    RECORD,
    SLEEP,
    SLEEPING,
    START,
    STOP,
    STOPPED,
    VERIFY,
    WAIT,
    WAKE,
    Observation,
    Plan,
    Step,
    make_plan,
    predict,
)  # fmt: skip
from .result import Result, States, Steps, describe, joined, results_of, step_record, summary, together
from .server import Server

DEFAULT_STACK_DIR = "/opt/homegpt"
_LAST_SWITCH = "last_switch"


class Switcher:
    """Switches the models of the host it runs on. Time and the outside world are parameters, for tests to own."""

    def __init__(
        self,
        inventory: Inventory,
        stack_dir: str = DEFAULT_STACK_DIR,
        *,
        clock: typing.Callable[[], float] = time.monotonic,
        sleep: typing.Callable[[float], None] = time.sleep,
        now: typing.Callable[[], float] = time.time,
        tell: typing.Callable[[str], None] | None = None,
        mem_available_gb: typing.Callable[[], float | None] = capacity.read_mem_available_gb,
        server: typing.Callable[[Model, Switching], Server] = Server,
        lifecycle: typing.Callable[[Model, str, Switching], Lifecycle] = for_model,
        lock: HostLock | None = None,
        reserved_gb: float = 0.0,
    ) -> None:
        self.inventory = inventory
        self.settings = inventory.switching
        self.stack_dir = stack_dir
        self.clock = clock
        self.sleep = sleep
        self.now = now
        self.tell = tell
        self.mem_available_gb = mem_available_gb
        self.make_server, self.make_lifecycle = server, lifecycle
        self.lock = lock or HostLock(stack_dir)
        self.reserved_gb = reserved_gb
        self.host = Host(inventory, stack_dir, self.lock, clock, sleep, server, lifecycle)
        # What a check takes models to be whatever is observed: what the steps foreseen so far make of them.
        self.foreseen: dict[str, Observation] = {}

    def __enter__(self) -> Switcher:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.host.close()

    def report(self) -> dict[str, typing.Any]:
        """What every model is and how many requests it has, as plain data. Changes nothing, and never fails."""
        self.lock.peek()
        seen, gpu_memory_gb = self.host.report()
        for model in self.inventory.enabled:
            if seen[model.id].state == STOPPED and self._missing(model):
                problem = f"{self._missing(model)} does not exist: run homegpt.vllm.site first"
                seen[model.id] = dataclasses.replace(seen[model.id], problem=problem)
        return {
            "active_models": [name for name, state in seen.items() if state.state == ACTIVE],
            "last_switch": self._last_switch(),
            "warnings": self._hidden(),
            "models": {
                m.id: {
                    **summary(seen[m.id]),
                    **m.told,
                    "running": seen[m.id].running,
                    "waiting": seen[m.id].waiting,
                    "gpu_memory_gb": gpu_memory_gb.get(m.id),
                }
                for m in self.inventory.models
            },
        }

    def _hidden(self) -> list[str]:
        """What this user can't be told, because the records of switches are not his to read."""
        path = records.path(self.stack_dir, _LAST_SWITCH)
        hidden = ["whether a model's last wake was proved"] if self.lock.unreadable else []
        if os.path.exists(path) and not os.access(path, os.R_OK):
            hidden.append("what the last switch was")
        if not hidden:
            return []
        return [
            f"it is not known {' and '.join(hidden)}: {os.path.dirname(path)} is not this user's; run as root (sudo)"
        ]

    def _last_switch(self) -> dict[str, typing.Any] | None:
        """What is recorded of the last switch that did something; None where nothing is, or something else."""
        found = records.read(self.stack_dir, _LAST_SWITCH)
        kinds: dict[str, typing.Any] = {
            "models": list,
            "state": str,
            "ended": (int, float),
            "seconds": (int, float),
            "result": str,
            "reason": str,
        }
        if not all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
            return None
        return {**{key: found[key] for key in kinds}, "rung": found.get("rung")}

    def switch(
        self,
        name: str | typing.Sequence[str],
        wanted: str = ACTIVE,
        check: bool = False,
        for_now: bool = False,
        record_canary: bool = False,
        change: str = "",
    ) -> Result:
        """Bring the model called C(name) to the state C(wanted) (active, sleeping or stopped).

        Several models are brought there side by side; no two of them may have a GPU to do with each other. With
        C(check) nothing is locked or changed, and the result tells what would be done. C(for_now): after a boot the
        host is to come back to what it was meant to be before. C(record_canary): the model, once active, is known good,
        so its answer is recorded. C(change) is a name by which C(undo) can take it back; several models are then
        switched as one: where one fails, the others are put back too. Raises UnknownModel, Blocked or LockTimeout when
        nothing has been touched, SwitchFailed when something has.
        """
        models = [self.inventory.find(one) for one in ([name] if isinstance(name, str) else name)]
        return self._switch_all(models, wanted, check, for_now, record_canary, change=change)

    def roll_back(self, check: bool = False) -> Result:
        """Make those models active again that the last switch has taken off their GPUs; done twice, it stays so.

        Nothing waits for C(min_active_seconds). Raises SwitchingError where there is nothing to take back, and what
        C(switch) raises.
        """
        names = record.last_displaced(self.stack_dir)
        models = [m for m in self.inventory.enabled if m.id in names]
        if not models:
            why = "no switch has taken a model off this host's GPUs since it was provisioned"
            if names:
                why = f"the last switch took {', '.join(names)} off the GPUs, which is no longer declared, or disabled"
            raise SwitchingError(f"there is nothing to take back: {why}; say which model is to be active")
        self.settings = dataclasses.replace(self.settings, min_active_seconds=0)
        started = self.clock()
        done: list[Result] = []
        for round_ in self.inventory.rounds(models):
            try:
                done.append(self._switch_all(round_, ACTIVE, check, displaced=names, started=started))
            except SwitchingError as error:
                if not done:
                    raise
                last = [error.result] if isinstance(error, SwitchFailed) else []
                raise SwitchFailed(str(error), joined([*done, *last])) from error
            if check:
                self.foreseen.update(done[-1].models)
        return dataclasses.replace(joined(done), elapsed_seconds=self.clock() - started)

    def _switch_all(
        self,
        models: typing.Sequence[Model],
        wanted: str,
        check: bool,
        for_now: bool = False,
        record_canary: bool = False,
        displaced: typing.Sequence[str] = (),
        started: float | None = None,
        change: str = "",
    ) -> Result:
        """C(displaced) is what counts as taken off the GPUs; unless it is given, what was. C(started) is when the whole
        was asked for, of which this may be a part.
        """
        self._check_apart(models)
        for model in models if record_canary else ():
            if wanted != ACTIVE or not canary.applies(model):
                raise SwitchingError(
                    f"record_canary: {model.id} can't give an answer to record: that takes the state active, a canary "
                    "that is not off, and ready_completion"
                )
        if wanted != STOPPED:
            self._check_provisioned(models)
        started = self.clock() if started is None else started
        with self._checking() if check else self._lock(models, f"{', '.join(m.id for m in models)} {wanted}"):
            if displaced and record.last_displaced(self.stack_dir) != list(displaced):
                raise SwitchingError(
                    "another switch of the host ended meanwhile: see what is active, then roll back again"
                )
            outcomes = self._side_by_side(models, wanted, check, started, record_canary)
            if not check:
                outcomes = self._all_or_none(models, outcomes, started) if change else outcomes
                self._note_change(change, outcomes)
            lost = self._hidden() if check else self._record_end(models, wanted, outcomes, started)
            if not check and not for_now and any(isinstance(outcome, Result) for outcome in outcomes):
                meant = record.read(self.inventory, self.stack_dir)
                left: list[str] = []
                for model, outcome in zip(models, outcomes):
                    if isinstance(outcome, Result):
                        meant = record.after(self.inventory, meant, model, wanted)
                        left += outcome.displaced if wanted == ACTIVE else []
                try:
                    record.write(self.stack_dir, meant, displaced or left)
                except SwitchingError as error:
                    lost.append(str(error))
            _warn(outcomes, lost)
            return together(models, outcomes)

    def _note_change(self, change: str, outcomes: typing.Sequence[Result | SwitchingError]) -> None:
        """Record what has changed under the name of the change, or that what others have changed is not theirs now."""
        done = results_of(outcomes)
        try:
            changes.note(self.stack_dir, change, done, record.last_displaced(self.stack_dir))
        except OSError as error:
            path = records.path(self.stack_dir, changes.NAME)
            done[0].warnings.append(
                f"{path} can't be written ({error.strerror}): this switch can't be undone by its name"
            )

    def _all_or_none(
        self, models: typing.Sequence[Model], outcomes: list[Result | SwitchingError], started: float
    ) -> list[Result | SwitchingError]:
        """How it went with models that are switched as one: where one has failed, the others are put back."""
        failures = [(m.id, one) for m, one in zip(models, outcomes) if isinstance(one, SwitchingError)]
        if not failures or "roll_back" not in self.settings.escalation:
            return outcomes
        why = ", ".join(name for name, _error in failures)
        settled: list[Result | SwitchingError] = []
        for model, outcome in zip(models, outcomes):
            if isinstance(outcome, Result) and (outcome.displaced or outcome.activated):
                target = {name: outcome.before[name].state for place in outcome.places for name in place}
                done, error = self._reach(target, outcome.models, False, started)
                how = (
                    f"could not be put back, although {why} failed: {error}"
                    if error
                    else f"was put back, since {why} failed"
                )
                settled.append(SwitchFailed(f"{model.id} {how}", joined([outcome, *done])))
            else:
                settled.append(outcome)
        return settled

    def _reach(
        self, target: changes.States, seen: States, check: bool, started: float
    ) -> tuple[list[Result], SwitchingError | None]:
        """Make those models active again that were in C(target), and of its models no others. The caller has the lock.

        Returns what was done, and what went wrong.
        """
        done: list[Result] = []
        for models, wanted in changes.goals(self.inventory, target, seen):
            outcomes = self._side_by_side(models, wanted, check, started)
            for result in results_of(outcomes):
                done.append(result)
                if check:
                    self.foreseen.update(result.models)
            errors = [one for one in outcomes if isinstance(one, SwitchingError)]
            if errors:
                return done, errors[0]
        return done, None

    def undo(self, change: str, check: bool = False) -> Result:
        """Put back what the switches of this C(change) have changed, on all GPUs at once: all of it, or nothing.

        Only where the models concerned are still as it left them, which is looked at under the lock; else ChangedSince
        is raised, and nothing is touched. Nothing waits for C(min_active_seconds). Raises SwitchFailed or LockTimeout.
        """
        self.settings = dataclasses.replace(self.settings, min_active_seconds=0)
        started = self.clock()
        with self._checking() if check else self._lock(self.inventory.enabled, f"undo {change}"):
            found = changes.read(self.stack_dir, change)
            seen = self.host.observe(self.inventory.enabled)
            place = tuple(m.id for m in self.inventory.enabled if found is None or m.id in found.after)
            begun = Result(False, (place,), seen, seen, [], self.clock() - started)
            others = changes.changed_since(found, seen) if found else []
            if found is None or others:
                what = ", ".join(f"{name} is {describe(seen[name])}" for name in others or begun.active_models)
                why = (
                    "somebody has switched since" if others else "another switch was made since, or it changed nothing"
                )
                raise ChangedSince(f"{what or 'nothing is active'}: {why}, so nothing of {change} is undone", begun)
            done, error = self._reach(found.before, seen, check, started)
            result = self._whole(begun, done, started)
            if error and not check and "roll_back" in self.settings.escalation:
                # All of it or nothing: what came back goes again.
                as_begun = {name: seen[name].state for name in place}
                more, second = self._reach(as_begun, result.models, False, started)
                result = self._whole(begun, [*done, *more], started)
                error = SwitchFailed(f"{error}" + (f"\n{second}" if second else ""), result)
            if not check and done:
                self._note_undone(change, found, result, error, started)
            if error:
                raise SwitchFailed(str(error), result)
            return result

    def _whole(self, begun: Result, done: typing.Sequence[Result], started: float) -> Result:
        """What was done one after the other as one result about the models that it began with."""
        return dataclasses.replace(joined([begun, *done]), places=begun.places, elapsed_seconds=self.clock() - started)

    def _note_undone(
        self, change: str, found: changes.Change, result: Result, error: SwitchingError | None, started: float
    ) -> None:
        """Record that the host is meant to be again what it was, for a boot and for a roll back."""
        models = [m for m in self.inventory.enabled if m.id in found.after]
        back = [m for m in models if found.before.get(m.id) == ACTIVE]
        outcome = SwitchFailed(str(error), result) if error else result
        result.warnings += self._record_end(back or models, ACTIVE if back else SLEEPING, [outcome], started)
        if error:
            return
        meant = record.read(self.inventory, self.stack_dir)
        for model in models:
            if result.models[model.id].state == ACTIVE:
                meant = record.after(self.inventory, meant, model, ACTIVE)
        for model in models:
            if meant[model.id] == ACTIVE and result.models[model.id].state != ACTIVE:
                meant[model.id] = STOPPED if found.before.get(model.id) == STOPPED else SLEEPING
        try:
            record.write(self.stack_dir, meant, found.displaced)
            after = {name: result.models[name].state for name in found.after if name in result.models}
            changes.undone(self.stack_dir, change, found, after)
        except (SwitchingError, OSError) as lost:
            result.warnings.append(str(lost))

    def _check_provisioned(self, models: typing.Sequence[Model]) -> None:
        """Before the lock, whose folder would be all that this host has: can those be started that don't run?"""
        lost = [m for m in models if self._missing(m)]
        seen = self.host.observe(lost) if lost else {}
        for model in lost:
            if seen[model.id].state == STOPPED:
                raise NotProvisioned(
                    f"{model.id} does not run and can't be started, because {self._missing(model)} does not exist: run "
                    "homegpt.vllm.site first, or correct vllm_stack_dir"
                )

    def _missing(self, model: Model) -> str:
        lifecycle = self.host.lifecycles[model.id]
        return lifecycle.missing() if isinstance(lifecycle, ComposeService) else ""

    def _record_end(
        self,
        models: typing.Sequence[Model],
        wanted: str,
        outcomes: typing.Sequence[Result | SwitchingError],
        started: float,
    ) -> list[str]:
        """Record how a switch ended that did something, for whoever asks what the host is. What could not be done."""
        errors = [outcome for outcome in outcomes if isinstance(outcome, SwitchingError)]
        results = [one for one in results_of(outcomes) if one.steps]
        if not results and not errors:
            return []
        rungs = [one.rung for one in results if one.rung]
        end = {
            "models": [m.id for m in models],
            "state": wanted,
            "ended": round(self.now(), 3),
            "seconds": round(self.clock() - started, 3),
            "result": "failed" if errors else "done",
            "rung": max(rungs, key=ESCALATION.index) if rungs else None,
            "reason": str(errors[0]).split("\n", 1)[0]
            if errors
            else ", ".join(one.mended for one in results if one.mended),
        }
        try:
            records.write(self.stack_dir, _LAST_SWITCH, end)
        except OSError as error:
            path = records.path(self.stack_dir, _LAST_SWITCH)
            return [f"{path} can't be written ({error.strerror}): status tells of an earlier switch as the last one"]
        return []

    def _prove_records(self) -> None:
        """Raise SwitchingError where what is about to be done could not be recorded."""
        try:
            records.prove(self.stack_dir, record.NAME)
        except OSError as error:
            raise SwitchingError(
                f"nothing was done, because a switch leaves records and {error.filename} can't be written "
                f"({error.strerror}): {records.remedy(error)}"
            ) from None

    def _check_apart(self, models: typing.Sequence[Model]) -> None:
        if not models:
            self.inventory.find("")
        self.inventory.check_apart(models)

    @contextlib.contextmanager
    def _checking(self) -> typing.Iterator[None]:
        self.lock.peek()
        yield

    def _side_by_side(
        self, models: typing.Sequence[Model], wanted: str, check: bool, started: float, record_canary: bool = False
    ) -> list[Result | SwitchingError]:
        """How it went with each of the models. The caller holds the lock, unless this is a C(check)."""
        if len(models) == 1:
            return [self._outcome(models[0], wanted, check, started, record_canary)]
        parts = [self._part(model) for model in models]

        def work(item: tuple[Model, Switcher]) -> Result | SwitchingError:
            model, part = item
            with part:
                return part._outcome(model, wanted, check, started, record_canary)

        return self.host.each(work, list(zip(models, parts)))

    def _part(self, model: Model) -> Switcher:
        """A switcher of those models alone that have a GPU to do with this one, with its share of the host's RAM."""
        group = self.inventory.group(model)
        share = sum(m.weights_gb or 1.0 for m in group) / sum(m.weights_gb or 1.0 for m in self.inventory.models)

        def mem_available_gb() -> float | None:
            free = self.mem_available_gb()
            return None if free is None else free * share

        part = Switcher(
            Inventory(group, self.settings),
            self.stack_dir,
            clock=self.clock,
            sleep=self.sleep,
            now=self.now,
            mem_available_gb=mem_available_gb,
            server=self.make_server,
            lifecycle=self.make_lifecycle,
            lock=self.lock,
            reserved_gb=self.settings.available_ram_gb * (1 - share),
        )
        part.foreseen = {m.id: self.foreseen[m.id] for m in group if m.id in self.foreseen}
        return part

    def _outcome(
        self, model: Model, wanted: str, check: bool, started: float, record_canary: bool = False
    ) -> Result | SwitchingError:
        try:
            return self._switch(model, wanted, check, started, record_canary)
        except SwitchingError as error:
            return error.masked(self.host.mask)

    def _switch(self, model: Model, wanted: str, check: bool, started: float, record_canary: bool = False) -> Result:
        """Switch under the lock, which was asked for when C(started)."""
        hidden = [other for other in self.inventory.conflicting(model) if other.disabled]
        before = {**self.host.observe((*self.inventory.enabled, *hidden)), **self.foreseen}
        plan = self._plan_and_prove(before, model, wanted)
        last = Step(RECORD, model.id) if record_canary else None
        if not check and (last or any(step.action != VERIFY for step in plan.steps)):
            self._prove_records()
        if check:
            waits = [Step(WAIT, name) for name in self._silent(before, plan)]
            waits += [Step(WAIT, name) for name, _left in self._stays(model, before, plan)]
            steps = [step_record(step) for step in (*waits, *plan.steps, *([last] if last else []))]
            return self._result(model, before, predict(before, plan), steps, list(plan.warnings), started)
        performer = Performer(self.host, started, model.id if last else None)
        begun = {name for name, one in self.lock.begun.items() if one.action == START}
        performer.fresh.update(name for name, seen in before.items() if seen.state == LOADING or name in begun)
        mender = Mender(performer, self._plan)
        waited: set[str] = set()
        while set(self._silent(before, plan)) - waited:
            self._let_answer([name for name in self._silent(before, plan) if name not in waited], performer)
            waited.update(self._silent(before, plan))
            before = self.host.observe((*self.inventory.enabled, *hidden))
            plan = self._plan_and_prove(before, model, wanted)

        def result(after: States) -> Result:
            return self._result(model, before, after, performer.steps, performer.warnings, started)

        try:
            if self._let_stay(model, before, plan, performer):
                before = self.host.observe((*self.inventory.enabled, *hidden))
                plan = self._plan_and_prove(before, model, wanted)
            performer.warnings += plan.warnings
            mender.execute(plan)
            after = _after(before, plan, performer.steps)
            if after[model.id].state != predict(before, plan)[model.id].state:
                failures = [s["failed"] for s in performer.steps if "failed" in s and s["model"] == model.id]
                # Else it was loaded for it, and then known to be better stopped.
                if failures or wanted != SLEEPING or after[model.id].state != STOPPED:
                    failed = (*failures, f"{model.id} did not become {wanted}")[0]
                    raise LifecycleError(f"{failed}, so it was stopped")
            if last:
                performer.perform(last)
            if plan.steps or last:
                after = self._look_again((*self.inventory.enabled, *hidden), after, performer)
                rivals = [m.id for m in self.inventory.conflicting(model) if not m.disabled]
                if wanted == ACTIVE and any(after[name].state == ACTIVE for name in rivals):
                    # Once: whoever has woken one meanwhile may do so again.
                    rest = self._plan(after, model, wanted)
                    mender.execute(rest)
                    foretold = _after(after, rest, performer.steps)
                    after = self._look_again((*self.inventory.enabled, *hidden), foretold, performer)
                self._check_end(model, wanted, after, performer)
        except SwitchingError as error:
            after, message = mender.put_back(model, wanted, before, error)
            self._note_end(after, performer.steps, failed=True)
            raise SwitchFailed(message, result(after)) from error
        except (Exception, KeyboardInterrupt) as error:
            mender.put_back(model, wanted, before, error)
            raise
        self._note_end(after, performer.steps, failed=False)
        return result(after)

    def _plan_and_prove(self, seen: States, model: Model, wanted: str) -> Plan:
        """The plan; a model that is to stay active is proved where the last proof of its start is too old."""
        plan = self._plan(seen, model, wanted)
        stays = wanted == ACTIVE and not any(step.model == model.id for step in plan.steps)
        if not stays or not model.ready_completion or self._is_proved(model):
            return plan
        return Plan((*plan.stages, ((Step(VERIFY, model.id),),)), plan.warnings)

    def _is_proved(self, model: Model) -> bool:
        proof = records.models(self.stack_dir, PROOF).get(model.id)
        if not isinstance(proof, dict) or not isinstance(proof.get("at"), (int, float)):
            return False
        if not 0 <= self.now() - proof["at"] < self.settings.prove_interval_seconds:
            return False
        return self.host.was_proved(model)

    def _note_proof(self, name: str, start: str | None, answered: bool) -> None:
        """Write down which start was ready and, where it answered and is still awake, when: only that ages."""
        if start is None:
            start = self.host.lifecycles[name].start_id()
        if start:
            self.host.note_proof(name, start, round(self.now(), 3) if answered else None)

    def _look_again(
        self, models: typing.Sequence[Model], foretold: States, performer: Performer
    ) -> dict[str, Observation]:
        """What the models are at the end, whatever the steps have made of them."""
        proved = sorted(
            {step["model"] for step in performer.steps if step["action"] == VERIFY and "failed" not in step}
        )
        work: list[typing.Callable[[], dict[str, Observation] | None]] = [lambda: self.host.observe(models)]
        for name in proved:
            answered = foretold[name].state == ACTIVE and bool(self.host.models[name].ready_completion)
            start = performer.starts.get(name)
            # To ask which start it is may cost a docker command. Of vLLM a 503 tells by itself what it means.
            if answered or start is not None or self._may_listen_unready(name, foretold[name]):
                work.append(functools.partial(self._note_proof, name, start, answered))
        after = dict(self.host.each(lambda one: one(), work)[0] or {})
        for name, seen in after.items():
            told = foretold[name]
            if seen.unknown and told.state == ACTIVE and name in proved:
                performer.warnings.append(f"{name} was proved, and then gave no answer in time")
                after[name] = told
            elif seen.state == told.state == STOPPED:
                after[name] = told
            elif seen.state == told.state == SLEEPING and seen.level is None and not seen.doubtful:
                after[name] = dataclasses.replace(seen, level=told.level)
            elif seen.state == ACTIVE and told.state in (SLEEPING, STOPPED):
                performer.warnings.append(
                    f"{name} was active again, though this switch left it {told.state}: somebody woke it"
                )
        return after

    def _may_listen_unready(self, name: str, foretold: Observation) -> bool:
        """Whether a 503 of this server may mean later that it loads, unless it is known to have been ready."""
        try:
            return foretold.state in (ACTIVE, SLEEPING) and self.host.servers[name].may_be_loading()
        except SwitchingError:
            return False

    def _check_end(self, model: Model, wanted: str, after: States, performer: Performer) -> None:
        """See that a model that was made active is."""
        seen = after[model.id]
        if wanted != ACTIVE or seen.state == ACTIVE:
            return

        def act(_step: Step) -> None:
            why = f" ({seen.problem})" if seen.problem else ""
            raise LifecycleError(f"{model.id} was ready, but is {describe(seen)} at the end{why}")

        performer.perform(Step(VERIFY, model.id), act)

    def _plan(self, seen: States, model: Model, wanted: str) -> Plan:
        shared = capacity.remembered_shared(self.stack_dir)
        return make_plan(self.inventory, seen, model, wanted, self.mem_available_gb(), self.reserved_gb, shared)

    def _silent(self, before: States, plan: Plan) -> list[str]:
        """Those whose state the plan depends on, and that gave no answer in time."""
        return sorted({step.model for step in plan.steps if before[step.model].unknown})

    def _let_answer(self, names: typing.Sequence[str], performer: Performer) -> None:
        """Wait until they answer, no longer than a request, or a wake or sleep that was begun, may take."""
        self.host.each(lambda name: performer.perform(Step(WAIT, name), self._await_answer), names)

    def _await_answer(self, step: Step) -> str:
        begun = self.lock.begun.get(step.model)
        moves = begun is not None and begun.action in (SLEEP, WAKE)
        which = "request_timeout_seconds" if moves else "drain_timeout_seconds"
        seconds: float = getattr(self.settings, which)
        model = self.host.models[step.model]
        if self.host.wait(lambda: not self.host.observe([model])[model.id].unknown, seconds):
            return f"{model.id} did not answer at first"
        return f"{model.id} did not answer for {seconds:g} s ({which})"

    def _stays(self, model: Model, before: States, plan: Plan) -> list[tuple[str, float]]:
        """Those that have to make room and have not been active for as long as they may, with the seconds left."""
        least = self.settings.min_active_seconds
        leaving = {step.model for step in plan.steps if step.action in (SLEEP, STOP)} - {model.id}
        known = {name: self.lock.active_since[name] for name in leaving if name in self.lock.active_since}
        left = {name: least - (self.now() - since) for name, since in known.items() if before[name].state == ACTIVE}
        return [(name, seconds) for name, seconds in sorted(left.items()) if 0 < seconds <= least]

    def _let_stay(self, model: Model, before: States, plan: Plan, performer: Performer) -> bool:
        """Wait for those that may stay; whether that took time."""
        started = self.now()
        stays = self._stays(model, before, plan)
        for name, left in stays:
            performer.perform(Step(WAIT, name), functools.partial(self._stay, left - (self.now() - started)))
        return bool(stays)

    def _stay(self, seconds: float, step: Step) -> str:
        self.sleep(max(0.0, seconds))
        return f"{step.model} stays active for {self.settings.min_active_seconds:g} s at least (min_active_seconds)"

    def _note_end(self, after: States, steps: Steps, failed: bool) -> None:
        touched = {step["model"] for step in steps if step["action"] != WAIT}
        since: dict[str, float | None] = {}
        for m in self.inventory.models:
            known = self.lock.active_since.get(m.id) if m.id not in touched else None
            since[m.id] = (known or self.now()) if after[m.id].state == ACTIVE else None
        self.lock.note(since, self.now() if failed else 0.0)

    def restore(self) -> typing.Iterator[tuple[Model, str, Result | SwitchingError]]:
        """Bring the host back to what it is meant to be, as after a boot.

        Yields each model, its wanted state and how it went; one that fails does not keep the others from coming back.
        The sleeping ones are loaded first, one at a time where they share GPUs, and the active ones last. The record
        stays as it is on the way: what is asked for is what it says. Should somebody switch meanwhile, then that
        counts.
        """

        def is_wanted(model: Model, state: str) -> bool:
            return record.read(self.inventory, self.stack_dir)[model.id] == state

        for wanted in (SLEEPING, ACTIVE):
            for round_ in self.inventory.rounds(m for m in self.inventory.enabled if is_wanted(m, wanted)):
                models = round_
                started = self.clock()
                outcomes: list[Result | SwitchingError]
                try:
                    with self._lock(models, f"{', '.join(m.id for m in models)} {wanted}"):
                        # What somebody has changed while this waited for the lock is left out.
                        models = tuple(m for m in round_ if is_wanted(m, wanted))
                        outcomes = self._side_by_side(models, wanted, False, started) if models else []
                except SwitchingError as error:
                    outcomes = [error for model in models]
                for model, outcome in zip(models, outcomes):
                    yield model, wanted, outcome

    def _result(
        self, model: Model, before: States, after: States, steps: Steps, warnings: list[str], started: float
    ) -> Result:
        group = [m for m in self.inventory.enabled if m.id == model.id or m.conflicts_with(model)]

        def is_change(step: dict[str, typing.Any]) -> bool:
            if step["action"] == VERIFY:
                return bool(before[step["model"]].state != after[step["model"]].state)
            return bool(step["action"] != WAIT)

        # A disabled model may have been looked at, but it is not ours to report on. Requests come and go.
        shown = [
            {
                m.id: Observation(DISABLED)
                if m.disabled
                else dataclasses.replace(states[m.id], running=None, waiting=None)
                for m in self.inventory.models
            }
            for states in (before, after)
        ]
        return Result(
            changed=any("failed" not in step and is_change(step) for step in steps),
            warnings=[self.host.mask(warning) for warning in warnings],
            # Where two are active it is the one that was asked for.
            places=((model.id, *(m.id for m in group if m.id != model.id)),),
            before=shown[0],
            models=shown[1],
            steps=steps,
            elapsed_seconds=self.clock() - started,
        )

    @contextlib.contextmanager
    def _lock(self, models: typing.Sequence[Model], purpose: str) -> typing.Iterator[None]:
        """Hold the host's lock and those of the GPUs concerned; let a host have its rest after a switch that failed."""
        gpus = {gpu for one in models for m in self.inventory.group(one) for gpu in m.gpus}
        with self.lock.hold(purpose, self.settings.lock_timeout_seconds, self.host.wait, self.tell, gpus):
            rest = self.settings.failure_backoff_seconds
            left = rest - (self.now() - self.lock.last_failed_at)
            if 0 < left <= rest:
                self.sleep(left)
            yield


def _warn(outcomes: typing.Sequence[Result | SwitchingError], warnings: typing.Sequence[str]) -> None:
    """Add what there is to warn of to the first of these that has a result."""
    for result in results_of(outcomes)[:1]:
        result.warnings.extend(warnings)


def _after(before: States, plan: Plan, steps: Steps) -> dict[str, Observation]:
    """What is left after a plan: every step confirmed its outcome, but one that failed may have been mended."""
    after = predict(before, plan)
    for step in steps:
        if step["action"] == STOP:
            after[step["model"]] = Observation(STOPPED)
        elif step["action"] == VERIFY:
            after[step["model"]] = Observation(ACTIVE)
        elif step["action"] == SLEEP and "failed" not in step:
            after[step["model"]] = Observation(SLEEPING, level=step["level"])
    return after
