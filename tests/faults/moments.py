# SPDX-License-Identifier: MIT
"""Runs the host's own command line, and at chosen moments of it kills it, fails a call of the system, or waits.

    python tests/faults/moments.py FILE ARGUMENTS OF THE COMMAND LINE ...

FILE holds a list of orders. A moment is what the engine asks of Python, whichever of its rooms asks:

    call     it sends a request             "POST 20001 /sleep?level=1" (the number is the port)
    write    it opens a file to write it    "b.pid" (the name within the stack's folder `run`)
    replace  it puts a file in place        "wanted.json" (as for write)
    start    it starts a process            the command, its words parted by blanks
    begin    before all others              ""

An order names one (`at`), a regular expression that it has to match (`match`), how many pass first (`skip`), how often
it holds (`times`, 0 = from then on), and another moment before which it does not count (`after`, a pair of the first
two). What is done:

    kill     SIGKILL so many seconds later, 0 for before it is done
    errno    it fails with this error, as ENOSPC
    limit    no file may be longer from then on, in bytes: to write to it fails, to open it does not
    machine  the locks of the machine are in this folder, and it has a GPU 0; only at `begin`
    pause    the process waits until FILE.N.go is there, N being the number of the order; FILE.N.here says that it does

Every order that has been met leaves FILE.N.here. While it waits, the engine's clock stands still.
"""

from __future__ import annotations

import errno
import functools
import importlib
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

# Whoever acts meanwhile has ended by then, or never will.
LONGEST_PAUSE_SECONDS = 60.0
REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


class Clock:
    """The monotonic clock without the time that was spent waiting."""

    def __init__(self) -> None:
        self._real = time.monotonic
        self._lock = threading.Lock()
        self._waited = 0.0
        self._since: list[float] = []

    def __call__(self) -> float:
        with self._lock:
            return (min(self._since) if self._since else self._real()) - self._waited

    def stop(self) -> None:
        """Stand still from now on."""
        with self._lock:
            self._since.append(self._real())

    def go_on(self) -> None:
        """Go on where it stood, when nobody else waits."""
        with self._lock:
            if len(self._since) == 1:
                self._waited += self._real() - self._since[0]
                self._since.clear()
            else:
                # The first one's time is what counts, until the last one goes on.
                self._since.remove(max(self._since))


class Moments:
    """The orders, and which of them have been met."""

    def __init__(self, file: Path, stack: Path, clock: Clock) -> None:
        self.file = file
        self.clock = clock
        self.folder = os.path.realpath(stack / "run") + os.sep
        self.orders: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        self._counting = threading.Lock()
        self._own = threading.local()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's audit hook."""
        if getattr(self._own, "busy", False) or event not in EVENTS:
            return
        self._own.busy = True
        try:
            at, text = EVENTS[event], self._text(event, arguments)
            if text:
                self.meet(at, text)
        finally:
            self._own.busy = False

    def meet(self, at: str, text: str) -> None:
        """Do what is ordered for this moment."""
        for number in self._met(at, text):
            self._do(number)

    def _text(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event == "http.client.send":
            connection, data = arguments
            found = REQUEST.match(data) if isinstance(data, bytes) else None
            return f"{found[1].decode()} {connection.port} {found[2].decode()}" if found else ""
        if event == "subprocess.Popen":
            return " ".join(map(os.fsdecode, arguments[1]))
        path, flags = (arguments[0], arguments[2]) if event == "open" else (arguments[1], WRITES)
        if isinstance(path, int) or path is None or not (flags or 0) & WRITES:
            return ""
        path = os.path.abspath(os.fsdecode(path))
        whole = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        return whole[len(self.folder) :] if whole.startswith(self.folder) else ""

    def _met(self, at: str, text: str) -> list[int]:
        """The numbers of the orders that this moment meets."""
        met = []
        with self._counting:
            for number, order in enumerate(self.orders):
                if order.get("after"):
                    first, match = order["after"]
                    if first == at and re.search(match, text):
                        order["after"] = None  # it counts from the next moment on
                    continue
                if order["at"] != at or order.get("over") or not re.search(order["match"], text):
                    continue
                if order.get("skip"):
                    order["skip"] -= 1
                    continue
                order["seen"] = order.get("seen", 0) + 1
                order["over"] = order["seen"] == order.get("times", 1)
                met.append(number)
        return met

    def _do(self, number: int) -> None:
        order = self.orders[number]
        self._sign(number, "here").touch()
        if "kill" in order:
            if not order["kill"]:
                os.kill(os.getpid(), signal.SIGKILL)
            timer = threading.Timer(order["kill"], os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        elif "limit" in order:
            # Soft: a server that it starts may raise it again.
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], hard))
        elif "machine" in order:
            switch = importlib.import_module("switching.switch")
            lock = functools.partial(switch.HostLock, place=order["machine"], gpus=lambda: {0: "standin"})
            switch.HostLock = lock  # type: ignore[attr-defined]
        elif "pause" in order:
            until = time.time() + LONGEST_PAUSE_SECONDS
            self.clock.stop()
            while not self._sign(number, "go").exists() and time.time() < until:
                time.sleep(0.002)
            self.clock.go_on()
        else:
            code = getattr(errno, order["errno"])
            raise OSError(code, os.strerror(code))

    def _sign(self, number: int, name: str) -> Path:
        return self.file.with_name(f"{self.file.name}.{number}.{name}")


EVENTS = {"http.client.send": "call", "open": "write", "os.rename": "replace", "subprocess.Popen": "start"}


def main(file: str, *arguments: str) -> int:
    """Run the command line and return its exit status."""
    clock = Clock()
    time.monotonic = clock  # before the engine takes it
    command_line = importlib.import_module("switching.__main__")
    stack = Path(arguments[arguments.index("--stack-dir") + 1])
    moments = Moments(Path(file), stack, clock)
    moments.meet("begin", "")
    sys.addaudithook(moments.hook)
    status: int = command_line.main(list(arguments))
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
