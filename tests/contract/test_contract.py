# SPDX-License-Identifier: MIT
"""What a vLLM server does, as far as somebody who switches models can see it.

The same cases run against the stand-in and against real vLLM (see conftest.py), so that whatever
is proved with the stand-in is proved for vLLM. What only a GPU can show is in tests/standin.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import metrics

from tests.contract.client import ALIAS, LONG, MODEL, OTHER, Client
from tests.contract.conftest import API_KEY, MAX_MODEL_LEN, Pair
from tests.serverlib import Server

if TYPE_CHECKING:
    from concurrent.futures import Future

where = pytest.mark.where  # what the version must be like (families.py) for the case to be about it

AWAKE = {"awake": 1.0, "weights_offloaded": 0.0, "discard_all": 0.0}
LEVEL_0 = {"awake": 0.0, "weights_offloaded": 0.0, "discard_all": 0.0}
LEVEL_1 = {"awake": 0.0, "weights_offloaded": 1.0, "discard_all": 0.0}
LEVEL_2 = {"awake": 0.0, "weights_offloaded": 0.0, "discard_all": 1.0}
DEV_CALLS = [
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("GET", "/is_sleeping"),
    ("POST", "/collective_rpc"),
    ("POST", "/reset_prefix_cache"),
]


def says(response: requests.Response, status: int, body: object) -> None:
    """Compare a JSON answer, byte for byte, with how Starlette writes it."""
    expected = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    assert (response.status_code, response.text) == (status, expected)
    assert response.headers["Content-Type"] == "application/json"


def says_nothing(response: requests.Response) -> None:
    """200 and an empty body."""
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Content-Length"] == "0"


def processes_of(server: Server) -> list[int]:
    """The server's process, and those that it has started."""
    pids = [server.pid]
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
    return pids


def says_asleep(client: Client, response: requests.Response, level: int) -> None:
    """Compare the answer of /sleep."""
    if client.family.speaks:
        says(response, 200, {"status": "sleeping", "level": level})
    else:
        says_nothing(response)


def says_awake(
    client: Client, response: requests.Response, tags: list[str] | None = None, *, whole: bool = True
) -> None:
    """Compare the answer of /wake_up."""
    if client.family.speaks:
        says(response, 200, {"status": "awake" if whole else "sleeping", "tags": tags})
    else:
        says_nothing(response)


def says_reset(client: Client, response: requests.Response, *, success: bool = True) -> None:
    """Compare the answer of /reset_prefix_cache."""
    if client.family.reset_tells:
        says(response, 200, {"success": success})
    else:
        says_nothing(response)


def gauge_is(client: Client, *expected: dict[str, float]) -> bool:
    """Whether the sleep gauge is one of these, or, where the server has none, is not there."""
    return client.sleep_gauge() in (expected if client.family.gauge else ({},))


def error_of(response: requests.Response, status: int) -> dict[str, Any]:
    """Return the OpenAI-style error, after a look at its shape."""
    assert response.status_code == status
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["code"] == status
    return body["error"]


def events_of(response: requests.Response) -> list[dict[str, Any]]:
    """Return the server-sent events of a stream that ended as it should."""
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    parts = response.content.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def choice_of(future: Future[requests.Response]) -> dict[str, Any]:
    """Return the only choice of a completion that was answered with 200."""
    response = future.result(60)
    assert response.status_code == 200
    (choice,) = response.json()["choices"]
    return {**choice, "tokens": response.json()["usage"]["completion_tokens"]}


# ---- start, health, what it serves --------------------------------------------------------------


def test_the_port_refuses_connections_while_the_model_loads(pair: Pair) -> None:
    assert pair.refused_while_loading == [True, True]


def test_health_is_200_and_empty_whether_awake_or_asleep(server: Client) -> None:
    says_nothing(server.get("/health"))
    server.fall_asleep()
    says_nothing(server.get("/health"))


def test_version(server: Client, pair: Pair) -> None:
    response = server.get("/version")
    says(response, 200, {"version": response.json()["version"]})
    assert response.json()["version"].split("+")[0] == pair.version


