# SPDX-License-Identifier: MIT
"""LoRA adapters on real vLLM: one that a wake has lost, or exchanged for another, is noticed and a restart mends it.

On the CPU no wake loses any: a proxy in front of the server asks for another route from then on until a restart.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.playbooklib import Host
from tests.serverlib import free_port, real_adapters, real_command, real_settings
from tests.versions import proxy

from .stack import A, Answer, Stack

pytestmark = pytest.mark.timeout(900)  # vLLM has perhaps to be built first

CALM, LOUD = "calm", "loud"  # one on the command line, one that is loaded at run time
ROUTES = (A, CALM, LOUD)
RESTARTED = [("restart", action, A) for action in ("stop", "start", "verify")]


@dataclasses.dataclass
class Adapted:
    """A host with one model that has both adapters, and what each route answers."""

    stack: Stack
    orders: Path
    texts: dict[str, str]

    def told(self) -> dict[str, str]:
        """What each route answers to a client."""
        return {route: complete(self.stack, route) for route in ROUTES}

    def wake(self, level: int, reroute: dict[str, str], *options: str) -> Answer:
        """Put the model to sleep and wake it, after which routes answer as others."""
        self.stack.declare(str(level))
        assert self.stack.switch(A, "--state", "sleeping").status == 0
        (self.orders / "reroute").write_text(json.dumps(reroute), encoding="utf-8")
        return self.stack.switch(A, *options)


def complete(stack: Stack, route: str) -> str:
    body = {"model": route, "prompt": "the model wakes up", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    answer = requests.post(f"http://127.0.0.1:{stack.port(A)}/v1/completions", json=body, timeout=120)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["text"])


@pytest.fixture(scope="module")
def adapted(venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapted]:
    folder = tmp_path_factory.mktemp("adapters")
    orders = folder / "orders"
    orders.mkdir()
    calm, loud = real_adapters(venv, folder, CALM, LOUD)
    server = real_command(venv, A, "{port}", [A], max_model_len=512)
    server += ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--lora-modules", f"{CALM}={calm}"]
    model: dict[str, Any] = {
        "id": A,
        "model": str(venv / "models" / A),
        "host_port": free_port(),
        "weights_gb": 0.01,
        "start_command": [sys.executable, proxy.__file__, str(orders), "${host_port}", *server],
        "env": {**real_settings(venv), "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
    }
    host = Host(folder, [model])
    host.stack.mkdir(exist_ok=True)
    stack = Stack(host.stack, {}, {A: model})
    try:
        stack.declare()
        answer = stack.switch(A)
        assert answer.status == 0, answer.errors
        assert answer.result["steps"][-1]["note"] == f"answer recorded; adapter {CALM} recorded"
        body = {"lora_name": LOUD, "lora_path": str(loud)}
        requests.post(
            f"http://127.0.0.1:{stack.port(A)}/v1/load_lora_adapter", json=body, timeout=60
        ).raise_for_status()
        answer = stack.switch(A, "--state", "sleeping")
        assert answer.status == 0, answer.errors
        assert answer.result["steps"][0]["note"].startswith(f"adapter {LOUD} recorded")
        answer = stack.switch(A)
        assert answer.status == 0, answer.errors
        assert answer.result["steps"][-1]["note"] == "answers as recorded; 2 adapters answer as recorded"
        made = Adapted(stack, orders, {})
        made.texts = made.told()
        assert len(set(made.texts.values())) == 3
        yield made
    finally:
        host.kill()


def rungs(answer: Answer) -> list[tuple[str, str, str]]:
    """What was done after the first failure."""
    steps = answer.result["steps"]
    return [(step["escalation"], step["action"], step["model"]) for step in steps if "escalation" in step]


def failures(answer: Answer) -> list[str]:
    return [step["failed"] for step in answer.result["steps"] if "failed" in step]


def test_a_lost_adapter_is_noticed_and_a_restart_mends_it(adapted: Adapted) -> None:
    answer = adapted.wake(1, {LOUD: A})
    assert answer.status == 0, answer.errors
    assert rungs(answer) == RESTARTED
    (failure,) = failures(answer)
    assert f"{A}'s adapter {LOUD} answers the fixed prompt with the answer of the bare model, not with " in failure
    # It had been loaded at run time, and a restart loses that.
    last = answer.result["steps"][-1]["note"]
    assert last == f"answers as recorded; 2 adapters answer as recorded; adapter {LOUD} loaded again"
    assert adapted.told() == adapted.texts


def test_swapped_adapters_are_noticed(adapted: Adapted) -> None:
    answer = adapted.wake(2, {CALM: LOUD, LOUD: CALM})
    assert answer.status == 0, answer.errors
    assert rungs(answer) == [("retry", "reload", A), ("retry", "verify", A), *RESTARTED]
    for failure in failures(answer):
        assert f"{A}'s adapter {CALM} answers the fixed prompt with the answer of {LOUD}, not with " in failure
        assert f"{A}'s adapter {LOUD} answers the fixed prompt with the answer of {CALM}, not with " in failure
    assert adapted.told() == adapted.texts


def test_without_a_restart_the_switch_fails_and_names_the_adapter(adapted: Adapted) -> None:
    adapted.stack.declare("1", escalation=["roll_back"])
    assert adapted.stack.switch(A, "--state", "sleeping").status == 0
    (adapted.orders / "reroute").write_text(json.dumps({CALM: A}), encoding="utf-8")
    answer = adapted.stack.switch(A)
    assert answer.status == 1
    assert f"adapter {CALM} answers the fixed prompt with the answer of the bare model, not with " in answer.errors
    assert "What to do: check that the adapter's files have not changed since it was loaded" in answer.errors
    assert adapted.stack.record(A)["adapters"][CALM]["suspect"]
    # When the cause is gone it is right at once.
    (adapted.orders / "reroute").unlink()
    answer = adapted.stack.switch(A)
    assert answer.status == 0, answer.errors
    assert adapted.told() == adapted.texts
    assert not adapted.stack.record(A)["adapters"][CALM]["suspect"]
