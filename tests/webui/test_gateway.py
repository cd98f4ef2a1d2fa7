# SPDX-License-Identifier: MIT
"""The real Open WebUI in a real browser, before the real gateway and manager, and two real vLLM servers behind them.

Of two people, one chats with the model that sleeps and the other with the one that is active, at the same time.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.gateway.front import front
from tests.gateway.gatewaylib import Gateway, missing, until
from tests.playbooklib import Ansible, Host
from tests.serverlib import ROOT, free_port, real_command, real_settings, real_venv

from .interface import GENERATION, MESSAGE, render, start, webui_venv
from .interface import visit as visited_by

# Left to `make webui`: it starts Open WebUI once more, which takes minutes.
pytestmark = [
    pytest.mark.timeout(1800),  # what it needs may have to be built first
    pytest.mark.whole,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
A, B = "tiny-a", "tiny-b"
WAKE_SECONDS = 6
WEBUI_KEY, KEY = "sk-of-open-webui-0123456789", "sk-of-the-test-0123456789"
CHAT = "/v1/chat/completions"
# A new chat asks for a title, an answer, follow-ups and tags.
POSTS, TASKS = 4, 3
# Those of the visit.
CHATS = 3


@dataclass
class Visit:
    """What people saw, and what arrived where."""

    seen: dict[str, Any]
    gateway: Gateway
    woken: Counter[str]
    # Of the requests of Open WebUI: what each server answered, and what the gateway says of them.
    arrived: dict[str, list[dict[str, Any]]]
    logged: list[dict[str, Any]]

    def again(self, model: str) -> str:
        """What a model answers to the person's message."""
        body = next(one["body"] for one in self.arrived[model] if not one["task"])
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = requests.post(self.gateway.url + CHAT, json={**body, "stream": False}, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])


def declared(venv: Path, folder: Path, name: str, mode: str) -> dict[str, Any]:
    """A model whose server notes what it is asked, and takes its time to wake."""
    command = real_command(venv, name, "${host_port}", ["${id}"], 8192)
    environment = {
        **real_settings(venv),
        "STANDIN_GPU_DIR": "",
        "REQUESTS": str(folder / f"{name}.requests"),
        "WAKE_SECONDS": str(WAKE_SECONDS),
        "PYTHONPATH": str(ROOT / "tests" / "webui"),
    }
    return {
        "id": name,
        "model": str(venv / "models" / name),
        "host_port": free_port(),
        "weights_gb": 0.01,
        "sleep_level": "1",
        "start_command": [*command, "--middleware", "record.note", "--override-generation-config", GENERATION],
        "env": environment,
        "startup_mode": mode,
    }


@contextlib.contextmanager
def visiting(chromium: str, ansible_playbook: str, folder: Path) -> Iterator[Visit]:
    """One visit, and what it has left; screenshots are in the folder."""
    vllm, webui = real_venv(), webui_venv()
    host = Host(folder, [declared(vllm, folder, A, "active"), declared(vllm, folder, B, "sleep")])
    ansible = Ansible(ansible_playbook, folder, [host])
    with contextlib.ExitStack() as stack:
        stack.callback(host.kill)
        ansible.play("bootstrap", timeout=600).changed()
        # As `site` writes it, which the manager reads.
        (host.stack / "models.json").write_text(json.dumps({"vllm_models": host.models, "vllm_switching": {}}))
        keys = [{"name": "test", "key": KEY}, {"name": "open-webui", "key": WEBUI_KEY}]
        manager, gateway = stack.enter_context(front(host.stack, folder, keys))
        # From here on it is known what a switch takes.
        for name in (B, A):
            manager.switch(name)
        service = render(
            ansible,
            {"host.docker.internal": "127.0.0.1"},
            open_webui_gateway=True,
            open_webui_gateway_port=gateway.port,
            open_webui_gateway_key=True,
        )
        secrets = {"WEBUI_SECRET_KEY": "signing key of the test", "MODEL_GATEWAY_WEBUI_KEY": WEBUI_KEY}
        interface, _environment = start(webui, service, folder, secrets)
        stack.enter_context(interface)
        interface.wait_ready(600)
        before = {name: len(requests_of(folder, name)) for name in (A, B)}
        seen = visited_by(webui, "visit_gateway", chromium, interface, folder)
        until(lambda: len(asked_of(gateway)) >= CHATS * POSTS, "the tasks of all chats have come", 120)
        until(manager.idle, "nobody waits", 120)
        # Long after the last task that could have caused a switch.
        time.sleep(3)
        since = {name: requests_of(folder, name)[before[name] :] for name in (A, B)}
        yield Visit(
            seen,
            gateway,
            Counter({name: sum(one["call"] == "POST /wake_up" for one in since[name]) for name in (A, B)}),
            {name: [one for one in since[name] if one["call"] == f"POST {CHAT}"] for name in (A, B)},
            asked_of(gateway),
        )


