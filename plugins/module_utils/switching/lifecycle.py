# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Starting and stopping a server's process, and whether it runs.

Docker compose does it by default, else the model's own commands.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import signal
import subprocess
import time
import typing

from . import devices, processes
from .errors import LifecycleError
from .inventory import Model, Switching

# What is looked at for a cause: vLLM's processes each print a traceback of their own.
LAST_LINES = 200
# To look at a container is quick, or Docker hangs.
LOOK_TIMEOUT_SECONDS = 10.0
# What a pid file takes from the beginning on, so that a full disk can't keep it from being completed.
_PID_FILE_BYTES = 400


class Process(typing.NamedTuple):
    """The state of the server's process; C(running) is None if it is unknown.

    C(remains): it ended, but processes that it started are still running and may hold the GPU.
    """

    running: bool | None
    exit_code: int | None = None
    remains: bool = False


def for_model(model: Model, stack_dir: str, switching: Switching) -> Lifecycle:
    """The lifecycle of a model's server: its own C(start_command) where it has one, else its compose service."""
    kind = Command if model.start_command else ComposeService
    return kind(model, stack_dir, switching)


class Lifecycle(typing.Protocol):
    """Starts, stops and observes a server's process. C(log_command) is the command that shows its log."""

    log_command: str

    def start(self) -> None:
        """Start the server without waiting for it to be ready. Raises LifecycleError."""

    def stop(self) -> None:
        """End the server. Raises LifecycleError."""

    def process(self) -> Process:
        """The state of its process. Never raises."""

    def start_id(self) -> str:
        """An id of this start of the server; empty if it is unknown. Never raises.

        One that is not known is not the same as another that is not known.
        """

    def pids(self) -> list[int]:
        """The ids of its processes on the host; none if they are unknown. Never raises."""

    def last_lines(self) -> list[str]:
        """The last lines of its log; none if there is no log. Never raises."""


class ComposeService:
    """A service of the stack's compose project. The container carries the name of the service."""

    def __init__(self, model: Model, stack_dir: str, switching: Switching) -> None:
        self.name = model.container_name
        self.file = os.path.join(stack_dir, "docker-compose.yml")
        self.compose = ("docker", "compose", "--file", self.file)
        self.switching = switching
        self.log_command = f"docker logs {self.name}"

    def missing(self) -> str:
        """The file that it would be started from, where that does not exist: then site.yml has not made this host."""
        return "" if os.path.exists(self.file) else self.file

    def start(self) -> None:
        """Create and start the container. Its image has to be there: pulling gigabytes is no part of a switch."""
        command = (*self.compose, "up", "--detach", "--no-deps", "--pull", "never", self.name)
        answer = _run(command, self.switching.command_timeout_seconds, check=False)
        if answer.returncode != 0 and "no such image" in answer.stderr.lower():
            said = answer.stderr.strip().splitlines()[-1]
            raise LifecycleError(
                f"{self.name} can't be started by docker compose, because its image is not on this host ({said}): "
                f"run `docker compose --file {self.file} pull {self.name}` there"
            )
        if answer.returncode != 0 and not os.path.exists(self.file):
            raise LifecycleError(
                f"{self.name} can't be started by docker compose: {self.file} does not exist: set stack_dir to the "
                "folder of the compose project (vllm_stack_dir in the playbooks), or give the model a start_command"
            )
        _check(answer)

    def stop(self) -> None:
        """Stop the container and keep it."""
        # Docker takes whole seconds. Beyond them it kills the container itself, which takes a moment more.
        grace = math.ceil(self.switching.stop_timeout_seconds)
        command = (*self.compose, "stop", "--timeout", str(grace), self.name)
        _run(command, self.switching.command_timeout_seconds + grace)

    def process(self) -> Process:
        """Whether the container runs; unknown where there is no Docker to ask."""
        command = ("docker", "inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", self.name)
        try:
            answer = _run(command, LOOK_TIMEOUT_SECONDS, check=False)
        except LifecycleError:
            return Process(None)
        if answer.returncode != 0:
            return Process(False if "no such" in answer.stderr.lower() else None)
        told = re.match(r"(true|false) (\d+)$", answer.stdout.strip())
        if told is None:
            return Process(None)
        return Process(True) if told.group(1) == "true" else Process(False, int(told.group(2)))

    def start_id(self) -> str:
        """The container's id and when it was started."""
        command = ("docker", "inspect", "--format", "{{.State.Running}} {{.Id}} {{.State.StartedAt}}", self.name)
        try:
            told = _run(command, LOOK_TIMEOUT_SECONDS).stdout.split()
        except LifecycleError:
            return ""
        return " ".join(told[1:]) if len(told) == 3 and told[0] == "true" else ""

    def pids(self) -> list[int]:
        """The processes of the container. `docker top` would need `ps` on the host, which minimal ones lack."""
        try:
            told = _run(("docker", "inspect", "--format", "{{.Id}}", self.name), LOOK_TIMEOUT_SECONDS).stdout
            return processes.of_container(told.strip())
        except (LifecycleError, OSError):
            return []

    def last_lines(self) -> list[str]:
        """The last lines that the container has logged since its last start."""
        try:
            # A container that is started again keeps the log of its former runs.
            inspect = ("docker", "inspect", "--format", "{{.State.StartedAt}}", self.name)
            started = _run(inspect, LOOK_TIMEOUT_SECONDS).stdout.strip()
            logs = ("docker", "logs", "--since", started, "--tail", str(LAST_LINES), self.name)
            return _run(logs, LOOK_TIMEOUT_SECONDS, merge=True).stdout.splitlines()
        except LifecycleError:
            return []


