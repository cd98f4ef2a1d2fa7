# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What of a machine its stacks share: its GPUs, by names on which all of them agree, and the folder of the locks."""

from __future__ import annotations

import contextlib
import os
import re
import stat


def read_gpus(root: str = "/") -> dict[int, str]:
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
    """The numbers of the NVIDIA GPUs by their UUIDs, as the driver tells them; none where it doesn't. Never raises."""
    found = {}
    for number, address in read_gpus(root).items():
        with contextlib.suppress(OSError), open(
            os.path.join(root, "proc/driver/nvidia/gpus", address, "information"), encoding="utf-8", errors="replace"
        ) as file:
            told = re.search(r"^GPU UUID:\s*(GPU-\S+)", file.read(), re.MULTILINE)
            if told:
                found[told.group(1)] = number
    return found


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
            raise PermissionError(1, "it is not this user's own folder", folder) from None
        if stat.S_IMODE(seen.st_mode) & 0o077:
            os.chmod(folder, 0o700)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
