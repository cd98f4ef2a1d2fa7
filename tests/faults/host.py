# SPDX-License-Identifier: MIT
"""A host of two stand-ins that share one GPU, run by the host's own command line as a user runs it.

    with Run() as run:
        host = run.host(Setup(b="2"))
        host.up()
        answer = host.switch("b")
        assert host.look("b").state == "active"

Everything that a run starts carries its folder in its environment, and is ended with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from tests.serverlib import ROOT, STANDIN, free_port, two_awake

MARK = "HOMEGPT_TEST"
MOMENTS = ROOT / "tests" / "faults" / "moments.py"
# b is the bigger one, so that another process can leave room for a and none for b.
GPU_GB, VRAM_GB, ASLEEP_GB = 25.0, {"a": 20.0, "b": 22.0}, 1.0
# To bring a host up, and to heal it, may take a busy machine its time.
PATIENT = {"max_retries": 150, "request_timeout_seconds": 20, "probe_timeout_seconds": 5, "stop_timeout_seconds": 10}
TOKENS_PER_SECOND = 50
# A run that takes longer is no run with bounds.
KILL_AFTER_SECONDS = 90.0
SETTINGS: dict[str, Any] = {
    "max_retries": 50,
    "health_check_interval_seconds": 0.2,
    "request_timeout_seconds": 1,
    "probe_timeout_seconds": 0.5,
    "stop_timeout_seconds": 1,
    "command_timeout_seconds": 2,
    "drain_timeout_seconds": 1,
    "failure_backoff_seconds": 0,
    "canary": "auto",
}


@dataclass(frozen=True)
class Setup:
    """What a host is like before the switch from a to b. A host that is well after a cell serves the next one."""

    a: str = "1"  # how each of the two leaves the GPU: sleep_level
    b: str = "1"
    client_seconds: float = 0.0  # how long the generation takes that runs on a
    drain_seconds: float = 1.0
    drain_action: str = "abort"
    gpus_tell: bool = False  # nvidia-smi answers
    move_seconds: float = 0.0  # how long a sleep and a wake take
    load_seconds: float = 0.0  # how long a server loads
    without: tuple[str, ...] = ()  # rungs that are turned off
    tokens_per_second: int = 0  # 0: as many as can be, unless a client's generation runs
    version: str = ""  # of vLLM, as which the servers behave
    more: tuple[tuple[str, Any], ...] = ()  # of vllm_switching

    @property
    def settings(self) -> dict[str, Any]:
        """vllm_switching."""
        return {
            **SETTINGS,
            "drain_timeout_seconds": self.drain_seconds,
            "drain_timeout_action": self.drain_action,
            "escalation": [rung for rung in ("stop", "retry", "restart", "roll_back") if rung not in self.without],
            **dict(self.more),
        }


@dataclass
class Seen:
    """What one server is, asked from itself."""

    state: str  # active, sleeping, stopped, or error: it lives and does not answer, or its engine is dead
    level: int | None = None
    text: str = ""


@dataclass
class Answer:
    """One ended run of the command line."""

    status: int | None  # None: it had to be killed
    said: str
    result: dict[str, Any] | None
    seconds: float
    ended: float = 0.0  # by the clock that is monotonic


class Run:
    """One run of tests: a folder, ports that nobody else has, and the end of all that was started."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._hosts = 0
        # Of one moment, so that whoever edits the engine meanwhile does not have it tried half.
        shutil.copytree(ROOT / "plugins" / "module_utils" / "switching", self.folder / "engine" / "switching")
        # The GPUs of this machine are not asked.
        tool = self.folder / "bin" / "nvidia-smi"
        tool.parent.mkdir()
        tool.write_text("#!/bin/sh\nexit 9\n", encoding="ascii")
        tool.chmod(0o755)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        """End all that runs, and let nothing begin."""
        self.over.set()
        kill_marked(str(self.folder))

    def host(self, setup: Setup) -> Host:
        """Return a host that has nothing running yet."""
        with self._lock:
            self._hosts += 1
            folder = self.folder / str(self._hosts)
        folder.mkdir()
        return Host(folder, setup, {"a": free_port(), "b": free_port()}, self.folder, self.over)


