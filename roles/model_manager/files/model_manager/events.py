# SPDX-License-Identifier: MIT
"""What happens on the host, told to everybody who listens: switches, their steps, changes of state.

The kinds of events, with the keys of their data:

- `switch_queued`, `switch_begun`, `switch_ended`: those of `GET /switches/ID`; `switch_begun` has in `from_model` what
  was active in the model's place, else an empty text
- `step_begun`, `step_ended`: `ticket` (its id) and those of a step of a switch's result
- `switch_seen`: one that the module or the command line has made, as the engine has recorded it: `models`, `state`,
  `ended`, `seconds`, `result`, `rung`, `reason`
- `state`: `model`, `state`, `level`, `problem`, `before` (the former state), `desired`, and `down`: whether it should
  be active, does not run, and the service does not bring it back now
- `queue`: `queue`, a list of the switches that run and wait, each with `id`, `model`, `desired`, `position`,
  `eta_seconds` and `waiters`; `length`, how many of them wait
- `lock`: `holder`, who else switches on this host now, in words; empty when it is over
- `inventory`: `models` (their ids), or `problem` where a new one can't be used and the old one is kept
- `mode`: `mode` and `pinned`
- `eviction`: `model`, `weights`, `process`
- `breaker`: `model`, `state` (closed, open, half_open), `failures`, `reason`, `retry_at` (seconds since 1970, or null)
- `gateway`: `links` (its workers that are connected), `waiting` and `in_flight` (requests by model; only those
  that have some)
- `gates`: `open`, the models to which the gateway lets requests through now
- `lost`: `events`, how many a reader has missed; -1 where nobody knows
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

KEPT_EVENTS = 1000
QUEUE_EVENTS = 1000


@dataclasses.dataclass(frozen=True)
class Event:
    """One thing that happened. `id` grows by one each time, `at` is in seconds since 1970."""

    id: int
    kind: str
    at: float
    data: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The event as plain data."""
        return dataclasses.asdict(self)


class Subscription:
    """The events for one reader: an async iterator, which ends when the bus or the subscription is closed.

    A reader that is too slow loses the oldest events, and is told how many by one of the kind `lost`.
    """

    def __init__(self, bus: Bus, size: int) -> None:
        self._bus = bus
        self._size = size
        self._events: collections.deque[Event] = collections.deque()
        self._lost = 0
        self._lock = threading.Lock()
        self._closed = False
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None when it is closed. Raises TimeoutError (asyncio's) after so many seconds without one."""
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while True:
            came = asyncio.Event()
            with self._lock:
                found = self._pop()
                if found or self._closed:
                    return found
                self._waiting = (loop, came)
            await asyncio.wait_for(came.wait(), None if end is None else end - loop.time())

    def take(self) -> list[Event]:
        """All events that are there now; for who reads without asyncio."""
        with self._lock:
            return list(iter(self._pop, None))

    def close(self) -> None:
        """Take no more events. What is there can still be read."""
        self._bus.drop(self)
        self.end()

    def put(self, event: Event) -> None:
        """For the bus: one more event, from whatever thread."""
        with self._lock:
            if self._closed:
                return
            if len(self._events) >= self._size:
                self._events.popleft()
                self._lost += self._lost >= 0  # else nobody knows how many anyway
            self._events.append(event)
            self._wake()

    def miss(self, events: int) -> None:
        """For the bus: say first that so many events are missing, -1 where nobody knows how many."""
        with self._lock:
            self._lost = events

    def end(self) -> None:
        """For the bus: nothing more comes."""
        with self._lock:
            self._closed = True
            self._wake()

    def _pop(self) -> Event | None:
        if self._lost and self._events:
            lost, self._lost = self._lost, 0
            # Its id is that of the last event that is missing, so that a reader resumes where it really was.
            first = self._events[0]
            return Event(first.id - 1, "lost", first.at, {"events": lost})
        return self._events.popleft() if self._events else None

    def _wake(self) -> None:
        if self._waiting:
            loop, came = self._waiting
            self._waiting = None
            with contextlib.suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(came.set)


class Bus:
    """Hands events on to all who have subscribed, from whatever thread they are published."""

    def __init__(self, kept: int = KEPT_EVENTS, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._kept: collections.deque[Event] = collections.deque(maxlen=kept)
        self._subscriptions: set[Subscription] = set()
        self._listeners: list[Callable[[Event], None]] = []
        self._closed = False
        # Ids go on growing over a restart, so that a reader of the one before is not told too little.
        self._first_id = self._next_id = int(now() * 1000)

    @property
    def last_id(self) -> int:
        """The id of the last event; of none yet, the one before the first."""
        return self._next_id - 1

    def publish(self, kind: str, data: dict[str, Any]) -> Event:
        """Tell everybody. The data is plain, and nobody changes it afterwards."""
        with self._lock:
            event = Event(self._next_id, kind, self._now(), data)
            self._next_id += 1
            self._kept.append(event)
            for subscription in self._subscriptions:
                subscription.put(event)
        for listener in list(self._listeners):
            with contextlib.suppress(Exception):  # who listens never harms a switch
                listener(event)
        return event

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call this for each event, in the thread that publishes it: it has to be quick."""
        self._listeners.append(listener)

    def subscribe(self, after: int = -1, size: int = QUEUE_EVENTS) -> Subscription:
        """The events from now on; with `after`, first those since the event of that id, as far as they are kept."""
        subscription = Subscription(self, max(1, size))
        with self._lock:
            if after >= 0:
                # An id of another run of the service, or one made up, says nothing of what this one has told.
                known = self._first_id - 1 <= after < self._next_id
                left = [event for event in self._kept if event.id > after or not known]
                missing = self._next_id - after - 1 - len(left) if known else -1
                if missing:
                    subscription.miss(missing)
                for event in left:
                    subscription.put(event)
            self._subscriptions.add(subscription)
            if self._closed:
                subscription.end()
        return subscription

    def drop(self, subscription: Subscription) -> None:
        """For a subscription that is closed."""
        with self._lock:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """Nothing more comes: end what reads."""
        with self._lock:
            self._closed = True
            for subscription in self._subscriptions:
                subscription.end()
