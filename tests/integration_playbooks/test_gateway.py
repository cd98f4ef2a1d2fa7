# SPDX-License-Identifier: MIT
"""The role model_gateway without an engine: what it writes, what it changes of it, and that no secret is shown.

tests/e2e/test_gateway.py runs the container.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.playbooklib import Ansible, Host, Run
from tests.serverlib import ROOT, free_port
from tests.unit.plugins.plugin_utils.test_gateway import pair

PLAYBOOK = """
- hosts: host
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: homegpt.vllm.model_gateway
"""
LISTENS = """
- hosts: host
  gather_facts: false
  vars_files:
    - {role}/defaults/main.yml
    - {role}/vars/main.yml
  tasks:
    - ansible.builtin.debug:
        msg: "{{{{ __model_gateway_listens }}}}"
      vars:
        __model_gateway_network: "{{{{ {{'stdout': item.bridge | default('172.17.0.1 ')}} }}}}"
        model_gateway_listen: "{{{{ item.listen }}}}"
        model_gateway_tls_certificate: "{{{{ item.tls | default('') }}}}"
        open_webui_enabled: "{{{{ item.webui | default(true) }}}}"
      loop: {cases}
"""
# Open WebUI by these has one configuration, whatever key .env has for it.
WEBUI = """
- hosts: host
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: homegpt.vllm.open_webui, tasks_from: check}
    - ansible.builtin.include_role: {name: homegpt.vllm.model_gateway}
    - ansible.builtin.include_role: {name: homegpt.vllm.open_webui, tasks_from: converge}
"""
DOCKER = """#!/bin/sh
case $1 in ps) echo home-gpt 0123 ;; compose) cat >/dev/null; echo open-webui 0123 ;; esac
"""
KEY, OTHER = "sk-of-alice-0123456789", "sk-of-bob-0123456789ab"


class Gated(Host):
    """This machine with a gateway, whose container nobody starts."""

    def variables(self) -> dict[str, Any]:
        return {
            **super().variables(),
            "model_manager_enabled": True,
            "model_gateway_enabled": True,
            "model_gateway_api_keys": [{"name": "alice", "key": KEY, "models": ["a"], "max_in_flight": 3}],
        }


Play = Callable[..., Run]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Gated:
    return Gated(tmp_path_factory.mktemp("gateway"), [{"id": "a", "model": "org/a", "host_port": free_port()}])


@pytest.fixture(scope="module")
def play(ansible_playbook: str, host: Gated) -> Play:
    """Run the role on the host, with these variables beside its own."""
    folder = host.stack.parent
    (folder / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
    ansible = Ansible(ansible_playbook, folder, [host])
    return lambda *arguments, **variables: ansible.play(folder / "play.yml", *arguments, "-e", json.dumps(variables))


@pytest.fixture(scope="module")
def installed(play: Play) -> None:
    """The role has been run on the host, also where the test that installs it was left out."""
    play()


def modes(folder: Path) -> dict[str, str]:
    """The mode of each file and folder but the program's."""
    return {
        str(path.relative_to(folder)): oct(path.stat().st_mode & 0o7777)
        for path in sorted(folder.rglob("*"))
        if "lua/gateway/" not in str(path)
    }