def kill_marked(folder: str) -> None:
    """End every process that carries a folder, or one within it, as its mark."""
    while left := _marked(folder):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _marked(folder: str) -> list[int]:
    entries = (f"{MARK}={folder}\0".encode(), f"{MARK}={folder}/".encode())
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # A zombie has an empty environment.
            environment = (path / "environ").read_bytes() + b"\0"
            if path.name != str(os.getpid()) and any(entry in environment for entry in entries):
                found.append(int(path.name))
    return found


class Client:
    """A client with one generation that runs, or is held by a server that is paused."""

    def __init__(self, host: Host, seconds: float, name: str = "a") -> None:
        self.tokens = int(seconds * TOKENS_PER_SECOND)
        self.whole = False
        self.name = name
        self._url = host.url(name)
        self._thread = threading.Thread(target=self._ask, daemon=True)
        before = self._requests(host)
        self._thread.start()
        deadline = time.monotonic() + 60
        while self._requests(host) <= before:
            if time.monotonic() > deadline:
                raise TimeoutError("the client's generation did not begin")
            time.sleep(0.01)

    def _requests(self, host: Host) -> int:
        state = host.get(self.name, "/standin/state").json()
        # One may end while the next begins.
        return int(state["requests"] + state["held"] + state["finished"])

    def _ask(self) -> None:
        body = {"model": self.name, "prompt": "Once upon a time", "max_tokens": self.tokens, "temperature": 0}
        with contextlib.suppress(requests.RequestException, ValueError, KeyError):
            choice = requests.post(self._url + "/v1/completions", json=body, timeout=120).json()["choices"][0]
            self.whole = choice["finish_reason"] == "length" and len(choice["text"].split()) == self.tokens

    def wait(self, seconds: float) -> None:
        """Wait for its end."""
        self._thread.join(seconds)


