# SPDX-License-Identifier: MIT
"""Clients of the gateway, and what became of each of their requests.

A request is *answered* (all of the text that its own model gives), *failed in words* (an error with a message, as a
status or as an event of the stream), *cut* (the server says that it was aborted: `drain_timeout_action`), *broken off*
(the connection ends amid an answer, so that every client sees it), or *the server's own* (nonsense that a fault has its
server answer). Whatever else became of it is wrong.
"""

from __future__ import annotations

import collections
import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import Any

from tests.standin.api import LOGIN_PAGE

ANSWERED, IN_WORDS, CUT, BROKEN_OFF, OWN, WRONG = "answered", "in words", "cut", "broken off", "the server's", "wrong"
TOKENS = 4
# What a stand-in answers by a fault of any of its calls.
NONSENSE = ("", LOGIN_PAGE.decode().strip(), json.dumps({"unexpected": ["shape"]}, separators=(",", ":")))


@dataclass(frozen=True)
class Ended:
    """A request that has ended."""

    model: str
    began: float
    ended: float
    how: str
    detail: str = ""  # the code of the error, or what is wrong


class Client(threading.Thread):
    """Asks for its models in turn, one request after the other, some of them as streams, until it is stopped.

    Who asks for both waits for one of them whenever a switch begins; who asks for one alone is who then comes in.
    """

    def __init__(self, port: int, number: int, models: str, right: dict[str, str], bound: float) -> None:
        super().__init__(daemon=True)
        self.ended: list[Ended] = []
        self.stop = threading.Event()
        self._models = models
        self._port = port
        self._turn = number
        self._right = right
        self._bound = bound

    def run(self) -> None:
        """Ask."""
        while not self.stop.is_set():
            self._turn += 1
            model, stream = self._models[self._turn % len(self._models)], self._turn % 4 < 2
            ended = ask(self._port, model, stream, TOKENS, self._right[model], self._bound)
            self.ended.append(ended)
            self.stop.wait((0.03 if len(self._models) > 1 else 0.005) if ended.how == ANSWERED else 0.2)

    def turned(self, since: float) -> bool:
        """Whether it has been told of each of its models what became of what it asked for since then."""
        return {one.model for one in self.ended if one.began >= since} == set(self._models)

    def well(self, since: float) -> bool:
        """Whether what it asked for last, since then, was answered by each of its models."""
        last = [one for one in self.ended if one.began >= since][-len(self._models) :]
        return {one.model for one in last if one.how == ANSWERED} == set(self._models)


def ask(port: int, model: str, stream: bool, tokens: int, right: str | None, bound: float) -> Ended:
    """Make one request, and say what became of it."""
    began = time.monotonic()
    try:
        how, detail = _ask(port, model, stream, tokens, right, bound)
    except (http.client.IncompleteRead, _BrokenOff) as error:
        how, detail = BROKEN_OFF, repr(error)
    except TimeoutError:
        how, detail = WRONG, f"nothing came for {bound:g} s"
    except (OSError, http.client.HTTPException) as error:
        how, detail = WRONG, f"no answer at all: {error!r}"
    ended = time.monotonic()
    if ended - began > bound and how != WRONG:
        how, detail = WRONG, f"it took {ended - began:.1f} s ({how})"
    kind = "stream" if stream else "request"
    return Ended(model, began, ended, how, f"{kind} to {model}: {detail}" if how == WRONG else detail)


class _BrokenOff(Exception):
    """The connection has ended amid the body."""


def _ask(port: int, model: str, stream: bool, tokens: int, right: str | None, bound: float) -> tuple[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=bound)
    message = {"role": "user", "content": "Once upon a time"}
    body: dict[str, Any] = {"model": model, "messages": [message], "max_tokens": tokens, "temperature": 0}
    try:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body | {"stream": stream}), headers)
        answer = connection.getresponse()
        try:
            text = answer.read().decode()
        except ConnectionResetError as error:
            raise _BrokenOff(repr(error)) from error
    finally:
        connection.close()
    return judge(answer.status, answer.headers.get("Content-Type") or "", text, model, stream, tokens, right)


def judge(
    status: int, kind: str, text: str, model: str, stream: bool, tokens: int, right: str | None
) -> tuple[str, str]:
    """What a complete HTTP answer is; `right`: the text that it should have, where that is known."""
    if status != 200:
        return _in_words(status, text)
    if text.strip() in NONSENSE:
        return OWN, text.strip()[:20]
    if kind.startswith("text/event-stream") != stream:
        # What a server answers instead of a stream, and a gateway passes on.
        return _in_words(status, text)
    if not stream:
        told = json.loads(text)
        if "error" in told:
            return _in_words(status, text)
        choice = told["choices"][0]
        return _judge_text(told["model"], choice["message"]["content"], choice["finish_reason"], model, tokens, right)
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    errors = [chunk["error"] for chunk in chunks if "error" in chunk]
    if errors:
        return _words_of(errors[0], text)
    if not text.rstrip().endswith("data: [DONE]"):
        if any(one in text for one in NONSENSE[1:]):
            return OWN, "as a stream"
        return WRONG, f"it ends as if it were whole: {text[-200:]!r}"
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    finish = next((choice["finish_reason"] for choice in reversed(choices) if choice["finish_reason"]), "")
    return _judge_text(chunks[0]["model"] if chunks else "", said, finish, model, tokens, right)


def _judge_text(told: str, said: str, finish: str, model: str, tokens: int, right: str | None) -> tuple[str, str]:
    if told != model:
        return WRONG, f"{told!r} has answered"
    if finish == "abort":
        return CUT, said
    if len(said.split()) != tokens or finish != "length":
        return WRONG, f"it is not whole ({finish}): {said!r}"
    if right is not None and said != right:
        return WRONG, f"the text is {said!r}, not {right!r}"
    return ANSWERED, said


def _in_words(status: int, text: str) -> tuple[str, str]:
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return WRONG, f"{status} without words: {text[:200]!r}"
    return _words_of(error, text)


def _words_of(error: Any, text: str) -> tuple[str, str]:
    if not isinstance(error, dict) or not str(error.get("message") or "").strip():
        return WRONG, f"an error without a message: {text[-200:]!r}"
    return IN_WORDS, str(error.get("code"))


def traffic(events: list[dict[str, Any]], since: int) -> tuple[int, int]:
    """How many requests came to a server that was not awake, and how many lay there over a sleep; since that event."""
    awake: dict[str, bool] = {}
    running: collections.Counter[str] = collections.Counter()
    lying: collections.Counter[str] = collections.Counter()
    asleep = parked = 0
    for number, event in enumerate(events):
        server, kind = event["id"], event["event"]
        if kind in ("awake", "sleeping", "waking", "partly_awake", "loading", "dead"):
            if kind == "sleeping":
                lying[server] = running[server]
            elif kind == "awake":
                # Whoever is there yet has lain there all the time.
                parked += lying.pop(server, 0) if number >= since else 0
            awake[server] = kind == "awake"
        elif kind == "request_start":
            running[server] += 1
            asleep += number >= since and not awake.get(server, False)
        elif kind == "request_end":
            running[server] -= 1
            lying[server] = max(0, lying[server] - 1)
    return asleep, parked
