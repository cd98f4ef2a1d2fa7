# SPDX-License-Identifier: MIT
"""The manager's end of the link, played: what the workers of the gateway say is kept, what it says is up to the test.

with playing(model("qwen", port=8001, gate="closed")) as manager:
    ...
    manager.until_waiting(3)
    manager.open("qwen")
    manager.go("qwen")
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.serverlib import free_port

TOKEN = "f00d" * 16
PATIENCE_SECONDS = 20.0


def model(name: str, port: int = 9, gate: str = "open", **more: Any) -> dict[str, Any]:
    """A model of the state, with what the manager says of each; `more` replaces any of it."""
    entry = {"id": name, "object": "model", "created": 1, "owned_by": "vllm", "loaded": gate == "open"}
    return {
        "id": name,
        "names": [name],
        "adapters": [],
        "host": "127.0.0.1",
        "port": port,
        "gate": gate,
        "state": "active" if gate == "open" else "sleeping",
        "api_key": None,
        "eta_seconds": None,
        "entry": json.dumps(entry),
        "adapter_entries": [],
    } | more


class Link:
    """A connection of a worker."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.hello: dict[str, Any] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The worker's process."""
        assert self.hello is not None
        return int(self.hello["worker"].split(".")[0])

    def send(self, *messages: dict[str, Any]) -> None:
        """Say something; a link that is gone hears nothing."""
        text = "".join(json.dumps(message) + "\n" for message in messages)
        with self._lock, contextlib.suppress(OSError):
            self.sock.sendall(text.encode())

    def close(self) -> None:
        """Cut it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class Waiter:
    """A request that waits: its link, its `wait`, and its running number."""

    def __init__(self, link: Link, message: dict[str, Any], n: int) -> None:
        self.link = link
        self.message = message
        self.id = message["id"]
        self.model = message["model"]
        self.n = n
        self.since = time.monotonic()


class FakeManager:
    """Plays the manager on a port of the loopback interface."""

    def __init__(self, token: str = TOKEN, port: int = 0) -> None:
        self.token = token
        self.port = port or free_port()
        self.models: list[dict[str, Any]] = []
        # All that workers have said, in its order, `gone` of clients too; each with the "pid" of its worker.
        self.received: list[dict[str, Any]] = []
        self.links: list[Link] = []
        # Who waits, in its order.
        self.waiters: dict[tuple[Link, int], Waiter] = {}
        # A wait for an open gate is let go at once.
        self.auto = True
        # Whether waiters are told anything, how often, and what of it.
        self.speaks = True
        self.tell_seconds = 1.0
        self.eta: float | None = None
        self.ahead = 0
        # What is answered to a wait, or None: it is held.
        self.on_wait: Callable[[Waiter], dict[str, Any] | None] = lambda waiter: None
        self.boot = int(time.time() * 1000)
        self._numbers = itertools.count(1)
        self._n: dict[str, int] = {}
        self._changed = threading.Condition(threading.RLock())
        self._listener: socket.socket | None = None
        self._ended = threading.Event()

    def __enter__(self) -> FakeManager:
        self.start()
        threading.Thread(target=self._tell_for_ever, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        self.stop()

    # How it lives.

    def start(self) -> None:
        """Listen, as a manager that has been started again."""
        self.boot = max(self.boot + 1, int(time.time() * 1000))
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Be gone, as a manager that was killed."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.drop()

    def drop(self) -> None:
        """Cut all links."""
        with self._changed:
            those = list(self.links)
        for link in those:
            link.close()
        self.until(lambda: not set(those) & set(self.links), "the links have ended")

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _address = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(Link(sock),), daemon=True).start()

    def _serve(self, link: Link) -> None:
        with contextlib.suppress(OSError, ValueError), link.sock, link.sock.makefile("rb") as lines:
            for line in lines:
                if not self._take(link, json.loads(line)):
                    break
        with self._changed:
            if link in self.links:
                self.links.remove(link)
            for key in [key for key in self.waiters if key[0] is link]:
                del self.waiters[key]
            self._changed.notify_all()

    def _take(self, link: Link, message: dict[str, Any]) -> bool:
        with self._changed:
            kind = message["t"]
            if link.hello is None:
                if kind != "hello" or message["token"] != self.token or self._listener is None:
                    return False
                link.hello = message
                self.links.append(link)
                link.send(self._state())
            elif kind == "wait":
                self._enrol(link, message)
            elif kind == "gone":
                self.waiters.pop((link, message["id"]), None)
            self.received.append(message | {"pid": link.pid})
            self._changed.notify_all()
        return True

    def _enrol(self, link: Link, message: dict[str, Any]) -> None:
        name = message["model"]
        self._n[name] = self._n.get(name, 0) + 1
        waiter = Waiter(link, message, self._n[name])
        answer = self.on_wait(waiter)
        if answer is None and self.auto and self.one(name)["gate"] == "open":
            answer = {"t": "go"}
        if answer is not None:
            link.send(answer | {"id": waiter.id})
            return
        self.waiters[link, waiter.id] = waiter
        if self.speaks:
            link.send({"t": "held", "id": waiter.id, "n": waiter.n})

    # What it says.

    def _state(self) -> dict[str, Any]:
        return {"t": "state", "version": [self.boot, next(self._numbers)], "models": self.models}

    def state(self) -> None:
        """Send the state to all links."""
        with self._changed:
            state = self._state()
            for link in self.links:
                link.send(state)

    def one(self, name: str) -> dict[str, Any]:
        """A model of the state."""
        return next(one for one in self.models if one["id"] == name)

    def set_models(self, *models: dict[str, Any]) -> None:
        """The host's models from now on."""
        with self._changed:
            self.models = list(models)
            self.state()

    def open(self, name: str, state: str = "active") -> None:
        """Open a model's gate; nobody is let go by that alone."""
        with self._changed:
            self.one(name).update(gate="open", state=state)
            self.state()

    def close(self, name: str, state: str = "sleeping") -> None:
        """Close a model's gate."""
        with self._changed:
            self.one(name).update(gate="closed", state=state)
            self.state()

    def go(self, name: str | None = None, count: int | None = None) -> None:
        """Let the first `count` waiters of a model go, or all; the gate must have been opened before."""
        self._end(name, count, {"t": "go"})

    def refuse(self, name: str | None = None, count: int | None = None, **refusal: Any) -> None:
        """Refuse waiters of a model; `refusal`: status, code, message, retry_after."""
        self._end(name, count, {"t": "refuse"} | refusal)

    def _end(self, name: str | None, count: int | None, message: dict[str, Any]) -> None:
        with self._changed:
            those = [key for key, waiter in self.waiters.items() if name in (None, waiter.model)][:count]
            by_link: dict[Link, list[dict[str, Any]]] = {}
            for key in those:
                del self.waiters[key]
                by_link.setdefault(key[0], []).append(message | {"id": key[1]})
            for link, messages in by_link.items():
                link.send(*messages)

    def tell(self) -> None:
        """Tell whoever waits where it stands."""
        with self._changed:
            for name in {waiter.model for waiter in self.waiters.values()}:
                first = next(waiter.n for waiter in self.waiters.values() if waiter.model == name)
                said = {"t": "tell", "model": name, "ahead": self.ahead, "first": first, "eta": self.eta}
                for link in self.links:
                    link.send(said)

    def _tell_for_ever(self) -> None:
        while not self._ended.wait(self.tell_seconds):
            # Who has just come is told by its worker first that it waits, and then how.
            end = time.monotonic() + 1
            while any(one.since > time.monotonic() - 0.3 for one in self._waiting()) and time.monotonic() < end:
                time.sleep(0.05)
            if self.speaks:
                self.tell()

    def _waiting(self) -> list[Waiter]:
        with self._changed:
            return list(self.waiters.values())

    # What it has heard.

    def said(self, kind: str) -> list[dict[str, Any]]:
        """All messages of a kind so far."""
        with self._changed:
            return [message for message in self.received if message["t"] == kind]

    def counts(self, link: Link | None = None) -> dict[str, dict[str, Any]]:
        """What the gateway counts, asked on one link."""
        seq = next(self._numbers)
        with self._changed:
            assert self.links, "there is no link to ask"
            (link or self.links[0]).send({"t": "counts?", "seq": seq})
        self.until(lambda: any(one["seq"] == seq for one in self.said("counts")), "the counts were told")
        counts: dict[str, dict[str, Any]] = next(one["counts"] for one in self.said("counts") if one["seq"] == seq)
        return counts

    def in_flight(self) -> int:
        """How many requests are with the servers."""
        return sum(one["in_flight"] for one in self.counts().values())

    def until(self, done: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until something is so. Fails when it never is."""
        end = time.monotonic() + seconds
        with self._changed:
            while not done():
                left = end - time.monotonic()
                assert left > 0, f"not within {seconds:g} s: {what}"
                self._changed.wait(min(left, 0.05))

    def until_waiting(self, count: int, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until exactly so many requests wait."""
        self.until(lambda: len(self.waiters) == count, f"{count} wait", seconds)

    def until_linked(self, count: int = 1) -> None:
        """Wait until exactly so many workers have a link."""
        self.until(lambda: len(self.links) == count, f"{count} links")


@contextlib.contextmanager
def playing(*models: dict[str, Any]) -> Iterator[FakeManager]:
    """A manager of these models, from now to the end of the block."""
    with FakeManager() as manager:
        manager.set_models(*models)
        yield manager
