# SPDX-License-Identifier: MIT
"""What a server does, asked of itself: the rows of the table in docs/vllm-versions.md.

Every question is asked of an awake server that has nothing to do, and answered by what was seen, in few words. Nothing
here knows which version does what: the answers of a stand-in are compared with those of the real server.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future

import requests

from .client import LONG, Client

Question = Callable[[Client], str]
QUESTIONS: dict[str, Question] = {}
SOON = 0.7  # seconds in which the answer comes to a call that is ended at once


def question(text: str) -> Callable[[Question], Question]:
    """Make a function a row of the table."""

    def known(function: Question) -> Question:
        QUESTIONS[text] = function
        return function

    return known


def survey(client: Client) -> dict[str, str]:
    """Ask everything."""
    answers = {}
    client.recover()
    began = time.monotonic()
    client.complete("once", LONG)
    client.seconds_of_long = time.monotonic() - began
    for text, ask in QUESTIONS.items():
        client.recover()
        try:
            answers[text] = ask(client)
        except Exception as error:  # a row that can't be asked must not hide the others
            answers[text] = f"no answer: {type(error).__name__}: {str(error)[:200]}"
    client.recover()
    return answers


def told(response: requests.Response) -> str:
    """The status and the body's form."""
    body = response.text
    with contextlib.suppress(ValueError):
        body = str(list(response.json()))
    return f"{response.status_code}, {body[:60] or 'empty'}"


def ended(future: Future[requests.Response]) -> str:
    """How a completion ended."""
    response = future.result(90)
    body = response.json()
    if "choices" not in body:
        return f"{response.status_code}, {list(body)}"
    (choice,) = body["choices"]
    tokens = body["usage"]["completion_tokens"]
    size = "whole" if tokens == LONG or choice["finish_reason"] == "length" else "no token" if not tokens else "cut"
    return f"`{choice['finish_reason']}`, {size}"


def fate(future: Future[requests.Response], within: float = 2.0) -> str:
    """Whether a request is answered while it should perhaps be held."""
    with contextlib.suppress(TimeoutError):
        response = future.result(within)
        return "answered" if "choices" in response.json() else told(response)
    return "held"


def gauge(client: Client) -> str:
    """What the sleep gauge says."""
    found = client.sleep_gauge()
    on = [name for name, value in found.items() if value]
    return ("`" + "`, `".join(on) + "`" if on else "all 0") if found else "no gauge"


@question("`POST /sleep?level=1`")
def _sleep(client: Client) -> str:
    return told(client.post("/sleep?level=1"))


@question("`POST /wake_up`")
def _wake(client: Client) -> str:
    client.post("/sleep?level=1")
    return told(client.post("/wake_up"))


@question("`is_sleeping` at once after the answer of `/sleep`, and of `/wake_up`")
def _at_once(client: Client) -> str:
    seen = []
    for _time in range(4):
        client.post("/sleep?level=1")
        asleep = client.is_sleeping()
        client.post("/wake_up")
        seen.append((asleep, client.is_sleeping()))
    return "true, false" if set(seen) == {(True, False)} else str(seen)


@question("`/health` while asleep")
def _health(client: Client) -> str:
    client.post("/sleep?level=1")
    return told(client.get("/health"))


@question("a running request at `/sleep?level=1`")
def _running(client: Client) -> str:
    future = client.long_completion()
    client.post("/sleep?level=1")
    time.sleep(SOON)
    at_once = "" if future.done() else "runs on while asleep: "
    return at_once + ended(future)


@question("... at `/sleep?level=1&mode=wait`")
def _wait(client: Client) -> str:
    future = client.long_completion()
    response = client.post("/sleep?level=1&mode=wait", timeout=90)
    # The last token may have been made, and its answer be on its way; what runs on takes about twice as long.
    concurrent.futures.wait([future], client.seconds_of_long / 2)
    drained = "drained, then 200: " if future.done() else "200 at once: "
    assert response.status_code == 200
    return drained + ended(future)


@question("... at `/sleep?level=1&mode=keep`, then `/wake_up`")
def _keep(client: Client) -> str:
    future = client.long_completion()
    client.post("/sleep?level=1&mode=keep")
    # What runs on comes to its end in this time; what is kept doesn't.
    deadline = time.monotonic() + client.seconds_of_long * 1.5
    while not future.done() and time.monotonic() < deadline:
        time.sleep(0.1)
    kept = "runs on: " if future.done() else "kept: "
    client.post("/wake_up")
    return kept + ended(future)


@question("a new request while asleep (level 1)")
def _new_asleep(client: Client) -> str:
    client.post("/sleep?level=1")
    future = client.pool.submit(client.complete)
    seen = fate(future, 3)
    client.post("/wake_up")
    future.result(60)
    return seen


@question("... and after `/wake_up?tags=weights`, before a reload (level 2)")
def _held_half_awake(client: Client) -> str:
    client.post("/sleep?level=2")
    future = client.pool.submit(client.complete)
    if fate(future, 1.5) != "held":
        return "answered already"
    client.post("/wake_up?tags=weights")
    seen = fate(future, 3)
    client.reload()
    client.post("/wake_up?tags=kv_cache")
    future.result(60)
    return seen


@question("`is_sleeping`, sleep gauge: awake")
def _gauge_awake(client: Client) -> str:
    return f"{client.is_sleeping()}, {gauge(client)}".lower()


