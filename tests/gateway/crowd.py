# SPDX-License-Identifier: MIT
"""Clients that keep asking the models behind a door, whole and streaming, and what has become of each request."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from tests.gateway.gatewaylib import until

# What an event has that says that a stream has failed.
FAILED = '"error"'


class Client:
    """One that asks models in turn, streaming or not, each over a connection of its own."""

    def __init__(self, address: tuple[str, int], number: int, models: str = "ab", tokens: int = 3) -> None:
        self.answered: collections.Counter[str] = collections.Counter()
        # Streams that had begun and ended visibly before their end: what came last, and how it ended.
        self.broken: list[str] = []
        # What was neither answered nor had begun.
        self.lost: list[str] = []
        # What nobody has taken: there was no connection to send it on.
        self.refused = 0
        self.longest = 0.0
        self._address = address
        self._turn = number
        self._models = models
        self._tokens = tokens

    def ask(self) -> None:
        self._turn += 1
        model, stream = self._models[self._turn % len(self._models)], self._turn % 3 == 0
        body = json.dumps({"model": model, "prompt": "x", "max_tokens": self._tokens, "stream": stream})
        connection = http.client.HTTPConnection(*self._address, timeout=90)
        began = time.monotonic()
        status, text, failure = 0, "", ""
        try:
            connection.connect()
        except OSError:
            self.refused += 1
            time.sleep(0.05)
            return
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            status = answer.status
            while piece := answer.read1():
                text += piece.decode()
        except (OSError, http.client.HTTPException) as error:
            failure = repr(error)
        finally:
            connection.close()
        self.longest = max(self.longest, time.monotonic() - began)
        begun = stream and '"choices"' in text
        if status == 200 and not failure and self._is_whole(text, stream):
            self.answered[model] += 1
        elif begun:
            self.broken.append(f"{status} {failure}: {text[-200:]}")
        else:
            self.lost.append(f"{model} {stream} {status} {failure}: {text[-300:]}")

    def _is_whole(self, text: str, stream: bool) -> bool:
        if stream:
            return text.rstrip().endswith("data: [DONE]") and FAILED not in text
        return bool(json.loads(text)["usage"]["completion_tokens"] == self._tokens)


class Asks(Protocol):
    """A client that makes one request and keeps what became of it."""

    def ask(self) -> object: ...


@contextlib.contextmanager
def asking(clients: Iterable[Asks], ending: threading.Event) -> Iterator[None]:
    """They ask, one request each after the other, while the block runs."""

    def run(client: Asks) -> None:
        while not ending.is_set():
            client.ask()

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a client hangs"


class Crowd:
    """Clients that ask for as long as the block runs. `more` waits for so many answers."""

    def __init__(self, clients: list[Client], answers: int) -> None:
        self.clients = clients
        self._answers = answers
        self._ending = threading.Event()

    def asking(self) -> contextlib.AbstractContextManager[None]:
        """They ask while the block runs."""
        return asking(self.clients, self._ending)

    def answered(self) -> collections.Counter[str]:
        return sum((client.answered for client in self.clients), collections.Counter())

    def lost(self) -> list[str]:
        return [one for client in self.clients for one in client.lost]

    def broken(self) -> list[str]:
        return [one for client in self.clients for one in client.broken]

    def refused(self) -> int:
        return sum(client.refused for client in self.clients)

    def longest(self) -> float:
        """How many seconds a request took at most."""
        return max(client.longest for client in self.clients)

    def more(self, models: str = "ab", told: Callable[[], str] = str) -> None:
        """Wait until each model has been answered so often once more."""
        before, each = self.answered(), self._answers // len(models)
        until(
            lambda: all(self.answered()[model] - before[model] >= each for model in models),
            f"{each} more answers of each of {models}; so far {self.answered()}, lost {self.lost()[:3]} {told()}",
            600,
        )
