# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which GPUs a server of another system uses, by its container, its environment and its command. Pure."""

from __future__ import annotations

import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gpus import gpu_uuid
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import PARALLEL_SIZES
from ansible_collections.homegpt.vllm.plugins.plugin_utils import serve_line
from ansible_collections.homegpt.vllm.plugins.plugin_utils.convert import VISIBLE, Notes, Server

# Whether a model's gpus can be named by the ids that `nvidia-smi -L` prints (GPU-..., MIG-...).
GPU_IDS = True


def used(
    server: Server, args: dict[str, typing.Any], place: str, notes: Notes, processes: bool = False
) -> list[typing.Any]:
    """The host's numbers of the GPUs that a server uses; takes the tensor-parallel size out of C(args)."""
    given = serve_line.parse(server.words).args if processes else args
    sizes = [given.get(key, 1) for key in PARALLEL_SIZES]
    needed = 1
    for size in sizes:
        needed *= size if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1000 else 1
    available = _visible(server, place, notes)
    if available is None:
        found = list(range(needed))
        notes.add(place, "names no GPUs by number: gpus is %s, check it" % found)
    elif len(available) > needed and all(size == 1 for size in sizes) and "tensor_parallel_size" not in given:
        found = available[:1]
        notes.add(place, "can see GPUs %s but uses only the first one: so does gpus" % ", ".join(map(str, available)))
    else:
        found = available[:needed]
        if len(available) != needed:
            notes.add(
                place,
                "can see GPUs %s and is configured to use %d: check gpus" % (", ".join(map(str, available)), needed),
            )
    if any(key in args for key in PARALLEL_SIZES[1:]):
        # It would be the number of all GPUs otherwise.
        args.setdefault("tensor_parallel_size", 1)
    elif args.get("tensor_parallel_size") == len(found):
        del args["tensor_parallel_size"]
    return found


def _visible(server: Server, place: str, notes: Notes) -> list[typing.Any] | None:
    """The GPUs that a server sees, by their numbers on the host, or their ids; None where nothing says which."""
    found = list(range(server.number)) if server.number else None
    given = [("the reserved devices", ",".join(server.reserved))] if server.reserved else []
    for name, text in [*given, *((name, server.env[name]) for name in VISIBLE if server.env.get(name))]:
        if name == "NVIDIA_VISIBLE_DEVICES" and (text == "all" or found is not None):
            if text not in ("all", server.reserved and ",".join(server.reserved)):
                notes.add("%s: %s" % (place, name), "not converted: it has no effect beside reserved devices")
            continue
        numbers = _numbers(text)
        if numbers is None:
            notes.add(
                "%s: %s" % (place, name),
                "contains neither plain numbers nor complete UUIDs: check gpus, which uses the numbers of nvidia-smi",
            )
        elif found and name not in ("the reserved devices", "NVIDIA_VISIBLE_DEVICES"):
            # In its container the reserved ones are numbered from 0.
            inside = [
                found[number] if isinstance(number, int) else number
                for number in numbers
                if not isinstance(number, int) or number < len(found)
            ]
            if len(inside) == len(numbers):
                found = inside
            else:
                notes.add("%s: %s" % (place, name), "names GPUs that are not assigned to it: check gpus")
        else:
            found = numbers
    return found


def _numbers(text: str) -> list[typing.Any] | None:
    """GPU numbers, or ids where those can be kept, each once; None where they are neither."""
    found: list[typing.Any] = []
    for part in (part.strip() for part in text.split(",")):
        if part.isdigit() and len(part) < 4:
            found.append(int(part))
        elif GPU_IDS and gpu_uuid(part):
            found.append(gpu_uuid(part))
        else:
            return None
    return list(dict.fromkeys(found))
