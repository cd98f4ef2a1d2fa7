# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What sleeping and waking have taken on this host, by model and level, and which level C(auto) means for it. Pure.

What is kept of a model holds as long as its server is started in the same way. Times are in seconds.
"""

from __future__ import annotations

import dataclasses
import json
import typing
import zlib

from .inventory import Model
from .texts import in_words

# A model of which only this much RAM is free for sleepers is better discarded than offloaded (homeGPT's rule).
LEVEL_1_MINIMUM_RAM_GB = 64.0
# How many of the last sleeps, and wakes, of a level are kept.
KEPT = 9
# So many sleeps or wakes have to fail in a row that a level counts as failing; one may fail for any reason.
FAILING = 2
# How many sleeps a level that is to be measured has until one of its wakes is.
TRIES = 3
# Sums that differ by no more than this share of the larger one count as equal.
EQUAL_SHARE = 0.05
LEVELS = (1, 2)
# No timeout allows as much: it is garbage.
_LONGEST = 1e7
# The keys of a model on which it depends how long its server sleeps and wakes.
_SERVED = (
    "model", "gpus", "args", "env", "image", "entrypoint", "start_command", "sleep_requests", "wake_requests",
    "ready_completion",
)  # fmt: skip


class Measure(typing.NamedTuple):
    """One sleep or wake of a model. C(seconds) is None where it failed.

    C(warm) is the share of the weights that a wake found in the page cache, None where it is unknown.
    """

    model: str
    level: int
    action: str
    seconds: float | None
    warm: float | None = None


class Cost(typing.NamedTuple):
    """What a level has taken: the last sleeps and wakes, and C(warm) for each wake.

    C(failed) is how many sleeps and wakes at this level have failed in a row by now.
    """

    sleep: tuple[float, ...] = ()
    wake: tuple[float, ...] = ()
    warm: tuple[float | None, ...] = ()
    failed: int = 0

    @property
    def failing(self) -> bool:
        """Whether something is wrong with this level."""
        return self.failed >= FAILING

    @property
    def seconds(self) -> float | None:
        """What a sleep and a wake take together; None where one of them was never measured."""
        slept, woken = median(self.sleep), median(self.wake)
        return None if slept is None or woken is None else slept + woken

    @property
    def times(self) -> int:
        """How often both have been measured."""
        return min(len(self.sleep), len(self.wake))

    def after(self, measure: Measure) -> Cost:
        """It with one more sleep or wake."""
        if measure.seconds is None:
            return self._replace(failed=min(self.failed + 1, KEPT))
        if measure.action == "sleep":
            return self._replace(sleep=(*self.sleep, measure.seconds)[-KEPT:], failed=0)
        wake, warm = (*self.wake, measure.seconds)[-KEPT:], (*self.warm, measure.warm)[-KEPT:]
        return self._replace(wake=wake, warm=warm, failed=0)


class Choice(typing.NamedTuple):
    """The level of a sleep, None for a stop, and C(why). C(measured): what was, or is to be, measured decided."""

    level: int | None
    why: str = ""
    measured: bool = False


# Where the inventory says which.
FIXED = {
    "1": Choice(1, "level 1: sleep_level is 1"),
    "2": Choice(2, "level 2: sleep_level is 2"),
    "stop": Choice(None, "stop: sleep_level is stop"),
}


def choose(known: typing.Mapping[int, Cost], no_level_1: str, no_level_2: str, measure: bool) -> Choice:
    """The level at which a model with C(sleep_level) auto sleeps, None where it is to be stopped.

    C(no_level_1) and C(no_level_2) say why it can't be that one; level 1 is the one to take if nothing is said and
    nothing known. With C(measure) a level that was never measured is tried, unless it has failed, or its wakes never
    come to be measured.
    """
    if no_level_1:
        return Choice(None, f"stop: {no_level_2}") if no_level_2 else Choice(2, f"level 2: {no_level_1}")
    if no_level_2:
        return Choice(1, f"level 1: RAM allows it, no level 2: {no_level_2}")
    costs = {level: known.get(level, Cost()) for level in LEVELS}
    unmeasured = [level for level in LEVELS if costs[level].seconds is None]
    if not unmeasured:
        quick = quicker(known)
        level = quick or 1
        took = [
            f"{costs[n].seconds:.1f} s{' measured' if n == level else ''} ({costs[n].times})"
            + (f", failed the last {costs[n].failed} times" if costs[n].failing else "")
            for n in LEVELS
        ]
        equal = "" if quick else " (equal, RAM allows it)"
        return Choice(level, f"level {level}: {took[level - 1]}, level {3 - level}: {took[2 - level]}{equal}", True)
    untried = [level for level in unmeasured if not costs[level].failed and len(costs[level].sleep) < TRIES]
    if measure and untried:
        return Choice(untried[0], f"level {untried[0]}: never measured, so it is tried (measure_levels)", True)
    return Choice(1, f"level 1: RAM allows it, {in_words([f'level {n}' for n in unmeasured])} never measured")


def quicker(known: typing.Mapping[int, Cost]) -> int | None:
    """The level that takes less time, or the one that does not fail.

    None where they count as equal, or one of them was never measured.
    """
    costs = [known.get(level, Cost()) for level in LEVELS]
    one, two = (cost.seconds for cost in costs)
    if one is None or two is None:
        return None
    if costs[0].failing != costs[1].failing:
        return 2 if costs[0].failing else 1
    if abs(one - two) <= EQUAL_SHARE * max(one, two):
        return None
    return 1 if one < two else 2


def median(values: typing.Sequence[float]) -> float | None:
    """The median; None of nothing."""
    # The standard library's is in a module that takes as long to import as a switch.
    ordered, half = sorted(values), len(values) // 2
    if not ordered:
        return None
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def known(content: typing.Mapping[str, typing.Any], model: Model) -> dict[int, Cost]:
    """What a model's levels have taken. C(content) is the state file's; what makes no sense in it counts as unknown."""
    found = content.get(model.id)
    levels = found.get("levels") if isinstance(found, dict) and found.get("served") == served(model) else None
    if not isinstance(levels, dict):
        return {}
    return {level: _cost(levels.get(str(level))) for level in LEVELS}


def _cost(found: typing.Any) -> Cost:
    if not isinstance(found, dict):
        return Cost()
    sleeps, wakes, failed = found.get("sleep"), found.get("wake"), found.get("failed")
    pairs = [pair for pair in _listed(wakes) if isinstance(pair, list) and len(pair) == 2 and _is_time(pair[0])]
    return Cost(
        tuple(filter(_is_time, _listed(sleeps))),
        tuple(pair[0] for pair in pairs),
        tuple(pair[1] if _is_time(pair[1]) and pair[1] <= 1 else None for pair in pairs),
        min(int(failed), KEPT) if isinstance(failed, int) and failed > 0 else 0,
    )


def _listed(found: typing.Any) -> list[typing.Any]:
    return found if isinstance(found, list) else []


def _is_time(value: typing.Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LONGEST


def merged(
    content: typing.Mapping[str, typing.Any], measures: typing.Iterable[Measure], models: typing.Mapping[str, Model]
) -> dict[str, typing.Any]:
    """What the state file says of each model after these sleeps and wakes."""
    after = dict(content)
    for measure in measures:
        model = models[measure.model]
        costs = known(after, model)
        costs[measure.level] = costs.get(measure.level, Cost()).after(measure)
        levels = {
            str(level): {
                "sleep": [*cost.sleep],
                "wake": [list(pair) for pair in zip(cost.wake, cost.warm)],
                "failed": cost.failed,
            }
            for level, cost in costs.items()
        }
        after[model.id] = {"served": served(model), "levels": levels}
    return after


def told(costs: typing.Mapping[int, Cost]) -> list[dict[str, typing.Any]]:
    """What the levels have taken, as plain data; those that nothing is known of are left out."""
    return [
        {
            "level": level,
            "sleep_seconds": _rounded(median(cost.sleep)),
            "sleeps": len(cost.sleep),
            "wake_seconds": _rounded(median(cost.wake)),
            "wakes": len(cost.wake),
            "warm": _rounded(median([share for share in cost.warm if share is not None])),
        }
        for level, cost in sorted(costs.items())
        if cost.sleep or cost.wake
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def served(model: Model) -> str:
    """What tells whether a model's server is started as it was. It is too short to tell anything of a secret."""
    plain = {key: getattr(model, key) for key in _SERVED}
    text = json.dumps(plain, sort_keys=True, default=dataclasses.asdict)
    return f"{zlib.crc32(text.encode()):08x}"
