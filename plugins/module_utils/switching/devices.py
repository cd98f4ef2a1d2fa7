# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What of a machine its stacks share: its GPUs, by names on which all of them agree, and the folder of the locks."""

from __future__ import annotations

import os
import re
import stat
import typing

from .gpus import Gpu as Name
from .gpus import is_amd


class Amd(typing.NamedTuple):
    """A GPU of AMD's, as the kernel's driver tells. C(total) and C(used) are bytes, None where it does not tell."""

    number: int
    kernel_id: str
    uuid: str
    total: int | None
    used: int | None


def read_gpus(root: str = "/") -> dict[int, str]:
    """The GPUs that the machine really has, by their numbers: a name for each on which all agree. Never raises."""
    return read_nvidia(root) or {gpu.number: f"kfd-{gpu.kernel_id}" for gpu in read_amd(root)}


def read_nvidia(root: str = "/") -> dict[int, str]:
    """The NVIDIA GPUs that the machine really has, by their numbers: the address of each on its bus. Never raises.

    The numbers are nvidia-smi's, which go by these addresses; nvidia-smi itself may hang. Where the driver tells of
    none (another system's driver, as within WSL), those count that have a device file.
    """
    addresses = _names(os.path.join(root, "proc/driver/nvidia/gpus"))
    if addresses:
        return dict(
            enumerate(sorted(addresses, key=lambda name: [int(part, 16) for part in re.findall("[0-9a-f]+", name)]))
        )
    found = [re.match(r"nvidia(\d+)$", name) for name in _names(os.path.join(root, "dev"))]
    return {int(one.group(1)): one.group(0) for one in found if one}


def read_uuids(root: str = "/") -> dict[str, int]:
    """The numbers of the GPUs by their UUIDs, as the driver tells them; none where it doesn't. Never raises."""
    nvidia = read_nvidia(root)
    if not nvidia:
        return {gpu.uuid: gpu.number for gpu in read_amd(root) if gpu.uuid}
    found = {}
    for number, address in nvidia.items():
        text = _text(os.path.join(root, "proc/driver/nvidia/gpus", address, "information"))
        told = re.search(r"^GPU UUID:\s*(GPU-\S+)", text, re.MULTILINE)
        if told:
            found[told.group(1)] = number
    return found


def read_amd(root: str = "/") -> list[Amd]:
    """AMD's GPUs, as the driver of the kernel tells of them. Never raises.

    From sysfs, as rocm-smi and amd-smi have it: no process is started, and its form does not change with ROCm's
    version. The numbers are HIP's, which go by the nodes of C(/sys/class/kfd/kfd/topology); C(drm_render_minor) and
    C(unique_id) are in their C(properties), the memory in the files that the kernel's
    C(Documentation/gpu/amdgpu/driver-misc.rst) describes.
    """
    nodes = os.path.join(root, "sys/class/kfd/kfd/topology/nodes")
    found: list[Amd] = []
    for node in sorted((name for name in _names(nodes) if name.isdigit()), key=int):
        kernel_id = _text(os.path.join(nodes, node, "gpu_id")).strip()
        if kernel_id in ("", "0"):  # a CPU, or a GPU that this user may not use
            continue
        told = re.findall(r"^(\w+) (\d+)$", _text(os.path.join(nodes, node, "properties")), re.MULTILINE)
        properties = {name: int(value) for name, value in told}
        device = os.path.join(root, "sys/class/drm", f"renderD{properties.get('drm_render_minor', 0)}", "device")
        unique = properties.get("unique_id", 0)
        total, used = (_text(os.path.join(device, f"mem_info_vram_{what}")).strip() for what in ("total", "used"))
        found.append(
            Amd(
                len(found),
                kernel_id,
                f"GPU-{unique:016x}" if unique else "",
                int(total) if total.isdigit() else None,
                int(used) if used.isdigit() else None,
            )
        )
    return found


def read_amd_processes(root: str = "/") -> list[tuple[str, int, int]]:
    """What each process holds of each of AMD's GPUs: the kernel's id of the GPU, the process's id, bytes."""
    folder = os.path.join(root, "sys/class/kfd/kfd/proc")
    found = []
    for pid in filter(str.isdigit, _names(folder)):
        for name in _names(os.path.join(folder, pid)):
            held = _text(os.path.join(folder, pid, name)).strip() if name.startswith("vram_") else ""
            if held.isdigit():
                found.append((name[len("vram_") :], int(pid), int(held)))
    return found


def process_name(pid: int, root: str = "/") -> str:
    """What a process is called; nothing where it is gone."""
    return _text(os.path.join(root, "proc", str(pid), "comm")).strip()


def lock_folder() -> str:
    """Where those lock who switch on this machine: root's own folder, or that of the user. It is made by private()."""
    user = os.geteuid()
    if user == 0:
        return "/run/homegpt.vllm"
    if os.path.isdir(f"/run/user/{user}"):
        return f"/run/user/{user}/homegpt.vllm"
    return f"/tmp/homegpt.vllm-{user}"  # noqa: S108 - private() sees whose it is


def private(folder: str) -> None:
    """Make a folder that only this user may enter. Raises OSError, also where somebody else has made it."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        seen = os.lstat(folder)
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
            raise PermissionError(1, "the directory belongs to another user", folder) from None
        if stat.S_IMODE(seen.st_mode) & 0o077:
            os.chmod(folder, 0o700)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def visible(gpus: typing.Sequence[Name]) -> dict[str, str]:
    """The variables by which a process of this host sees these GPUs alone.

    Up to 0.20 at least, vLLM takes nothing but numbers (C(int()) in its C(platforms/interface.py)), so that a UUID
    becomes the number that the GPU has now, where the driver tells. Numbers are nvidia-smi's then.
    """
    names = [gpu for gpu in gpus if isinstance(gpu, str)]
    if not names:
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    if all(is_amd(name) for name in names):
        # ROCm's runtime alone takes UUIDs; HIP counts what is left.
        return {
            "ROCR_VISIBLE_DEVICES": ",".join(names),
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(len(names)))),
        }
    numbers = read_uuids()
    if not all(name in numbers for name in names):
        return {"CUDA_VISIBLE_DEVICES": ",".join(names)}
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(str(numbers[name]) for name in names),
    }
