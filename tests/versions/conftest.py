# SPDX-License-Identifier: MIT
"""Two real servers of one version: REAL_VLLM=0.17.1 pytest tests/versions, as `make vllm-versions` calls it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.families import FAMILIES, Family
from tests.playbooklib import Host
from tests.real.stack import A, B, Pair
from tests.serverlib import real_venv

from . import proxy


@pytest.fixture(scope="session")
def version() -> str:
    """The version that is asked for."""
    if os.environ.get("REAL_VLLM") not in FAMILIES:
        pytest.skip("allowed: REAL_VLLM=0.17.1 runs this against the real vLLM 0.17.1, and so on")
    return os.environ["REAL_VLLM"]


@pytest.fixture(scope="session")
def family(version: str) -> Family:
    return FAMILIES[version]


@pytest.fixture(scope="session")
def orders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders in which the proxies are told what to do."""
    parent = tmp_path_factory.mktemp("orders")
    made = {name: parent / name for name in (A, B)}
    for folder in made.values():
        folder.mkdir()
    return made


@pytest.fixture(scope="session")
def pair(
    version: str, orders: dict[str, Path], ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Two servers, each behind a proxy, that bootstrap.yml has started."""
    folder = tmp_path_factory.mktemp("real")
    before = [sys.executable, str(Path(proxy.__file__)), f"{orders[A].parent}/${{id}}", "${host_port}"]
    try:
        made = Pair(folder, real_venv(version), ansible_playbook, before)
        assert made.bootstrap.status == 0, made.bootstrap.output
        yield made
    finally:
        Host(folder, []).kill()
