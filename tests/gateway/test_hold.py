# SPDX-License-Identifier: MIT
"""A request for a model that is not active waits at the gateway: for whom, for how long, and what becomes of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from tests.gateway.fake_link import model, playing
from tests.gateway.gatewaylib import Client, Start, missing
from tests.gateway.played import DONE, Call, Server, answers, streams, until
from tests.part import ROOT, fewer, quick

SMALL = {"model": "qwen", "messages": [{"role": "user", "content": "Hi"}]}


def chat(size: int = 0, **more: Any) -> dict[str, Any]:
    """A request of about so many bytes, the model's name after them, as SDKs send it."""
    return {"messages": [{"role": "user", "content": "x" * size}], "model": "qwen"} | more


def test_one_waits_while_others_pass(start: Start) -> None:
    with contextlib.ExitStack() as stack:
        qwen, other = stack.enter_context(Server()), stack.enter_context(Server())
        with playing(model("qwen", qwen.port, "closed"), model("other", other.port)) as manager:
            gateway = start(manager)
            with Call(gateway.port, SMALL | {"seed": 17}) as held:
                manager.until_waiting(1)
                with Call(gateway.port, SMALL | {"model": "other"}) as passing:
                    assert (passing.status, passing.json()) == (200, {"ok": True})
                    assert passing.header("X-Queue-Wait-Seconds") == "0"
                    assert passing.header("X-Queue-Place") is None
                time.sleep(1.2)
                manager.tell()
                assert not held.answered
                assert not qwen.asked
                manager.open("qwen")
                manager.go("qwen")
                assert (held.status, held.json()) == (200, {"ok": True})
                assert 1.2 <= float(held.header("X-Queue-Wait-Seconds") or 0) < 15
                assert held.header("X-Queue-Place") == "1"
                assert json.loads(qwen.asked[0].body) == SMALL | {"seed": 17}
            until(lambda: manager.in_flight() == 0, "nothing is with the servers")
            wait = manager.said("wait")
            assert [(one["model"], one["key"], one["task"]) for one in wait] == [("qwen", "", "")]
            assert 0 <= wait[0]["waited"] < 0.5
            assert [one["id"] for one in manager.said("entered")] == [wait[0]["id"]]
            assert manager.said("gone") == []


def test_the_log_is_alike_for_all(start: Start) -> None:
    with Server() as server, playing(model("qwen", server.port, "closed"), model("other", server.port)) as manager:
        gateway = start(manager)
        with Call(gateway.port, SMALL) as held, Call(gateway.port, SMALL | {"model": "other"}) as passing:
            assert passing.status == 200
            manager.until_waiting(1)
            time.sleep(0.05)
            manager.open("qwen")
            manager.go("qwen")
            assert held.status == 200
        waited, at_once = gateway.logged(model="qwen")[0], gateway.logged(model="other")[0]
        assert list(waited) == list(at_once)
        assert [(row["path"], row["status"], row["error"], row["server"]) for row in (waited, at_once)] == [
            ("/v1/chat/completions", 200, "", "")
        ] * 2
        assert (float(waited["waited_seconds"]) > 0, at_once["waited_seconds"]) == (True, "")


def test_they_are_released_in_order(start: Start) -> None:
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager, contextlib.ExitStack() as calls:
        gateway = start(manager)
        for number in range(20):
            calls.enter_context(Call(gateway.port, SMALL | {"seed": number}))
            manager.until_waiting(number + 1)
        manager.open("qwen")
        for number in range(5):
            manager.go("qwen", 1)
            until(lambda number=number: len(server.asked) == number + 1, "the first one is served")  # type: ignore[misc]
        manager.go("qwen")
        until(lambda: len(server.asked) == 20, "all are served")
        # The connections are made in order; which the server reads first is its own affair, but for the first five.
        served = [json.loads(one.body)["seed"] for one in server.asked]
        assert served[:5] == [0, 1, 2, 3, 4]
        assert sorted(served) == list(range(20))
        manager.counts()  # answered on the same link as what was said before
        assert [one["id"] for one in manager.said("entered")] == [one["id"] for one in manager.said("wait")]


