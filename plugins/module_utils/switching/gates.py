# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""That the gateway of a host sends no more requests to a server that is about to sleep or to end.

Gates are the model manager's: whoever has the host's lock asks in its file that those of some models be closed
(C(HostLock.ask)), and waits until the manager confirms that in a state file, which is there only on a host with a
gateway. The manager's own switches close them by themselves, and ask nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import typing

from . import state_files
from .host import Host

# A manager that is started again has to look at its servers and to be found by the gateway, for which it waits 3 s.
ANSWER_SECONDS = 4.0
# Where nobody can see an answer: a manager that runs hears the question at once, and so do the workers of the gateway.
_UNSEEN_SECONDS = 0.5
_CHECK = "check homegpt-manager.service"


class Answer(typing.NamedTuple):
    """What the manager tells: to what it answers, whose gates are closed, and which of them have requests yet.

    C(runs) is whether it has not been stopped, C(linked) whether the gateway was connected to it, so that it knows what
    it confirms; C(number) changes while there are requests, if nothing else does.
    """

    ask: str = ""
    closed: frozenset[str] = frozenset()
    busy: frozenset[str] = frozenset()
    runs: bool = True
    number: int = 0
    linked: bool = True


def read(stack_dir: str) -> Answer | None:
    """What the manager tells; None where there is no gateway. What makes no sense tells nothing.

    Raises OSError where it can't be read.
    """
    try:
        with open(state_files.path(stack_dir, state_files.GATES), encoding="utf-8") as file:
            told = json.load(file)
        closed, busy = (frozenset(map(str, told[key])) for key in ("closed", "busy"))
        linked = bool(told.get("linked", True))  # of an older manager nobody knows
        return Answer(str(told["ask"]), closed, busy, bool(told["runs"]), int(told["number"]), linked)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return Answer()


def write(stack_dir: str, answer: Answer) -> None:
    """For the manager: tell this. Raises OSError where it can't be written."""
    told = {**answer._asdict(), "closed": sorted(answer.closed), "busy": sorted(answer.busy)}
    state_files.write(stack_dir, state_files.GATES, told)


def remove(stack_dir: str) -> None:
    """For the manager: there is no gateway."""
    with contextlib.suppress(OSError):
        os.unlink(state_files.path(stack_dir, state_files.GATES))


class Gates:
    """Those of one switch. C(warnings) is where it tells what it could not find out."""

    def __init__(self, host: Host, warnings: list[str]) -> None:
        self.host = host
        self.warnings = warnings
        self._lock = threading.Lock()
        # Those that were asked for, and what the manager has confirmed that by; empty where it has not.
        self._asked: set[str] = set()
        self._confirmed = ""
        # Those whose requests at the gateway did not end in time.
        self._overdue: set[str] = set()

    def close(self, name: str) -> None:
        """Have the gates closed of a model and of those that share its GPUs; once, whoever asks for it first."""
        with self._lock:
            if self.host.lock.closes_gates and name not in self._asked:
                names = {m.id for m in self.host.inventory.group(self.host.models[name])}
                why, remedy = self._close(names)
                if why:
                    self.warnings.append(
                        f"the model manager did not confirm that the gateway sends no more requests to {name} ({why}), "
                        f"so some may wait there until {name} is active again: {remedy}"
                    )
                self._asked |= names

    def _close(self, names: set[str]) -> tuple[str, str]:
        """Ask, and wait for the answer: why these gates may be open yet, and the remedy; two empty texts if none is."""
        told = self._read()
        if told is None:
            return "", ""
        if isinstance(told, Answer) and not told.runs:
            return "it does not run", _CHECK
        lock = self.host.lock
        # Whoever was waited for in vain is not waited for again as long as it tells nothing else.
        seconds = 0.0 if told == lock.unanswered else ANSWER_SECONDS
        ask = lock.ask(names)
        blind_since: float | None = None

        def answered() -> bool:
            return isinstance(told, Answer) and told.ask == ask and names <= told.closed

        def over() -> bool:
            nonlocal told, blind_since
            told, now = self._read(), self.host.clock()
            if not isinstance(told, OSError):
                blind_since = None
                return answered()
            # It may be read at the next look. Where nobody can see the answer, the gates are given the time to close.
            blind_since = now if blind_since is None else blind_since
            return now - blind_since >= _UNSEEN_SECONDS

        self.host.wait(over, seconds)
        if isinstance(told, OSError):
            path = state_files.path(self.host.stack_dir, state_files.GATES)
            remedy = "switch as a user who can read it" if isinstance(told, PermissionError) else "check that file"
            return f"{path} can't be read: {told.strerror}", remedy
        if not answered():
            lock.unanswered = told
            return f"it has not answered for {ANSWER_SECONDS:g} s", _CHECK
        self._confirmed = ask
        if isinstance(told, Answer) and not told.linked:
            return "the gateway is not connected to it", "check the gateway, whose log tells why, unless it is stopped"
        return "", ""

    def _read(self) -> Answer | OSError | None:
        try:
            return read(self.host.stack_dir)
        except OSError as error:
            return error

    def wait_until_idle(self, name: str, seconds: float) -> None:
        """Wait until the gateway has no request for a model whose gate is closed, as long as the manager tells so.

        It may have sent one that has not reached the server yet.
        """
        if not self._confirmed or name in self._overdue:
            return
        last, since, silent = Answer(), self.host.clock(), False

        def idle() -> bool:
            nonlocal last, since, silent
            now = self._read()
            if now is None or (isinstance(now, Answer) and (now.ask != self._confirmed or not now.runs)):
                return True  # nobody knows, and the gate stays closed
            if isinstance(now, Answer) and now != last:
                last, since = now, self.host.clock()
            silent = self.host.clock() - since > ANSWER_SECONDS
            return silent or (last.ask == self._confirmed and name not in last.busy)

        if not self.host.wait(idle, seconds) or silent:
            self._overdue.add(name)
        if silent:
            self.warnings.append(
                f"the model manager has told nothing for {ANSWER_SECONDS:g} s of the requests that the gateway has sent"
                f" to {name}, so they were waited for no longer: {_CHECK}"
            )
