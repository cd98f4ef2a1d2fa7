# SPDX-License-Identifier: MIT
"""A host with the two tiny models on real vLLM, run by the host's own command line as a user runs it.

Its servers are started as the engine starts them, so that the engine may end them and start them again, but both at
once: one after the other they take a minute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import canary
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import LifecycleError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import for_model

from tests.playbooklib import complete
from tests.serverlib import ROOT, free_port, real_command, real_settings

A, B = "tiny-a", "tiny-b"
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
    models: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

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
        deadline = time.monotonic() + 30
        while self._metric(name, "vllm:num_requests_running") != number:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _metric(self, name: str, metric: str, label: str = "") -> float:
        text = requests.get(f"http://127.0.0.1:{self.port(name)}/metrics", timeout=10).text
        (line,) = [line for line in text.splitlines() if line.startswith(metric + "{") and label in line]
        return float(line.split()[-1])


@contextlib.contextmanager
def running(folder: Path, venv: Path) -> Iterator[Stack]:
    """Start both servers, put the second one to sleep, and end them in the end."""
    stack = Stack(folder / "stack", {name: folder / name for name in (A, B)})
    stack.folder.mkdir()
    for name, weights in stack.weights.items():
        shutil.copytree(venv / "models" / name, weights)
        stack.models[name] = {
            "id": name,
            "model": str(weights),
            "host_port": free_port(),
            "weights_gb": 0.01,
            # An absolute path stays what it is behind the folder of the models.
            "start_command": real_command(venv, str(weights), "${host_port}", ["${id}"]),
            "env": real_settings(venv),
        }
    stack.declare()
    inventory = parse(list(stack.models.values()), SWITCHING)
    lifecycles = {model.id: for_model(model, str(stack.folder), inventory.switching) for model in inventory.models}
    try:
        for lifecycle in lifecycles.values():
            lifecycle.start()
        deadline = time.monotonic() + 300
        for name, lifecycle in lifecycles.items():
            while not is_healthy(stack.port(name)):
                assert lifecycle.process().running, "\n".join(lifecycle.last_lines())
                assert time.monotonic() < deadline, "\n".join(lifecycle.last_lines())
                time.sleep(0.2)
        requests.post(f"http://127.0.0.1:{stack.port(B)}/sleep?level=1", timeout=60).raise_for_status()
        yield stack
    finally:
        for lifecycle in lifecycles.values():
            with contextlib.suppress(LifecycleError):  # it is not running
                lifecycle.stop()


def is_healthy(port: int) -> bool:
    """Whether a server is ready."""
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200
    except requests.RequestException:
        return False
