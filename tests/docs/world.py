# SPDX-License-Identifier: MIT
"""Where the commands of the pages are run: somebody's empty home folder, and a host that is this machine.

What a reader has and does is there for real: the package that `ansible-galaxy collection build` makes, beside nothing
but the collections it depends on; the inventory that is shipped, copied by the page's own command. Only what the reader
is told to edit is edited here: the hosts' names become this machine, and each model gets a `start_command` that
serves it by a stand-in, so that neither GPU nor container engine is needed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.serverlib import ROOT, STANDIN, reserved

# What the pages show; the host has others, so that they can be run beside anything else.
FIRST_PORT = 8001
STACK = "/opt/homegpt"
# Of each of its two GPUs.
GPU_TOTAL_GB = "32"
# The pages say what it is.
ANSIBLE_CFG = """\
[defaults]
forks = 50
callback_result_format = yaml
display_skipped_hosts = false

[connection]
pipelining = true
"""
# Files of other systems that the page about moving begins with.
OTHERS = ROOT / "tests/integration_playbooks/data"


@functools.cache
def free_ports() -> int:
    """Return the first of ten free ports that are as long as those of the pages, so that tables look alike."""

    def free(port: int) -> bool:
        with contextlib.closing(socket.socket()) as sock:
            return sock.connect_ex(("127.0.0.1", port)) != 0

    return next(
        first for first in range(9011, 9999, 10) if reserved(first, 10) and all(free(first + n) for n in range(10))
    )


class _Indented(yaml.SafeDumper):
    """Indents lists below their key, as yamllint wants it."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)


def edited(said: object) -> str:
    """Return the text of a file of the inventory; only the paths of this machine may be too long for yamllint."""
    text = yaml.dump(said, Dumper=_Indented, sort_keys=False, explicit_start=True)
    return "# yamllint disable rule:line-length\n" + text


