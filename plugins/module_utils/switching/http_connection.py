# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""HTTP to one server on loopback: one connection that is kept, and bounds on what an answer may take.

The standard library's C(http.client), because this is sent to the host and read anew with every switch: to import the
library requests takes longer than the switch's own work there (C(bench/run.py) measures the whole). It also bounds only
each wait for a few bytes, while an answer that drips for ever has to end too.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
import typing
import urllib.parse

# No answer of vLLM's is nearly as long; one that never ends must not fill the memory.
_LONGEST_ANSWER_BYTES = 64 * 1024 * 1024
# For how long vLLM's server (uvicorn) keeps a connection that is idle (VLLM_HTTP_TIMEOUT_KEEP_ALIVE). A test compares
# the gateway's own number with it, and one compares it with real vLLM.
KEPT_SECONDS = 5.0
# A connection that was idle for so long is not used again: a request that meets the end would count as one the server
# has not answered.
_IDLE_SECONDS = KEPT_SECONDS - 2
# What may stand in a path and its query as it is, escapes that are there already among it.
_PLAIN = "!#$%&'()*+,/:;=?@[]~"


class NoConnection(Exception):
    """Nothing took the connection in time."""


class Late(Exception):
    """The answer has not come, or not ended, in time; C(begun) tells which."""

    def __init__(self, begun: bool) -> None:
        super().__init__("incomplete answer" if begun else "no answer")
        self.begun = begun


class BrokenOff(Exception):
    """The connection ended before the answer; C(dropped): the other side hung up before it said anything."""

    def __init__(self, cause: Exception, dropped: bool) -> None:
        super().__init__(str(cause))
        self.dropped = dropped


class NotHttp(Exception):
    """What came is no HTTP."""


class Answer(typing.NamedTuple):
    """Whatever the server answered."""

    status: int
    headers: typing.Mapping[str, str]
    text: str

    def json(self) -> typing.Any:
        """The parsed body. Raises ValueError."""
        return json.loads(self.text)


class _Bounded:
    """What makes a socket one on which the answer of one call ends by a time and a size."""

    until: float = 0.0
    left_bytes: int = 0

    def recv_into(self, *args: typing.Any, **kwargs: typing.Any) -> int:
        left = self.until - time.monotonic()
        if left <= 0 or self.left_bytes <= 0:
            raise socket.timeout("incomplete answer")
        self.settimeout(left)  # type: ignore[attr-defined]
        count: int = super().recv_into(*args, **kwargs)  # type: ignore[misc]
        self.left_bytes -= count
        return count


class _Socket(_Bounded, socket.socket):
    pass


class Connection:
    """A connection to a port of this host, made when it is needed. Not for use by two threads at once.

    C(address) is one of this host's own, or nothing is taken to listen. With C(tls) each call makes a new one.
    """

    def __init__(self, port: int, connect_timeout: float, address: str = "127.0.0.1", tls: bool = False) -> None:
        self.port = port
        self.connect_timeout = connect_timeout
        self.address = address
        self.tls = tls
        self._http = http.client.HTTPConnection(address, port)
        self._socket: typing.Any = None
        self._used_at = 0.0

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        self._http.close()
        # A new one: what was put together of a request that failed must not be sent before the next.
        self._http = http.client.HTTPConnection(self.address, self.port)
        self._socket = None

    def call(
        self, method: str, path: str, headers: typing.Mapping[str, str], body: bytes | None, until: float
    ) -> Answer:
        """One call, whose answer has to end by C(until) on the monotonic clock.

        Raises NoConnection, Late, BrokenOff, NotHttp, or ConnectionRefusedError where nothing listens.
        """
        begun = False
        try:
            connected = self._connected(until)
            connected.until, connected.left_bytes = until, _LONGEST_ANSWER_BYTES
            connected.settimeout(max(until - time.monotonic(), 0.001))
            self._http.request(method, urllib.parse.quote(path, safe=_PLAIN), body, dict(headers))
            answer = self._http.getresponse()
            begun = True
            text = answer.read().decode("utf-8", "replace")
        except socket.timeout:
            self.close()
            raise Late(begun) from None
        except ConnectionRefusedError:
            self.close()
            raise
        except (OSError, http.client.IncompleteRead) as error:
            self.close()
            raise BrokenOff(error, not begun and isinstance(error, ConnectionError)) from None
        except (http.client.HTTPException, OverflowError, MemoryError) as error:
            self.close()
            raise NotHttp(str(error) or type(error).__name__) from None
        except ValueError:
            # Its text has the header, and so perhaps the API key.
            self.close()
            raise NotHttp("invalid HTTP header: is there a line break in the API key?") from None
        except BaseException:
            self.close()
            raise
        if self._http.sock is None:
            self._socket = None
        self._used_at = time.monotonic()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, text)

    def _connected(self, until: float) -> typing.Any:
        """The connection, a new one where the server has closed the one before or may be about to."""
        # On one with TLS there is always something to read, and nobody can look what without taking it.
        fresh = time.monotonic() - self._used_at < _IDLE_SECONDS
        if fresh and self._socket is not None and not self.tls and not self._has_news():
            return self._socket
        self.close()
        # create_connection would take the address for a name, and Python's codec for names takes 4 ms to import.
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        made = _Socket(family, socket.SOCK_STREAM)
        try:
            _check_own(self.address, family)
            made.settimeout(self.connect_timeout)
            made.connect((self.address, self.port))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException as error:
            made.close()
            if isinstance(error, socket.timeout):
                raise NoConnection from None
            raise
        self._http.sock = self._socket = _secured(made, until) if self.tls else made
        return self._socket

    def _has_news(self) -> bool:
        """Whether there is something to read before anything was asked: the end, or what nobody waits for."""
        if self._socket is None:
            return True
        self._socket.settimeout(0)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


def _check_own(address: str, family: int) -> None:
    """Raise ConnectionRefusedError for an address of another host: its servers are not ours to put to sleep."""
    if address.startswith("127.") or address == "::1":
        return
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            raise ConnectionRefusedError(f"{address} is not an address of this host") from None


def _secured(made: socket.socket, until: float) -> typing.Any:
    """The connection with TLS. Whose certificate it is says nothing here: both ends are on this host."""
    import ssl  # noqa: PLC0415 - few need it, and every switch would wait for it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.sslsocket_class = type("_Secured", (_Bounded, ssl.SSLSocket), {})
    try:
        made.settimeout(max(until - time.monotonic(), 0.001))
        return context.wrap_socket(made)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        made.close()
        raise ConnectionResetError(str(error)) from None
    except ssl.SSLError as error:
        made.close()
        raise NotHttp(f"no TLS: {error.reason or error}") from None
    except BaseException:
        made.close()
        raise
