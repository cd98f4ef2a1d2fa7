# SPDX-License-Identifier: MIT
"""Within the manager's process: what a cell of the fault matrix orders for moments of a switch, as `moments` does it.

Unlike there, orders come and go while the process runs: the file of orders is read again whenever it is another one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.faults.moments import Clock, Moments


class Followed(Moments):
    """The orders of a file that changes. The clock goes on while somebody waits: the manager has other things to do."""

    def __init__(self, file: Path, stack: Path) -> None:
        super().__init__(file, stack, Clock())
        self._stamp = _stamp(file)

    def meet(self, at: str, text: str) -> None:
        """Do what is ordered for this moment."""
        stamp = _stamp(self.file)
        if stamp != self._stamp:
            try:
                orders = Moments(self.file, Path(self.folder).parent, self.clock).orders
            except (OSError, ValueError):
                return  # it is being written
            with self._counting:
                if stamp != self._stamp:
                    self.orders, self._stamp = orders, stamp
        super().meet(at, text)


def _stamp(file: Path) -> tuple[int, int, int]:
    seen = os.stat(file)
    return seen.st_mtime_ns, seen.st_ino, seen.st_size


def follow(file: str, stack: str) -> None:
    """Have it happen in this process from now on."""
    sys.addaudithook(Followed(Path(file), Path(stack)).hook)
