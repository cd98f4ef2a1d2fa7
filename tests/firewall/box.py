# SPDX-License-Identifier: MIT
"""A host of its own on this machine, in namespaces: a Debian with systemd and its own Docker engine, and a neighbour.

with Box(tmp_path, "bookworm", models) as box:
    box.run("docker", "version")
    box.neighbour("curl", "http://10.9.0.1:3000")

Nothing of it is seen on this machine but processes, a control group, and what is in the folder; whatever ends the test
ends the processes.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, Self

from tests.playbooklib import Host
from tests.serverlib import ROOT

HERE = "10.9.0.1"
NEIGHBOUR = "10.9.0.2"
BUILD_SECONDS = 900.0


def command(*words: str, check: bool = True, timeout: float = 120, text: str | None = None) -> str:
    """Return what a command printed on both streams."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
    ended = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False, **given
    )
    assert ended.returncode == 0 or not check, f"{' '.join(words)}: {ended.stdout}"
    return ended.stdout.strip()


def until(true: Callable[[], bool], story: Callable[[], str], seconds: float = 90) -> None:
    """Wait until something is true; if it does not become so, fail and tell a story."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, story()
        time.sleep(0.2)


def compose_plugin() -> Path:
    """The program of this machine's `docker compose`."""
    folders = ["~/.docker", "/usr/local/lib/docker", "/usr/libexec/docker", "/usr/lib/docker"]
    plugins = [Path(folder).expanduser() / "cli-plugins/docker-compose" for folder in folders]
    found = [plugin for plugin in plugins if plugin.exists()]
    assert found, "docker compose is not on this machine: make engine"
    return found[0].resolve()


