# SPDX-License-Identifier: MIT
"""Files of weights for tests, and what the page cache has of them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import page_cache

MB = 1 << 20


def put(path: Path, megabytes: float = 0) -> Path:
    """A file of this size on the disk, and out of the page cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(os.urandom(int(megabytes * MB)))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def cached(path: Path) -> int | None:
    """How much of the weights of a folder, or of a file, is in the page cache."""
    return page_cache.look(page_cache.Place((str(path),))).cached


def evicts(folder: Path) -> bool:
    """Whether the file system of the tests gives up what is in the page cache, and tells of it; tmpfs does not."""
    probe = put(folder / "probe", 1)
    found = [cached(probe), len(probe.read_bytes()), cached(probe)]
    return found == [0, MB, MB]


def about(size: float) -> Any:
    """This many bytes in the page cache, of which a machine may drop a part at any time."""
    return pytest.approx(size, rel=0.05, abs=0.3 * MB)


@contextlib.contextmanager
def pinned(path: Path) -> Iterator[None]:
    """Keep a file in the page cache, where this user may: a machine may drop what nobody has used for seconds."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        ctypes.CDLL(None).mlock(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)))
        del first  # a mapping that is used can't be closed
        yield
