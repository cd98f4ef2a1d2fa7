# SPDX-License-Identifier: MIT
"""The rules by which the service acts unasked. Pure.

`decide` sees one `Situation` and names at most one thing to do, so that models load one after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    ERROR,
    LOADING,
    SLEEPING,
    STOPPED,
    Observation,
)

from .breaker import Breaker


@dataclasses.dataclass(frozen=True)
class Action:
    """One thing to do: bring `model` to the state `desired`. `reason` is for people.

    It was decided when `recorded` was the desired state of the host and `last_switch` the record of the last switch.
    """

    model: str
    desired: str
    reason: str
    recorded: Mapping[str, str] = dataclasses.field(default_factory=dict)
    last_switch: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Situation:
    """What is known of the host at the time `now`, in seconds of a clock that never goes back.

    `observed` and `desired` are the engine's, of the enabled models. `last_switch` is its record of the last one, and
    `lock_stamp` changes whenever somebody takes the host's lock. `former_switches` are some before the last one, the
    oldest first. `locked`: somebody else has the lock, or had it while the servers were observed. `tickets`: a switch
    of the service runs or waits. `waiting`: the models that requests wait for. `manual`: nobody but a person lets a
    model go. `kept_awake`: the models that the service must not put to sleep. `idle_seconds`: for how long each model
    has had no request, None where that is unknown.

    The rest is what the Reconciler adds: the settings; which models are `lost`; those of them to be loaded `first`,
    before an active one; the one that the service itself has left `half_way` to its sleep; since when each model is in
    its state; the breakers; `unrecorded`, a model and what somebody had it made, where the service was killed before
    that was recorded.
    """

    now: float
    inventory: Inventory
    observed: Mapping[str, Observation]
    desired: Mapping[str, str]
    last_switch: Mapping[str, Any] | None = None
    lock_stamp: object = None
    locked: bool = False
    tickets: bool = False
    waiting: Collection[str] = ()
    manual: bool = False
    kept_awake: Collection[str] = ()
    idle_seconds: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    former_switches: Sequence[Mapping[str, Any]] = ()
    idle: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    reload_idle_seconds: float = 0.0
    lost: Collection[str] = ()
    first: Collection[str] = ()
    half_way: str = ""
    state_since: Mapping[str, float] = dataclasses.field(default_factory=dict)
    breakers: Mapping[str, Breaker] = dataclasses.field(default_factory=dict)
    unrecorded: tuple[str, str] | None = None

    def action(self, model: Model, desired: str, reason: str) -> Action:
        """An action that is decided in this situation."""
        return Action(model.id, desired, reason, dict(self.desired), self.last_switch)

    def rivals(self, model: Model) -> list[Model]:
        """The enabled models that can't be awake together with this one."""
        return [m for m in self.inventory.conflicting(model) if not m.disabled]

    def is_idle(self, model: Model, seconds: float) -> bool:
        """Whether a model is known to have had no request for so long."""
        seen, idle = self.observed[model.id], self.idle_seconds.get(model.id)
        used = seen.running or seen.waiting or model.id in self.waiting
        return not used and idle is not None and idle >= seconds

    def state_seconds(self, model: Model) -> float:
        """For how long a model is in its state, as far as is known."""
        return self.now - self.state_since.get(model.id, self.now)


def decide(situation: Situation) -> list[Action]:
    """What to do now: nothing, or one thing. Pure."""
    if situation.locked or situation.tickets:
        return []
    for rule in (_record, _part_rivals, _load_first, _bring_back_active, _bring_back_sleeping, _let_go):
        for action in rule(situation):
            return [action]
    return []


def obstacles(situation: Situation) -> dict[str, str]:
    """Why each lost model is not brought back now, in words; empty for one that can be."""
    return {
        m.id: _obstacle(situation, m, situation.desired[m.id])
        for m in situation.inventory.enabled
        if m.id in situation.lost and situation.desired.get(m.id) in (ACTIVE, SLEEPING)
    }


def serves(seen: Observation) -> bool:
    """Whether a server is awake, and no switch has left it half done."""
    return seen.state == ACTIVE and not seen.held and not seen.doubtful


def is_unknown(model: Model, seen: Observation) -> bool:
    """Whether nobody can tell now what a server is: it does not answer in time, or Docker does not.

    Without Docker's engine a container's port is closed, whether the container lives on or not.
    """
    return seen.unknown or (seen.state == STOPPED and seen.process is None and not model.start_command)


def _record(situation: Situation) -> Iterator[Action]:
    """What was done when the service was killed, before it was recorded, is asked for again: that records it."""
    for model in situation.inventory.enabled:
        if situation.unrecorded and model.id == situation.unrecorded[0]:
            desired = situation.unrecorded[1]
            yield situation.action(model, desired, "it was switched to that, and the service ended before it knew")


def _part_rivals(situation: Situation) -> Iterator[Action]:
    """Two that share a GPU are awake, because somebody has woken one past the engine: one of them makes room."""
    awake = [m for m in situation.inventory.enabled if situation.observed[m.id].state == ACTIVE]
    for model in sorted(awake, key=lambda m: situation.desired.get(m.id) != ACTIVE):
        both = [m.id for m in awake if m.conflicts_with(model)]
        if both and not _obstacle(situation, model, ACTIVE):
            yield situation.action(model, ACTIVE, f"{', '.join(both)} is awake on its GPU too")


def _load_first(situation: Situation) -> Iterator[Action]:
    """After a boot those that sleep are loaded before one is awake: later it would have to make room for them."""
    for model in situation.inventory.enabled:
        if model.id in situation.first and _can_come_back(situation, model, SLEEPING):
            yield situation.action(model, SLEEPING, "the host has booted")


