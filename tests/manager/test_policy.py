# SPDX-License-Identifier: MIT
"""The policies: what they decide in a situation, what holds in all of them, what they make of traces of requests."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_manager.policy import BATCHED, FIFO, POLICIES, Active, Decision, Settings, Situation, Waiting, decide

from tools import simulate
from tools.simulate import Costs, Outcome, Replay, Request


def waiting(model: str, depth: int = 1, wait: float = 0.0, conflicts: str = "abcdef") -> Waiting:
    """A model that takes 4 s to wake and 1 s to sleep."""
    return Waiting(model, depth, wait, 4.0, 1.0, frozenset(conflicts) - {model})


def active(model: str, since: float = 1000.0, in_flight: int | None = 0, idle: float = 0.0) -> Active:
    return Active(model, since, in_flight, idle, 1.0)


def situation(*found: Active | Waiting, **given: float) -> Situation:
    return Situation(
        tuple(one for one in found if isinstance(one, Active)),
        tuple(one for one in found if isinstance(one, Waiting)),
        Settings(**given),
    )


def chosen(policy: str, *found: Active | Waiting, **given: float) -> tuple[str | None, float | None]:
    decision = decide(policy, situation(*found, **given))
    return decision.model, None if decision.again_seconds is None else round(decision.again_seconds, 3)


# ---- one situation -------------------------------------------------------------------------------


def test_a_model_rests_after_its_last_answer_but_keeps_nobody_waiting_for_too_long() -> None:
    rest = {"rest_seconds": 0.5, "max_wait_seconds": 60.0}
    for policy, more in ((FIFO, {}), (BATCHED, {"linger_seconds": 0.0})):
        found = chosen(policy, active("a", idle=0.2), waiting("b"), **rest, **more)
        assert found == (None, 0.3)
        assert chosen(policy, active("a", idle=0.6), waiting("b"), **rest, **more)[0] == "b"
        # Nor does one rest that is not asked to leave.
        assert chosen(policy, active("c", idle=0.2), waiting("b", conflicts="a"), **rest, **more)[0] == "b"
    assert chosen(FIFO, active("a", idle=0.2), waiting("b", wait=60), **rest)[0] == "b"
    assert chosen(FIFO, active("a", in_flight=1), waiting("b"), **rest)[0] == "b", "its requests are waited for anyway"
    # Where the bound can't be kept otherwise, nothing rests.
    assert chosen(BATCHED, active("a", idle=0.2), waiting("b", wait=58), **rest)[0] == "b"


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_request_that_waits_nothing_is_switched(policy: str) -> None:
    assert chosen(policy) == (None, None)
    assert chosen(policy, active("a"), waiting("b", depth=0)) == (None, None)
    # Those are answered.
    assert chosen(policy, active("a"), waiting("a", wait=99)) == (None, None)


@pytest.mark.parametrize("policy", POLICIES)
def test_free_gpus_are_given_at_once(policy: str) -> None:
    assert chosen(policy, waiting("b")) == ("b", None)
    # c has a GPU of its own, whatever the others do.
    found: list[Active | Waiting] = [
        active("a", in_flight=1),
        waiting("b", wait=3, conflicts="a"),
        waiting("c", conflicts=""),
    ]
    assert chosen(policy, *found) == ("b" if policy == FIFO else "c", None)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^policy must be fifo or batched, is 'lifo'$"):
        decide("lifo", situation())


def test_fifo_switches_at_once_to_who_has_waited_longest() -> None:
    assert chosen(FIFO, active("a", in_flight=9), waiting("b", 50, 1), waiting("c", 1, 2)) == ("c", None)


def test_fifo_keeps_a_model_active_for_min_active_seconds() -> None:
    assert chosen(FIFO, active("a", since=4), waiting("b"), min_active_seconds=10) == (None, 6)
    assert chosen(FIFO, active("a", since=10), waiting("b"), min_active_seconds=10) == ("b", None)


def test_fifo_lets_nobody_be_overtaken_on_its_own_gpus() -> None:
    # c needs the GPUs of a and b, d that of b alone, e another one.
    awake = [active("a", since=4), active("b"), active("x")]
    held, later = waiting("c", 1, 9, "abd"), waiting("d", 1, 5, "bc")
    assert chosen(FIFO, *awake, held, later, min_active_seconds=10) == (None, 6)
    assert chosen(FIFO, *awake, held, later, waiting("e", 1, 1, "x"), min_active_seconds=10) == ("e", None)
    assert chosen(FIFO, *awake, later, min_active_seconds=10) == ("d", None)


def test_batched_lets_requests_gather_until_one_would_wait_for_too_long() -> None:
    # A switch takes 5 s, so that it may begin after 55.
    busy = active("a", in_flight=1)
    assert chosen(BATCHED, busy, waiting("b", 9, 10)) == (None, 45)
    assert chosen(BATCHED, busy, waiting("b", 9, 55)) == ("b", None)
    assert chosen(BATCHED, busy, waiting("b", 9, 10), drain_seconds=20) == (None, 25)
    assert chosen(BATCHED, busy, waiting("b", 9, 10), max_wait_seconds=15) == ("b", None)
    # b first, and c has to be there in time as well: 10 s, and what b is to stay active.
    assert chosen(BATCHED, busy, waiting("b", 9, 10), waiting("c", 9, 10)) == (None, 40)
    assert chosen(BATCHED, busy, waiting("b", 9, 10), waiting("c", 9, 10), min_active_seconds=7) == (None, 33)


def test_batched_switches_when_the_active_model_was_idle_for_as_long_as_a_switch_takes() -> None:
    assert chosen(BATCHED, active("a", idle=2), waiting("b", wait=1)) == (None, 3)
    assert chosen(BATCHED, active("a", idle=5), waiting("b", wait=1)) == ("b", None)
    assert chosen(BATCHED, active("a", idle=2), waiting("b", wait=1), linger_seconds=2) == ("b", None)
    assert chosen(BATCHED, active("a", idle=5, since=5), waiting("b", wait=1), min_active_seconds=6) == (None, 1)


def test_batched_need_not_look_again_while_the_active_model_has_to_stay() -> None:
    # A switch could begin after 30 s, and has to after 30.5.
    busy, one = active("a", since=0, in_flight=1), waiting("b", wait=54)
    assert chosen(BATCHED, busy, one, min_active_seconds=30, max_wait_seconds=89.5) == (None, 30.5)
    assert chosen(BATCHED, busy, one, min_active_seconds=30, max_wait_seconds=88) == (None, 30)


def test_batched_takes_unknown_for_busy() -> None:
    assert chosen(BATCHED, active("a", in_flight=None, idle=50), waiting("b", wait=1)) == (None, 54)


def test_batched_prefers_who_is_waited_for_by_most_as_long_as_nobody_else_waits_too_long() -> None:
    idle = active("a", idle=9)
    assert chosen(BATCHED, idle, waiting("b", 1, 20), waiting("c", 9, 1)) == ("c", None)
    # c first, then b: 10 s.
    assert chosen(BATCHED, idle, waiting("b", 1, 50), waiting("c", 9, 1)) == ("c", None)
    assert chosen(BATCHED, idle, waiting("b", 1, 51), waiting("c", 9, 1)) == ("b", None)


# ---- all situations ------------------------------------------------------------------------------

seconds = st.floats(0, 200)
names = st.sampled_from("abcdef")


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Models that share GPUs in any way, of which those are active that don't conflict."""
    gpus = {name: draw(st.sets(st.integers(0, 2), min_size=1)) for name in "abcdef"}
    conflicts = {
        name: frozenset(other for other in gpus if other != name and gpus[other] & gpus[name]) for name in gpus
    }
    awake: list[Active] = []
    for name in draw(st.lists(names, unique=True)):
        if not any(one.model in conflicts[name] for one in awake):
            in_flight = draw(st.one_of(st.none(), st.integers(0, 3)))
            awake.append(Active(name, draw(seconds), in_flight, draw(seconds), draw(seconds)))
    queue = [
        Waiting(name, draw(st.integers(0, 5)), draw(seconds), draw(seconds), draw(seconds), conflicts[name])
        for name in draw(st.lists(names, unique=True))
    ]
    least = draw(st.sampled_from([0.0, 5.0, 50.0]))
    linger = draw(st.one_of(st.none(), st.floats(0, 50)))
    bound = draw(st.floats(0, 1000))
    return Situation(tuple(awake), tuple(queue), Settings(bound, linger, least, draw(st.floats(0, 30))))


