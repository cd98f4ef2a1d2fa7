# SPDX-License-Identifier: MIT
"""The gateway against nginx's plain proxy_pass, in front of the same server, by turns.

The server is an nginx that answers at once, so that what is measured is the way and not the model. Both ways have two
workers, keep their connections to the server, write an access log and buffer no answers. The load comes from wrk.

Which worker accepts a connection is otherwise a matter of chance: nginx has given one worker all of 16, and the other
nothing to do. So both ways have a socket for each worker here, and a round's load is several short ones by turns, on
connections of their own.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.gateway.fake_link import model, playing
from tests.gateway.gatewaylib import MODULES, MODULES_DIR, Gateway, until
from tests.serverlib import ROOT, free_port

CHAT = "/v1/chat/completions"
LOAD_SECONDS = 3
# A round loads each way so often, by turns, for so long: what changes on this machine meanwhile meets both ways alike.
TURNS = 4
TURN_SECONDS = 1
CONNECTIONS = 16
# So few that nobody waits for another: what the way itself adds.
FEW_CONNECTIONS = 2
WORKERS = 2
STREAMS = 100
UPLOADS = 3
LOAD_MODULES = "".join(f"load_module {MODULES_DIR / name}; " for name in MODULES)

SERVER = """
pid %(folder)s/nginx.pid;
worker_processes 1;
error_log stderr error;
events { worker_connections 4096; }
http {
    access_log off;
    client_max_body_size 64m;
    client_body_buffer_size 64m;
    client_body_temp_path %(folder)s/body;
    proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi;
    scgi_temp_path %(folder)s/scgi;
    keepalive_requests 1000000;
    server {
        listen 127.0.0.1:%(port)s backlog=4096;
        location = /v1/chat/completions { default_type application/json; return 200 '%(answer)s'; }
        location = /v1/completions {
            content_by_lua_block {
                ngx.header.content_type = "text/event-stream"
                ngx.print("data: one\\n\\n")
                ngx.flush(true)
                ngx.sleep(0.002)
                ngx.print("data: [DONE]\\n\\n")
            }
        }
        location = /v1/embeddings {
            content_by_lua_block { ngx.req.read_body() ngx.print("{}") }
        }
        location = /v1/models { default_type application/json; return 200 '%(models)s'; }
        location = /health { return 200; }
    }
}
"""

PLAIN = """
pid %(folder)s/nginx.pid;
worker_processes 2;
error_log stderr error;
events { worker_connections 16384; }
http {
    access_log %(folder)s/access.log combined buffer=32k flush=1s;
    client_max_body_size 64m;
    client_body_buffer_size 64k;
    client_body_temp_path %(folder)s/body;
    proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi;
    scgi_temp_path %(folder)s/scgi;
    keepalive_requests 100000;
    upstream server { server 127.0.0.1:%(server)s; keepalive 128; keepalive_requests 100000; keepalive_timeout 4s; }
    server {
        listen 127.0.0.1:%(port)s backlog=4096 reuseport;
        location / {
            proxy_pass http://server;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }
    }
}
"""

# What a chat client of today sends: the model comes after the messages.
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant. Answer briefly and say when you do not know."},
    {"role": "user", "content": "Why does bread rise? " * 8},
    {"role": "assistant", "content": "Because the yeast makes gas, which the dough holds. " * 8},
    {"role": "user", "content": "And why is it sometimes flat?"},
]
BODY = json.dumps({"messages": MESSAGES, "model": "m", "max_tokens": 256, "temperature": 0.7, "stream": False})
ANSWER = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Because " * 40}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140},
    }
)
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "vllm"}]})
STREAM = json.dumps({"messages": MESSAGES, "model": "m", "stream": True})
IMAGE = json.dumps(
    {"messages": [{"content": [{"image_url": {"url": "data:;base64," + "iVBORw0KGgo" * 1_900_000}}]}], "model": "m"}
)

WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[%s]==]
function done(summary, latency, requests)
    local errors = summary.errors
    local bad = errors.connect + errors.write + errors.status + errors.timeout
    io.write(string.format('{"requests":%%d,"seconds":%%f,"bad":%%d,"ended":%%d,"p99":%%f}\\n',
        summary.requests, summary.duration / 1e6, bad, errors.read, latency:percentile(99) / 1e3))
end
"""


@contextlib.contextmanager
def nginx(conf: str, port: int, workers: int = 1, **names: object) -> Iterator[list[int]]:
    """Run an nginx of this configuration; the processes of its workers."""
    folder = Path(tempfile.mkdtemp(prefix="bench-nginx-"))
    folder.chmod(0o777)
    (folder / "nginx.conf").write_text(conf % {"folder": folder, "port": port, **names})
    command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g"]
    # A session of its own, as the gateway has: the kernel shares out the cores by sessions.
    process = subprocess.Popen(
        [*command, LOAD_MODULES + "daemon off;"], stdin=subprocess.DEVNULL, start_new_session=True
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        until(lambda: len(children.read_text().split()) == workers, "nginx has its workers")
        yield [int(pid) for pid in children.read_text().split()]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def cpu_seconds(pids: list[int]) -> float:
    """What processes have taken of the cores."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


class Way:
    """A port by which the server is reached, and what those who pass on have taken of the cores, in seconds."""

    def __init__(self, port: int, cpu: Callable[[], float], keeps: bool = True) -> None:
        self.port = port
        self.cpu = cpu
        # Whether connections are kept, so that the end of one is an error.
        self.keeps = keeps

    def load(self, script: Path, connections: int = CONNECTIONS, seconds: int = LOAD_SECONDS) -> dict[str, float]:
        """Ask as fast as it goes: requests a second, CPU seconds a request, 99th percentile of the latency in ms."""
        before = self.cpu()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "-s", str(script)]
        ended = subprocess.run(
            [*command, f"http://127.0.0.1:{self.port}{CHAT}"], capture_output=True, text=True, check=True, timeout=120
        )
        told: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
        assert told["bad"] == 0 and not (self.keeps and told["ended"]), ended.stdout
        cpu = (self.cpu() - before) / told["requests"]
        return {"a_second": told["requests"] / told["seconds"], "cpu": cpu, "p99": told["p99"]}

    def first_byte(self) -> float:
        """The median of the times until a stream's first event is there, in ms."""
        request = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(STREAM)}\r\n\r\n{STREAM}"
        ).encode()
        times = []
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _number in range(STREAMS):
                began = time.perf_counter()
                sock.sendall(request)
                data = b""
                while b"data: one" not in data:
                    data += sock.recv(65536)
                times.append(time.perf_counter() - began)
                while not data.endswith(b"0\r\n\r\n"):
                    data += sock.recv(65536)
        return statistics.median(times) * 1000

    def upload(self) -> float:
        """The least time that a body of 20 MB takes, in seconds."""
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(IMAGE)}\r\n\r\n"
        request = head.encode() + IMAGE.encode()
        times = []
        for _number in range(UPLOADS):
            with socket.create_connection(("127.0.0.1", self.port), timeout=60) as sock:
                began = time.perf_counter()
                sock.sendall(request)
                data = b""
                while b"{}" not in data:
                    piece = sock.recv(65536)
                    assert piece, data
                    data += piece
                assert data.startswith(b"HTTP/1.1 200"), data
                times.append(time.perf_counter() - began)
        return min(times)


