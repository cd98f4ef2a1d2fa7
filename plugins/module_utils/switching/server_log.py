# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What the log of a server tells about why it failed, and what to do then."""

from __future__ import annotations

import re
import typing

# What the last lines of a log say, and what is to be done then. Each of these is vLLM's, or the system's, own wording.
_REMEDIES = (
    (
        "CUDA out of memory|torch.OutOfMemoryError|CUDA error: out of memory",
        "give the model less memory: lower gpu_memory_utilization or max_model_len in its args, or end other "
        "processes that hold GPU memory",
    ),
    (
        "Try increasing.*gpu_memory_utilization|No available memory for the cache blocks|larger than the available KV",
        "raise gpu_memory_utilization or lower max_model_len in its args",
    ),
    (
        "less than desired GPU memory utilization",
        "end other processes that hold GPU memory, or lower gpu_memory_utilization in its args (and max_model_len with "
        "it)",
    ),
    (
        "GatedRepoError|Cannot access gated repo|RepositoryNotFoundError|is not a valid model identifier",
        "check that `model` is spelled as on Hugging Face, and that the token (vllm_hf_token) may read it",
    ),
    ("No space left on device|Disk quota exceeded", "free space on the host's disk, then switch again"),
    ("[Aa]ddress already in use", "find out what listens on its port and stop it, or give it another host_port"),
)


def remedy(log: typing.Iterable[str]) -> str:
    """What to do, where the lines of a server's log tell that surely; else nothing."""
    text = "\n".join(log)
    return next((what for pattern, what in _REMEDIES if re.search(pattern, text)), "")


def culprit(log: typing.Sequence[str]) -> str:
    """The last error that the lines of a server's log name, without where it was; else nothing."""
    for line in reversed(log):
        found = re.search(r"\b(\w*(?:Error|Exception)): (?!Engine core init)(.+)", line)
        if found:
            return f"{found.group(1)}: {found.group(2)}"
    return ""
