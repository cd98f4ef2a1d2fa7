# SPDX-License-Identifier: MIT
"""Several who switch one host at once: plays and its command line. One waits for the other, and each is told the truth.

To be sure that they compete, the host's lock is held until all of them wait for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.part import fewer
from tests.playbooklib import Ansible, Host, complete, is_sleeping, served
from tests.serverlib import ROOT, Server, opened_by_others, start_standin, two_awake

pytestmark = pytest.mark.timeout(600)

PLAYS = fewer("concurrent plays", "make faults", "two plays to two models", 20, 5)
WITH_COMMAND_LINE = fewer("concurrent plays", "make faults", "a play and the command line", 5, 4)
SAME_TARGET = fewer("concurrent plays", "make faults", "two plays to one model", 5, 2)
SLOW = 2.0  # seconds that a wake takes: time enough to be met


@dataclass
class Ended:
    """One switch that somebody asked for."""

    status: int
    result: dict[str, Any]
    said: str


@dataclass
class Both:
    """Two servers on one GPU, a awake at first, and who may switch them."""

    host: Host
    ansible: Ansible
    servers: dict[str, Server]
    events: Path

    @property
    def lock(self) -> Path:
        return self.host.stack / "run" / "switch.lock"

    def play(self, name: str) -> Ended:
        run = self.ansible.play("switch", "-e", f"model={name}", "-v")
        result = run.switched
        assert run.count("changed") == result["changed"] or run.status != 0
        return Ended(run.status, result, run.output)

    def popen(self, name: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "switching", "--stack-dir", str(self.host.stack), "switch", name, "--json"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "plugins" / "module_utils")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, name: str) -> Ended:
        with self.popen(name) as process:
            printed, said = process.communicate(timeout=100)
        return Ended(process.returncode, json.loads(printed), said)

    def at_once(self, *asked: tuple[Callable[[str], Ended], str], in_turn: bool = False) -> list[Ended]:
        """Do all of it, from the moment on at which all of them wait for the lock; C(in_turn): one came after another.

        Who came last looks more often whether the lock is free, so mostly he has it first.
        """
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(len(asked)) as pool, self.lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            futures = []
            try:
                for ask, name in asked:
                    futures.append(pool.submit(ask, name))
                    while len(opened_by_others(self.lock)) < (len(futures) if in_turn else 0):
                        assert not futures[-1].done(), "it ended without asking for the lock"
                        time.sleep(0.05)
                while len(opened_by_others(self.lock)) < len(asked):
                    assert not any(future.done() for future in futures), "one ended without asking for the lock"
                    time.sleep(0.05)
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)
            return [future.result() for future in futures]

    def holder(self) -> str:
        """Return what the lock's file says of the one who had it last."""
        return str(json.loads(self.lock.read_text(encoding="utf-8").split("\n", 1)[0])["holder"])

    def wakes(self, name: str, since: int = 0) -> list[str]:
        return self.servers[name].accesses("POST /wake_up", since)

    def awake(self) -> list[str]:
        return [name for name, server in self.servers.items() if not is_sleeping(server.port)]

    def two_awake(self) -> list[str]:
        lines = self.events.read_text(encoding="utf-8").splitlines()
        return two_awake(json.loads(line) for line in lines)

    def check_told(self, asked: str, ended: Ended) -> None:
        """Whoever switched was told what was so when he had the lock."""
        assert ended.status == 0, ended.said
        assert ended.result["active_model"] == asked
        assert ended.result["models"][asked]["state"] == "active"
        other = "b" if asked == "a" else "a"
        assert ended.result["models"][other]["state"] == "sleeping"
        actions = [(step["action"], step["model"]) for step in ended.result["steps"]]
        if ended.result["changed"]:
            assert ended.result["previous_model"] == other
            assert actions == [("drain", other), ("sleep", other), ("wake", asked), ("verify", asked)]
        else:
            assert ended.result["previous_model"] == asked
            # Its server was not started by the stack, so nobody knows whether it is the start that was proved.
            assert actions == [("verify", asked)]

    def check_rivals(self, results: dict[str, Ended], before: str, marks: dict[str, int]) -> str:
        """Two wanted each its own model. Returns the one that is active now."""
        for asked, ended in results.items():
            self.check_told(asked, ended)
        (now,) = self.awake()
        assert re.search(rf"process \d+: {now} active, since", self.holder()), self.holder()
        first = "b" if now == "a" else "a"
        # Who came first found what was there before.
        assert results[first].result["changed"] == (before != first)
        assert results[now].result["changed"]
        for name, ended in results.items():
            assert len(self.wakes(name, marks[name])) == ended.result["changed"]
        assert complete(self.servers[now].port, now)["finish_reason"] == "length"
        return now

    def marks(self) -> dict[str, int]:
        return {name: server.mark() for name, server in self.servers.items()}