def test_models_lists_every_served_name_in_order_also_asleep(server: Client) -> None:
    for go in (lambda: None, server.fall_asleep):
        go()
        body = server.get("/v1/models").json()
        assert list(body) == ["object", "data"]
        assert body["object"] == "list"
        assert [card["id"] for card in body["data"]] == [MODEL, ALIAS]
        for card in body["data"]:
            assert list(card) == (
                ["id", "object", "created", "owned_by", "root", "parent", "max_model_len", "permission"]
            )
            assert (card["object"], card["owned_by"], card["parent"]) == ("model", "vllm", None)
            assert card["root"].endswith(MODEL)
            assert card["max_model_len"] == MAX_MODEL_LEN
            assert card["permission"][0]["object"] == "model_permission"


def test_load_counts_nothing_without_its_flag(server: Client) -> None:
    future = server.long_completion()
    says(server.get("/load"), 200, {"server_load": 0})
    choice_of(future)


def test_unknown_paths_and_methods(server: Client) -> None:
    says(server.get("/nope"), 404, {"detail": "Not Found"})
    says(server.get("/sleep"), 405, {"detail": "Method Not Allowed"})
    says(server.post("/health"), 405, {"detail": "Method Not Allowed"})
    assert server.get("/sleep").headers["Allow"] == "POST"


def test_without_dev_mode_the_sleep_api_is_not_there(guarded: Server) -> None:
    for method, path in DEV_CALLS:
        says(guarded.call(method, path), 404, {"detail": "Not Found"})


def test_the_api_key_guards_v1_only(guarded: Server) -> None:
    for path in ("/v1/models", "/v1/nope"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": API_KEY}):
            says(guarded.call("GET", path, headers=headers), 401, {"error": "Unauthorized"})
    response = guarded.call("GET", "/v1/models", headers={"Authorization": f"Bearer {API_KEY}"})
    assert [card["id"] for card in response.json()["data"]] == [OTHER]
    for path in ("/health", "/version", "/metrics", "/load"):
        assert guarded.call("GET", path).status_code == 200


# ---- sleep --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("more", ["", "&mode=wait", "&mode=keep"])
def test_sleep_says_the_level_and_is_done(server: Client, level: int, more: str) -> None:
    for _turn in range(3):  # an answer before its deed would show sooner or later
        says_asleep(server, server.post(f"/sleep?level={level}{more}"), level)
        says(server.get("/is_sleeping"), 200, {"is_sleeping": True})
        assert gauge_is(server, [LEVEL_0, LEVEL_1, LEVEL_2][level])
        says_awake(server, server.post("/wake_up"))
        says(server.get("/is_sleeping"), 200, {"is_sleeping": False})


def test_the_level_is_1_unless_the_query_says_another(server: Client) -> None:
    says_asleep(server, server.post("/sleep"), 1)
    server.awake()
    says_asleep(server, server.post("/sleep", json={"level": 2}), 1)
    assert gauge_is(server, LEVEL_1)


@where(modes=True)
def test_level_0_pauses(server: Client) -> None:
    says_asleep(server, server.post("/sleep?level=0"), 0)
    says(server.get("/is_sleeping"), 200, {"is_sleeping": True})
    assert gauge_is(server, LEVEL_0)


@pytest.mark.parametrize(("number", "query"), list(enumerate(["level=3", "level=-1", "level=x", "mode=drain"])))
def test_a_wrong_level_or_mode(server: Client, number: int, query: str) -> None:
    status = server.family.wrong_sleeps[number]
    assert server.post(f"/sleep?{query}").status_code == status
    assert server.is_sleeping() == (status == 200)


@where(speaks=True)
@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        ("level=3", "query.level", "Input should be less than or equal to 2"),
        ("level=-1", "query.level", "Input should be greater than or equal to 0"),
        ("level=x", "query.level", "Input should be a valid integer, unable to parse string as an integer"),
        ("mode=drain", "query.mode", "Input should be 'abort', 'wait' or 'keep'"),
    ],
)
def test_a_wrong_level_or_mode_is_400_and_changes_nothing(server: Client, query: str, param: str, message: str) -> None:
    error = error_of(server.post(f"/sleep?{query}"), 400)
    assert error["type"] == "Bad Request"
    assert error["param"] == param
    assert error["message"].startswith("1 validation error:\n  {'type': ")
    assert message in error["message"]
    assert not server.is_sleeping()