class World:
    """A home folder with the package and its dependencies in it, and a host."""

    def __init__(self, folder: Path, package: Path, number: int = 0) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.here = self.home / "work"
        self.stack = folder / "opt/homegpt"
        self.first_port = free_ports() + 5 * number
        self.here.mkdir(parents=True)
        collections = self.home / ".ansible/collections/ansible_collections"
        collections.mkdir(parents=True)
        (collections / "community").symlink_to(ROOT / ".build/ansible_collections/community")
        shutil.copy(package, self.here)
        (self.here / "ansible.cfg").write_text(ANSIBLE_CFG, encoding="utf-8")
        shutil.copytree(OTHERS / "homegpt", self.here, dirs_exist_ok=True)
        shutil.copy(OTHERS / "llama-swap.yaml", self.here)
        shutil.copy(OTHERS / "compose/compose.yaml", self.here)
        shutil.copy(OTHERS / "compose/values.env", self.here / ".env")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ANSIBLE_", "STANDIN_", "VLLM_", "PYTEST_", "COLUMNS"))
        }
        self.env = {
            **kept,
            "HOME": str(self.home),
            "PATH": os.pathsep.join(
                (str(ROOT / "tests/standin/bin"), str(Path(sys.executable).parent), os.environ["PATH"])
            ),
            "ANSIBLE_NOCOLOR": "1",
            # The host's nvidia-smi.
            "STANDIN_GPU_DIR": str(folder / "gpus"),
            "STANDIN_GPU_TOTAL_GB": GPU_TOTAL_GB,
            # There is no network where this is run; what the package depends on is there.
            "ANSIBLE_GALAXY_SERVER": "http://127.0.0.1:9/",
            "LC_ALL": "C.UTF-8",
        }

    def adapt(self, inventory: Path) -> None:
        """Edit an inventory as the pages say: name the hosts. Here they are this machine."""
        hosts = inventory / "hosts.yml"
        variables = inventory / "group_vars/vllm_hosts.yml"
        if not hosts.exists() or "example.net" not in hosts.read_text(encoding="utf-8"):
            return
        known = yaml.safe_load(hosts.read_text(encoding="utf-8"))
        for name in known["vllm_hosts"]["hosts"]:
            known["vllm_hosts"]["hosts"][name] = {
                "ansible_connection": "local",
                "ansible_become": False,
                "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            }
        hosts.write_text(edited(known), encoding="utf-8")
        said = yaml.safe_load(variables.read_text(encoding="utf-8"))
        said["vllm_models"] = [self.served(model) for model in said["vllm_models"]]
        said["vllm_switching"]["health_check_interval_seconds"] = 0.1
        said["vllm_stack_dir"] = str(self.stack)
        for name in ("compose_stack_unit_dir", "vllm_servers_logrotate_dir"):
            said[name] = str(self.folder / "etc")
        (self.folder / "etc").mkdir(exist_ok=True)
        variables.write_text(edited(said), encoding="utf-8")

    def served(self, model: dict[str, Any]) -> dict[str, Any]:
        """Return the model with a stand-in for its container, on a port of its own."""
        command = [sys.executable, str(STANDIN), "serve", "${model}", "--served-model-name", "${id}", "${model}"]
        command += ["--host", "127.0.0.1", "--port", "${host_port}", "--tensor-parallel-size", "2"]
        # Stand-ins read no weights; the command that reads them ahead does.
        hub = self.folder / "huggingface/hub"
        weights = hub / ("models--" + str(model["model"]).replace("/", "--")) / "snapshots/0/model.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(bytes(1000))
        return {
            **model,
            "host_port": model["host_port"] - FIRST_PORT + self.first_port,
            # Stand-ins have no weights: this machine's RAM is not asked for them.
            "weights_gb": 0.01,
            "start_command": [*command, "--enable-sleep-mode"],
            "env": {
                "HF_HUB_CACHE": str(hub),
                "STANDIN_GPU_DIR": str(self.folder / "gpus"),
                "STANDIN_GPU_TOTAL_GB": GPU_TOTAL_GB,
                "STANDIN_ASLEEP_GB": "1",
                "STANDIN_LOAD_SECONDS": "0.3",
                "STANDIN_SLEEP_SECONDS": "0.3",
                "STANDIN_WAKE_SECONDS": "0.5",
            },
        }

    def real(self, command: str) -> str:
        """Return a command of a page with this host's folder in it."""
        return command.replace(STACK, str(self.stack))

    def shown(self, output: str) -> str:
        """Return what a command printed as a page shows it."""
        output = output.replace(str(self.stack), STACK).replace(str(self.home), "/home/you")
        for number in range(5):
            output = output.replace(str(self.first_port + number), str(FIRST_PORT + number))
        return output.replace(socket.gethostname(), "gpu1")

    def run(self, command: str, folder: Path, timeout: float = 300) -> tuple[int, str]:
        """Run a command line in bash; its exit status and what it printed."""
        ended = subprocess.run(
            ["bash", "-c", self.real(command)],
            cwd=folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        for inventory in self.here.glob("*/"):
            self.adapt(inventory)
        return ended.returncode, self.shown(ended.stdout)

    def end(self) -> None:
        """End what the models' commands have started."""
        for file in self.stack.glob("run/*.pid"):
            with contextlib.suppress(ValueError, OSError):
                os.killpg(json.loads(file.read_text(encoding="utf-8"))["pid"], signal.SIGKILL)


def build(folder: Path) -> Path:
    """Return the package of what git would commit now."""
    copy = subprocess.run(
        ["bash", str(ROOT / "tools/clean_copy.sh"), str(folder / "copy")],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout.strip()
    galaxy = Path(sys.executable).with_name("ansible-galaxy")
    subprocess.run(
        [str(galaxy), "collection", "build", "--output-path", str(folder), copy],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    (package,) = folder.glob("homegpt-vllm-*.tar.gz")
    return package
