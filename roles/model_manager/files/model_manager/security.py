# SPDX-License-Identifier: MIT
"""Who may ask the manager for what: tokens, allowed hosts, limits. Checked before a request reaches the API."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import hmac
import ipaddress
import json
import math
import os
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import ConfigError

OPERATOR = "operator"
READER = "reader"
_ROLES = (OPERATOR, READER)
_SHORTEST_TOKEN = 16
_READING = ("GET", "HEAD", "OPTIONS")
# A proxy on this host connects from loopback for clients that are elsewhere. One of these tells of it.
_FORWARDED = (b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip")
# How many clients' rates are remembered. Whoever has not asked for longest is forgotten first.
_CLIENTS = 4096
_BURST_SECONDS = 5.0
# Where a request carries why its caller may not write.
_WHY_NOT = "model_manager.why_not_write"
_HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens that are accepted, as their SHA-256 digests with the role of each; none: there is no file."""

    digests: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def read(cls, path: str) -> Tokens:
        """The tokens of a file with lines `operator TOKEN` and `reader TOKEN`; no path: none. Raises ConfigError."""
        if not path:
            return cls()
        try:
            with open(path, encoding="utf-8") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(path, [f"it can't be read ({why}): correct it, or tokens_file"]) from None
        mistakes = [f"others may read it (mode {mode:04o}): set its mode to 0600"] if mode & 0o077 else []
        digests = []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            # No mistake shows what may be a token.
            if len(words) != 2 or words[0] not in _ROLES:
                mistakes.append(f"line {number} must be `operator TOKEN` or `reader TOKEN`")
            elif len(words[1]) < _SHORTEST_TOKEN:
                short = f"the token in line {number} has fewer than {_SHORTEST_TOKEN} characters"
                mistakes.append(f"{short}: make one with `openssl rand -hex 32`")
            else:
                digests.append((words[0], _digest(words[1].encode())))
        if not digests and not mistakes:
            mistakes.append("it has no token: add a line `operator TOKEN`, or remove tokens_file from the settings")
        if mistakes:
            raise ConfigError(path, mistakes)
        return cls(tuple(digests))

    def role(self, token: bytes) -> str:
        """The role of who has this token; empty: nobody's. Takes as long for a wrong token as for a right one."""
        found = ""
        given = _digest(token)
        for role, digest in self.digests:
            if hmac.compare_digest(digest, given):
                found = role
        return found