@pytest.fixture
def both(ansible_playbook: str, tmp_path: Path) -> Iterator[Both]:
    servers = {}
    try:
        for name in ("b", "a"):
            settings: dict[str, Any] = {
                "log": tmp_path / f"{name}.log",
                "gpu_dir": tmp_path / "gpus",
                "wake_seconds": 0.2,
            }
            servers[name] = start_standin(f"org/{name}", names=[name], vram_gb=20, asleep_gb=1, **settings)
            if name == "b":
                servers[name].call("POST", "/sleep?level=1").raise_for_status()
        models = [served(servers[name], name) for name in ("a", "b")]
        host = Host(tmp_path, models)
        host.stack.mkdir()
        declaration = {"vllm_models": models, "vllm_switching": host.switching}
        (host.stack / "models.json").write_text(json.dumps(declaration), encoding="utf-8")
        yield Both(host, Ansible(ansible_playbook, tmp_path, [host]), servers, tmp_path / "gpus" / "events.jsonl")
    finally:
        for server in servers.values():
            server.stop()


def test_two_plays_to_two_models(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    now, last = "a", []
    for _turn in range(PLAYS):
        marks = both.marks()
        a, b = both.at_once((both.play, "a"), (both.play, "b"))
        now = both.check_rivals({"a": a, "b": b}, now, marks)
        last.append(now)
    assert both.two_awake() == []
    with capsys.disabled():
        print(
            f"\n{PLAYS} times two plays at once, {len(both.two_awake())} times both awake,"
            f" the last one was a's {last.count('a')} times and b's {last.count('b')} times"
        )


def test_a_play_and_the_command_line_to_two_models(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    now, last = "a", []
    for turn in range(WITH_COMMAND_LINE):
        marks = both.marks()
        played, commanded = ("a", "b") if turn // 2 % 2 else ("b", "a")
        asked = [(both.play, played), (both.command, commanded)]
        if turn % 2:
            second, first = both.at_once(*reversed(asked), in_turn=True)
        else:
            first, second = both.at_once(*asked, in_turn=True)
        assert re.search(r"^waiting for another switch of this host \(.+\)$", second.said, re.MULTILINE), second.said
        now = both.check_rivals({played: first, commanded: second}, now, marks)
        last.append("play" if now == played else "command line")
    assert both.two_awake() == []
    with capsys.disabled():
        print(
            f"\n{WITH_COMMAND_LINE} times a play and the command line at once, {len(both.two_awake())} times both"
            f" awake, the play was the last one {last.count('play')} times"
        )


def test_two_plays_to_the_same_model_switch_it_once(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    for turn in range(SAME_TARGET):
        name = "a" if turn % 2 else "b"
        mark = both.servers[name].mark()
        ended = both.at_once((both.play, name), (both.play, name))
        for one in ended:
            both.check_told(name, one)
        assert sorted(one.result["changed"] for one in ended) == [False, True]
        assert both.wakes(name, mark) == ["POST /wake_up"]
        assert both.awake() == [name]
    assert both.two_awake() == []
    with capsys.disabled():
        print(f"\n{SAME_TARGET} times two plays to the same model at once, each time 1 POST /wake_up")


def test_who_waits_is_told_for_whom(both: Both) -> None:
    both.servers["b"].fault("/wake_up", "hang", seconds=SLOW)
    with both.popen("b") as first:
        holder = f"process {first.pid}: b active, since "
        while not (both.lock.exists() and both.lock.stat().st_size and holder in both.holder()):
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        try:
            with both.popen("a") as second:
                assert second.stdout is not None
                assert second.stderr is not None
                said = second.stderr.readline()
                first.send_signal(signal.SIGCONT)
                both.check_told("a", Ended(second.wait(60), json.loads(second.stdout.read()), said))
                assert second.stderr.read() == ""
        finally:
            first.send_signal(signal.SIGCONT)
        printed, problems = first.communicate(timeout=60)
    assert re.fullmatch(rf"waiting for another switch of this host \({holder}.+ UTC\)\n", said)
    assert (first.returncode, problems) == (0, "")
    assert json.loads(printed)["active_model"] == "b"
    assert both.awake() == ["a"]
    assert both.two_awake() == []
