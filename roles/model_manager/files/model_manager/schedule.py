# SPDX-License-Identifier: MIT
"""Which switch comes next, and how long each has to wait. Nothing here has a lock: whoever calls has the manager's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model

from . import policy
from .config import Config
from .host_state import HostState
from .tickets import RECONCILER, Ticket


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

    def place(self, ticket: Ticket) -> tuple[int | None, float | None]:
        """The position of a ticket, 0 while it is done, and the seconds until it is; None when it has ended."""
        if ticket.ended:
            return None, None
        seconds, awake = 0.0, self._host.awake()
        for position, one in enumerate(self.asked(), 0 if self.running else 1):
            seconds += self._takes(one, awake)
            awake = self._after(one, awake)
            if one is ticket:
                return position, seconds
        return None, None

    def eta(self, model: Model) -> float:
        """How long until a model is active, or would be if somebody asked now."""
        seconds, awake = 0.0, self._host.awake()
        if not self.asked() and model.id in awake:
            return 0.0
        for ticket in self.asked():
            seconds += self._takes(ticket, awake)
            awake = self._after(ticket, awake)
            if ticket.model == model.id and ticket.desired == plan.ACTIVE:
                return seconds
        if model.id in awake:
            return 0.0
        return seconds + self._host.estimate(self._host.rivals(model.id) & awake, model.id)

    def _order(self) -> list[Ticket]:
        """What waits: what people wait for before what the manager does by itself."""
        return sorted(self.waiting, key=lambda ticket: ticket.by == RECONCILER)

    def _takes(self, ticket: Ticket, awake: set[str]) -> float:
        """How long a switch takes, or still takes, when these models are awake."""
        host = self._host
        if ticket is self.running:
            awake = set(ticket.active_before)
        if ticket.desired != plan.ACTIVE:
            level = ticket.level if ticket.desired == plan.SLEEPING else None
            whole = host.estimate([ticket.model], None, level) if ticket.model in awake else 0.0
        elif ticket.model in awake:
            whole = 0.0
        else:
            whole = host.estimate(host.rivals(ticket.model) & awake, ticket.model)
        if ticket is not self.running or ticket.begun_at is None:
            return whole
        return max(0.0, whole - (self._now() - ticket.begun_at))

    def _after(self, ticket: Ticket, awake: set[str]) -> set[str]:
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
                    conflicts=frozenset(host.rivals(ticket.model)),
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
