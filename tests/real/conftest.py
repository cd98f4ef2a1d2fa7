# SPDX-License-Identifier: MIT
"""Two real vLLM servers for what is worth proving against the real thing.

They take minutes and gigabytes the first time, so they are asked for: REAL_VLLM=1 pytest tests/real
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serverlib import Server, real_venv, start_real

NAMES = {"tiny-a": "alias-of-a", "tiny-b": "alias-of-b"}


@pytest.fixture(scope="session")
def venv() -> Path:
    """The virtual environment of real vLLM."""
    if os.environ.get("REAL_VLLM") != "1":
        pytest.skip("REAL_VLLM=1 runs this against real vLLM")
    return real_venv()


@pytest.fixture(scope="session")
def real_pair(venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """The servers of tiny-a and tiny-b, in dev mode and awake at first; later as the case before left them."""
    logs = tmp_path_factory.mktemp("real")
    servers: list[Server] = []
    try:
        for model, alias in NAMES.items():
            servers.append(start_real(venv, model, names=[model, alias], log=logs / f"{model}.log", wait=False))
        for server in servers:
            server.wait_ready(300)
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.stop()
