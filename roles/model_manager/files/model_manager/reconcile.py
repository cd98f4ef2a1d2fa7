# SPDX-License-Identifier: MIT
"""What the service does unasked: it brings the host back to its desired state, and lets idle models go.

`decide` is pure. It sees one `Situation` and names at most one thing to do, so that models load one after the other.
`Reconciler` adds what has to be remembered from one look at the host to the next.

Whoever switches by the module or the command line sets the desired state, or says that it is for now. Both are left
alone: only what no switch has left so is brought back. A model is lost if it should be there and crashed, was never
started since the host booted, or was left half done by a switch that failed or was cut off.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import desired_state, state_files, status
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchingError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gpus import Gpu
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import HostLock, Wait
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    ERROR,
    LOADING,
    SLEEPING,
    STOP,
    STOPPED,
    Observation,
)

from .breaker import Breaker
from .config import Config

BY = "reconciler"

# Errors of a switch that say nothing about its model.
_NOT_ITS_FAULT = ("Superseded", "LockTimeout", "LockLost", "UnknownModel")


class Superseded(SwitchingError):
    """Somebody else has switched since this was decided, so it was not done."""


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
    `lock_stamp` changes whenever somebody takes the host's lock. `locked`: somebody else has it, or had it while the
    servers were observed. `tickets`: a switch of the service runs or waits. `waiting`: the models that requests wait
    for. `manual`: nobody but a person lets a model go. `kept_awake`: the models that the service must not put to sleep.
    `idle_seconds`: for how long each model has had no request, None where that is unknown.

    The rest is what the Reconciler adds: the settings; which models are `lost`; those of them to be loaded `first`,
    before an active one; the one that the service itself has left `half_way` to its sleep; since when each model is in
    its state; the breakers.
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
    idle: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    reload_idle_seconds: float = 0.0
    lost: Collection[str] = ()
    first: Collection[str] = ()
    half_way: str = ""
    state_since: Mapping[str, float] = dataclasses.field(default_factory=dict)
    breakers: Mapping[str, Breaker] = dataclasses.field(default_factory=dict)

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
    for rule in (_part_rivals, _load_first, _bring_back_active, _bring_back_sleeping, _let_go):
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


class GuardedLock(HostLock):
    """The host's lock for a switch that is only made if nobody has switched since it was decided.

    To look before asking for the lock would not do: whoever has it then may be about to record something else.
    """

    def __init__(self, stack_dir: str, still: Callable[[], bool], **parameters: Any) -> None:
        super().__init__(stack_dir, **parameters)
        self._still = still

    @contextlib.contextmanager
    def hold(
        self,
        purpose: str,
        seconds: float,
        wait: Wait,
        tell: Callable[[str], None] | None = None,
        gpus: Iterable[Gpu] = (),
    ) -> Iterator[None]:
        """Hold the lock. Raises Superseded if somebody has switched, and LockTimeout."""
        with super().hold(purpose, seconds, wait, tell, gpus):
            if not self._still():
                self.record_end({}, self.last_failed_at)  # it was no switch
                raise Superseded("somebody else has switched in the meantime: nothing was done")
            yield


def still_holds(action: Action, inventory: Inventory, stack_dir: str) -> bool:
    """Whether nobody has switched since the action was decided. To be asked under the host's lock."""
    return (
        desired_state.read(inventory, stack_dir) == action.recorded
        and status.read_last_switch(stack_dir) == action.last_switch
    )


