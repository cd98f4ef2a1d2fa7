# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""One vLLM server's HTTP API. Every peculiarity of it is handled here and nowhere else.

Facts about vLLM were read from the wheels of 0.11.0, 0.16.0, 0.32.0 and 0.33.0 and seen on a running 0.32.0; the
contract suite of this project checks them against a real server. What to do is decided by what a server answers,
never by a list of versions.
"""

from __future__ import annotations

import re
import traceback
import typing

from .errors import BadAnswer, DevModeOff, Refused, ServerError, Unreachable, Unresponsive
from .inventory import Model, Request, Switching
from .plan import ACTIVE, ERROR, LOADING, SLEEPING, STOPPED, Observation

try:
    import requests

    REQUESTS_IMPORT_ERROR = None
except ImportError:  # reported by whoever calls, in its own way
    REQUESTS_IMPORT_ERROR = traceback.format_exc()

# A healthy server answers its cheap calls within milliseconds; this long without an answer means that it hangs.
PROBE_TIMEOUT_SECONDS = 5.0

_GAUGES = {"vllm:num_requests_running": "running", "vllm:num_requests_waiting": "waiting"}
_GAUGE_LINE = re.compile(r"^(vllm:[a-z_]+)(?:\{([^}]*)\})? ([0-9.eE+-]+)$", re.MULTILINE)

# The order that brings a server back from level 2: a bare wake_up leaves the weights as garbage (vLLM issues 16564,
# 29341). It is right from level 1 and after a partial wake too, only slower, so it also serves an unknown level.
_RELOADING_WAKE = (
    Request("/wake_up?tags=weights"),
    Request("/collective_rpc", body={"method": "reload_weights"}),
    Request("/wake_up?tags=kv_cache"),
    Request("/reset_prefix_cache"),
)
_PLAIN_WAKE = (Request("/wake_up"),)


class _HungUp(Unresponsive):
    """C(/health) was not answered: the connection was taken and dropped without a word."""


class Server:
    """The server of one model, reached over one keep-alive connection on loopback. Not for use by two threads at once.

    Every method that talks to the server raises a ServerError that names the model and says what was asked.
    """

    def __init__(self, model: Model, switching: Switching) -> None:
        self.model = model
        self.switching = switching
        self.url = f"http://127.0.0.1:{model.host_port}"
        self.session = requests.Session()
        # A proxy or a .netrc of the environment has no business between a host and its own servers.
        self.session.trust_env = False
        self._served_name: str | None = None

    def close(self) -> None:
        """Close the connection."""
        self.session.close()

    def observe(self, count_requests: bool = False) -> Observation:
        """What the server is: active, sleeping, stopped (nothing listens) or error. Never raises a ServerError.

        Loading, with C(dead) set, is a guess that holds if the server's process runs: something takes connections and
        drops them, as Docker does for a container that does not listen yet.
        C(count_requests) asks for the number of running and waiting requests too.
        """
        self._served_name = None
        try:
            try:
                return self._look(count_requests)
            except Unresponsive:
                return self._look(count_requests)  # once more, before a server that is only busy is called dead
        except Unreachable:
            return Observation(STOPPED)
        except _HungUp as error:
            return Observation(LOADING, problem=str(error), dead=True)
        except ServerError as error:
            # Once it has named its model it is the server and it runs, whoever started it.
            known = True if self._served_name else None
            return Observation(ERROR, problem=str(error), dead=isinstance(error, Unresponsive), process=known)

    def _look(self, count_requests: bool) -> Observation:
        if not self.is_healthy():
            return Observation(ERROR, problem=f"{self.model.id}'s engine is dead (/health answers 503)", dead=True)
        self._check_identity()
        asleep = self.is_sleeping()
        metrics = self._metrics() if asleep or count_requests else {}
        return Observation(
            SLEEPING if asleep else ACTIVE,
            level=metrics.get("level") if asleep else None,
            running=metrics.get("running"),
            waiting=metrics.get("waiting"),
        )

    def is_healthy(self) -> bool:
        """Whether the engine lives: true while it sleeps too, false when the server says that it is dead."""
        try:
            answer = self._call("GET", "/health")
        except Refused as error:
            if error.status == 503:
                return False
            raise BadAnswer(f"{error}; vLLM never does: {self._something_else}") from None
        if "html" in answer.headers.get("content-type", ""):
            raise self._bad_answer("GET", "/health", answer)
        return True

    def is_sleeping(self) -> bool:
        """Whether the server sleeps, at whatever level, or is only partly awake. DevModeOff where it can't tell."""
        state = self.model.state_request
        if state:
            answer = self._call(state.method, state.endpoint, state.body, state.timeout)
            return bool(re.search(state.sleeping, answer.text))
        try:
            answer = self._call("GET", "/is_sleeping")
        except Refused as error:
            if error.status != 404:
                raise
            if self.model.sleep_level == "stop":
                return False  # never put to sleep by us, so its sleep endpoints are not needed
            if self.model.sleep_requests:
                raise DevModeOff(
                    f"{self.model.id} has no /is_sleeping (404): give it a state_request that tells whether it sleeps"
                ) from None
            raise DevModeOff(
                f"{self.model.id} answers 404 to /is_sleeping: start vLLM with VLLM_SERVER_DEV_MODE=1 in its "
                "environment and --enable-sleep-mode on its command line"
            ) from None
        sleeping = self._json("GET", "/is_sleeping", answer).get("is_sleeping")
        if not isinstance(sleeping, bool):
            raise self._bad_answer("GET", "/is_sleeping", answer)
        return sleeping

    def count_requests(self) -> int | None:
        """How many requests run or wait; None where the server has no such gauges."""
        metrics = self._metrics()
        if metrics["running"] is None:
            return None
        return int(metrics["running"] + (metrics["waiting"] or 0))

    def sleep(self, level: int, abort: bool = False) -> None:
        """Ask the server to sleep; see that it does with is_sleeping, since old servers answer before they are done.

        Running requests are finished first where the server can do that (C(mode=wait), vLLM 0.17 and later; older
        servers ignore the parameter), or cut when C(abort).
        """
        # Level and mode are query parameters: in a body they are ignored, and the server sleeps at level 1.
        default = Request(f"/sleep?level={level}&mode={'abort' if abort else 'wait'}")
        for request in self.model.sleep_requests or (default,):
            self._send(request, level)

    def wake(self, level: int | None) -> None:
        """Wake the server from the level it sleeps at, None for an unknown one; see that it is with is_sleeping."""
        plain = level in (0, 1)
        for request in self.model.wake_requests or (_PLAIN_WAKE if plain else _RELOADING_WAKE):
            self._send(request, 2 if level is None else level)

    def complete(self) -> str:
        """The text of a one-token completion: the last proof that the server can answer."""
        name = self._served_name or self._check_identity()
        body = {"model": name, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        answer = self._call("POST", "/v1/completions", body, self.switching.request_timeout_seconds)
        choices = self._json("POST", "/v1/completions", answer).get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, dict) or not isinstance(first.get("text"), str):
            raise self._bad_answer("POST", "/v1/completions", answer)
        return str(first["text"])

    def _check_identity(self) -> str:
        """The name to call the model by, as the server itself gives it."""
        try:
            answer = self._call("GET", "/v1/models")
        except Refused as error:
            if error.status != 401:
                raise
            raise BadAnswer(
                f"{self.model.id} wants an API key on port {self.model.host_port} (401 from /v1/models): give the "
                "right one as args.api_key or env.VLLM_API_KEY of the model"
            ) from None
        data = self._json("GET", "/v1/models", answer).get("data")
        if not isinstance(data, list) or not all(
            isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in data
        ):
            raise self._bad_answer("GET", "/v1/models", answer)
        served = [entry["id"] for entry in data]
        for name in self.model.names:
            if name in served:
                self._served_name = name
                return str(name)
        raise BadAnswer(
            f"port {self.model.host_port} answers for {', '.join(served) or 'no model'}, not for "
            f"{' or '.join(self.model.names)}: another server has taken the port, or --served-model-name is missing"
        )

    def _metrics(self) -> dict[str, typing.Any]:
        """running, waiting and sleep level, each None where the server has no gauge for it."""
        found: dict[str, typing.Any] = {"running": None, "waiting": None, "level": None}
        try:
            text = self._call("GET", "/metrics").text
        except (Refused, BadAnswer):
            return found  # kept from us by something in between, say; nothing is known then, and nothing is wrong
        states: dict[str, float] = {}
        for name, labels, value in _GAUGE_LINE.findall(text):
            if name in _GAUGES:  # one line for each engine of the server
                found[_GAUGES[name]] = (found[_GAUGES[name]] or 0) + int(float(value))
            elif name == "vllm:engine_sleep_state":
                label = re.search(r'sleep_state="([a-z_]+)"', labels)
                states[label.group(1) if label else ""] = float(value)
        # No gauge (0.11): the level is not known. A gauge that says awake while /is_sleeping says true belongs to a
        # server that was paused, or that finishes its requests before it sleeps: it has all its memory.
        if states:
            found["level"] = 1 if states.get("weights_offloaded") else 2 if states.get("discard_all") else 0
        return found

    def _send(self, request: Request, level: int) -> None:
        request = request.at_level(level)
        # vLLM's prefix cache can't be reset while blocks are held: it answers success false, so ask again.
        for _attempt in range(3):
            answer = self._call(
                request.method,
                request.endpoint,
                request.body,
                request.timeout or self.switching.request_timeout_seconds,
            )
            if not (
                request.endpoint == "/reset_prefix_cache"
                and answer.text
                and '"success":false' in answer.text.replace(" ", "")
            ):
                return

    def _call(self, method: str, path: str, body: typing.Any = None, timeout: float | None = None) -> requests.Response:
        """One HTTP call; the answer when its status is 200, else an error that says what went wrong."""
        timeout = timeout or PROBE_TIMEOUT_SECONDS
        headers = {}
        if self.model.api_key and path.startswith("/v1"):
            headers["Authorization"] = f"Bearer {self.model.api_key}"
        send: dict[str, typing.Any] = {"data": body.encode()} if isinstance(body, str) else {"json": body}
        if isinstance(body, str):
            headers["Content-Type"] = "application/json"
        what = f"{self.model.id}: {method} {self.url}{path}"
        try:
            answer = self.session.request(
                method,
                self.url + path,
                headers=headers,
                timeout=(self.switching.connect_timeout_seconds, timeout),
                allow_redirects=False,
                **send,
            )
        except requests.exceptions.ConnectTimeout:
            raise Unresponsive(f"{what}: no connection within {self.switching.connect_timeout_seconds:g} s") from None
        except requests.exceptions.Timeout:
            raise Unresponsive(f"{what}: no answer within {timeout:g} s") from None
        except requests.exceptions.RequestException as error:
            causes = tuple(_causes(error))
            if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
                raise Unreachable(f"{what}: nothing listens there") from None
            within_answer = isinstance(error, requests.exceptions.ChunkedEncodingError)
            if within_answer or any(isinstance(cause, OSError) for cause in causes[1:]):
                dropped = not within_answer and any(isinstance(cause, ConnectionError) for cause in causes)
                kind = _HungUp if dropped and path == "/health" else Unresponsive
                raise kind(f"{what}: the connection broke off: {causes[-1]}") from None
            raise BadAnswer(f"{what}: not an answer of vLLM's: {self._something_else}: {causes[-1]}") from None
        if answer.status_code in (301, 302, 303, 307, 308):
            target = answer.headers.get("location")
            raise BadAnswer(f"{what}: redirected to {target}, which vLLM never does: {self._something_else}")
        if answer.status_code != 200:
            raise Refused(f"{what}: answered {answer.status_code}{_excerpt(answer)}", answer.status_code)
        return answer

    def _json(self, method: str, path: str, answer: requests.Response) -> dict[str, typing.Any]:
        try:
            parsed = answer.json()
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise self._bad_answer(method, path, answer)
        return parsed

    def _bad_answer(self, method: str, path: str, answer: requests.Response) -> BadAnswer:
        what = f"{self.model.id}: {method} {self.url}{path}"
        return BadAnswer(f"{what}: not an answer of vLLM's: {self._something_else}{_excerpt(answer)}")

    @property
    def _something_else(self) -> str:
        return f"something else listens on port {self.model.host_port}"


def _causes(error: BaseException) -> typing.Iterator[BaseException]:
    """The error and what it wraps, outermost first. requests and urllib3 keep the cause in args or as reason.

    Debian 12's urllib3 (1.26) keeps the innermost one, such as a refused connection, only as context.
    """
    while True:
        yield error
        inner = [value for value in (getattr(error, "reason", None), *error.args) if isinstance(value, BaseException)]
        context = error.__context__ if isinstance(error.__context__, OSError) else None
        following = inner[-1] if inner else error.__cause__ or context
        if following is None:
            return
        error = following


def _excerpt(answer: requests.Response) -> str:
    text = " ".join(answer.text.split())
    return ": " + (text if len(text) <= 200 else text[:200] + "...") if text else ""
