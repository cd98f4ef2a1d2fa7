# SPDX-License-Identifier: MIT
"""The two ends of the gateway, played by hand: a client that sees what comes when, and a model's server by a script."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from tests.serverlib import free_port

PATIENCE_SECONDS = 20.0


def until(done: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> float:
    """Poll until it is done; how many seconds that took. Fails when it never is."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - began


class Call:
    """A request to the gateway that has been sent. What is read waits for it."""

    def __init__(
        self,
        port: int,
        body: dict[str, Any] | bytes,
        path: str = "/v1/chat/completions",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.began = time.monotonic()
        self.connection.request("POST", path, text, {"Content-Type": "application/json"} | (headers or {}))
        self._answer: http.client.HTTPResponse | None = None

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def answer(self) -> http.client.HTTPResponse:
        """The answer's status and headers, when they are there."""
        if self._answer is None:
            self._answer = self.connection.getresponse()
            self.headed = time.monotonic()
        return self._answer

    @property
    def answered(self) -> bool:
        """Whether anything has come yet."""
        assert self.connection.sock is not None
        return self._answer is not None or bool(select.select([self.connection.sock], [], [], 0)[0])

    @property
    def status(self) -> int:
        return self.answer.status

    def header(self, name: str) -> str | None:
        return self.answer.getheader(name)

    def event(self) -> str:
        """The next event of a stream, or comment, without the empty line after it; "" at the end."""
        lines = []
        while line := self.answer.readline().decode():
            if line == "\n":
                break
            lines.append(line)
        return "".join(lines).rstrip("\n")

    def events(self) -> list[str]:
        """All events that are still to come, to the regular end of the answer."""
        return [each for each in self.answer.read().decode().split("\n\n") if each]

    def json(self) -> Any:
        """The whole answer, decoded."""
        return json.loads(self.answer.read())

    def close(self) -> None:
        """Go away."""
        if self._answer is not None:
            # It holds the connection open as long as it is not closed, too.
            self._answer.close()
        self.connection.close()

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        assert self.connection.sock is not None
        self.connection.sock.shutdown(socket.SHUT_WR)


class Asked:
    """A request as a server got it, and the connection to answer on."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        with sock.makefile("rb") as file:
            head = []
            while (line := file.readline()) not in (b"\r\n", b"\n"):
                if not line:
                    raise EOFError
                head.append(line.decode("latin-1").rstrip("\r\n"))
            self.line = head[0]
            self.headers = [(name.strip(), value.strip()) for name, value in (each.split(":", 1) for each in head[1:])]
            self.body = file.read(int(self.header("Content-Length") or 0))

    def header(self, name: str) -> str | None:
        """The value of a header, all of them where there are several."""
        values = [value for each, value in self.headers if each.lower() == name.lower()]
        return ", ".join(values) if values else None

    def send(self, text: str | bytes) -> None:
        """Send it as it is."""
        self.sock.sendall(text if isinstance(text, bytes) else text.encode())

    def head(self, *headers: str, status: str = "200 OK", kind: str = "text/event-stream; charset=utf-8") -> None:
        """Begin an answer."""
        self.send("\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *headers, "", ""]))

    def chunk(self, text: str) -> None:
        """A chunk of an answer whose head says `Transfer-Encoding: chunked`; the empty one ends it."""
        self.send(f"{len(text.encode()):x}\r\n{text}\r\n")

    def gone(self, seconds: float = PATIENCE_SECONDS) -> bool:
        """Whether the other side closes within so many seconds, or has: what it sends has then ended the script."""
        try:
            self.sock.settimeout(seconds)
            return self.sock.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def reset(self) -> None:
        """Die: with RST, as a process that was killed with something unread."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


Script = Callable[[Asked], None]


def token(text: str) -> str:
    """An event of a chat's stream."""
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n"


DONE = "data: [DONE]\n\n"


def streams(texts: Iterable[str] = ("Hello", " world"), end: str = DONE) -> Script:
    """A script: a regular stream, chunked."""

    def script(asked: Asked) -> None:
        asked.head("Transfer-Encoding: chunked")
        for text in texts:
            asked.chunk(token(text))
        asked.chunk(end)
        asked.chunk("")

    return script


def answers(value: Any, status: str = "200 OK") -> Script:
    """A script: a JSON answer with its length."""

    def script(asked: Asked) -> None:
        text = json.dumps(value)
        asked.head(f"Content-Length: {len(text.encode())}", status=status, kind="application/json")
        asked.send(text)

    return script


class Server:
    """A model's server that answers each request by a script, one to a connection; with a context it speaks TLS."""

    def __init__(
        self, script: Script | None = None, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.context = context
        self.port = free_port()
        self.script = script or answers({"ok": True})
        self.asked: list[Asked] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, self.port), family=family, backlog=4096)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _address = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, EOFError):
            if self.context:
                sock = self.context.wrap_socket(sock, server_side=True)
            asked = Asked(sock)
            self.asked.append(asked)
            self.script(asked)
