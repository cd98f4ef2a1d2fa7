# SPDX-License-Identifier: MIT
"""Those who wait at the gateway: their tickets, who is let go, and who is refused.

All who wait for a model share one ticket, and the last one to go withdraws it. Nothing here has a lock: whoever calls
has the manager's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model

from .breaker import Breaker
from .context import Context
from .gates import Gates
from .gateway_counts import Link
from .schedule import Schedule
from .tickets import Busy, Conflict, ManagerError, Ticket, UnknownModel, Unsupported
from .waiters import Line, Waiter

# Who asks, where requests wait at the gateway.
BY = "gateway"
# How long those who were let go may take to come in.
_ENTER_SECONDS = 0.5
_RETRY_SECONDS = 10.0
_MOST_WAITERS = 20000
# Nobody can have waited for longer.
_LONGEST_WAIT_SECONDS = 86400.0
_CODES: tuple[tuple[type[ManagerError], str], ...] = (
    (UnknownModel, "model_not_found"),
    (Conflict, "model_unavailable"),
    (Unsupported, "unsupported"),
    (Busy, "queue_full"),
)
_OF_KIND = {"UnknownModel": (404, "model_not_found"), "Conflict": (409, "model_unavailable")}


class Meter(Protocol):
    """Counts what becomes of those who wait."""

    def links(self, number: int) -> None:
        """So many workers are connected."""

    def held(self, model: str) -> None:
        """One begins to wait."""

    def left(self, model: str) -> None:
        """One waits no more, for whatever reason."""

    def let_go(self, model: str, seconds: float) -> None:
        """One was let go after so long."""

    def refused(self, code: str) -> None:
        """One was refused."""


class WaitingRoom:
    """Those who wait, for all models and on all links.

    `request` and `find` are the manager's: how a ticket is asked for, and a model by one of its names.
    """

    def __init__(
        self,
        context: Context,
        gates: Gates,
        schedule: Schedule,
        breakers: Mapping[str, Breaker],
        request: Callable[..., Ticket],
        find: Callable[[str], Model],
    ) -> None:
        self.meter: Meter | None = None
        self._clock = context.clock
        self._now = context.now
        self._gates = gates
        self._schedule = schedule
        self._breakers = breakers
        self._request = request
        self._find = find
        self._lines: dict[str, Line] = {}
        # By link and number.
        self._waiters: dict[Link, dict[int, Waiter]] = {}
        # By model: the ticket, and how many of its waiters are ours.
        self._tickets: dict[str, tuple[Ticket, int]] = {}
        # By model: those who were let go and have not come in yet, and until when to wait for that.
        self._entering: dict[str, dict[tuple[Link, int], float]] = {}
        self._let_go_at: dict[str, float] = {}
        # The models whose lines have changed since `settle`.
        self._changed: set[str] = set()
        # Those who are the first to wait on a link for a model: their place is told at once.
        self._untold: set[tuple[str, Link]] = set()

    # What workers say.

    def connected(self, link: Link) -> None:
        """A worker has come."""
        self._waiters[link] = {}

    def lost(self, link: Link) -> None:
        """A worker has gone, and with it those who wait there. If it lives, it comes back with them."""
        for entering in self._entering.values():
            for key in [one for one in entering if one[0] is link]:
                del entering[key]
        for waiter in list(self._waiters[link].values()):
            self._take_out(waiter)
            self._changed.add(waiter.model)
        del self._waiters[link]

    def wait(self, link: Link, message: Mapping[str, Any]) -> None:
        """One waits, or is answered at once. Raises ValueError, KeyError or TypeError at what makes no sense."""
        number = int(message["id"])
        waited = min(max(0.0, float(message.get("waited") or 0.0)), _LONGEST_WAIT_SECONDS)
        self._came_in(link, number)
        if number in self._waiters[link]:
            return
        try:
            model = self._find(str(message["model"])).id
        except ManagerError as error:
            self._refuse(link, number, error)
            return
        waiter = Waiter(link, number, model, str(message.get("key") or ""), self._clock() - waited)
        if model in self._gates.open:
            self._let_go(waiter)
        elif message.get("task"):
            # One comes of itself with each answer, and nobody misses it.
            self._tell_refusal(link, number, 503, "busy_task", f"{model} is not active, and a task causes no switch")
        elif sum(map(len, self._lines.values())) >= _MOST_WAITERS:
            self._refuse(link, number, Busy(f"{_MOST_WAITERS} requests wait already", "try again later"))
        else:
            self._waiters[link][number] = waiter
            line = self._lines.setdefault(model, Line(model))
            if link not in line.links:
                self._untold.add((model, link))
            line.add(waiter)
            self._changed.add(model)
            if self.meter:
                self.meter.held(model)
            link.send({"t": "held", "id": number, "n": waiter.n})

    def gone(self, link: Link, number: int) -> None:
        """One waits no more, or has come in."""
        self._came_in(link, number)
        waiter = self._waiters[link].get(number)
        if waiter:
            self._take_out(waiter)
            self._changed.add(waiter.model)

    # What is known of those who wait.

    def waiting(self, model: str) -> int:
        """How many wait for a model."""
        return len(self._lines.get(model, ()))

    def entering(self, model: str) -> int:
        """How many were let go and may yet come in."""
        entering, now = self._entering.get(model), self._clock()
        if not entering:
            return 0
        for key in [key for key, until in entering.items() if until <= now]:
            del entering[key]
        return len(entering)

    def let_go_seconds(self, model: str) -> float | None:
        """How long ago somebody was let go to a model; None: never."""
        at = self._let_go_at.get(model)
        return None if at is None else self._clock() - at

    def tell_places(self, untold: Collection[tuple[str, Link]] | None = None) -> None:
        """Tell those who wait how many come before, and how long it may take; only those of some links, if given."""
        ahead, told = 0, {}
        forecast = self._schedule.forecast()
        for ticket in forecast.tickets:
            told[ticket.id] = ahead, forecast.places[ticket.id][1]
            ahead += max(0, ticket.waiters)
        for model, line in self._lines.items():
            if not len(line):
                continue
            found = self._tickets.get(model)
            before, eta = told.get(found[0].id, (0, None)) if found else (0, None)
            message = {"t": "tell", "model": model, "ahead": before, "first": line.first(), "eta": eta}
            for link in line.links:
                if untold is None or (model, link) in untold:
                    link.send(message)

    # What becomes of them.

    def settle(self, whole: bool = False) -> None:
        """See that those who wait have what they need: an open gate, or a ticket.

        Only for lines that have changed; with `whole` for all, since gates may have.
        """
        while whole or self._changed:
            models, self._changed, whole = list(self._lines) if whole else list(self._changed), set(), False
            for model in models:
                line = self._lines[model]
                if model in self._gates.open:
                    for waiter in line.in_order():
                        self._let_go(waiter)
                # What somebody else does is seen soon, and those who wait for a service that ends come back.
                later = self._gates.is_doubtful(model) or self._schedule.closed
                if len(line) and model not in self._tickets and not later:
                    self._ask_for(line)
                self._count_in(line)
        if self._untold:
            untold, self._untold = self._untold, set()
            self.tell_places(untold)

    def ended(self, ticket: Ticket) -> None:
        """A ticket has ended, and gates are as they are now."""
        found = self._tickets.get(ticket.model)
        if found is None or found[0] is not ticket:
            return
        del self._tickets[ticket.model]
        error = ticket.error
        # Where it was withdrawn, whoever waits came a moment too late for it, and gets a new one.
        withdrawn = error is not None and error["kind"] == "Withdrawn"
        if error and not withdrawn and not self._schedule.closed and ticket.model not in self._gates.open:
            status, code = _OF_KIND.get(error["kind"], (503, "switch_failed"))
            self._refuse_all(self._lines[ticket.model], status, code, error["message"].split("\n", 1)[0])

    def _ask_for(self, line: Line) -> None:
        breaker, now = self._breakers.get(line.model), self._clock()
        if breaker and not breaker.allows(now):
            reason = f"{line.model} has failed and is tried again later: {breaker.reason}"
            self._refuse_all(line, 503, "model_failing", reason, breaker.retry_at - now)
            return
        try:
            ticket = self._request(line.model, by=BY)
        except ManagerError as error:
            for waiter in self._all_out(line):
                self._refuse(waiter.link, waiter.number, error)
        else:
            self._tickets[line.model] = ticket, 1

    def _count_in(self, line: Line) -> None:
        """Have the ticket of a model count those who wait for it, or withdraw it where nobody does any more."""
        found = self._tickets.get(line.model)
        if found is None:
            return
        ticket, ours = found
        others = ticket.waiters - ours
        ticket.uncounted = line.uncounted
        if not len(line):
            del self._tickets[line.model]
            ticket.waiters = others + 1
            ticket.cancel()
            return
        ticket.waiters = others + len(line)
        self._tickets[line.model] = ticket, len(line)
        oldest = line.oldest()
        if ticket.begun_at is None and oldest is not None:
            asked_at = self._now() - (self._clock() - oldest)
            ticket.asked_at = min(ticket.asked_at, asked_at) if others else asked_at

    def _let_go(self, waiter: Waiter) -> None:
        now = self._clock()
        if waiter.number in self._waiters[waiter.link]:
            self._take_out(waiter)
        if self.meter:
            self.meter.let_go(waiter.model, now - waiter.asked)
        self._entering.setdefault(waiter.model, {})[waiter.link, waiter.number] = now + _ENTER_SECONDS
        self._let_go_at[waiter.model] = now
        waiter.link.send({"t": "go", "id": waiter.number})

    def _came_in(self, link: Link, number: int) -> None:
        for entering in self._entering.values():
            if entering.pop((link, number), None) is not None:
                break

    def _take_out(self, waiter: Waiter) -> None:
        del self._waiters[waiter.link][waiter.number]
        self._lines[waiter.model].remove(waiter)
        if self.meter:
            self.meter.left(waiter.model)

    def _all_out(self, line: Line) -> list[Waiter]:
        waiters = line.in_order()
        for waiter in waiters:
            self._take_out(waiter)
        return waiters

    def _refuse_all(self, line: Line, status: int, code: str, message: str, retry: float | None = None) -> None:
        for waiter in self._all_out(line):
            self._tell_refusal(waiter.link, waiter.number, status, code, message, retry)

    def _refuse(self, link: Link, number: int, error: ManagerError) -> None:
        code = next((code for kind, code in _CODES if isinstance(error, kind)), "refused")
        message = f"{error}: {error.remedy}" if error.remedy else str(error)
        self._tell_refusal(link, number, error.status, code, message, error.retry_after)

    def _tell_refusal(
        self, link: Link, number: int, status: int, code: str, message: str, retry: float | None = None
    ) -> None:
        if self.meter:
            self.meter.refused(code)
        told: dict[str, Any] = {"t": "refuse", "id": number, "status": status, "code": code, "message": message}
        if status == 503:
            told["retry_after"] = max(1, round(_RETRY_SECONDS if retry is None else retry))
        link.send(told)
