# SPDX-License-Identifier: MIT
"""The connections of the gateway's workers: lines of JSON over TCP, in the event loop of the service.

Nothing here knows what the lines mean. A worker that sends what is no line of JSON, or takes nothing any more, loses
its connection; it may come again.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import hmac
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Protocol

from .config import ConfigError, address_and_port
from .gateway_counts import Link

_LOG = logging.getLogger(__name__)

PROTOCOL = 1
# The longest line that a worker may send.
MOST_LINE_BYTES = 65536
# What may pile up for a worker that takes nothing.
MOST_UNSENT_BYTES = 8 * 2**20
# nginx has a worker for each core, and those of before while they end.
MOST_LINKS = 512
# Of those who have not said who they are yet, the one that is there longest goes when more come.
MOST_STRANGERS = 64
# How long whoever connects may take to say who it is.
_HELLO_SECONDS = 5.0
_LEAST_TOKEN = 16


class Settings(Protocol):
    """Where the workers connect, and the file of the secret that they share with whoever listens there."""

    @property
    def gateway_listen(self) -> str:
        """The address and port."""

    @property
    def gateway_token_file(self) -> str:
        """The file."""


class Brain(Protocol):
    """Who decides what the workers are told: the manager's side of a host's gateway, or the door of many hosts."""

    def connected(self, link: Link) -> None:
        """A worker has come."""

    def lost(self, link: Link) -> None:
        """A worker has gone, or has never been there."""

    def take(self, link: Link, messages: Iterable[Mapping[str, Any]]) -> None:
        """What a worker says. Raises ValueError, KeyError, TypeError or AttributeError at what is wrong."""

    def tick(self) -> float:
        """Do what is due; in how many seconds to call this again."""


class WorkerLink(asyncio.Protocol):
    """One connection. The gateway knows it from its first line on, if that has the token."""

    def __init__(self, server: LinkServer) -> None:
        self.store = ""
        self.name = "a connection to gateway_listen"
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._left = b""
        self._greeted = False
        self._hurry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._server.came(self)
        loop = asyncio.get_running_loop()
        self._hurry = loop.call_later(_HELLO_SECONDS, self.drop, "did not say who it is")

    def data_received(self, data: bytes) -> None:
        """A part of its lines."""
        *lines, self._left = (self._left + data).split(b"\n")
        if len(self._left) > MOST_LINE_BYTES or any(len(line) > MOST_LINE_BYTES for line in lines):
            self.drop(f"sent a line of more than {MOST_LINE_BYTES} bytes")
            return
        try:
            messages = [_message(line) for line in lines]
            if messages and not self._greeted:
                self._greet(messages.pop(0))
            if messages and self._greeted:
                self._server.gateway.take(self, messages)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            self.drop(f"sent what makes no sense ({type(error).__name__})")

    def eof_received(self) -> bool:
        """It sends no more: close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._hurry:
            self._hurry.cancel()
        self._server.went(self)
        self._server.gateway.lost(self)

    def send(self, message: Mapping[str, Any] | bytes) -> None:
        """Send a message, or a line that is encoded already, from whatever thread."""
        line = message if isinstance(message, bytes) else json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self._server.post(self, line)

    def write(self, data: bytes) -> None:
        """Write lines, within the event loop. Who does not take them is dropped."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() + len(data) > MOST_UNSENT_BYTES:
            self.drop("takes nothing any more")
            return
        self._transport.write(data)

    def close(self) -> None:
        """End it, once what was written is sent."""
        if self._transport:
            self._transport.close()

    def _greet(self, hello: Mapping[str, Any]) -> None:
        if hello.get("t") != "hello" or not self._server.knows(str(hello.get("token"))):
            self.drop("has a wrong token, or none: the gateway and the manager must have the same link token")
            return
        if hello.get("protocol") != PROTOCOL:
            self.drop(f"speaks protocol {hello.get('protocol')!r}, and this manager {PROTOCOL}: update the older one")
            return
        self.name = f"the gateway's worker {str(hello.get('worker'))[:40]!r}"
        self.store = str(hello.get("store") or "")
        if self._hurry:
            self._hurry.cancel()
        self._greeted = self._server.greeted(self)
        if self._greeted:
            self._server.gateway.connected(self)

    def drop(self, why: str) -> None:
        """End it at once, and say why."""
        self._server.went(self)
        if self._transport and not self._transport.is_closing():
            self._server.complain(f"{self.name} {why}: it is closed")
            self._transport.abort()


class LinkServer:
    """All connections. What is to be sent is handed to the event loop, as much at once as there is."""

    def __init__(self, gateway: Brain, token: str) -> None:
        self.gateway = gateway
        self._digest = _digest(token)
        self._links: set[WorkerLink] = set()
        self._strangers: dict[WorkerLink, None] = {}
        self._outbox: collections.deque[tuple[WorkerLink, bytes]] = collections.deque()
        self._posted = False
        self._loop = asyncio.get_running_loop()
        self._complained: dict[str, float] = {}

    def knows(self, token: str) -> bool:
        """Whether this is the token."""
        return hmac.compare_digest(_digest(token), self._digest)

    def came(self, link: WorkerLink) -> None:
        """Somebody has connected."""
        self._strangers[link] = None
        if len(self._strangers) > MOST_STRANGERS:
            next(iter(self._strangers)).drop("makes room for others: too many have not said who they are")

    def greeted(self, link: WorkerLink) -> bool:
        """Somebody has said who it is; whether there is room."""
        self._strangers.pop(link, None)
        if len(self._links) >= MOST_LINKS:
            link.drop(f"is one too many: {MOST_LINKS} workers are connected")
            return False
        self._links.add(link)
        return True

    def went(self, link: WorkerLink) -> None:
        """Somebody has gone."""
        self._strangers.pop(link, None)
        self._links.discard(link)

    def complain(self, text: str) -> None:
        """Say what is wrong, the same at most once a minute: whoever can connect could fill the log."""
        now = self._loop.time()
        if now - self._complained.get(text, -60.0) >= 60:
            if len(self._complained) > 100:
                self._complained.clear()
            self._complained[text] = now
            _LOG.warning("%s", text)

    def post(self, link: WorkerLink, line: bytes) -> None:
        """Have a line sent; from whatever thread, in the order in which this is called."""
        self._outbox.append((link, line))
        if not self._posted:
            self._posted = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._posted = False
        lines: dict[WorkerLink, list[bytes]] = {}
        with contextlib.suppress(IndexError):
            while True:
                link, line = self._outbox.popleft()
                lines.setdefault(link, []).append(line)
        for link, found in lines.items():
            link.write(b"".join(found))

    async def ticking(self) -> None:
        """Have the gateway do what is due, for ever."""
        while True:
            pause = 1.0
            try:
                pause = self.gateway.tick()
            except Exception as failure:  # a mistake of ours: the next time may go well
                self.complain(f"what is due for the gateway was not done: {failure!r}")
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Send what there is, and close all connections."""
        self._flush()
        for link in [*self._links, *self._strangers]:
            link.close()
        for _each in range(100):
            if not self._links and not self._strangers:
                return
            await asyncio.sleep(0.01)


def read_token(config: Settings) -> str:
    """The secret that the gateway and the manager share. Raises ConfigError."""
    path = config.gateway_token_file
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(path, [f"gateway_token_file can't be read ({reason}): write a random text into it"]) from None
    if len(token) < _LEAST_TOKEN:
        what = f"gateway_token_file has {len(token)} characters: write at least {_LEAST_TOKEN} random ones into it"
        raise ConfigError(path, [what])
    return token


def listen(config: Settings) -> socket.socket:
    """A socket with the address for the workers. Raises OSError, whose text says what to do."""
    host, port = address_and_port(config.gateway_listen)
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(
            f"the service can't listen on {config.gateway_listen} ({error.strerror}): stop what else does, or correct "
            "gateway_listen"
        ) from None


@contextlib.asynccontextmanager
async def serving(gateway: Brain, token: str, door: socket.socket) -> AsyncIterator[LinkServer]:
    """Serve the gateway's workers at this socket, within the running event loop."""
    server = LinkServer(gateway, token)
    listening = await asyncio.get_running_loop().create_server(lambda: WorkerLink(server), sock=door)
    ticking = asyncio.ensure_future(server.ticking())
    try:
        yield server
    finally:
        listening.close()
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        await server.close()


def _message(line: bytes) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
