# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the variables of the collection's roles may be: from their argument specs, the one place that says it."""

from __future__ import annotations

import pathlib
import re
import typing

from ansible.module_utils.common.validation import (
    check_type_bool,
    check_type_dict,
    check_type_float,
    check_type_int,
    check_type_list,
)
from ansible.module_utils.common.yaml import yaml_load

# By the words of argument specs. What is not here takes anything that can be written as text.
_CHECKS = {
    "bool": (check_type_bool, "true or false"),
    "dict": (check_type_dict, "a dictionary"),
    "float": (check_type_float, "a number"),
    "int": (check_type_int, "a whole number"),
    "list": (check_type_list, "a list"),
}
# A default that only hands on another variable, such as "{{ vllm_image | default('...') }}".
_HANDED_ON = re.compile(r"\{\{ (\w+) \| default\(")

Specs = typing.Dict[str, typing.Dict[str, typing.Any]]


def read(folder: pathlib.Path, roles: typing.Iterable[str]) -> Specs:
    """The options of roles by their names, and by the name of the variable that they take their default from."""
    specs: Specs = {}
    for role in roles:
        entries = yaml_load((folder / role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
        for entry in entries.values():
            specs.update(entry["options"])
        defaults = yaml_load((folder / role / "defaults/main.yml").read_text(encoding="utf-8"))
        for name, default in defaults.items():
            match = _HANDED_ON.search(default) if isinstance(default, str) else None
            if match and name in specs:
                specs.setdefault(match[1], specs[name])
    return specs


def mistakes(values: typing.Mapping[str, typing.Any], specs: Specs, left_out: typing.Container[str]) -> list[str]:
    """What is wrong with the values that are set; those of C(left_out) are checked elsewhere."""
    found = []
    for name, spec in specs.items():
        if name in values and name not in left_out and values[name] is not None:
            found += _mistakes(name, values[name], spec)
    return found


def _mistakes(name: str, value: typing.Any, spec: typing.Mapping[str, typing.Any]) -> list[str]:
    kind = spec.get("type", "str")
    if kind in _CHECKS:
        check, words = _CHECKS[kind]
        try:
            checked = check(value)
        except (TypeError, ValueError):
            return [f"{name} must be {words}, is {_is(value)}"]
        if kind == "list" and spec.get("elements"):
            return [
                m for i, item in enumerate(checked) for m in _mistakes(f"{name}[{i}]", item, {"type": spec["elements"]})
            ]
    elif isinstance(value, (dict, list)):
        return [f"{name} must be text, is {_is(value)}"]
    choices = spec.get("choices")
    if choices and value not in choices:
        hint = (
            " (YAML reads a bare on, off, yes, no as true or false: put it in quotes)"
            if isinstance(value, bool)
            else ""
        )
        return [f"{name} must be one of {', '.join(map(str, choices))}, is {value}{hint}"]
    return []


def _is(value: typing.Any) -> str:
    if isinstance(value, dict):
        return "a dictionary"
    return "a list" if isinstance(value, list) else repr(value)
