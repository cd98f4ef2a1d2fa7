# SPDX-License-Identifier: MIT
"""What a server does that has LoRA adapters: as test_contract.py, with a server of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import kinds

from tests.serverlib import Server, real_adapters, real_venv, start_real, start_standin

from .client import ALIAS, MODEL, Client
from .families import FAMILIES
from .test_contract import error_of, says, where

CALM, LOUD = "calm", "loud"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ALLOWED = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}

pytestmark = where(adapters=True)


class Adapted(Client):
    """The calls of a client of such a server."""

    folders: dict[str, Path]

    def listed(self) -> dict[str, tuple[str, str | None, int | None]]:
        """What each card says: root, parent and the longest context."""
        cards = self.get("/v1/models").json()["data"]
        return {card["id"]: (card["root"], card["parent"], card["max_model_len"]) for card in cards}

    def told(self, route: str) -> str | None:
        """What a route answers to the engine's fixed prompt."""
        content_type, body = kinds.KINDS[kinds.TEXT].body(route)
        answer = self.post(kinds.KINDS[kinds.TEXT].path, data=body, headers={"Content-Type": content_type})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == route
        return kinds.KINDS[kinds.TEXT].read(answer.json())

    def load(self, **body: Any) -> requests.Response:
        return self.post(LOAD, json=body)

    def unload(self, name: str) -> requests.Response:
        return self.post(UNLOAD, json={"lora_name": name})


@pytest.fixture(scope="module")
def started(target: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server, dict[str, Path]]]:
    """A server with one adapter on its command line, and the folders of that and another."""
    what, version = target.split("-")
    folder = tmp_path_factory.mktemp(version)
    flags = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--lora-modules", f"{CALM}={folder / CALM}"]
    names = [MODEL, ALIAS]
    if what == "real":
        venv = real_venv(version)
        real_adapters(venv, folder, CALM, LOUD)
        server = start_real(venv, MODEL, names=names, flags=flags, max_model_len=512, variables=ALLOWED)
    else:
        for name in (CALM, LOUD):
            (folder / name).mkdir()
        flags += ["--max-model-len", "512", "--enable-sleep-mode"]
        server = start_standin(MODEL, names=names, flags=flags, version=version, variables=ALLOWED)
    with server:
        yield version, server, {name: folder / name for name in (CALM, LOUD)}


@pytest.fixture
def adapted(started: tuple[str, Server, dict[str, Path]]) -> Iterator[Adapted]:
    """The server, awake, with the adapter that it was started with."""
    version, server, folders = started
    client = Adapted(server, FAMILIES[version])
    client.folders = folders
    client.unload(LOUD)
    yield client
    client.recover()
    client.pool.shutdown(cancel_futures=True)


def test_the_list_has_adapters_with_their_path_and_the_model_as_parent_also_asleep(adapted: Adapted) -> None:
    for go in (lambda: None, adapted.fall_asleep):
        go()
        listed = adapted.listed()
        assert list(listed) == [MODEL, ALIAS, CALM]
        assert listed[CALM] == (str(adapted.folders[CALM]), MODEL, None)
        assert [listed[name][1:] for name in (MODEL, ALIAS)] == [(None, 512)] * 2


def test_an_adapter_answers_otherwise_than_the_model_and_always_the_same(adapted: Adapted) -> None:
    adapted.load(lora_name=LOUD, lora_path=str(adapted.folders[LOUD])).raise_for_status()
    told = [adapted.told(route) for route in (MODEL, CALM, LOUD)]
    assert len(set(told)) == 3
    assert [adapted.told(route) for route in (MODEL, CALM, LOUD)] == told
    for level in (1, 2):
        adapted.fall_asleep(level)
        adapted.awake()
        adapted.reload().raise_for_status()
        assert [adapted.told(route) for route in (MODEL, CALM, LOUD)] == told


def test_an_adapter_is_loaded_and_unloaded_at_run_time(adapted: Adapted) -> None:
    path = str(adapted.folders[LOUD])
    answer = adapted.load(lora_name=LOUD, lora_path=path)
    assert (answer.status_code, answer.text) == (200, f"Success: LoRA adapter '{LOUD}' added successfully.")
    assert "Content-Type" not in answer.headers
    assert list(adapted.listed()) == [MODEL, ALIAS, CALM, LOUD]
    assert adapted.listed()[LOUD] == (path, MODEL, None)
    answer = adapted.unload(LOUD)
    assert (answer.status_code, answer.text) == (200, f"Success: LoRA adapter '{LOUD}' removed successfully.")
    assert list(adapted.listed()) == [MODEL, ALIAS, CALM]
    refused = error_of(adapted.complete(model=LOUD), 404)
    assert refused["message"].startswith(f"The model `{LOUD}` does not exist.")


def test_what_is_refused(adapted: Adapted) -> None:
    path = str(adapted.folders[CALM])
    taken = error_of(adapted.load(lora_name=CALM, lora_path=path), 400)
    assert taken["message"].startswith(f"The lora adapter '{CALM}' has already been loaded.")
    assert error_of(adapted.load(lora_name=MODEL, lora_path=path), 400)["type"] == "InvalidUserInput"
    assert error_of(adapted.load(lora_name=LOUD, lora_path=""), 400)["type"] == "InvalidUserInput"
    assert error_of(adapted.load(lora_name=LOUD), 400)["param"] == "body.lora_path"
    missing = error_of(adapted.load(lora_name=LOUD, lora_path="/no/such/adapter"), 404)
    assert (missing["type"], missing["message"]) == (
        "NotFoundError",
        f"Loading lora {LOUD} failed: No adapter found for /no/such/adapter",
    )
    assert error_of(adapted.unload(LOUD), 404)["message"] == f"The lora adapter '{LOUD}' cannot be found."


def test_there_are_no_such_calls_unless_they_are_allowed(guarded: Server) -> None:
    for path in (LOAD, UNLOAD):
        answer = guarded.call("POST", path, json={}, headers={"Authorization": "Bearer sk-contract"})
        says(answer, 404, {"detail": "Not Found"})
