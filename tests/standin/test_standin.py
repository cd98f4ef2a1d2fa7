# SPDX-License-Identifier: MIT
"""What the stand-in does beyond tests/contract: what only a GPU shows, faults, and how it starts and ends."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serverlib import STANDIN, Server, free_port, start_standin
from tests.standin.gpu import GpuHost, OutOfMemory

Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start stand-ins that share 24 GB GPUs; each takes 20 GB unless told otherwise."""
    servers: list[Server] = []

    def run(model: str = "org/a", **options: Any) -> Server:
        defaults = {"gpu_dir": tmp_path / "gpu", "gpu_total_gb": 24, "vram_gb": 20}
        servers.append(start_standin(model, log=tmp_path / f"{len(servers)}.log", **{**defaults, **options}))
        return servers[-1]

    yield run
    for server in servers:
        server.stop()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def ask(server: Server, prompt: str = "hello", tokens: int = 12, **options: Any) -> requests.Response:
    return server.call("POST", "/v1/completions", json={"prompt": prompt, "max_tokens": tokens}, **options)


def text(server: Server) -> str:
    return ask(server).json()["choices"][0]["text"]


def post(server: Server, path: str, **options: Any) -> requests.Response:
    return server.call("POST", path, **options)


def state(server: Server) -> dict[str, Any]:
    return server.call("GET", "/standin/state").json()


def events(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "gpu" / "events.jsonl").read_text().splitlines()]


def held(tmp_path: Path) -> dict[str, float]:
    """Return how much of each GPU is held."""
    ledger = json.loads((tmp_path / "gpu" / "ledger.json").read_text())
    total: dict[str, float] = {}
    for entry in ledger.values():
        for gpu, gigabytes in entry["gpus"].items():
            total[gpu] = total.get(gpu, 0) + gigabytes
    return total


