# SPDX-License-Identifier: MIT
"""How many requests the gateway has on each model, as its workers tell, and whom to ask for that.

The workers of one nginx share a store, so that one of them is asked for all. Two nginx at once, as during a restart,
have a store each, and what they tell is added up. Nothing here has a lock: whoever calls has the manager's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

Version = tuple[int, int]

# A worker that does not answer for so long may hang, and another one is asked.
_ANSWER_SECONDS = 0.25
# Older counts are none.
_FRESH_SECONDS = 5.0


class Link(Protocol):
    """The connection of one of nginx's workers."""

    store: str

    def send(self, message: Mapping[str, Any] | bytes) -> None:
        """Send a message, or a line that is encoded already, from whatever thread. What can't be sent is lost."""


class Requests(NamedTuple):
    """The requests of a model, and for how long, in seconds, it has had none; None where nobody knows."""

    in_flight: int
    idle: float | None


class _Store:
    """What is known of one store."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.version: Version = (0, 0)
        self.told_at: float | None = None
        self.counts: dict[str, Requests] = {}
        self.asked: Link | None = None
        self.asked_at = 0.0


class Counts:
    """The counts of all stores. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._stores: dict[str, _Store] = {}
        self._seq = 0

    def connected(self, link: Link) -> None:
        """A worker has come."""
        self._stores.setdefault(link.store, _Store()).links.append(link)

    def lost(self, link: Link) -> None:
        """A worker has gone. What the last one of a store has told is worth nothing then."""
        store = self._stores[link.store]
        store.links.remove(link)
        if store.asked is link:
            store.asked = None
        if not store.links:
            del self._stores[link.store]

    def ask(self, now: float) -> None:
        """Ask each store, unless it was asked and may yet answer."""
        for store in self._stores.values():
            if store.asked is not None:
                if now - store.asked_at < _ANSWER_SECONDS:
                    continue
                # It comes last from now on.
                store.links.remove(store.asked)
                store.links.append(store.asked)
            store.asked, store.asked_at = store.links[0], now
            self._seq += 1
            store.asked.send({"t": "counts?", "seq": self._seq})

    def told(self, link: Link, message: Mapping[str, Any]) -> tuple[Version, bool]:
        """Take in an answer: the version of the state that its store holds, and whether it says anything new.

        Raises ValueError, KeyError, TypeError or AttributeError where it is no answer.
        """
        boot, number = message["version"]
        found = {
            str(model): Requests(_count(one["in_flight"]), _seconds(one["idle_seconds"]))
            for model, one in (message["counts"] or {}).items()  # Lua's empty table may come as a list
        }
        store, version = self._stores[link.store], (int(boot), int(number))
        before = {name: one.in_flight for name, one in store.counts.items()}
        news = version != store.version or before != {name: one.in_flight for name, one in found.items()}
        store.version, store.counts, store.told_at = version, found, self._clock()
        if store.asked is link:
            store.asked = None
        return version, news

    def since(self, moment: float) -> bool:
        """Whether all stores have told since then."""
        return all(store.told_at is not None and store.told_at >= moment for store in self._stores.values())

    def of(self, model: str) -> Requests | None:
        """The requests of a model; None where that is not known now."""
        now, in_flight, idle = self._clock(), 0, []
        for store in self._stores.values():
            if store.told_at is None or now - store.told_at > _FRESH_SECONDS:
                return None
            found = store.counts.get(model)
            if found is not None:
                in_flight += found.in_flight
                idle.append((found.idle or 0.0) + now - store.told_at)
        return Requests(in_flight, 0.0 if in_flight else min(idle, default=None)) if self._stores else None

    def left(self, models: Iterable[str], version: Version | None = None) -> int | None:
        """How many requests these models have; with `version` by stores that hold that state, None: not all do yet."""
        total = 0
        for store in self._stores.values():
            if version and (store.version[0] != version[0] or store.version < version):
                return None
            total += sum(store.counts[name].in_flight for name in models if name in store.counts)
        return total


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("a number of requests is no whole number")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError("a time is no number of seconds")
    return float(value)
