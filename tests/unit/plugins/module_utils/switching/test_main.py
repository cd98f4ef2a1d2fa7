# SPDX-License-Identifier: MIT
"""The host's own command line, run as a host runs it: from a copy of the package beside models.json."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils import switching

if TYPE_CHECKING:
    from .conftest import Host

Run = subprocess.CompletedProcess[str]


class Stack:
    """The folder of a stack, with the command line in it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.folder = host.stack_dir
        shutil.copytree(Path(switching.__file__).parent, self.folder / "switching")
        self.write()

    def write(self) -> None:
        """Write models.json as the host declares them."""
        given = {"vllm_models": self.host.models, "vllm_switching": self.host.settings}
        (self.folder / "models.json").write_text(json.dumps(given), encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "switching", *arguments]

    def run(self, *arguments: str) -> Run:
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, capture_output=True, text=True, timeout=300, check=False
        )


@pytest.fixture
def stack(host: Host) -> Stack:
    host.declare("a", startup_mode="active")
    host.declare("b", env={"SOME_API_KEY": "s3cret-of-b"})
    return Stack(host)


def test_status(stack: Stack) -> None:
    stack.host.up(a="active", b=1)
    shown = stack.run("status")
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = [line.split()[1:4] for line in shown.stdout.splitlines()]
    assert rows == [["model", "state", "level"], ["a", "active", "-"], ["b", "sleeping", "1"]]
    assert json.loads(stack.run("status", "--json").stdout)["active_models"] == ["a"]


def test_switch(stack: Stack) -> None:
    stack.host.up(a="active", b=1)
    planned = stack.run("switch", "b", "--check")
    assert planned.stdout.splitlines()[-1] == "b: would be active"
    assert stack.host.states() == {"a": "active", "b": "sleeping"}
    done = stack.run("switch", "b")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [
        "drain a",
        "sleep a (level 1)",
        "wake b (level 1)",
        "verify b",
        "b: active",
    ]
    assert stack.host.states() == {"a": "sleeping", "b": "active"}
    assert stack.run("switch", "b").stdout == "b: active, unchanged\n"
    assert stack.run("switch", "a", "--state", "stopped").stdout.endswith("a: stopped\n")


def test_roll_back(stack: Stack) -> None:
    none = stack.run("roll-back")
    assert (none.returncode, none.stdout) == (1, "")
    assert none.stderr.startswith("there is nothing to roll back: no switch has replaced a model on ")
    stack.host.up(a="active", b=1)
    assert stack.run("switch", "b").returncode == 0
    planned = stack.run("roll-back", "--check")
    assert planned.stdout.splitlines() == [
        "drain b",
        "sleep b (level 1)",
        "wake a (level 1)",
        "verify a",
        "a: would be active",
    ]
    assert stack.host.states() == {"a": "sleeping", "b": "active"}
    done = stack.run("roll-back", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["changed"], told["previous_model"], told["active_model"]) == (True, "b", "a")
    assert stack.host.states() == {"a": "active", "b": "sleeping"}
    assert stack.run("roll-back").stdout == "a: active, unchanged\n"


def test_a_stop_for_now_is_undone_by_a_restore(stack: Stack) -> None:
    stack.host.up(a="active", b=1)
    assert stack.run("switch", "b", "--state", "stopped", "--for-now").returncode == 0
    assert stack.host.states() == {"a": "active", "b": "stopped"}
    assert stack.run("restore").returncode == 0
    assert stack.host.states() == {"a": "active", "b": "sleeping"}
    stack.run("switch", "b", "--state", "stopped")
    assert stack.run("restore").returncode == 0
    assert stack.host.states() == {"a": "active", "b": "stopped"}


def test_a_switch_that_fails(stack: Stack) -> None:
    stack.host.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([{"path": "load", "fault": "die"}])
    stack.write()
    stack.host.up(a="active")
    failed = stack.run("switch", "b")
    assert failed.returncode == 1
    assert failed.stderr.startswith("b could not be made active: its server ended with exit code 1")
    assert [line.split("  ")[0] for line in failed.stdout.splitlines()] == [
        "drain a", "sleep a (level 1)", "start b", "verify b", "roll_back: wake a (level 1)", "roll_back: verify a",
    ]  # fmt: skip
    assert failed.stdout.splitlines()[3].endswith("  FAILED")
    assert "a is active again" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "s3cret-of-b" not in failed.stdout + failed.stderr