@dataclass
class Host:
    """Two servers, their models.json, and what they do."""

    folder: Path
    setup: Setup
    ports: dict[str, int]
    run: Path  # the folder of the run
    over: threading.Event  # nothing is to begin any more
    right: dict[str, str] = field(default_factory=dict)
    canaries: dict[str, str] = field(default_factory=dict)
    used: int = 0

    @property
    def stack(self) -> Path:
        """The stack folder."""
        return self.folder / "stack"

    @property
    def gpus(self) -> Path:
        """The folder of the GPU's ledger."""
        return self.folder / "gpus"

    def declaration(self) -> dict[str, Any]:
        """Return what models.json says."""
        return {"vllm_models": [self._model("a"), self._model("b")], "vllm_switching": self.setup.settings}

    def _model(self, name: str) -> dict[str, Any]:
        command = [sys.executable, str(STANDIN), "serve", "${model}", "--served-model-name", "${id}"]
        standin = {
            "gpu_dir": self.gpus,
            "gpu_total_gb": GPU_GB,
            "vram_gb": VRAM_GB[name],
            "asleep_gb": ASLEEP_GB,
            "sleep_seconds": self.setup.move_seconds,
            "wake_seconds": self.setup.move_seconds,
            "load_seconds": self.setup.load_seconds,
            "faults_file": self.faults(name),
            "tokens_per_second": TOKENS_PER_SECOND if self.setup.client_seconds else self.setup.tokens_per_second,
            **({"version": self.setup.version} if self.setup.version else {}),
        }
        return {
            "id": name,
            "model": f"org/{name}",
            "host_port": self.ports[name],
            "weights_gb": 0.01,
            "sleep_level": getattr(self.setup, name),
            "args": {"gpu_memory_utilization": VRAM_GB[name] / GPU_GB},
            "start_command": [*command, "--host", "127.0.0.1", "--port", "${host_port}", "--enable-sleep-mode"],
            "env": {f"STANDIN_{key.upper()}": str(value) for key, value in standin.items()},
        }

    def write(self, declaration: dict[str, Any]) -> None:
        """Write models.json."""
        self.stack.mkdir(exist_ok=True)
        (self.stack / "models.json").write_text(json.dumps(declaration), encoding="utf-8")

    def faults(self, name: str) -> Path:
        """Return the file in which a server finds its faults."""
        return self.folder / f"{name}.faults"

    def order(self, name: str, orders: list[dict[str, Any]]) -> None:
        """Order faults that outlive the server."""
        self.faults(name).write_text(json.dumps(orders), encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """Return the environment of the command line, and by it of the servers."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("STANDIN_", "VLLM_", "CUDA_"))}
        tools = ROOT / "tests" / "standin" / "bin" if self.setup.gpus_tell else self.run / "bin"
        env["PATH"] = f"{tools}{os.pathsep}{env.get('PATH', os.defpath)}"
        env["PYTHONPATH"] = str(self.run / "engine")
        env[MARK] = str(self.folder)
        if self.setup.gpus_tell:
            env |= {"STANDIN_GPU_DIR": str(self.gpus), "STANDIN_GPU_TOTAL_GB": str(GPU_GB)}
        return env

    def up(self) -> None:
        """Bring a up and b beside it, as a user would. That records both canaries."""
        for name in ("b", "a"):
            answer = self.patiently(name)
            if answer.status != 0:
                raise RuntimeError(f"the host did not come up: {answer.said}")
            self.right[name] = self.text(name)
        self.canaries = self.known_answers()
        if not all(any(event["model"] == name for event in self.events()) for name in ("a", "b")):
            raise RuntimeError("the servers do not tell what they do, so nobody would know that both were awake")

    def arguments(self, name: str, stack: Path | None = None) -> list[str]:
        """Return what the command line is called with."""
        return ["--stack-dir", str(stack or self.stack), "switch", name, "--json"]

    def patiently(self, name: str, **settings: str) -> Answer:
        """Run the host's own command line with time enough."""
        declaration = self.declaration()
        declaration["vllm_switching"] |= PATIENT | settings
        self.write(declaration)
        try:
            return self.switch(name)
        finally:
            self.write(self.declaration())

    def switch(
        self, name: str, moments: Path | None = None, said: Path | None = None, stack: Path | None = None
    ) -> Answer:
        """Run the host's own command line; C(moments) are orders for moments.py, C(said) is where its errors go."""
        if self.over.is_set():
            raise RuntimeError("the run is over")
        how = ["-m", "switching"] if moments is None else [str(MOMENTS), str(moments)]
        command = [sys.executable, *how, *self.arguments(name, stack)]
        own, said = said is None, said or self.folder / f"said-{threading.get_ident()}"
        started = time.monotonic()
        with (
            said.open("w", encoding="utf-8") as errors,
            subprocess.Popen(
                command,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                # One of the moments may be a limit on files. What somebody else is told is read meanwhile.
                stderr=subprocess.PIPE if own else errors,
                text=True,
            ) as process,
        ):
            try:
                printed, text = process.communicate(timeout=KILL_AFTER_SECONDS)
                status: int | None = process.returncode
            except subprocess.TimeoutExpired:
                process.kill()
                printed, text = process.communicate()
                status = None
        ended = time.monotonic()
        lines = printed.strip().splitlines()
        result = json.loads(lines[-1]) if lines else None
        text = text if own else said.read_text(encoding="utf-8")
        return Answer(status, text.strip(), result, ended - started, ended)

    def url(self, name: str) -> str:
        """Return where a server answers."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def get(self, name: str, path: str) -> requests.Response:
        """Ask a server, past the engine."""
        return requests.get(self.url(name) + path, timeout=5)

    def text(self, name: str) -> str:
        """Return what a server answers to a client."""
        body = {"model": name, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
        answer = requests.post(self.url(name) + "/v1/completions", json=body, timeout=5)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["text"])

    def look(self, name: str) -> Seen:
        """What a server is, whatever anybody says."""
        try:
            if self.get(name, "/health").status_code != 200:
                return Seen("error")
            state = self.get(name, "/standin/state").json()
            asleep = bool(state["asleep"] or state["paused"])
            if self.get(name, "/is_sleeping").json()["is_sleeping"] != asleep:
                return Seen("error")
            return Seen("sleeping", state["level"]) if asleep else Seen("active", None, self.text(name))
        except requests.ConnectionError:
            return Seen("error" if self.lives(name) else "stopped")
        except (requests.RequestException, ValueError, KeyError, RecursionError):
            return Seen("error")

    def pid(self, name: str) -> int:
        """The process that was started last."""
        return int(json.loads((self.stack / "run" / f"{name}.pid").read_text(encoding="utf-8"))["pid"])

    def lives(self, name: str) -> bool:
        """Whether the process that was started last lives."""
        try:
            return (
                Path(f"/proc/{self.pid(name)}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
                not in "ZX"
            )
        except (OSError, ValueError, KeyError):
            return False

    def forget_memory(self, name: str) -> None:
        """Leave a server's memory out of the GPU's ledger, until it sleeps, wakes or ends."""
        with (self.gpus / "ledger.lock").open("a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.gpus / "ledger.json"
            ledger = json.loads(file.read_text(encoding="utf-8"))
            left = {key: entry for key, entry in ledger.items() if entry["model"] != name}
            file.write_text(json.dumps(left), encoding="utf-8")

    def events(self) -> list[dict[str, Any]]:
        """What the servers did, in order."""
        file = self.gpus / "events.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []

    def two_awake(self, since: int = 0) -> list[str]:
        """The moments at which both were on the GPU."""
        return two_awake(self.events(), since)

    def known_answers(self) -> dict[str, str]:
        """What is recorded of the answers. Raises where an answer is not recorded: every switch records or compares."""
        records = json.loads((self.stack / "run" / "canary.json").read_text(encoding="utf-8"))["models"]
        told = ("text", "reproducible", "suspect")
        return {name: " ".join(str(records[name][key]) for key in told) for name in ("a", "b")}

    def as_it_was(self) -> bool:
        """Whether the host is as C(up) has left it, so that another cell can have it."""
        b = Seen("stopped") if self.setup.b == "stop" else Seen("sleeping", int(self.setup.b))
        with contextlib.suppress(OSError, ValueError, KeyError):
            a = Seen("active", None, self.right["a"])
            return self.known_answers() == self.canaries and self.look("a") == a and self.look("b") == b
        return False

    def normal(self, text: str) -> str:
        """Return a text of the engine without what differs from run to run."""
        text = re.sub(r"\nThe last lines of its log:(\n  .*)*", "", text)
        for name, port in self.ports.items():
            text = text.replace(f"http://127.0.0.1:{port}", "").replace(f"port {port}", f"{name}'s port")
        text = text.replace(str(self.stack), "DIR").replace(str(self.folder), "DIR")
        # Which of them it is, is a matter of moments.
        text = re.sub(r"the connection was lost: .*|connection refused", "the connection was lost", text)
        text = re.sub(r"process \d+", "process PID", text)
        text = re.sub(r" on \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "", text)
        text = re.sub(r"with (['\"]).*?\1, not with (['\"]).*?\2", "otherwise than", text)
        text = re.sub(r": (<!DOCTYPE|\{).*", "", text)
        return text.replace("otherwise than as recorded", "otherwise than recorded")

    def end(self) -> None:
        """End all that runs here."""
        kill_marked(str(self.folder))
