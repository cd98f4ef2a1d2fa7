# SPDX-License-Identifier: MIT
"""docs/awx.md: its commands lead from an inventory to buttons in (a stand-in of) AWX, its table is that of the role."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.awx.api import Awx
from tests.awx.conftest import TEMPLATES
from tests.docs import commands, pages
from tests.docs.world import World, build
from tests.serverlib import ROOT

PAGE = "docs/awx.md"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A home folder with the collection, the inventory that comes with it, and awx.awx as if it had been fetched."""
    package = build(tmp_path)
    world = World(tmp_path / "world", package)
    collections = world.home / ".ansible/collections/ansible_collections"
    (collections / "awx").symlink_to(ROOT / ".build/ansible_collections/awx")
    for command in (
        f"ansible-galaxy collection install --offline {package.name}",
        "cp -r ~/.ansible/collections/ansible_collections/homegpt/vllm/inventory/homegpt inventory",
    ):
        status, output = world.run(command, world.here)
        assert status == 0, output
    yield world
    world.end()


def test_the_page_leads_to_the_buttons(world: World) -> None:
    project = world.here / "fleet"
    with Awx(project) as awx:
        awx.add("credentials", name="Ansible Galaxy", kind="galaxy_api_token")
        world.env |= {"CONTROLLER_OAUTH_TOKEN": awx.token, "GIT_CONFIG_GLOBAL": "/dev/null"}
        for who in ("AUTHOR", "COMMITTER"):
            world.env |= {f"GIT_{who}_NAME": "you", f"GIT_{who}_EMAIL": "you@example.net"}
        # Only its address differs from what the page says.
        bash = world.run

        def run(command: str, folder: Path, timeout: float = 300) -> tuple[int, str]:
            if command == "export CONTROLLER_HOST=https://awx.example.net":
                world.env["CONTROLLER_HOST"] = awx.url
                return 0, ""
            return bash(command, folder, timeout)

        world.run = run  # type: ignore[method-assign]
        different = commands.Reader(world).read(PAGE)
        assert not different
        templates = awx.named("job_templates")
        assert set(templates) == {f"homeGPT {one['name']}" for one in TEMPLATES}
        assert set(awx.survey("homeGPT switch")["model"]["choices"]) == {
            "qwen3-vl-30b-a3b",
            "qwen3-vl-32b",
            "gpt-oss-20b",
        }
    assert (project / "context/Containerfile").is_file()
    assert (project / ".git").is_dir()


def test_the_buttons_on_the_page_are_those_that_are_made() -> None:
    text = pages.read(PAGE)
    for one in TEMPLATES:
        name = one["playbook"].removesuffix(".yml")
        assert f"| homeGPT {one['name']} | `homegpt.vllm.{name}` |" in text
        line = (ROOT / "extensions/awx/project" / one["playbook"]).read_text(encoding="utf-8")
        assert f"import_playbook: homegpt.vllm.{name}" in line
    assert text.count("| homeGPT ") == len(TEMPLATES)


def test_every_variable_stands_on_the_page_with_its_default() -> None:
    table = pages.read(PAGE).split("<!-- awx variables -->")[1].split("<!-- end -->")[0]
    rows = [
        [cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in table.split("\n")[3:-1]
    ]
    documented = {row[0].strip("`"): row[1].strip("`").replace("\0", "|") for row in rows}
    defaults: dict[str, Any] = yaml.safe_load((ROOT / "roles/awx/defaults/main.yml").read_text(encoding="utf-8"))
    assert documented == {name: json.dumps(value) for name, value in defaults.items()}
