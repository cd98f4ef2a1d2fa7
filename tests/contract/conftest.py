# SPDX-License-Identifier: MIT
"""The servers that the contract suite is run against.

    pytest tests/contract                      the stand-in, in the new style and in the old one
    pytest tests/contract --target real        real vLLM (built by tools/real_vllm.sh when absent)

CONTRACT_TARGET=real does the same. Every case runs on both targets; @holds_for("new") or
@holds_for("old") says that it is true only from vLLM 0.17 on, or only before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests

from tests.serverlib import Server, real_venv, start_real, start_standin

MODEL, ALIAS, OTHER = "tiny-a", "alias-of-tiny-a", "tiny-b"
API_KEY = "sk-contract"
MAX_MODEL_LEN = 4096
VERSIONS = {"new": "0.32.0", "old": "0.11.0"}
LONG = 2000  # tokens: five seconds on real vLLM with a fast CPU; three on the stand-in
STANDIN: dict[str, Any] = {"tokens_per_second": 700, "load_seconds": 0.3}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", choices=["standin", "real"], help="what the contract suite runs against")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "holds_for(style): the case is about one of the styles, new or old, only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each case for the styles it holds for; where pytest is started elsewhere, --target is not known to it."""
    if "pair" not in metafunc.fixturenames:
        return
    target = metafunc.config.getoption("--target", default=None) or os.environ.get("CONTRACT_TARGET", "standin")
    marker = metafunc.definition.get_closest_marker("holds_for")
    styles = marker.args if marker else ("new", "old")
    params: list[Any] = [f"standin-{style}" for style in styles]
    if target == "real":
        # It may have to be built first; and what is pinned is today as it was yesterday.
        marks = [pytest.mark.timeout(900), pytest.mark.whole]
        if "new" not in styles:
            marks.append(pytest.mark.skip(reason="allowed: about servers older than the real one"))
        params = [pytest.param("real-new", marks=marks)]
    metafunc.parametrize("pair", params, indirect=True, scope="session")


@dataclass
class Pair:
    """A server in dev mode, and one without it but with an API key and another model."""

    style: str
    server: Server
    guarded: Server
    refused_while_loading: list[bool]


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    target, style = request.param.split("-")
    names = [MODEL, ALIAS]
    length = ["--max-model-len", str(MAX_MODEL_LEN)]
    if target == "real":
        venv = real_venv()
        server = start_real(venv, MODEL, names=names, wait=False, max_model_len=MAX_MODEL_LEN)
        guarded = start_real(venv, OTHER, dev_mode=False, flags=["--api-key", API_KEY], wait=False)
    else:
        settings = {**STANDIN, "version": VERSIONS[style]}
        flags = ["--enable-sleep-mode", *length]
        server = start_standin(MODEL, names=names, flags=flags, wait=False, **settings)
        guarded_flags = [*length, "--api-key", API_KEY]
        guarded = start_standin(OTHER, dev_mode=False, flags=guarded_flags, wait=False, **settings)
    try:
        refused = [_refuses(server), _refuses(guarded)]
        for each in (server, guarded):
            each.wait_ready(300)
        yield Pair(style, server, guarded, refused)
    finally:
        for each in (server, guarded):
            each.stop()


def _refuses(server: Server) -> bool:
    try:
        requests.get(server.url + "/health", timeout=5)
    except requests.ConnectionError:
        return True
    return False


@pytest.fixture
def style(pair: Pair) -> str:
    return pair.style


@pytest.fixture
def guarded(pair: Pair) -> Server:
    """The server with an API key and no dev mode."""
    return pair.guarded


@pytest.fixture
def server(pair: Pair) -> Iterator[Client]:
    """The server in dev mode: awake before the case, and brought back to that after it."""
    client = Client(pair.server, pair.style)
    client.recover()
    yield client
    client.recover()
    client.pool.shutdown(cancel_futures=True)


@dataclass
class Client:
    """What the cases do with a server."""

    server: Server
    style: str
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8))

    def get(self, path: str, **kwargs: Any) -> requests.Response:
        return self.server.call("GET", path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> requests.Response:
        return self.server.call("POST", path, **kwargs)

    def complete(self, prompt: str | list[str] = "hello", tokens: int = 8, **more: Any) -> requests.Response:
        """A greedy completion; a random model must not end it early."""
        timeout = more.pop("timeout", 60)
        body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
        return self.post("/v1/completions", json=body, timeout=timeout)

    def text(self, prompt: str = "hello", tokens: int = 24) -> str:
        return self.complete(prompt, tokens).json()["choices"][0]["text"]

    def long_completion(self) -> Any:
        """Start one in the background; return its future once it runs."""
        future = self.pool.submit(self.complete, "once", LONG)
        self.until(lambda: self.running() == 1)
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

    def recover(self) -> None:
        """End what runs or hangs, and wake up."""
        if self.style == "new":
            self.post("/sleep?level=0&mode=abort")
            self.post("/wake_up")
        else:
            self.until(lambda: self.running() == 0)
            if self.is_sleeping():
                self.awake()
        # After level 2 nothing else makes the answers right again.
        self.post("/collective_rpc", json={"method": "reload_weights"})
        assert not self.is_sleeping()
