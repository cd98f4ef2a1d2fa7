# SPDX-License-Identifier: MIT
"""Those who wait at the gateway, by the model that they wait for. Light for each: there may be thousands."""

from __future__ import annotations

import heapq

from .gateway_counts import Link

# So many waiters of one key count for the policy: whoever asks a thousand times at once does not outweigh the others.
KEY_DEPTH = 8
# The heap is made anew when more than half of it has left, and it has at least so many.
_SMALL = 64


class Waiter:
    """One request that waits. `asked` is when it began to, by the manager's clock; `n` counts those of its model."""

    __slots__ = ("asked", "key", "left", "link", "model", "n", "number")

    def __init__(self, link: Link, number: int, model: str, key: str, asked: float) -> None:
        self.link = link
        self.number = number
        self.model = model
        self.key = key
        self.asked = asked
        self.n = 0
        self.left = False


class Line:
    """Those who wait for one model, in the order in which they came."""

    def __init__(self, model: str) -> None:
        self.model = model
        # How many wait on each link.
        self.links: dict[Link, int] = {}
        # Those beyond KEY_DEPTH, of all keys.
        self.uncounted = 0
        self._numbers = 0
        self._waiting: dict[Waiter, None] = {}
        self._keys: dict[str, int] = {}
        self._by_age: list[tuple[float, int, Waiter]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiter: Waiter) -> None:
        """One more."""
        self._numbers += 1
        waiter.n = self._numbers
        self._waiting[waiter] = None
        self.links[waiter.link] = self.links.get(waiter.link, 0) + 1
        self._keys[waiter.key] = self._keys.get(waiter.key, 0) + 1
        self.uncounted += self._keys[waiter.key] > KEY_DEPTH
        heapq.heappush(self._by_age, (waiter.asked, waiter.n, waiter))

    def remove(self, waiter: Waiter) -> None:
        """It waits no more."""
        del self._waiting[waiter]
        waiter.left = True
        self.uncounted -= self._keys[waiter.key] > KEY_DEPTH
        self._keys[waiter.key] -= 1
        if not self._keys[waiter.key]:
            del self._keys[waiter.key]
        self.links[waiter.link] -= 1
        if not self.links[waiter.link]:
            del self.links[waiter.link]
        if len(self._by_age) > 2 * len(self._waiting) + _SMALL:
            self._by_age = [(one.asked, one.n, one) for one in self._waiting]
            heapq.heapify(self._by_age)

    def oldest(self) -> float | None:
        """Since when the first one has waited; None where nobody waits."""
        while self._by_age and self._by_age[0][2].left:
            heapq.heappop(self._by_age)
        return self._by_age[0][0] if self._by_age else None

    def first(self) -> int | None:
        """The lowest number of those who wait; None where nobody does."""
        return next((waiter.n for waiter in self._waiting), None)

    def in_order(self) -> list[Waiter]:
        """All, whoever has waited longest first: after a reconnect, they come in any order."""
        return sorted(self._waiting, key=lambda one: (one.asked, one.n))
