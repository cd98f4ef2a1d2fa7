# SPDX-License-Identifier: MIT
"""The trend of what a server holds after its sleeps: pure functions, and properties that hold for any figures."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import inventory, odometer, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.memory import Need
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.odometer import (
    KEPT,
    LEAST_POINTS,
    Series,
    cycles_left,
    growth,
    over,
    reckon,
    strays,
)

SEEDS = range(50)


def points(*gigabytes: float) -> list[dict[Any, float]]:
    return [{0: gb} for gb in gigabytes]


def test_a_trend_takes_four_cycles() -> None:
    assert growth(points(1, 2, 3)) == {}
    assert growth(points(1, 2, 3, 4)) == {0: 1.0}
    assert LEAST_POINTS == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_what_grows_evenly_grows_so_from_any_beginning_and_with_one_figure_out_of_line(seed: int) -> None:
    rand = random.Random(seed)
    slope, start, count = rand.uniform(-1, 2), rand.uniform(0, 50), rand.randint(8, KEPT)
    held = [start + slope * i for i in range(count)]
    assert growth(points(*held)) == {0: pytest.approx(slope)}
    held[rand.randrange(count)] += rand.uniform(-30, 30)
    assert growth(points(*held)) == {0: pytest.approx(slope)}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_trend_is_between_the_least_and_the_greatest_step(seed: int) -> None:
    rand = random.Random(seed)
    held = [rand.uniform(0, 20) for _number in range(rand.randint(LEAST_POINTS, KEPT))]
    grown = [b - a for a, b in itertools.pairwise(held)]
    assert min(grown) - 1e-9 <= growth(points(*held))[0] <= max(grown) + 1e-9
    # It does not depend on where it begins, and turns round with time.
    assert growth(points(*[gb + 7 for gb in held]))[0] == pytest.approx(growth(points(*held))[0])
    assert growth(points(*held[::-1]))[0] == pytest.approx(-growth(points(*held))[0])


def test_each_gpu_has_its_trend_of_its_own() -> None:
    held: list[Need] = [{0: 1.0, "GPU-1": 2.0 + i} for i in range(4)]
    assert growth(held) == {0: 0.0, "GPU-1": 1.0}
    assert growth([{0: 1.0}, {0: 1.0}, *held[:2]]) == {0: 0.0}


@pytest.mark.parametrize(
    ("room", "slope", "left"),
    [(5, 0.5, 10), (5.1, 0.5, 10), (0.4, 0.5, 0), (-3, 0.5, 0), (0.3, 0.1, 3), (5, 0.0, None), (5, 0.01, None)],
)
def test_cycles_left(room: float, slope: float, left: int | None) -> None:
    assert cycles_left(room, slope) == left


@pytest.mark.parametrize("seed", SEEDS)
def test_so_many_cycles_fit_and_one_more_does_not(seed: int) -> None:
    rand = random.Random(seed)
    room, slope = rand.uniform(0, 80), rand.uniform(0.02, 5)
    left = cycles_left(room, slope)
    assert left is not None
    assert left * slope <= room + 1e-6
    assert (left + 1) * slope > room - 1e-6


def test_a_series_keeps_its_first_and_its_last_sleeps() -> None:
    series = Series("start")
    for i in range(KEPT + 10):
        series = series.with_sleep({0: float(i)}, {0: 50.0 - i}, None)
    assert (series.first, series.last, len(series.held)) == ({0: 0.0}, {0: KEPT + 9.0}, KEPT)
    assert series.sleeps == KEPT + 10
    assert series.after == {0: 50.0 - KEPT - 9}


def test_what_is_missing_after_a_sleep_is_its_own() -> None:
    series = Series(held=({0: 1.0},), woken={0: 40.0})
    assert reckon(series, {0: 39.5}) == {0: 1.5}
    assert reckon(series, {0: 45.0}) == {0: 0.0}  # others have given back more than it can have held
    assert reckon(series, {}) is None
    assert reckon(series._replace(woken={}), {0: 39.5}) is None
    assert reckon(series._replace(held=()), {0: 39.5}) is None


def test_what_strays_is_far_from_what_was_seen() -> None:
    series = Series(first={0: 5.0}, fixed={0: 1.0})
    assert not strays(series, {0: 1.2})
    assert strays(series, {0: 1.3})
    assert strays(series, {0: 0.7})
    assert not strays(series._replace(fixed=None), {0: 5.1})


def test_only_what_its_processes_hold_is_over_a_limit() -> None:
    series = Series(first={0: 1.0, 1: 1.0}, held=({0: 1.0, 1: 1.0}, {0: 1.5, 1: 3.5}), fixed={0: 1.5, 1: 3.5})
    assert over(series, 2.0) == ("holds 3.5 GB while asleep, 2.5 GB more than after its first sleep (leak_limit_gb 2)")
    assert over(series, 2.5) == ""  # up to the limit is not over it
    assert over(series, 0) == ""
    assert over(series._replace(fixed=None), 2.0) == ""
    assert over(series._replace(held=series.held[1:]), 2.0) == ""


def test_a_start_that_is_unknown_may_be_any() -> None:
    assert Series("1").is_of("1")
    assert Series("1").is_of("")
    assert Series("").is_of("1")
    assert not Series("1").is_of("2")


def host(*, limit: float = 0, gpus: dict[str, list[int]] | None = None) -> inventory.Inventory:
    on = gpus or {"a": [0], "b": [0]}
    models = [{"id": name, "model": name, "host_port": 8000 + i, "gpus": on[name]} for i, name in enumerate(on)]
    return inventory.parse(models, {"leak_limit_gb": limit})


def leaking(gb: float, free: float = 30.0, sleeps: int = 5) -> Series:
    held: tuple[Need, ...] = tuple({0: 1.0 + gb * i} for i in range(sleeps))
    return Series(first=held[0], held=held, fixed=held[-1], after={0: free}, sleeps=sleeps)


def left(inventory_: inventory.Inventory, series: dict[str, Series], needs: dict[str, Any]) -> dict[str, Any]:
    return {name: told["switches_left"] for name, told in odometer.report(inventory_, series, needs).items()}


def test_the_room_is_what_the_greatest_wake_leaves() -> None:
    series = {"a": leaking(0.5), "b": leaking(0.0)}
    assert left(host(), series, {"a": {0: 20.0}, "b": {0: 25.0}}) == {"a": 10, "b": None}
    assert left(host(), series, {"a": {0: 20.0}}) == {"a": 20, "b": None}
    assert left(host(), series, {}) == {"a": None, "b": None}
    # The last look at the GPU counts, whoever slept.
    series["b"] = leaking(0.0, free=28.0)
    assert left(host(), series, {"b": {0: 25.0}})["a"] == 6


def test_all_that_leak_fill_a_gpu() -> None:
    series = {"a": leaking(0.5), "b": leaking(0.5)}
    assert left(host(), series, {"b": {0: 25.0}}) == {"a": 5, "b": 5}
    apart = host(gpus={"a": [0], "b": [1]})
    assert left(apart, {"a": leaking(0.5)}, {"a": {0: 25.0}, "b": {1: 60.0}}) == {"a": 10}


def test_a_limit_may_come_first() -> None:
    assert left(host(limit=3.0), {"a": leaking(0.5)}, {"a": {0: 20.0}}) == {"a": 2}
    assert left(host(limit=30.0), {"a": leaking(0.5)}, {"a": {0: 20.0}}) == {"a": 20}


def test_what_is_told_of_a_series() -> None:
    told = odometer.report(host(), {"a": leaking(0.5), "b": leaking(0.5, sleeps=3)}, {})
    assert told == {"a": {"sleeps": 5, "held_gb": 3.0, "gb_per_sleep": 0.5, "switches_left": None}}
    unseen = odometer.report(host(), {"a": leaking(0.5)._replace(fixed=None)}, {})
    assert unseen["a"]["held_gb"] is None


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    series = leaking(0.5)._replace(start="12 34", freed={"1": {0: 19.0}}, woken={0: 31.0, "GPU-1": 3.0})
    odometer.record(str(tmp_path), {"a": series, "b": Series()})
    assert odometer.read(str(tmp_path)) == {"a": series, "b": Series()}
    assert odometer.levels(str(tmp_path), "a", "12 34") == {"1"}
    assert odometer.levels(str(tmp_path), "a", "56") == ()
    assert odometer.levels(str(tmp_path), "c", "") == set()
    odometer.record(str(tmp_path), {"a": None})
    assert odometer.read(str(tmp_path)) == {"b": Series()}


@pytest.mark.parametrize(
    "changed",
    [
        {"held": "much"},
        {"held": {"0": 1}},
        {"held": [{"0": 1e308}]},
        {"held": [{"0": float("nan")}]},
        {"after": {"0": -1e308}},
        {"after": []},
        {"first": {"none": 1}},
        {"freed": {"1": 3}},
        {"sleeps": float("inf")},
        {"sleeps": None},
    ],
)
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, changed: dict[str, Any]) -> None:
    odometer.record(str(tmp_path), {"a": leaking(0.5), "b": Series()})
    saved = state_files.models(str(tmp_path), state_files.ODOMETER)
    saved["a"].update(changed)
    state_files.write(str(tmp_path), state_files.ODOMETER, {"models": saved})
    assert odometer.read(str(tmp_path)) == {"b": Series()}
    assert odometer.reports(host(), str(tmp_path)) == {}


def test_no_more_sleeps_are_read_than_are_kept(tmp_path: Path) -> None:
    odometer.record(str(tmp_path), {"a": leaking(0.5)._replace(held=tuple(points(*range(1000))))})
    assert odometer.read(str(tmp_path))["a"].held == tuple(points(*range(1000 - KEPT, 1000)))


def test_nothing_is_written_where_nothing_is_known(tmp_path: Path) -> None:
    odometer.record(str(tmp_path), {"a": None})
    assert not list(tmp_path.iterdir())
