# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What a version of vLLM can, where its answers do not tell. For C(server) alone.

Seen on real 0.11.0, 0.12.0, 0.16.0, 0.17.1, 0.20.2, 0.29.0 and 0.32.0, and read from their source.
"""

from __future__ import annotations

import re
import typing


class Abilities(typing.NamedTuple):
    """What the servers of one version can.

    C(modes): C(/sleep) takes a mode, its level 0 only pauses, and what comes while a server sleeps is held until it is
    awake (0.17). C(door): C(/pause?wait_for_inflight_requests=true) drains, and what comes is held until C(/resume),
    also through a sleep and a wake (0.12 to 0.16). C(reload_last): what is held does not run before a wake from level 2
    is complete (not 0.17 to 0.23, whose first tagged wake lets it run with what is in the weights). C(level_0_sleeps):
    level 0 is a sleep as any other (known to be older than 0.17). C(tells_half): the sleep gauge says awake when all of
    the memory is, not after the first tagged wake (0.31).
    """

    modes: bool = False
    door: bool = False
    reload_last: bool = True
    level_0_sleeps: bool = False
    tells_half: bool = False


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
    )