def until(condition: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- VRAM ---------------------------------------------------------------------------------------


def test_a_sleeping_model_leaves_its_memory_to_another(start: Start, tmp_path: Path) -> None:
    a = start("org/a", names=["a"])
    assert held(tmp_path) == {"0": 20}
    post(a, "/sleep?level=1")
    b = start("org/b", names=["b"], asleep_gb=0.5)
    post(b, "/sleep?level=2")
    assert held(tmp_path) == {"0": 0.5}
    post(a, "/wake_up?tags=weights")
    assert held(tmp_path) == {"0": 10.5}
    post(a, "/wake_up?tags=kv_cache")
    assert held(tmp_path) == {"0": 20.5}
    b.stop()
    assert held(tmp_path) == {"0": 20}
    assert [(event["model"], event["event"], event.get("level")) for event in events(tmp_path)] == [
        ("a", "loading", None),
        ("a", "awake", None),
        ("a", "sleeping", 1),
        ("b", "loading", None),
        ("b", "awake", None),
        ("b", "sleeping", 2),
        ("a", "waking", None),
        ("a", "partly_awake", 1),
        ("a", "waking", None),
        ("a", "awake", None),
        ("b", "dead", None),
    ]


def test_loading_into_a_full_gpu_ends_with_the_real_message(start: Start) -> None:
    start("org/a")
    b = start("org/b", wait=False)
    assert b.wait_end() == 1
    assert (
        "ValueError: Free memory on device cuda:0 (4.00/24.00 GiB) on startup is less than desired GPU memory "
        "utilization (0.83, 20.00 GiB)." in b.text()
    )


def test_waking_into_a_full_gpu_is_500_and_kills_the_engine(start: Start) -> None:
    a = start("org/a")
    post(a, "/sleep")
    start("org/b")
    response = post(a, "/wake_up")
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "InternalServerError"
    assert a.call("GET", "/health").status_code == 503
    assert a.wait_end() == 1
    assert "CUDA out of memory" in a.text()


def test_models_on_other_gpus_do_not_meet(start: Start, tmp_path: Path) -> None:
    start("org/a", gpus="0,1", flags=["--enable-sleep-mode", "--tensor-parallel-size", "2"])
    start("org/b", gpus="2")
    assert held(tmp_path) == {"0": 20, "1": 20, "2": 20}
    assert start("org/c", gpus="1,2", wait=False).wait_end() == 1


def test_the_memory_of_a_killed_server_is_free(start: Start, tmp_path: Path) -> None:
    a = start("org/a")
    a.kill()
    start("org/b")
    assert held(tmp_path) == {"0": 20}
    assert [event["event"] for event in events(tmp_path) if event["pid"] == a.pid][-1] == "dead"


def test_servers_in_containers_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # There each is process 1 of its own, and none sees the others'.
    monkeypatch.setattr("os.getpid", lambda: 1)
    a, b = (GpuHost(tmp_path / "gpu", ("0",), 24, name) for name in "ab")
    a.hold(20)
    with pytest.raises(OutOfMemory):
        b.hold(20)
    a.life.close()  # as the kernel does when the process ends
    b.hold(20)
    assert held(tmp_path) == {"0": 20}
    assert [(event["event"], event["id"], event["model"], event["pid"]) for event in events(tmp_path)] == [
        ("dead", a.id, "a", 1)
    ]


def test_without_sleep_mode_the_calls_answer_and_free_nothing(start: Start, tmp_path: Path) -> None:
    a = start("org/a", flags=[])
    assert post(a, "/sleep?level=2").json() == {"status": "sleeping", "level": 2}
    assert a.call("GET", "/is_sleeping").json() == {"is_sleeping": True}
    assert held(tmp_path) == {"0": 20}


def test_memory_follows_from_the_utilization(start: Start, tmp_path: Path) -> None:
    start("org/a", vram_gb="", flags=["--gpu-memory-utilization", "0.5"])
    assert held(tmp_path) == {"0": 12}


# ---- drafts -------------------------------------------------------------------------------------


def accepted(server: Server) -> float:
    """Return the share of drafted tokens that was accepted in one completion."""
    counts = []
    for turn in range(2):
        if turn:
            ask(server, tokens=40).raise_for_status()
        lines = server.call("GET", "/metrics").text.splitlines()
        names = [f"vllm:spec_decode_num_{what}_tokens_total" for what in ("draft", "accepted")]
        named = [next(line for line in lines if line.startswith(name)) for name in names]
        counts.append([float(line.rsplit(" ", 1)[1]) for line in named])
    (drafted, right), (drafted_then, right_then) = counts
    return (right_then - right) / (drafted_then - drafted)


@pytest.mark.parametrize(
    ("method", "level", "reloads", "share"),
    [("eagle3", 1, 0, 0.6), ("eagle3", 2, 0, 0.0), ("eagle3", 2, 1, 0.6), ("ngram", 2, 0, 0.6)],
)
def test_no_version_reloads_a_draft_model_after_level_2(
    start: Start, method: str, level: int, reloads: int, share: float
) -> None:
    said = json.dumps({"method": method, "num_speculative_tokens": 3})
    a = start("org/a", flags=["--enable-sleep-mode", "--speculative-config", said], reloads_drafts=reloads)
    assert accepted(a) == pytest.approx(0.6)
    right = text(a)
    post(a, f"/sleep?level={level}")
    post(a, "/wake_up?tags=weights")
    post(a, "/collective_rpc", json={"method": "reload_weights"})
    post(a, "/wake_up?tags=kv_cache")
    assert accepted(a) == pytest.approx(share)
    assert text(a) == right


# ---- level 2, and what kills an engine ----------------------------------------------------------


@pytest.mark.parametrize("version", ["0.32.0", "0.11.0"])
def test_after_level_2_the_text_is_wrong_until_the_weights_are_reloaded(start: Start, version: str) -> None:
    a = start("org/a", version=version)
    right = text(a)
    post(a, "/sleep?level=2")
    post(a, "/wake_up")
    wrong = text(a)
    assert wrong != right
    assert len(wrong.split()) == 12
    post(a, "/collective_rpc", json={"method": "reload_weights"})
    assert text(a) == right


def test_the_level_of_the_first_sleep_holds(start: Start) -> None:
    a = start("org/a")
    right = text(a)
    for levels, kept in ((("1", "2"), True), (("2", "1"), False)):
        for level in levels:
            post(a, f"/sleep?level={level}")
        assert str(state(a)["level"]) == levels[0]
        post(a, "/wake_up")
        assert (text(a) == right) is kept


def test_reloading_weights_that_sleep_kills_the_engine(start: Start) -> None:
    a = start("org/a")
    post(a, "/sleep?level=2")
    assert post(a, "/collective_rpc", json={"method": "reload_weights"}).status_code == 500
    assert a.wait_end() == 1


def test_an_old_engine_dies_of_a_request_while_it_sleeps(start: Start) -> None:
    a = start("org/a", version="0.11.0")
    post(a, "/sleep")
    until(lambda: a.call("GET", "/is_sleeping").json()["is_sleeping"])
    assert ask(a).status_code == 500
    assert a.call("GET", "/health").status_code == 503
    assert a.wait_end() == 1
    assert "illegal memory access" in a.text()


def test_an_old_engine_dies_of_a_sleep_while_a_request_runs(start: Start, pool: ThreadPoolExecutor) -> None:
    a = start("org/a", version="0.11.0", tokens_per_second=100)
    future = pool.submit(ask, a, "hello", 200)
    until(lambda: state(a)["requests"] == 1)
    post(a, "/sleep")
    assert future.result().status_code == 500
    assert a.wait_end() == 1


def test_an_old_engine_dies_of_a_bare_wake_when_it_is_partly_awake(start: Start) -> None:
    a = start("org/a", version="0.11.0")
    post(a, "/sleep")
    post(a, "/wake_up?tags=weights")
    until(lambda: state(a)["asleep"] == ["kv_cache"])
    post(a, "/sleep")
    post(a, "/wake_up")
    assert a.wait_end() == 1


def test_calls_wait_while_memory_moves_but_health_does_not(start: Start, pool: ThreadPoolExecutor) -> None:
    a = start("org/a", sleep_seconds=2)
    began = time.monotonic()
    future = pool.submit(post, a, "/sleep")
    until(lambda: state(a)["paused"] == "new")
    assert a.call("GET", "/health").status_code == 200
    assert "vllm:num_requests_running" in a.call("GET", "/metrics").text
    assert not future.done()
    assert a.call("GET", "/is_sleeping").json() == {"is_sleeping": True}
    assert time.monotonic() - began >= 2
    assert future.result().status_code == 200


# ---- what differs from version to version -------------------------------------------------------

# Without sleep mode a server is as one on a CPU: it frees nothing, so that no engine dies of what it is asked.
CPU: dict[str, Any] = {"flags": [], "tokens_per_second": 200}
FAMILIES = ("0.11.0", "0.12.0", "0.16.0", "0.17.1", "0.20.2", "0.29.0", "0.32.0")
OLD, MIDDLE, LATE, NEW = FAMILIES[:3], FAMILIES[3:5], FAMILIES[5:6], FAMILIES[6:]


def asleep(server: Server) -> bool:
    return bool(server.call("GET", "/is_sleeping").json()["is_sleeping"])


def gauge(server: Server) -> str:
    """The sleep state whose gauge is 1; "nothing" where none is."""
    lines = [line for line in server.call("GET", "/metrics").text.splitlines() if "sleep_state=" in line]
    on = [line.split('sleep_state="')[1].split('"')[0] for line in lines if line.endswith(" 1.0")]
    return on[0] if on else "nothing" if lines else "not there"


def running(server: Server) -> int:
    (line,) = re.findall(r"^vllm:num_requests_running.* (\S+)$", server.call("GET", "/metrics").text, re.MULTILINE)
    return int(float(line))


def begin(pool: ThreadPoolExecutor, server: Server, tokens: int = 100, wait: bool = True) -> Future[requests.Response]:
    future = pool.submit(ask, server, "hello", tokens)
    if wait:
        until(lambda: running(server) == 1)
    return future


def finish(future: Future[requests.Response]) -> tuple[str, int]:
    """How a completion ended, and after how many tokens."""
    body = future.result(60).json()
    return body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]