class Reconciler:
    """Remembers what `decide` needs from one look at the host to the next, and records intent before the act.

    `round` is called after each look, `ended` after each switch that the service has made. Not thread-safe: whoever
    calls takes care that they do not overlap.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.breakers: dict[str, Breaker] = {}
        # Why each lost model is not brought back now; empty for one that is about to be.
        self.notes: dict[str, str] = {}
        self._before: Situation | None = None  # the last one in which nobody was switching
        # Whether nothing ran when the service started, and those of whom it is still unknown what they were then.
        self._booted: bool | None = None
        self._unseen: set[str] = set()
        self._lost: set[str] = set()
        # Those that are as they should be, or whom somebody has changed past the engine without stopping them.
        self._intact: set[str] = set()
        # Those that a switch has stopped so that they start afresh.
        self._reload: set[str] = set()
        self._states: dict[str, str] = {}
        self._state_since: dict[str, float] = {}
        self._kept_until: dict[str, float] = {}  # those that could not be let go
        saved = state_files.read(config.stack_dir, state_files.RECONCILER)
        first = saved.get("first")
        self._first = {str(name) for name in first} if isinstance(first, list) else set()
        self._half_way = str(saved.get("loading") or "")
        self._saved = self._intent

    def breaker(self, model: str) -> Breaker:
        """The breaker of a model."""
        config = self.config
        new = Breaker(config.breaker_failures, config.breaker_minutes * 60, config.retry_seconds)
        return self.breakers.get(model, new)

    def round(self, seen: Situation) -> list[Action]:
        """What to do now; at most one thing."""
        for model in seen.inventory.enabled:
            state = seen.observed[model.id].state
            if self._states.get(model.id) != state:
                self._states[model.id], self._state_since[model.id] = state, seen.now
        if seen.locked or seen.tickets:
            return []
        self._note_states(seen)
        self._before = seen
        situation = dataclasses.replace(
            seen,
            kept_awake={*seen.kept_awake, *(name for name, until in self._kept_until.items() if seen.now < until)},
            idle={m.id: self.config.idle(m.id) for m in seen.inventory.enabled},
            reload_idle_seconds=self.config.reload_idle_seconds,
            lost=frozenset(self._lost),
            first=frozenset(self._first),
            half_way=self._half_way,
            state_since=dict(self._state_since),
            breakers=dict(self.breakers),
        )
        self.notes = obstacles(situation)
        actions = decide(situation)
        for action in actions:
            if action.desired == SLEEPING and action.model in self._lost:
                self._half_way = action.model
        self._save()
        return actions

    def ended(
        self,
        now: float,
        model: str,
        desired: str,
        by: str,
        result: Mapping[str, Any] | None,
        error: Mapping[str, Any] | None,
    ) -> None:
        """Take in how a switch of the service ended: its result and its error as in a Ticket, and who asked for it."""
        steps = (result or {}).get("steps") or ()
        if error is None:
            self._succeeded(now, model)
        elif error.get("kind") not in _NOT_ITS_FAULT:
            # People may ask for what can't be: of theirs only what happened to the model itself counts.
            own = desired == ACTIVE and any("failed" in step and step["model"] == model for step in steps)
            if own or (by == BY and (model in self._lost or desired == ACTIVE)):
                reason = str(error.get("message") or "").split("\n", 1)[0]
                self.breakers[model] = self.breaker(model).failed(now, reason)
            elif by == BY:
                self._kept_until[model] = now + self.config.retry_seconds
        # The engine's text names the setting.
        over_limit = (s["model"] for s in steps if s["action"] == STOP and "leak_limit_gb" in str(s.get("note")))
        self._reload.update(over_limit)
        # Each is loaded first only once, so that one that can't load does not keep the active one waiting. And somebody
        # who asks for a model wants that one, and no others before it.
        self._first = self._first - {model} if by == BY else set()
        if by == BY and model == self._half_way:
            self._half_way = ""
        self._save()

    def _succeeded(self, now: float, model: str) -> None:
        if model in self.breakers:
            self.breakers[model] = self.breakers[model].succeeded(now)

    def _note_states(self, seen: Situation) -> None:
        """Find out who is lost. Nobody switches now."""
        before, last = self._before, seen.last_switch
        ended = before is not None and last != before.last_switch
        done = ended and last is not None and last["result"] == "done"
        # One that failed, or that took the lock and left no record: it was cut off, or had nothing to do.
        undone = before is not None and not done and (ended or seen.lock_stamp != before.lock_stamp)
        models = {m.id: m for m in seen.inventory.enabled}
        if before is None:
            self._unseen = set(models)
        if self._booted is None:
            if any(_runs(seen.observed[name]) for name in models):
                self._booted = False
            elif not any(is_unknown(m, seen.observed[m.id]) for m in models.values()):
                self._booted = True
        for name, model in models.items():
            observed, desired = seen.observed[name], seen.desired.get(name, SLEEPING)
            if is_unknown(model, observed) or self._booted is None:
                continue
            first_look = name in self._unseen
            self._unseen.discard(name)
            if self._meets(model, observed, desired):
                if self.breaker(name).opened and observed.state == desired:
                    self._succeeded(seen.now, name)
                self._intact.add(name)
                self._lost.discard(name)
                self._reload.discard(name)
            elif first_look:
                if self._lost_at_start(seen, model, desired):
                    self._lost.add(name)
                    if self._booted and desired == SLEEPING:
                        self._first.add(name)
            elif name in self._reload:
                self._reload.discard(name)
                self._lost.add(name)
            elif done and last is not None and self._left_by(seen, last, model):
                self._intact.discard(name)
                self._lost.discard(name)
            elif name in self._intact and (_broken(observed) or (undone and self._met(before, model))):
                self._intact.discard(name)
                self._lost.add(name)
                if _broken(observed) and not ended and not undone:
                    why = observed.problem or "its server has ended"
                    self.breakers[name] = self.breaker(name).failed(seen.now, why, crashed=True)
        self._lost &= set(models)
        self._first &= set(models)
        half_way = seen.observed.get(self._half_way)
        if half_way is None or half_way.asleep or seen.desired.get(self._half_way) == ACTIVE:
            self._half_way = ""

    def _meets(self, model: Model, observed: Observation, desired: str) -> bool:
        """Whether a server is what it should be. One that somebody has woken past the engine is left awake."""
        if desired == ACTIVE:
            return serves(observed)
        if desired == STOPPED:
            return True
        rests = observed.state == STOPPED and model.sleep_level == "stop"
        return observed.asleep or rests or (serves(observed) and model.id != self._half_way)

    def _met(self, before: Situation | None, model: Model) -> bool:
        """Whether it was what it should be when the host was looked at before, as far as is known."""
        observed = before.observed.get(model.id) if before else None
        if before is None or observed is None:
            return False
        return is_unknown(model, observed) or self._meets(model, observed, before.desired.get(model.id, SLEEPING))

    def _lost_at_start(self, seen: Situation, model: Model, desired: str) -> bool:
        """Whether a model that is not what it should be is to be brought back when the service starts."""
        observed = seen.observed[model.id]
        if desired == ACTIVE:
            # Who is awake in its place has been woken while the service was away, and stays.
            rivals = [m for m in seen.rivals(model) if m.id != self._half_way]
            return not any(serves(seen.observed[m.id]) for m in rivals)
        # Why a single one is stopped is not known: it may rest so because it can't sleep.
        begun = model.id in self._first or model.id == self._half_way
        return bool(self._booted) or begun or _half_done(observed)

    def _left_by(self, seen: Situation, last: Mapping[str, Any], model: Model) -> bool:
        """Whether a switch that ended well has left a model so, although the desired state is another one."""
        if model.id in last["models"]:
            # Asked to sleep, one that can't is stopped. One that was made active has crashed since.
            return bool(last["state"] != ACTIVE)
        # A rival that was only loaded, to sleep, has given the GPU back.
        made_room = last["state"] == ACTIVE and any(m.id in last["models"] for m in seen.inventory.conflicting(model))
        return made_room and model.id not in self._lost

    @property
    def _intent(self) -> dict[str, Any]:
        return {"loading": self._half_way, "first": sorted(self._first)}

    def _save(self) -> None:
        if self._intent == self._saved:
            return
        # Where the disk is full a switch is refused anyway.
        with contextlib.suppress(OSError):
            state_files.write(self.config.stack_dir, state_files.RECONCILER, self._intent)
            self._saved = self._intent


def _runs(seen: Observation) -> bool:
    """Whether a server runs, for all that is known."""
    return seen.state in (ACTIVE, SLEEPING, LOADING) or seen.unknown


def _half_done(seen: Observation) -> bool:
    """Whether a switch that was cut off has left it so, or it is dead and holds memory."""
    return seen.held or seen.doubtful or seen.was_serving or (seen.state == ERROR and seen.dead)


def _broken(seen: Observation) -> bool:
    """Whether nobody can have wanted it so."""
    return seen.state in (STOPPED, LOADING) or _half_done(seen)
