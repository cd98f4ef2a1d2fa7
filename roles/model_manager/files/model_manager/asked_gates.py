# SPDX-License-Identifier: MIT
"""Who else has the host's lock asks for gates to be closed, before he puts servers to sleep: the thread that hears it.

The engine writes that into the lock's file and waits for the answer in a state file, for some seconds. The observer
would see him too late: it looks at servers meanwhile, which takes as long as they do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import gates, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gates import Answer
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import Asked, HostLock

from .context import Context
from .gateway import Gateway

_LOG = logging.getLogger(__name__)
# How often it is looked whether anybody asks.
_POLL_SECONDS = 0.05
# How often while somebody waits for an answer: a share of the time already waited, within these.
_SOON_SECONDS = (0.01, 0.1)
_SOON_SHARE = 0.05
# How often requests that have not ended are told of at least: the engine believes nobody who is silent.
_AGAIN_SECONDS = 1.0


class AskedGates:
    """Closes the gates that somebody else asks for, and says so. Where there is no gateway, it only says that.

    It takes the manager's lock, by way of `gateway`. `over` is called when he has let go.
    """

    def __init__(self, context: Context, gateway: Gateway, over: Callable[[], None]) -> None:
        self._stack_dir = context.config.stack_dir
        self._clock = context.clock
        self._gateway = gateway
        self._over = over
        self._lock = HostLock(self._stack_dir)
        self._asked: Asked | None = None
        self._asked_at = 0.0
        self._told = Answer()
        self._told_at = 0.0
        # Of one that was killed the question is left in the file.
        self._past = ""
        self._failed = self._blind = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="asked gates", daemon=True)

    def start(self) -> None:
        """Begin. Before any gate is opened: somebody may have been told by the service before that it is closed."""
        if not self._gateway.on:
            gates.remove(self._stack_dir)
            return
        self._tell(Answer())
        self._round()
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more, and say so. May be called again."""
        if self._thread.ident is None or self._ending.is_set():
            return
        self._ending.set()
        self._thread.join()
        self._tell(self._told._replace(runs=False))

    def _work(self) -> None:
        pause = _POLL_SECONDS
        while not self._ending.wait(pause):
            try:
                pause = self._round()
            except Exception as failure:  # whoever asks waits no longer than he does
                _LOG.error("what is asked of the gateway can't be done: %r", failure)
                pause = _AGAIN_SECONDS  # a line a second in the log is enough

    def _round(self) -> float:
        """Hear and answer; in how many seconds to do so again."""
        asked = self._read()
        if asked is None:
            if self._asked:
                self._asked = None
                self._gateway.hold(())
                self._over()
            return _POLL_SECONDS
        if asked != self._asked:
            self._gateway.hold(asked.models)
            self._asked, self._asked_at = asked, self._clock()
        held = self._gateway.held(asked.models)
        soon = min(max(_SOON_SECONDS[0], (self._clock() - self._asked_at) * _SOON_SHARE), _SOON_SECONDS[1])
        if held is None:
            return soon
        busy, linked = held
        told = Answer(asked.ask, frozenset(asked.models), busy, True, self._told.number, linked)
        if told != self._told or (busy and self._clock() - self._told_at >= _AGAIN_SECONDS):
            self._tell(told._replace(number=told.number + 1))
        return soon if busy else _POLL_SECONDS

    def _read(self) -> Asked | None:
        """What is asked by somebody who has the lock; where that can't be told, what may be."""
        asked = None
        try:
            asked = self._lock.asked()
            if asked is None or asked.ask == self._past:
                asked = None
            elif self._lock.held_by() is None:
                self._past, asked = asked.ask, None
        except OSError as error:
            if not self._blind:
                _LOG.warning(
                    "%s can't be read (%s): gates that are asked to be closed stay so; repair or remove it",
                    self._lock.path,
                    error.strerror,
                )
            self._blind = True
            return asked or self._asked
        self._blind = False
        return asked

    def _tell(self, answer: Answer) -> None:
        try:
            gates.write(self._stack_dir, answer)
            self._told, self._told_at, self._failed = answer, self._clock(), False
        except OSError as error:
            if not self._failed:
                path = state_files.path(self._stack_dir, state_files.GATES)
                _LOG.warning("%s can't be written (%s): %s", path, error.strerror, state_files.remedy(error))
            self._failed = True
