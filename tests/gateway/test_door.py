# SPDX-License-Identifier: MIT
"""Three hosts behind one door: real managers and gateways on stand-ins, and the door with a gateway of its own.

A host that is killed loses its gateway, its manager and its servers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from tests import part
from tests.gateway.crowd import Client, Crowd
from tests.gateway.gatewaylib import Gateway, missing, until
from tests.manager.conftest import processes
from tests.manager.gateway_workers import TOKEN
from tests.manager.test_gateway_link import service
from tests.serverlib import free_port, two_awake
from tests.unit.plugins.module_utils.switching.conftest import Host, Processes

__all__ = ("processes",)

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
CLIENTS = 8 if part.quick() else 24
# How many answers each part of a story waits for.
ANSWERS = part.fewer("gateway", "make gateway", "requests before and after a host dies", 1500, 150)
KEY = "the-key-of-the-door"


class Member:
    """A host behind the door."""

    def __init__(self, folder: Path, name: str, states: dict[str, Any], **standin: Any) -> None:
        self.name = name
        self.host = Host(folder / name / "stack")
        for model in states:
            self.host.declare(model, standin={"sleep_seconds": 0.05, "wake_seconds": 0.05, **standin})
        self.host.up(**states)
        # As by default: a model that has just become active waits a moment for its requests.
        self.running, port = service(self.host, linger_seconds=0.5)
        link: Any = SimpleNamespace(port=port, token=TOKEN)
        self.gateway = Gateway(link, keys=[{"name": "door", "key": KEY}, {"name": "direct", "key": "direct" + KEY}])
        self.gateway.start()

    def config(self) -> dict[str, Any]:
        """How the door reaches it."""
        manager = int(self.running.url.rpartition(":")[2])
        own = {"name": self.name, "address": "127.0.0.1", "port": self.gateway.port, "api_key": KEY}
        return {**own, "manager_address": "127.0.0.1", "manager_port": manager}

    def kill(self) -> None:
        """End all of it at once. The manager comes first: it would start servers again."""
        self.running.process.kill()
        if self.gateway.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.gateway.process.pid, signal.SIGKILL)
        servers = Processes("")
        servers.entry = f"STANDIN_GPU_DIR={self.host.gpu_dir}".encode()
        servers.kill()

    def end(self) -> list[str]:
        """End it after the test; what was wrong with it."""
        wrong = self.gateway.failures()
        if "Traceback" in self.running.log.read_text():
            wrong.append(self.running.log.read_text())
        self.kill()
        self.running.process.wait()
        self.gateway.stop()
        return wrong

    def requests_to(self, model: str) -> int:
        """How many requests its server has had so far."""
        events = self.host.events()[self.host.events_before :]
        return sum(one["model"] == model and one["event"] == "request_start" for one in events)

    def check(self) -> None:
        """See that no two models were awake at once, and that no server had a request while it was not awake."""
        assert two_awake(self.host.events(), self.host.events_before) == []
        awake = {one["id"]: False for one in self.host.models} | {self.active: True}
        for event in self.host.events()[self.host.events_before :]:
            if event["event"] in ("awake", "sleeping"):
                awake[event["model"]] = event["event"] == "awake"
            elif event["event"] == "request_start":
                assert awake[event["model"]], (self.name, event)

    active = ""


class Door:
    """The door's service and its gateway."""

    def __init__(self, folder: Path, members: list[Member]) -> None:
        self.members = members
        self.log = folder / "door.log"
        (folder / "token").write_text(TOKEN)
        port = free_port()
        config = folder / "door.json"
        told = {
            "gateway_listen": f"127.0.0.1:{port}",
            "gateway_token_file": str(folder / "token"),
            "models_file": str(folder / "models.json"),
            "hosts": [member.config() for member in members],
        }
        config.write_text(json.dumps(told))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "model_manager.door", str(config)], env=environment, stdout=log, stderr=log
            )
        link: Any = SimpleNamespace(port=port, token=TOKEN)
        self.gateway = Gateway(link, workers=2)

    def __enter__(self) -> Door:
        self.gateway.start()
        until(lambda: requests.get(self.gateway.url + "/v1/models", timeout=20).status_code == 200, "it has the models")
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.gateway.stop()

    def list(self) -> dict[str, dict[str, Any]]:
        """What `/v1/models` says, by id."""
        return {one["id"]: one for one in requests.get(self.gateway.url + "/v1/models", timeout=10).json()["data"]}

    def until_loaded(self, *models: str) -> None:
        """Wait until these are active somewhere, for all that the door knows."""

        def active() -> bool:
            listed = self.list()  # a host may not have told of its models yet
            return all(model in listed and listed[model]["loaded"] for model in models)

        until(active, f"{models} are active")


def crowd_of(door: Door) -> Crowd:
    """Clients that ask for both models."""
    return Crowd([Client(("127.0.0.1", door.gateway.port), number) for number in range(CLIENTS)], ANSWERS)


Begin = Callable[..., Door]


