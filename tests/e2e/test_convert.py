# SPDX-License-Identifier: MIT
"""What convert.yml makes of homeGPT's and of llama-swap's files goes through site.yml with Docker's own check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.stack import PLAY, Stack
from tests.playbooklib import Ansible
from tests.serverlib import ROOT

DATA = ROOT / "tests/integration_playbooks/data"
SOURCES = {
    "homegpt": [f"homegpt_config='{DATA}/homegpt/config.yaml'", f"homegpt_compose='{DATA}/homegpt/compose-*.yml'"],
    "llama-swap": [f"llama_swap_config='{DATA}/llama-swap.yaml'"],
}


@pytest.mark.parametrize(
    ("source", "right"),
    [
        ("homegpt", True),
        pytest.param("homegpt", False, marks=pytest.mark.whole),
        ("llama-swap", False),
        pytest.param("llama-swap", True, marks=pytest.mark.whole),
    ],
)
def test_site_checks_the_result(ansible_playbook: str, tmp_path: Path, source: str, right: bool) -> None:
    converted = tmp_path / "inventory/group_vars/vllm_hosts.yml"
    arguments = [word for each in (*SOURCES[source], f"dest={converted}") for word in ("-e", each)]
    none = Ansible(ansible_playbook, tmp_path, [])
    assert none.play("convert", *arguments, timeout=PLAY).changed("localhost") == 2
    text = converted.read_text(encoding="utf-8")
    if not right:
        # As somebody may edit it afterwards.
        assert text.count("startup_mode: active") == 1
        converted.write_text(text.replace("startup_mode: active", "startup_mode: awake"), encoding="utf-8")

    stack = Stack(tmp_path, [])
    variables: dict[str, Any] = stack.variables()
    # What the file says is what counts; the rest belongs to this machine.
    for key in ("vllm_models", "vllm_switching", "vllm_image", "vllm_env", "vllm_volumes", "vllm_cache_dir"):
        del variables[key]
    ansible = Ansible(ansible_playbook, tmp_path / "inventory", [stack])
    hosts = {"vllm_hosts": {"hosts": {stack.name: variables}}}
    ansible.inventory.write_text(yaml.safe_dump(hosts), encoding="utf-8")
    run = ansible.play("site", "--check", "--diff", timeout=PLAY)
    assert not stack.stack.exists()
    if not right:
        assert "(vision): startup_mode must be one of active, sleep, disabled, is awake" in run.failure()
        return
    assert run.changed(stack.name) > 0
    assert '+      - "--max-model-len=32768"' in run.diff
