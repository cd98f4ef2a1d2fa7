# SPDX-License-Identifier: MIT
"""How long a switch will take: from the same pair, the same model, the engine's figures, or the weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import costs, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.costs import Cost
from hypothesis import given
from hypothesis import strategies as st
from model_manager.eta import KEPT, Timings, estimate

from tests.unit.plugins.module_utils.switching.conftest import Host

Step = dict[str, Any]


def step(action: str, model: str, seconds: float, level: int | None = None, **more: Any) -> Step:
    return {"action": action, "model": model, "level": level, "seconds": seconds, **more}


def switch(
    source: str, target: str, drain: float = 1, sleep: float = 2, wake: float = 4, verify: float = 8
) -> list[Step]:
    """The steps of a switch at level 1."""
    return [
        step("drain", source, drain),
        step("sleep", source, sleep, 1),
        step("wake", target, wake, 1),
        step("verify", target, verify),
    ]


def test_a_switch_takes_as_long_as_its_parts_took() -> None:
    seen = Timings([switch("a", "b")])
    assert estimate(["a"], "b", 1, {}, seen) == 15
    assert estimate(["a"], None, None, {}, seen) == 3
    assert estimate([], "b", 1, {}, seen) == 12


def test_the_median_counts_and_of_the_last_times_alone() -> None:
    seen = Timings([switch("a", "b", wake=wake) for wake in (1, 3, 100)])
    assert estimate([], "b", 1, {}, seen) == 3 + 8
    for wake in [1] * 20 + [50] * KEPT:
        seen.add(switch("a", "b", wake=wake))
    assert estimate([], "b", 1, {}, seen) == 50 + 8


def test_the_same_pair_counts_more_than_other_pairs() -> None:
    seen = Timings([switch("a", "b", wake=4), switch("c", "b", wake=40), switch("c", "b", wake=44)])
    assert estimate(["a"], "b", 1, {}, seen) == 3 + 4 + 8
    assert estimate(["c"], "b", 1, {}, seen) == 3 + 42 + 8
    # Never seen together: all that is known of b.
    assert estimate(["d"], "b", 1, {}, seen, leave_at={"d": 2}) == 1 + 40 + 8


def test_those_that_make_room_leave_side_by_side() -> None:
    seen = Timings([switch("a", "b"), switch("c", "b", sleep=20)])
    assert estimate(["a", "c"], "b", 1, {}, seen) == 21 + 12
    # One that is the target makes no room for itself.
    assert estimate(["b", "a"], "b", 1, {}, seen, weights_gb={"b": 1000}) == 15


def test_levels_stops_and_starts_are_times_of_their_own() -> None:
    stopped = [step("drain", "a", 1), step("stop", "a", 7), step("start", "b", 60), step("verify", "b", 2)]
    seen = Timings([switch("a", "b"), stopped])
    assert estimate([], "b", None, {}, seen) == 62
    assert estimate([], "b", 1, {}, seen) == 12
    # As it left the last time, unless it is said.
    assert seen.last_level("a") is None
    assert estimate(["a"], None, None, {}, seen) == 8
    assert estimate(["a"], None, None, {}, seen, leave_at={"a": 1}) == 3
    assert Timings().last_level("a") == 1


def test_all_that_makes_a_model_ready_counts() -> None:
    steps = [*switch("a", "b"), step("reload", "b", 16), step("first_answer", "b", 32)]
    assert estimate(["a"], "b", 1, {}, Timings([steps])) == 15 + 48
    # A load that ends asleep: what follows is no part of becoming ready.
    steps = [step("start", "b", 50), step("verify", "b", 1), step("drain", "b", 2), step("sleep", "b", 3, 1)]
    assert estimate([], "b", None, {}, Timings([steps])) == 51


def test_a_wake_from_an_unknown_level_is_like_one_from_level_2() -> None:
    seen = Timings([[step("wake", "b", 5, None), step("verify", "b", 1)]])
    assert estimate([], "b", 2, {}, seen) == 6


@pytest.mark.parametrize(
    "bad",
    [
        step("wake", "b", 99, 1, failed="no answer"),
        step("wake", "b", 99, 1, escalation="retry"),
        step("wake", "b", 99, 1) | {"seconds": None},
    ],
)
def test_what_failed_or_was_planned_or_recovered_is_no_measure(bad: Step) -> None:
    seen = Timings([switch("a", "b"), [bad, step("verify", "b", 99, escalation="retry")]])
    assert estimate([], "b", 1, {}, seen) == 12
    # A wake that went well, and a proof that did not.
    seen.add([step("wake", "b", 4, 1), step("verify", "b", 98), step("reload", "b", 1, failed="no memory")])
    assert estimate([], "b", 1, {}, seen) == 12


def test_before_the_first_switch_the_figures_of_the_engine_count() -> None:
    # Its wakes are measured until they are verified.
    known = {"a": {1: Cost(sleep=(1.0, 2.0, 9.0))}, "b": {1: Cost(wake=(3.0, 5.0)), 2: Cost(wake=(7.0,))}}
    assert estimate(["a"], "b", 1, known, Timings()) == 2 + 4
    assert estimate(["a"], "b", 2, known, Timings()) == 2 + 7
    # Seen in switches, they are not needed.
    assert estimate(["a"], "b", 1, known, Timings([switch("a", "b")])) == 15


def test_before_any_figures_weights_and_levels_count() -> None:
    def guess(level: int | None, size: float | None = 40.0, **more: Any) -> float:
        return estimate(["a"], "b", level, {}, Timings(), weights_gb={"a": 20.0, "b": size}, **more)

    # Resumed, woken from RAM, from disk, started: each takes longer than the one before, the more the larger it is.
    times = [guess(level) for level in (0, 1, 2, None)]
    assert times == sorted(set(times))
    assert guess(1) == 3 + 5
    assert guess(2) == 3 + 21
    assert guess(1, 80.0) > guess(1)
    assert guess(1, leave_at={"a": 2}) == 1 + 5
    assert guess(1, leave_at={"a": None}) == 5 + 5
    assert guess(1, None) == 3 + 3


# ---- all histories -------------------------------------------------------------------------------

models = st.sampled_from("abcd")
times = st.floats(0, 1000)


@st.composite
def switches(draw: st.DrawFn) -> list[Step]:
    """The steps of a switch of whatever kind, also one that failed."""
    source, target = draw(st.lists(models, min_size=2, max_size=2, unique=True))
    out = draw(st.sampled_from([("sleep", 1), ("sleep", 2), ("stop", None)]))
    into = draw(st.sampled_from([("wake", 0), ("wake", 1), ("wake", 2), ("wake", None), ("start", None)]))
    steps = [
        step("drain", source, draw(times)),
        step(out[0], source, draw(times), out[1]),
        step(into[0], target, draw(times), into[1]),
        step("verify", target, draw(times)),
    ]
    steps = steps[: draw(st.integers(0, 4))]
    for one in steps:
        one.update(draw(st.sampled_from([{}, {}, {}, {"failed": "no"}, {"escalation": "retry"}])))
    return steps


histories = st.lists(switches(), max_size=20)
levels = st.sampled_from([0, 1, 2, None])
sets = st.sets(models, max_size=3)


@given(histories, sets, models, levels)
def test_it_is_a_time_whatever_has_happened(
    past: list[list[Step]], source: set[str], target: str, level: int | None
) -> None:
    assert 0 <= estimate(source, target, level, {}, Timings(past)) < math.inf


@given(histories, sets, models)
def test_one_more_that_makes_room_never_makes_the_sleep_quicker(
    past: list[list[Step]], source: set[str], more: str
) -> None:
    seen = Timings(past)
    assert estimate({*source, more}, None, None, {}, seen) >= estimate(source, None, None, {}, seen)


@given(histories, st.lists(switches(), max_size=5), levels)
def test_switches_of_others_change_nothing(past: list[list[Step]], more: list[list[Step]], level: int | None) -> None:
    renamed = [[{**one, "model": "other-" + one["model"]} for one in steps] for steps in more]
    assert estimate(["a"], "b", level, {}, Timings([*past, *renamed])) == estimate(["a"], "b", level, {}, Timings(past))


@given(st.lists(st.tuples(times, times, times, times), min_size=1, max_size=12))
def test_it_lies_between_the_quickest_and_the_slowest_of_the_last_times(
    taken: list[tuple[float, float, float, float]],
) -> None:
    found = estimate(["a"], "b", 1, {}, Timings(switch("a", "b", *parts) for parts in taken))
    last = taken[-KEPT:]
    least, most = (sum(pick(column) for column in zip(*last, strict=True)) for pick in (min, max))
    assert least - 1e-6 <= found <= most + 1e-6


# ---- real steps ----------------------------------------------------------------------------------


def test_it_learns_from_what_the_engine_tells(host: Host) -> None:
    host.declare("a", standin={"sleep_seconds": 0.2})
    host.declare("b", standin={"wake_seconds": 0.4})
    host.up(a="active", b=1)
    result = host.switch("b").as_dict()
    seen = Timings([result["steps"]])
    assert 0.2 <= (seen.median("sleep", "a", 1) or 0) < result["elapsed_seconds"]
    total = sum(one["seconds"] for one in result["steps"])
    assert estimate(["a"], "b", 1, {}, seen) == pytest.approx(total, abs=0.001)
    # Its own record tells the same, but for the drain.
    content = state_files.models(str(host.stack_dir), state_files.COSTS)
    known = {model.id: costs.known(content, model) for model in host.inventory.models}
    drain = seen.median("drain", "a") or 0
    assert estimate(["a"], "b", 1, known, Timings()) == pytest.approx(total - drain, abs=0.01)