class Command:
    """A server started by its model's C(start_command), which is the server or, with a C(stop_command), may launch it.

    Its output goes to C(run/ID.log) of the stack, its process id to C(run/ID.pid). That file is there before the
    process is, and names the log first, by which a process can be found whose id nobody could write down.
    """

    def __init__(self, model: Model, stack_dir: str, switching: Switching) -> None:
        self.model = model
        self.switching = switching
        self.folder = os.path.join(stack_dir, "run")
        self.log = os.path.join(self.folder, model.id + ".log")
        self.pid_file = os.path.join(self.folder, model.id + ".pid")
        self.log_command = f"cat {self.log}"
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command detached from the caller."""
        if not self.model.stop_command and self._group() is not None:
            self.stop()  # what an earlier start has left
        # The engine knows no AnsibleModule whose run_command it could use, and that one can't detach.
        # pylint: disable=ansible-bad-function
        environment = dict(os.environ, VLLM_SERVER_DEV_MODE="1", **devices.visible(self.model.gpus))
        environment.update(self.model.env)
        self.child = None
        try:
            os.makedirs(self.folder, 0o755, exist_ok=True)
            if os.path.exists(self.log):
                os.replace(self.log, self.log + ".1")
            # The server may write secrets of its environment into its log.
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "wb") as log, self._noting(log.fileno()) as note:
                self.child = subprocess.Popen(
                    self.model.start_command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
                note(
                    {
                        "pid": self.child.pid,
                        "started": processes.start_time(self.child.pid),
                        "boot": processes.boot_id(),
                    }
                )
        except OSError as error:
            program = self.model.start_command[0]
            if error.filename == program:
                raise LifecycleError(
                    f"{self.model.id} could not be started: its start_command[0], {program}, can't be run: "
                    f"{error.strerror}"
                ) from None
            raise LifecycleError(f"{self.model.id} could not be started: {error}") from None

    @contextlib.contextmanager
    def _noting(self, log: int) -> typing.Iterator[typing.Callable[[typing.Mapping[str, typing.Any]], None]]:
        """Write down that a process is about to begin that prints to this log, for what is known of it then.

        Should that not come to be written down, the process is ended before the error is told.
        """
        seen = os.fstat(log)
        new = self.pid_file + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

        def note(what: typing.Mapping[str, typing.Any]) -> None:
            text = json.dumps(what).ljust(_PID_FILE_BYTES).encode()
            if os.pwrite(descriptor, text, 0) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.pid_file)

        try:
            note({"log": [seen.st_dev, seen.st_ino], "boot": processes.boot_id()})
            os.replace(new, self.pid_file)
            yield note
        except BaseException:
            if self.child is not None:
                _signal_group(self.child.pid, signal.SIGKILL)
                self.child.wait()
            for file in (new, self.pid_file):
                with contextlib.suppress(OSError):
                    os.unlink(file)
            raise
        finally:
            os.close(descriptor)

    def stop(self) -> None:
        """Stop the server by C(stop_command), or end the process that was started here."""
        if self.model.stop_command:
            _run(self.model.stop_command, self.switching.command_timeout_seconds)
        pid = self._group()
        if pid is not None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                _signal_group(pid, number)
                if self._ends_within(self.switching.stop_timeout_seconds, pid):
                    break
            else:
                raise LifecycleError(f"{self.model.id}: process {pid} does not end, even when killed")
        elif not self.model.stop_command:
            raise LifecycleError(
                f"{self.model.id} was not started by its start_command here, so it can't be stopped: "
                "give it a stop_command, or end it by hand"
            )
        with contextlib.suppress(OSError):  # it tells by itself that its process is gone
            os.unlink(self.pid_file)

    def process(self) -> Process:
        """Whether the process started here runs. Unknown for one that a launcher has left behind."""
        # First, or one that ends between the two looks would have no exit code.
        lives = self._pid() is not None
        if self.child is not None:
            code = self.child.poll()
            if code is not None:
                if code == 0 and self.model.stop_command:
                    return Process(None)
                return Process(False, code, remains=self._group() is not None)
        if lives:
            return Process(True)
        if self.model.stop_command:
            return Process(None)
        return Process(False, remains=self._group() is not None)

    def start_id(self) -> str:
        """The process started here and when that was; of what a launcher has left behind nothing is known."""
        pid, started, boot = self._saved()
        return f"{pid} {started} {boot}" if boot and self._pid() is not None else ""

    def pids(self) -> list[int]:
        """The process started here and those that it started."""
        group = self._group()
        return [] if group is None else processes.members(group)

    def last_lines(self) -> list[str]:
        """The last lines of what the command printed."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, os.path.getsize(self.log) - 65536))
                return file.read().decode(errors="replace").splitlines()[-LAST_LINES:]
        except OSError:
            return []

    def _saved(self) -> tuple[int, str | None, str | None]:
        """The id, start time and boot of the process started here; an id of 0 where none is known."""
        try:
            with open(self.pid_file, encoding="utf-8") as file:
                saved = json.load(file)
            if "log" in saved:
                device, inode = saved["log"]
                return processes.first_writer(device, inode, saved["boot"])
            return int(saved["pid"]), saved["started"], saved.get("boot")
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            return 0, None, None

    def _pid(self) -> int | None:
        """The id of the process started here while that very process lives; ids are used again, start times are not."""
        pid, started, boot = self._saved()
        # No start time was saved for one that ended as soon as it began. It counts from the boot, as ids do.
        lives = started is not None and processes.start_time(pid) == started and boot in (None, processes.boot_id())
        return pid if lives else None

    def _group(self) -> int | None:
        """The id of the process started here while it, or what it started and has left behind, lives."""
        pid, started, boot = self._saved()
        if not pid or started is None:
            return None
        if self._pid() is not None:
            return pid
        # Its id is its group's too, and the kernel gives it to nobody else while the group lives. After a boot it may.
        gone = processes.start_time(pid) is None
        return pid if gone and boot is not None and boot == processes.boot_id() and processes.members(pid) else None

    def _ends_within(self, seconds: float, group: int) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.child is not None:
                self.child.poll()  # takes the exit status, or the process stays as a zombie
            # The processes it started count too: vLLM's engine is one, and it is what holds the GPU.
            if self._pid() is None and not processes.members(group):
                return True
            time.sleep(0.02)
        return False


def _run(
    command: typing.Sequence[str], seconds: float, check: bool = True, merge: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; C(merge) puts what it writes to both outputs into one, in its order."""
    # The engine knows no AnsibleModule whose run_command it could use.
    # pylint: disable=ansible-bad-function
    try:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        remedy = "install it, or give the model a start_command" if command[0] == "docker" else "install it"
        raise LifecycleError(f"{command[0]} is not installed: {remedy}") from None
    except subprocess.TimeoutExpired:
        raise LifecycleError(f"{' '.join(command)} did not end within {seconds:g} s") from None
    except OSError as error:
        raise LifecycleError(f"{command[0]} can't be run: {error}") from None
    if check:
        _check(answer)
    return answer


def _check(answer: subprocess.CompletedProcess[str]) -> None:
    if answer.returncode != 0:
        said = (answer.stderr or answer.stdout).strip() or "no output"
        raise LifecycleError(f"{' '.join(answer.args)} failed ({answer.returncode}): {said}")


def _signal_group(pid: int, number: int) -> None:
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
    except PermissionError:
        raise LifecycleError(f"process {pid} can't be ended: run as the user who started it, or as root") from None
