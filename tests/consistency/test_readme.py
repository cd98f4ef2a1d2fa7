# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The tables of the README say what the engine does."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import inventory

README = Path(__file__).parents[2] / "README.md"
# Defaults that depend on another key, as the README words them.
DERIVED = {
    "name": "`id`",
    "container_name": "`vllm-ID`",
    "weights_gb": "`gpu_memory_gb`",
    "ready_completion": "that of `vllm_switching`",
    "canary": "that of `vllm_switching`",
}


def documented(marker: str) -> dict[str, str]:
    """The default of each key in the table behind a marker."""
    table = README.read_text(encoding="utf-8").split(f"<!-- {marker} -->")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    return {row[0].strip("`"): row[1] for row in rows}


def default(field: dataclasses.Field) -> str:
    """The default of a field as the README words it."""
    value = field.default_factory() if callable(field.default_factory) else field.default
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return ""
    if isinstance(value, float) and value == int(value):
        value = int(value)
    text = json.dumps(value)
    return f"`{value}`" if isinstance(value, str) and value else f"`{text}`"


@pytest.mark.parametrize(
    ("marker", "cls", "derived"),
    [("model keys", inventory.Model, DERIVED), ("switching keys", inventory.Switching, {})],
)
def test_every_key_stands_in_the_readme_with_its_default(marker, cls, derived):
    assert documented(marker) == {f.name: derived.get(f.name, default(f)) for f in dataclasses.fields(cls)}


@pytest.mark.parametrize(
    ("table", "cls"), [("_MODEL_FIELDS", inventory.Model), ("_SWITCHING_FIELDS", inventory.Switching)]
)
def test_every_key_has_a_check(table, cls):
    assert list(getattr(inventory, table)) == [f.name for f in dataclasses.fields(cls)]


def test_the_inventory_in_the_readme_is_right():
    import yaml

    example = re.search(r"```yaml\n(   vllm_models:.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert example
    variables = yaml.safe_load(example.group(1))
    parsed = inventory.parse(variables["vllm_models"], variables["vllm_switching"])
    assert [m.id for m in parsed.models] == ["qwen3-vl-30b-a3b", "gpt-oss-20b"]


def test_the_other_server_in_the_readme_is_right():
    import yaml

    example = re.search(r"```yaml\n(- id: other.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert example
    (model,) = inventory.parse(yaml.safe_load(example.group(1))).models
    assert model.sleep_requests[0].body == {"tags": ["weights"]}
    assert model.wake_requests[0].timeout == 60
