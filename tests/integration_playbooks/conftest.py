# SPDX-License-Identifier: MIT
"""The hosts and servers that the playbooks are run on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.playbooklib import Ansible, Host, is_sleeping, served
from tests.serverlib import Server, start_standin

Start = Callable[..., Server]
Inventory = Callable[..., Ansible]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a stand-in that answers to a name; `asleep` is the level it sleeps at from the start."""
    servers: list[Server] = []

    def start_one(name: str, asleep: int = 0, **settings: Any) -> Server:
        log = tmp_path / f"{name}.log"
        server = start_standin(f"org/{name}", names=[name], log=log, gpu_dir=tmp_path / "gpus", **settings)
        servers.append(server)
        if asleep:
            server.call("POST", f"/sleep?level={asleep}").raise_for_status()
            while not is_sleeping(server.port):
                time.sleep(0.01)
        return server

    yield start_one
    for server in servers:
        server.stop()


@pytest.fixture
def inventory(ansible_playbook: str, tmp_path: Path) -> Iterator[Inventory]:
    """Make an inventory of hosts, whose servers end with the test."""
    made: list[Ansible] = []

    def make(*hosts: Host | list[dict[str, Any]], **switching: object) -> Ansible:
        real = [host if isinstance(host, Host) else Host(tmp_path, host, switching) for host in hosts]
        made.append(Ansible(ansible_playbook, tmp_path, real))
        return made[-1]

    yield make
    for ansible in made:
        for host in ansible.hosts:
            host.kill()


@pytest.fixture
def pair(start: Start) -> tuple[Server, Server]:
    """Two servers for one GPU: `a` awake, `b` asleep at level 1."""
    asleep = start("b", asleep=1)
    return start("a"), asleep


@pytest.fixture
def ansible(pair: tuple[Server, Server], inventory: Inventory) -> Ansible:
    """An inventory with that pair on one host."""
    return inventory([served(pair[0], "a", startup_mode="active"), served(pair[1], "b")])
