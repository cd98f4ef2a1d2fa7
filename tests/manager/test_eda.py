# SPDX-License-Identifier: MIT
"""Event-Driven Ansible: the collection's rulebooks, run by ansible-rulebook, heal and relieve hosts with a manager.

The servers are stand-ins; the playbooks are the collection's, on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.manager.conftest import Service, until
from tests.playbooklib import Ansible, Host, is_sleeping, launched
from tests.serverlib import ROOT

# A JVM, and a play, on a machine that does other things, too.
PATIENCE_SECONDS = 120.0
READER = "reader-0123456789"


class Managed(Host):
    """A host with a stack folder, for the playbooks and for a manager."""

    @property
    def stack_dir(self) -> Path:
        return self.stack

    @property
    def settings(self) -> dict[str, Any]:
        return self.switching

    def pid(self, name: str) -> int:
        """The process of a model's server."""
        return int(json.loads((self.stack / "run" / f"{name}.pid").read_text(encoding="utf-8"))["pid"])

    def awake(self) -> list[str]:
        """The models that serve."""
        found = []
        for model in self.models:
            with contextlib.suppress(requests.RequestException):  # it does not run, or not yet
                if not is_sleeping(model["host_port"]):
                    found.append(str(model["id"]))
        return found


def declared(*names: str, **env: object) -> list[dict[str, Any]]:
    """Models that share a GPU, the first one active."""
    return [launched(name, startup_mode="sleep" if at else "active", env=dict(env)) for at, name in enumerate(names)]


@pytest.fixture(scope="session")
def rulebooks() -> Path:
    """A virtual environment with ansible-rulebook."""
    built = subprocess.run(
        ["bash", str(ROOT / "tools/eda.sh")], capture_output=True, text=True, check=False, timeout=600
    )
    if built.returncode:
        pytest.skip(f"there is no ansible-rulebook: {built.stderr.strip().splitlines()[-1:]}")
    return Path(built.stdout.strip())


class Rulebook:
    """A running ansible-rulebook."""

    def __init__(self, venv: Path, folder: Path, ansible: Ansible, name: str, **variables: Any) -> None:
        settings = folder / f"{name}.json"
        settings.write_text(json.dumps(variables), encoding="utf-8")
        self.log = folder / f"{name}.log"
        command = [str(venv / "bin/ansible-rulebook"), "--rulebook", f"homegpt.vllm.{name}", "--print-events"]
        command += ["--inventory", str(ansible.inventory.parent), "--vars", str(settings)]
        # ansible-runner leaves what a play of it printed there.
        self.temporary = tempfile.TemporaryDirectory(prefix="eda")
        # What it prints comes at once, not when a buffer is full.
        env = {**ansible.env, "TMPDIR": self.temporary.name, "PYTHONUNBUFFERED": "1"}
        env["PATH"] = f"{venv / 'bin'}{os.pathsep}{ansible.env['PATH']}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, text: str) -> None:
        """Wait until it has printed this."""

        def printed() -> bool:
            assert self.process.poll() is None, self.output()
            return text in self.output()

        until(printed, f"it prints {text!r}", PATIENCE_SECONDS)

    def end(self) -> int:
        """Ask it to end; its exit status, which is the JVM's within it: that takes the signal."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        """End whatever is left of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.temporary.cleanup()


HEADERS = {"Authorization": f"Bearer {READER}"}
OPERATOR = {"Authorization": "Bearer operator-0123456789"}


class Authorized(Service):
    """A service that wants a token."""

    def models(self) -> dict[str, Any]:
        """What it says of its models."""
        found = requests.get(self.url + "/models", headers=HEADERS, timeout=5).json()["models"]
        return {one["id"]: one for one in found}

    def requested_by(self) -> set[str]:
        """Who has asked for the switches that it knows of."""
        shown = requests.get(self.url + "/switches", headers=HEADERS, timeout=10).json()["switches"]
        return {one["requested_by"] for one in shown}

    def ask(self, model: str) -> None:
        """Ask for a switch and do not wait for it."""
        body = {"model_id": model}
        answer = requests.post(self.url + "/switch?wait=false", json=body, headers=OPERATOR, timeout=30)
        assert answer.status_code == 202, answer.text


class World:
    """Hosts with their managers, and one rulebook."""

    def __init__(self, venv: Path, ansible_playbook: str, folder: Path, *hosts: Managed) -> None:
        self.venv, self.folder = venv, folder
        (folder / "inventory").mkdir()
        # As ansible-rulebook takes it: of a single file, it leaves the group_vars behind.
        self.ansible = Ansible(ansible_playbook, folder / "inventory", hosts)
        self.hosts = hosts
        self.services: dict[str, Authorized] = {}
        self.rulebook: Rulebook | None = None

    def manage(self, host: Managed, **settings: Any) -> Authorized:
        """Have a manager run on a host; one with a token, for readers."""
        tokens = self.folder / f"tokens-{host.name}"
        tokens.write_text(f"reader {READER}\noperator operator-0123456789\n", encoding="utf-8")
        tokens.chmod(0o600)
        as_host: Any = host  # as far as a service needs it
        self.services[host.name] = Authorized(as_host, tokens_file=str(tokens), **settings)
        return self.services[host.name]

    def run(self, name: str, **variables: Any) -> Rulebook:
        """Run a rulebook until it reads the events of all managers."""
        managers = [{"host": host, "url": service.url} for host, service in self.services.items()]
        tokens = str(self.folder / f"tokens-{self.hosts[0].name}")
        self.rulebook = Rulebook(
            self.venv,
            self.folder,
            self.ansible,
            name,
            homegpt_managers=managers,
            homegpt_token_file=tokens,
            **variables,
        )
        return self.rulebook

    def end(self) -> None:
        """End all of it."""
        if self.rulebook:
            self.rulebook.kill()
        for service in self.services.values():
            service.process.kill()
            service.process.wait()
        for host in self.hosts:
            host.kill()


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    """Those of the test. None is left after it."""
    begun: list[World] = []
    yield begun
    for world in begun:
        world.end()


