# SPDX-License-Identifier: MIT
"""The real Open WebUI in the environment that the role gives it, in a real browser, before two real vLLM servers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.playbooklib import Ansible, Host
from tests.serverlib import ROOT, Server, free_port, real_command, real_settings, real_venv

from .interface import GENERATION, MESSAGE, render, start, webui_venv
from .interface import visit as visited_by

pytestmark = pytest.mark.timeout(1800)  # what it needs may have to be built first

# The one has a parser for tools, the other has none.
MODELS: dict[str, dict[str, Any]] = {
    "tiny-a": {"env": {"VLLM_API_KEY": "key-of-a"}},
    "tiny-b": {"args": {"api_key": "key-of-$b", "enable_auto_tool_choice": True, "tool_call_parser": "hermes"}},
    "tiny-c": {"startup_mode": "disabled"},
}
ADDRESSES = {"vllm-tiny-a": "127.0.0.2", "vllm-tiny-b": "127.0.0.3"}
SECRETS = {"WEBUI_SECRET_KEY": "signing key of the test"}


class BlackHole:
    """A proxy that takes every connection and never answers. C(asked) is what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._connections: list[socket.socket] = []
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = "http://127.0.0.1:%d" % self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _address = self._socket.accept()
                self._connections.append(connection)
                connection.settimeout(10)
                with contextlib.suppress(OSError):
                    self.asked.append(connection.recv(1000).decode(errors="replace").partition("\r\n")[0])

    def close(self) -> None:
        """Let go of who waits."""
        for each in (self._socket, *self._connections):
            each.close()


@dataclass
class Visit:
    """What people saw, and what arrived where."""

    service: dict[str, Any]
    seen: dict[str, Any]
    proxied: list[str]
    url: str
    environment: dict[str, str]
    servers: dict[str, Server]
    arrived: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # at each server

    def posts(self, model: str) -> list[dict[str, Any]]:
        """The chats that a server was asked for."""
        return [each for each in self.arrived[model] if each["call"] == "POST /v1/chat/completions"]

    def ask_once_more(self, **more: object) -> requests.Response:
        """Ask tiny-a itself what the person has asked it."""
        body = {**next(filter(is_chat, self.posts("tiny-a")))["body"], "stream": False, **more}
        headers = {"Authorization": "Bearer key-of-a"}
        return self.servers["tiny-a"].call("POST", "/v1/chat/completions", json=body, headers=headers)


