# SPDX-License-Identifier: MIT
"""The service under load: callers by the hundred, connections without end, switches by the thousand."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import requests

from tests.manager.conftest import Service, until
from tests.manager.soak import MOST_GROWTH, MOST_MB, SWITCHES, growth, run, soak
from tests.part import fewer
from tests.serverlib import two_awake
from tests.unit.plugins.module_utils.switching.conftest import Host

CALLERS = 500
PATIENCE_SECONDS = 300
MODELS = ("a", "b", "c", "d")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a caller was told: which model is active, and when it asked and was told, in seconds since 1970."""

    model: str
    asked: float
    told: float


class Told(threading.Thread):
    """Reads the events of a service."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.events: list[dict[str, Any]] = []
        self._stream = requests.get(service.url + "/events", stream=True, timeout=PATIENCE_SECONDS)
        self.start()

    def run(self) -> None:
        """Until the stream ends."""
        with contextlib.suppress(requests.RequestException):
            for line in self._stream.iter_lines():
                if line.startswith(b"data: "):
                    self.events.append(json.loads(line[6:]))

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """The events of these kinds, in order."""
        return [event for event in self.events if event["kind"] in kinds]


def _awake_at(record: list[dict[str, Any]], moment: float) -> set[str]:
    """The models that were awake at a moment, by the servers' own record."""
    awake = set()
    for event in record:
        if event["time"] > moment:
            break
        model = event["model"].removeprefix("org/")
        if event["event"] == "awake":
            awake.add(model)
        elif event["event"] in ("sleeping", "dead"):
            awake.discard(model)
    return awake


async def _ask(service: Service, calls: list[list[str]]) -> list[Answer]:
    """Have callers ask side by side, each for its models one after the other."""
    limits = httpx.Limits(max_connections=None)
    answers: list[Answer] = []

    async with httpx.AsyncClient(base_url=service.url, limits=limits, timeout=PATIENCE_SECONDS) as client:

        async def caller(models: list[str]) -> None:
            for model in models:
                asked = time.time()
                answer = await client.post("/switch", json={"model_id": model})
                told = time.time()
                assert answer.status_code == 200, answer.text
                answers.append(Answer(answer.json()["active_model"], asked, told))
                assert answers[-1].model == model

        await asyncio.gather(*(caller(models) for models in calls))
    return answers


