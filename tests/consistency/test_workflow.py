# SPDX-License-Identifier: MIT
"""The example workflow for GitHub Actions runs what .ci/run runs, by the same targets, and may do nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.consistency import support_doc

ROOT = Path(__file__).resolve().parents[2]


def workflow() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


# Those that another target makes first.
PREPARING = {"setup", "images"}
# Not for every change.
SCHEDULED = {"bench"}


def test_it_has_the_targets_of_ci() -> None:
    check = workflow()["jobs"]["check"]
    assert check["strategy"]["matrix"]["target"]
    assert set(check["strategy"]["matrix"]["target"]) == support_doc.ci_targets() - PREPARING - SCHEDULED
    assert check["steps"][-1]["run"].endswith(' make --no-print-directory "$TARGET"')
    assert check["steps"][-1]["env"]["TARGET"] == "${{ matrix.target }}"


def test_every_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in (*support_doc.ci_targets(), *SCHEDULED):
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target
    for target in SCHEDULED:
        assert workflow()["jobs"][target]["steps"][-1]["run"].endswith(f" {target}")
        assert workflow()["jobs"][target]["if"] == "github.event_name == 'schedule'"


def test_there_is_a_python_for_every_ansible_core() -> None:
    pythons = [
        support_doc.minor(each) for each in workflow()["jobs"]["check"]["steps"][1]["with"]["python-version"].split()
    ]
    for core, oldest, beyond in support_doc.cores():
        low, high = support_doc.minor(oldest), support_doc.minor(beyond)
        assert any(low <= python < high for python in pythons), core


def test_it_may_only_read_and_uses_pinned_actions() -> None:
    said = workflow()
    assert said["permissions"] == {"contents": "read"}
    assert said["env"]["CI"] == "true"
    for job in said["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert step["name"]
            # No value of an event or of the matrix within a command.
            assert "${{" not in step.get("run", "")
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@(v\d+|[0-9a-f]{40})", step["uses"])
                if step["uses"].startswith("actions/checkout"):
                    assert step["with"]["persist-credentials"] is False