def a_socket_each(conf: str) -> str:
    """Give each worker a socket of its own to listen on."""
    assert conf.count(" backlog=4096;") == 1
    return conf.replace(" backlog=4096;", " backlog=4096 reuseport;")


def load_by_turns(ways: tuple[Way, Way], script: Path) -> dict[Way, dict[str, float]]:
    """Load the ways by turns, several times: the means of what the loads give."""
    loads: dict[Way, list[dict[str, float]]] = {way: [] for way in ways}
    for turn in range(TURNS):
        for way in ways if turn % 2 == 0 else ways[::-1]:
            loads[way].append(way.load(script, seconds=TURN_SECONDS))
    return {way: {name: statistics.fmean(load[name] for load in of) for name in of[0]} for way, of in loads.items()}


@contextlib.contextmanager
def serving() -> Iterator[tuple[int, Way]]:
    """A server, its port, and the gateway in front of it."""
    if not shutil.which("nginx"):
        subprocess.run(["bash", str(ROOT / "tools/nginx.sh")], check=True)
    if not shutil.which("wrk"):
        subprocess.run(["bash", str(ROOT / "tools/apt.sh"), "wrk"], check=True)
    server = free_port()
    with contextlib.ExitStack() as stack:
        stack.enter_context(nginx(SERVER, server, answer=ANSWER, models=MODELS))
        manager = stack.enter_context(playing(model("m", server)))
        gateway = stack.enter_context(Gateway(manager, workers=WORKERS, edit=a_socket_each))
        gateway.wait_known()
        yield server, Way(gateway.port, partial(cpu_seconds, gateway.workers()))


@contextlib.contextmanager
def running() -> Iterator[tuple[Way, Way]]:
    """The plain way and the gateway, in front of one server."""
    plain = free_port()
    with contextlib.ExitStack() as stack:
        server, gateway = stack.enter_context(serving())
        pids = stack.enter_context(nginx(PLAIN, plain, WORKERS, server=server))
        yield Way(plain, partial(cpu_seconds, pids)), gateway


def measure(folder: Path, rounds: int) -> list[list[float]]:
    """Return samples: CPU a request, requests a second (plain / gateway), p99 and first byte added, a 20 MB body.

    The ratios are gateway / plain but for the second; what is added is in ms.
    """
    script = folder / "wrk.lua"
    script.write_text(WRK % BODY)
    samples: list[list[float]] = [[] for _figure in range(5)]
    with running() as (plain, gateway):
        for way in (plain, gateway):
            way.load(script)  # caches, and the compiler of Lua
            way.first_byte()
        for number in range(rounds):
            ways = (plain, gateway) if number % 2 else (gateway, plain)
            loads = load_by_turns(ways, script)
            late = {way: way.load(script, FEW_CONNECTIONS)["p99"] for way in ways}
            first = {way: way.first_byte() for way in ways}
            upload = {way: way.upload() for way in ways}
            samples[0].append(loads[gateway]["cpu"] / loads[plain]["cpu"])
            samples[1].append(loads[plain]["a_second"] / loads[gateway]["a_second"])
            samples[2].append(late[gateway] - late[plain])
            samples[3].append(first[gateway] - first[plain])
            samples[4].append(upload[gateway] / upload[plain])
    return samples
