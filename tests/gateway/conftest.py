# SPDX-License-Identifier: MIT
"""Gateways of a test's own, and servers behind them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.fake_link import FakeManager
from tests.gateway.gatewaylib import Gateway, Start, missing
from tests.serverlib import Server, start_standin


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs nginx where there is none, and say so."""
    reason = missing()
    for item in items:
        if reason and item.path.parent == Path(__file__).parent and "start" in getattr(item, "fixturenames", ()):
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
            **settings: object,
        ) -> Gateway:
            gateway = stack.enter_context(Gateway(manager, workers=workers, keys=keys, edit=edit, **settings))
            return gateway.wait_known() if known else gateway

        yield begin


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Two stand-ins that many tests share: `a`, with a key of its own, and `b`. No test changes them."""
    folder = tmp_path_factory.mktemp("servers")
    with (
        start_standin("org/a", names=["a", "a-alias", "Org/A"], log=folder / "a.log", flags=["--api-key", "server-key"]) as a,
        start_standin("org/b", names=["b"], log=folder / "b.log") as b,
    ):
        yield {"a": a, "b": b}
