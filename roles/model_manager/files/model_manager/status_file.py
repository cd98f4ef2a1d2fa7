# SPDX-License-Identifier: MIT
"""What the status of the host shows of the service: a state file, kept up to date while the service runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import manager_view, state_files

from .config import Config
from .events import Event
from .view import View

_LOG = logging.getLogger(__name__)
# The disk is written to at most so often, whatever happens.
_PAUSE_SECONDS = 1.0


class StatusFile:
    """Writes what `view` returns when something has happened, and now and then. Its thread ends with `stop`."""

    def __init__(
        self,
        view: Callable[[], View],
        config: Config,
        *,
        pause_seconds: float = _PAUSE_SECONDS,
        alive_seconds: float = manager_view.ALIVE_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._view = view
        self._config = config
        self._pause_seconds = pause_seconds
        self._alive_seconds = alive_seconds
        self._now = now
        self._happened = threading.Event()
        self._ending = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="status file", daemon=True)

    def feed(self, _event: Event) -> None:
        """Something has happened; listens to the bus."""
        self._happened.set()

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more, and remove the file: a service that has ended shows nothing."""
        self._ending.set()
        self._happened.set()
        if self._thread.ident is not None:
            self._thread.join()
            manager_view.remove(self._config.stack_dir)

    def _work(self) -> None:
        while not self._ending.is_set():
            self._happened.clear()
            self._write()
            # What tells of the end may have been cleared above.
            if not self._ending.wait(self._pause_seconds):
                self._happened.wait(self._alive_seconds)

    def _write(self) -> None:
        try:
            manager_view.write(self._config.stack_dir, shown(self._view(), self._config), self._now())
            self._failed = False
        except OSError as error:
            if not self._failed:
                path = state_files.path(self._config.stack_dir, state_files.MANAGER_VIEW)
                _LOG.warning("%s can't be written (%s): %s", path, error.strerror, state_files.remedy(error))
            self._failed = True
        except Exception as failure:  # a mistake of ours, which shall not end all that comes later
            _LOG.error("what the status shows can't be made: %r", failure)


def shown(view: View, config: Config) -> dict[str, Any]:
    """What of the view and the settings is shown, as plain data."""
    host = f"[{config.listen}]" if ":" in config.listen else config.listen
    waiting = ("model", "desired", "by", "waiters", "position", "eta_seconds")
    told = ("state", "desired", "down", "queue_depth", "eta_seconds", "breaker", "note")
    return {
        "address": f"http://{host}:{config.port}",
        "mode": view.mode,
        "pinned": view.pinned,
        "policy": config.policy,
        "reconciles": view.reconciles,
        "switching": {"from": view.switching[0], "to": view.switching[1]} if view.switching else None,
        "queue": [{key: getattr(one, key) for key in waiting} for one in view.queue],
        "models": {name: {key: getattr(one, key) for key in told} for name, one in view.models.items()},
    }
