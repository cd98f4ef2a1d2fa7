# SPDX-License-Identifier: MIT
"""The use of models: what servers have counted is added up once, whoever is restarted in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.metrics import Counters
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import ACTIVE, SLEEPING, Observation
from model_manager.app import create_app
from model_manager.config import Config
from model_manager.events import Bus, Event
from model_manager.history import History
from model_manager.manager import Manager, Observed
from model_manager.usage import KEEP_SECONDS, Usage, Use, since

BEGAN = 1_800_000_000.0  # the service, in seconds since 1970
EARLIER, LATER = BEGAN - 100, BEGAN + 100


class Service:
    """The use as one run of the service counts it, at a time that the test sets."""

    def __init__(self, stack_dir: Path, history: History | None = None, at: float = BEGAN) -> None:
        self.at = at
        self.history = history or History(":memory:", now=lambda: self.at)
        self.usage = Usage(str(stack_dir), self.history, now=lambda: self.at)

    def state(self, model: str, state: str) -> None:
        self.usage.feed(Event(1, "state", self.at, {"model": model, "state": state, "level": None, "problem": ""}))

    def look(self, active: Mapping[str, Counters], asleep: tuple[str, ...] = ()) -> None:
        seen = {**dict.fromkeys(active, Observation(ACTIVE)), **dict.fromkeys(asleep, Observation(SLEEPING, level=1))}
        self.usage.observed(Observed(self.at, seen, active))

    def days(self) -> list[dict[str, Any]]:
        self.usage.keep()
        return self.history.usage()


@pytest.mark.parametrize(
    ("before", "now", "use"),
    [
        (Counters(5, 50, 500, EARLIER), Counters(7, 70, 700, EARLIER), Use(2, 20, 200)),
        # It was restarted: all that it has counted is new, also where that is more than before.
        (Counters(5, 50, 500, EARLIER), Counters(1, 10, 100, LATER), Use(1, 10, 100)),
        (Counters(5, 50, 500, EARLIER), Counters(6, 60, 600, LATER), Use(6, 60, 600)),
        (Counters(5, 50, 500), Counters(1, 60, 600), Use(1, 60, 600)),
        (Counters(5, 50, 500, EARLIER), Counters(5, 50, 500, EARLIER + 0.4), Use()),
        # Who knows when it did that; or it did it all since the service watches.
        (None, Counters(7, 70, 700, EARLIER), Use()),
        (None, Counters(7, 70, 700), Use()),
        (None, Counters(7, 70, 700, LATER), Use(7, 70, 700)),
        # What it does not tell is not nothing, and not all.
        (Counters(5, None, 500, EARLIER), Counters(6, 70, None, EARLIER), Use(1, 0, 0)),
        (Counters(5, 50, 500, EARLIER), Counters(None, 51, 500, None), Use(0, 1, 0)),
    ],
)
def test_what_is_new_between_two_looks(before: Counters | None, now: Counters, use: Use) -> None:
    assert since(before, now, BEGAN) == use


def test_what_is_not_told_for_a_while_is_not_lost(tmp_path: Path) -> None:
    service = Service(tmp_path)
    for counters in (Counters(1, 1, 1, LATER), Counters(), Counters(None, 2, 2, LATER), Counters(9, 3, 3, LATER)):
        service.look({"a": counters})
    assert service.usage.totals() == {"a": Use(9, 3, 3)}


def test_the_next_service_counts_what_came_meanwhile_and_nothing_twice(tmp_path: Path) -> None:
    first = Service(tmp_path)
    first.look({"a": Counters(10, 100, 1000, EARLIER)})
    first.look({"a": Counters(12, 120, 1200, EARLIER)})
    first.usage.stop()
    second = Service(tmp_path, first.history, at=BEGAN + 3600)
    second.look({"a": Counters(15, 150, 1500, EARLIER)})
    assert second.usage.totals() == {"a": Use(3, 30, 300)}
    (day,) = second.days()
    assert (day["requests"], day["prompt_tokens"], day["generation_tokens"]) == (5, 50, 500)
    assert (tmp_path / "run" / "usage.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("saved", ["{", '{"models": {"a": [1, 2]}}', '{"models": {"a": [-1, "x", true, {}]}}', "[]"])
def test_a_damaged_record_is_none(tmp_path: Path, saved: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "usage.json").write_text(saved)
    service = Service(tmp_path)
    service.look({"a": Counters(7, 70, 700, EARLIER)})
    service.look({"a": Counters(8, 80, 800, EARLIER)})
    assert service.usage.totals() == {"a": Use(1, 10, 100)}
    service.usage.keep()
    assert json.loads((tmp_path / "run" / "usage.json").read_text()) == {"models": {"a": [8, 80, 800, EARLIER]}}


def test_a_service_that_has_seen_nothing_leaves_nothing(tmp_path: Path) -> None:
    Service(tmp_path).usage.stop()
    assert list(tmp_path.iterdir()) == []


def test_seconds_active_are_those_between_changes_of_state(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.state("a", "ready")
    service.at += 2.5
    service.look({"a": Counters()}, asleep=("b",))
    service.at += 1
    service.state("a", "sleepPending")
    service.at += 7
    service.state("b", "ready")
    service.at += 3
    service.usage.stop()
    assert service.usage.totals() == {"a": Use(seconds_active=3.5), "b": Use(seconds_active=3)}
    assert {row["model"]: row["seconds_active"] for row in service.history.usage()} == {"a": 3.5, "b": 3.0}


def test_who_is_gone_or_asleep_is_active_no_longer(tmp_path: Path) -> None:
    service = Service(tmp_path)
    for name in ("asleep", "gone"):
        service.state(name, "ready")
    service.at += 1
    service.look({}, asleep=("asleep",))
    service.at += 50
    service.look({}, asleep=("asleep",))
    assert service.usage.totals() == dict.fromkeys(("asleep", "gone"), Use(seconds_active=1))


@pytest.mark.parametrize(("passed", "counted"), [(30, 30), (1e9, 60), (-1e9, 0)])
def test_a_clock_that_is_set_is_no_use(tmp_path: Path, passed: float, counted: float) -> None:
    service = Service(tmp_path)
    service.state("a", "ready")
    service.at += passed
    service.look({"a": Counters()})
    assert service.usage.totals() == {"a": Use(seconds_active=counted)}


def test_the_history_takes_it_from_time_to_time(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.look({"a": Counters(1, 1, 1, LATER)})
    assert service.history.usage() == []
    service.at += KEEP_SECONDS
    service.look({"a": Counters(2, 2, 2, LATER)})
    assert [row["requests"] for row in service.history.usage()] == [2]


def test_what_the_history_could_not_take_it_takes_later(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    path.mkdir()  # so that there can be no such file
    service = Service(tmp_path, History(str(path), now=lambda: BEGAN))
    service.look({"a": Counters(3, 30, 300, LATER)})
    service.usage.keep()
    assert service.history.problem
    assert not (tmp_path / "run" / "usage.json").exists()
    path.rmdir()
    service.look({"a": Counters(4, 40, 400, LATER)})
    (day,) = service.days()
    assert (day["requests"], day["prompt_tokens"], day["generation_tokens"]) == (4, 40, 400)
    assert (tmp_path / "run" / "usage.json").exists()


def ask(service: Service, path: str, stack_dir: Path) -> httpx.Response:
    """The answer of the application to a GET from this host."""
    inventory = parse([{"id": "a", "model": "org/a", "host_port": 8001}], {})
    config = Config(stack_dir=str(stack_dir))
    app = create_app(Manager(config, inventory, history=service.history, bus=Bus()), config, [service.usage.router()])

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9000") as client:
            return await client.get(path)

    return asyncio.run(get())


def test_the_api_tells_days_and_hours(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.look({"a": Counters(3, 30, 300, LATER)})
    service.usage.keep()
    service.at += 86400
    service.look({"a": Counters(4, 40, 400, LATER)})
    service.usage.keep()
    done = {"model": "a", "seconds_active": 0.0}
    today = {**done, "day": "2027-01-16", "requests": 1, "prompt_tokens": 10, "generation_tokens": 100}
    yesterday = {**done, "day": "2027-01-15", "requests": 3, "prompt_tokens": 30, "generation_tokens": 300}
    this_hour = {key: value for key, value in today.items() if key != "day"}
    assert ask(service, "/usage", tmp_path).json() == {
        "days": [today, yesterday],
        "hours": [{**this_hour, "hour": int(service.at // 3600 * 3600)}],
    }
    assert ask(service, "/usage?days=1&hours=0", tmp_path).json() == {"days": [today], "hours": []}


@pytest.mark.parametrize("query", ["days=-1", "days=401", f"hours={10**30}", "hours=x"])
def test_a_wrong_span_is_refused(tmp_path: Path, query: str) -> None:
    answer = ask(Service(tmp_path), f"/usage?{query}", tmp_path)
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["error"]


def test_a_history_that_can_not_be_read_is_said(tmp_path: Path) -> None:
    answer = ask(Service(tmp_path, History(str(tmp_path), now=lambda: BEGAN)), "/usage", tmp_path)
    assert answer.status_code == 503
    assert "check the disk's space" in answer.json()["error"]