def kept(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What each file has in it, and when it was changed last."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def changed(before: dict[str, tuple[int, bytes]], folder: Path) -> set[str]:
    """The names of the files that are new, gone or other than before."""
    after = kept(folder)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_host_gets_its_files_once(host: Gated, play: Play) -> None:
    predicted = play("--check", "--diff")
    assert predicted.changed() > 0
    assert not host.stack.exists()
    run = play("-vvv", "--diff")
    assert run.changed() == predicted.changed()
    gateway = host.stack / "gateway"
    assert modes(gateway) == {
        "keys.json": "0o600",
        "link-token": "0o600",
        "lua": "0o755",
        "lua/gateway": "0o755",
        "nginx.conf": "0o644",
        "settings.json": "0o644",
        "spool": "0o700",
        "webui-key": "0o600",
    }
    sources = ROOT / "roles/model_gateway/files/lua/gateway"
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources.iterdir()}
    assert texts
    assert {path.name: path.read_text(encoding="utf-8") for path in (gateway / "lua/gateway").iterdir()} == texts
    token, webui_key = ((gateway / name).read_text(encoding="utf-8") for name in ("link-token", "webui-key"))
    assert token != webui_key
    assert re.fullmatch(r"[0-9a-f]{64}\n", token)
    assert re.fullmatch(r"[0-9a-f]{64}\n", webui_key)
    keys = json.loads((gateway / "keys.json").read_text(encoding="utf-8"))
    assert keys == [
        {"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "models": ["a"], "max_in_flight": 3},
        {"name": "open-webui", "sha256": hashlib.sha256(webui_key.strip().encode()).hexdigest(), "models": ["*"]},
    ]
    assert json.loads((gateway / "settings.json").read_text(encoding="utf-8"))["manager_port"] == 9001
    # The digest of a key is as good as none, yet is nobody's business either.
    for secret in (KEY, token.strip(), webui_key.strip(), *(entry["sha256"] for entry in keys)):
        assert secret not in run.output
    assert "max_waiting_per_key" in "".join(run.diff)
    before = kept(host.stack)
    assert play("--check").changed() == 0
    assert play().changed() == 0
    assert changed(before, host.stack) == set()


def test_only_what_differs_is_changed(host: Gated, play: Play, installed: None) -> None:
    gateway = host.stack / "gateway"
    before = kept(gateway)
    keys = [{"name": "alice", "key": KEY, "models": ["a"], "max_in_flight": 3}, {"name": "bob", "key": OTHER}]
    assert play("--check", model_gateway_api_keys=keys).changed() == 1
    assert changed(before, gateway) == set()
    run = play("-vvv", "--diff", model_gateway_api_keys=keys)
    assert run.changed() == 1
    assert OTHER not in run.output
    assert changed(before, gateway) == {"keys.json"}
    assert play(model_gateway_settings={"max_waiting": 7}).changed() == 2
    assert changed(before, gateway) == {"settings.json", "keys.json"}  # whose time is another
    assert (gateway / "keys.json").read_bytes() == before["keys.json"][1]
    (gateway / "lua/gateway/config.lua").write_text("os.exit()\n", encoding="utf-8")
    (gateway / "lua/gateway/gone.lua").write_text("", encoding="utf-8")
    assert play("--check").changed() == 2
    assert play().changed() == 2
    # What was changed is as it was.
    assert {name: text for name, (_time, text) in kept(gateway).items()} == {
        name: text for name, (_time, text) in before.items()
    }


@pytest.mark.whole
def test_without_keys_nobody_has_one(host: Gated, play: Play, installed: None) -> None:
    gateway = host.stack / "gateway"
    assert play(model_gateway_api_keys=[]).changed() == 2
    assert json.loads((gateway / "keys.json").read_text(encoding="utf-8")) == []
    assert not (gateway / "webui-key").exists()
    assert play(model_gateway_api_keys=[]).changed() == 0


@pytest.mark.whole
def test_a_certificate_comes_and_goes(host: Gated, play: Play, installed: None) -> None:
    gateway = host.stack / "gateway"
    certificate, key = pair()
    tls = {"model_gateway_tls_certificate": certificate, "model_gateway_tls_key": key}
    play()
    run = play("-vv", "--diff", **tls)
    # Both files, nginx.conf, the compose file.
    assert run.changed() == 3
    assert "PRIVATE KEY" not in run.output
    assert (gateway / "tls.crt").read_text(encoding="utf-8") == certificate
    assert (gateway / "tls.key").read_text(encoding="utf-8") == key
    assert (gateway / "tls.key").stat().st_mode & 0o777 == 0o600
    assert re.findall(r"^ *listen (\S+ ?\S*) backlog", (gateway / "nginx.conf").read_text(encoding="utf-8"), re.M) == [
        "127.0.0.1:8000 ssl",
        "172.17.0.1:8000",
    ]
    assert play(**tls).changed() == 0
    assert play().changed() == 3
    assert not (gateway / "tls.crt").exists()
    assert not (gateway / "tls.key").exists()


@pytest.mark.whole
def test_secrets_of_a_host_are_never_made_anew(host: Gated, play: Play, installed: None) -> None:
    token = host.stack / "gateway/link-token"
    before = token.read_bytes()
    token.touch()
    os.utime(token, (1, 1))
    assert play().changed() == 0
    assert (token.read_bytes(), token.stat().st_mtime) == (before, 1)


CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({"listen": "127.0.0.1"}, ["127.0.0.1:8000", "172.17.0.1:8000"]),
    ({"listen": "127.0.0.1", "webui": False}, ["127.0.0.1:8000"]),
    ({"listen": "0.0.0.0"}, ["0.0.0.0:8000"]),
    ({"listen": "0.0.0.0", "tls": "x"}, ["0.0.0.0:8000 tls", "172.17.0.1:8000"]),
    ({"listen": "0.0.0.0", "tls": "x", "webui": False}, ["0.0.0.0:8000 tls"]),
    ({"listen": "::"}, ["[::]:8000", "0.0.0.0:8000"]),
    ({"listen": "::1"}, ["[::1]:8000", "172.17.0.1:8000"]),
    ({"listen": "10.0.0.5", "bridge": "10.99.0.1 "}, ["10.0.0.5:8000", "10.99.0.1:8000"]),
    ({"listen": "172.17.0.1"}, ["172.17.0.1:8000"]),
    # As engines tell of a bridge that has no address of its own, of one with IPv6, and of none.
    ({"listen": "127.0.0.1", "bridge": "172.18.0.0/16 "}, ["127.0.0.1:8000", "172.18.0.1:8000"]),
    ({"listen": "127.0.0.1", "bridge": "fd00::1 172.19.0.1 "}, ["127.0.0.1:8000", "172.19.0.1:8000"]),
    ({"listen": "127.0.0.1", "bridge": ""}, ["127.0.0.1:8000", "172.17.0.1:8000"]),
]


