# SPDX-License-Identifier: MIT
"""A gateway in a folder of its own: nginx as its role would set it up, with Debian's packages, on free ports.

with Gateway(manager) as gateway:
    requests.post(gateway.url + "/v1/chat/completions", json={"model": "a", ...})
    assert gateway.log()[-1]["model"] == "a"
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import jinja2
import requests

from tests.gateway.fake_link import FakeManager
from tests.serverlib import ROOT, free_port

ROLE = ROOT / "roles" / "model_gateway"
TEMPLATE = ROLE / "templates" / "nginx.conf.j2"
LUA = ROLE / "files" / "lua"
MODULES = ("ndk_http_module.so", "ngx_http_lua_module.so")
MODULES_DIR = Path("/usr/lib/nginx/modules")
PATIENCE_SECONDS = 20.0
# What nginx says when something is wrong with it or with its Lua. What clients and servers do is told as [error], too.
FAILURES = (
    "[emerg]",
    "[alert]",
    "[crit]",
    "lua entry thread aborted",
    "failed to run",
    "runtime error",
    "lua coroutine",
)


def missing() -> str:
    """Why no gateway can be started on this machine; empty: it can."""
    if not shutil.which("nginx"):
        return "there is no nginx (make gateway installs it)"
    absent = [name for name in MODULES if not (MODULES_DIR / name).exists()]
    return f"nginx lacks {', '.join(absent)} (make gateway installs them)" if absent else ""


def role_settings(port: int) -> dict[str, Any]:
    """Return settings.json as the role writes it, with its defaults, for a manager at this port."""
    build = str(ROOT / ".build")
    if build not in sys.path:
        sys.path.insert(0, build)  # pytest knows that by itself
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import gateway

    return gateway.settings(None, port, ["gateway"])


def hashed(key: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of keys.json for a key that is given as `key`; without `models` it is for all."""
    entry = {"models": ["*"], **key}
    entry["sha256"] = hashlib.sha256(entry.pop("key").encode()).hexdigest()
    return entry


