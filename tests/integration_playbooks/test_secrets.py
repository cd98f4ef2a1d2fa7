# SPDX-License-Identifier: MIT
"""A secret of the inventory is given to the server it is for, and is seen nowhere else."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from ansible.module_utils import basic
from ansible.module_utils.common.parameters import PASS_VARS
from ansible.module_utils.testing import patch_module_args

from tests.integration_playbooks.conftest import Inventory
from tests.playbooklib import Host, launched
from tests.serverlib import ROOT

SECRETS = {"HF_TOKEN": "hf_nobody-may-see-this", "VLLM_API_KEY": "sk-nor-this-one"}
ARGUMENT = "sk-and-not-this-either"
HIDDEN = (*SECRETS.values(), ARGUMENT)


def secretive(**fields: Any) -> list[dict[str, Any]]:
    """Two models with secrets; the one that wants its key by environment prints what it was given, as servers may."""
    first = launched("by-environment", env=SECRETS, **fields)
    first["start_command"] = ["sh", "-c", 'echo "I know $HF_TOKEN"; exec "$@"', "sh", *first["start_command"]]
    second = launched("by-argument", flags=["--api-key", ARGUMENT], args={"api_key": [ARGUMENT]})
    return [first, second]


@pytest.mark.versions
def test_no_playbook_shows_them(inventory: Inventory, tmp_path: Path) -> None:
    host = Host(tmp_path, secretive(startup_mode="active"))
    ansible = inventory(host)
    runs = [
        ansible.play(playbook, "-e", "model=by-argument", "-vvv", "--diff")
        for playbook in ("prefetch", "bootstrap", "status", "switch", "teardown")
    ]
    for run in runs:
        assert run.status == 0
        assert not [secret for secret in HIDDEN if secret in run.output]
    assert all("by-argument" in run.output for run in runs[1:])
    # They were given: without them the key-guarded servers had not been known for themselves.
    assert [row[2] for row in runs[2].table] == ["active", "sleeping"]
    log = host.stack / "run/by-environment.log"
    assert "I know " + SECRETS["HF_TOKEN"] in log.read_text(encoding="utf-8")
    for file in host.stack.rglob("*"):
        if file.is_file() and any(secret in file.read_text(encoding="utf-8") for secret in HIDDEN):
            assert file.stat().st_mode & 0o077 == 0, file


def test_no_failure_shows_them(inventory: Inventory, tmp_path: Path) -> None:
    """Neither the last log lines of a server that died nor the complaint about an inventory's mistake."""
    models = secretive()
    models[0]["env"] = {**SECRETS, "STANDIN_FAULTS": '[{"path": "load", "fault": "die"}]'}
    run = inventory(Host(tmp_path, models)).play("switch", "-e", "model=by-environment", "-vvv")
    message = run.failure()
    assert "The last lines of its log" in message
    assert "I know ****" in message
    assert not [secret for secret in HIDDEN if secret in run.output]

    models[1]["host_port"] = "none"
    for playbook in ("bootstrap", "switch"):
        run = inventory(Host(tmp_path, models)).play(playbook, "-e", "model=by-environment", "-vvv")
        assert "host_port must be a whole number" in run.failure()
        assert not [secret for secret in HIDDEN if secret in run.output]


def play_module(name: str, params: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> tuple[Any, list[str]]:
    """Run a module in this process as Ansible does at -vvv; its result, and what would be in the system log."""
    logged: list[str] = []

    def log(_module: object, msg: str, log_args: object = None) -> None:
        logged.append(f"{msg} {log_args}")

    # From ansible-core 2.21 on a module returns its parameters only if it is told to.
    if "inject_invocation" in PASS_VARS:
        params["_ansible_inject_invocation"] = True
    with patch_module_args(params), patch.object(basic.AnsibleModule, "log", log), pytest.raises(SystemExit):
        runpy.run_module(f"ansible_collections.homegpt.vllm.plugins.modules.{name}", run_name="__main__")
    return json.loads(capsys.readouterr().out), logged


@pytest.mark.parametrize("name", ["vllm_sleep_state", "vllm_sleep_state_info"])
def test_no_system_log_gets_them(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params: dict[str, Any] = {"models": secretive(), "stack_dir": str(tmp_path / "stack"), "_ansible_check_mode": True}
    if name == "vllm_sleep_state":
        params["model"] = "by-argument"
    result, logged = play_module(name, params, capsys)
    assert result["models"]["by-argument"]["state"] in ("active", "stopped")
    assert "models=" in str(logged)
    assert not [secret for secret in HIDDEN if secret in str(logged) + json.dumps(result)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda params: params.update(state="awake"),
        lambda params: params.update(modle="a"),
        lambda params: params.update(switching="none"),
        lambda params: params.pop("model"),
        lambda params: params["models"].append("not a dictionary"),
    ],
    ids=["choice", "unsupported", "type", "missing", "element"],
)
def test_no_refused_task_shows_them(
    spoil: Callable[[dict[str, Any]], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ansible itself refuses wrong parameters, and shows at -vvv all that the task was given."""
    params: dict[str, Any] = {"model": "a", "models": secretive(), "stack_dir": str(tmp_path / "stack")}
    spoil(params)
    result, logged = play_module("vllm_sleep_state", params, capsys)
    assert result["failed"]
    assert "by-environment" in json.dumps(result["invocation"])
    assert not [secret for secret in HIDDEN if secret in str(logged) + json.dumps(result)]


def test_what_only_sounds_secret_hides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = launched(
        "model-14b",
        env={"TOKENIZERS_PARALLELISM": "False", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "MODEL_KEY": "model-14b"},
        args={"tokenizer": "a", "max_num_batched_tokens": "0"},
    )
    result, _logged = play_module("vllm_sleep_state_info", {"models": [model], "stack_dir": str(tmp_path)}, capsys)
    assert result["changed"] is False
    assert result["models"]["model-14b"]["state"] == "stopped"
    assert result["models"]["model-14b"]["host_port"] == model["host_port"]
    assert "****" not in json.dumps(result)


def test_this_is_the_checkouts_module() -> None:
    import ansible_collections.homegpt.vllm.plugins.modules.vllm_sleep_state as module

    assert module.__file__
    assert Path(module.__file__).resolve() == ROOT / "plugins/modules/vllm_sleep_state.py"
