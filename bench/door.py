# SPDX-License-Identifier: MIT
"""The gateway of many hosts against the gateway of one of them, asked directly, by turns.

Both are in front of the same server, which answers at once. What a request takes at the door alone is the CPU of the
door's own workers; what it adds is its whole way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.gateway import BODY, FEW_CONNECTIONS, WORKERS, WRK, Way, cpu_seconds, serving
from tests.gateway.fake_link import model, playing
from tests.gateway.gatewaylib import Gateway


@contextlib.contextmanager
def running() -> Iterator[tuple[Way, Way]]:
    """The gateway of a host, and the door in front of it."""
    with contextlib.ExitStack() as stack:
        _server, host = stack.enter_context(serving())
        behind = {"name": "host", "host": "127.0.0.1", "port": host.port, "tls": False, "api_key": None, "load": 0}
        routed = model("m", host=None, servers=[behind]) | {"port": None}
        manager = stack.enter_context(playing(routed))
        door = stack.enter_context(Gateway(manager, workers=WORKERS))
        door.wait_known()
        yield host, Way(door.port, partial(cpu_seconds, door.workers()))


def measure(folder: Path, rounds: int) -> list[list[float]]:
    """Return samples: CPU a request (door / host's gateway), p99 and first byte added, in ms."""
    script = folder / "wrk.lua"
    script.write_text(WRK % BODY)
    samples: list[list[float]] = [[] for _figure in range(3)]
    with running() as (host, door):
        for way in (host, door):
            way.load(script)  # caches, and the compiler of Lua
            way.first_byte()
        for number in range(rounds):
            ways = (host, door) if number % 2 else (door, host)
            cpu = {way: way.load(script)["cpu"] for way in ways}
            late = {way: way.load(script, FEW_CONNECTIONS)["p99"] for way in ways}
            first = {way: way.first_byte() for way in ways}
            samples[0].append(cpu[door] / cpu[host])
            samples[1].append(late[door] - late[host])
            samples[2].append(first[door] - first[host])
    return samples
