# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What each sleep of a model frees and what its server holds after it, sleep by sleep, and how long that goes on.

Sizes are in GB, of 1e9 bytes, by the names of GPUs in the model's C(gpus). There are vLLM servers whose sleep frees
nothing (issue 47654), and such that hold more after each sleep (issue 21336). A restart begins a new series.
"""

from __future__ import annotations

import contextlib
import math
import typing

from . import hardware, state_files
from .costs import median
from .inventory import Inventory, Model
from .memory import TOLERANCE_GB, Need, gpu_name, remembered

# How many sleeps of a start are kept, and how many it takes to tell a trend.
KEPT = 32
LEAST_POINTS = 4
# What is measured of less says nothing: allocators give memory back in blocks of 2 MiB, and contexts differ a bit.
NOISE_GB = 0.02
# No GPU has as much: it is garbage.
_MOST_GB = 1e6


class Series(typing.NamedTuple):
    """What is known of one start of a model's server.

    C(freed): what a sleep has freed, by its level. C(held): what the server held after each of its last sleeps,
    C(first) after the first one. C(fixed) is what its processes were last seen to hold; the figures since then are
    reckoned from the free memory. None where nobody tells what processes hold, so that C(held) is right but for what
    others hold there. C(woken): what was free before its last wake, C(after) after its last sleep; empty if unknown.
    """

    start: str = ""
    freed: typing.Mapping[str, Need] = {}
    first: Need = {}  # noqa: RUF012 - never changed
    held: tuple[Need, ...] = ()
    fixed: Need | None = None
    woken: Need = {}  # noqa: RUF012
    after: Need = {}  # noqa: RUF012
    sleeps: int = 0

    def is_of(self, start: str) -> bool:
        """Whether it can be this start; one that is unknown can."""
        return not start or not self.start or start == self.start

    @property
    def last(self) -> Need:
        """What the server held after its last sleep."""
        return self.held[-1] if self.held else {}

    def with_sleep(self, held: Need, after: Need, fixed: Need | None) -> Series:
        """The series with one sleep more."""
        return self._replace(
            first=self.first or held,
            held=(*self.held, held)[-KEPT:],
            fixed=fixed,
            after=after,
            sleeps=self.sleeps + 1,
        )


def read(stack_dir: str) -> dict[str, Series]:
    """The series of each model; none of those whose record makes no sense."""
    found = {}
    for model, saved in state_files.models(stack_dir, state_files.ODOMETER).items():
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, OverflowError):
            found[model] = Series(
                str(saved["start"]),
                {str(level): _need(freed) for level, freed in saved["freed"].items()},
                _need(saved["first"]),
                tuple(map(_need, saved["held"][-KEPT:])),
                None if saved["fixed"] is None else _need(saved["fixed"]),
                _need(saved["woken"]),
                _need(saved["after"]),
                int(saved["sleeps"]),
            )
    return found


def _need(saved: typing.Mapping[str, typing.Any]) -> Need:
    need = {gpu_name(name): hardware.finite(gb) for name, gb in saved.items()}
    if any(abs(gb) > _MOST_GB for gb in need.values()):
        raise ValueError(saved)
    return need


def record(stack_dir: str, changed: typing.Mapping[str, Series | None]) -> None:
    """Record these series, with None that there is none. The caller holds the host's lock.

    It only makes later looks sharper: where it can't be read or written nothing is said.
    """
    with state_files.changing, contextlib.suppress(OSError):
        state_files.read_or_raise(stack_dir, state_files.ODOMETER)  # what can't be read is not replaced
        saved = read(stack_dir)
        now = {**saved, **changed}
        content = {model: _rounded(series) for model, series in now.items() if series is not None}
        if now != saved and (content or saved):
            state_files.write(stack_dir, state_files.ODOMETER, {"models": content})


def _rounded(value: typing.Any) -> typing.Any:
    if isinstance(value, Series):
        return {key: _rounded(part) for key, part in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_rounded(part) for part in value]
    return round(value, 3) if isinstance(value, float) else value


def levels(stack_dir: str, model_id: str, start: str) -> typing.Collection[str]:
    """The levels at which it is known what a sleep of this start frees."""
    series = read(stack_dir).get(model_id, Series())
    return series.freed.keys() if series.is_of(start) else ()


def note_wake(stack_dir: str, model: Model, gpus: typing.Mapping[int, hardware.Gpu] | None) -> None:
    """Note what is free before a wake of a model: what its next sleep gives back is compared with that."""
    series = read(stack_dir).get(model.id)
    if series is not None:
        free = {name: gpu.free_gb for name, gpu in hardware.named(gpus or {}, model.gpus).items()}
        record(stack_dir, {model.id: series._replace(woken=free)})


def reckon(series: Series, free: Need) -> Need | None:
    """What a server holds after a sleep that has left so much free; None where it can't be said.

    Between its wake and its sleep nobody else of the stack moves on its GPUs, so that what is missing is its own.
    """
    if not series.held or not free or any(name not in series.woken or name not in series.last for name in free):
        return None
    return {name: max(0.0, series.last[name] + series.woken[name] - gb) for name, gb in free.items()}


def strays(series: Series, held: Need) -> bool:
    """Whether what was reckoned is so far from what was last seen that it has to be looked at."""
    seen = series.fixed if series.fixed is not None else series.first
    return any(abs(gb - seen.get(name, 0.0)) > TOLERANCE_GB for name, gb in held.items())


def over(series: Series, limit_gb: float) -> str:
    """By how much a server holds more than after its first sleep, where that is over the limit; "" where it is not.

    Never by what others may hold.
    """
    if not limit_gb or series.fixed is None or len(series.held) < 2:
        return ""
    grown = {name: gb - series.first.get(name, gb) for name, gb in series.last.items()}
    name = max(grown, key=lambda one: grown[one], default=None)
    if name is None or grown[name] <= limit_gb:
        return ""
    return (
        f"holds {series.last[name]:.1f} GB while asleep, {grown[name]:.1f} GB more than after its first sleep "
        f"(leak_limit_gb {limit_gb:g})"
    )


def growth(held: typing.Sequence[Need]) -> Need:
    """By how many GB a cycle what is held grows on each GPU; nothing where there are too few cycles to tell.

    The median of the slopes between any two of them (Theil and Sen): a few that are out of line don't matter.
    """
    if len(held) < LEAST_POINTS:
        return {}
    found = {}
    for name in held[-1]:
        points = [(i, each[name]) for i, each in enumerate(held) if name in each]
        if len(points) >= LEAST_POINTS:
            slopes = [(b - a) / (j - i) for n, (i, a) in enumerate(points) for j, b in points[n + 1 :]]
            found[name] = median(slopes) or 0.0
    return found


def cycles_left(room_gb: float, gb_per_cycle: float) -> int | None:
    """For how many cycles the room is enough; None where nothing grows."""
    if gb_per_cycle < NOISE_GB:
        return None
    return max(0, math.floor(room_gb / gb_per_cycle + 1e-9))


Reports = typing.Dict[str, typing.Dict[str, typing.Any]]


def report(inventory: Inventory, all_series: typing.Mapping[str, Series], needs: typing.Mapping[str, Need]) -> Reports:
    """What is to be told of each model of which a trend is known. C(needs) is what each needs to wake."""
    return {
        model.id: _told(inventory, model, all_series, needs)
        for model in inventory.enabled
        if growth(all_series.get(model.id, Series()).held)
    }


def _told(
    inventory: Inventory,
    model: Model,
    all_series: typing.Mapping[str, Series],
    needs: typing.Mapping[str, Need],
) -> dict[str, typing.Any]:
    series, limit = all_series[model.id], inventory.switching.leak_limit_gb
    grows = growth(series.held)
    left = []
    for name, gb in grows.items():
        there = [one.id for one in inventory.enabled if name in one.gpus]
        free = [all_series[one].after[name] for one in there if one in all_series and name in all_series[one].after]
        need = [needs[one][name] for one in there if name in needs.get(one, {})]
        # All of them fill the GPU, each once in a round.
        together = sum(max(0.0, growth(all_series[one].held).get(name, 0.0)) for one in there if one in all_series)
        if free and need and gb >= NOISE_GB:
            left.append(cycles_left(min(free) + TOLERANCE_GB - max(need), together))
        if limit:
            left.append(cycles_left(limit - (series.last[name] - series.first.get(name, 0.0)), gb))
    known = [number for number in left if number is not None]
    return {
        "sleeps": series.sleeps,
        "held_gb": None if series.fixed is None else round(max(series.last.values()), 2),
        "gb_per_sleep": round(max(grows.values()), 3),
        "switches_left": min(known) if known else None,
    }


def reports(inventory: Inventory, stack_dir: str) -> Reports:
    """What the host's records tell of each model of which a trend is known."""
    return report(inventory, read(stack_dir), remembered(stack_dir))
