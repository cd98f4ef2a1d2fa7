# SPDX-License-Identifier: MIT
"""The manager on real stand-ins: what is asked for is done once, in order, and what is told of it is true."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import desired_state, state_files
from model_manager import view
from model_manager.manager import Busy, Conflict, Manager, Ticket, UnknownModel, Unsupported
from model_manager.tickets import RECONCILER

from tests.manager.conftest import Manage, ended, two, until, write_inventory
from tests.unit.plugins.module_utils.switching.conftest import Host

ROOT = Path(__file__).parents[2]


def state(manager: Manager, model: str) -> str:
    return manager.view().models[model].state


def active(manager: Manager) -> list[str]:
    return manager.view().active


def command_line(host: Host, *words: str) -> subprocess.Popen[str]:
    """The host's own command line, in a process of its own."""
    package = "ansible_collections.homegpt.vllm.plugins.module_utils.switching"
    command = [sys.executable, "-m", package, "--stack-dir", str(host.stack_dir), *words]
    return subprocess.Popen(command, cwd=ROOT / ".build", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_switch_is_made_and_told_as_it_goes(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage()
    assert active(manager) == ["a"]
    reader = manager.bus.subscribe()
    ticket = ended(manager.request("b", by="test"))
    assert (ticket.status, ticket.error, ticket.from_model) == ("done", None, "a")
    assert ticket.result is not None
    assert ticket.result["active_model"] == "b"
    shown = manager.view()
    assert (shown.active, shown.switching, shown.queue) == (["b"], None, [])
    assert (state(manager, "a"), shown.models["a"].level) == (view.ASLEEP, 1)
    assert shown.models["a"].process_state == "sleeping:offload+keep_running"
    assert (shown.models["b"].status, shown.models["b"].eta_seconds) == ("active", 0)
    assert host.states() == {"a": "sleeping", "b": "active"}

    events = reader.take()
    states = [(e.data["model"], e.data["state"]) for e in events if e.kind == "state"]
    assert [one for name, one in states if name == "a"] == [view.SLEEP_PENDING, view.ASLEEP]
    assert [one for name, one in states if name == "b"] == [view.WAKING, view.READY]
    assert states.index(("a", view.ASLEEP)) < states.index(("b", view.WAKING))
    steps = [(e.data["action"], e.data["model"]) for e in events if e.kind == "step_ended"]
    assert steps == [(step["action"], step["model"]) for step in ticket.result["steps"]]
    assert {e.data["ticket"] for e in events if e.kind.startswith("step")} == {ticket.id}
    kinds = [e.kind for e in events]
    assert kinds.index("switch_queued") < kinds.index("switch_begun") < kinds.index("step_begun")
    assert kinds.index("step_ended") < kinds.index("switch_ended")
    until(manager.history.switches, "it is in the history")
    row = manager.history.switches()[0]
    assert (row["model"], row["requested_by"], row["previous"], row["active"]) == ("b", "test", ["a"], ["b"])


def test_who_asks_for_the_same_joins_and_who_asks_for_another_waits(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.5)
    manager = manage()
    first = manager.request("b")
    until(lambda: first.status == "running", "it has begun")
    assert manager.request("b") is first
    second = manager.request("a")
    assert (second.status, second.view().position) == ("queued", 1)
    assert manager.request("a") is second
    assert manager.request("a", "sleeping") is not second
    shown = manager.view()
    assert shown.switching == ("a", "b")
    assert [(one.model, one.desired) for one in shown.queue] == [
        ("b", "active"), ("a", "active"), ("a", "sleeping"),
    ]  # fmt: skip
    assert shown.models["b"].queue_depth == 2
    assert first.eta_seconds is not None
    assert second.eta_seconds is not None
    assert second.eta_seconds > first.eta_seconds
    assert [ended(one).status for one in (first, second)] == ["done", "done"]
    assert first.ended_at is not None
    assert second.begun_at is not None
    assert first.ended_at <= second.begun_at
    until(lambda: not manager.view().queue, "nothing waits")
    assert host.states()["a"] == "sleeping"


def test_many_who_ask_for_anything_are_each_told_the_truth(host: Host, manage: Manage) -> None:
    for name in ("a", "b", "c"):
        host.declare(name)
    host.up(a="active", b=1, c=1)
    manager = manage()
    chance = random.Random(17)
    targets = [chance.choice("abc") for _each in range(120)]
    wrong: list[Any] = []

    def ask(target: str) -> None:
        ticket = ended(manager.request(target))
        if ticket.status != "done" or ticket.result is None or ticket.result["active_models"] != [target]:
            wrong.append(ticket.as_dict())

    threads = [threading.Thread(target=ask, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert active(manager) == [name for name, one in host.states().items() if one == "active"]
    # The fixture sees that no two were awake at any moment.


def test_what_can_not_be_is_refused_with_a_remedy(host: Host, manage: Manage) -> None:
    two(host)
    host.declare("c", startup_mode="disabled")
    manager = manage(max_queue=1)
    with pytest.raises(UnknownModel, match="model not found: x") as unknown:
        manager.request("x")
    assert "a, b, c (disabled)" in unknown.value.remedy
    with pytest.raises(Conflict, match="c is disabled"):
        manager.request("c")
    with pytest.raises(Unsupported, match="desired"):
        manager.request("a", "dreaming")
    with pytest.raises(Unsupported, match="level"):
        manager.request("a", level=1)
    assert manager.view().models["c"].status == "disabled"


def test_a_full_queue_refuses_and_says_when_to_come_again(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.5)
    manager = manage(max_queue=1)
    first = manager.request("b")
    until(lambda: first.status == "running", "it has begun")
    waiting = manager.request("a")
    with pytest.raises(Busy) as busy:
        manager.request("b", "sleeping")
    assert busy.value.retry_after is not None
    assert busy.value.retry_after >= 1
    assert manager.request("a") is waiting  # to join takes no place
    assert ended(waiting).status == "done"


def test_a_ticket_that_nobody_waits_for_is_taken_out_of_the_queue(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.4)
    manager = manage()
    first = manager.request("b")
    until(lambda: first.status == "running", "it has begun")
    waiting = manager.request("a")
    assert manager.request("a") is waiting
    assert not waiting.cancel()
    assert not waiting.future.cancel()
    assert waiting.cancel()
    assert ended(waiting).error is not None
    assert not first.cancel()  # it has begun
    assert ended(first).status == "done"
    assert active(manager) == ["b"]
    assert manager.ticket(waiting.id) is waiting


def test_who_joins_what_the_manager_does_by_itself_and_leaves_again_leaves_it_guarded(
    host: Host, manage: Manage
) -> None:
    two(host, wake_seconds=0.4)
    manager = manage(reconcile=False)
    asked: list[str] = []

    def guard() -> bool:
        asked.append("guard")
        return False

    def waiting() -> Ticket:
        """What the manager asks for by itself, while another switch runs."""
        first = manager.request("b" if active(manager) == ["a"] else "a")
        until(lambda: first.status == "running", "it has begun")
        return manager.request("b", "stopped", by=RECONCILER, guard=guard)

    ticket = waiting()
    for _each in range(2):
        assert manager.request("b", "stopped", by="somebody") is ticket
    assert ticket.by == "somebody"
    assert not ticket.cancel()
    assert ticket.by == "somebody"
    assert not ticket.cancel()
    assert ticket.by == RECONCILER
    assert (ended(ticket).error or {})["kind"] == "Superseded"
    assert asked == ["guard"]
    assert state(manager, "b") == view.READY

    ticket = waiting()
    assert manager.request("b", "stopped", by="somebody") is ticket
    assert ended(ticket).error is None, "somebody wants it in any case"
    assert asked == ["guard"]
    assert state(manager, "b") == view.STOPPED


def test_a_switch_that_fails_is_told_without_secrets(host: Host, manage: Manage) -> None:
    host.declare("a")
    host.declare("b", env={"HF_TOKEN": "hf_very-secret-0123456789"})
    host.settings["escalation"] = ["roll_back"]
    host.up(a="active", b=1)
    manager = manage(reconcile=False)
    host.fault("b", "/wake_up", "status_500", times=0)
    reader = manager.bus.subscribe()
    ticket = ended(manager.request("b"))
    assert ticket.status == "failed"
    assert ticket.error is not None
    assert ticket.error["kind"] == "SwitchFailed"
    assert "a is active again" in ticket.error["message"]
    assert ticket.result is not None
    assert active(manager) == ["a"]
    until(manager.history.switches, "it is in the history")
    told = json.dumps([ticket.as_dict(), [event.as_dict() for event in reader.take()], manager.history.switches()])
    assert "secret" not in told
    assert ended(manager.request("a")).status == "done"  # the next one is none the worse


def test_a_switch_by_the_command_line_is_seen_and_not_undone(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.7)
    manager = manage(observe_seconds=30)  # seen by what it writes, not by looking often
    reader = manager.bus.subscribe()
    run = command_line(host, "switch", "b")
    until(lambda: manager.view().lock_holder, "that somebody switches is seen")
    assert "b active" in manager.view().lock_holder
    assert run.wait(timeout=30) == 0
    assert until(lambda: active(manager) == ["b"], "what it did is seen") < 10
    until(lambda: not manager.view().lock_holder, "that it is over is seen")
    until(manager.history.switches, "it is in the history")
    assert manager.history.switches()[0]["requested_by"] == "module or command line"
    time.sleep(0.6)  # it looks more than once meanwhile
    events = [event for event in reader.take() if event.kind.startswith("switch")]
    told = [(event.kind, event.data["models"], event.data["state"], event.data["result"]) for event in events]
    assert told == [("switch_seen", ["b"], "active", "done")]  # and nothing was begun
    assert manager.view().models["b"].desired == "active"
    assert host.states()["b"] == "active"


def test_a_switch_of_its_own_is_not_taken_for_somebody_elses(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage()
    reader = manager.bus.subscribe()
    for name in ("b", "a", "b"):
        ended(manager.request(name))
        time.sleep(0.4)  # it looks meanwhile
    assert [event.kind for event in reader.take() if event.kind in ("switch_seen", "lock")] == []
    assert len(manager.history.switches()) == 3


def test_a_server_that_dies_is_seen(host: Host, manage: Manage, signalled: Callable[[str], None]) -> None:
    two(host)
    manager = manage(reconcile=False)
    signalled("a")
    until(lambda: state(manager, "a") in (view.STOPPED, view.ERROR), "it is seen")
    assert active(manager) == []


@pytest.fixture
def signalled(host: Host) -> Callable[[str], None]:
    """Kills a server that the host has started."""

    def kill(name: str) -> None:
        import os
        import signal

        command = next(one for one in host.started if one.model.id == name)
        os.killpg(command.pids()[0], signal.SIGKILL)

    return kill


def test_the_inventory_is_read_again_when_it_changes(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage()
    (host.stack_dir / "models.json").write_text('{"vllm_models": [{"id": "a"}]}')
    until(lambda: manager.view().problem, "the mistake is seen")
    assert "vllm_models[0] (a)" in manager.view().problem
    assert list(manager.view().models) == ["a", "b"]
    assert ended(manager.request("b")).status == "done"
    host.declare("c", gpus=[1])
    host.up(c="active")
    write_inventory(host)
    until(lambda: "c" in manager.view().models and state(manager, "c") == view.READY, "the new model is seen")
    assert manager.view().problem == ""
    assert active(manager) == ["b", "c"]


def test_manual_mode_and_the_pin(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage()
    ticket = manager.pin("b")
    assert (manager.view().mode, manager.view().pinned) == ("manual", "b")
    assert ended(ticket).status == "done"
    with pytest.raises(Conflict, match="b is pinned"):
        manager.request("a")
    with pytest.raises(Conflict, match="b is pinned"):
        manager.request("b", "sleeping", manual=True)
    ended(manager.request("a", manual=True))  # by hand the pin moves along
    assert manager.view().pinned == "a"
    assert active(manager) == ["a"]
    manager.set_mode("manual")
    assert manager.view().pinned is None
    with pytest.raises(Conflict, match="the mode is manual"):
        manager.request("b")
    with pytest.raises(Unsupported):
        manager.set_mode("sometimes")
    manager.unpin()
    assert manager.view().mode == "auto"
    assert ended(manager.request("b")).status == "done"


def test_a_pin_whose_switch_fails_leaves_the_mode_as_it_was(host: Host, manage: Manage) -> None:
    host.settings["escalation"] = ["roll_back"]
    two(host)
    manager = manage(reconcile=False)
    host.fault("b", "/wake_up", "status_500", times=0)
    assert ended(manager.pin("b")).status == "failed"
    assert (manager.view().mode, manager.view().pinned) == ("auto", None)
    with pytest.raises(UnknownModel):
        manager.pin("x")
    assert manager.view().mode == "auto"


def test_mode_pin_and_evictions_outlive_a_restart_of_the_service(host: Host, manage: Manage) -> None:
    two(host)
    first = manage()
    ended(first.pin("b"))
    first.set_eviction("a", "discard", "keep_running")
    assert first.stop()
    second = manage()
    assert (second.view().mode, second.view().pinned) == ("manual", "b")
    assert second.eviction("a") == {"weights": "discard", "process": "keep_running"}
    assert second.view().models["b"].last_active is not None


def test_a_pin_ends_when_the_command_line_switches_past_it(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage()
    ended(manager.pin("b"))
    assert command_line(host, "switch", "a").wait(timeout=30) == 0
    until(lambda: manager.view().pinned is None, "the pin has ended")
    assert manager.view().mode == "auto"
    assert active(manager) == ["a"]


def test_an_eviction_decides_how_a_model_makes_room(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage()
    assert manager.eviction("a") == {"weights": "offload", "process": "keep_running"}
    assert manager.set_eviction("a", "discard", "keep_running") == {"weights": "discard", "process": "keep_running"}
    ended(manager.request("b"))
    assert manager.view().models["a"].level == 2
    manager.set_eviction("b", "offload", "stop")
    ended(manager.request("a"))
    assert state(manager, "b") == view.STOPPED
    manager.set_eviction("a", "retain", "keep_running")
    with pytest.raises(Conflict, match="a never makes room"):
        manager.request("b")
    with pytest.raises(Conflict, match="a never makes room"):
        manager.request("a", "sleeping")
    ended(manager.request("a", "sleeping", level=1))  # asked for in so many words
    assert manager.view().models["a"].level == 1
    for weights, process, why in (
        ("offload", "cuda_suspend", "CUDA"),
        ("discard", "checkpoint", "checkpoint"),
        ("melt", "keep_running", "retain, offload, discard"),
        ("retain", "melt", "keep_running, cuda_suspend"),
    ):
        with pytest.raises(Unsupported, match=why):
            manager.set_eviction("a", weights, process)
    assert desired_state.recorded(str(host.stack_dir))["a"] == "sleeping"


def test_a_model_whose_server_can_not_sleep_is_stopped_whatever_is_set(host: Host, manage: Manage) -> None:
    host.declare("a", sleep_level="stop", env={"VLLM_SERVER_DEV_MODE": "0"})
    host.declare("b")
    host.up(a="active", b=1)
    before = {"evictions": {"a": ["offload", "keep_running"]}}  # as set when its sleep_level was another one
    state_files.write(str(host.stack_dir), state_files.MANAGER, before)
    manager = manage(reconcile=False)
    assert manager.eviction("a") == {"weights": "discard", "process": "stop"}
    for weights in ("offload", "discard"):
        with pytest.raises(Unsupported, match="a can't sleep: its sleep_level is stop"):
            manager.set_eviction("a", weights, "keep_running")
    with pytest.raises(Unsupported, match="a can't sleep"):
        manager.request("a", "sleeping", level=1)
    assert ended(manager.request("b")).error is None
    assert host.states() == {"a": "stopped", "b": "active"}


def test_who_never_makes_room_does_not_for_one_that_is_loaded_to_sleep_either(host: Host, manage: Manage) -> None:
    for name in ("a", "b"):
        host.declare(name)
    host.up(a="active")
    manager = manage(reconcile=False)
    manager.set_eviction("a", "retain", "keep_running")
    with pytest.raises(Conflict, match="a never makes room"):
        manager.request("b", "sleeping")
    manager.set_eviction("a", "offload", "keep_running")
    ended(manager.pin("a"))
    before = host.changing_calls("a")
    with pytest.raises(Conflict, match="a is pinned, and would make room while b loads"):
        manager.request("b", "sleeping", manual=True)
    assert host.changing_calls("a") == before
    manager.unpin()
    assert ended(manager.request("b", "sleeping")).status == "done"
    assert host.states() == {"a": "active", "b": "sleeping"}
    ended(manager.pin("a"))
    assert ended(manager.request("b", "sleeping", manual=True)).status == "done", "it sleeps, so that nothing is loaded"


def test_a_switch_that_runs_may_end_when_the_service_does(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.5)
    manager = manage()
    running = manager.request("b")
    until(lambda: running.status == "running", "it has begun")
    waiting = manager.request("a")
    assert manager.stop()
    assert running.status == "done"
    assert host.states() == {"a": "sleeping", "b": "active"}
    assert ended(waiting).error is not None
    assert waiting.error is not None
    assert waiting.error["kind"] == "Busy"
    with pytest.raises(Busy):
        manager.request("a")


def test_a_switch_that_takes_too_long_is_taken_back_when_the_service_ends(host: Host, manage: Manage) -> None:
    host.declare("a")
    host.declare("b", standin={"load_seconds": 60})
    host.up(a="active")
    manager = manage()
    ticket = manager.request("b")
    until(lambda: host.states()["b"] == "loading", "it loads")
    began = time.monotonic()
    assert manager.stop(timeout=0.5)
    assert time.monotonic() - began < 10
    assert ended(ticket).status == "failed"
    assert ticket.error is not None
    assert "the manager ends" in ticket.error["message"]
    assert ticket.error["kind"] == "Busy"  # no server has failed
    assert host.states()["a"] == "active"


def test_requests_are_seen_and_the_time_without(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage(observe_seconds=0.1)
    until(lambda: (manager.view().models["a"].idle_seconds or 0) > 0.3, "it is idle")
    before = manager.view().models["a"].idle_seconds
    assert before is not None
    host.completion("a")
    until(lambda: (manager.view().models["a"].idle_seconds or 99) < 0.3, "its request is seen")
    assert manager.view().models["a"].in_flight == 0


def test_what_is_shown_never_waits_for_a_server(host: Host, manage: Manage) -> None:
    two(host)
    host.settings["probe_timeout_seconds"] = 1
    manager = manage(reconcile=False, observe_seconds=0.1)
    host.fault("b", "/health", "hang", times=0)
    until(lambda: manager.view().age_seconds > 0.5, "the look hangs")
    began = time.monotonic()
    for _each in range(50):
        manager.view()
    assert time.monotonic() - began < 0.5
    until(lambda: manager.view().models["b"].unknown, "that it does not answer is seen")


def test_batched_lets_the_active_model_go_on_while_it_is_used(host: Host, manage: Manage) -> None:
    for name in ("a", "b"):  # small ones, for which a switch is expected to be quick
        host.declare(name, standin={"tokens_per_second": 40}, weights_gb=0.1)
    host.up(a="active", b=1)
    manager = manage(policy="batched", max_wait_seconds=120, observe_seconds=0.1)
    asked = threading.Thread(target=host.completion, args=("a", 30))
    asked.start()
    until(lambda: manager.view().models["a"].in_flight == 1, "its request is seen")
    ticket: Ticket = manager.request("b")
    time.sleep(0.5)
    assert ticket.status == "queued"
    asked.join()
    assert ended(ticket).status == "done"
    assert active(manager) == ["b"]