def later(before: Situation, after: float) -> Situation:
    """The situation some time later, if nothing happens."""
    return dataclasses.replace(
        before,
        active=tuple(
            dataclasses.replace(
                one,
                active_seconds=one.active_seconds + after,
                idle_seconds=one.idle_seconds + after if one.in_flight == 0 else one.idle_seconds,
            )
            for one in before.active
        ),
        waiting=tuple(
            dataclasses.replace(one, oldest_wait_seconds=one.oldest_wait_seconds + after) for one in before.waiting
        ),
    )


def displaced(seen: Situation, decision: Decision) -> list[Active]:
    target = next(one for one in seen.waiting if one.model == decision.model)
    return [one for one in seen.active if one.model in target.conflicts]


policies = st.sampled_from(POLICIES)


@given(policies, situations())
def test_only_who_is_waited_for_is_switched_to_and_only_who_was_active_for_long_enough_makes_room(
    policy: str, seen: Situation
) -> None:
    decision = decide(policy, seen)
    wanted = {one.model for one in seen.waiting if one.depth} - {one.model for one in seen.active}
    if not wanted:
        assert (decision.model, decision.again_seconds) == (None, None)
    elif decision.model is None:
        assert decision.again_seconds is not None and decision.again_seconds > 0
    else:
        assert decision.model in wanted
        for one in displaced(seen, decision):
            assert one.active_seconds >= seen.settings.min_active_seconds - 1e-5


