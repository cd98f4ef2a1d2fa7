# SPDX-License-Identifier: MIT
"""A real pooling model that shares a GPU with a text model: loaded by bootstrap, switched away and back, compared.

The text model is a stand-in: what is to be shown is what the engine makes of the other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.playbooklib import Ansible, Host, Run, is_sleeping, launched
from tests.serverlib import free_port, real_command, real_model, real_settings

from .stack import SWITCHING, WEIGHTS, A, Stack

pytestmark = pytest.mark.timeout(900)  # vLLM has perhaps to be built first

E = "tiny-embedding"


@dataclass
class Mixed:
    """The host with both, how its bootstrap went, and the file of the pooling model's weights."""

    host: Host
    ansible: Ansible
    stack: Stack
    bootstrap: Run
    weights: Path

    def vector(self) -> list[float]:
        """Return what a client gets."""
        url = f"http://127.0.0.1:{self.host.port(E)}/v1/embeddings"
        answer = requests.post(url, json={"model": E, "input": "one host, many models"}, timeout=60)
        answer.raise_for_status()
        return list(answer.json()["data"][0]["embedding"])

    def awake(self) -> set[str]:
        return {name for name in (A, E) if not is_sleeping(self.host.port(name))}


@pytest.fixture(scope="module")
def mixed(venv: Path, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    folder = tmp_path_factory.mktemp("mixed")
    model = real_model(venv, folder / "models", "embedding")
    pooling: dict[str, Any] = {
        "id": E,
        "model": str(model),
        "host_port": free_port(),
        "weights_gb": 0.01,
        "start_command": real_command(venv, str(model), "${host_port}", ["${id}"], max_model_len=512),
        "env": {**real_settings(venv), "STANDIN_GPU_DIR": ""},
        "sleep_level": "2",
    }
    models = [launched(A, startup_mode="active", sleep_level="2"), pooling]
    host = Host(folder, models, SWITCHING)
    ansible = Ansible(ansible_playbook, folder, [host])
    try:
        bootstrap = ansible.play("bootstrap", timeout=600)
        assert bootstrap.status == 0, bootstrap.output
        stack = Stack(host.stack, {E: model}, {str(one["id"]): dict(one) for one in models})
        yield Mixed(host, ansible, stack, bootstrap, model / WEIGHTS)
    finally:
        host.kill()


def test_bootstrap_loads_it_without_being_told_what_it_is(mixed: Mixed) -> None:
    assert mixed.bootstrap.changed() == 2
    assert mixed.awake() == {A}
    record = mixed.stack.record(E)
    assert (record["kind"], record["reproducible"]) == ("embedding", True)


@pytest.mark.parametrize("level", ["2", "1"])
def test_away_and_back(mixed: Mixed, level: str) -> None:
    mixed.stack.declare(sleep_level=level)
    vectors = []
    for name in (E, A, E, A):
        answer = mixed.stack.switch(name)
        assert answer.status == 0, answer.errors
        assert mixed.awake() == {name}
        assert answer.result["warnings"] == []
        assert answer.result["rung"] == ""
        assert answer.result["steps"][-1]["note"] == "answers as recorded"
        if name == E:
            vectors.append(mixed.vector())
    assert vectors[0] == vectors[1]
    # Since it is known what it is it has been asked for nothing else.
    posts = [call for call in mixed.host.calls(E) if call.startswith("POST /v1/")]
    assert posts.count("POST /v1/completions") == 1


def test_exchanged_weights_are_noticed(mixed: Mixed) -> None:
    mixed.stack.declare(sleep_level="2", escalation=["stop", "retry", "roll_back"])
    for name in (E, A):
        assert mixed.stack.switch(name).status == 0
    whole = mixed.weights.read_bytes()
    # The numbers are those that there were, each in another place.
    begin = 8 + int.from_bytes(whole[:8], "little")
    moved = whole[:begin] + whole[begin + 4096 :] + whole[begin : begin + 4096]
    put(mixed.weights, moved)
    answer = mixed.stack.switch(E)
    assert answer.status == 1
    assert "answers the fixed call for embedding with" in answer.errors
    assert f"{A} is active again" in answer.errors
    assert mixed.awake() == {A}
    put(mixed.weights, whole)
    answer = mixed.stack.switch(E)
    assert answer.status == 0, answer.errors
    assert answer.result["steps"][-1]["note"] == "answers as recorded"


def put(file: Path, content: bytes) -> None:
    """Write the weights in one go: the server may have mapped the old file."""
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)
