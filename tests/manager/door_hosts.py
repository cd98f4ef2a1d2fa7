# SPDX-License-Identifier: MIT
"""Hosts behind a door, played: managers that tell what a test says; and a door, served as its service is."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.manager.conftest import until
from tests.manager.gateway_workers import TOKEN, Worker
from tests.serverlib import free_port

if TYPE_CHECKING:
    from model_manager.door import Door

MANAGER_TOKEN = "the-manager-token"


def model(name: str, gate: str = "closed", **more: Any) -> dict[str, Any]:
    """A model, as the manager of a host tells it; `more` replaces any of it."""
    state = "active" if gate == "open" else "sleeping"
    return {
        "id": name,
        "names": [name],
        "adapters": [],
        "gate": gate,
        "state": state,
        "eta_seconds": 0 if gate == "open" else 5,
        "entry": json.dumps({"id": name, "object": "model", "loaded": gate == "open", "tags": [{"name": state}]}),
        "adapter_entries": [],
    } | more


class PlayedHost:
    """A manager that answers `GET /gateway` and `POST /switch`."""

    def __init__(self, name: str, *models: dict[str, Any]) -> None:
        self.name = name
        self.models = list(models)
        self.links = 1
        self.in_flight: dict[str, int] = {}
        self.waiting: dict[str, int] = {}
        self.port = free_port()
        # What `POST /switch` answers, and whether the model is active then; None: it hangs.
        self.answer: tuple[int, dict[str, Any]] | None = (200, {"status": "success"})
        self.opens = True
        # The switches that it was asked for, and those that were taken back.
        self.asked: list[str] = []
        self.withdrawn: list[str] = []
        self.hangs = False
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._sockets: set[socket.socket] = set()

    def config(self) -> dict[str, Any]:
        """How the door reaches it."""
        return {
            "name": self.name,
            "address": "localhost",
            "port": 8000,
            "api_key": f"key-of-{self.name}",
            "manager_address": "127.0.0.1",
            "manager_port": self.port,
            "manager_token": MANAGER_TOKEN,
        }

    def set(self, name: str, gate: str, **more: Any) -> None:
        """A model is something else from now on."""
        self.models = [model(name, gate, **more) if one["id"] == name else one for one in self.models]

    def start(self) -> None:
        """Be up."""
        played = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                played._sockets.add(self.connection)

            def log_message(self, *_arguments: Any) -> None:
                pass

            def reply(self, status: int, said: Any, tag: str = "") -> None:
                data = b"" if status == 304 else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if tag:
                    self.send_header("ETag", tag)
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                if self.headers["Authorization"] != f"Bearer {MANAGER_TOKEN}":
                    self.reply(401, {"error": "a token is needed"})
                    return
                end = time.monotonic() + float(self.path.partition("wait=")[2])
                while True:
                    said = {
                        "links": played.links,
                        "waiting": played.waiting,
                        "in_flight": played.in_flight,
                        "models": played.models,
                    }
                    tag = hashlib.sha256(json.dumps(said).encode()).hexdigest()
                    while played.hangs:
                        time.sleep(0.01)
                    if tag != self.headers["If-None-Match"] or time.monotonic() >= end:
                        break
                    time.sleep(0.01)
                self.reply(304 if tag == self.headers["If-None-Match"] else 200, said, tag)

            def do_POST(self) -> None:
                name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model_id"]
                opens = played.opens  # whoever sees that it was asked may have another in mind
                played.asked.append(name)
                while played.answer is None:
                    self.connection.settimeout(0.02)
                    try:
                        if self.connection.recv(1) == b"":
                            played.withdrawn.append(name)
                            return
                    except TimeoutError:
                        pass
                    except OSError:
                        played.withdrawn.append(name)
                        return
                self.connection.settimeout(None)
                if played.answer[0] == 200 and opens:
                    played.set(name, "open")
                self.reply(*played.answer)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_arguments: Any) -> None:
                pass  # its host was killed

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def kill(self) -> None:
        """Be gone, with all connections."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._sockets = set()


class Served:
    """A door, in an event loop of its own."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.port = free_port()
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._ready = threading.Event()
        self.door: Door
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        from model_manager import door_config, gateway_link
        from model_manager.door import Door
        from model_manager.door_host import following

        self.door = Door(door_config.parse(self._config))
        with socket.create_server(("127.0.0.1", self.port)) as listening:
            async with gateway_link.serving(self.door, TOKEN, listening), following(list(self.door.hosts.values())):
                self._ready.set()
                await self._ending.wait()
                await self.door.close()

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)


@contextlib.contextmanager
def served(folder: Path, *hosts: PlayedHost) -> Iterator[Worker]:
    """A door of these hosts, and a worker of its gateway that has the state."""
    config = {
        "gateway_listen": "127.0.0.1:9001",
        "gateway_token_file": "/unused",
        "models_file": str(folder / "models.json"),
        "hosts": [host.config() for host in hosts],
    }
    door = Served(config)
    worker = Worker(door.port)
    try:
        until(lambda: worker.of("state"), "the worker has the state")
        yield worker
    finally:
        worker.close()
        door.close()
