# SPDX-License-Identifier: MIT
"""Models that complete no text: recognised, proved, compared. And servers that listen while they load."""

from __future__ import annotations

import io
import json
import math
import re
import wave
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from email import message_from_bytes
from typing import Any

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.kinds import KINDS, Reply

from .conftest import Host
from .test_canary import failed, notes, record, rungs

ASKS = {
    "embedding": "POST /v1/embeddings",
    "score": "POST /score",
    "speech": "POST /v1/audio/transcriptions",
    "classify": "POST /pooling",
}
# What a server is asked that has not said what it is, in this order.
ORDER = [f"POST {kind.path}" for kind in KINDS.values()]


def asked(host: Host, name: str) -> list[str]:
    """The calls for answers that a server has had."""
    return [call for call in host.changing_calls(name) if call in ORDER]


# ---- the calls and what is made of their answers -------------------------------------------------


def test_the_sound_is_a_second_of_silence() -> None:
    content_type, body = KINDS["speech"].body("m")
    form: Any = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    parts: dict[Any, Any] = {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
        for part in form.get_payload()
    }
    assert {name: value for name, value in parts.items() if name != "file"} == {
        "model": b"m",
        "temperature": b"0",
        "response_format": b"json",
    }
    with wave.open(io.BytesIO(parts["file"])) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 16000)
        assert sound.readframes(16000 * 2) == bytes(32000)


@pytest.mark.parametrize(
    ("kind", "answer", "text"),
    [
        ("embedding", {"data": [{"embedding": [0.12345678, -1, 2e-7]}]}, "[0.123457, -1.0, 2e-07]"),
        ("embedding", {"data": []}, None),
        ("embedding", {"data": [{"embedding": []}]}, None),
        ("embedding", {"data": [{"embedding": [1, "x"]}]}, None),
        ("embedding", {"data": [{"embedding": [1, True]}]}, None),
        ("embedding", {"data": [{"embedding": [1, math.nan]}]}, None),
        ("embedding", {"data": [{"embedding": [1, math.inf]}]}, None),
        ("embedding", {}, None),
        ("score", {"data": [{"score": 0.5}, {"score": 0.25}]}, "[0.5, 0.25]"),
        ("score", {"data": [{"score": 0.5}, "x"]}, None),
        ("score", {"data": 1}, None),
        ("pooling", {"data": [{"data": [[1, 2], [3, 4]]}]}, "[1.0, 2.0, 3.0, 4.0]"),
        ("pooling", {"data": [{"data": 0.5}]}, "[0.5]"),
        ("speech", {"text": " you"}, " you"),
        ("speech", {"text": ""}, ""),
        ("speech", {"words": []}, None),
        ("text", {"choices": [{"text": "\ud800"}]}, "?"),
    ],
)
def test_what_an_answer_says(kind: str, answer: dict[str, Any], text: str | None) -> None:
    assert KINDS[kind].read(answer) == text


def test_of_a_long_answer_a_part_is_kept() -> None:
    text = KINDS["pooling"].read({"data": [{"data": [[1.0] * 3000, [2.0] * 3000]}]})
    assert json.loads(text or "") == [1.0] * 3000 + [2.0] * 1096


@pytest.mark.parametrize(
    ("kind", "one", "other", "same"),
    [
        ("embedding", "[0.6, 0.8]", "[0.6, 0.8]", True),
        ("embedding", "[0.6, 0.8]", "[0.61, 0.79]", True),
        ("embedding", "[0.6, 0.8]", "[0.8, 0.6]", False),
        ("embedding", "[0.06, 0.08]", "[0.08, 0.06]", False),
        ("embedding", "[6, 8]", "[6.1, 7.9]", True),
        ("embedding", "[0.6, 0.8]", "[0.6, 0.8, 0]", False),
        ("embedding", "[0, 0]", "[0, 0.1]", False),
        ("embedding", "[0, 0.1]", "[0, 0]", False),
        ("score", "[0.98, 0.01]", "[0.97, 0.02]", True),
        ("score", "[0.0001, 0.0002]", "[0.0002, 0.0001]", True),
        ("score", "[0.0257, 0.0356]", "[0.0256, 0.0844]", False),
        ("score", "[0.98, 0.01]", "[0.5, 0.5]", False),
        ("embedding", "[0.6, 0.8]", "not a list", False),
        ("embedding", "[0.6, 0.8]", "[[1], 2]", False),
        ("speech", "you", "you", True),
        ("speech", "you", "You", False),
    ],
)
def test_when_an_answer_is_the_recorded_one(kind: str, one: str, other: str, same: bool) -> None:
    assert Reply(kind, one).is_as(kind, other) is same


def test_an_answer_of_another_kind_is_another_answer() -> None:
    assert not Reply("embedding", "[1.0]").is_as("score", "[1.0]")


# ---- switches ------------------------------------------------------------------------------------


