# SPDX-License-Identifier: MIT
"""The gateway's workers without nginx: clients of the manager's link that do what the Lua modules do, in threads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tests.manager.conftest import PATIENCE_SECONDS, until
from tests.serverlib import free_port

if TYPE_CHECKING:
    from model_manager.gateway import Gateway

TOKEN = "the-link-token-of-the-tests"


class Door:
    """The manager's link, served by an event loop of its own as the service's does."""

    def __init__(self, gateway: Gateway, port: int | None = None) -> None:
        self.port = port or free_port()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(gateway,), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self, gateway: Gateway) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(gateway))
        self._loop.close()

    async def _serve(self, gateway: Gateway) -> None:
        from model_manager import gateway_link

        with socket.create_server(("127.0.0.1", self.port)) as door:
            async with gateway_link.serving(gateway, TOKEN, door):
                self._ready.set()
                await self._ending.wait()

    def close(self) -> None:
        """Close it with all its links."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)


class Store:
    """What nginx's workers share: the state, and how many requests each model has."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.version: list[int] = [0, 0]
        self.models: dict[str, dict[str, Any]] = {}
        self.in_flight: dict[str, int] = {}
        self.ended: dict[str, float] = {}
        # Each change of a gate, with its time.
        self.gates: list[tuple[float, str, str]] = []

    def apply(self, message: dict[str, Any]) -> None:
        with self.lock:
            if message["version"] <= self.version:
                return
            self.version = message["version"]
            for model in message["models"]:
                before = self.models.get(model["id"], {}).get("gate")
                if model["gate"] != before:
                    self.gates.append((time.time(), model["id"], model["gate"]))
            self.models = {model["id"]: model for model in message["models"]}

    def gate(self, model: str) -> str:
        with self.lock:
            return str(self.models.get(model, {}).get("gate"))

    def enter(self, model: str) -> bool:
        with self.lock:
            if self.models.get(model, {}).get("gate") != "open":
                return False
            self.in_flight[model] = self.in_flight.get(model, 0) + 1
            return True

    def leave(self, model: str) -> None:
        with self.lock:
            self.in_flight[model] -= 1
            self.ended[model] = time.monotonic()

    def counts(self) -> dict[str, Any]:
        with self.lock:
            now = time.monotonic()
            counts = {
                name: {"in_flight": number, "idle_seconds": 0 if number else now - self.ended.get(name, now)}
                for name, number in self.in_flight.items()
            }
            return {"version": self.version, "counts": counts}


class Refused(Exception):
    """The manager has refused a request; `said` is what it told."""

    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__(said["message"])
        self.said = said


class Worker:
    """One of nginx's workers: a link to the manager."""

    def __init__(self, port: int, store: Store | None = None, *, token: str = TOKEN, name: str = "") -> None:
        self.store = store or Store()
        self.received: list[dict[str, Any]] = []
        self.closed = threading.Event()
        self.answers_counts = True
        self._came = threading.Condition()
        self._ids = itertools.count(1)
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self._sending = threading.Lock()
        self.send(t="hello", token=token, worker=name or "1.abc", protocol=1, store=f"{id(self.store)}")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, **message: Any) -> None:
        self.send_bytes(json.dumps(message).encode() + b"\n")

    def send_bytes(self, data: bytes) -> None:
        with self._sending:
            self._socket.sendall(data)

    def wait(self, model: str, **more: Any) -> int:
        number = next(self._ids)
        self.send(**{"t": "wait", "id": number, "model": model, "key": "", "waited": 0.0, "task": "", **more})
        return number

    def of(self, kind: str, number: int | None = None) -> list[dict[str, Any]]:
        """What has come of a kind, for one that waits if its number is given."""
        with self._came:
            return [one for one in self.received if one["t"] == kind and number in (None, one.get("id"))]

    def outcome(self, number: int, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """What has become of one that waits: `go` or `refuse`."""
        deadline = time.monotonic() + seconds
        with self._came:
            while True:
                for one in self.received:
                    if one.get("id") == number and one["t"] in ("go", "refuse"):
                        return one
                left = deadline - time.monotonic()
                assert left > 0 and not self.closed.is_set(), f"nothing has become of {number}"
                self._came.wait(min(left, 1.0))

    def request(self, model: str, act: Callable[[], object], key: str = "") -> float:
        """Do what a request does, as the gateway has it; how long it waited. Raises Refused."""
        began = time.monotonic()
        entered = self.store.enter(model)
        while not entered:
            number = self.wait(model, key=key, waited=time.monotonic() - began)
            said = self.outcome(number)
            if said["t"] == "refuse":
                raise Refused(said)
            entered = self.store.enter(model)
            if entered:
                self.send(t="entered", id=number)
        waited = time.monotonic() - began
        try:
            act()
        finally:
            self.store.leave(model)
        return waited

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)

    def _read(self) -> None:
        left = b""
        with contextlib.suppress(OSError):
            while data := self._socket.recv(65536):
                *lines, left = (left + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
        self.closed.set()
        with self._came:
            self._came.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        if message["t"] == "state":
            self.store.apply(message)
        elif message["t"] == "counts?" and self.answers_counts:
            with contextlib.suppress(OSError):
                self.send(t="counts", seq=message["seq"], **self.store.counts())
        with self._came:
            self.received.append(message)
            self._came.notify_all()


@contextlib.contextmanager
def linked(gateway: Gateway, workers: int = 1) -> Iterator[tuple[Door, list[Worker]]]:
    """The link of a manager, and workers of one nginx that have the state."""
    door = Door(gateway)
    store = Store()
    found: list[Worker] = []
    try:
        for number in range(workers):
            found.append(Worker(door.port, store, name=f"{number}.x"))
        until(lambda: all(one.of("state") for one in found), "the workers have the state")
        yield door, found
    finally:
        for one in found:
            one.close()
        door.close()