def test_where_it_listens(host: Gated, ansible_playbook: str, tmp_path: Path) -> None:
    text = LISTENS.format(role=ROOT / "roles/model_gateway", cases=json.dumps([case for case, _expected in CASES]))
    (tmp_path / "play.yml").write_text(text, encoding="utf-8")
    run = Ansible(ansible_playbook, tmp_path, [host]).play(tmp_path / "play.yml")
    assert run.status == 0, run.output
    told = [
        [one["address"] + " tls" * one["tls"] for one in result["msg"]]
        for result in run.results("ok")
        if "msg" in result
    ]
    assert told == [expected for _case, expected in CASES]


def test_a_host_without_the_manager_is_refused(host: Gated, ansible_playbook: str, tmp_path: Path) -> None:
    """Also by the role alone, which no preflight has looked at."""
    text = PLAYBOOK.rstrip() + "\n        tasks_from: check\n"
    (tmp_path / "play.yml").write_text(text, encoding="utf-8")
    ansible = Ansible(ansible_playbook, tmp_path, [host])
    message = ansible.play(tmp_path / "play.yml", "-e", "model_manager_enabled=false").failure()
    assert "set model_manager_enabled: true" in message


def test_open_webui_gets_a_new_key_in_the_same_run(host: Gated, ansible_playbook: str, installed: None) -> None:
    """Its hash is looked at before the key is made."""
    folder = host.stack.parent
    (folder / "webui.yml").write_text(WEBUI, encoding="utf-8")
    (folder / "bin").mkdir()
    (folder / "bin" / "docker").write_text(DOCKER, encoding="utf-8")
    (folder / "bin" / "docker").chmod(0o755)
    ansible = Ansible(ansible_playbook, folder, [host])
    path = f"{folder / 'bin'}{os.pathsep}{ansible.env['PATH']}"

    def predicted() -> bool:
        run = ansible.play(folder / "webui.yml", "--check", env={"PATH": path})
        run.changed()
        return "would be recreated] ***" in run.output and '"msg": "open-webui"' in run.output

    assert not predicted()
    key = host.stack / "gateway/webui-key"
    text = key.read_bytes()
    key.unlink()
    assert predicted()
    key.write_bytes(text)
