# SPDX-License-Identifier: MIT
"""Starting, stopping and asking after servers: by command, with real processes; by compose, with a docker that writes
down what it is told and answers as Docker does."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import devices, processes
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import LifecycleError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model, Switching, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import (
    Command,
    ComposeService,
    Process,
    for_model,
)

if TYPE_CHECKING:
    from .conftest import Processes

ENDS_WELL = """\
import signal, sys, time
def end(*_):
    time.sleep(0.2)
    print("bye")
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("ready")
signal.pause()
"""
ROOT = Path(__file__).parents[5]
IGNORES_SIGTERM = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


# What a test may change before it makes a lifecycle.
SETTINGS: dict[str, Any] = {}


def model(**fields: Any) -> Model:
    """A model called m."""
    return parse([{"id": "m", "model": "org/m", "host_port": 8001, **fields}]).models[0]


def command(stack_dir: Path, *start: str, **fields: Any) -> Command:
    """The lifecycle of a model with this start_command."""
    found = for_model(model(start_command=list(start), **fields), str(stack_dir), Switching(**SETTINGS))
    assert isinstance(found, Command)
    return found


def shell(stack_dir: Path, script: str, **fields: Any) -> Command:
    """The lifecycle of a model whose start_command is a shell script."""
    return command(stack_dir, "sh", "-c", script, **fields)


def wait_until(done: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll until done() is true."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def raised(call: Callable[[], object]) -> str:
    """The text of the error that the call raises."""
    with pytest.raises(LifecycleError) as caught:
        call()
    return str(caught.value)


def has_printed(server: Command, lines: int) -> bool:
    """Whether the server has printed so many lines."""
    return len(server.last_lines()) == lines


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "stop_timeout_seconds", 1)


# ---- start ------------------------------------------------------------------------------------


def test_the_command_gets_its_gpus_and_dev_mode(stack_dir: Path) -> None:
    server = shell(stack_dir, 'echo "$CUDA_VISIBLE_DEVICES|$VLLM_SERVER_DEV_MODE|$EXTRA|$INHERITED"', gpus=[1, 3])
    os.environ["INHERITED"] = "yes"
    try:
        server.start()
    finally:
        del os.environ["INHERITED"]
    wait_until(server.last_lines)
    assert server.last_lines() == ["1,3|1||yes"]


GPUS = ("GPU-8f3b7c1e-2d4a-4b6c-9e8f-0a1b2c3d4e5f", "GPU-8f3b7c1e-2d4a-4b6c-9e8f-0a1b2c3d4e50")
MIG, AMD = GPUS[0].replace("GPU", "MIG"), "GPU-4b2c1a9f8d3e6f7a"


@pytest.mark.parametrize(
    ("gpus", "numbers", "seen"),
    [
        # vLLM up to 0.20 can't read a UUID.
        (GPUS, dict(zip(GPUS, (3, 0), strict=True)), "3,0|PCI_BUS_ID|"),
        (GPUS, {GPUS[0]: 3}, ",".join(GPUS) + "||"),  # the driver doesn't tell of one
        ((MIG,), {GPUS[0]: 3}, MIG + "||"),
        ((AMD, AMD[:-1] + "0"), {}, f"0,1||{AMD},{AMD[:-1]}0"),
    ],
)
def test_the_command_gets_its_gpus_by_uuid(
    stack_dir: Path, monkeypatch: pytest.MonkeyPatch, gpus: tuple[str, ...], numbers: dict[str, int], seen: str
) -> None:
    monkeypatch.setattr(devices, "read_uuids", lambda: numbers)
    server = shell(stack_dir, 'echo "$CUDA_VISIBLE_DEVICES|$CUDA_DEVICE_ORDER|$ROCR_VISIBLE_DEVICES"', gpus=list(gpus))
    server.start()
    wait_until(server.last_lines)
    assert server.last_lines() == [seen]


def test_the_models_environment_wins(stack_dir: Path) -> None:
    env = {"CUDA_VISIBLE_DEVICES": "GPU-42", "VLLM_SERVER_DEV_MODE": "0", "EXTRA": "7"}
    server = shell(stack_dir, 'echo "$CUDA_VISIBLE_DEVICES|$VLLM_SERVER_DEV_MODE|$EXTRA"', env=env)
    server.start()
    wait_until(server.last_lines)
    assert server.last_lines() == ["GPU-42|0|7"]


def test_the_server_outlives_whoever_started_it_and_others_can_stop_it(stack_dir: Path, processes: Processes) -> None:
    program = textwrap.dedent(
        f"""
        from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Switching, parse
        from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import Command
        models = [{{"id": "m", "model": "m", "host_port": 8001, "start_command": ["sleep", "300"]}}]
        Command(parse(models).models[0], {str(stack_dir)!r}, Switching()).start()
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".build")}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)
    server = command(stack_dir, "sleep", "300")
    assert server.process() == Process(True)
    (pid,) = processes.left()
    assert os.getsid(pid) == pid  # a session of its own: what ends the caller's does not reach it
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    server.stop()
    assert processes.left() == []
    assert server.process() == Process(False)


