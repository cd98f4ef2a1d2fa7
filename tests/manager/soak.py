# SPDX-License-Identifier: MIT
"""How much memory the service takes, and whether that grows with its switches.

    python -m tests.manager.soak                      5,000 switches over HTTP, between two stand-ins
    python -m tests.manager.soak --switches 1000      fewer

Prints the resident memory (RSS) of the service's process after each tenth of the switches. Exits with 1 if it has
grown by more than 5 % from the first to the last of these, or is above 80 MB.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests

from tests.part import ROOT

MOST_MB = 80.0
MOST_GROWTH = 0.05
SWITCHES = 5000
# Of what is asked besides, so that it is in the memory, too.
READ = ("/models", "/switches", "/metrics", "/usage", "/control/status", "/openapi.json")
READ_EVERY = 50
Size = tuple[int, float]


def resident_mb(pid: int) -> float:
    """The resident memory of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(url: str, pid: int, marks: Sequence[int], models: Sequence[str] = ("b", "a")) -> list[Size]:
    """Switch to and fro between two models; how large the process was after each of these numbers of switches."""
    return list(_soak(url, pid, marks, models))


def growth(sizes: Sequence[Size]) -> float:
    """By which share the last is larger than the first."""
    return sizes[-1][1] / sizes[0][1] - 1


def _soak(url: str, pid: int, marks: Sequence[int], models: Sequence[str]) -> Iterator[Size]:
    with requests.Session() as client:
        for number in range(1, marks[-1] + 1):
            model = models[(number - 1) % len(models)]
            answer = client.post(url + "/switch", json={"model_id": model}, timeout=60)
            assert (answer.status_code, answer.json().get("active_model")) == (200, model), answer.text
            if number % READ_EVERY == 0:
                for path in READ:
                    client.get(url + path, timeout=60).raise_for_status()
            if number in marks:
                yield number, resident_mb(pid)


def run(switches: int) -> Iterator[Size]:
    """A host, its service, and so many switches; how large it was after each tenth of them."""
    sys.path.insert(0, str(ROOT / ".build"))
    from tests.manager.conftest import Service
    from tests.unit.plugins.module_utils.switching.conftest import MARK, Host, Processes

    marks = sorted({max(2, switches * tenth // 10) for tenth in range(1, 11)})
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.environ[MARK] = folder
        processes = Processes(folder)
        host = Host(Path(folder) / "stack")
        try:
            host.declare("a")
            host.declare("b")
            host.up(a="active", b=1)
            service = Service(host)
            try:
                yield from _soak(service.url, service.process.pid, marks, ("b", "a"))
            finally:
                service.process.terminate()
                service.process.wait(30)
        finally:
            processes.kill()
            del os.environ[MARK]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.manager.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--switches", type=int, default=SWITCHES)
    switches = parser.parse_args(argv).switches
    # What was started is to be ended, also where the shell has told a job of its own to ignore an interrupt.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_given: sys.exit(1))
    sizes: list[Size] = []
    began = time.monotonic()
    for size in run(switches):
        sizes.append(size)
        print(f"{size[0]:6} switches, {time.monotonic() - began:6.0f} s: {size[1]:6.1f} MB", flush=True)
    largest = max(size for _number, size in sizes)
    print(f"grown by {growth(sizes):.1%} ({MOST_GROWTH:.0%} allowed), at most {largest:.1f} MB ({MOST_MB:g} allowed)")
    return 0 if growth(sizes) <= MOST_GROWTH and largest <= MOST_MB else 1


if __name__ == "__main__":
    sys.exit(main())
