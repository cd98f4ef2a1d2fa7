# SPDX-License-Identifier: MIT
"""Several stacks on one machine: the boot unit, of which it can have only one, and the files of logrotate.

Systemd is played: tests/e2e/test_systemd_unit.py has a real one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.playbooklib import Ansible, Host, Run, launched

PLAYBOOK = """
- hosts: vllm_hosts
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: homegpt.vllm.{role}
        tasks_from: {tasks}
"""
# A unit that is loaded and running, and enabled where a file says so. What it is told is written down.
SYSTEMCTL = """#!/bin/sh
cd "$(dirname "$0")"
case $1 in
show) printf 'Id=homegpt-restore.service\\nLoadState=loaded\\nActiveState=active\\n' ;;
is-enabled) test -e enabled && echo enabled ;;
is-active) cat state 2>/dev/null || echo active ;;
enable) echo "$1" >> told; : > enabled ;;
disable) echo "$1" >> told; rm enabled ;;
*) echo "$1" >> told ;;
esac
"""
Play = Callable[..., Run]


class Machine:
    """This machine with two stacks, `first` and `second`, and what is told to its systemd."""

    def __init__(self, command: str, folder: Path) -> None:
        self.folder = folder
        self.first, self.second = (Host(folder, [launched("a")], name=name) for name in ("first", "second"))
        self.ansible = Ansible(command, folder, [self.first, self.second])
        self.bin = folder / "bin"
        self.etc = folder / "etc"
        for made in (self.bin, self.etc):
            made.mkdir()
        (self.bin / "systemctl").write_text(SYSTEMCTL, encoding="utf-8")
        (self.bin / "systemctl").chmod(0o755)
        self.unit = self.etc / "homegpt-restore.service"

    def play(self, playbook: str | Path, host: Host, *arguments: str, systemd: object, **variables: Any) -> Run:
        """Run a playbook on one of the stacks."""
        said = {
            "target": host.name,
            "compose_stack_unit_dir": str(self.etc),
            "vllm_servers_logrotate_dir": str(self.etc),
            "vllm_docker_host": False,
            "docker_host_check_neighbours": False,
            "__compose_stack_systemd": systemd,
            **variables,
        }
        path = f"{self.bin}{os.pathsep}{self.ansible.env['PATH']}"
        return self.ansible.play(playbook, *arguments, "-e", json.dumps(said), env={"PATH": path})

    def role(self, role: str, host: Host, *arguments: str, tasks: str = "main", **variables: Any) -> Run:
        """Run a role on one of the stacks."""
        file = self.folder / f"{role}-{tasks}.yml"
        file.write_text(PLAYBOOK.format(role=role, tasks=tasks), encoding="utf-8")
        exists = {"stat": {"exists": True}}
        return self.play(file, host, *arguments, "--limit", host.name, systemd=exists, **variables)

    def told(self) -> list[str]:
        """What systemd was told since the last time."""
        file = self.bin / "told"
        lines = file.read_text(encoding="utf-8").split() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(ansible_playbook: str, tmp_path: Path) -> Machine:
    return Machine(ansible_playbook, tmp_path)


def test_the_boot_unit_of_another_stack_is_not_replaced(machine: Machine) -> None:
    machine.role("compose_stack", machine.first).changed("first")
    text = machine.unit.read_text(encoding="utf-8")
    assert f"\nWorkingDirectory={machine.first.stack}\n" in text
    assert machine.told() == ["daemon-reload", "enable"]
    for mode in (["--check"], []):
        run = machine.play("site", machine.second, *mode, systemd={"stat": {"exists": True}})
        said = re.sub(r"\s+", " ", run.failure())
        assert f"restores the models of another stack of this host ({machine.first.stack}) at boot" in said
        assert "Set compose_stack_restore to false for this stack, or remove the other one first (teardown)" in said
        assert not machine.second.stack.exists()
    assert "another stack" in machine.role("compose_stack", machine.second, tasks="restore").failure()
    # Without one of its own it is let in, and the other's stays.
    assert machine.role("compose_stack", machine.second, compose_stack_restore=False).changed("second") > 0
    assert machine.unit.read_text(encoding="utf-8") == text
    assert machine.told() == []
    # Its own is its own, however the folder is written, and whichever release has written it.
    machine.unit.write_text(f"[Service]\nWorkingDirectory={machine.first.stack}\n", encoding="utf-8")
    spelled = f"{machine.folder}/./{machine.first.stack.name}/"
    assert machine.role("compose_stack", machine.first, vllm_stack_dir=spelled).changed("first") > 0
    assert f"\nWorkingDirectory={spelled}\n" in machine.unit.read_text(encoding="utf-8")
    assert machine.told() == ["daemon-reload"]


def test_teardown_removes_no_other_stacks_boot_unit(machine: Machine) -> None:
    machine.role("compose_stack", machine.first).changed("first")
    machine.role("compose_stack", machine.second, compose_stack_restore=False).changed("second")
    machine.told()
    for host, stays in ((machine.second, True), (machine.first, False)):
        predicted = machine.play("teardown", host, "--check", systemd=True)
        assert machine.unit.exists()
        run = machine.play("teardown", host, systemd=True)
        assert run.changed(host.name) == predicted.changed(host.name) > 0
        assert machine.unit.exists() == stays
        assert machine.told() == ([] if stays else ["disable", "stop", "daemon-reload"])
        assert not host.stack.exists()


def test_teardown_drains_the_servers_before_the_boot_unit_that_has_started_them_ends(machine: Machine) -> None:
    exists = {"stat": {"exists": True}}
    machine.play("site", machine.first, systemd=exists).changed("first")
    machine.play("switch", machine.first, "-e", "model=a", systemd=exists).changed("first")
    runs = machine.first.stack / "run" / "a.pid"
    assert runs.exists()
    machine.told()
    with_servers = SYSTEMCTL.replace(
        "*) echo", f'stop) test -e "{runs}" && echo "stop-with-servers" >> told || echo stop >> told ;;\n*) echo'
    )
    (machine.bin / "systemctl").write_text(with_servers, encoding="utf-8")
    assert machine.play("teardown", machine.first, systemd=True).changed("first") > 0
    assert machine.told() == ["disable", "stop", "daemon-reload"]
    assert not machine.unit.exists()


def test_teardown_does_not_wait_for_a_boot_that_still_loads_models(machine: Machine) -> None:
    machine.role("compose_stack", machine.first).changed("first")
    machine.told()
    (machine.bin / "state").write_text("activating\n", encoding="utf-8")
    assert machine.play("teardown", machine.first, systemd=True).changed("first") > 0
    assert machine.told() == ["stop", "disable", "stop", "daemon-reload"]


def test_a_boot_unit_that_is_no_longer_wanted_is_removed_and_not_stopped(machine: Machine) -> None:
    machine.role("compose_stack", machine.first).changed("first")
    machine.told()

    def without(host: Host, *arguments: str, **variables: Any) -> int:
        run = machine.role("compose_stack", host, *arguments, compose_stack_restore=False, **variables)
        return run.changed(host.name)

    # The manager's role removes it, once the manager runs.
    assert without(machine.first, model_manager_enabled=True) == 0
    without(machine.second)
    assert machine.unit.exists()
    assert machine.told() == []
    assert without(machine.first, "--check") == 2
    assert machine.unit.exists()
    assert machine.told() == []
    assert without(machine.first) == 2
    assert not machine.unit.exists()
    assert machine.told() == ["disable", "daemon-reload"]
    assert without(machine.first) == 0
    assert machine.told() == []


def test_each_stack_has_its_logs_rotated(machine: Machine) -> None:
    def rotate(host: Host, *arguments: str, **variables: Any) -> int:
        return machine.role("vllm_servers", host, *arguments, tasks="logrotate", **variables).changed(host.name)

    def rotated() -> dict[str, str]:
        return {
            file.name: match[1]
            for file in machine.etc.iterdir()
            for match in re.finditer('^"(.*)/logs/[*]/vllm.log" {$', file.read_text(encoding="utf-8"), re.MULTILINE)
        }

    first, second = str(machine.first.stack), str(machine.second.stack)
    assert rotate(machine.first) == 1
    assert rotated() == {"homegpt-vllm": first}
    assert rotate(machine.second, "--check") == 1
    assert rotate(machine.second) == 1
    (own,) = rotated().keys() - {"homegpt-vllm"}
    assert re.fullmatch("homegpt-vllm-[0-9a-f]{8}", own)
    assert rotated() == {"homegpt-vllm": first, own: second}
    for host in (machine.first, machine.second):
        assert rotate(host) == 0
    # However the folder is written: a log that two files name is not rotated.
    assert rotate(machine.second, vllm_stack_dir=f"{machine.folder}//{machine.second.stack.name}") == 1
    assert set(rotated()) == {"homegpt-vllm", own}
    assert rotate(machine.second) == 1

    # The second one keeps its file, also when it is the only one.
    predicted = machine.play("teardown", machine.first, "--check", systemd=True).changed("first")
    assert machine.play("teardown", machine.first, systemd=True).changed("first") == predicted == 1
    assert rotated() == {own: second}
    assert rotate(machine.second) == 0
    assert machine.play("teardown", machine.second, systemd=True).changed("second") == 1
    assert rotated() == {}
    assert machine.play("teardown", machine.second, systemd=True).changed("second") == 0
