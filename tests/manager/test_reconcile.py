# SPDX-License-Identifier: MIT
"""What the manager does unasked in the course of time, on a host that is played; and what holds whatever happens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import (
    desired_state,
    processes,
    state_files,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    ERROR,
    SLEEPING,
    STOPPED,
    Observation,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from model_manager.breaker import CLOSED, OPEN
from model_manager.config import Config, ModelConfig
from model_manager.reconcile import Reconciler
from model_manager.rules import Action, Situation
from model_manager.tickets import RECONCILER as BY

from tests.manager.situations import (
    ASLEEP,
    AWAKE,
    DEAD,
    GONE,
    GPUS,
    HALF_AWAKE,
    HOST,
    HUNG,
    breaker,
    named,
)

# Events, a little engine, and the reconciler that looks every two seconds.


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


names = st.sampled_from(list(GPUS))
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
