# SPDX-License-Identifier: MIT
"""The role model_gateway on a host whose gateway routes to others: what it writes, and what is refused.

Without an engine and without systemd.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration_playbooks.test_gateway import changed, kept
from tests.playbooklib import Ansible, Host, Run, launched
from tests.serverlib import free_port

PLAYBOOK = """
- hosts: front
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: homegpt.vllm.model_gateway
    - ansible.builtin.include_role:
        name: homegpt.vllm.model_gateway
        tasks_from: door_service
"""
KEY, TOKEN = "sk-of-the-door-0123456789", "token-0123456789abcdef"


class Behind(Host):
    """A host with a gateway, which the other one routes to. Nobody connects to it."""

    def variables(self) -> dict[str, Any]:
        return {
            **super().variables(),
            "ansible_host": f"{self.name}.example.com",
            "model_manager_enabled": True,
            "model_manager_listen": "0.0.0.0",
            "model_manager_operator_tokens": [TOKEN],
            "model_gateway_enabled": True,
            "model_gateway_listen": "0.0.0.0",
            "model_gateway_api_keys": [{"name": "door", "key": KEY}],
        }


class Front(Host):
    """This machine, without models."""

    link_port = 0

    def variables(self) -> dict[str, Any]:
        own = super().variables()
        del own["vllm_models"]
        return {
            **own,
            "model_gateway_enabled": True,
            "model_gateway_hosts": "{{ groups['vllm_hosts'] | difference(['front']) }}",
            "model_gateway_link_port": self.link_port,
            "model_gateway_systemd": False,
        }


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    made = Front(tmp_path_factory.mktemp("door"), [], name="front")
    made.link_port = free_port()
    return made


@pytest.fixture(scope="module")
def ansible(ansible_playbook: str, front: Front) -> Ansible:
    folder = front.stack.parent
    (folder / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
    behind = [Behind(folder, [launched(name)], name=f"gpu{number}") for number, name in ((1, "a"), (2, "b"))]
    return Ansible(ansible_playbook, folder, [*behind, front])


@pytest.fixture(scope="module")
def play(ansible: Ansible, front: Front) -> Callable[..., Run]:
    """Run the role on the host, with these variables beside its own."""
    file = front.stack.parent / "play.yml"
    return lambda *arguments, **variables: ansible.play(file, *arguments, "-e", json.dumps(variables))


def test_the_host_gets_the_service_and_how_the_others_are_reached(front: Front, play: Callable[..., Run]) -> None:
    assert play("--check", "--diff").changed("front") > 0
    assert not front.stack.exists()
    run = play("-vvv", "--diff")
    assert run.changed("front") > 0
    assert KEY not in run.output
    assert TOKEN not in run.output
    config = front.stack / "door/config.json"
    assert config.stat().st_mode & 0o777 == 0o600
    told = json.loads(config.read_text(encoding="utf-8"))
    assert told["gateway_listen"] == f"127.0.0.1:{front.link_port}"
    assert told["hosts"] == [
        {
            "name": name,
            "address": f"{name}.example.com",
            "port": 8000,
            "tls": False,
            "api_key": KEY,
            "manager_address": f"{name}.example.com",
            "manager_port": 9000,
            "manager_token": TOKEN,
        }
        for name in ("gpu1", "gpu2")
    ]
    before = kept(front.stack)
    assert play("--check").changed("front") == 0
    assert play().changed("front") == 0
    assert changed(before, front.stack) == set()
    assert play(model_gateway_hosts=["gpu2"]).changed("front") == 1
    assert changed(before, front.stack) == {"door/config.json"}
    # The command that is shown runs it.
    shown = re.search(r"run `cd (.+?) && (.+?)`", " ".join(run.output.replace("\\n", " ").split()))
    assert shown
    (folder,), command = shlex.split(shown[1]), shlex.split(shown[2])
    assert subprocess.run([*command, "--check"], cwd=folder, timeout=60, check=False).returncode == 0


def test_mistakes_are_refused_before_any_host_is_contacted(ansible: Ansible) -> None:
    run = ansible.play("site", "-e", "target=front", "-e", "model_gateway_hosts_key=other")
    # The filter difference gives them in another order with each run.
    said = {re.sub(r"\[\d\]", "[N]", mistake) for mistake in run.mistakes}
    assert said == {
        f"front: model_gateway_hosts[N]: {name} has no API key for this host: add {{name: other, key: ...}} to "
        "its model_gateway_api_keys, or set model_gateway_hosts_key to the name of a key that it has"
        for name in ("gpu1", "gpu2")
    }
    (mistake,) = ansible.play("status", "-e", "target=front").mistakes
    assert "leave it out of the target" in mistake


def test_a_host_that_still_has_models_is_refused_and_keeps_them(front: Front, ansible: Ansible) -> None:
    """They would go on, with their manager, and no playbook would know of them."""
    there = [front.stack / name for name in ("models.json", "docker-compose.yml", "manager/config.json")]
    for file in there:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}", encoding="utf-8")
    before = kept(front.stack)
    for playbook in ("site", "teardown"):
        for mode in (["--check"], []):
            said = ansible.play(playbook, "-e", "target=front", *mode).failure()
            assert "is the stack of a host with models" in said
            assert "remove model_gateway_hosts from it, and run teardown with -e target=front." in said
            assert changed(before, front.stack) == set()
    for file in there:
        file.unlink()
    (front.stack / "manager").rmdir()


def test_without_systemd_the_unit_of_an_earlier_run_is_removed(front: Front, play: Callable[..., Run]) -> None:
    """That of another stack stays."""
    units = front.stack.parent / "units"
    units.mkdir()
    unit = units / "homegpt-door.service"
    play()
    for folder, stays in ((front.stack, False), (front.stack.parent / "other", True)):
        unit.write_text(f"[Service]\nWorkingDirectory={folder}/door/lib\n", encoding="utf-8")
        predicted = play("--check", model_gateway_unit_dir=str(units)).changed("front")
        assert unit.exists()
        assert play(model_gateway_unit_dir=str(units)).changed("front") == predicted
        assert (unit.exists(), predicted > 0) == (stays, not stays)
    refused = play(model_gateway_unit_dir=str(units), model_gateway_systemd=True).failure()
    assert "is the service of another stack of this host" in refused
    unit.unlink()


def test_teardown_leaves_nothing(front: Front, ansible: Ansible, play: Callable[..., Run]) -> None:
    play()
    assert front.stack.exists()
    run = ansible.play("teardown", "-e", "target=front")
    assert run.changed("front") > 0
    assert not front.stack.exists()
    assert ansible.play("teardown", "-e", "target=front").changed("front") == 0
