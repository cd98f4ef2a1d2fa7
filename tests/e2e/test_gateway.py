# SPDX-License-Identifier: MIT
"""The gateway as its role deploys it, on the real engine: the real nginx in its container, the real manager, stand-ins
for vLLM and for Open WebUI. One story, whose cases run in their order.

The image has Debian's nginx, as OpenResty's can't be had everywhere. The manager runs without systemd.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.stack import PLAY, Stack, contained, docker, inspect
from tests.playbooklib import Ansible, Run, launched
from tests.serverlib import free_port
from tests.unit.plugins.plugin_utils.test_gateway import pair

pytestmark = [pytest.mark.timeout(900), pytest.mark.whole]

IMAGE = "gateway-debian:local"
KEY, OTHER = "sk-of-alice-0123456789", "sk-of-bob-0123456789ab"
SECONDS = 60.0


class Gated(Stack):
    """A host with a gateway and two models for one GPU."""

    def __init__(self, folder: Path, models: list[dict[str, Any]]) -> None:
        super().__init__(folder, models)
        self.gateway = f"{self.tag}-gateway"
        self.door, self.link, self.manager = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.door}"
        self.more.update(
            model_manager_enabled=True,
            model_manager_systemd=False,
            model_manager_port=self.manager,
            model_manager_settings={"observe_seconds": 0.5},
            model_gateway_enabled=True,
            model_gateway_image=IMAGE,
            model_gateway_container_name=self.gateway,
            model_gateway_port=self.door,
            model_gateway_link_port=self.link,
            model_gateway_api_keys=[{"name": "alice", "key": KEY}],
        )

    @property
    def files(self) -> Path:
        """The folder of the gateway."""
        return self.stack / "gateway"

    def remove(self) -> None:
        """Remove all that the tests may have made."""
        docker("rm", "--force", "--volumes", self.gateway, check=False)
        self.kill()
        super().remove()


class Story:
    """The host, and what the cases share."""

    def __init__(self, stack: Gated, ansible: Ansible) -> None:
        self.stack = stack
        self.ansible = ansible
        self.folder = stack.stack.parent
        self.manager: subprocess.Popen[bytes] | None = None

    def play(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        more = ("-e", json.dumps(variables)) if variables else ()
        run = self.ansible.play(playbook, *arguments, *more, timeout=PLAY)
        assert run.status == 0, run.output[-6000:]
        return run

    def start_manager(self) -> None:
        """Start the service as its role says, on a host without systemd."""
        (python,) = (self.stack.stack / "manager").glob("venv-*/bin/python")
        command = [str(python), "-I", "-B", "-m", "model_manager", str(self.stack.stack / "manager/config.json")]
        with (self.folder / "manager.log").open("ab") as log:
            self.manager = subprocess.Popen(command, stdout=log, stderr=log)

    def stop_manager(self) -> None:
        if self.manager is not None:
            self.manager.terminate()
            try:
                self.manager.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.manager.kill()
                self.manager.wait()
        self.manager = None

    def ask(self, method: str, path: str, key: str = KEY, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return requests.request(method, self.stack.url + path, headers=headers, timeout=SECONDS, **more)

    def chat(self, model: str, key: str = KEY, text: str = "Hello", **more: Any) -> requests.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}
        return self.ask("POST", "/v1/chat/completions", key, json=body)

    def until_known(self) -> None:
        """Wait until the manager has told the gateway of the models."""
        until(lambda: self.ask("GET", "/v1/models").status_code == 200, lambda: docker("logs", self.stack.gateway))


def until(done: Callable[[], bool], told: Callable[[], str]) -> None:
    """Poll until it is done; an address that nobody listens on is not done."""
    end = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(requests.ConnectionError):
            if done():
                return
        assert time.monotonic() < end, told()
        time.sleep(0.1)


def processes(stack: Gated) -> dict[int, str]:
    """The processes of the gateway, each with its user."""
    rows = [line.split() for line in docker("top", stack.gateway, "-o", "pid,user").splitlines()[1:]]
    return {int(pid): user for pid, user in rows}


def is_healthy(stack: Gated) -> bool:
    """What the container's own check says now; Docker makes it every 30 s."""
    _kind, *command = inspect(stack.gateway)["Config"]["Healthcheck"]["Test"]
    ended = subprocess.run(
        ["docker", "exec", stack.gateway, *command], stdin=subprocess.DEVNULL, check=False, timeout=SECONDS
    )
    return ended.returncode == 0


