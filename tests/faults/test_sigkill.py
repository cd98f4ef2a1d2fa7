# SPDX-License-Identifier: MIT
"""A switch that is cut off by SIGKILL, at any point, is recovered by the next one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.faults.host import Host, Run, Setup
from tests.faults.matrix import Hosts
from tests.part import draw, fewer, leave_out, quick, seed

# Ends itself before or after the n-th step, as a power cut would.
KILLED = """
import os, signal, sys
from switching import __main__ as main
from switching import transition

number, when = int(sys.argv[1]), sys.argv[2]

class Executor(transition.Executor):
    count = 0

    def run(self, *args, **kwargs):
        self.count += 1
        here = self.count == number
        if here and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            super().run(*args, **kwargs)
        finally:
            if here and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)

transition.Executor = Executor
sys.exit(main.main(sys.argv[3:]))
"""
# With the number of steps that each takes, and the faults that make it so.
SWITCHES: dict[str, tuple[Setup, int, list[dict[str, Any]]]] = {
    "level 1": (Setup(), 4, []),
    "level 2": (Setup(a="2", b="2"), 4, []),
    "with a restart": (Setup(), 6, [{"path": "/wake_up", "fault": "kill"}]),
}
MOMENTS = fewer("sigkill", "make faults", "moments under load", 20, 8)


@pytest.fixture
def run() -> Iterator[Run]:
    with Run() as run:
        yield run


def check(host: Host, active: str, since: int) -> None:
    """One is awake and right, the other is not, and there was no moment at which both were."""
    for name in ("a", "b"):
        seen = host.look(name)
        assert (seen.state == "active") == (name == active), f"{name} is {seen}"
        assert seen.text == (host.right[name] if seen.state == "active" else ""), f"{name} answers with a wrong text"
    assert host.two_awake(since) == []


def cut_off(hosts: Hosts, kind: str, number: int, when: str, then: str) -> None:
    """Cut a switch from a to b off, and see that the next one recovers it."""
    setup, _count, faults = SWITCHES[kind]
    host = hosts.take(setup)
    since = len(host.events())
    if faults:
        host.order("b", faults)
    command = [sys.executable, "-c", KILLED, str(number), when, *host.arguments("b")]
    ended = subprocess.run(command, env=host.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    host.faults("b").unlink(missing_ok=True)
    for name in (then, "a"):
        answer = host.patiently(name)
        assert answer.status == 0, f"then to {name}: {answer.said}"
        check(host, name, since)
    hosts.give_back(host, well=True)


def test_between_any_two_steps(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    hosts = Hosts(run)
    cases = [
        (kind, number, when, then)
        for kind, (_setup, count, _faults) in SWITCHES.items()
        for number, when, then in itertools.product(range(1, count + 1), ("before", "after"), "ba")
    ]
    if quick():
        chosen = draw(cases, 0.25, lambda case: case[0])
        leave_out("sigkill", "make faults", (str(case) for case in cases if case not in chosen))
        cases = chosen
    failures = []
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = {pool.submit(cut_off, hosts, *case): case for case in cases}
        for future in concurrent.futures.as_completed(futures):
            error = future.exception()
            if error is not None:
                failures.append(f"{futures[future]}: {error}")
    with capsys.disabled():
        print(f"\nSIGKILL between steps: {len(cases)} switches cut off, {len(failures)} not recovered by the next, "
              f"{time.monotonic() - started:.0f} s")  # fmt: skip
    assert failures == []


class Load:
    """Clients that ask whoever is awake, as fast as they are answered."""

    def __init__(self, host: Host, clients: int = 3) -> None:
        self.host = host
        self.answers = 0
        self.wrong: list[str] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.ask, daemon=True) for _client in range(clients)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def ask(self) -> None:
        """One client. What fails is not its concern: that a server is gone, sleeps, or cuts it off."""
        while not self.over.wait(0.02):
            for name in ("a", "b"):
                with contextlib.suppress(requests.RequestException, KeyError, ValueError):
                    if not self.host.get(name, "/is_sleeping").json()["is_sleeping"]:
                        text = self.host.text(name)
                        self.answers += 1
                        # One that was cut off has the beginning of it.
                        if not self.host.right[name].startswith(text):
                            self.wrong.append(f"{name}: {text}")


def test_at_any_moment_of_a_switch_under_load(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    moments = random.Random(seed())
    started = time.monotonic()
    # So that there are moments within a sleep and a wake, and within a generation.
    host = run.host(Setup(a="1", b="2", move_seconds=0.2, client_seconds=1))
    host.up()
    since = len(host.events())
    failures = []
    cut = number = 0
    with Load(host) as load:
        usual = max(host.switch("b").seconds, host.switch("a").seconds)
        # One that was over before its moment does not count.
        while cut < MOMENTS and number < 3 * MOMENTS:
            name = "ba"[number % 2]
            number += 1
            command = [sys.executable, "-m", "switching", *host.arguments(name)]
            began = time.monotonic()
            with subprocess.Popen(
                command, env=host.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process:
                # Its first quarter is Python's own.
                moment = moments.uniform(0.25, 1.0) * usual
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moment)
                if process.poll() is None:
                    cut += 1
                elif process.returncode == 0:
                    # The machine was busier when the first two ran.
                    usual = min(usual, time.monotonic() - began)
                process.kill()
            answer = host.patiently(name)
            try:
                assert answer.status == 0, answer.said
                check(host, name, since)
            except AssertionError as error:
                failures.append(f"{number}, after {moment:.2f} s, to {name}: {error}")
    with capsys.disabled():
        print(f"\nSIGKILL under load (PART_SEED={seed()}): {cut} of {number} switches cut off, {len(failures)} not "
              f"recovered by the next, {load.answers} answers to clients, {len(load.wrong)} of them wrong, "
              f"{time.monotonic() - started:.0f} s")  # fmt: skip
    assert failures == []
    assert cut == MOMENTS
    assert load.wrong == []
    assert load.answers > 0