# Below and above what nginx keeps with the head (1 kB), in memory (16 kB), and in a file.
@pytest.mark.parametrize("size", [0, 800, 1500, 30_000, 2_000_000])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_a_client_that_goes_away_leaves_the_queue_at_once(start: Start, size: int, stream: bool, half: bool) -> None:
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager, max_waiting_per_model=1)
        for _again in range(2):
            with Call(gateway.port, chat(size, stream=stream)) as call:
                manager.until_waiting(1)
                if stream:
                    assert call.event().startswith(": Waiting for qwen")
                waiter = next(iter(manager.waiters.values()))
                if half:
                    call.half_close()
                else:
                    call.close()
                manager.until(lambda: manager.said("gone"), "the manager is told", 5.0)
                assert [one["id"] for one in manager.said("gone")] == [waiter.id]
                manager.received.clear()
        manager.open("qwen")
        manager.go("qwen")
        assert not server.asked
        assert manager.in_flight() == 0


def refused(port: int, **more: Any) -> dict[str, Any]:
    """The error of a request that is one too many."""
    headers = {"Authorization": f"Bearer {more.pop('key')}"} if "key" in more else None
    with Call(port, SMALL | more, headers=headers) as call:
        assert call.status == 429
        assert int(call.header("Retry-After") or 0) > 0
        error: dict[str, Any] = call.json()["error"]
        return error