@pytest.fixture(scope="module")
def story(engine: None, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    if not docker("images", "--quiet", IMAGE):
        pytest.skip(f"{IMAGE} not there: make images")
    models = [contained("a", startup_mode="active"), contained("b")]
    with told(ansible_playbook, tmp_path_factory.mktemp("gateway"), models) as story:
        yield story


@contextlib.contextmanager
def told(ansible_playbook: str, folder: Path, models: list[dict[str, Any]]) -> Iterator[Story]:
    """A host of which nothing is left."""
    stack = Gated(folder, models)
    story = Story(stack, Ansible(ansible_playbook, folder, [stack]))
    try:
        yield story
    finally:
        story.stop_manager()
        stack.remove()


def test_a_host_without_models_in_containers(ansible_playbook: str, tmp_path: Path) -> None:
    """The gateway is all that the compose project has."""
    with told(ansible_playbook, tmp_path, [launched("a", startup_mode="active"), launched("b")]) as story:
        story.play("site")
        story.play("bootstrap")
        assert story.stack.containers() == [story.stack.gateway]
        story.start_manager()
        story.until_known()
        answer = story.chat("b")
        assert answer.status_code == 200, answer.text
        assert story.stack.states() == {"a": "asleep", "b": "awake"}
        assert story.play("site").changed() == 0
        assert story.play("site", "--check", model_gateway_enabled=False).changed() > 0
        story.stop_manager()
        story.play("teardown")
        assert story.stack.containers() == []
        assert not story.stack.files.exists()


def test_a_new_host_gets_the_files_and_no_container(story: Story) -> None:
    assert story.play("site", "--check").changed() > 0
    assert not story.stack.stack.exists()
    run = story.play("site", "-vvv", "--diff")
    secrets = [(story.stack.files / name).read_text().strip() for name in ("link-token", "webui-key")]
    assert not [secret for secret in (KEY, *secrets) if secret in run.output]
    assert inspect(story.stack.gateway) == {}


def test_bootstrap_starts_it(story: Story) -> None:
    story.play("bootstrap")
    assert story.ask("GET", "/health", key="").json() == {"status": "healthy"}
    assert story.ask("GET", "/v1/models", key="").status_code == 401
    # Nobody has told it of the models yet.
    answer = story.chat("a")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
    story.start_manager()
    story.until_known()
    assert story.play("site").changed() == 0
    assert story.play("site", "--check").changed() == 0


def test_its_container_can_do_little(story: Story) -> None:
    told = inspect(story.stack.gateway)
    host = told["HostConfig"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["Privileged"]) == ("host", True, False)
    assert host["RestartPolicy"]["Name"] == "always"
    assert {name.removeprefix("CAP_") for name in host["CapDrop"]} == {"ALL"}
    added = {name.removeprefix("CAP_") for name in host["CapAdd"]}
    assert added == {"CHOWN", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"}
    assert KEY not in json.dumps(told)
    tried = docker(
        "exec", story.stack.gateway, "sh", "-c", "touch /gateway/x /x 2>&1; grep CapBnd /proc/1/status", check=False
    )
    assert tried.count("Read-only file system") == 2
    users = list(processes(story.stack).values())
    assert users.count("root") == 1
    assert len(users) > 1
    assert is_healthy(story.stack)


def test_a_model_that_sleeps_is_switched_to(story: Story) -> None:
    assert story.stack.states() == {"a": "awake", "b": "asleep"}
    answer = story.chat("b")
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] in ("b", "org/b")
    assert float(answer.headers["X-Queue-Wait-Seconds"]) > 0
    assert story.stack.states() == {"a": "asleep", "b": "awake"}
    assert story.ask("POST", "/sleep").status_code == 404
    entries = story.ask("GET", "/v1/models").json()["data"]
    assert {entry["id"] for entry in entries} >= {"a", "b"}


def test_a_long_body_goes_by_the_spool(story: Story) -> None:
    text = "x" * 2_000_000
    assert story.chat("b", text=text).status_code in (200, 400)  # the stand-in's context is not of interest here
    assert story.chat("b", text="x" * 70_000_000).status_code == 413
    spool = story.stack.files / "spool"
    until(lambda: not list(spool.iterdir()), lambda: str(list(spool.iterdir())))
    assert spool.stat().st_uid != 0
    with socket.create_connection(("127.0.0.1", story.stack.door), timeout=SECONDS) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        client.sendall(f"{head}Content-Length: 400000\r\n\r\n".encode() + b"x" * 300_000)
        until(lambda: bool(list(spool.iterdir())), lambda: docker("logs", "--tail", "20", story.stack.gateway))
        for pid, user in processes(story.stack).items():
            if user != "root":
                os.kill(pid, signal.SIGKILL)
    # What those that were killed have left.
    until(lambda: not list(spool.iterdir()), lambda: str(list(spool.iterdir())))
    story.until_known()


def test_open_webui_asks_it_alone(story: Story) -> None:
    environment = dict(entry.split("=", 1) for entry in inspect(story.stack.webui)["Config"]["Env"])
    assert environment["OPENAI_API_BASE_URLS"] == f"http://host.docker.internal:{story.stack.door}/v1"
    assert environment["OPENAI_API_KEYS"] == (story.stack.files / "webui-key").read_text().strip()
    assert json.loads(environment["OPENAI_API_CONFIGS"])["0"]["headers"]["X-OpenWebUI-Task"] == "{{TASK}}"
    told = requests.get(f"http://127.0.0.1:{story.stack.webui_port}/api/models", timeout=SECONDS).json()["data"]
    assert {model["id"] for model in told} >= {"a", "b"}
    assert {model["urlIdx"] for model in told} == {0}


def test_keys_and_limits_come_into_force_without_an_interruption(story: Story) -> None:
    until(lambda: inspect(story.stack.gateway)["State"]["Health"]["Status"] == "healthy", lambda: "Docker's own check")
    before = story.stack.seen(story.stack.gateway)
    keys = [{"name": "alice", "key": KEY}, {"name": "bob", "key": OTHER, "models": ["a"]}]
    more = {"model_gateway_api_keys": keys, "model_gateway_settings": {"max_body_bytes": 1000000}}
    assert story.chat("b", OTHER).status_code == 401
    lengths: list[int] = []

    def stream() -> None:
        answer = story.chat("b", stream=True, max_tokens=600)
        lengths.append(sum(line.startswith(b"data:") for line in answer.iter_lines()))

    thread = threading.Thread(target=stream)
    thread.start()
    # settings.json, keys.json, nginx.conf, and that it is loaded.
    assert story.play("site", "--check", **more).changed() == 4
    assert story.play("site", **more).changed() == 4
    thread.join(timeout=SECONDS)
    assert lengths and lengths[0] > 1
    assert story.stack.seen(story.stack.gateway) == before
    until(
        lambda: story.chat("b", OTHER).status_code == 403, lambda: docker("logs", "--tail", "20", story.stack.gateway)
    )
    assert story.chat("b", text="x" * 1_100_000).status_code == 413
    assert story.play("site").changed() == 4
    until(
        lambda: story.chat("b", OTHER).status_code == 401, lambda: docker("logs", "--tail", "20", story.stack.gateway)
    )


def test_a_certificate_comes_into_force_by_a_new_container(story: Story) -> None:
    """Its health check asks by HTTPS."""
    certificate, key = pair()
    tls = {"model_gateway_tls_certificate": certificate, "model_gateway_tls_key": key}
    before = story.stack.seen(story.stack.gateway)
    story.play("site", **tls)
    assert story.stack.seen(story.stack.gateway)[story.stack.gateway].id != before[story.stack.gateway].id
    url = story.stack.url.replace("http:", "https:")
    assert requests.get(f"{url}/health", timeout=SECONDS, verify=False).status_code == 200
    told = requests.get(f"http://127.0.0.1:{story.stack.webui_port}/api/models", timeout=SECONDS).json()["data"]
    assert {model["id"] for model in told} >= {"a", "b"}
    assert is_healthy(story.stack)
    again = {"model_gateway_tls_certificate": (renewed := pair())[0], "model_gateway_tls_key": renewed[1]}
    before = story.stack.seen(story.stack.gateway)
    assert story.play("site", **again).changed() == 2
    assert story.stack.seen(story.stack.gateway) == before
    story.play("site")
    story.until_known()


def test_it_comes_back_when_it_is_killed(story: Story) -> None:
    spool = story.stack.files / "spool"
    (spool / "0000000007").write_text("left behind", encoding="utf-8")
    before = inspect(story.stack.gateway)["State"]["StartedAt"]
    subprocess.run(["kill", "-9", str(inspect(story.stack.gateway)["State"]["Pid"])], check=True)
    until(lambda: inspect(story.stack.gateway)["State"]["StartedAt"] != before, lambda: docker("ps", "--all"))
    story.until_known()
    assert story.chat("b").status_code == 200
    assert not (spool / "0000000007").exists()
    assert story.play("site").changed() == 0


def test_a_configuration_that_is_refused_is_told(story: Story) -> None:
    """nginx's own trial passes over what the program reads."""
    token = story.stack.files / "link-token"
    text = token.read_bytes()
    token.write_bytes(b"")
    run = story.ansible.play("site", timeout=PLAY)
    assert run.status == 2
    (said,) = [result["msg"] for result in run.results("fatal") if "goes on with" in result["msg"]]
    assert "link-token: is missing or empty" in said
    assert story.chat("b").status_code == 200
    # A run that failed is made up for.
    token.write_bytes(text)
    assert story.play("site").changed() == 1


def test_it_is_removed_where_it_is_disabled(story: Story) -> None:
    off = {"model_gateway_enabled": False}
    predicted = story.play("site", "--check", **off).changed()
    assert predicted > 0
    assert story.stack.files.exists()
    story.play("site", **off)
    assert inspect(story.stack.gateway) == {}
    assert not story.stack.files.exists()
    assert not (story.stack.stack / "compose-model-gateway.yml").exists()
    environment = dict(entry.split("=", 1) for entry in inspect(story.stack.webui)["Config"]["Env"])
    assert "OPENAI_API_CONFIGS" not in environment
    assert "host.docker.internal" not in environment["OPENAI_API_BASE_URLS"]


def test_it_is_started_on_a_host_whose_models_run_and_torn_down(story: Story) -> None:
    story.stop_manager()
    story.play("site")
    story.start_manager()
    story.until_known()
    assert story.chat("b").status_code == 200
    story.stop_manager()
    story.play("teardown")
    assert inspect(story.stack.gateway) == {}
    assert not story.stack.files.exists()
