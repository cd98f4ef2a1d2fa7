# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.internal import FilterModule

load_batches = FilterModule().filters()["load_batches"]
GPUS = {"a": [0], "b": [1], "c": [0], "d": [2]}
MODELS = [{"id": m, "model": "m", "host_port": 8000 + i, "gpus": g} for i, (m, g) in enumerate(GPUS.items())]


def test_models_that_share_a_gpu_are_in_different_load_batches() -> None:
    assert load_batches(["c", "a", "b", "d"], MODELS) == [["c", "b", "d"], ["a"]]
    assert load_batches([], MODELS) == []
    with_macro = [{**MODELS[0], "start_command": ["${run}"]}]
    assert load_batches(["a"], with_macro, {"macros": {"run": "vllm"}}) == [["a"]]


def test_a_wrong_id_or_inventory() -> None:
    with pytest.raises(AnsibleFilterError, match="model z is not declared"):
        load_batches(["z"], MODELS)
    with pytest.raises(AnsibleFilterError, match="vllm_models is empty"):
        load_batches([], [])
