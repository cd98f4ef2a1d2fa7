# SPDX-License-Identifier: MIT
"""Start and stop servers in tests, the benchmark and the demo: stand-ins, and real vLLM.

    with start_standin("org/model", names=["a"]) as server:
        requests.post(server.url + "/sleep", params={"level": 1})
        assert server.accesses("POST") == ["POST /sleep?level=1"]

A server runs in its own process group, which is killed when the block ends, however it ends.
What it prints goes to `server.log`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

ROOT = Path(__file__).resolve().parent.parent
STANDIN = ROOT / "tests" / "standin" / "vllm_standin.py"
# Some versions put the name and the number of the process before it, in colours.
ACCESS = re.compile(
    r'^(?:\S*\(APIServer pid=\d+\)\S* )?INFO:     \S+:\d+ - "(?P<call>\S+ \S+) HTTP/1\.[01]" (?P<status>\d{3})',
    re.MULTILINE,
)

# Those that tools/real_vllm.sh builds, the oldest first.
REAL_VERSIONS = ("0.11.0", "0.12.0", "0.16.0", "0.17.1", "0.20.2", "0.29.0", "0.32.0")
NEWEST = REAL_VERSIONS[-1]
# Where VLLM_CPU_OMP_THREADS_BIND must not be "nobind", it ends the server.
CPU_BIND = {"0.11.0": "all", "0.20.2": f"0-{(os.cpu_count() or 1) - 1}"}

_running: set[Server] = set()


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on, another one each time, in all processes."""
    candidates = _candidates()
    while candidates:
        port = candidates.pop()
        # Others that may look for a port see the lock, until this process ends: a server may take a minute to listen.
        with contextlib.suppress(OSError), socket.socket() as sock:
            if reserved(port):
                sock.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no port is left")


