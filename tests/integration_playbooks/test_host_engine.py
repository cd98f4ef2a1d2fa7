# SPDX-License-Identifier: MIT
"""A module run by the engine that is on a host returns what it returns when it is sent whole; no other code is run."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.modules import vllm_host_engine

from tests.integration_playbooks.conftest import Inventory, Start
from tests.playbooklib import Ansible, Host, Run, launched, served, unspaced_python
from tests.serverlib import ROOT
from tests.weights import MB, about, put

pytestmark = pytest.mark.versions

ENGINE = ROOT / "plugins/module_utils/switching"
SECRET = "sk-nobody-may-see-this"
# Failures are results too: they are registered, and compared between both ways.
PLAY = """
- hosts: host
  gather_facts: false
  module_defaults:
    group/homegpt.vllm.switching:
      models: "{{ vllm_models }}"
      switching: "{{ vllm_switching }}"
      stack_dir: "{{ vllm_stack_dir }}"
  tasks:
    - {register: first, homegpt.vllm.vllm_sleep_state_info: {}}
    - {register: checked, homegpt.vllm.vllm_sleep_state: {model: b}, check_mode: true, diff: true}
    - {register: switched, homegpt.vllm.vllm_sleep_state: {model: [b], change: one, state: active}}
    - {register: again, homegpt.vllm.vllm_sleep_state: {model: "{{ ['b'] }}", record_canary: "yes"}}
    - {register: by_text, homegpt.vllm.vllm_sleep_state: {model: "a,b", state: sleeping}, ignore_errors: true}
    - {register: undone, homegpt.vllm.vllm_sleep_state: {state: undone, change: one}, ignore_errors: true}
    - {register: previous, homegpt.vllm.vllm_sleep_state: {state: previous}, ignore_errors: true}
    - {register: unknown, homegpt.vllm.vllm_sleep_state: {model: c}, ignore_errors: true}
    - {register: no_model, homegpt.vllm.vllm_sleep_state: {state: active}, ignore_errors: true}
    - {register: no_state, homegpt.vllm.vllm_sleep_state: {model: a, state: awake}, ignore_errors: true}
    - {register: no_such, homegpt.vllm.vllm_sleep_state: {model: a, wrong: 1}, ignore_errors: true}
    - {register: mistaken, homegpt.vllm.vllm_sleep_state: {model: a, models: [{id: a}]}, ignore_errors: true}
    - register: shown
      homegpt.vllm.vllm_sleep_state: {model: "{{ secret }}", stack_dir: "{{ vllm_stack_dir }}/"}
      ignore_errors: true
    - register: later
      homegpt.vllm.vllm_sleep_state: {model: a}
      async: 60
      poll: 1
      vars: {ansible_python_interpreter: "{{ python }}"}
    - {register: hidden, homegpt.vllm.vllm_sleep_state_info: {}, no_log: true}
    - {register: to_warm, homegpt.vllm.vllm_warm: {model: weighty}, check_mode: true}
    - {register: warmed, homegpt.vllm.vllm_warm: {model: "weighty,weighty"}}
    - {register: still_warm, homegpt.vllm.vllm_warm: {model: [weighty]}}
    - {register: not_warmed, homegpt.vllm.vllm_warm: {model: a}, ignore_errors: true}
    - {register: nothing_warmed, homegpt.vllm.vllm_warm: {}, ignore_errors: true}
    - {register: failed, homegpt.vllm.vllm_sleep_state: {model: broken}, ignore_errors: true}
    - ansible.builtin.copy:
        dest: "{{ results }}"
        content: >-
          {{ dict(names | zip(names | map('extract', vars))) | to_json }}
      delegate_to: localhost
