# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Which files vLLM reads a model's weights from, how much of them the page cache has, and reading the rest into it.

Where the weights are is told by a state file that the role vllm_servers writes, and by C(model) where that is a path of
this host. Which of the files count, and in what order they are read, is as in vLLM (C(default_loader.py) and
C(weight_utils.py) in C(model_executor/model_loader) of 0.32.0; before 0.16 in no certain order).

What the cache has is asked of C(cachestat) (Linux 6.5), else of C(mincore). To a user who may not write a file
C(mincore) says that all of it is there (Linux 5.2), so that it is not asked then, and the file is read whole. Of a file
in an overlay C(cachestat) says that nothing is there, since the pages are those of the file below.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import json
import os
import re
import sys
import threading
import time
import typing

from . import options, state_files
from .inventory import Model

_SAFETENSORS = ("*.safetensors",)
_ANY = ("*.safetensors", "*.bin", "*.pt")
_CONSOLIDATED = "consolidated*.safetensors"
# By load_format, in vLLM's order: the first pattern that matches a file counts. What a format reads past the page
# cache, or from no file that can be named, has none. One that is not here is taken for auto.
_PATTERNS: dict[str, tuple[str, ...]] = {
    "dummy": (),
    "fastsafetensors": _SAFETENSORS,
    "gguf": ("*.gguf",),
    "instanttensor": (),
    "mistral": (_CONSOLIDATED,),
    "npcache": (),
    "pt": ("*.pt",),
    "runai_streamer": _SAFETENSORS,
    "runai_streamer_sharded": _SAFETENSORS,
    "safetensors": _SAFETENSORS,
    "sharded_state": _SAFETENSORS,
    "tensorizer": (),
}
# What a training leaves beside the weights.
_NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
# How much is asked about at once, and what is read without a look at whether it is still wanted: 20 ms of a slow disk.
_WINDOW_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_WORTH_TELLING_BYTES = 5e7  # 0.1 GB, as it is told
# As vLLM's own prefetch: weights that take more of the free RAM than this push each other out.
RAM_SHARE = 0.9
# Whoever waits for a disk that hangs is not waited for.
_STOP_SECONDS = 0.2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# By machine: the numbers of ioprio_set and cachestat.
_CALLS = {"x86_64": (251, 451), "aarch64": (30, 451)}
# Of ioprio: whom it is set for, and the class that gets the disk when nobody else wants it.
_THIS_THREAD = 1
_IDLE = 3 << 13
_LOWEST = 19  # of nice

Cached = typing.Callable[[int, int, int], typing.Optional[int]]


class Place(typing.NamedTuple):
    """Where a model's weights are on this host: C(folders) of which the first that has any counts, or a file."""

    folders: tuple[str, ...]
    revision: str = "main"
    load_format: str = "auto"


class Seen(typing.NamedTuple):
    """How many files of weights there are, and how many bytes; C(cached) of them in the page cache, None: unknown."""

    files: int
    size: int
    cached: int | None


class Warmed(typing.NamedTuple):
    """How much there is and what came of reading it, in bytes.

    C(cached) was in the page cache before, as far as it was looked at. C(limited) says that there was no RAM for more,
    C(problem) what else went wrong.
    """

    size: int = 0
    cached: int = 0
    read: int = 0
    seconds: float = 0.0
    limited: bool = False
    problem: str = ""

    @property
    def rest(self) -> str:
        """What is said of what there was no RAM for."""
        return ", not enough free RAM for the rest" if self.limited else ""

    @property
    def note(self) -> str:
        """What is said of it where it was of use."""
        told = f"{self.read / 1e9:.1f} GB of weights read ahead in {self.seconds:.1f} s{self.rest}"
        return told if self.read >= _WORTH_TELLING_BYTES else ""


def place_of(stack_dir: str, model: Model) -> Place | None:
    """Where the weights of a model are; None where this host was not told."""
    known = state_files.models(stack_dir, state_files.WEIGHTS).get(model.id)
    if isinstance(known, dict) and isinstance(known.get("folders"), list) and known["folders"]:
        folders = tuple(map(str, known["folders"]))
        return Place(folders, str(known.get("revision") or "main"), str(known.get("load_format") or "auto"))
    if not model.start_command or not os.path.isabs(model.model):
        return None
    said = options.of_command(model.start_command)
    given = model.args if said is None else said
    return Place((model.model,), load_format=str(given.get("load_format") or "auto"))


def files_of(place: Place) -> list[str]:
    """The files that vLLM reads, in its order; none where there are none. Raises OSError where nobody may look."""
    for folder in place.folders:
        if os.path.isfile(folder):
            return [folder]
        snapshot = _snapshot(folder, place.revision)
        found = _weights_in(snapshot, place.load_format) if os.path.isdir(snapshot) else []
        if found:
            return found
    return []