@pytest.mark.parametrize("version", FAMILIES)
def test_what_becomes_of_requests_when_a_server_sleeps(start: Start, pool: ThreadPoolExecutor, version: str) -> None:
    a = start("org/a", version=version, **CPU)
    future = begin(pool, a)
    assert post(a, "/reset_prefix_cache").text == ('{"success":false}' if version in LATE + NEW else "")
    assert post(a, "/sleep").text == ('{"status":"sleeping","level":1}' if version in NEW else "")
    assert asleep(a)
    reason, tokens = finish(future)
    assert (reason, tokens == 100) == (("length", True) if version in OLD else ("abort", False))

    assert post(a, "/wake_up").text == ('{"status":"awake","tags":null}' if version in NEW else "")
    future = begin(pool, a)
    post(a, "/sleep?level=2&mode=wait")
    assert (running(a) == 1) == (version in OLD)
    assert finish(future) == ("length", 100)

    # Before 0.17 whatever comes runs.
    future = begin(pool, a, 20, wait=False)

    def is_done(expected: bool) -> bool:
        if expected:
            future.result(60)
        else:
            time.sleep(0.4)
        return future.done()

    assert is_done(version in OLD) == (version in OLD)
    # What is held runs with whatever is in the weights, where the first tag wakes the scheduler.
    post(a, "/wake_up?tags=weights")
    assert is_done(version in OLD + MIDDLE) == (version in OLD + MIDDLE)
    assert gauge(a) == {"0.11.0": "not there", "0.32.0": "discard_all"}.get(version, "awake")
    assert asleep(a)
    post(a, "/wake_up?tags=kv_cache")
    assert finish(future) == ("length", 20)
    assert not asleep(a)


