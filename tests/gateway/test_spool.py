# SPDX-License-Identifier: MIT
"""How much of requests' bodies may be on the disk: what is too much is refused before it is read."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.fake_link import FakeManager, model, playing
from tests.gateway.gatewaylib import Client, Gateway, Start, until
from tests.gateway.played import Server

CHAT = "/v1/chat/completions"
LIMITS: Any = {"max_body_bytes": 1_000_000, "max_spool_bytes": 1_000_000}


def body_of(size: int, name: str = "m") -> bytes:
    text = json.dumps({"model": name, "user": ""})
    return text.replace('"user": ""', f'"user": "{"x" * (size - len(text))}"').encode()


def begins(client: Client, path: str, headers: str) -> Client:
    """Send the head of a request, and nothing of its body."""
    return client.send(f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n{headers}\r\n")


def refused(gateway: Gateway, headers: str, path: str = CHAT) -> tuple[int, str, dict[str, str]]:
    """What is answered to a request of which only the head has been sent: status, code, headers."""
    with Client(gateway) as client:
        status, answered, text = begins(client, path, headers).answer()
    return status, json.loads(text)["error"]["code"], answered


def spooled(gateway: Gateway) -> int:
    """How many bytes are on the disk."""
    return sum(each.stat().st_size for each in gateway.spool.rglob("*") if each.is_file())


def let_all_in(manager: FakeManager) -> None:
    manager.open("m")
    manager.go("m")


def test_bodies_have_their_room(start: Start) -> None:
    """Whether they are still read, or wait."""
    with Server() as server, playing(model("m", server.port, "closed")) as manager, contextlib.ExitStack() as stack:
        gateway = start(manager, workers=2, **LIMITS)
        # Long enough for the disk, and one that is in memory.
        first, second, small = (stack.enter_context(Client(gateway)) for _each in range(3))
        first.post(CHAT, body_of(400_000))
        small.post(CHAT, body_of(60_000))
        manager.until_waiting(2)
        begins(second, CHAT, "Content-Length: 500000\r\n").send(body_of(500_000)[:300_000])
        until(lambda: spooled(gateway) > 400_000, "both are on the disk")
        status, code, headers = refused(gateway, "Content-Length: 100001\r\n")
        assert (status, code, headers["retry-after"]) == (429, "too_much_waiting", "5")
        # Its length is not known: it may be as long as any.
        assert refused(gateway, "Transfer-Encoding: chunked\r\n")[:2] == (429, "too_much_waiting")
        assert spooled(gateway) <= 900_000
        third = stack.enter_context(Client(gateway)).post(CHAT, body_of(90_000))
        manager.until_waiting(3)
        # Whoever leaves, in whatever way, makes room.
        second.sock.close()
        until(lambda: spooled(gateway) < 500_000, "the second is gone")
        fourth = stack.enter_context(Client(gateway))
        chunk = body_of(450_000)
        begins(fourth, CHAT, "Content-Length: 450000\r\n").send(chunk)
        manager.until_waiting(4)
        let_all_in(manager)
        for client in (first, small, third, fourth):
            assert client.answer()[0] == 200
        until(lambda: spooled(gateway) == 0, "nothing is on the disk")
        assert sorted(len(asked.body) for asked in server.asked) == [60_000, 90_000, 400_000, 450_000]
        assert gateway.logged(2, status=429, error="too_much_waiting")
        # All of it was given back.
        with Client(gateway) as client:
            assert client.post(CHAT, body_of(1_000_000)).answer()[0] == 200


def test_what_was_not_said_is_counted_when_it_is_read(start: Start) -> None:
    with Server() as server, playing(model("m", server.port, "closed")) as manager, contextlib.ExitStack() as stack:
        gateway = start(manager, **LIMITS)
        clients = []
        for size in (1000, 1000, 1000, 200_000, 300_000):
            client = stack.enter_context(Client(gateway))
            body = body_of(size)
            begins(client, CHAT, "Transfer-Encoding: chunked\r\n").send(f"{size:x}\r\n".encode() + body + b"\r\n")
            if size < 300_000:
                client.send(b"0\r\n\r\n")
                clients.append(client)
                manager.until_waiting(len(clients))
            else:
                # There is no room for a million more.
                assert client.answer()[0] == 429
        # 500 kB are left for those whose length is known.
        with Client(gateway) as client:
            client.post(CHAT, body_of(800_000))
            manager.until_waiting(5)
        manager.until_waiting(4)
        let_all_in(manager)
        assert [client.answer()[0] for client in clients] == [200] * 4


@pytest.mark.parametrize("wrong", ["no json", '{"model": "x"}', "413"])
def test_what_fails_gives_back(start: Start, wrong: str) -> None:
    with playing(model("m", 9)) as manager:
        gateway = start(manager, **LIMITS)
        for _number in range(5):
            with Client(gateway) as client:
                if wrong == "413":
                    assert begins(client, CHAT, "Content-Length: 1000001\r\n").answer()[0] == 413
                else:
                    assert client.post(CHAT, wrong.encode() + b" " * 900_000).answer()[0] in (400, 404)


def test_a_killed_worker_gives_back(start: Start) -> None:
    with Server() as server, playing(model("m", server.port, "closed")) as manager:
        gateway = start(manager, **LIMITS)
        with Client(gateway) as client:
            client.post(CHAT, body_of(900_000))
            manager.until_waiting(1)
            assert refused(gateway, "Content-Length: 200000\r\n")[0] == 429
            gateway.kill_worker(gateway.workers()[0])
        gateway.wait_known()
        manager.open("m")
        with Client(gateway) as client:
            assert client.post(CHAT, body_of(900_000)).answer()[0] == 200


def spooled_by(pid: int) -> set[str]:
    """The names of the spool's files that a worker has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(link.readlink().name)
    return {name for name in found if re.fullmatch("[0-9]{10}", name)}


