# SPDX-License-Identifier: MIT
"""The README says what the repository has."""

from __future__ import annotations

import re

import yaml

from tests.consistency import blocks, support_doc

README = support_doc.PAGE.read_text(encoding="utf-8")


def test_the_support_matrix_is_up_to_date() -> None:
    assert blocks.written(README, support_doc.rendered()) == README, f"run {blocks.COMMAND} and look at the diff"


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
