# SPDX-License-Identifier: MIT
"""How long a switch will take, by what switches have taken on this host. Pure. Times are in seconds, sizes in GB.

Each part of a switch (drain, sleep or stop, wake or start, becoming ready) is the median of what it took when the same
two models were switched; else of what it took for that model at all; else of what the engine has measured, which also
knows the switches of the command line; before there is any of these, a guess from the weights and the level.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.costs import Cost, median
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import DRAIN, SLEEP, START, STOP, WAKE

# How many of the last times of a part count: few, because a model's arguments may have been changed since.
KEPT = 5
# All that follows the wake or the start of a model in its switch: the proof that it is ready, the canary, and more.
READY = "ready"
_ANY = ""

# The guesses are rather too long than too short. GPU and RAM exchange weights over PCIe; a start and a wake from level
# 2 read them from a disk.
_PCIE_GB_PER_SECOND = 10.0
_DISK_GB_PER_SECOND = 2.0
# The calls of a sleep and a wake, and what vLLM does besides weights.
_CALL_SECONDS = 1.0
_START_SECONDS = 45.0
_STOP_SECONDS = 5.0
# Where the inventory does not say how large the weights are.
_WEIGHTS_GB = 20.0


class _Part(NamedTuple):
    """A part of a switch: of which model, at which level, and of `other`, the model that left or came at its place."""

    action: str
    model: str
    level: int | None
    other: str = _ANY


class Timings:
    """What the parts of past switches have taken: the last `KEPT` of each, and of each for every pair of models."""

    def __init__(self, switches: Iterable[Sequence[Mapping[str, Any]]] = ()) -> None:
        """`switches` are the steps of past switches, the oldest first."""
        # Tuples, each replaced as a whole: a thread may look while another one adds.
        self._found: dict[_Part, tuple[float, ...]] = {}
        self._levels: dict[str, int | None] = {}
        for steps in switches:
            self.add(steps)

    def add(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Learn from the steps of one more switch. Steps that failed, or were to recover others, are no measure."""
        measured = [step for step in steps if _is_measure(step)]
        leaving = dict.fromkeys(step["model"] for step in measured if step["action"] in (SLEEP, STOP))
        coming = dict.fromkeys(step["model"] for step in measured if step["action"] in (WAKE, START))
        for step in measured:
            action, model = step["action"], step["model"]
            if action in (DRAIN, SLEEP, STOP):
                level = step.get("level") if action == SLEEP else None
                if action != DRAIN:
                    self._levels[model] = level
                self._keep(_Part(action, model, level), step["seconds"], coming)
            elif action in (WAKE, START):
                self._keep(_Part(action, model, _level(step)), step["seconds"], leaving)
        for model in coming:
            arrival, after = _arrival(steps, model)
            # Only where all of it went well: a part of it is no time of the whole.
            if after and all(_is_measure(step) for step in (arrival, *after)):
                seconds = sum(step["seconds"] for step in after)
                self._keep(_Part(READY, model, _level(arrival)), seconds, leaving)

    def _keep(self, part: _Part, seconds: float, others: Iterable[str]) -> None:
        for other in (_ANY, *(one for one in others if one != part.model)):
            key = part._replace(other=other)
            self._found[key] = (*self._found.get(key, ()), seconds)[-KEPT:]

    def last_level(self, model: str) -> int | None:
        """The level of a model's last sleep, None if it was stopped; 1 for one that was never seen to leave."""
        return self._levels.get(model, 1)

    def median(self, action: str, model: str, level: int | None = None, others: Collection[str] = ()) -> float | None:
        """The median of a part; with `others`, of what it took with them, if that is known. None of nothing."""
        part = _Part(action, model, level)
        pairs = [seconds for other in sorted(others) for seconds in self._found.get(part._replace(other=other), ())]
        return median(pairs or self._found.get(part, ()))