@pytest.fixture
def begin(tmp_path: Path, processes: Processes) -> Iterator[Begin]:
    """Start hosts, by their names, and a door in front of them. `active`: the model that each has active, a or b."""
    del processes  # used for what it does after the test
    members: list[Member] = []
    with contextlib.ExitStack() as stack:

        def start(active: dict[str, str], **standin: Any) -> Door:
            for name, model in active.items():
                states: dict[str, Any] = {one: "active" if one == model else 1 for one in "ab"}
                members.append(Member(tmp_path, name, states, **standin))
                members[-1].active = model
            door = stack.enter_context(Door(tmp_path, members))
            door.until_loaded(*set(active.values()))
            return door

        yield start
        said = (tmp_path / "door.log").read_text()
        wrong = [one for member in members for one in member.end()]
    assert "Traceback" not in said, said
    assert wrong == []


@pytest.mark.parametrize("victim", [0, 2], ids=["one of two with a", "the only one with b"])
def test_a_host_dies_under_load_and_nothing_that_had_not_begun_is_lost(begin: Begin, victim: int) -> None:
    door = begin({"one": "a", "two": "a", "three": "b"})
    crowd = crowd_of(door)
    with crowd.asking():
        crowd.more()
        door.members[victim].kill()
        crowd.more()
    text = (
        f"{sum(crowd.answered().values())} answered by three hosts, of which one died; streams that had begun and "
        f"broke off: {len(crowd.broken())}, lost: {len(crowd.lost())}"
    )
    print(text)
    assert crowd.lost() == [], text
    # At most those that it had at the moment.
    assert len(crowd.broken()) <= CLIENTS, text
    for member in door.members:
        member.check()
    left = [member.name for number, member in enumerate(door.members) if number != victim]
    assert set(door.list()) == {"a", "b"}
    # Not by the log: its lines come late, and not in the order of the requests.
    for model in "ab":
        answer = requests.post(
            f"{door.gateway.url}/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 3}, timeout=60
        )
        assert answer.status_code == 200
        assert answer.headers["X-Gateway-Server"] in left


def test_a_model_that_two_hosts_have_active_is_shared_by_the_requests_that_each_has(begin: Begin) -> None:
    door = begin({"one": "a", "two": "a"}, tokens_per_second=2)
    until(lambda: servers_of(door, "a") == {"one", "two"}, "the door knows both")
    for member in door.members:
        member.host.forget_events()

    def long(port: int, key: str = "") -> threading.Thread:
        def run() -> None:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            body = {"model": "a", "prompt": "x", "max_tokens": 60, "stream": True}
            url = f"http://127.0.0.1:{port}/v1/completions"
            with (
                contextlib.suppress(requests.RequestException),
                requests.post(url, json=body, headers=headers, timeout=120, stream=True) as answer,
            ):
                for _line in answer.iter_lines():
                    if ended.is_set():
                        return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def by_the_door(count: int) -> list[threading.Thread]:
        """One after the other, while the door learns nothing new of what each host has."""
        begun = []
        before = one.requests_to("a") + two.requests_to("a")
        os.kill(door.process.pid, signal.SIGSTOP)
        try:
            for number in range(1, count + 1):
                begun.append(long(door.gateway.port))
                until(lambda: one.requests_to("a") + two.requests_to("a") == before + number, "it is at a server")  # noqa: B023
        finally:
            os.kill(door.process.pid, signal.SIGCONT)
        return begun

    ended = threading.Event()
    one, two = door.members
    threads = by_the_door(12)
    assert (one.requests_to("a"), two.requests_to("a")) == (6, 6)
    # Six of others at the one: the next six of the door's go to the other one.
    threads += [long(one.gateway.port, "direct" + KEY) for _each in range(6)]
    until(lambda: one.requests_to("a") == 12, "those of others are there")
    time.sleep(3)  # managers count what they have twice a second, and the door what is its own of that
    threads += by_the_door(6)
    assert (one.requests_to("a"), two.requests_to("a")) == (12, 12)
    ended.set()
    for thread in threads:
        thread.join(30)


def servers_of(door: Door, model: str) -> set[str]:
    """The hosts that have had a request for a model of this, each sent now."""
    body = {"model": model, "prompt": "x", "max_tokens": 1}
    for _each in range(4):
        requests.post(door.gateway.url + "/v1/completions", json=body, timeout=60).raise_for_status()
    return {row["server"] for row in door.gateway.logged(4, model=model)}


def test_a_model_that_sleeps_everywhere_is_switched_to_on_one_host(begin: Begin) -> None:
    door = begin({"one": "a", "two": "a", "three": "a"})
    body = {"model": "b", "prompt": "x", "max_tokens": 3}
    answer = requests.post(door.gateway.url + "/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert float(answer.headers["X-Queue-Wait-Seconds"]) > 0
    assert sorted(member.running.active() or "" for member in door.members) == ["a", "a", "b"]
    door.until_loaded("a", "b")


def test_if_the_service_of_the_door_ends_requests_for_active_models_go_on(begin: Begin) -> None:
    door = begin({"one": "a", "two": "b"})
    door.process.kill()
    door.process.wait()
    for model in "ab":
        body = {"model": model, "prompt": "x", "max_tokens": 3}
        answer = requests.post(door.gateway.url + "/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
