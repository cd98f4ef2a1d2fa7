# SPDX-License-Identifier: MIT
"""Models that complete no text, by the playbooks: loaded, switched away and back, not offered to chats."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import yaml

from tests.integration_playbooks.conftest import Inventory
from tests.playbooklib import Host, is_sleeping, launched
from tests.serverlib import ROOT


def test_bootstrap_and_away_and_back(inventory: Inventory, tmp_path: Path) -> None:
    models = [
        launched("chat", startup_mode="active", sleep_level="2"),
        launched("vectors", env={"STANDIN_KIND": "embedding"}, sleep_level="2"),
        launched("ears", env={"STANDIN_KIND": "speech", "STANDIN_VERSION": "0.11.0"}, sleep_level="2"),
    ]
    host = Host(tmp_path, models, {"canary": "enforce"})
    ansible = inventory(host)
    assert ansible.play("bootstrap").changed() == 2
    records = json.loads((host.stack / "run" / "canary.json").read_text(encoding="utf-8"))["models"]
    assert {name: record["kind"] for name, record in records.items()} == {
        "chat": "text",
        "vectors": "embedding",
        "ears": "speech",
    }
    for name in ("vectors", "ears", "chat"):
        run = ansible.play("switch", "-e", f"model={name}", "-v")
        assert run.changed() == 1
        result = run.switched
        assert (result["active_model"], result["rung"]) == (name, "")
        assert result["steps"][-1]["note"] == "answers as recorded"
        assert {one["id"] for one in models if not is_sleeping(host.port(one["id"]))} == {name}
    # Each was started once.
    assert [event["model"] for event in host.events() if event["event"] == "loading"] == ["vectors", "ears", "chat"]


def test_open_webui_is_not_offered_them(ansible_playbook: str, tmp_path: Path) -> None:
    models = [
        {"id": "chat", "model": "org/chat", "host_port": 8001},
        {"id": "said", "model": "org/said", "host_port": 8002, "kind": "text"},
        {"id": "vectors", "model": "org/vectors", "host_port": 8003, "args": {"runner": "pooling"}},
        {"id": "ranks", "model": "org/ranks", "host_port": 8004, "kind": "pooling"},
        {"id": "ears", "model": "org/ears", "host_port": 8005, "kind": "speech"},
    ]
    variables = tmp_path / "variables.json"
    variables.write_text(json.dumps({"vllm_models": models, "output": str(tmp_path)}), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    playbook = "tests/consistency/render_homegpt.yml"
    ended = subprocess.run(
        [ansible_playbook, "-i", "inventory/homegpt", playbook, "-e", f"@{variables}"],
        cwd=ROOT,
        env={
            **kept,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": f"{tmp_path}/.ansible",
            "LC_ALL": "C.UTF-8",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    compose = yaml.safe_load((tmp_path / "compose-open-webui.yml").read_text(encoding="utf-8"))
    urls = compose["services"]["open-webui"]["environment"]["OPENAI_API_BASE_URLS"]
    assert urls.split(";") == ["http://vllm-chat:8000/v1", "http://vllm-said:8000/v1"]
