# SPDX-License-Identifier: MIT
"""The servers that the contract suite is run against.

    pytest tests/contract                                   the stand-in, told to be each version of families.py
    pytest tests/contract --target real                     real vLLM, the newest (built when absent)
    pytest tests/contract --target real --vllm 0.11.0       another one; several with commas between

CONTRACT_TARGET=real does the same. Every case runs on both targets; @where(trait=value) says of which versions it is
true, by the table in families.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from tests.part import leave_out, quick
from tests.serverlib import NEWEST, Server, real_venv, start_real, start_standin
from tests.versions import page

from .client import ALIAS, MODEL, OTHER, Client
from .families import FAMILIES

# Of the stand-ins, where a part will do: the oldest, the newest, and the one that differs from both.
PART = ("0.11.0", "0.17.1", NEWEST)
API_KEY = "sk-contract"
MAX_MODEL_LEN = 4096
STANDIN: dict[str, Any] = {"tokens_per_second": 700, "load_seconds": 1}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", choices=["standin", "real"], help="what the contract suite runs against")
    parser.addoption("--vllm", help="the versions of vLLM, with commas between")


def pytest_configure(config: pytest.Config) -> None:
    if quick():
        leave_out("contract", "make test", [f"stand-in {version}" for version in FAMILIES if version not in PART])
    config.addinivalue_line("markers", "where(**traits): the case is about versions with these traits only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each case for the versions it is about; where pytest is started elsewhere, it does not know the options."""
    name = next((one for one in ("pair", "target") if one in metafunc.fixturenames), None)
    if name is None:
        return
    target = metafunc.config.getoption("--target", default=None) or os.environ.get("CONTRACT_TARGET", "standin")
    named = metafunc.config.getoption("--vllm", default=None)
    versions = named.split(",") if named else [NEWEST] if target == "real" else list(PART if quick() else FAMILIES)
    compared = metafunc.definition.originalname == "test_it_does_what_was_seen" and "SURVEY" not in os.environ
    marker = metafunc.definition.get_closest_marker("where")
    traits = marker.kwargs if marker else {}
    params: list[Any] = []
    for version in versions:
        fits = all(getattr(FAMILIES[version], trait) == value for trait, value in traits.items())
        fits = fits and (not compared or version in page.read())
        marks: list[Any] = []
        if target == "real":
            # It may have to be built first; and what is pinned is today as it was yesterday.
            marks = [pytest.mark.timeout(900), pytest.mark.whole]
        if not fits:
            marks.append(pytest.mark.skip(reason=f"allowed: not about {version}"))
        if fits or target == "real" or named:
            params.append(pytest.param(f"{target}-{version}", marks=marks))
    metafunc.parametrize(name, params, indirect=True, scope="session")


@dataclass
class Pair:
    """A server in dev mode, and one without it but with an API key and another model."""

    version: str
    server: Server
    guarded: Server
    refused_while_loading: list[bool]


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> str:
    """What is tried and its version, with a dash between, for cases that start servers of their own."""
    return str(request.param)


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    target, version = request.param.split("-")
    names = [MODEL, ALIAS]
    length = ["--max-model-len", str(MAX_MODEL_LEN)]
    if target == "real":
        venv = real_venv(version)
        starts = (
            lambda: start_real(venv, MODEL, names=names, wait=False, max_model_len=MAX_MODEL_LEN),
            lambda: start_real(venv, OTHER, dev_mode=False, flags=["--api-key", API_KEY], wait=False),
        )
    else:
        settings = {**STANDIN, "version": version, "wait": False}
        # As on a GPU, except where that is the end of a server which answers a request while its memory sleeps.
        holds = FAMILIES[version].modes and not FAMILIES[version].runs_half_awake
        flags = ["--enable-sleep-mode", *length] if holds else length
        starts = (
            lambda: start_standin(MODEL, names=names, flags=flags, **settings),
            lambda: start_standin(OTHER, dev_mode=False, flags=[*length, "--api-key", API_KEY], **settings),
        )
    servers, refused = [], []
    try:
        for start in starts:  # one after the other: loading takes all cores
            servers.append(start())
            refused.append(_refuses(servers[-1]))
            servers[-1].wait_ready(600)
        yield Pair(version, servers[0], servers[1], refused)
    finally:
        for each in servers:
            each.stop()


def _refuses(server: Server) -> bool:
    try:
        requests.get(server.url + "/health", timeout=5)
    except requests.ConnectionError:
        return True
    return False


@pytest.fixture
def guarded(pair: Pair) -> Server:
    """The server with an API key and no dev mode."""
    return pair.guarded


@pytest.fixture
def server(pair: Pair) -> Iterator[Client]:
    """The server in dev mode: awake before the case, and brought back to that after it."""
    client = Client(pair.server, FAMILIES[pair.version], pair.guarded)
    client.recover()
    yield client
    client.recover()
    client.pool.shutdown(cancel_futures=True)