def estimate(
    from_ids: Collection[str],
    to_id: str | None,
    level: int | None,
    costs: Mapping[str, Mapping[int, Cost]],
    history: Timings,
    *,
    weights_gb: Mapping[str, float | None] | None = None,
    leave_at: Mapping[str, int | None] | None = None,
) -> float:
    """The seconds that a switch takes until `to_id` is ready and `from_ids`, who make room, sleep or have ended.

    `level` is the one at which `to_id` sleeps: 0 if it is only paused, None if its server has to be started; where
    the server doesn't tell it, 2 is the one to give. Without `to_id` it is the time of the sleep alone, without
    `from_ids` that of the arrival. `costs` is what the engine has measured of each model (`costs.known`). `leave_at`
    says at which level each of `from_ids` will sleep, None for a stop; by default as the last time.
    """
    sizes = weights_gb or {}
    plans = leave_at or {}
    leaving = [
        _leave(name, to_id, plans[name] if name in plans else history.last_level(name), costs, history, sizes)
        for name in sorted(set(from_ids) - {to_id})
    ]
    # They leave side by side, and the target waits for the last.
    seconds = max(leaving, default=0.0)
    return seconds if to_id is None else seconds + _arrive(to_id, from_ids, level, costs, history, sizes)


def _leave(
    name: str,
    to_id: str | None,
    level: int | None,
    costs: Mapping[str, Mapping[int, Cost]],
    history: Timings,
    sizes: Mapping[str, float | None],
) -> float:
    others = () if to_id is None else (to_id,)
    # How long requests run on is unknown before the first drain, and nothing if there are none.
    drain = history.median(DRAIN, name, others=others) or 0.0
    rest = history.median(SLEEP if level else STOP, name, level or None, others)
    if rest is None and level:
        rest = median(costs.get(name, {}).get(level, Cost()).sleep)
    return drain + (_guess_leave(level, _size(sizes, name)) if rest is None else rest)


def _arrive(
    name: str,
    from_ids: Collection[str],
    level: int | None,
    costs: Mapping[str, Mapping[int, Cost]],
    history: Timings,
    sizes: Mapping[str, float | None],
) -> float:
    up = history.median(START if level is None else WAKE, name, level, from_ids)
    if up is not None:
        return up + (history.median(READY, name, level, from_ids) or 0.0)
    # The engine's own figure is that of a wake until it is verified.
    known = None if level is None else median(costs.get(name, {}).get(level, Cost()).wake)
    return _guess_arrive(level, _size(sizes, name)) if known is None else known


def _size(sizes: Mapping[str, float | None], name: str) -> float:
    size = sizes.get(name)
    return _WEIGHTS_GB if size is None else size


def _guess_leave(level: int | None, size: float) -> float:
    if not level:
        return _STOP_SECONDS
    return _CALL_SECONDS + (size / _PCIE_GB_PER_SECOND if level == 1 else 0.0)


def _guess_arrive(level: int | None, size: float) -> float:
    if level is None:
        return _START_SECONDS + size / _DISK_GB_PER_SECOND
    return _CALL_SECONDS + {0: 0.0, 1: size / _PCIE_GB_PER_SECOND}.get(level, size / _DISK_GB_PER_SECOND)


def _arrival(steps: Sequence[Mapping[str, Any]], model: str) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The last wake or start of a model, and the steps that make it ready after that."""
    own = [step for step in steps if step["model"] == model]
    last = max(number for number, step in enumerate(own) if step["action"] in (WAKE, START))
    after = itertools.takewhile(lambda step: step["action"] not in (DRAIN, SLEEP, STOP), own[last + 1 :])
    return own[last], list(after)


def _level(step: Mapping[str, Any]) -> int | None:
    """The level of a wake; one from an unknown level does what one from level 2 does. None for a start."""
    if step["action"] == START:
        return None
    level: int | None = step.get("level")
    return 2 if level is None else level


def _is_measure(step: Mapping[str, Any]) -> bool:
    seconds = step.get("seconds")
    return isinstance(seconds, (int, float)) and seconds >= 0 and "failed" not in step and "escalation" not in step