@given(policies, situations())
def test_who_is_waited_for_gets_its_turn_though_nothing_else_happens(policy: str, seen: Situation) -> None:
    decision, passed = decide(policy, seen), 0.0
    for _attempt in range(20):
        if decision.again_seconds is None:
            break
        passed += decision.again_seconds
        seen = later(seen, decision.again_seconds)
        decision = decide(policy, seen)
    assert decision.again_seconds is None
    assert passed <= max(seen.settings.max_wait_seconds, seen.settings.min_active_seconds) + 1e-3


@given(policies, situations(), st.randoms(use_true_random=False))
def test_the_order_in_which_models_are_told_does_not_matter(
    policy: str, seen: Situation, chance: random.Random
) -> None:
    mixed = dataclasses.replace(
        seen,
        active=tuple(chance.sample(seen.active, len(seen.active))),
        waiting=tuple(chance.sample(seen.waiting, len(seen.waiting))),
    )
    assert decide(policy, mixed) == decide(policy, seen)


@given(situations())
def test_fifo_lets_only_those_overtake_who_share_no_gpu_with_who_waits_longer(seen: Situation) -> None:
    decision = decide(FIFO, seen)
    for one in seen.queue:
        if decision.model is None or one.model == decision.model:
            break
        assert decision.model not in one.conflicts


@given(situations())
def test_batched_takes_no_gpu_from_requests_while_others_may_wait(seen: Situation) -> None:
    patient = dataclasses.replace(seen, settings=dataclasses.replace(seen.settings, max_wait_seconds=1e6))
    decision = decide(BATCHED, patient)
    if decision.model is not None:
        assert all(one.in_flight == 0 for one in displaced(patient, decision))


