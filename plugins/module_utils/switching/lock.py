# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The locks of a host, and in the first one's file what the next switch has to know, should this one be cut off.

One lock is the stack's. The others are the machine's: for each GPU, so that stacks which share one wait for each other,
and for the stack once more, where nobody tidies up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import threading
import time
import typing

from . import devices, state_files
from .errors import LockLost, LockTimeout, SwitchingError
from .gpus import Gpu, gpu_text
from .plan import WAKE

# What is written covers what was there before, so that nothing has to be truncated, which takes longer.
_WIDTH = 1000

Wait = typing.Callable[[typing.Callable[[], bool], float], bool]


class Begun(typing.NamedTuple):
    """What was begun on a server and not proved to have come true; C(at) is in seconds since 1970, 0 if unknown."""

    action: str
    at: float


class Holder(typing.NamedTuple):
    """Who has a lock, in words, and which models are switched; none of these where that is not known."""

    text: str
    models: tuple[str, ...] = ()


class Asked(typing.NamedTuple):
    """Of which models whoever has the lock asks to close the gateway's gates; C(ask) is how that is called."""

    ask: str
    models: tuple[str, ...]


_UNKNOWN = Holder("an unknown process")


class _File:
    """A file that is locked by whoever works. C(what) says on what."""

    def __init__(self, path: str, what: str, private: bool) -> None:
        self.path = path
        self.what = what
        self.private = private
        self.descriptor: int | None = None

    def take(self) -> bool:
        """Lock it; whether nobody else has. Raises SwitchingError where it can't be opened."""
        while True:
            if self.descriptor is None:
                self.descriptor = self._open()
            taken = _try(self.descriptor, fcntl.LOCK_EX)
            if self.is_there():
                return taken
            # Another one is in its place, which whoever comes next would lock.
            self.close()

    def is_there(self) -> bool:
        """Whether it is still the file that others open."""
        if self.descriptor is None:
            return False
        with contextlib.suppress(OSError):
            return os.path.samestat(os.lstat(self.path), os.fstat(self.descriptor))
        return False

    def close(self) -> None:
        """Let it go."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def say(self, holder: str) -> None:
        """Write into it who has it."""
        if self.descriptor is not None:
            with contextlib.suppress(OSError):  # only a text for whoever waits
                os.pwrite(self.descriptor, holder.ljust(_WIDTH).encode() + b"\n", 0)

    def _open(self) -> int:
        folder = os.path.dirname(self.path)
        try:
            if self.private:
                devices.private(folder)
            else:
                os.makedirs(folder, 0o755, exist_ok=True)
                mode = stat.S_IMODE(os.stat(folder).st_mode)
                if mode & stat.S_IWOTH:  # anybody could put another lock in the place of this one
                    os.chmod(folder, mode & ~0o022)
            # Whoever may read it could lock it, and so keep everybody from switching.
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
                    os.fchmod(descriptor, 0o600)
            except OSError:
                os.close(descriptor)
                raise
            return descriptor
        except OSError as error:
            remedy = state_files.remedy(error)
            if not self.private and error.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR):
                remedy += ", or set stack_dir (vllm_stack_dir in the playbooks)"
            raise SwitchingError(f"the lock {self.path} can't be opened ({error.strerror}): {remedy}") from None


class HostLock:
    """A file of the stack, so that modules, command line and manager share it.

    C(place) is the folder of the machine's locks, C(gpus) what GPUs it has and C(uuids) which of them has which UUID,
    for tests to own.

    C(waits_for) is who else has the lock, while this waits for it and has told so. C(closes_gates) is whether somebody
    else has to be asked to close the gateway's gates.

    C(begun) says of each model whose server was to be paused (a drain), put to sleep, woken or started what of that was
    begun last, until it is proved or taken back. C(failed_at), C(last_failed_at) (of the switch before) and
    C(active_since) are in seconds since 1970, 0 for never.
    """

    closes_gates = True

    def __init__(
        self,
        stack_dir: str,
        place: str | None = None,
        gpus: typing.Callable[[], typing.Mapping[int, str]] = devices.read_gpus,
        uuids: typing.Callable[[], typing.Mapping[str, int]] = devices.read_uuids,
    ) -> None:
        self.stack_dir = stack_dir
        self.place = place or devices.lock_folder()
        self.gpus = gpus
        self.uuids = uuids
        self.path = os.path.join(stack_dir, "run", "switch.lock")
        self.begun: dict[str, Begun] = {}
        self.active_since: dict[str, float] = {}
        self.failed_at = 0.0
        self.last_failed_at = 0.0
        self.waits_for: Holder | None = None
        self.unreadable: OSError | None = None  # why peek() could not tell
        self._holder = Holder("")
        self._asked: Asked | None = None
        self.unanswered: object = None  # what the model manager told when it was waited for in vain
        self._descriptor: int | None = None
        self._files: list[_File] = []
        self._writing = threading.Lock()

    @property
    def doubtful(self) -> set[str]:
        """The models whose last wake was not proved: they may hold GPU memory although they say that they sleep."""
        return {name for name, begun in list(self.begun.items()) if begun.action == WAKE}

    @contextlib.contextmanager
    def hold(
        self,
        purpose: str,
        seconds: float,
        wait: Wait,
        tell: typing.Callable[[str], None] | None = None,
        gpus: typing.Iterable[Gpu] = (),
        models: typing.Iterable[str] = (),
    ) -> typing.Iterator[None]:
        """Hold the lock, and those of these GPUs. C(tell) is told who has one that has to be waited for.

        C(purpose) and C(models) say to others what is switched. Raises LockTimeout.
        """
        own = _File(self.path, "this host", private=False)
        left = [own]
        taken: list[_File] = []
        told: set[_File] = set()

        def take() -> bool:
            while left:
                file = left[0]
                if not file.take():
                    if tell and file not in told:
                        told.add(file)
                        holder = self._holder_of(file)
                        self.waits_for = holder if file is own else None
                        tell(f"waiting for another switch of {file.what} ({holder.text})")
                    return False
                if file is own:
                    self.waits_for = None
                    self._begin(file, purpose, models)
                    left.extend(self._machine(gpus))
                else:
                    file.say(f"{self._holder.text}, of {self.stack_dir}")
                taken.append(left.pop(0))
            return True

        try:
            if not take() and not wait(take, seconds):
                if taken:
                    self.record_end({}, self.last_failed_at)  # it was no switch
                what = "the host's lock" if left[0].what == own.what else f"the lock of {left[0].what}"
                raise LockTimeout(
                    f"timed out after {seconds:g} s (lock_timeout_seconds) waiting for another switch, which holds "
                    f"{what} ({self._holder_of(left[0]).text}): try again later"
                )
            self._files = taken
            yield
        finally:
            if self._asked:
                self._asked = None
                with contextlib.suppress(SwitchingError):  # that the lock is let go tells it, too
                    self._write()
            self._descriptor, self._files, self.waits_for = None, [], None
            for file in taken[1:]:
                if file.is_there():
                    with contextlib.suppress(OSError):
                        os.unlink(file.path)
            for file in (*taken, *left):
                file.close()

    def check(self) -> None:
        """See that nobody else can have been let in. Raises LockLost."""
        for file in self._files:
            if not file.is_there():
                raise LockLost(
                    f"the lock {file.path} was removed while this switch held it, so another switch may be running: "
                    "this one does nothing more"
                )

    def _machine(self, gpus: typing.Iterable[Gpu]) -> list[_File]:
        """The machine's locks, in the order in which everybody takes them: of this stack, and of the GPUs."""
        stack = os.stat(self.stack_dir)
        there, gpus = self.gpus(), list(gpus)
        uuids = self.uuids() if any(isinstance(gpu, str) for gpu in gpus) else {}
        names = [(f"stack-{stack.st_dev:x}-{stack.st_ino:x}", "this host")]
        found = {}
        for gpu in gpus if there else ():
            number = uuids.get(gpu, gpu) if isinstance(gpu, str) else gpu
            # A MIG instance is locked by its own name; one GPU may be called by number in another stack.
            device = there.get(number) if isinstance(number, int) else number
            if device:
                found[f"gpu-{device}"] = gpu_text(gpu)
        names += sorted(found.items())
        return [_File(os.path.join(self.place, name), what, private=True) for name, what in names]

    def _begin(self, file: _File, purpose: str, models: typing.Iterable[str]) -> None:
        """Take over what the last switch has left, and write down that this one begins."""
        if file.descriptor is None:
            raise AssertionError("the lock is held")
        self._read(file.descriptor)
        self.last_failed_at, self.failed_at, self.unanswered = self.failed_at, 0.0, None
        began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._holder, self._asked = Holder(f"process {os.getpid()}: {purpose}, since {began}", tuple(models)), None
        self._descriptor = file.descriptor
        self._write()

    def _holder_of(self, file: _File) -> Holder:
        """Who has a file that somebody else has locked."""
        if file.descriptor is None:
            return _UNKNOWN
        if not file.private:
            return self._read(file.descriptor)
        said = os.pread(file.descriptor, 1 << 12, 0).decode(errors="replace").strip()
        return Holder(said) if said else _UNKNOWN

    def peek(self) -> None:
        """Read what the last switch left, without the lock; nothing while somebody holds it: then it is not over."""
        self.begun, self.active_since, self.failed_at = {}, {}, 0.0
        self.unreadable = None
        try:
            with open(self.path, "rb", buffering=0) as file:
                if _try(file.fileno(), fcntl.LOCK_SH):
                    self._read(file.fileno())
        except FileNotFoundError:
            pass
        except OSError as error:
            self.unreadable = error

    def held_by(self) -> Holder | None:
        """Who holds the lock of the stack now; None where nobody does, or this user may not know.

        Raises OSError where that can't be told for another reason.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                free = _try(file.fileno(), fcntl.LOCK_SH)
                return None if free else HostLock(self.stack_dir, self.place)._read(file.fileno())
        except (FileNotFoundError, PermissionError):
            return None

    def ask(self, models: typing.Iterable[str]) -> str:
        """Ask for the gateway's gates of these models, too, to be closed until this lets go; how that is called."""
        with self._writing:
            before = self._asked or Asked(os.urandom(8).hex(), ())
            self._asked = before._replace(models=tuple(sorted({*before.models, *models})))
            self._write()
            return self._asked.ask

    def asked(self) -> Asked | None:
        """What the file says that its holder asks; he may have let go of it. Raises OSError where it can't be read."""
        try:
            with open(self.path, "rb") as file:
                asked = json.loads(file.readline(1 << 20)).get("gates")
            return Asked(str(asked["ask"]), tuple(map(str, asked["models"]))) if asked else None
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return None

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

    def record_end(self, active_since: typing.Mapping[str, float | None], failed_at: float) -> None:
        """Write down how a switch ended: since when models are active, if they are, and when it failed, 0 if not."""
        with self._writing:
            since = {**self.active_since, **active_since}
            self.active_since = {name: when for name, when in since.items() if when is not None}
            self.failed_at = max(self.failed_at, failed_at)
            with contextlib.suppress(SwitchingError):
                self._write()

    def _read(self, descriptor: int) -> Holder:
        """Take over what the file says and return the holder that it names."""
        try:
            saved = json.loads(os.pread(descriptor, 1 << 20, 0).split(b"\n", 1)[0])
            if "begun" in saved:
                self.begun = {str(m): Begun(str(action), float(at)) for m, (action, at) in saved["begun"].items()}
            else:  # as it was written when only wakes were
                self.begun = {str(name): Begun(WAKE, 0.0) for name in saved["doubtful"]}
            self.active_since = {str(name): float(when) for name, when in saved["active_since"].items()}
            self.failed_at = float(saved["failed_at"])
            return Holder(str(saved["holder"]), tuple(map(str, saved.get("models", ()))))
        except (ValueError, TypeError, KeyError, AttributeError):
            self.begun, self.active_since, self.failed_at = {}, {}, 0.0
            return _UNKNOWN

    def _write(self) -> None:
        if self._descriptor is None:
            return
        text = json.dumps(
            {
                "holder": self._holder.text,
                "models": self._holder.models,
                **({"gates": self._asked._asdict()} if self._asked else {}),
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
                f"the journal in the lock {self.path} can't be written ({error.strerror}): {state_files.remedy(error)}"
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
