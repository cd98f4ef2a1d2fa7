# SPDX-License-Identifier: MIT
"""The gateway's side of the manager: its workers, and what a switch has to do with the requests that they have.

Before a switch, the gates of all models that it concerns are closed, and their requests are waited for; after it, gates
are as the models were observed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model

from .breaker import Breaker
from .context import Context
from .gates import Gates
from .gateway_counts import Counts, Link, Requests
from .guarded_lock import Superseded
from .host_state import HostState
from .schedule import Schedule
from .tickets import RECONCILER, Ticket, ending
from .waiting_room import Meter, WaitingRoom

# How long a switch waits for a worker after a start, and after the last one was lost: they come back, and until then
# take gates for open that are closed.
_LINK_SECONDS = 3.0
# How long a switch waits for those who were let go.
_ENTER_SECONDS = 1.0
# Who decides about a new ticket waits at most so long for counts that are as new.
_ANSWER_SECONDS = 0.5
# How long a switch waits at least until workers have said that they know of the closed gates.
_KNOWN_SECONDS = 1.0
_TICK_SECONDS = 0.1
_QUIET_TICK_SECONDS = 0.5
# How often it is looked whether requests have ended: a share of the time already waited, within these.
_POLL_SECONDS = (0.01, 0.1)
_POLL_SHARE = 0.05
# The engine's own drain looks for so long at least.
_LEAST_DRAIN_SECONDS = 1.0
# What is done now and then, and how far apart.
_EVERY = {"tell": 2.0, "count": 0.5, "estimate": 5.0, "publish": 1.0}


class Cleared(NamedTuple):
    """What was found before a switch: the error where it is not to be made, and how long the engine may drain yet.

    `drain_seconds` is None where that is as long as ever.
    """

    error: dict[str, Any] | None = None
    drain_seconds: float | None = None


class Gateway:
    """What the manager is to the gateway. Where none is configured (`on`), it does nothing.

    `request` and `find` are the manager's. Every method may be called from any thread, and takes the manager's lock;
    but for `clear`, each returns at once.
    """

    def __init__(
        self,
        context: Context,
        host: HostState,
        schedule: Schedule,
        breakers: Mapping[str, Breaker],
        request: Callable[..., Ticket],
        find: Callable[[str], Model],
    ) -> None:
        self.on = bool(context.config.gateway_listen)
        self._changed = context.changed
        self._clock = context.clock
        self._bus = context.bus
        self._host = host
        self._schedule = schedule
        self._request = request
        self._gates = Gates(host, schedule, context.now())
        self._room = WaitingRoom(context, self._gates, schedule, breakers, self._ask_for, find)
        self._counts = Counts(self._clock)
        self._links: list[Link] = []
        self._linkless_since = self._clock()
        # The switch for which gates are closed, and whether the engine has begun with it.
        self._switching: Ticket | None = None
        self._begun = False
        # What the workers have to know so that those gates are closed that somebody else has asked for.
        self._held_version = self._gates.version
        # When a ticket was asked for last: what was counted before that is old then.
        self._asked_at = self._clock() - _ANSWER_SECONDS
        self._published: dict[str, Any] = {}
        self._due = dict.fromkeys(_EVERY, self._clock())
        if self.on:
            host.requests = self.requests

    def measure(self, meter: Meter) -> None:
        """Have this count what becomes of those who wait."""
        self._room.meter = meter

    # The workers.

    def connected(self, link: Link) -> None:
        """A worker has come: tell it all."""
        with self._changed:
            self._links.append(link)
            self._measure_links()
            self._room.connected(link)
            self._counts.connected(link)
            self._tell_state(also=link)
            self._counts.ask(self._clock())

    def lost(self, link: Link) -> None:
        """A worker has gone."""
        with self._changed:
            if link not in self._links:
                return
            self._links.remove(link)
            self._measure_links()
            self._counts.lost(link)
            self._room.lost(link)
            self._room.settle()
            if not self._links:
                self._linkless_since = self._clock()
                self._publish()
            self._changed.notify_all()

    def _measure_links(self) -> None:
        if self._room.meter:
            self._room.meter.links(len(self._links))

    def take(self, link: Link, messages: Iterable[Mapping[str, Any]]) -> None:
        """What a worker says, in order. Raises ValueError, KeyError, TypeError or AttributeError at what is wrong."""
        with self._changed:
            try:
                for message in messages:
                    kind = message["t"]
                    if kind == "wait":
                        self._room.wait(link, message)
                    elif kind in ("gone", "entered"):
                        self._room.gone(link, int(message["id"]))
                    elif kind == "counts":
                        self._count(link, message)
            finally:
                self._room.settle()

    def _count(self, link: Link, message: Mapping[str, Any]) -> None:
        unsure = self._unsure()
        version, news = self._counts.told(link, message)
        if version > self._gates.version:
            self._gates.later_than(version)
            self._tell_state(also=None, anew=True)
        if news or unsure:
            self._changed.notify_all()

    def _ask_for(self, model: str, by: str) -> Ticket:
        ticket = self._request(model, by=by)
        self._asked_at = self._clock()
        self._counts.ask(self._asked_at)
        return ticket

    def _unsure(self) -> bool:
        """Whether a ticket is newer than what was counted, and that is about to be told."""
        return self._clock() - self._asked_at < _ANSWER_SECONDS and not self._counts.since(self._asked_at)

    # What others want to know.

    def waiting(self, model: str) -> int:
        """How many wait for a model. The caller has the lock."""
        return self._room.waiting(model)

    def requests(self, model: str) -> Requests | None:
        """The requests of a model; None where the gateway does not tell. The caller has the lock."""
        found = self._counts.of(model)
        if found is None:
            return None
        entering, since = self._room.entering(model), self._room.let_go_seconds(model)
        known = [one for one in (found.idle, since) if one is not None]
        idle = 0.0 if entering or self._unsure() else min(known, default=None)
        return Requests(found.in_flight + entering, idle)

    # The host.

    def refresh(self) -> None:
        """The models may have changed: tell the workers, and see who waits no longer."""
        if self.on:
            with self._changed:
                self._tell_state()
                self._room.settle(whole=True)

    def foreign(self, names: Collection[str]) -> None:
        """Somebody else switches these models, or has; any of them where none is named."""
        if self.on:
            with self._changed:
                self._gates.foreign(names)
                self.refresh()

    def hold(self, names: Collection[str]) -> None:
        """Whoever else has the host's lock asks that these gates be closed; none where he has let go of it."""
        with self._changed:
            self._gates.hold(names)
            self.refresh()
            self._held_version = self._gates.version
            self._counts.ask(self._clock())

    def held(self, names: Collection[str]) -> tuple[frozenset[str], bool] | None:
        """Which of these have requests yet, when all workers know that their gates are closed; None before.

        And whether any worker is connected.
        """
        with self._changed:
            now = self._clock()
            if not self._links:
                return (frozenset(), False) if now - self._linkless_since >= _LINK_SECONDS else None
            if self._gates.version[0] != self._held_version[0]:
                self._held_version = self._gates.version
            left = {name: self._counts.left([name], self._held_version) for name in names}
            self._counts.ask(now)
            return None if None in left.values() else (frozenset(name for name in names if left[name]), True)

    def looked(self) -> None:
        """The host was looked at while nobody had its lock. `refresh` comes after it."""
        self._gates.looked()

    def _tell_state(self, also: Link | None = None, anew: bool = False) -> None:
        """Tell all workers the state if it has changed, or is told `anew`; else only this one."""
        before = self._gates.open
        links = self._links if self._gates.look() or anew else [also] if also else []
        if self._gates.open != before:
            self._bus.publish("gates", {"open": sorted(self._gates.open)})
        message = self._gates.message() if links else b""
        for link in links:
            link.send(message)

    # Switches.

    def clear(self, ticket: Ticket) -> Cleared:
        """Close the gates of all models that this switch concerns, and wait until their requests have ended.

        Only the worker calls this, without the lock: it may take `drain_timeout_seconds`.
        """
        if not self.on:
            return Cleared()
        with self._changed:
            concerned, leaving = self._concerned(ticket)
            if not concerned:
                return Cleared()
            # Those who were let go come in first: else models that take turns could send them away for ever.
            until = self._clock() + _ENTER_SECONDS
            while any(self._room.entering(name) for name in leaving) and self._clock() < until:
                self._changed.wait(_POLL_SECONDS[0])
            self._switching, self._begun = ticket, False
            self._gates.close(concerned)
            self._tell_state()
            whole = self._host.inventory.switching.drain_timeout_seconds
            began = self._clock()
            error = self._drain(ticket, leaving, whole)
            if error:
                return Cleared(error)
            self._begun = True
            left = whole - (self._clock() - began)
            return Cleared(None, max(left, min(whole, _LEAST_DRAIN_SECONDS)))

    def _drain(self, ticket: Ticket, leaving: Collection[str], whole: float) -> dict[str, Any] | None:
        """Wait until the models that leave have no requests, at most for so long; the error that is against it."""
        began, version = self._clock(), self._gates.version
        asked = began - _POLL_SECONDS[1]
        while True:
            error = self._error_against(ticket, leaving)
            if error:
                return error
            now = self._clock()
            if self._gates.version[0] != version[0]:
                version = self._gates.version
            waited, left = now - began, self._counts.left(leaving, version)
            pause = min(max(_POLL_SECONDS[0], waited * _POLL_SHARE), _POLL_SECONDS[1])
            if not self._links:
                if now - self._linkless_since >= _LINK_SECONDS:
                    return None
            elif left == 0 or waited >= (max(whole, _KNOWN_SECONDS) if left is None else whole):
                return None
            elif left is None or now - asked >= pause:
                self._counts.ask(now)
                asked = now
            self._changed.wait(pause)

    def _concerned(self, ticket: Ticket) -> tuple[frozenset[str], frozenset[str]]:
        """Whose gates a switch closes, and whose requests have to end before it; nobody's where it changes nothing."""
        host, model = self._host, ticket.model
        rivals = host.rivals(model)
        if ticket.desired == plan.ACTIVE:
            unchanged = model in self._gates.open and not rivals & host.awake()
            return (frozenset(), frozenset()) if unchanged else (rivals | {model}, rivals)
        if ticket.desired == plan.SLEEPING and host.loads_to_sleep(model, ticket.level):
            return rivals | {model}, rivals | {model}
        return frozenset({model}), frozenset({model})

    def _error_against(self, ticket: Ticket, leaving: Collection[str]) -> dict[str, Any] | None:
        """Why a switch that the engine has not begun with is not to be made; None: it is."""
        if self._schedule.closed:
            return ending().as_dict()
        if ticket.waiters <= 0:
            return {"message": "nobody waits for it any more", "kind": "Withdrawn", "remedy": ""}
        used = self._counts.left(leaving) or any(map(self._room.waiting, leaving))
        if used and ticket.by == RECONCILER and ticket.desired != plan.ACTIVE:
            return {
                "message": f"{ticket.model} is used again: nothing was done",
                "kind": Superseded.__name__,
                "remedy": "",
            }
        return None

    def ended(self, ticket: Ticket) -> None:
        """A switch has ended, in whatever way; what it has observed was taken over already. The caller has the lock."""
        if not self.on:
            return
        if ticket is self._switching:
            self._gates.reopen((ticket.result or {}).get("models", {}), self._begun)
            self._switching = None
        self._tell_state()
        self._room.ended(ticket)
        self._room.settle(whole=True)

    # Now and then.

    def tick(self) -> float:
        """Do what is due; in how many seconds to call this again."""
        with self._changed:
            now, busy = self._clock(), bool(self._links and self._schedule.waiting)
            if self._is_due("publish", now):
                self._publish()
            if not self._links:
                return _QUIET_TICK_SECONDS
            if self._is_due("count", now) or busy:
                self._counts.ask(now)
            if self._is_due("estimate", now):
                self._gates.estimate()
                self._tell_state()
            if self._is_due("tell", now):
                self._room.tell_places()
            return _TICK_SECONDS if busy else _QUIET_TICK_SECONDS

    def _is_due(self, what: str, now: float) -> bool:
        if now < self._due[what]:
            return False
        self._due[what] = now + _EVERY[what]
        return True

    def told(self) -> dict[str, Any]:
        """What a gateway of many hosts has to know of this one's."""
        with self._changed:
            return {**self._numbers(), "models": self._gates.told()}

    def _numbers(self) -> dict[str, Any]:
        ids = [m.id for m in self._host.inventory.models]
        found = {name: self._counts.of(name) for name in ids}
        return {
            "links": len(self._links),
            "waiting": {name: self.waiting(name) for name in ids if self.waiting(name)},
            "in_flight": {name: one.in_flight for name, one in found.items() if one and one.in_flight},
        }

    def _publish(self) -> None:
        """Tell on the bus how many wait and how many requests there are, where that has changed."""
        shown = self._numbers()
        if shown != self._published:
            self._published = shown
            self._bus.publish("gateway", shown)
