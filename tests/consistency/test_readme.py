# SPDX-License-Identifier: MIT
"""The README says what the repository has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bench import medians
from tests.consistency import blocks, speed_doc, support_doc


@dataclass
class Figure:
    """What the bench has measured."""

    name: str
    limit: float
    unit: str
    samples: list[float]


README = support_doc.PAGE.read_text(encoding="utf-8")


def test_the_tables_are_up_to_date() -> None:
    rendered = {**support_doc.rendered(), **speed_doc.rendered()}
    assert blocks.written(README, rendered) == README, f"run {blocks.COMMAND} and look at the diff"


def test_the_medians_are_of_figures_that_the_bench_has() -> None:
    known = medians.read()
    for name, figure in known["figures"].items():
        assert speed_doc.limit(name)[0] == figure["limit"], f"{name}: run bench/run.py --write anew"
    shown = {name for _what, names in speed_doc.ROWS for name in names}
    # Two parts of a figure are not shown by themselves.
    assert {name for name in known["figures"] if name not in shown} <= {
        "ready to known, a wake of 0.1 to 3 s",
        "ready to known, a load of 0.5 to 5 s",
    }


def test_what_was_not_measured_is_a_dash() -> None:
    figure = {"median": 1.234, "limit": 1.7, "unit": "", "samples": 9, "date": "2026-01-02"}
    machine = {"cores": 2, "memory_gb": 25, "processor": "a processor"}
    table = speed_doc.table({"machine": machine, "figures": {"switch.yml / the same by uri tasks": figure}})
    assert (
        "| `switch.yml`, against a playbook that makes the same calls with `ansible.builtin.uri` | 0.35 | 1.23 |"
        in table
    )
    assert "| the same, against the `uri` playbook | 0.25 | -, -, - |" in table
    assert table.endswith(
        "Medians of 2026-01-02 on 2 cores of a processor, 25 GB of RAM; a dash is what was not measured there.\n"
    )


def test_medians_are_kept_with_those_of_the_same_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medians, "FILE", tmp_path / "medians.json")
    one, two = Figure("one", 1.5, "", [1.0, 1.2, 9.0]), Figure("two", 25, " ms", [3.0])
    medians.write([one])
    medians.write([two])
    known = medians.read()
    assert {name: (kept["median"], kept["unit"]) for name, kept in known["figures"].items()} == {
        "one": (1.2, ""), "two": (3.0, "ms"),
    }  # fmt: skip
    assert known["machine"] == medians.machine()
    monkeypatch.setattr(medians, "machine", lambda: {"cores": 64, "memory_gb": 1, "processor": "another"})
    medians.write([two])
    assert list(medians.read()["figures"]) == ["two"]


def test_the_matrix_spans_what_is_required_and_what_is_tested() -> None:
    lowest = yaml.safe_load(support_doc.text("meta/runtime.yml"))["requires_ansible"].removeprefix(">=")
    assert support_doc.minor(support_doc.cores()[0][0]) == support_doc.minor(lowest)
    for core, _oldest, _beyond in support_doc.cores():
        assert core in support_doc.matrix()


def test_ci_runs_what_the_matrix_calls_tested() -> None:
    assert {"versions", "molecule", "real", "sanity"} <= support_doc.ci_targets()


def test_every_playbook_is_in_its_table() -> None:
    named = set(re.findall(r"^\| `homegpt\.vllm\.(\w+)", README, re.MULTILINE))
    there = {path.stem for path in (support_doc.ROOT / "playbooks").glob("*.yml")}
    assert named == there


def test_the_start_page_lists_what_the_readme_lists() -> None:
    links = set(re.findall(r"^\| \[[^]]+\]\(docs/([\w-]+\.md)\)", README, re.MULTILINE))
    index = (support_doc.ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[[^]]+\]\(([\w-]+\.md)\)", index, re.MULTILINE)) == links
    there = {path.name for path in (support_doc.ROOT / "docs").glob("*.md")}
    assert links | {"index.md"} == there