@where(modes=True)
def test_sleeping_twice_does_nothing_but_the_gauge_tells_the_level_asked_for(server: Client) -> None:
    server.fall_asleep(1)
    mark = server.server.mark()
    for level, gauge in ((2, LEVEL_2), (0, LEVEL_0), (1, LEVEL_1)):
        says_asleep(server, server.post(f"/sleep?level={level}"), level)
        assert gauge_is(server, gauge)
    assert server.is_sleeping()
    assert server.server.text()[mark:].count("Executor is already sleeping.") == 2, "level 0 concerns no memory"
    # Memory sleeps still, whatever the last call asked for: one wake of the scheduler is not enough.
    says_awake(server, server.post("/wake_up?tags=scheduling"), ["scheduling"], whole=False)


@where(modes=False)
def test_without_modes_sleeping_twice_does_nothing_either(server: Client) -> None:
    server.fall_asleep(1)
    mark = server.server.mark()
    says_asleep(server, server.post("/sleep?level=2"), 2)
    assert gauge_is(server, LEVEL_2)
    assert server.server.text()[mark:].count("Executor is already sleeping.") == 1
    server.awake()


# ---- wake ---------------------------------------------------------------------------------------


def test_wake_says_awake_and_is_done(server: Client) -> None:
    server.fall_asleep()
    says_awake(server, server.post("/wake_up"))
    says(server.get("/is_sleeping"), 200, {"is_sleeping": False})
    assert gauge_is(server, AWAKE)


def test_waking_the_awake_does_nothing(server: Client) -> None:
    says_awake(server, server.post("/wake_up"))
    says_awake(server, server.post("/wake_up?tags=weights"), ["weights"])
    assert not server.is_sleeping()
    assert gauge_is(server, AWAKE)


def test_a_wake_is_done_before_a_sleep_that_comes_after_it(server: Client) -> None:
    """Though its client has given up, and the one that asked again has its answer."""
    server.fall_asleep()
    pids = processes_of(server.server)
    # First what the engine is in, where that is another process, then the API server, too.
    for stopped in filter(None, (pids[1:], pids)):
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(requests.ReadTimeout):
                server.post("/wake_up", timeout=0.5)
            again = server.pool.submit(server.post, "/wake_up")
            time.sleep(0.2)
            assert not again.done()
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert again.result(60).status_code == 200
        server.fall_asleep()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert server.is_sleeping()


@pytest.mark.parametrize("level", [1, 2])
def test_partly_awake_is_still_sleeping(server: Client, level: int) -> None:
    server.fall_asleep(level)
    half = {"awake": AWAKE, "level": [LEVEL_0, LEVEL_1, LEVEL_2][level]}[server.family.gauge_half_awake]
    for _turn in range(2):  # the second one finds nothing to do
        says_awake(server, server.post("/wake_up?tags=weights"), ["weights"], whole=False)
        assert server.is_sleeping()
        assert gauge_is(server, half)
    says_awake(server, server.post("/wake_up?tags=nope"), ["nope"], whole=False)
    # A tag that is awake already makes the whole call do nothing.
    both = "/wake_up?tags=weights&tags=kv_cache"
    says_awake(server, server.post(both), ["weights", "kv_cache"], whole=False)
    assert server.is_sleeping()
    says_awake(server, server.post("/wake_up?tags=kv_cache"), ["kv_cache"])
    assert not server.is_sleeping()
    assert gauge_is(server, AWAKE)


@where(modes=True)
def test_a_bare_wake_wakes_the_rest(server: Client) -> None:
    server.fall_asleep(1)
    server.post("/wake_up?tags=weights")
    server.awake()
    assert server.complete().status_code == 200


def test_both_tags_in_one_wake(server: Client) -> None:
    server.fall_asleep(1)
    both = "/wake_up?tags=weights&tags=kv_cache"
    says_awake(server, server.post(both), ["weights", "kv_cache"])
    assert not server.is_sleeping()


@where(modes=True)
def test_the_scheduling_tag_resumes_from_level_0(server: Client) -> None:
    server.fall_asleep(0)
    says_awake(server, server.post("/wake_up?tags=scheduling"), ["scheduling"])
    assert not server.is_sleeping()