def test_the_log_is_for_its_owner_alone_and_the_last_one_is_kept(stack_dir: Path) -> None:
    before = os.umask(0)
    try:
        for text in ("first", "second", "third"):
            server = shell(stack_dir, f"echo {text}; echo {text} >&2")
            server.start()
            wait_until(functools.partial(has_printed, server, 2))
    finally:
        os.umask(before)
    log = stack_dir / "run" / "m.log"
    assert log.read_text() == "third\nthird\n"
    assert log.with_name("m.log.1").read_text() == "second\nsecond\n"
    assert sorted(path.name for path in log.parent.iterdir()) == ["m.log", "m.log.1", "m.pid"]
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("start", "gist"),
    [
        (["/nowhere/vllm", "serve"], "/nowhere/vllm, can't be run: No such file or directory"),
        (["no-such-vllm"], "no-such-vllm, can't be run: No such file or directory"),
        (["/dev/null"], "/dev/null, can't be run: Permission denied"),
    ],
)
def test_a_command_that_cannot_be_run(stack_dir: Path, start: list[str], gist: str) -> None:
    server = command(stack_dir, *start)
    assert raised(server.start) == f"m could not be started: its start_command[0], {gist}"
    assert server.process() == Process(False)


def test_a_stack_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = raised(command(tmp_path / "file", "true").start)
    assert text.startswith("m could not be started: ")
    assert str(tmp_path / "file" / "run") in text


# ---- how it fares -----------------------------------------------------------------------------


def test_a_server_that_ended_tells_its_exit_code(stack_dir: Path) -> None:
    server = shell(stack_dir, "echo 'no such weights'; exit 7")
    server.start()
    wait_until(lambda: not server.process().running)
    assert server.process() == Process(False, 7)
    assert server.last_lines() == ["no such weights"]
    # Who did not start it can't know the code.
    assert shell(stack_dir, ":").process() == Process(False)


def test_a_server_that_was_killed_tells_the_signal(stack_dir: Path, processes: Processes) -> None:
    server = command(stack_dir, "sleep", "300")
    server.start()
    wait_until(processes.left)  # a process that has just begun has no environment for a moment
    os.kill(processes.left()[0], signal.SIGKILL)
    wait_until(lambda: not server.process().running)
    assert server.process() == Process(False, -signal.SIGKILL)


def test_a_launcher_that_ends_well_leaves_it_open_whether_the_server_runs(stack_dir: Path) -> None:
    server = shell(stack_dir, "exit 0", stop_command=["true"])
    server.start()
    wait_until(lambda: server.process().running is not True)
    assert server.process() == Process(None)
    assert shell(stack_dir, ":", stop_command=["true"]).process() == Process(None)


def test_a_launcher_that_fails_has_started_nothing(stack_dir: Path) -> None:
    server = shell(stack_dir, "exit 3", stop_command=["true"])
    server.start()
    wait_until(lambda: server.process().running is not True)
    assert server.process() == Process(False, 3)


def test_nothing_was_ever_started(stack_dir: Path) -> None:
    server = command(stack_dir, "true")
    assert server.process() == Process(False)
    assert server.last_lines() == []
    assert not stack_dir.exists()


