# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The switch of one model and of those that share a GPU with it: observe, plan, execute, check, or roll back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing

from . import costs, memory, state_files
from .errors import LifecycleError, NoMemory, SwitchFailed, SwitchingError
from .executor import Executor
from .host import Host
from .inventory import Model, Switching
from .plan import (
    ACTIVE,
    DISABLED,
    FIRST_ANSWER,
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
    reading_step,
    sleep_ram_gb,
)  # fmt: skip
from .recovery import Recovery
from .result import Result, States, Steps, describe, measures, step_record

if typing.TYPE_CHECKING:
    from .page_cache import Warmer


class Transition:
    """Brings one model of a host to a state. The caller holds the lock.

    C(settings) are those of this switch; C(now) tells the time of day in seconds since 1970; C(mem_available_gb) what
    RAM is free, C(reserved_gb) what of it is kept. C(predicted) is what a check takes models to be, whatever is
    observed: what the steps predicted so far make of them.
    """

    def __init__(
        self,
        host: Host,
        settings: Switching,
        now: typing.Callable[[], float],
        mem_available_gb: typing.Callable[[], float | None],
        reserved_gb: float,
        predicted: States,
    ) -> None:
        self.host = host
        self.inventory = host.inventory
        self.settings = settings
        self.lock = host.lock
        self.clock = host.clock
        self.now = now
        self.mem_available_gb = mem_available_gb
        self.reserved_gb = reserved_gb
        self.predicted = predicted

    def run(self, model: Model, desired: str, check: bool, started: float, record_canary: bool = False) -> Result:
        """Switch under the lock, which was asked for when C(started)."""
        hidden = [other for other in self.inventory.conflicting(model) if other.disabled]
        before = {**self.host.observe((*self.inventory.enabled, *hidden)), **self.predicted}
        plan = self._plan_and_prove(before, model, desired)
        last = Step(RECORD, model.id) if record_canary else None
        if not check and (last or any(step.action != VERIFY for step in plan.steps)):
            self._prove_records()
        if check:
            waits = [Step(WAIT, name) for name in self._unanswering(before, plan)]
            waits += [Step(WAIT, name) for name, _left in self._active_too_briefly(model, before, plan)]
            steps = [step_record(step) for step in (*waits, *plan.steps, *([last] if last else []))]
            steps += map(step_record, self._first_answers(steps))
            self._predict_warming(plan, steps)
            return self._result(model, before, predict(before, plan), steps, list(plan.warnings), started)
        executor = Executor(self.host, started, model.id if last else None)
        begun = {name for name, one in self.lock.begun.items() if one.action == START}
        executor.readiness.fresh.update(name for name, seen in before.items() if seen.state == LOADING or name in begun)
        recovery = Recovery(executor, self._plan)
        waited: set[str] = set()
        while set(self._unanswering(before, plan)) - waited:
            self._wait_for_answers([name for name in self._unanswering(before, plan) if name not in waited], executor)
            waited.update(self._unanswering(before, plan))
            before = self.host.observe((*self.inventory.enabled, *hidden))
            plan = self._plan_and_prove(before, model, desired)

        def result(after: States) -> Result:
            return self._result(model, before, after, executor.steps, executor.warnings, started)

        try:
            if self._wait_min_active(model, before, plan, executor):
                before = self.host.observe((*self.inventory.enabled, *hidden))
                plan = self._plan_and_prove(before, model, desired)
            executor.warnings += plan.warnings
            executor.warming = self._begin_warming(plan)
            try:
                recovery.execute(plan)
            finally:
                executor.end_warming()
            after = _after(before, plan, executor.steps)
            if after[model.id].state != predict(before, plan)[model.id].state:
                failures = [s["failed"] for s in executor.steps if "failed" in s and s["model"] == model.id]
                # Else it was loaded for it, and then known to be better stopped.
                if failures or desired != SLEEPING or after[model.id].state != STOPPED:
                    failed = (*failures, f"{model.id} did not become {desired}")[0]
                    raise LifecycleError(f"{failed}, so it was stopped")
            if last:
                executor.run(last)
            for step in self._first_answers(executor.steps):
                executor.run(step)
            if plan.steps or last:
                after = self._observe_end((*self.inventory.enabled, *hidden), after, executor)
                rivals = [m.id for m in self.inventory.conflicting(model) if not m.disabled]
                if desired == ACTIVE and any(after[name].state == ACTIVE for name in rivals):
                    # Once: whoever has woken one meanwhile may do so again.
                    rest = self._plan(after, model, desired)
                    recovery.execute(rest)
                    predicted = _after(after, rest, executor.steps)
                    after = self._observe_end((*self.inventory.enabled, *hidden), predicted, executor)
                self._check_end(model, desired, after, executor)
        except SwitchingError as error:
            after, message = recovery.roll_back(model, desired, before, error)
            self._record_end(after, executor.steps, error)
            raise SwitchFailed(message, result(after)) from error
        except (Exception, KeyboardInterrupt) as error:
            recovery.roll_back(model, desired, before, error)
            raise
        self._record_end(after, executor.steps)
        return result(after)

    def _plan_and_prove(self, seen: States, model: Model, desired: str) -> Plan:
        """The plan; a model that is to stay active is proved where the last proof of its start is too old."""
        plan = self._plan(seen, model, desired)
        stays = desired == ACTIVE and not any(step.model == model.id for step in plan.steps)
        if not stays or not model.ready_completion or self._is_proved(model):
            return plan
        return Plan((*plan.stages, ((Step(VERIFY, model.id),),)), plan.warnings)

    def _is_proved(self, model: Model) -> bool:
        proof = state_files.models(self.host.stack_dir, state_files.PROOF).get(model.id)
        if not isinstance(proof, dict) or not isinstance(proof.get("at"), (int, float)):
            return False
        if not 0 <= self.now() - proof["at"] < self.settings.prove_interval_seconds:
            return False
        return self.host.was_proved(model)

    def _plan(self, seen: States, model: Model, desired: str) -> Plan:
        shared = memory.remembered_shared(self.host.stack_dir)
        free = self.mem_available_gb()
        return make_plan(self.inventory, seen, model, desired, free, self.reserved_gb, shared, self._costs)

    @functools.cached_property
    def _costs(self) -> dict[str, typing.Any]:
        return state_files.models(self.host.stack_dir, state_files.COSTS)

    def _warmer(self, plan: Plan) -> tuple[str, Warmer] | None:
        """Who is to read weights ahead, and whose; None where there is nothing to read, or no RAM for it."""
        step = reading_step(plan) if self.settings.warm else None
        # Where the GPU has no memory but the RAM, the page cache would be taken off it.
        if not step or memory.remembered_shared(self.host.stack_dir):
            return None
        from . import page_cache  # noqa: PLC0415 - most switches need none, and would wait for it

        place = page_cache.place_of(self.host.stack_dir, self.host.models[step.model])
        available = self.mem_available_gb()
        if place is None or available is None:
            return None
        left_gb = available * page_cache.RAM_SHARE - sleep_ram_gb(plan, self.host.models)
        return (step.model, page_cache.Warmer(place, left_gb * 1e9)) if left_gb > 0 else None

    def _begin_warming(self, plan: Plan) -> tuple[str, Warmer] | None:
        warming = self._warmer(plan)
        if warming:
            warming[1].begin()
        return warming

    def _first_answers(self, steps: Steps) -> list[Step]:
        """The answers that those are asked for whom the steps have woken or started, and not put to sleep again."""
        moves = (WAKE, START, SLEEP, STOP)
        ends = {step["model"]: step for step in steps if step["action"] in moves and step["level"] != 0}
        woken = [name for name, step in ends.items() if step["action"] in (WAKE, START)]
        return [Step(FIRST_ANSWER, name) for name in woken if self.host.models[name].first_answer_tokens]

    def _predict_warming(self, plan: Plan, steps: Steps) -> None:
        """Write down with the step that reads weights how much of them would be read ahead."""
        warming = self._warmer(plan)
        if warming is None:
            return
        record = next(step for step in steps if step["model"] == warming[0] and step["action"] in (WAKE, START))
        note = warming[1].predict()
        if note:
            record["note"] = note

    def _prove_records(self) -> None:
        """Raise SwitchingError where what is about to be done could not be recorded."""
        try:
            state_files.prove(self.host.stack_dir, state_files.DESIRED_STATE)
        except OSError as error:
            raise SwitchingError(
                f"nothing was changed: a switch writes state files, and {error.filename} can't be written "
                f"({error.strerror}): {state_files.remedy(error)}"
            ) from None

    def _unanswering(self, before: States, plan: Plan) -> list[str]:
        """Those whose state the plan depends on, and that gave no answer in time."""
        return sorted({step.model for step in plan.steps if before[step.model].unknown})

    def _wait_for_answers(self, names: typing.Sequence[str], executor: Executor) -> None:
        """Wait until they answer, no longer than a request, or a wake or sleep that was begun, may take."""
        self.host.each(lambda name: executor.run(Step(WAIT, name), self._wait_for_answer), names)

    def _wait_for_answer(self, step: Step) -> str:
        begun = self.lock.begun.get(step.model)
        moves = begun is not None and begun.action in (SLEEP, WAKE)
        which = "request_timeout_seconds" if moves else "drain_timeout_seconds"
        seconds: float = getattr(self.settings, which)
        model = self.host.models[step.model]
        if self.host.wait(lambda: not self.host.observe([model])[model.id].unknown, seconds):
            return f"{model.id} did not answer at first"
        return f"{model.id} did not answer for {seconds:g} s ({which})"

    def _active_too_briefly(self, model: Model, before: States, plan: Plan) -> list[tuple[str, float]]:
        """Those that have to make room and have not been active for as long as they may, with the seconds left."""
        least = self.settings.min_active_seconds
        leaving = {step.model for step in plan.steps if step.action in (SLEEP, STOP)} - {model.id}
        known = {name: self.lock.active_since[name] for name in leaving if name in self.lock.active_since}
        left = {name: least - (self.now() - since) for name, since in known.items() if before[name].state == ACTIVE}
        return [(name, seconds) for name, seconds in sorted(left.items()) if 0 < seconds <= least]

    def _wait_min_active(self, model: Model, before: States, plan: Plan, executor: Executor) -> bool:
        """Wait for those that may stay; whether that took time."""
        started = self.now()
        stays = self._active_too_briefly(model, before, plan)
        for name, left in stays:
            executor.run(Step(WAIT, name), functools.partial(self._stay_active, left - (self.now() - started)))
        return bool(stays)

    def _stay_active(self, seconds: float, step: Step) -> str:
        self.host.sleep(max(0.0, seconds))
        return f"{step.model} stays active for at least {self.settings.min_active_seconds:g} s (min_active_seconds)"

    def _observe_end(
        self, models: typing.Sequence[Model], predicted: States, executor: Executor
    ) -> dict[str, Observation]:
        """What the models are at the end, whatever the steps have made of them."""
        proved = sorted({step["model"] for step in executor.steps if step["action"] == VERIFY and "failed" not in step})
        work: list[typing.Callable[[], dict[str, Observation] | None]] = [lambda: self.host.observe(models)]
        for name in proved:
            answered = predicted[name].state == ACTIVE and bool(self.host.models[name].ready_completion)
            start = executor.readiness.starts.get(name)
            # To ask which start it is may cost a docker command. Of vLLM a 503 tells by itself what it means.
            if answered or start is not None or self._may_listen_unready(name, predicted[name]):
                work.append(functools.partial(self._record_proof, name, start, answered))
        after = dict(self.host.each(lambda one: one(), work)[0] or {})
        for name, seen in after.items():
            told = predicted[name]
            if seen.unknown and told.state == ACTIVE and name in proved:
                executor.warnings.append(f"{name} was confirmed, and then did not answer in time")
                after[name] = told
            elif seen.state == told.state == STOPPED:
                after[name] = told
            elif seen.state == told.state == SLEEPING and seen.level is None and not seen.doubtful:
                after[name] = dataclasses.replace(seen, level=told.level)
            elif seen.state == ACTIVE and told.state in (SLEEPING, STOPPED):
                executor.warnings.append(
                    f"{name} was active again, although this switch left it {told.state}: another client woke it"
                )
        return after

    def _record_proof(self, name: str, start: str | None, answered: bool) -> None:
        """Write down which start was ready and, where it answered and is still awake, when: only that ages."""
        if start is None:
            start = self.host.lifecycles[name].start_id()
        if start:
            self.host.record_proof(name, start, round(self.now(), 3) if answered else None)

    def _may_listen_unready(self, name: str, predicted: Observation) -> bool:
        """Whether a 503 of this server may mean later that it loads, unless it is known to have been ready."""
        try:
            return predicted.state in (ACTIVE, SLEEPING) and self.host.servers[name].may_be_loading()
        except SwitchingError:
            return False

    def _check_end(self, model: Model, desired: str, after: States, executor: Executor) -> None:
        """See that a model that was made active is."""
        seen = after[model.id]
        if desired != ACTIVE or seen.state == ACTIVE:
            return

        def act(_step: Step) -> None:
            why = f" ({seen.problem})" if seen.problem else ""
            raise LifecycleError(f"{model.id} was ready, but is {describe(seen)} at the end{why}")

        executor.run(Step(VERIFY, model.id), act)

    def _record_end(self, after: States, steps: Steps, error: SwitchingError | None = None) -> None:
        touched = {step["model"] for step in steps if step["action"] != WAIT}
        since: dict[str, float | None] = {}
        for m in self.inventory.models:
            known = self.lock.active_since.get(m.id) if m.id not in touched else None
            since[m.id] = (known or self.now()) if after[m.id].state == ACTIVE else None
        self.lock.record_end(since, self.now() if error else 0.0)
        # That others hold the memory for a wake is no failure of its level.
        measured = [one for one in measures(steps) if one.seconds is not None or not isinstance(error, NoMemory)]
        if not measured:
            return
        # A later choice is the better for it, and this switch is done: no reason to fail it.
        with state_files.changing, contextlib.suppress(OSError):
            content = state_files.models_of(state_files.read_or_raise(self.host.stack_dir, state_files.COSTS))
            merged = costs.merged(content, measured, self.host.models)
            state_files.write(self.host.stack_dir, state_files.COSTS, {"models": merged})

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


def _after(before: States, plan: Plan, steps: Steps) -> dict[str, Observation]:
    """What is left after a plan: every step confirmed its outcome, but one that failed may have been recovered."""
    after = predict(before, plan)
    for step in steps:
        if step["action"] == STOP and "failed" not in step:
            after[step["model"]] = Observation(STOPPED)
        elif step["action"] == VERIFY:
            after[step["model"]] = Observation(ACTIVE)
        elif step["action"] == SLEEP and "failed" not in step:
            after[step["model"]] = Observation(SLEEPING, level=step["level"])
    return after
