# SPDX-License-Identifier: MIT
"""The VRAM that the stand-ins of one host share, and the record of what they did.

STANDIN_GPU_DIR holds ledger.json (who holds how many GB of which GPU; guarded by flock on
ledger.lock) and events.jsonl (one line per change of state, for tests of invariants such as
"never two awake on one GPU"). Without that variable every stand-in has its GPUs to itself.

Stand-ins in containers share nothing but that folder, and each may have the same process number. So
each names itself by a random id, and keeps the lock of a file of that name as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Ledger = dict[str, dict[str, Any]]  # id -> {"pid", "model", "gpus": {gpu: GB}}


def uuid_of(gpu: str) -> str:
    """Return the UUID of the GPU of this number."""
    return f"GPU-00000000-0000-4000-8000-{int(gpu):012x}"


def number_of(gpu: str) -> str:
    """Return the number of a GPU that is given by number or UUID."""
    return str(int(gpu[-12:], 16)) if gpu.startswith("GPU-") else gpu


class OutOfMemory(Exception):
    """A GPU has not enough free memory; `index` counts the GPUs that the process can see."""

    def __init__(self, index: int, free: float) -> None:
        super().__init__(f"cuda:{index} has {free:.2f} GiB free")
        self.index = index
        self.free = free


class GpuHost:
    """One process's view of the GPUs that it shares with others."""

    def __init__(self, folder: Path | None, gpus: tuple[str, ...], total_gb: float, model: str) -> None:
        self.folder = folder
        self.gpus = gpus
        self.total_gb = total_gb
        self.model = model
        self.locked = False
        self.id = uuid.uuid4().hex[:12]
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            # Open until the process ends, however it ends.
            self.life = _life(folder, self.id).open("w", encoding="utf-8")
            fcntl.flock(self.life, fcntl.LOCK_EX)

    def hold(self, gigabytes: float) -> None:
        """Hold so much on each GPU from now on (0: nothing), or raise OutOfMemory and change nothing."""
        if self.folder is None:
            return
        with self._ledger() as ledger:
            ledger.pop(self.id, None)
            for index, gpu in enumerate(self.gpus):
                free = self.total_gb - sum(entry["gpus"].get(gpu, 0.0) for entry in ledger.values())
                if gigabytes > free + 1e-6:
                    raise OutOfMemory(index, free)
            if gigabytes > 0:
                ledger[self.id] = {
                    "pid": os.getpid(),
                    "model": self.model,
                    "gpus": dict.fromkeys(self.gpus, gigabytes),
                }

    def end(self, cause: str) -> None:
        """Hold nothing any more, and say that this server is dead."""
        self.hold(0)
        self.event("dead", cause=cause)
        if self.folder is not None:
            _life(self.folder, self.id).unlink(missing_ok=True)

    def event(self, name: str, **details: Any) -> None:
        """Append one line to events.jsonl."""
        if self.folder is None:
            return
        line = {
            "time": time.time(),
            "id": self.id,
            "pid": os.getpid(),
            "model": self.model,
            "gpus": list(self.gpus),
            "event": name,
            **details,
        }
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        """Lock the ledger, leave out the dead, and write it back unless the body raises."""
        assert self.folder is not None
        path = self.folder / "ledger.json"
        with (self.folder / "ledger.lock").open("a", encoding="utf-8") as lock:
            self.locked = True
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                ledger: Ledger = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
                for other in [other for other in ledger if other != self.id and not alive(self.folder, other)]:
                    gone = ledger.pop(other)
                    _life(self.folder, other).unlink(missing_ok=True)
                    # Killed: it could not say so itself.
                    self.event("dead", id=other, pid=gone["pid"], model=gone["model"], cause="killed")
                yield ledger
                partial = self.folder / "ledger.json.partial"
                partial.write_text(json.dumps(ledger), encoding="utf-8")
                partial.replace(path)
            finally:
                self.locked = False


def alive(folder: Path, holder: str) -> bool:
    """Whether the server of that id lives: whoever can have its lock knows that it does not."""
    try:
        with _life(folder, holder).open(encoding="utf-8") as life:
            # Shared: two who look at once must not take each other for the server.
            fcntl.flock(life, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _life(folder: Path, holder: str) -> Path:
    """Return the file that a server keeps locked while it lives."""
    return folder / f"{holder}.alive"
