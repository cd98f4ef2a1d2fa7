# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What becomes of the requests that a server has when it is to sleep or to end."""

from __future__ import annotations

import contextlib
import time
import typing

from .errors import DrainTimeout, ServerError, Unreachable, Unresponsive
from .inventory import Switching
from .server import Server

DRAINED, PARKED, CUT = "drained", "parked", "cut"
FATES = (DRAINED, PARKED, CUT)

Counts = typing.Tuple[int, int]


class Outcome(typing.NamedTuple):
    """What was done: how many requests had which fate (None for a number that nobody knows), the mode that a sleep has
    to have now, and what is worth knowing."""

    requests: dict[str, int | None]
    mode: str = "wait"
    note: str = ""


class Drain:
    """Lets the running requests of one server end, up to the deadline, and settles what becomes of the rest.

    C(ending) says that the server is to be stopped, so that it can't keep any. C(by_looking): nothing is asked of it
    but how many it has, since nobody knows what it is. C(held) says, also after an error, that
    it takes no more requests: C(Server.resume) takes that back.
    """

    def __init__(
        self,
        server: Server,
        settings: Switching,
        wait: typing.Callable[[typing.Callable[[], bool], float], bool],
        ending: bool,
        clock: typing.Callable[[], float] = time.monotonic,
        by_looking: bool = False,
    ) -> None:
        self.by_looking = by_looking
        self.server = server
        self.settings = settings
        self.wait = wait
        self.ending = ending
        self.clock = clock
        self.held = False
        self._gone = False
        self._uncounted = False
        self._last: Counts | None = None

    def run(self) -> Outcome:
        """Drain. Raises DrainTimeout where requests still run that may not be cut."""
        if self._idle():
            return self._lost() if self._gone else Outcome({})
        first = self._last
        able, in_time = False, False
        started, deadline = self.clock(), self.settings.drain_timeout_seconds
        with contextlib.suppress(ServerError):
            able = not self.by_looking and self.server.can_drain()
            # From the call on, also if its answer never comes.
            self.held = able
            in_time = able and self.server.drain(deadline)
        if in_time:
            self._idle()  # what came meanwhile waits in the server; what runs on has not been drained, whatever it said
            in_time = self._last is None or self._last[0] == 0
        if not in_time:
            if self._uncounted and not able and not self.by_looking:
                return Outcome(dict.fromkeys(FATES), note="the server does not count its requests")
            # By looking: the server can't drain, or broke that off before its time, or it is over.
            in_time = self._wait_idle(max(0.0, deadline - (self.clock() - started)))
            self._gone = self._gone or (in_time and self._died())
        if self._gone:
            return self._lost()
        left = None if self._last is None else sum(self._last)
        if not in_time:
            return self._overdue(able, first, left)
        drained = None if first is None else first[0] if able else sum(first)
        return self._outcome(drained, CUT if self.ending else PARKED, left)

    def _wait_idle(self, seconds: float) -> bool:
        # A server that doesn't count may be idle or not: the deadline decides.
        return self.wait(lambda: self._idle() and (self._gone or self._last is not None), seconds)

    def _idle(self) -> bool:
        """Whether the server is known to have no requests, or is gone."""
        try:
            self._last = self.server.count_requests()
            self._uncounted = self._last is None
        except Unreachable:
            self._gone = True
        except Unresponsive:
            return False  # a busy server is no reason to stop it
        return self._gone or self._last == (0, 0)

    def _died(self) -> bool:
        """Whether it has no requests because its engine is dead."""
        try:
            return not self.server.is_healthy()
        except ServerError:
            return True

    def _outcome(self, drained: int | None, fate: str, left: int | None, mode: str = "wait", note: str = "") -> Outcome:
        return Outcome({**dict.fromkeys(FATES, 0), DRAINED: drained, fate: left}, mode, note)

    def _lost(self) -> Outcome:
        # What it said last may have been said when it was dead already.
        known = sum(self._last) or None if self._last else None
        return self._outcome(0, CUT, known, note="the server ended, and what it had to do was lost")

    def _overdue(self, able: bool, first: Counts | None, left: int | None) -> Outcome:
        action, seconds = self.settings.drain_timeout_action, self.settings.drain_timeout_seconds
        still = f"{'an unknown number of' if left is None else left} requests still ran after {seconds:g} s"
        drained = max(0, sum(first) - left) if first is not None and left is not None else None
        if action == "abort":
            return self._outcome(drained, CUT, left, "abort", f"{still} and were cut")
        if action == "keep" and able and not self.ending:
            return self._outcome(drained, PARKED, left, "keep", f"{still} and are parked until the next wake")
        if self.held:
            # Where that fails it stays held, and is resumed once more when all is put back.
            with contextlib.suppress(ServerError):
                self.server.resume()
                self.held = False
        why = "" if action == "fail" else ", and a server of this vLLM or one that is to be stopped can't park them"
        raise DrainTimeout(
            f"{self.server.model.id}: {still} (drain_timeout_seconds; drain_timeout_action is {action}){why}"
        )
