# SPDX-License-Identifier: MIT
"""docs/vllm-versions.md is what seen.json says, and that is about every version there is."""

from __future__ import annotations

import subprocess

from tests.contract.families import FAMILIES
from tests.contract.survey import QUESTIONS
from tests.serverlib import REAL_VERSIONS, ROOT
from tests.versions import page

WRITE = "run .venv/bin/python -m tests.versions.run --write"


def test_the_page_says_what_was_seen() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.rendered(page.read()), WRITE


def test_all_that_is_asked_has_been_seen() -> None:
    known = page.read()
    assert tuple(known) == REAL_VERSIONS, WRITE
    for version, found in known.items():
        assert list(found["seen"]) == list(QUESTIONS), f"{version}: {WRITE}"


def test_no_version_is_on_the_page_that_fails() -> None:
    for version, found in page.read().items():
        for passed, failed in (found[what] for what in page.PARTS):
            assert passed, version
            assert not failed, version


def test_the_versions_are_those_that_can_be_built_and_those_that_the_contract_knows() -> None:
    script = ROOT / "tools/real_vllm.sh"
    built = subprocess.check_output(["bash", str(script), "--versions"], text=True).split()
    assert tuple(built) == REAL_VERSIONS == tuple(FAMILIES)


def test_neighbours_with_one_answer_stand_together() -> None:
    assert page.spans({"1": "a", "2": "a", "3": "b", "4": "a"}) == [("1 to 2", "a"), ("3", "b"), ("4", "a")]
