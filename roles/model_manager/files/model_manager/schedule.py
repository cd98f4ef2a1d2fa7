# SPDX-License-Identifier: MIT
"""Which switch comes next, and how long each has to wait. Nothing here has a lock: whoever calls has the manager's."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model

from . import policy
from .config import Config
from .host_state import HostState
from .tickets import RECONCILER, Ticket


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What will become of the queue, by what past switches have taken. Times are in seconds."""

    tickets: tuple[Ticket, ...]
    """What is done now, and what waits, in order."""
    places: Mapping[str, tuple[int, float]]
    """Of each ticket by its id: its position, 0 while it is done, and the time until it is."""
    active_in: Mapping[str, float]
    """Of each model that the queue makes active: the time until it is."""
    seconds: float
    """The time until all of it is done."""
    awake: frozenset[str]
    """The models that are active then."""

    def waiters(self, model: str) -> int:
        """How many callers wait for a switch of this model."""
        return self._waiters.get(model, 0)

    @functools.cached_property
    def _waiters(self) -> Mapping[str, int]:
        counted: dict[str, int] = {}
        for ticket in self.tickets:
            counted[ticket.model] = counted.get(ticket.model, 0) + ticket.waiters
        return counted


class Schedule:
    """The switch that is made now, and those that wait. Times are in seconds."""

    def __init__(self, config: Config, host: HostState, now: Callable[[], float]) -> None:
        self.running: Ticket | None = None
        self.waiting: list[Ticket] = []
        # The service ends: nothing more is taken or begun.
        self.closed = False
        self._config = config
        self._host = host
        self._now = now

    def asked(self) -> list[Ticket]:
        """What is done now, and what waits, in order."""
        return [*([self.running] if self.running else []), *self._order()]

    def next(self) -> tuple[Ticket | None, float | None]:
        """The ticket that is to be begun now, or after how many seconds to look again; None: when anything changes."""
        order = self._order()
        waiting = list(itertools.takewhile(_by_policy, order))
        if not waiting:
            return (order[0], None) if order else (None, None)
        decision = policy.decide(self._config.policy, self._situation(waiting))
        awake = self._host.awake()
        chosen = [one for one in waiting if one.model in awake or one.model == decision.model]
        if chosen:
            return chosen[0], None
        # Nobody who is not subject to the policy waits for its sake.
        return (waiting[0], None) if len(waiting) < len(order) else (None, decision.again_seconds)

    def forecast(self) -> Forecast:
        """What will become of the queue. One pass over it serves all who ask at one moment."""
        tickets = tuple(self.asked())
        estimate = functools.cache(self._host.estimate)
        seconds, awake = 0.0, frozenset(self._host.awake())
        places: dict[str, tuple[int, float]] = {}
        active_in: dict[str, float] = {}
        for position, ticket in enumerate(tickets, 0 if self.running else 1):
            seconds += self._takes(ticket, awake, estimate)
            awake = self._after(ticket, awake)
            places[ticket.id] = position, seconds
            if ticket.desired == plan.ACTIVE:
                active_in.setdefault(ticket.model, seconds)
        return Forecast(tickets, places, active_in, seconds, awake)

    def place(self, ticket: Ticket) -> tuple[int | None, float | None]:
        """The position of a ticket, 0 while it is done, and the seconds until it is; None when it has ended."""
        return (None, None) if ticket.ended else self.forecast().places.get(ticket.id, (None, None))

    def eta(self, model: Model, forecast: Forecast) -> float:
        """How long until a model is active, or would be if somebody asked now."""
        if model.id in forecast.active_in:
            return forecast.active_in[model.id]
        if model.id in forecast.awake:
            return 0.0
        return forecast.seconds + self._host.estimate(self._host.rivals(model.id) & forecast.awake, model.id)

    def _order(self) -> list[Ticket]:
        """What waits: what people wait for before what the manager does by itself."""
        return sorted(self.waiting, key=lambda ticket: ticket.by == RECONCILER)

    def _takes(self, ticket: Ticket, awake: Collection[str], estimate: Callable[..., float]) -> float:
        """How long a switch takes, or still takes, when these models are awake; `estimate` is the host's."""
        if ticket is self.running:
            awake = ticket.active_before
        if ticket.desired != plan.ACTIVE:
            level = ticket.level if ticket.desired == plan.SLEEPING else None
            whole = estimate((ticket.model,), None, level) if ticket.model in awake else 0.0
        elif ticket.model in awake:
            whole = 0.0
        else:
            whole = estimate(self._host.rivals(ticket.model).intersection(awake), ticket.model)
        if ticket is not self.running or ticket.begun_at is None:
            return whole
        return max(0.0, whole - (self._now() - ticket.begun_at))

    def _after(self, ticket: Ticket, awake: frozenset[str]) -> frozenset[str]:
        """Who is awake when it is done."""
        if ticket.desired != plan.ACTIVE:
            return awake - {ticket.model}
        return (awake - self._host.rivals(ticket.model)) | {ticket.model}

    def _situation(self, tickets: Iterable[Ticket]) -> policy.Situation:
        host, now = self._host, self._now()
        settings = host.inventory.switching
        return policy.Situation(
            tuple(
                policy.Active(
                    name,
                    active_seconds=host.active_seconds(name) or 0.0,
                    in_flight=host.in_flight(name),
                    idle_seconds=host.idle_seconds(name) or 0.0,
                    leave_seconds=host.estimate([name], None),
                )
                for name in sorted(host.awake())
            ),
            tuple(
                policy.Waiting(
                    ticket.model,
                    depth=max(1, ticket.waiters - ticket.uncounted),
                    oldest_wait_seconds=max(0.0, now - ticket.asked_at),
                    arrive_seconds=host.estimate([], ticket.model),
                    leave_seconds=host.estimate([ticket.model], None),
                    conflicts=host.rivals(ticket.model),
                )
                for ticket in tickets
            ),
            policy.Settings(
                max_wait_seconds=self._config.max_wait_seconds,
                rest_seconds=self._config.linger_seconds if self._config.gateway_listen else 0.0,
                min_active_seconds=settings.min_active_seconds,
                drain_seconds=settings.drain_timeout_seconds,
            ),
        )


def _by_policy(ticket: Ticket) -> bool:
    """Whether the policy says when a switch is made: not what a person does by hand, nor what the manager does."""
    return ticket.desired == plan.ACTIVE and not ticket.manual and ticket.by != RECONCILER
