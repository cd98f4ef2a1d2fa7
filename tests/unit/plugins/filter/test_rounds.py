# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.rounds import FilterModule

rounds = FilterModule().filters()["rounds"]
GPUS = {"a": [0], "b": [1], "c": [0], "d": [2]}
MODELS = [{"id": m, "model": "m", "host_port": 8000 + i, "gpus": g} for i, (m, g) in enumerate(GPUS.items())]


def test_models_that_share_a_gpu_are_in_different_rounds() -> None:
    assert rounds(["c", "a", "b", "d"], MODELS) == [["c", "b", "d"], ["a"]]
    assert rounds([], MODELS) == []
    with_macro = [{**MODELS[0], "start_command": ["${run}"]}]
    assert rounds(["a"], with_macro, {"macros": {"run": "vllm"}}) == [["a"]]


def test_a_wrong_id_or_inventory() -> None:
    with pytest.raises(AnsibleFilterError, match="model z is not declared"):
        rounds(["z"], MODELS)
    with pytest.raises(AnsibleFilterError, match="vllm_models is empty"):
        rounds([], [])
