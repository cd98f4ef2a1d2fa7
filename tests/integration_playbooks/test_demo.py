# SPDX-License-Identifier: MIT
"""`make demo KEEP=1` and `STOP=1`, in a copy of the checkout whose path has a space, from a bare environment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serverlib import ROOT

BARE = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8"}


class Checkout:
    """A copy of what git would commit, made ready as `make setup` does it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        copy = [str(ROOT / "tools/clean_copy.sh"), str(folder)]
        self.root = Path(subprocess.run(["bash", *copy], check=True, capture_output=True, text=True).stdout.strip())
        self.kept = self.root / ".build/demo"
        (self.root / ".venv").symlink_to(ROOT / ".venv")
        collections = self.root / ".build/ansible_collections"
        (collections / "homegpt").mkdir(parents=True)
        (collections / "homegpt/vllm").symlink_to("../../..")
        (collections / "community").symlink_to(ROOT / ".build/ansible_collections/community")

    def run(self, command: str, *, cwd: Path | None = None, **env: str) -> tuple[int, str]:
        """Run a command line of a shell; its exit status and all that it printed."""
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=cwd or self.root,
            env={**BARE, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return ended.returncode, ended.stdout

    def demo(self, **settings: str) -> str:
        """Run the demo, which succeeds."""
        status, output = self.run("bash tools/demo.sh", cwd=self.root, **settings)
        assert status == 0, output
        return output

    def pids(self) -> list[int]:
        """The servers' processes."""
        return [json.loads(file.read_text(encoding="utf-8"))["pid"] for file in sorted(self.kept.glob("run/*.pid"))]


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    checkout = Checkout(tmp_path / "a checkout's copy")
    try:
        yield checkout
    finally:
        for pid in checkout.pids():
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)


def commands(output: str) -> list[str]:
    """What is to be tried, each command with its explanation before it: all of it can be pasted into a shell."""
    told = output.split("Commands to try in any shell:\n", 1)[1].split("make demo STOP=1", 1)[0]
    there, *tried = told.strip().split("\n\n")
    return [f"{there}\n{command}" for command in tried]


def test_a_demo_that_is_kept_is_played_with_and_ended(checkout: Checkout, tmp_path: Path) -> None:
    assert "There is no demo to stop" in checkout.demo(STOP="1")

    output = checkout.demo(KEEP="1")
    assert re.search(r"^It takes about .* a minute", output, re.MULTILINE)
    # The pretended host has the memory that its inventory speaks of, whatever this machine has.
    assert "available_ram_gb" not in output
    assert "WARNING" not in output
    assert len(checkout.pids()) == 4
    port = int((checkout.kept / "first_port").read_text(encoding="utf-8"))

    switch, fail, status = commands(output)
    # From another folder, with other servers than the usual ones.
    done, said = checkout.run(switch, cwd=tmp_path)
    assert (done, "changed=1" in said) == (0, True), said
    assert "gpt-oss-20b → qwen3-vl-32b" in (checkout.kept / "switch.svg").read_text(encoding="utf-8")
    done, said = checkout.run(fail, cwd=tmp_path)
    assert done == 2, said
    assert "CUDA out of memory" in said
    assert "qwen3-vl-32b is active again" in said
    done, said = checkout.run(status, cwd=tmp_path)
    assert done == 0, said
    assert re.search(rf" qwen3-vl-32b +active +- +{port + 1} +0 +0 +86\.4\b", said), said
    assert re.search(rf" qwen3-next-80b-a3b-thinking +stopped +- +{port + 2} ", said), said

    pids = checkout.pids()
    again = checkout.demo(KEEP="1")
    assert "A demo is kept already" in again
    assert commands(again) == [switch, fail, status]
    assert checkout.pids() == pids

    assert "Stopped." in checkout.demo(STOP="1")
    assert not checkout.kept.exists()
    for number in range(4):
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port + number)) != 0
    assert "There is no demo to stop" in checkout.demo(STOP="1")
