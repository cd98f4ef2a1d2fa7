# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""HTTP calls to the server of one model; what goes wrong becomes one of the engine's errors."""

from __future__ import annotations

import time
import typing
from json import dumps

from .errors import BadAnswer, Refused, Unreachable, Unresponsive
from .http_connection import Answer, BrokenOff, Connection, Late, NoConnection, NotHttp
from .inventory import Model, Switching

T = typing.TypeVar("T")


class HungUp(Unresponsive):
    """C(/health) was not answered: the connection was taken and dropped without a word."""

    remedy = BadAnswer.remedy  # where the server's process does not run, it is somebody else


class Client:
    """Calls the server of one model over one keep-alive connection within this host. Not for use by two threads."""

    def __init__(self, model: Model, switching: Switching) -> None:
        self.model = model
        self.switching = switching
        address, tls = model.listens
        host = f"[{address}]" if ":" in address else address
        self.url = f"http{'s' if tls else ''}://{host}:{model.host_port}"
        self.connection = Connection(model.host_port, switching.connect_timeout_seconds, address, tls)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _call(
        self,
        method: str,
        path: str,
        body: typing.Any = None,
        timeout: float | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        """One HTTP call; the answer when its status is 200, else an error that says what went wrong."""
        timeout = timeout or self.switching.probe_timeout_seconds
        until = time.monotonic() + timeout
        headers = {}
        if self.model.api_key and path.startswith("/v1"):
            headers["Authorization"] = f"Bearer {self.model.api_key}"
        if body is not None:
            headers["Content-Type"] = content_type
        text = body if body is None or isinstance(body, (str, bytes)) else dumps(body)
        sent = text.encode() if isinstance(text, str) else text
        what = f"{self.model.id}: {method} {self.url}{path}"
        try:
            answer = self.connection.call(method, path, headers, sent, until)
        except NoConnection:
            raise Unresponsive(f"{what}: no connection within {self.switching.connect_timeout_seconds:g} s") from None
        except Late as error:
            raise Unresponsive(f"{what}: {error} within {timeout:g} s") from None
        except ConnectionRefusedError:
            raise Unreachable(f"{what}: connection refused") from None
        except BrokenOff as error:
            kind = HungUp if error.dropped and path == "/health" else Unresponsive
            raise kind(f"{what}: the connection was lost: {error}") from None
        except NotHttp as error:
            raise BadAnswer(f"{what}: not a vLLM answer: {self._something_else}: {error}") from None
        if answer.status in (301, 302, 303, 307, 308):
            target = printable(answer.headers.get("location", "nowhere"))
            raise BadAnswer(f"{what}: redirected to {target}, which vLLM never does: {self._something_else}")
        if answer.status != 200:
            raise Refused(f"{what}: answered {answer.status}{_excerpt(answer)}", answer.status)
        return answer

    def _counted(self, read: typing.Callable[[str], T | None]) -> T | None:
        """What C(read) finds in the metrics; None where there are none."""
        try:
            return read(self._call("GET", "/metrics").text)
        except (Refused, BadAnswer):
            return None

    def _json(self, method: str, path: str, answer: Answer) -> dict[str, typing.Any]:
        try:
            parsed = answer.json()
        except (ValueError, RecursionError):  # the latter where it is nested too deeply
            parsed = None
        if not isinstance(parsed, dict):
            raise self._bad_answer(method, path, answer)
        self._check_error(method, path, parsed)
        return parsed

    def _check_error(self, method: str, path: str, parsed: typing.Mapping[str, typing.Any]) -> None:
        """Raise Refused where a 200 has an error in its body, as 0.16 has when its engine dies of a completion."""
        error = parsed.get("error")
        if isinstance(error, dict):
            code, what = error.get("code"), f"{self.model.id}: {method} {self.url}{path}"
            status = code if isinstance(code, int) and not isinstance(code, bool) else 500
            raise Refused(f"{what}: answered 200 with an error: {printable(str(error.get('message')))}", status)

    def _bad_answer(self, method: str, path: str, answer: Answer) -> BadAnswer:
        what = f"{self.model.id}: {method} {self.url}{path}"
        return BadAnswer(f"{what}: not a vLLM answer: {self._something_else}{_excerpt(answer)}")

    @property
    def _something_else(self) -> str:
        return f"something else listens on port {self.model.host_port}"


def _excerpt(answer: Answer) -> str:
    text = printable(answer.text)
    return ": " + text if text else ""


def printable(text: str) -> str:
    """What somebody else has said, as it may stand in a message: on one line, not too long, and only to be read."""
    text = " ".join(text[:1000].split())
    text = text if len(text) <= 200 else text[:200] + "..."
    return "".join(character if character.isprintable() else "?" for character in text)