@pytest.fixture(scope="module")
def visit(chromium: str, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    folder = tmp_path_factory.mktemp("gateway")
    print(f"screenshots are in {folder}")
    with visiting(chromium, ansible_playbook, folder) as seen:
        yield seen


def asked_of(gateway: Gateway) -> list[dict[str, Any]]:
    """What the gateway's log has of Open WebUI's chats and tasks."""
    return [row for row in gateway.log() if (row["path"], row["key"]) == (CHAT, "open-webui")]


def requests_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """What a server has noted so far."""
    return [json.loads(line) for line in (folder / f"{name}.requests").read_text(encoding="utf-8").splitlines()]


def test_the_list_says_what_each_model_is(visit: Visit) -> None:
    assert set(visit.seen["listed"]) == {A, B}
    awake, other = visit.seen["listed"][A], visit.seen["listed"][B]
    assert (awake["loaded"], awake["description"]) == (True, "Active")
    assert other["loaded"] is False
    assert re.fullmatch(r"Asleep, ready in about \d+ s", other["description"])


def test_the_active_model_answers_at_once(visit: Visit) -> None:
    asked, answered = visit.seen["active"]["kept"]
    assert (asked["content"], answered["model"], answered.get("error")) == (MESSAGE, A, None)
    assert "statusHistory" not in answered or not answered["statusHistory"]


@pytest.mark.parametrize(("person", "model", "place"), [("first", B, 1), ("second", A, 2)])
def test_who_waits_sees_place_and_seconds_and_gets_the_answer(
    visit: Visit, person: str, model: str, place: int
) -> None:
    seen = visit.seen[person]
    print(f"{person}: {seen['told']}")
    # The second one's place is the first as soon as the first one is answered, which may come before it asks.
    places = {int(found[1]) for text in seen["told"] if (found := re.fullmatch(waiting(model), text))}
    assert places and places <= set(range(1, place + 1)), seen["told"]
    # It is gone when the answer is there, and after a reload.
    assert seen["left"] == 0
    assert "Wait" not in seen["shown"] + seen["reloaded"]
    asked, answered = seen["kept"]
    assert (asked["content"], answered["model"], answered.get("error")) == (MESSAGE, model, None)
    assert answered["content"].strip() == visit.again(model).strip() != ""


def waiting(model: str) -> str:
    """What is shown to whoever waits."""
    return rf"Waiting for {model}: place (\d+), about \d+ s"


def test_titles_tags_and_follow_ups_cause_no_switch(visit: Visit) -> None:
    """There were two people who had to be switched to, so there were two switches: the servers say so."""
    assert visit.woken == {A: 1, B: 1}
    posts = [one for name in (A, B) for one in visit.arrived[name]]
    tasks = Counter(one["task"] for one in posts if one["task"])
    refused = [row for row in visit.logged if row["error"] == "busy_task"]
    print(f"tasks that a server did: {dict(tasks)}; {len(refused)} were refused; switches: {dict(visit.woken)}")
    assert [one["status"] for one in posts] == [200] * len(posts)
    assert len(posts) - sum(tasks.values()) == CHATS
    assert sum(tasks.values()) + len(refused) == CHATS * TASKS
    # The title of a chat with a model that sleeps comes before the model, and some follow the answer.
    assert refused
    assert tasks.keys() >= {"title_generation", "follow_up_generation", "tags_generation"}
    assert [row["status"] for row in refused] == [503] * len(refused)
