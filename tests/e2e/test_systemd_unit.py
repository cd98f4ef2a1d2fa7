# SPDX-License-Identifier: MIT
"""The unit that brings the models back, under a real systemd: a container of it with a stand-in for Docker's service.

The role writes and enables the unit there as it does on any host. It runs the real command line, whose one model is a
stand-in that a start_command starts, since no engine can run in such a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import STANDIN_IMAGE, docker
from tests.playbooklib import Ansible, Host
from tests.serverlib import ROOT

pytestmark = [pytest.mark.timeout(300), pytest.mark.whole]

IMAGE = "homegpt-systemd:local"
DOCKERFILE = f"""
FROM {STANDIN_IMAGE}
RUN apt-get update && apt-get install --yes --no-install-recommends systemd systemd-sysv \\
 && rm -rf /var/lib/apt/lists/* \\
 && systemctl mask getty.target console-getty.service systemd-logind.service systemd-networkd.service
ENTRYPOINT []
STOPSIGNAL SIGRTMIN+3
CMD ["/sbin/init"]
"""
# As far as it matters here, like the real one: it takes a moment to be ready, and comes back when it has crashed.
DOCKER_SERVICE = """
[Unit]
Description=Stands in for the Docker engine
[Service]
Type=exec
ExecStartPre=/bin/sleep 2
ExecStart=/bin/sleep infinity
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
"""
# The role is told of a model in a container, so that the unit belongs to Docker's service.
PLAYBOOK = """
- hosts: host
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: homegpt.vllm.compose_stack
        tasks_from: restore
      vars:
        compose_stack_models: [{id: contained, model: org/contained, host_port: 8009}]
        compose_stack_volumes: ["/srv/nas share/hf:/root/.cache", '/srv/100%/a"b:/x:ro', "~/models:/m", "volume:/v"]
"""
# Nothing but the models wants it: like a share that fstab calls noauto.
SHARE = "srv-nas\\x20share.mount"
SHARE_UNIT = """
[Mount]
What=tmpfs
Where=/srv/nas share
Type=tmpfs
"""
UNIT = "homegpt-restore.service"
STACK = "/opt/homegpt"
MODEL = {
    "id": "one",
    "model": "org/one",
    "host_port": 8001,
    "weights_gb": 0.01,
    "startup_mode": "active",
    "env": {"PYTHONPATH": "/opt/site-packages"},
    "start_command": [
        *("/usr/local/bin/vllm", "serve", "${model}", "--served-model-name", "${id}", "--host", "127.0.0.1"),
        *("--port", "${host_port}", "--enable-sleep-mode"),
    ],
}


class Machine(Host):
    """A container with systemd as its first process."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [])
        self.container = "e2e-systemd-" + uuid.uuid4().hex[:6]

    def variables(self) -> dict[str, Any]:
        """Return what Ansible has to know to get in."""
        return {
            "ansible_connection": "community.docker.docker",
            "ansible_host": self.container,
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    def run(self, *command: str, check: bool = True) -> str:
        """Return what a command in the container printed, on both streams."""
        ended = subprocess.run(
            ["docker", "exec", self.container, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0 or not check, f"{command}: {ended.stdout}"
        return ended.stdout.strip()

    def restart(self) -> None:
        """Restart the unit; starts of other cases do not count (systemd allows five within ten seconds)."""
        self.run("systemctl", "reset-failed", UNIT, "docker.service")
        self.run("systemctl", "restart", UNIT)

    def write(self, path: str, text: str) -> None:
        """Write a file in the container."""
        subprocess.run(
            ["docker", "exec", "-i", self.container, "sh", "-c", 'cat > "$0"', path],
            input=text,
            text=True,
            timeout=60,
            check=True,
        )

    def declare(self, *models: dict[str, Any]) -> None:
        """Write what the host's command line reads."""
        self.write(f"{STACK}/models.json", json.dumps({"vllm_models": models, "vllm_switching": {}}))

    def unit(self, name: str = UNIT) -> dict[str, str]:
        """Return the properties of a unit."""
        return dict(line.partition("=")[::2] for line in self.run("systemctl", "show", name).splitlines())

    def moment(self, name: str, what: str) -> int:
        """Return when a unit came to a state, in microseconds since the machine's boot."""
        return int(self.unit(name)[f"{what}TimestampMonotonic"])

    def boot(self) -> None:
        """Restart the whole machine."""
        docker("restart", "--time", "30", self.container)
        self.wait_for_boot()

    def wait_for_boot(self) -> None:
        """Wait until everything that boot starts has started or failed."""

        def booted() -> bool:
            return self.run("systemctl", "is-system-running", check=False) in ("running", "degraded")

        until(booted, lambda: self.run("systemctl", "list-jobs", check=False))

    def wait_for(self, state: str, before: dict[str, str]) -> dict[str, str]:
        """Wait until the unit has been started once more and is in a state; return its properties."""

        def there() -> bool:
            now = self.unit()
            return now["InvocationID"] != before["InvocationID"] and now["ActiveState"] == state

        until(there, lambda: self.run("systemctl", "status", UNIT, "docker.service", check=False))
        return self.unit()

    def state(self) -> str:
        """Return the state of the model, as the host's command line sees it."""
        told = self.run("sh", "-c", f"cd {STACK} && python3 -B -m switching status --json")
        return str(json.loads(told)["models"]["one"]["state"])

    def remove(self) -> None:
        """Remove the container."""
        docker("rm", "--force", "--volumes", self.container, check=False)


def until(true: Callable[[], bool], story: Callable[[], str], seconds: float = 120) -> None:
    """Wait until something is true; if it does not become so, fail and tell a story."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, story()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def image(engine: None) -> None:
    """The image of the machine. The engine remembers its layers, so this takes a moment only the first time."""
    ended = subprocess.run(
        ["docker", "build", "--force-rm", "--tag", IMAGE, "-"],
        env=_builder(),
        input=DOCKERFILE,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]


def _builder() -> dict[str, str]:
    buildx = subprocess.run(["docker", "buildx", "version"], capture_output=True, timeout=30, check=False)
    return {**os.environ, **({} if buildx.returncode == 0 else {"DOCKER_BUILDKIT": "0"})}


@pytest.fixture(scope="module")
def machine(image: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that runs Docker's stand-in and knows one model, without the unit."""
    made = Machine(tmp_path_factory.mktemp("systemd"))
    mounts = [word for folder in ("/run", "/run/lock", "/tmp") for word in ("--tmpfs", f"{folder}:exec")]
    with contextlib.ExitStack() as undo:
        undo.callback(made.remove)
        docker(
            *("run", "--detach", "--name", made.container, "--cgroupns", "private", "--cap-add", "SYS_ADMIN"),
            *(*mounts, "--env", "container=docker", IMAGE),
        )
        made.wait_for_boot()
        made.run("mkdir", "-p", f"{STACK}/run")
        docker("cp", str(ROOT / "plugins" / "module_utils" / "switching"), f"{made.container}:{STACK}/switching")
        made.declare(MODEL)
        made.write("/etc/systemd/system/docker.service", DOCKER_SERVICE)
        made.write(f"/etc/systemd/system/{SHARE}", SHARE_UNIT)
        made.run("systemctl", "daemon-reload")
        made.run("systemctl", "enable", "--now", "docker.service")
        yield made


@pytest.fixture(scope="module")
def ansible(machine: Machine, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """Run the role's tasks on the machine; return how many of them changed something."""
    folder = tmp_path_factory.mktemp("ansible")
    playbook = folder / "play.yml"
    playbook.write_text(PLAYBOOK, encoding="utf-8")
    runner = Ansible(ansible_playbook, folder, [machine])
    return lambda *arguments: runner.play(playbook, *arguments).changed()


@pytest.fixture(scope="module")
def provisioned(machine: Machine, ansible: Callable[..., int]) -> Machine:
    """The machine with the unit, as the role leaves it: enabled, but not run."""
    if not machine.run("systemctl", "cat", UNIT, check=False).startswith("# /etc"):
        ansible()
    return machine


def test_the_role_installs_the_unit_once_and_runs_nothing(machine: Machine, ansible: Callable[..., int]) -> None:
    assert ansible("--check") > 0
    assert machine.unit()["LoadState"] == "not-found"
    assert ansible() == 2
    assert machine.unit()["UnitFileState"] == "enabled"
    assert machine.unit()["ActiveState"] == "inactive"
    assert ansible() == 0
    assert ansible("--check") == 0
    assert "docker.service.wants" in machine.run("ls", "-d", f"/etc/systemd/system/docker.service.wants/{UNIT}")


def test_a_boot_runs_it_when_docker_has_started(provisioned: Machine) -> None:
    provisioned.boot()
    assert provisioned.unit()["ActiveState"] == "active", provisioned.run("systemctl", "status", UNIT, check=False)
    assert provisioned.moment("docker.service", "ActiveEnter") > 0
    assert provisioned.moment(UNIT, "InactiveExit") >= provisioned.moment("docker.service", "ActiveEnter")
    assert provisioned.state() == "active"


@pytest.mark.parametrize("how", ["restart", "crash", "stop and start"])
def test_it_runs_again_when_docker_does(provisioned: Machine, how: str) -> None:
    provisioned.restart()
    before = provisioned.unit()
    assert provisioned.state() == "active"
    if how == "restart":
        provisioned.run("systemctl", "restart", "docker.service")
    elif how == "crash":
        provisioned.run("systemctl", "kill", "--signal", "KILL", "docker.service")
    else:
        provisioned.run("systemctl", "stop", "docker.service")
        assert provisioned.unit()["ActiveState"] == "inactive"
        provisioned.run("systemctl", "start", "docker.service")
    provisioned.wait_for("active", before)
    assert provisioned.moment(UNIT, "InactiveExit") >= provisioned.moment("docker.service", "ActiveEnter")
    assert provisioned.state() == "active"


def test_a_failure_is_visible_and_is_not_tried_again_and_again(provisioned: Machine) -> None:
    provisioned.restart()
    before = provisioned.unit()
    provisioned.declare({**MODEL, "start_command": ["/bin/sh", "-c", "echo no such flag: --frobnicate; exit 2"]})
    try:
        provisioned.run("systemctl", "restart", "docker.service")
        failed = provisioned.wait_for("failed", before)
        status = provisioned.run("systemctl", "status", "--lines=50", UNIT, check=False)
        assert "Active: failed" in status
        assert "one" in status and "no such flag: --frobnicate" in status, status
        assert UNIT in provisioned.run("systemctl", "--failed", "--plain")
        time.sleep(5)
        later = provisioned.unit()
        assert later["InvocationID"] == failed["InvocationID"]
        assert later["ActiveState"] == "failed"
        assert later["NRestarts"] == "0"
        # Docker itself goes on.
        assert provisioned.unit("docker.service")["ActiveState"] == "active"
    finally:
        provisioned.declare(MODEL)
    # And the next start of Docker is a new chance.
    provisioned.run("systemctl", "restart", "docker.service")
    provisioned.wait_for("active", failed)
    assert provisioned.state() == "active"


def test_it_waits_for_the_shares_and_disks_that_the_models_need(provisioned: Machine) -> None:
    told = provisioned.unit()
    assert told["LoadState"] == "loaded"
    text = provisioned.run("systemctl", "show", "--property", "RequiresMountsFor", UNIT)
    for folder in ("/opt/homegpt", "/srv/nas share/hf", "/srv/100%/a", "/root/models"):
        assert folder in text, text
    for relation in ("Requires", "After"):
        # It shows a name with a backslash quoted.
        assert SHARE in told[relation].replace("\\\\", "\\"), told[relation]
    provisioned.boot()
    assert provisioned.unit(SHARE)["ActiveState"] == "active"
    assert provisioned.moment(UNIT, "InactiveExit") >= provisioned.moment(SHARE, "ActiveEnter") > 0
    assert provisioned.state() == "active"
    # A share that can't be mounted: nothing is started into an empty folder, and the unit says so.
    provisioned.write(
        f"/etc/systemd/system/{SHARE}", SHARE_UNIT.replace("What=tmpfs", "What=/nowhere").replace("=tmpfs", "=ext4")
    )
    try:
        provisioned.run("systemctl", "daemon-reload")
        provisioned.boot()
        assert provisioned.unit()["ActiveState"] == "inactive"
        assert provisioned.state() == "stopped"

        def said() -> str:
            return provisioned.run("journalctl", "--boot", "--unit", UNIT)

        # The journal may have it a moment later.
        until(lambda: "Dependency failed" in said(), said)
    finally:
        provisioned.write(f"/etc/systemd/system/{SHARE}", SHARE_UNIT)
        provisioned.run("systemctl", "daemon-reload")
