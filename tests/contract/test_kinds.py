# SPDX-License-Identifier: MIT
"""What a server does whose model completes no text: as test_contract.py, with a server of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import kinds

from tests.serverlib import Server, real_model, real_venv, start_real, start_standin

from .client import MODEL, Client
from .families import FAMILIES

KINDS = ("embedding", "score")
OFFERED = {"embedding": {"embedding", "score", "pooling"}, "score": {"score", "pooling"}}
MANY = 400  # texts in one request: seconds of work


class Pooling(Client):
    """The calls of a client of such a server."""

    kind: str

    def ask(self, kind: str, **more: Any) -> requests.Response:
        """Make the call of a kind as the engine does."""
        content_type, body = kinds.KINDS[kind].body(MODEL)
        headers = {"Content-Type": content_type}
        return self.post(kinds.KINDS[kind].path, data=body, headers=headers, **{"timeout": 60, **more})

    def told(self) -> kinds.Reply:
        """What it answers to the call of its own kind."""
        answer = self.ask(self.kind)
        text = kinds.KINDS[self.kind].read(answer.json())
        assert answer.status_code == 200 and text is not None, answer.text
        return kinds.Reply(self.kind, text)

    def ask_much(self) -> requests.Response:
        """Ask for many numbers at once."""
        texts = [f"the model sleeps and the model wakes up {number}" for number in range(MANY)]
        if self.kind == "embedding":
            return self.post("/v1/embeddings", json={"model": MODEL, "input": texts}, timeout=300)
        return self.post("/score", json={"model": MODEL, "text_1": texts[0], "text_2": texts}, timeout=300)


@pytest.fixture(scope="module", params=KINDS)
def pooling(request: pytest.FixtureRequest, target: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooling]:
    """A server of a model that gives vectors, and one whose model gives scores."""
    what, version = target.split("-")
    server: Server
    if what == "real":
        venv = real_venv(version)
        model = real_model(venv, tmp_path_factory.mktemp(version), request.param)
        server = start_real(venv, str(model), names=[MODEL], max_model_len=512)
    else:
        holds = FAMILIES[version].modes and not FAMILIES[version].runs_half_awake
        flags = ["--max-num-seqs", "4", *(["--enable-sleep-mode"] if holds else [])]
        settings: dict[str, Any] = {"version": version, "kind": request.param, "tokens_per_second": 100}
        server = start_standin(MODEL, names=[MODEL], flags=flags, **settings)
    with server:
        client = Pooling(server, FAMILIES[version])
        client.kind = request.param
        yield client
        client.pool.shutdown(cancel_futures=True)


def test_what_it_offers(pooling: Pooling) -> None:
    for kind in kinds.KINDS:
        answer = pooling.ask(kind)
        if kind in OFFERED[pooling.kind]:
            assert answer.status_code == 200
            assert kinds.KINDS[kind].read(answer.json())
        elif pooling.family.every_call:
            assert answer.status_code == 200
            refusal = answer.json()["error"]
            assert refusal["code"] == 400
            assert refusal["message"].startswith("The model does not support ")
            assert refusal["message"].endswith(" API")
        else:
            assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    assert pooling.get("/v1/models").json()["data"][0]["id"] == MODEL


def test_it_answers_the_same_again(pooling: Pooling) -> None:
    assert pooling.told().text == pooling.told().text


def test_another_text_has_other_numbers(pooling: Pooling) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "another"}
    if pooling.kind == "score":
        asked = {"model": MODEL, "text_1": "another", "text_2": ["one", "two"]}
    answer = pooling.post(kinds.KINDS[pooling.kind].path, json=asked)
    text = kinds.KINDS[pooling.kind].read(answer.json())
    assert text is not None
    assert not kinds.Reply(pooling.kind, text).is_as(pooling.kind, pooling.told().text)


def test_it_answers_the_same_after_each_sleep(pooling: Pooling) -> None:
    before = pooling.told()
    pooling.fall_asleep(1)
    pooling.awake()
    assert pooling.told().is_as(*before)
    pooling.fall_asleep(2)
    pooling.post("/wake_up?tags=weights").raise_for_status()
    pooling.reload().raise_for_status()
    pooling.post("/wake_up?tags=kv_cache").raise_for_status()
    pooling.post("/reset_prefix_cache").raise_for_status()
    assert not pooling.is_sleeping()
    assert pooling.told().is_as(*before)


def test_what_runs_is_not_counted_and_what_waits_is_answered_after_the_wake(pooling: Pooling) -> None:
    asked = pooling.pool.submit(pooling.ask_much)
    pooling.until(lambda: pooling.waiting() > 0)
    assert pooling.running() == 0
    pooling.post("/sleep?level=1&mode=wait").raise_for_status()
    assert pooling.is_sleeping()
    if pooling.family.modes:
        assert not asked.done()
        assert pooling.running() == 0
    pooling.awake()
    answer = asked.result(300)
    assert (answer.status_code, len(answer.json()["data"])) == (200, MANY)
