# SPDX-License-Identifier: MIT
"""What the manager does unasked: the rules one by one on situations, all together on a host that is played, then real.

The properties hold for every situation, and for every course of events of the played host, that hypothesis finds.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import (
    desired_state,
    processes,
    state_files,
    status,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.metrics import Counters
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    ERROR,
    LOADING,
    SLEEPING,
    STOPPED,
    Observation,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from model_manager import view
from model_manager.breaker import CLOSED, HALF_OPEN, OPEN, Breaker
from model_manager.config import Config, ModelConfig
from model_manager.guarded_lock import GuardedLock, Superseded, still_holds
from model_manager.host_state import HostState
from model_manager.manager import Manager
from model_manager.reconcile import Reconciler
from model_manager.rules import Action, Situation, decide, is_unknown, obstacles, serves
from model_manager.tickets import RECONCILER as BY

from tests.manager.conftest import Manage, ended, until
from tests.unit.plugins.module_utils.switching.conftest import Host

AWAKE = Observation(ACTIVE, running=0, waiting=0)
BUSY = Observation(ACTIVE, running=1, waiting=0)
UNTOLD = Observation(ACTIVE)
HELD = Observation(ACTIVE, held=True)
ASLEEP = Observation(SLEEPING, level=1)
HALF_AWAKE = Observation(SLEEPING, level=1, doubtful=True, problem="its last wake was not confirmed")
GONE = Observation(STOPPED, process=False)
COMING = Observation(LOADING)
BEGUN = Observation(LOADING, was_serving=True)
DEAD = Observation(ERROR, dead=True, process=True, problem="its engine is dead")
WRONG = Observation(ERROR, problem="something else answers on its port")
HUNG = Observation(ERROR, unknown=True, problem="no answer")
EVERYTHING = (AWAKE, BUSY, UNTOLD, HELD, ASLEEP, HALF_AWAKE, GONE, COMING, BEGUN, DEAD, WRONG, HUNG)

# a, b and c share a GPU; d has one of its own.
GPUS = {"a": [0], "b": [0], "c": [0], "d": [1]}


def inventory(**switching: Any) -> Inventory:
    models = [
        {"id": name, "model": f"org/{name}", "host_port": 8001 + i, "gpus": gpus, "start_command": ["serve", name]}
        for i, (name, gpus) in enumerate(GPUS.items())
    ]
    return parse(models, switching)


HOST = inventory()
ASLEEP_ALL = dict.fromkeys(GPUS, SLEEPING)


def situation(observed: Mapping[str, Observation], desired: Mapping[str, str], **fields: Any) -> Situation:
    """One in which the rest of the host is asleep, as it should be."""
    return Situation(
        fields.pop("now", 1000.0),
        fields.pop("inventory", HOST),
        {**dict.fromkeys(GPUS, ASLEEP), **observed},
        {**ASLEEP_ALL, **desired},
        **{"reload_idle_seconds": 60.0, "idle_seconds": dict.fromkeys(GPUS, 0.0), **fields},
    )


def named(actions: list[Action]) -> list[tuple[str, str]]:
    return [(action.model, action.desired) for action in actions]


# The breaker.


def breaker(**fields: Any) -> Breaker:
    return Breaker(**{"limit": 3, "window_seconds": 600.0, "retry_seconds": 300.0, **fields})


def test_the_breaker_opens_after_so_many_failures_and_tries_slowly_from_then_on() -> None:
    one = breaker()
    assert one.state(0.0) == CLOSED and one.allows(0.0)
    one = one.failed(0.0, "it died")
    assert one.state(0.0) == CLOSED and not one.allows(1.9) and one.allows(2.0)
    one = one.failed(10.0, "it died")
    assert one.state(10.0) == CLOSED and not one.allows(13.9) and one.allows(14.0), "each rest is twice the last"
    one = one.failed(20.0, "it died again")
    assert one.state(20.0) == OPEN and one.reason == "it died again"
    assert not one.allows(319.9) and one.state(320.0) == HALF_OPEN
    one = one.failed(321.0, "it died")
    assert one.state(322.0) == OPEN and one.retry_at == 621.0
    # Long after all others, one failure keeps an open one open.
    one = one.failed(9000.0, "it died")
    assert one.state(9001.0) == OPEN


def test_failures_that_are_far_apart_do_not_open_the_breaker() -> None:
    one = breaker()
    for at in range(0, 6000, 300):
        one = one.failed(float(at), "it died")
        assert one.state(at) == CLOSED, at


def test_a_first_crash_costs_no_rest_and_a_server_that_crashes_again_and_again_opens_it() -> None:
    one = breaker().failed(100.0, "it crashed", crashed=True)
    assert one.allows(100.0)
    one = one.succeeded(101.0).failed(110.0, "it crashed", crashed=True)
    assert not one.allows(111.9) and one.allows(112.0)
    one = one.succeeded(115.0).failed(120.0, "it crashed", crashed=True)
    assert one.state(121.0) == OPEN, "that it came up in between does not hide that it crashes"
    one = one.succeeded(500.0)
    assert one.state(500.0) == CLOSED
    assert one.failed(510.0, "it crashed", crashed=True).state(511.0) == OPEN, "it is on probation"
    assert one.failed(1500.0, "it crashed", crashed=True).state(1500.0) == CLOSED, "which ends"


@given(st.lists(st.integers(0, 500), max_size=60), st.integers(1, 5), st.booleans())
def test_a_model_that_always_fails_is_tried_seldom_but_never_given_up(
    looks: list[int], limit: int, crashed: bool
) -> None:
    """Whoever looks now and then, and tries whenever it may, fails at most so often in any ten minutes."""
    one, now = breaker(limit=limit), 0.0
    tried: list[float] = []
    for after in looks:
        now += after
        if one.allows(now):
            assert not one.opened or now - tried[-1] >= 300.0
            one = one.failed(now, "it died", crashed=crashed)
            tried.append(now)
        assert one.retry_at <= now + 300.0
    for first in tried:
        assert sum(first <= at < first + 600.0 for at in tried) <= limit + 2


# The rules.


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


names = st.sampled_from(list(GPUS))
some = st.frozensets(names)


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


# A host that is played: events, a little engine, and the reconciler that looks every two seconds.


class Played:
    """A host whose engine does at once what it is asked for, unless the model is a bad one, which never loads."""

    def __init__(self, stack_dir: Path, **config: Any) -> None:
        self.config = Config(str(stack_dir), **{"reload_idle_seconds": 0.0, **config})
        self.now = 1000.0
        self.seen: dict[str, Observation] = {"a": AWAKE, "b": ASLEEP, "c": ASLEEP, "d": AWAKE}
        self.desired = {"a": ACTIVE, "b": SLEEPING, "c": SLEEPING, "d": ACTIVE}
        self.hidden: set[str] = set()  # those that do not answer in time
        self.bad: set[str] = set()
        self.last: dict[str, Any] | None = None
        self.former: list[dict[str, Any]] = []
        self.lock = 0
        self.loads: list[tuple[float, str]] = []
        self.begin()

    def begin(self) -> None:
        """The service starts, maybe after it was killed."""
        self.reconciler = Reconciler(self.config, lambda: self.now, lambda: self.now + 1e9)

    def look(self) -> Situation:
        observed = {name: HUNG if name in self.hidden else one for name, one in self.seen.items()}
        idle = dict.fromkeys(GPUS, 1000000.0)
        told = (self.last, self.lock)
        return Situation(
            self.now, HOST, observed, dict(self.desired), *told, idle_seconds=idle, former_switches=tuple(self.former)
        )

    def tick(self, seconds: float = 2.0) -> list[Action]:
        """One round, and what is done in it."""
        self.now += seconds
        actions = self.reconciler.round(self.look())
        for action in actions:
            assert (action.recorded, action.last_switch) == (self.desired, self.last)
            steps, error = self.switch(action.model, action.desired)
            given_error = {"kind": "SwitchFailed", "message": error} if error else None
            self.reconciler.ended(self.now, action.model, action.desired, BY, {"steps": steps}, given_error)
        return actions

    def quiet(self) -> bool:
        """Whether there is nothing to do; that is seen within a few rounds."""
        return any(not self.tick() for _round in range(12))

    def switch(self, name: str, state: str, for_now: bool = False) -> tuple[list[dict[str, Any]], str]:
        """One switch by whoever: what the engine does, and records."""
        self.lock += 1
        model, before = HOST.find(name), dict(self.seen)
        rivals = [m.id for m in HOST.conflicting(model)]
        assert not ({name, *rivals} & self.hidden), "nobody switches what does not answer"
        loads = before[name].state in (STOPPED, ERROR) and state != STOPPED
        steps: list[dict[str, Any]] = []
        error = ""
        if loads:
            self.loads.append((self.now, name))
        if loads and name in self.bad:
            self.seen[name] = GONE
            error = f"{name} died while it loaded"
            steps.append({"action": "start", "model": name, "failed": error})
        elif state == ACTIVE:
            for rival in rivals:
                self.seen[rival] = ASLEEP if self.seen[rival].state == ACTIVE else self.seen[rival]
            self.seen[name] = AWAKE
        else:
            self.seen[name] = GONE if state == STOPPED else ASLEEP
        if self.seen != before or error:
            self.former += [self.last] if self.last else []
            self.last = {"models": [name], "state": state, "ended": self.now, "result": "failed" if error else "done"}
        if not for_now and not error:
            self.desired = desired_state.after(HOST, self.desired, model, state)
        return steps, error

    def crash(self, name: str, how: Observation = GONE) -> None:
        if self.seen[name] != GONE:
            self.seen[name] = how

    def reboot(self) -> None:
        self.seen = dict.fromkeys(GPUS, GONE)
        self.hidden.clear()
        self.begin()

    def awake(self) -> set[str]:
        return {name for name, one in self.seen.items() if one.state == ACTIVE}


@pytest.fixture
def played(tmp_path: Path) -> Played:
    played = Played(tmp_path)
    assert played.tick() == []
    return played


def test_a_crash_is_mended_at_once_and_the_others_are_left_alone(played: Played) -> None:
    for how in (GONE, DEAD):
        played.crash("a", how)
        assert named(played.tick()) == [("a", ACTIVE)]
        assert played.seen == {"a": AWAKE, "b": ASLEEP, "c": ASLEEP, "d": AWAKE}
        assert played.tick(1000.0) == []
    played.crash("b")
    assert played.tick() == [], "reload_idle_seconds is 0"


def test_after_a_boot_all_come_back_one_by_one_the_active_one_last(played: Played) -> None:
    played.reboot()
    done = [named(played.tick()) for _round in range(5)]
    assert done == [[("b", SLEEPING)], [("c", SLEEPING)], [("a", ACTIVE)], [("d", ACTIVE)], []]


def test_a_boot_goes_on_where_the_service_was_killed(played: Played) -> None:
    played.reboot()
    assert named(played.tick()) == [("b", SLEEPING)]
    # Killed while c loaded, before it slept.
    actions = played.reconciler.round(dataclasses.replace(played.look(), now=played.now + 2))
    assert named(actions) == [("c", SLEEPING)]
    played.seen["c"] = AWAKE
    played.begin()
    assert played.quiet()
    assert played.awake() == {"a", "d"} and played.seen["c"] == ASLEEP and played.seen["b"] == ASLEEP


def test_a_model_that_cannot_load_does_not_keep_the_others_waiting(played: Played) -> None:
    played.bad = {"b", "d"}
    played.reboot()
    for _round in range(8):
        played.tick()
    assert played.awake() == {"a"}
    # For an hour: b would have to have a make room for it, so it is left; d has its GPU for itself.
    for _round in range(1800):
        played.tick()
    assert played.awake() == {"a"}
    tried = [name for _at, name in played.loads]
    assert tried.count("b") == 1 and 3 + 9 <= tried.count("d") <= 3 + 12
    assert played.reconciler.breaker("d").state(played.now) != CLOSED
    played.bad.clear()
    for _round in range(151):
        played.tick()
    assert played.awake() == {"a", "d"} and played.reconciler.breaker("d").state(played.now) == CLOSED


def test_one_whose_active_model_cannot_load_serves_others(played: Played) -> None:
    played.bad = {"a"}
    played.crash("a")
    for _round in range(30):
        played.tick()
    assert played.reconciler.breaker("a").state(played.now) == OPEN and played.awake() == {"d"}
    played.switch("b", ACTIVE)
    for _round in range(600):
        assert played.tick() == []
    assert played.awake() == {"b", "d"}


def test_a_restart_of_the_service_gives_a_model_that_cannot_load_no_new_chance_and_a_boot_one(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    played.bad = {"a"}
    played.crash("a")
    for _round in range(30):
        played.tick()
    tried = len(played.loads)
    before = played.reconciler.breaker("a")
    assert before.state(played.now) == OPEN
    for _restart in range(20):
        played.begin()
        assert played.reconciler.breaker("a") == before
        played.tick()
    assert len(played.loads) == tried
    played.now = before.retry_at
    played.begin()
    assert named(played.tick()) == [("a", ACTIVE)], "it is tried when it would have been"
    assert not played.reconciler.breaker("a").allows(played.now + 299.0)
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    played.begin()
    assert [named(played.tick()) for _round in range(3)] == [[("a", ACTIVE)], [], []]
    # One that was about to be opened is still about to be.
    played.reconciler.breakers["d"] = breaker().failed(played.now, "it died").failed(played.now, "it died")
    played.bad = {"d"}
    played.crash("d")
    played.tick()
    played.begin()
    assert played.reconciler.breaker("d").opened


@pytest.mark.parametrize("broken", [[], {"a": 1}, {"a": {"failures": ["x"]}}, {"a": {"failures": None, "opened": 1}}])
def test_a_record_of_breakers_that_can_not_be_read_is_none(tmp_path: Path, broken: Any) -> None:
    content = {"breakers": broken, "boot": processes.boot_id(), "switching": 7, "first": 7}
    state_files.write(str(tmp_path), state_files.RECONCILER, content)
    played = Played(tmp_path)
    assert played.reconciler.breaker("a") == breaker()
    assert played.tick() == []


def test_a_corrected_time_of_day_makes_no_rest_longer() -> None:
    opened = breaker().failed(10.0, "x").failed(20.0, "x").failed(30.0, "it died")
    assert breaker().restored(opened.as_dict(1000.0), 1000.0, 31.0) == opened
    # It was an hour ahead when it was written.
    later = breaker().restored(opened.as_dict(4600.0), 1000.0, 31.0)
    assert later.failures == (31.0, 31.0, 31.0) and later.retry_at == 331.0 and later.opened


@pytest.mark.parametrize(
    ("asked", "observed", "done"),
    [
        (("b", ACTIVE), {"a": ASLEEP, "b": AWAKE}, ("b", ACTIVE)),
        (("b", ACTIVE), {"a": ASLEEP, "b": HALF_AWAKE}, ("a", ACTIVE)),
        (("b", ACTIVE), {"a": ASLEEP, "b": ASLEEP}, ("a", ACTIVE)),
        (("b", ACTIVE), {}, None),
        (("a", SLEEPING), {"a": ASLEEP}, ("a", SLEEPING)),
        (("a", SLEEPING), {"a": GONE}, ("a", ACTIVE)),
        (("b", STOPPED), {"b": GONE}, ("b", STOPPED)),
        (("b", STOPPED), {"b": ASLEEP}, None),
        (("nobody", ACTIVE), {}, None),
    ],
)
def test_what_was_done_when_the_service_was_killed_is_recorded_and_else_undone(
    played: Played, asked: tuple[str, str], observed: dict[str, Observation], done: tuple[str, str] | None
) -> None:
    """The engine records what is desired after all else: who asked for it may have it already."""
    played.switch("d", ACTIVE, for_now=True)
    played.reconciler.begun(*asked, played.last)
    played.lock += 1
    played.seen.update(observed)
    played.begin()
    assert named(played.tick()) == ([done] if done else [])
    wanted = {name for name, state in played.desired.items() if state == ACTIVE}
    assert played.awake() == wanted
    played.begin()
    assert [played.tick() for _round in range(3)] == [[]] * 3, "it is over"


@pytest.mark.parametrize("others", [False, True])
def test_who_has_switched_since_the_service_was_killed_is_not_overruled(played: Played, others: bool) -> None:
    played.reconciler.begun("b", ACTIVE, played.last)
    if others:
        played.switch("c", STOPPED, for_now=True)
        played.seen["a"], played.seen["b"] = ASLEEP, AWAKE
    else:  # its own record of how it ended was written
        played.switch("b", ACTIVE, for_now=True)
    played.begin()
    assert named(played.tick()) == ([] if others else [("b", ACTIVE)])


def test_what_a_switch_leaves_for_now_is_left_so_also_where_the_model_ends_with_it(played: Played) -> None:
    played.switch("b", ACTIVE, for_now=True)
    assert played.desired["a"] == ACTIVE
    assert [played.tick() for _round in range(5)] == [[]] * 5 and played.awake() == {"b", "d"}
    played.switch("d", STOPPED, for_now=True)
    assert [played.tick() for _round in range(5)] == [[]] * 5 and played.awake() == {"b"}


def test_of_several_switches_between_two_looks_each_is_left_so(played: Played) -> None:
    for name in ("d", "b", "a"):
        played.switch(name, STOPPED, for_now=True)  # as site.yml stops those that it is about to change
    assert [played.tick() for _round in range(5)] == [[]] * 5
    for name in ("a", "d"):
        played.switch(name, ACTIVE)
    played.switch("b", SLEEPING)
    assert played.tick() == []
    # What crashed since is none of theirs.
    played.switch("d", STOPPED, for_now=True)
    played.switch("d", ACTIVE)
    played.switch("b", STOPPED, for_now=True)
    played.crash("d")
    assert named(played.tick()) == [("d", ACTIVE)]


def test_a_crash_beside_a_switch_that_made_no_room_is_mended_too(played: Played) -> None:
    for name, state in (("b", STOPPED), ("b", SLEEPING), ("d", STOPPED), ("d", ACTIVE)):
        played.switch(name, state)
        played.crash("a")
        assert named(played.tick()) == [("a", ACTIVE)]
        played.now += 1000.0


@pytest.mark.parametrize("stopped", [False, True])
def test_what_crashes_while_the_service_switches_is_told_from_what_that_has_stopped(
    played: Played, stopped: bool
) -> None:
    """As when the Docker engine comes back: it ends one container after the other."""
    played.config = dataclasses.replace(played.config, reload_idle_seconds=1.0)
    played.begin()
    played.tick()
    played.crash("a")
    assert named(played.reconciler.round(played.look())) == [("a", ACTIVE)]
    played.seen["c"] = GONE
    steps, _error = played.switch("a", ACTIVE)
    steps += [{"action": "stop", "model": "c"}] if stopped else []
    played.reconciler.ended(played.now, "a", ACTIVE, BY, {"steps": steps}, None)
    assert named(played.tick()) == ([] if stopped else [("c", SLEEPING)])


@pytest.mark.parametrize("stopped", [False, True])
def test_what_crashes_right_after_the_service_has_put_it_to_sleep_is_loaded_again(
    played: Played, stopped: bool
) -> None:
    played.config = dataclasses.replace(played.config, reload_idle_seconds=1.0)
    played.begin()
    played.tick()
    played.crash("c")
    assert named(played.reconciler.round(played.look())) == [("c", SLEEPING)]
    steps, _error = played.switch("c", SLEEPING)
    steps += [{"action": "stop", "model": "c"}] if stopped else []
    played.reconciler.ended(played.now, "c", SLEEPING, BY, {"steps": steps}, None)
    played.seen["c"] = GONE
    done = [named(played.tick(100.0)) for _round in range(5)]
    assert done == [[] if stopped else [("c", SLEEPING)], [], [], [], []]


def test_one_that_rests_by_being_stopped_is_not_loaded_again(played: Played) -> None:
    played.config = dataclasses.replace(played.config, reload_idle_seconds=1.0)
    played.begin()
    played.tick()
    played.switch("b", ACTIVE)
    played.seen["a"] = GONE  # the engine has chosen that for it
    assert [played.tick() for _round in range(5)] == [[]] * 5


def test_one_that_was_stopped_at_the_leak_limit_starts_afresh_when_nobody_waits(played: Played) -> None:
    played.config = dataclasses.replace(played.config, reload_idle_seconds=1.0)
    played.begin()
    played.tick()
    steps, _error = played.switch("b", ACTIVE)
    played.seen["a"] = GONE
    note = "it holds 3.0 GB while asleep, 1.5 GB more than after its first sleep (leak_limit_gb 1)"
    steps.append({"action": "stop", "model": "a", "note": note})
    played.reconciler.ended(played.now, "b", ACTIVE, "somebody", {"steps": steps}, None)
    look = dataclasses.replace(played.look(), now=played.now + 1, waiting={"b"})
    assert played.reconciler.round(look) == []
    assert named(played.tick()) == [("a", SLEEPING)]


def test_a_switch_that_failed_or_was_cut_off_is_mended(played: Played) -> None:
    # It failed, and so did the roll back.
    played.switch("b", ACTIVE)
    played.desired = {**played.desired, "a": ACTIVE, "b": SLEEPING}
    played.seen["b"] = GONE
    assert played.last
    played.last["result"] = "failed"
    assert named(played.tick()) == [("a", ACTIVE)]
    assert played.tick() == []
    # It was killed when a slept, before it woke b: nothing tells of it but the lock.
    played.seen["a"] = ASLEEP
    played.lock += 1
    assert named(played.tick()) == [("a", ACTIVE)]
    assert played.tick() == []
    # And while it woke b.
    played.seen["a"], played.seen["b"] = ASLEEP, HALF_AWAKE
    played.lock += 1
    assert named(played.tick()) == [("a", ACTIVE)]


def test_whom_somebody_has_put_to_sleep_or_woken_past_the_engine_is_left_so(played: Played) -> None:
    played.seen["a"] = ASLEEP
    assert [played.tick() for _round in range(5)] == [[]] * 5
    played.seen["b"] = AWAKE
    assert [played.tick() for _round in range(5)] == [[]] * 5
    played.begin()
    assert [played.tick() for _round in range(5)] == [[]] * 5, "it adopts what is awake"


def test_what_does_not_answer_is_waited_for_and_brought_back_once_it_is_known_to_be_dead(played: Played) -> None:
    played.hidden = {"a"}
    assert [played.tick(60.0) for _round in range(5)] == [[]] * 5
    played.seen["a"], played.hidden = DEAD, set()
    assert named(played.tick()) == [("a", ACTIVE)]


def test_an_idle_model_that_could_not_be_let_go_is_tried_again_later(tmp_path: Path) -> None:
    played = Played(tmp_path, models={"d": ModelConfig(idle_sleep_seconds=10.0)}, retry_seconds=100.0)
    actions = played.reconciler.round(played.look())
    assert named(actions) == [("d", SLEEPING)]
    failed = {"kind": "SwitchFailed", "message": "1 request runs"}
    played.reconciler.ended(played.now, "d", SLEEPING, BY, None, failed)
    assert played.tick(99.0) == []
    assert named(played.tick(2.0)) == [("d", SLEEPING)]
    assert played.reconciler.breakers == {}, "it serves: nothing is wrong with it"


EVENTS = st.one_of(
    st.tuples(st.sampled_from(("crash", "die", "hang", "answer", "bad", "good")), names),
    st.tuples(st.just("switch"), names, st.sampled_from((ACTIVE, SLEEPING, STOPPED))),
    st.tuples(st.just("wait"), st.sampled_from((2.0, 10.0, 400.0))),
    st.tuples(st.sampled_from(("reboot", "restart"))),
)


@settings(max_examples=150)
@given(st.lists(EVENTS, max_size=30), st.integers(1, 4))
def test_whatever_happens_the_host_comes_back_to_what_is_desired(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[Any, ...]], limit: int
) -> None:
    """And no switch is undone, nobody is switched that does not answer, and a bad model is not tried all the time."""
    played = Played(tmp_path_factory.mktemp("stack"), breaker_failures=limit, reload_idle_seconds=60.0)
    played.tick()
    for kind, *given_ in events:
        name = given_[0] if given_ else ""
        if kind in ("crash", "die"):
            played.crash(name, GONE if kind == "crash" else DEAD)
        elif kind == "hang":
            played.hidden |= {name} if played.seen[name] != GONE else set()
        elif kind == "answer":
            played.hidden -= {name}
        elif kind == "bad":
            played.bad.add(name)
        elif kind == "good":
            played.bad.discard(name)
        elif kind == "switch":
            group = {m.id for m in HOST.group(HOST.find(name))}
            if not group & played.hidden:
                calm = played.quiet() and not group & set(played.reconciler.notes)
                _steps, error = played.switch(name, given_[1])
                left = {one: played.seen[one] for one in group}
                for _round in range(5 if calm and not error else 0):
                    played.tick()
                    assert {one: played.seen[one] for one in group} == left, "a switch was undone"
        elif kind == "reboot":
            played.reboot()
        elif kind == "restart":
            played.begin()
        played.tick(given_[0] if kind == "wait" else 2.0)
    for at, name in played.loads:
        if name in played.bad:
            recent = [1 for other, who in played.loads if who == name and at <= other < at + 600.0]
            # Whoever asks for it by the command line may try again.
            by_hand = sum(event[0] in ("switch", "good") for event in events)
            assert len(recent) <= (limit + 2) * (1 + by_hand)
    played.hidden.clear()
    played.bad.clear()
    for _round in range(20):
        played.tick(400.0)
    desired = {name for name, state in played.desired.items() if state == ACTIVE}
    assert played.awake() >= desired
    assert all(
        not HOST.find(one).conflicts_with(HOST.find(other)) for one in played.awake() for other in played.awake()
    )


# A real manager, on stand-ins.


def pids(host: Host, name: str) -> list[int]:
    """The processes of a model's server."""
    with host.switcher() as switcher:
        return switcher.host.lifecycles[name].pids()


