# SPDX-License-Identifier: MIT
"""Run the collection's playbooks in tests and the benchmark as a user does, and read what they said.

host = Host(tmp_path, [launched("a", startup_mode="active"), launched("b")])
ansible = Ansible(ansible_playbook, tmp_path, [host])
run = ansible.play("bootstrap")
assert run.changed() == 2
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.serverlib import ACCESS, ROOT, STANDIN, Server, free_port

RECAP = re.compile(r"^(\S+) +: (ok=\d+ .*)$", re.MULTILINE)


def served(server: Server, name: str, **fields: object) -> dict[str, Any]:
    """Return an entry of vllm_models for a server that runs already and answers to the name."""
    return {"id": name, "model": f"org/{name}", "host_port": server.port, "weights_gb": 0.01, **fields}


def launched(name: str, *, flags: Iterable[str] = (), env: Mapping[str, object] | None = None, **fields: object) -> Any:
    """Return an entry of vllm_models for a stand-in that its start_command starts."""
    command = [sys.executable, str(STANDIN), "serve", "${model}", "--served-model-name", "${id}", "${model}"]
    command += ["--host", "127.0.0.1", "--port", "${host_port}", "--enable-sleep-mode", *flags]
    return {
        "id": name,
        "model": f"org/{name}",
        "host_port": free_port(),
        "weights_gb": 0.01,
        "start_command": command,
        "env": env or {},
        **fields,
    }


def unspaced_python(folder: Path) -> str:
    """A Python for tasks with C(async), whose path Ansible does not quote: a checkout's folder may have a space."""
    interpreter = folder / "python"
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    interpreter.chmod(0o755)
    return str(interpreter)


class Host:
    """A host of an inventory that is this machine, with models and a stack folder of its own."""

    def __init__(
        self,
        folder: Path,
        models: list[dict[str, Any]],
        switching: Mapping[str, object] | None = None,
        name: str = "host",
    ) -> None:
        self.name = name
        self.models = models
        self.switching = dict(switching or {})
        self.stack = folder / f"stack-{name}"
        self.gpus = folder / f"gpus-{name}"
        for model in models:
            if "start_command" in model and "STANDIN_GPU_DIR" not in model["env"]:
                model["env"] = {"STANDIN_GPU_DIR": str(self.gpus), **model["env"]}

    def variables(self) -> dict[str, Any]:
        """Return the host's variables."""
        return {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "vllm_models": self.models,
            "vllm_switching": self.switching,
            "vllm_stack_dir": str(self.stack),
        }

    def port(self, name: str) -> int:
        """Return the port of a model."""
        return next(int(model["host_port"]) for model in self.models if model["id"] == name)

    def calls(self, name: str) -> list[str]:
        """Return the calls in the access logs of a model that its start_command started."""
        logs = [self.stack / "run" / f"{name}.log{suffix}" for suffix in (".1", "")]
        text = "".join(log.read_text(encoding="utf-8") for log in logs if log.exists())
        return [match["call"] for match in ACCESS.finditer(text)]

    def events(self) -> list[dict[str, Any]]:
        """Return what the stand-ins of this host did, in order."""
        file = self.gpus / "events.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []

    def kill(self) -> None:
        """End whatever the start_commands have started."""
        for file in self.stack.glob("run/*.pid"):
            with contextlib.suppress(ValueError, OSError):
                os.killpg(json.loads(file.read_text(encoding="utf-8"))["pid"], signal.SIGKILL)