def reserved(first: int, count: int = 1) -> bool:
    """Whether these ports are this process's from now on, among all that ask here."""
    try:
        fcntl.lockf(_port_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
    except OSError:
        return False
    return True


@functools.cache
def _candidates() -> list[int]:
    """Ports to try, in an order of this process. All are below those that the kernel gives to clients."""
    return random.Random().sample(range(20000, 32768), 12768)


@functools.cache
def _port_locks() -> int:
    """A file of which one byte is locked for each port that is given."""
    path = Path(tempfile.gettempdir(), f"homegpt-vllm-test-ports-{os.getuid()}")
    # Never closed: the first close of a file that is open twice would end all locks of the process.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


class Server:
    """A process that serves, or will serve, on a port of the loopback interface."""

    def __init__(self, command: list[str], port: int, log: Path, env: Mapping[str, str]) -> None:
        self.command = command
        self.port = port
        self.log = log
        self.url = f"http://127.0.0.1:{port}"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )
        self.pid = self.process.pid
        _running.add(self)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def wait_ready(self, timeout: float = 60.0) -> Server:
        """Wait until /health answers 200; fail at once, with its last lines, if the process ends before."""
        deadline = time.monotonic() + timeout
        while True:
            if not self.alive:
                raise RuntimeError(f"{self._what()} ended with {self.process.returncode}:\n{self.tail()}")
            try:
                if requests.get(self.url + "/health", timeout=5).status_code == 200:
                    return self
            except requests.RequestException:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._what()} was not ready after {timeout} s:\n{self.tail()}")
            time.sleep(0.01)

    def wait_end(self, timeout: float = 60.0) -> int:
        """Wait until the process has ended and return its status."""
        return self.process.wait(timeout)

    def stop(self, timeout: float = 10.0) -> None:
        """End the process as an operator would, then whatever is left of its group by force."""
        _running.discard(self)
        if self.alive:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """End the whole process group at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def tail(self, lines: int = 30) -> str:
        """Return the last lines that it printed."""
        return "\n".join(self.text().splitlines()[-lines:])

    def text(self) -> str:
        """Return all that it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def accesses(self, method: str = "", since: int = 0) -> list[str]:
        """Return the calls in the access log ("POST /sleep?level=1"), from an offset that mark() gave."""
        calls = [match["call"] for match in ACCESS.finditer(self.text(), since)]
        return [call for call in calls if call.startswith(method)]

    def mark(self) -> int:
        """Return where the log ends now."""
        return len(self.text())

    def call(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Make one call, with a time limit."""
        return requests.request(method, self.url + path, **{"timeout": 30, **kwargs})

    def fault(self, path: str, fault: str, **options: Any) -> None:
        """Order a fault of a stand-in (see tests/standin/faults.py)."""
        self.call("POST", "/standin/faults", json={"path": path, "fault": fault, **options}).raise_for_status()

    def _what(self) -> str:
        return f"{Path(self.command[1]).name} on port {self.port}"


def start_standin(
    model: str = "org/model-a",
    *,
    names: Iterable[str] = (),
    port: int | None = None,
    log: Path | None = None,
    dev_mode: bool = True,
    flags: Iterable[str] = ("--enable-sleep-mode",),
    wait: bool = True,
    gpus: str = "",
    variables: Mapping[str, str] | None = None,
    **settings: object,
) -> Server:
    """Start a stand-in; `settings` become STANDIN_* variables: load_seconds=2 is STANDIN_LOAD_SECONDS=2."""
    port = port or free_port()
    served = ["--served-model-name", *names] if names else []
    command = [sys.executable, str(STANDIN), "serve", model, "--host", "127.0.0.1", "--port", str(port), *served]
    env = _environment({f"STANDIN_{name.upper()}": str(value) for name, value in settings.items()}, dev_mode)
    env.update(variables or {})
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = gpus
    server = Server([*command, *flags], port, log or _log("standin", port), env)
    return _waited(server, wait, 60)


def start_real(
    venv: Path,
    model: str,
    *,
    names: Iterable[str] = (),
    port: int | None = None,
    log: Path | None = None,
    dev_mode: bool = True,
    flags: Iterable[str] = (),
    max_model_len: int = 2048,
    wait: bool = True,
    variables: Mapping[str, str] | None = None,
) -> Server:
    """Start real vLLM on the CPU (about half a minute); `model` is tiny-a or tiny-b, `venv` is real_venv()."""
    port = port or free_port()
    command = [*real_command(venv, model, port, names or [model], max_model_len), *flags]
    server = Server(
        command, port, log or _log("real", port), {**_environment(real_settings(venv), dev_mode), **(variables or {})}
    )
    return _waited(server, wait, 240)


def real_command(venv: Path, model: str, port: int | str, names: Iterable[str], max_model_len: int = 2048) -> list[str]:
    """Return the command line that serves one of the tiny models."""
    command = [str(venv / "bin" / "python"), str(venv / "bin" / "vllm"), "serve", str(venv / "models" / model)]
    command += ["--served-model-name", *names, "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--max-model-len", str(max_model_len), "--enforce-eager", "--max-num-seqs", "4"]


def real_model(venv: Path, folder: Path, kind: str) -> Path:
    """Make a tiny model of a kind that tools/real_vllm_kinds.py knows, for start_real(); return where it is."""
    command = [str(venv / "bin" / "python"), str(ROOT / "tools" / "real_vllm_kinds.py"), str(folder), kind]
    subprocess.run(command, env={**os.environ, **real_settings(venv)}, stdin=subprocess.DEVNULL, check=True)
    return folder / kind


def real_adapters(venv: Path, folder: Path, *names: str) -> list[Path]:
    """Make tiny LoRA adapters for the tiny models; return where each is. Two names give two different answers."""
    command = [str(venv / "bin" / "python"), str(ROOT / "tools" / "real_vllm_adapters.py"), str(folder), *names]
    subprocess.run(command, env={**os.environ, **real_settings(venv)}, stdin=subprocess.DEVNULL, check=True)
    return [folder / name for name in names]


def real_settings(venv: Path) -> dict[str, str]:
    """Return the environment variables that real vLLM needs on the CPU."""
    version = real_version(venv)
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # By default each server binds its worker to the same first core.
        "VLLM_CPU_OMP_THREADS_BIND": CPU_BIND.get(version, "nobind"),
        "OMP_NUM_THREADS": "1",
        **({} if version == NEWEST else {"TORCHDYNAMO_DISABLE": "1"}),  # the first request would compile for long
        # Its processes leave the sockets between them behind.
        "VLLM_RPC_BASE_PATH": _folder("sockets").name,
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def real_venv(version: str = NEWEST) -> Path:
    """Return the virtual environment of real vLLM, which is built when it is not there (minutes)."""
    output = subprocess.check_output([ROOT / "tools" / "real_vllm.sh", version], text=True)
    return Path(output.strip())


def opened_by_others(file: Path) -> set[str]:
    """The processes other than this one that have the file open."""
    found = set()
    for process in os.listdir("/proc"):
        if not process.isdigit() or process == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):  # it went away, or is not ours to look at
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{process}/fd/{descriptor}").readlink() == file.resolve():
                        found.add(process)
    return found


def real_version(venv: Path) -> str:
    """Return the version of vLLM in a folder that real_venv() gave."""
    return venv.name.split("-")[2]


def two_awake(events: Iterable[dict[str, Any]], since: int = 0) -> list[str]:
    """The moments at which two servers were on one GPU, as the stand-ins' events.jsonl tells them.

    A server is on its GPUs from the moment it loads or begins to wake until it sleeps or is dead. What began
    before the event number C(since) is not reported.
    """
    on: dict[str, dict[str, Any]] = {}
    # By the server that came second: who was there, and what to say about it.
    suspected: dict[str, list[tuple[str, str]]] = {}
    for number, event in enumerate(events):
        server = event["id"]
        if event["event"] in ("sleeping", "dead"):
            on.pop(server, None)
            if event.get("cause") == "killed":
                # It could not say so itself: the next server to take memory noticed, after that one's own event.
                for others in suspected.values():
                    others[:] = [other for other in others if other[0] != server]
        elif event["event"] in ("loading", "waking", "partly_awake", "awake"):
            if server not in on and number >= since:
                suspected.setdefault(server, []).extend(
                    (other, f"{event['model']} was {event['event']} while {seen['model']} was {seen['event']}")
                    for other, seen in on.items()
                    if set(seen["gpus"]) & set(event["gpus"])
                )
            on[server] = event
    return [text for others in suspected.values() for _other, text in others]


def _environment(settings: Mapping[str, str], dev_mode: bool) -> dict[str, str]:
    """Return this process's environment without what would change a server, and with its settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("STANDIN_", "VLLM_", "CUDA_"))}
    return {**env, **settings, **({"VLLM_SERVER_DEV_MODE": "1"} if dev_mode else {})}


def _waited(server: Server, wait: bool, timeout: float) -> Server:
    if wait:
        try:
            server.wait_ready(timeout)
        except BaseException:
            server.kill()
            raise
    return server


@functools.cache
def _folder(what: str) -> tempfile.TemporaryDirectory[str]:
    """Where something of servers goes that nobody asked for; gone when this process ends."""
    return tempfile.TemporaryDirectory(prefix=f"{what}-")


def _log(kind: str, port: int) -> Path:
    return Path(_folder("logs").name) / f"{kind}-{port}.log"


@atexit.register
def _kill_all() -> None:
    for server in list(_running):
        server.kill()