def test_the_last_lines_of_a_long_log(stack_dir: Path) -> None:
    server = shell(stack_dir, r"seq 50000; printf '\377\n'")
    server.start()
    wait_until(lambda: not server.process().running)
    assert server.last_lines() == [*map(str, range(49802, 50001)), "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("saved", ["", "[]", "{}", '{"pid": null, "started": "1"}', '{"pid": "x", "started": "1"}'])
def test_a_damaged_pid_file_is_none(stack_dir: Path, saved: str) -> None:
    (stack_dir / "run").mkdir(parents=True)
    (stack_dir / "run" / "m.pid").write_text(saved)
    assert command(stack_dir, "true").process() == Process(False)


def test_a_start_is_told_by_its_process_and_when_that_began(stack_dir: Path) -> None:
    server = command(stack_dir, "sleep", "300")
    assert server.start_id() == ""
    server.start()
    first = server.start_id()
    assert first
    assert command(stack_dir, "sleep", "300").start_id() == first
    server.stop()
    assert server.start_id() == ""
    server.start()
    assert server.start_id() not in ("", first)
    server.stop()


def test_what_a_launcher_has_left_behind_is_not_known(stack_dir: Path) -> None:
    server = shell(stack_dir, "exit 0", stop_command=["true"])
    server.start()
    wait_until(lambda: server.process().running is not True)
    assert server.start_id() == ""


def test_a_process_of_another_boot_is_another(stack_dir: Path) -> None:
    first = command(stack_dir, "sleep", "300")
    first.start()
    pid_file = stack_dir / "run" / "m.pid"
    pid_file.write_text(json.dumps({**json.loads(pid_file.read_text()), "boot": "another"}))
    server = command(stack_dir, "sleep", "300")
    assert server.process() == Process(False)
    assert server.start_id() == ""
    assert raised(server.stop).startswith("m was not started by its start_command here")
    assert first.child is not None
    assert first.child.poll() is None


@pytest.mark.parametrize("started", ["1", None])
def test_another_process_with_the_same_id_is_left_alone(stack_dir: Path, started: str | None) -> None:
    (stack_dir / "run").mkdir(parents=True)
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as innocent:
        (stack_dir / "run" / "m.pid").write_text(json.dumps({"pid": innocent.pid, "started": started}))
        server = command(stack_dir, "sleep", "300")
        assert server.process() == Process(False)
        assert raised(server.stop).startswith("m was not started by its start_command here")
        assert innocent.poll() is None
        innocent.kill()


def test_a_server_that_ended_before_its_start_time_was_read_does_not_run(stack_dir: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    (stack_dir / "run").mkdir(parents=True)
    (stack_dir / "run" / "m.pid").write_text(json.dumps({"pid": ended.pid, "started": None}))
    assert command(stack_dir, "true").process() == Process(False)


# ---- a start whose pid file can't be written ---------------------------------------------------


def test_nothing_is_started_that_cannot_be_written_down(stack_dir: Path, processes: Processes) -> None:
    (stack_dir / "run" / "m.pid").mkdir(parents=True)
    began = stack_dir / "began"
    server = shell(stack_dir, f"touch '{began}'; sleep 300")
    assert raised(server.start).startswith("m could not be started: ")
    time.sleep(0.2)
    assert not began.exists()
    assert processes.left() == []


def test_a_process_that_could_not_be_written_down_is_ended_before_that_is_told(
    stack_dir: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    write = os.pwrite

    def full(descriptor: int, text: bytes, offset: int) -> int:
        written.append(text)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, text, offset)

    monkeypatch.setattr(os, "pwrite", full)
    server = command(stack_dir, "sleep", "300")
    assert raised(server.start) == "m could not be started: [Errno 28] No space left on device"
    assert len(written) == 2
    assert len(written[0]) == len(written[1])  # it never takes more than it had from the beginning on
    assert processes.left() == []
    assert [path.name for path in (stack_dir / "run").iterdir()] == ["m.log"]


KILLED_AMID_A_START = """
import os, sys
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import lifecycle, processes
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Switching, parse
processes.start_time = lambda pid: os._exit(9)
models = [{"id": "m", "model": "m", "host_port": 8001, "start_command": sys.argv[2:]}]
lifecycle.Command(parse(models).models[0], sys.argv[1], Switching()).start()
"""


def killed_amid_a_start(stack_dir: Path, *start: str) -> None:
    """A start by somebody who is killed as soon as the process is there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".build")}
    arguments = [sys.executable, "-c", KILLED_AMID_A_START, str(stack_dir), *start]
    assert subprocess.run(arguments, env=environment, check=False, timeout=300).returncode == 9


def test_who_was_killed_amid_a_start_has_left_what_the_process_is_found_by(
    stack_dir: Path, processes: Processes
) -> None:
    killed_amid_a_start(stack_dir, "sh", "-c", "sleep 300 & sleep 300 & echo ready; wait")
    server = command(stack_dir, "sleep", "300")
    wait_until(lambda: len(server.pids()) == 3 == len(processes.left()))
    assert server.process() == Process(True)
    assert sorted(server.pids()) == processes.left()
    server.stop()
    assert processes.left() == []
    assert server.process() == Process(False)


def test_what_a_process_left_behind_that_nobody_wrote_down_is_found_too(stack_dir: Path, processes: Processes) -> None:
    killed_amid_a_start(stack_dir, "sh", "-c", "sleep 300 & echo ready")
    server = command(stack_dir, "sleep", "300")
    wait_until(lambda: server.last_lines() and len(processes.left()) == 1)
    wait_until(lambda: server.process() == Process(False, remains=True))
    server.stop()
    assert processes.left() == []


def test_who_only_reads_the_log_is_not_taken_for_the_server(stack_dir: Path) -> None:
    killed_amid_a_start(stack_dir, "true")
    with subprocess.Popen(["tail", "-f", str(stack_dir / "run" / "m.log")], stdout=subprocess.DEVNULL) as reader:
        server = command(stack_dir, "true")
        wait_until(lambda: server.process() == Process(False))
        assert server.pids() == []
        reader.kill()


def test_what_was_about_to_begin_before_a_boot_did_not_outlive_it(stack_dir: Path, processes: Processes) -> None:
    killed_amid_a_start(stack_dir, "sleep", "300")
    pid_file = stack_dir / "run" / "m.pid"
    pid_file.write_text(json.dumps({**json.loads(pid_file.read_text()), "boot": "another"}))
    assert command(stack_dir, "sleep", "300").process() == Process(False)
    wait_until(lambda: len(processes.left()) == 1)


def test_a_pid_file_that_cannot_be_removed_is_no_reason_to_fail(
    stack_dir: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    server = command(stack_dir, "sleep", "300")
    server.start()
    monkeypatch.setattr(os, "unlink", refuse)
    server.stop()
    assert processes.left() == []
    assert server.process() == Process(False, -signal.SIGTERM)


# ---- stop -------------------------------------------------------------------------------------


def test_stop_gives_the_server_time_to_end_well(stack_dir: Path, processes: Processes) -> None:
    server = command(stack_dir, sys.executable, "-u", "-c", ENDS_WELL)
    server.start()
    wait_until(server.last_lines)
    server.stop()
    assert server.last_lines() == ["ready", "bye"]
    assert server.process() == Process(False, 0)
    assert processes.left() == []
    assert not (stack_dir / "run" / "m.pid").exists()


@pytest.mark.usefixtures("short_grace")
def test_stop_kills_a_server_that_ignores_it(stack_dir: Path, processes: Processes) -> None:
    server = shell(stack_dir, IGNORES_SIGTERM)
    server.start()
    wait_until(server.last_lines)
    server.stop()
    assert server.process() == Process(False, -signal.SIGKILL)
    assert processes.left() == []


def test_stop_ends_the_processes_of_the_server_too(stack_dir: Path, processes: Processes) -> None:
    server = shell(stack_dir, "sleep 300 & sleep 300 & echo ready; wait")
    server.start()
    wait_until(server.last_lines)
    wait_until(lambda: len(processes.left()) == 3)
    server.stop()
    assert processes.left() == []


@pytest.mark.usefixtures("short_grace")
def test_stop_kills_an_engine_that_outlives_its_server(stack_dir: Path, processes: Processes) -> None:
    server = shell(stack_dir, f"sh -c \"{IGNORES_SIGTERM}\" & trap 'exit 0' TERM; wait")
    server.start()
    wait_until(server.last_lines)
    server.stop()
    assert processes.left() == []


OUTLIVED = "sh -c 'echo engine; exec sleep 300' & while [ ! -e dies ]; do sleep 0.01; done; exit 3"


def outlived(stack_dir: Path, processes: Processes) -> Command:
    """A server that has ended and left its engine behind, as another run of the engine sees it."""
    script = OUTLIVED.replace("dies", f"'{stack_dir / 'dies'}'")
    first = shell(stack_dir, script)
    first.start()
    wait_until(first.last_lines)
    (stack_dir / "dies").touch()
    wait_until(lambda: not first.process().running)
    assert first.process() == Process(False, 3, remains=True)
    wait_until(lambda: len(processes.left()) == 1)
    return shell(stack_dir, "echo started; sleep 300")


def test_an_engine_that_outlived_its_server_is_known(stack_dir: Path, processes: Processes) -> None:
    server = outlived(stack_dir, processes)
    assert server.process() == Process(False, remains=True)
    server.stop()
    assert processes.left() == []
    assert server.process() == Process(False)
    assert raised(server.stop).startswith("m was not started by its start_command here")


def test_start_first_ends_an_engine_that_outlived_its_server(stack_dir: Path, processes: Processes) -> None:
    server = outlived(stack_dir, processes)
    (engine,) = processes.left()
    server.start()
    wait_until(server.last_lines)
    assert server.process() == Process(True)
    assert engine not in processes.left()
    server.stop()


@pytest.mark.parametrize("boot", [{"boot": "another"}, {}])
def test_a_group_of_another_boot_is_left_alone(stack_dir: Path, processes: Processes, boot: dict[str, str]) -> None:
    server = outlived(stack_dir, processes)
    pid_file = stack_dir / "run" / "m.pid"
    saved = json.loads(pid_file.read_text())
    del saved["boot"]
    pid_file.write_text(json.dumps({**saved, **boot}))
    assert server.process() == Process(False)
    assert raised(server.stop).startswith("m was not started by its start_command here")
    assert len(processes.left()) == 1


@pytest.mark.usefixtures("short_grace")
def test_a_server_that_cannot_be_killed_is_an_error(stack_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "killpg", lambda _group, _signal: None)
    server = command(stack_dir, "sleep", "300")
    server.start()
    text = raised(server.stop)
    assert text.startswith("m: process ")
    assert text.endswith(" does not end, even when killed")
    assert server.process() == Process(True)


def test_a_server_of_another_user_is_an_error(stack_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_group: int, _signal: int) -> None:
        raise PermissionError

    server = command(stack_dir, "sleep", "300")
    server.start()
    monkeypatch.setattr(os, "killpg", refuse)
    assert raised(server.stop).endswith(" can't be ended: run as the user who started it, or as root")
    assert server.process() == Process(True)


def test_stop_of_what_was_not_started_here(stack_dir: Path) -> None:
    assert raised(command(stack_dir, "true").stop) == (
        "m was not started by its start_command here, so it can't be stopped: give it a stop_command, or end it by hand"
    )


def test_a_stop_command_ends_what_a_launcher_left_behind(stack_dir: Path, processes: Processes) -> None:
    pid_file = stack_dir.parent / "pid"
    stop = ["sh", "-c", f"kill $(cat '{pid_file}')"]
    server = shell(stack_dir, f"setsid sleep 300 & echo $! > '{pid_file}'", stop_command=stop)
    server.start()
    wait_until(lambda: server.process().running is None)
    wait_until(lambda: len(processes.left()) == 1)
    shell(stack_dir, ":", stop_command=stop).stop()  # from another run
    wait_until(lambda: processes.left() == [])


def test_what_the_stop_command_leaves_of_the_server_is_ended(stack_dir: Path, processes: Processes) -> None:
    server = command(stack_dir, "sleep", "300", stop_command=["true"])
    server.start()
    server.stop()
    assert processes.left() == []


def test_a_stop_command_that_fails_says_why(stack_dir: Path) -> None:
    stop = ["sh", "-c", "echo 'no such unit' >&2; exit 5"]
    text = raised(command(stack_dir, "true", stop_command=stop).stop)
    assert text == "sh -c echo 'no such unit' >&2; exit 5 failed (5): no such unit"


def test_a_stop_command_that_is_not_there(stack_dir: Path) -> None:
    text = raised(command(stack_dir, "true", stop_command=["no-such-stopper"]).stop)
    assert text == "no-such-stopper is not installed: install it"


def test_a_stop_command_that_never_ends_is_cut(stack_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "command_timeout_seconds", 0.2)
    text = raised(command(stack_dir, "true", stop_command=["sleep", "300"]).stop)
    assert "sleep" in text
    assert "did not end within 0.2 s" in text


def test_the_processes_of_a_command(stack_dir: Path, processes: Processes) -> None:
    server = shell(stack_dir, "sleep 300 & sleep 300 & echo ready; wait")
    assert server.pids() == []
    server.start()
    wait_until(server.last_lines)
    wait_until(lambda: len(processes.left()) == 3)
    assert sorted(server.pids()) == processes.left()
    assert len(server.pids()) == 3
    server.stop()
    assert server.pids() == []


# ---- compose ----------------------------------------------------------------------------------

FAKE_DOCKER = """\
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
for words, (status, out, err) in json.loads((here / "answers").read_text()).items():
    if set(words.split()) <= set(sys.argv[1:]):
        # In this order also where both go to one pipe.
        print(out, end="", flush=True)
        print(err, end="", file=sys.stderr)
        sys.exit(status)
"""
NO_DAEMON = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?\n"


class Docker:
    """A docker on PATH that writes down its arguments and gives the answers it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "docker.py").write_text(FAKE_DOCKER)
        program = folder / "docker"
        # A shebang could not name an interpreter whose path has a space.
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/docker.py" "$@"\n')
        program.chmod(0o755)
        self.answer({})

    def answer(self, answers: dict[str, tuple[int, str, str]]) -> None:
        """By the words of a command: exit status, stdout and stderr. Everything else succeeds silently."""
        (self.folder / "answers").write_text(json.dumps(answers))

    def calls(self) -> list[list[str]]:
        """What it was called with."""
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return Docker(folder)


@pytest.fixture
def service() -> ComposeService:
    found = for_model(model(), "/srv/stack", Switching())
    assert isinstance(found, ComposeService)
    return found


def test_compose_starts_and_stops_the_models_service(docker: Docker, service: ComposeService) -> None:
    service.start()
    service.stop()
    compose = ["compose", "--file", "/srv/stack/docker-compose.yml"]
    assert docker.calls() == [
        [*compose, "up", "--detach", "--no-deps", "--pull", "never", "vllm-m"],
        [*compose, "stop", "--timeout", "20", "vllm-m"],
    ]


def test_the_container_carries_the_name_that_the_model_gives(docker: Docker) -> None:
    for_model(model(container_name="qwen"), "/srv/stack", Switching()).start()
    assert docker.calls()[0][-1] == "qwen"


@pytest.mark.parametrize(
    ("answer", "process"),
    [
        ((0, "true 0\n", ""), Process(True)),
        ((0, "false 0\n", ""), Process(False, 0)),
        ((0, "false 137\n", ""), Process(False, 137)),
        ((1, "\n", "Error: No such object: vllm-m\n"), Process(False)),
        ((1, "\n", "error: no such object: vllm-m\n"), Process(False)),
        ((1, "", "Error response from daemon: No such container: vllm-m\n"), Process(False)),
        ((1, "\n", NO_DAEMON), Process(None)),
    ],
)
def test_how_a_container_fares(
    docker: Docker, service: ComposeService, answer: tuple[int, str, str], process: Process
) -> None:
    docker.answer({"inspect": answer})
    assert service.process() == process
    (call,) = docker.calls()
    assert call[-1] == "vllm-m"
    assert "{{.State.Running}} {{.State.ExitCode}}" in call


@pytest.mark.parametrize(
    ("answer", "start"),
    [
        ((0, "true 0123abcd 2026-11-21T16:43:55.123456789Z\n", ""), "0123abcd 2026-11-21T16:43:55.123456789Z"),
        ((0, "false 0123abcd 2026-11-21T16:43:55.123456789Z\n", ""), ""),
        ((0, "what?\n", ""), ""),
        ((1, "\n", "Error: No such object: vllm-m\n"), ""),
        ((1, "\n", NO_DAEMON), ""),
    ],
)
def test_a_start_is_told_by_the_container_and_when_it_was_started(
    docker: Docker, service: ComposeService, answer: tuple[int, str, str], start: str
) -> None:
    docker.answer({"inspect": answer})
    assert service.start_id() == start


def test_the_processes_of_a_container(docker: Docker, service: ComposeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "of_container", lambda container: [4711, 4780] if container == "0123abcd" else [])
    docker.answer({"inspect": (0, "0123abcd\n", "")})
    assert service.pids() == [4711, 4780]
    assert docker.calls()[-1][-1] == "vllm-m"
    docker.answer({"inspect": (1, "\n", "Error: No such object: vllm-m\n")})
    assert service.pids() == []


def test_the_processes_whose_cgroup_is_named_so() -> None:
    assert os.getpid() in processes.of_container(Path("/proc/self/cgroup").read_text(encoding="utf-8"))


def test_who_has_no_id_has_no_processes() -> None:
    assert processes.of_container("") == []
    assert processes.of_container("0" * 64) == []


def test_the_last_lines_of_a_container(docker: Docker, service: ComposeService) -> None:
    started = "2026-11-21T16:43:55.123456789Z"
    docker.answer({"inspect": (0, f"{started}\n", ""), "logs": (0, "INFO loading\n", "ValueError: no such weights\n")})
    assert service.last_lines() == ["INFO loading", "ValueError: no such weights"]
    # Not those of an earlier run of the same container.
    assert docker.calls()[-1] == ["logs", "--since", started, "--tail", "200", "vllm-m"]


@pytest.mark.parametrize("error", [NO_DAEMON, "Error response from daemon: No such container: vllm-m\n"])
def test_dockers_own_complaints_are_no_log_lines(docker: Docker, service: ComposeService, error: str) -> None:
    docker.answer({"logs": (1, "", error)})
    assert service.last_lines() == []
    docker.answer({"inspect": (1, "", error)})
    assert service.last_lines() == []


@pytest.mark.parametrize("action", ["up", "stop"])
def test_a_compose_that_fails_says_why(
    docker: Docker, service: ComposeService, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: True)
    docker.answer({f"compose {action}": (14, "", "no such service: vllm-m\n")})
    text = raised(service.start if action == "up" else service.stop)
    assert text.startswith("docker compose --file /srv/stack/docker-compose.yml ")
    assert text.endswith(" vllm-m failed (14): no such service: vllm-m")


def test_a_missing_compose_file_is_named(docker: Docker, service: ComposeService) -> None:
    docker.answer({"compose up": (1, "", "open: no such file or directory\n")})
    assert "/srv/stack/docker-compose.yml does not exist: set stack_dir" in raised(service.start)


def test_a_missing_image_is_not_pulled_and_the_remedy_named(docker: Docker, service: ComposeService) -> None:
    docker.answer({"compose up": (1, "", "Creating\nError response from daemon: No such image: vllm/vllm-openai:v1\n")})
    text = raised(service.start)
    assert "its image is not on this host (Error response from daemon: No such image: vllm/vllm-openai:v1)" in text
    assert "run `docker compose --file /srv/stack/docker-compose.yml pull vllm-m` there" in text


def test_an_odd_answer_of_docker_is_no_traceback(docker: Docker, service: ComposeService) -> None:
    docker.answer({"inspect": (0, "what?\n", "")})
    assert service.process() == Process(None)


def test_log_lines_need_not_be_utf_8(docker: Docker, service: ComposeService) -> None:
    (docker.folder / "docker").write_text("#!/bin/sh\nprintf 'bad \\377 byte\\n'\n")
    assert service.last_lines() == ["bad \ufffd byte"]


def test_no_docker(docker: Docker, service: ComposeService) -> None:
    (docker.folder / "docker").unlink()
    remedy = "docker is not installed: install it, or give the model a start_command"
    assert raised(service.start) == remedy
    assert raised(service.stop) == remedy
    assert service.process() == Process(None)
    assert service.pids() == []
    assert service.start_id() == ""
    assert service.last_lines() == []
