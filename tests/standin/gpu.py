# SPDX-License-Identifier: MIT
"""The VRAM that the stand-ins of one host share, and the record of what they did.

STANDIN_GPU_DIR holds ledger.json (who holds how many GB of which GPU; guarded by flock on
ledger.lock) and events.jsonl (one line per change of state, for tests of invariants such as
"never two awake on one GPU"). Without that variable every stand-in has its GPUs to itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Ledger = dict[str, dict[str, Any]]  # pid -> {"born", "model", "gpus": {gpu: GB}}


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
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def hold(self, gigabytes: float) -> None:
        """Hold so much on each GPU from now on (0: nothing), or raise OutOfMemory and change nothing."""
        if self.folder is None:
            return
        with self._ledger() as ledger:
            ledger.pop(str(os.getpid()), None)
            for index, gpu in enumerate(self.gpus):
                free = self.total_gb - sum(entry["gpus"].get(gpu, 0.0) for entry in ledger.values())
                if gigabytes > free + 1e-6:
                    raise OutOfMemory(index, free)
            if gigabytes > 0:
                ledger[str(os.getpid())] = {
                    "born": _born(os.getpid()),
                    "model": self.model,
                    "gpus": dict.fromkeys(self.gpus, gigabytes),
                }

    def event(self, name: str, *, pid: int | None = None, model: str = "", **details: Any) -> None:
        """Append one line to events.jsonl."""
        if self.folder is None:
            return
        line = {
            "time": time.time(),
            "pid": pid or os.getpid(),
            "model": model or self.model,
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
                for pid in [pid for pid, entry in ledger.items() if _born(int(pid)) != entry["born"]]:
                    gone = ledger.pop(pid)
                    # Killed: it could not say so itself.
                    self.event("dead", pid=int(pid), model=gone["model"], cause="killed")
                yield ledger
                partial = self.folder / "ledger.json.partial"
                partial.write_text(json.dumps(ledger), encoding="utf-8")
                partial.replace(path)
            finally:
                self.locked = False


def _born(pid: int) -> str:
    """When a process started ("" if it is gone or a zombie): a pid alone may be somebody else's by now."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
