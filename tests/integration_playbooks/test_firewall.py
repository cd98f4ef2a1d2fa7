# SPDX-License-Identifier: MIT
"""Who else relies on the firewall's rules, by what Docker and nft say. tests/firewall has the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serverlib import ROOT

PROGRAMS = {
    # Names, and the addresses that ports are published on.
    "docker": 'case $1 in ps) echo 1 ;; inspect) printf "%b" "$PUBLISHED" ;; *) exit 1 ;; esac',
    "nft": 'echo "ip daddr 127.0.0.0/8 drop comment \\"homegpt.vllm-1\\""',
}
PLAY = """
- hosts: localhost
  gather_facts: false
  vars:
    vllm_models: [{id: a, model: org/a, host_port: 8001}]
  tasks:
    - ansible.builtin.import_role: {name: homegpt.vllm.docker_host, tasks_from: teardown}
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("published", "others"),
    [
        ("/vllm-a 127.0.0.1\\n/open-webui 127.0.0.1\\n", ""),
        ("/vllm-a 127.0.0.1\\n/db 0.0.0.0 127.0.0.1\\n/web 10.127.0.1\\n/none\\n", "db"),
    ],
)
def test_check_mode_of_teardown_reckons_without_the_stack(
    programs: Path, tmp_path: Path, ansible_playbook: str, published: str, others: str
) -> None:
    play = tmp_path / "play.yml"
    play.write_text(PLAY, encoding="utf-8")
    path = f"{programs}:{os.environ['PATH']}"
    env = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": path, "PUBLISHED": published}
    env["ANSIBLE_COLLECTIONS_PATH"] = str(ROOT / ".build")
    local = [
        "--connection",
        "local",
        "-i",
        "localhost,",
        "-e",
        json.dumps({"ansible_python_interpreter": sys.executable}),
    ]
    ended = subprocess.run(
        [ansible_playbook, *local, "--check", str(play)], env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ("the firewall rules are kept because" in ended.stdout) == bool(others)
    if others:
        assert f"other containers are published on loopback: {others}. `-e" in " ".join(ended.stdout.split())
    else:
        assert "Delete the firewall table" in ended.stdout


def test_a_server_that_listens_at_another_address_alone_is_not_silent(programs: Path) -> None:
    """Only the host's own look is needed for that: without root there is no neighbour."""
    source = (ROOT / "roles/docker_host/files/neighbour.py").read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "neighbour"}
    exec(compile(source, "neighbour.py", "exec"), names)
    here = {("10.0.0.5", 8001), ("127.0.0.1", 8002)}
    said: list[str] = []
    names.update(
        own_addresses=lambda: ["10.0.0.5"],
        containers=lambda wanted: {},
        reached=lambda targets: here & set(targets),
        neighbour=lambda targets: [],
        run=lambda *words: "",
        print=said.append,
    )
    models = '[{"id": "a", "port": 8001, "container": ""}, {"id": "b", "port": 8002, "container": ""}, ' + (
        '{"id": "c", "port": 8003, "container": ""}]'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 0)
        patch.setattr("shutil.which", lambda name: name)
        patch.setattr("signal.alarm", lambda seconds: 0)
        # It sets both.
        patch.setenv("PATH", os.environ["PATH"])
        patch.setenv("LC_ALL", "C")
        patch.setattr(sys, "argv", ["-", models])
        names["main"]()  # type: ignore[operator]
    assert '"not_tried": ["c: nothing listens on these ports' in said[0]
    assert '"closed": 2' in said[0]
