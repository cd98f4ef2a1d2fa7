# SPDX-License-Identifier: MIT
"""The gateway's side of the manager on real stand-ins, its workers played by clients on the real port."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from model_manager import gateway, waiting_room
from model_manager.manager import Manager

from tests.manager.conftest import Manage, ended, two, until
from tests.manager.gateway_workers import Door, Refused, Store, Worker, linked
from tests.manager.test_manager import command_line
from tests.unit.plugins.module_utils.switching.conftest import Host

ON: dict[str, Any] = {"gateway_listen": "127.0.0.1:1", "gateway_token_file": "/nowhere", "linger_seconds": 0.0}


def moments(host: Host, model: str, event: str) -> list[float]:
    """When a server did something, as it has recorded itself."""
    return [one["time"] for one in host.events() if one["model"] == model and one["event"] == event]


def gate_moments(store: Store, model: str, gate: str) -> list[float]:
    return [at for at, name, now in store.gates if (name, now) == (model, gate)]


def queue(manager: Manager) -> list[tuple[str, int]]:
    return [(one.model, one.waiters) for one in manager.view().queue]


# Who waits.


def test_those_who_wait_cause_one_switch_and_go_in_order(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=2)
    manager = manage(**ON)
    with linked(manager.gateway, workers=2) as (_door, (one, other)):
        assert (one.store.gate("a"), one.store.gate("b")) == ("open", "closed")
        numbers = [one.wait("b", waited=float(waited)) for waited in (1, 3, 2)]
        late = other.wait("b")
        until(lambda: queue(manager) == [("b", 4)], "they share a ticket")
        assert manager.view().models["b"].queue_depth == 4
        for worker, number in [*((one, number) for number in numbers), (other, late)]:
            assert worker.outcome(number)["t"] == "go"
        assert [said["id"] for said in one.of("go")] == [numbers[1], numbers[2], numbers[0]]
        assert sorted(said["n"] for said in [*one.of("held"), *other.of("held")]) == [1, 2, 3, 4]
        # Whoever is let go finds the gate open: the state comes before it.
        kinds = [said["t"] for said in one.received]
        last = max(i for i, said in enumerate(one.received) if said["t"] == "state" and i < kinds.index("go"))
        assert {m["id"]: m["gate"] for m in one.received[last]["models"]} == {"a": "closed", "b": "open"}
        until(lambda: not manager.view().queue, "it is over")
    assert len(manager.history.switches()) == 1
    assert manager.history.switches()[0]["requested_by"] == "gateway"
    assert host.states() == {"a": "sleeping", "b": "active"}


def test_no_switch_is_made_for_those_who_have_gone(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=2)
    host.declare("c")
    host.up(c=1)
    manager = manage(**ON)
    with linked(manager.gateway) as (_door, (worker,)):
        first = worker.wait("b")
        until(lambda: queue(manager) == [("b", 1)], "it is asked for")
        waiting = [worker.wait("c") for _each in range(3)]
        until(lambda: ("c", 3) in queue(manager), "they wait")
        for number in waiting[:2]:
            worker.send(t="gone", id=number)
        until(lambda: ("c", 1) in queue(manager), "one waits")
        worker.send(t="gone", id=waiting[2])
        until(lambda: "c" not in dict(queue(manager)), "the ticket is withdrawn")
        assert worker.outcome(first)["t"] == "go"
        time.sleep(0.3)
    assert host.changing_calls("c")[-1] == "POST /sleep?level=1"  # from before
    assert [row["model"] for row in manager.history.switches()] == ["b"]


def test_a_link_that_ends_takes_those_with_it_who_wait_there(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=2)
    manager = manage(**ON)
    with linked(manager.gateway, workers=2) as (_door, (one, other)):
        running = one.wait("b")
        until(lambda: [ticket.status for ticket in manager.view().queue] == ["running"], "it has begun")
        until(lambda: other.store.gate("a") == "closed", "who comes now waits")
        other.wait("a")
        until(lambda: "a" in dict(queue(manager)), "it waits")
        other.close()
        until(lambda: "a" not in dict(queue(manager)), "nobody waits")
        assert one.outcome(running)["t"] == "go"
    assert host.states()["b"] == "active"


def test_a_switch_is_called_off_while_requests_are_waited_for(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage(**ON)
    before = host.changing_calls("a")
    with linked(manager.gateway) as (_door, (worker,)):
        assert worker.store.enter("a")
        number = worker.wait("b")
        until(lambda: worker.store.gate("a") == "closed", "the gate is closed")
        worker.send(t="gone", id=number)
        until(lambda: worker.store.gate("a") == "open", "it is open again")
        until(lambda: not manager.view().queue, "nothing waits")
        worker.store.leave("a")
    assert host.changing_calls("a") == before
    assert manager.history.switches() == []


# The gates, and the requests that run.


def test_gates_close_and_requests_end_before_a_server_is_told_to_sleep(host: Host, manage: Manage) -> None:
    for name in ("a", "b"):
        host.declare(name, standin={"tokens_per_second": 20})
    host.up(a="active", b=1)
    manager = manage(**ON)
    reader = manager.bus.subscribe()
    with linked(manager.gateway) as (_door, (worker,)):
        # One whose server has it, and one that hangs in the gateway: only its counts tell.
        over: list[float] = []

        def hang() -> None:
            served.join(30)
            time.sleep(0.5)
            over.append(time.time())

        served = threading.Thread(target=worker.request, args=("a", lambda: host.completion("a", 40)))
        hanging = threading.Thread(target=worker.request, args=("a", hang))  # the longer one
        for thread in (served, hanging):
            thread.start()
        until(lambda: worker.store.in_flight.get("a") == 2 and host.running("a") == 1, "both are on their way")
        number = worker.wait("b")
        until(lambda: worker.store.gate("a") == "closed", "the gate is closed")
        late = worker.wait("a")  # one that comes meanwhile waits
        assert worker.outcome(number)["t"] == "go"
        for thread in (served, hanging):
            thread.join(10)
        assert worker.outcome(late)["t"] == "go"
        drained = [event.at for event in reader.take() if event.kind == "step_begun"]
        closed = gate_moments(worker.store, "a", "closed")
        finished = moments(host, "a", "request_end")[0]
        asleep = moments(host, "a", "sleeping")[-1]
        assert closed[0] < finished < over[0] < drained[0] < asleep
        assert gate_moments(worker.store, "b", "open")[0] > moments(host, "b", "awake")[-1]


def test_what_takes_too_long_is_left_to_the_engine(host: Host, manage: Manage) -> None:
    two(host)
    host.settings["drain_timeout_seconds"] = 0.6
    manager = manage(**ON)
    with linked(manager.gateway) as (_door, (worker,)):
        assert worker.store.enter("a")
        began = time.monotonic()
        assert worker.outcome(worker.wait("b"))["t"] == "go"
        assert 0.6 < time.monotonic() - began < 5
        worker.store.leave("a")


def test_a_worker_that_hangs_keeps_no_switch_waiting_where_another_one_answers(host: Host, manage: Manage) -> None:
    two(host)
    host.settings["drain_timeout_seconds"] = 8
    manager = manage(**ON)
    with linked(manager.gateway, workers=2) as (_door, (hanging, other)):
        hanging.answers_counts = False
        for model in ("b", "a"):  # whichever is asked first
            began = time.monotonic()
            assert other.outcome(other.wait(model))["t"] == "go"
            assert time.monotonic() - began < 7
        other.answers_counts = False
        began = time.monotonic()
        assert other.outcome(other.wait("b"))["t"] == "go"
        assert 8 <= time.monotonic() - began < 20, "nobody tells: as long as a drain may take"


def test_who_was_let_go_comes_in_before_the_gate_closes_again(
    host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (waiting_room, gateway):
        monkeypatch.setattr(module, "_ENTER_SECONDS", 10)
    two(host)
    manager = manage(**ON)
    with linked(manager.gateway) as (_door, (worker,)):
        number = worker.wait("b")
        back = None
        assert worker.outcome(number)["t"] == "go"
        back = worker.wait("a")
        time.sleep(0.2)  # a worker that is busy
        assert worker.store.enter("b")
        worker.send(t="entered", id=number)
        until(lambda: worker.store.gate("b") == "closed", "it closes then")
        assert not worker.of("go", back)
        worker.store.leave("b")
        assert worker.outcome(back)["t"] == "go"


def test_a_switch_that_fails_is_told_and_the_former_model_goes_on(host: Host, manage: Manage) -> None:
    host.settings["escalation"] = ["roll_back"]
    two(host)
    manager = manage(reconcile=False, **ON)
    host.fault("b", "/wake_up", "status_500", times=0)
    with linked(manager.gateway) as (_door, (worker,)):
        numbers = [worker.wait("b") for _each in range(3)]
        until(lambda: gate_moments(worker.store, "a", "closed"), "the gate is closed")
        held = worker.wait("a")
        for number in numbers:
            said = worker.outcome(number)
            assert (said["t"], said["status"], said["code"]) == ("refuse", 503, "switch_failed")
            assert said["message"].startswith("b ") and said["retry_after"] >= 1
        assert worker.outcome(held)["t"] == "go"
        assert worker.store.gate("a") == "open"
        # Retries of clients make no further switch while the model rests.
        again = worker.outcome(worker.wait("b"))
        assert (again["status"], again["code"]) == (503, "model_failing")
        assert again["retry_after"] >= 1
    assert len(manager.history.switches()) == 1


def test_a_switch_by_the_command_line_closes_the_gates_until_it_was_looked_at(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.7)
    host.declare("c", gpus=[1])
    host.up(c="active")
    manager = manage(observe_seconds=30, **ON)
    with linked(manager.gateway) as (_door, (worker,)):
        run = command_line(host, "switch", "b")
        until(lambda: worker.store.gate("a") == "closed", "the gate is closed")
        # Which is asked for, and so may come before the look that finds out who switches.
        until(lambda: bool(manager.view().lock_holder), "who switches is known")
        assert worker.store.gate("c") == "open"  # it has a GPU of its own
        number = worker.wait("b")
        assert run.wait(timeout=30) == 0
        assert worker.outcome(number)["t"] == "go"
        assert worker.store.gate("a") == "closed"
        assert gate_moments(worker.store, "b", "open")[0] > moments(host, "b", "awake")[-1]
    assert [row["requested_by"] for row in manager.history.switches()] == ["module or command line"]


def test_a_switch_by_others_that_nobody_saw_closes_the_gates_until_the_next_look(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage(observe_seconds=30, **ON)
    with linked(manager.gateway) as (_door, (worker,)):
        host.switch("b")
        until(lambda: worker.store.gate("b") == "open", "what it has done is seen")
        assert worker.store.gate("a") == "closed"


def test_a_server_that_ends_or_sleeps_past_the_manager_has_its_gate_closed(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage(reconcile=False, **ON)
    with linked(manager.gateway) as (_door, (worker,)):
        host.call("a", "POST", "/sleep?level=1")
        until(lambda: worker.store.gate("a") == "closed", "that it sleeps is seen")
        number = worker.wait("a")
        assert worker.outcome(number)["t"] == "go"
        assert host.states()["a"] == "active"


def test_a_model_that_is_used_again_is_not_put_to_sleep(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage(idle_sleep_seconds=0.5, **ON)
    with linked(manager.gateway) as (_door, (worker,)):
        assert worker.store.enter("a")
        time.sleep(1.5)
        assert worker.store.gate("a") == "open"
        assert host.states()["a"] == "active"
        worker.store.leave("a")
        until(lambda: host.states()["a"] == "sleeping", "nobody uses it")
        assert worker.store.gate("a") == "closed"


# What is refused.


def test_what_can_not_be_is_refused_at_once(host: Host, manage: Manage) -> None:
    two(host)
    host.declare("off", startup_mode="disabled")
    manager = manage(**ON)
    with linked(manager.gateway) as (_door, (worker,)):

        def refused(model: str, **more: Any) -> tuple[int, str, str]:
            said = worker.outcome(worker.wait(model, **more))
            assert said["t"] == "refuse"
            return said["status"], said["code"], said["message"]

        status, code, message = refused("x")
        assert (status, code) == (404, "model_not_found")
        assert "use one of a, b" in message
        status, code, message = refused("off")
        assert (status, code) == (409, "model_unavailable") and "off is disabled" in message
        status, code, _message = refused("b", task="follow_up_generation")
        assert (status, code) == (503, "busy_task")
        ended(manager.pin("a"))
        status, code, message = refused("b")
        assert (status, code) == (409, "model_unavailable") and "a is pinned" in message
        manager.unpin()
        assert worker.outcome(worker.wait("a", task="title_generation"))["t"] == "go"  # it is active
    assert {row["model"] for row in manager.history.switches()} == {"a"}, "but for the pin nothing was asked for"


def test_a_pin_that_comes_while_requests_wait_refuses_them(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=2)
    manager = manage(**ON)
    with linked(manager.gateway) as (_door, (worker,)):
        first = worker.wait("b")
        until(lambda: [ticket.status for ticket in manager.view().queue] == ["running"], "it has begun")
        until(lambda: worker.store.gate("a") == "closed", "who comes now waits")
        waiting = worker.wait("a")
        until(lambda: "a" in dict(queue(manager)), "it waits")
        manager.pin("b")
        assert worker.outcome(first)["t"] == "go"
        said = worker.outcome(waiting)
        assert (said["status"], said["code"]) == (409, "model_unavailable")


def test_a_full_queue_is_told(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=2)
    host.declare("c")
    host.up(c=1)
    manager = manage(max_queue=1, **ON)
    with linked(manager.gateway) as (_door, (worker,)):
        first = worker.wait("b")
        until(lambda: [ticket.status for ticket in manager.view().queue] == ["running"], "it has begun")
        second = worker.wait("c")
        until(lambda: "c" in dict(queue(manager)), "it waits")
        until(lambda: worker.store.gate("a") == "closed", "who comes now waits")
        said = worker.outcome(worker.wait("a"))
        assert (said["status"], said["code"]) == (503, "queue_full")
        assert said["retry_after"] >= 1
        assert [worker.outcome(number)["t"] for number in (first, second)] == ["go", "go"]


def test_a_removed_model_is_refused(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.8)
    host.declare("c")
    manager = manage(**ON)
    with linked(manager.gateway) as (_door, (worker,)):
        worker.wait("b")
        number = worker.wait("c")
        until(lambda: "c" in dict(queue(manager)), "it waits")
        del host.models[2]
        from tests.manager.conftest import write_inventory

        write_inventory(host)
        said = worker.outcome(number)
        assert (said["t"], said["status"], said["code"]) == ("refuse", 404, "model_not_found")
        until(lambda: list(worker.store.models) == ["a", "b"], "the gateway knows it no more")


# The service's end and beginning.


def test_those_who_wait_come_back_to_a_manager_that_was_restarted(host: Host, manage: Manage) -> None:
    two(host)
    first = manage(**ON)
    door = Door(first.gateway)
    worker = Worker(door.port)
    until(lambda: worker.of("state"), "it has the state")
    assert worker.store.enter("a")  # so that the switch waits
    number = worker.wait("b")
    until(lambda: worker.store.gate("a") == "closed", "it is being switched")
    assert first.stop()
    until(lambda: worker.store.gate("a") == "open", "the gates are left as the models are")
    door.close()
    assert worker.closed.wait(10)
    assert not worker.of("refuse") and not worker.of("go", number)
    second = manage(**ON)
    door = Door(second.gateway, door.port)
    again = Worker(door.port, worker.store)
    try:
        waited = again.wait("b", waited=100.0)
        until(lambda: again.of("state"), "it has the state")
        assert again.store.version[0] > worker.of("state")[-1]["version"][0]
        until(lambda: second.view().queue, "it is asked for")
        assert time.time() - second.view().queue[0].asked_at > 99
        again.store.leave("a")
        assert again.outcome(waited)["t"] == "go"
    finally:
        worker.close()
        again.close()
        door.close()


def test_a_switch_waits_for_workers_that_come_back(host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "_LINK_SECONDS", 5.0)
    two(host)
    manager = manage(**ON)
    ticket = manager.request("b")
    time.sleep(0.5)
    assert host.states()["a"] == "active", "a worker may take its gate for open"
    with linked(manager.gateway) as (_door, (worker,)):
        assert ended(ticket).status == "done"
        assert worker.store.gate("a") == "closed"
    ended(ticket)
    began = time.monotonic()
    assert ended(manager.request("a")).status == "done"
    assert 3 < time.monotonic() - began < 15, "none comes: there is no gateway"


def test_a_clock_that_was_set_back_does_not_freeze_the_gateway(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage(**ON)
    door = Door(manager.gateway)
    store = Store()
    store.version = [int(time.time() * 1000) + 10**9, 7]
    worker = Worker(door.port, store)
    try:
        until(lambda: store.gate("a") == "open", "a state is taken")
        assert worker.outcome(worker.wait("b"))["t"] == "go"
        assert (store.gate("a"), store.gate("b")) == ("closed", "open")
    finally:
        worker.close()
        door.close()


# What is told.


def test_those_who_wait_are_told_their_place_and_the_time(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=5)
    host.declare("c")
    host.up(c=1)
    manager = manage(**ON)
    with linked(manager.gateway) as (_door, (worker,)):
        worker.wait("b")
        until(lambda: [ticket.status for ticket in manager.view().queue] == ["running"], "it has begun")
        waiting = [worker.wait("c") for _each in range(3)]

        def told(model: str, first: int) -> list[dict[str, Any]]:
            return [one for one in worker.of("tell") if (one["model"], one["first"]) == (model, first)]

        assert until(lambda: told("c", 1), "they are told") < 1, "at once"
        assert told("c", 1)[0]["ahead"] == 1
        assert told("c", 1)[0]["eta"] > 0
        until(lambda: len(told("b", 1)) > 1, "this one is told again")
        worker.send(t="gone", id=waiting[0])
        until(lambda: told("c", 2), "their places have changed")


def test_the_events_and_the_status_show_the_gateways_counts(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=1)
    manager = manage(**ON)
    reader = manager.bus.subscribe()
    with linked(manager.gateway) as (_door, (worker,)):
        assert worker.store.enter("a")
        until(lambda: manager.view().models["a"].in_flight == 1, "its request is counted")
        worker.wait("b")
        until(lambda: manager.view().models["b"].queue_depth == 1, "it waits")
        told: list[dict[str, Any]] = []

        def shown() -> bool:
            told.extend(event.data for event in reader.take() if event.kind == "gateway")
            return any(one["in_flight"] == {"a": 1} and one["waiting"] == {"b": 1} for one in told)

        until(shown, "an event tells it")
        assert told[-1]["links"] == 1
        worker.store.leave("a")


def test_the_list_has_what_open_webui_acts_on(host: Host, manage: Manage) -> None:
    host.declare("a", description="Small and quick.", model="org/shared", aliases=["quick"])
    host.declare("b", model="org/shared", start_command=[
        *("vllm", "serve", "org/shared", "--port", "${host_port}", "--max-model-len", "2048"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--lora-modules", "one=/x/one", '{"name": "two", "path": "/x/two"}'),
    ])  # fmt: skip
    host.up(a="active")
    manager = manage(reconcile=False, **ON)
    with linked(manager.gateway) as (_door, (worker,)):
        a, b = worker.of("state")[-1]["models"]
        assert (a["names"], b["names"]) == (["a", "quick"], ["b"])
        assert (a["state"], a["gate"], a["port"]) == ("active", "open", host.model("a").host_port)
        assert (b["state"], b["gate"], b["adapters"]) == ("stopped", "closed", ["one", "two"])
        entry = json.loads(a["entry"])
        assert (entry["id"], entry["object"], entry["root"], entry["parent"]) == ("a", "model", "org/shared", None)
        assert (entry["loaded"], entry["name"], entry["tags"]) == (True, "a", [{"name": "active"}])
        assert entry["info"]["meta"]["description"] == "Small and quick. Active"
        entry = json.loads(b["entry"])
        assert (entry["loaded"], entry["max_model_len"]) == (False, 2048)
        assert "capabilities" not in entry["info"]["meta"]
        one = json.loads(b["adapter_entries"][0])
        assert (one["id"], one["root"], one["parent"]) == ("one", "one", "b")
        until(
            lambda: "ready in about" in json.loads(worker.store.models["b"]["entry"])["info"]["meta"]["description"],
            "the time is told",
        )


def test_adapters_are_those_that_a_server_tells_too(host: Host, manage: Manage) -> None:
    host.declare("a")
    words = host.models[0]["start_command"]
    host.models[0]["start_command"] = [*words, "--enable-lora", "--lora-modules", "one=/tmp/one"]
    host.models[0]["env"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    host.up(a="active")
    manager = manage(**ON)
    with linked(manager.gateway) as (_door, (worker,)):
        assert worker.store.models["a"]["adapters"] == ["one"]
        answer = host.call("a", "POST", "/v1/load_lora_adapter", json={"lora_name": "two", "lora_path": "/tmp"})
        assert answer.status_code == 200, answer.text
        until(lambda: worker.store.models["a"]["adapters"] == ["one", "two"], "the new one is seen")


# Turns.


def test_a_model_lingers_after_an_answer_and_not_for_ever(host: Host, manage: Manage) -> None:
    two(host)
    manager = manage(**{**ON, "linger_seconds": 0.8})
    with linked(manager.gateway) as (_door, (worker,)):
        worker.request("a", lambda: None)
        began = time.monotonic()
        number = worker.wait("b")
        time.sleep(0.3)
        worker.request("a", lambda: None)  # what follows an answer finds it active
        assert worker.outcome(number)["t"] == "go"
        assert 1.0 < time.monotonic() - began < 8


def test_one_key_does_not_outweigh_the_others(host: Host, manage: Manage) -> None:
    two(host, wake_seconds=0.6)
    host.declare("c")
    host.up(c=1)
    manager = manage(**ON)
    with linked(manager.gateway) as (_door, (worker,)):
        worker.wait("b")
        until(lambda: [ticket.status for ticket in manager.view().queue] == ["running"], "it has begun")
        for number in range(24):
            worker.wait("c", key="greedy" if number < 20 else f"other{number}")
        until(lambda: ("c", 24) in queue(manager), "all wait")
        (ticket,) = [one for one in manager.view().queue if one.model == "c"]
        found = manager.ticket(ticket.id)
        assert found is not None
        assert found.waiters - found.uncounted == 8 + 4


@pytest.mark.parametrize("policy", ["fifo", "batched"])
def test_requests_that_take_turns_are_all_answered(host: Host, manage: Manage, policy: str) -> None:
    two(host)
    manager = manage(policy=policy, max_wait_seconds=3, **ON)
    refused: list[Refused] = []
    with linked(manager.gateway, workers=2) as (_door, workers):

        def ask(number: int) -> None:
            for turn in range(6):
                model = "ab"[(number + turn) % 2]
                try:
                    workers[number % 2].request(model, lambda model=model: host.completion(model, 1))  # type: ignore[misc]
                except Refused as error:
                    refused.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        assert not any(thread.is_alive() for thread in threads)
    assert refused == []
    # Whatever came to a server found it awake (the stand-in holds what comes while it sleeps, and says so).
    for name in ("a", "b"):
        assert len(moments(host, name, "request_start")) == len(moments(host, name, "request_end"))
