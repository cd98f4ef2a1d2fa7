# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What memory the GPUs and the RAM of a host have, and who holds it. Sizes are in GB, of 1e9 bytes.

GPUs are known by nvidia-smi, and AMD's by the kernel's driver (C(devices)). Where these don't tell (another vendor's
GPU, none at all) nothing is said about GPUs, and nothing is refused because of them. Where CPU and GPU share their
memory (DGX Spark, Jetson) nvidia-smi answers C([N/A]), for the total and for what is free; what is reckoned with is
then the RAM, as vLLM does (C(MemorySnapshot.measure) of 0.32).
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import typing

from . import devices
from .gpus import Gpu as Name

# It takes up to two seconds where no driver is kept loaded; at a GPU that has failed it hangs for ever.
NVIDIA_SMI_TIMEOUT_SECONDS = 10.0
_GPUS = "--query-gpu=index,uuid,memory.total,memory.free,mig.mode.current"
_LEAST_AMD_GB = 8.0


class Gpu(typing.NamedTuple):
    """One GPU of the host. C(divided): into MIG instances, so that nobody can use it as a whole. C(unified): it has no
    memory of its own, so that C(total_gb) is the host's RAM and C(free_gb) what of that is available."""

    index: int  # type: ignore[assignment]  # instead of a tuple's method, which nobody misses
    total_gb: float
    free_gb: float
    uuid: str = ""
    divided: bool = False
    unified: bool = False


class Holder(typing.NamedTuple):
    """A process that holds memory of a GPU."""

    pid: int
    name: str
    used_gb: float


def read_gpus(root: str = "/") -> dict[int, Gpu] | None:
    """The host's GPUs by their numbers, without those that don't tell their memory. Never raises.

    None where nvidia-smi can't be asked or tells of none, and the kernel of none of AMD's. Takes as long as nvidia-smi
    does, 10 s at most.
    """
    gpus = {}
    rows = _ask(_GPUS)
    if not rows and not devices.read_nvidia(root):
        return _amd(root) or None
    if rows and all(row[0].isdigit() and _has_none(row) for row in rows):
        total, free = read_ram_total_gb(), read_mem_available_gb()
        if total is None or free is None:
            return None
        return {int(row[0]): Gpu(int(row[0]), total, free, row[1], unified=True) for row in rows}
    for row in rows:
        if len(row) < 4 or not row[0].isdigit():
            return None
        total, free = _gigabytes(row[2]), _gigabytes(row[3])
        if total is not None and free is not None:
            gpus[int(row[0])] = Gpu(int(row[0]), total, free, row[1], row[4:] == ["Enabled"])
    return gpus or None


def _amd(root: str) -> dict[int, Gpu]:
    """AMD's GPUs that have memory enough to be meant: one within a processor may take more than it tells of."""
    return {
        gpu.number: Gpu(gpu.number, gpu.total / 1e9, (gpu.total - gpu.used) / 1e9, gpu.uuid)
        for gpu in devices.read_amd(root)
        if gpu.total is not None and gpu.used is not None and gpu.total >= _LEAST_AMD_GB * 1e9
    }


def _has_none(row: typing.Sequence[str]) -> bool:
    """Whether a GPU has no memory of its own. One that has failed, and one that is divided, says so in other words."""
    none = ("[N/A]", "N/A", "[Not Supported]")
    return len(row) == 5 and row[2] in none and row[3] in none and row[4] != "Enabled"


def shared(gpus: typing.Mapping[int, Gpu] | None) -> bool | None:
    """Whether the GPUs have no memory but the host's RAM; None where it is not known."""
    return any(gpu.unified for gpu in gpus.values()) if gpus else None


def named(gpus: typing.Mapping[int, Gpu], names: typing.Iterable[Name]) -> dict[Name, Gpu]:
    """Those of the GPUs that a model's C(gpus) call so, by number or by UUID. MIG instances are none of them."""
    known: dict[Name, Gpu] = {gpu.uuid: gpu for gpu in gpus.values() if gpu.uuid}
    known.update(gpus.items())
    return {name: known[name] for name in names if name in known}


