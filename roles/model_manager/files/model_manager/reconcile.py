# SPDX-License-Identifier: MIT
"""What the service does unasked: it brings the host back to its desired state, and lets idle models go.

The rules are in `rules`. `Reconciler` adds what has to be remembered from one look at the host to the next.

Whoever switches by the module or the command line sets the desired state, or says that it is for now. Both are left
alone: only what no switch has left so is brought back. A model is lost if it should be there and crashed, was never
started since the host booted, or was left half done by a switch that failed or was cut off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import processes, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model
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
from .rules import Action, Situation, decide, is_unknown, obstacles, serves
from .tickets import RECONCILER as BY

# Errors of a switch that say nothing about its model.
_NOT_ITS_FAULT = ("Superseded", "LockTimeout", "LockLost", "UnknownModel", "Busy")


class Reconciler:
    """Remembers what `decide` needs from one look at the host to the next, and records intent before the act.

    `round` is called after each look, `begun` and `ended` with each switch that the service makes. Not thread-safe:
    whoever calls takes care that they do not overlap. `clock` counts seconds, as the situations do; `now` tells them
    since 1970.
    """

    def __init__(
        self, config: Config, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self.config = config
        self.breakers: dict[str, Breaker] = {}
        self._clock = clock
        self._now = now
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
        # The switches of the service since the last look, by model and desired state, and whom each has stopped.
        self._own: dict[tuple[str, str], set[str]] = {}
        self._states: dict[str, str] = {}
        self._state_since: dict[str, float] = {}
        self._kept_until: dict[str, float] = {}  # those that could not be let go
        saved = state_files.read(config.stack_dir, state_files.RECONCILER)
        first = saved.get("first")
        self._first = {str(name) for name in first} if isinstance(first, list) else set()
        self._half_way = str(saved.get("loading") or "")
        # What somebody has asked for, while it is done: model, desired state, when the switch before it had ended.
        self._asked = _asked(saved.get("switching"))
        self._asked_again = False
        self._restore_breakers(saved)
        self._saved = self._intent

    def _restore_breakers(self, saved: Mapping[str, Any]) -> None:
        """A model that can't load is not tried at full speed after each restart of the service; after a boot once."""
        found = saved.get("breakers")
        for name, one in found.items() if isinstance(found, dict) else ():
            breaker = self.breaker(str(name)).restored(one, self._now() - self._clock(), self._clock())
            self.breakers[str(name)] = breaker if saved.get("boot") == processes.boot_id() else breaker.rested()

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
            unrecorded=self._unrecorded(seen),
        )
        self.notes = obstacles(situation)
        actions = decide(situation)
        for action in actions:
            if action.desired == SLEEPING and action.model in self._lost:
                self._half_way = action.model
        self._save()
        return actions

    def begun(self, model: str, desired: str, last_switch: Mapping[str, Any] | None) -> None:
        """A switch is about to begin that somebody has asked for. `last_switch`: the record of the one before it."""
        self._asked, self._asked_again = (model, desired, (last_switch or {}).get("ended")), False
        self._save()

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
        stopped = {step["model"] for step in steps if step["action"] == STOP and "failed" not in step}
        self._own.setdefault((model, desired), set()).update(stopped)
        # Each is loaded first only once, so that one that can't load does not keep the active one waiting. And somebody
        # who asks for a model wants that one, and no others before it.
        self._first = self._first - {model} if by == BY else set()
        if by == BY and model == self._half_way:
            self._half_way = ""
        self._asked, self._asked_again = None, False
        self._save()

    def _succeeded(self, now: float, model: str) -> None:
        if model in self.breakers:
            self.breakers[model] = self.breakers[model].succeeded(now)

    def _unrecorded(self, seen: Situation) -> tuple[str, str] | None:
        """What was asked for and is done, though the service was killed before that was recorded; asked for once."""
        if self._asked is None or self._asked_again:
            return None
        name, desired, last = self._asked
        model = next((m for m in seen.inventory.enabled if m.id == name), None)
        if model and is_unknown(model, seen.observed[name]):
            return None
        end = seen.last_switch or {}
        own = (end.get("models"), end.get("state"), end.get("result")) == ([name], desired, "done")
        others = end.get("ended") != last and not own
        if not model or others or seen.desired.get(name) == desired or not _is_now(seen.observed[name], desired):
            self._asked = None
            return None
        self._asked_again = True
        return name, desired

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
            elif ended and self._left(seen, before, model):
                self._intact.discard(name)
                self._lost.discard(name)
            elif name in self._intact and (_broken(observed) or (undone and self._met(before, model))):
                self._intact.discard(name)
                self._lost.add(name)
                if _broken(observed) and not ended and not undone:
                    why = observed.problem or "its server has ended"
                    self.breakers[name] = self.breaker(name).failed(seen.now, why, crashed=True)
        self._own.clear()
        self._lost &= set(models)
        self._first &= set(models)
        for name in set(self.breakers) - set(models):
            del self.breakers[name]
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

    def _left(self, seen: Situation, before: Situation | None, model: Model) -> bool:
        """Whether a switch since the look before has left a model so; there may have been several."""
        for one in (seen.last_switch, *reversed(seen.former_switches)):
            if one is None or (before is not None and one == before.last_switch):
                return False
            left = one["result"] == "done" and self._left_by(seen, one, model)
            if left or model.id in one["models"]:
                return left
        return False

    def _left_by(self, seen: Situation, last: Mapping[str, Any], model: Model) -> bool:
        """Whether a switch that ended well has left a model so, although the desired state is another one."""
        # Of its own the service knows whom they have stopped: another one has crashed meanwhile, or since.
        stopped = self._own.get((last["models"][0], last["state"])) if len(last["models"]) == 1 else None
        if model.id in last["models"]:
            # Asked to sleep, one that can't is stopped. One that was made active has crashed since.
            slept = last["state"] == SLEEPING and stopped is not None and model.id not in stopped
            return bool(last["state"] != ACTIVE) and not slept
        # A rival that was only loaded, to sleep, has given the GPU back.
        made_room = last["state"] == ACTIVE and any(m.id in last["models"] for m in seen.inventory.conflicting(model))
        return made_room and model.id not in self._lost and (stopped is None or model.id in stopped)

    @property
    def _intent(self) -> dict[str, Any]:
        return {
            "loading": self._half_way,
            "first": sorted(self._first),
            "switching": self._asked,
            "breakers": dict(self.breakers),
        }

    def _save(self) -> None:
        intent = self._intent
        if intent == self._saved:
            return
        shift = self._now() - self._clock()
        breakers = {name: one.as_dict(shift) for name, one in self.breakers.items()}
        # Where the disk is full a switch is refused anyway.
        with contextlib.suppress(OSError):
            content = {**intent, "breakers": breakers, "boot": processes.boot_id()}
            state_files.write(self.config.stack_dir, state_files.RECONCILER, content)
            self._saved = intent


def _asked(saved: Any) -> tuple[str, str, float | None] | None:
    """What a service that was killed had begun."""
    with contextlib.suppress(TypeError, ValueError):
        model, desired, last = saved
        return str(model), str(desired), None if last is None else float(last)
    return None


def _is_now(seen: Observation, desired: str) -> bool:
    """Whether a server is surely what it was to be made."""
    if desired == ACTIVE:
        return serves(seen)
    return seen.asleep if desired == SLEEPING else seen.state == STOPPED and seen.process is False


def _runs(seen: Observation) -> bool:
    """Whether a server runs, for all that is known."""
    return seen.state in (ACTIVE, SLEEPING, LOADING) or seen.unknown


def _half_done(seen: Observation) -> bool:
    """Whether a switch that was cut off has left it so, or it is dead and holds memory."""
    return seen.held or seen.doubtful or seen.was_serving or (seen.state == ERROR and seen.dead)


def _broken(seen: Observation) -> bool:
    """Whether nobody can have wanted it so."""
    return seen.state in (STOPPED, LOADING) or _half_done(seen)
