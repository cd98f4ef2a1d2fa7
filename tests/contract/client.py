# SPDX-License-Identifier: MIT
"""A server as somebody sees it who switches models: its calls, its gauges, and how it is brought back to normal."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.serverlib import Server

from .families import Family

MODEL, ALIAS, OTHER = "tiny-a", "alias-of-tiny-a", "tiny-b"
LONG = 2000  # tokens: five seconds on real vLLM with a fast CPU; three on the stand-in


@dataclass
class Client:
    """What the cases do with a server."""

    server: Server
    family: Family
    guarded: Server | None = None
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8))
    # How long a long completion took; known from the first one on.
    seconds_of_long: float = 0

    def get(self, path: str, **kwargs: Any) -> requests.Response:
        return self.server.call("GET", path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> requests.Response:
        return self.server.call("POST", path, **kwargs)

    def complete(
        self, prompt: str | list[str] | list[int] | list[list[int]] = "hello", tokens: int = 8, **more: Any
    ) -> requests.Response:
        """A greedy completion; a random model must not end it early."""
        timeout = more.pop("timeout", 60)
        body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
        return self.post("/v1/completions", json=body, timeout=timeout)

    def text(self, prompt: str = "hello", tokens: int = 24) -> str:
        return self.complete(prompt, tokens).json()["choices"][0]["text"]

    def long_completion(self) -> Any:
        """Start one in the background; return its future once it runs and has a token."""
        before = self.generated()
        future = self.pool.submit(self.complete, "once", LONG)
        self.until(lambda: self.running() == 1 and self.generated() > before)
        return future

    def is_sleeping(self) -> bool:
        return self.get("/is_sleeping").json()["is_sleeping"]

    def metrics(self, name: str) -> dict[str, float]:
        """Return one metric family: labels as they are written -> value."""
        lines = self.get("/metrics").text.splitlines()
        start = name + "{"
        return {line[len(start) :].split("}")[0]: float(line.split()[-1]) for line in lines if line.startswith(start)}

    def running(self) -> float:
        return sum(self.metrics("vllm:num_requests_running").values())

    def generated(self) -> float:
        return sum(self.metrics("vllm:generation_tokens_total").values())

    def waiting(self) -> float:
        return sum(self.metrics("vllm:num_requests_waiting").values())

    def sleep_gauge(self) -> dict[str, float]:
        """Return state -> value of the sleep gauge."""
        found = self.metrics("vllm:engine_sleep_state").items()
        return {labels.split('sleep_state="')[1].rstrip('"'): value for labels, value in found}

    def until(self, condition: Any, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it did not become true"
            time.sleep(0.02)

    def fall_asleep(self, level: int = 1) -> None:
        """Sleep, and see that it is so."""
        self.post(f"/sleep?level={level}").raise_for_status()
        assert self.is_sleeping()

    def awake(self, query: str = "") -> None:
        """Wake, and see that it is so."""
        self.post("/wake_up" + query).raise_for_status()
        assert not self.is_sleeping()

    def reload(self) -> requests.Response:
        """Load the weights anew: after level 2 nothing else makes the answers right again."""
        return self.post("/collective_rpc", json={"method": "reload_weights"})

    def recover(self) -> None:
        """End what runs or hangs, and wake up."""
        if self.family.modes:
            self.post("/sleep?level=0&mode=abort")
        else:
            self.until(lambda: self.running() == 0)
        if self.family.pause != "none":
            self.post("/resume")
        self.post("/wake_up")
        self.until(lambda: not self.is_sleeping())
        self.reload()
