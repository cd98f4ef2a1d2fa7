# SPDX-License-Identifier: MIT
"""What the manager knows of the host's models: what they were observed to be, and what follows from that.

Nothing here asks a server or has a lock: whoever calls has the manager's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import costs, hardware, plan
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import Blocked
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.metrics import Counters
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import Observation

from . import eta, view
from .breaker import Breaker
from .gateway_counts import Requests
from .tickets import Unsupported

_EVICTION_OF_LEVEL = {
    "1": ("offload", view.KEEP_RUNNING),
    "2": ("discard", view.KEEP_RUNNING),
    "stop": ("discard", "stop"),
}
_LEVEL_OF_WEIGHTS = {"offload": "1", "discard": "2"}
_WEIGHTS = ("retain", "offload", "discard")
_PROCESSES = (view.KEEP_RUNNING, "cuda_suspend", "checkpoint", "stop")
_NO_WAY = "vLLM has no way to {}: use keep_running, with weights offload or discard, or stop"


def eviction_level(weights: str, process: str) -> str:
    """Which `sleep_level` an eviction is: 1, 2, stop, or empty for never. Raises Unsupported with the reason."""
    for name, value, known in (("weights", weights, _WEIGHTS), ("process", process, _PROCESSES)):
        if value not in known:
            raise Unsupported(f"{name} must be one of {', '.join(known)}, is {value}")
    if process == "stop":
        return "stop"
    if process == "cuda_suspend":
        raise Unsupported(_NO_WAY.format("have its process suspended by CUDA (cuda_suspend)"))
    if process == "checkpoint":
        raise Unsupported(_NO_WAY.format("have its process checkpointed (checkpoint)"))
    return _LEVEL_OF_WEIGHTS.get(weights, "")


class HostState:
    """What is known of the models of an inventory, in seconds: `now` tells them since 1970, `clock` counts them."""

    def __init__(
        self,
        inventory: Inventory,
        breakers: Mapping[str, Breaker],
        now: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self.inventory = inventory
        self.seen: dict[str, Observation] = {}
        # What models are while a step is done to them, and after it until the switch ends.
        self.moving: dict[str, tuple[str, int | None]] = {}
        self.desired: dict[str, str] = {}
        self.costs: Mapping[str, Any] = {}
        self.timings = eta.Timings()
        # Set at run time: what is done to a model that has to make room, weights and process.
        self.evictions: dict[str, tuple[str, str]] = {}
        self.last_active: dict[str, float] = {}
        self.active_since: dict[str, float] = {}
        self.held_gb: dict[str, float | None] = {}
        self.leaks: Mapping[str, Any] = {}
        # The adapters that each server has told, and how many requests the gateway has, where there is one.
        self.adapters: dict[str, tuple[str, ...]] = {}
        self.requests: Callable[[str], Requests | None] = lambda _name: None
        # How the last switch ended, whoever made it, and who else has the host's lock now.
        self.last_switch: dict[str, Any] | None = None
        self.lock_holder = ""
        # Why a new inventory is not used.
        self.problem = ""
        # When the servers were looked at last, by `clock`.
        self.observed_at = clock()
        # Counts what makes a look at them that is under way an old one.
        self.generation = 0
        # Of which inventory, and what is known of it already.
        self._rivals: tuple[Inventory, dict[str, frozenset[str]]] = (inventory, {})
        self._breakers = breakers
        self._now = now
        self._clock = clock
        # By a clock that never jumps: a corrected time of day makes no model idle.
        self._last_request: dict[str, float] = {}
        self._counters: dict[str, Counters] = {}

    # What is learnt.

    def take_over(self, models: Mapping[str, Observation]) -> None:
        """What the engine has observed at the end of a switch is what the models are; it has counted no requests."""
        now = self._now()
        for name, new in models.items():
            old = self.seen.get(name, Observation(plan.STOPPED))
            self.seen[name] = dataclasses.replace(new, running=old.running, waiting=old.waiting)
            if _has_come_up(old, new):
                self._last_request[name] = self._clock()
            if new.state == plan.ACTIVE and old.state != plan.ACTIVE:
                self.active_since[name] = now

    def observe(
        self, seen: Mapping[str, Observation], counters: Mapping[str, Counters], since: Mapping[str, float]
    ) -> None:
        """What the servers were just seen to be; with the counters of active ones, and since when they are active."""
        now = self._now()
        before, self.seen = self.seen, dict(seen)
        for name, one in seen.items():
            if name in before and _has_come_up(before[name], one):
                self._last_request[name] = self._clock()
            if one.state == plan.ACTIVE:
                self.last_active[name] = now
                self.active_since[name] = since.get(name, self.active_since.get(name, now))
                done = counters.get(name, Counters())
                moved = name in self._counters and self._counters[name].requests != done.requests
                self._counters[name] = done
                if one.running is None:
                    self._last_request.pop(name, None)  # it does not tell, so that it may have some
                    continue
                if moved or one.running or one.waiting:
                    self._last_request[name] = self._clock()
            else:
                self.active_since.pop(name, None)
            self._last_request.setdefault(name, self._clock())

    def step(self, step: Mapping[str, Any]) -> None:
        """The engine tells that a step begins, or has ended."""
        name, action, level = step["model"], step["action"], step["level"]
        if step["event"] == "step_begun" and action in view.DURING_STEP:
            self.moving[name] = (view.DURING_STEP[action], None)
        elif step["event"] == "step_ended" and "failed" not in step:
            ends = {plan.SLEEP: view.ASLEEP, plan.STOP: view.STOPPED, plan.VERIFY: view.READY}
            if action in ends:
                self.moving[name] = (ends[action], level if action == plan.SLEEP else None)

    # What models are.

    def state_of(self, name: str) -> tuple[str, int | None, str]:
        """State, level and problem of a model."""
        if name in self.moving:
            return (*self.moving[name], "")
        seen = self.seen.get(name)
        if seen is None:
            return view.ERROR, None, "it was not looked at yet"
        if seen.paused:
            return view.SLEEP_PENDING, seen.level, seen.problem
        breaker = self._breakers.get(name)
        if breaker and breaker.opened and seen.state not in (plan.ACTIVE, plan.SLEEPING, plan.DISABLED):
            often = f"{breaker.limit} times within {breaker.window_seconds / 60:g} min"
            return view.ERROR, None, f"it has failed {often}, and is tried again now and then: {breaker.reason}"
        return view.OF_ENGINE[seen.state], seen.level, seen.problem

    def awake(self) -> set[str]:
        """The models that are active."""
        return {m.id for m in self.inventory.enabled if self.state_of(m.id)[0] == view.READY}

    def rivals(self, name: str) -> frozenset[str]:
        """The models that can't be active together with this one."""
        if self._rivals[0] is not self.inventory:
            self._rivals = self.inventory, {}
        known = self._rivals[1]
        if name not in known:
            found = (m.id for one in self.inventory.models if one.id == name for m in self.inventory.conflicting(one))
            known[name] = frozenset(found)
        return known[name]

    def in_flight(self, name: str) -> int | None:
        """The requests that a model has; None where that is unknown."""
        told = self.requests(name)
        if told:
            return told.in_flight
        seen = self.seen.get(name)
        if seen is None or seen.state == plan.STOPPED:
            return 0 if seen else None
        return None if seen.running is None else seen.running + (seen.waiting or 0)

    def idle_seconds(self, name: str) -> float | None:
        """For how long a model has had no request, exactly where the gateway tells; None where that is unknown."""
        told = self.requests(name)
        if told is None or told.idle is None:
            return self.unused_seconds(name)
        active = self.active_seconds(name)
        return told.idle if active is None else min(told.idle, active)

    def unused_seconds(self, name: str) -> float | None:
        """The same by what was observed, which also sees requests past the gateway, as late as the next look."""
        if name not in self._last_request:
            return None
        return 0.0 if self.in_flight(name) else max(0.0, self._clock() - self._last_request[name])

    def active_seconds(self, name: str) -> float | None:
        """For how long a model has been active; None where it is not."""
        since = self.active_since.get(name)
        return max(0.0, self._now() - since) if since is not None and self.state_of(name)[0] == view.READY else None

    # What would be done to them.

    def levels(self) -> dict[str, str]:
        """The sleep levels that were set at run time; empty for a model that never makes room."""
        levels = {name: eviction_level(*pair) for name, pair in self.evictions.items()}
        # As set before the inventory has said so.
        never = {m.id for m in self.inventory.models if m.sleep_level == "stop"}
        return {name: level for name, level in levels.items() if name not in never or level not in ("1", "2")}

    def kept_awake(self) -> set[str]:
        """The models that never make room."""
        return {name for name, level in self.levels().items() if not level}

    def loads_to_sleep(self, name: str, level: int | None) -> bool:
        """Whether a model is loaded before it can sleep, at this level if one is given: others make room for that."""
        seen = self.seen.get(name)
        up = seen is not None and (seen.state == plan.ACTIVE or seen.paused or seen.asleep)
        if up or level is not None:
            return not up
        return any((self.levels().get(name) or m.sleep_level) != "stop" for m in self.inventory.enabled if m.id == name)

    def eviction(self, model: Model) -> dict[str, str]:
        """What is done to a model that has to make room."""
        pair = self.evictions.get(model.id)
        if pair is None or model.id not in self.levels():
            level = model.sleep_level if model.sleep_level != "auto" else str(self.next_level(model.id) or "stop")
            pair = _EVICTION_OF_LEVEL[level]
        return {"weights": pair[0], "process": pair[1]}

    def next_level(self, name: str) -> int | None:
        """At which level a model would sleep if it was put to sleep now; None if it would be stopped."""
        model = next((m for m in self.inventory.enabled if m.id == name), None)
        if model is None:
            return None
        level = self.levels().get(name) or model.sleep_level
        if level != "auto":
            return int(level) if level in ("1", "2") else None
        others = {m.id: self.seen.get(m.id, Observation(plan.STOPPED)) for m in self.inventory.models}
        awake = {**others, name: Observation(plan.ACTIVE, no_level_2=others[name].no_level_2)}
        free = hardware.read_mem_available_gb()
        try:
            made = plan.make_plan(self.inventory, awake, model, plan.SLEEPING, free, 0.0, False, self.costs)
        except Blocked:
            return None
        return next((step.level for step in made.steps if (step.model, step.action) == (name, plan.SLEEP)), None)

    def estimate(self, leaving: Collection[str], coming: str | None, level: int | None = None) -> float:
        """The seconds that a switch takes; `level` is the one at which those that leave will sleep, if it was given."""
        plans = {name: level if level else self.next_level(name) for name in leaving}
        seen = self.seen.get(coming or "", Observation(plan.STOPPED))
        at = None
        if seen.state == plan.SLEEPING:
            at = 2 if seen.level is None else seen.level
        elif coming and seen.state == plan.ACTIVE:
            at = self.next_level(coming)  # it has made room before it comes again
        known = {m.id: costs.known(self.costs, m) for m in self._of((*leaving, coming))}
        sizes = {m.id: m.weights_gb for m in self.inventory.models}
        return eta.estimate(leaving, coming, at, known, self.timings, weights_gb=sizes, leave_at=plans)

    def _of(self, names: Iterable[str | None]) -> list[Model]:
        return [m for m in self.inventory.models if m.id in names]


def _has_come_up(before: Observation, now: Observation) -> bool:
    """Whether a server was loaded or woken, by whomever: from then on counts for how long nobody has used it."""
    if now.state == plan.SLEEPING:
        return before.state in (plan.STOPPED, plan.LOADING)
    return now.state == plan.ACTIVE and before.state != plan.ACTIVE
