# SPDX-License-Identifier: MIT
"""The gateway's side of the manager with many who wait, and what its policies make of requests that alternate."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.manager.conftest import Manage, until
from tests.manager.gateway_workers import Refused, Store, Worker, linked
from tests.manager.test_gateway import ON
from tests.manager.test_gateway_link import service
from tests.unit.plugins.module_utils.switching.conftest import Host

WAITERS = 5000
# Of the interleaved trace: one request each of these seconds, for the models in turn.
APART_SECONDS = 0.15
TRACE_SECONDS = 12.0
MAX_WAIT_SECONDS = 4.0


def rss(pid: int) -> int:
    """The memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_five_thousand_wait_for_little_and_are_all_let_go(host: Host) -> None:
    host.declare("a")
    host.settings["request_timeout_seconds"] = 60
    host.declare("b", standin={"wake_seconds": 16})
    host.up(a="active", b=1)
    running, port = service(host)
    workers: list[Worker] = []
    try:
        store = Store()
        workers = [Worker(port, store, name=f"{number}.x") for number in range(4)]
        until(lambda: all(worker.of("state") for worker in workers), "the workers have the state")
        before = rss(running.process.pid)
        first = time.monotonic()
        began = cpu_seconds(running.process.pid)
        waits = {worker: [worker.wait("b", key=f"key{n % 40}") for n in range(WAITERS // 4)] for worker in workers}
        until(lambda: sum(len(worker.of("held")) for worker in workers) == WAITERS, "all wait")
        enrolled = cpu_seconds(running.process.pid) - began
        bytes_each = (rss(running.process.pid) - before) / WAITERS
        began, at = cpu_seconds(running.process.pid), time.monotonic()
        time.sleep(4)
        share = (cpu_seconds(running.process.pid) - began) / (time.monotonic() - at)
        seconds = time.monotonic() - at
        until(lambda: all(len(worker.of("go")) == WAITERS // 4 for worker in workers), "all are let go")
        assert {one["id"] for worker in workers for one in worker.of("go")} == set(waits[workers[0]])
        tells, all_of_it = sum(len(worker.of("tell")) for worker in workers), time.monotonic() - first
        text = (
            f"{bytes_each:.0f} bytes and {enrolled / WAITERS * 1e6:.0f} us of CPU for each that waits, "
            f"{share:.1%} of a core while they do, {tells} messages tell {WAITERS} of their place in {seconds:.0f} s"
        )
        print(text)
        assert bytes_each < 10_000, text
        assert share < 0.05, text
        assert tells <= 4 * (2 + all_of_it / 2), text  # every two seconds at most
    finally:
        for worker in workers:
            worker.close()
        running.process.kill()
        running.process.wait()


class Played(NamedTuple):
    """What a policy made of the trace: its switches, the longest wait in seconds, how many requests."""

    switches: int
    longest: float
    requests: int


def play(host: Host, manage: Manage, policy: str) -> Played:
    """Send the interleaved trace through the gateway."""
    manager = manage(policy=policy, max_wait_seconds=MAX_WAIT_SECONDS, observe_seconds=1, **{**ON, "linger_seconds": 0})
    waits: list[float] = []
    refused: list[Refused] = []
    with linked(manager.gateway, workers=2) as (_door, workers):

        def ask(number: int) -> None:
            try:
                waits.append(workers[number % 2].request("ab"[number % 2], lambda: time.sleep(0.08)))
            except Refused as error:
                refused.append(error)

        threads = []
        for number in range(int(TRACE_SECONDS / APART_SECONDS)):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()
            time.sleep(APART_SECONDS)
        switches = len([row for row in manager.history.switches(1000) if row["steps"]])
        for thread in threads:
            thread.join(60)
    assert refused == []
    assert len(waits) == len(threads)
    return Played(switches, max(waits), len(waits))


@pytest.mark.whole
def test_batched_needs_a_third_of_the_switches_and_keeps_its_bound(host: Host, manage: Manage) -> None:
    host.settings["drain_timeout_seconds"] = 0.5
    for name in ("a", "b"):
        # A switch takes longer than the model that is active is idle between two of its requests.
        host.declare(name, weights_gb=0.1, standin={"sleep_seconds": 0.1, "wake_seconds": 0.3})
    host.up(a="active", b=1)
    fifo = play(host, manage, "fifo")
    batched = play(host, manage, "batched")
    text = f"fifo: {fifo}, batched: {batched}"
    print(text)
    assert fifo.switches >= 9, text
    assert batched.switches <= fifo.switches / 3, text
    assert batched.longest <= MAX_WAIT_SECONDS + 1, text  # without a bound it is all of the trace