@dataclass
class Run:
    """One ended run of ansible-playbook."""

    status: int
    output: str
    seconds: float
    lines: list[tuple[float, str]] = field(default_factory=list)  # with the time at which each was printed

    def said_at(self, text: str) -> float:
        """Return when a line with the text was printed first."""
        return next(when for when, line in self.lines if text in line)

    @property
    def diff(self) -> list[str]:
        """The lines that the diff takes away and adds, in order."""
        return re.findall(r"^(?:-(?!--)|\+(?!\+\+)).*$", self.output, re.MULTILINE)

    def changed(self, host: str = "host") -> int:
        """Return the host's number of changed tasks; the run must have succeeded."""
        assert self.status == 0, self.output
        return self.count("changed", host)

    def count(self, what: str, host: str = "host") -> int:
        """Return one of the numbers behind a host's name in the recap."""
        return int(dict(part.split("=") for part in self.recap[host].split())[what])

    @property
    def recap(self) -> dict[str, str]:
        """The lines of the recap by host."""
        return dict(RECAP.findall(self.output))

    def results(self, *outcomes: str, ignored: bool = True) -> list[dict[str, Any]]:
        """Return what is shown of the tasks' results: all at -v, else those of `debug` and of failed tasks."""
        head = re.compile(rf"^(?:{'|'.join(outcomes)}): \[.*?=> (?={{)", re.MULTILINE)
        found = []
        for match in head.finditer(self.output):
            result, end = json.JSONDecoder().raw_decode(self.output, match.end())
            if ignored or not self.output.startswith("\n...ignoring", end):
                found.append(result)
        return found

    @property
    def switched(self) -> dict[str, Any]:
        """What the one host's switch returned; all of it is shown at -v only."""
        (result,) = [shown for shown in self.results("ok", "changed", "fatal") if "elapsed_seconds" in shown]
        return result

    def tables(self, *columns: str) -> list[list[str]]:
        """Return the lines of each table with these first columns, without the header."""
        lines = self.output.splitlines()
        begins = [number for number, line in enumerate(lines, 1) if line.split()[: len(columns)] == list(columns)]
        # A result, a banner or the end comes after it.
        ends = [next(n for n in range(first, len(lines)) if not lines[n] or "[" in lines[n]) for first in begins]
        return [lines[first:last] for first, last in zip(begins, ends, strict=True)]

    @property
    def report(self) -> list[list[str]]:
        """The cells of the switch's report: host, from, to, seconds, result, reason."""
        (table,) = self.tables("host", "from", "to", "seconds", "result", "reason")
        return [re.split(r" {2,}", line, maxsplit=5) for line in table]

    @property
    def table(self) -> list[list[str]]:
        """The status table's cells."""
        (table,) = self.tables("host", "model", "state", "level", "port", "running", "waiting", "gpu_gb")
        return [line.split(maxsplit=8) for line in table]

    @property
    def steps(self) -> list[str]:
        """The steps in the diff."""
        return re.findall(r"^\+step \d+: (.*)$", self.output, re.MULTILINE)

    def failure(self) -> str:
        """Return the message of the one failed task; the run must have failed, and without a traceback."""
        assert self.status == 2, self.output
        assert "Traceback" not in self.output, self.output
        (result,) = self.results("fatal", "failed", ignored=False)
        said = result["msg"]
        return "\n".join(said) if isinstance(said, list) else str(said)

    @property
    def mistakes(self) -> list[str]:
        """What the first task of the playbook found; it must have failed, and nothing else may have been played."""
        assert self.status == 2, self.output
        assert "Traceback" not in self.output, self.output
        (result,) = self.results("fatal")
        assert isinstance(result["msg"], list), self.output
        assert len(re.findall(r"^TASK ", self.output, re.MULTILINE)) == 1, self.output
        return [str(mistake) for mistake in result["msg"]]


class Ansible:
    """An ansible-playbook with an inventory, untouched by the settings of whoever runs the tests."""

    def __init__(self, command: str, folder: Path, hosts: Sequence[Host]) -> None:
        self.command = command
        self.hosts = hosts
        self.inventory = folder / "inventory.yml"
        inventory = {"vllm_hosts": {"hosts": {host.name: host.variables() for host in hosts}}}
        self.inventory.write_text(json.dumps(inventory, indent=1), encoding="utf-8")  # JSON is YAML
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        self.env = {
            **kept,
            # The bench pretends its GPUs too, and has no conftest.py.
            "PATH": f"{STANDIN.parent / 'bin'}{os.pathsep}{kept['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            # A collection of this name in the user's home must not be the one under test.
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        }

    def play(
        self,
        playbook: str | Path,
        *arguments: str,
        cwd: Path = ROOT,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 300,
        terminal: bool = False,
    ) -> Run:
        """Run a playbook, one of the collection's by its short name, and return how it went.

        C(terminal) has it print to one of 80 columns: to a pipe a task's live lines come when it has ended.
        """
        if isinstance(playbook, str) and "." not in playbook:
            playbook = f"playbooks/{playbook}.yml"
        changed = {**self.env, **(env or {})}
        started = time.monotonic()
        lines: list[tuple[float, str]] = []
        ours, its = _terminal() if terminal else os.pipe()
        with (
            os.fdopen(ours, encoding="utf-8") as output,
            subprocess.Popen(
                [self.command, "-i", str(self.inventory), str(playbook), *arguments],
                cwd=cwd,
                env={name: value for name, value in changed.items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=its,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            os.close(its)
            overdue = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
            overdue.start()
            try:
                # A terminal that nobody writes to any more ends with an error.
                with contextlib.suppress(OSError):
                    lines.extend((time.time(), line) for line in output)
                process.wait()
            finally:
                overdue.cancel()
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        printed = "".join(line for _when, line in lines)
        seconds = time.monotonic() - started
        assert seconds < timeout, f"{playbook} had not ended after {timeout:g} s:\n{printed}"
        return Run(process.returncode, printed, seconds, lines)


def _terminal() -> tuple[int, int]:
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    return ours, its


def complete(port: int, model: str, tokens: int = 16, **more: object) -> dict[str, Any]:
    """Return a greedy completion's one choice, and beside it how many tokens it has."""
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = requests.post(f"http://127.0.0.1:{port}/v1/completions", json={**body, **more}, timeout=60)
    answer.raise_for_status()
    parsed = answer.json()
    return {**parsed["choices"][0], "tokens": parsed["usage"]["completion_tokens"]}


def is_sleeping(port: int) -> bool:
    """Return what the server says."""
    answer = requests.get(f"http://127.0.0.1:{port}/is_sleeping", timeout=10)
    return bool(answer.json()["is_sleeping"])
