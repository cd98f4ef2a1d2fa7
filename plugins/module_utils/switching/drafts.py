# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Drafts of speculative decoding: what share of them the model accepts, when it is known good and after a wake.

A level 2 sleep discards the weights of a draft model too, and vLLM reloads only those of the model itself (issue 52479;
C(versions)). What the drafts say is checked, so all answers stay right, but none is accepted: half the speed, and no
call fails. The share is that of the server's counters over a short fixed load; what others ask meanwhile counts too.
"""

from __future__ import annotations

import contextlib
import time
import typing

from . import state_files
from .canary import Verdict
from .errors import ServerError
from .inventory import Model
from .metrics import Drafts
from .server import Server

# One after the other: vLLM can be told not to draft for many at once. Easy to go on with, as drafts should be.
_PROMPTS = (
    "The numbers from one to forty are: one, two, three, four, five, six,",
    "The months of the year are January, February, March,",
    "A B C D E F G H I J K L M N O P",
    "Once upon a time there was a little girl who lived in a village near the forest.",
)
_TOKENS = 32
# All of them together; a server that takes longer is not asked for more.
_SECONDS = 10.0
# Of fewer nobody can tell. With one draft for each token, all of them accepted, the load makes 64.
LEAST_DRAFTED = 32
LEAST_ACCEPTED = 8
# A share that has fallen by more than this is too small. That of others may be: their texts are harder to go on with
# than the fixed ones, and held ones are answered right after a wake. Without weights hardly any draft is accepted.
_FALL = 2
_FALL_AMONG_OTHERS = 10


def record(server: Server, model: Model, stack_dir: str) -> str:
    """Measure a server whose drafts are known to be good, and remember it; what is worth knowing of that."""
    now = _measure(server) or Drafts(0, 0)  # what was known of another start is not true of this one
    made = {"drafted": now.drafted, "accepted": now.accepted, "recorded": time.strftime("%Y-%m-%d", time.gmtime())}
    with contextlib.suppress(OSError):  # then nothing is compared, which the next wake says
        state_files.write_model(stack_dir, state_files.DRAFTS, model.id, made)
    return _told(now)


def prove(server: Server, model: Model, stack_dir: str, known_good: bool = False) -> Verdict:
    """Compare the drafts of a server with those that it had when it was known good. Too few are unknown, not wrong.

    Where nothing is recorded to compare them with, those of a server that is C(known_good) are.
    """
    before, date = _read(model, stack_dir)
    if known_good and before is None:
        return Verdict(record(server, model, stack_dir))
    now = _measure(server)
    if now is None or now.drafted < LEAST_DRAFTED:
        return Verdict("too few drafts to tell what they are worth")
    if before is None:
        return Verdict(f"{_told(now)}; nothing is recorded to compare that with")
    alone = now.answered is not None and now.answered <= len(_PROMPTS) * _TOKENS
    fall = _FALL if alone else _FALL_AMONG_OTHERS
    if now.accepted * before.drafted * fall >= before.accepted * now.drafted:
        return Verdict(_told(now))
    return Verdict(
        _told(now),
        f"{model.id} answers correctly but slowly: {_told(now)}, and {_percent(before)} on {date}. After level 2 vLLM "
        "does not reload the weights of a draft model (vLLM issue 52479): stop and start it, and set its sleep_level "
        "to auto or 1, or its drafts to restart",
    )


def _measure(server: Server) -> Drafts | None:
    """What is drafted for a few short texts; None where the server does not tell, or does not answer."""
    until = time.monotonic() + _SECONDS
    try:
        before = server.drafted()
        for prompt in _PROMPTS:
            left = until - time.monotonic()
            if before and left > 0:
                server.complete(prompt, _TOKENS, left)
        after = server.drafted()
    except ServerError:  # whether it lives is looked at elsewhere
        return None
    if before is None or after is None:
        return None
    told = before.answered is not None and after.answered is not None
    made = Drafts(
        after.drafted - before.drafted,
        after.accepted - before.accepted,
        (after.answered or 0) - (before.answered or 0) if told else None,
    )
    return made if 0 <= made.accepted <= made.drafted else None


def _read(model: Model, stack_dir: str) -> tuple[Drafts | None, str]:
    """What is recorded, and when it was; None where that is too little to compare with, or can't be read."""
    known: typing.Any = state_files.models(stack_dir, state_files.DRAFTS).get(model.id)
    try:
        made = Drafts(int(known["drafted"]), int(known["accepted"]))
        return made if made.drafted >= LEAST_DRAFTED and made.accepted >= LEAST_ACCEPTED else None, known["recorded"]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None, ""


def _told(made: Drafts) -> str:
    return f"{_percent(made)} of {made.drafted} drafted tokens accepted" if made.drafted else "no drafted tokens"


def _percent(made: Drafts) -> str:
    return f"{100 * made.accepted / made.drafted:.0f} %"
