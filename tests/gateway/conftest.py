# SPDX-License-Identifier: MIT
"""Gateways of a test's own, and servers behind them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.fake_link import FakeManager, model, playing
from tests.gateway.gatewaylib import Gateway, Start, missing
from tests.serverlib import Server, start_standin

SERVER_KEY = "the-key-of-server-a"
NEEDS_NGINX = {"start", "gateway"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs nginx where there is none, and say so."""
    reason = missing()
    for item in items:
        if (
            reason
            and item.path.parent == Path(__file__).parent
            and NEEDS_NGINX & set(getattr(item, "fixturenames", ()))
        ):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def start() -> Iterator[Start]:
    """Start gateways that end with the test."""
    with contextlib.ExitStack() as stack:

        def begin(
            manager: FakeManager,
            *,
            workers: int = 1,
            keys: list[dict[str, Any]] | None = None,
            known: bool = True,
            edit: Callable[[str], str] = str,
            **settings: Any,
        ) -> Gateway:
            gateway = stack.enter_context(Gateway(manager, workers=workers, keys=keys, edit=edit, **settings))
            return gateway.wait_known() if known else gateway

        yield begin


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Two stand-ins that many tests share: `a`, with a key of its own, and `b`. No test changes them."""
    folder = tmp_path_factory.mktemp("servers")
    with (
        start_standin(
            "org/a", names=["a", "a-alias", "Org/A", "lora-a"], log=folder / "a.log", flags=["--api-key", SERVER_KEY]
        ) as a,
        start_standin("org/b", names=["b"], log=folder / "b.log") as b,
    ):
        yield {"a": a, "b": b}


@pytest.fixture(scope="session")
def manager(servers: dict[str, Server]) -> Iterator[FakeManager]:
    """A manager of both, whose gates are open. No test changes what it says."""
    adapter = {"id": "lora-a", "object": "model", "parent": "a", "permission": []}
    first = model(
        "a",
        servers["a"].port,
        names=["a", "a-alias", "Org/A"],
        adapters=["lora-a"],
        adapter_entries=[json.dumps(adapter)],
        api_key=SERVER_KEY,
    )
    with playing(first, model("b", servers["b"].port)) as manager:
        yield manager


@pytest.fixture(scope="session")
def gateway(manager: FakeManager) -> Iterator[Gateway]:
    """A gateway of both, that many tests share, without keys."""
    with Gateway(manager) as gateway:
        yield gateway.wait_known()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key, and a certificate of its own for localhost."""
    folder = tmp_path_factory.mktemp("certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    return key, cert
