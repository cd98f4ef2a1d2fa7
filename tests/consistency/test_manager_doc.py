# SPDX-License-Identifier: MIT
"""docs/manager.md says what the service has."""

from __future__ import annotations

import ast

from ansible_collections.homegpt.vllm.plugins.plugin_utils.preflight_services import MANAGER_SETTINGS

from tests.consistency import blocks, manager_doc


def test_the_page_is_up_to_date() -> None:
    page = manager_doc.PAGE.read_text(encoding="utf-8")
    assert page == blocks.written(page, manager_doc.rendered()), f"run {blocks.COMMAND} and look at the diff"


def test_every_setting_has_a_meaning() -> None:
    (config,) = (
        node
        for node in ast.parse(manager_doc.MODULE.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Config"
    )
    fields = [
        node.target.id for node in config.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    assert list(manager_doc.settings()) == fields


def test_the_settings_that_variables_set_are_settings() -> None:
    assert set(MANAGER_SETTINGS) <= set(manager_doc.settings())
