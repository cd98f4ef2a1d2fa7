# SPDX-License-Identifier: MIT
"""A host whose gateway routes to others: what is refused, and how it reaches them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.plugin_utils import door

KEY, TOKEN = "sk-of-the-door-0123456789", "token-0123456789abcdef"
BEHIND: dict[str, Any] = {
    "model_gateway_enabled": True,
    "model_manager_enabled": True,
    "model_gateway_listen": "0.0.0.0",
    "model_manager_listen": "0.0.0.0",
    "model_gateway_api_keys": [{"name": "alice", "key": "sk-of-alice-0123456789"}, {"name": "door", "key": KEY}],
    "model_manager_operator_tokens": [TOKEN, "another-0123456789abc"],
}
DOOR: dict[str, Any] = {"model_gateway_enabled": True, "model_gateway_hosts": ["gpu1"]}


def mistakes(own: dict[str, Any], behind: dict[str, Any] | None = None, playbook: str = "site") -> list[str]:
    known = {"gpu1": {**BEHIND, **(behind or {})}, "gpu2": BEHIND, "front": {}}
    return list(door.mistakes(playbook, "front", {**DOOR, **own}, known))


def test_what_is_right_is_not_refused() -> None:
    assert mistakes({}) == []
    assert mistakes({"vllm_models": [], "model_gateway_hosts": ["gpu1", "gpu2"]}) == []
    assert mistakes({}, {"model_gateway_api_keys": [], "model_gateway_without_keys": True}) == []
    assert mistakes({"model_gateway_hosts_key": "alice"}, {"model_gateway_listen": "10.0.0.5"}) == []
    assert mistakes({}, playbook="teardown") == []
    # As with a tunnel.
    assert mistakes({}, {"model_gateway_address": "127.0.0.1", "model_gateway_listen": "127.0.0.1"}) == []


OWN: list[tuple[dict[str, Any], str]] = [
    ({"vllm_models": [{"id": "a"}]}, "must have no models of its own: remove vllm_models from it"),
    ({"model_gateway_enabled": False}, "needs the gateway: set model_gateway_enabled: true"),
    ({"model_gateway_listen": "0.0.0.0"}, "set model_gateway_api_keys, or model_gateway_without_keys: true"),
    ({"model_gateway_hosts": "gpu1"}, "must be a list of names of hosts: write it as [gpu1, gpu2]"),
    ({"model_gateway_hosts": ["gpu1", "gpu1"]}, "[1]: gpu1 is there twice: remove one of the two"),
    ({"model_gateway_hosts": ["front"]}, "[0]: front is this host itself: remove it"),
    ({"model_gateway_hosts": ["gpu3"]}, "[0]: the inventory has no host gpu3; did you mean gpu"),
    ({"model_gateway_hosts": ["zzz"]}, "[0]: the inventory has no host zzz: correct it"),
]


@pytest.mark.parametrize(("own", "words"), OWN, ids=[words for _own, words in OWN])
def test_what_is_wrong_with_the_host_itself(own: dict[str, Any], words: str) -> None:
    (mistake,) = mistakes(own)
    assert words in mistake


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"model_gateway_enabled": "no"}, "has no gateway: set model_gateway_enabled: true for it"),
    ({"model_gateway_listen": "127.0.0.1"}, "has its gateway on loopback, which no other host reaches"),
    ({"model_manager_listen": "::1"}, "set model_manager_listen for it to an address of the network, or to 0.0.0.0"),
    ({"model_gateway_api_keys": [{"name": "bob", "key": KEY}]}, "has no API key for this host: add {name: door,"),
    ({"model_gateway_api_keys": []}, "has no API key for this host"),
    (
        {"model_gateway_api_keys": [{"name": "door", "key": KEY, "models": ["a"]}]},
        "limits the key door to some of its models: remove models from that entry",
    ),
    ({"model_manager_operator_tokens": []}, "set model_manager_operator_tokens for it"),
    ({"ansible_host": "fe80::1%eth0"}, "has the address fe80::1%eth0, of one interface"),
    ({"model_gateway_hosts": ["gpu2"]}, "routes to other hosts itself: name those instead"),
]


@pytest.mark.parametrize(("behind", "words"), OTHERS, ids=[words for _behind, words in OTHERS])
def test_what_is_wrong_with_a_host_behind_it(behind: dict[str, Any], words: str) -> None:
    (mistake,) = mistakes({}, behind)
    assert mistake.startswith("model_gateway_hosts[0]: gpu1 ")
    assert words in mistake
    assert KEY not in mistake and TOKEN not in mistake


def test_what_is_not_set_is_on_loopback() -> None:
    unset = {key: value for key, value in BEHIND.items() if "listen" not in key}
    found = list(door.mistakes("site", "front", DOOR, {"gpu1": unset}))
    assert [mistake.split(" on loopback")[0] for mistake in found] == [
        "model_gateway_hosts[0]: gpu1 has its gateway",
        "model_gateway_hosts[0]: gpu1 has its model manager",
    ]


@pytest.mark.parametrize("playbook", ["bootstrap", "switch", "status", "prefetch"])
def test_playbooks_that_are_about_models_leave_it_out(playbook: str) -> None:
    (mistake,) = mistakes({"model_gateway_enabled": False}, playbook=playbook)
    assert "leave it out of the target" in mistake


def test_hosts_come_by_their_names() -> None:
    """Or each run would write another file, and restart the service."""
    names = ["gpu3", "gpu1", "gpu2"]
    told = door.hosts(names, dict.fromkeys(names, BEHIND))
    assert [one["name"] for one in told] == sorted(names)


def test_how_a_host_is_reached() -> None:
    (told,) = door.hosts(["gpu1"], {"gpu1": {**BEHIND, "ansible_host": "gpu1.example.com"}})
    assert told == {
        "name": "gpu1",
        "address": "gpu1.example.com",
        "port": 8000,
        "tls": False,
        "api_key": KEY,
        "manager_address": "gpu1.example.com",
        "manager_port": 9000,
        "manager_token": TOKEN,
    }


ADDRESSES: list[tuple[dict[str, Any], tuple[str, str]]] = [
    ({}, ("gpu1", "gpu1")),
    ({"ansible_host": "10.0.0.9"}, ("10.0.0.9", "10.0.0.9")),
    ({"ansible_host": "10.0.0.9", "model_gateway_listen": "10.1.0.9"}, ("10.1.0.9", "10.1.0.9")),
    ({"ansible_host": "10.0.0.9", "model_manager_listen": "10.1.0.9"}, ("10.0.0.9", "10.1.0.9")),
    ({"model_gateway_address": "gpu1.lan", "model_gateway_listen": "10.1.0.9"}, ("gpu1.lan", "gpu1.lan")),
    ({"model_gateway_listen": "::", "ansible_host": "fd00::9"}, ("fd00::9", "fd00::9")),
]


@pytest.mark.parametrize(("values", "wanted"), ADDRESSES)
def test_at_which_address(values: dict[str, Any], wanted: tuple[str, str]) -> None:
    (told,) = door.hosts(["gpu1"], {"gpu1": {**BEHIND, **values}})
    assert (told["address"], told["manager_address"]) == wanted


def test_the_key_the_ports_and_tls() -> None:
    values = {
        **BEHIND,
        "model_gateway_port": "8443",
        "model_manager_port": 9100,
        "model_gateway_tls_certificate": "PEM",
        "model_gateway_api_keys": [],
    }
    (told,) = door.hosts(["gpu1"], {"gpu1": values}, "alice")
    assert (told["port"], told["manager_port"], told["tls"], told["api_key"]) == (8443, 9100, True, "")
