# SPDX-License-Identifier: MIT
"""Servers that listen elsewhere than on 127.0.0.1, or speak TLS: real ones, switched whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.server import Server

from .conftest import STANDIN, Host


@pytest.fixture
def vllm(tmp_path: Path) -> str:
    """The stand-in under the name that the real one has."""
    path = tmp_path / "vllm"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STANDIN}" "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a server with a certificate that nobody has signed, for another name."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=elsewhere.example", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return ["--ssl-keyfile", str(key), "--ssl-certfile", str(cert)]


def declare(host: Host, vllm: str, name: str, *words: str) -> None:
    host.declare(name)
    model = host.models[-1]
    model["start_command"] = [
        vllm, "serve", f"org/{name}", "--port", "${host_port}", "--served-model-name", name, "--enable-sleep-mode",
        *words,
    ]  # fmt: skip


def test_servers_with_tls_are_switched(host: Host, vllm: str, certificate: list[str]) -> None:
    for name in "ab":
        declare(host, vllm, name, "--host", "127.0.0.1", *certificate)
    assert host.switch("a").active_model == "a"
    assert host.switch("b").active_model == "b"
    assert host.states() == {"a": "sleeping", "b": "active"}
    assert host.switch("a").active_model == "a"
    assert not host.switch("a").changed


def test_servers_at_other_addresses_are_switched(host: Host, vllm: str) -> None:
    declare(host, vllm, "a", "--host", "127.0.0.2")
    declare(host, vllm, "b", "--host", "::1")
    assert host.switch("a").active_model == "a"
    assert host.switch("b").active_model == "b"
    assert host.states() == {"a": "sleeping", "b": "active"}


@pytest.mark.parametrize("words", [["--host", "192.0.2.7"], ["--host", "2001:db8::7"]])
def test_another_hosts_server_is_not_asked(words: list[str]) -> None:
    command = ["vllm", "serve", "m", *words]
    inventory = parse([{"id": "a", "model": "m", "host_port": 8001, "start_command": command}])
    server = Server(inventory.models[0], inventory.switching)
    assert server.url == f"http://{'[2001:db8::7]' if ':' in words[1] else words[1]}:8001"
    assert server.observe().state == "stopped"


def test_a_server_without_tls_is_not_the_one(host: Host, vllm: str, certificate: list[str]) -> None:
    declare(host, vllm, "a")
    host.switch("a")
    host.models[-1]["start_command"] += certificate
    server = Server(host.model("a"), host.inventory.switching)
    seen = server.observe()
    assert seen.state == "error"
    assert re.search("no TLS: .*something else listens|something else listens.*: no TLS", seen.problem), seen.problem
    del host.models[-1]["start_command"][-len(certificate) :]
