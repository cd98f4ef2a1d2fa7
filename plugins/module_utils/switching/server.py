# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""One vLLM server's HTTP API. Every peculiarity of it is handled here and nowhere else.

Facts about vLLM were read from the wheels of 0.11.0 to 0.33.0 and seen on real servers; the contract suite of this
project checks them against those. What to do is decided by what a server answers, and by its version (C(versions))
only where to ask would be to do harm.
"""

from __future__ import annotations

import contextlib
import re

from . import metrics
from .answers import AnsweringClient
from .client import HungUp
from .errors import BadAnswer, DevModeOff, InDoubt, Refused, ServerError, Unreachable, Unresponsive
from .inventory import Model, Request, Switching
from .metrics import Metrics
from .plan import ACTIVE, ERROR, LOADING, SLEEPING, STOPPED, Observation
from .versions import Abilities, abilities, no_level_2

# The order that brings a server back from level 2: a bare wake_up leaves the weights as garbage (vLLM issues 16564,
# 29341). It is right from level 1 and after a partial wake too, only slower, so it also serves an unknown level.
_RELOAD = (Request("/collective_rpc", body={"method": "reload_weights"}), Request("/reset_prefix_cache"))
_RELOADING_WAKE = (Request("/wake_up?tags=weights"), _RELOAD[0], Request("/wake_up?tags=kv_cache"), _RELOAD[1])
_PLAIN_WAKE = (Request("/wake_up"),)

_UNREAD = "/metrics, which shows whether it is only paused, can't be read"


class Server(AnsweringClient):
    """The server of one model, over one keep-alive connection within this host. Not for use by two threads at once.

    Every method that talks to the server raises a ServerError that names the model and says what was asked.
    """

    def __init__(self, model: Model, switching: Switching) -> None:
        super().__init__(model, switching)
        self._version = ""
        self._drafts_told = False

    def observe(self, count_requests: bool = False) -> Observation:
        """What the server is: active, sleeping, stopped (nothing listens) or error. Never raises a ServerError.

        One that gives no answer in time, or breaks it off, is slow or busy for all that is known: unknown. Loading,
        with C(dead) set, is a guess that holds if the server's process runs: something takes connections and drops
        them, as Docker does for a container that does not listen yet. Loading without it holds unless that start of
        the server was ready before.
        C(count_requests) asks for the number of running and waiting requests too.
        """
        self._served_name = self.adapters = None
        try:
            try:
                return self._look(count_requests)
            except (Unreachable, DevModeOff):
                raise
            except ServerError:
                # Once more: it may only be busy, or about to die, or have been misled once.
                return self._look(count_requests, last=True)
        except Unreachable:
            self._version = self._kind = ""  # whoever listens there next may be of another
            return Observation(STOPPED)
        except HungUp as error:
            return Observation(LOADING, problem=str(error), dead=True, remedy=error.remedy)
        except ServerError as error:
            # Once it has named its model it is the server and it runs, whoever started it.
            known = True if self._served_name else None
            unknown = isinstance(error, Unresponsive)
            return Observation(ERROR, problem=str(error), unknown=unknown, process=known, remedy=error.remedy)

    def _look(self, count_requests: bool, last: bool = False) -> Observation:
        if not self.is_healthy():
            if self.may_be_loading():
                return Observation(LOADING, problem=f"{self.model.id} is not ready (/health answers 503)")
            return Observation(ERROR, problem=f"{self.model.id}'s engine is dead (/health answers 503)", dead=True)
        self._check_identity()
        asleep = self.is_sleeping()
        told = self._metrics() if asleep or count_requests else Metrics()
        level = told.level if asleep else None
        able, reason, doubt = Abilities(), "", ""
        try:
            able, reason = self.abilities(), self.no_level_2()
        except Unresponsive:
            if not last:
                raise  # it may be gone since the call before
        if asleep and told.at_odds:
            doubt = "its engines do not sleep at the same level"
        elif asleep and told.unread and able.modes:
            # It may only be paused, and have all its memory.
            doubt = _UNREAD
        elif level == 0 and not told.awake and able.level_0_sleeps:
            level = None
        elif level == 0 and told.awake and not able.tells_half:
            doubt = "its sleep gauge shows that it is awake, but /is_sleeping that it is not"
        return Observation(
            SLEEPING if asleep else ACTIVE,
            level=level,
            running=told.running,
            waiting=told.waiting,
            doubtful=bool(doubt),
            problem=doubt,
            no_level_2=reason,
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

    def may_be_loading(self) -> bool:
        """Whether a server whose C(/health) answers 503 may be one that listens while it loads.

        llama-server and SGLang do. vLLM is loaded before it listens, and tells its version when its engine is dead too.
        """
        return not self.version()

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
                    f"{self.model.id} has no /is_sleeping (404): give it a state_request that returns whether it sleeps"
                ) from None
            raise DevModeOff(
                f"{self.model.id} answers 404 to /is_sleeping: start vLLM with VLLM_SERVER_DEV_MODE=1 in its "
                "environment and --enable-sleep-mode on its command line"
            ) from None
        sleeping = self._json("GET", "/is_sleeping", answer).get("is_sleeping")
        if not isinstance(sleeping, bool):
            raise self._bad_answer("GET", "/is_sleeping", answer)
        return sleeping

    def is_asleep(self) -> bool:
        """Whether the server sleeps and has given its memory back, as far as it tells: not if it is only paused.

        InDoubt where its metrics would tell that, and can't be read.
        """
        if not self.is_sleeping():
            return False
        told = self._metrics()
        if told.unread and self.abilities().modes:
            raise InDoubt(f"{self.model.id} reports that it sleeps, but {_UNREAD}")
        return told.level != 0 and not told.at_odds

    def count_requests(self) -> tuple[int, int] | None:
        """How many requests run and how many wait; None where the server has no such gauges.

        A paused server does not count what has come since its last request ended.
        """
        told = self._metrics()
        return None if told.running is None else (told.running, told.waiting or 0)

    def version(self) -> str:
        """What the server says that its version is; empty where it says nothing."""
        try:
            version = self._json("GET", "/version", self._call("GET", "/version")).get("version")
        except (Refused, BadAnswer):
            return ""
        return version if isinstance(version, str) else ""

    def abilities(self) -> Abilities:
        """What the server's version can. It is asked for that once, until it has been gone."""
        if not self._version:
            self._version = self.version()
        return abilities(self._version)

    @property
    def drafts(self) -> bool:
        """Whether it speculates with drafts that have weights, as far as its options, or else its metrics, tell."""
        told = self.model.draft_weights
        return self.model.drafts != "ignore" and (self._drafts_told if told is None else told)

    def no_level_2(self) -> str:
        """Why the server should not sleep at level 2, and what comes of it; nothing where it may."""
        able = self.abilities()  # which asks for the version
        return no_level_2(self._version, able, self.drafts and not self.model.wake_requests)

    def can_drain(self) -> bool:
        """Whether the server knows how to hold what comes and to finish what runs (vLLM 0.12 and later)."""
        return not self.model.sleep_requests and (self.abilities().modes or self.abilities().door)

    def can_cut(self) -> bool:
        """Whether its sleep can end, or park, the requests that run (vLLM 0.17 and later)."""
        return not self.model.sleep_requests and self.abilities().modes

    def drain(self, seconds: float) -> bool:
        """Take no more requests and wait for the running ones; whether they ended in time.

        The memory stays as it is (level 0), so that C(resume) takes it back. At level 1 or 2 nothing could: a server
        that still waits goes to sleep whenever its last request ends, even when it has been woken meanwhile. Before
        0.17 level 0 is a sleep that loses the weights, and there is another call.
        """
        call = "/sleep?level=0&mode=wait" if self.abilities().modes else "/pause?wait_for_inflight_requests=true"
        try:
            self._call("POST", call, timeout=max(seconds, 0.01))
        except Unresponsive:
            return False
        return True

    def resume(self) -> None:
        """Take requests again after C(drain)."""
        if not self.abilities().door:
            self._call("POST", "/wake_up?tags=scheduling", timeout=self.switching.request_timeout_seconds)
            return
        # On 0.16 it is answered, and done, when what runs has ended.
        with contextlib.suppress(Unresponsive):
            self._call("POST", "/resume")

    def sleep(self, level: int, mode: str = "wait") -> None:
        """Ask the server to sleep; see that it does with is_sleeping, since old servers answer before they are done.

        C(mode) says what becomes of running requests: wait for their end, abort them, or keep them until the wake
        (vLLM 0.17 and later; older servers ignore the parameter).
        """
        # Level and mode are query parameters: in a body they are ignored, and the server sleeps at level 1.
        default = Request(f"/sleep?level={level}&mode={mode}")
        for request in self.model.sleep_requests or (default,):
            self._send(request, level)

    def wake(self, level: int | None) -> str:
        """Wake the server from the level it sleeps at, None for an unknown one; see that it is with is_sleeping.

        Returns what is worth knowing about it.
        """
        plain = level in (0, 1)
        requests_made = self.model.wake_requests or (_PLAIN_WAKE if plain else _RELOADING_WAKE)
        note = "".join([self._send(request, 2 if level is None else level) for request in requests_made])
        if not self.model.wake_requests and self.abilities().door:
            self.resume()  # no wake does that there
        return note

    def cut_held(self, level: int | None) -> int | None:
        """End what a sleeping server holds, where that would run before a wake from this level is complete.

        Returns how many requests were cut; None where the server does not tell.
        """
        if level in (0, 1) or self.model.wake_requests or self.abilities().reload_last:
            return 0
        before = self._counted(metrics.aborted)
        self._call("POST", "/sleep?level=2&mode=abort", timeout=self.switching.request_timeout_seconds)
        after = self._counted(metrics.aborted)
        return None if before is None or after is None else max(0, after - before)

    def drafted(self) -> metrics.Drafts | None:
        """What has been drafted since the server began; None where it does not tell."""
        return self._counted(metrics.drafts)

    def counters(self) -> metrics.Counters:
        """What the server has done since it began; nothing of that is known where it has no metrics."""
        return self._counted(metrics.counters) or metrics.Counters()

    @property
    def can_reload(self) -> bool:
        """Whether the weights of the awake server can be loaded once more."""
        return not self.model.wake_requests

    def reload(self) -> str:
        """Load the weights of the awake server once more. Returns what is worth knowing about it."""
        return "".join([self._send(request, 2) for request in _RELOAD])

    def _metrics(self) -> Metrics:
        """What the server's metrics tell; asked for twice where they can't be read."""
        found = self._read_metrics()
        found = self._read_metrics() if found.unread else found
        self._drafts_told |= found.drafts
        return found

    def _read_metrics(self) -> Metrics:
        try:
            return metrics.parse(self._call("GET", "/metrics").text)
        except Refused as error:
            return Metrics(unread=error.status >= 500)  # else it is kept from us by something in between, or not there
        except BadAnswer:
            return Metrics(unread=True)

    def _send(self, request: Request, level: int) -> str:
        request = request.at_level(level)
        # vLLM's prefix cache can't be reset while blocks are held: it answers success false, so ask again.
        for _attempt in range(3):
            answer = self._call(
                request.method,
                request.endpoint,
                request.body,
                request.timeout or self.switching.request_timeout_seconds,
            )
            if answer.text.lstrip().startswith('{"error"'):
                self._json(request.method, request.endpoint, answer)
            if not (
                request.endpoint == "/reset_prefix_cache"
                and answer.text
                and '"success":false' in answer.text.replace(" ", "")
            ):
                return ""
        return "its prefix cache could not be reset because kept requests use it"