def _bring_back_active(situation: Situation) -> Iterator[Action]:
    yield from _bring_back(situation, ACTIVE)


def _bring_back_sleeping(situation: Situation) -> Iterator[Action]:
    yield from _bring_back(situation, SLEEPING)


def _bring_back(situation: Situation, desired: str) -> Iterator[Action]:
    for model in situation.inventory.enabled:
        if _can_come_back(situation, model, desired):
            seen = situation.observed[model.id]
            is_now = f"{seen.state} ({seen.problem})" if seen.problem else seen.state
            yield situation.action(model, desired, f"it is {is_now}, and should be {desired}")


def _can_come_back(situation: Situation, model: Model, desired: str) -> bool:
    wanted = model.id in situation.lost and situation.desired.get(model.id) == desired
    return wanted and not _obstacle(situation, model, desired)


def _let_go(situation: Situation) -> Iterator[Action]:
    """Models that nobody has used for long are put to sleep, or stopped."""
    if situation.manual:
        return
    for model in situation.inventory.enabled:
        seen = situation.observed[model.id]
        if not (serves(seen) or seen.asleep) or model.id in situation.kept_awake:
            continue
        if serves(seen) and situation.state_seconds(model) < situation.inventory.switching.min_active_seconds:
            continue
        sleep, stop = situation.idle.get(model.id, (0.0, 0.0))
        if stop and situation.is_idle(model, stop):
            yield situation.action(model, STOPPED, f"it had no request for {stop:g} s (idle_stop_seconds)")
        elif sleep and serves(seen) and situation.is_idle(model, sleep):
            yield situation.action(model, SLEEPING, f"it had no request for {sleep:g} s (idle_sleep_seconds)")


def _obstacle(situation: Situation, model: Model, desired: str) -> str:
    """Why a model can't be brought to this state now; empty if it can."""
    breaker = situation.breakers.get(model.id)
    if breaker and not breaker.allows(situation.now):
        left = breaker.retry_at - situation.now
        return f"it has failed ({breaker.reason}) and is tried again in {left:.0f} s"
    seen = situation.observed[model.id]
    if desired == SLEEPING and model.id in situation.kept_awake:
        return "it is never put to sleep"
    if is_unknown(model, seen):
        return "it is unknown whether it runs: it does not answer in time, or Docker does not"
    if seen.state == ERROR and (not seen.dead or seen.process is False):
        return f"it can't be used: {seen.problem}"
    for other in situation.inventory.enabled:
        if other.id != model.id and _loads(situation, other) and not _gives_up_load(situation, other, model, desired):
            return f"{other.id} is loading"
    for rival in situation.rivals(model):
        there = situation.observed[rival.id]
        if is_unknown(rival, there):
            return f"{rival.id} shares a GPU with it, and it is unknown whether that one runs"
        if there.state == ERROR and not there.dead and there.process is not False:
            return f"{rival.id}, which shares a GPU with it, is in error: {there.problem}"
        if desired == SLEEPING and model.id not in situation.first and _comes_before(situation, rival):
            return f"{rival.id} is brought back before it"
        why = _keeps_room(situation, model, rival, desired) if there.state == ACTIVE else ""
        if why:
            return why
    return ""


def _loads(situation: Situation, model: Model) -> bool:
    """Whether a model loads. One that never gets ready must not keep all others waiting."""
    limit = situation.inventory.switching.ready_timeout_seconds
    return situation.observed[model.id].state == LOADING and situation.state_seconds(model) < limit


def _gives_up_load(situation: Situation, loading: Model, model: Model, desired: str) -> bool:
    """Whether a load was begun by a switch that was cut off, and ends when the desired model gets active there."""
    begun = situation.observed[loading.id].was_serving and situation.desired.get(loading.id) != ACTIVE
    return desired == ACTIVE and begun and loading.conflicts_with(model)


def _comes_before(situation: Situation, rival: Model) -> bool:
    """Whether a rival is to be active and lost, so that to load another one first would only delay it."""
    breaker = situation.breakers.get(rival.id)
    lost = rival.id in situation.lost and situation.desired.get(rival.id) == ACTIVE
    return lost and not (breaker and breaker.opened)


def _keeps_room(situation: Situation, model: Model, rival: Model, desired: str) -> str:
    """Why an awake rival does not make room for a model; empty if it does."""
    there, seen = situation.observed[rival.id], situation.observed[model.id]
    if not serves(there) or rival.id == situation.half_way:
        return ""  # a switch that was cut off has left it so, and it is not what is desired
    if rival.id in situation.kept_awake:
        return f"{rival.id} never makes room"
    if desired == ACTIVE:
        # Both are awake: one has to go. Else whoever has woken the other one has had a reason.
        return "" if seen.state == ACTIVE else f"{rival.id} is awake on its GPU, and nobody has switched to {model.id}"
    if seen.state == ACTIVE:
        return ""  # it makes room itself
    # To load it takes the rival off its GPU for that long: only when nobody misses that.
    least = situation.reload_idle_seconds
    if not least:
        return f"{rival.id} would have to make room while it loads (reload_idle_seconds 0)"
    if situation.waiting or situation.manual:
        return f"{rival.id} would have to make room while it loads"
    breaker = situation.breakers.get(model.id)
    if breaker and breaker.opened:
        return f"{rival.id} would have to make room for it, although it has failed: {breaker.reason}"
    if not situation.is_idle(rival, least):
        return f"{rival.id} would have to make room while it loads, and was used less than {least:g} s ago"
    if situation.state_seconds(rival) < situation.inventory.switching.min_active_seconds:
        return f"{rival.id} is active for less than min_active_seconds"
    return ""
