# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""From what was observed and what is desired to the ordered steps between them. Pure: no I/O, no clock.

A plan is a tuple of stages. A stage is a tuple of lanes, one for each server that it touches; lanes of one
stage may run side by side, a stage begins only when every lane of the one before it has succeeded. All
sleeps and stops of conflicting servers are in a stage before the wake or start, because waking one engine while
another still frees its memory has crashed engines (vLLM issue 36753).
"""

from __future__ import annotations

import dataclasses
import typing

from .costs import FIXED, LEVEL_1_MINIMUM_RAM_GB, Choice, choose, known
from .errors import Blocked
from .inventory import Inventory, Model

# What the copy of the weights into host RAM takes beside their size, while it is made: the memory is pinned in whole
# blocks and the pages of the copy so far are not all given back at once. Users met hosts that a sleep ran out of RAM.
LEVEL_1_TRANSIENT_SHARE = 0.1

ACTIVE = "active"
SLEEPING = "sleeping"
LOADING = "loading"
STOPPED = "stopped"
ERROR = "error"
DISABLED = "disabled"

DRAIN = "drain"
SLEEP = "sleep"
WAKE = "wake"
START = "start"
STOP = "stop"
VERIFY = "verify"
# Not planned, but done: weights that are loaded once more, an answer that is recorded, one to a long prompt, so that no
# person waits for what that sets up, a wait before all else.
RELOAD = "reload"
RECORD = "record"
FIRST_ANSWER = "first_answer"
WAIT = "wait"


@dataclasses.dataclass(frozen=True)
class Observation:
    """What one server was seen to be.

    C(level) is 0, 1 or 2 while it sleeps, None where the server doesn't tell. At level 0 it is only paused, or has to
    finish requests before it sleeps: it keeps its GPU memory. C(running) and C(waiting) count requests, None where they
    were not asked for or the server doesn't tell. C(problem) says what is wrong when C(state) is error, C(remedy) what
    to do about it; C(dead) says that the server is beyond answering, so that stopping it loses nothing, C(unknown) that
    it gave no answer in time, so that it may be busy and have requests. C(process) says whether the server's own
    process or container runs, None where nobody looked or can tell. C(doubtful) says that a wake of the server was cut
    off: asleep it may hold part of its GPU memory, awake it may have wrong weights. C(held) says that a drain was cut
    off, so that for all that is known it takes no requests, and that nothing else is still to come of it.
    C(was_serving) says of one that is not active that it served, or was to, when a switch was cut off or it stopped
    answering. C(uncounted) says of a dead one that it may have requests all the same, and that nobody can ask how many.
    C(no_level_2) says why it should not sleep at level 2, if there is a reason.
    """

    state: str
    level: int | None = None
    running: int | None = None
    waiting: int | None = None
    problem: str = ""
    dead: bool = False
    uncounted: bool = dataclasses.field(default=False, compare=False)
    process: bool | None = None
    remedy: str = dataclasses.field(default="", compare=False)
    doubtful: bool = False
    unknown: bool = False
    held: bool = False
    was_serving: bool = dataclasses.field(default=False, compare=False)
    no_level_2: str = dataclasses.field(default="", compare=False)

    @property
    def serving(self) -> bool:
        """Whether it serves, but for a pause, or was about to until a switch was cut off or it stopped answering."""
        return self.state == ACTIVE or self.paused or self.was_serving

    @property
    def asleep(self) -> bool:
        """Whether it has given its GPU memory back."""
        return self.state == SLEEPING and self.level != 0 and not self.doubtful

    @property
    def paused(self) -> bool:
        """Whether it takes no requests but keeps its GPU memory, and sleeps when it is told to."""
        return self.state == SLEEPING and self.level == 0 and not self.doubtful


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to do to one server; C(level) is given for a sleep (1 or 2) and a wake (the level it sleeps at).

    C(choice) says why it is this level, or a stop, where that was chosen.
    """

    action: str
    model: str
    level: int | None = None
    choice: Choice | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.action} {self.model}" + ("" if self.level is None else f" (level {self.level})")


