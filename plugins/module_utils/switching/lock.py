# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The one lock of a host, and in its file what the next switch has to know, should this one be cut off at any point."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
import typing

from . import records
from .errors import LockTimeout, SwitchingError
from .plan import WAKE

# What is written covers what was there before, so that nothing has to be truncated, which takes longer.
_WIDTH = 1000

Wait = typing.Callable[[typing.Callable[[], bool], float], bool]


class Begun(typing.NamedTuple):
    """What was begun on a server and not proved to have come true; C(at) is in seconds since 1970, 0 if unknown."""

    action: str
    at: float


class HostLock:
    """A file of the stack, so that modules, command line and manager share it.

    C(begun) says of each model whose server was to be paused (a drain), put to sleep, woken or started what of that was
    begun last, until it is proved or taken back. C(failed_at), C(last_failed_at) (of the switch before) and
    C(active_since) are in seconds since 1970, 0 for never.
    """

    def __init__(self, stack_dir: str) -> None:
        self.path = os.path.join(stack_dir, "run", "switch.lock")
        self.begun: dict[str, Begun] = {}
        self.active_since: dict[str, float] = {}
        self.failed_at = 0.0
        self.last_failed_at = 0.0
        self._holder = ""
        self._descriptor: int | None = None
        self._writing = threading.Lock()

    @property
    def doubtful(self) -> set[str]:
        """The models whose last wake was not proved: they may hold GPU memory although they say that they sleep."""
        return {name for name, begun in list(self.begun.items()) if begun.action == WAKE}

    @contextlib.contextmanager
    def hold(
        self, purpose: str, seconds: float, wait: Wait, tell: typing.Callable[[str], None] | None = None
    ) -> typing.Iterator[None]:
        """Hold the lock. C(tell) is told who has it, when it has to be waited for. Raises LockTimeout."""
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise SwitchingError(
                f"the lock {self.path} can't be opened ({error.strerror}): run as a user who may write there, or set "
                "stack_dir (vllm_stack_dir in the playbooks)"
            ) from None
        try:
            if not _try(descriptor, fcntl.LOCK_EX):
                if tell:
                    tell(f"waiting for another switch of this host ({self._read(descriptor)})")
                if not wait(lambda: _try(descriptor, fcntl.LOCK_EX), seconds):
                    raise LockTimeout(
                        f"another switch holds the host's lock ({self._read(descriptor)}), and did for {seconds:g} s "
                        "(lock_timeout_seconds): try again later"
                    )
            self._read(descriptor)
            self.last_failed_at, self.failed_at = self.failed_at, 0.0
            began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            self._holder = f"process {os.getpid()}: {purpose}, since {began}"
            self._descriptor = descriptor
            self._write()
            yield
        finally:
            self._descriptor = None
            os.close(descriptor)

    def peek(self) -> None:
        """Read what the last switch left, without the lock; nothing while somebody holds it: then it is not over."""
        self.begun, self.active_since, self.failed_at = {}, {}, 0.0
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                if _try(descriptor, fcntl.LOCK_SH):
                    self._read(descriptor)
            finally:
                os.close(descriptor)

    def begin(self, name: str, action: str) -> None:
        """Write down that this model's server is about to be paused (drain), put to sleep, woken or started."""
        with self._writing:
            self.begun[name] = Begun(action, round(time.time(), 3))
            self._write()

    def settle(self, name: str) -> None:
        """Write down that this model is surely awake, asleep or stopped."""
        with self._writing:
            if self.begun.pop(name, None):
                with contextlib.suppress(SwitchingError):  # too careful then
                    self._write()

    def note(self, active_since: typing.Mapping[str, float | None], failed_at: float) -> None:
        """Write down how a switch ended: since when models are active, if they are, and when it failed, 0 if not."""
        with self._writing:
            since = {**self.active_since, **active_since}
            self.active_since = {name: when for name, when in since.items() if when is not None}
            self.failed_at = max(self.failed_at, failed_at)
            with contextlib.suppress(SwitchingError):
                self._write()

    def _read(self, descriptor: int) -> str:
        """Take over what the file says and return the holder that it names."""
        try:
            saved = json.loads(os.pread(descriptor, 1 << 20, 0).split(b"\n", 1)[0])
            if "begun" in saved:
                self.begun = {str(m): Begun(str(action), float(at)) for m, (action, at) in saved["begun"].items()}
            else:  # as it was written when only wakes were
                self.begun = {str(name): Begun(WAKE, 0.0) for name in saved["doubtful"]}
            self.active_since = {str(name): float(when) for name, when in saved["active_since"].items()}
            self.failed_at = float(saved["failed_at"])
            return str(saved["holder"])
        except (ValueError, TypeError, KeyError, AttributeError):
            self.begun, self.active_since, self.failed_at = {}, {}, 0.0
            return "somebody unknown"

    def _write(self) -> None:
        if self._descriptor is None:
            return
        text = json.dumps(
            {
                "holder": self._holder,
                "begun": self.begun,
                # For an engine that is older, as the host's own may be.
                "doubtful": sorted(self.doubtful),
                "active_since": self.active_since,
                "failed_at": self.failed_at,
            }
        )
        line = text.ljust(_WIDTH).encode() + b"\n"
        try:
            if os.fstat(self._descriptor).st_size < len(line):
                _reserve(self._descriptor, len(line))
            if os.pwrite(self._descriptor, line, 0) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise SwitchingError(
                f"the notes in the lock {self.path} can't be written ({error.strerror}): {records.remedy(error)}"
            ) from None


def _reserve(descriptor: int, size: int) -> None:
    """Have the disk keep so much for a file, or raise OSError while what it says is still whole."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
