# SPDX-License-Identifier: MIT
"""How much the host's models are used: requests and tokens by the servers' own counters, and seconds active.

Servers begin to count anew when they are restarted; what is added up here is what has come since the look before.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import ServerError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model, Switching
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.metrics import Counters
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.server import Server
from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel

from .history import History, HistoryError
from .view import READY, View

_LOG = logging.getLogger(__name__)

# How far apart servers are asked. A server that is stopped takes along what it has counted since it was asked last.
POLL_SECONDS = 15.0
# How far apart is looked who is active, which asks nobody: so exact are the seconds.
LOOK_SECONDS = 1.0
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
        return Use(*(mine + its for mine, its in zip(self, other, strict=True)))


def since(before: Counters | None, now: Counters, watched_since: float) -> Use:
    """What a server has done between two looks at its counters.

    All that it has counted, where it was restarted between them. At the first look, without C(before): all if the
    server was started since C(watched_since), in seconds since 1970, else nothing: nobody knows when that was done.
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
    done = [
        0 if old is None or new is None else new - old for old, new in zip(old_counts, counts, strict=True)
    ]
    return Use(*done)


class Usage:
    """Adds up the use of the models in the background and keeps it in the history.

    C(view) and C(inventory) are the manager's. `start` begins, `stop` ends and keeps what is not kept yet.
    """

    def __init__(
        self,
        view: Callable[[], View],
        inventory: Callable[[], Inventory],
        stack_dir: str,
        history: History,
        *,
        poll_seconds: float = POLL_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        server: Callable[[Model, Switching], Server] = Server,
    ) -> None:
        self._view = view
        self._inventory = inventory
        self._stack_dir = stack_dir
        self._history = history
        self._poll_seconds = poll_seconds
        self._look_seconds = look_seconds
        self._clock = clock
        self._make_server = server
        self._watched_since = now()
        self._servers: dict[str, tuple[Model, Switching, Server]] = {}
        self._counters = _read_counters(stack_dir)
        # What the history has not taken yet, and all since the service was started; replaced as wholes.
        self._pending: dict[str, Use] = {}
        self._totals: dict[str, Use] = {}
        self._active: list[str] = []
        self._looked_at: float | None = None
        self._polled_at: float | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look once more, keep what was found, and end."""
        self._end.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        self.poll()
        for _model, _settings, server in self._servers.values():
            server.close()
        self._servers.clear()

    def totals(self) -> Mapping[str, Use]:
        """What each model has done since the service was started."""
        return self._totals

    def _run(self) -> None:
        while not self._end.wait(self._look_seconds):
            try:
                self.look()
            except Exception:  # whatever it is, the next look may be better
                _LOG.exception("the use of the models could not be added up")

    def look(self) -> None:
        """Count the time for which models have been active, and from time to time what their servers have done."""
        now = self._clock()
        view = self._view()
        if self._looked_at is not None:
            for name in self._active:
                self._add(name, Use(seconds_active=now - self._looked_at))
        self._looked_at = now
        self._active = [name for name, model in view.models.items() if model.state == READY]
        due = self._polled_at is None or now - self._polled_at >= self._poll_seconds
        if due and view.switching is None:  # a switch shall not wait for it
            self._ask(view)
            self._polled_at = self._clock()
            self.keep()

    def poll(self) -> None:
        """Ask the servers now, and keep what has come."""
        self._polled_at = None
        self.look()
        self.keep()

    def _ask(self, view: View) -> None:
        inventory = self._inventory()
        for model in inventory.enabled:
            seen = view.models.get(model.id)
            if seen is None or seen.engine_state not in (plan.ACTIVE, plan.SLEEPING):
                continue
            try:
                found = self._server(model, inventory.switching).counters()
            except ServerError:
                continue  # what it has done is not known now, and is not nothing
            if found[:3] == (None, None, None):
                continue
            self._add(model.id, since(self._counters.get(model.id), found, self._watched_since))
            # What it does not tell now, it may tell again.
            before = self._counters.get(model.id, Counters())
            self._counters[model.id] = Counters(
                *(old if new is None else new for old, new in zip(before, found, strict=True))
            )

    def _server(self, model: Model, settings: Switching) -> Server:
        """The server of a model, over a connection that is kept as long as the inventory says the same of it."""
        known = self._servers.get(model.id)
        if known and (known[0], known[1]) == (model, settings):
            return known[2]
        if known:
            known[2].close()
        server = self._make_server(model, settings)
        self._servers[model.id] = (model, settings, server)
        return server

    def _add(self, name: str, use: Use) -> None:
        for uses in (self._pending, self._totals):
            uses[name] = uses.get(name, Use()).plus(use)

    def keep(self) -> None:
        """Have the history take what it has not taken yet."""
        for name, use in list(self._pending.items()):
            if use == Use() or self._history.add_usage(name, **use._asdict()):
                del self._pending[name]
        if self._pending:
            return
        # Only now: what the history did not take is found again by the next service.
        content = {"models": {name: list(counters) for name, counters in self._counters.items()}}
        if content != state_files.read(self._stack_dir, state_files.USAGE):
            with contextlib.suppress(OSError):  # then a restart of the service counts some of it twice
                state_files.write(self._stack_dir, state_files.USAGE, content)

    def router(self) -> APIRouter:
        """GET /usage."""
        router = APIRouter()

        @router.get(
            "/usage",
            summary="How much each model was used",
            tags=["usage"],
            responses={503: {"description": "The history can't be read", "model": UsageError}},
        )
        def usage(
            days: Annotated[int, Query(ge=0, le=400, description="How many days, today included")] = 30,
            hours: Annotated[int, Query(ge=0, le=744, description="How many hours, this one included")] = 24,
        ) -> UsageReport:
            """Requests, tokens and seconds active by model and day (of UTC), and by hour.

            The requests are those that ended, by the servers' own counters.
            """
            try:
                return UsageReport.model_validate(
                    {"days": self._history.usage(days), "hours": self._history.usage_by_hour(hours)}
                )
            except HistoryError as error:
                raise HTTPException(503, str(error)) from None

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
    """The answer to GET /usage: days, the newest first, and hours, the oldest first; none in which nothing was done."""

    days: list[DayOfUse]
    hours: list[HourOfUse]


class UsageError(BaseModel):
    """Why there is no answer."""

    error: str


def _read_counters(stack_dir: str) -> dict[str, Counters]:
    """What each server had counted when it was asked last; none of those whose record makes no sense."""
    found: dict[str, Counters] = {}
    for name, saved in state_files.models(stack_dir, state_files.USAGE).items():
        if isinstance(saved, list) and len(saved) == 4 and all(map(_is_count, saved)):
            found[name] = Counters(*saved)
    return found


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0)
