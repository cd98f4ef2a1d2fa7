# SPDX-License-Identifier: MIT
"""The role: what it writes on a host, that it says the truth of it, and that the service runs by the command it shows.

Without systemd, under which tests/e2e/test_manager_unit.py runs it.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.playbooklib import Ansible, Host, Run, launched
from tests.serverlib import ROOT, free_port

PLAYBOOK = """
- hosts: host
  gather_facts: false
  tasks:
    - ansible.builtin.file:
        path: "{{ vllm_stack_dir }}/run"
        state: directory
        mode: "0755"
    - homegpt.vllm.vllm_engine:
        dest: "{{ vllm_stack_dir }}/switching"
    - ansible.builtin.copy:
        content: "{{ {'vllm_models': vllm_models, 'vllm_switching': vllm_switching} | to_json }}"
        dest: "{{ vllm_stack_dir }}/models.json"
        mode: "0600"
    - ansible.builtin.include_role:
        name: homegpt.vllm.model_manager
"""
OPERATOR, READER = "operator-0123456789", "reader-0123456789"


class Managed(Host):
    """This machine, whose own systemd is left alone."""

    settings: dict[str, Any]

    def variables(self) -> dict[str, Any]:
        return {
            **super().variables(),
            "model_manager_enabled": True,
            "model_manager_systemd": False,
            "model_manager_port": self.settings["port"],
            "model_manager_operator_tokens": [OPERATOR],
            "model_manager_reader_tokens": [READER],
            "model_manager_settings": {"observe_seconds": 0.5},
        }


Play = Callable[..., Run]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    """A host with one model, which is not started."""
    made = Managed(tmp_path_factory.mktemp("role"), [launched("a", startup_mode="active")])
    made.settings = {"port": free_port()}
    yield made
    made.kill()


@pytest.fixture(scope="module")
def play(ansible_playbook: str, host: Managed) -> Play:
    """Run the role on the host."""
    folder = host.stack.parent
    (folder / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
    ansible = Ansible(ansible_playbook, folder, [host])
    return lambda *arguments: ansible.play(folder / "play.yml", *arguments)


def files(folder: Path) -> dict[str, int]:
    """When each file was changed last, by its path."""
    return {str(path.relative_to(folder)): path.lstat().st_ctime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-tracing.txt"])
def test_the_wheels_for_a_host_can_be_downloaded_by_any_python(name: str) -> None:
    """By docs/manager.md. pip applies markers of the Python that it runs with, not of the one that it downloads for."""
    lines = (ROOT / "roles/model_manager/files" / name).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.search(r";.*python_", line)] == []


def test_it_is_installed_once(host: Managed, play: Play) -> None:
    assert play("--check").changed() > 0
    assert not host.stack.exists()
    run = play("-vvv", "--diff")
    assert run.changed() > 0
    assert not re.search(f"{OPERATOR}|{READER}", run.output)
    manager = host.stack / "manager"
    assert (manager / "tokens").read_text(encoding="utf-8") == f"operator {OPERATOR}\nreader {READER}\n"
    assert (manager / "tokens").stat().st_mode & 0o777 == 0o600
    assert json.loads((manager / "config.json").read_text(encoding="utf-8")) == {
        "allowed_hosts": [],
        "listen": "127.0.0.1",
        "observe_seconds": 0.5,
        "port": host.settings["port"],
        "stack_dir": str(host.stack),
        "tokens_file": str(manager / "tokens"),
    }
    shown = re.search(r"run\s+`(.+?)`", run.output.replace("\\n", " "), re.DOTALL)
    assert shown
    host.settings["command"] = shlex.split(shown[1])


def test_a_run_changes_only_what_differs(host: Managed, play: Play) -> None:
    before = files(host.stack)
    program = host.stack / "manager/lib/model_manager"
    text = (program / "config.py").read_text(encoding="utf-8")
    (program / "config.py").write_text("raise SystemExit\n", encoding="utf-8")
    (program / "gone.py").write_text("", encoding="utf-8")
    (program / "page" / "gone.js").write_text("", encoding="utf-8")
    style = (program / "page" / "page.css").read_text(encoding="utf-8")
    (program / "page" / "page.css").unlink()
    assert play("--check").changed() == 1
    assert (program / "gone.py").exists()
    assert not (program / "page" / "page.css").exists()
    assert play().changed() == 1
    assert (program / "config.py").read_text(encoding="utf-8") == text
    assert (program / "page" / "page.css").read_text(encoding="utf-8") == style
    assert not (program / "gone.py").exists()
    assert not (program / "page" / "gone.js").exists()
    after = files(host.stack)
    assert {name for name in before if after[name] != before[name]} == {
        "manager/lib/model_manager",
        "manager/lib/model_manager/config.py",
        "manager/lib/model_manager/page",
        "manager/lib/model_manager/page/page.css",
    }


def test_a_gateway_is_told_of(host: Managed, play: Play) -> None:
    """By which address and secret it is known; the role model_gateway makes the secret."""
    config = host.stack / "manager/config.json"
    before = json.loads(config.read_text(encoding="utf-8"))
    assert play("-e", json.dumps({"model_gateway_enabled": True, "model_gateway_link_port": 9009})).changed() == 1
    assert json.loads(config.read_text(encoding="utf-8")) == {
        **before,
        "gateway_listen": "127.0.0.1:9009",
        "gateway_token_file": str(host.stack / "gateway/link-token"),
    }
    assert play().changed() == 1
    assert json.loads(config.read_text(encoding="utf-8")) == before


def test_the_program_is_written_whatever_is_in_its_place(tmp_path: Path) -> None:
    def write(texts: dict[str, str]) -> list[str]:
        command = [sys.executable, str(ROOT / "roles/model_manager/files/write.py"), str(tmp_path / "program"), "write"]
        said = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
        return said.stdout.split()

    program = tmp_path / "program"
    program.mkdir()
    texts = {"a.py": "a\n", "page/b.js": "b\n"}
    assert write(texts) == ["a.py", "page/b.js"]
    assert (program / "page").stat().st_mode & 0o777 == 0o755
    assert write(texts) == []
    # A folder of others, to which a link leads, is not written to.
    (program / "page").rename(tmp_path / "elsewhere")
    (program / "page").symlink_to(tmp_path / "elsewhere")
    (program / "a.py").unlink()
    (program / "a.py" / "deep").mkdir(parents=True)
    assert sorted(write(texts)) == ["a.py", "page", "page/b.js"]
    assert not (program / "page").is_symlink()
    assert {path.name: path.read_text() for path in program.rglob("*.*")} == {"a.py": "a\n", "b.js": "b\n"}
    assert (tmp_path / "elsewhere" / "b.js").exists()
    assert write({"a.py": "a\n"}) == ["page"]
    assert not (program / "page").exists()


def test_wrong_settings_replace_nothing(host: Managed, play: Play) -> None:
    before = [(host.stack / "manager" / name).read_bytes() for name in ("config.json", "tokens")]
    wrong = {"model_manager_settings": {"polcy": "fifo", "max_queue": 0}}
    none: dict[str, list[str]] = {"model_manager_operator_tokens": [], "model_manager_reader_tokens": []}
    run = play("-e", json.dumps({**wrong, **none}))
    assert run.status == 2
    assert "polcy is unknown; did you mean policy?" in run.output
    assert "max_queue must be a whole number of at least 1" in run.output
    assert [(host.stack / "manager" / name).read_bytes() for name in ("config.json", "tokens")] == before


@pytest.mark.whole
def test_packages_that_can_not_be_installed_replace_nothing(host: Managed, play: Play, tmp_path: Path) -> None:
    program = host.stack / "manager/lib/model_manager/eta.py"
    text = program.read_text(encoding="utf-8")
    program.write_text("of an earlier version", encoding="utf-8")
    new = {"model_manager_settings": {"traces_endpoint": "http://127.0.0.1:4318"}}  # that needs more packages
    run = play("-e", json.dumps({**new, "model_manager_wheels_dir": str(tmp_path)}))
    assert run.status == 2
    assert "packages of the model manager could not be installed" in run.output.replace("\n", " ")
    assert program.read_text(encoding="utf-8") == "of an earlier version"
    program.write_text(text, encoding="utf-8")
    assert play().status == 0


def test_the_command_that_it_shows_starts_the_service(host: Managed) -> None:
    url = f"http://127.0.0.1:{host.settings['port']}"
    log = (host.stack.parent / "manager.log").open("w+", encoding="utf-8")
    service = subprocess.Popen(host.settings["command"], stdout=log, stderr=log)
    try:
        assert get(f"{url}/health", OPERATOR) == (200, {"status": "healthy"}), log.read()
        assert get(f"{url}/models", "")[0] == 401
        # Whoever opens it is asked for a token.
        page = requests.get(url, timeout=10)
        assert (page.status_code, 'data-tokens="needed"' in page.text) == (200, True)
        assert requests.get(f"{url}/page/page.js", timeout=10).status_code == 200
        status, answer = get(f"{url}/models", READER)
        assert status == 200
        assert [model["id"] for model in answer["models"]] == ["a"]
        asked = requests.post(
            f"{url}/switch", json={"model_id": "a"}, headers={"Authorization": f"Bearer {READER}"}, timeout=30
        )
        assert asked.status_code == 403
        asked = requests.post(
            f"{url}/switch", json={"model_id": "a"}, headers={"Authorization": f"Bearer {OPERATOR}"}, timeout=60
        )
        assert (asked.status_code, asked.json()) == (200, {"status": "success", "active_model": "a"})
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=30) == 0
    finally:
        service.kill()
        service.wait()
        log.close()
    # The server lives on.
    assert requests.get(f"http://127.0.0.1:{host.port('a')}/health", timeout=10).status_code == 200


def get(url: str, token: str) -> tuple[int, Any]:
    """The status and the body of an answer, for which is waited until there is one."""
    end = time.monotonic() + 30
    while True:
        try:
            answer = requests.get(url, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=10)
        except requests.ConnectionError:
            assert time.monotonic() < end
            time.sleep(0.1)
        else:
            return answer.status_code, answer.json()


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder for units, with that of another stack of the host."""
    (tmp_path / "homegpt-manager.service").write_text("[Service]\nWorkingDirectory=/opt/other\n", encoding="utf-8")
    return tmp_path


