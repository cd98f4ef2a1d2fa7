# SPDX-License-Identifier: MIT
"""Whether a model that has failed may be tried again. Pure."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

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

    def rested(self) -> Breaker:
        """The breaker when the model may be tried at once. If it was open, one failure makes it wait again."""
        return dataclasses.replace(self, retry_at=-math.inf)

    def as_dict(self, shift: float) -> dict[str, Any]:
        """Plain data for `restored`, with all times moved by `shift` seconds to a clock that outlives the process."""
        return {
            "failures": [at + shift for at in self.failures],
            "opened": self.opened,
            "retry_at": self.retry_at + shift if math.isfinite(self.retry_at) else None,
            "reason": self.reason,
        }

    def restored(self, saved: Any, shift: float, now: float) -> Breaker:
        """The breaker with what `as_dict` has saved; as it is where that can't be read.

        A clock that was corrected meanwhile makes no failure later than `now`, and no rest longer than `retry_seconds`.
        """
        try:
            failures = sorted(min(now, float(at) - shift) for at in saved["failures"])
            retry_at = saved["retry_at"]
            rests_until = -math.inf if retry_at is None else min(float(retry_at) - shift, now + self.retry_seconds)
            opened, reason = bool(saved["opened"]), str(saved["reason"])
        except (KeyError, TypeError, ValueError):
            return self
        kept = tuple(failures[-self.limit :])
        return dataclasses.replace(self, failures=kept, opened=opened, retry_at=rests_until, reason=reason)
