# SPDX-License-Identifier: MIT
"""Who switches past the manager asks it to close gates, and waits for that; the gateway's workers are played."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import gates, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gates import Answer
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import HostLock

from tests.manager.conftest import Manage, declare_two, ended, two, until
from tests.manager.gateway_workers import Worker, linked
from tests.manager.test_gateway import ON, gate_moments, moments
from tests.manager.test_gateway_link import service
from tests.unit.plugins.module_utils.switching.conftest import Host


def told(host: Host) -> Answer:
    found = gates.read(str(host.stack_dir))
    assert found is not None
    return found


def test_gates_are_closed_before_others_put_a_server_to_sleep(host: Host, manage: Manage) -> None:
    two(host, sleep_seconds=0.2)
    manager = manage(observe_seconds=30, **ON)
    with linked(manager.gateway, workers=2) as (_door, (worker, _other)):
        for name, other in (("b", "a"), ("a", "b")):
            result = host.switch(name)
            assert result.warnings == []
            drain = next(step for step in result.steps if step["action"] == "drain")
            assert drain["seconds"] < gates.ANSWER_SECONDS
            assert gate_moments(worker.store, other, "closed")[-1] < moments(host, other, "sleeping")[-1]
            assert told(host).closed == {"a", "b"}
            until(lambda name=name: worker.store.gate(name) == "open", "it is seen that this is over")  # type: ignore[misc]
    assert manager.stop()
    assert not told(host).runs


def test_requests_that_were_let_in_end_before_others_drain(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage(observe_seconds=30, **ON)
    with linked(manager.gateway) as (_door, (worker,)):
        assert worker.store.enter("a")  # it has not come to the server yet
        before = len(host.changing_calls("a"))
        switch = threading.Thread(target=host.switch, args=("b",))
        switch.start()
        until(lambda: told(host).busy == {"a"}, "the manager tells of it")
        number = told(host).number
        until(lambda: told(host).number > number, "it is told of again and again")
        assert len(host.changing_calls("a")) == before
        worker.store.leave("a")
        switch.join(30)
    assert host.changing_calls("a")[before].startswith("POST /sleep")
    assert host.states()["b"] == "active"


def test_workers_that_do_not_know_of_it_yet_are_waited_for(
    host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 1.0)
    two(host)
    manager = manage(observe_seconds=30, **ON)
    with linked(manager.gateway) as (_door, (worker,)):
        worker.answers_counts = False
        (warning,) = host.switch("b").warnings
        assert "(it has not answered for 1 s)" in warning


def test_a_switch_of_the_manager_that_ends_opens_no_gate_that_another_has_closed(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage(observe_seconds=30, **ON)
    with linked(manager.gateway) as (_door, (worker,)):
        lock = HostLock(str(host.stack_dir), place=str(host.stack_dir / "locks"))
        with lock.hold("a test", 10, lambda done, _seconds: done(), models=["b"]):
            ask = lock.ask(["a", "b"])
            until(lambda: told(host).ask == ask, "it has answered")
            ticket = manager.request("a", by="test")
            until(lambda: ticket.status == "running", "it waits for the lock")
            manager.gateway._gates.reopen(["a", "b"], False)
            manager.gateway.refresh()
            time.sleep(0.3)
            assert worker.store.gate("a") == "closed"
        assert ended(ticket).status == "done"
        until(lambda: worker.store.gate("a") == "open", "it is open again")


def test_a_manager_that_begins_amid_a_switch_opens_no_gate_that_was_asked_for(host: Host, manage: Manage) -> None:
    two(host)
    lock = HostLock(str(host.stack_dir), place=str(host.stack_dir / "locks"))
    with lock.hold("a test", 10, lambda done, _seconds: done(), models=["b"]):
        ask = lock.ask(["a", "b"])
        manager = manage(observe_seconds=30, **ON)
        with linked(manager.gateway) as (_door, (worker,)):
            until(lambda: told(host).ask == ask, "it has answered")
            assert gate_moments(worker.store, "a", "open") == []
    until(lambda: "a" in manager.gateway._gates.open, "it is over")


def test_what_one_that_was_killed_has_asked_is_over(host: Host, manage: Manage, tmp_path: Path) -> None:
    two(host)
    lock = HostLock(str(host.stack_dir), place=str(tmp_path / "locks"))
    file = host.stack_dir / "run" / "switch.lock"
    with lock.hold("a test", 10, lambda done, _seconds: done(), models=["b"]):
        lock.ask(["a", "b"])
        left = file.read_bytes()
    file.write_bytes(left)
    manager = manage(observe_seconds=0.2, **ON)
    with linked(manager.gateway) as (_door, (worker,)):
        until(lambda: worker.store.gate("a") == "open", "it is open")
        time.sleep(0.3)
        assert worker.store.gate("a") == "open"


def test_a_gateway_that_is_not_connected_is_told_of(
    host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 30.0)  # the manager waits for 3 s
    two(host)
    manage(observe_seconds=30, **ON)
    (warning,) = host.switch("b").warnings
    assert "(the gateway is not connected to it)" in warning


@pytest.mark.parametrize("name", ["asked", "held_by"])
def test_a_lock_that_can_not_be_read_for_a_while_opens_no_gate(
    host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Nor does it keep one open that is asked for meanwhile, if that can be told."""
    two(host)
    manager = manage(observe_seconds=30, **ON)
    lock = HostLock(str(host.stack_dir), place=str(host.stack_dir / "locks"))

    def none_left(_lock: HostLock) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def warned() -> int:
        return len([one for one in caplog.messages if "are asked to be closed stay so" in one])

    with linked(manager.gateway) as (_door, (worker,)):
        with lock.hold("a test", 10, lambda done, _seconds: done(), models=["b"]):
            ask = lock.ask(["a", "b"])
            until(lambda: told(host).ask == ask, "it has answered")
            with monkeypatch.context() as patch:
                let_go: list[object] = []
                patch.setattr(manager.gateway, "hold", let_go.append)
                patch.setattr(HostLock, name, none_left)
                until(lambda: warned() == 1, "it has seen that")
                time.sleep(0.3)
                assert worker.store.gate("a") == "closed"
                assert let_go == []
        until(lambda: worker.store.gate("a") == "open", "it is open again")
        with monkeypatch.context() as patch:
            patch.setattr(HostLock, "held_by", none_left)
            with lock.hold("another", 10, lambda done, _seconds: done(), models=["b"]):
                ask = lock.ask(["a", "b"])
                until(lambda: told(host).ask == ask, "it has answered this, too")
                assert worker.store.gate("a") == "closed"
    assert warned() == 2


