# SPDX-License-Identifier: MIT
"""The link's connections: who is let in, and what becomes of those who send nonsense or take nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from model_manager import gateway_link
from model_manager.config import Config, ConfigError

from tests.manager.conftest import Service, declare_two, until
from tests.manager.gateway_workers import TOKEN, Worker
from tests.serverlib import free_port
from tests.unit.plugins.module_utils.switching.conftest import Host


class Recorder:
    """In the place of the gateway: notes what the links tell it."""

    def __init__(self) -> None:
        self.links: list[Any] = []
        self.lost_links: list[Any] = []
        self.messages: list[Mapping[str, Any]] = []

    def connected(self, link: Any) -> None:
        self.links.append(link)
        link.send({"t": "state", "version": [1, 1], "models": []})

    def lost(self, link: Any) -> None:
        if link in self.links:  # else it has never said who it is
            self.links.remove(link)
            self.lost_links.append(link)

    def take(self, link: Any, messages: Iterable[Mapping[str, Any]]) -> None:
        for message in messages:
            self.messages.append(message)
            if message.get("t") == "wait":
                link.send({"t": "go", "id": message["id"]})

    def tick(self) -> float:
        return 0.05


class Served:
    """Links on a free port, in a thread."""

    def __init__(self) -> None:
        self.gateway = Recorder()
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(ready),), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    async def _serve(self, ready: threading.Event) -> None:
        with socket.create_server(("127.0.0.1", self.port)) as door:
            async with gateway_link.serving(self.gateway, TOKEN, door):
                ready.set()
                await self._ending.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)
        self._loop.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@pytest.fixture
def served() -> Iterator[Served]:
    """Links that a test has for itself."""
    links = Served()
    yield links
    links.close()


def is_closed(client: socket.socket) -> bool:
    """Wait until the other side has closed."""
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


HELLO = {"t": "hello", "token": TOKEN, "worker": "7.x", "protocol": 1}


def line(**message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (line(**{**HELLO, "token": "another-token-of-somebody"}), "wrong token"),
        (line(**{**HELLO, "token": None}), "wrong token"),
        (line(t="hello", worker="7.x", protocol=1), "wrong token"),
        (line(t="wait", id=1, model="a"), "wrong token"),
        (line(**{**HELLO, "protocol": 2}), "protocol 2"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "no sense"),
        (b"[]\n", "no sense"),
        (b"\xff\xfe\n", "no sense"),
        (b"[" * 60000 + b"\n", "no sense"),
        (b"x" * 70000, "65536 bytes"),
    ],
)
def test_who_does_not_begin_with_the_token_is_not_let_in(
    served: Served, caplog: pytest.LogCaptureFixture, first: bytes, said: str
) -> None:
    with caplog.at_level(logging.WARNING), served.connect() as client:
        client.sendall(first)
        assert is_closed(client)
    assert served.gateway.links == served.gateway.messages == []
    assert said in caplog.text
    assert "another-token" not in caplog.text and TOKEN not in caplog.text


def test_what_makes_no_sense_ends_a_link_and_no_other(served: Served) -> None:
    good = Worker(served.port)
    bad = [b"{\n", b"3\n", b'{"t":"wait"}\n' + b"y" * 70000 + b"\n", b"z" * 70000]
    for data in bad:
        with served.connect() as client:
            client.sendall(line(**HELLO))
            assert client.recv(100)
            client.sendall(data)
            assert is_closed(client)
    until(lambda: len(served.gateway.lost_links) == len(bad), "each is known to be gone")
    assert good.outcome(good.wait("a"))["t"] == "go"
    good.close()


def test_lines_may_come_in_pieces_and_many_at_once(served: Served) -> None:
    with served.connect() as client:
        whole = line(**HELLO) + b"".join(line(t="gone", id=number) for number in range(2000))
        for start in range(0, len(whole), 777):
            client.sendall(whole[start : start + 777])
        until(lambda: len(served.gateway.messages) == 2000, "all have come")
        assert [one["id"] for one in served.gateway.messages] == list(range(2000))


def test_who_takes_nothing_is_cut_off_before_it_costs_memory(served: Served) -> None:
    good = Worker(served.port)
    with served.connect() as stalled:
        stalled.sendall(line(**HELLO))
        until(lambda: len(served.gateway.links) == 2, "it is there")
        link = served.gateway.links[1]
        sent = 0
        while link in served.gateway.links:
            link.send({"t": "tell", "text": "x" * 60000})
            sent += 60000
            time.sleep(0.0005)
            assert sent < 100 * 2**20, "it is never cut off"
        assert sent < gateway_link.MOST_UNSENT_BYTES + 20 * 2**20  # and what the kernel takes
    assert good.outcome(good.wait("a"))["t"] == "go"
    good.close()


def test_there_is_a_bound_to_the_links(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_link, "MOST_LINKS", 20)
    clients = [served.connect() for _each in range(20)]
    for client in clients:
        client.sendall(line(**HELLO))
        assert client.recv(100)
    with served.connect() as one_more:
        one_more.sendall(line(**HELLO))
        assert is_closed(one_more)
    assert len(served.gateway.links) == 20
    for client in clients:
        client.close()

    def let_in() -> bool:
        with served.connect() as client:
            client.sendall(line(**HELLO))
            return client.recv(100).startswith(b'{"t":"state"')

    until(let_in, "there is room again")


def test_those_who_say_nothing_keep_nobody_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_link, "MOST_STRANGERS", 10)
    clients = [served.connect() for _each in range(30)]
    assert all(is_closed(client) for client in clients[:20])
    good = Worker(served.port)
    assert good.outcome(good.wait("a"))["t"] == "go"
    good.close()
    for client in clients:
        client.close()


def test_who_says_nothing_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_link, "_HELLO_SECONDS", 0.2)
    with served.connect() as client:
        client.sendall(b'{"t":')
        assert is_closed(client)


@pytest.mark.parametrize(("text", "said"), [(None, "can't be read"), ("", "0 characters"), ("short\n", "5 characters")])
def test_a_token_file_that_can_not_be_used_is_told(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
    config = Config("/s", gateway_listen="127.0.0.1:9001", gateway_token_file=str(path))
    with pytest.raises(ConfigError, match=said):
        gateway_link.read_token(config)
    path.write_text(TOKEN + "\n")
    assert gateway_link.read_token(config) == TOKEN


def test_an_address_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config("/s", gateway_listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(OSError, match="correct gateway_listen"):
            gateway_link.listen(config)


# The service as a process.


def service(host: Host, **more: Any) -> tuple[Service, int]:
    """The service with a gateway's link, and its port."""
    host.stack_dir.mkdir(parents=True, exist_ok=True)
    token, port = host.stack_dir / "link-token", free_port()
    token.write_text(TOKEN + "\n")
    settings = {"gateway_listen": f"127.0.0.1:{port}", "gateway_token_file": str(token), "linger_seconds": 0, **more}
    return Service(host, **settings), port


