# SPDX-License-Identifier: MIT
"""The rules by which the manager acts unasked, one by one; and what holds whatever the situation is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    ERROR,
    SLEEPING,
    STOPPED,
    Observation,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from model_manager.rules import Situation, decide, is_unknown, obstacles, serves

from tests.manager.situations import (
    ASLEEP,
    AWAKE,
    BEGUN,
    BUSY,
    COMING,
    DEAD,
    EVERYTHING,
    GONE,
    GPUS,
    HELD,
    HOST,
    HUNG,
    WRONG,
    breaker,
    inventory,
    named,
    situation,
)


def test_nothing_is_done_while_somebody_switches() -> None:
    lost: dict[str, Any] = {"observed": {"a": GONE}, "desired": {"a": ACTIVE}, "lost": {"a"}}
    assert named(decide(situation(**lost))) == [("a", ACTIVE)]
    assert decide(situation(**lost, locked=True)) == []
    assert decide(situation(**lost, tickets=True)) == []


@pytest.mark.parametrize(
    ("observed", "fields", "why"),
    [
        ({"a": HUNG}, {}, "unknown whether it runs"),
        ({"a": Observation(STOPPED)}, {}, ""),
        ({"a": WRONG}, {}, "it can't be used: something else answers"),
        ({"a": DEAD}, {}, ""),
        ({"b": HUNG}, {}, "b shares a GPU with it, and it is unknown"),
        ({"d": HUNG}, {}, ""),
        ({"b": WRONG}, {}, "b, which shares a GPU with it, is in error"),
        ({"b": DEAD}, {}, ""),
        ({"d": COMING}, {"state_since": {"d": 999.0}}, "d is loading"),
        ({"d": COMING}, {"state_since": {"d": 0.0}}, ""),  # it will never be ready
        ({"b": BEGUN}, {"state_since": {"b": 999.0}}, ""),  # begun by a switch that was cut off
        ({"b": AWAKE}, {}, "b is awake on its GPU"),
        ({"b": HELD}, {}, ""),
        ({"b": AWAKE}, {"half_way": "b"}, ""),
        ({}, {"breakers": {"a": breaker(retry_at=1007.0, reason="it died")}}, "it has failed (it died) and is tried"),
    ],
)
def test_what_keeps_an_active_model_from_coming_back(
    observed: dict[str, Observation], fields: dict[str, Any], why: str
) -> None:
    switching = inventory(max_retries=5, health_check_interval_seconds=2)
    seen = situation({"a": GONE, **observed}, {"a": ACTIVE}, lost={"a"}, inventory=switching, **fields)
    told = obstacles(seen)["a"]
    assert why in told and bool(why) == bool(told)
    assert named(decide(seen)) == ([] if why else [("a", ACTIVE)])


def test_without_docker_nobody_knows_whether_a_container_runs() -> None:
    models = [{"id": "a", "model": "org/a", "host_port": 8001}]
    seen = Situation(0.0, parse(models), {"a": Observation(STOPPED)}, {"a": ACTIVE}, lost={"a"})
    assert decide(seen) == []
    assert named(decide(dataclasses.replace(seen, observed={"a": GONE}))) == [("a", ACTIVE)]


@pytest.mark.parametrize(
    ("observed", "fields", "back"),
    [
        ({"a": AWAKE}, {"idle_seconds": {"a": 59.0}}, False),
        ({"a": AWAKE}, {"idle_seconds": {"a": 61.0}}, True),
        ({"a": AWAKE}, {"idle_seconds": {"a": None}}, False),
        ({"a": BUSY}, {"idle_seconds": {"a": 61.0}}, False),
        ({"a": AWAKE}, {"idle_seconds": {"a": 61.0}, "waiting": {"d"}}, False),
        ({"a": AWAKE}, {"idle_seconds": {"a": 61.0}, "manual": True}, False),
        ({"a": AWAKE}, {"idle_seconds": {"a": 61.0}, "kept_awake": {"a"}}, False),
        ({"a": AWAKE}, {"idle_seconds": {"a": 61.0}, "kept_awake": {"b"}}, False),
        ({"a": AWAKE}, {"idle_seconds": {"a": 61.0}, "reload_idle_seconds": 0.0}, False),
        ({"a": AWAKE}, {"idle_seconds": {"a": 61.0}, "breakers": {"b": breaker(opened=True)}}, False),
        ({"a": AWAKE}, {"idle_seconds": {"a": 61.0}, "state_since": {"a": 995.0}}, False),
        ({"a": AWAKE}, {"idle_seconds": {"a": 61.0}, "state_since": {"a": 989.0}}, True),
        ({"a": ASLEEP}, {"breakers": {"b": breaker(opened=True)}}, True),  # nobody has to make room
    ],
)
def test_a_sleeping_model_is_loaded_again_only_when_nobody_misses_the_active_one(
    observed: dict[str, Observation], fields: dict[str, Any], back: bool
) -> None:
    fields = {"state_since": {"a": 0.0}, **fields}
    desired = {"a": ACTIVE if observed["a"].state == ACTIVE else SLEEPING}
    switching = inventory(min_active_seconds=10)
    seen = situation({"b": GONE, **observed}, desired, lost={"b"}, inventory=switching, **fields)
    assert named(decide(seen)) == ([("b", SLEEPING)] if back else [])


def test_the_active_model_comes_back_before_those_that_sleep_but_not_after_a_boot() -> None:
    lost = {"a", "b"}
    seen = situation({"a": GONE, "b": GONE}, {"a": ACTIVE}, lost=lost)
    assert named(decide(seen)) == [("a", ACTIVE)]
    assert named(decide(dataclasses.replace(seen, first={"b"}))) == [("b", SLEEPING)]
    # While it rests between two tries nobody else takes its GPU; once it is given up for a while, they may.
    resting = breaker(retry_at=1001.0, reason="it died")
    assert decide(dataclasses.replace(seen, breakers={"a": resting})) == []
    opened = dataclasses.replace(resting, opened=True)
    assert named(decide(dataclasses.replace(seen, breakers={"a": opened}))) == [("b", SLEEPING)]


def test_of_two_that_are_awake_on_one_gpu_the_desired_one_stays() -> None:
    assert named(decide(situation({"a": AWAKE, "b": AWAKE}, {"b": ACTIVE}))) == [("b", ACTIVE)]
    assert decide(situation({"a": AWAKE, "d": AWAKE}, {"d": ACTIVE})) == []
    assert decide(situation({"a": AWAKE, "b": AWAKE}, {"b": ACTIVE}, kept_awake={"a", "b"})) == []


@pytest.mark.parametrize(
    ("seen", "idle", "fields", "done"),
    [
        (AWAKE, 9.0, {}, []),
        (AWAKE, 10.0, {}, [("a", SLEEPING)]),
        (AWAKE, 20.0, {}, [("a", STOPPED)]),
        (ASLEEP, 19.0, {}, []),
        (ASLEEP, 20.0, {}, [("a", STOPPED)]),
        (BUSY, 20.0, {}, []),
        (AWAKE, None, {}, []),
        (HUNG, 20.0, {}, []),
        (HELD, 20.0, {}, []),
        (GONE, 20.0, {}, []),
        (AWAKE, 20.0, {"waiting": {"a"}}, []),
        (AWAKE, 20.0, {"kept_awake": {"a"}}, []),
        (AWAKE, 20.0, {"manual": True}, []),
        (AWAKE, 20.0, {"state_since": {"a": 997.0}}, []),
        (AWAKE, 20.0, {"idle": {}}, []),
    ],
)
def test_idle_models_are_let_go(
    seen: Observation, idle: float | None, fields: dict[str, Any], done: list[tuple[str, str]]
) -> None:
    fields = {"idle": {"a": (10.0, 20.0)}, "state_since": {"a": 0.0}, **fields}
    switching = inventory(min_active_seconds=5)
    given_ = situation({"a": seen}, {"a": ACTIVE}, idle_seconds={"a": idle}, inventory=switching, **fields)
    assert named(decide(given_)) == done


some = st.frozensets(st.sampled_from(list(GPUS)))


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Whatever may be."""
    each = {name: draw(st.sampled_from(EVERYTHING)) for name in GPUS}
    desired = {name: draw(st.sampled_from((ACTIVE, SLEEPING, STOPPED))) for name in GPUS}
    half_way = draw(st.sampled_from(("", *GPUS)))
    lost = {name for name in draw(some) if not serves(each[name]) or name == half_way}
    seconds = st.sampled_from((0.0, 30.0, 90.0, 2000.0))
    return situation(
        each,
        desired,
        locked=draw(st.sampled_from((False, False, False, True))),
        tickets=draw(st.sampled_from((False, False, False, True))),
        waiting=draw(some),
        manual=draw(st.booleans()),
        kept_awake=draw(some),
        idle_seconds={name: draw(st.none() | seconds) for name in GPUS},
        idle={name: (draw(st.sampled_from((0.0, 60.0))), draw(st.sampled_from((0.0, 80.0)))) for name in GPUS},
        lost=lost,
        first=draw(some),
        half_way=half_way,
        state_since={name: 1000.0 - draw(seconds) for name in GPUS},
        breakers={
            name: breaker(opened=draw(st.booleans()), retry_at=draw(st.sampled_from((900.0, 1100.0))))
            for name in draw(some)
        },
    )