# ---- the right answer after a wake --------------------------------------------------------------


def test_the_greedy_answer_is_the_same_after_level_1(server: Client) -> None:
    before = server.text()
    server.fall_asleep(1)
    server.awake()
    assert server.text() == before


def test_the_greedy_answer_is_the_same_after_level_2_with_the_right_sequence(server: Client) -> None:
    before = server.text()
    server.fall_asleep(2)
    server.post("/wake_up?tags=weights").raise_for_status()
    says(server.reload(), 200, {"results": [None]})
    assert server.is_sleeping()
    server.awake("?tags=kv_cache")
    says_reset(server, server.post("/reset_prefix_cache"))
    assert server.text() == before


@where(speaks=True)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "JSON decode error: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "Request body must be a JSON object"),
        ("{}", "Missing 'method' in request body"),
    ],
)
def test_a_wrong_collective_rpc_is_400(server: Client, body: str, message: str) -> None:
    error = error_of(server.post("/collective_rpc", data=body), 400)
    assert error == {"message": message, "type": "Bad Request", "param": None, "code": 400}


@where(speaks=True)
def test_a_collective_rpc_that_fails_is_500_and_the_server_lives(server: Client) -> None:
    error = error_of(server.post("/collective_rpc", json={"method": "nonexistent"}), 500)
    assert error["message"].startswith("Call to collective_rpc method failed: ")
    assert "has no attribute 'nonexistent'" in error["message"]
    assert (error["type"], error["param"]) == ("InternalServerError", None)
    says_nothing(server.get("/health"))
    assert server.complete().status_code == 200


# ---- requests to a server that sleeps -----------------------------------------------------------


@where(modes=False)
def test_a_request_to_a_sleeping_server_is_answered(server: Client) -> None:
    before = server.text()
    server.fall_asleep()
    assert server.text() == before
    assert server.is_sleeping()


@where(modes=True)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_request_to_a_sleeping_server_hangs_until_the_wake(server: Client, level: int) -> None:
    before = server.text()
    server.fall_asleep(level)
    future = server.pool.submit(server.text)
    time.sleep(0.7)
    assert not future.done()
    assert (server.running(), server.waiting()) == (0, 0), "the gauges stand still"
    if level == 2:
        server.post("/wake_up?tags=weights")
        server.reload()
        assert not future.done() or server.family.runs_half_awake
    server.awake()
    assert future.result(60) == before


@where(modes=True, runs_half_awake=True)
def test_a_held_request_is_answered_before_the_reload(server: Client) -> None:
    server.fall_asleep(2)
    future = server.pool.submit(server.text)
    time.sleep(0.7)
    assert not future.done()
    server.post("/wake_up?tags=weights").raise_for_status()
    future.result(60)
    assert server.is_sleeping()


@where(modes=True, runs_half_awake=False)
def test_a_held_request_waits_for_the_reload_too(server: Client) -> None:
    before = server.text()
    server.fall_asleep(2)
    future = server.pool.submit(server.text)
    time.sleep(0.7)
    server.post("/wake_up?tags=weights").raise_for_status()
    time.sleep(0.7)
    assert not future.done()
    server.reload()
    server.awake("?tags=kv_cache")
    assert future.result(60) == before


@where(modes=True)
def test_a_second_sleep_with_abort_ends_a_request_that_hangs(server: Client) -> None:
    server.fall_asleep()
    future = server.pool.submit(server.complete)
    time.sleep(0.5)
    for call in ("/sleep?mode=wait", "/sleep?mode=keep"):
        assert server.post(call).status_code == 200
        assert not future.done()
    # More than once where it has not even arrived when it is first to be ended: no gauge tells.
    while not future.done():
        says_asleep(server, server.post("/sleep?mode=abort"), 1)
        time.sleep(0.1)
    choice = choice_of(future)
    assert (choice["text"], choice["finish_reason"], choice["tokens"]) == ("", "abort", 0)
    assert server.is_sleeping()


