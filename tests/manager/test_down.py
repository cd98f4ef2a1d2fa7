# SPDX-License-Identifier: MIT
"""A model is down if it should be active, does not run, and the service does not bring it back: only then."""

from __future__ import annotations

from typing import Any

import pytest
from model_manager.manager import Manager

from tests.manager.conftest import Manage, declare_two, ended, kill, until, write_inventory
from tests.unit.plugins.module_utils.switching.conftest import Host


class Downs:
    """What is told of models that are down, in order."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.told: list[tuple[str, str, bool]] = []
        manager.bus.listen(self._feed)

    def _feed(self, event: Any) -> None:
        if event.kind == "state":
            self.told.append((event.data["model"], event.data["state"], event.data["down"]))

    def of(self, model: str) -> bool:
        """Whether the view has it down."""
        return self.manager.view().models[model].down


@pytest.fixture
def pair(host: Host) -> Host:
    """Two models that share a GPU, the first one active."""
    declare_two(host)
    host.up(a="active", b=1)
    return host


def test_one_that_nobody_brings_back_is_down_until_it_serves_again(pair: Host, manage: Manage) -> None:
    manager = manage(reconcile=False)
    ended(manager.request("a"))
    downs = Downs(manager)
    kill(pair, "a")
    until(lambda: downs.of("a"), "a is down")
    assert downs.told == [("a", "stopped", True)]
    pair.switch("a")  # as by the module
    until(lambda: manager.view().models["a"].state == "ready", "a serves")
    assert not downs.of("a")
    assert downs.told[-1] == ("a", "ready", False)
    assert not manager.view().reconciles


def test_one_that_the_service_brings_back_is_not(pair: Host, manage: Manage) -> None:
    manager = manage()
    ended(manager.request("a"))
    downs = Downs(manager)
    kill(pair, "a")
    until(lambda: ("a", "starting", False) in downs.told, "a is brought back")
    until(lambda: manager.view().models["a"].state == "ready", "a serves")
    assert not any(down for _name, _state, down in downs.told)
    assert manager.view().reconciles


def test_one_that_has_failed_too_often_is(pair: Host, manage: Manage) -> None:
    manager = manage(breaker_failures=2, retry_seconds=600)
    ended(manager.request("a"))
    downs = Downs(manager)
    pair.models[0]["start_command"] = ["false"]
    write_inventory(pair)
    until(lambda: manager.inventory.models[0].start_command == ("false",), "the new inventory is used")
    kill(pair, "a")
    until(lambda: downs.of("a"), "the service gives up")
    assert [one for one in downs.told if one[2]] == [("a", "error", True)]


def test_one_that_was_stopped_or_replaced_is_not(pair: Host, manage: Manage) -> None:
    manager = manage(reconcile=False)
    ended(manager.request("a"))
    downs = Downs(manager)
    ended(manager.request("a", "stopped"))
    ended(manager.request("b"))
    pair.switch("b", "stopped")  # as by the module
    until(lambda: manager.view().models["b"].state == "stopped", "that is seen")
    # For now, as by the command line: a is to be active after a boot, and b serves.
    ended(manager.request("a"))
    with pair.switcher() as switcher:
        switcher.switch("b", for_now=True)
    until(lambda: manager.view().active == ["b"], "that is seen")
    assert manager.view().models["a"].desired == "active"
    kill(pair, "a")
    until(lambda: manager.view().models["a"].state == "stopped", "that is seen")
    observed = manager.view().age_seconds
    until(lambda: manager.view().age_seconds < observed, "it is looked at again")
    assert not any(down for _name, _state, down in downs.told)
