# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What becomes of the requests that a server has when it is to sleep or to end."""

from __future__ import annotations

import contextlib
import time
import typing

from .errors import CannotCut, DrainTimeout, Refused, ServerError, Unreachable, Unresponsive
from .inventory import Switching
from .server import Server

DRAINED, PARKED, CUT = "drained", "parked", "cut"
FATES = (DRAINED, PARKED, CUT)

# How often a server is asked to hold what comes: it may answer nonsense once.
_ATTEMPTS = 3
# However long others have waited for the requests before.
_LEAST_SECONDS = 1.0

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
    but how many it has, since nobody knows what it is. C(before) waits at most so many seconds for requests that are on
    their way, before any is held. To be read afterwards, also after an error: C(held), whether the
    server takes no more requests, which C(Server.resume) takes back; and C(requests), how many had which fate.
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
        self.before: typing.Callable[[float], None] = lambda _seconds: None
        self.held = False
        self.requests: dict[str, int | None] = {}
        self._until = 0.0
        self._gone = False
        self._uncounted = False
        self._last: Counts | None = None

    def run(self) -> Outcome:
        """Drain. Raises DrainTimeout where what still runs may not be cut, CannotCut where no sleep cuts it."""
        outcome = self._run()
        self.requests = outcome.requests
        return outcome

    def _run(self) -> Outcome:
        idle = self._idle()
        if self._gone:
            return self._lost()
        first, seconds = self._last, self.settings.drain_timeout_seconds
        self._until = self.clock() + seconds
        self.before(seconds)
        self._until = max(self._until, self.clock() + min(seconds, _LEAST_SECONDS))
        able = not self.by_looking and self._able()
        # Where nothing runs too: what comes between this look and the sleep must neither be cut nor keep that waiting.
        in_time = paused = able and self._pause()
        if not paused and not self.held:
            able = False
            if self._uncounted and not self.by_looking:
                return Outcome(dict.fromkeys(FATES), note="the server does not count its requests")
            in_time = self._wait_idle(self._left())
        elif not paused:
            in_time = self._wait_idle(0)
        self._gone = self._gone or (in_time and not paused and not idle and self._died())
        if self._gone:
            return self._lost()
        left = None if self._last is None else sum(self._last)
        if not in_time:
            return self._overdue(able, first, left)
        if able and not paused and self.settings.drain_timeout_action != "abort":
            self._resume()
            raise DrainTimeout(
                f"{self.server.model.id}: it can't hold new requests, so its sleep could cut them "
                f"(drain_timeout_action is {self.settings.drain_timeout_action})"
            )
        drained = None if first is None else first[0] if able else sum(first)
        if drained == 0 and left == 0:
            return Outcome({})
        return self._outcome(drained, CUT if self.ending else PARKED, left)

    def _pause(self) -> bool:
        """Have the server hold what comes and finish what runs; whether it does, and has, within the time."""
        failures = 0
        while failures < _ATTEMPTS:
            # From the call on, also if its answer never comes.
            self.held = True
            done = False
            try:
                # Once nothing runs it has to be quick.
                done = self.server.drain(max(self._left(), self.settings.probe_timeout_seconds if failures else 0.0))
            except Refused:
                if not self.server.can_cut():
                    self.held = False  # only some servers of this version can
                    return False
            except ServerError:
                pass
            if done:
                self._idle()  # what runs on has not been drained, whatever was said
            running, waiting = self._last or (0, 0)
            if self._gone or (done and not running and not (waiting and self._let_in())):
                return True
            failures += 0 if done and not running else 1
            # It broke that off, or has not done it: by looking, and then once more.
            if not self._wait_idle(self._left()):
                return False
        return False

    def _let_in(self) -> bool:
        """Let in what has come meanwhile, if it would be cut by a stop and there is time for it."""
        return self.ending and self._left() > 0 and self._resume()

    def _able(self) -> bool:
        for _attempt in range(2):
            with contextlib.suppress(ServerError):
                return self.server.can_drain()
        return False

    def _left(self) -> float:
        return max(0.0, self._until - self.clock())

    def _resume(self) -> bool:
        """Have the server take requests again. Where that fails it stays held, and is resumed when all is restored."""
        with contextlib.suppress(ServerError):
            self.server.resume()
            self.held = False
        return not self.held

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
        return self._outcome(0, CUT, known, note="the server ended, and its requests were lost")

    def _overdue(self, able: bool, first: Counts | None, left: int | None) -> Outcome:
        action, seconds = self.settings.drain_timeout_action, self.settings.drain_timeout_seconds
        still = f"{'an unknown number of' if left is None else left} requests still ran after {seconds:g} s"
        drained = max(0, sum(first) - left) if first is not None and left is not None else None
        can_cut = False
        with contextlib.suppress(ServerError):
            can_cut = self.server.can_cut()
        if action == "abort":
            outcome = self._outcome(drained, CUT, left, "abort", f"{still} and were cut")
            if can_cut or self.ending or self.server.model.sleep_requests:
                return outcome
            self.requests = outcome.requests
            raise CannotCut(f"{self.server.model.id}: {still}, and this vLLM version can't cut them when it sleeps")
        if action == "keep" and able and can_cut and not self.ending:
            return self._outcome(drained, PARKED, left, "keep", f"{still} and are parked until the next wake")
        if self.held:
            self._resume()
        why = (
            ""
            if action == "fail"
            else ", and requests can't be parked by this vLLM version or by a server that is stopped"
        )
        raise DrainTimeout(
            f"{self.server.model.id}: {still} (drain_timeout_seconds; drain_timeout_action is {action}){why}"
        )
