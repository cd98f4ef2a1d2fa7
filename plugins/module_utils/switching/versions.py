# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What a version of vLLM can, where its answers do not tell. For C(server) alone.

Seen on real 0.11.0, 0.12.0, 0.16.0, 0.17.1, 0.20.2, 0.29.0 and 0.32.0, and read from their source.
"""

from __future__ import annotations

import re
import typing

# None so far: from 0.11.0 to 0.33.0 reload_weights of the model runners (v1/worker/gpu_model_runner.py and
# v1/worker/gpu/model_runner.py) loads those of get_model() alone. See vLLM issue 52479; its pull request 52487, which
# loads the drafts' too, is open.
DRAFTS_RELOADED_SINCE: tuple[int, int] | None = None


class Abilities(typing.NamedTuple):
    """What the servers of one version can.

    C(modes): C(/sleep) takes a mode, its level 0 only pauses, and what comes while a server sleeps is held until it is
    awake (0.17). C(door): C(/pause?wait_for_inflight_requests=true) drains, and what comes is held until C(/resume),
    also through a sleep and a wake (0.12 to 0.16). C(reload_last): what is held does not run before a wake from level 2
    is complete (not 0.17 to 0.23, whose first tagged wake lets it run with what is in the weights). C(level_0_sleeps):
    level 0 is a sleep as any other (known to be older than 0.17). C(tells_half): the sleep gauge says awake when all of
    the memory is, not after the first tagged wake (0.31). C(reloads_drafts): C(reload_weights) loads the weights of a
    draft model too.
    """

    modes: bool = False
    door: bool = False
    reload_last: bool = True
    level_0_sleeps: bool = False
    tells_half: bool = False
    reloads_drafts: bool = False


def abilities(version: str) -> Abilities:
    """What servers of this version can; of one that says nothing of use, nothing is expected."""
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})(?!\d)", version)
    if not numbers:
        return Abilities()
    release = int(numbers.group(1)), int(numbers.group(2))
    return Abilities(
        modes=release >= (0, 17),
        door=(0, 12) <= release < (0, 17),
        reload_last=not (0, 17) <= release < (0, 24),
        level_0_sleeps=release < (0, 17),
        tells_half=release >= (0, 31),
        reloads_drafts=DRAFTS_RELOADED_SINCE is not None and release >= DRAFTS_RELOADED_SINCE,
    )


def no_level_2(version: str, able: Abilities, drafts: bool) -> str:
    """Why a server should not sleep at level 2, and what comes of it; C(drafts) says that its drafts have weights."""
    reasons = []
    if not able.reload_last:
        reasons.append("answers held requests before its weights are reloaded, so that they are cut before each wake")
    if drafts and not able.reloads_drafts:
        reasons.append("does not reload the weights of a draft model, so that it answers more slowly after each wake")
    return f"vLLM {version} ".replace("  ", " ") + ", and ".join(reasons) if reasons else ""