def read_holders(name: Name, root: str = "/") -> list[Holder]:
    """The processes that hold memory of a GPU, the biggest first; none where nobody tells. Never raises."""
    rows = _ask(_GPUS)
    uuids = [row[1] for row in rows if row[1:] and str(name) in row[:2]]
    holders = []
    if not rows and not devices.read_nvidia(root):
        ids = [gpu.kernel_id for gpu in devices.read_amd(root) if name in (gpu.number, gpu.uuid)]
        for gpu, pid, held in devices.read_amd_processes(root):
            if gpu in ids:
                holders.append(Holder(pid, devices.process_name(pid, root), held / 1e9))
    for row in _processes():
        used = _gigabytes(row[-1])
        if row[0] in uuids and used is not None:
            # A name may have commas.
            holders.append(Holder(int(row[1]), ", ".join(row[2:-1]), used))
    return sorted(holders, key=lambda holder: -holder.used_gb)


def read_held(gpus: typing.Mapping[int, Gpu], pids: typing.Collection[int], root: str = "/") -> dict[int, float]:
    """What these processes together hold of each GPU, by its number; not of one of which nobody tells. Never raises."""
    told: dict[str, list[float | None]] = {}
    for row in _processes():
        if int(row[1]) in pids:
            told.setdefault(row[0], []).append(_gigabytes(row[-1]))
    if not told and not devices.read_nvidia(root):
        numbers = {gpu.kernel_id: gpu.number for gpu in devices.read_amd(root)}
        for kernel_id, pid, size in devices.read_amd_processes(root):
            if pid in pids and kernel_id in numbers:
                told.setdefault(str(numbers[kernel_id]), []).append(size / 1e9)
    sums = {}
    for gpu in gpus.values():
        known = told.get(gpu.uuid) or told.get(str(gpu.index)) or []
        if known and None not in known:
            sums[gpu.index] = sum(one for one in known if one is not None)
    return sums


def read_used(root: str = "/") -> dict[int, float | None]:
    """The memory that processes hold, on all GPUs together, by their ids; those that are told of. Never raises.

    None for a process of which nvidia-smi doesn't tell everywhere.
    """
    found: dict[int, float | None] = {}
    if not devices.read_nvidia(root):
        for _gpu, pid, held in devices.read_amd_processes(root):
            found[pid] = (found.get(pid) or 0.0) + held / 1e9
    for row in _processes():
        pid, used = int(row[1]), _gigabytes(row[-1])
        before = found.get(pid, 0.0)
        found[pid] = None if used is None or before is None else before + used
    return found


def _processes() -> list[list[str]]:
    """What nvidia-smi tells of each process on each of its GPUs: the GPU's id, the process's, its name, its memory."""
    rows = _ask("--query-compute-apps=gpu_uuid,pid,process_name,used_memory")
    return [row for row in rows if len(row) >= 4 and row[1].isdigit()]


def read_ram_total_gb() -> float | None:
    """The RAM of this host; None where the kernel doesn't tell."""
    return _meminfo_gb("MemTotal:")


def read_mem_available_gb() -> float | None:
    """The RAM of this host that is free for use; None where the kernel doesn't tell."""
    return _meminfo_gb("MemAvailable:")


def _meminfo_gb(name: str) -> float | None:
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1]) * 1024 / 1e9
    return None


def finite(value: typing.Any) -> float:
    """The value as a number. Raises ValueError, TypeError or OverflowError where it is none, or has no end."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _gigabytes(mebibytes: str) -> float | None:
    """What nvidia-smi says in MiB; None for its [N/A] and the like."""
    try:
        return finite(mebibytes) * 1024 * 1024 / 1e9
    except ValueError:
        return None


def _ask(query: str) -> list[list[str]]:
    """The rows of nvidia-smi's answer, none where there is none. Each has at least one cell."""
    # The engine knows no AnsibleModule whose run_command it could use.
    # pylint: disable=ansible-bad-function
    try:
        process = subprocess.Popen(
            ("nvidia-smi", query, "--format=csv,noheader,nounits"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
    except OSError:
        return []
    try:
        output = process.communicate(timeout=NVIDIA_SMI_TIMEOUT_SECONDS)[0]
    except subprocess.TimeoutExpired:
        # Not awaited: what hangs in the driver can't be killed.
        process.kill()
        return []
    if process.returncode != 0:
        return []
    return [[cell.strip() for cell in line.split(",")] for line in output.splitlines() if line.strip()]