@question("... at level 0")
def _gauge_0(client: Client) -> str:
    # Before 0.17 that is a sleep, and nobody's wish.
    client.post("/sleep?level=0")
    return f"{client.is_sleeping()}, {gauge(client)}".lower()


@question("... at level 1")
def _gauge_1(client: Client) -> str:
    client.post("/sleep?level=1")
    return f"{client.is_sleeping()}, {gauge(client)}".lower()


@question("... at level 2")
def _gauge_2(client: Client) -> str:
    client.post("/sleep?level=2")
    return f"{client.is_sleeping()}, {gauge(client)}".lower()


@question("... after `/wake_up?tags=weights`")
def _gauge_half(client: Client) -> str:
    client.post("/sleep?level=2")
    client.post("/wake_up?tags=weights")
    return f"{client.is_sleeping()}, {gauge(client)}".lower()


@question("... and a plain `/wake_up` then, with no reload")
def _gauge_unloaded(client: Client) -> str:
    client.post("/sleep?level=2")
    client.post("/wake_up?tags=weights")
    response = client.post("/wake_up")
    return f"{response.status_code}: {client.is_sleeping()}, {gauge(client)}".lower()


@question("... asleep at level 1, asked for level 2")
def _gauge_twice(client: Client) -> str:
    client.post("/sleep?level=1")
    client.post("/sleep?level=2")
    return f"{client.is_sleeping()}, {gauge(client)}".lower()


@question("... while `mode=wait` drains")
def _gauge_draining(client: Client) -> str:
    future = client.long_completion()
    sleep = client.pool.submit(client.post, "/sleep?level=1&mode=wait", timeout=90)
    until = time.monotonic() + 2
    while not sleep.done() and not client.is_sleeping() and time.monotonic() < until:
        time.sleep(0.05)
    # One that does not drain sleeps before it has answered.
    concurrent.futures.wait([sleep], SOON)
    seen = "drains no more" if sleep.done() else f"{client.is_sleeping()}, {gauge(client)}".lower()
    sleep.result(90)
    future.result(90)
    return seen


@question("`/sleep?level=3`, `-1`, `x`, and `mode=drain`")
def _wrong(client: Client) -> str:
    seen = []
    for query in ("level=3", "level=-1", "level=x", "mode=drain"):
        seen.append(str(client.post(f"/sleep?{query}").status_code))
        client.recover()
    return ", ".join(seen)


@question("`POST /collective_rpc`: `reload_weights`, an unknown method")
def _rpc(client: Client) -> str:
    known, unknown = (client.post("/collective_rpc", json={"method": m}) for m in ("reload_weights", "nope"))
    return f"{told(known)}; {told(unknown)}"


@question("`POST /reset_prefix_cache`")
def _reset(client: Client) -> str:
    return told(client.post("/reset_prefix_cache"))


@question("... while a request runs")
def _reset_busy(client: Client) -> str:
    future = client.long_completion()
    response = client.post("/reset_prefix_cache")
    future.result(90)
    return f"{response.status_code}, {response.text or 'empty'}"


@question("`POST /pause`: without dev mode, with it")
def _pause(client: Client) -> str:
    without = client.guarded.call("POST", "/pause").status_code if client.guarded else 0
    if without == 200 and client.guarded:
        client.guarded.call("POST", "/resume")
    response = client.post("/pause")
    asleep = str(client.is_sleeping()).lower()
    return f"{without}, {response.status_code}" + (f"; `is_sleeping` {asleep}" if response.status_code == 200 else "")


@question("`POST /pause?wait_for_inflight_requests=true` with a running request")
def _pause_drains(client: Client) -> str:
    future = client.long_completion()
    pause = client.pool.submit(client.post, "/pause?wait_for_inflight_requests=true", timeout=90)
    response = pause.result(90)
    if response.status_code != 200:
        future.result(90)
        return str(response.status_code)
    concurrent.futures.wait([future], client.seconds_of_long / 2)
    return ("drained, then 200: " if future.done() else "200 at once: ") + ended(future)


@question("... a newcomer then: paused, asleep, awake, after `/resume`")
def _pause_holds(client: Client) -> str:
    if client.post("/pause?wait_for_inflight_requests=true", timeout=90).status_code != 200:
        return "no `/pause`"
    future = client.pool.submit(client.complete)
    seen = [fate(future)]
    for call in ("/sleep?level=1", "/wake_up", "/resume"):
        client.post(call)
        seen.append(fate(future))
    return ", ".join(seen) + ": " + ended(future)


@question("a request's gauges while asleep, with one held")
def _request_gauges(client: Client) -> str:
    client.post("/sleep?level=1")
    future = client.pool.submit(client.complete)
    if fate(future) != "held":
        return "none is held"
    seen = f"{client.running():.0f} running, {client.waiting():.0f} waiting"
    client.post("/wake_up")
    future.result(60)
    return seen


@question("an unknown model")
def _unknown_model(client: Client) -> str:
    response = client.complete(model="nope")
    return f"{response.status_code}, {list(response.json())}"


@question("`process_start_time_seconds` in `/metrics`")
def _started(client: Client) -> str:
    return "yes" if "\nprocess_start_time_seconds " in client.get("/metrics").text else "no"