# ---- traces --------------------------------------------------------------------------------------


def replayed(policy: str, trace: list[Request], limits: Settings, costs: Costs) -> Outcome:
    outcome = Replay(policy, trace, limits, costs).run()
    assert len(outcome.waits) == len(trace)
    # Nobody is switched to twice in a row.
    assert all(one[1] != other[1] for one, other in itertools.pairwise(outcome.switches))
    assert {model for _at, model in outcome.switches} == {request.model for request in trace}
    return outcome


@st.composite
def traces(draw: st.DrawFn) -> list[Request]:
    """Requests for up to five models, with pauses of any length between them."""
    models = "abcde"[: draw(st.integers(1, 5))]
    gap = st.one_of(st.just(0.0), st.floats(0, 5), st.floats(0, 100))
    requests = draw(st.lists(st.tuples(gap, st.sampled_from(models), st.floats(0, simulate.LONGEST)), max_size=60))
    at = itertools.accumulate(gap for gap, _model, _seconds in requests)
    return [Request(when, model, took) for when, (_gap, model, took) in zip(at, requests, strict=True)]


@settings(max_examples=300)
@given(traces(), st.floats(0, 10), st.floats(0, 20), st.sampled_from([0.0, 3.0, 30.0]), st.floats(0, 60), st.data())
def test_no_request_waits_longer_than_the_bound_of_batched(
    trace: list[Request], leave: float, arrive: float, least: float, spare: float, data: st.DataObject
) -> None:
    linger = data.draw(st.one_of(st.none(), st.floats(0, 100)))
    models = len({request.model for request in trace})
    bound = models * (leave + arrive + least + simulate.LONGEST) + spare
    outcome = replayed(BATCHED, trace, Settings(bound, linger, least, simulate.LONGEST), Costs(leave, arrive))
    assert outcome.longest <= bound + 1e-3


@given(traces(), st.sampled_from([0.0, 3.0, 30.0]))
def test_fifo_answers_all_requests_too(trace: list[Request], least: float) -> None:
    replayed(FIFO, trace, Settings(min_active_seconds=least), Costs())


def test_a_replay_tells_what_happens() -> None:
    # a wakes (0 to 4) and works until 10; b comes at 6, waits for that and for the switch until 15, works until 16; the
    # second request of a comes during that and waits until 21.
    trace = [Request(0, "a", 6), Request(6, "b", 1), Request(12, "a", 1)]
    found = replayed(FIFO, trace, Settings(), Costs(leave=1, arrive=4))
    assert (found.switches, found.waits) == ([(0, "a"), (6, "b"), (15, "a")], [4, 9, 9])
    # b may wait for 20 s: its switch takes 5 s and up to 6 s for the requests of a, so that it begins at 15. a is asked
    # again before, and works until 13.
    limits = Settings(20, None, 0, 6)
    found = replayed(BATCHED, trace, limits, Costs(leave=1, arrive=4))
    assert (found.switches, found.waits) == ([(0, "a"), (15, "b")], [4, 0, 14])
    assert (found.mean, found.longest, found.quantile(0.5), found.quantile(1)) == (6, 14, 4, 14)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_batched_needs_a_third_of_the_switches_of_fifo_for_interleaved_requests(
    seed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate.main(["--seed", seed, "--hours", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(
        f"{trace} {policy}" in " ".join(printed.split()) for trace in ("interleaved", "steady") for policy in POLICIES
    )


def test_the_simulation_fails_where_too_many_switches_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    # Whoever does not linger switches as fifo does.
    assert simulate.main(["--hours", "1", "--linger", "0", "--max-wait", "40"]) == 1
    assert "wrong: interleaved: batched needs " in capsys.readouterr().err


def test_a_bound_that_no_policy_can_keep_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulate.main(["--max-wait", "38"])
    assert "--max-wait must be at least 39 for these switches" in capsys.readouterr().err
