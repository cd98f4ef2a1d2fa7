# SPDX-License-Identifier: MIT
"""What the manager does unasked, on real stand-ins."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import (
    desired_state,
    state_files,
    status,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import HostLock
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    SLEEPING,
    STOPPED,
)
from model_manager import view
from model_manager.breaker import CLOSED, OPEN
from model_manager.guarded_lock import GuardedLock, Superseded, still_holds
from model_manager.manager import Manager
from model_manager.rules import Action
from model_manager.tickets import RECONCILER as BY

from tests.manager.conftest import Manage, ended, kill, until
from tests.unit.plugins.module_utils.switching.conftest import Host


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


def as_meant(host: Host) -> None:
    """Two models on one GPU, of which a is meant to be awake, and is."""
    for name in ("a", "b"):
        host.declare(name, startup_mode="active" if name == "a" else "sleep")
    host.up(a="active", b=1)


def test_a_crashed_server_is_brought_back_and_the_others_are_left_alone(host: Host, manage: Manage) -> None:
    as_meant(host)
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
    as_meant(host)
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


def broken_disk(*_given: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def broken(patch: pytest.MonkeyPatch, name: str) -> None:
    """From now on this state file can't be read."""
    whole = state_files.read_or_raise

    def read(stack_dir: str, one: str) -> dict[str, Any]:
        if one == name:
            broken_disk()
        return whole(stack_dir, one)

    patch.setattr(state_files, "read_or_raise", read)


def test_a_pin_stays_while_the_record_can_not_be_read(
    host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing is done to come to a state that nobody knows: without the record, a is to be active."""
    as_meant(host)
    manager = manage()
    ended(manager.pin("b"))
    with monkeypatch.context() as patch:
        broken(patch, "wanted")
        rounds(manager, 5)
        assert manager.stop()
        manager = manage()  # one that begins then, too
        rounds(manager, 5)
        assert (manager.view().mode, manager.view().pinned) == ("manual", "b")
        (host.stack_dir / "run" / "wanted.json").unlink()  # and if that is how it is repaired
    rounds(manager)
    assert manager.view().pinned == "b"
    assert own(manager) == []
    assert host.states() == {"a": "sleeping", "b": "active"}
    said = [one for one in caplog.messages if "wanted.json can't be read (Input/output error): repair it" in one]
    assert len(said) == 2


@pytest.mark.parametrize("how", ["opened", "read"])
def test_while_nobody_can_tell_who_has_the_lock_nothing_is_done_unasked(
    host: Host, manage: Manage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """But the service starts, and what the servers are is seen."""
    for name in ("a", "b"):  # neither runs
        host.declare(name, startup_mode="active" if name == "a" else "sleep")
    lock = host.stack_dir / "run" / "switch.lock"
    with monkeypatch.context() as patch:
        if how == "read":
            lock.parent.mkdir(parents=True, exist_ok=True)
            lock.touch()
            patch.setattr(HostLock, "_read", broken_disk)
        else:
            lock.mkdir(parents=True)
        manager = manage()
        rounds(manager, 5)
        assert manager.view().models["a"].state == view.STOPPED
        assert own(manager) == []
        assert len([one for one in caplog.messages if f"{lock} can't be read (" in one]) == 1
    if how == "opened":
        lock.rmdir()
    until(lambda: manager.view().active == ["a"], "a is brought back")


def test_a_host_whose_record_can_not_be_read_comes_up_as_its_inventory_says(
    host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        host.declare(name, startup_mode="active" if name == "a" else "sleep")
    broken(monkeypatch, "wanted")
    manager = manage()
    until(lambda: len(own(manager)) == 2, "both are back")
    assert own(manager) == [("b", SLEEPING, "done"), ("a", ACTIVE, "done")]
    assert manager.view().active == ["a"]


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
    as_meant(host)
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
    as_meant(host)
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