@pytest.fixture(params=["0.11.0", "0.32.0"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("kind", list(ASKS))
def test_away_and_back(host: Host, version: str, kind: str) -> None:
    host.settings["canary"] = "auto"
    host.declare("a", sleep_level=2, standin={"kind": kind, "version": version})
    host.declare("b", sleep_level=2)
    first = host.switch("a")
    called = "pooling" if kind == "classify" else kind
    assert notes(first) == [f"answer recorded ({called})"]
    at = ORDER.index(ASKS[kind])
    # Once it is known what it is, it is asked for nothing else: here for the answer that shows whether it repeats it.
    assert asked(host, "a") == [*ORDER[: at + 1], ASKS[kind]]
    host.switch("b")
    back = host.switch("a")
    assert back.active_model == "a"
    assert notes(back) == ["answers as recorded"]
    assert asked(host, "a") == [*ORDER[: at + 1], ASKS[kind], ASKS[kind]], "and by the record from then on"
    assert not back.rung and not back.warnings
    assert record(host, "a")["kind"] == called
    assert record(host, "a")["reproducible"]


@pytest.mark.parametrize("kind", list(ASKS))
def test_a_wrong_answer_is_noticed(host: Host, kind: str) -> None:
    host.settings.update(canary="auto", escalation=["stop", "roll_back"])
    host.declare("a", sleep_level=2, standin={"kind": kind})
    host.declare("b", sleep_level=2)
    host.switch("a")
    host.switch("b")
    host.fault("a", ASKS[kind].split()[1], "wrong_text")
    message, result = failed(host, "a")
    called = "pooling" if kind == "classify" else kind
    assert f"it answers the fixed call for {called} with " in message
    assert "(canary)" in message
    assert result.active_model == "b"
    assert record(host, "a")["suspect"]


def test_a_text_model_is_asked_for_nothing_else(host: Host) -> None:
    host.settings["canary"] = "auto"
    host.declare("a")
    host.switch("a")
    assert host.changing_calls("a") == ["POST /v1/completions"] * 2
    assert record(host, "a")["kind"] == "text"


@pytest.mark.parametrize(
    ("fields", "kind", "calls"),
    [
        ({"kind": "pooling"}, "embedding", ["POST /v1/embeddings"]),
        ({"args": {"runner": "pooling"}}, "score", ["POST /v1/embeddings", "POST /score"]),
        ({"kind": "speech"}, "speech", ["POST /v1/audio/transcriptions"]),
    ],
)
def test_what_is_declared_is_not_tried_out(host: Host, fields: dict[str, Any], kind: str, calls: list[str]) -> None:
    host.declare("a", standin={"kind": kind}, canary="off", **fields)
    result = host.switch("a")
    assert host.changing_calls("a") == calls
    assert notes(result) == [f"answers ({kind})"]


@pytest.mark.parametrize("fields", [{"kind": "text"}, {"kind": "pooling"}])
def test_a_healthy_server_that_answers_no_call_is_not_started_anew(host: Host, fields: dict[str, str]) -> None:
    host.declare("a", sleep_level=1, standin={"kind": "speech"}, **fields)
    host.declare("b", sleep_level=1)
    host.up(a=1, b="active")
    message, result = failed(host, "a")
    assert "it is healthy, but answers none of the calls that show that it is ready (" in message
    assert "set its ready_completion to false" in message
    assert f"or its kind ({fields['kind']}) to what it is" in message
    assert [one for one in rungs(result) if " start " in one or " stop " in one or one.startswith("retry")] == []
    assert result.active_model == "b"
    # And with what the message says it is ready.
    host.models[0]["ready_completion"] = False
    assert host.switch("a").active_model == "a"


def test_it_is_not_started_anew_after_a_second_try_either(host: Host) -> None:
    host.declare("a", sleep_level=1, kind="text", standin={"kind": "speech"})
    host.declare("b", sleep_level=1)
    host.up(a=1, b="active")
    host.fault("a", "/v1/models", "status_500", times=2, skip=1)
    message, result = failed(host, "a")
    assert "answers none of the calls" in message
    assert [one for one in rungs(result) if one.startswith("restart")] == []


def test_a_call_that_fails_is_no_call_that_is_not_known(host: Host) -> None:
    host.settings["escalation"] = []
    host.declare("a", standin={"kind": "embedding"}, canary="off")
    host.up(a=1)
    host.fault("a", "/v1/embeddings", "status_500", times=0)
    message = failed(host, "a")[0]
    assert re.search(r"/v1/embeddings: answered 500", message)
    assert asked(host, "a") == ORDER[:2]


def test_a_record_is_followed_also_where_the_model_is_another_now(host: Host) -> None:
    host.settings["canary"] = "auto"
    host.declare("a", standin={"kind": "embedding"})
    host.switch("a")
    host.switch("a", "stopped")
    del host.models[0]["env"]["STANDIN_KIND"]
    result = host.switch("a")
    assert notes(result) == ["answer recorded"]
    assert record(host, "a")["kind"] == "text"


# ---- servers that listen while they load ---------------------------------------------------------

LISTENS: dict[str, object] = {"listens_while_loading": 1}


@pytest.fixture
def loading(host: Host) -> Host:
    """The model a, whose server listens and has seconds to load yet, and b, which is there to be switched to."""
    host.declare("a", sleep_level=1, standin={**LISTENS, "load_seconds": 3})
    host.declare("b", sleep_level=1)
    host.start("a")
    host.wait_until(lambda: host.call("a", "GET", "/health").status_code == 503, "a listens")
    return host


def test_one_that_loads_is_waited_for(loading: Host) -> None:
    assert loading.states()["a"] == "loading"
    result = loading.switch("a")
    assert rungs(result) == ["- verify a"]
    assert loading.states() == {"a": "active", "b": "stopped"}


def test_one_that_this_switch_starts_is_waited_for(host: Host) -> None:
    host.declare("a", standin={**LISTENS, "load_seconds": 1})
    assert rungs(host.switch("a")) == ["- start a", "- verify a"]


def test_one_that_loads_makes_room(loading: Host) -> None:
    assert rungs(loading.switch("b")) == ["- stop a", "- start b", "- verify b"]


def test_one_that_ends_while_it_loads(host: Host) -> None:
    host.settings["escalation"] = []
    dies = json.dumps([{"path": "load", "fault": "die"}])
    host.declare("a", standin={**LISTENS, "load_seconds": 0.5, "faults": dies})
    message = failed(host, "a")[0]
    assert "its server ended with exit code 1 while the switch waited for it" in message


def test_one_that_loads_for_too_long(host: Host) -> None:
    host.settings.update(max_retries=2, health_check_interval_seconds=0.5, escalation=[])
    host.declare("a", standin={**LISTENS, "load_seconds": 60})
    message, result = failed(host, "a")
    assert "it is not ready after 1 s (max_retries x health_check_interval_seconds)" in message
    assert result.models["a"].state == "loading"


@pytest.mark.parametrize("state", ["active", "sleeping"])
def test_one_that_was_ready_before_is_dead(host: Host, state: str) -> None:
    host.declare("a", sleep_level=1, standin=LISTENS, ready_completion=False)
    host.declare("b", sleep_level=1)
    host.switch("a", state)
    host.fault("a", "/health", "not_ready", times=0)
    assert host.states()["a"] == "error"
    result = host.switch("a")
    assert rungs(result) == ["- stop a", "- start a", "- verify a"]
    assert result.active_model == "a"


def test_one_that_gets_not_ready_by_a_wake_is_dead(host: Host) -> None:
    host.settings["escalation"] = ["stop", "roll_back"]
    host.declare("a", sleep_level=1, standin=LISTENS)
    host.declare("b", sleep_level=1)
    host.up(a=1, b="active")
    host.fault("a", "/health", "not_ready", times=0, after="/wake_up")
    with pytest.raises(SwitchFailed) as caught:
        host.switch("a")
    assert "its engine died (/health answers 503)" in str(caught.value)


# ---- requests that it has when it is to sleep ----------------------------------------------------


@pytest.fixture
def busy(host: Host) -> Iterator[tuple[Host, Future[requests.Response]]]:
    """The embedding model a, with a request that takes it two seconds, and b."""
    host.declare("a", sleep_level=1, kind="pooling", standin={"kind": "embedding", "tokens_per_second": 0.5})
    host.declare("b", sleep_level=1)
    host.up(a="active", b=1)
    body = {"model": "a", "input": "Once upon a time"}
    with ThreadPoolExecutor(1) as pool:
        asked_for = pool.submit(host.call, "a", "POST", "/v1/embeddings", json=body)
        host.wait_until(lambda: host.running("a"), "it runs")
        yield host, asked_for


def test_a_request_for_a_vector_is_drained(busy: tuple[Host, Future[requests.Response]]) -> None:
    host, asked_for = busy
    result = host.switch("b")
    assert asked_for.result().status_code == 200
    # Its gauges do not show it, so that nobody counts it.
    assert result.requests == {"drained": 0, "parked": 0, "cut": 0}
    assert host.states() == {"a": "sleeping", "b": "active"}


def test_it_is_not_cut_at_the_deadline_either(busy: tuple[Host, Future[requests.Response]]) -> None:
    host, asked_for = busy
    host.settings["drain_timeout_seconds"] = 0.2
    result = host.switch("b")
    # By its gauges it has nothing, so it is given time, and vLLM would end with a request that is cut.
    assert asked_for.result().status_code == 200
    assert not result.rung
    assert host.states() == {"a": "sleeping", "b": "active"}
