# SPDX-License-Identifier: MIT
"""Hosts of a fleet: containers with sshd, each with stand-ins for vLLM behind its own loopback address.

with Fleet(tmp_path, 20) as fleet:
    ansible = Ansible(ansible_playbook, tmp_path, fleet.hosts)
    ansible.play("site", timeout=PLAY)
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import uuid
from pathlib import Path
from string import Template
from typing import Any

from tests.e2e.stack import docker
from tests.playbooklib import Host

# Debian 12 and 13, by turns.
IMAGES = ("fleet-host:bookworm", "fleet-host:trixie")
STACK = "/opt/homegpt"
FAULTS = "/run/faults-{}.json"
OLD, NEW = "old", "new"
PORTS = {OLD: 8001, NEW: 8002}
FORKS = ("-f", "10")
# Seconds for one playbook on a fleet: ten times what two quiet cores need, since they may be busy.
PLAY = 1200.0


def models() -> list[dict[str, Any]]:
    """Return the models of a host: C(old) is active at first, and C(new) sleeps."""
    command = ["/usr/local/bin/vllm", "serve", "${model}", "--served-model-name", "${id}", "${model}"]
    command += ["--host", "127.0.0.1", "--port", "${host_port}", "--enable-sleep-mode"]
    common = {"PYTHONPATH": "/opt/site-packages", "STANDIN_GPU_DIR": "/run/gpus"}
    return [
        {
            "id": name,
            "model": f"org/{name}",
            "host_port": PORTS[name],
            "weights_gb": 0.01,
            "startup_mode": "active" if name == OLD else "sleep",
            "start_command": command,
            "env": {**common, "STANDIN_FAULTS_FILE": FAULTS.format(name)},
        }
        for name in (OLD, NEW)
    ]


class SshHost(Host):
    """A host that Ansible reaches by SSH alone."""

    def __init__(self, folder: Path, name: str, container: str, address: str, key: Path) -> None:
        super().__init__(folder, models(), {"max_retries": 60, "drain_timeout_seconds": 5}, name)
        self.container = container
        self.address = address
        self.key = key
        self.more: dict[str, Any] = {}

    def variables(self) -> dict[str, Any]:
        """Return the host's variables."""
        return {
            "ansible_host": self.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            "ansible_python_interpreter": "/usr/bin/python3",
            "vllm_models": self.models,
            "vllm_switching": self.switching,
            **self.more,
        }

    def await_ssh(self) -> None:
        """Wait until its sshd listens."""
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((self.address, 22), 1).close()
            except OSError:
                assert time.monotonic() < deadline, f"no sshd on {self.name}"
                time.sleep(0.1)
            else:
                return

    def run(self, *command: str, check: bool = True) -> str:
        """Return what a command on the host printed."""
        return docker("exec", self.container, *command, check=check)

    def states(self) -> dict[str, str]:
        """Ask the host's own command line what each model is."""
        told = self.run("sh", "-c", f"cd {STACK} && python3 -m switching status --json")
        return {name: told["state"] for name, told in json.loads(told)["models"].items()}

    def active(self) -> list[str]:
        """Return the models that are active."""
        return [name for name, state in self.states().items() if state == "active"]

    def moves(self, since: float = 0.0) -> list[dict[str, Any]]:
        """Return when the stand-ins of this host went to sleep, woke, were loaded or ended; requests are left out."""
        events = [json.loads(line) for line in self.run("cat", "/run/gpus/events.jsonl").splitlines()]
        return [event for event in events if event["time"] > since and not event["event"].startswith("request")]

    def serve(self, name: str) -> None:
        """Start the server of a model without the collection."""
        for model in (model for model in self.models if model["id"] == name):
            words = (str(word) for word in model["start_command"])
            command = [Template(word).substitute(model) for word in words]
            variables = [part for name, value in model["env"].items() for part in ("--env", f"{name}={value}")]
            docker("exec", "--detach", "--env", "VLLM_SERVER_DEV_MODE=1", *variables, self.container, *command)

    def await_ready(self, model: str, sleep: bool = False) -> None:
        """Wait until the server of a model is ready, and put it to sleep."""
        script = (
            "import sys, time, urllib.request as r\n"
            "for _try in range(1000):\n"
            "    try: r.urlopen(sys.argv[1] + '/health').read(); break\n"
            "    except OSError: time.sleep(0.1)\n"
            "if sys.argv[2:]: r.urlopen(r.Request(sys.argv[1] + '/sleep?level=1', method='POST')).read()\n"
        )
        self.run("python3", "-c", script, f"http://127.0.0.1:{PORTS[model]}", *(["sleep"] if sleep else []))

    def break_down(self, model: str) -> None:
        """From now on the model can neither wake nor be started."""
        faults = [{"path": "/wake_up", "fault": "status_500", "times": 0}, {"path": "load", "fault": "die", "times": 0}]
        self.run("sh", "-c", f"echo '{json.dumps(faults)}' > {FAULTS.format(model)}")

    def repair(self, model: str) -> None:
        """Take that back."""
        self.run("rm", "-f", FAULTS.format(model))

    def ask(self, pause: float) -> None:
        """Begin to ask the host's active model for completions, for as long as the host lives."""
        command = ["python3", "/opt/client.py", "/run/client.jsonl", str(pause), *map(str, PORTS.values())]
        docker("exec", "--detach", self.container, *command)

    def asked(self) -> list[tuple[float, float, int, str]]:
        """Return every request of the client: when it began and ended, the port, and what went wrong."""
        return [tuple(json.loads(line)) for line in self.run("cat", "/run/client.jsonl").splitlines()]


class Fleet:
    """Containers on a network of their own, of which nothing is left at the end."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.tag = "fleet" + uuid.uuid4().hex[:6]
        self.names = [f"{self.tag}-{number:02}" for number in range(1, size + 1)]
        self.hosts: list[SshHost] = []
        key = folder / "key"
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
            (folder / "keys").mkdir()
            (folder / "keys" / "authorized_keys").write_text(key.with_suffix(".pub").read_text(), encoding="utf-8")
        try:
            docker("network", "create", self.tag)
            for number, name in enumerate(self.names):
                options = ["--hostname", f"gpu{number + 1:02}", "--network", self.tag, "--init", "--name", name]
                docker("run", "--detach", *options, "--volume", f"{folder / 'keys'}:/keys:ro", IMAGES[number % 2])
            told = json.loads(docker("inspect", *self.names))
            networks = {one["Name"].lstrip("/"): one["NetworkSettings"]["Networks"] for one in told}
            self.hosts = [
                SshHost(folder, f"gpu{number:02}", name, networks[name][self.tag]["IPAddress"], key)
                for number, name in enumerate(self.names, 1)
            ]
            for host in self.hosts:
                host.await_ssh()
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the containers, also those that hang, and the network."""
        docker("unpause", *self.names, check=False)
        docker("rm", "--force", "--volumes", *self.names, check=False)
        docker("network", "rm", self.tag, check=False)
