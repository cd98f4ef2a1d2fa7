# SPDX-License-Identifier: MIT
"""docs/inventory.md says what the engine does, of every key and of every variable that roles share."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import checks, inventory, schema

from tests.consistency import blocks, inventory_doc


def test_the_page_is_up_to_date() -> None:
    page = inventory_doc.PAGE.read_text(encoding="utf-8")
    assert page == blocks.written(page, inventory_doc.rendered()), f"run {blocks.COMMAND} and look at the diff"


@pytest.mark.parametrize(
    ("table", "cls"), [(schema.MODEL_FIELDS, schema.Model), (schema.SWITCHING_FIELDS, schema.Switching)]
)
def test_every_key_has_a_check_and_a_meaning(table: dict[str, checks.Field], cls: type) -> None:
    names = [field.name for field in dataclasses.fields(cls)]
    assert list(table) == names
    assert list(inventory_doc.meanings(cls)) == names


def test_every_key_of_a_call_has_a_meaning() -> None:
    told = {**inventory_doc.meanings(inventory.Request), **inventory_doc.meanings(inventory.StateRequest)}
    assert set(told) == {field.name for field in dataclasses.fields(inventory.StateRequest)}


def test_what_a_key_takes_is_what_its_check_says() -> None:
    said = {name: inventory_doc.takes("vllm_models", name) for name in inventory_doc.meanings(inventory.Model)}
    assert said["host_port"] == "a port from 1 to 65535"
    assert said["gpu_memory_gb"] == "a number, greater than 0"
    assert said["startup_mode"] == "one of active, sleep, disabled"
    assert all(said.values())
    assert all(inventory_doc.takes("vllm_switching", name) for name in inventory_doc.meanings(inventory.Switching))


@pytest.mark.parametrize(
    ("key", "given", "switching", "expected"),
    [
        ("name", {}, {}, "a"),
        ("container_name", {}, {}, "vllm-a"),
        ("weights_gb", {"gpu_memory_gb": 7}, {}, 7),
        ("ready_completion", {}, {"ready_completion": False}, False),
        ("kind", {"args": {"runner": "pooling"}}, {}, "pooling"),
        ("canary", {}, {"canary": "warn"}, "warn"),
    ],
)
def test_a_default_that_another_key_gives(
    key: str, given: dict[str, Any], switching: dict[str, Any], expected: object
) -> None:
    (model,) = inventory.parse([{**inventory_doc.MINIMAL, **given}], switching).models
    assert getattr(model, key) == expected
    assert key in inventory_doc.DERIVED


def test_no_other_default_is_given_by_another_key() -> None:
    (model,) = inventory.parse([inventory_doc.MINIMAL]).models
    filled = {
        field.name
        for field in dataclasses.fields(model)
        if field.default is not dataclasses.MISSING and getattr(model, field.name) != field.default
    }
    assert filled <= set(inventory_doc.DERIVED)


def test_every_variable_that_roles_share_is_on_the_page() -> None:
    assert set(inventory_doc.shared()) <= set(inventory_doc.VARIABLES)