class Rates:
    """How often each client may ask: `per_second` on average, five seconds' worth at once."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second * _BURST_SECONDS)
        self._clock = clock
        self._left: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def wait(self, client: str) -> float:
        """Count a request of this client. Returns 0, or after how many seconds it may ask again."""
        now = self._clock()
        left, at = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_second)
        allowed = left >= 1.0
        self._left[client] = (left - 1.0 if allowed else left, now)
        if len(self._left) > _CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._per_second


class _Refused(Exception):
    def __init__(self, status: int, error: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(error)
        self.status = status
        self.headers = headers


class Guard:
    """ASGI middleware that lets a request pass, or refuses it: 401, 403, 413 or 429, as JSON.

    `hosts` are names by which clients may call the manager; addresses, localhost and this machine's own name always
    may be used: a page of the web can only pretend to be here under a name of its own (DNS rebinding). `public` are
    the paths that anybody may read, without a token: the files of the status page.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens,
        hosts: Iterable[str],
        max_body_bytes: int,
        rates: Rates,
        public: Collection[str] = (),
    ) -> None:
        self._app = app
        self._tokens = tokens
        names = ("localhost", socket.gethostname(), *hosts)
        self._hosts = {name.lower() for name in names if name}
        self._max_body_bytes = max_body_bytes
        self._rates = rates
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            if scope["type"] == "http":
                receive = await self._read(scope, receive)
        except _Refused as refused:
            await _answer(scope, send, refused)
            return
        await self._app(scope, receive, _with_headers(send) if scope["type"] == "http" else send)

    def _check(self, scope: Scope) -> None:
        writes = scope["type"] == "http" and scope["method"] not in _READING
        self._check_host(scope, writes)
        if scope["type"] == "http" and not writes and scope["path"] in self._public:
            # Counted apart, too: it needs no token.
            self._check_rate(f"{_client(scope)} public")
            return
        try:
            self._check_role(scope, writes)
        except _Refused:
            # Counted apart: who has a token is not kept waiting by who tries tokens from the same address.
            self._check_rate(f"{_client(scope)} refused")
            raise
        self._check_rate(_client(scope))

    def _check_rate(self, client: str) -> None:
        seconds = self._rates.wait(client)
        if seconds:
            again = str(math.ceil(seconds)).encode()
            raise _Refused(429, "too many requests: ask less often", (b"retry-after", again))

    def _check_host(self, scope: Scope, writes: bool) -> None:
        host = _header(scope, b"host").decode("latin-1")
        name = _hostname(host)
        if not _is_address(name) and name not in self._hosts:
            raise _Refused(403, "the Host of this request is not allowed: add its name to allowed_hosts")
        if not writes and scope["type"] != "websocket":
            return
        # A browser adds these to what a page of another site sends. Without CORS that page can't read the answer, but
        # what it writes would be done, and a WebSocket read.
        origin = _header(scope, b"origin").decode("latin-1").lower()
        own = (f"http://{host.lower()}", f"https://{host.lower()}")
        foreign = _header(scope, b"sec-fetch-site") in (b"cross-site", b"same-site")
        if foreign or (origin and origin not in own):
            raise _Refused(403, "a page of another site (Origin) may not ask for this; a proxy has to pass on the Host")

    def _check_role(self, scope: Scope, writes: bool) -> None:
        why_not = self._why_not_write(scope)
        if writes and why_not:
            raise _Refused(403, why_not)
        scope[_WHY_NOT] = why_not

    def _why_not_write(self, scope: Scope) -> str:
        """Why this caller may only read; empty: it may write. Raises _Refused for one that may not even read."""
        if not self._tokens.digests:
            if _is_local(scope):
                return ""
            return "without tokens, only programs on this host may change anything: set tokens_file"
        scheme, _space, token = _header(scope, b"authorization").partition(b" ")
        role = self._tokens.role(token.strip()) if scheme.lower() == b"bearer" else ""
        if not role:
            raise _Refused(
                401,
                "a valid token is needed: send it as `Authorization: Bearer TOKEN`",
                (b"www-authenticate", b"Bearer"),
            )
        return "" if role == OPERATOR else "the token of a reader may not change anything: use an operator's"

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body whole, unless it is too long. Returns what hands it over."""
        too_long = _Refused(413, f"the body is longer than {self._max_body_bytes} bytes", (b"connection", b"close"))
        length = _header(scope, b"content-length")
        if length.isdigit() and (len(length) > 18 or int(length) > self._max_body_bytes):
            raise too_long
        body = b""
        more = bool(length) or bool(_header(scope, b"transfer-encoding"))
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Refused(400, "the body ended early")  # nobody reads it, and a part of a body is not obeyed
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise too_long
            more = message.get("more_body", False)
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return replay


def why_not_write(scope: Scope) -> str:
    """Why the caller of a request that the guard has let pass may not change anything; empty: it may."""
    return str(scope[_WHY_NOT])


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _hostname(host: str) -> str:
    """The name within a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_address(name: str) -> bool:
    return _address(name) is not None


def _client(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else ""


def _is_local(scope: Scope) -> bool:
    """Whether the client is on this host, as far as that can be known: a proxy here may speak for somebody else."""
    address = _address(_client(scope))
    forwarded = any(name in _FORWARDED for name, _value in scope["headers"])
    return address is not None and address.is_loopback and not forwarded


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {key.lower() for key, _value in message["headers"]}
            more = [header for header in _HEADERS if header[0] not in present]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return send_with_headers


async def _answer(scope: Scope, send: Send, refused: _Refused) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": str(refused)[:100]})
        return
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    body = json.dumps({"error": str(refused)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *refused.headers,
        *_HEADERS,
    ]
    await send({"type": f"{kind}.start", "status": refused.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": b"" if scope.get("method") == "HEAD" else body})
