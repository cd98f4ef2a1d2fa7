# SPDX-License-Identifier: MIT
"""An event source for ansible-rulebook: the events of model managers (`GET /events`)."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import logging
import math
import random
import re
import ssl
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any

DOCUMENTATION = r"""
---
short_description: Receive the events of model managers
version_added: 0.2.0
description:
  - Reads the events of the model managers of one or more hosts, each as soon as it happens, and resumes after a loss of
    the connection with those since then.
  - Each event is a dictionary with C(kind), C(at) (in seconds since 1970), C(data), and C(manager), which contains the
    C(host) and the C(url) of its manager. C(docs/manager.md) of the collection lists the kinds and their data.
  - When it connects first, and whenever events were missed, it sends what it has not sent before as events of the kinds
    C(state) and C(breaker) for each model, C(queue) and C(mode). Rules therefore need not tell what was so before from
    what has just happened.
  - An event of the kind C(connection) tells that a manager answers (its data has C(up) true), or that it has not done
    so for O(down_seconds), or refuses the token (C(up) false, with the C(problem)).
  - A space is put into what would begin a Jinja template in a text. Otherwise, a playbook that gets the text as one of
    its C(extra_vars) would run on the controller what a host has sent.
options:
  managers:
    description:
      - The managers. Each has a C(url), such as C(http://gpu1.example.com:9000), and a C(host), the name of its host in
        the inventory. If C(host) is missing, it is the name in the URL. C(token), C(token_file) and C(ca) replace the
        options of the same name for this manager.
      - Required, unless O(url) is set.
    type: list
    elements: dict
  url:
    description:
      - The URL of the manager, if there is only one.
    type: str
  host:
    description:
      - The name of the host of O(url) in the inventory. By default the name in the URL.
    type: str
  token:
    description:
      - A bearer token of the managers; that of a reader is enough. Not needed by managers without tokens.
    type: str
  token_file:
    description:
      - A file that contains the token, or lines like those of the manager's own file of tokens. It is read again for
        each connection.
    type: str
  ca:
    description:
      - A file with the certificates of the authorities to trust, for URLs with C(https). By default, those of the
        system.
    type: str
  kinds:
    description:
      - The kinds of events to pass on. By default all.
    type: list
    elements: str
  down_seconds:
    description:
      - After how many seconds without a connection a manager counts as down.
    type: float
    default: 30
  max_delay_seconds:
    description:
      - The longest time between two attempts to connect.
    type: float
    default: 30
"""

EXAMPLES = r"""
- name: The model managers
  homegpt.vllm.manager_events:
    managers:
      - host: gpu1
        url: http://gpu1.example.com:9000
      - host: gpu2
        url: https://gpu2.example.com
        ca: /etc/ssl/gpu2.pem
    token_file: /etc/homegpt/reader-token
    kinds: [state, breaker]
"""

_LOG = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
# The manager sends at least a comment every 15 s.
_SILENT_SECONDS = 45.0
_FIRST_DELAY_SECONDS = 0.5
# No event is as long; whoever sends more is no manager.
_LONGEST_LINE = 1 << 22
# Ansible takes extra_vars for templates. In JSON, these stand within texts only.
_TEMPLATE = re.compile(r"\{(?=[{%#])")
_OPTIONS = ("managers", "url", "host", "token", "token_file", "ca", "kinds", "down_seconds", "max_delay_seconds")
_MANAGER_OPTIONS = ("url", "host", "token", "token_file", "ca")
_OF_A_SWITCH = ("switch_queued", "switch_begun", "step_begun", "step_ended", "switch_ended", "switch_seen")
_OF_THE_HOST = ("breaker", "eviction", "gates", "gateway", "inventory", "lock", "lost", "mode", "queue", "state")
_KINDS = ("connection", *_OF_THE_HOST, *_OF_A_SWITCH)

Event = dict[str, Any]
Put = Callable[[Event], Awaitable[None]]


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Put the events of all managers into the queue, until this is cancelled. Raises ValueError for wrong options."""
    managers, kinds = parse(args)

    async def put(event: Event) -> None:
        if not kinds or event["kind"] in kinds:
            await queue.put(event)

    await asyncio.gather(*(Follower(options, put).run() for options in managers))


def parse(args: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The options of each manager, and the kinds of events to pass on. Raises ValueError with all mistakes."""
    given = {name: value for name, value in args.items() if name != "eda_feedback_queue" and value is not None}
    mistakes = _unknown(given, _OPTIONS, "")
    managers = given.get("managers", [])
    if not isinstance(managers, list) or not all(isinstance(one, dict) for one in managers):
        mistakes.append("managers must be a list of dictionaries: write it as [{url: http://HOST:9000}]")
        managers = []
    if "url" in given:
        managers = [*managers, {name: given[name] for name in ("url", "host") if name in given}]
    elif "host" in given:
        mistakes.append("host goes with url: set url, or the host of each of managers")
    if not managers and not mistakes:
        mistakes.append("managers is missing: list the managers, each with its url")
    seconds = {"down_seconds": 30.0, "max_delay_seconds": 30.0}
    for name, default in tuple(seconds.items()):
        value = given.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            mistakes.append(f"{name} must be a number above 0, is {value!r}: correct or remove it")
        else:
            seconds[name] = float(value)
    kinds = given.get("kinds", [])
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        mistakes.append("kinds must be a list of kinds of events: write it as [state, queue]")
        kinds = []
    for kind in kinds:
        if kind not in _KINDS:
            mistakes.append(f"kinds: {_strange(kind, _KINDS)}")
    shared: dict[str, Any] = {name: given[name] for name in ("token", "token_file", "ca") if name in given}
    found = [_manager(number, one, shared, seconds, mistakes) for number, one in enumerate(managers)]
    if len({one["host"] for one in found}) < len(found):
        mistakes.append("managers: two have the same host: give each its name in the inventory")
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return found, kinds


def _manager(
    number: int, given: dict[str, Any], shared: dict[str, Any], seconds: dict[str, float], mistakes: list[str]
) -> dict[str, Any]:
    """The options of one manager; what is wrong with them goes to the mistakes."""
    where = f"managers[{number}]."
    mistakes.extend(_unknown(given, _MANAGER_OPTIONS, where))
    # Of a token and a file of one, the nearer wins.
    own = {name: value for name, value in given.items() if value is not None}
    if "token" in own or "token_file" in own:
        shared = {name: value for name, value in shared.items() if name == "ca"}
    options = {**shared, **own}
    for name in _MANAGER_OPTIONS:
        if not isinstance(options.get(name, ""), str):
            mistakes.append(f"{where}{name} must be a text: put it in quotes")
            options[name] = ""
    if options.get("token") and options.get("token_file"):
        mistakes.append(f"{where}token and token_file exclude each other: remove one of them")
    try:
        url = urllib.parse.urlsplit(options.get("url", ""))
        good = url.scheme in ("http", "https") and url.hostname and not (url.query or url.fragment or url.username)
        good = good and url.port != 0
    except ValueError:
        good = False
    if not good:
        mistakes.append(f"{where}url must be the URL of a manager: write it as http://HOST:9000")
        return {"host": str(number)}
    options["url"] = options["url"].rstrip("/")
    options["host"] = options.get("host") or url.hostname
    return {**options, **seconds}


def _unknown(given: dict[str, Any], known: tuple[str, ...], where: str) -> list[str]:
    return [where + _strange(str(name), known) for name in given if name not in known]


def _strange(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"{name} is unknown{f'; did you mean {close[0]}?' if close else ''}: use some of {', '.join(known)}"


class Refused(Exception):
    """There was an answer, but no events. `wrong`: the options are; `wait_seconds`: in how long to try again."""

    def __init__(self, message: str, wrong: bool = False, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.wrong = wrong
        self.wait_seconds = wait_seconds


class Missed(Exception):
    """Events are missing: the whole state has to be asked for."""


class Follower:
    """Follows one manager: connects, reconnects after the last event that it had, and passes on what is new."""

    def __init__(self, options: dict[str, Any], put: Put) -> None:
        self._options = options
        self._put = put
        self._last_id: int | None = None
        self._delay = _FIRST_DELAY_SECONDS
        self._told_up: bool | None = None
        # What was passed on last, by kind and model.
        self._told: dict[tuple[str, str], dict[str, Any]] = {}

    async def run(self) -> None:
        """Do so for ever."""
        loop = asyncio.get_running_loop()
        gone_since = loop.time()
        limit = float(self._options["max_delay_seconds"])
        while True:
            problem, wait, connected = "it has closed the connection", 0.0, False
            try:
                async with contextlib.aclosing(self._connect()) as found:
                    async for event in found:
                        if event is None:
                            connected = True
                            await self._tell_connection(True)
                        else:
                            self._delay = _FIRST_DELAY_SECONDS
                            await self._take(event)
            except Refused as refused:
                problem, wait = str(refused), refused.wait_seconds
                if refused.wrong:
                    await self._tell_connection(False, problem)
            except Exception as error:  # whatever one manager sends, the events of the others go on
                problem = str(error) or type(error).__name__
            if connected:
                gone_since = loop.time()
            elif loop.time() - gone_since >= self._options["down_seconds"]:
                await self._tell_connection(False, problem)
            _LOG.info("%s: no events (%s), trying again", self._options["url"], problem)
            # Of many sources not all come back at one moment.
            await asyncio.sleep(min(limit, max(wait, self._delay * random.uniform(0.8, 1.2))))  # noqa: S311
            self._delay = min(limit, self._delay * 2)

    async def _tell_connection(self, up: bool, problem: str = "") -> None:
        if self._told_up == up:
            return
        self._told_up = up
        if not up:
            _LOG.error("%s: the manager does not answer as it should: %s", self._options["url"], problem)
        await self._send("connection", {"up": up, "problem": problem})

    async def _send(self, kind: str, data: dict[str, Any], at: float | None = None) -> None:
        manager = {name: self._options[name] for name in ("host", "url")}
        event: Event = {"kind": kind, "data": data, "manager": manager}
        await self._put(event if at is None else {**event, "at": at})

    async def _take(self, event: Event) -> None:
        """Pass on one event of the manager, or what is new of a snapshot."""
        kind, data, at = event["kind"], event["data"], event.get("at")
        if kind == "snapshot":
            for new_kind, new in unfolded(data):
                if self._told.get(_key(new_kind, new)) != _kept(new_kind, new):
                    self._told[_key(new_kind, new)] = _kept(new_kind, new)
                    await self._send(new_kind, new, at)
        else:
            self._told[_key(kind, data)] = _kept(kind, data)
            await self._send(kind, data, at)
        # Only now: what was not passed on is asked for again.
        self._last_id = event["id"]
        if kind == "lost":
            self._last_id = None
            raise Missed("events were missed")

    async def _connect(self) -> AsyncGenerator[Event | None, None]:
        """None once it is connected, then the events. Raises Refused, OSError, TimeoutError or ValueError."""
        # Not needed to check the options, or to read the documentation.
        import aiohttp  # noqa: PLC0415

        headers = {"Accept": "text/event-stream"}
        token = await asyncio.to_thread(_token, self._options)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if self._last_id is not None:
            headers["Last-Event-ID"] = str(self._last_id)
        times = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        connector = aiohttp.TCPConnector(ssl=await asyncio.to_thread(_trust, self._options))
        session = aiohttp.ClientSession(connector=connector, timeout=times, read_bufsize=_LONGEST_LINE)
        try:
            async with session:
                url = self._options["url"] + "/events"
                async with session.get(url, headers=headers, allow_redirects=False) as answer:
                    if answer.status != 200 or answer.content_type != "text/event-stream":
                        raise _refusal(answer.status, answer.headers.get("Retry-After", ""))
                    yield None
                    async for event in events(answer.content):
                        yield event
        except aiohttp.ClientError as error:
            raise OSError(str(error) or type(error).__name__) from error


def _trust(options: dict[str, Any]) -> Any:
    """Whose certificates are trusted, as aiohttp takes it. Raises OSError, whose text says what to do."""
    path = options.get("ca")
    if not path:
        return True
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise OSError(f"ca {path} can't be used ({error}): correct it") from None


def _refusal(status: int, retry_after: str) -> Refused:
    """What an answer that is no stream of events means."""
    if status == 401:
        return Refused("it answers 401: set token_file, or token, to a token of this manager", True)
    if status == 403:
        return Refused("it answers 403: add the name in url to model_manager_allowed_hosts of its host", True)
    if status < 400 or status == 404:
        return Refused(f"it answers {status} without events: correct url, this is no model manager", True)
    wait = float(retry_after) if retry_after.isdigit() and len(retry_after) < 6 else 0.0
    return Refused(f"it answers {status}", False, wait)


def _token(options: dict[str, Any]) -> str:
    """The token to send; empty: none. Raises OSError or ValueError, whose text says what to do."""
    path = options.get("token_file")
    if not path:
        return str(options.get("token", ""))
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.split() for line in file if line.split() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise OSError(f"token_file {path} can't be read ({error}): correct it") from None
    # A reader's before an operator's, as less is enough.
    lines.sort(key=lambda words: words[0] == "operator")
    if not lines or len(lines[0]) > 2:
        raise ValueError(f"token_file {path} has no token: write it into a line of its own")
    return lines[0][-1]


async def events(lines: AsyncIterable[bytes]) -> AsyncGenerator[Event, None]:
    """The events in the lines of a stream of server-sent events. Raises ValueError for what is none."""
    data: list[str] = []
    async for raw in lines:
        line = raw.decode("utf-8").rstrip("\r\n")
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            text, data = json.dumps(json.loads("\n".join(data))), []
            event = json.loads(_TEMPLATE.sub("{ ", text))
            named = isinstance(event, dict) and isinstance(event.get("kind"), str) and isinstance(event.get("id"), int)
            if not named or not isinstance(event.get("data"), dict):
                raise ValueError("what it sends are no events of a model manager: correct url")
            yield event


def unfolded(snapshot: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A snapshot (the answer of `GET /models`) as the events that would have told it: kinds and data."""
    found: list[tuple[str, dict[str, Any]]] = []
    for model in snapshot.get("models", ()):
        names = ("state", "level", "problem", "desired", "down")
        found.append(("state", {"model": model["id"], **{key: model.get(key) for key in names}, "before": None}))
        if model.get("breaker"):
            found.append(("breaker", {"model": model["id"], **model["breaker"]}))
    waits = [one for one in snapshot.get("queue", ()) if one.get("position") != 0]
    keys = ("id", "model", "desired", "position", "eta_seconds", "waiters")
    queue = [{key: one.get(key) for key in keys} for one in snapshot.get("queue", ())]
    found.append(("queue", {"queue": queue, "length": len(waits)}))
    found.append(("mode", {"mode": snapshot.get("mode"), "pinned": snapshot.get("pinned")}))
    return found


def _key(kind: str, data: dict[str, Any]) -> tuple[str, str]:
    """What an event is about: later ones of the same key replace it."""
    return kind, str(data.get("model", "")) if kind in ("state", "breaker") else ""


def _kept(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """What of an event makes it another one than the one before, when a snapshot shows it."""
    if kind == "queue":
        return {"ids": [one.get("id") for one in data.get("queue", ())]}
    ignored = ("before", "retry_at")
    return {key: value for key, value in data.items() if key not in ignored}
