# SPDX-License-Identifier: MIT
"""What many hosts have together, and where a switch costs least."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.manager.door_hosts import model


def host(name: str, *models: dict[str, Any], up: bool = True, waiting: int = 0, in_flight: int = 0, **load: int) -> Any:
    from model_manager.door_models import HostView, Server

    server = Server(name, "10.0.0.1", 8000, False, "key")
    return HostView(
        name, up, "" if up else "no answer in time", server, {m["id"]: m for m in models}, waiting, in_flight, load
    )


def told(*hosts: Any) -> dict[str, dict[str, Any]]:
    from model_manager import door_models

    return {one["id"]: one for one in door_models.state(hosts)}


@pytest.mark.parametrize(
    ("hosts", "wanted"),
    [
        ([("a", 5, 0), ("b", 3, 0)], "b"),
        ([("a", 5, 2), ("b", 5, 1)], "b"),
        ([("a", 5, 0), ("b", 5, 0)], "a"),
        ([("a", None, 0), ("b", 600, 9)], "b"),
        ([("a", None, 1), ("b", None, 0)], "b"),
        ([], None),
    ],
    ids=["the shortest", "fewest wait", "the first", "what is unknown comes last", "both unknown", "no host"],
)
def test_where_a_switch_costs_least(hosts: list[tuple[str, float | None, int]], wanted: str | None) -> None:
    from model_manager import door_models

    views = [host(name, model("qwen", eta_seconds=eta), waiting=waiting) for name, eta, waiting in hosts]
    found = door_models.cheapest(views, "qwen")
    assert (found and found.name) == wanted


def test_a_host_that_works_least_is_asked_where_the_rest_is_the_same() -> None:
    from model_manager import door_models

    views = [host("a", model("qwen"), model("llama"), in_flight=2), host("b", model("qwen"), in_flight=1)]
    assert door_models.cheapest(views, "qwen") is views[1]
    # What a host was asked for already comes first there.
    views = [host("a", model("qwen"), model("llama")), host("b", model("qwen", eta_seconds=9))]
    assert door_models.cheapest(views, "qwen") is views[0]
    assert door_models.cheapest(views, "qwen", {"a": ["llama"]}) is views[1]
    assert door_models.cheapest(views, "qwen", {"a": ["qwen"]}) is views[0]


def test_a_host_where_it_has_failed_is_the_last_resort_and_one_that_is_down_none() -> None:
    from model_manager import door_models

    failed = host("a", model("qwen", state="error", eta_seconds=1))
    other = host("b", model("qwen", eta_seconds=90))
    lost = host("c", model("qwen", eta_seconds=1), up=False)
    without = host("d", model("llama", eta_seconds=1))
    found = door_models.cheapest([failed, other, lost, without], "qwen")
    assert found is other
    assert door_models.cheapest([failed, lost, without], "qwen") is failed
    assert door_models.cheapest([lost, without], "qwen") is None


def test_the_models_are_those_of_all_hosts_and_servers_are_those_where_it_is_active() -> None:
    state = told(
        host("a", model("qwen", "open"), model("llama"), qwen=3),
        host("b", model("qwen", "open"), model("gemma", eta_seconds=12)),
        host("c", model("qwen", "open"), up=False),
        host("d", model("llama", eta_seconds=2)),
    )
    assert list(state) == ["qwen", "llama", "gemma"]
    servers = state["qwen"]["servers"]
    assert [(one["name"], one["load"]) for one in servers] == [("a", 3), ("b", 0)]
    assert servers[0] == {"name": "a", "host": "10.0.0.1", "port": 8000, "tls": False, "api_key": "key", "load": 3}
    assert (state["qwen"]["gate"], state["qwen"]["eta_seconds"], state["qwen"]["state"]) == ("open", 0, "active")
    assert state["llama"]["servers"] == []
    assert (state["llama"]["gate"], state["llama"]["eta_seconds"]) == ("closed", 2)
    assert state["gemma"]["eta_seconds"] == 12


def test_the_entry_is_that_of_the_host_that_is_nearest_to_answering() -> None:
    active, asleep = model("qwen", "open"), model("qwen")
    assert told(host("a", asleep), host("b", active))["qwen"]["entry"] == active["entry"]
    assert told(host("a", asleep), host("b", active, up=False))["qwen"]["entry"] == asleep["entry"]


def test_a_model_whose_hosts_are_all_down_stays_in_the_list_and_says_so() -> None:
    adapter = json.dumps({"id": "lora", "parent": "qwen", "loaded": True})
    known = model("qwen", "open", adapters=["lora"], adapter_entries=[adapter])
    state = told(host("a", known, up=False))["qwen"]
    assert (state["gate"], state["state"]) == ("closed", "error")
    for text in (state["entry"], *state["adapter_entries"]):
        entry = json.loads(text)
        assert entry["loaded"] is False
        assert entry["tags"] == [{"name": "error"}]
        assert "a can't be reached (no answer in time)" in entry["info"]["meta"]["description"]
    assert json.loads(state["adapter_entries"][0])["parent"] == "qwen"


def test_a_name_counts_where_all_hosts_of_the_model_have_it() -> None:
    """A request may go to any of them, under the name that its client has used."""
    from model_manager import door_models

    lora = [json.dumps({"id": name}) for name in ("one", "two")]
    first = model("qwen", names=["qwen", "chat", "fast"], adapters=["one", "two"], adapter_entries=lora)
    second = model("qwen", names=["qwen", "fast"], adapters=["two"], adapter_entries=lora[1:])
    hosts = [host("a", first), host("b", second, up=False)]
    state = told(*hosts)["qwen"]
    assert state["names"] == ["qwen", "fast"]
    assert (state["adapters"], state["adapter_entries"]) == (["two"], lora[1:])
    assert [door_models.find(hosts, name) for name in ("qwen", "fast", "two")] == ["qwen"] * 3
    assert [door_models.find(hosts, name) for name in ("chat", "one", "other")] == [None] * 3
