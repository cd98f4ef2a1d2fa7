# SPDX-License-Identifier: MIT
"""The status of a host shows its manager, without a token, and says the truth when the manager is killed or ends."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.__main__ import main as command_line
from model_manager.config import Config
from model_manager.status_file import StatusFile

from tests.manager.conftest import Manage, Service, declare_two, ended, until
from tests.unit.plugins.module_utils.switching.conftest import Host


def shown(host: Host) -> dict[str, Any] | None:
    """What the status of the host has of the manager."""
    with host.switcher() as switcher:
        found: dict[str, Any] | None = switcher.report()["manager"]
    return found


def test_the_status_shows_what_the_service_does_and_whether_it_runs(
    host: Host, services: list[Service], capsys: pytest.CaptureFixture[str]
) -> None:
    declare_two(host)
    host.up(a="active", b=1)
    assert shown(host) is None
    service = Service(host, reconcile=False)
    services.append(service)
    until(lambda: shown(host), "it shows itself")
    first = shown(host)
    assert first and (first["running"], first["problem"], first["address"]) == (True, "", service.url)
    assert (first["mode"], first["pinned"], first["reconciles"], first["policy"]) == ("auto", None, False, "fifo")
    assert (first["queue"], first["switching"]) == ([], None)
    path = Path(state_files.path(str(host.stack_dir), state_files.MANAGER_VIEW))
    assert path.stat().st_mode & 0o777 == 0o600

    host.fault("b", "/wake_up", "slow", seconds=6)  # awake at once: no look has to wait for it
    for name in ("b", "a"):
        requests.post(service.url + "/switch?wait=false", json={"model_id": name}, timeout=30).raise_for_status()
    until(lambda: len((shown(host) or first)["queue"]) == 2, "it shows its queue")
    busy = shown(host)
    assert busy and busy["switching"] == {"from": "a", "to": "b"}
    assert [(one["model"], one["position"], one["waiters"]) for one in busy["queue"]] == [("b", 0, 1), ("a", 1, 1)]
    assert busy["models"]["a"]["queue_depth"] == 1 and busy["models"]["a"]["eta_seconds"] > 0
    assert command_line(["--stack-dir", str(host.stack_dir), "status"]) == 0
    assert "running  auto  no          a -> b     1" in capsys.readouterr().out

    until(lambda: not (shown(host) or busy)["queue"], "the queue is empty")
    requests.post(service.url + "/control/pin", json={"model": "a"}, timeout=30).raise_for_status()
    until(lambda: (shown(host) or busy)["pinned"] == "a", "it shows the pin")

    service.end(signal.SIGKILL)
    killed = shown(host)
    assert killed and not killed["running"] and killed["problem"] and killed["pinned"] == "a"
    service.start()
    until(lambda: (shown(host) or killed)["running"], "it shows itself again")
    assert service.end() == 0
    assert shown(host) is None


class Told:
    """A status file whose writings are counted."""

    def __init__(self, manage: Manage, host: Host, **options: Any) -> None:
        self.manager = manage(reconcile=False)
        self.path = Path(state_files.path(str(host.stack_dir), state_files.MANAGER_VIEW))
        self.file = StatusFile(self.manager.view, Config(stack_dir=str(host.stack_dir)), **options)
        self.manager.bus.listen(self.file.feed)

    def stamp(self) -> tuple[int, int]:
        """What changes with each writing."""
        seen = os.stat(self.path)
        return seen.st_ino, seen.st_mtime_ns


@pytest.fixture
def files() -> Iterator[list[StatusFile]]:
    """Those of the test, which end with it."""
    begun: list[StatusFile] = []
    yield begun
    for file in begun:
        file.stop()


def test_it_is_written_rarely_however_much_happens_and_now_and_then_if_nothing_does(
    host: Host, manage: Manage, files: list[StatusFile]
) -> None:
    declare_two(host)
    host.up(a="active", b=1)
    moments: list[int] = []

    def now() -> float:
        moments.append(len(moments))
        return 1.0

    told = Told(manage, host, pause_seconds=0.5, alive_seconds=0.5, now=now)
    files.append(told.file)
    told.file.start()
    until(lambda: moments, "it is written at the start")
    until(lambda: len(moments) >= 3, "it is written although nothing happens")
    before = len(moments)
    for number in range(1000):
        told.manager.bus.publish("count", {"number": number})
    ended(told.manager.request("b"))
    assert len(moments) - before < 20


def test_it_ends_at_once_whenever_it_is_told_to(host: Host, manage: Manage) -> None:
    declare_two(host)
    file = Told(manage, host, pause_seconds=0.01, alive_seconds=600).file

    class Happened(threading.Event):
        """The end is told when the thread has just looked for it."""

        def clear(self) -> None:
            file._ending.set()
            self.set()
            super().clear()

    file._happened = Happened()
    file.start()
    file._thread.join(10)
    assert not file._thread.is_alive()


def test_a_disk_that_takes_nothing_is_told_once_and_ends_nothing(
    host: Host, manage: Manage, files: list[StatusFile], caplog: pytest.LogCaptureFixture
) -> None:
    declare_two(host)
    told = Told(manage, host, pause_seconds=0.01, alive_seconds=0.01)
    files.append(told.file)
    told.path.mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        told.file.start()
        until(lambda: "manager_view.json can't be written" in caplog.text, "it is told")
        assert "remove it" in caplog.text
        told.path.rmdir()
        until(told.path.is_file, "it is written")
    assert caplog.text.count("can't be written") == 1
