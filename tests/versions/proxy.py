# SPDX-License-Identifier: MIT
"""A server with something in front of it that lets a call fail, or keeps back its answer, when told so.

    python proxy.py FOLDER PORT COMMAND ... {port} ...

It starts the command, with a free port for {port}, in its own process group, ends with it, and passes on what comes to
PORT. An order is a file in FOLDER: `fail` or `stall`, with the beginning of a path and query in it. The next such call
is answered 500 and not passed on, or is passed on and its answer kept back for a minute; the order is then `failed`, or
`stalled` once the server has answered. While there is `slow`, every call is passed on so many seconds late. While there
is `reroute`, a JSON object of names of models, what asks for one of them is passed on as if it asked for the other: as
from a server that has lost its LoRA adapters, so a start of the server ends it. Each call that is passed on is written
to `calls` there, with its status.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.serverlib import free_port

DROPPED = {"connection", "keep-alive", "transfer-encoding", "host"}
SECONDS_OF_STALLING = 60


def taken(folder: Path, order: str, path: str) -> bool:
    """Whether an order is about this call; it is then no order any more."""
    file = folder / order
    with contextlib.suppress(FileNotFoundError):
        if path.startswith(file.read_text(encoding="utf-8")):
            file.unlink()
            return True
    return False


def rerouted(folder: Path, body: bytes) -> bytes:
    """The body of a call, with the name of the model that is asked instead."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        others = json.loads((folder / "reroute").read_text(encoding="utf-8"))
        asked = json.loads(body)
        if isinstance(asked, dict) and asked.get("model") in others:
            return json.dumps({**asked, "model": others[asked["model"]]}).encode()
    return body


def handler(folder: Path, inner: int) -> type[BaseHTTPRequestHandler]:
    """Return the handler for the calls."""

    class Handler(BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with contextlib.suppress(FileNotFoundError):
                time.sleep(float((folder / "slow").read_text(encoding="utf-8")))
            if taken(folder, "fail", self.path):
                (folder / "failed").touch()
                self.note(500, "not passed on")
                text = b'{"error":{"message":"ordered","type":"InternalServerError","param":null,"code":500}}'
                self.head(500, [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
                self.wfile.write(text)
                return
            body = rerouted(folder, body)
            connection = http.client.HTTPConnection("127.0.0.1", inner, timeout=600)
            try:
                left_out = {*DROPPED, "content-length"}  # the client counts what it sends
                headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
            except OSError:
                self.close_connection = True
                return
            self.note(answer.status)
            if taken(folder, "stall", self.path):
                (folder / "stalled").touch()
                time.sleep(SECONDS_OF_STALLING)
            self.head(answer.status, [pair for pair in answer.getheaders() if pair[0].lower() not in DROPPED])
            while part := answer.read1(65536):
                self.wfile.write(part)
            connection.close()

        do_GET = do_POST = pass_on

        def head(self, status: int, headers: list[tuple[str, str]]) -> None:
            self.send_response_only(status)
            for name, value in [*headers, ("Connection", "close")]:
                self.send_header(name, value)
            self.end_headers()
            self.close_connection = True

        def note(self, status: int, more: str = "") -> None:
            with (folder / "calls").open("a", encoding="utf-8") as file:
                file.write(f"{self.command} {self.path} {status} {more}".rstrip() + "\n")

        def log_message(self, *_: object) -> None:
            """The server itself has an access log."""

    return Handler


class Listener(ThreadingHTTPServer):
    """Refuses nobody whom the server would not."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that has gone is none."""


def main() -> int:
    """Run until the server has ended."""
    folder, port, *command = sys.argv[1:]
    (Path(folder) / "reroute").unlink(missing_ok=True)
    inner = free_port()
    process = subprocess.Popen([word.replace("{port}", str(inner)) for word in command], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    # Connections are refused until the server has loaded, as by the server itself.
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", inner), 1):
            break
        time.sleep(0.1)
    else:
        return process.returncode
    listener = Listener(("127.0.0.1", int(port)), handler(Path(folder), inner))
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