"""
NAMES = re.findall(r"register: (\w+)", PLAY)
# What is another one each time.
TIMES = re.compile(r'("(?:(?:\w+_)?seconds|ended|start|end|delta|ansible_job_id|pid)": )[^,}]+')
SECONDS = re.compile(r"\d+(\.\d+)? s\b|j\d{5,}\.\d+")


@pytest.fixture
def world(start: Start, inventory: Inventory, tmp_path: Path) -> Ansible:
    """A host with a model awake, one asleep, one that fails to wake, and one with weights that nobody starts."""
    asleep, broken = start("b", asleep=1), start("broken", asleep=1)
    broken.fault("/wake_up", "status_500", times=0)
    models = [
        served(start("a"), "a", env={"HF_TOKEN": SECRET}),
        served(asleep, "b"),
        served(broken, "broken"),
        launched("weighty", model=str(tmp_path / "weights"), env={"HF_TOKEN": SECRET}),
    ]
    (tmp_path / "play.yml").write_text(PLAY, encoding="utf-8")
    ansible = inventory(Host(tmp_path, models, {"escalation": ["retry"], "canary": "warn"}))
    ansible.hosts[0].stack.mkdir(mode=0o755)
    return ansible


def leave_engine(ansible: Ansible) -> Path:
    """What site.yml leaves."""
    assert ansible.play(ROOT / "bench/engine.yml").status == 0
    return ansible.hosts[0].stack / "switching"


def play(ansible: Ansible, tmp_path: Path, **env: str) -> tuple[Run, dict[str, Any]]:
    """Run the play; what each task registered, without times."""
    results = tmp_path / "results.json"
    put(tmp_path / "weights/model.safetensors", 20)
    python = unspaced_python(tmp_path)
    extra = json.dumps({"results": str(results), "names": NAMES, "secret": SECRET, "python": python})
    run = ansible.play(tmp_path / "play.yml", "-vvv", "-e", extra, env=env)
    assert run.status == 0, run.output
    text = SECONDS.sub("N s", TIMES.sub(r"\1 null", results.read_text(encoding="utf-8")))
    assert SECRET not in text
    registered: dict[str, Any] = json.loads(text)
    return run, registered


@pytest.mark.parametrize("pipelining", ["true", "false"])
def test_both_ways_return_the_same(world: Ansible, tmp_path: Path, pipelining: str) -> None:
    env = {"ANSIBLE_PIPELINING": pipelining, "ANSIBLE_REMOTE_TMP": str(tmp_path / "remote")}
    run, whole = play(world, tmp_path, **env)
    assert run.output.count("the engine is sent") >= 9
    shutil.rmtree(world.hosts[0].stack / "run")
    # As at the beginning; the failure has left nothing active.
    requests.post(f"http://127.0.0.1:{world.hosts[0].port('a')}/wake_up", timeout=10).raise_for_status()
    folder = leave_engine(world)
    before = sorted(os.listdir(folder))
    thin_run, thin = play(world, tmp_path, **env)
    assert "the engine is sent" not in thin_run.output
    for name in NAMES:
        if name != "still_warm":
            assert thin[name] == whole[name], name
    for still in (thin["still_warm"], whole["still_warm"]):
        # A machine may have dropped a part of it meanwhile, which is read again.
        there, read = (still["models"]["weighty"][key] for key in ("cached_bytes", "read_bytes"))
        assert (there, there + read, still["changed"]) == (about(20 * MB), 20 * MB, read > 0)
    assert SECRET not in run.output + thin_run.output
    assert sorted(os.listdir(folder)) == before  # nothing is written beside it
    # The play has shown what there is to compare.
    assert whole["switched"]["changed"] and whole["checked"]["diff"]["after"]
    assert whole["unknown"]["error"] == "UnknownModel" and whole["mistaken"]["mistakes"]
    assert whole["failed"]["error"] == "SwitchFailed" and whole["failed"]["steps"]
    assert "Unsupported parameters" in whole["no_such"]["msg"]
    assert whole["warmed"]["models"] == {**whole["to_warm"]["models"]}
    assert "it is unknown where the weights of a are" in whole["not_warmed"]["msg"]


def shadowed(folder: Path) -> None:
    """Bytecode that would be taken for plan.py's if anybody looked at it."""
    import importlib.util
    import py_compile

    evil = folder.parent / "evil.py"
    evil.write_text("raise SystemExit('evil code was run')", encoding="utf-8")
    for name in ("plan", "__init__", "inventory"):
        cached = importlib.util.cache_from_source(str(folder / f"{name}.py"))
        py_compile.compile(str(evil), cached, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def status(ansible: Ansible) -> Run:
    """Run what asks for the states, and show whether the engine was sent."""
    run = ansible.play("status", "-vvv")
    assert run.status == 0, run.output
    assert [row[1] for row in run.table] == ["a", "b", "broken", "weighty"]
    return run


EVIL = "import sys; sys.exit('evil code was run')\n"


def changed(folder: Path) -> None:
    with open(folder / "plan.py", "a", encoding="utf-8") as file:
        file.write(EVIL)


def added(folder: Path) -> None:
    (folder / "typing.py").write_text(EVIL, encoding="utf-8")


def linked(folder: Path) -> None:
    (folder / "plan.py").rename(folder.parent / "elsewhere.py")
    (folder / "plan.py").symlink_to(folder.parent / "elsewhere.py")


def piped(folder: Path) -> None:
    (folder / "plan.py").unlink()
    os.mkfifo(folder / "plan.py")


def writable(folder: Path) -> None:
    (folder / "plan.py").chmod(0o646)


def writable_folder(folder: Path) -> None:
    folder.chmod(0o775)


def writable_above(folder: Path) -> None:
    folder.parent.chmod(0o777)


def foreign(folder: Path) -> None:
    if os.geteuid():
        pytest.skip("allowed: only root can give a file to somebody else")
    os.chown(folder / "plan.py", 12345, 0)


def foreign_above(folder: Path) -> None:
    if os.geteuid():
        pytest.skip("allowed: only root can give a folder to somebody else")
    os.chown(folder.parent, 12345, 0)


@pytest.mark.parametrize(
    "harm",
    [changed, added, linked, piped, writable, writable_folder, writable_above, foreign, foreign_above],
    ids=lambda harm: harm.__name__,
)
def test_an_engine_that_may_be_another_is_not_run(world: Ansible, harm: Any) -> None:
    harm(leave_engine(world))
    run = status(world)
    assert run.output.count("the engine is sent") == 1
    assert "evil" not in run.output


def test_bytecode_beside_it_is_not_run(world: Ansible) -> None:
    shadowed(leave_engine(world))
    run = status(world)
    assert "the engine is sent" not in run.output
    assert "evil" not in run.output


def test_the_system_log_gets_what_ansible_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [{"id": "a", "model": "org/a", "host_port": 1, "env": {"HF_TOKEN": SECRET}}]
    params = {"models": models, "switching": {}, "stack_dir": str(tmp_path)}
    shutil.copytree(ENGINE, tmp_path / "switching", ignore=shutil.ignore_patterns("__pycache__"))
    given = {
        "module": "homegpt.vllm.vllm_sleep_state_info",
        "request": base64.b64encode(json.dumps(params).encode()).decode(),
        "digest": vllm_host_engine.digest_of(vllm_host_engine.texts_of(ENGINE)),
        "_ansible_check_mode": False,
        "_ansible_target_log_info": "OPS-1",
    }
    logged: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda _priority, text: logged.append(text))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    try:
        for no_log in (False, True):
            arguments = json.dumps({**given, "_ansible_no_log": no_log}).encode()
            monkeypatch.setattr(vllm_host_engine, "ARGUMENTS", arguments)
            vllm_host_engine.main()
            result = json.loads(capsys.readouterr().out)
            assert result["models"]["a"]["state"] == "stopped"
            assert SECRET not in str(result)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "switching"]:
            del sys.modules[name]
    (line,) = logged
    assert line.startswith("OPS-1 Invoked with models=[{'id': 'a', ")
    assert f" stack_dir={tmp_path}" in line
    assert "'HF_TOKEN': '********'" in line
    assert SECRET not in line