def test_on_a_gpu_a_request_before_the_reload_is_the_engine_s_death(start: Start, pool: ThreadPoolExecutor) -> None:
    a = start("org/a", version="0.20.2")
    post(a, "/sleep?level=2")
    future = begin(pool, a, 20, wait=False)
    until(lambda: state(a)["requests"] == 1)
    post(a, "/wake_up?tags=weights")
    assert future.result(60).status_code == 500
    assert a.wait_end() == 1


@pytest.mark.parametrize("version", FAMILIES)
def test_what_is_said_of_a_sleep(start: Start, version: str) -> None:
    a = start("org/a", version=version)
    right = text(a)
    told = 400 if version in NEW else 200
    words = 400 if version >= "0.20" else 500
    assert post(a, "/sleep?level=abc").status_code == words
    assert not asleep(a)
    assert post(a, "/sleep?level=3").status_code == told
    assert asleep(a) == (told == 200)
    post(a, "/wake_up")
    post(a, "/collective_rpc", json={"method": "reload_weights"})

    # Level 0 is a pause, and before 0.17 a sleep that keeps nothing.
    post(a, "/sleep?level=0")
    assert (asleep(a), gauge(a)) == (True, "not there" if version == "0.11.0" else "nothing")
    assert bool(state(a)["asleep"]) == (version in OLD)
    post(a, "/wake_up")
    assert (text(a) == right) == (version not in OLD)
    post(a, "/collective_rpc", json={"method": "reload_weights"})

    # The first of two sleeps holds, and the gauge tells the second.
    post(a, "/sleep?level=1")
    post(a, "/sleep?level=2")
    assert gauge(a) == ("not there" if version == "0.11.0" else "discard_all")
    post(a, "/wake_up?tags=weights,kv_cache")  # one tag, which there is not
    assert asleep(a)
    post(a, "/wake_up")
    assert text(a) == right

    # What is half awake sleeps no more.
    post(a, "/sleep?level=2")
    post(a, "/wake_up?tags=weights")
    post(a, "/sleep?level=2")
    assert (state(a)["asleep"] == ["kv_cache", "weights"]) == (version in NEW)

    # After a reload that failed nothing tells that the weights are wrong.
    a.fault("/collective_rpc", "status_500")
    post(a, "/wake_up?tags=weights")
    assert post(a, "/collective_rpc", json={"method": "reload_weights"}).status_code == 500
    # A wake without tags would be the death of the oldest.
    post(a, "/wake_up?tags=kv_cache" if version in OLD else "/wake_up")
    assert (asleep(a), gauge(a)) == (False, "not there" if version == "0.11.0" else "awake")
    assert text(a) != right


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("dev_mode", [True, False])
def test_where_a_server_can_be_paused(start: Start, version: str, dev_mode: bool) -> None:
    a = start("org/a", version=version, dev_mode=dev_mode)
    there = version != "0.11.0" and (dev_mode or version == "0.12.0")
    for path, body in (("/pause", {"status": "paused"}), ("/resume", {"status": "resumed"})):
        response = post(a, path)
        assert response.status_code == (200 if there else 404)
        assert not there or response.json() == body


