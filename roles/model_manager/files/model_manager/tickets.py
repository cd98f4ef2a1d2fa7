# SPDX-License-Identifier: MIT
"""Switches that were asked for: what has become of each, and why one is refused."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import uuid
from collections.abc import Callable
from typing import Any

from .view import TicketView

# Who asks, where the manager itself does.
RECONCILER = "reconciler"
QUEUED = "queued"
RUNNING = "running"
DONE = "done"
FAILED = "failed"


class ManagerError(Exception):
    """The manager refuses what was asked for, and has done nothing. `status` is the HTTP status that says so."""

    status = 500

    def __init__(self, message: str, remedy: str = "", retry_after: float | None = None) -> None:
        self.remedy = remedy
        self.retry_after = retry_after
        super().__init__(message)

    def as_dict(self) -> dict[str, Any]:
        """The error as a ticket has it."""
        return {"message": str(self), "kind": type(self).__name__, "remedy": self.remedy}


class UnknownModel(ManagerError):
    """No model of this name is declared."""

    status = 404


class Conflict(ManagerError):
    """The model is disabled, or the mode, the pin or an eviction does not allow it."""

    status = 409


class Unsupported(ManagerError):
    """There is no way to do that."""

    status = 422


class Busy(ManagerError):
    """The queue is full, or the service ends. `retry_after`: in how many seconds to try again."""

    status = 503


def ending() -> Busy:
    """Why nothing is taken or done any more."""
    return Busy("the manager ends", "try again when it runs again", 10.0)


class Ticket:
    """One switch that was asked for. It is changed by the manager alone, under the manager's lock.

    Times are in seconds since 1970. `future` has the ticket itself as its result, once the switch has ended, well or
    not; to cancel the future has no effect, so that one of several who wait can't harm the others.
    """

    def __init__(
        self,
        model: str,
        desired: str,
        level: int | None,
        by: str,
        manual: bool,
        asked_at: float,
        withdraw: Callable[[Ticket], bool],
        eta: Callable[[Ticket], tuple[int | None, float | None]],
    ) -> None:
        self.id = uuid.uuid4().hex[:16]
        self.model = model
        self.desired = desired
        self.level = level
        self.by = by
        self.manual = manual
        self.status = QUEUED
        self.asked_at = asked_at
        self.begun_at: float | None = None
        self.ended_at: float | None = None
        self.from_model = ""
        self.active_before: set[str] = set()
        self.result: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.waiters = 1
        # Those of them who count for nobody's turn: too many of one kind.
        self.uncounted = 0
        # Asked under the host's lock whether it is still to be done; unless some of those who wait want it in any case.
        self.guard: Callable[[], bool] | None = None
        self.unconditional = 0
        self.future: concurrent.futures.Future[Ticket] = concurrent.futures.Future()
        self.future.set_running_or_notify_cancel()
        self.when_ended: list[Callable[[Ticket], None]] = []
        self._withdraw = withdraw
        self._eta = eta

    @property
    def asks_for(self) -> tuple[str, str, int | None]:
        """What is asked for; two who ask for the same can share a ticket."""
        return self.model, self.desired, self.level

    @property
    def guarded(self) -> bool:
        """Whether it is only done if its guard says so."""
        return self.guard is not None and not self.unconditional

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.status in (DONE, FAILED)

    @property
    def eta_seconds(self) -> float | None:
        """How long until it is done, as far as past switches tell; None when nothing is known, or it has ended."""
        return self._eta(self)[1]

    def cancel(self) -> bool:
        """Wait for it no longer. Whether that has taken it out of the queue: nobody else waits, it has not begun."""
        return self._withdraw(self)

    def view(self, place: tuple[int | None, float | None] | None = None) -> TicketView:
        """What it is now; `place` is its position and its time, where they are known already."""
        position, eta = place or self._eta(self)
        names = {field.name for field in dataclasses.fields(TicketView)} - {"position", "eta_seconds"}
        return TicketView(**{name: getattr(self, name) for name in names}, position=position, eta_seconds=eta)

    def as_dict(self) -> dict[str, Any]:
        """What it is now, with its result and its error, as plain data."""
        plain = dataclasses.asdict(self.view())
        return {**plain, "from_model": self.from_model, "result": self.result, "error": self.error}
