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


class Answer(typing.NamedTuple):
    """What the manager tells: to what it answers, whose gates are closed, and which of them have requests yet.

    C(runs) is whether it has not been stopped; C(number) changes while there are requests, if nothing else does.
    """

    ask: str = ""
    closed: frozenset[str] = frozenset()
    busy: frozenset[str] = frozenset()
    runs: bool = True
    number: int = 0


def read(stack_dir: str) -> Answer | None:
    """What the manager tells; None where there is no gateway. What can't be read tells nothing."""
    try:
        with open(state_files.path(stack_dir, state_files.GATES), encoding="utf-8") as file:
            told = json.load(file)
        closed, busy = (frozenset(map(str, told[key])) for key in ("closed", "busy"))
        return Answer(str(told["ask"]), closed, busy, bool(told["runs"]), int(told["number"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
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

    def close(self, name: str) -> None:
        """Have the gates closed of a model and of those that share its GPUs; once, whoever asks for it first."""
        with self._lock:
            if self.host.lock.closes_gates and name not in self._asked:
                names = {m.id for m in self.host.inventory.group(self.host.models[name])}
                self._close(name, names)
                self._asked |= names

    def _close(self, name: str, names: set[str]) -> None:
        told = read(self.host.stack_dir)
        if told is None:
            return
        why = "it does not run"
        if told.runs:
            ask = self.host.lock.ask(names)

            def confirmed() -> bool:
                now = read(self.host.stack_dir)
                return now is not None and now.ask == ask and names <= now.closed

            if self.host.wait(confirmed, ANSWER_SECONDS):
                self._confirmed = ask
                return
            why = f"it has not answered for {ANSWER_SECONDS:g} s"
        self.warnings.append(
            f"the model manager did not confirm that the gateway sends no more requests to {name} ({why}), so some may "
            f"wait there until {name} is active again: check homegpt-manager.service"
        )

    def wait_until_idle(self, name: str, seconds: float) -> None:
        """Wait until the gateway has no request for a model whose gate is closed, as long as the manager tells so.

        It may have sent one that has not reached the server yet.
        """
        if not self._confirmed:
            return
        last, since = Answer(), self.host.clock()

        def idle() -> bool:
            nonlocal last, since
            now = read(self.host.stack_dir)
            if now is None or now.ask != self._confirmed or not now.runs:
                return True  # nobody knows, and the gate stays closed
            if now != last:
                last, since = now, self.host.clock()
            return name not in now.busy or self.host.clock() - since > ANSWER_SECONDS

        self.host.wait(idle, seconds)
