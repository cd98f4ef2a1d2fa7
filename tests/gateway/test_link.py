# SPDX-License-Identifier: MIT
"""The link between the gateway's workers and the manager: what a loss of either does to whoever waits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.fake_link import model, playing
from tests.gateway.gatewaylib import Start
from tests.gateway.played import DONE, Call, Server, streams, token, until

SMALL = {"model": "qwen", "messages": [{"role": "user", "content": "Hi"}]}


def alive(pid: int) -> bool:
    """Whether a process runs."""
    return Path(f"/proc/{pid}").exists()


def test_each_worker_has_a_link(start: Start) -> None:
    with playing(model("qwen")) as manager:
        start(manager, workers=3)
        manager.until_linked(3)
        hellos = manager.said("hello")
        assert len({one["worker"] for one in hellos}) == 3
        assert {one["protocol"] for one in hellos} == {1}
        # They share one store.
        assert len({one["store"] for one in hellos}) == 1
        assert all(alive(link.pid) for link in manager.links)


def test_counts_are_told_with_the_version_of_the_state(start: Start) -> None:
    with Server() as server, playing(model("qwen", server.port)) as manager:
        gateway = start(manager)
        with Call(gateway.port, SMALL) as call:
            assert call.status == 200
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")
        assert manager.said("counts")[-1]["version"][0] == manager.boot
        before = manager.said("counts")[-1]["version"][1]
        manager.close("qwen")
        manager.counts()
        assert manager.said("counts")[-1]["version"][1] > before


def test_lines_come_as_the_network_likes(start: Start) -> None:
    """In pieces, with pauses between them, several at once, and some that nobody knows."""
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        manager.speaks = False
        with Call(gateway.port, SMALL) as call:
            manager.until_waiting(1)
            (link,) = manager.links
            link.send({"t": "something new", "id": 1}, {"t": "go", "id": 4711}, {"t": "held", "id": 4711, "n": 1})
            manager.open("qwen")
            line = json.dumps({"t": "go", "id": next(iter(manager.waiters.values())).id}).encode() + b"\n"
            for piece in (line[:5], line[5:9], line[9:]):
                # Longer than the gateway reads without looking at the clock.
                time.sleep(1.3)
                assert not call.answered
                link.sock.sendall(piece)
            assert call.status == 200
            # On that link: on a new one it would have been let go, too.
            assert manager.links == [link]
            assert len(manager.said("wait")) == 1


def test_waiters_are_enrolled_again(start: Start) -> None:
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager, contextlib.ExitStack() as stack:
        gateway = start(manager)
        calls = []
        for number in range(10):
            calls.append(stack.enter_context(Call(gateway.port, SMALL | {"seed": number, "stream": number % 2 == 1})))
            manager.until_waiting(number + 1)
        ids = [waiter.id for waiter in manager.waiters.values()]
        calls[3].close()
        manager.until_waiting(9)
        del ids[3]
        time.sleep(0.5)
        for _again in range(3):
            manager.received.clear()
            manager.drop()
            manager.until_waiting(9)
            assert [waiter.id for waiter in manager.waiters.values()] == ids
            assert min(one["waited"] for one in manager.said("wait")) >= 0.5
        manager.open("qwen")
        manager.go("qwen")
        assert {call.status for call in calls if call is not calls[3]} == {200}


def test_without_a_manager(start: Start) -> None:
    """What is active goes on; who waits is told after a while; all is well when it is back."""
    with Server() as server, Server() as other, contextlib.ExitStack() as stack:
        manager = stack.enter_context(playing(model("qwen", server.port, "closed"), model("other", other.port)))
        gateway = start(manager, link_grace_seconds=2)
        held = stack.enter_context(Call(gateway.port, SMALL))
        streamed = stack.enter_context(Call(gateway.port, SMALL | {"stream": True}))
        manager.until_waiting(2)
        stopped = time.monotonic()
        manager.stop()
        # It may be back soon.
        during = stack.enter_context(Call(gateway.port, SMALL))
        time.sleep(1)
        assert not held.answered and not during.answered
        for call in (held, during):
            assert call.status == 503
            assert call.json()["error"]["code"] == "manager_unavailable"
            assert int(call.header("Retry-After") or 0) > 0
        assert 1.9 < time.monotonic() - stopped < 8
        assert json.loads(streamed.events()[-1].removeprefix("data: "))["error"]["code"] == "manager_unavailable"
        for stream in (False, True):
            with Call(gateway.port, SMALL | {"stream": stream}) as new:
                assert new.status == 503
                assert new.headed - new.began < 1.9  # nobody waits for it once more
            with Call(gateway.port, SMALL | {"model": "other", "stream": stream}) as active:
                assert active.status == 200
        manager.start()
        manager.until_linked()
        with Call(gateway.port, SMALL) as again:
            manager.until_waiting(1)
            manager.open("qwen")
            manager.go("qwen")
            assert again.status == 200
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")


def test_a_manager_that_is_soon_back(start: Start) -> None:
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager, link_grace_seconds=20)
        with Call(gateway.port, SMALL) as before, contextlib.ExitStack() as stack:
            manager.until_waiting(1)
            manager.stop()
            time.sleep(0.5)
            during = stack.enter_context(Call(gateway.port, SMALL))
            time.sleep(0.5)
            manager.start()
            manager.until_waiting(2)
            first, second = (waiter.message["waited"] for waiter in manager.waiters.values())
            assert first > 0.9
            assert first - second >= 0.49
            manager.open("qwen")
            manager.go("qwen")
            assert (before.status, during.status) == (200, 200)


def test_a_wrong_token(start: Start) -> None:
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager, link_grace_seconds=1)
        manager.until_linked()
        manager.token = "another"
        manager.drop()
        until(lambda: "no link to the model manager" in gateway.error_log(), "it is logged")
        with Call(gateway.port, SMALL) as call:
            assert (call.status, call.json()["error"]["code"]) == (503, "manager_unavailable")
            assert call.header("x-should-retry") is None
        assert manager.links == []
        assert manager.token not in gateway.error_log()


@pytest.mark.whole
def test_a_manager_that_hangs_is_left(start: Start) -> None:
    """Its connection is there, and nothing comes: as with one whose process is stopped."""
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, SMALL):
            manager.until_waiting(1)
            manager.speaks = False
            began = time.monotonic()
            manager.received.clear()
            manager.until(lambda: manager.said("wait"), "it is enrolled on another connection", 40)
            assert time.monotonic() - began > 10


def test_leases_of_a_killed_worker_end(start: Start) -> None:
    with Server() as server, playing(model("qwen", server.port, "closed"), model("other", server.port)) as manager:
        gateway = start(manager, workers=2, max_waiting=8)
        manager.until_linked(2)
        calls = [Call(gateway.port, SMALL) for _number in range(8)]
        manager.until_waiting(8)
        victim = max(manager.links, key=lambda link: sum(waiter.link is link for waiter in manager.waiters.values()))
        lost = sum(waiter.link is victim for waiter in manager.waiters.values())
        assert lost > 0
        os.kill(victim.pid, signal.SIGKILL)
        manager.until_waiting(8 - lost)
        manager.until(lambda: len(manager.links) == 2 and victim not in manager.links, "there is a new worker")
        # Whoever has just looked who lives does not look again at once.
        time.sleep(0.2)
        with contextlib.ExitStack() as stack:
            # What it had counted is free again, and not a place more.
            for number in range(lost):
                stack.enter_context(Call(gateway.port, SMALL))
                manager.until_waiting(8 - lost + number + 1)
            with Call(gateway.port, SMALL) as one_too_many:
                assert one_too_many.status == 429
            manager.open("qwen")
            manager.go("qwen")
            until(lambda: len(server.asked) == 8, "all that wait are served")
        for call in calls:
            call.close()
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")


def test_a_killed_worker_is_not_counted(start: Start) -> None:
    def hang(asked: Any) -> None:
        asked.head("Transfer-Encoding: chunked")
        asked.chunk(token("a"))
        asked.gone()

    with Server(hang) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager, workers=1)
        with Call(gateway.port, SMALL | {"stream": True}) as call:
            manager.until_waiting(1)
            manager.open("qwen")
            manager.go("qwen")
            until(lambda: server.asked, "it is served")
            assert manager.in_flight() == 1
            (victim,) = manager.links
            os.kill(victim.pid, signal.SIGKILL)
            manager.until(lambda: manager.links and victim not in manager.links, "there is a new worker")
            until(lambda: manager.in_flight() == 0, "nothing is with the servers")
            with pytest.raises(Exception):  # noqa: B017
                call.answer.read()


def test_a_reload_leaves_no_waiter_behind(start: Start) -> None:
    with Server(streams()) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, SMALL) as held, Call(gateway.port, SMALL | {"stream": True}) as streamed:
            manager.until_waiting(2)
            (old,) = manager.links
            gateway.reload()
            manager.until(lambda: len(manager.links) == 2, "the new worker has a link")
            # The old one still has its own.
            assert old in manager.links
            with Call(gateway.port, SMALL) as new:
                manager.until_waiting(3)
                assert {waiter.link is old for waiter in manager.waiters.values()} == {True, False}
                # Its link is lost and made anew.
                old.close()
                manager.until(lambda: len(manager.waiters) == 3 and old not in manager.links, "it is enrolled again")
                manager.open("qwen")
                manager.go("qwen")
                assert (held.status, streamed.status, new.status) == (200, 200, 200)
                assert streamed.events()[-1] == DONE.strip()
                assert held.answer.read() and new.answer.read()
        until(lambda: not alive(old.pid), "the old worker ends")
        manager.until_linked(1)
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")


def test_a_reload_while_a_body_comes(start: Start) -> None:
    """Its request begins to wait in a worker that is on its way out."""
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        body = json.dumps(SMALL | {"user": "x" * 100_000}).encode()
        manager.until_linked()
        (old,) = manager.links
        call = Call(gateway.port, b"", headers={"Content-Length": str(len(body))})
        assert call.connection.sock is not None
        call.connection.sock.sendall(body[:80_000])
        until(lambda: list(gateway.spool.iterdir()), "it has begun to come")
        gateway.reload()
        manager.until(lambda: len(manager.links) == 2, "the new worker has a link")
        time.sleep(2.5)
        call.connection.sock.sendall(body[80_000:])
        manager.until_waiting(1)
        assert next(iter(manager.waiters.values())).link is old
        manager.open("qwen")
        manager.go("qwen")
        assert call.status == 200
        call.close()
        until(lambda: not alive(old.pid), "the old worker ends")


def test_a_stop_ends_at_once_when_nothing_waits(start: Start) -> None:
    with playing(model("qwen")) as manager:
        gateway = start(manager, workers=2)
        manager.until_linked(2)
        began = time.monotonic()
        gateway.quit()
        assert time.monotonic() - began < 6
        manager.until_linked(0)
