# SPDX-License-Identifier: MIT
"""A connection to the manager of another host: HTTP/1.1 with JSON, one request after the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

# A manager that answers more is none.
_MOST_BYTES = 16 * 2**20


class Answer(NamedTuple):
    """What was answered; `body` is what its JSON says, None where there is none."""

    status: int
    tag: str
    body: Any


class Unanswered(Exception):
    """There was no answer, or none that a manager gives; the text says why."""


class Connection:
    """One connection. Whoever closes it while a request is under way takes that back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader = reader
        self._writer = writer
        peer = writer.get_extra_info("peername")
        if peer is None:
            raise Unanswered("it has closed the connection")
        host, port = peer[:2]
        self.peer = str(host)
        # Managers know clients that call them by a name only if they were told the name.
        self._head = f"Host: {f'[{host}]' if ':' in host else host}:{port}\r\n"
        if token:
            self._head += f"Authorization: Bearer {token}\r\n"

    @classmethod
    async def open(cls, address: str, port: int, token: str, seconds: float) -> Connection:
        """Connect. Raises Unanswered."""
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), seconds)
        except (OSError, asyncio.TimeoutError, TimeoutError) as error:
            raise Unanswered(_why(error)) from None
        return cls(reader, writer, token)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        tag: str = "",
        seconds: float | None = None,
    ) -> Answer:
        """Ask for something, and wait so long for the answer. Raises Unanswered."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\n{self._head}"
        if tag:
            head += f"If-None-Match: {tag}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        try:
            self._writer.write(head.encode() + b"\r\n" + data)
            return await asyncio.wait_for(self._answer(), seconds)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError, TimeoutError) as error:
            raise Unanswered(_why(error)) from None

    def close(self) -> None:
        """Close it at once."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._writer.transport.abort()

    async def _answer(self) -> Answer:
        version, status, *_reason = (await self._line()).split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError("what it answers is not HTTP")
        headers: dict[str, str] = {}
        while line := await self._line():
            name, _colon, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        if not 0 <= length <= _MOST_BYTES or "transfer-encoding" in headers:
            raise ValueError("its answer has no length, or is too long")
        data = b"" if int(status) == 304 else await self._reader.readexactly(length)
        return Answer(int(status), headers.get("etag", ""), json.loads(data) if data else None)

    async def _line(self) -> str:
        return (await self._reader.readuntil(b"\n")).decode("latin-1").rstrip("\r\n")


def _why(error: Exception) -> str:
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "no answer in time"
    if isinstance(error, EOFError):
        return "it has closed the connection"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