def test_the_service_of_another_stack_is_not_replaced(host: Managed, play: Play, units: Path) -> None:
    before = files(host.stack / "manager"), files(units)
    run = play("-e", json.dumps({"model_manager_systemd": True, "model_manager_unit_dir": str(units)}))
    assert run.status == 2
    assert "model manager of another stack of this host (/opt/other)" in re.sub(r"\s+", " ", run.output)
    assert (files(host.stack / "manager"), files(units)) == before


# What the role finds on a host without systemd; the service of this machine is left alone.
WITHOUT_SYSTEMD = {"__model_manager_systemd": {"stat": {"exists": False}}}


@pytest.mark.whole
def test_the_unit_of_an_earlier_run_is_removed_where_systemd_shall_not_run_it(
    host: Managed, play: Play, units: Path
) -> None:
    """Under a real systemd, tests/e2e/test_manager_unit.py has it."""
    unit = units / "homegpt-manager.service"
    unit.write_text(f"[Service]\nWorkingDirectory={host.stack}\n", encoding="utf-8")
    given = "-e", json.dumps({"model_manager_unit_dir": str(units), **WITHOUT_SYSTEMD})
    assert play(*given, "--check").changed() == 1
    assert unit.exists()
    assert play(*given).changed() == 1
    assert not unit.exists()
    assert (host.stack / "manager/config.json").exists()
    assert play(*given).changed() == 0


def test_it_is_removed_where_it_is_disabled(host: Managed, play: Play, units: Path) -> None:
    disabled = "-e", json.dumps({"model_manager_enabled": False, "model_manager_unit_dir": str(units)})
    # As after it was killed: what it was told at run time, and what it shows.
    run = host.stack / "run"
    told = {"manager.json", "manager_view.json", "gates.json", "reconciler.json"}
    kept = {"manager.sqlite", "usage.json"}
    for name in (*told, *kept):
        (run / name).write_text("{}", encoding="utf-8")
    assert play(*disabled, "--check").changed() == 1
    assert (host.stack / "manager").exists()
    assert play(*disabled).changed() == 1
    assert not (host.stack / "manager").exists()
    assert not told & {path.name for path in run.iterdir()}
    assert kept <= {path.name for path in run.iterdir()}, "the history stays"
    assert (units / "homegpt-manager.service").exists(), "it is another stack's"
