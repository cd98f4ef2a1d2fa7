# SPDX-License-Identifier: MIT
"""A host with the two tiny models on real vLLM, run by the playbooks and by the host's own command line.

One pair of servers serves all tests: it takes a minute to start them. Whoever needs a state brings it about first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import canary
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse

from tests.playbooklib import Ansible, Host, Run, complete, is_sleeping
from tests.serverlib import ROOT, free_port, real_command, real_settings

A, B = "tiny-a", "tiny-b"
WEIGHTS = "model.safetensors"
LONGEST = 16384  # tokens that the tiny models take
SWITCHING: dict[str, Any] = {"canary": "auto", "failure_backoff_seconds": 0}


@dataclasses.dataclass
class Answer:
    """One ended run of the command line."""

    status: int
    errors: str
    result: dict[str, Any]  # empty where none was printed


@dataclasses.dataclass
class Stack:
    """The stack folder, with models.json, and the folder of each model's weights, which is its own."""

    folder: Path
    weights: dict[str, Path]
    models: dict[str, dict[str, Any]]

    def declare(self, sleep_level: str = "1", **switching: object) -> None:
        """Write models.json."""
        for model in self.models.values():
            model["sleep_level"] = sleep_level
        declaration = {"vllm_models": list(self.models.values()), "vllm_switching": {**SWITCHING, **switching}}
        (self.folder / "models.json").write_text(json.dumps(declaration), encoding="utf-8")

    def switch(self, name: str, *options: str, timeout: float = 300) -> Answer:
        """Make a model active."""
        command = [sys.executable, "-m", "switching", "--stack-dir", str(self.folder), "switch", name, "--json"]
        ended = subprocess.run(
            [*command, *options],
            env={**os.environ, "PYTHONPATH": str(ROOT / "plugins" / "module_utils")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        result = json.loads(ended.stdout) if ended.stdout else {}
        return Answer(ended.returncode, ended.stderr, result)

    def settle(self) -> None:
        """Have A active and B asleep at level 1, whatever was before."""
        self.declare(drain_timeout_seconds=120)
        for name in (B, A):
            answer = self.switch(name)
            assert answer.status == 0, answer.errors
        # What other tests have taken is not to choose the level.
        (self.folder / "run/costs.json").unlink(missing_ok=True)

    def port(self, name: str) -> int:
        """Return the port of a model."""
        return int(self.models[name]["host_port"])

    def text(self, name: str) -> str:
        """Return what a model answers to a client."""
        return str(complete(self.port(name), name, 64)["text"])

    def record(self, name: str) -> dict[str, Any]:
        """Return what is recorded of a model's canary."""
        record = canary.read(parse([self.models[name]], SWITCHING).find(name), str(self.folder))
        assert record is not None
        return dataclasses.asdict(record)

    def aborted(self, name: str) -> float:
        """Return how many requests the server has cut since it was started."""
        return self._metric(name, "vllm:request_success_total", 'finished_reason="abort"')

    def wait_until_running(self, name: str, number: int = 1) -> None:
        """Wait until the server has so many running requests."""
        deadline = time.monotonic() + 120
        while self._metric(name, "vllm:num_requests_running") != number:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _metric(self, name: str, metric: str, label: str = "") -> float:
        text = requests.get(f"http://127.0.0.1:{self.port(name)}/metrics", timeout=10).text
        (line,) = [line for line in text.splitlines() if line.startswith(metric + "{") and label in line]
        return float(line.split()[-1])


class Pair:
    """The host with the two servers, how its bootstrap went, and what the playbooks know of it."""

    def __init__(self, folder: Path, venv: Path, ansible_playbook: str, before: Sequence[str] = ()) -> None:
        """C(before): the command of what stands before each server, as versions/proxy.py does, told the server's."""
        self.venv = venv
        weights = {name: folder / name for name in (A, B)}
        for name in (A, B):
            shutil.copytree(venv / "models" / name, weights[name])
        models = [
            {
                "id": name,
                "model": str(weights[name]),
                "host_port": free_port(),
                "weights_gb": 0.01,
                # An absolute path stays what it is behind the folder of the models.
                "start_command": self._command(str(weights[name]), before),
                "env": {**real_settings(venv), "STANDIN_GPU_DIR": ""},
                "startup_mode": mode,
            }
            for name, mode in ((A, "active"), (B, "sleep"))
        ]
        self.host = Host(folder, models)
        self.ansible = Ansible(ansible_playbook, folder, [self.host])
        self.stack = Stack(self.host.stack, weights, {str(model["id"]): dict(model) for model in models})
        # Which servers were seen loading, and which awake, at every look during the bootstrap.
        self.together: list[set[str]] = []
        self.bootstrap = self._bootstrap()
        # Which of them was awake then.
        self.left = {name for name in (A, B) if self._holds_the_gpu(name)}

    def _command(self, weights: str, before: Sequence[str]) -> list[str]:
        """Return the start_command."""
        if not before:
            return real_command(self.venv, weights, "${host_port}", ["${id}"])
        return [*before, *real_command(self.venv, weights, "{port}", ["${id}"], max_model_len=LONGEST)]

    def _bootstrap(self) -> Run:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.25):
                # One that does not answer in time may be either: the next look tells.
                with contextlib.suppress(requests.RequestException):
                    self.together.append({name for name in (A, B) if self._holds_the_gpu(name)})

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return self.ansible.play("bootstrap", timeout=600)
        finally:
            over.set()
            watcher.join()

    def _holds_the_gpu(self, name: str) -> bool:
        """Whether the server has been started and does not sleep: it is loading or awake."""
        if not (self.host.stack / "run" / f"{name}.pid").exists():
            return False
        try:
            return not is_sleeping(self.host.port(name))
        except requests.ConnectionError:
            return True

    def settle(self) -> None:
        """Have A active and B asleep at level 1, each with its own weights, whatever was before."""
        assert self.bootstrap.status == 0, self.bootstrap.output
        for name in (A, B):
            self.put_weights(name, name)
        self.stack.settle()

    def put_weights(self, name: str, of: str) -> None:
        """Put the weights of one into a model's folder, in one go as a download does."""
        file = self.stack.weights[name] / WEIGHTS
        new = file.with_suffix(".new")
        shutil.copyfile(self.venv / "models" / of / WEIGHTS, new)
        os.replace(new, file)
