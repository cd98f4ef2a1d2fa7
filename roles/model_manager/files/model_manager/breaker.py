# SPDX-License-Identifier: MIT
"""Whether a model that has failed may be tried again. Pure."""

from __future__ import annotations

import dataclasses
import math

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"

# How long a model rests after its first failure; each further one doubles it.
_FIRST_REST_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Breaker:
    """Keeps a model that fails again and again from being tried all the time. Times are in seconds of one clock.

    Closed: it is tried, after a rest that doubles with each failure. With `limit` failures within `window_seconds` it
    opens. Half open, `retry_seconds` later, it is tried once: if that fails it is open again.
    """

    limit: int
    window_seconds: float
    retry_seconds: float
    failures: tuple[float, ...] = ()
    opened: bool = False
    retry_at: float = -math.inf
    reason: str = ""

    def recent(self, now: float) -> int:
        """How many failures count."""
        return sum(now - at < self.window_seconds for at in self.failures)

    def state(self, now: float) -> str:
        """`closed`, `open` or `half_open`."""
        if not self.opened:
            return CLOSED
        return HALF_OPEN if self.allows(now) else OPEN

    def allows(self, now: float) -> bool:
        """Whether the model may be tried."""
        return now >= self.retry_at

    def failed(self, now: float, reason: str, crashed: bool = False) -> Breaker:
        """The breaker after one failure more. After a first crash the model may be tried at once."""
        failures = (*(at for at in self.failures if now - at < self.window_seconds), now)[-self.limit :]
        opened = self.opened or len(failures) >= self.limit
        doublings = len(failures) - (2 if crashed else 1)
        rest = 0.0 if doublings < 0 else min(self.retry_seconds, _FIRST_REST_SECONDS * 2.0 ** min(doublings, 60))
        rest = self.retry_seconds if opened else rest
        return dataclasses.replace(self, failures=failures, opened=opened, retry_at=now + rest, reason=reason)

    def succeeded(self, now: float) -> Breaker:
        """The breaker after the model came up. If it was open, one failure soon after this opens it again."""
        failures = (now,) * (self.limit - 1) if self.opened else self.failures
        return dataclasses.replace(self, failures=failures, opened=False, retry_at=-math.inf, reason="")