def test_a_server_that_is_killed_is_healed_by_the_rulebook(
    rulebooks: Path, ansible_playbook: str, tmp_path: Path, worlds: list[World]
) -> None:
    host = Managed(tmp_path, declared("a", "b"), {"canary": "off"}, name="gpu1")
    world = World(rulebooks, ansible_playbook, tmp_path, host)
    worlds.append(world)
    manager = world.manage(host, reconcile=False)
    assert world.ansible.play("switch", "-e", "model=a").status == 0
    until(lambda: manager.models()["a"]["state"] == "ready", "the manager sees it")
    rulebook = world.run("heal")
    rulebook.until("'kind': 'state'")
    first = host.pid("a")
    os.kill(first, signal.SIGKILL)
    until(lambda: manager.models()["a"]["down"], "the manager sees that it is down")
    until(
        lambda: manager.models()["a"]["state"] == "ready" and not manager.models()["a"]["down"],
        "it is active again",
        PATIENCE_SECONDS,
    )
    rulebook.until("PLAY RECAP")
    assert host.pid("a") != first
    assert not is_sleeping(host.port("a"))
    assert manager.requested_by() == {"module or command line"}
    (row,) = world.ansible.play("status").tables("host", "manager", "mode", "reconciles")[0]
    assert row.split() == ["gpu1", "running", "auto", "no", "-", "0", "-"]
    assert READER not in rulebook.output()
    assert rulebook.end() in (0, 128 + signal.SIGTERM)


@pytest.mark.whole
def test_a_model_that_the_manager_has_given_up_is_healed_by_what_the_inventory_declares(
    rulebooks: Path, ansible_playbook: str, tmp_path: Path, worlds: list[World]
) -> None:
    host = Managed(tmp_path, declared("a", "b"), {"canary": "off"}, name="gpu1")
    world = World(rulebooks, ansible_playbook, tmp_path, host)
    worlds.append(world)
    manager = world.manage(host, breaker_failures=2, retry_seconds=600)
    until(lambda: manager.models()["a"]["state"] == "ready", "the manager loads it", PATIENCE_SECONDS)
    world.run("heal").until("'kind': 'state'")
    # Somebody breaks the host's copy of the inventory, and later the server ends.
    broken = [{**model, "start_command": ["false"]} if model["id"] == "a" else model for model in host.models]
    new = host.stack / "models.json.new"
    new.write_text(json.dumps({"vllm_models": broken, "vllm_switching": host.switching}), encoding="utf-8")
    new.replace(host.stack / "models.json")
    os.kill(host.pid("a"), signal.SIGKILL)
    until(lambda: manager.models()["a"]["down"], "the manager gives it up", PATIENCE_SECONDS)
    assert manager.models()["a"]["breaker"]["state"] == "open"
    assert manager.models()["a"]["state"] == "error"
    until(lambda: manager.models()["a"]["state"] == "ready", "it is active again", PATIENCE_SECONDS)
    assert manager.models()["a"]["breaker"]["state"] == "closed"


@pytest.mark.whole
def test_a_host_on_which_too_many_switches_wait_is_relieved_by_another_one(
    rulebooks: Path, ansible_playbook: str, tmp_path: Path, worlds: list[World]
) -> None:
    busy = Managed(tmp_path, declared("a", "b", "c", STANDIN_WAKE_SECONDS=8), {"canary": "off"}, name="busy")
    spare = Managed(tmp_path, declared("a", "c"), {"canary": "off"}, name="spare")
    world = World(rulebooks, ansible_playbook, tmp_path, busy, spare)
    worlds.append(world)
    for name in ("c", "b", "a"):
        assert world.ansible.play("switch", "-e", f"model={name}", "-e", "target=busy").status == 0
    assert world.ansible.play("switch", "-e", "model=a", "-e", "target=spare").status == 0
    manager = world.manage(busy)
    rulebook = world.run("relieve", homegpt_queue_limit=2, homegpt_relief="spare")
    rulebook.until("'kind': 'queue'")
    for name in ("b", "c", "a"):
        manager.ask(name)
    until(lambda: spare.awake() == ["c"], "the other host serves c", PATIENCE_SECONDS)
    rulebook.until("PLAY RECAP")
    until(lambda: manager.models()["a"]["state"] == "ready", "the busy one does what it was asked for", 60)
    assert rulebook.end() in (0, 128 + signal.SIGTERM)
