# SPDX-License-Identifier: MIT
"""What the status shows of the model manager: of one that runs, hangs, was killed, or is of another version."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import manager_view, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.tables import status_lines

from tests.unit.plugins.module_utils.switching.conftest import Host

NOW = 1_800_000_000.0
MODEL: dict[str, Any] = {
    "state": "asleep",
    "desired": "sleeping",
    "down": False,
    "queue_depth": 0,
    "eta_seconds": 8.0,
    "breaker": None,
    "note": "",
}
SHOWN: dict[str, Any] = {
    "address": "http://127.0.0.1:9000",
    "mode": "manual",
    "pinned": "a",
    "policy": "fifo",
    "reconciles": True,
    "switching": {"from": "b", "to": "a"},
    "queue": [
        {"model": "a", "desired": "active", "by": "10.0.0.7", "waiters": 2, "position": 0, "eta_seconds": 3.0},
        {"model": "b", "desired": "active", "by": "", "waiters": 1, "position": 1, "eta_seconds": None},
    ],
    "models": {"a": {**MODEL, "queue_depth": 2}, "b": MODEL},
}


@pytest.fixture
def stack(tmp_path: Path) -> str:
    return str(tmp_path)


def read(stack: str, now: float = NOW) -> dict[str, Any]:
    found = manager_view.read(stack, now)
    assert found is not None
    return found


def test_what_a_running_one_shows_is_read_as_it_is(stack: str) -> None:
    assert manager_view.read(stack, NOW) is None
    manager_view.write(stack, SHOWN, NOW)
    assert read(stack, NOW + 2.34) == {"running": True, "problem": "", "age_seconds": 2.3, **SHOWN}
    assert read(stack, NOW - 60)["age_seconds"] == 0.0  # the clock was set back
    manager_view.remove(stack)
    manager_view.remove(stack)
    assert manager_view.read(stack, NOW) is None


def test_one_that_hangs_is_told(stack: str) -> None:
    manager_view.write(stack, SHOWN, NOW)
    assert read(stack, NOW + 60)["problem"] == ""
    assert read(stack, NOW + 100)["problem"] == "it has shown nothing for 100 s: it hangs, or its disk is full"
    assert read(stack, NOW + 100)["running"]


@pytest.mark.parametrize("changed", [{"pid": 0}, {"pid": None}, {"started": "1"}, {"boot": "another"}])
def test_of_one_that_was_killed_only_what_holds_after_its_restart_is_left(
    stack: str, changed: dict[str, object]
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    manager_view.write(stack, SHOWN, NOW)
    content = state_files.read(stack, state_files.MANAGER_VIEW)
    given = {name: ended.pid if value is None else value for name, value in changed.items()}
    state_files.write(stack, state_files.MANAGER_VIEW, {**content, **given})
    found = read(stack)
    assert not found["running"]
    assert "process has ended" in found["problem"]
    assert (found["mode"], found["pinned"]) == ("manual", "a")
    assert (found["queue"], found["models"], found["switching"]) == ([], {}, None)


def paths(content: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there are values within data."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path for key, value in items for path in ((*before, key), *paths(value, (*before, key)))]


BROKEN = {
    **SHOWN,
    "models": {"a": {**MODEL, "breaker": {"state": "open", "failures": 3, "reason": "x", "retry_at": 1}}},
}


@pytest.mark.parametrize("value", ["absent", [], {}, "x", 7, None], ids=str)
def test_a_status_is_made_of_whatever_is_there(stack: str, value: object) -> None:
    """It may be of another version of the manager, or of a bad disk."""
    read_at_all = 0
    for path in paths(BROKEN):
        content = copy.deepcopy(BROKEN)
        within: Any = content
        for key in path[:-1]:
            within = within[key]
        if value == "absent":
            del within[path[-1]]
        else:
            within[path[-1]] = value
        manager_view.write(stack, content, NOW)
        found = manager_view.read(stack, NOW)
        report = {"models": {}, "last_switch": None, "manager": found}
        assert status_lines({"host": report})[0].startswith("host  model"), path
        if found:
            read_at_all += 1
            assert set(found) == {"running", "problem", "age_seconds", *SHOWN}, path
    assert 10 < read_at_all < len(paths(BROKEN))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"shown": 1}', json.dumps({"shown": SHOWN})])
def test_a_file_that_makes_no_sense_is_none(stack: str, text: str) -> None:
    manager_view.write(stack, SHOWN, NOW)
    Path(state_files.path(stack, state_files.MANAGER_VIEW)).write_text(text, encoding="utf-8")
    assert manager_view.read(stack, NOW) is None


def test_the_table_shows_managers_and_models_of_note(stack: str) -> None:
    breaker = {"state": "open", "failures": 3, "reason": "its server has ended", "retry_at": NOW + 60}
    models = {
        "c": {**MODEL, "breaker": breaker, "down": True, "eta_seconds": None},
        "d": {**MODEL, "note": "b is loading"},
    }
    manager_view.write(stack, {**SHOWN, "models": {**SHOWN["models"], **models}}, NOW)
    first = {"models": {}, "last_switch": None, "manager": read(stack)}
    second: dict[str, Any] = {"models": {}, "last_switch": None, "manager": None}
    auto = {**read(stack), "mode": "auto", "pinned": None, "switching": None, "queue": [], "models": {}}
    third = {
        "models": {},
        "last_switch": None,
        "manager": {**auto, "reconciles": False, "running": False, "problem": "p"},
    }
    tables = "\n".join(status_lines({"gpu1": first, "gpu2": second, "gpu3": third})).split("\n\n")
    rows = [[re.split(r" {2,}", line) for line in table.splitlines()] for table in tables[1:]]
    assert rows == [
        [
            ["host", "manager", "mode", "reconciles", "switching", "waiting", "problem"],
            ["gpu1", "running", "pinned: a", "yes", "b -> a", "1", "-"],
            ["gpu3", "not running", "auto", "no", "-", "-", "p"],
        ],
        [
            ["host", "model", "queue", "eta", "breaker", "note"],
            ["gpu1", "a", "2", "8.0 s", "-", "-"],
            ["gpu1", "c", "0", "-", "open (3) until 08:01:00 UTC", "down: its server has ended"],
            ["gpu1", "d", "0", "8.0 s", "-", "b is loading"],
        ],
    ]


def test_the_report_of_a_host_has_it(host: Host) -> None:
    host.declare("a")
    with host.switcher() as switcher:
        assert switcher.report()["manager"] is None
        manager_view.write(str(host.stack_dir), SHOWN, NOW)
        assert switcher.report()["manager"]["pinned"] == "a"
