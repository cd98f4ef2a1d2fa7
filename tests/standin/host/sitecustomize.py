# SPDX-License-Identifier: MIT
"""Imported by each Python that starts on a pretended host: its kernel tells of STANDIN_RAM_GB, and that all is free."""

from __future__ import annotations

import builtins
import io
import os
from typing import Any

real_open = builtins.open


def pretended_open(file: Any, *args: Any, **kwargs: Any) -> Any:
    """Open a file; in place of /proc/meminfo one of a host that has so much RAM."""
    if file != "/proc/meminfo":
        return real_open(file, *args, **kwargs)
    kilobytes = int(float(os.environ["STANDIN_RAM_GB"]) * 1e9 / 1024)
    return io.StringIO("".join(f"{name}: {kilobytes} kB\n" for name in ("MemTotal", "MemFree", "MemAvailable")))


if os.environ.get("STANDIN_RAM_GB"):
    builtins.open = pretended_open
