# SPDX-License-Identifier: MIT
"""What a switch by the model manager's service costs beside the same HTTP calls made by a script.

The service is a process of its own, as on a host.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import requests

from tests.serverlib import ROOT, Server, free_port

# The service looks at the servers after a switch, and what is timed next is not to meet that: for so long nobody asks.
SETTLE_SECONDS = 0.5


class Service:
    """The service on two servers, and one client."""

    def __init__(self, stack: Path, models: list[dict[str, Any]], settings: dict[str, Any]) -> None:
        stack.mkdir(exist_ok=True)
        (stack / "models.json").write_text(json.dumps({"vllm_models": models, "vllm_switching": settings}))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # A script switches beside it, which is none of the reconciler's business.
        config = {"stack_dir": str(stack), "port": port, "reconcile": False, "observe_seconds": 3600}
        (stack / "config.json").write_text(json.dumps(config))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([f"{ROOT}/roles/model_manager/files", *sys.path])}
        command = [sys.executable, "-m", "model_manager", str(stack / "config.json")]
        self.log = stack / "service.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.session = requests.Session()
        self.session.trust_env = False

    def await_answer(self) -> None:
        """Wait until it serves."""
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(requests.ConnectionError):
                self.session.get(self.url + "/health", timeout=10).raise_for_status()
                return
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def switch(self, model: str) -> float:
        """Have it switch; the seconds until the answer is there."""
        started = time.perf_counter()
        answer = self.session.post(self.url + "/switch", json={"model_id": model}, timeout=120)
        seconds = time.perf_counter() - started
        answer.raise_for_status()
        assert answer.json()["active_model"] == model
        return seconds

    def settle(self, servers: Sequence[Server]) -> None:
        """Let it look at the servers, as it does after a switch."""
        marks, since = [server.mark() for server in servers], time.monotonic()
        while time.monotonic() < since + SETTLE_SECONDS:
            time.sleep(0.05)
            now = [server.mark() for server in servers]
            if now != marks:
                marks, since = now, time.monotonic()


@contextlib.contextmanager
def service(stack: Path, models: list[dict[str, Any]], settings: dict[str, Any]) -> Iterator[Service]:
    """The service, which ends with the block."""
    served = Service(stack, models, settings)
    try:
        served.await_answer()
        yield served
    finally:
        served.session.close()
        served.process.terminate()
        try:
            served.process.wait(30)
        except subprocess.TimeoutExpired:
            served.process.kill()
            served.process.wait()
