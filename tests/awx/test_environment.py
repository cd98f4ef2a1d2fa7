# SPDX-License-Identifier: MIT
"""The execution environment: its build context can be made, its versions are those tested, what it needs can be had."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.awx.conftest import LAYOUT
from tests.serverlib import ROOT

BUILDER = Path(sys.executable).with_name("ansible-builder")
DEFINITION = LAYOUT / "execution-environment.yml"


def run(*command: str | Path, timeout: float = 300) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def load(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    """The Python packages that the definition names, with their versions."""
    dependencies = load(DEFINITION)["dependencies"]
    named = [dependencies[key]["package_pip"] for key in ("ansible_core", "ansible_runner")]
    return dict(name.split("==") for name in named)


def test_the_context_is_made(tmp_path: Path) -> None:
    context = tmp_path / "context"
    run(BUILDER, "create", "-f", DEFINITION, "-c", context, "--output-filename", "Containerfile")
    text = (context / "Containerfile").read_text(encoding="utf-8")
    assert load(context / "_build/requirements.yml") == load(LAYOUT / "collections/requirements.yml")
    for name, version in pins().items():
        assert f"{name}=={version}" in text
    assert "/usr/bin/python3.12" in text


def test_the_pinned_versions_are_those_tested() -> None:
    wanted = {one["name"]: one["version"] for one in load(LAYOUT / "collections/requirements.yml")["collections"]}
    version = load(ROOT / "galaxy.yml")["version"]
    assert wanted["homegpt.vllm"] == version
    for file in (DEFINITION, ROOT / "docs/awx.md"):
        assert re.findall(r"homegpt-ee:(\S*\d)", file.read_text(encoding="utf-8")) == [version]
    assert set(load(ROOT / "galaxy.yml")["dependencies"]) == set(wanted) - {"homegpt.vllm"}
    manifest = ROOT / ".build/ansible_collections/community/docker/MANIFEST.json"
    assert wanted["community.docker"] == json.loads(manifest.read_text())["collection_info"]["version"]
    locked = re.findall(r"^(ansible-core|ansible-runner)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    # The last is that of the newest Python.
    assert pins() == dict(locked)


def test_what_it_needs_can_be_had(tmp_path: Path) -> None:
    """What ansible-builder finds in the collections resolves for the Python of the environment."""
    collections = tmp_path / "collections/ansible_collections"
    (collections / "homegpt").mkdir(parents=True)
    (collections / "homegpt/vllm").symlink_to(ROOT)
    (collections / "community").symlink_to(ROOT / ".build/ansible_collections/community")
    pip, bindep = tmp_path / "pip.txt", tmp_path / "bindep.txt"
    run(BUILDER, "introspect", tmp_path / "collections", "--write-pip", pip, "--write-bindep", bindep)
    # Ours needs nothing of Python's there, and not what developers need.
    assert "homegpt.vllm" not in pip.read_text(encoding="utf-8")
    assert "requests" in pip.read_text(encoding="utf-8")
    assert "openssh-clients [platform:rpm]  # from collection homegpt.vllm" in bindep.read_text(encoding="utf-8")

    python = load(DEFINITION)["dependencies"]["python_interpreter"]["package_system"].removeprefix("python")
    # Not `install --dry-run`: that asks whether a package fits the Python that runs pip.
    options = ["--python-version", python, "--only-binary", ":all:", "--dest", tmp_path / "wheels"]
    packages = [f"{name}=={version}" for name, version in pins().items()]
    run(sys.executable, "-m", "pip", "--quiet", "download", *options, "-r", pip, *packages, timeout=300)
    got = dict(wheel.name.split("-")[:2] for wheel in (tmp_path / "wheels").iterdir())
    for name, version in pins().items():
        assert got[name.replace("-", "_")] == version
    assert {"docker", "paramiko", "requests"} <= set(got)
