# SPDX-License-Identifier: MIT
"""What a host's switches were and how its models were used, in one small SQLite file that never grows without bound.

The manager lives without it: a file that can't be used is set aside or said in `problem`, and no switch fails for it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LOG = logging.getLogger(__name__)

# The number of this layout. A file of another one is set aside: what it tells is no more than nice to have.
_LAYOUT = 1
# AUTOINCREMENT: the number of a switch is the place from which a caller reads on, so that none is given twice.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS switches (
    id INTEGER PRIMARY KEY AUTOINCREMENT, asked_at REAL NOT NULL, begun_at REAL NOT NULL, ended_at REAL NOT NULL,
    model TEXT NOT NULL, desired TEXT NOT NULL, requested_by TEXT NOT NULL, result TEXT NOT NULL, error TEXT NOT NULL,
    previous TEXT NOT NULL, active TEXT NOT NULL, rung TEXT NOT NULL, seconds REAL NOT NULL, steps TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS usage (
    hour INTEGER NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    generation_tokens INTEGER NOT NULL, seconds_active REAL NOT NULL, PRIMARY KEY (hour, model)
) WITHOUT ROWID;
"""
_HOUR = 3600
# Of a lock by another process, such as a person's sqlite3.
_PATIENCE_SECONDS = 2.0
# The columns that hold a list, as JSON.
_LISTS = ("previous", "active", "steps")
DONE = "done"
FAILED = "failed"
LONGEST_PAGE = 1000
# SQLite's numbers have 64 bits, those of a caller any size.
_MOST = 2**63 - 1
# The last two for values that SQLite has no room for: numbers of more bits, texts that are none.
_ERRORS = (sqlite3.Error, OSError, OverflowError, ValueError)


class HistoryError(Exception):
    """The history can't be read. The message says why and what to do; nothing else of the manager depends on it."""


@dataclass(frozen=True)
class Switch:
    """One switch that has ended. Times are in seconds since 1970, `seconds` is how long it took.

    `previous` and `active` are the models that were active before and after it on the GPUs concerned. `result` is
    `done` or `failed`, then with an `error`. `rung` is the last rung of the escalation that was tried. `steps` are
    those of the engine's result.
    """

    model: str
    desired: str
    asked_at: float
    begun_at: float
    ended_at: float
    result: str = DONE
    requested_by: str = ""
    error: str = ""
    previous: Sequence[str] = ()
    active: Sequence[str] = ()
    rung: str = ""
    seconds: float = 0.0
    steps: Sequence[Mapping[str, Any]] = ()


