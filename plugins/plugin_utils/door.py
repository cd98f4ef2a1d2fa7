# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host whose gateway routes to others, a door: what is wrong with it, and how it reaches them. Pure."""

from __future__ import annotations

import difflib
import ipaddress
import typing

from ansible_collections.homegpt.vllm.plugins.plugin_utils import gateway
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain

Values = typing.Mapping[str, typing.Any]

MANAGER_PORT = 9000
# The name of the API key that a door has on each of its hosts.
KEY = "door"
# The variables of a host that say how it is reached.
_VARIABLES = (
    "ansible_host",
    "model_gateway_address",
    "model_gateway_api_keys",
    "model_gateway_listen",
    "model_gateway_port",
    "model_gateway_tls_certificate",
    "model_manager_listen",
    "model_manager_operator_tokens",
    "model_manager_port",
)
# The playbooks that know what to do with a door.
PLAYBOOKS = ("site", "teardown")


def is_door(values: Values) -> bool:
    """Whether this host routes to others."""
    return bool(values.get("model_gateway_hosts"))


def hosts(
    names: typing.Iterable[str], hostvars: typing.Mapping[str, Values], key: str = KEY
) -> list[dict[str, typing.Any]]:
    """What C(config.json) of the door says of each of these hosts.

    By their names: the filters difference and union return hosts in another order with each run.
    """
    found = []
    for name in sorted(names):
        # No others: they may have no value here.
        values = {one: plain(hostvars[name][one]) for one in _VARIABLES if one in hostvars[name]}
        address = _address(values) or name
        tokens = values.get("model_manager_operator_tokens") or [""]
        found.append(
            {
                "name": name,
                "address": address,
                "port": int(values.get("model_gateway_port") or gateway.PORT),
                "tls": bool(values.get("model_gateway_tls_certificate")),
                "api_key": (_key(values, key) or {}).get("key", ""),
                "manager_address": _own(str(values.get("model_manager_listen") or "")) or address,
                "manager_port": int(values.get("model_manager_port") or MANAGER_PORT),
                "manager_token": tokens[0],
            }
        )
    return found


def mistakes(
    playbook: str, name: str, values: Values, behind: typing.Mapping[str, Values | None]
) -> typing.Iterator[str]:
    """What is wrong with a door. C(behind): the variables of the hosts that it names; None: there is no such host."""
    if playbook not in PLAYBOOKS:
        yield (
            "model_gateway_hosts makes this host a gateway of other hosts, which has no models: leave it out of the "
            "target (put it into a group of its own, beside vllm_hosts)"
        )
        return
    if values.get("vllm_models"):
        yield (
            "model_gateway_hosts: a host that routes to others must have no models of its own: remove vllm_models from "
            "it (or set vllm_models: [] for it), or set model_gateway_hosts for another host"
        )
    if playbook == "teardown":
        return
    if not gateway.is_true(values.get("model_gateway_enabled")):
        yield "model_gateway_hosts needs the gateway: set model_gateway_enabled: true, or remove model_gateway_hosts"
    yield from gateway.mistakes({**values, "model_manager_enabled": True})
    named = values["model_gateway_hosts"]
    if not isinstance(named, list) or not all(isinstance(one, str) and one for one in named):
        yield "model_gateway_hosts must be a list of names of hosts: write it as [gpu1, gpu2]"
        return
    for number, one in enumerate(named):
        where = f"model_gateway_hosts[{number}]"
        other = behind.get(one)
        if one in named[:number]:
            yield f"{where}: {one} is there twice: remove one of the two"
        elif one == name:
            yield f"{where}: {one} is this host itself: remove it"
        elif other is None:
            near = difflib.get_close_matches(one, [known for known in behind if behind[known] is not None], n=1)
            yield f"{where}: the inventory has no host {one}" + (
                f"; did you mean {near[0]}?" if near else ": correct it"
            )
        else:
            for mistake in _of_host(other, str(values.get("model_gateway_hosts_key") or KEY)):
                yield f"{where}: {one} {mistake}"


def _of_host(values: Values, key: str) -> typing.Iterator[str]:
    """Why a door can't use a host. What each says goes on after the host's name."""
    if is_door(values):
        yield "routes to other hosts itself: name those instead"
        return
    if not gateway.is_true(values.get("model_gateway_enabled")):
        yield "has no gateway: set model_gateway_enabled: true for it, and run site on it"
        return
    # Who says that it is reached by loopback has a tunnel, or both on one machine.
    tunnel = _is_loopback(str(values.get("model_gateway_address")))
    for service, name in (("gateway", "model_gateway_listen"), ("model manager", "model_manager_listen")):
        if not tunnel and _is_loopback(str(values.get(name) or "127.0.0.1")):
            yield (
                f"has its {service} on loopback, which no other host reaches: set {name} for it to an address of the "
                "network, or to 0.0.0.0"
            )
    address = _address(values)
    if "%" in address:
        yield (
            f"has the address {address}, of one interface, which this gateway can't use: set model_gateway_address for "
            "it to another one"
        )
    entry = _key(values, key)
    if entry is None and not (
        gateway.is_true(values.get("model_gateway_without_keys")) and not values.get("model_gateway_api_keys")
    ):
        yield (
            f"has no API key for this host: add {{name: {key}, key: ...}} to its model_gateway_api_keys, or set "
            "model_gateway_hosts_key to the name of a key that it has"
        )
    elif entry and entry.get("models") not in (None, ["*"]):
        yield f"limits the key {key} to some of its models: remove models from that entry of its model_gateway_api_keys"
    if not values.get("model_manager_operator_tokens"):
        yield (
            "has a model manager that lets no other host switch: set model_manager_operator_tokens for it, to at least "
            "one token"
        )


def _key(values: Values, key: str) -> dict[str, typing.Any] | None:
    given = values.get("model_gateway_api_keys")
    entries = given if isinstance(given, list) else []
    return next((one for one in entries if isinstance(one, dict) and one.get("name") == key), None)


def _address(values: Values) -> str:
    """Where a door finds the gateway of a host, as far as its variables say."""
    listen = str(values.get("model_gateway_listen") or "")
    return str(values.get("model_gateway_address") or _own(listen) or values.get("ansible_host") or "")


def _own(listen: str) -> str:
    """The address that a service listens on, where it is one of the host alone."""
    try:
        address = ipaddress.ip_address(listen)
    except ValueError:
        return ""
    return "" if address.is_unspecified else listen


def _is_loopback(listen: str) -> bool:
    try:
        return ipaddress.ip_address(listen).is_loopback
    except ValueError:
        return False
