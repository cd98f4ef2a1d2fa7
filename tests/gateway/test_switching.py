# SPDX-License-Identifier: MIT
"""The gateway with the real manager: models are switched under clients that alternate, and no request is lost.

What the servers did is read from the record that the stand-ins keep themselves.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from tests import part
from tests.gateway.crowd import asking
from tests.gateway.gatewaylib import Gateway, missing, until
from tests.manager.conftest import Service, host, processes, stack_dir
from tests.manager.gateway_workers import TOKEN
from tests.manager.test_gateway_link import service
from tests.manager.test_manager import command_line
from tests.unit.plugins.module_utils.switching.conftest import Host

__all__ = ("host", "processes", "stack_dir")

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
CLIENTS = 8 if part.quick() else 32
SWITCHES = part.fewer("gateway", "make gateway", "switches under 32 clients that alternate", 1000, 30)
ROUNDS = part.fewer("gateway", "make gateway", "rounds of each fault under them", 15, 2)
BY_HAND = part.fewer("gateway", "make gateway", "switches by hand under clients of one model", 10, 2)
# Of the trace that alternates: one request each of these seconds, for the models in turn.
APART_SECONDS = 0.15
TRACE_SECONDS = 18.0
MAX_WAIT_SECONDS = 6.0
# A manager that is started again may take longer than a request waits for it.
WORDS = {"manager_unavailable", "starting", "switch_failed", "model_failing", "wait_timeout"}


class Client:
    """One that asks the models in turn, streaming or not, over one connection that is kept."""

    def __init__(self, port: int, number: int) -> None:
        self.answered = 0
        self.refused: collections.Counter[str] = collections.Counter()
        # What was neither answered nor refused in words.
        self.lost: list[str] = []
        self._port = port
        self._turn = number
        self._connection: http.client.HTTPConnection | None = None

    def ask(self) -> None:
        self._turn += 1
        model, stream = "ab"[self._turn % 2], self._turn % 3 == 0
        body = json.dumps({"model": model, "prompt": "x", "max_tokens": 3, "stream": stream})
        kept = self._connection is not None
        try:
            status, text = self._post(body)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            self._connection = None
            if not kept:
                self.lost.append(repr(error))
                return
            # As clients do where a kept connection is closed before anything of an answer has come.
            try:
                status, text = self._post(body)
            except (OSError, http.client.HTTPException) as again:
                self._connection = None
                self.lost.append(repr(again))
                return
        except (OSError, http.client.HTTPException) as error:
            self._connection = None
            self.lost.append(repr(error))
            return
        self._judge(status, text, model, stream)

    def _post(self, body: str) -> tuple[int, str]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        self._connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        return answer.status, answer.read().decode()

    def _judge(self, status: int, text: str, model: str, stream: bool) -> None:
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        errors = [chunk["error"] for chunk in chunks if "error" in chunk]
        if status != 200:
            errors = [json.loads(text)["error"]]
        if errors and errors[0].get("code") in WORDS:
            self.refused[errors[0]["code"]] += 1
            time.sleep(0.2)
        elif errors or (stream and not text.rstrip().endswith("data: [DONE]")):
            self.lost.append(f"{status}: {text[-300:]}")
        elif not stream and json.loads(text)["usage"]["completion_tokens"] != 3:
            self.lost.append(text)
        else:
            self.answered += 1


class Whole:
    """A host with two models, its manager, a gateway and clients."""

    def __init__(self, host: Host, running: Service, gateway: Gateway) -> None:
        self.host = host
        self.running = running
        self.gateway = gateway
        self.clients = [Client(gateway.port, number) for number in range(CLIENTS)]
        self._ending = threading.Event()

    def asking(self) -> contextlib.AbstractContextManager[None]:
        """The clients ask while the block runs."""
        return asking(self.clients, self._ending)

    def switches(self) -> int:
        # Not as JSON: the last line may be on its way.
        lines = (self.host.gpu_dir / "events.jsonl").read_text().splitlines()[self.host.events_before :]
        return sum('"event": "sleeping"' in line for line in lines)

    def check(self) -> str:
        """See that no server had a request while it was not awake, and that nothing is left; a line of figures."""
        asleep, parked, lost = self.astray()

        def left() -> list[Any]:
            models = requests.get(self.running.url + "/models", timeout=10).json()["models"]
            return [model["id"] for model in models if model["in_flight"] or model["queue_depth"]]

        until(lambda: not left(), "the counts are back at 0")
        answered = sum(client.answered for client in self.clients)
        refused = sum((client.refused for client in self.clients), collections.Counter[str]())
        text = (
            f"{answered} answered under {CLIENTS} clients and {self.switches()} switches; refused in words: "
            f"{dict(refused)}; at a server that was not awake: {asleep}, parked over a sleep: {parked}"
        )
        print(text)
        assert (asleep, parked, lost) == (0, 0, 0), text
        assert answered > CLIENTS, text
        return text

    def astray(self) -> tuple[int, int, int]:
        """The requests that came to a server that was not awake, that one had when it fell asleep, and that it lost."""
        awake, open_requests = {"a": True, "b": False}, collections.Counter[str]()
        asleep = parked = lost = 0
        for event in self.host.events()[self.host.events_before :]:
            model, kind = event["model"], event["event"]
            if kind == "awake":
                awake[model] = True
            elif kind == "sleeping":
                awake[model] = False
                parked += open_requests[model]
            elif kind == "request_start":
                open_requests[model] += 1
                asleep += not awake[model]
            elif kind == "request_end":
                open_requests[model] -= 1
                lost += event["finish"] == "lost"
        return asleep, parked, lost

    def lost(self) -> list[str]:
        return [one for client in self.clients for one in client.lost]


@contextlib.contextmanager
def begun(host: Host, **settings: Any) -> Iterator[Whole]:
    """A gateway of two workers in front of the service of a host whose servers run."""
    running, port = service(host, **settings)
    try:
        manager: Any = SimpleNamespace(port=port, token=TOKEN)
        with Gateway(manager, workers=2) as gateway:
            url = gateway.url + "/v1/models"
            until(lambda: requests.get(url, timeout=20).status_code == 200, "it knows the models")
            yield Whole(host, running, gateway)
    finally:
        running.process.kill()
        running.process.wait()
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def whole(host: Host) -> Iterator[Whole]:
    """With stand-ins that take 50 ms to sleep and to wake."""
    for name in ("a", "b"):
        host.declare(name, standin={"sleep_seconds": 0.05, "wake_seconds": 0.05})
    host.up(a="active", b=1)
    with begun(host) as whole:
        yield whole


def test_clients_that_alternate_lose_nothing(whole: Whole) -> None:
    with whole.asking():
        until(lambda: whole.switches() >= SWITCHES, f"{SWITCHES} switches", 900)
    text = whole.check()
    assert whole.lost() == [], text
    assert not any(client.refused for client in whole.clients), text


def kill_manager(whole: Whole, _chance: random.Random) -> None:
    assert whole.running.end(signal.SIGKILL) == -signal.SIGKILL
    whole.running.start()


def stop_manager(whole: Whole, _chance: random.Random) -> None:
    assert whole.running.end() == 0
    whole.running.start()


def switch_by_hand(whole: Whole, chance: random.Random) -> None:
    assert command_line(whole.host, "switch", chance.choice("ab")).wait(60) == 0


def fail_to_wake(whole: Whole, chance: random.Random) -> None:
    with contextlib.suppress(requests.ConnectionError):  # the switch before it has restarted the server
        whole.host.fault(chance.choice("ab"), "/wake_up", "status_500", times=chance.choice((1, 6)))


def reload_nginx(whole: Whole, _chance: random.Random) -> None:
    whole.gateway.reload()


@pytest.mark.parametrize(
    "fault",
    [
        kill_manager,
        stop_manager,
        switch_by_hand,
        fail_to_wake,
        reload_nginx,
    ],
)
def test_whatever_happens_requests_are_answered_or_refused_in_words(
    whole: Whole, fault: Callable[[Whole, random.Random], None]
) -> None:
    chance = random.Random(part.seed())
    with whole.asking():
        for _each in range(ROUNDS):
            time.sleep(chance.uniform(0.5, 1.5))
            fault(whole, chance)
        time.sleep(1)
    text = whole.check()
    assert whole.lost() == [], text


@pytest.mark.parametrize(
    "desired",
    ["active", *(pytest.param(state, marks=pytest.mark.whole) for state in ("sleeping", "stopped"))],
)
def test_a_switch_by_hand_has_the_gates_closed_first(whole: Whole, desired: str) -> None:
    """Only the model that is active is asked: the manager has nothing to do, and looks at the host now and then."""
    over, wrong = threading.Event(), []

    def ask() -> None:
        with requests.Session() as session:
            while not over.is_set():
                body = {"model": "a", "prompt": "x", "max_tokens": 3}
                answer = session.post(whole.gateway.url + "/v1/completions", json=body, timeout=60)
                if answer.status_code != 200:
                    wrong.append(answer.text)

    threads = [threading.Thread(target=ask) for _each in range(CLIENTS)]

    def is_active() -> bool:
        models = requests.get(whole.running.url + "/models", timeout=10).json()["models"]
        return next(model["status"] == "active" for model in models if model["id"] == "a")

    for thread in threads:
        thread.start()
    said = []
    words = ("b",) if desired == "active" else ("a", "--state", desired)
    try:
        for _each in range(BY_HAND):
            until(is_active, "a is active")
            time.sleep(0.3)
            switch = command_line(whole.host, "switch", *words)
            said.append(switch.communicate(timeout=60)[0])
            assert switch.returncode == 0, said
    finally:
        over.set()
        for thread in threads:
            thread.join(90)
    assert not any(thread.is_alive() for thread in threads), "a client hangs"
    print(f"{BY_HAND} switches by hand to {words}; astray, parked, lost: {whole.astray()}; refused: {len(wrong)}")
    assert (whole.astray(), wrong) == ((0, 0, 0), [])
    assert not any("did not confirm" in text for text in said), said


def test_a_killed_worker_loses_its_own_requests_and_leaves_no_count(whole: Whole) -> None:
    chance = random.Random(part.seed())
    with whole.asking():
        for _each in range(ROUNDS):
            time.sleep(chance.uniform(0.5, 1.5))
            os.kill(chance.choice(whole.gateway.workers()), signal.SIGKILL)
        time.sleep(1)
    text = whole.check()
    assert len(whole.lost()) <= ROUNDS * CLIENTS, text


def play(host: Host, policy: str) -> tuple[int, list[float]]:
    """Ask the models in turn, and for each as often; how many switches that took, and how long each request waited."""
    waits: list[float] = []
    wrong: list[str] = []
    with begun(host, policy=policy, max_wait_seconds=MAX_WAIT_SECONDS, observe_seconds=1) as whole:

        def ask(number: int) -> None:
            body = {"model": "ab"[number % 2], "prompt": "x", "max_tokens": 3}
            answer = requests.post(whole.gateway.url + "/v1/completions", json=body, timeout=60)
            if answer.status_code == 200:
                waits.append(float(answer.headers["X-Queue-Wait-Seconds"]))
            else:
                wrong.append(answer.text)

        before = whole.switches()
        threads = []
        for number in range(int(TRACE_SECONDS / APART_SECONDS)):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()
            time.sleep(APART_SECONDS)
        switches = whole.switches() - before
        for thread in threads:
            thread.join(90)
    assert wrong == []
    assert len(waits) == len(threads)
    return switches, waits


@pytest.mark.whole
def test_batched_needs_a_third_of_the_switches_and_keeps_its_bound(host: Host) -> None:
    host.settings["drain_timeout_seconds"] = 0.5
    for name in ("a", "b"):
        # A switch takes longer than the model that is active is idle between two of its requests.
        host.declare(name, weights_gb=0.1, standin={"sleep_seconds": 0.1, "wake_seconds": 0.3, "tokens_per_second": 40})
    host.up(a="active", b=1)
    fifo, _waits = play(host, "fifo")
    batched, waits = play(host, "batched")
    text = f"{len(waits)} requests; fifo: {fifo} switches; batched: {batched}, the longest wait {max(waits):.1f} s"
    print(text)
    assert fifo >= 9, text
    assert batched <= fifo / 3, text
    # On a busy machine a switch takes longer than was expected.
    assert max(waits) <= MAX_WAIT_SECONDS + 1, text
