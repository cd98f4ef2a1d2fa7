# SPDX-License-Identifier: MIT
"""The connections of clients: a bounded number of them, on each of which a request has to come in time."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

# How long a client may take to send a request, from the connection or from its first byte on.
REQUEST_SECONDS = 30.0
# How long a connection stays open after an answer: longer than clients and proxies keep theirs (httpx 5 s, aiohttp
# 15 s, nginx 60 s). A request that is under way when the service closes the connection is lost, and a POST is not
# repeated.
KEEP_ALIVE_SECONDS = 75
# So many beyond the bound are told that there are too many. More are closed.
TOLD = 100
_RETRY_SECONDS = 5
_FULL = "there are too many connections (max_connections)"


class Connection(H11Protocol):
    """One connection. uvicorn's own bound (`limit_concurrency`) takes any number of those on which nothing is asked."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most = self.limit_concurrency or math.inf
        self.limit_concurrency = None  # what is refused is refused here, as JSON
        self._full = False
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > self._most + TOLD:
            transport.abort()
            return
        self._full = len(self.connections) > self._most
        if self._full:
            self.app = _refuse
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A part of a request, a whole one, or more."""
        super().data_received(data)
        if self.transport.get_protocol() is self:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._forget()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """It becomes a WebSocket."""
        self._forget()
        super().handle_websocket_upgrade(event)

    def _should_upgrade(self) -> bool:
        return not self._full and super()._should_upgrade()

    def _watch(self) -> None:
        """Give the client its time while a request, or the rest of one, is to come from it."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._forget()
        elif self._late is None:
            self._late = self.loop.call_later(REQUEST_SECONDS, self.transport.close)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


async def _refuse(_scope: Scope, _receive: Receive, send: Send) -> None:
    body = json.dumps({"error": _FULL, "remedy": "try again later"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(_RETRY_SECONDS).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