def has_both(gateway: Gateway, pid: int) -> bool:
    """Whether a worker has a body of 100,000 bytes and the first ones of a longer one."""
    sizes = set()
    for name in spooled_by(pid):
        with contextlib.suppress(OSError):
            sizes.add((gateway.spool / name).stat().st_size)
    return 100_000 in sizes and max(sizes) > 100_000


def test_what_a_killed_worker_leaves_is_removed(start: Start) -> None:
    """And nothing of those that live, whether it is still read or waits."""
    with Server() as server, playing(model("m", server.port, "closed")) as manager, contextlib.ExitStack() as stack:
        gateway = start(manager, workers=2)
        killed, spared = gateway.workers()
        whole, begun = [], []
        while not (has_both(gateway, killed) and has_both(gateway, spared)):
            whole.append(stack.enter_context(Client(gateway)).post(CHAT, body_of(100_000)))
            begun.append(begins(stack.enter_context(Client(gateway)), CHAT, "Content-Length: 300000\r\n"))
            begun[-1].send(body_of(300_000)[:200_000])
            manager.until_waiting(len(whole))
            time.sleep(0.05)
        until(lambda: len(list(gateway.spool.iterdir())) == len(whole) + len(begun), "each has a file")
        kept = spooled_by(spared)
        gateway.kill_worker(killed)
        until(lambda: {each.name for each in gateway.spool.iterdir()} == kept, "what the killed one had is removed")
        for client in begun:
            with contextlib.suppress(OSError):
                client.send(body_of(300_000)[200_000:])
        manager.until_waiting(len(kept))
        let_all_in(manager)
        statuses = []
        for client in whole + begun:
            # Those of the killed one end without an answer.
            with contextlib.suppress(OSError, AssertionError):
                statuses.append(client.answer()[0])
        assert statuses == [200] * len(kept)
        assert {len(asked.body) for asked in server.asked} == {100_000, 300_000}


@pytest.mark.parametrize(
    ("limits", "keys", "code"),
    [
        ({"max_waiting": 1}, [], "too_many_waiting"),
        ({"max_waiting_per_model": 1}, [], "too_many_waiting_for_model"),
        ({"max_waiting_per_key": 1}, [{"name": "alice", "key": "key-of-alice"}], "too_many_waiting_for_key"),
        ({}, [{"name": "alice", "key": "key-of-alice", "max_waiting": 1}], "too_many_waiting_for_key"),
    ],
)
def test_what_may_not_wait_is_not_read(start: Start, limits: Any, keys: Any, code: str) -> None:
    """Where the path names the model, all is known before the body is read."""
    authorization = "Authorization: Bearer key-of-alice\r\n" if keys else ""
    with Server() as server, playing(model("m", server.port, "closed"), model("n", server.port)) as manager:
        gateway = start(manager, keys=keys or None, **limits)
        with Client(gateway) as client:
            client.post(CHAT, body_of(1000), authorization)
            manager.until_waiting(1)
            long = authorization + "Content-Length: 500000\r\n"
            assert refused(gateway, long, "/m/m" + CHAT)[:2] == (429, code)
            assert refused(gateway, long, "/m/x" + CHAT)[:2] == (404, "model_not_found")
            # A model whose gate is open keeps nobody waiting.
            with Client(gateway) as other:
                assert other.post("/m/n" + CHAT, body_of(500_000, "n"), authorization).answer()[0] == 200
            # Where only the body names it, it is read first.
            with Client(gateway) as other:
                status, _headers, text = other.post(CHAT, body_of(500_000), authorization).answer()
                assert (status, json.loads(text)["error"]["code"]) == (429, code)
            # Unless no gate is open: then it does not matter which model it names.
            manager.close("n")
            manager.counts()  # after that the gateway knows it
            if code == "too_many_waiting_for_model":
                with Client(gateway) as other:
                    assert other.post(CHAT, body_of(500_000), authorization).answer()[0] == 429
            else:
                assert refused(gateway, long)[:2] == (429, code)
            let_all_in(manager)
            assert client.answer()[0] == 200
        until(lambda: spooled(gateway) == 0, "nothing is on the disk")
