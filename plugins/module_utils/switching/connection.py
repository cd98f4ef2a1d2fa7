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
# What may stand in a path and its query as it is, escapes that are there already among it.
_PLAIN = "!#$%&'()*+,/:;=?@[]~"


class NoConnection(Exception):
    """Nothing took the connection in time."""


class Late(Exception):
    """The answer has not come, or not ended, in time; C(begun) tells which."""

    def __init__(self, begun: bool) -> None:
        super().__init__("the answer did not end" if begun else "no answer")
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


class _Socket(socket.socket):
    """A socket on which the answer of one call ends by a time and a size."""

    until: float = 0.0
    left_bytes: int = 0

    def recv_into(self, *args: typing.Any, **kwargs: typing.Any) -> int:
        left = self.until - time.monotonic()
        if left <= 0 or self.left_bytes <= 0:
            raise socket.timeout("the answer did not end")
        self.settimeout(left)
        count = super().recv_into(*args, **kwargs)
        self.left_bytes -= count
        return count


class Connection:
    """A connection to a port of this host, made when it is needed. Not for use by two threads at once."""

    def __init__(self, port: int, connect_timeout: float) -> None:
        self.port = port
        self.connect_timeout = connect_timeout
        self._http = http.client.HTTPConnection("127.0.0.1", port)
        self._socket: _Socket | None = None

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        self._http.close()
        # A new one: what was put together of a request that failed must not be sent before the next.
        self._http = http.client.HTTPConnection("127.0.0.1", self.port)
        self._socket = None

    def call(
        self, method: str, path: str, headers: typing.Mapping[str, str], body: bytes | None, until: float
    ) -> Answer:
        """One call, whose answer has to end by C(until) on the monotonic clock.

        Raises NoConnection, Late, BrokenOff, NotHttp, or ConnectionRefusedError where nothing listens.
        """
        begun = False
        try:
            connected = self._connected()
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
            raise NotHttp("a header is not fit for HTTP: is there a line break in the API key?") from None
        except BaseException:
            self.close()
            raise
        if self._http.sock is None:
            self._socket = None
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, text)

    def _connected(self) -> _Socket:
        """The connection, a new one where the server has closed the one before."""
        if self._socket is not None and not self._has_news():
            return self._socket
        self.close()
        # create_connection would take the address for a name, and Python's codec for names takes 4 ms to import.
        made = _Socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.settimeout(self.connect_timeout)
            made.connect(("127.0.0.1", self.port))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException as error:
            made.close()
            if isinstance(error, socket.timeout):
                raise NoConnection from None
            raise
        self._http.sock = self._socket = made
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