@pytest.mark.parametrize("version", ["0.12.0", "0.16.0"])
def test_an_old_pause_drains_and_holds_what_comes_until_it_is_resumed(
    start: Start, pool: ThreadPoolExecutor, version: str
) -> None:
    a = start("org/a", version=version, tokens_per_second=200)
    first = begin(pool, a, 600)
    pause = pool.submit(post, a, "/pause?wait_for_inflight_requests=true")
    until(lambda: state(a)["door_shut"])
    assert not asleep(a)
    late = begin(pool, a, 5, wait=False)
    until(lambda: state(a)["held"] == 1)
    is_paused = pool.submit(a.call, "GET", "/is_paused")
    if version == "0.12.0":
        is_paused.result(60)
        assert not pause.done()
    else:
        time.sleep(0.1)
        assert not is_paused.done()
    assert pause.result(60).json() == {"status": "paused"}
    assert is_paused.result(60).json() == {"is_paused": True}
    assert finish(first) == ("length", 600)
    assert running(a) == 0
    post(a, "/sleep")
    post(a, "/wake_up?tags=weights")
    post(a, "/wake_up?tags=kv_cache")
    time.sleep(0.3)
    assert not late.done()
    post(a, "/resume")
    assert finish(late) == ("length", 5)


def test_an_old_pause_cuts_what_runs_unless_it_is_paused_already(start: Start, pool: ThreadPoolExecutor) -> None:
    a = start("org/a", version="0.12.0", tokens_per_second=200)
    first = begin(pool, a, 2000)
    pool.submit(post, a, "/pause?wait_for_inflight_requests=true")
    until(lambda: state(a)["door_shut"])
    assert pool.submit(post, a, "/pause").result(60).json() == {"status": "paused"}
    assert running(a) == 1
    post(a, "/resume")
    post(a, "/pause")
    assert finish(first)[0] == "abort"


@pytest.mark.parametrize("version", ["0.17.1", "0.32.0"])
def test_a_new_pause_is_the_scheduler_s_and_a_wake_lifts_it(
    start: Start, pool: ThreadPoolExecutor, version: str
) -> None:
    a = start("org/a", version=version)
    post(a, "/pause")
    assert (asleep(a), gauge(a)) == (True, "awake")
    late = begin(pool, a, 5, wait=False)
    until(lambda: state(a)["requests"] == 1)
    post(a, "/wake_up")
    assert finish(late) == ("length", 5)
    post(a, "/pause")
    late = begin(pool, a, 5, wait=False)
    until(lambda: state(a)["requests"] == 1)
    post(a, "/sleep")
    assert finish(late) == ("abort", 0)