def kill(host: Host, name: str, number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids(host, name):
        os.kill(pid, number)


def own(manager: Manager) -> list[tuple[str, str, str]]:
    """What the manager has done by itself, the oldest first."""
    rows = [one for one in reversed(manager.history.switches()) if one["requested_by"] == BY]
    return [(one["model"], one["desired"], one["result"]) for one in rows]


def rounds(manager: Manager, number: int = 3) -> None:
    """Let the manager look at the host a few times."""
    for _each in range(number):
        age = manager.view().age_seconds
        until(lambda age=age: manager.view().age_seconds < age, "it has looked again")  # type: ignore[misc]
        time.sleep(0.05)


def two(host: Host, **fields: Any) -> None:
    """Two models on one GPU, of which a is awake and meant to be."""
    for name in ("a", "b"):
        host.declare(name, startup_mode="active" if name == "a" else "sleep", **fields)
    host.up(a="active", b=1)


def test_a_crashed_server_is_brought_back_and_the_others_are_left_alone(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage()
    rounds(manager, 2)
    assert own(manager) == [], "it adopts what is awake"
    before = host.changing_calls("b")
    reader = manager.bus.subscribe()
    kill(host, "a")
    until(lambda: own(manager) == [("a", ACTIVE, "done")], "a is back")
    assert host.states() == {"a": "active", "b": "sleeping"}
    assert host.changing_calls("b") == before
    told = [event.data for event in reader.take() if event.kind == "breaker"]
    assert (told[0]["model"], told[0]["state"], told[0]["failures"]) == ("a", CLOSED, 1)
    rounds(manager)
    assert len(own(manager)) == 1


def test_a_server_that_does_not_answer_is_not_taken_for_dead(host: Host, manage: Manage) -> None:
    host.settings["probe_timeout_seconds"] = 0.2
    two(host)
    manager = manage()
    kill(host, "a", signal.SIGSTOP)
    try:
        until(lambda: manager.view().models["a"].unknown, "it does not answer")
        rounds(manager)
        assert own(manager) == []
    finally:
        kill(host, "a", signal.SIGCONT)
    until(lambda: manager.view().active == ["a"], "it answers again")
    rounds(manager)
    assert own(manager) == []


def test_of_a_booted_host_one_model_loads_after_the_other_and_the_active_one_comes_last(
    host: Host, manage: Manage
) -> None:
    for name in ("a", "b", "c"):
        host.declare(name, startup_mode="active" if name == "a" else "sleep", standin={"load_seconds": 0.2})
    manager = manage()
    until(lambda: len(own(manager)) == 3, "all are back")
    assert own(manager) == [("b", SLEEPING, "done"), ("c", SLEEPING, "done"), ("a", ACTIVE, "done")]
    assert host.states() == {"a": "active", "b": "sleeping", "c": "sleeping"}
    loads = [(event["model"], event["event"]) for event in host.events() if event["event"] in ("loading", "awake")]
    assert loads == [(name, event) for name in ("b", "c", "a") for event in ("loading", "awake")]


def test_a_pin_changes_nothing_in_how_a_booted_host_comes_back(host: Host, manage: Manage) -> None:
    for name in ("a", "b"):
        host.declare(name, startup_mode="active" if name == "a" else "sleep")
    state_files.write(str(host.stack_dir), state_files.MANAGER, {"mode": "manual", "pinned": "a"})
    manager = manage()
    until(lambda: len(own(manager)) == 2, "both are back")
    assert own(manager) == [("b", SLEEPING, "done"), ("a", ACTIVE, "done")]
    assert manager.view().pinned == "a"


def test_of_a_model_that_cannot_load_the_breaker_opens_and_others_are_served(host: Host, manage: Manage) -> None:
    host.declare("a", startup_mode="active", standin={"faults": '[{"path": "load", "fault": "die", "times": 0}]'})
    host.declare("b")
    manager = manage(breaker_failures=1, retry_seconds=600)
    until(lambda: (manager.view().models["a"].breaker or {}).get("state") == OPEN, "the breaker of a is open")
    until(lambda: own(manager) == [("b", SLEEPING, "done"), ("a", ACTIVE, "failed")], "that is what was done")
    shown = manager.view().models["a"]
    assert (shown.status, shown.process_state.partition(":")[0]) == ("error", "failed")
    assert "1 times within 10 min" in shown.problem
    assert ended(manager.request("b")).error is None
    rounds(manager)
    assert host.states() == {"a": "stopped", "b": "active"}
    assert len(own(manager)) == 2, "nothing more is tried"


def test_what_the_command_line_switches_is_left_so(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage()
    host.switch("b")
    until(lambda: manager.view().active == ["b"], "it is seen")
    rounds(manager)
    with host.switcher() as switcher:
        switcher.switch("a", for_now=True)
    assert desired_state.recorded(str(host.stack_dir))["b"] == ACTIVE
    rounds(manager)
    with host.switcher() as switcher:
        switcher.switch("a", STOPPED, for_now=True)
    until(lambda: manager.view().models["a"].state == view.STOPPED, "that is seen too")
    rounds(manager)
    assert own(manager) == []
    assert host.states() == {"a": "stopped", "b": "sleeping"}


def test_nothing_is_done_if_somebody_switches_while_it_waits_for_the_lock(host: Host) -> None:
    two(host)
    stack_dir = str(host.stack_dir)
    action = Action("a", ACTIVE, "it crashed", desired_state.read(host.inventory, stack_dir), None)
    lock = GuardedLock(stack_dir, lambda: still_holds(action, host.inventory, stack_dir))
    with host.switcher(lock=lock) as switcher:
        calls = []

        def somebody() -> None:
            host.switch("b")
            calls.append(host.all_changing_calls())

        host.while_it_waits(switcher, somebody)
        with pytest.raises(Superseded):
            switcher.switch(action.model, action.desired)
    assert host.states() == {"a": "sleeping", "b": "active"}
    assert [host.all_changing_calls()] == calls
    last = status.read_last_switch(stack_dir)
    assert last is not None and (last["models"], last["result"]) == (["b"], "done"), "it counts as no switch"


def test_an_idle_model_sleeps_and_then_ends_and_one_in_use_does_not(host: Host, manage: Manage) -> None:
    host.declare("a", startup_mode="active", gpus=[0])
    host.declare("b", startup_mode="active", gpus=[1])
    host.up(a="active", b="active")
    manager = manage(idle_sleep_seconds=0.8, idle_stop_seconds=1.6)

    def use() -> bool:
        host.completion("b", tokens=1)
        time.sleep(0.05)
        return manager.view().models["a"].state == view.STOPPED

    until(use, "a has ended")
    until(lambda: own(manager) == [("a", SLEEPING, "done"), ("a", STOPPED, "done")], "that is what was done")
    assert manager.view().models["b"].state == view.READY
    assert desired_state.recorded(str(host.stack_dir)) == {"a": STOPPED, "b": ACTIVE}
    until(lambda: manager.view().models["b"].state == view.STOPPED, "b has ended once nobody uses it")


def test_a_corrected_time_of_day_makes_no_model_idle() -> None:
    times = {"now": 1e9, "clock": 50.0}
    host = HostState(HOST, {}, lambda: times["now"], lambda: times["clock"])
    host.observe({"a": AWAKE}, {}, {})
    times["now"] += 1e6
    assert host.idle_seconds("a") == 0.0
    times["clock"] += 7.0
    assert host.idle_seconds("a") == 7.0
    host.observe({"a": BUSY}, {}, {})
    assert host.idle_seconds("a") == 0.0


def test_a_model_that_comes_up_is_idle_only_from_then_on() -> None:
    clock = [0.0]
    host = HostState(HOST, {}, lambda: 1e9, lambda: clock[0])
    seen = dict.fromkeys(GPUS, ASLEEP)
    host.observe({**seen, "a": GONE, "b": GONE}, {}, {})
    clock[0] = 1000.0
    # Loaded by the service, by somebody else; woken by somebody else.
    host.take_over({**seen, "a": ASLEEP, "b": GONE})
    host.observe({**seen, "b": ASLEEP, "c": AWAKE}, {}, {})
    assert [host.idle_seconds(name) for name in GPUS] == [0.0, 0.0, 0.0, 1000.0]
    clock[0] = 1010.0
    host.take_over(seen)  # it goes on to count while it sleeps
    host.observe(seen, {}, {})
    assert [host.idle_seconds(name) for name in GPUS] == [10.0, 10.0, 10.0, 1010.0]


def test_a_server_that_does_not_tell_what_it_does_is_never_idle() -> None:
    """One that counts only requests that have ended may have one that goes on for long."""
    times = {"clock": 50.0}
    host = HostState(HOST, {}, lambda: 1e9, lambda: times["clock"])
    for counters in (Counters(requests=5), Counters()):
        for _look in range(3):
            host.observe({"a": UNTOLD}, {"a": counters}, {})
            times["clock"] += 1000.0
            assert host.idle_seconds("a") is None
    host.observe({"a": AWAKE}, {"a": Counters(requests=5)}, {})
    assert host.idle_seconds("a") == 0.0
