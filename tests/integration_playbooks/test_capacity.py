# SPDX-License-Identifier: MIT
"""An inventory that the host has not the memory for is refused before anything is fetched, started or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import costs, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse

from tests.integration_playbooks.conftest import Inventory
from tests.integration_playbooks.test_secrets import play_module
from tests.playbooklib import Host, launched
from tests.standin.gpu import GpuHost, uuid_of

SECRET = "hf_nobody-may-see-this"
SHARE = ("--gpu-memory-utilization", "0.9")


def crowded() -> list[dict[str, Any]]:
    """Three mistakes: a GPU that is not there, a share that leaves no room for sleepers, weights beyond the RAM."""
    return [
        launched("first", flags=SHARE, startup_mode="active", gpu_memory_gb=20, env={"HF_TOKEN": SECRET}),
        launched("greedy", flags=["--gpu-memory-utilization", "0.98"]),
        launched("elsewhere", flags=SHARE, gpus=[5]),
        launched("heavy", flags=SHARE, gpus=[1], sleep_level=1, weights_gb=1e6),
    ]


PROBLEMS = [
    "GPU 0 has 24.0 GB, but greedy needs 23.5 GB of free memory to load (gpu_memory_utilization 0.98), and first keeps "
    "about 1.0 GB while asleep: set --gpu-memory-utilization in its start_command to at most 0.95, or set sleep_level "
    "of first to stop",
    "elsewhere: gpus names GPU 5, but the host has 0 and 1: correct its gpus",
    "the weights of heavy take 1000000.0 GB of RAM when it sleeps at level 1, but the host has ",
]


@pytest.fixture
def gpus(tmp_path: Path) -> dict[str, str]:
    """The environment in which nvidia-smi tells of two GPUs of 24 GB."""
    return {"STANDIN_GPU_DIR": str(tmp_path / "gpus-host")}


@pytest.mark.versions
@pytest.mark.parametrize("arguments", [("bootstrap",), ("bootstrap", "--check"), ("site",), ("site", "--check")])
def test_all_that_does_not_fit_is_told_at_once(
    inventory: Inventory, tmp_path: Path, gpus: dict[str, str], arguments: tuple[str, ...]
) -> None:
    host = Host(tmp_path, crowded())
    run = inventory(host).play(*arguments, "-vvv", "--diff", env=gpus)
    lines = run.failure().splitlines()
    assert lines[0] == "not enough memory for the models:"
    assert [line[: len("- " + problem)] for line, problem in zip(lines[1:], PROBLEMS, strict=True)] == [
        "- " + problem for problem in PROBLEMS
    ]
    assert run.count("changed") == 0
    assert host.events() == []
    assert not host.stack.exists()
    assert SECRET not in run.output


def test_what_fits_is_loaded_and_nothing_is_said(inventory: Inventory, tmp_path: Path, gpus: dict[str, str]) -> None:
    models = [
        launched("first", flags=SHARE, startup_mode="active", gpu_memory_gb=20),
        launched("second", flags=SHARE, sleep_level=1),
    ]
    host = Host(tmp_path, models, {"available_ram_gb": 1})
    ansible = inventory(host)
    assert ansible.play("bootstrap", env=gpus).changed() == 2
    run = ansible.play("bootstrap", env=gpus)
    # What the models themselves hold now is no reason to refuse them.
    assert run.changed() == 0
    assert "msg" not in run.output


def test_more_ram_set_aside_than_there_is(inventory: Inventory, tmp_path: Path) -> None:
    host = Host(tmp_path, [launched("first")], {"available_ram_gb": 1e6})
    run = inventory(host).play("bootstrap", "--check")
    assert run.status == 0
    assert "vllm_switching.available_ram_gb is 1000000.0, but the host has " in run.output


def test_the_module_tells_what_there_is(
    tmp_path: Path, gpus: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in gpus.items():
        monkeypatch.setenv(name, value)
    foreign = GpuHost(Path(gpus["STANDIN_GPU_DIR"]), ("1",), 24.0, "python3")
    foreign.hold(4.0)
    result, logged = play_module("vllm_capacity_info", {"models": crowded(), "_ansible_check_mode": True}, capsys)
    assert result["changed"] is False
    assert result["ram_gb"] > 0
    assert result["gpus"] == [
        {"index": 0, "uuid": uuid_of("0"), "total_gb": 24.0, "free_gb": 24.0},
        {"index": 1, "uuid": uuid_of("1"), "total_gb": 24.0, "free_gb": 20.0},
    ]
    assert result["unified_memory"] is False
    assert len(result["problems"]) == len(PROBLEMS)
    assert SECRET not in str(logged) + json.dumps(result)


def test_the_module_where_there_are_no_gpus_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    switching = {"available_ram_gb": 1e6}
    result, _logged = play_module("vllm_capacity_info", {"models": crowded(), "switching": switching}, capsys)
    assert result["gpus"] == []
    assert len(result["problems"]) == 1
    assert len(result["advice"]) == 1


def test_the_module_advises_by_what_levels_have_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [launched("a", sleep_level="1", weights_gb=1)]
    took = [costs.Measure("a", level, what, 3.0 - level) for level in (1, 2) for what in ("sleep", "wake")]
    measured = costs.merged({}, took, {"a": parse(models, {}).models[0]})
    state_files.write(str(tmp_path), state_files.COSTS, {"models": measured})
    switching = {"available_ram_gb": 0}
    for folder, advice in ((tmp_path, 1), (tmp_path / "other", 0)):
        given = {"models": models, "switching": switching, "stack_dir": str(folder)}
        result, _logged = play_module("vllm_capacity_info", given, capsys)
        assert [line.partition(" (")[0] for line in result["advice"]] == [
            "a would switch faster at another level"
        ] * advice


def test_the_module_tells_the_mistakes_of_an_inventory(capsys: pytest.CaptureFixture[str]) -> None:
    result, _logged = play_module("vllm_capacity_info", {"models": [{"id": "a"}]}, capsys)
    assert result["failed"]
    assert result["mistakes"] == ["vllm_models[0] (a): model is required", "vllm_models[0] (a): host_port is required"]
