# SPDX-License-Identifier: MIT
"""A manager on a host of stand-ins, within the test's own process or as the service that it is; nothing is left."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from tests.serverlib import free_port
from tests.unit.plugins.module_utils.switching.conftest import Host, host, processes, stack_dir

# The service's package is no part of the collection's: on a host the role installs it.
sys.path.insert(0, str(Path(__file__).parents[2] / "roles/model_manager/files"))

if TYPE_CHECKING:
    from model_manager.manager import Manager, Ticket

__all__ = ("host", "processes", "stack_dir")

PATIENCE_SECONDS = 30.0
# What a process runs that is the service with a part of the engine replaced.
MAIN = "import sys; from model_manager.__main__ import main; raise SystemExit(main(sys.argv[1:]))"


def declare_two(host: Host, **standin: object) -> None:
    """Two models on one GPU; the second one's stand-in has these settings."""
    host.declare("a", standin={})
    host.declare("b", standin=standin)


def two(host: Host, **standin: object) -> None:
    """Two models on one GPU whose stand-ins have these settings; a is awake, b sleeps."""
    for name in ("a", "b"):
        host.declare(name, standin=standin)
    host.up(a="active", b=1)


def kill(host: Host, name: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to the processes of a model's server."""
    with host.switcher() as switcher:
        for pid in switcher.host.lifecycles[name].pids():
            os.kill(pid, number)


def write_inventory(host: Host) -> None:
    """Write what the host declares, as its provisioning does."""
    host.stack_dir.mkdir(parents=True, exist_ok=True)
    content = {"vllm_models": host.models, "vllm_switching": host.settings}
    new = host.stack_dir / "models.json.new"
    new.write_text(json.dumps(content))
    new.replace(host.stack_dir / "models.json")


def until(done: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> float:
    """Poll until it is done; how many seconds that took. Fails when it never is."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - began


def ended(ticket: Ticket) -> Ticket:
    """The ticket, when its switch has ended."""
    assert ticket.future.result(timeout=PATIENCE_SECONDS) is ticket
    return ticket


class Manage(Protocol):
    """Starts a manager of the host; the arguments are keys of its settings, but for the first two."""

    def __call__(
        self, inventory: Inventory | None = None, switcher: type[Switcher] = Switcher, **settings: Any
    ) -> Manager:
        """The manager, which has looked at the servers."""


@pytest.fixture
def manage(host: Host) -> Iterator[Manage]:
    """Managers of the test's host. They are stopped after the test, before the stand-ins are."""
    from model_manager.config import Config
    from model_manager.events import Bus
    from model_manager.history import History
    from model_manager.manager import Manager

    begun: list[Manager] = []

    def start(inventory: Inventory | None = None, switcher: type[Switcher] = Switcher, **settings: Any) -> Manager:
        write_inventory(host)
        config = Config(
            stack_dir=str(host.stack_dir), **{"observe_seconds": 0.2, "stop_timeout_seconds": 5, **settings}
        )
        # There is RAM enough for every sleep, whatever machine this is.
        make = functools.partial(switcher, mem_available_gb=lambda: 1000.0)
        manager = Manager(config, inventory or host.inventory, history=History(":memory:"), bus=Bus(), switcher=make)
        begun.append(manager)
        manager.start()
        return manager

    yield start
    for manager in begun:
        manager.stop()
        manager.bus.close()
        manager.history.close()


class Service:
    """The service of a host; it has as long as each test gives it."""

    def __init__(self, host: Host, **settings: Any) -> None:
        write_inventory(host)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = host.stack_dir / "manager-config.json"
        self.config.write_text(
            json.dumps({"stack_dir": str(host.stack_dir), "port": self.port, "observe_seconds": 0.2, **settings})
        )
        self.log = host.stack_dir / "manager.log"
        self.process = self.start()

    def start(self, before: str = "") -> subprocess.Popen[bytes]:
        """Start it and wait until it answers, or has ended; `before` is Python that its process runs first."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # as this test has it
        command = [sys.executable, "-m", "model_manager", str(self.config)]
        if before:
            command[1:3] = ["-c", f"{before}; {MAIN}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until(lambda: self.process.poll() is not None or self._answers(), "it answers")
        return self.process

    def _answers(self) -> bool:
        try:
            answer = requests.get(self.url + "/health", timeout=5)
        except (requests.ConnectionError, requests.Timeout):
            return False
        # It may want a token.
        return answer.status_code == 401 or answer.json() == {"status": "healthy"}

    def active(self) -> str | None:
        """Which model it says is active."""
        found = requests.get(self.url + "/models", timeout=5).json()["active_model"]
        return str(found) if found else None

    def state(self, model: str) -> str:
        """What it says that a model is."""
        models = requests.get(self.url + "/models", timeout=5).json()["models"]
        return str(next(one["state"] for one in models if one["id"] == model))

    def switch(self, model: str) -> tuple[threading.Thread, list[requests.Response]]:
        """Ask for a switch and wait for the answer elsewhere."""
        answers: list[requests.Response] = []

        def ask() -> None:
            with contextlib.suppress(requests.ConnectionError):  # it is killed
                answers.append(requests.post(self.url + "/switch", json={"model_id": model}, timeout=60))

        thread = threading.Thread(target=ask)
        thread.start()
        return thread, answers

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@pytest.fixture
def services() -> Iterator[list[Service]]:
    """Those of the test. None is left after it."""
    begun: list[Service] = []
    yield begun
    for service in begun:
        service.process.kill()
        service.process.wait()
