# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""How an inventory names GPUs, and when two names may mean the same one. Pure."""

from __future__ import annotations

import re
import typing

# A GPU by its number on the host, or by the UUID of it or of one of its MIG instances.
Gpu = typing.Union[int, str]

# As `nvidia-smi -L` tells them, whole; an AMD GPU's, as `rocminfo` does, has 16 digits.
_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z|GPU-[0-9a-f]{16}\Z", re.IGNORECASE)


def share_gpu(gpus: typing.Iterable[Gpu], others: typing.Iterable[Gpu]) -> bool:
    """Whether two models with these C(gpus) need the same GPU.

    A number and a UUID may be the same GPU, so they count as one (only a disabled model can have the other form). A MIG
    instance is its own: nobody can use a GPU as a whole while it is divided, which C(capacity) sees on the host.
    """
    mine, theirs = set(gpus), set(others)
    (numbers, wholes), (other_numbers, other_wholes) = forms(mine), forms(theirs)
    return bool(mine & theirs or (numbers and other_wholes) or (wholes and other_numbers))


def forms(gpus: typing.Iterable[Gpu]) -> tuple[list[Gpu], list[Gpu]]:
    """The whole GPUs that are named by number, and those by UUID."""
    whole = [gpu for gpu in gpus if not is_mig(gpu)]
    return [gpu for gpu in whole if isinstance(gpu, int)], [gpu for gpu in whole if isinstance(gpu, str)]


def is_mig(gpu: Gpu) -> bool:
    """Whether a GPU of C(gpus) is a MIG instance: a part of one."""
    return isinstance(gpu, str) and gpu.startswith("MIG-")


def is_amd(gpu: Gpu) -> bool:
    """Whether a GPU of C(gpus) is named by a UUID that only AMD's have."""
    return isinstance(gpu, str) and gpu.startswith("GPU-") and "-" not in gpu[4:]


def gpu_uuid(text: str) -> str:
    """A whole UUID as nvidia-smi and the container toolkit write it, who compare texts; empty for what is none."""
    return text[:4].upper() + text[4:].lower() if _UUID.match(text) else ""


def gpu_text(gpu: Gpu) -> str:
    """A GPU of C(gpus) as messages call it."""
    return gpu if isinstance(gpu, str) else f"GPU {gpu}"


def gpus_text(gpus: typing.Sequence[Gpu]) -> str:
    """Several of them."""
    return ("GPU " if isinstance(gpus[0], int) else "") + ", ".join(map(str, gpus))
