# SPDX-License-Identifier: MIT
"""A manager on a host of stand-ins, within the test's own process, and nothing left after."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from tests.unit.plugins.module_utils.switching.conftest import Host, host, processes, stack_dir

# The service's package is no part of the collection's: on a host the role installs it.
sys.path.insert(0, str(Path(__file__).parents[2] / "roles/model_manager/files"))

if TYPE_CHECKING:
    from model_manager.manager import Manager, Ticket

__all__ = ("host", "processes", "stack_dir")

PATIENCE_SECONDS = 30.0


def write_inventory(host: Host) -> None:
    """Write what the host declares, as its provisioning does."""
    host.stack_dir.mkdir(parents=True, exist_ok=True)
    content = {"vllm_models": host.models, "vllm_switching": host.settings}
    new = host.stack_dir / "models.json.new"
    new.write_text(json.dumps(content))
    new.replace(host.stack_dir / "models.json")


def until(done: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> float:
    """Poll until it is done; how many seconds that took. Fails when it never is."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - began


def ended(ticket: Ticket) -> Ticket:
    """The ticket, when its switch has ended."""
    assert ticket.future.result(timeout=PATIENCE_SECONDS) is ticket
    return ticket


class Manage(Protocol):
    """Starts a manager of the host; the arguments are keys of its settings, but for the first two."""

    def __call__(
        self, inventory: Inventory | None = None, switcher: type[Switcher] = Switcher, **settings: Any
    ) -> Manager:
        """The manager, which has looked at the servers."""


@pytest.fixture
def manage(host: Host) -> Iterator[Manage]:
    """Managers of the test's host. They are stopped after the test, before the stand-ins are."""
    from model_manager.config import Config
    from model_manager.events import Bus
    from model_manager.history import History
    from model_manager.manager import Manager

    begun: list[Manager] = []

    def start(inventory: Inventory | None = None, switcher: type[Switcher] = Switcher, **settings: Any) -> Manager:
        write_inventory(host)
        config = Config(
            stack_dir=str(host.stack_dir), **{"observe_seconds": 0.2, "stop_timeout_seconds": 5, **settings}
        )
        # There is RAM enough for every sleep, whatever machine this is.
        make = functools.partial(switcher, mem_available_gb=lambda: 1000.0)
        manager = Manager(config, inventory or host.inventory, history=History(":memory:"), bus=Bus(), switcher=make)
        begun.append(manager)
        manager.start()
        return manager

    yield start
    for manager in begun:
        manager.stop()
        manager.bus.close()
        manager.history.close()