def test_a_switch_that_is_interrupted_puts_back_what_was_active(stack: Stack) -> None:
    stack.host.models[1]["env"]["STANDIN_LOAD_SECONDS"] = "60"
    stack.host.settings["max_retries"] = 300
    stack.write()
    stack.host.up(a="active")
    # A test run in the background ignores SIGINT, and so would whatever it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(stack.command("switch", "b"), cwd=stack.folder, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process as interrupted:
        stack.host.wait_until(lambda: stack.host.states()["b"] == "loading", "b loads")
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.communicate(timeout=300)[1] == "interrupted\n"
    assert interrupted.returncode == 130
    assert stack.host.states() == {"a": "active", "b": "stopped"}


def test_secrets_in_the_last_log_lines_are_hidden(stack: Stack) -> None:
    stack.host.models[1]["start_command"] = ["sh", "-c", 'echo "non-default args: $SOME_API_KEY"; exit 1']
    stack.write()
    for arguments in (["switch", "b"], ["restore"]):
        failed = stack.run(*arguments)
        assert failed.returncode == 1
        assert "non-default args: ********" in failed.stderr
        assert "s3cret-of-b" not in failed.stdout + failed.stderr


def test_restore_tells_a_line_for_each_model(stack: Stack) -> None:
    done = stack.run("restore")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["b: sleeping (level 1)", "a: active"]
    assert stack.host.states() == {"a": "active", "b": "sleeping"}
    assert stack.run("restore").stdout == "b: sleeping (level 1), unchanged\na: active, unchanged\n"


def test_restore_names_the_models_that_failed(stack: Stack) -> None:
    stack.host.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([{"path": "load", "fault": "die"}])
    stack.write()
    done = stack.run("restore")
    assert done.returncode == 1
    assert done.stdout.startswith("a: active, in ")
    assert done.stderr.startswith("b: FAILED, should be sleeping: b could not be made sleeping: its server ended")
    assert "No supported config format found in org/b" in done.stderr
    assert done.stderr.endswith("not restored: b\n")


def test_a_restore_that_is_killed_is_finished_by_the_next(stack: Stack) -> None:
    stack.host.models[1]["env"]["STANDIN_LOAD_SECONDS"] = "4"
    stack.write()
    stack.host.up(a="active")
    assert stack.run("switch", "b").returncode == 0
    for command in stack.host.started:
        command.stop()
    assert stack.run("switch", "b", "--state", "stopped").returncode == 0
    assert stack.run("switch", "a").returncode == 0
    record = (stack.folder / "run" / "wanted.json").read_text(encoding="utf-8")
    assert json.loads(record)["models"] == {"a": "active", "b": "stopped"}
    wanted = {"models": {"a": "active", "b": "sleeping"}}
    (stack.folder / "run" / "wanted.json").write_text(json.dumps(wanted), encoding="utf-8")
    assert stack.run("switch", "a", "--state", "stopped").returncode == 0
    (stack.folder / "run" / "wanted.json").write_text(json.dumps(wanted), encoding="utf-8")
    with subprocess.Popen(stack.command("restore"), cwd=stack.folder, stdout=subprocess.DEVNULL) as killed:
        stack.host.wait_until(lambda: stack.host.states()["b"] == "loading", "b loads")
        os.kill(killed.pid, signal.SIGKILL)
    assert json.loads((stack.folder / "run" / "wanted.json").read_text(encoding="utf-8")) == wanted
    started = time.monotonic()
    done = stack.run("restore")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 30
    assert stack.host.states() == {"a": "active", "b": "sleeping"}


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (None, 1, "does not exist: provision the host, or give --stack-dir"),
        ("{", 1, "is damaged (JSONDecodeError): provision the host again"),
        ("[]", 1, "is damaged (TypeError): provision the host again"),
        ('{"vllm_models": [{"id": "A"}]}', 2, "the model inventory has 3 mistakes:"),
    ],
)
def test_bad_models(stack: Stack, text: str | None, status: int, message: str) -> None:
    path = stack.folder / "models.json"
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    run = stack.run("status")
    assert (run.returncode, run.stdout) == (status, "")
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_bad_usage(stack: Stack) -> None:
    unknown = stack.run("switch", "nope")
    assert (unknown.returncode, unknown.stderr) == (2, "model nope is not declared; the models are: a, b\n")
    assert stack.run().returncode == 2
    assert stack.run("dance").returncode == 2
