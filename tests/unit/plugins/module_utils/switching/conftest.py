# SPDX-License-Identifier: MIT
"""A host with stand-in servers for the tests of the engine: its own stack folder, its own GPUs, and nothing left after.

The stand-ins are started by the engine's own lifecycle (`start_command`), so that the engine can stop and restart them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import inventory as inventory_module
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import Command
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import HostLock
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from tests.serverlib import ACCESS, STANDIN, free_port, two_awake

MARK = "HOMEGPT_TEST"
# Small enough that a test of a failure is quick; a test that needs more says so.
SETTINGS: dict[str, Any] = {
    "max_retries": 50,
    "health_check_interval_seconds": 0.2,
    "request_timeout_seconds": 10,
    "drain_timeout_seconds": 10,
    "lock_timeout_seconds": 10,
    "failure_backoff_seconds": 0,
    "canary": "off",
}


class Processes:
    """The processes that one test started, directly or not: they carry its mark in their environment."""

    def __init__(self, mark: str) -> None:
        self.entry = f"{MARK}={mark}".encode()

    def left(self) -> list[int]:
        """The ids of those that live."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # A zombie has an empty environment.
                if self.entry in (path / "environ").read_bytes().split(b"\0") and path.name != str(os.getpid()):
                    found.append(int(path.name))
        return sorted(found)

    def kill(self) -> None:
        """End them all."""
        while left := self.left():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """What the test starts; it is ended after the test, however that ends."""
    for name in os.environ:
        if name.startswith(("STANDIN_", "VLLM_", "CUDA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv(MARK, str(tmp_path))
    processes = Processes(str(tmp_path))
    yield processes
    processes.kill()


@pytest.fixture
def stack_dir(tmp_path: Path, processes: Processes) -> Path:
    """A stack folder that does not exist yet."""
    del processes  # used for what it does after the test
    return tmp_path / "stack"


class TwoAwake(Protocol):
    """The check of the GPUs, as a fixture hands it over."""

    def __call__(self, events: Iterable[dict[str, Any]], since: int = 0) -> list[str]:
        """The moments at which two were awake."""


@pytest.fixture(name="two_awake")
def two_awake_fixture() -> TwoAwake:
    """The check that ends every test with a host."""
    return two_awake


class Host:
    """One GPU host: models that are declared, and servers that run or not."""

    def __init__(self, stack_dir: Path) -> None:
        self.stack_dir = stack_dir
        self.gpu_dir = stack_dir.parent / "gpus"
        self.models: list[dict[str, Any]] = []
        self.settings = dict(SETTINGS)
        self.started: list[Command] = []
        self.events_before = 0

    def declare(self, name: str, /, *, standin: dict[str, object] | None = None, **fields: Any) -> None:
        """Declare a model; C(standin) are the settings of its stand-in: load_seconds is STANDIN_LOAD_SECONDS."""
        port = free_port()
        command = [sys.executable, str(STANDIN), "serve", f"org/{name}", "--host", "127.0.0.1", "--port", str(port)]
        settings = {"gpu_dir": self.gpu_dir, "gpu_total_gb": 100, "vram_gb": 20, **(standin or {})}
        self.models.append(
            {
                "id": name,
                "model": f"org/{name}",
                "host_port": port,
                "start_command": [*command, "--served-model-name", name, "--enable-sleep-mode"],
                "weights_gb": 10,
                **fields,
                "env": {
                    **{f"STANDIN_{key.upper()}": str(value) for key, value in settings.items()},
                    **fields.get("env", {}),
                },
            }
        )

    @property
    def inventory(self) -> inventory_module.Inventory:
        """What has been declared."""
        return inventory_module.parse(self.models, self.settings)

    def model(self, name: str) -> inventory_module.Model:
        """One declared model."""
        return self.inventory.find(name)

    def up(self, **states: int | str) -> None:
        """Start servers and bring each to a state: active, loading, or the level it sleeps at."""
        for name in states:
            self.start(name)
        for name, state in states.items():
            if state == "loading":
                continue
            self.wait_until(lambda name=name: self.answers(name), f"{name} is loaded")  # type: ignore[misc]
            if isinstance(state, int):
                self.call(name, "POST", f"/sleep?level={state}")
                self.wait_until(
                    lambda name=name: self.call(name, "GET", "/is_sleeping").json()["is_sleeping"],  # type: ignore[misc]
                    f"{name} sleeps",
                )
        # Here, unlike in a switch, they load side by side.
        self.forget_events()

    def start(self, name: str) -> None:
        """Start one server without waiting for it."""
        command = Command(self.model(name), str(self.stack_dir), self.inventory.switching)
        command.start()
        self.started.append(command)

    def forget_events(self) -> None:
        """Leave what has happened so far out of the check of the GPUs."""
        self.events_before = len(self.events())

    def connects(self, name: str) -> bool:
        """Whether a server's port takes connections."""
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.model(name).host_port)) == 0

    def running(self, name: str) -> int:
        """How many requests a server works on."""
        return int(self.call(name, "GET", "/standin/state").json()["requests"])

    @staticmethod
    def wait_until(done: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        """Poll until done() is true; fail when it never is."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if done():
                    return
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.01)

    def answers(self, name: str) -> bool:
        """Whether a server has loaded."""
        return self.connects(name) and self.call(name, "GET", "/health").status_code == 200

    def switcher(self, **parameters: Any) -> Switcher:
        """A switcher for the host, which has RAM enough."""
        # The locks of the machine and of its GPUs are the test's own: tests run side by side.
        lock = HostLock(str(self.stack_dir), str(self.stack_dir.parent / "place"), gpus=dict, uuids=dict)
        ours: dict[str, Any] = {"mem_available_gb": lambda: 1000.0, "lock": lock}
        return Switcher(self.inventory, str(self.stack_dir), **{**ours, **parameters})

    def switch(self, name: str, desired: str = "active", check: bool = False, **parameters: Any) -> Result:
        """Switch once, as one run of the module does."""
        with self.switcher(**parameters) as switcher:
            return switcher.switch(name, desired, check)

    def while_it_waits(self, switcher: Switcher, act: Callable[[], object]) -> None:
        """Have somebody act when the switcher asks for the lock, before it has it. Once."""
        hold = switcher.lock.hold

        def later(*arguments: Any) -> Any:
            switcher.lock.hold = hold  # type: ignore[method-assign]
            act()
            return hold(*arguments)

        switcher.lock.hold = later  # type: ignore[method-assign, assignment]

    def states(self) -> dict[str, str]:
        """What every server is, read from the servers."""
        with self.switcher() as switcher:
            return {name: seen["state"] for name, seen in switcher.report()["models"].items()}

    def call(self, name: str, method: str, path: str, **options: Any) -> requests.Response:
        """One call to a server, past the engine."""
        url = f"http://127.0.0.1:{self.model(name).host_port}{path}"
        return requests.request(method, url, **{"timeout": 30, **options})

    def fault(self, name: str, path: str, fault: str, **options: Any) -> None:
        """Order a fault of a stand-in; C(times) 0 means for ever."""
        order = {"path": path, "fault": fault, **options}
        self.call(name, "POST", "/standin/faults", json=order).raise_for_status()

    def log(self, name: str) -> str:
        """What a server printed, before a restart too."""
        logs = (self.stack_dir / "run" / f"{name}.log{suffix}" for suffix in (".1", ""))
        return "".join(log.read_text(encoding="utf-8") for log in logs if log.exists())

    def changing_calls(self, name: str) -> list[str]:
        """The calls other than GET in a server's access log, in order."""
        calls = [match["call"] for match in ACCESS.finditer(self.log(name))]
        return [call for call in calls if not call.startswith("GET ")]

    def all_changing_calls(self) -> dict[str, list[str]]:
        """The calls other than GET that every server has had."""
        return {model["id"]: self.changing_calls(model["id"]) for model in self.models}

    def completion(self, name: str, tokens: int = 4) -> dict[str, Any]:
        """The answer to a completion that a client asks for."""
        body = {"model": name, "prompt": "Once upon a time", "max_tokens": tokens, "temperature": 0}
        answer = self.call(name, "POST", "/v1/completions", json=body)
        answer.raise_for_status()
        return dict(answer.json()["choices"][0])

    def events(self) -> list[dict[str, Any]]:
        """What the stand-ins did, in order."""
        path = self.gpu_dir / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def host(stack_dir: Path) -> Iterator[Host]:
    """A host without models. After the test no two servers may have been awake on one GPU at any moment."""
    host = Host(stack_dir)
    yield host
    assert two_awake(host.events(), host.events_before) == []
