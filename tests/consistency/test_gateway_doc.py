# SPDX-License-Identifier: MIT
"""docs/gateway.md and the gateway's own program say what its settings are."""

from __future__ import annotations

import re

from ansible_collections.homegpt.vllm.plugins.plugin_utils import gateway

from tests.consistency import blocks, gateway_doc


def test_the_page_is_up_to_date() -> None:
    page = gateway_doc.PAGE.read_text(encoding="utf-8")
    assert page == blocks.written(page, gateway_doc.rendered()), f"run {blocks.COMMAND} and look at the diff"


def test_the_program_has_the_same_settings() -> None:
    program = gateway_doc.ROOT / "roles/model_gateway/files/lua/gateway/config.lua"
    (table,) = re.findall(r"^local KINDS = \{\n(.*?)^\}", program.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    found = dict(re.findall(r'^    (\w+) = "(\w+)",$', table, re.MULTILINE))
    kinds = {str: "text", int: "number", list: "list"}
    assert found == {name: kinds[type(value)] for name, value in gateway.settings({}).items()}
