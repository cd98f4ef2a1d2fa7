# SPDX-License-Identifier: MIT
"""What a host can not do is refused with one clear message. What is known before: test_preflight.py."""

from __future__ import annotations

import contextlib
import http.server
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration_playbooks.conftest import Inventory, Start
from tests.playbooklib import Host, launched, served
from tests.serverlib import Server, free_port

Pair = tuple[Server, Server]


def test_dev_mode_off(pair: Pair, start: Start, inventory: Inventory) -> None:
    ordinary = start("ordinary", dev_mode=False, gpus="1")
    models = [served(pair[0], "a"), served(ordinary, "ordinary")]
    ansible = inventory(models)
    marks = [pair[0].mark(), ordinary.mark()]

    # Neither can it be switched to, nor can anybody tell whether it holds the GPU.
    for model in ("ordinary", "a"):
        message = ansible.play("switch", "-e", f"model={model}").failure()
        assert "start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment and --enable-sleep-mode" in message
    assert pair[0].accesses("POST", marks[0]) == []
    assert ordinary.accesses("POST", marks[1]) == []
    row = ansible.play("status").table[1]
    assert row[1:3] == ["ordinary", "error"]
    assert "VLLM_SERVER_DEV_MODE=1" in row[8]


class LogIn(http.server.BaseHTTPRequestHandler):
    """A web site of its own."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html><body>Please log in.</body></html>")

    do_POST = do_GET

    def log_message(self, *_arguments: object) -> None:
        pass


class Banner(socketserver.BaseRequestHandler):
    """Something that does not speak HTTP."""

    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        self.request.recv(4096)


class Silent(socketserver.BaseRequestHandler):
    """Something that waits for another kind of greeting."""

    def handle(self) -> None:
        while self.request.recv(4096):
            pass


@contextlib.contextmanager
def listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("handler", "explained"),
    [
        (LogIn, "not a vLLM answer: something else listens on port {port}: <html><body>Please log in."),
        (Banner, "not a vLLM answer: something else listens on port {port}"),
        (Silent, "GET http://127.0.0.1:{port}/health: no answer within 5 s"),
    ],
)
def test_something_else_listens(
    handler: type[socketserver.BaseRequestHandler], explained: str, pair: Pair, inventory: Inventory
) -> None:
    with listening(handler) as port:
        other = launched("other", host_port=port)  # with its own process, so that it is known not to run
        ansible = inventory([served(pair[0], "a"), other])
        mark = pair[0].mark()
        message = ansible.play("switch", "-e", "model=other").failure()
    assert f"other can't be used: other: GET http://127.0.0.1:{port}/health: " in message
    assert explained.format(port=port) in message
    assert pair[0].accesses("POST", mark) == []


def test_another_model_listens(pair: Pair, inventory: Inventory) -> None:
    models = [served(pair[0], "a"), served(pair[1], "c")]
    message = inventory(models).play("switch", "-e", "model=c").failure()
    assert f"port {pair[1].port} serves b, not c or org/c: another server has taken the port" in message


@pytest.mark.parametrize("more", [(), ("--check",)])
def test_a_host_that_was_never_provisioned(inventory: Inventory, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Without a start_command a model is the compose stack's service, and there is no such stack here."""
    host = Host(tmp_path, [{"id": "a", "model": "org/a", "host_port": free_port()}])
    ansible = inventory(host)
    message = ansible.play("switch", "-e", "model=a", *more).failure()
    missing = f"{host.stack}/docker-compose.yml does not exist"
    assert f"a does not run and can't be started, because {missing}: run homegpt.vllm.site first, or correct" in message
    assert f"{missing}: run homegpt.vllm.site first" in ansible.play("status").output
    assert "there is nothing to roll back: no switch has replaced a model" in ansible.play("roll_back", *more).failure()
    assert not host.stack.exists()


def test_a_stack_folder_that_cannot_be_written(pair: Pair, inventory: Inventory, tmp_path: Path) -> None:
    host = Host(tmp_path, [served(pair[0], "a"), served(pair[1], "b")])
    host.stack.write_text("a file, so nothing can be made in it", encoding="utf-8")
    message = inventory(host).play("switch", "-e", "model=b").failure()
    assert f"the lock {host.stack}/run/switch.lock can't be opened" in message
    assert "vllm_stack_dir" in message