@pytest.mark.parametrize(("version", "status"), [("0.12.0", 500), ("0.16.0", 200), ("0.17.1", 500)])
def test_what_is_said_of_a_completion_whose_engine_dies(
    start: Start, pool: ThreadPoolExecutor, version: str, status: int
) -> None:
    a = start("org/a", version=version, tokens_per_second=200)
    future = begin(pool, a, 2000)
    a.fault("/health", "oom")
    a.call("GET", "/health")
    response = future.result(60)
    assert (response.status_code, response.json()["error"]["code"]) == (status, 500)


@pytest.mark.parametrize("version", ["0.12.0", "0.16.0"])
def test_sigterm_waits_for_what_runs_before_0_13(start: Start, pool: ThreadPoolExecutor, version: str) -> None:
    a = start("org/a", version=version, tokens_per_second=200)
    future = begin(pool, a, 200)
    a.process.terminate()
    assert a.wait_end() == 0
    if version == "0.12.0":
        assert finish(future) == ("length", 200)
    else:
        with pytest.raises(requests.ConnectionError):
            future.result(60)


# ---- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        ("status_500", 500, '"type":"InternalServerError"'),
        ("empty_200", 200, ""),
        ("html", 200, "<!DOCTYPE html>"),
        ("wrong_json", 200, '{"unexpected":["shape"]}'),
        ("not_done", 200, '{"status":"sleeping","level":1}'),
        ("redirect", 302, ""),
        ("unauthorized", 401, '{"error":"Unauthorized"}'),
    ],
)
def test_answers_that_are_wrong(start: Start, fault: str, status: int, body: str) -> None:
    a = start("org/a")
    a.fault("/sleep", fault)
    response = post(a, "/sleep", allow_redirects=False)
    assert response.status_code == status
    assert body in response.text
    assert state(a)["asleep"] == []
    assert a.call("GET", "/standin/faults").json() == []
    assert post(a, "/sleep").json() == {"status": "sleeping", "level": 1}


def test_connections_that_break(start: Start) -> None:
    a = start("org/a")
    a.fault("/is_sleeping", "refuse")
    with pytest.raises(requests.ConnectionError):
        a.call("GET", "/is_sleeping")
    a.fault("/is_sleeping", "reset_mid_body")
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        a.call("GET", "/is_sleeping")
    assert a.call("GET", "/is_sleeping").status_code == 200


def test_answers_that_are_slow(start: Start) -> None:
    a = start("org/a")
    a.fault("/is_sleeping", "hang", seconds=0.4)
    a.fault("/is_sleeping", "slow_drip", seconds=0.4)
    for _turn in range(2):
        started = time.monotonic()
        assert a.call("GET", "/is_sleeping").json() == {"is_sleeping": False}
        assert time.monotonic() - started > 0.35
    a.fault("/is_sleeping", "hang", times=0)
    for _turn in range(2):
        with pytest.raises(requests.ReadTimeout):
            a.call("GET", "/is_sleeping", timeout=0.2)
    a.call("DELETE", "/standin/faults")
    assert a.call("GET", "/is_sleeping").status_code == 200


def test_an_answer_that_comes_later_than_what_it_tells(start: Start, pool: ThreadPoolExecutor) -> None:
    a = start("org/a")
    a.fault("/sleep", "slow", seconds=2)
    future = pool.submit(post, a, "/sleep?level=1")
    until(lambda: asleep(a))
    assert not future.done()
    assert future.result(20).json() == {"status": "sleeping", "level": 1}


def test_a_server_that_takes_no_connection_for_a_while(start: Start, pool: ThreadPoolExecutor) -> None:
    a = start("org/a")
    a.fault("/health", "full", seconds=1.0)
    began = time.monotonic()
    future = pool.submit(a.call, "GET", "/health")
    time.sleep(0.3)
    with socket.socket() as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.connect(("127.0.0.1", a.port))
    assert future.result(20).status_code == 200
    assert time.monotonic() - began >= 1
    assert a.call("GET", "/health").status_code == 200


