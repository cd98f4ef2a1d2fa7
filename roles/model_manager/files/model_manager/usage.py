# SPDX-License-Identifier: MIT
"""How much the host's models are used: requests and tokens by the servers' own counters, and seconds active.

Servers begin to count anew when they are restarted; what is added up here is what has come since the look before. So
what a server has done after the last look at it is lost if it is stopped then.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.metrics import Counters
from fastapi import APIRouter, Query
from pydantic import BaseModel

from .answers import ErrorAnswer
from .events import Event
from .history import History
from .view import READY

if TYPE_CHECKING:
    from .manager import Observed

# How far apart the history takes what was counted. A service that is killed loses so much of the seconds active.
KEEP_SECONDS = 15.0
# More between two looks at the servers means that the clock was set, or that the machine has slept.
_LONGEST_SECONDS = 60.0
# Between these two starts of a server there is only how it was rounded.
_SAME_START_SECONDS = 1.0


class Use(NamedTuple):
    """What a model has done: requests that ended, those of the engine's own proofs among them, and their tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    seconds_active: float = 0.0

    def plus(self, other: Use) -> Use:
        """Both together."""
        return Use(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.generation_tokens + other.generation_tokens,
            self.seconds_active + other.seconds_active,
        )


def since(before: Counters | None, now: Counters, watched_since: float) -> Use:
    """What a server has done between two looks at its counters.

    All that it has counted, where it was restarted between them. At the first look, without `before`: all if the
    server was started since `watched_since`, in seconds since 1970, else nothing: nobody knows when that was done.
    """
    counts = now[:3]
    if before is None:
        restarted = now.started is not None and now.started >= watched_since
    else:
        known = [(old, new) for old, new in zip(before[:3], counts, strict=True) if old is not None and new is not None]
        restarted = any(new < old for old, new in known)
        if before.started is not None and now.started is not None:
            restarted = restarted or abs(now.started - before.started) > _SAME_START_SECONDS
    old_counts = (0, 0, 0) if restarted else before[:3] if before else (None, None, None)
    done = [0 if old is None or new is None else new - old for old, new in zip(old_counts, counts, strict=True)]
    return Use(*done)


class Usage:
    """Adds up the use of the models and keeps it in the history.

    `feed` is to be called with each event of the bus, `observed` after each look at the servers, `stop` at the end.
    """

    def __init__(self, stack_dir: str, history: History, now: Callable[[], float] = time.time) -> None:
        self._stack_dir = stack_dir
        self._history = history
        self._now = now
        self._watched_since = self._kept_at = now()
        # Of all that follows. Nobody waits for the history with it: who publishes events is the switch.
        self._lock = threading.Lock()
        self._counters = _read_counters(stack_dir)
        self._active_since: dict[str, float] = {}
        # What the history has not taken yet, and all since the service was started.
        self._pending: dict[str, Use] = {}
        self._totals: dict[str, Use] = {}

    def feed(self, event: Event) -> None:
        """Count for how long models are active, by the changes of their states."""
        if event.kind == "state":
            with self._lock:
                self._roll(event.data["model"], event.at, event.data["state"] == READY)

    def observed(self, observed: Observed) -> None:
        """Count what has come since the look before, and from time to time have the history take it."""
        with self._lock:
            for name in list(self._active_since):
                seen = observed.seen.get(name)
                self._roll(name, observed.at, seen is not None and seen.state == plan.ACTIVE)
            for name, found in observed.counters.items():
                if found == Counters():
                    continue  # it has not answered, or has no metrics
                before = self._counters.get(name)
                self._add(name, since(before, found, self._watched_since))
                # What it does not tell now, it may tell again.
                told = {key: value for key, value in found._asdict().items() if value is not None}
                self._counters[name] = (before or Counters())._replace(**told)
        if self._now() - self._kept_at >= KEEP_SECONDS:
            self.keep()

    def stop(self) -> None:
        """Count until now, and keep it."""
        with self._lock:
            for name in list(self._active_since):
                self._roll(name, self._now(), False)
        self.keep()

    def totals(self) -> Mapping[str, Use]:
        """What each model has done since the service was started."""
        with self._lock:
            return dict(self._totals)

    def keep(self) -> None:
        """Have the history take what it has not taken yet."""
        self._kept_at = self._now()
        with self._lock:
            pending, self._pending = self._pending, {}
            counters = {name: list(found) for name, found in self._counters.items()}
        left = {name: use for name, use in pending.items() if not self._history.add_usage(name, **use._asdict())}
        if left:
            with self._lock:
                self._pending = {
                    name: left.get(name, Use()).plus(self._pending.get(name, Use()))
                    for name in {**left, **self._pending}
                }
            return
        # Only now: what the history has not taken is found again by the next service.
        content = {"models": counters}
        if counters and content != state_files.read(self._stack_dir, state_files.USAGE):
            with contextlib.suppress(OSError):  # then the next service counts some of it twice
                state_files.write(self._stack_dir, state_files.USAGE, content)

    def _roll(self, name: str, at: float, active: bool) -> None:
        """Count until now a model that was active, and go on if it still is."""
        began = self._active_since.pop(name, None)
        if began is not None:
            self._add(name, Use(seconds_active=min(max(0.0, at - began), _LONGEST_SECONDS)))
        if active:
            self._active_since[name] = at

    def _add(self, name: str, use: Use) -> None:
        for uses in (self._pending, self._totals):
            uses[name] = uses.get(name, Use()).plus(use)

    def router(self) -> APIRouter:
        """GET /usage. Raises HistoryError, for the application to tell."""
        router = APIRouter()

        @router.get(
            "/usage",
            responses={
                422: {"model": ErrorAnswer, "description": "The request is wrong."},
                503: {"model": ErrorAnswer, "description": "The history can't be read."},
            },
        )
        def usage(
            days: Annotated[int, Query(ge=0, le=400, description="How many days, today included")] = 30,
            hours: Annotated[int, Query(ge=0, le=744, description="How many hours, this one included")] = 24,
        ) -> UsageReport:
            """Requests that ended, their tokens, and seconds active, by model and day (of UTC), and by hour."""
            return UsageReport.model_validate(
                {"days": self._history.usage(days), "hours": self._history.usage_by_hour(hours)}
            )

        return router


class _Row(BaseModel):
    model: str
    requests: int
    prompt_tokens: int
    generation_tokens: int
    seconds_active: float


class DayOfUse(_Row):
    """What one model has done on one day of UTC."""

    day: str


class HourOfUse(_Row):
    """What one model has done within an hour that began so many seconds after 1970."""

    hour: int


class UsageReport(BaseModel):
    """Days, the newest first, and hours, the oldest first; those in which nothing was done are left out."""

    days: list[DayOfUse]
    hours: list[HourOfUse]


def _read_counters(stack_dir: str) -> dict[str, Counters]:
    """What each server had counted when it was asked last; none of those whose record makes no sense."""
    found: dict[str, Counters] = {}
    for name, saved in state_files.models(stack_dir, state_files.USAGE).items():
        if isinstance(saved, list) and len(saved) == 4 and all(map(_is_count, saved)):
            found[name] = Counters(*saved)
    return found


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0)