def test_without_a_gateway_nobody_is_answered(host: Host, manage: Manage) -> None:
    two(host)
    gates.write(str(host.stack_dir), Answer())  # of one that had a gateway
    manage()
    assert gates.read(str(host.stack_dir)) is None
    assert host.switch("b").warnings == []


def test_what_can_not_be_written_is_told_once(
    host: Host, manage: Manage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    two(host)
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 0.5)
    (host.stack_dir / "run").mkdir(exist_ok=True)
    (host.stack_dir / "run" / f"{state_files.GATES}.json").mkdir()
    manager = manage(**ON)
    with linked(manager.gateway):
        (warning,) = host.switch("b").warnings
    assert "did not confirm" in warning
    assert len([one for one in caplog.messages if "gates.json can't be written" in one]) == 1


@pytest.mark.parametrize("number", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.whole)])
def test_a_service_that_does_not_answer_holds_a_switch_up_for_no_longer_than_it_may(
    host: Host, number: signal.Signals
) -> None:
    declare_two(host)
    host.up(a="active", b=1)
    running, port = service(host)
    try:
        worker = Worker(port)
        until(lambda: worker.store.gate("a") == "open", "the gate is open")
        running.process.send_signal(number)
        began = time.monotonic()
        result = host.switch("b")
        assert gates.ANSWER_SECONDS <= time.monotonic() - began < gates.ANSWER_SECONDS + 10
        assert result.models["b"].state == "active"
        assert ["did not confirm" in one for one in result.warnings] == [True]
        worker.close()
    finally:
        running.process.kill()
        running.process.wait()


def test_what_is_asked_is_as_the_lock_has_it(tmp_path: Path) -> None:
    lock = HostLock(str(tmp_path), place=str(tmp_path / "locks"))
    wait: Any = lambda done, _seconds: done()  # noqa: E731
    assert lock.asked() is None
    with lock.hold("a test", 1, wait):
        assert lock.asked() is None
        first = lock.ask(["b"])
        assert lock.ask(["a"]) == first
        assert lock.asked() == (first, ("a", "b"))
    assert lock.asked() is None
    with lock.hold("a test", 1, wait):
        assert lock.ask(["b"]) != first