@pytest.mark.parametrize(
    ("limit", "code"),
    [("max_waiting", "too_many_waiting"), ("max_waiting_per_model", "too_many_waiting_for_model")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_limits_are_exact(start: Start, limit: str, code: str, stream: bool) -> None:
    with Server() as server, playing(model("qwen", server.port, "closed"), model("b", 9, "closed")) as manager:
        limits: dict[str, Any] = {limit: 3}
        gateway = start(manager, **limits)
        for _again in range(2):
            with contextlib.ExitStack() as stack:
                calls = [stack.enter_context(Call(gateway.port, SMALL)) for _call in range(3)]
                manager.until_waiting(3)
                error = refused(gateway.port, stream=stream)
                assert error["code"] == code
                assert "3 requests wait already" in error["message"]
                if limit == "max_waiting":
                    refused(gateway.port, model="b")
                else:
                    with Call(gateway.port, SMALL | {"model": "b"}):
                        manager.until_waiting(4)
                    manager.until_waiting(3)
                # One goes, one may come.
                calls[0].close()
                manager.until_waiting(2)
                stack.enter_context(Call(gateway.port, SMALL))
                manager.until_waiting(3)
                refused(gateway.port)
            manager.until_waiting(0)


def test_a_key_has_its_limit(start: Start) -> None:
    keys: list[dict[str, Any]] = [{"name": "alice", "key": "a-key"}, {"name": "bob", "key": "b-key", "max_waiting": 1}]
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager, contextlib.ExitStack() as stack:
        gateway = start(manager, keys=keys, max_waiting_per_key=2)
        for key, most in (("a-key", 2), ("b-key", 1)):
            before = len(manager.waiters)
            for number in range(most):
                stack.enter_context(Call(gateway.port, SMALL, headers={"Authorization": f"Bearer {key}"}))
                manager.until_waiting(before + number + 1)
            assert refused(gateway.port, key=key)["code"] == "too_many_waiting_for_key"
        assert [one["key"] for one in manager.said("wait")] == ["alice", "alice", "bob"]


def test_limits_hold_over_all_workers(start: Start) -> None:
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager, contextlib.ExitStack() as stack:
        # Without `reuseport` it may well be that one worker takes all connections.
        gateway = start(
            manager, workers=3, max_waiting=25, edit=lambda conf: conf.replace("backlog=", "reuseport backlog=")
        )
        calls = [Call(gateway.port, SMALL) for _call in range(60)]
        for call in calls:
            stack.enter_context(call)
        until(lambda: sum(call.answered for call in calls) == 35, "those that are too many are refused")
        manager.until_waiting(25)
        assert len({waiter.link for waiter in manager.waiters.values()}) > 1
        assert {call.status for call in calls if call.answered} == {429}
        manager.open("qwen")
        manager.go("qwen")
        assert sorted(call.status for call in calls) == [200] * 25 + [429] * 35
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")
        # Nothing is left of it.
        manager.close("qwen")
        for _number in range(25):
            stack.enter_context(Call(gateway.port, SMALL))
        manager.until_waiting(25)
        refused(gateway.port)


def test_nobody_waits_longer_than_may_be(start: Start) -> None:
    with playing(model("qwen", 9, "closed")) as manager:
        manager.eta = 40.0
        gateway = start(manager, max_wait_seconds=2)
        with Call(gateway.port, SMALL) as call, Call(gateway.port, SMALL | {"stream": True}) as stream:
            assert call.status == 504
            assert 1.9 < call.headed - call.began < 6
            assert call.header("x-should-retry") == "false"
            assert int(call.header("Retry-After") or 0) > 0
            assert float(call.header("X-Queue-Wait-Seconds") or 0) >= 2
            error = call.json()["error"]
            assert error["code"] == "wait_timeout"
            assert error["message"].startswith(
                "Waited 2 s for qwen, the longest that may be waited: it is still sleeping"
            )
            assert "place 1, about 40 s" in error["message"]
            assert stream.status == 200
            *_told, last = stream.events()
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "wait_timeout"
        manager.until(lambda: len(manager.said("gone")) == 2, "the manager is told")
        assert not manager.waiters
        assert manager.in_flight() == 0


REFUSAL: dict[str, Any] = {
    "status": 503,
    "code": "switch_failed",
    "message": "qwen could not be woken: no memory",
    "retry_after": 7,
}


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_an_answer(start: Start, stream: bool) -> None:
    """What is refused at once has its status, also a stream."""
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager)
        manager.on_wait = lambda waiter: {"t": "refuse"} | REFUSAL
        with Call(gateway.port, SMALL | {"stream": stream}) as call:
            assert (call.status, call.header("Retry-After")) == (503, "7")
            # The clients' libraries would ask again by themselves, and cause the same switch.
            assert call.header("x-should-retry") == "false"
            error = call.json()["error"]
            assert (error["code"], error["message"]) == ("switch_failed", REFUSAL["message"])
        with Call(gateway.port, SMALL | {"stream": stream, "max_tokens": 5}, "/v1/messages") as call:
            assert call.status == 503
            answer = call.json()
            assert (answer["type"], answer["error"]["message"]) == ("error", REFUSAL["message"])
        manager.on_wait = lambda waiter: {"t": "refuse"} | REFUSAL | {"code": "queue_full", "retry_after": 200}
        with Call(gateway.port, SMALL | {"stream": stream}) as call:
            assert (call.status, call.header("x-should-retry")) == (503, None)
            # After more, OpenAI's library does not try again, and Anthropic's waits past its timeout.
            assert call.header("Retry-After") == "60"
        assert manager.in_flight() == 0


def test_a_refusal_after_a_wait(start: Start) -> None:
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, SMALL) as call:
            manager.until_waiting(1)
            manager.refuse("qwen", **REFUSAL)
            assert (call.status, call.json()["error"]["code"]) == (503, "switch_failed")
            assert call.header("X-Queue-Wait-Seconds") not in (None, "0")


def test_a_task_is_told_to_the_manager(start: Start) -> None:
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, SMALL, headers={"X-OpenWebUI-Task": "title_generation"}):
            manager.until_waiting(1)
            assert manager.said("wait")[0]["task"] == "title_generation"


