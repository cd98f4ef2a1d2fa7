# SPDX-License-Identifier: MIT
"""The history of switches and of the use of models: what it keeps, what it forgets, what it survives."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_manager.history import FAILED, History, HistoryError, Switch

HOUR, DAY = 3600, 86400
# 2026-11-29, 12:30 UTC.
NOON = 20786 * DAY + 12.5 * HOUR


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


@pytest.fixture
def history(path: Path, clock: Clock) -> Iterator[History]:
    history = History(str(path), keep_switches=5, keep_days=3, now=clock)
    yield history
    history.close()


def switch(number: int = 1) -> Switch:
    return Switch(
        "b", "active", 100.0 + number, 101.0 + number, 102.5 + number, previous=["a"], active=["b"], seconds=1.5
    )


# ---- switches ------------------------------------------------------------------------------------


def test_a_switch_is_told_as_it_was_recorded(history: History) -> None:
    steps = [{"action": "wake", "model": "b", "level": 1, "seconds": 1.25, "note": "schön"}]
    failed = Switch(
        "b", "active", 1.5, 2.5, 4.0, FAILED, "api", "b does not answer", ["a"], ["a"], "roll_back", 1.5, steps
    )
    assert history.record_switch(failed) == 1
    assert history.switches() == [
        {
            "id": 1,
            "model": "b",
            "desired": "active",
            "asked_at": 1.5,
            "begun_at": 2.5,
            "ended_at": 4.0,
            "result": "failed",
            "requested_by": "api",
            "error": "b does not answer",
            "previous": ["a"],
            "active": ["a"],
            "rung": "roll_back",
            "seconds": 1.5,
            "steps": steps,
        }
    ]


def test_they_are_read_page_by_page_from_the_newest_on(history: History) -> None:
    for number in range(4):
        history.record_switch(switch(number))
    first = history.switches(limit=3)
    assert [one["id"] for one in first] == [4, 3, 2]
    assert [one["id"] for one in history.switches(limit=3, before=2)] == [1]
    assert history.switches(before=1) == []
    # Whatever a caller asks for.
    assert history.switches(limit=0) == history.switches(limit=-1) == history.switches(before=-(10**30)) == []
    assert len(history.switches(limit=10**30, before=10**30)) == 4


def test_the_oldest_are_forgotten_and_no_number_is_given_twice(history: History, path: Path) -> None:
    for number in range(12):
        assert history.record_switch(switch(number)) == number + 1
    assert [one["id"] for one in history.switches()] == [12, 11, 10, 9, 8]
    history.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM switches")
    connection.close()
    assert history.record_switch(switch()) == 13


def test_the_file_stops_growing(path: Path, clock: Clock) -> None:
    history = History(str(path), keep_switches=50, now=clock)

    def size_after(count: int) -> int:
        for number in range(count):
            history.record_switch(Switch("b", "active", 1, 2, 3, steps=[{"note": "x" * 500, "number": number}]))
            history.add_usage("b", requests=1)
        history.close()  # and with it the log of what is not yet in it
        assert [one.name for one in path.parent.iterdir()] == [path.name]
        return path.stat().st_size

    assert size_after(300) <= size_after(100) * 1.1


def test_it_survives_a_restart_and_is_for_its_owner_alone(path: Path, history: History) -> None:
    history.record_switch(switch())
    history.add_usage("b", requests=3)
    # Another one, as after a kill: nothing was closed.
    again = History(str(path), now=history._now)
    assert [one["id"] for one in again.switches()] == [1]
    assert again.usage()[0]["requests"] == 3
    assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {0o600}
    again.close()


# ---- use -----------------------------------------------------------------------------------------


def test_use_adds_up_by_day_and_by_hour(history: History, clock: Clock) -> None:
    history.add_usage("b", requests=2, prompt_tokens=10, generation_tokens=20, seconds_active=1.5)
    history.add_usage("b", requests=1, prompt_tokens=5, generation_tokens=1, seconds_active=2.0)
    history.add_usage("a", seconds_active=4.0, at=NOON - 3 * HOUR)
    history.add_usage("b", requests=7, at=NOON - DAY)
    assert history.usage() == [
        row("2026-11-29", "a", 0, 0, 0, 4.0),
        row("2026-11-29", "b", 3, 15, 21, 3.5),
        row("2026-11-28", "b", 7, 0, 0, 0.0),
    ]
    assert [one["day"] for one in history.usage(days=1)] == ["2026-11-29", "2026-11-29"]
    hours = [(one["hour"], one["model"], one["requests"]) for one in history.usage_by_hour(24)]
    assert hours == [(20786 * DAY + 9 * HOUR, "a", 0), (20786 * DAY + 12 * HOUR, "b", 3)]
    assert [one["model"] for one in history.usage_by_hour(25)] == ["b", "a", "b"]
    assert history.usage(days=-5) == history.usage_by_hour(hours=0) == []
    assert len(history.usage(days=10**30)) == 3


def row(day: str, model: str, requests: int, prompt: int, generation: int, active: float) -> dict[str, object]:
    names = ("day", "model", "requests", "prompt_tokens", "generation_tokens", "seconds_active")
    return dict(zip(names, (day, model, requests, prompt, generation, active), strict=True))


def test_what_was_not_used_takes_no_row(history: History) -> None:
    assert history.add_usage("b")
    assert history.usage() == []


def test_days_are_forgotten_when_they_are_too_many(history: History, clock: Clock) -> None:
    for _day in range(5):
        history.add_usage("b", requests=1)
        clock.now += DAY
    clock.now -= DAY
    history.add_usage("b", requests=1)
    history._keep_days = 100
    assert [one["day"] for one in history.usage(days=100)] == ["2026-12-03", "2026-12-02", "2026-12-01"]


# ---- what it survives ----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"no database at all" * 99, None])
def test_a_file_that_can_not_be_read_is_set_aside(
    path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 99")  # a later version of this program
        connection.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    history = History(str(path))
    assert history.record_switch(switch()) == 1
    assert history.problem == ""
    assert path.with_name("history.sqlite.broken").read_bytes() == before
    assert [one.levelno for one in caplog.records] == [logging.WARNING]
    history.close()


@pytest.mark.parametrize("open_then", [False, True])
def test_damage_within_the_file_is_set_aside_too(path: Path, open_then: bool) -> None:
    history = History(str(path))
    for number in range(100):
        history.record_switch(switch(number))
    if not open_then:
        history.close()
    # What it knows of the file no longer holds, so that it reads the file again.
    other = sqlite3.connect(path)
    with other:
        other.execute("UPDATE switches SET error = 'changed'")
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    if open_then:
        assert history.record_switch(switch()) is None
        assert "malformed" in history.problem
    assert history.record_switch(switch()) == 1
    assert history.problem == ""
    assert path.with_name("history.sqlite.broken").exists()
    history.close()


def test_a_folder_that_is_not_there_is_said_and_harms_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = History(str(tmp_path / "none" / "history.sqlite"))
    for _attempt in range(3):
        assert history.record_switch(switch()) is None
        assert not history.add_usage("b", requests=1)
    assert f"the history in {tmp_path}/none/history.sqlite can't be used" in history.problem
    assert len(caplog.records) == 1  # not with every switch
    with pytest.raises(HistoryError, match="No such file or directory"):
        history.switches()
    with pytest.raises(HistoryError):
        history.usage()
    (tmp_path / "none").mkdir()
    assert history.record_switch(switch()) == 1
    assert history.problem == ""
    history.close()


def test_a_lock_of_somebody_else_is_no_damage(history: History, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history.record_switch(switch())
    history.close()
    monkeypatch.setattr("model_manager.history._PATIENCE_SECONDS", 0.1)
    other = sqlite3.connect(path, isolation_level=None)
    for mode in ("WAL", "DELETE"):  # it can be opened and not be written, or not even be read
        other.execute(f"PRAGMA journal_mode = {mode}")
        other.execute("BEGIN EXCLUSIVE")
        assert history.record_switch(switch()) is None
        assert "locked" in history.problem
        history.close()
        other.execute("ROLLBACK")
    other.close()
    assert history.record_switch(switch()) == 2
    assert not path.with_name("history.sqlite.broken").exists()


def test_values_that_have_no_room_are_said_too(history: History) -> None:
    assert not history.add_usage("b", requests=2**70)
    assert not history.add_usage("b", seconds_active=float("nan"))
    assert history.record_switch(Switch("b", "active", 1, 2, 3, error="\ud800")) is None
    assert history.problem
    assert history.record_switch(switch()) == 1
    assert history.usage() == []


def test_threads_may_share_it(history: History) -> None:
    history._keep_switches = 1000

    def work() -> None:
        for number in range(25):
            history.record_switch(switch(number))
            history.add_usage("b", requests=1)
            history.switches(limit=3)

    threads = [threading.Thread(target=work) for _thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert history.problem == ""
    assert [one["id"] for one in history.switches(limit=1000)] == list(range(100, 0, -1))
    assert history.usage()[0]["requests"] == 100
