# SPDX-License-Identifier: MIT
"""When to switch to a model that requests wait for, and to which first. Pure: no clock, no I/O. Times are in seconds.

`fifo` switches to the model whose request has waited longest, as soon as that is allowed. `batched` lets the active
model go on while requests for it come, so that those for the others gather and one switch serves many of them; it
switches when the active model has been idle for as long as the switch takes, or when the first request would otherwise
wait for more than `max_wait_seconds`.

One switch is made at a time, as the manager does. The bound of `batched` holds if `max_wait_seconds` is at least the
number of models times the longest switch, with its drain and `min_active_seconds`. If it is less, the model whose
request has waited longest comes next whenever the bound can't be kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FIFO = "fifo"
BATCHED = "batched"
POLICIES = (FIFO, BATCHED)
# Clocks and sums of floats are not exact. A deadline that is so close has come.
_EPSILON = 1e-6


@dataclass(frozen=True)
class Settings:
    """What an operator sets.

    `max_wait_seconds` bounds the wait of a request until its model is active, for `batched`. `linger_seconds` is
    how long an active model has to be idle before it makes room early; None: as long as the switch takes.
    `rest_seconds` is how long it stays after its last answer, for both policies, as long as nobody waits too long.
    `min_active_seconds` is how long a model stays active at least, for both policies. `drain_seconds` is allowed for
    each drain beyond what it usually takes, so that the bound holds where a drain takes longer.
    """

    max_wait_seconds: float = 60.0
    linger_seconds: float | None = None
    min_active_seconds: float = 0.0
    drain_seconds: float = 0.0
    rest_seconds: float = 0.0


@dataclass(frozen=True)
class Active:
    """A model that is active.

    `in_flight` counts its requests, None where that is unknown, which never counts as idle. `idle_seconds` is the
    time since its last request ended. `leave_seconds` is what its drain and its sleep take.
    """

    model: str
    active_seconds: float
    in_flight: int | None
    idle_seconds: float = 0.0
    leave_seconds: float = 0.0


@dataclass(frozen=True)
class Waiting:
    """A model that `depth` requests wait for, the first of them for `oldest_wait_seconds`.

    `arrive_seconds` is what its wake takes until it is ready, `leave_seconds` what its drain and its sleep will take.
    `conflicts` are the models that share a GPU with it, active or not.
    """

    model: str
    depth: int
    oldest_wait_seconds: float
    arrive_seconds: float = 0.0
    leave_seconds: float = 0.0
    conflicts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Situation:
    """What a policy sees. Requests for an active model don't wait, so that it counts as no `waiting` one."""

    active: tuple[Active, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    settings: Settings = Settings()

    @property
    def queue(self) -> tuple[Waiting, ...]:
        """The models that are waited for and not active, by the wait of their first request, longest first."""
        awake = {one.model for one in self.active}
        left = [one for one in self.waiting if one.depth > 0 and one.model not in awake]
        return tuple(sorted(left, key=lambda one: (-one.oldest_wait_seconds, one.model)))


@dataclass(frozen=True)
class Decision:
    """The model to switch to now, None for none, and `why`.

    Without one, `again_seconds` says when to decide again if nothing changes before; None where nothing waits.
    """

    model: str | None
    again_seconds: float | None = None
    why: str = ""


def decide(policy: str, situation: Situation) -> Decision:
    """What to do now. Raises ValueError for an unknown policy.

    To be called again whenever a request comes or ends, a switch ends, and when `again_seconds` are over.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be {' or '.join(POLICIES)}, is {policy!r}")
    queue = situation.queue
    if not queue:
        return Decision(None, None, "no request waits")
    return (_fifo if policy == FIFO else _batched)(situation, queue)


def _fifo(situation: Situation, queue: Sequence[Waiting], rests: bool = True) -> Decision:
    held: dict[str, float] = {}
    for one in queue:
        # Who waits longer is never overtaken on its own GPUs.
        if any(name in one.conflicts for name in held):
            continue
        left = max(_held_seconds(situation, one), _rests_seconds(situation, one) if rests else 0.0)
        if not left:
            return Decision(one.model, why=f"{one.model} has been waited for longest")
        held[one.model] = left
    return Decision(None, min(held.values()), "the active model stays active for min_active_seconds, or rests")


def _batched(situation: Situation, queue: Sequence[Waiting]) -> Decision:
    slack = _slack(situation, queue)
    if slack <= _EPSILON:
        return _fifo(situation, queue, rests=False)
    best: tuple[float, str] | None = None
    again = slack
    for one in queue:
        rest = _idle_in(situation, one)
        if rest > 0:
            again = min(again, rest)
        elif _slack(situation, [one, *(other for other in queue if other is not one)]) >= 0:
            # The most requests for the time that it takes, as long as nobody waits too long by that.
            value = one.depth / max(_switch_seconds(situation, one), _EPSILON)
            if best is None or value > best[0]:
                best = value, one.model
    if best is not None:
        return Decision(best[1], why=f"its GPUs are idle, and {best[1]} serves the most requests for the time it takes")
    return Decision(None, again, f"requests gather, the first one can wait for another {slack:.1f} s")


def _displaced(situation: Situation, target: Waiting) -> list[Active]:
    """The active models that make room for it."""
    return [one for one in situation.active if one.model in target.conflicts]


def _switch_seconds(situation: Situation, target: Waiting) -> float:
    """What a switch to it takes now."""
    return max((one.leave_seconds for one in _displaced(situation, target)), default=0.0) + target.arrive_seconds


def _held_seconds(situation: Situation, target: Waiting) -> float:
    """For how long a model that has to make room stays active yet."""
    least = situation.settings.min_active_seconds
    left = max((least - one.active_seconds for one in _displaced(situation, target)), default=0.0)
    return left if left > _EPSILON else 0.0


def _rests_seconds(situation: Situation, target: Waiting) -> float:
    """For how long an idle model that has to make room stays yet because its last answer has just ended."""
    settings = situation.settings
    if target.oldest_wait_seconds >= settings.max_wait_seconds:
        return 0.0
    idle = [one.idle_seconds for one in _displaced(situation, target) if one.in_flight == 0]
    left = max((settings.rest_seconds - seconds for seconds in idle), default=0.0)
    return left if left > _EPSILON else 0.0


def _idle_in(situation: Situation, target: Waiting) -> float:
    """How long it takes until those that make room for it have been idle for long enough and may leave.

    Infinite where one has requests, or may have some.
    """
    linger = situation.settings.linger_seconds
    if linger is None:
        linger = _switch_seconds(situation, target)
    linger = max(linger, situation.settings.rest_seconds)
    left = _held_seconds(situation, target)
    for one in _displaced(situation, target):
        left = max(left, linger - one.idle_seconds if one.in_flight == 0 else math.inf)
    return left if left > _EPSILON else 0.0


def _slack(situation: Situation, order: Sequence[Waiting]) -> float:
    """For how long the switches in this order can be put off so that no first request waits longer than is allowed.

    Negative where one will.
    """
    bound = situation.settings.max_wait_seconds

    def left(held: bool) -> float:
        served = _served_after(situation, order, held)
        return min(bound - one.oldest_wait_seconds - after for one, after in zip(order, served, strict=True))

    # While a model has to stay active, to put off a switch costs nothing.
    now = left(held=True)
    return now if now < 0 else left(held=False)


def _served_after(situation: Situation, order: Iterable[Waiting], held: bool) -> list[float]:
    """After which times the models of this order are active, if the switches are made one after the other from now.

    Without `held`, those that are active now may leave at once.
    """
    least, drain = situation.settings.min_active_seconds, situation.settings.drain_seconds
    # For each active model, since when it is (before now: negative), and what it takes to leave.
    awake = {one.model: (-one.active_seconds if held else -math.inf, one.leave_seconds) for one in situation.active}
    clock, times = 0.0, []
    for one in order:
        gone = _take(awake, one.conflicts)
        clock = max([clock, *(since + least for since, _leave in gone)])
        clock += max((drain + leave for _since, leave in gone), default=0.0) + one.arrive_seconds
        awake[one.model] = clock, one.leave_seconds
        times.append(clock)
    return times


def _take(awake: dict[str, tuple[float, float]], names: Iterable[str]) -> list[tuple[float, float]]:
    return [awake.pop(name) for name in sorted(names) if name in awake]
