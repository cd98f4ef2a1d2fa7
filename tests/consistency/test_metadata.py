# SPDX-License-Identifier: MIT
"""A fact stands in one file; the others that repeat it agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.homegpt.vllm.plugins.filter.internal import FUNCTIONS

ROOT = Path(__file__).parents[2]


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_action_group_holds_every_module_that_takes_the_models() -> None:
    fragment = "  - homegpt.vllm.switching\n"
    files = (ROOT / "plugins/modules").glob("*.py")
    modules = sorted(path.stem for path in files if fragment in path.read_text(encoding="utf-8"))
    assert len(modules) == 4
    assert sorted(load("meta/runtime.yml")["action_groups"]["switching"]) == modules


def test_the_lowest_ansible_core_is_the_one_tested() -> None:
    requires = load("meta/runtime.yml")["requires_ansible"]
    tested = re.findall(r'"(\d+\.\d+\.\d+) \d', (ROOT / "tools/versions.sh").read_text(encoding="utf-8"))
    assert requires == ">=" + min(tested, key=lambda version: tuple(map(int, version.split("."))))


def test_the_newest_ansible_core_is_the_one_locked() -> None:
    tested = re.findall(r'"(\d+\.\d+\.\d+) \d', (ROOT / "tools/versions.sh").read_text(encoding="utf-8"))
    locked = re.findall(r"^ansible-core==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert tested[-1] == locked[-1]


def test_the_changelog_has_every_plugin_of_its_releases() -> None:
    # A filter that was made internal, or has another name now, goes on answering under the one it was released with,
    # or the changelog says that it is gone.
    fragments = (load(str(path)) for path in (ROOT / "changelogs/fragments").glob("*.yml"))
    gone = re.findall(r"``(\w+)``", " ".join(text for each in fragments for text in each.get("removed_features", [])))
    answers = {*FUNCTIONS, *load("meta/runtime.yml")["plugin_routing"]["filter"], *gone}
    for version, release in load("changelogs/changelog.yaml")["releases"].items():
        for kind, listed in (("modules", release["modules"]), ("filter", release["plugins"]["filter"])):
            files = [
                path for path in (ROOT / "plugins" / kind).glob("*.py") if path.stem not in ("__init__", "internal")
            ]
            since = {path.stem for path in files if f"version_added: {version}\n" in path.read_text(encoding="utf-8")}
            released = {each["name"] for each in listed}
            assert since
            assert since <= released
            assert released - since <= (answers if kind == "filter" else set())


def test_no_shipped_model_asks_for_what_vllm_refuses() -> None:
    models = load("inventory/homegpt/group_vars/vllm_hosts.yml")["vllm_models"]
    assert len(models) == 4
    for model in models:
        # vLLM 0.32.0, entrypoints/launchers/cli_args.py: "--enable-auto-tool-choice requires --tool-call-parser".
        assert ("enable_auto_tool_choice" in model["args"]) == ("tool_call_parser" in model["args"]), model["id"]


def test_the_requirements_are_those_of_the_collection() -> None:
    wanted = {entry["name"]: entry["version"] for entry in load("requirements.yml")["collections"]}
    # What one playbook alone needs is no dependency of the collection.
    del wanted["awx.awx"]
    assert wanted == load("galaxy.yml")["dependencies"]