@settings(max_examples=250)
@given(situations())
def test_what_is_done_is_safe_whatever_is_known(seen: Situation) -> None:
    actions = decide(seen)
    assert len(actions) <= 1
    assert not actions or not (seen.locked or seen.tickets)
    for action in actions:
        model = HOST.find(action.model)
        now, rivals = seen.observed[model.id], HOST.conflicting(model)
        assert not is_unknown(model, now)
        assert not (now.state == ERROR and not now.dead), "the engine would refuse it"
        if "(idle_" in action.reason:
            idle = seen.idle_seconds[model.id]
            assert idle is not None and idle >= 60.0 and not now.running and model.id not in seen.waiting
            assert not seen.manual and model.id not in seen.kept_awake
            continue
        assert model.id in seen.lost or now.state == ACTIVE, "what somebody has left so is left so"
        half_way = model.id == seen.half_way and model.id in seen.lost
        assert not serves(now) or action.desired == ACTIVE or half_way, "nobody loses a model that serves"
        assert action.desired != STOPPED
        known = seen.breakers.get(model.id)
        assert known is None or known.allows(seen.now)
        loading = [name for name, one in seen.observed.items() if one is COMING and name != model.id]
        assert all(1000.0 - seen.state_since[name] >= 900.0 for name in loading), "two would load"
        for rival in rivals:
            there = seen.observed[rival.id]
            assert not there.unknown
            if serves(there) and rival.id != seen.half_way:
                assert rival.id not in seen.kept_awake
                quiet = seen.idle_seconds[rival.id]
                fine = quiet is not None and quiet >= 60.0 and not there.running and not seen.waiting
                assert now.state == ACTIVE or (action.desired == SLEEPING and fine and not seen.manual)
