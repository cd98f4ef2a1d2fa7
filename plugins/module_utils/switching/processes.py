# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What the kernel tells of processes (Linux, proc(5)). Never raises where one ends meanwhile."""

from __future__ import annotations

import contextlib
import os


def start_time(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot; None when it is gone or a zombie."""
    fields = _stat(pid)
    return fields[19] if fields else None


def boot_id() -> str | None:
    """What tells this boot of the machine from others; None where the kernel doesn't."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return None


def first_writer(device: int, inode: int, boot: str | None) -> tuple[int, str | None, str | None]:
    """The group of the process that was the first one to print to a file, its start time and boot; 0 for nobody."""
    found = []
    for pid in all_pids() if boot is not None and boot == boot_id() else ():
        for number in (1, 2):
            with contextlib.suppress(OSError):
                seen = os.stat(f"/proc/{pid}/fd/{number}")
                fields = _stat(pid)
                if fields and (seen.st_dev, seen.st_ino) == (device, inode):
                    found.append((int(fields[19]), int(fields[2])))
    if not found:
        return 0, None, None
    group = min(found)[1]
    return group, start_time(group) or "ended", boot


def all_pids() -> list[int]:
    """All processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def members(group: int) -> list[int]:
    """The processes of a process group, zombies aside."""
    found = []
    for pid in all_pids():
        fields = _stat(pid)
        if fields and int(fields[2]) == group:
            found.append(pid)
    return found


def of_container(container: str) -> list[int]:
    """The processes of the container with this id, by which engines name its cgroup (cgroups(7))."""
    found = []
    for pid in all_pids() if container else ():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            if container in file.read():
                found.append(pid)
    return found


def _stat(pid: int) -> list[str] | None:
    """What /proc tells of a process (proc(5), from field 3, the state, on); None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if not fields or fields[0] in "ZX" else fields