def until(done: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Poll until it is true, and return it. Fails when it never is."""
    deadline = time.monotonic() + seconds
    while not (value := done()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return value


class Gateway:
    """An nginx of its own, with the role's template and Lua."""

    def __init__(
        self,
        manager: FakeManager,
        *,
        keys: list[dict[str, Any]] | None = None,
        workers: int = 1,
        port: int | None = None,
        edit: Callable[[str], str] = str,
        certificate: tuple[Path, Path] | None = None,
        listens: Callable[[int], list[dict[str, Any]]] | None = None,
        **settings: object,
    ) -> None:
        # Not pytest's own folder: the workers are another user, who could not get into it.
        self.folder = Path(tempfile.mkdtemp(prefix="gateway-"))
        self.folder.chmod(0o755)
        self.manager = manager
        self.port = port or free_port()
        self.scheme = "https" if certificate else "http"
        self.url = f"{self.scheme}://127.0.0.1:{self.port}"
        self.trusted = str(certificate[1]) if certificate else True
        self.workers_wanted = workers
        self.edit = edit
        # As the role writes them. The clients of these tests call it `gateway`.
        self.settings = role_settings(manager.port) | settings
        self.token = manager.token
        # Whom a test has killed is no failure, nor that this machine gives out fewer files.
        self.forgiven = ["exited on signal 9", "setrlimit(RLIMIT_NOFILE"]
        self.keys = keys
        # Where it listens, from its port; else at the loopback address, with TLS if there is a certificate.
        self.listens = listens
        self.spool = self.folder / "spool"
        self.spool.mkdir()
        (self.folder / "temp").mkdir()
        shutil.copytree(LUA, self.folder / "lua")
        if certificate:
            for name, file in zip(("tls.key", "tls.crt"), certificate, strict=True):
                self._file(name, file.read_text(), 0o600)
        self.write()
        self.process: subprocess.Popen[bytes] | None = None

    # ---- files ----------------------------------------------------------------------------

    def write(self) -> None:
        """Write what nginx reads when it starts and when it is reloaded."""
        self._file("settings.json", json.dumps(self.settings), 0o644)
        self._file("link-token", self.token + "\n", 0o600)
        if self.keys is not None:
            self._file("keys.json", json.dumps([hashed(key) for key in self.keys]), 0o600)
        self._file("nginx.conf", self.edit(self.render()), 0o644)

    def render(self) -> str:
        """Return nginx.conf, rendered as Ansible renders it."""
        environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
        tls = (self.folder / "tls.crt").exists()
        return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            model_gateway_workers=self.workers_wanted,
            __model_gateway_listens=(
                self.listens(self.port) if self.listens else [{"address": f"127.0.0.1:{self.port}", "tls": tls}]
            ),
            __model_gateway_tls=tls,
            __model_gateway_spool=str(self.spool),
            __model_gateway_temp=str(self.folder / "temp"),
            __model_gateway_settings=self.settings,
        )

    def _file(self, name: str, text: str, mode: int) -> None:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)

    # ---- the process ----------------------------------------------------------------------

    def __enter__(self) -> Gateway:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        failures = self.failures()
        self.stop()
        if kind is None:
            assert not failures, "\n".join(failures)

    def command(self) -> list[str]:
        """Return the command line of nginx, which stays in the foreground."""
        load = "".join(f"load_module {MODULES_DIR / name}; " for name in MODULES)
        conf = str(self.folder / "nginx.conf")
        return ["nginx", "-p", str(self.folder), "-e", "stderr", "-c", conf, "-g", load + "daemon off;"]

    def start(self) -> None:
        """Start nginx and wait until it serves."""
        with (self.folder / "access.log").open("ab") as out, (self.folder / "error.log").open("ab") as err:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        until(self._serves, "nginx serves")

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"nginx ended:\n{self.error_log()}"
        try:
            return requests.get(self.url + "/health", verify=self.trusted, timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def wait_known(self) -> Gateway:
        """Wait until every worker has a link, and the models are known."""
        self.manager.until_linked(self.workers_wanted)
        headers = {"Authorization": f"Bearer {self.keys[0]['key']}"} if self.keys else {}
        until(
            lambda: (
                requests.get(self.url + "/v1/models", headers=headers, verify=self.trusted, timeout=20).status_code
                == 200
            ),
            "the models are known",
        )
        return self

    def workers(self) -> list[int]:
        """Return the processes of the workers that are not about to end, the oldest first."""
        return [pid for pid, title in self._children() if "shutting down" not in title]

    def old_workers(self) -> list[int]:
        """Return the processes of the workers that a reload has replaced and that still have something to do."""
        return [pid for pid, title in self._children() if "shutting down" in title]

    def _children(self) -> list[tuple[int, str]]:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        found = []
        for pid in children.split():
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if title.startswith("nginx: worker"):
                    found.append((int(pid), title))
        return found

    def reload(self) -> None:
        """Have nginx read its files again, and wait until new workers serve."""
        assert self.process is not None
        before = set(self.workers())
        self.process.send_signal(signal.SIGHUP)
        until(
            lambda: len(self.workers()) == self.workers_wanted and not before & set(self.workers()),
            "nginx has new workers",
        )

    def kill_worker(self, pid: int) -> None:
        """Kill a worker, and wait until another one has taken its place."""
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid not in self.workers() and len(self.workers()) == self.workers_wanted, "a new worker")
        until(lambda: all(link.pid != pid for link in getattr(self.manager, "links", ())), "its link is cut")

    def quit(self) -> None:
        """Have nginx end when its requests have, and wait for it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        """End nginx and all that it started; remove its folder."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- what it tells --------------------------------------------------------------------

    def error_log(self) -> str:
        """Return what nginx said."""
        return (self.folder / "error.log").read_text(encoding="utf-8", errors="replace")

    def failures(self) -> list[str]:
        """Return the lines of the error log that tell of something wrong with nginx or with its Lua."""
        if not (self.folder / "error.log").exists():
            return []
        lines = self.error_log().splitlines()
        return [
            line
            for line in lines
            if any(word in line for word in FAILURES) and not any(word in line for word in self.forgiven)
        ]

    def forgive(self, *words: str) -> None:
        """Expect failures whose lines have one of these in them."""
        self.forgiven += words

    def log(self) -> list[dict[str, Any]]:
        """Return the rows of the access log that are complete, without the checks of health."""
        text = (self.folder / "access.log").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.split("\n")[:-1]]
        return [row for row in rows if row["path"] != "/health"]

    def logged(self, number: int = 1, **wanted: object) -> list[dict[str, Any]]:
        """Wait until so many rows have these values, and return them. The log is written once a second."""

        def found() -> list[dict[str, Any]]:
            return [row for row in self.log() if all(row[name] == value for name, value in wanted.items())]

        until(lambda: len(found()) >= number, f"{number} rows of the access log with {wanted}", 10)
        return found()


class Start(Protocol):
    """Starts a gateway of a manager, which knows the models when it is returned; `settings`: keys of settings.json."""

    def __call__(
        self,
        manager: FakeManager,
        *,
        workers: int = 1,
        keys: list[dict[str, Any]] | None = None,
        known: bool = True,
        edit: Callable[[str], str] = str,
        **settings: Any,
    ) -> Gateway:
        """The gateway; it is stopped at the end of the test, which fails if it has logged a failure of its own."""


class Client:
    """A connection to the gateway, on which bytes are sent and received as they are."""

    def __init__(self, gateway: Gateway, timeout: float = 20.0) -> None:
        self.sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes | str) -> Client:
        """Send it all."""
        self.sock.sendall(data.encode() if isinstance(data, str) else data)
        return self

    def post(self, path: str, body: bytes, headers: str = "", version: str = "1.1", encoding: str = "utf-8") -> Client:
        """Send a POST with a JSON body and its length."""
        head = f"POST {path} HTTP/{version}\r\nHost: gateway\r\nContent-Type: application/json\r\n{headers}"
        return self.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode(encoding) + body)

    def receive(self, until: bytes = b"") -> bytes:
        """Receive until these bytes have come, or, without any, until the connection ends in whatever way."""
        data = b""
        while not until or until not in data:
            try:
                piece = self.sock.recv(65536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                assert not until, f"the connection ended before {until!r}: {data!r}"
                break
            data += piece
        return data

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Receive an answer with a length: its status, its headers with names in lower case, its body."""
        data = self.receive(b"\r\n\r\n")
        head, _separator, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _colon, value in (line.partition(":") for line in lines)}
        length = int(headers["content-length"])
        while len(body) < length:
            piece = self.sock.recv(65536)
            assert piece, f"the connection ended in the body: {body!r}"
            body += piece
        return int(first.split()[1]), headers, body
