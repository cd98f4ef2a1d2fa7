# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known to be wrong with what runs beside the models: Open WebUI, the model manager, the gateway. Pure."""

from __future__ import annotations

import re
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory
from ansible_collections.homegpt.vllm.plugins.plugin_utils import gateway, open_webui

# The manager's port unless the inventory has another. It is spoken for even where none is enabled: one may be later.
MANAGER_PORT = 9000
# Settings of the manager that have a variable of their own.
MANAGER_SETTINGS = {
    "allowed_hosts": "model_manager_allowed_hosts",
    "gateway_listen": "model_gateway_enabled and model_gateway_link_port",
    "gateway_token_file": "model_gateway_enabled",
    "listen": "model_manager_listen",
    "port": "model_manager_port",
    "stack_dir": "vllm_stack_dir",
    "tokens_file": "model_manager_operator_tokens and model_manager_reader_tokens",
}
Values = typing.Mapping[str, typing.Any]


class Service(typing.NamedTuple):
    """A port, or the name of a container, that models must leave alone. C(others): what else may be changed."""

    owner: str
    taken: int | str
    others: str = ""


def mistakes(playbook: str, values: Values, inventory: Inventory) -> typing.Iterator[str]:
    """What is wrong with the services of one host, whose inventory is right."""
    yield from _manager(values)
    has_gateway = _enabled(values, "model_gateway_enabled", False)
    if has_gateway:
        yield from gateway.mistakes(values)
    webui = _webui(values, inventory)
    ports = [Service("the manager's", _port(values.get("model_manager_port", MANAGER_PORT)))]
    containers = []
    if has_gateway:
        ports += [
            Service("the gateway's", _port(values.get("model_gateway_port", gateway.PORT)), "model_gateway_port"),
            Service(
                "the gateway's to the manager",
                _port(values.get("model_gateway_link_port", gateway.LINK_PORT)),
                "model_gateway_link_port",
            ),
        ]
        name = str(values.get("model_gateway_container_name", "model-gateway"))
        containers.append(Service("the gateway's", name, "model_gateway_container_name"))
    if webui:
        ports.append(Service("Open WebUI's", webui[0], "open_webui_port"))
        containers.append(Service("Open WebUI's", webui[1], "open_webui_container_name"))
    for model in inventory.models:
        for one in ports:
            if model.host_port == one.taken:
                yield f"{model.id}: host_port {one.taken} is {one.owner}: choose another{_or(one)}"
        for one in containers:
            if not model.start_command and model.container_name == one.taken:
                yield f"{model.id}: container_name {one.taken} is {one.owner}: choose another{_or(one)}"
    for number, one in enumerate(ports):
        for other in ports[number + 1 :]:
            if one.taken == other.taken:
                yield f"{other.others} {other.taken} is {one.owner}: choose another"
    env = values.get("open_webui_env")
    if webui and playbook in ("site", "bootstrap") and isinstance(env, (dict, type(None))):
        yield from open_webui.mistakes(() if has_gateway else inventory.as_dict()["vllm_models"], env)


def unknown_models(values: Values, known: typing.Collection[str]) -> typing.Iterator[str]:
    """The models that the gateway's keys name and no host has."""
    if _enabled(values, "model_gateway_enabled", False):
        yield from gateway.unknown_models(values, known)


def _or(service: Service) -> str:
    return f", or another {service.others}" if service.others else ""


def _enabled(values: Values, name: str, default: bool) -> bool:
    return str(values.get(name, default)).lower() not in ("false", "no", "off", "0", "n", "f", "none", "")


def _webui(values: Values, inventory: Inventory) -> tuple[int, str] | None:
    """The port and the name of the web interface's container, where there is to be one."""
    if not _enabled(values, "open_webui_enabled", True) or all(model.start_command for model in inventory.models):
        return None
    port = _port(values.get("open_webui_port", 3000))
    return port, str(values.get("open_webui_container_name", "open-webui"))


def _port(value: typing.Any) -> int:
    """The port that a variable says; 0 where it says none."""
    return int(str(value)) if str(value).isdecimal() else 0


def _manager(values: Values) -> typing.Iterator[str]:
    """What is wrong with the manager's variables. What its other settings may be is checked by the service itself."""
    for name in ("model_manager_operator_tokens", "model_manager_reader_tokens"):
        tokens = values.get(name) or []
        if isinstance(tokens, str):
            yield f"{name} must be a list: write it as [TOKEN]"
            continue
        for number, token in enumerate(tokens if isinstance(tokens, list) else []):
            if not re.fullmatch(r"[!-~]{16,}", str(token)):
                yield (
                    f"{name}[{number}] must have at least 16 characters, no space, and only ASCII: make one with "
                    "`openssl rand -hex 32`"
                )
    settings = values.get("model_manager_settings")
    for key in settings if isinstance(settings, dict) else {}:
        if key in MANAGER_SETTINGS:
            yield f"model_manager_settings.{key} has a variable of its own: set {MANAGER_SETTINGS[key]} instead"
