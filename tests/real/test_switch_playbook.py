# SPDX-License-Identifier: MIT
"""The playbooks on two real vLLM servers that share a GPU as far as Ansible knows.

On a CPU vLLM frees no memory when it sleeps, but it answers every call truthfully, and level 2 reloads its weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.playbooklib import Ansible, Host, complete, is_sleeping
from tests.serverlib import opened_by_others, real_settings, real_venv

from .stack import A, B, Pair

pytestmark = pytest.mark.timeout(900)  # the first case waits for the servers, and they perhaps for being built


@dataclass
class Real:
    """The host with the two servers, for the playbooks."""

    host: Host
    ansible: Ansible

    def port(self, name: str) -> int:
        return self.host.port(name)

    def posts(self) -> list[str]:
        """Return what was asked of both servers beside questions, since they were started."""
        return [f"{name} {call}" for name in (A, B) for call in self.host.calls(name) if not call.startswith("GET ")]

    def new_posts(self, before: list[str], name: str) -> list[str]:
        """Return the paths that were posted to since."""
        earlier = [post for post in before if post.startswith(name + " ")]
        now = [post for post in self.posts() if post.startswith(name + " ")]
        return [post.removeprefix(f"{name} POST ") for post in now[len(earlier) :]]

    def awake(self) -> set[str]:
        return {name for name in (A, B) if not is_sleeping(self.port(name))}


@pytest.fixture
def settled(real_pair: Pair) -> Real:
    """The servers with A awake and B asleep at level 1."""
    real_pair.settle()
    real = Real(real_pair.host, real_pair.ansible)
    assert real.awake() == {A}
    return real


def test_bootstrap_starts_them_one_at_a_time(real_pair: Pair) -> None:
    assert real_pair.bootstrap.changed() == 2
    assert real_pair.left == {A}
    assert {B} in real_pair.together
    assert {A} in real_pair.together
    assert {A, B} not in real_pair.together


def test_bootstrap_leaves_alone_what_is_so(settled: Real) -> None:
    table = settled.ansible.play("status").table
    assert [row[1:4] for row in table] == [[A, "active", "-"], [B, "sleeping", "1"]]
    before = settled.posts()
    assert settled.ansible.play("bootstrap").changed() == 0
    assert settled.posts() == before


def sockets_of(group: int) -> set[Path]:
    """The files of the unix sockets that the processes of a group have."""
    opened = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it went away
            if os.getpgid(int(process.name)) == group:
                opened |= {str(one.readlink()) for one in (process / "fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()]
    return {Path(row[7]) for row in rows if len(row) > 7 and row[7].startswith("/") and f"socket:[{row[6]}]" in opened}


def test_nothing_of_theirs_lies_about(settled: Real) -> None:
    """Their processes talk by sockets that vLLM leaves behind, else in the system's temporary folder."""
    for name in (A, B):
        started = json.loads((settled.host.stack / "run" / f"{name}.pid").read_text(encoding="utf-8"))
        sockets = sockets_of(started["pid"])
        assert sockets
        assert {path.parent for path in sockets} == {Path(real_settings(real_venv())["VLLM_RPC_BASE_PATH"])}


def test_switch_and_again(settled: Real) -> None:
    assert settled.ansible.play("switch", "-e", f"model={B}").changed() == 1
    assert is_sleeping(settled.port(A))
    assert complete(settled.port(B), B)["tokens"] == 16

    before = settled.posts()
    assert settled.ansible.play("switch", "-e", f"model={B}").changed() == 0
    assert settled.posts() == before


def test_check_mode_shows_the_steps_and_changes_nothing(settled: Real) -> None:
    before = settled.posts()
    run = settled.ansible.play("switch", "-e", f"model={B}", "--check", "--diff")
    assert run.changed() == 1
    assert run.steps == [f"drain {A}", f"sleep {A} (level 1)", f"wake {B} (level 1)", f"verify {B}"]
    assert settled.posts() == before
    assert settled.awake() == {A}


def test_back_from_level_2_with_the_same_answer(settled: Real) -> None:
    for model in settled.host.models:
        model["sleep_level"] = 2
    ansible = Ansible(settled.ansible.command, settled.ansible.inventory.parent, [settled.host])
    try:
        answer = complete(settled.port(A), A, 64)["text"]
        before = settled.posts()
        ansible.play("switch", "-e", f"model={B}").changed()
        assert settled.new_posts(before, A) == ["/sleep?level=0&mode=wait", "/sleep?level=2&mode=wait"]

        before = settled.posts()
        assert ansible.play("switch", "-e", f"model={A}").changed() == 1
        assert settled.new_posts(before, A) == [
            "/wake_up?tags=weights",
            "/collective_rpc",
            "/wake_up?tags=kv_cache",
            "/reset_prefix_cache",
            "/v1/completions",
        ]
        assert complete(settled.port(A), A, 64)["text"] == answer
        assert complete(settled.port(A), A, 64)["text"] != other_answer(settled)
    finally:
        for model in settled.host.models:
            del model["sleep_level"]
        Ansible(ansible.command, ansible.inventory.parent, [settled.host])  # writes the inventory anew


def other_answer(real: Real) -> str:
    """What B says to the same prompt: the two models can be told apart by it."""
    real.ansible.play("switch", "-e", f"model={B}").changed()
    answer = str(complete(real.port(B), B, 64)["text"])
    real.ansible.play("switch", "-e", f"model={A}").changed()
    return answer


def test_a_running_completion_is_finished(settled: Real) -> None:
    tokens = 1900
    with ThreadPoolExecutor(2) as pool, (settled.host.stack / "run/switch.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Ansible takes seconds to start, and the completion runs for seconds: the switch gets as far as the lock first.
        switched = pool.submit(settled.ansible.play, "switch", "-e", f"model={B}", "-v")
        while not opened_by_others(Path(lock.name)):
            assert not switched.done(), "the switch ended without asking for the lock"
            time.sleep(0.05)
        asked = pool.submit(complete, settled.port(A), A, tokens)
        while running(settled.port(A)) < 1 and not asked.done():
            time.sleep(0.02)
        fcntl.flock(lock, fcntl.LOCK_UN)
        run, answer = switched.result(), asked.result()
    assert run.changed() == 1
    assert (answer["finish_reason"], answer["tokens"]) == ("length", tokens)
    # It did run when the switch came.
    (result,) = run.results("changed")
    assert [step["action"] for step in result["steps"]] == ["drain", "sleep", "wake", "verify"]
    assert result["steps"][0]["seconds"] > 0.5
    assert "note" not in result["steps"][0]
    assert settled.awake() == {B}


def running(port: int) -> float:
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_running"))
