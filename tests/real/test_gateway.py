# SPDX-License-Identifier: MIT
"""The clients that people have, `openai` and `anthropic`, before two real servers: they name a model, and that is all.

Between them and the servers are the real manager and the real gateway. Each server answers otherwise to the same greedy
prompt, so an answer tells who gave it; what was done to the servers is read from their own logs.
"""

from __future__ import annotations

import collections
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import http_connection

from tests.gateway.front import Manager, front
from tests.gateway.gatewaylib import Gateway, missing, until
from tests.part import fewer

from .stack import A, B, Pair

pytestmark = [
    pytest.mark.timeout(900),  # vLLM has perhaps to be built first
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

KEY = "sk-of-the-sdks-0123456789"
TEXT = "Once upon a time"
TOKENS = 24
LONG = 1900  # an answer of seconds
WAYS = ("chat", "completions", "responses", "messages")
CLIENTS = fewer("real", "make real", "clients of the SDKs at once", 8, 4)
TURNS = fewer("real", "make real", "requests of each of them", 8, 4)
# Beside the tokens' number: no answer ends before.
WHOLE: dict[str, Any] = {"ignore_eos": True}


class Sdks:
    """Both SDKs at one address, each request an answer's text: whole, or put together from its stream."""

    def __init__(self, url: str, key: str = "none", **options: Any) -> None:
        # The statuses and the waits of all answers, also of those that an SDK has tried again.
        self.heard: list[tuple[int, str | None]] = []
        hooks = {"response": [self._hear]}
        settings = {"api_key": key, "timeout": 300.0, "max_retries": 2, **options}
        self.openai = openai.OpenAI(
            base_url=url + "/v1", http_client=openai.DefaultHttpxClient(event_hooks=hooks), **settings
        )
        self.anthropic = anthropic.Anthropic(
            base_url=url, http_client=anthropic.DefaultHttpxClient(event_hooks=hooks), **settings
        )

    def _hear(self, answer: Any) -> None:
        self.heard.append((answer.status_code, answer.headers.get("X-Queue-Wait-Seconds")))

    def __enter__(self) -> Sdks:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.openai.close()
        self.anthropic.close()

    def ask(self, way: str, model: str, stream: bool) -> str:
        """The answer to the same question, in one of the WAYS."""
        text: str = getattr(self, way)(model, stream)
        return text

    def chat(self, model: str, stream: bool, tokens: int = TOKENS) -> str:
        asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": TEXT}], "max_tokens": tokens}
        asked |= {"temperature": 0, "extra_body": WHOLE}
        if not stream:
            choice = self.openai.chat.completions.create(**asked).choices[0]
            assert choice.finish_reason == "length"
            return str(choice.message.content)
        return "".join(self.chunks(**asked))

    def chunks(self, **asked: Any) -> Iterator[str]:
        """The pieces of a chat's stream, which must not end before it should."""
        reasons = []
        for chunk in self.openai.chat.completions.create(stream=True, **asked):
            for choice in chunk.choices:
                reasons += [choice.finish_reason] if choice.finish_reason else []
                yield choice.delta.content or ""
        assert reasons == ["length"]

    def completions(self, model: str, stream: bool) -> str:
        asked: dict[str, Any] = {"model": model, "prompt": TEXT, "max_tokens": TOKENS, "temperature": 0}
        asked["extra_body"] = WHOLE
        if not stream:
            return self.openai.completions.create(**asked).choices[0].text
        chunks = list(self.openai.completions.create(stream=True, **asked))
        assert [one.finish_reason for chunk in chunks for one in chunk.choices if one.finish_reason] == ["length"]
        return "".join(one.text for chunk in chunks for one in chunk.choices)

    def responses(self, model: str, stream: bool) -> str:
        asked: dict[str, Any] = {"model": model, "input": TEXT, "max_output_tokens": TOKENS, "temperature": 0}
        asked["extra_body"] = WHOLE
        if not stream:
            return self.openai.responses.create(**asked).output_text
        events = list(self.openai.responses.create(stream=True, **asked))
        assert events[-1].type in ("response.completed", "response.incomplete")
        return "".join(event.delta for event in events if event.type == "response.output_text.delta")

    def messages(self, model: str, stream: bool) -> str:
        asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": TEXT}], "max_tokens": TOKENS}
        asked["extra_body"] = {"temperature": 0}
        if not stream:
            message = self.anthropic.messages.create(**asked)
        else:
            with self.anthropic.messages.stream(**asked) as events:
                message = events.get_final_message()
        assert message.stop_reason in ("max_tokens", "end_turn")
        return "".join(block.text for block in message.content if block.type == "text")


class Door:
    """The host, what is in front of its servers, and what each server says when it is asked alone."""

    def __init__(self, pair: Pair, manager: Manager, gateway: Gateway) -> None:
        self.pair = pair
        self.manager = manager
        self.gateway = gateway
        self.alone: dict[tuple[str, str, bool], str] = {}
        for model in (B, A):
            manager.switch(model)
            with Sdks(f"http://127.0.0.1:{pair.host.port(model)}") as sdks:
                for way, stream in itertools.product(WAYS, (False, True)):
                    self.alone[way, model, stream] = sdks.ask(way, model, stream)
        for way, stream in itertools.product(WAYS, (False, True)):
            assert self.alone[way, A, stream] != self.alone[way, B, stream], way

    def sdks(self, key: str = KEY, **options: Any) -> Sdks:
        return Sdks(self.gateway.url, key, **options)

    def wakes(self) -> collections.Counter[str]:
        """How often each server was woken, by its own log."""
        return collections.Counter({name: self._calls(name).count("POST /wake_up") for name in (A, B)})

    def asked(self) -> int:
        """How many requests of clients the servers had: the engine's own are completions."""
        paths = ("POST /v1/chat/completions", "POST /v1/responses", "POST /v1/messages")
        return sum(self._calls(name).count(path) for name in (A, B) for path in paths)

    def _calls(self, name: str) -> list[str]:
        return [call.partition("?")[0] for call in self.pair.host.calls(name)]

    def gone(self) -> int:
        """How many requests for B have ended without an answer, by the gateway's log."""
        return sum(row["model"] == B and row["status"] != 200 for row in self.gateway.log())

    def busy(self) -> dict[str, tuple[int, int]]:
        """How many requests of each model are at its server, and how many wait."""
        return {name: (one["in_flight"], one["queue_depth"]) for name, one in self.manager.models().items()}


@pytest.fixture(scope="module")
def door(real_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    real_pair.settle()
    keys = [{"name": "sdks", "key": KEY}]
    with front(real_pair.host.stack, tmp_path_factory.mktemp("front"), keys) as (manager, gateway):
        yield Door(real_pair, manager, gateway)


@pytest.fixture
def settled(door: Door) -> Door:
    """A is active, B asleep, nobody waits."""
    door.manager.switch(A)
    until(door.manager.idle, "nobody waits")
    return door


@pytest.mark.whole
def test_a_server_keeps_its_connections_for_as_long_as_is_relied_on(settled: Door) -> None:
    """By the engine and by the gateway, which keep theirs for a shorter time."""
    with socket.create_connection(("127.0.0.1", settled.pair.host.port(A)), timeout=60) as sock:
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        asked = time.monotonic()
        while sock.recv(65536):
            pass
        assert time.monotonic() - asked == pytest.approx(http_connection.KEPT_SECONDS, abs=0.9)


@pytest.mark.parametrize("way", WAYS)
def test_the_model_is_named_and_that_is_all(settled: Door, way: str) -> None:
    before = settled.wakes()
    with settled.sdks() as sdks:
        for stream, model in itertools.product((False, True), (B, A)):
            assert sdks.ask(way, model, stream) == settled.alone[way, model, stream]
            # Once more, now that it is active: nothing is switched for it.
            assert sdks.ask(way, model, stream) == settled.alone[way, model, stream]
    assert [status for status, _waited in sdks.heard] == [200] * 8
    whole = [float(waited or 0) for _status, waited in sdks.heard[:4]]
    assert [waited > 0 for waited in whole] == [True, False, True, False]
    assert settled.wakes() - before == {A: 2, B: 2}


def test_many_at_once_are_answered_each_by_its_own_model(settled: Door, capsys: pytest.CaptureFixture[str]) -> None:
    before, asked = settled.wakes(), settled.asked()
    cut = {name: settled.pair.stack.aborted(name) for name in (A, B)}
    ways = [way for way in WAYS if way != "completions"]
    heard: list[tuple[int, str | None]] = []

    def run(number: int) -> list[str]:
        """What was answered otherwise than it should."""
        wrong = []
        with settled.sdks() as sdks:
            for turn in range(TURNS):
                model, stream = (A, B)[(number + turn) % 2], turn % 4 < 2
                way = ways[(number + turn) % len(ways)]
                if (said := sdks.ask(way, model, stream)) != settled.alone[way, model, stream]:
                    wrong.append(f"{way} of {model}: {said!r}")
            heard.extend(sdks.heard)
        return wrong

    with ThreadPoolExecutor(CLIENTS) as pool:
        wrong = [one for each in pool.map(run, range(CLIENTS)) for one in each]
    switches = sum((settled.wakes() - before).values())
    with capsys.disabled():
        print(f"\n{CLIENTS} clients, {len(heard)} answers, {len(wrong)} wrong, {switches} switches")
    assert wrong == []
    assert [status for status, _waited in heard] == [200] * (CLIENTS * TURNS)
    until(settled.manager.idle, "nobody waits")
    # No SDK had to try again, and the gateway never does.
    assert settled.asked() - asked == CLIENTS * TURNS
    assert {name: settled.pair.stack.aborted(name) for name in (A, B)} == cut
    assert 2 <= switches <= CLIENTS * TURNS


class Stream(threading.Thread):
    """A long answer of A that somebody reads. C(began): its first piece has come."""

    def __init__(self, door: Door) -> None:
        super().__init__(daemon=True)
        self.began = threading.Event()
        self.text = ""
        self.problem = ""
        self._sdks = door.sdks()
        self.start()

    def run(self) -> None:
        asked: dict[str, Any] = {"model": A, "messages": [{"role": "user", "content": TEXT}], "max_tokens": LONG}
        try:
            with self._sdks as sdks:
                for piece in sdks.chunks(**asked, temperature=0, extra_body=WHOLE):
                    self.text += piece
                    self.began.set()
        except Exception as error:  # the test tells
            self.problem = repr(error)
        self.began.set()


def test_an_answer_that_runs_is_finished_before_the_other_model_comes(settled: Door) -> None:
    stream = Stream(settled)
    assert stream.began.wait(60)
    with settled.sdks() as sdks:
        assert sdks.messages(B, False) == settled.alone["messages", B, False]
    stream.join(120)
    assert (stream.is_alive(), stream.problem) == (False, "")
    with settled.sdks() as sdks:
        assert stream.text == sdks.chat(A, False, LONG)
    ((status, waited),) = sdks.heard
    assert (status, float(waited or 0) > 0) == (200, True)


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_an_impatient_client_that_tries_again_causes_no_switch(settled: Door, sdk: str) -> None:
    """It gives up twice, and each time its place is given back."""
    before, gone = settled.wakes(), settled.gone()
    stream = Stream(settled)
    assert stream.began.wait(60)
    gave_up = (openai.APITimeoutError, anthropic.APITimeoutError)
    with settled.sdks(timeout=0.3, max_retries=1) as sdks, pytest.raises(gave_up):
        (sdks.chat if sdk == "openai" else sdks.messages)(B, False)
    assert stream.is_alive(), "the other answer was over before"
    until(lambda: settled.busy()[B] == (0, 0), "nobody waits")
    assert settled.busy()[A][0] == 1
    stream.join(120)
    assert (stream.is_alive(), stream.problem) == (False, "")
    until(settled.manager.idle, "nobody waits")
    assert settled.wakes() == before
    until(lambda: settled.gone() == gone + 2, "the gateway has noted both")


def test_what_is_wrong_is_the_sdks_own_exception(settled: Door) -> None:
    with settled.sdks() as sdks:
        for way, kind in (("chat", openai.NotFoundError), ("messages", anthropic.NotFoundError)):
            with pytest.raises(kind) as missed:
                sdks.ask(way, "tiny-c", False)
            assert f"the nearest is '{A}'" in str(missed.value)
        assert [model.id for model in sdks.openai.models.list()] == [A, B]
    with settled.sdks("sk-of-nobody-0123456789") as strangers:
        for way, refused in (("chat", openai.AuthenticationError), ("messages", anthropic.AuthenticationError)):
            with pytest.raises(refused):
                strangers.ask(way, A, True)
        assert [status for status, _waited in strangers.heard] == [401, 401]
