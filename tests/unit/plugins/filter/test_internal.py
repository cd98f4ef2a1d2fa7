# SPDX-License-Identifier: MIT
"""The internal filters: each has a function behind it, and something of the collection that calls it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.internal import FUNCTIONS, FilterModule

ROOT = Path(__file__).resolve().parents[4]
FILTERS = FilterModule().filters()


def test_each_has_its_function() -> None:
    assert list(FILTERS) == list(FUNCTIONS)
    for place in FUNCTIONS.values():
        module, name = place.split(".")
        package = importlib.import_module(f"ansible_collections.homegpt.vllm.plugins.plugin_utils.{module}")
        assert callable(getattr(package, name)), place


def test_each_is_called() -> None:
    kinds = {".yml", ".j2"}
    files = [path for folder in ("playbooks", "roles") for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    called = {name for path in files for name in re.findall(r"homegpt\.vllm\.(\w+)", path.read_text(encoding="utf-8"))}
    assert set(FUNCTIONS) - called == set()


def test_a_filter_with_another_name_leads_to_one() -> None:
    routed = yaml.safe_load((ROOT / "meta/runtime.yml").read_text(encoding="utf-8"))["plugin_routing"]["filter"]
    assert routed
    for name, route in routed.items():
        assert name not in FUNCTIONS
        assert route["redirect"].removeprefix("homegpt.vllm.") in FUNCTIONS


def test_what_a_function_refuses_is_an_error_of_the_filter() -> None:
    with pytest.raises(AnsibleFilterError, match="vllm_models is empty"):  # a SwitchingError
        FILTERS["placement"]([])
    with pytest.raises(AnsibleFilterError, match="NUL"):  # a ValueError
        FILTERS["dotenv_text"]("a\0b")
