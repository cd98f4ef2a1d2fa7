# SPDX-License-Identifier: MIT
"""Switches between two real servers under clients that never stop: nobody gets less than the whole answer."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests

from tests.part import fewer
from tests.playbooklib import complete

from .stack import A, B, Pair, Stack

pytestmark = pytest.mark.timeout(900)  # vLLM has perhaps to be built first

SWITCHES = fewer("soak", "make real", "switches under streams", 50, 14)
OF_THEM_AT_LEVEL_1 = SWITCHES * 3 // 5
TOKENS = 300  # a second or two: longer than the command line takes to get from its start to the drain


@dataclass
class Stream:
    """One completion as a client saw it."""

    text: str = ""
    reasons: list[str] = field(default_factory=list)
    tokens: int = 0
    done: bool = False
    problem: str = ""

    @property
    def whole(self) -> bool:
        return (self.reasons, self.tokens, self.done, self.problem) == (["length"], TOKENS, True, "")


class Client(threading.Thread):
    """Asks for one streamed completion after the other, whether the model is awake or asleep."""

    def __init__(self, port: int, model: str, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port, self.model, self.over = port, model, over
        self.streams: list[Stream] = []

    def run(self) -> None:
        with requests.Session() as session:
            while not self.over.is_set():
                stream = Stream()
                self.streams.append(stream)
                try:
                    self._read(session, stream)
                except (requests.RequestException, ValueError, LookupError) as error:
                    stream.problem = repr(error)
                    self.over.wait(0.5)

    def _read(self, session: requests.Session, stream: Stream) -> None:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": "Once upon a time",
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        with session.post(url, json=body, stream=True, timeout=300) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line == b"data: [DONE]":
                    stream.done = True
                elif line:
                    event = json.loads(line.removeprefix(b"data: "))
                    for choice in event["choices"]:
                        stream.text += choice["text"]
                        stream.reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
                    if event.get("usage"):
                        stream.tokens = event["usage"]["completion_tokens"]


@pytest.fixture(scope="module")
def stack(real_pair: Pair) -> Stack:
    real_pair.settle()
    return real_pair.stack


def test_no_switch_cuts_a_stream(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    over = threading.Event()
    clients = {name: Client(stack.port(name), name, over) for name in (A, B)}
    for client in clients.values():
        client.start()
    cut_before = {name: stack.aborted(name) for name in (A, B)}
    drained: list[int] = []
    began = time.monotonic()
    for number in range(SWITCHES):
        level = "1" if number < OF_THEM_AT_LEVEL_1 else "2"
        stack.declare(sleep_level=level, drain_timeout_seconds=120)
        name, other = (B, A) if number % 2 == 0 else (A, B)
        if number == SWITCHES - 1:
            # What runs now is the last of the one, and what waits for this wake is the last of the other.
            over.set()
        answer = stack.switch(name)
        assert answer.status == 0, answer.errors
        result = answer.result
        assert (result["active_model"], result["previous_model"], result["warnings"]) == (name, other, [])
        assert [(step["action"], step["model"], step["level"]) for step in result["steps"]] == [
            ("drain", other, None),
            ("sleep", other, int(level)),
            ("wake", name, 1 if number <= OF_THEM_AT_LEVEL_1 else 2),
            ("verify", name, None),
        ]
        assert result["requests"]["cut"] == 0
        drained.append(result["requests"]["drained"])
        if number >= 2:
            assert result["steps"][-1]["note"] == "answers as recorded"
    seconds = time.monotonic() - began
    for client in clients.values():
        client.join(120)
        assert not client.is_alive(), f"the client of {client.model} still waits"

    streams = [stream for client in clients.values() for stream in client.streams]
    truncated = [stream for stream in streams if not stream.whole]
    with capsys.disabled():
        print(
            f"\n{SWITCHES} switches, {len(streams)} completions, {len(truncated)} truncated"
            f" ({sum(map(bool, drained))} switches met a running one; {seconds:.0f} s)"
        )
    assert truncated == []
    for name, client in clients.items():
        # Those that ran into a switch, and those that waited for one.
        assert len(client.streams) > SWITCHES / 4
        assert stack.aborted(name) == cut_before[name]
        # Greedy, so every wake has brought back the same weights, also from level 2.
        assert len({stream.text for stream in client.streams}) == 1
    # One may just have ended and the next not begun when the engine looks, but that is rare.
    assert SWITCHES - sum(map(bool, drained)) < max(5, SWITCHES * 0.2)


@pytest.mark.parametrize(("action", "fate"), [("abort", "cut"), ("keep", "parked")])
def test_a_deadline_leaves_a_server_that_tells_its_level(stack: Stack, action: str, fate: str) -> None:
    stack.declare(drain_timeout_seconds=120)
    assert stack.switch(A).status == 0
    stack.declare(drain_timeout_seconds=0.5, drain_timeout_action=action)
    cut_before = stack.aborted(A)
    tokens = 1900
    stack.wait_until_running(A, 0)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(complete, stack.port(A), A, tokens)
        stack.wait_until_running(A)
        answer = stack.switch(B)
        assert answer.status == 0, answer.errors
        assert answer.result["requests"] == {"drained": 0, "parked": 0, "cut": 0, fate: 1}, (answer.result, asked)
        assert not asked.done() or action == "abort"
        # Two sleeps were on their way, and the one of level 0 ended last. The wake is the quick one all the same.
        stack.declare(drain_timeout_seconds=120)
        answer = stack.switch(A)
        assert answer.status == 0, answer.errors
        assert [(step["action"], step["model"], step["level"]) for step in answer.result["steps"]] == [
            ("drain", B, None),
            ("sleep", B, 1),
            ("wake", A, 1),
            ("verify", A, None),
        ]
        choice = asked.result()
    if action == "abort":
        assert choice["finish_reason"] == "abort"
        assert 0 < choice["tokens"] < tokens
    else:
        assert (choice["finish_reason"], choice["tokens"]) == ("length", tokens)
    assert stack.aborted(A) - cut_before == (action == "abort")