@pytest.mark.parametrize(
    ("fault", "beginning"),
    [("deep_json", "[[["), ("odd_numbers", "vllm:num_requests_running"), ("two_engines", "vllm:num_requests_running")],
)
def test_answers_that_no_parser_expects(start: Start, fault: str, beginning: str) -> None:
    a = start("org/a")
    a.fault("/metrics", fault)
    answer = a.call("GET", "/metrics")
    assert answer.status_code == 200
    assert answer.text.startswith(beginning)
    assert "num_requests_running" in a.call("GET", "/metrics").text


def test_servers_that_die(start: Start, tmp_path: Path) -> None:
    a = start("org/a", names=["a"])
    a.fault("/sleep", "die_after_200")
    assert post(a, "/sleep").json() == {"status": "sleeping", "level": 1}
    assert a.wait_end() == -9
    b = start("org/b")
    b.fault("/sleep", "kill")
    with pytest.raises(requests.ConnectionError):
        post(b, "/sleep")
    assert b.wait_end() == -9
    c = start("org/c")
    c.fault("/wake_up", "oom")
    assert post(c, "/wake_up").status_code == 500
    assert c.wait_end() == 1
    assert "CUDA out of memory" in c.text()
    assert [event["model"] for event in events(tmp_path) if event["event"] == "dead"] == ["a", "org/b", "org/c"]


def test_a_fault_may_be_for_one_call_only(start: Start) -> None:
    a = start("org/a")
    post(a, "/sleep")
    a.fault("/wake_up", "status_500", match="tags=kv_cache", skip=1, times=2)
    calls = ["/wake_up?tags=weights", "/wake_up?tags=kv_cache", "/wake_up?tags=kv_cache", "/wake_up?tags=kv_cache"]
    assert [post(a, call).status_code for call in calls] == [200, 200, 500, 500]
    assert post(a, "/standin/faults", json={"path": "/sleep", "fault": "nope"}).status_code == 400


def test_a_fault_may_wait_for_another_call(start: Start) -> None:
    a = start("org/a")
    a.fault("/health", "status_500", after="/sleep")
    assert a.call("GET", "/health").status_code == 200
    post(a, "/sleep?level=0")
    assert [a.call("GET", "/health").status_code for _turn in range(2)] == [500, 200]


def test_wrong_text(start: Start) -> None:
    a = start("org/a")
    right = text(a)
    a.fault("/v1/completions", "wrong_text")
    assert text(a) != right
    assert text(a) == right


@pytest.mark.parametrize(
    ("fault", "status", "line"),
    [
        ("die", 1, "No supported config format found"),
        ("oom", 1, "CUDA out of memory"),
        ("kill", -9, "Starting to load"),
    ],
)
def test_faults_while_loading(start: Start, fault: str, status: int, line: str) -> None:
    a = start("org/a", wait=False, faults=json.dumps([{"path": "load", "fault": fault}]))
    assert a.wait_end() == status
    assert line in a.text()


def test_hanging_while_loading(start: Start) -> None:
    a = start("org/a", wait=False, faults=json.dumps([{"path": "load", "fault": "hang"}]))
    with pytest.raises(TimeoutError):
        a.wait_ready(1)
    started = time.monotonic()
    a.process.terminate()
    a.wait_end()
    assert time.monotonic() - started < 20  # it would hang for an hour


def test_answers_that_come_early_late_or_never(start: Start) -> None:
    a = start("org/a")
    a.fault("/sleep", "early")
    assert post(a, "/sleep").json() == {"status": "sleeping", "level": 1}
    assert state(a)["asleep"] == []
    until(lambda: bool(state(a)["asleep"]))
    post(a, "/wake_up")
    a.fault("/sleep", "late")
    with pytest.raises(requests.ReadTimeout):
        post(a, "/sleep", timeout=0.1)
    assert state(a)["asleep"] == []
    until(lambda: bool(state(a)["asleep"]))
    a.fault("/wake_up", "lost")
    with pytest.raises(requests.ConnectionError):
        post(a, "/wake_up")
    assert state(a)["asleep"] == []


