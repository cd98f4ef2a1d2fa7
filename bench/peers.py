# SPDX-License-Identifier: MIT
"""The gateway against programs of PyPI that pass requests on by their model, in front of the same server, by turns.

Each is set up as its own documentation has it for one server, has two workers where it can, logs nothing that it need
not, and has a virtual environment of its own. What is compared is the CPU time of all its processes for one request.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import requests

from bench.gateway import BODY, CHAT, WORKERS, WRK, Way, serving
from tests.serverlib import ROOT, free_port

START_SECONDS = 120
LITELLM = "litellm[proxy]==1.100.0"
VLLM_ROUTER = "vllm-router==0.1.17"
LOCAL_LLM_SERVER = "local-llm-server==0.38.6"


class Begun(NamedTuple):
    """A command, its environment, the name by which it knows the model, and whether it keeps connections."""

    command: list[str]
    environment: dict[str, str]
    model: str = "m"
    keeps: bool = True


def litellm(venv: Path, folder: Path, port: int, server: int) -> Begun:
    """LiteLLM's proxy, without a database."""
    server_of_it = {"model": "openai/m", "api_base": f"http://127.0.0.1:{server}/v1", "api_key": "none"}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": "m", "litellm_params": server_of_it}]}))  # JSON is YAML
    command = [str(venv / "bin/litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    # Else it asks a server elsewhere what models cost.
    return Begun([*command, "--num_workers", str(WORKERS)], {"LITELLM_LOCAL_MODEL_COST_MAP": "True"})


def vllm_router(venv: Path, folder: Path, port: int, server: int) -> Begun:
    """The router of the project vLLM."""
    command = [str(venv / "bin/vllm-router"), "--worker-urls", f"http://127.0.0.1:{server}", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(free_port()), "--log-level", "error"]
    return Begun([*command, "--policy", "round_robin", "--log-dir", str(folder)], {})


def local_llm_server(venv: Path, folder: Path, port: int, server: int) -> Begun:
    """local-llm-server, which starts the models' servers itself; what it starts here does nothing."""
    (folder / "m").mkdir()
    (folder / "gateway.toml").write_text(
        f'host = "127.0.0.1"\nport = {port}\ninternal_base_port = {server}\nmax_resident = 1\ndynamic = false\n'
        'auto_update = false\ntray = false\n[[models]]\nmodel = "./m"\nbackend = "mlx"\n'
    )
    idle = folder / "mlx_lm.server"
    idle.write_text("#!/bin/sh\nexec sleep infinity\n")
    idle.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "LOCAL_LLM_GW_LAUNCHER": "cli"}
    # It keeps files of its own in the user's folders, and asks PyPI for its newest version.
    environment |= {"HOME": str(folder), "XDG_CACHE_HOME": str(folder), "https_proxy": "http://127.0.0.1:9"}
    return Begun([str(venv / "bin/python"), "-m", "local_llm_server"], environment, "./m", keeps=False)


PEERS: dict[str, Callable[[Path, Path, int, int], Begun]] = {
    LITELLM: litellm,
    VLLM_ROUTER: vllm_router,
    LOCAL_LLM_SERVER: local_llm_server,
}


def session_seconds(session: int) -> float:
    """What all processes of a session have taken of the cores, those threads of theirs too that have ended."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def peer(package: str, server: int) -> Iterator[tuple[Way, str]]:
    """Run it in front of the server; the way, and the body of a request by it."""
    built = subprocess.run(
        ["bash", str(ROOT / "tools/peer.sh"), package], stdout=subprocess.PIPE, text=True, check=True
    )
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-peer-") as name:
        folder = Path(name)
        begun = PEERS[package](Path(built.stdout.strip()), folder, port, server)
        body = json.dumps({**json.loads(BODY), "model": begun.model})
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                begun.command, cwd=folder, env={**os.environ, **begun.environment}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(port, body):
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
                time.sleep(0.2)
            yield Way(port, lambda: session_seconds(process.pid), begun.keeps), body
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(port: int, body: str) -> bool:
    """Whether a request by this port has the server's answer."""
    try:
        headers = {"Content-Type": "application/json"}
        answer = requests.post(f"http://127.0.0.1:{port}{CHAT}", body, headers=headers, timeout=30)
        return answer.status_code == 200 and "Because" in answer.text
    except requests.RequestException:
        return False


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return, by peer, samples of the CPU of a request: the gateway's in percent of the peer's."""
    samples: dict[str, list[float]] = {package: [] for package in PEERS}
    with contextlib.ExitStack() as stack:
        server, gateway = stack.enter_context(serving())
        ways = {"": (gateway, BODY)} | {package: stack.enter_context(peer(package, server)) for package in PEERS}
        scripts = {}
        for number, (name, (_way, body)) in enumerate(ways.items()):
            scripts[name] = folder / f"{number}.lua"
            scripts[name].write_text(WRK % body)
        for name, (way, _body) in ways.items():
            way.load(scripts[name])  # caches, and the compilers of Lua and Python
        for number in range(rounds):
            order = list(ways) if number % 2 else list(reversed(ways))
            cpu = {name: ways[name][0].load(scripts[name])["cpu"] for name in order}
            for package, those in samples.items():
                those.append(100 * cpu[""] / cpu[package])
    return samples