@where(modes=True)
def test_a_stream_from_a_sleeping_server_begins_and_hangs(server: Client) -> None:
    server.fall_asleep()
    with requests.post(
        server.server.url + "/v1/completions",
        json={"model": MODEL, "prompt": "hello", "max_tokens": 5, "stream": True},
        stream=True,
        timeout=60,
    ) as response:
        assert response.status_code == 200
        future = server.pool.submit(lambda: response.content)
        time.sleep(0.3)
        assert not future.done()
        server.post("/sleep?mode=abort")
        assert future.result(60) == b"data: [DONE]\n\n", "an aborted stream that had not begun says no reason"


@where(modes=True)
def test_a_client_that_hangs_up_takes_its_request_away(server: Client) -> None:
    server.fall_asleep()
    successes = server.metrics("vllm:generation_tokens_total")
    with pytest.raises(requests.ReadTimeout):
        server.complete(tokens=LONG, timeout=0.5)
    time.sleep(1)  # for the server to notice
    server.awake()
    server.until(lambda: (server.running(), server.waiting()) == (0, 0))
    assert server.metrics("vllm:generation_tokens_total") == successes


# ---- sleep while requests run -------------------------------------------------------------------


@where(modes=False)
@pytest.mark.parametrize("call", ["/sleep?level=1", "/sleep?level=1&mode=wait", "/sleep?level=1&mode=abort"])
def test_without_modes_what_runs_runs_on_while_asleep(server: Client, call: str) -> None:
    whole = server.complete("once", LONG).json()
    future = server.long_completion()
    says_asleep(server, server.post(call), 1)
    assert server.is_sleeping()
    assert not future.done()
    choice = choice_of(future)
    assert (choice["finish_reason"], choice["tokens"]) == ("length", LONG)
    assert choice["text"] == whole["choices"][0]["text"]
    assert server.is_sleeping()


@where(modes=True)
def test_abort_is_the_default_and_cuts_what_runs(server: Client) -> None:
    future = server.long_completion()
    says_asleep(server, server.post("/sleep"), 1)
    choice = choice_of(future)
    assert choice["finish_reason"] == "abort"
    assert 0 <= choice["tokens"] < LONG
    assert server.running() == 0


@where(modes=True)
def test_abort_cuts_a_stream_and_says_so_in_its_last_event(server: Client) -> None:
    future = server.pool.submit(server.complete, "once", LONG, stream=True)
    server.until(lambda: server.running() == 1)
    server.post("/sleep")
    events = events_of(future.result(60))
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["abort"]
    assert len(events) < LONG


@where(modes=True)
@pytest.mark.parametrize("level", [0, 1])
def test_wait_drains_and_holds_what_comes_meanwhile(server: Client, level: int) -> None:
    whole = server.complete("once", LONG).json()
    future = server.long_completion()
    sleep = server.pool.submit(server.post, f"/sleep?level={level}&mode=wait", timeout=60)
    server.until(server.is_sleeping)
    # Draining: it calls itself sleeping although a request runs and all memory is there. The gauge knows better.
    assert not sleep.done()
    assert not future.done()
    assert gauge_is(server, AWAKE)
    if server.family.times:
        assert server.metrics("vllm:sleep_mode_operations_in_flight")['operation="sleep"'] == 1
    says_nothing(server.get("/health"))
    says_reset(server, server.post("/reset_prefix_cache"), success=False)
    late = server.pool.submit(server.complete)
    server.until(lambda: server.waiting() == 1)
    assert server.running() == 1

    says_asleep(server, sleep.result(60), level)
    choice = choice_of(future)
    assert (choice["finish_reason"], choice["tokens"]) == ("length", LONG)
    assert choice["text"] == whole["choices"][0]["text"]
    assert gauge_is(server, [LEVEL_0, LEVEL_1][level])
    assert not late.done()
    server.awake()
    assert choice_of(late)["finish_reason"] == "length"


@where(modes=True)
@pytest.mark.parametrize("level", [0, 1])
def test_keep_freezes_what_runs_until_the_wake(server: Client, level: int) -> None:
    whole = server.complete("once", LONG).json()
    future = server.long_completion()
    says_asleep(server, server.post(f"/sleep?level={level}&mode=keep"), level)
    time.sleep(0.7)
    assert not future.done()
    assert server.running() == 1, "the gauge stands still"
    server.awake()
    choice = choice_of(future)
    assert (choice["finish_reason"], choice["tokens"]) == ("length", LONG)
    assert choice["text"] == whole["choices"][0]["text"]