def test_the_service_leaves_the_gates_as_its_last_switch_has_left_the_models(host: Host) -> None:
    declare_two(host, wake_seconds=1.5)
    host.up(a="active", b=1)
    running, port = service(host)
    try:
        worker = Worker(port)
        worker.wait("b")
        until(lambda: worker.store.gate("a") == "closed", "the switch has begun")
        until(lambda: running.state("b") == "waking", "it wakes")
        worker.wait("a")
        assert running.end() == 0, running.log.read_text()
        assert worker.closed.wait(10)
        assert (worker.store.gate("a"), worker.store.gate("b")) == ("closed", "open")
        assert not worker.of("refuse"), "who waits comes back"
        worker.close()
    finally:
        running.process.kill()
        running.process.wait()
    assert "Traceback" not in running.log.read_text()
    assert TOKEN not in running.log.read_text()


def test_a_killed_service_comes_back_and_those_who_wait_are_served(host: Host) -> None:
    declare_two(host, wake_seconds=1)
    host.up(a="active", b=1)
    running, port = service(host)
    try:
        worker = Worker(port)
        worker.wait("b")
        until(lambda: running.state("b") == "waking", "it wakes")
        assert running.end(signal.SIGKILL) == -signal.SIGKILL
        assert worker.closed.wait(10)
        assert worker.store.gate("a") == "closed"
        running.start()
        again = Worker(port, worker.store)
        assert again.outcome(again.wait("b", waited=2.0))["t"] == "go"
        text = requests.get(running.url + "/metrics", timeout=10).text
        assert "homegpt_gateway_links 1.0" in text
        assert 'homegpt_gateway_waiting{model="b"} 0.0' in text
        again.send(t="wait", id=99, model="nobody")
        assert again.outcome(99)["status"] == 404
        text = requests.get(running.url + "/metrics", timeout=10).text
        assert 'homegpt_gateway_refused_total{code="model_not_found"} 1.0' in text
        again.close()
        worker.close()
        assert running.end() == 0
    finally:
        running.process.kill()
        running.process.wait()


def test_a_service_without_its_token_says_so(host: Host) -> None:
    declare_two(host)
    host.stack_dir.mkdir(parents=True, exist_ok=True)
    settings = {"gateway_listen": f"127.0.0.1:{free_port()}", "gateway_token_file": str(host.stack_dir / "none")}
    failed = Service(host, **settings)
    assert failed.process.wait(30) == 2
    assert "gateway_token_file can't be read" in failed.log.read_text()
