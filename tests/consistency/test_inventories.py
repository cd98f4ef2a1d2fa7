# SPDX-License-Identifier: MIT
"""The inventories that are shipped parse without a mistake, as Ansible sees them, and declare homeGPT's four models."""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, parse

ROOT = Path(__file__).resolve().parents[2]
INVENTORIES = ("homegpt", "demo")
GROUP = "vllm_hosts"

# id, name, model, host_port, gpu_memory_gb
HOMEGPT = [
    ("qwen3-vl-30b-a3b", "Qwen 3 VL 30B A3B (MoE AWQ)", "QuantTrio/Qwen3-VL-30B-A3B-Instruct-AWQ", 8001, 57.0),
    ("qwen3-vl-32b", "Qwen 3 VL 32B (FP8)", "Qwen/Qwen3-VL-32B-Instruct-FP8", 8002, 60.0),
    ("qwen3-next-80b-a3b-thinking", "Qwen 3 Next 80B A3B Thinking", "Qwen/Qwen3-Next-80B-A3B-Thinking", 8003, None),
    ("gpt-oss-20b", "GPT-OSS 20B", "openai/gpt-oss-20b", 8004, 36.0),
]


@functools.cache
def variables_of(name: str, ansible_playbook: str) -> dict[str, dict[str, Any]]:
    """vllm_models and vllm_switching of every host of a shipped inventory, with all templates filled in by Ansible."""
    wanted = "{{ {'vllm_models': vllm_models, 'vllm_switching': vllm_switching} | to_json | b64encode }}"
    # debug runs on the controller, so no host has to be there.
    answer = subprocess.run(
        [
            str(Path(ansible_playbook).with_name("ansible")),
            *("--inventory", str(ROOT / "inventory" / name)),
            *("--module-name", "ansible.builtin.debug"),
            *("--args", f"msg={wanted}"),
            *("--extra-vars", "ansible_become=false"),
            GROUP,
        ],
        env={
            **os.environ,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
            # Whether a demo is kept in this checkout or not.
            "DEMO_FIRST_PORT": "8001",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = re.findall(r'^(\S+) \| SUCCESS => \{\s*"msg": "([A-Za-z0-9+/=]+)"', answer.stdout, re.MULTILINE)
    assert found, answer.stdout
    return {host: json.loads(base64.b64decode(encoded)) for host, encoded in found}


@pytest.fixture(params=INVENTORIES)
def shipped(request: pytest.FixtureRequest, ansible_playbook: str) -> dict[str, Inventory]:
    """The checked model inventory of every host of one shipped inventory."""
    return {
        host: parse(variables["vllm_models"], variables["vllm_switching"])
        for host, variables in variables_of(request.param, ansible_playbook).items()
    }


def test_every_inventory_folder_is_known() -> None:
    assert {path.name for path in (ROOT / "inventory").iterdir() if path.is_dir()} == set(INVENTORIES)


def test_it_declares_the_four_models_of_homegpt(shipped: dict[str, Inventory]) -> None:
    for inventory in shipped.values():
        assert [(m.id, m.name, m.model, m.host_port) for m in inventory.models] == [row[:4] for row in HOMEGPT]
        assert inventory.switching.available_ram_gb == 128.0


def test_one_model_is_active_and_all_share_the_gpus(shipped: dict[str, Inventory]) -> None:
    for inventory in shipped.values():
        assert [m.id for m in inventory.models if m.startup_mode == "active"] == ["qwen3-vl-30b-a3b"]
        assert {m.gpus for m in inventory.models} == {(0, 1)}
        assert inventory.find("gpt-oss-20b").startup_mode == "sleep"


def test_homegpt_has_the_sizes_and_modes_of_homegpt(ansible_playbook: str) -> None:
    for variables in variables_of("homegpt", ansible_playbook).values():
        inventory = parse(variables["vllm_models"], variables["vllm_switching"])
        assert [(m.id, m.gpu_memory_gb) for m in inventory.models] == [(row[0], row[4]) for row in HOMEGPT]
        assert [m.startup_mode for m in inventory.models] == ["active", "sleep", "disabled", "sleep"]
        assert inventory.switching.max_retries == 450
        assert inventory.switching.health_check_interval_seconds == 2.0


def test_the_demo_starts_every_server_itself(ansible_playbook: str) -> None:
    for variables in variables_of("demo", ansible_playbook).values():
        for model in parse(variables["vllm_models"], variables["vllm_switching"]).models:
            assert not model.disabled
            program, script, *arguments = model.start_command
            assert Path(program).exists()
            assert Path(script).resolve() == ROOT / "tests" / "standin" / "vllm_standin.py"
            assert arguments[:2] == ["serve", model.model]
            assert arguments[arguments.index("--port") + 1] == str(model.host_port)
            assert not [word for word in arguments if "${" in word or "{{" in word]
