# SPDX-License-Identifier: MIT
"""What `.ci/run` leaves out: never what a commit is about, another part with each commit, and always told."""

from __future__ import annotations

import subprocess
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import part
from tests.conftest import shares
from tests.faults.cells import ENDS, cells, concerned

ENGINE = "plugins/module_utils/switching"


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@example.net", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=300,
    )


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two commits on main, of which the second one changes `second`, and a clone of them as ROOT."""
    origin, clone = tmp_path / "origin", tmp_path / "a clone"
    origin.mkdir()
    git(origin, "init", "--initial-branch", "main")
    for name in ("first", "second"):
        (origin / name).write_text(name, encoding="utf-8")
        git(origin, "add", "--all")
        git(origin, "commit", "--message", name)
    git(origin, "clone", f"file://{origin}", str(clone))
    monkeypatch.setattr(part, "ROOT", clone)
    part.changed.cache_clear()
    part.seed.cache_clear()
    yield clone
    part.changed.cache_clear()
    part.seed.cache_clear()


def test_what_the_last_commit_changed(repository: Path) -> None:
    (repository / "new").write_text("not committed", encoding="utf-8")
    assert part.changed() == {"second", "new"}


def test_what_a_branch_changed(repository: Path) -> None:
    git(repository, "checkout", "-b", "branch")
    for name in ("third", "fourth"):
        (repository / name).write_text(name, encoding="utf-8")
        git(repository, "add", "--all")
        git(repository, "commit", "--message", name)
    assert part.changed() == {"third", "fourth"}


def test_without_history_nobody_knows(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "clone", "--depth", "1", f"file://{tmp_path}/origin", "shallow")
    (tmp_path / "none").mkdir()
    for folder in ("shallow", "none"):
        part.changed.cache_clear()
        monkeypatch.setattr(part, "ROOT", tmp_path / folder)
        assert part.changed() is None


def test_the_seed_is_the_commits_or_the_one_that_is_given(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PART_SEED", raising=False)
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, check=True, capture_output=True, text=True
    ).stdout
    assert part.seed() == int(told[:8], 16)
    part.seed.cache_clear()
    monkeypatch.setenv("PART_SEED", "12")
    assert part.seed() == 12


def test_a_draw_has_of_each_step_and_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    for number in ("1", "2", "1"):
        monkeypatch.setenv("PART_SEED", number)
        part.seed.cache_clear()
        draws.append([cell.name for cell in part.draw(cells(), 0.25, lambda cell: cell.step)])
    part.seed.cache_clear()
    assert draws[0] == draws[2] != draws[1]
    assert {name.split("/")[0] for name in draws[0]} == {cell.step for cell in cells()}
    assert len(draws[0]) < len(cells()) / 3


def test_two_pythons_run_every_test_but_some_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PART_SEED", "5")
    part.seed.cache_clear()
    items: list[Any] = [
        types.SimpleNamespace(path=Path("tests") / folder / f"test_{number % 10}.py")
        for folder in ("unit", "docs")
        for number in range(200)
    ]
    first, second = shares(items)
    part.seed.cache_clear()
    unit, docs = ({id(item) for item in items if item.path.parent.name == folder} for folder in ("unit", "docs"))
    assert unit <= first
    assert first & second <= unit
    assert len(second) == 100
    # A play that nobody runs has others of its file that are run.
    assert 120 <= len(docs & (first | second)) <= 160
    assert {item.path for item in items} == {item.path for item in items if id(item) in first}


def test_what_takes_long_to_make_is_made_under_one_of_two_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for seed in range(8):
        monkeypatch.setenv("PART_SEED", str(seed))
        part.seed.cache_clear()
        items: list[Any] = [
            types.SimpleNamespace(
                path=Path("tests") / folder / f"test_{folder}.py", fixturenames=["tmp_path", fixture], number=number
            )
            for folder, fixture in (("docs", "loaded"), ("awx", "buttons"), ("docs", "world"))
            for number in range(40)
        ]
        first, second = shares(items)
        run = [
            {items.index(item) // 40 for item in items if id(item) in share and "world" not in item.fixturenames}
            for share in (first, second)
        ]
        assert sorted(map(len, run)) == [1, 1]
        seen.append(run)
        each = [len({id(item) for item in items[start : start + 40]} & (first | second)) for start in (0, 40, 80)]
        assert each == [30, 30, 10 + round(30 * 0.5)]
    part.seed.cache_clear()
    assert [{0}, {1}] in seen
    assert [{1}, {0}] in seen


def test_the_cells_that_a_file_concerns() -> None:
    def about(file: str) -> set[str]:
        return {cell.name for cell in cells() if concerned(cell, [file])}

    everything = {cell.name for cell in cells()}
    for file in (
        f"{ENGINE}/recovery.py",
        f"{ENGINE}/not_there_yet.py",
        "tests/standin/engine.py",
        "tests/faults/matrix.py",
    ):
        assert about(file) == everything, file
    for file in (
        f"{ENGINE}/tables.py",
        f"{ENGINE}/capacity.py",
        f"{ENGINE}/README.md",
        "README.md",
        "roles/awx/tasks/main.yml",
    ):
        assert about(file) == set(), file
    assert about(f"{ENGINE}/drain.py") >= {cell.name for cell in cells() if cell.step.startswith("drain")}
    assert about(f"{ENGINE}/lifecycle.py") >= {cell.name for cell in cells() if cell.fault in ENDS}
    for file in ("drain", "canary", "memory", "lifecycle"):
        assert set() < about(f"{ENGINE}/{file}.py") < everything, file


def test_what_is_left_out_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEFT_OUT", str(tmp_path / "told"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("QUICK", raising=False)
    assert part.fewer("soak", "make real", "switches", 50, 14) == 50
    assert not (tmp_path / "told").exists()
    monkeypatch.setenv("QUICK", "1")
    assert part.fewer("soak", "make real", "switches", 50, 14) == 14
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    part.leave_out("e2e", "make e2e", ["one"])
    assert (tmp_path / "told").read_text(encoding="utf-8") == "soak\tmake real\t36\tswitches\n"
