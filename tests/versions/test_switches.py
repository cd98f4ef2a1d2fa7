# SPDX-License-Identifier: MIT
"""Switches between two real servers of one version: under streams, with a reload that fails, and killed half way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.contract.families import Family
from tests.part import fewer
from tests.playbooklib import Ansible, is_sleeping
from tests.real.stack import A, B, Pair
from tests.real.test_soak import Client
from tests.serverlib import ROOT

pytestmark = pytest.mark.timeout(1800)  # vLLM has perhaps to be built first

SWITCHES = fewer("versions", "make vllm-versions", "switches under streams", 6, 4)
LEVELS = {1: SWITCHES - 2, 2: 2}
# About a minute.
LONG = {"max_tokens": 16000, "logprobs": 5}


class Asker(Client):
    """Asks its model for one stream after the other as long as it may."""

    def __init__(self, port: int, model: str, over: threading.Event) -> None:
        super().__init__(port, model, over)
        self.may = threading.Event()
        self.running = False

    def _read(self, session: requests.Session, stream: Any) -> None:
        while not self.may.wait(0.02):
            if self.over.is_set():
                self.streams.remove(stream)
                return
        self.running = True
        try:
            super()._read(session, stream)
        finally:
            self.running = False

    def until_running(self) -> None:
        """Wait until tokens come."""
        deadline = time.monotonic() + 120
        while not (self.running and self.streams[-1].text):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def patience(family: Family, level: int) -> str:
    """Until when a client may ask the model that is to go: what such a server does with a request that comes late."""
    if family.modes and not (level == 2 and family.runs_half_awake):
        return "always"  # it is held, and answered after the wake
    if family.pause == "drains":
        return "until it sleeps"
    return "until the switch begins"


@pytest.fixture
def settled(pair: Pair, orders: dict[str, Path]) -> Pair:
    """A active and B asleep at level 1, nothing ordered."""
    for folder in orders.values():
        for file in folder.iterdir():
            file.unlink()
    pair.settle()
    return pair


@pytest.mark.parametrize("level", list(LEVELS))
def test_no_switch_cuts_a_stream(
    settled: Pair, family: Family, level: int, capsys: pytest.CaptureFixture[str], record_property: Callable[..., None]
) -> None:
    for model in settled.host.models:
        model["sleep_level"] = level
    ansible = Ansible(settled.ansible.command, settled.ansible.inventory.parent, [settled.host])
    over = threading.Event()
    clients = {name: Asker(settled.host.port(name), name, over) for name in (A, B)}
    asks = patience(family, level)
    clients[A].may.set()
    if asks == "always":
        clients[B].may.set()
    for client in clients.values():
        client.start()
    drained = 0
    try:
        for number in range(LEVELS[level]):
            name, other = (B, A) if number % 2 == 0 else (A, B)
            clients[other].until_running()
            if asks == "until the switch begins":
                clients[other].may.clear()
            run = ansible.play("switch", "-e", f"model={name}", "-v")
            assert run.changed() == 1
            if asks == "until it sleeps":
                clients[other].may.clear()
            result = run.switched
            assert (result["active_model"], result["previous_model"]) == (name, other)
            assert result["requests"]["cut"] == 0, result
            assert awake(settled) == {name}
            drained += result["requests"]["drained"]
            clients[name].may.set()
    finally:
        over.set()
        # What waits for a wake gets it.
        for name in (B, A):
            settled.stack.switch(name)
        for client in clients.values():
            client.join(120)
    streams = [stream for client in clients.values() for stream in client.streams]
    truncated = [stream for stream in streams if not stream.whole]
    with capsys.disabled():
        print(
            f"\n{LEVELS[level]} switches at level {level}, {len(streams)} streams, {len(truncated)} truncated,"
            f" {drained} drained"
        )
    record_property("streams", len(streams))
    assert truncated == []
    assert not any(client.is_alive() for client in clients.values())
    for client in clients.values():
        assert len({stream.text for stream in client.streams}) == 1


def awake(pair: Pair) -> set[str]:
    """Return which models are awake; one that was stopped is not."""
    found = set()
    for name in (A, B):
        try:
            if not is_sleeping(pair.host.port(name)):
                found.add(name)
        except requests.ConnectionError:
            pass
    return found


# ---- a wake from level 2 that does not come to its end -------------------------------------------


@pytest.fixture
def deep(settled: Pair) -> Pair:
    """B active, A asleep at level 2, by name."""
    settled.stack.declare(sleep_level="2", drain_timeout_seconds=60)
    assert settled.stack.switch(B).status == 0
    return settled


def calls(orders: dict[str, Path], name: str) -> list[str]:
    """Return the posts that the server of a model was passed since the case began, with their status."""
    lines = (orders[name] / "calls").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("POST ") for line in lines if line.startswith("POST ")]


def check_reloaded(posts: list[str]) -> None:
    """No completion was asked for after the wake and before its weights were reloaded."""
    first = next((n for n, post in enumerate(posts) if post.startswith("/v1/")), len(posts))
    assert "/collective_rpc 200" in posts[:first], posts


def test_a_reload_that_fails_once(deep: Pair, orders: dict[str, Path]) -> None:
    text = deep.stack.text(B)
    before = len(calls(orders, A))
    process = pid(deep, A)
    (orders[A] / "fail").write_text("/collective_rpc", encoding="utf-8")
    answer = deep.stack.switch(A)
    assert (orders[A] / "failed").exists()
    assert answer.status == 0, answer.errors
    assert answer.result["active_model"] == A
    if pid(deep, A) == process:
        check_reloaded(calls(orders, A)[before:])
    assert awake(deep) == {A}
    assert deep.stack.text(A) != text


@pytest.fixture
def half_awake(deep: Pair, orders: dict[str, Path]) -> Iterator[Pair]:
    """A switch to A that was killed after the first tagged wake, the weights not reloaded."""
    (orders[A] / "calls").unlink()
    (orders[A] / "stall").write_text("/wake_up?tags=weights", encoding="utf-8")
    command = [sys.executable, "-m", "switching", "--stack-dir", str(deep.stack.folder), "switch", A]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins" / "module_utils")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            while not (orders[A] / "stalled").exists():
                assert process.poll() is None, f"it ended with {process.returncode}"
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
    assert is_sleeping(deep.host.port(A))
    yield deep


def test_the_next_switch_to_it_reloads(half_awake: Pair, orders: dict[str, Path]) -> None:
    process = pid(half_awake, A)
    before = len(calls(orders, A))
    answer = half_awake.stack.switch(A)
    assert answer.status == 0, answer.errors
    if pid(half_awake, A) == process:
        check_reloaded(calls(orders, A)[before:])
    assert awake(half_awake) == {A}


def test_the_next_switch_away_from_it_does_not_leave_it_half_awake(half_awake: Pair, orders: dict[str, Path]) -> None:
    process = pid(half_awake, A)
    before = len(calls(orders, A))
    answer = half_awake.stack.switch(B)
    assert answer.status == 0, answer.errors
    assert awake(half_awake) == {B}
    if pid(half_awake, A) == process:
        # A sleep alone does nothing to a server that calls itself asleep.
        posts = calls(orders, A)[before:]
        whole = [n for n, post in enumerate(posts) if post.startswith(("/wake_up?tags=kv_cache 200", "/wake_up 200"))]
        slept = [n for n, post in enumerate(posts) if post.startswith(("/sleep?level=1", "/sleep?level=2"))]
        assert whole and slept and whole[0] < slept[-1], posts


# ---- servers of which every call takes its time --------------------------------------------------

SLOW_SECONDS = 2.0
SLOW_VERSIONS = ("0.11.0", "0.32.0")
DRAIN_SECONDS = {"fail": 5, "keep": 5, "wait": 600}  # of which those of the first two end before the stream


@pytest.fixture
def minutes(version: str) -> None:
    """Only where the run may take minutes longer."""
    if not os.environ.get("SLOW"):
        pytest.skip("allowed: make vllm-versions runs it")
    if version not in SLOW_VERSIONS:
        pytest.skip(f"allowed: it is run on {', '.join(SLOW_VERSIONS)}")


@pytest.mark.usefixtures("minutes")
@pytest.mark.parametrize("action", list(DRAIN_SECONDS))
def test_slow_calls_cut_no_stream(
    settled: Pair, family: Family, orders: dict[str, Path], action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (A, B):
        (orders[name] / "slow").write_text(str(SLOW_SECONDS), encoding="utf-8")
    settled.stack.declare(
        drain_timeout_action="abort" if action == "wait" else action, drain_timeout_seconds=DRAIN_SECONDS[action]
    )
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        stream = pool.submit(long_stream, settled.host.port(A))
        time.sleep(2 * SLOW_SECONDS)
        answer = settled.stack.switch(B)
        whole_by_then = stream.done()
        kept = answer.result.get("active_model") == B and not whole_by_then
        if kept:
            assert awake(settled) == {B}
            back = settled.stack.switch(A)
            assert back.status == 0, back.errors
        text, reason = stream.result(300)
        seconds = time.monotonic() - began
    result = answer.result
    with capsys.disabled():
        print(f"\n{action}: a stream of {seconds:.0f} s; the switch: {answer.errors or result['requests']}")
    assert (len(text) > 0, reason) == (True, "length")
    if action == "wait":
        assert (answer.status, result["active_model"], whole_by_then) == (0, B, True)
        assert result["requests"] == {"drained": 1, "parked": 0, "cut": 0}
        assert awake(settled) == {B}
    elif action == "keep" and family.modes:
        assert (answer.status, kept) == (0, True)
        assert result["requests"] == {"drained": 0, "parked": 1, "cut": 0}
    else:
        assert (answer.status, result["requests"]["cut"]) == (1, 0), result
        assert {name: one["state"] for name, one in result["models"].items()} == {A: "active", B: "sleeping"}
        assert awake(settled) == {A}


def long_stream(port: int) -> tuple[str, str]:
    """Read a stream that runs for a minute; return its text, and why it ended ("" where it was cut)."""
    text, reason = "", ""
    body = {"model": A, "prompt": "Once upon a time", "temperature": 0, "ignore_eos": True, "stream": True, **LONG}
    url = f"http://127.0.0.1:{port}/v1/completions"
    with requests.post(url, json=body, stream=True, timeout=300) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line and line != b"data: [DONE]":
                for choice in json.loads(line.removeprefix(b"data: "))["choices"]:
                    text += choice["text"]
                    reason = choice["finish_reason"] or reason
    return text, reason


def pid(pair: Pair, name: str) -> int:
    """Return the process of a model; 0 where there is none."""
    file = pair.host.stack / "run" / f"{name}.pid"
    return int(json.loads(file.read_text(encoding="utf-8"))["pid"]) if file.exists() else 0