def _snapshot(folder: str, revision: str) -> str:
    """The folder of the revision's files: in the cache of a hub a repository has one for each commit."""
    snapshots = os.path.join(folder, "snapshots")
    if not os.path.isdir(snapshots):
        return folder
    commit = revision
    reference = os.path.join(folder, "refs", revision)
    if os.path.isfile(reference):
        with open(reference, encoding="utf-8", errors="replace") as file:
            commit = file.read().strip()
    # ModelScope calls its default revision otherwise.
    there = os.listdir(snapshots)
    return os.path.join(snapshots, there[0] if commit not in there and len(there) == 1 else commit)


def _weights_in(folder: str, load_format: str) -> list[str]:
    names = [name for name in sorted(os.listdir(folder)) if os.path.isfile(os.path.join(folder, name))]
    load_format = load_format.lower()  # as vLLM takes it
    patterns = _PATTERNS.get(load_format, _ANY)
    if patterns == _ANY and load_format != "hf" and fnmatch.filter(names, _CONSOLIDATED):
        patterns = (_CONSOLIDATED,)
    index = "consolidated" if _CONSOLIDATED in patterns else "model"
    indexed = _indexed(os.path.join(folder, index + ".safetensors.index.json"))
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if pattern.endswith(".safetensors") and indexed:
            # Shards and a consolidated file may lie side by side, and shards in a folder of their own.
            shards = sorted(name for name in indexed if os.path.isfile(os.path.join(folder, name)))
            found = [name for name in found if name in indexed] if found else shards
        found = [name for name in found if not name.endswith(_NO_WEIGHTS)]
        if pattern.endswith(".gguf") and len(found) > 1:
            return []  # one for each quantization, as it is usual: nobody can tell which
        if found:
            return [os.path.join(folder, name) for name in sorted(found, key=_natural)]
    return []