@pytest.fixture(scope="module")
def visit(chromium: str, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """Everything is started at once, for one visit."""
    folder = tmp_path_factory.mktemp("webui")
    vllm = real_venv()
    webui = webui_venv()
    hole = BlackHole()
    ports = {name: free_port() for name in MODELS}
    with contextlib.ExitStack() as stack:
        stack.callback(hole.close)
        servers = {}
        for name in ("tiny-a", "tiny-b"):
            servers[name] = start_vllm(vllm, name, ports[name], folder)
            stack.enter_context(servers[name])
        service = rendered(folder, ansible_playbook, ports, hole.url)
        began = time.monotonic()
        interface, environment = start(webui, service, folder, SECRETS)
        stack.enter_context(interface)
        interface.wait_ready(600)
        print(f"Open WebUI answers after {time.monotonic() - began:.0f} s")
        for server in servers.values():
            server.wait_ready(600)
        told = visited_by(webui, "visit", chromium, interface, folder)
        print(f"after {time.monotonic() - began:.0f} s the visit is over; screenshots are in {folder}")
        seen = Visit(service, told, list(hole.asked), interface.url, environment, servers)
        for name in servers:
            lines = (folder / f"{name}.requests").read_text(encoding="utf-8").splitlines()
            seen.arrived[name] = [json.loads(line) for line in lines]
        yield seen


def start_vllm(venv: Path, name: str, port: int, folder: Path) -> Server:
    """Start a server as the model's container would, at its own address."""
    address = ADDRESSES[f"vllm-{name}"]
    args = MODELS[name].get("args", {})
    command = real_command(venv, name, port, [name], 8192)
    command += ["--host", address, "--middleware", "record.note", "--override-generation-config", GENERATION]
    if "tool_call_parser" in args:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", args["tool_call_parser"]]
    if "api_key" in args:
        command += ["--api-key", args["api_key"]]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    environment = {**kept, **real_settings(venv), **MODELS[name].get("env", {})}
    environment |= {"REQUESTS": str(folder / f"{name}.requests"), "PYTHONPATH": str(ROOT / "tests" / "webui")}
    server = Server(command, port, folder / f"{name}.log", environment)
    server.url = f"http://{address}:{port}"
    return server


def rendered(folder: Path, ansible_playbook: str, ports: dict[str, int], proxy: str) -> dict[str, Any]:
    """What the role says of the service, on a host with a proxy."""
    models = [
        {"id": name, "model": f"org/{name}", "host_port": 8001 + n, "port": ports[name], **model}
        for n, (name, model) in enumerate(MODELS.items())
    ]
    ansible = Ansible(ansible_playbook, folder, [Host(folder, models)])
    return render(ansible, ADDRESSES, open_webui_env={"http_proxy": proxy, "HTTPS_PROXY": proxy})


def test_an_ordinary_account_sees_every_model_and_is_answered(visit: Visit) -> None:
    assert visit.seen["administrator"] == {"role": "admin", "models": ["tiny-a", "tiny-b"]}
    assert visit.seen["user"] == {"role": "user", "models": ["tiny-a", "tiny-b"]}
    asked, answered = visit.seen["tiny-a"]["kept"]
    assert (asked["role"], asked["content"]) == ("user", MESSAGE)
    assert (answered["role"], answered["model"], answered.get("error")) == ("assistant", "tiny-a", None)
    # Greedy, so that the model says the same once more.
    again = visit.ask_once_more()
    said = again.json()["choices"][0]["message"]["content"]
    assert (again.status_code, answered["content"].strip()) == (200, said.strip())
    assert said.split()[0] in visit.seen["tiny-a"]["shown"]


@pytest.mark.parametrize("model", ["tiny-a", "tiny-b"])
def test_each_key_goes_to_its_own_server(visit: Visit, model: str) -> None:
    asked = [each for each in visit.arrived[model] if each["call"] != "GET /health"]
    assert {each["call"] for each in asked} == {"GET /v1/models", "POST /v1/chat/completions"}
    key = {"tiny-a": "key-of-a", "tiny-b": "key-of-$b"}[model]
    for each in asked:
        assert (each["authorization"], each["status"]) == (f"Bearer {key}", 200)
        assert each["body"] is None or each["body"]["model"] == model


def test_tools_go_to_the_model_alone_that_an_administrator_has_given_them_back(visit: Visit) -> None:
    # The person's own message comes once; the rest are tasks such as a title.
    (chat,) = [post for post in visit.posts("tiny-a") if is_chat(post)]
    assert [post for post in visit.posts("tiny-a") if "tools" in post["body"]] == []
    (native,) = [post for post in visit.posts("tiny-b") if is_chat(post)]
    assert len(native["body"]["tools"]) > 1
    # What the other one would have made of them.
    refused = visit.ask_once_more(tools=native["body"]["tools"])
    assert refused.status_code == 400
    assert "--tool-call-parser" in refused.text
    assert chat["body"]["messages"] == [{"role": "user", "content": MESSAGE}]


def is_chat(post: dict[str, Any]) -> bool:
    """Whether it is what the person said, and no task."""
    return bool(post["body"]["messages"][-1]["content"] == MESSAGE)


def test_nothing_went_to_the_proxy(visit: Visit) -> None:
    """Neither what goes to the models, nor questions to a hub at the start."""
    assert visit.proxied == []


def test_the_health_check_goes_past_the_proxy(visit: Visit) -> None:
    kind, *command = visit.service["healthcheck"]["test"]
    assert kind == "CMD"
    here = [word.replace("http://127.0.0.1:8080", visit.url) for word in command]
    assert here != command
    checked = subprocess.run(here, env=visit.environment, capture_output=True, text=True, check=False, timeout=60)
    assert (checked.returncode, checked.stderr) == (0, "")
    # What would become of it without.
    proxied = {name: value for name, value in visit.environment.items() if name.lower() != "no_proxy"}
    assert subprocess.run(here, env=proxied, capture_output=True, check=False, timeout=60).returncode != 0