class History:
    """The history of a host, kept in the file `path`; `:memory:` is for tests.

    The last `keep_switches` switches are kept, and the use of `keep_days` days. Safe to use from several threads.
    """

    def __init__(
        self, path: str, *, keep_switches: int = 10000, keep_days: int = 400, now: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self.problem = ""
        """Why the last record could not be kept, empty if it was."""
        self._keep_switches = keep_switches
        self._keep_days = keep_days
        self._now = now
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        with self._lock:
            try:
                self._connect()
            except _ERRORS as error:
                self._note(error)

    def close(self) -> None:
        """Close the file. Whatever is called later opens it again."""
        with self._lock:
            self._drop()

    def record_switch(self, switch: Switch) -> int | None:
        """Keep a switch, forget those that are too many. Returns its number, None if it can't be kept (`problem`)."""
        row = {
            "asked_at": switch.asked_at,
            "begun_at": switch.begun_at,
            "ended_at": switch.ended_at,
            "model": switch.model,
            "desired": switch.desired,
            "requested_by": switch.requested_by,
            "result": switch.result,
            "error": switch.error,
            "rung": switch.rung,
            "seconds": switch.seconds,
            **{name: json.dumps(list(getattr(switch, name))) for name in _LISTS},
        }
        places = ", ".join(f":{name}" for name in row)
        return self._write(
            (f"INSERT INTO switches ({', '.join(row)}) VALUES ({places})", row),  # noqa: S608
            ("DELETE FROM switches WHERE id <= (SELECT max(id) FROM switches) - ?", (self._keep_switches,)),
        )

    def switches(self, limit: int = 50, before: int | None = None) -> list[dict[str, Any]]:
        """The last switches, the newest first, as plain data; at most `limit`, and `LONGEST_PAGE`.

        With `before`, those before the switch of that number, to read on from a page. Raises HistoryError.
        """
        limit = max(0, min(limit, LONGEST_PAGE))
        before = _MOST if before is None else max(0, min(before, _MOST))
        rows = self._read(
            "SELECT * FROM switches WHERE id < :before ORDER BY id DESC LIMIT :limit",
            {"before": before, "limit": limit},
        )
        return [{**row, **{name: json.loads(row[name]) for name in _LISTS}} for row in rows]

    def add_usage(
        self,
        model: str,
        *,
        requests: int = 0,
        prompt_tokens: int = 0,
        generation_tokens: int = 0,
        seconds_active: float = 0.0,
        at: float | None = None,
    ) -> bool:
        """Add what a model has done since the last call to the hour of `at`, by default now.

        Returns whether it was kept; if not, `problem` says why, and the caller may add it to the next call.
        """
        if not (requests or prompt_tokens or generation_tokens or seconds_active):
            return True
        hour = int((self._now() if at is None else at) // _HOUR)
        values = (hour, model, requests, prompt_tokens, generation_tokens, seconds_active)
        kept = self._write(
            (
                "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (hour, model) DO UPDATE SET"
                " requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
                " generation_tokens = generation_tokens + excluded.generation_tokens,"
                " seconds_active = seconds_active + excluded.seconds_active",
                values,
            ),
            ("DELETE FROM usage WHERE hour < ?", (self._first_hour(),)),
        )
        return kept is not None

    def usage(self, days: int = 30) -> list[dict[str, Any]]:
        """The use of each model on each of the last `days` days, today included, the newest first.

        A day is one of UTC. Rows have `day` (YYYY-MM-DD), `model`, `requests`, `prompt_tokens`,
        `generation_tokens` and `seconds_active`; days without any use have none. Raises HistoryError.
        """
        first = (int(self._now() // (24 * _HOUR)) - max(0, min(days, self._keep_days)) + 1) * 24
        rows = self._read(
            "SELECT hour / 24 AS day, model, sum(requests) AS requests, sum(prompt_tokens) AS prompt_tokens,"
            " sum(generation_tokens) AS generation_tokens, sum(seconds_active) AS seconds_active FROM usage"
            " WHERE hour >= :first GROUP BY day, model ORDER BY day DESC, model",
            {"first": first},
        )
        return [{**row, "day": _day(row["day"])} for row in rows]

    def usage_by_hour(self, hours: int = 24) -> list[dict[str, Any]]:
        """The same of each of the last `hours` hours, this one included, the oldest first.

        `hour` is when it began, in seconds since 1970. Raises HistoryError.
        """
        first = int(self._now() // _HOUR) - max(0, min(hours, self._keep_days * 24)) + 1
        rows = self._read("SELECT * FROM usage WHERE hour >= :first ORDER BY hour, model", {"first": first})
        return [{**row, "hour": row["hour"] * _HOUR} for row in rows]

    def _first_hour(self) -> int:
        return (int(self._now() // (24 * _HOUR)) - self._keep_days + 1) * 24

    def _read(self, query: str, values: Mapping[str, int]) -> list[dict[str, Any]]:
        with self._lock:
            try:
                cursor = self._connect().execute(query, values)
                names = [column[0] for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor]
            except _ERRORS as error:
                raise HistoryError(self._failed(error)) from None

    def _write(self, *statements: tuple[str, Mapping[str, Any] | Sequence[Any]]) -> int | None:
        """Execute them as one transaction. Returns the number of the row that the first one has added.

        None where that failed: nothing that goes wrong here is worth more than a line in the log.
        """
        with self._lock:
            try:
                with self._connect() as connection:
                    added = [connection.execute(statement, values).lastrowid for statement, values in statements]
            except _ERRORS as error:
                self._note(error)
                return None
            self.problem = ""
            return added[0] or 0

    def _note(self, error: Exception) -> None:
        problem = self._failed(error)
        if problem != self.problem:
            _LOG.warning("%s", problem)
        self.problem = problem

    def _failed(self, error: Exception) -> str:
        self._drop()
        return f"the history in {self.path} can't be used ({error}): check the disk's space and who owns the file"

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        """The open file. One that is damaged, or of another layout, is set aside as `PATH.broken`."""
        if self._connection is None:
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                # A full disk or a lock is no damage.
                if isinstance(error, sqlite3.OperationalError) or self.path == ":memory:":
                    raise
                _LOG.warning("%s (%s) is kept as %s.broken, and a new one is begun", self.path, error, self.path)
                for end in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(self.path + end, f"{self.path}.broken{end}")
                self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        if self.path != ":memory:":
            # With the rights of the owner alone from its first moment; SQLite gives its other files the same.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(self.path, timeout=_PATIENCE_SECONDS, check_same_thread=False)
        try:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _LAYOUT):
                raise sqlite3.DatabaseError(f"its layout is {found}, not {_LAYOUT}")
            state = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if state != "ok":
                raise sqlite3.DatabaseError(state)
            # A commit costs no wait for the disk, and a loss of power at most the last ones.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA cache_size = -512")  # KiB; the manager's memory is small
            if not found:
                connection.executescript(f"{_SCHEMA}PRAGMA user_version = {_LAYOUT};")
        except BaseException:
            connection.close()
            raise
        return connection


def _day(number: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=number)).isoformat()