class Box(Host):
    """The host. Ansible enters its namespaces. Files of this machine that are C(shared) can be read there, too."""

    def __init__(self, folder: Path, suite: str, models: list[dict[str, Any]], shared: Iterable[Path] = ()) -> None:
        super().__init__(folder, models)
        self.shared = list(map(str, shared))
        self.stack = Path("/opt/homegpt")
        self.folder = folder / "box"
        self.folder.mkdir()
        self.suite = suite
        self.root = command("bash", str(ROOT / "tests/firewall/root.sh"), suite, timeout=BUILD_SECONDS).splitlines()[-1]
        groups = command("findmnt", "--noheadings", "--first-only", "--output", "TARGET", "--types", "cgroup2")
        self.group = Path(groups.splitlines()[0]) / f"homegpt-box-{suite}-{folder.name}"
        self.pid = 0
        self.near: subprocess.Popen[bytes] | None = None
        self.machine: subprocess.Popen[bytes] | None = None

    def variables(self) -> dict[str, Any]:
        """Return the host's variables: images that are there, no GPU."""
        return {
            "ansible_connection": "community.docker.nsenter",
            "ansible_nsenter_pid": self.pid,
            "ansible_python_interpreter": "/usr/bin/python3",
            "vllm_models": self.models,
            "vllm_image": "tiny:local",
            "vllm_gpu_access": "none",
            "open_webui_image": "tiny:local",
            # After a restart of the engine it would stop what is no real server of a model.
            "compose_stack_restore": False,
            "docker_host_check_disk": False,
            "docker_host_packages_from": "distribution",
        }

    def __enter__(self) -> Self:
        try:
            # Ends with whoever runs the tests. Its end ends all that is in it, and the interfaces.
            self.near = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.halt()
        if self.near:
            self.near.kill()
            self.near.wait()
        shutil.rmtree(self.folder)

    def boot(self) -> None:
        """Start the host, wait until all has started, and join it to the neighbour."""
        self.group.mkdir(exist_ok=True)
        script = ROOT / "tests/firewall/box.sh"
        namespaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child=KILL"]
        enter = f'echo $$ >"{self.group}/cgroup.procs" && exec "$@"'
        boot = ["bash", str(script), self.root, str(self.folder), self.suite, *self.shared]
        self.machine = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "bash", "-c", enter, "bash", "unshare", *namespaces, *boot],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        children = Path(f"/proc/{self.machine.pid}/task/{self.machine.pid}/children")
        until(lambda: bool(children.read_text().split()), lambda: "no first process")
        self.pid = int(children.read_text().split()[0])

        def booted() -> bool:
            assert self.machine and self.machine.poll() is None, "the host has ended"
            return self.run("systemctl", "is-system-running", check=False) in ("running", "degraded")

        until(booted, lambda: self.run("systemctl", "list-jobs", check=False))
        assert self.near
        near = str(self.near.pid)
        link = ["ip", "link", "add", "lan0", "netns", str(self.pid), "type", "veth"]
        command(*link, "peer", "name", "eth0", "netns", near)
        self.run("sh", "-c", f"ip address add {HERE}/24 dev lan0 && ip link set lan0 up")
        self.neighbour(
            *("sh", "-ec"),
            f"ip address add {NEIGHBOUR}/24 dev eth0; ip link set eth0 up; ip route add default via {HERE};"
            f" ip route add 127.0.0.0/8 via {HERE}; echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet",
        )

    def halt(self) -> None:
        """End the host at once, as a power cut does; what it has written stays."""
        if self.machine:
            with contextlib.suppress(ProcessLookupError):
                self.machine.send_signal(signal.SIGKILL)
            self.machine.wait()
            self.machine = None
        # Of earlier runs that were killed, too.
        until(
            lambda: not any(_left(group) for group in self.group.parent.glob("homegpt-box-*")),
            lambda: "groups are left",
            20,
        )

    def run(self, *words: str, check: bool = True, text: str | None = None, timeout: float = 120) -> str:
        """Return what a command on the host printed."""
        return command(*self._inside, *words, check=check, text=text, timeout=timeout)

    @property
    def _inside(self) -> list[str]:
        spaces = ["--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup"]
        return ["nsenter", "--target", str(self.pid), *spaces, "--"]

    def feed(self, source: IO[bytes], *words: str) -> None:
        """Run a command on the host that reads this."""
        subprocess.run([*self._inside, *words], stdin=source, check=True, timeout=300)

    def install_compose(self) -> None:
        """Give the host this machine's `docker compose`."""
        target = "/usr/local/lib/docker/cli-plugins/docker-compose"
        with compose_plugin().open("rb") as program:
            self.feed(program, "sh", "-c", f"install -D /dev/null {target} && cat >{target} && chmod 0755 {target}")

    def neighbour(self, *words: str, check: bool = True) -> str:
        """Return what a command in the neighbour's place printed."""
        assert self.near
        return command("nsenter", "--target", str(self.near.pid), "--net", "--", *words, check=check)

    def answers(self, address: str, path: str = "is_sleeping") -> bool:
        """Whether an address of the host answers the neighbour."""
        asked = ["curl", "--silent", "--max-time", "2", "--output", "/dev/null", "--write-out", "%{http_code}"]
        told = self.neighbour(*asked, f"http://{address}/{path}", check=False)
        assert told in ("000", "200"), told
        return told == "200"

    def address(self, container: str) -> str:
        """Return the address of a container."""
        told = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return self.run("docker", "inspect", "--format", told, container)

    def succeeds(self, *words: str) -> bool:
        """Whether a command on the host succeeds."""
        return self.run("sh", "-c", '"$@" >/dev/null 2>&1; echo $?', "sh", *words) == "0"

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        """Write a file on the host."""
        self.run("sh", "-c", 'cat >"$0" && chmod "$1" "$0"', path, mode, text=text)


def _left(group: Path) -> bool:
    """Remove a control group that nobody is in, with those below; return whether it is there for no reason."""
    with contextlib.suppress(OSError):
        if "populated 0" not in (group / "cgroup.events").read_text(encoding="ascii"):
            return False
        for path in sorted((path for path in [group, *group.rglob("*")] if path.is_dir()), reverse=True):
            path.rmdir()
    return group.exists()
