# SPDX-License-Identifier: MIT
"""The counts are exact: whatever becomes of requests, clients, servers and workers, none is left over or missed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.gateway.fake_link import FakeManager, model, playing
from tests.gateway.gatewaylib import Client, Gateway, Start, until
from tests.gateway.played import Asked, Call, Server, answers, streams, token
from tests.part import fewer
from tests.serverlib import start_standin

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
STREAM = {**BODY, "stream": True}


class Stalling:
    """A script: a stream that begins, and goes on when it is told to."""

    def __init__(self) -> None:
        self.on = threading.Event()

    def __call__(self, asked: Asked) -> None:
        asked.head("Transfer-Encoding: chunked")
        asked.chunk(token("one"))
        self.on.wait(30)
        asked.chunk("data: [DONE]\n\n")
        asked.chunk("")


def test_a_request_is_counted_while_it_runs(start: Start) -> None:
    stalling = Stalling()
    with Server(stalling) as server, playing(model("m", server.port), model("n", 9)) as manager:
        gateway = start(manager, workers=2)
        time.sleep(0.3)
        idle = manager.counts()
        assert {name: one["in_flight"] for name, one in idle.items()} == {"m": 0, "n": 0}
        assert 0.2 < idle["n"]["idle_seconds"] < 30
        with contextlib.ExitStack() as stack:
            calls = [stack.enter_context(Call(gateway.port, STREAM)) for _number in range(7)]
            for call in calls:
                assert call.event() == token("one").strip()
            for link in manager.links:
                assert manager.counts(link)["m"] == {"in_flight": 7, "idle_seconds": 0}
            assert manager.counts()["n"]["idle_seconds"] > idle["n"]["idle_seconds"]
            stalling.on.set()
            for call in calls:
                assert call.events() == ["data: [DONE]"]
        until(lambda: manager.in_flight() == 0, "nothing is in flight")
        assert manager.counts()["m"]["idle_seconds"] < 2


def was_asked(server: Server, times: int) -> bool:
    """Whether a server has had so many requests."""
    return len(server.asked) == times


def is_drained(manager: FakeManager, link: Any) -> bool:
    """Whether this link tells of no request in flight."""
    return bool(manager.counts(link)["m"]["in_flight"] == 0)


@pytest.mark.parametrize("how", ["close", "half close", "reset"])
def test_a_client_that_goes_away(start: Start, how: str) -> None:
    with Server(Stalling()) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        for body in (STREAM, BODY):
            asked = len(server.asked)
            with Call(gateway.port, body) as call:
                # It is counted before its server has it.
                until(lambda: manager.in_flight() == 1, "it is in flight")
                until(partial(was_asked, server, asked + 1), "its server has it")
                if how == "close":
                    call.close()
                elif how == "half close":
                    call.half_close()
                else:
                    assert call.connection.sock is not None
                    call.connection.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
                    call.close()
                until(lambda: manager.in_flight() == 0, "nothing is in flight", 5)
            # The server learns of it: it need not go on.
            assert server.asked[-1].gone(5)
        assert gateway.logged(2, sent="", model="m")


def test_a_worker_that_is_killed(start: Start) -> None:
    with Server(Stalling()) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager, workers=2)
        with contextlib.ExitStack() as stack:
            calls = [stack.enter_context(Call(gateway.port, STREAM)) for _number in range(20)]
            until(lambda: manager.in_flight() == 20, "all are in flight")
            gateway.kill_worker(gateway.workers()[0])
            cut = 0
            for call in calls:
                assert call.connection.sock is not None
                call.connection.sock.settimeout(0.3)
                with contextlib.suppress(TimeoutError):
                    try:
                        call.answer.read()
                    except (OSError, ValueError) as exc:
                        if isinstance(exc, TimeoutError):
                            raise
                        cut += 1
                    except Exception:
                        cut += 1
            manager.until_linked(2)
            assert manager.in_flight() == 20 - cut
            for pid in gateway.workers():
                gateway.kill_worker(pid)
            manager.until_linked(2)
            until(lambda: manager.in_flight() == 0, "nothing is in flight")
        # What was killed has not taken the gates with it.
        server.script = answers({"ok": True})
        assert requests.post(gateway.url + CHAT, json=BODY, timeout=20).status_code == 200


def worker_of(gateway: Gateway, client: Client) -> int:
    """The process that has accepted a connection."""
    ends = f":{gateway.port:04X}", f":{client.sock.getsockname()[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
    (inode,) = (row[9] for row in rows if row[1].endswith(ends[0]) and row[2].endswith(ends[1]))
    for pid in gateway.workers():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()) == f"socket:[{inode}]":
                    return pid
    raise AssertionError("no worker has it")


@pytest.mark.parametrize("size", [100, 100_000])
def test_what_a_killed_worker_held_is_free_at_once(start: Start, size: int) -> None:
    """Also for one who was refused a moment before; and for one whose body is not read where it is refused."""
    path, body = "/m/m" + CHAT, json.dumps({**BODY, "user": "x" * size}).encode()
    with playing(model("m", gate="closed")) as manager, contextlib.ExitStack() as stack:
        gateway = start(manager, workers=2, max_waiting=1)
        with Client(gateway) as first:
            first.post(path, body)
            manager.until_waiting(1)
            (waiter,) = manager.waiters.values()
            killed = waiter.link.pid

            def other() -> Client | None:
                client = stack.enter_context(Client(gateway))
                assert client.post(path, body).answer()[0] == 429
                return client if worker_of(gateway, client) != killed else None

            client = until(other, "the other worker has a connection")
            for _number in range(5):
                assert client.post(path, body).answer()[0] == 429
            os.kill(killed, signal.SIGKILL)
            assert first.receive() == b""
            client.post(path, body)
            manager.until(lambda: any(one.link.pid != killed for one in manager.waiters.values()), "it waits", 5)


def test_a_reload_cuts_nothing_and_forgets_nothing(start: Start) -> None:
    stalling = Stalling()
    with Server(stalling) as server, playing(model("m", server.port), model("n", gate="closed")) as manager:
        gateway = start(manager, workers=2)
        with Call(gateway.port, STREAM) as call, Call(gateway.port, {"model": "n"}) as held:
            assert call.event() == token("one").strip()
            manager.until_waiting(1)
            for _number in range(3):
                gateway.reload()
                manager.until(
                    lambda: set(gateway.workers()) < {link.pid for link in manager.links},
                    "the new workers have links, and the old one's stays",
                )
            assert gateway.old_workers()
            manager.until_waiting(1)
            link = next(link for link in manager.links if link.pid in gateway.workers())
            assert manager.counts(link)["m"]["in_flight"] == 1
            server.script = answers({"ok": True})
            assert requests.post(gateway.url + CHAT, json=BODY, timeout=20).status_code == 200
            stalling.on.set()
            assert call.events() == ["data: [DONE]"]
            manager.one("n")["port"] = server.port
            manager.open("n")
            manager.go("n")
            assert held.status == 200
        until(lambda: not gateway.old_workers(), "the old workers end")
        manager.until_linked(2)
        until(lambda: manager.in_flight() == 0, "nothing is in flight")


def test_while_the_manager_is_down_open_gates_stay_open(start: Start) -> None:
    with Server(answers({"ok": True})) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager, workers=2)
        manager.stop()
        for _number in range(5):
            assert requests.post(gateway.url + CHAT, json=BODY, timeout=20).status_code == 200
        gateway.kill_worker(gateway.workers()[0])  # the new one has it from the dict
        for _number in range(10):
            answer = requests.post(gateway.url + CHAT, json=BODY, headers={"Connection": "close"}, timeout=20)
            assert answer.status_code == 200
        assert requests.get(gateway.url + "/v1/models", timeout=20).json()["data"][0]["id"] == "m"
        manager.start()
        manager.until_linked(2)
        until(lambda: manager.in_flight() == 0, "nothing is in flight")


def test_a_state_that_is_older_is_not_taken(start: Start) -> None:
    with Server(answers({"ok": True})) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager, workers=1)
        link = manager.links[0]
        old = [manager.boot - 1000, 99999]
        link.send({"t": "state", "version": old, "models": [model("m", server.port, gate="closed")]})
        link.send({"t": "state", "version": [manager.boot, 0], "models": []})
        assert list(manager.counts(link)) == ["m"]
        assert requests.post(gateway.url + CHAT, json=BODY, timeout=20).status_code == 200
        new = [manager.boot + 1000, 1]
        link.send({"t": "state", "version": new, "models": []})
        assert manager.counts(link) in ({}, [])
        assert manager.said("counts")[-1]["version"] == new
        assert requests.post(gateway.url + CHAT, json=BODY, timeout=20).status_code == 404


def test_no_request_slips_past_a_gate_that_was_closed(start: Start) -> None:
    """As the manager does it: close, ask for the counts until they are 0; from then on the server is asked nothing."""
    asleep = threading.Event()
    wrong: list[str] = []

    def script(asked: Asked) -> None:
        if asleep.is_set():
            wrong.append(asked.line)
        streams()(asked)

    with Server(script) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager, workers=3, status_chunks="off")
        end = threading.Event()
        done = 0

        def client() -> None:
            nonlocal done
            while not end.is_set():
                answer = requests.post(gateway.url + CHAT, json=STREAM, headers={"Connection": "close"}, timeout=30)
                assert answer.text.endswith("data: [DONE]\n\n"), answer.text
                done += 1

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client) for _number in range(8)]
            try:
                for number in range(fewer("gateway", "make gateway", "gates closed", 200, 15)):
                    link = manager.links[number % 3]
                    manager.one("m")["gate"] = "closed"
                    with manager._changed:
                        link.send(manager._state())  # on one link alone
                    until(partial(is_drained, manager, link), "drained")
                    asleep.set()
                    time.sleep(0.02)
                    asleep.clear()
                    manager.open("m")
                    manager.go("m")
                    time.sleep(0.03)
            finally:
                manager.auto = True
                manager.go("m")
                end.set()
            for one in clients:
                one.result()
        assert wrong == []
        assert done > 20
        until(lambda: manager.in_flight() == 0, "nothing is in flight")


def test_everything_at_once_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    """Clients that leave, servers that die, kills of workers and reloads; then the counts are 0."""
    seconds = fewer("gateway", "make gateway", "seconds of everything", 30, 4)
    standin = start_standin("m", log=tmp_path / "m.log", tokens_per_second=200)
    with standin as server, playing(model("m", server.port)) as manager:
        gateway = start(manager, workers=2)
        end = time.monotonic() + seconds
        statuses: dict[str, int] = {}

        def client(number: int) -> None:
            turn = 0
            while time.monotonic() < end:
                turn += 1
                how = (number + turn) % 4
                status = "cut"
                with contextlib.suppress(Exception):
                    if how == 0:
                        with Client(gateway) as raw:
                            raw.post(CHAT, b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}')
                            time.sleep(0.02)
                        status = "left"
                    else:
                        answer = requests.post(gateway.url + CHAT, json=STREAM if how == 1 else BODY, timeout=30)
                        status = str(answer.status_code)
                statuses[status] = statuses.get(status, 0) + 1

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, number) for number in range(8)]
            number = 0
            while time.monotonic() < end:
                number += 1
                time.sleep(0.4)
                if number % 3 == 0:
                    gateway.kill_worker(gateway.workers()[0])
                elif number % 3 == 1:
                    gateway.reload()
                else:
                    server.fault(CHAT, "refuse", times=5)
            for one in clients:
                one.result()
        until(lambda: not gateway.old_workers(), "the old workers end")
        manager.until_linked(2)
        until(lambda: manager.in_flight() == 0, "nothing is in flight")
        assert set(statuses) <= {"200", "502", "left", "cut"}, statuses
        assert statuses["200"] > 20, statuses