def _indexed(path: str) -> set[str]:
    """The files that an index names; none where there is no index, or a damaged one."""
    try:
        with open(path, encoding="utf-8") as file:
            return set(map(str, json.load(file)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _natural(name: str) -> list[tuple[int, str]]:
    """What names are sorted by so that shard 10 comes after shard 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", os.path.basename(name))]


def cached_bytes(descriptor: int, offset: int, length: int) -> int | None:
    """How much of this part of a file the page cache has; None where nobody can tell. C(offset) begins a window."""
    kernel = _kernel()
    if kernel is None:
        return None
    told = kernel.cachestat(descriptor, offset, length)
    if not told and _may_write(descriptor):
        mapped = kernel.mincore(descriptor, offset, length)
        told = told if mapped is None else mapped
    return told


def _may_write(descriptor: int) -> bool:
    user = os.geteuid()
    return user in (0, os.fstat(descriptor).st_uid) or os.access(f"/proc/self/fd/{descriptor}", os.W_OK)


class _Kernel:
    """The calls of Linux that Python has no function for."""

    def __init__(self) -> None:
        import ctypes  # noqa: PLC0415 - few switches need it, and every one would wait for it

        self._c = ctypes
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int64,
        ]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
        # The numbers are those of processes of 64 bits.
        self._ioprio_set, self._cachestat = _CALLS.get(os.uname().machine, (0, 0)) if sys.maxsize > 1 << 32 else (0, 0)

    def cachestat(self, descriptor: int, offset: int, length: int) -> int | None:
        """As cached_bytes; None also where the kernel has no such call or keeps it from this user."""
        if not self._cachestat:
            return None
        span = (self._c.c_uint64 * 2)(offset, length)
        counts = (self._c.c_uint64 * 5)()
        code = self._libc.syscall(
            self._c.c_long(self._cachestat),
            self._c.c_uint(descriptor),
            self._c.byref(span),
            self._c.byref(counts),
            self._c.c_uint(0),
        )
        return None if code else min(int(counts[0]) * _PAGE_BYTES, length)

    def mincore(self, descriptor: int, offset: int, length: int) -> int | None:
        """As cached_bytes, of a mapping of the file."""
        read, shared, failed = 1, 1, self._c.c_void_p(-1).value
        address = self._libc.mmap(None, length, read, shared, descriptor, offset)
        if address is None or address == failed:
            return None
        try:
            pages = self._c.create_string_buffer(-(-length // _PAGE_BYTES))
            if self._libc.mincore(address, length, pages):
                return None
            return min(pages.raw.count(1) * _PAGE_BYTES, length)
        finally:
            self._libc.munmap(address, length)

    def be_idle(self) -> None:
        """Have this thread get the disk when nobody else wants it, where that can be asked for."""
        if self._ioprio_set:
            self._libc.syscall(*map(self._c.c_long, (self._ioprio_set, _THIS_THREAD, 0, _IDLE)))


@functools.lru_cache(maxsize=None)
def _kernel() -> _Kernel | None:
    """None where this is no Linux, or where Python can't call its library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return _Kernel()
    except (ImportError, OSError, AttributeError):
        return None


def _be_idle() -> None:
    """Have this thread take nothing from anybody: neither the disk nor a core."""
    kernel = _kernel()
    if kernel:
        kernel.be_idle()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)


def look(place: Place, cached: Cached = cached_bytes) -> Seen:
    """What there is of a model's weights. Raises OSError where they can't be read."""
    size, there, known, files = 0, 0, True, files_of(place)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            size += length
            for offset, part in _windows(length):
                told = cached(file.fileno(), offset, part)
                known = known and told is not None
                there += told or 0
    return Seen(len(files), size, there if known else None)


def _windows(length: int) -> typing.Iterator[tuple[int, int]]:
    for offset in range(0, length, _WINDOW_BYTES):
        yield offset, min(_WINDOW_BYTES, length - offset)


class Warmer:
    """Reads the weights of a place into the page cache, C(limit) bytes at most, what is there already included.

    C(clock), C(cached) and C(read) are for tests to own; C(read) takes a descriptor, a buffer and an offset.
    """

    def __init__(
        self,
        place: Place,
        limit: float,
        clock: typing.Callable[[], float] = time.monotonic,
        cached: Cached = cached_bytes,
        read: typing.Callable[[int, typing.Any, int], int] = lambda file, buffer, at: os.preadv(file, [buffer], at),
    ) -> None:
        self.place = place
        self.limit = limit
        self._clock, self._cached, self._read = clock, cached, read
        self._over = threading.Event()
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._thread = threading.Thread(target=self.run, name="warm", daemon=True)
        self._warmed = Warmed()

    def predict(self) -> str:
        """What is said beforehand of how much it would read; nothing where that is little, or nobody may look."""
        try:
            seen = look(self.place, self._cached)
        except (OSError, ValueError):
            return ""
        left = min(seen.size, self.limit) - (seen.cached or 0)
        return f"{left / 1e9:.1f} GB of weights to be read ahead" if left >= _WORTH_TELLING_BYTES else ""

    def begin(self) -> None:
        """Read in a thread of its own. Never raises: to have nothing read ahead is no reason to fail."""
        try:
            self._thread.start()
        except RuntimeError:  # no thread can be had
            self._over.set()

    def stop(self) -> Warmed:
        """Give it up where it is not over yet. What came of it."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(_STOP_SECONDS)
        return self._warmed

    def run(self) -> Warmed:
        """Read until all is there, the limit is reached or it is given up. What goes wrong is told in its result."""
        started = self._clock()
        try:
            _be_idle()
            files = files_of(self.place)
            self._warmed = Warmed(sum(os.stat(path).st_size for path in files))
            for path in files:
                self._read_file(path, started)
        except _GivenUp:
            pass
        except (OSError, ValueError) as error:
            self._warmed = self._warmed._replace(problem=str(error))
        return self._warmed

    def _read_file(self, path: str, started: float) -> None:
        with open(path, "rb", buffering=0) as file:
            descriptor = file.fileno()
            size = os.fstat(descriptor).st_size
            # Before anything is read, since the kernel reads more than it is asked for.
            told = [(at, length, self._look(descriptor, at, length)) for at, length in _windows(size)]
            for offset, length, there in told:
                if self._warmed.cached + self._warmed.read + length > self.limit:
                    self._warmed = self._warmed._replace(limited=True)
                    raise _GivenUp
                missing = length if there is None else length - there
                if missing:
                    self._read_window(descriptor, offset, length)
                now = self._warmed
                self._warmed = now._replace(
                    cached=now.cached + length - missing,
                    read=now.read + missing,
                    seconds=self._clock() - started if missing else now.seconds,
                )

    def _look(self, descriptor: int, offset: int, length: int) -> int | None:
        if self._over.is_set():
            raise _GivenUp
        return self._cached(descriptor, offset, length)

    def _read_window(self, descriptor: int, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            if self._over.is_set():
                raise _GivenUp
            count = self._read(descriptor, self._buffer[: min(_CHUNK_BYTES, end - offset)], offset)
            if not count:  # it has become shorter
                return
            offset += count


class _GivenUp(Exception):
    """Nothing more is read."""
