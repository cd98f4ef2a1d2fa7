# SPDX-License-Identifier: MIT
"""A host of the e2e tests: this machine, with a compose project of its own on the real engine.

stack = Stack(tmp_path, [contained("a", startup_mode="active"), contained("b")])
ansible = Ansible(ansible_playbook, tmp_path, [stack])
ansible.play("site", timeout=PLAY)
...
stack.remove()
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

from tests.playbooklib import Host, complete
from tests.serverlib import free_port

STANDIN_IMAGE = "vllm-standin:local"
WEBUI_IMAGE = "webui-standin:local"
CPU_IMAGE = "vllm-cpu:local"
IMAGES = (STANDIN_IMAGE, WEBUI_IMAGE, CPU_IMAGE)
# Seconds for one playbook, on two slow cores.
PLAY = 240.0


def docker(*arguments: str, check: bool = True, timeout: float = 120) -> str:
    """Return what the docker command printed."""
    ended = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
    )
    assert ended.returncode == 0 or not check, f"docker {' '.join(arguments)}: {ended.stderr}"
    return ended.stdout.strip()


def inspect(name: str) -> dict[str, Any]:
    """Return all that the engine tells of a container; nothing when there is none."""
    found = json.loads(docker("inspect", "--type", "container", name, check=False) or "[]")
    return found[0] if found else {}


def moment(text: str) -> float:
    """Return the seconds since the epoch of a time as the engine prints it, with nanoseconds and in UTC."""
    return datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00").timestamp()


@dataclass(frozen=True)
class Seen:
    """What tells whether a container was touched between two looks."""

    id: str
    started: str
    restarts: int

    def __str__(self) -> str:
        return f"{self.id[:12]} started {self.started} restarts {self.restarts}"


def contained(name: str, *, env: Mapping[str, object] | None = None, **fields: object) -> dict[str, Any]:
    """Return an entry of vllm_models for a server in a container."""
    return {
        "id": name,
        "model": f"org/{name}",
        "host_port": free_port(),
        "weights_gb": 0.01,
        "env": dict(env or {}),
        **fields,
    }


class Stack(Host):
    """A host whose models run in containers; project, network and containers carry names that nobody else has."""

    def __init__(
        self,
        folder: Path,
        models: list[dict[str, Any]],
        *,
        image: str = STANDIN_IMAGE,
        switching: Mapping[str, object] | None = None,
        **variables: object,
    ) -> None:
        super().__init__(folder, models, switching)
        self.tag = "e2e" + uuid.uuid4().hex[:6]
        self.webui = f"{self.tag}-open-webui"
        self.webui_port = free_port()
        self.gpus.mkdir(parents=True, exist_ok=True)
        for model in models:
            self.adopt(model)
        self.more: dict[str, Any] = {
            **self.settings(image),
            "compose_stack_project_name": self.tag,
            "compose_stack_network": self.tag,
            "open_webui_container_name": self.webui,
            **variables,
        }

    def settings(self, image: str) -> dict[str, Any]:
        """Return what any host of these tests overrides: images that are here, no GPU, its own folders and port."""
        return {
            "vllm_image": image,
            "vllm_gpu_access": "none",
            "vllm_cache_dir": str(self.stack.parent / "cache"),
            "vllm_volumes": [f"{self.gpus}:/gpus"],
            "vllm_env": {"STANDIN_GPU_DIR": "/gpus"},
            "open_webui_image": WEBUI_IMAGE,
            "open_webui_port": self.webui_port,
            # What lies outside the stack's folder is this machine's own.
            "vllm_docker_host": False,
            "docker_host_check_neighbours": False,
            "vllm_servers_logrotate_dir": "",
            "compose_stack_restore": False,
        }

    def adopt(self, model: dict[str, Any]) -> dict[str, Any]:
        """Give a model's container a name of this host's own."""
        model.setdefault("container_name", f"{self.tag}-{model['id']}")
        return model

    def variables(self) -> dict[str, Any]:
        """Return the host's variables."""
        return {**super().variables(), **self.more}

    def container(self, name: str) -> str:
        """Return the name of a model's container."""
        return next(str(model["container_name"]) for model in self.models if model["id"] == name)

    def seen(self, *more: str) -> dict[str, Seen]:
        """Look at every model's container that there is, and at others by name."""
        names = {str(model["id"]): str(model["container_name"]) for model in self.models}
        looked = {name: inspect(container) for name, container in {**names, **{name: name for name in more}}.items()}
        return {
            name: Seen(found["Id"], found["State"]["StartedAt"], found["RestartCount"])
            for name, found in looked.items()
            if found
        }

    def states(self) -> dict[str, str]:
        """Ask every model's server itself: awake, asleep, or nothing there."""
        told = {}
        for model in self.models:
            try:
                answer = requests.get(f"http://127.0.0.1:{model['host_port']}/is_sleeping", timeout=10)
                told[str(model["id"])] = "asleep" if answer.json()["is_sleeping"] else "awake"
            except requests.ConnectionError:
                told[str(model["id"])] = "stopped"
        return told

    def load_seconds(self) -> dict[str, float]:
        """Return the seconds that each server took, from its container's start to its first `awake`."""
        awake: dict[str, float] = {}
        for event in self.events():
            if event["event"] == "awake":
                awake.setdefault(event["model"], event["time"])
        return {name: awake[name] - moment(seen.started) for name, seen in self.seen().items()}

    def containers(self) -> list[str]:
        """Return the names of all containers of this host's project, running or not."""
        project = f"label=com.docker.compose.project={self.more.get('compose_stack_project_name', self.tag)}"
        return docker("ps", "--all", "--filter", project, "--format", "{{.Names}}").split()

    def remove(self) -> None:
        """Remove all that the tests may have made, however they ended."""
        names = {str(model["container_name"]) for model in self.models} | {self.webui, *self.containers()}
        docker("rm", "--force", "--volumes", *sorted(names), check=False)
        docker("network", "rm", str(self.more["compose_stack_network"]), check=False)
        for folder in (self.stack, self.stack.parent / "cache", self.gpus):
            wipe(folder)


def wipe(folder: Path) -> None:
    """Remove a folder, also with files in it that a container wrote as root."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except PermissionError:
        mount = f"{folder.parent}:/mnt"
        program = ["--entrypoint", "rm", STANDIN_IMAGE, "-rf", f"/mnt/{folder.name}"]
        docker("run", "--rm", "--volume", mount, *program, check=False)


@dataclass
class Client:
    """What a client saw that kept asking a model."""

    asked: int = 0
    errors: list[str] = field(default_factory=list)
    longest: float = 0.0


@contextlib.contextmanager
def asking(port: int, model: str) -> Iterator[Client]:
    """Ask a model for completions, one after the other, until the block ends."""
    seen = Client()
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.02):
            started = time.monotonic()
            try:
                complete(port, model, 4)
            except (requests.RequestException, ValueError, KeyError) as problem:
                seen.errors.append(f"{time.strftime('%X')} {problem!r}")
            seen.asked += 1
            seen.longest = max(seen.longest, time.monotonic() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