@pytest.mark.timeout(600)
def test_five_hundred_callers_at_once_are_told_the_truth(
    host: Host, services: list[Service], capsys: pytest.CaptureFixture[str]
) -> None:
    host.settings["lock_timeout_seconds"] = 120
    for name in MODELS:
        host.declare(name, standin={"wake_seconds": 0.1})
    host.up(a="active", b=1, c=1, d=1)
    service = Service(host, reconcile=False)
    services.append(service)
    told = Told(service)
    chance = random.Random(17)
    rounds = fewer("manager", "make manager", "calls of each of 500 callers", 10, 3)
    calls = [[chance.choice(MODELS) for _each in range(rounds)] for _caller in range(CALLERS)]
    with ThreadPoolExecutor(1) as pool:
        # Somebody else has the host until all of them wait.
        with host.switcher() as other, other.lock.hold("a test", 10, lambda done, _seconds: done()):
            asked = pool.submit(asyncio.run, _ask(service, calls))
            until(lambda: asked.done() or _waiting(service) == CALLERS, "all of them wait", 120)
            other.lock.record_end({}, other.lock.last_failed_at)
        answers = asked.result(PATIENCE_SECONDS)
    assert len(answers) == CALLERS * rounds
    until(lambda: sum(event["data"]["waiters"] for event in told.of("switch_ended")) == len(answers), "all is told")
    assert told.of("lost") == []

    # One at a time, and never two awake.
    kinds = [event["kind"] for event in told.of("switch_begun", "switch_ended")]
    assert kinds == ["switch_begun", "switch_ended"] * (len(kinds) // 2)
    record = host.events()[host.events_before :]
    assert two_awake(host.events(), host.events_before) == []

    # Each switch: its model, and no other, was awake when it was said to be.
    switches = [event["data"] for event in told.of("switch_ended")]
    before = [{"time": 0.0, "event": "awake", "model": "org/a"}]
    for one in switches:
        assert (one["status"], one["result"]["active_model"]) == ("done", one["model"])
        assert _awake_at([*before, *record], one["ended_at"]) == {one["model"]}, one["ended_at"]
    # Each answer is that of one of them, which ended while its caller waited.
    for answer in answers:
        assert any(one["model"] == answer.model and answer.asked <= one["ended_at"] <= answer.told for one in switches)
    with capsys.disabled():
        longest = max(answer.told - answer.asked for answer in answers)
        print(f"\n{len(answers)} answers to {CALLERS} callers by {len(switches)} switches, within {longest:.1f} s each")


def _waiting(service: Service) -> int:
    return sum(one["queue_depth"] for one in requests.get(service.url + "/models", timeout=30).json()["models"])


def _connect(service: Service, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    if sent:
        client.sendall(sent)
    return client


def _is_closed(client: socket.socket) -> bool:
    client.settimeout(0.01)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_connections_are_bounded(host: Host, services: list[Service]) -> None:
    host.declare("a")
    service = Service(host, reconcile=False, max_connections=3)
    services.append(service)
    with contextlib.ExitStack() as open_ones:
        for _each in range(3):
            open_ones.enter_context(_connect(service))
        until(lambda: requests.get(service.url + "/health", timeout=30).status_code == 503, "it is full")
        refused = requests.get(service.url + "/health", timeout=30)
        assert refused.json() == {
            "error": "there are too many connections (max_connections)",
            "remedy": "try again later",
        }
        assert int(refused.headers["Retry-After"]) > 0
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
        assert requests.get(service.url + "/events", headers=upgrade, timeout=30).status_code == 503
        # Who asks for nothing takes no place among those who are told.
        more = [open_ones.enter_context(_connect(service)) for _each in range(120)]
        until(lambda: sum(map(_is_closed, more)) >= 20, "those that are far too many are closed")
    until(lambda: requests.get(service.url + "/health", timeout=30).status_code == 200, "there is room again")


def test_a_connection_outlives_those_that_clients_keep(host: Host, services: list[Service]) -> None:
    """uvicorn's own 5 s are httpx's too: a request that met the end of its connection was lost."""
    host.declare("a")
    service = Service(host, reconcile=False)
    services.append(service)
    with _connect(service) as client:
        for _each in range(2):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
            time.sleep(6)
        assert not _is_closed(client)


def test_who_asks_for_too_slowly_is_let_go(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn
    from model_manager import connections
    from starlette.responses import PlainTextResponse
    from starlette.types import Receive, Scope, Send

    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            if message["type"] == "http.disconnect":
                return
        await asyncio.sleep(0.6)  # who has asked may wait for longer
        await PlainTextResponse("done")(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", http=connections.Connection))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            until(lambda: server.started, "it is served")
            for sent in (
                b"",
                b"GET / HT",
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab",
            ):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                    client.sendall(sent)
                    began, said = time.monotonic(), b""
                    while part := client.recv(4096):
                        said += part
                    assert 0.2 < time.monotonic() - began < 5
                    assert said == b""
            answer = requests.post(f"http://127.0.0.1:{port}/", data=b"abc", timeout=10)
            assert answer.text == "done"
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def test_the_memory_of_the_service_stays_what_it_is(
    host: Host, services: list[Service], capsys: pytest.CaptureFixture[str]
) -> None:
    host.declare("a")
    host.declare("b")
    host.up(a="active", b=1)
    service = Service(host)
    services.append(service)
    sizes = soak(service.url, service.process.pid, (100, 200))
    with capsys.disabled():
        print("".join(f"\n{switches} switches: {size:.1f} MB" for switches, size in sizes))
    assert [switches for switches, _size in sizes] == [100, 200]
    assert max(size for _switches, size in sizes) <= MOST_MB
    assert growth(sizes) < 0.1  # with so few switches, what is bounded still fills


@pytest.mark.whole
@pytest.mark.timeout(3600)
def test_five_thousand_switches_take_no_memory() -> None:
    sizes = list(run(SWITCHES))
    assert sizes[-1][0] == SWITCHES
    assert growth(sizes) <= MOST_GROWTH, sizes
    assert max(size for _switches, size in sizes) <= MOST_MB, sizes