@pytest.mark.parametrize("task", [b"\xff\xfe", b"\xc3\xbc" * 60, b"a" * 99 + b"\xc3\xbc", b'"\\'])
def test_a_task_of_any_bytes_is_a_line_that_the_manager_reads(start: Start, task: bytes) -> None:
    """The manager ends a link whose line is no UTF-8: everybody of that worker would wait for nothing."""
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        (link,) = manager.links
        body = json.dumps(SMALL).encode()
        with Client(gateway) as client:
            client.post(
                "/v1/chat/completions", body, f"X-OpenWebUI-Task: {task.decode('latin-1')}\r\n", encoding="latin-1"
            )
            manager.until_waiting(1)
            told = manager.said("wait")[0]["task"]
            assert told and told.isascii() and len(told) <= 100
            manager.open("qwen")
            manager.go("qwen")
            assert client.answer()[0] == 200
        assert manager.links == [link]


def test_a_gate_that_closes_again_is_waited_for_again(start: Start) -> None:
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, SMALL) as call:
            for count in range(1, 4):
                manager.until(lambda count=count: len(manager.said("wait")) == count, "it waits")  # type: ignore[misc]
                manager.until_waiting(1)
                manager.go("qwen")
            manager.until(lambda: len(manager.said("wait")) == 4, "it waits again")
            waited = [one["waited"] for one in manager.said("wait")]
            assert waited == sorted(waited)
            assert not server.asked
            manager.open("qwen")
            manager.go("qwen")
            assert call.status == 200
        manager.counts()  # answered on the same link as what was said before
        assert len(manager.said("entered")) == 1


def test_a_model_that_is_removed_meanwhile(start: Start) -> None:
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, SMALL) as call:
            manager.until_waiting(1)
            manager.set_models(model("other"))
            manager.go("qwen")
            assert (call.status, call.json()["error"]["code"]) == (503, "model_removed")
        assert manager.in_flight() == 0
        manager.until(lambda: manager.said("gone"), "the manager is told")


def test_counts_are_exact_whatever_happens(start: Start) -> None:
    """Many at once, of whom some go away while they wait, some are refused, some find a server that dies."""
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager, workers=2, max_waiting=60)
        normal, stream = answers({"ok": True}), streams(end=DONE)

        def script(asked: Any) -> None:
            seed = json.loads(asked.body)["seed"]
            if seed % 5 == 0:
                asked.reset()
            elif json.loads(asked.body)["stream"]:
                stream(asked)
            else:
                normal(asked)

        server.script = script
        for _again in range(3):
            calls = [Call(gateway.port, SMALL | {"seed": seed, "stream": seed % 2 == 0}) for seed in range(60)]
            manager.until_waiting(60)
            for call in calls[::7]:
                call.close()
            manager.until_waiting(51)
            manager.refuse("qwen", 10, **REFUSAL)
            manager.open("qwen")
            manager.go("qwen")
            readers = [
                threading.Thread(target=lambda call=call: call.answer.read())
                for call in calls
                if call not in calls[::7]
            ]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join(30)
            until(lambda: manager.in_flight() == 0, "nothing is with the servers")
            manager.close("qwen")
            for call in calls:
                call.close()
        # As many as ever may wait.
        with contextlib.ExitStack() as stack:
            for _number in range(60):
                stack.enter_context(Call(gateway.port, SMALL))
            manager.until_waiting(60)
            refused(gateway.port)


def test_what_waiters_cost() -> None:
    """Each its memory, all of them next to no CPU time, and none is forgotten."""
    if missing():
        pytest.skip(missing())
    count = fewer("gateway", "make gateway", "waiters at once", 5000, 500)
    seconds = "5" if quick() else "60"
    command = [sys.executable, "-m", "tests.gateway.waiters", "--waiters", str(count), "--seconds", seconds]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{count} answered" in ended.stdout


def test_a_manager_that_never_says_held(start: Start) -> None:
    """Whoever is let go at once was never enrolled."""
    with Server(streams()) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        manager.speaks = False

        def let_go(_waiter: Any) -> dict[str, Any]:
            manager.open("qwen")
            return {"t": "go"}

        manager.on_wait = let_go
        with Call(gateway.port, SMALL | {"stream": True}) as call:
            assert call.status == 200
            # It has not waited long enough to be told anything.
            assert call.events()[-1] == DONE.strip()