def test_who_comes_after_a_late_wake_has_to_wait_for_it(start: Start, tmp_path: Path) -> None:
    a = start("org/a")
    post(a, "/sleep")
    for _each in range(2):
        a.fault("/wake_up", "late", seconds=3)
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout):
            post(a, "/wake_up", timeout=0.1)
    assert a.call("GET", "/version").ok
    assert state(a)["asleep"]
    # Its client gives up, too, and still it is done in its turn.
    with pytest.raises(requests.ReadTimeout):
        post(a, "/sleep", timeout=0.1)
    until(lambda: asleep(a))
    assert time.monotonic() - began >= 3
    assert [one["event"] for one in events(tmp_path)][-3:] == ["waking", "awake", "sleeping"]


def test_servers_that_live_but_do_not_answer(start: Start) -> None:
    a, b = start("org/a"), start("org/b", vram_gb=1)
    a.fault("/health", "deaf")
    for _turn in range(2):
        with pytest.raises(requests.ConnectionError):
            a.call("GET", "/health")
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", a.port)) != 0
    assert a.alive
    b.fault("/health", "freeze")
    for _turn in range(2):
        with pytest.raises(requests.ReadTimeout):
            b.call("GET", "/health", timeout=0.3)
    assert b.alive
    b.kill()


def test_faults_in_a_file_outlive_the_server_until_the_file_is_removed(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    a = start("org/a", faults_file=file)
    orders = [{"path": "/sleep", "fault": "empty_200", "skip": 1, "times": 2}, {"path": "load", "fault": "die"}]
    file.write_text(json.dumps(orders))
    assert [bool(post(a, "/sleep?level=0").content) for _turn in range(2)] == [True, False]
    a.stop()
    assert start("org/a", faults_file=file, wait=False).wait_end() == 1
    a = start("org/a", faults_file=file)
    assert [bool(post(a, "/sleep?level=0").content) for _turn in range(2)] == [False, True]
    file.write_text(json.dumps([{"path": "*", "fault": "status_500", "times": 0}]))
    calls = ("/health", "/is_sleeping", "/standin/state")
    assert [a.call("GET", path).status_code for path in calls] == [500, 500, 200]
    file.unlink()
    assert a.call("GET", "/health").status_code == 200


def test_a_server_that_ignores_sigterm(start: Start) -> None:
    a = start("org/a", faults=json.dumps([{"path": "term", "fault": "hang"}]))
    a.process.terminate()
    time.sleep(0.2)
    assert a.call("GET", "/health").status_code == 200
    a.process.terminate()
    assert a.wait_end() == 0


# ---- start and end ------------------------------------------------------------------------------


def test_sigterm_ends_it_quickly_also_with_a_request_running(
    start: Start, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    a = start("org/a", tokens_per_second=10)
    future = pool.submit(ask, a, "hello", 1000)
    until(lambda: state(a)["requests"] == 1)
    started = time.monotonic()
    a.process.terminate()
    assert a.wait_end() == 0
    assert time.monotonic() - started < 20  # the answer would take 100 s
    assert held(tmp_path) == {}
    with pytest.raises(requests.ConnectionError):
        future.result()


def test_the_command_line_is_checked_as_vllm_does() -> None:
    command = [sys.executable, str(STANDIN), "serve", "org/a", "--port", "nope"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert "argument --port: invalid int value: 'nope'" in result.stderr


def test_a_taken_port_is_noticed_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = start_standin("org/a", port=taken.getsockname()[1], wait=False, load_seconds=60)
        with server:
            assert server.wait_end(10) == 1
            assert "Address already in use" in server.text()


def test_flags_it_does_not_know_are_taken(start: Start) -> None:
    flags = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--max-model-len", "16k", "--dtype=auto"]
    a = start("org/a", names=["a", "b"], flags=flags, port=free_port())
    cards = a.call("GET", "/v1/models").json()["data"]
    assert [(card["id"], card["max_model_len"]) for card in cards] == [("a", 16000), ("b", 16000)]
