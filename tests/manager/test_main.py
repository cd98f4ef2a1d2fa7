# SPDX-License-Identifier: MIT
"""The service as a process: how it begins, how it ends, and what it leaves when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.manager.conftest import until, write_inventory
from tests.serverlib import free_port
from tests.unit.plugins.module_utils.switching.conftest import Host


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

    def start(self) -> subprocess.Popen[bytes]:
        """Start it and wait until it answers, or has ended."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # as this test has it
        command = [sys.executable, "-m", "model_manager", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until(lambda: self.process.poll() is not None or self._answers(), "it answers")
        return self.process

    def _answers(self) -> bool:
        try:
            return requests.get(self.url + "/health", timeout=5).json() == {"status": "healthy"}
        except requests.ConnectionError:
            return False

    def active(self) -> str | None:
        """Which model it says is active."""
        found = requests.get(self.url + "/models", timeout=5).json()["active_model"]
        return str(found) if found else None

    def switch(self, model: str) -> tuple[threading.Thread, list[requests.Response]]:
        """Ask for a switch and wait for the answer elsewhere."""
        answers: list[requests.Response] = []

        def ask() -> None:
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


def two(host: Host, **standin: object) -> None:
    host.declare("a", standin={})
    host.declare("b", standin=standin)


def test_sigterm_lets_a_switch_end_and_answers_who_waits(host: Host, services: list[Service]) -> None:
    two(host, wake_seconds=1)
    host.up(a="active", b=1)
    service = Service(host)
    services.append(service)
    assert service.active() == "a"
    thread, answers = service.switch("b")
    until(lambda: host.states()["a"] == "sleeping", "the switch goes on")
    second, refused = service.switch("a")
    events = requests.get(service.url + "/events", stream=True, timeout=10)
    time.sleep(0.2)
    assert service.end() == 0
    thread.join(10)
    second.join(10)
    assert [(one.status_code, one.json().get("active_model")) for one in answers] == [(200, "b")]
    assert [(one.status_code, "Retry-After" in one.headers) for one in refused] == [(503, True)]
    lines = list(events.iter_lines(decode_unicode=True))  # the stream ends, and not with an error
    assert "event: switch_ended" in lines
    assert host.states() == {"a": "sleeping", "b": "active"}
    assert "Traceback" not in service.log.read_text()


def test_sigterm_takes_a_switch_back_that_takes_too_long(host: Host, services: list[Service]) -> None:
    two(host, load_seconds=60)
    host.up(a="active")
    service = Service(host, stop_timeout_seconds=2)
    services.append(service)
    thread, answers = service.switch("b")
    until(lambda: host.states()["b"] == "loading", "it loads")
    began = time.monotonic()
    assert service.end() == 0
    assert time.monotonic() - began < 12
    thread.join(10)
    assert [one.status_code for one in answers] == [502]
    assert "the manager ends" in answers[0].json()["error"]
    assert host.states()["a"] == "active"


def test_after_a_kill_in_mid_switch_the_host_comes_back_to_what_it_was_meant_to_be(
    host: Host, services: list[Service]
) -> None:
    two(host, wake_seconds=1)
    host.up(a="active", b=1)
    service = Service(host)
    services.append(service)
    requests.post(service.url + "/switch", json={"model_id": "a"}, timeout=30).raise_for_status()
    thread, answers = service.switch("b")
    until(lambda: host.states()["a"] == "sleeping", "the switch goes on")
    service.end(signal.SIGKILL)
    thread.join(10)
    assert answers == []
    service.start()
    until(lambda: service.active() == "a", "a is active again")
    until(lambda: host.states() == {"a": "active", "b": "sleeping"}, "nothing else is done")


def test_what_is_set_up_wrongly_ends_it_at_once_with_what_to_do(host: Host, services: list[Service]) -> None:
    two(host)
    service = Service(host, prot=9000, port="x")
    services.append(service)
    assert service.process.wait(timeout=10) == 2
    log = service.log.read_text()
    assert "has 2 mistakes" in log
    assert "did you mean port?" in log
    assert "Traceback" not in log


def test_a_port_that_is_taken_is_said(host: Host, services: list[Service]) -> None:
    two(host)
    first = Service(host, reconcile=False)
    second = Service(host, reconcile=False, port=first.port)
    services.extend([first, second])
    until(lambda: second.process.poll() is not None, "it ends")
    assert second.process.returncode != 0
    assert "address already in use" in second.log.read_text()
