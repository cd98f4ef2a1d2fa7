# SPDX-License-Identifier: MIT
"""A host with systemd, its own Docker engine and the model manager, as `site` and `bootstrap` make it.

with ManagedBox(folder, "bookworm", models) as box:
    box.provision(ansible_playbook)
    status, answer = box.ask("POST", "/switch", {"model_id": "b"})
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.firewall.box import Box, command
from tests.playbooklib import Ansible
from tests.serverlib import ROOT

UNIT = "homegpt-manager.service"
STACK = "/opt/homegpt"
URL = "http://127.0.0.1:9000"
# Seconds for one playbook, on two slow cores.
PLAY = 600.0
# What prints the files that make up a Python: its program, its library, and what it is linked to.
PYTHON_FILES = """
import os, sys, sysconfig
print(os.path.realpath(sys.executable))
print(sysconfig.get_path("stdlib"))
if sysconfig.get_config_var("Py_ENABLE_SHARED"):
    print(os.path.join(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")))
"""


class Runs(Protocol):
    """A host on which commands can be run."""

    def run(self, *words: str, check: bool = True) -> str:
        """What the command printed."""


def service_wheels(host: Runs, folder: Path) -> Path:
    """The wheels of the service's packages for the host's Python, downloaded to the folder."""
    version = host.run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    words += ["--require-hashes", "--only-binary", ":all:", "--python-version", version]
    for tag in ("manylinux2014", "manylinux_2_17", "manylinux_2_28"):
        words += ["--platform", f"{tag}_{platform.machine()}"]
    words += ["--requirement", str(ROOT / "roles/model_manager/files/requirements.txt")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


def python_files(venv: Path) -> list[Path]:
    """The files of this machine without which a virtual environment of it does not run, and the environment."""
    told = command(str(venv / "bin/python"), "-c", PYTHON_FILES)
    return [venv, *map(Path, told.splitlines())]


class ManagedBox(Box):
    """The host; its variables are those that a user would set, and images that are on it already."""

    def __init__(
        self,
        folder: Path,
        suite: str,
        models: list[dict[str, Any]],
        *,
        switching: Mapping[str, Any] | None = None,
        shared: Iterable[Path] = (),
        **variables: Any,
    ) -> None:
        super().__init__(folder, suite, models, shared)
        self.switching = dict(switching or {})
        self.more = variables
        self.work = folder

    def variables(self) -> dict[str, Any]:
        """Return the host's variables."""
        return {
            **super().variables(),
            "vllm_switching": self.switching,
            "vllm_docker_host": False,  # it has an engine
            "docker_host_check_neighbours": False,
            "vllm_servers_logrotate_dir": "",
            "model_manager_enabled": True,
            "model_manager_wheels_dir": str(self.work / "wheels"),
            **self.more,
        }

    def provision(self, ansible_playbook: str) -> None:
        """Have the playbooks do all that they do on a new host."""
        wheels, folder = self.work / "wheels", self.work / "play"
        for one in (wheels, folder):
            one.mkdir()
        service_wheels(self, wheels)
        ansible = Ansible(ansible_playbook, folder, [self])
        for playbook in ("site", "bootstrap"):
            ansible.play(playbook, timeout=PLAY).changed()

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = 200, url: str = URL
    ) -> tuple[int, Any]:
        """What curl on the host gets as answer: the status, 0 where nobody answers, and the JSON."""
        words = [*self.curl(method, path, body, seconds, url), "--write-out", "\n%{http_code}"]
        told, status = self.run(*words, check=False, timeout=seconds + 30).rpartition("\n")[::2]
        return int(status), json.loads(told) if status != "000" else None

    @staticmethod
    def curl(
        method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = 200, url: str = URL
    ) -> list[str]:
        """The command that asks."""
        words = ["curl", "--silent", "--max-time", str(seconds), *(["--request", method] if method != "GET" else [])]
        if body is not None:
            words += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
        return [*words, url + path]

    def complete(self, model: str, tokens: int = 8) -> str:
        """The text of a greedy completion by the model's own server; empty where it gives none."""
        body = {
            "model": model,
            "prompt": "Once upon a time",
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        status, answer = self.ask("POST", "/v1/completions", body, 20, f"http://127.0.0.1:{self.port(model)}")
        return str(answer["choices"][0]["text"]) if status == 200 else ""

    def desired(self) -> dict[str, str]:
        """What is recorded that the models are to be."""
        return dict(json.loads(self.run("cat", f"{STACK}/run/wanted.json"))["models"])

    def unit(self, name: str = UNIT) -> dict[str, str]:
        """Return the properties of a unit."""
        return dict(line.partition("=")[::2] for line in self.run("systemctl", "show", name).splitlines())

    def journal(self) -> str:
        """The last lines of the service."""
        return self.run(
            "journalctl", "--unit", UNIT, "--lines", "60", "--output", "short-precise", "--no-pager", check=False
        )


def shown(words: Iterable[str]) -> str:
    """A command as one types it."""
    return " ".join(shlex.quote(word) for word in words)
