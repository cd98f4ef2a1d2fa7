# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From llama-swap's configuration to a model inventory. Pure."""

from __future__ import annotations

import math
import re
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import inventory
from ansible_collections.homegpt.vllm.plugins.plugin_utils import convert, convert_builder
from ansible_collections.homegpt.vllm.plugins.plugin_utils.convert_llama_swap_model import UNTAKEN, SwappedModel

# What becomes of llama-swap's settings that have no counterpart.
_PROXY_SETTINGS = [
    "logLevel",
    "logTimeFormat",
    "logToStdout",
    "logRequests",
    "metricsMaxInMemory",
    "captureBuffer",
    "sendLoadingState",
    "includeAliasesInList",
    "strictMode",
    "performance",
    "ui",
]
_SWAP_KEYS = frozenset(
    ["models", "macros", "startPort", "sleepRequestTimeout", "wakeRequestTimeout", "healthCheckTimeout", "hooks"]
)


def from_llama_swap(
    config: typing.Any,
    name: str = "config.yaml",
    servers: str = "containers",
    variables: typing.Mapping[str, typing.Any] | None = None,
) -> convert.Converted:
    """The inventory of a llama-swap configuration. C(servers) is V(containers), or V(processes) to keep its commands.

    C(variables) are the values of environment variables in it. Raises ConvertError.
    """
    if servers not in ("containers", "processes"):
        raise convert.ConvertError(["llama_swap_servers must be containers or processes, is %s" % servers])
    listed = config.get("models") if isinstance(config, dict) else None
    if isinstance(listed, list):
        raise convert.ConvertError([name + ": models is a list, as homeGPT's is: give the file as homegpt_config"])
    if not isinstance(listed, dict) or not listed:
        raise convert.ConvertError([name + ": has no dictionary `models`: it must be a configuration of llama-swap"])
    notes, mistakes = convert.Notes(), []
    for key, value in listed.items():
        if not isinstance(value, dict) or not isinstance(value.get("cmd"), str) or not value["cmd"].strip():
            mistakes.append("%s: models.%s: must be a dictionary with a cmd" % (name, key))
    for key in ("sleepRequestTimeout", "wakeRequestTimeout", "healthCheckTimeout", "startPort"):
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
            mistakes.append("%s: %s must be a number greater than 0" % (name, key))
    if mistakes:
        raise convert.ConvertError(mistakes)
    builder = convert_builder.Builder(notes, variables)
    ports = _Ports(config)
    for key, entry in listed.items():
        place = "%s: models.%s" % (name, key)
        try:
            model = SwappedModel(config, str(key), entry, place, ports.of(str(key)), servers, builder).model()
        except convert.ConvertError as error:
            mistakes.extend(error.mistakes)
            continue
        if model:
            builder.add(model, place)
    if not builder.models and not mistakes:
        why = [text for text in notes.texts() if ": left out: " in text]
        mistakes = ["%s: none of its models can be converted: %s" % (name, "; ".join(why))]
    if mistakes:
        raise convert.ConvertError(mistakes)
    _preload(config, name, builder)
    switching = {}
    if config.get("healthCheckTimeout") is not None:
        # llama-swap itself takes nothing less than 15.
        interval = inventory.Switching.health_check_interval_seconds
        switching["max_retries"] = math.ceil(max(15, config["healthCheckTimeout"]) / interval)
    others = []
    for key in sorted(map(str, config)):
        if key in _PROXY_SETTINGS:
            others.append(key)
        elif key in UNTAKEN:
            notes.add("%s: %s" % (name, key), UNTAKEN[key])
        elif key not in _SWAP_KEYS:
            notes.add("%s: %s" % (name, key), "not converted: there is no equivalent")
    if others:
        notes.add("%s: %s" % (name, ", ".join(others)), "not converted: settings of llama-swap's own server")
    return builder.finish(switching, name)


class _Ports:
    """The ports of llama-swap's models: each that uses C(${PORT}) has the next one, in the order of their names."""

    def __init__(self, config: typing.Mapping[str, typing.Any]) -> None:
        self._ports: dict[str, int] = {}
        port = int(config.get("startPort") or 5800)
        fixed = {key: self._fixed(entry) for key, entry in config["models"].items()}
        for key in sorted(map(str, config["models"])):
            given = fixed.get(key)
            if given:
                self._ports[key] = given
                continue
            # A port that a model has by its proxy is nobody else's.
            while port in fixed.values():
                port += 1
            self._ports[key] = port
            port += 1

    @staticmethod
    def _fixed(entry: typing.Mapping[str, typing.Any]) -> int | None:
        match = re.search(r":(\d{1,5})(?:/|\Z)", str(entry.get("proxy") or ""))
        return int(match.group(1)) if match else None

    def of(self, key: str) -> int:
        """The port of a model."""
        return self._ports[key]


def _preload(config: typing.Mapping[str, typing.Any], name: str, builder: convert_builder.Builder) -> None:
    """The models that llama-swap loads first are the active ones, one for each GPU."""
    wanted: typing.Any = config.get("hooks")
    for key in ("on_startup", "preload"):
        wanted = wanted.get(key) if isinstance(wanted, dict) else None
    used: set[int] = set()
    for key in map(str, convert.as_list(wanted)):
        found = [model for model in builder.models if key == model["id"] or key in model.get("aliases", ())]
        if not found or used & set(found[0]["gpus"]):
            builder.notes.add(
                "%s: hooks.on_startup.preload" % name,
                "%s is not made active: %s"
                % (key, "there is no such model" if not found else "its GPU already has an active model"),
            )
            continue
        used |= set(found[0]["gpus"])
        found[0]["startup_mode"] = "active"
    if not used:
        builder.notes.add(name, "no model is active initially: set startup_mode of one model to active")
