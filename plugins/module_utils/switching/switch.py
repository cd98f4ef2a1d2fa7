# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What a host can be asked for: a switch, a roll back, to undo a change, a restore; under its lock, and recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing

from . import canary, changes, desired_state, hardware, state_files, status
from .errors import ChangedSince, NotProvisioned, SwitchFailed, SwitchingError
from .host import Host, Observer
from .inventory import Inventory, Model, Switching
from .lifecycle import Lifecycle, for_model
from .lock import HostLock
from .plan import ACTIVE, SLEEPING, STOPPED, Observation
from .result import Result, States, describe, joined, results_of, together
from .server import Server
from .transition import Transition


class Switcher:
    """Switches the models of the host on which it runs. Clock and I/O are parameters, for tests to replace."""

    def __init__(
        self,
        inventory: Inventory,
        stack_dir: str,
        *,
        clock: typing.Callable[[], float] = time.monotonic,
        sleep: typing.Callable[[float], None] = time.sleep,
        now: typing.Callable[[], float] = time.time,
        tell: typing.Callable[[str], None] | None = None,
        mem_available_gb: typing.Callable[[], float | None] = hardware.read_mem_available_gb,
        server: typing.Callable[[Model, Switching], Server] = Server,
        lifecycle: typing.Callable[[Model, str, Switching], Lifecycle] = for_model,
        lock: HostLock | None = None,
        observer: Observer | None = None,
    ) -> None:
        """C(observer) is told of each step as it begins and as it ends, see C(Host.tell_step)."""
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
        self.observer = observer
        self.host = self._host(inventory)
        # What a check takes models to be whatever is observed: what the steps predicted so far make of them.
        self.predicted: dict[str, Observation] = {}

    def __enter__(self) -> Switcher:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.host.close()

    def _host(self, inventory: Inventory) -> Host:
        makers = (self.make_server, self.make_lifecycle)
        return Host(inventory, self.stack_dir, self.lock, self.clock, self.sleep, *makers, observer=self.observer)

    def report(self) -> dict[str, typing.Any]:
        """The state and the number of requests of every model, as plain data. Changes nothing and never fails."""
        return status.report(self.host, self.mem_available_gb())

    def switch(
        self,
        name: str | typing.Sequence[str],
        desired: str = ACTIVE,
        check: bool = False,
        for_now: bool = False,
        record_canary: bool = False,
        change: str = "",
    ) -> Result:
        """Bring the model called C(name) to the state C(desired) (active, sleeping or stopped).

        Several models are switched in parallel; they must not share GPUs, directly or through another model. With
        C(check), nothing is locked or changed, and the result contains the planned steps. With C(for_now), the desired
        state that a boot restores does not change. With C(record_canary), the answer of the active model is recorded as
        the correct one. C(change) is a name by which C(undo) can undo the switch; several models are then switched
        together: if one fails, the others are restored. Raises UnknownModel, Blocked or LockTimeout if nothing was
        changed, SwitchFailed otherwise.
        """
        models = [self.inventory.find(one) for one in ([name] if isinstance(name, str) else name)]
        return self._switch_all(models, desired, check, for_now, record_canary, change=change)

    def roll_back(self, check: bool = False) -> Result:
        """Make the models active again that the last switch replaced. A second call changes nothing.

        Does not wait for C(min_active_seconds). Raises SwitchingError if there is nothing to roll back, and the
        exceptions of C(switch).
        """
        names = desired_state.last_displaced(self.stack_dir)
        models = [m for m in self.inventory.enabled if m.id in names]
        if not models:
            why = "no switch has replaced a model on this host since it was provisioned"
            if names:
                why = f"the last switch replaced {', '.join(names)}, which is no longer declared or is disabled"
            raise SwitchingError(f"there is nothing to roll back: {why}; name the model to make active")
        self.settings = dataclasses.replace(self.settings, min_active_seconds=0)
        started = self.clock()
        done: list[Result] = []
        for batch in self.inventory.load_batches(models):
            try:
                done.append(self._switch_all(batch, ACTIVE, check, displaced=names, started=started))
            except SwitchingError as error:
                if not done:
                    raise
                last = [error.result] if isinstance(error, SwitchFailed) else []
                raise SwitchFailed(str(error), joined([*done, *last])) from error
            if check:
                self.predicted.update(done[-1].models)
        return dataclasses.replace(joined(done), elapsed_seconds=self.clock() - started)

    def _switch_all(
        self,
        models: typing.Sequence[Model],
        desired: str,
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
            if desired != ACTIVE or not canary.applies(model):
                raise SwitchingError(
                    f"record_canary: {model.id} can't give an answer to record: this requires the state active, a "
                    "canary that is not off, and ready_completion"
                )
        if desired != STOPPED:
            self._check_provisioned(models)
        started = self.clock() if started is None else started
        with self._checking() if check else self._lock(models, f"{', '.join(m.id for m in models)} {desired}"):
            if displaced and desired_state.last_displaced(self.stack_dir) != list(displaced):
                raise SwitchingError(
                    "another switch of this host ended in the meantime: check which model is active, then roll back "
                    "again"
                )
            outcomes = self._side_by_side(models, desired, check, started, record_canary)
            if not check:
                outcomes = self._all_or_none(models, outcomes, started) if change else outcomes
                self._record_change(change, outcomes)
            lost = status.unreadable(self.host) if check else self._record_end(models, desired, outcomes, started)
            if not check and not for_now and any(isinstance(outcome, Result) for outcome in outcomes):
                done = [(model, one) for model, one in zip(models, outcomes) if isinstance(one, Result)]
                left = [name for _model, one in done for name in one.displaced] if desired == ACTIVE else []

                def switched(goal: desired_state.DesiredState) -> desired_state.DesiredState:
                    for model, _result in done:
                        goal = desired_state.after(self.inventory, goal, model, desired)
                    return goal

                lost += desired_state.update(self.inventory, self.stack_dir, switched, displaced or left)
            _warn(outcomes, lost)
            return together(models, outcomes)

    def _record_change(self, change: str, outcomes: typing.Sequence[Result | SwitchingError]) -> None:
        """Record what has changed under the name of the change, or that what others have changed is not theirs now."""
        done = results_of(outcomes)
        try:
            displaced = desired_state.last_displaced(self.stack_dir) if change and done else []
            changes.record(self.stack_dir, change, done, displaced)
        except (OSError, SwitchingError) as error:
            path, why = state_files.path(self.stack_dir, state_files.CHANGES), str(error)
            if isinstance(error, OSError):
                why = f"{path} can't be read or written ({error.strerror}): {state_files.remedy(error)}"
            lost = "this switch can't be undone by its name" if change else "an earlier change may be undone over it"
            done[0].warnings.append(f"{why}; {lost}")

    def _all_or_none(
        self, models: typing.Sequence[Model], outcomes: list[Result | SwitchingError], started: float
    ) -> list[Result | SwitchingError]:
        """How it went with models that are switched as one: where one has failed, the others are restored."""
        failures = [(m.id, one) for m, one in zip(models, outcomes) if isinstance(one, SwitchingError)]
        if not failures or "roll_back" not in self.settings.escalation:
            return outcomes
        why = ", ".join(name for name, _error in failures)
        settled: list[Result | SwitchingError] = []
        for model, outcome in zip(models, outcomes):
            if isinstance(outcome, Result) and (outcome.displaced or outcome.activated):
                target = {name: outcome.before[name].state for place in outcome.places for name in place}
                done, error = self._restore_active(target, outcome.models, False, started)
                how = (
                    f"could not be restored, although {why} failed: {error}"
                    if error
                    else f"was restored because {why} failed"
                )
                settled.append(SwitchFailed(f"{model.id} {how}", joined([outcome, *done])))
            else:
                settled.append(outcome)
        return settled

    def _restore_active(
        self, target: changes.States, seen: States, check: bool, started: float
    ) -> tuple[list[Result], SwitchingError | None]:
        """Make those models active again that were in C(target), and of its models no others. The caller has the lock.

        Returns what was done, and what went wrong.
        """
        done: list[Result] = []
        for models, desired in changes.goals(self.inventory, target, seen):
            outcomes = self._side_by_side(models, desired, check, started)
            for result in results_of(outcomes):
                done.append(result)
                if check:
                    self.predicted.update(result.models)
            errors = [one for one in outcomes if isinstance(one, SwitchingError)]
            if errors:
                return done, errors[0]
        return done, None

    def undo(self, change: str, check: bool = False) -> Result:
        """Undo the switches of this C(change) on all GPUs: completely or not at all.

        Raises ChangedSince and changes nothing if the models are not in the state that the change left; this is checked
        under the lock. Does not wait for C(min_active_seconds). Raises SwitchFailed or LockTimeout.
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
                    "other models have been switched since"
                    if others
                    else "another switch was made since, or the change is empty"
                )
                raise ChangedSince(f"{what or 'nothing is active'}: {why}, so no part of {change} is undone", begun)
            done, error = self._restore_active(found.before, seen, check, started)
            result = self._combined(begun, done, started)
            if error and not check and "roll_back" in self.settings.escalation:
                # All of it or nothing: what came back goes again.
                as_begun = {name: seen[name].state for name in place}
                more, second = self._restore_active(as_begun, result.models, False, started)
                result = self._combined(begun, [*done, *more], started)
                error = SwitchFailed(f"{error}" + (f"\n{second}" if second else ""), result)
            if not check and done:
                self._record_undone(change, found, result, error, started)
            if error:
                raise SwitchFailed(str(error), result)
            return result

    def _combined(self, begun: Result, done: typing.Sequence[Result], started: float) -> Result:
        """What was done one after the other as one result about the models that it began with."""
        return dataclasses.replace(joined([begun, *done]), places=begun.places, elapsed_seconds=self.clock() - started)

    def _record_undone(
        self, change: str, found: changes.Change, result: Result, error: SwitchingError | None, started: float
    ) -> None:
        """Record that the host is meant to be again what it was, for a boot and for a roll back."""
        models = [m for m in self.inventory.enabled if m.id in found.after]
        back = [m for m in models if found.before.get(m.id) == ACTIVE]
        outcome = SwitchFailed(str(error), result) if error else result
        result.warnings += self._record_end(back or models, ACTIVE if back else SLEEPING, [outcome], started)
        if error:
            return

        def switched(goal: desired_state.DesiredState) -> desired_state.DesiredState:
            for model in models:
                if result.models[model.id].state == ACTIVE:
                    goal = desired_state.after(self.inventory, goal, model, ACTIVE)
            for model in models:
                if goal[model.id] == ACTIVE and result.models[model.id].state != ACTIVE:
                    goal[model.id] = STOPPED if found.before.get(model.id) == STOPPED else SLEEPING
            return goal

        result.warnings += desired_state.update(self.inventory, self.stack_dir, switched, found.displaced)
        try:
            after = {name: result.models[name].state for name in found.after if name in result.models}
            changes.undone(self.stack_dir, change, found, after)
        except OSError as lost:
            result.warnings.append(str(lost))

    def _check_provisioned(self, models: typing.Sequence[Model]) -> None:
        """Before the lock, whose folder would be all that this host has: can those be started that don't run?"""
        lost = [m for m in models if status.missing(self.host, m)]
        seen = self.host.observe(lost) if lost else {}
        for model in lost:
            if seen[model.id].state == STOPPED:
                path = status.missing(self.host, model)
                raise NotProvisioned(
                    f"{model.id} does not run and can't be started, because {path} does not exist: run "
                    "homegpt.vllm.site first, or correct vllm_stack_dir"
                )

    def _record_end(
        self,
        models: typing.Sequence[Model],
        desired: str,
        outcomes: typing.Sequence[Result | SwitchingError],
        started: float,
    ) -> list[str]:
        seconds = self.clock() - started
        return status.record_last_switch(self.stack_dir, models, desired, outcomes, self.now(), seconds)

    def _check_apart(self, models: typing.Sequence[Model]) -> None:
        if not models:
            self.inventory.find("")
        self.inventory.check_apart(models)

    @contextlib.contextmanager
    def _checking(self) -> typing.Iterator[None]:
        self.lock.peek()
        yield

    def _side_by_side(
        self, models: typing.Sequence[Model], desired: str, check: bool, started: float, record_canary: bool = False
    ) -> list[Result | SwitchingError]:
        """How it went with each of the models. The caller holds the lock, unless this is a C(check)."""

        def work(model: Model) -> Result | SwitchingError:
            with contextlib.ExitStack() as stack:
                transition = self._transition() if len(models) == 1 else self._part(model, stack)
                try:
                    return transition.run(model, desired, check, started, record_canary)
                except SwitchingError as error:
                    return error.masked(transition.host.mask)

        return self.host.each(work, models)

    def _transition(self) -> Transition:
        return Transition(self.host, self.settings, self.now, self.mem_available_gb, 0.0, self.predicted)

    def _part(self, model: Model, stack: contextlib.ExitStack) -> Transition:
        """One among those models alone that have a GPU to do with this one, with their share of the host's RAM."""
        group = self.inventory.group(model)
        share = sum(m.weights_gb or 1.0 for m in group) / sum(m.weights_gb or 1.0 for m in self.inventory.models)

        def mem_available_gb() -> float | None:
            free = self.mem_available_gb()
            return None if free is None else free * share

        host = self._host(Inventory(group, self.settings))
        stack.callback(host.close)
        predicted = {m.id: self.predicted[m.id] for m in group if m.id in self.predicted}
        return Transition(
            host, self.settings, self.now, mem_available_gb, self.settings.available_ram_gb * (1 - share), predicted
        )

    def restore(self) -> typing.Iterator[tuple[Model, str, Result | SwitchingError]]:
        """Restore the desired state of the host, as after a boot.

        Yields each model, its desired state and the outcome; a model that fails does not prevent the others. Sleeping
        models are loaded first, one at a time if they share GPUs, and active ones last. The recorded desired state does
        not change. If another switch runs in between, its desired state takes precedence.
        """

        def is_desired(model: Model, state: str) -> bool:
            return desired_state.read(self.inventory, self.stack_dir)[model.id] == state

        for desired in (SLEEPING, ACTIVE):
            for batch in self.inventory.load_batches(m for m in self.inventory.enabled if is_desired(m, desired)):
                models = batch
                started = self.clock()
                outcomes: list[Result | SwitchingError]
                try:
                    with self._lock(models, f"{', '.join(m.id for m in models)} {desired}"):
                        # What somebody has changed while this waited for the lock is left out.
                        models = tuple(m for m in batch if is_desired(m, desired))
                        outcomes = self._side_by_side(models, desired, False, started) if models else []
                except SwitchingError as error:
                    outcomes = [error for model in models]
                for model, outcome in zip(models, outcomes):
                    yield model, desired, outcome

    @contextlib.contextmanager
    def _lock(self, models: typing.Sequence[Model], purpose: str) -> typing.Iterator[None]:
        """Hold the host's lock and those of the GPUs concerned; let a host have its rest after a switch that failed."""
        gpus = {gpu for one in models for m in self.inventory.group(one) for gpu in m.gpus}
        seconds, wait, names = self.settings.lock_timeout_seconds, self.host.wait, [m.id for m in models]
        with self.lock.hold(purpose, seconds, wait, self.tell, gpus, names):
            rest = self.settings.failure_backoff_seconds
            left = rest - (self.now() - self.lock.last_failed_at)
            if 0 < left <= rest:
                self.sleep(left)
            yield


def _warn(outcomes: typing.Sequence[Result | SwitchingError], warnings: typing.Sequence[str]) -> None:
    """Add what there is to warn of to the first of these that has a result."""
    for result in results_of(outcomes)[:1]:
        result.warnings.extend(warnings)
