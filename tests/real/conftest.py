# SPDX-License-Identifier: MIT
"""Real vLLM, for what is worth proving against the real thing.

They take minutes and gigabytes the first time, so they are asked for: REAL_VLLM=1 pytest tests/real
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.playbooklib import Host
from tests.serverlib import real_venv

from .stack import Pair


@pytest.fixture(scope="session")
def venv() -> Path:
    """The virtual environment of real vLLM."""
    if os.environ.get("REAL_VLLM") != "1":
        pytest.skip("REAL_VLLM=1 runs this against real vLLM")
    return real_venv()


@pytest.fixture(scope="session")
def real_pair(venv: Path, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two servers that bootstrap.yml has started and teardown.yml ends."""
    folder = tmp_path_factory.mktemp("real")
    try:
        made = Pair(folder, venv, ansible_playbook)
        yield made
        assert made.ansible.play("teardown").changed() == 2  # the servers, and the folder
    finally:
        # Also where the bootstrap failed.
        Host(folder, []).kill()
