# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What C(/v1/models) tells: the names that a server answers to, and its LoRA adapters. Pure: no I/O.

vLLM has a card for each of its names and one for each adapter, whose C(root) is the adapter's path and whose C(parent)
is the model (C(show_available_models) in C(entrypoints/openai/models/serving.py) of 0.32.0). A
C(lora_modules) entry may name any C(parent), so it does not matter which one it is.
"""

from __future__ import annotations

import typing


class ModelList(typing.NamedTuple):
    """The names that are served, adapters included, and each adapter's path; empty where it has none.

    With each name comes how many tokens a prompt and its answer may have; None where that is not told.
    """

    served: dict[str, int | None]
    adapters: dict[str, str]


def parse(answer: typing.Mapping[str, typing.Any], names: typing.Collection[str]) -> ModelList | None:
    """What the answer says; None where it is not such a list. What has one of the model's C(names) is no adapter."""
    data = answer.get("data")
    if not isinstance(data, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in data
    ):
        return None
    adapters = {
        entry["id"]: entry["root"] if isinstance(entry.get("root"), str) else ""
        for entry in data
        if isinstance(entry.get("parent"), str) and entry["parent"] and entry["id"] and entry["id"] not in names
    }
    longest = {entry["id"]: entry.get("max_model_len") for entry in data}
    return ModelList({name: most if isinstance(most, int) else None for name, most in longest.items()}, adapters)
