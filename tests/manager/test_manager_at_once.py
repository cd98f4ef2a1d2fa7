# SPDX-License-Identifier: MIT
"""The manager where several act at once, or something of its own fails: everybody gets an answer, and a true one."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import Holder, HostLock
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher
from model_manager.history import Switch
from model_manager.manager import Manager, Ticket
from model_manager.reconcile import Reconciler
from model_manager.schedule import Schedule

from tests.manager.conftest import Manage, ended, two, until, write_inventory
from tests.unit.plugins.module_utils.switching.conftest import Host


def behind(manager: Manager, model: str, other: str) -> tuple[Ticket, Ticket]:
    """A switch to the model, which has begun, and one to the other, which waits for it."""
    first = manager.request(model)
    until(lambda: first.status == "running", "it has begun")
    return first, manager.request(other)


# What is set while something waits.


def test_what_waits_already_does_not_take_the_place_of_a_pinned_model(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.3)
    manager = manage()
    first, waiting = behind(manager, "b", "a")
    assert manager.pin("b") is first
    assert ended(waiting).error is not None
    assert waiting.error is not None
    assert (waiting.error["kind"], "b is pinned" in waiting.error["message"]) == ("Conflict", True)
    assert first.status == "done"
    assert (manager.view().pinned, host.states()) == ("b", {"a": "sleeping", "b": "active"})


def test_what_waits_already_does_not_displace_a_model_that_is_never_to_make_room(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.3)
    manager = manage()
    _first, waiting = behind(manager, "b", "a")
    manager.set_eviction("b", "retain", "keep_running")
    assert ended(waiting).error is not None
    assert waiting.error is not None
    assert "b never makes room" in waiting.error["message"]
    assert host.states() == {"a": "sleeping", "b": "active"}


def test_a_switch_by_hand_that_fails_leaves_the_pin_where_it_was(host: Host, manage: Manage) -> None:
    host.settings["escalation"] = ["roll_back"]
    two(host)
    manager = manage(reconcile=False, observe_seconds=0.1)
    ended(manager.pin("a"))
    host.fault("b", "/wake_up", "status_500", times=0)
    assert ended(manager.request("b", manual=True)).status == "failed"
    assert (manager.view().mode, manager.view().pinned) == ("manual", "a")
    looks: list[object] = []
    manager.on_observed(looks.append)
    until(lambda: len(looks) > 2, "it has looked at what is active")
    assert (manager.view().mode, manager.view().pinned) == ("manual", "a")


def test_the_queue_is_told_whenever_it_has_changed(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.3)
    manager = manage()
    reader = manager.bus.subscribe()

    def told() -> list[str]:
        return [[one["model"] for one in e.data["queue"]] for e in reader.take() if e.kind == "queue"][-1]

    first, waiting = behind(manager, "b", "a")
    assert told() == ["b", "a"]
    assert waiting.cancel()
    assert told() == ["b"]
    ended(first)
    until(lambda: not manager.view().queue, "nothing waits")
    assert told() == []


# Others who switch.


def test_a_switch_by_others_is_told_although_one_of_ours_waited_for_it(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.8)
    manager = manage(observe_seconds=30, reconcile=False)
    reader = manager.bus.subscribe()
    other = threading.Thread(target=host.switch, args=("b",))
    other.start()
    until(lambda: manager.view().lock_holder, "that somebody switches is seen")
    ours = manager.request("a", by="test")
    until(lambda: ours.status == "running", "ours waits for the lock")
    other.join()
    assert ended(ours).status == "done"
    events = reader.take()
    assert [e.data["models"] for e in events if e.kind == "switch_seen"] == [["b"]]
    kinds = [(e.kind, bool(e.data.get("holder"))) for e in events if e.kind in ("lock", "step_begun")]
    assert kinds[:3] == [("lock", True), ("lock", False), ("step_begun", False)]  # free again before ours begins
    until(lambda: len(manager.history.switches()) == 2, "both are in the history")
    rows = [(row["model"], row["requested_by"]) for row in reversed(manager.history.switches())]
    assert rows == [("b", "module or command line"), ("a", "test")]


def test_its_own_lock_is_not_taken_for_somebody_elses(
    host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    two(host, wake_seconds=0.2)
    manager = manage(observe_seconds=30)
    reader = manager.bus.subscribe()
    held_by = HostLock.held_by
    seen: list[Holder | None] = []

    def during_a_switch(lock: HostLock) -> Holder | None:
        """A whole switch is made between the moment at which the lock is looked at and the answer."""
        monkeypatch.setattr(HostLock, "held_by", held_by)
        ticket = manager.request("b")
        until(lambda: held_by(lock), "it has the lock")
        seen.append(held_by(lock))
        ended(ticket)
        until(lambda: not manager.view().queue, "it is over")
        return seen[0]

    monkeypatch.setattr(HostLock, "held_by", during_a_switch)
    (host.stack_dir / "run").mkdir(exist_ok=True)
    (host.stack_dir / "run" / "switch.lock").touch(0o600)  # so that it looks
    until(lambda: seen, "it has looked during the switch")
    until(lambda: not manager.view().queue, "the switch is over")
    time.sleep(0.6)  # it looks more than once meanwhile
    assert seen[0] is not None and seen[0].models == ("b",)
    assert [event.data for event in reader.take() if event.kind == "lock"] == []


def test_nobody_who_asks_the_manager_waits_for_the_history(
    host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    two(host)
    manager = manage()
    begun, go_on = threading.Event(), threading.Event()

    def slow(switch: Switch) -> None:
        begun.set()
        go_on.wait(5)

    monkeypatch.setattr(manager.history, "record_switch", slow)
    try:
        host.switch("b")
        assert begun.wait(10)
        began = time.monotonic()
        manager.view()
        assert time.monotonic() - began < 1
    finally:
        go_on.set()


def test_an_inventory_that_was_changed_before_the_manager_began_is_read(host: Host, manage: Manage) -> None:
    two(host)
    before = host.inventory
    host.declare("c", gpus=[1])
    host.up(c="active")
    write_inventory(host)
    manager = manage(inventory=before)
    assert manager.view().active == ["a", "c"]


# What fails or ends.


@pytest.mark.parametrize(("of", "name"), [(Schedule, "next"), (Reconciler, "ended")])
def test_a_mistake_of_ours_fails_one_switch_and_no_other(
    of: type[Any], name: str, host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    two(host)
    manager = manage(reconcile=False)
    whole = getattr(of, name)

    def broken(*_given: object) -> None:
        monkeypatch.setattr(of, name, whole)
        raise ZeroDivisionError("what nobody has thought of")

    monkeypatch.setattr(of, name, broken)
    ticket = ended(manager.request("b"))
    assert ticket.error is not None
    assert (ticket.status, ticket.error["kind"]) == ("failed", "InternalError")
    assert "what nobody has thought of" in ticket.error["message"]
    for model in ("a", "b"):
        assert ended(manager.request(model)).status == "done"
    until(lambda: not manager.view().queue, "nothing is left")


def test_what_makes_no_sense_in_the_saved_state_is_left_out(host: Host, manage: Manage) -> None:
    two(host)
    saved = {"mode": "manual", "pinned": ["a"], "evictions": {"a": 7, "b": ["discard", "stop"]}, "last_active": [1]}
    (host.stack_dir / "run").mkdir(parents=True, exist_ok=True)
    (host.stack_dir / "run" / "manager.json").write_text(json.dumps(saved))
    manager = manage()
    assert (manager.view().mode, manager.view().pinned) == ("manual", None)
    assert manager.eviction("a") == {"weights": "offload", "process": "keep_running"}
    assert manager.eviction("b") == {"weights": "discard", "process": "stop"}


def test_two_may_end_it_at_once(host: Host, manage: Manage) -> None:
    two(host)
    closed = []

    class Slow(Switcher):
        def __exit__(self, *exception: object) -> None:
            closed.append(self)
            time.sleep(0.3)
            super().__exit__(*exception)

    manager = manage(switcher=Slow)
    done: list[bool] = []
    threads = [threading.Thread(target=lambda: done.append(manager.stop())) for _each in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (done, len(closed)) == ([True, True], 1)