Lane = typing.Tuple[Step, ...]
Stage = typing.Tuple[Lane, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do, in order, and what is to be said about it. An empty plan means that everything is as desired."""

    stages: tuple[Stage, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in an order in which they could be done one by one."""
        return tuple(step for stage in self.stages for lane in stage for step in lane)


def make_plan(
    inventory: Inventory,
    observed: typing.Mapping[str, Observation],
    model: Model,
    desired: str,
    mem_available_gb: float | None = None,
    reserved_gb: float = 0.0,
    shared: bool = False,
    costs: typing.Mapping[str, typing.Any] | None = None,
) -> Plan:
    """The Plan that brings C(model) to the state C(desired): active, sleeping or stopped.

    C(observed) maps every model id to its Observation; C(mem_available_gb) is the host's MemAvailable, None where
    it is not known; C(reserved_gb) of available_ram_gb are for models that the inventory does not have; C(shared) says
    that the GPUs have no memory but the host's RAM; C(costs) is what the state file says of what levels have taken.
    Raises Blocked, before anything is touched, when there is no safe way.
    """
    planner = _Planner(inventory, observed, mem_available_gb, reserved_gb, shared, costs or {})
    stages = {ACTIVE: planner.activate, SLEEPING: planner.put_to_sleep, STOPPED: planner.stop}[desired](model)
    whole = tuple(stage for stage in (tuple(lane for lane in stage if lane) for stage in stages) if stage)
    return Plan(whole, tuple(dict.fromkeys(planner.warnings)))


def predict(observed: typing.Mapping[str, Observation], plan: Plan) -> dict[str, Observation]:
    """What will be observed when the plan has been carried out."""
    after = dict(observed)
    for step in plan.steps:
        if step.action == SLEEP:
            after[step.model] = Observation(SLEEPING, level=step.level)
        elif step.action in (WAKE, START, VERIFY):
            after[step.model] = Observation(ACTIVE)
        elif step.action == STOP:
            after[step.model] = Observation(STOPPED)
    return after


def reading_step(plan: Plan) -> Step | None:
    """The wake or start that others make room for, if it reads weights from files; None where it doesn't.

    Of a plan that brings back who made room, it is the first one: until that is over the disk is the target's.
    """
    room = False
    for stage in plan.stages:
        for step in [step for lane in stage for step in lane if step.action in (WAKE, START)]:
            return step if room and (step.action == START or step.level not in (0, 1)) else None
        room = room or any(step.action in (DRAIN, SLEEP, STOP) for lane in stage for step in lane)
    return None


def sleep_ram_gb(plan: Plan, models: typing.Mapping[str, Model]) -> float:
    """The RAM that the sleeps of a plan take, at the most."""
    asleep = [models[step.model].weights_gb or 0.0 for step in plan.steps if step.action == SLEEP and step.level == 1]
    return sum(asleep) * (1 + LEVEL_1_TRANSIENT_SHARE)


def stopped_instead(name: str, reason: str) -> str:
    """What is said of a server that better does not sleep at level 2."""
    return f"{name} is stopped instead of put to sleep at level 2 (its sleep_level is auto): {reason}"


class _Planner:
    def __init__(
        self,
        inventory: Inventory,
        observed: typing.Mapping[str, Observation],
        mem_available_gb: float | None,
        reserved_gb: float,
        shared: bool,
        costs: typing.Mapping[str, typing.Any],
    ) -> None:
        self.inventory = inventory
        self.costs = costs
        self.observed = observed
        self.mem_available_gb = mem_available_gb
        self.shared = shared
        self.warnings: list[str] = []
        # Host RAM held by servers that sleep at level 1. One whose level is not known is counted: better too careful.
        self.sleeping_gb = reserved_gb + sum(
            m.weights_gb or 0.0
            for m in inventory.models
            if observed[m.id].state == SLEEPING and observed[m.id].level in (None, 1)
        )

    def activate(self, model: Model) -> list[Stage]:
        seen = self.observed[model.id]
        self._check_usable(model)
        dead, displaced = self._stop_dead(model), self._free_gpus(model)
        if seen.state == ACTIVE and not seen.held:
            return [dead, displaced, *([((Step(VERIFY, model.id),),)] if seen.doubtful else [])]
        return [dead, displaced, *self._bring_up(model)]

    def put_to_sleep(self, model: Model) -> list[Stage]:
        seen = self.observed[model.id]
        self._check_usable(model)
        if seen.state == ACTIVE or seen.paused:
            return [(self._vacate(model),)]
        if seen.state == SLEEPING and not seen.doubtful:
            return []
        if model.sleep_level == "stop":
            return self.stop(model)
        # It has to be loaded before it can sleep. Whoever holds its GPU makes room, and is restored after.
        dead, displaced = self._stop_dead(model), self._free_gpus(model)
        loaded = self._bring_up(model)
        stages = [dead, displaced, *loaded, ((self._rest(model),),)]
        back: list[Model] = []
        for other in self.inventory.conflicting(model):
            was_active = self.observed[other.id].serving and not other.disabled
            if was_active and not any(other.conflicts_with(one) for one in back) and not self._crowded(other, model):
                back.append(other)
                stages += self._bring_back(other, (*dead, *displaced))
        return stages

    def stop(self, model: Model) -> list[Stage]:
        seen = self.observed[model.id]
        if seen.state == STOPPED or (seen.state == ERROR and seen.process is False):
            return []
        awake = seen.state == ACTIVE or seen.paused or seen.unknown
        drain: Lane = (Step(DRAIN, model.id),) if awake else self._drain_in_doubt(model)
        return [((*drain, Step(STOP, model.id)),)]

    def _drain_in_doubt(self, model: Model) -> Lane:
        """What one that says that it sleeps has to end first: in doubt, its requests may go on."""
        seen = self.observed[model.id]
        return (Step(DRAIN, model.id),) if seen.state == SLEEPING and seen.doubtful and seen.running != 0 else ()

    def _check_usable(self, model: Model) -> None:
        seen = self.observed[model.id]
        if seen.state == ERROR and not seen.unknown and (not seen.dead or seen.process is False):
            raise Blocked(f"{model.id} can't be used: {seen.problem}{_remedy(seen)}")

    def _stop_dead(self, model: Model) -> Stage:
        """The lanes that stop the dead, and those that never answer: the first stage, so that who is awake has lost
        nothing if that fails."""
        lanes: list[Lane] = []
        for m in (model, *self.inventory.conflicting(model)):
            if self._is_dead(m):
                lanes.append((Step(STOP, m.id),))
            elif self.observed[m.id].unknown and not m.disabled:
                lanes.append((Step(DRAIN, m.id), Step(STOP, m.id)))
        return tuple(lanes)

    def _is_dead(self, model: Model) -> bool:
        seen = self.observed[model.id]
        return seen.state == ERROR and seen.dead and seen.process is not False and not model.disabled

    def _free_gpus(self, model: Model) -> Stage:
        """The lanes that free the model's GPUs of all but those that C(_stop_dead) stops."""
        lanes = []
        for other in self.inventory.conflicting(model):
            seen = self.observed[other.id]
            if other.disabled:
                half = seen.state == SLEEPING and seen.doubtful
                if seen.state in (ACTIVE, LOADING) or seen.paused or half or (seen.state == ERROR and seen.process):
                    what = f"in error ({seen.problem})" if seen.state == ERROR else seen.state
                    what = f"in doubt ({seen.problem})" if half else what
                    raise Blocked(
                        f"{other.id} is disabled, so it is left alone, but its server is {what} and holds a GPU "
                        f"that {model.id} needs: stop it, or set its startup_mode to sleep"
                    )
            elif seen.state == ACTIVE or seen.paused:
                lanes.append(self._vacate(other))
            elif seen.state == ERROR and seen.process is False:
                pass  # whatever answers on its port is not the server, and holds no GPU of ours
            elif seen.state == LOADING or (seen.state == SLEEPING and seen.doubtful):
                # It takes no requests and can't sleep, but soon holds the GPU, or holds a part of it.
                lanes.append((*self._drain_in_doubt(other), Step(STOP, other.id)))
            elif seen.state == ERROR and not seen.dead and not seen.unknown:
                raise Blocked(
                    f"{other.id} shares a GPU with {model.id}, and it is unknown whether it is awake: {seen.problem}"
                    + _remedy(seen)
                )
        return tuple(lanes)

    def _bring_up(self, model: Model) -> list[Stage]:
        """The stages that make a server ready, whatever it is now; a dead one has been stopped before."""
        seen = self.observed[model.id]
        verify = Step(VERIFY, model.id)
        if seen.held:
            return [((Step(WAKE, model.id, 0), verify),)]
        if seen.paused:
            # A sleep that still waits for requests would come true after a wake, so it is waited for. At which level it
            # sleeps then is not known.
            rest = self._vacate(model)
            up = Step(START, model.id) if rest[-1].action == STOP else Step(WAKE, model.id)
            return [((*rest, up, verify),)]
        if seen.state == SLEEPING:
            # The wake for an unknown level is right from any state, also half awake.
            return [
                ((*self._drain_in_doubt(model), Step(WAKE, model.id, None if seen.doubtful else seen.level), verify),)
            ]
        if seen.state == LOADING:
            return [((verify,),)]
        return [((Step(START, model.id), verify),)]

    def _crowded(self, model: Model, target: Model) -> bool:
        """Whether a server that the plan leaves alone has, or may have, a GPU of the model."""
        for other in self.inventory.conflicting(model):
            seen = self.observed[other.id]
            holds = (
                seen.state in (ACTIVE, LOADING)
                or seen.paused
                or seen.doubtful
                or (seen.state == ERROR and seen.process is not False)
            )
            if holds and other.id != target.id and not other.conflicts_with(target):
                return True
        return False

    def _bring_back(self, model: Model, gone: Stage) -> list[Stage]:
        rest = next(lane for lane in gone if lane[-1].model == model.id)[-1]
        seen = self.observed[model.id]
        # One that was paused may have gone to sleep by a call that came before.
        level = None if seen.paused and not seen.held else rest.level
        up = Step(START, model.id) if rest.action == STOP else Step(WAKE, model.id, level)
        return [((up, Step(VERIFY, model.id)),)]

    def _vacate(self, model: Model) -> Lane:
        """Take an awake server off the GPU the way its sleep level says."""
        return (Step(DRAIN, model.id), self._rest(model))

    def _rest(self, model: Model) -> Step:
        choice = self._sleep_level(model)
        return Step(SLEEP if choice.level else STOP, model.id, choice.level, choice)

    def _sleep_level(self, model: Model) -> Choice:
        """What its sleep level says; books the RAM that this grants.

        For auto, what C(choose) chooses of the levels that the RAM budget, the host's free RAM and the server allow.
        """
        choice = FIXED.get(model.sleep_level, Choice(1))
        if not choice.level:
            return choice
        no_level_2 = self.observed[model.id].no_level_2
        weights = model.weights_gb or 0.0
        free = self.mem_available_gb
        transient = weights * LEVEL_1_TRANSIENT_SHARE
        fits_host = free is None or weights + transient <= free
        if model.sleep_level == "1" and free is not None and not fits_host:
            raise Blocked(
                f"{model.id} can't sleep at level 1: that takes {weights:.1f} GB of host RAM, {transient:.1f} GB more "
                f"while they are copied, and {free:.1f} GB are available; set its sleep_level to auto or 2"
            )
        if model.sleep_level == "auto":
            budget = self.inventory.switching.available_ram_gb
            # Where CPU and GPU share their memory, level 1 would keep the weights in it.
            small = self.shared or budget < LEVEL_1_MINIMUM_RAM_GB
            full = small or self.sleeping_gb + weights > budget or not fits_host
            no_level_1 = "the GPU shares the RAM" if self.shared else "RAM does not allow level 1" if full else ""
            measure = self.inventory.switching.measure_levels
            choice = choose(known(self.costs, model), no_level_1, no_level_2, measure)
            if not choice.level:
                self.warnings.append(stopped_instead(model.id, no_level_2))
            if choice.level != 1:
                return choice
        elif model.sleep_level == "2":
            if no_level_2:
                self.warnings.append(
                    f"{model.id} sleeps at level 2 because of its sleep_level, although {no_level_2}; sleep_level "
                    "auto uses level 1 or stops it"
                )
            return choice
        elif self.shared:
            self.warnings.append(
                f"{model.id} sleeps at level 1 because of its sleep_level, although the GPU of this host shares its "
                "RAM: the weights stay in that memory; sleep_level auto uses level 2 or stops it"
            )
        self.sleeping_gb += weights
        if free is not None:
            self.mem_available_gb = free - weights - transient
        return choice


def _remedy(seen: Observation) -> str:
    return f"\nNothing was changed. What to do: {seen.remedy}" if seen.remedy else ""
