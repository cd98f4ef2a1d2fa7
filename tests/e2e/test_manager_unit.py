# SPDX-License-Identifier: MIT
"""The model manager as a service, under a real systemd: a container of it without access to a package index.

Its one model is a stand-in that a start_command starts, since no engine can run in such a container.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.managed import service_wheels
from tests.e2e.test_systemd_unit import MODEL, STACK, Machine, image, machine, until
from tests.playbooklib import Ansible

__all__ = ("image", "machine")

pytestmark = [pytest.mark.timeout(600), pytest.mark.whole]

UNIT = "homegpt-manager.service"
RESTORE = "homegpt-restore.service"
PLAYBOOK = """
- hosts: host
  gather_facts: false
  vars:
    compose_stack_models: "{{ model_manager_models }}"
  tasks:
    - ansible.builtin.include_role:
        name: homegpt.vllm.compose_stack
        tasks_from: restore
      when: with_boot_unit | default(false)
    - ansible.builtin.include_role:
        name: homegpt.vllm.model_manager
"""
CONTAINED = [{"id": "contained", "model": "org/contained", "host_port": 8009}]


@pytest.fixture(scope="module")
def wheels(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of the service's packages for the machine's Python."""
    return service_wheels(machine, tmp_path_factory.mktemp("wheels"))


Play = Callable[..., int]


@pytest.fixture(scope="module")
def play(machine: Machine, wheels: Path, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Play:
    """Run the role on the machine, with these variables; return how many of its tasks changed something."""
    folder = tmp_path_factory.mktemp("ansible")
    (folder / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
    ansible = Ansible(ansible_playbook, folder, [machine])

    def run(*arguments: str, **variables: Any) -> int:
        given = {
            "model_manager_enabled": True,
            "model_manager_wheels_dir": str(wheels),
            "model_manager_models": [MODEL],
        }
        return ansible.play(folder / "play.yml", *arguments, "-e", json.dumps({**given, **variables})).changed()

    return run


def ask(machine: Machine, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the manager answers on the machine."""
    code = (
        "import sys, urllib.request as u; body = sys.argv[3].encode() or None;"
        "print(u.urlopen(u.Request('http://127.0.0.1:9000' + sys.argv[2], body, {'Content-Type': 'application/json'},"
        " method=sys.argv[1]), timeout=60).read().decode())"
    )
    told = machine.run("python3", "-c", code, method, path, json.dumps(body) if body else "")
    answer: dict[str, Any] = json.loads(told)
    return answer


def wait_until_active(machine: Machine) -> None:
    """Wait until the manager answers and tells that the model is active."""

    def active() -> bool:
        try:
            (model,) = ask(machine, "GET", "/models")["models"]
        except AssertionError:  # it does not listen yet
            return False
        return bool(model["status"] == "active")

    until(active, lambda: machine.run("journalctl", "--boot", "--unit", UNIT))


def test_a_new_host_gets_the_service_but_it_is_not_started(machine: Machine, play: Play) -> None:
    assert play("--check") > 0
    assert machine.unit(UNIT)["LoadState"] == "not-found"
    assert play() > 0
    assert machine.unit(UNIT)["UnitFileState"] == "enabled"
    assert machine.unit(UNIT)["ActiveState"] == "inactive"
    assert play() == 0
    assert play("--check") == 0


def test_it_takes_over_from_the_boot_unit(machine: Machine, play: Play) -> None:
    play(with_boot_unit=True, model_manager_enabled=False)
    assert machine.unit(RESTORE)["UnitFileState"] == "enabled"
    assert machine.unit(UNIT)["LoadState"] == "not-found"
    machine.run("sh", "-c", f"cd {STACK} && python3 -B -m switching switch one")
    predicted = play("--check")
    assert predicted > 0
    assert play() >= predicted
    assert machine.unit(RESTORE)["LoadState"] == "not-found"
    assert machine.unit(UNIT)["ActiveState"] == "active"
    assert ask(machine, "GET", "/health") == {"status": "healthy"}
    wait_until_active(machine)
    assert play() == 0


def test_it_is_restarted_by_what_has_changed_alone(machine: Machine, play: Play) -> None:
    before = machine.unit(UNIT)["InvocationID"]
    changed = {"model_manager_settings": {"observe_seconds": 0.5}}
    assert play("--check", **changed) == 2
    assert machine.unit(UNIT)["InvocationID"] == before
    assert play(**changed) == 2
    after = machine.unit(UNIT)["InvocationID"]
    assert after != before
    assert play(**changed) == 0
    assert machine.unit(UNIT)["InvocationID"] == after
    # As when a run was cut off before it could restart the service.
    machine.run("touch", f"{STACK}/switching/plan.py")
    assert play("--check", **changed) == 1
    assert play(**changed) == 1
    assert machine.unit(UNIT)["InvocationID"] != after
    wait_until_active(machine)


def test_it_comes_back_when_it_was_killed(machine: Machine, play: Play) -> None:
    server = machine.run("cat", f"{STACK}/run/one.pid")
    before = machine.unit(UNIT)["InvocationID"]
    machine.run("systemctl", "kill", "--kill-whom", "main", "--signal", "KILL", UNIT)

    def back() -> bool:
        now = machine.unit(UNIT)
        return now["InvocationID"] != before and now["ActiveState"] == "active"

    until(back, lambda: machine.run("systemctl", "status", UNIT, check=False))
    wait_until_active(machine)
    assert machine.run("cat", f"{STACK}/run/one.pid") == server


def test_a_boot_brings_the_model_back(machine: Machine, play: Play) -> None:
    machine.boot()
    wait_until_active(machine)
    assert machine.state() == "active"
    assert ask(machine, "GET", "/models")["active_model"] == "one"


def test_for_models_in_containers_it_is_hardened_and_works(machine: Machine, play: Play) -> None:
    """The model's server, which this machine can't put into a container, was started before."""
    play(model_manager_models=CONTAINED)
    said = machine.run("systemd-analyze", "security", "--no-pager", UNIT)
    level = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", said)
    assert level and float(level[1]) <= 4.0, said
    wait_until_active(machine)
    for state in ("sleep", "wake"):
        ask(machine, "POST", f"/api/models/{state}/one")
    assert machine.state() == "active"
    assert play(model_manager_models=CONTAINED) == 0


def test_without_systemd_its_unit_is_removed_and_the_model_goes_on(machine: Machine, play: Play) -> None:
    play()
    assert machine.unit(UNIT)["ActiveState"] == "active"
    predicted = play("--check", model_manager_systemd=False)
    assert predicted > 0
    assert machine.unit(UNIT)["ActiveState"] == "active"
    assert play(model_manager_systemd=False) == predicted
    assert machine.unit(UNIT)["LoadState"] == "not-found"
    # That `systemctl show` has asked for it makes systemd know of it for a moment: not-found, inactive.
    units = machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend").splitlines()
    left = [line.split()[1:3] for line in units if "homegpt-manager" in line]
    assert left in ([], [["not-found", "inactive"]])
    assert machine.state() == "active"
    assert play(model_manager_systemd=False) == 0
    assert play("--check", model_manager_systemd=False) == 0


def test_it_is_removed_and_the_model_goes_on(machine: Machine, play: Play) -> None:
    play()
    assert play("--check", model_manager_enabled=False) > 0
    assert play(model_manager_enabled=False) > 0
    assert machine.unit(UNIT)["LoadState"] == "not-found"
    assert machine.run("sh", "-c", f"ls {STACK}") == "models.json\nrun\nswitching"
    assert machine.state() == "active"
    assert play(model_manager_enabled=False) == 0
