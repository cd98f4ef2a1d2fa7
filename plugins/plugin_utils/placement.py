# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models of a host are to be active, from what C(vllm_active_model) says. Pure."""

from __future__ import annotations

import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchingError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model, parse


def names_of(wanted: typing.Any, variable: str = "vllm_active_model") -> list[str]:
    """The names in the value of a variable that takes one model or several, as the modules' options take them."""
    names = wanted.split(",") if isinstance(wanted, str) else wanted
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise SwitchingError(f"{variable} must be the name of a model, or a list of several, is {wanted!r}")
    return [name.strip() for name in names if name.strip()]


def place(inventory: Inventory, names: typing.Iterable[str]) -> dict[str, list[str]]:
    """The ids by what the models are to be; raises SwitchingError for what can't be."""
    chosen = _chosen(inventory, names)
    active = [
        model.id
        for model in inventory.enabled
        if model in chosen
        or (model.startup_mode == "active" and not any(model.conflicts_with(other) for other in chosen))
    ]
    return {
        "active": active,
        "asleep": [model.id for model in inventory.enabled if model.id not in active],
        "wanted": [model.id for model in chosen],
    }


def _chosen(inventory: Inventory, names: typing.Iterable[str]) -> list[Model]:
    chosen: list[Model] = []
    for name in names:
        try:
            found = inventory.find(name)
        except SwitchingError as error:
            raise SwitchingError(f"vllm_active_model: {error}") from error
        rival = next((other for other in chosen if other.conflicts_with(found)), None)
        if rival is not None:
            raise SwitchingError(f"vllm_active_model: {rival.id} and {found.id} share a GPU, so only one can be active")
        chosen.append(found)
    return chosen


def placement(models: typing.Any, switching: typing.Any = None, wanted: typing.Any = None) -> dict[str, list[str]]:
    """The same from the host's variables. Raises SwitchingError for an inventory with mistakes too."""
    return place(parse(models, switching), names_of(wanted or []))


def load_batches(ids: typing.Iterable[str], models: typing.Any, switching: typing.Any = None) -> list[list[str]]:
    """The ids in batches that load one after the other; the models of one share no GPUs, even indirectly."""
    inventory = parse(models, switching)
    return [[model.id for model in batch] for batch in inventory.load_batches(inventory.find(name) for name in ids)]
