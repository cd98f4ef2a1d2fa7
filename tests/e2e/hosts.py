# SPDX-License-Identifier: MIT
"""Hosts that are containers: each a Debian with systemd, its own Docker engine, and an address on a common network.

with network() as net, ContainerHost(folder, "one", "bookworm", net, models) as host:
    host.load(archive(folder, "gateway-debian:local"))
    host.halt()
    host.boot()
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.e2e.stack import docker, inspect, moment
from tests.firewall.box import BUILD_SECONDS, command, compose_plugin, until
from tests.playbooklib import Host
from tests.serverlib import ROOT

STACK = "/opt/homegpt"
LABEL = "homegpt.inputs"
# Not --privileged: that asks for all powers, also for those that the engine itself may lack.
POWERS = ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE")
# What would change the machine that all share, or waits for hardware.
MASKED = (
    "systemd-sysctl.service systemd-udevd.service systemd-udev-trigger.service systemd-modules-load.service "
    "systemd-binfmt.service systemd-remount-fs.service systemd-networkd.service systemd-logind.service getty.target "
    "console-getty.service"
)
# A tree of control groups of its own; the last word lets systemd 257 run on a machine that still has the old ones.
BOOT = f"""
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for unit in {MASKED}; do ln -sf /dev/null /etc/systemd/system/$unit; done
exec env -i container=docker PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /sbin/init \\
    SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1
"""


def machine_image(suite: str) -> str:
    """The image of a host, which is made of the root of tests/firewall where that has changed."""
    image = f"homegpt-machine:{suite}"
    root = Path(command("bash", str(ROOT / "tests/firewall/root.sh"), suite, timeout=BUILD_SECONDS).splitlines()[-1])
    inputs = hashlib.sha256(Path(f"{root}.made").read_bytes()).hexdigest()[:16]
    if docker("image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', image, check=False) != inputs:
        words = ["docker", "import", "--change", f"LABEL {LABEL}={inputs} homegpt.image=1", "-", image]
        packed = ["tar", "--create", "--directory", str(root), "--one-file-system", "."]
        with subprocess.Popen(packed, stdout=subprocess.PIPE) as tar:
            subprocess.run(words, stdin=tar.stdout, stdout=subprocess.DEVNULL, check=True, timeout=BUILD_SECONDS)
    return image


@contextmanager
def network() -> Iterator[str]:
    """A network for hosts, on which they know each other by the names of their containers."""
    name = "hosts" + uuid.uuid4().hex[:6]
    docker("network", "create", name)
    try:
        yield name
    finally:
        docker("network", "rm", name, check=False)


class ContainerHost(Host):
    """A host; Ansible enters its container, and other hosts reach it by the container's name."""

    def __init__(
        self, folder: Path, name: str, suite: str, net: str, models: list[dict[str, Any]], **variables: Any
    ) -> None:
        super().__init__(folder, models, name=name)
        self.suite = suite
        self.container = f"{net}-{name}"
        self.net = net
        self.more = variables

    def variables(self) -> dict[str, Any]:
        """Return the host's variables."""
        return {
            "ansible_connection": "community.docker.docker",
            "ansible_host": self.container,
            "ansible_python_interpreter": "/usr/bin/python3",
            **({"vllm_models": self.models} if self.models else {}),
            "vllm_docker_host": False,  # it has an engine
            "docker_host_check_neighbours": False,
            "vllm_servers_logrotate_dir": "",
            **self.more,
        }

    def __enter__(self) -> Self:
        powers = [word for power in POWERS for word in ("--cap-add", power)]
        free = [
            word for what in ("seccomp", "apparmor", "systempaths") for word in ("--security-opt", f"{what}=unconfined")
        ]
        mounts = [word for place in ("/run", "/run/lock", "/tmp") for word in ("--tmpfs", f"{place}:exec")]
        # The engine's layers can't lie on a layer.
        mounts += ["--volume", "/var/lib/docker"]
        mounts += ["--volume", f"{compose_plugin()}:/usr/local/lib/docker/cli-plugins/docker-compose:ro"]
        try:
            docker(
                *("run", "--detach", "--name", self.container, "--hostname", self.name, "--network", self.net),
                *(*powers, *free, *mounts, "--stop-signal", "SIGRTMIN+3", machine_image(self.suite)),
                *("unshare", "--cgroup", "sh", "-euc", BOOT),
            )
            self._wait_for_boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        docker("rm", "--force", "--volumes", self.container, check=False)

    def run(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        """Return what a command on the host printed, on both streams."""
        return command("docker", "exec", self.container, *words, check=check, timeout=timeout)

    @property
    def address(self) -> str:
        """Its address on the network."""
        return str(inspect(self.container)["NetworkSettings"]["Networks"][self.net]["IPAddress"])

    def load(self, archive: Path) -> None:
        """Give its engine the images of an archive."""
        with archive.open("rb") as images:
            words = ["docker", "exec", "--interactive", self.container, "docker", "load"]
            subprocess.run(words, stdin=images, stdout=subprocess.DEVNULL, check=True, timeout=300)

    def halt(self) -> float:
        """End all of it at once; when that was. Its connections end with their processes."""
        docker("kill", self.container)
        return moment(inspect(self.container)["State"]["FinishedAt"])

    def boot(self) -> None:
        """Start it again after that."""
        docker("start", self.container)
        self._wait_for_boot()

    def unplug(self) -> float:
        """Take it off the network, without a word to anybody; when that was done."""
        docker("network", "disconnect", self.net, self.container)
        return time.time()

    def plug(self) -> None:
        """Connect it again."""
        docker("network", "connect", self.net, self.container)

    def unit(self, name: str) -> dict[str, str]:
        """Return the properties of a unit."""
        return dict(line.partition("=")[::2] for line in self.run("systemctl", "show", name).splitlines())

    def said(self, unit: str, text: str, since: float = 0.0) -> list[float]:
        """When a unit has said something with this text."""
        words = ["journalctl", "--unit", unit, "--output", "short-unix", "--no-pager", "--quiet"]
        lines = [line.split(" ", 1) for line in self.run(*words, check=False).splitlines()]
        return [float(when) for when, line in lines if text in line and float(when) >= since]

    def journal(self, *units: str, lines: int = 40) -> str:
        """The last lines of units."""
        named = [word for unit in units for word in ("--unit", unit)]
        return self.run("journalctl", *named, "--lines", str(lines), "--no-pager", check=False)

    def _wait_for_boot(self) -> None:
        def booted() -> bool:
            assert inspect(self.container)["State"]["Running"], docker("logs", self.container, check=False)
            return self.run("systemctl", "is-system-running", check=False) in ("running", "degraded")

        until(booted, lambda: self.run("systemctl", "list-jobs", check=False))


def archive(folder: Path, *images: str) -> Path:
    """The images in a file, which hosts load."""
    file = folder / "images.tar"
    docker("save", "--output", str(file), *images, timeout=300)
    return file


def may_make_hosts() -> bool:
    """Whether this user can."""
    return os.geteuid() == 0