@where(modes=True)
@pytest.mark.parametrize(("query", "tags"), [("?tags=scheduling", ["scheduling"]), ("", None)])
def test_a_wake_takes_back_a_drain_at_level_0_for_good(server: Client, query: str, tags: list[str] | None) -> None:
    future = server.long_completion()
    sleep = server.pool.submit(server.post, "/sleep?level=0&mode=wait", timeout=60)
    server.until(server.is_sleeping)
    late = server.pool.submit(server.complete)
    server.until(lambda: server.waiting() == 1)
    assert not late.done(), "it waits for the wake"
    says_awake(server, server.post("/wake_up" + query), tags)
    assert not server.is_sleeping()
    assert choice_of(late)["finish_reason"] == "length"
    assert not future.done()
    assert not sleep.done()
    choice = choice_of(future)
    assert (choice["finish_reason"], choice["tokens"]) == ("length", LONG)
    # Unlike a sleep at level 1 (see below) it does not come true when the request has ended.
    says_asleep(server, sleep.result(20), 0)
    assert not server.is_sleeping()
    assert server.complete().status_code == 200
    assert gauge_is(server, LEVEL_0), "it is set when the sleep's call ends, and that was after the wake"


@where(modes=True)
def test_an_abort_cuts_what_a_drain_at_level_0_waits_for(server: Client) -> None:
    future = server.long_completion()
    sleep = server.pool.submit(server.post, "/sleep?level=0&mode=wait", timeout=60)
    server.until(server.is_sleeping)
    says_asleep(server, server.post("/sleep?level=1&mode=abort"), 1)
    assert choice_of(future)["finish_reason"] == "abort"
    says_asleep(server, sleep.result(60), 0)
    assert server.is_sleeping()
    assert gauge_is(server, LEVEL_0, LEVEL_1), "it tells the level of the call that ended last"
    # Its memory sleeps, so that a wake of the scheduler alone does not wake it.
    says_awake(server, server.post("/wake_up?tags=scheduling"), ["scheduling"], whole=False)
    server.awake()
    assert server.complete().status_code == 200


@where(modes=True)
def test_keep_parks_what_a_drain_at_level_0_waits_for(server: Client) -> None:
    future = server.long_completion()
    sleep = server.pool.submit(server.post, "/sleep?level=0&mode=wait", timeout=60)
    server.until(server.is_sleeping)
    says_asleep(server, server.post("/sleep?level=1&mode=keep"), 1)
    time.sleep(0.7)
    assert not future.done()
    assert server.running() == 1, "the gauge stands still"
    assert gauge_is(server, LEVEL_0, LEVEL_1), "it tells the level of the call that ended last"
    server.awake()
    choice = choice_of(future)
    assert (choice["finish_reason"], choice["tokens"]) == ("length", LONG)
    says_asleep(server, sleep.result(20), 0)
    assert not server.is_sleeping()


@where(modes=True)
def test_a_wake_does_not_take_back_a_sleep_that_drains(server: Client) -> None:
    future = server.long_completion()
    sleep = server.pool.submit(server.post, "/sleep?mode=wait", timeout=60)
    server.until(server.is_sleeping)
    says_awake(server, server.post("/wake_up"))
    assert not server.is_sleeping()
    assert choice_of(future)["tokens"] == LONG
    says_asleep(server, sleep.result(20), 1)
    assert server.is_sleeping()
    assert gauge_is(server, LEVEL_1)


@where(modes=True)
def test_an_abort_ends_a_sleep_that_drains(server: Client) -> None:
    future = server.long_completion()
    sleep = server.pool.submit(server.post, "/sleep?mode=wait", timeout=60)
    server.until(server.is_sleeping)
    says_asleep(server, server.post("/sleep?mode=abort"), 1)
    assert choice_of(future)["finish_reason"] == "abort"
    says_asleep(server, sleep.result(60), 1)
    server.awake()


@where(modes=True)
def test_a_sleep_goes_on_when_its_client_hangs_up(server: Client) -> None:
    future = server.long_completion()
    with pytest.raises(requests.ReadTimeout):
        server.post("/sleep?mode=wait", timeout=0.5)
    assert server.is_sleeping()
    assert choice_of(future)["tokens"] == LONG
    server.until(lambda: gauge_is(server, LEVEL_1))


