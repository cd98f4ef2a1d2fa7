# SPDX-License-Identifier: MIT
"""A project as a user makes one of the layout that the collection brings, and a stand-in for AWX."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.awx.api import Awx
from tests.playbooklib import Ansible, Host, Run
from tests.serverlib import ROOT

LAYOUT = ROOT / "extensions/awx/project"
# The one definition of the job templates, before Ansible fills in the choices.
TEMPLATES: list[dict[str, Any]] = yaml.safe_load((ROOT / "roles/awx/vars/main.yml").read_text(encoding="utf-8"))[
    "__awx_templates"
]
URL = "https://git.example.net/fleet.git"


class Fleet:
    """Hosts, the project that AWX would fetch, AWX, and what `awx.yml` does to it."""

    def __init__(self, ansible: Ansible, project: Path, awx: Awx) -> None:
        self.ansible = ansible
        self.project = project
        self.awx = awx

    def rewrite(self) -> None:
        """Write the inventory as the hosts are now."""
        fresh = Ansible(self.ansible.command, self.ansible.inventory.parent, self.ansible.hosts)
        shutil.copy(fresh.inventory, self.project / "inventory/hosts.yml")

    def declare(self, *arguments: str, **variables: Any) -> Run:
        """Run awx.yml."""
        file = self.project.parent / "awx.yml"
        file.write_text(yaml.safe_dump({"awx_project_url": URL, **variables}), encoding="utf-8")
        env = {"CONTROLLER_HOST": self.awx.url, "CONTROLLER_OAUTH_TOKEN": self.awx.token}
        return self.ansible.play("awx", "-e", f"@{file}", *arguments, env=env)


def make_fleet(command: str, folder: Path, hosts: list[Host]) -> Iterator[Fleet]:
    """Make the project and AWX, and end the servers of the hosts when it is over."""
    project = folder / "project"
    shutil.copytree(LAYOUT, project)
    (project / "inventory").mkdir()
    with Awx(project) as awx:
        awx.add("credentials", name="Ansible Galaxy", kind="galaxy_api_token")
        fleet = Fleet(Ansible(command, folder, hosts), project, awx)
        fleet.rewrite()
        try:
            yield fleet
        finally:
            for host in hosts:
                host.kill()


@pytest.fixture
def fleet(ansible_playbook: str, tmp_path: Path) -> Iterator[Fleet]:
    """Two hosts with different models that nobody starts."""
    models: list[dict[str, Any]] = [
        {"id": name, "model": f"org/{name}", "host_port": 8001 + number, "env": {"SECRET": "sesame-1234"}}
        for number, name in enumerate(("coder", "vision", "idle"))
    ]
    models[2]["startup_mode"] = "disabled"
    yield from make_fleet(
        ansible_playbook,
        tmp_path,
        [Host(tmp_path, models[:1] + models[2:], name="one"), Host(tmp_path, models[:2], name="two")],
    )
