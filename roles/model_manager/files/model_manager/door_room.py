# SPDX-License-Identifier: MIT
"""Those who wait at a door: who is held, told, let go and refused. The messages are those of the manager's own room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .door_asking import Refusal
from .gateway_counts import Link
from .waiters import Line, Waiter

_MOST_WAITERS = 20000
# Nobody can have waited for longer.
_LONGEST_WAIT_SECONDS = 86400.0
_RETRY_SECONDS = 10.0


class Models(Protocol):
    """What the room asks of the models."""

    def find(self, name: str) -> str | None:
        """The id of the model with this name."""

    def is_open(self, model: str) -> bool:
        """Whether requests may go to it."""

    def eta(self, model: str) -> float | None:
        """How many seconds it may take until they may."""

    def ask(self, model: str) -> Refusal | None:
        """Somebody waits for it: see that it becomes active, or say why it does not."""

    def leave(self, model: str) -> None:
        """Nobody waits for it any more."""


class DoorRoom:
    """All who wait, on all links."""

    def __init__(self, models: Models, clock: Callable[[], float]) -> None:
        self._models = models
        self._clock = clock
        self._lines: dict[str, Line] = {}
        # By link and number.
        self._waiters: dict[Link, dict[int, Waiter]] = {}

    def connected(self, link: Link) -> None:
        """A worker has come."""
        self._waiters[link] = {}

    def lost(self, link: Link) -> None:
        """A worker has gone, and with it those who wait there. If it lives, it comes back with them."""
        concerned = {waiter.model for waiter in self._waiters[link].values()}
        for waiter in list(self._waiters[link].values()):
            self._take_out(waiter)
        del self._waiters[link]
        for model in concerned:
            self.settle(model)

    def wait(self, link: Link, message: Mapping[str, Any]) -> str | None:
        """One waits, or is answered at once; the model whose line has changed. Raises what makes no sense."""
        number = int(message["id"])
        waited = min(max(0.0, float(message.get("waited") or 0.0)), _LONGEST_WAIT_SECONDS)
        if number in self._waiters[link]:
            return None
        name = str(message["model"])
        model = self._models.find(name)
        if model is None:
            self._refuse(link, number, Refusal(404, "model_not_found", f"there is no model {name}"))
            return None
        waiter = Waiter(link, number, model, str(message.get("key") or ""), self._clock() - waited)
        if self._models.is_open(model):
            link.send({"t": "go", "id": number})
        elif message.get("task"):
            # One comes of itself with each answer, and nobody misses it.
            text = f"{model} is not active, and a task causes no switch"
            self._refuse(link, number, Refusal(503, "busy_task", text))
        elif sum(map(len, self._lines.values())) >= _MOST_WAITERS:
            self._refuse(link, number, Refusal(503, "queue_full", f"{_MOST_WAITERS} requests wait already"))
        else:
            self._waiters[link][number] = waiter
            line = self._lines.setdefault(model, Line(model))
            is_first = link not in line.links
            line.add(waiter)
            link.send({"t": "held", "id": number, "n": waiter.n})
            if is_first:
                self._tell(line, link)
            return model
        return None

    def gone(self, link: Link, number: int) -> str | None:
        """One waits no more; the model whose line has changed."""
        waiter = self._waiters[link].get(number)
        if waiter is None:
            return None
        self._take_out(waiter)
        return waiter.model

    def settle(self, model: str) -> None:
        """See that those who wait for a model have what they need: an open gate, or a host that is asked."""
        line = self._lines.get(model)
        if line is None:
            return
        if self._models.is_open(model):
            for waiter in self._all_out(line):
                waiter.link.send({"t": "go", "id": waiter.number})
        if not len(line):
            del self._lines[model]
            self._models.leave(model)
            return
        refusal = self._models.ask(model)
        if refusal:
            for waiter in self._all_out(line):
                self._refuse(waiter.link, waiter.number, refusal)
            del self._lines[model]

    def settle_all(self) -> None:
        """See to all of them: something is new with the hosts."""
        for model in list(self._lines):
            self.settle(model)

    def tell_places(self) -> None:
        """Tell those who wait where they stand, and how long it may take."""
        for line in self._lines.values():
            for link in line.links:
                self._tell(line, link)

    def _tell(self, line: Line, link: Link) -> None:
        # Who waits at a host for another model of it may come before: that is in its estimate.
        eta = self._models.eta(line.model)
        link.send({"t": "tell", "model": line.model, "ahead": 0, "first": line.first(), "eta": eta})

    def _take_out(self, waiter: Waiter) -> None:
        del self._waiters[waiter.link][waiter.number]
        self._lines[waiter.model].remove(waiter)

    def _all_out(self, line: Line) -> list[Waiter]:
        waiters = line.in_order()
        for waiter in waiters:
            self._take_out(waiter)
        return waiters

    def _refuse(self, link: Link, number: int, refusal: Refusal) -> None:
        told: dict[str, Any] = {
            "t": "refuse",
            "id": number,
            "status": refusal.status,
            "code": refusal.code,
            "message": refusal.message,
        }
        if refusal.status == 503:
            told["retry_after"] = max(1, round(_RETRY_SECONDS if refusal.retry is None else refusal.retry))
        link.send(told)