# ---- metrics ------------------------------------------------------------------------------------


def test_the_request_gauges(server: Client) -> None:
    response = server.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
        assert server.metrics(name) == {f'engine="0",model_name="{MODEL}"': 0.0}
        assert f"# TYPE {name} gauge" in response.text
    future = server.long_completion()
    assert (server.running(), server.waiting()) == (1, 0)
    choice_of(future)
    server.until(lambda: server.running() == 0)


def test_the_start_time_of_the_process(server: Client) -> None:
    def started() -> float:
        (value,) = re.findall(r"^process_start_time_seconds (\S+)$", server.get("/metrics").text, re.MULTILINE)
        return float(value)

    first = started()
    ticks = float(Path(f"/proc/{server.server.pid}/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    born = time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    # The stand-in has been importing for a while when it looks at the clock.
    assert -2 < first - born < 60
    server.fall_asleep()
    assert started() == first
    server.awake()
    assert started() == first


def test_the_counters_of_what_was_done(server: Client) -> None:
    def counted() -> metrics.Counters:
        return metrics.counters(server.get("/metrics").text)

    before = counted()
    assert server.complete(tokens=8).status_code == 200
    server.until(lambda: counted().requests == (before.requests or 0) + 1)
    after = counted()
    assert after.generation_tokens == (before.generation_tokens or 0) + 8
    assert (after.prompt_tokens or 0) > (before.prompt_tokens or 0)
    server.fall_asleep()
    server.awake()
    assert counted() == after


@where(gauge=True)
def test_the_sleep_gauge_and_its_labels(server: Client) -> None:
    labels = f'engine="0",model_name="{MODEL}",sleep_state='
    assert server.metrics("vllm:engine_sleep_state") == {f'{labels}"{name}"': value for name, value in AWAKE.items()}
    assert "# TYPE vllm:engine_sleep_state gauge" in server.get("/metrics").text


@where(times=True)
def test_the_durations_of_sleeps_and_wakes(server: Client) -> None:
    count = "vllm:sleep_mode_operation_duration_seconds_count"
    before = server.metrics(count)
    server.fall_asleep()
    server.awake()
    after = server.metrics(count)
    for operation in ('operation="sleep"', 'operation="wake"'):
        assert after[operation] == before.get(operation, 0) + 1


@where(gauge=False)
def test_the_oldest_servers_have_no_sleep_gauge(server: Client) -> None:
    assert not re.search("^vllm:.*sleep", server.get("/metrics").text, re.MULTILINE)


# ---- the OpenAI API -----------------------------------------------------------------------------


def test_a_completion(server: Client) -> None:
    body = server.complete(tokens=8).json()
    assert re.fullmatch(r"cmpl-[0-9a-f]+", body["id"])
    assert (body["object"], body["model"]) == ("text_completion", MODEL)
    assert abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert (choice["index"], choice["logprobs"], choice["finish_reason"], choice["stop_reason"]) == (
        (0, None, "length", None)
    )
    usage = body["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8
    assert server.complete(tokens=8).json()["choices"] == body["choices"], "greedy: the same every time"


def test_a_prompt_may_be_the_ids_of_its_tokens(server: Client) -> None:
    ids = [3 + index % 97 for index in range(MAX_MODEL_LEN - 1)]
    for length in (1, 100, len(ids)):
        answer = server.complete(ids[:length], 1)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["prompt_tokens"] == length
        assert answer.json()["usage"]["completion_tokens"] == 1
    assert [len(server.complete(several, 1).json()["choices"]) for several in ([ids[:5], ids[:7]], [ids[:5]])] == [2, 1]
    error_of(server.complete([*ids, 3], 1), 400)
    assert server.is_sleeping() is False
    assert server.metrics("vllm:spec_decode_num_draft_tokens_total") == {}  # none without a draft


def test_a_completion_of_two_prompts_and_16_tokens_unless_told(server: Client) -> None:
    body = server.complete(prompt=["hello", "you"], tokens=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["usage"]["completion_tokens"] == 4
    body = server.post("/v1/completions", json={"prompt": "hello", "temperature": 0, "ignore_eos": True}).json()
    assert body["usage"]["completion_tokens"] == 16


def test_a_chat_completion(server: Client) -> None:
    request = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    body = server.post("/v1/chat/completions", json=request).json()
    assert re.fullmatch(r"chatcmpl-[0-9a-f]+", body["id"])
    assert (body["object"], body["model"]) == ("chat.completion", MODEL)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert body["usage"]["completion_tokens"] == 8


def test_an_alias_is_answered_under_the_first_name_and_no_name_is_enough(server: Client) -> None:
    for name in (ALIAS, None):
        response = server.complete(model=name)
        assert (response.status_code, response.json()["model"]) == (200, MODEL)


def test_two_models_give_different_answers(server: Client, guarded: Server) -> None:
    request = {"model": OTHER, "prompt": "hello", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {API_KEY}"}
    other = guarded.call("POST", "/v1/completions", json=request, headers=headers).json()
    assert other["choices"][0]["text"] != server.text("hello", 24)


def test_an_unknown_model_is_404(server: Client) -> None:
    asks: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "a"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    }
    for path, more in asks.items():
        error = error_of(server.post(path, json={"model": "nope", **more}), 404)
        assert error["type"] == "NotFoundError"
        assert error["message"].startswith("The model `nope` does not exist.")


@where(speaks=True)
def test_wrong_requests_are_400(server: Client) -> None:
    too_long = error_of(server.complete(tokens=99999), 400)
    assert too_long["message"].startswith(f"max_tokens=99999 cannot be greater than max_model_len={MAX_MODEL_LEN}.")
    assert error_of(server.complete(tokens=0), 400)["param"] == "max_tokens"
    assert error_of(server.complete(prompt=""), 400)["param"] == "prompt"
    json_type = {"Content-Type": "application/json"}
    error = error_of(server.post("/v1/completions", data='{"model":', headers=json_type), 400)
    assert "json_invalid" in error["message"]
    error = error_of(server.post("/v1/completions", data="{}", headers={"Content-Type": "text/plain"}), 400)
    assert "Only 'application/json' is allowed" in error["message"]
    error = error_of(server.post("/v1/chat/completions", json={"model": MODEL}), 400)
    assert error["param"] == "body.messages"


def test_a_streamed_completion(server: Client) -> None:
    events = events_of(server.complete(tokens=12, stream=True))
    assert len({event["id"] for event in events}) == 1
    assert {(event["object"], event["model"]) for event in events} == {("text_completion", MODEL)}
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["length"]
    text = "".join(event["choices"][0]["text"] for event in events)
    assert text == server.text(tokens=12)
    assert not any(event.get("usage") for event in events)


def test_a_streamed_chat_with_usage(server: Client) -> None:
    request = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
        "temperature": 0,  # else another token each time, and some have no text
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first, *middle, last = events_of(server.post("/v1/chat/completions", json=request))
    assert first["object"] == "chat.completion.chunk"
    # 0.12 has keys without a value.
    deltas = [
        {name: value for name, value in event["choices"][0]["delta"].items() if value is not None}
        for event in (first, *middle)
    ]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all(list(delta) == ["content"] for delta in deltas[1:])
    assert middle[-1]["choices"][0]["finish_reason"] == "length"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]


# ---- the access log -----------------------------------------------------------------------------


def test_the_access_log_names_method_path_query_and_status(server: Client) -> None:
    mark = server.server.mark()
    server.post("/wake_up?tags=scheduling")
    server.get("/is_sleeping")
    server.get("/nope")
    lines = [line for line in server.server.text()[mark:].splitlines() if " HTTP/1.1" in line]
    # Some versions put the name and the number of the process before it.
    assert [re.sub(r"127\.0\.0\.1:\d+", "CLIENT", line[line.index("INFO:") :]) for line in lines] == [
        'INFO:     CLIENT - "POST /wake_up?tags=scheduling HTTP/1.1" 200 OK',
        'INFO:     CLIENT - "GET /is_sleeping HTTP/1.1" 200 OK',
        'INFO:     CLIENT - "GET /nope HTTP/1.1" 404 Not Found',
    ]
    assert server.server.accesses("POST", mark) == ["POST /wake_up?tags=scheduling"]
