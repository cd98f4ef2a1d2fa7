# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What is done about a step that fails, by the rungs of the escalation, and about a switch that fails."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import typing

from . import server_log
from .drain import CUT, FATES, PARKED
from .errors import (
    DrainTimeout,
    FreedNothing,
    IdleDrafts,
    LifecycleError,
    NoMemory,
    NoSuchAnswer,
    ServerDied,
    ServerError,
    SwitchingError,
    Unresponsive,
    WrongAnswer,
)
from .executor import Executor
from .inventory import Model
from .plan import (
    ACTIVE,
    DISABLED,
    DRAIN,
    ERROR,
    RELOAD,
    SLEEP,
    SLEEPING,
    START,
    STOP,
    STOPPED,
    VERIFY,
    WAIT,
    WAKE,
    Lane,
    Observation,
    Plan,
    Stage,
    Step,
)  # fmt: skip
from .result import States, describe, say_step
from .texts import LONGEST, brief

# How many of a log's last lines a person is shown.
_SHOWN_LINES = 20


class Recovery:
    """Executes plans and recovers from what fails on the way; rolls back when that does not help.

    C(plan) makes the plan that brings a model from what was observed to a state.
    """

    def __init__(self, executor: Executor, plan: typing.Callable[[States, Model, str], Plan]) -> None:
        self.executor = executor
        self.plan = plan
        self.host = executor.host
        self.settings = executor.host.settings

    def execute(self, plan: Plan) -> None:
        """Do what the plan says, stage by stage."""
        for stage in plan.stages:
            self.executor.freed.begin(stage)
            self.host.each(self._lane, stage)
            if any(lane[-1].action == SLEEP for lane in stage):
                self._check_freed(stage)

    def _check_freed(self, stage: Stage) -> None:
        """Stop those whose sleep has freed nothing, as if it had failed, and those that hold more than they may."""
        found = self.executor.freed.look(stage)
        for name, why in found.over.items():
            self._stop_leaking(name, why)
        for name, problem in found.failed.items():
            record = next(
                done for done in reversed(self.executor.steps) if (done["model"], done["action"]) == (name, SLEEP)
            )
            error = FreedNothing(problem).masked(self.host.mask)
            record["failed"] = f"{error}: {error.remedy}"  # an error that is recovered from is told nowhere else
            if not self._requests_of(name):
                # What has come since it was drained waits for its wake.
                record["requests"] = {**dict.fromkeys(FATES, 0), PARKED: self.executor.running(name)}
            if "stop" not in self.settings.escalation:
                raise error
            self._stop_sleepless(Step(SLEEP, name, record["level"]), error)

    def _requests_of(self, name: str) -> list[dict[str, int | None]]:
        """What is written down of a model's requests."""
        return [done["requests"] for done in self.executor.steps if done["model"] == name and "requests" in done]

    def _stop_leaking(self, name: str, why: str) -> None:
        """Stop a sleeping server that holds too much, unless that would cut requests."""
        parked = [requests[PARKED] for requests in self._requests_of(name)]
        if any(number != 0 for number in (*parked, self.executor.running(name))):
            self.executor.warnings.append(f"{name} {why}, and was not stopped, because it may keep requests")
            return
        try:
            self.executor.run(Step(STOP, name))
        except SwitchingError as error:
            # It sleeps all the same.
            self.executor.warnings.append(f"{name} {why}, and could not be stopped: {error}")
            return
        self.executor.steps[-1]["note"] = f"it {why}"
        self.executor.warnings.append(f"{name} {why}, so it was stopped: it starts afresh when it is asked for")

    def _lane(self, lane: Lane) -> None:
        sleeps = any(step.action == SLEEP for step in lane)
        wakes = any(step.action == WAKE for step in lane)
        self.executor.ending.update(step.model for step in lane if step.action == STOP)
        for planned in lane:
            step = planned
            if step.action == WAKE and self.executor.stopped(step.model):
                step = Step(START, step.model)  # it was to sleep until now, and could not
            step = self.executor.instead(step)
            try:
                self.executor.run(step)
            except (DrainTimeout, NoMemory, NoSuchAnswer):
                raise  # nothing was done to the server, and to do more to it would not help
            except (ServerError, LifecycleError) as error:
                if step.action in (DRAIN, SLEEP) and sleeps and "stop" in self.settings.escalation:
                    self._stop_sleepless(step, error)
                    if wakes:  # a paused target
                        if "restart" not in self.settings.escalation:
                            raise
                        self.executor.run(Step(START, step.model), rung="restart")
                        self.executor.run(Step(VERIFY, step.model), rung="restart")
                elif step.action not in (DRAIN, SLEEP) and (
                    # What seemed to load may have been about to end: its port is closed, its process not yet gone.
                    wakes
                    or isinstance(error, WrongAnswer)
                    or (step == lane[0] and step.action == VERIFY and isinstance(error, ServerDied))
                ):
                    self._wake_again(lane, step, error)
                else:
                    raise
                return

    def _stop_sleepless(self, step: Step, error: Exception) -> None:
        """A server that can't be put to sleep is stopped: the GPU has to be free."""
        try:
            self._end(step.model, "stop")
        except DrainTimeout:
            raise
        except SwitchingError as second:
            raise LifecycleError(f"{error}; and it could not be stopped: {second}").with_log(second.log) from None
        # Else it waited for requests that came when there had been none, or for nothing; or it has died of them.
        told = step.model in self.executor.held and not isinstance(error, Unresponsive)
        told = told or any("requests" in done for done in self.executor.steps if done["model"] == step.model)
        for done in self.executor.steps:
            if done["model"] == step.model and done["action"] == DRAIN and not told:
                done.setdefault("requests", {**dict.fromkeys(FATES, 0), CUT: None})
            if done["model"] == step.model and "requests" in done:
                lost = [done["requests"][fate] for fate in (PARKED, CUT)]
                done["requests"] = {**done["requests"], PARKED: 0, CUT: None if None in lost else sum(lost)}

    def _end(self, name: str, rung: str) -> None:
        """Stop a server, when what runs on it has ended."""
        if not self.executor.drained(name) and self.executor.running(name):
            self.executor.ending.add(name)
            self.executor.run(Step(DRAIN, name), rung=rung)
        self.executor.run(Step(STOP, name), rung=rung)

    def _wake_again(self, lane: Lane, step: Step, error: Exception) -> None:
        """What is done about a wake that failed: once more, then a restart."""
        name = lane[-1].model
        if "retry" in self.settings.escalation and not isinstance(error, IdleDrafts):
            second = self._retry_wake(lane, step, error)
            if second is None:
                return
            error = second
        if isinstance(error, NoSuchAnswer) or "restart" not in self.settings.escalation:
            raise error
        self.executor.readiness.begun[name] = True
        try:
            self._end(name, "restart")
            for action in (START, VERIFY):
                self.executor.run(Step(action, name), rung="restart")
        except SwitchingError as second:
            goes_on = name not in self.executor.held and not self.executor.stopped(name)
            if isinstance(error, IdleDrafts) and isinstance(second, (DrainTimeout, LifecycleError)) and goes_on:
                # It answers correctly: no reason to take it away from whoever uses it.
                self.host.lock.settle(name)
                self.executor.warnings.append(f"{error}; it could not be restarted: {second}")
                return
            if isinstance(second, DrainTimeout):
                raise
            kind = type(second) if isinstance(second, (WrongAnswer, NoMemory)) else LifecycleError
            raise kind(f"{error}; and a restart failed: {second}").with_log(second.log) from None

    def _retry_wake(self, lane: Lane, step: Step, error: Exception) -> Exception | None:
        """Try a wake that failed once more, if that can help. What went wrong; None when it is ready now."""
        name = lane[-1].model
        level = next((step.level for step in lane if step.action == WAKE), None)
        steps = []
        if isinstance(error, WrongAnswer):
            # From level 1 the weights come back as they were, so there is nothing to load again.
            if level != 1 and self.host.servers[name].can_reload:
                steps = [Step(RELOAD, name), Step(VERIFY, name)]
        else:
            seen = self.host.observe([self.host.models[name]])[name]
            if seen.state == SLEEPING:
                # Of one that is half awake the gauge says anything: it slept at the level that it was woken from.
                again = next((step for step in lane if step.action == WAKE), Step(WAKE, name, seen.level))
                steps = [again, Step(VERIFY, name)]
            elif seen.state == ACTIVE and (step.action == VERIFY or level in (0, 1)):
                steps = [Step(VERIFY, name)]  # only the answer was lost, or wrong
            elif seen.state == ACTIVE and self.host.servers[name].can_reload:
                steps = [Step(RELOAD, name), Step(VERIFY, name)]
        if not steps:
            return error
        try:
            for step in steps:
                self.executor.run(step, rung="retry")
        except (ServerError, LifecycleError) as second:
            return second
        return None

    def roll_back(
        self, model: Model, desired: str, before: States, error: BaseException
    ) -> tuple[dict[str, Observation], str]:
        """After a failure: wake what was awake. Returns what is left and the message for the person.

        The cause is its first line; what the host is left with and what to do follow, and last the server's log.
        """
        failures = [step for step in self.executor.steps if "failed" in step]
        # What was recovered from before is not the cause.
        causes = [step for step in failures if step["failed"] in str(error)] or failures[:1]
        at_fault = causes[-1]["model"] if causes else model.id
        log: typing.Sequence[str] = ()
        if isinstance(error, SwitchingError):
            log = error.log
            if not log and any(step["action"] in (WAKE, RELOAD, VERIFY) for step in failures):
                # To the caller a server only says that it can't. What else it logs is no cause.
                lines = self.host.last_lines(self.host.models[at_fault])[-_SHOWN_LINES:]
                log = lines if server_log.culprit(lines) or server_log.remedy(lines) else ()
        begin = f"{model.id} could not be made {desired}: "
        cause = str(error) + (f"; and its log says: {server_log.culprit(log)}" if server_log.culprit(log) else "")
        message = begin + brief(cause, model.id, LONGEST - len(begin))
        whole = brief(cause, model.id, sys.maxsize)
        if failures:
            message += "\nFailed: " + ", ".join(map(say_step, failures))
        self.executor.rung = "roll_back"
        for name in self.executor.held:
            # It has only been paused: nothing is to be made good but that.
            with contextlib.suppress(ServerError):
                self.host.servers[name].resume()
                self.host.lock.settle(name)
        seen = self._observe_failed()
        for previous in self.host.inventory.enabled:
            here = seen[previous.id]
            if not before[previous.id].serving or (here.state == ACTIVE and not here.held):
                continue
            if previous.id == model.id and desired != ACTIVE:
                continue
            if here.unknown and not self._touched(previous.id):
                message += f"\n{previous.id} was active before and does not answer: it was left unchanged"
                continue
            if "roll_back" not in self.settings.escalation:
                message += (
                    f"\n{previous.id} was active before and was not restored (escalation does not contain roll_back)"
                )
                continue
            # Where two that conflict were found awake, one of them is enough.
            rivals = self.host.inventory.conflicting(previous)
            if any(seen[m.id].state == ACTIVE and before[m.id].serving for m in rivals):
                continue
            try:
                self.execute(self.plan(seen, previous, ACTIVE))
                self._record_start(previous.id)
                message += f"\n{previous.id} is active again"
            except SwitchingError as second:
                reason = brief(str(second), previous.id)
                message += f"\n{previous.id} was active before and could not be restored: {reason}"
                log = log or second.log
            seen = self._observe_failed()
        for name in sorted(self.executor.readiness.wrong):
            if seen[name].state == ACTIVE:
                # Awake, it would go on giving wrong answers to whoever asks.
                try:
                    self.execute(self.plan(seen, self.host.models[name], SLEEPING))
                except DrainTimeout as second:
                    message += f"\n{name} gives wrong answers and is left awake: {brief(str(second), name)}"
                except SwitchingError as second:
                    reason = brief(str(second), name)
                    message += (
                        f"\n{name} gives wrong answers and could not be put to sleep ({reason}), so it is stopped"
                    )
                    with contextlib.suppress(SwitchingError):
                        self.executor.run(Step(STOP, name))
                seen = self._observe_failed()
        for name, state in seen.items():
            if state.state == ERROR and state.dead and name in self.executor.readiness.begun:
                # Left alone it would stand in the way of every later switch.
                with contextlib.suppress(SwitchingError):
                    self.executor.run(Step(STOP, name))
                    seen[name] = Observation(STOPPED)
        left = ", ".join(f"{name} {describe(state)}" for name, state in seen.items() if state.state != DISABLED)
        message += f"\nState of the host: {left}"
        remedy = server_log.remedy(log) or (error.remedy if isinstance(error, SwitchingError) else "")
        if remedy:
            message += "\nWhat to do: " + remedy.format(log=self.host.lifecycles[at_fault].log_command)
        if not message.startswith(begin + whole):
            message += f"\nFull cause: {whole}"
        if log:
            message += "\nThe last lines of its log:" + "".join(f"\n  {line}" for line in log[-_SHOWN_LINES:])
        return seen, message

    def _record_start(self, name: str) -> None:
        """Record that this start of a server was ready, so that it counts as dead when it refuses connections later."""
        start = self.executor.readiness.starts.get(name) or self.host.lifecycles[name].start_id()
        if start:
            self.host.record_proof(name, start, None)  # the next switch proves it again

    def _touched(self, name: str) -> bool:
        """Whether this switch has done anything to a model's server but to let its requests end."""
        return any(done["model"] == name and done["action"] not in (WAIT, DRAIN) for done in self.executor.steps)

    def _observe_failed(self) -> dict[str, Observation]:
        """What the models are. One that this switch has woken or started and that makes no sense counts as dead."""
        seen = self.host.observe(self.host.inventory.enabled)
        for name in self.executor.readiness.begun:
            if seen[name].state == ERROR and seen[name].process is not False:
                if seen[name].unknown and self.executor.running(name):
                    continue  # it has been given something to do
                seen[name] = dataclasses.replace(seen[name], dead=True, unknown=False, process=True)
        return seen
