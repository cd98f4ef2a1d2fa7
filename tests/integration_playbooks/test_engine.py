# SPDX-License-Identifier: MIT
"""The module that leaves a copy of the switching engine on a host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.playbooklib import Ansible, Host
from tests.serverlib import ROOT

pytestmark = pytest.mark.versions

ENGINE = ROOT / "plugins/module_utils/switching"
PLAYBOOK = """
- hosts: host
  gather_facts: false
  tasks:
    - name: Copy the engine
      homegpt.vllm.vllm_engine:
        dest: "{{ dest }}"
"""


def texts(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.py")}


def test_a_copy_is_made_kept_and_mended(ansible_playbook: str, tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
    ansible = Ansible(ansible_playbook, tmp_path, [Host(tmp_path, [])])
    copy = tmp_path / "switching"

    def run(*more: str) -> dict[str, Any]:
        ended = ansible.play(tmp_path / "play.yml", "-v", "-e", f"dest={copy}", *more)
        assert ended.status == 0, ended.output
        (result,) = ended.results("ok", "changed")
        return result

    assert run("--check")["changed"]
    assert not copy.exists()
    assert sorted(run()["written"]) == sorted(texts(ENGINE))
    assert texts(copy) == texts(ENGINE)
    assert not run()["changed"]

    (copy / "plan.py").write_text("other")
    (copy / "gone.py").write_text("")
    (copy / "tables.py").chmod(0o600)
    for result in (run("--check"), run()):
        assert (result["changed"], result["written"], result["removed"]) == (
            True,
            ["plan.py", "tables.py"],
            ["gone.py"],
        )
    assert texts(copy) == texts(ENGINE)
    assert not run()["changed"]

    # And it works by itself.
    models = [{"id": "a", "model": "org/a", "host_port": 1}]
    (tmp_path / "models.json").write_text(json.dumps({"vllm_models": models}), encoding="utf-8")
    command = [sys.executable, "-m", "switching", "status"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300).stdout
    assert "stopped" in said


def test_a_folder_that_cannot_be_written_is_named(ansible_playbook: str, tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
    ansible = Ansible(ansible_playbook, tmp_path, [Host(tmp_path, [])])
    dest = tmp_path / "missing" / "switching"
    message = ansible.play(tmp_path / "play.yml", "-e", f"dest={dest}").failure()
    assert message == f"the engine can't be written to {dest}: No such file or directory ({dest})"
