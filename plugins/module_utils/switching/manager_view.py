# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What the model manager of a host shows of itself: it writes that into a state file, which the status reads.

So a status needs no token, and a manager that hangs delays nobody. The manager writes it when something changes, and
every ALIVE_SECONDS; it removes it when it ends.
"""

from __future__ import annotations

import contextlib
import os
import typing

from . import processes, state_files

ALIVE_SECONDS = 30.0
# What a busy host or disk may take longer is no sign yet.
_HANGS_SECONDS = 3 * ALIVE_SECONDS

_TEXT = (str,)
_TEXT_OR_NONE = (str, type(None))
_NUMBER_OR_NONE = (int, float, type(None))
_SHOWN: dict[str, tuple[type, ...]] = {
    "address": _TEXT,
    "mode": _TEXT,
    "pinned": _TEXT_OR_NONE,
    "policy": _TEXT,
    "reconciles": (bool,),
    "switching": (dict, type(None)),
    "queue": (list,),
    "models": (dict,),
}
_SWITCHING = {"from": _TEXT, "to": _TEXT}
_WAITING: dict[str, tuple[type, ...]] = {
    "model": _TEXT,
    "desired": _TEXT,
    "by": _TEXT,
    "waiters": (int,),
    "position": _NUMBER_OR_NONE,
    "eta_seconds": _NUMBER_OR_NONE,
}
_MODEL: dict[str, tuple[type, ...]] = {
    "state": _TEXT,
    "desired": _TEXT,
    "down": (bool,),
    "queue_depth": (int,),
    "eta_seconds": _NUMBER_OR_NONE,
    "breaker": (dict, type(None)),
    "note": _TEXT,
}
_BREAKER: dict[str, tuple[type, ...]] = {
    "state": _TEXT,
    "failures": (int,),
    "reason": _TEXT,
    "retry_at": _NUMBER_OR_NONE,
}


def write(stack_dir: str, shown: typing.Mapping[str, typing.Any], now: float) -> None:
    """For the manager: show this; C(now) is in seconds since 1970. Raises OSError where it can't be written."""
    content = {"shown": shown, "written": now, "pid": os.getpid(), **_identity(os.getpid())}
    state_files.write(stack_dir, state_files.MANAGER_VIEW, content)


def remove(stack_dir: str) -> None:
    """For the manager: it ends, and shows nothing any more."""
    with contextlib.suppress(OSError):
        os.unlink(state_files.path(stack_dir, state_files.MANAGER_VIEW))


def read(stack_dir: str, now: float) -> dict[str, typing.Any] | None:
    """What the manager shows; None where there is none, or one of a version that this one doesn't understand.

    C(running) tells whether its process lives, C(problem) why what it shows may not be so any more; C(age_seconds) is
    how long ago it was shown. Of one that has ended, only what holds when it is started again is left.
    """
    content = state_files.read(stack_dir, state_files.MANAGER_VIEW)
    written, pid = content.get("written"), content.get("pid")
    shown = _checked(content.get("shown"), _SHOWN)
    if shown is None or not isinstance(written, (int, float)) or not isinstance(pid, int):
        return None
    age = max(0.0, now - written)
    running = _identity(pid) == {"started": content.get("started"), "boot": content.get("boot")}
    problem = ""
    if not running:
        problem = "its process has ended, and was not stopped as a service is"
        shown.update(switching=None, queue=[], models={})
    elif age > _HANGS_SECONDS:
        problem = "it has shown nothing for %.0f s: it hangs, or its disk is full" % age
    switching = _checked(shown["switching"], _SWITCHING)
    queue = [_checked(one, _WAITING) for one in shown["queue"]]
    models = {str(name): _checked(one, _MODEL) for name, one in shown["models"].items()}
    for model in models.values():
        if model:
            model["breaker"] = _checked(model["breaker"], _BREAKER)
    return {
        "running": running,
        "problem": problem,
        "age_seconds": round(age, 1),
        **shown,
        "switching": switching,
        "queue": [one for one in queue if one],
        "models": {name: one for name, one in models.items() if one},
    }


def _identity(pid: int) -> dict[str, str | None]:
    """What tells a process from a later one of the same number."""
    started = processes.start_time(pid)
    # A process that is gone is like no other.
    return {"started": started, "boot": processes.boot_id()} if started else {}


def _checked(found: typing.Any, kinds: typing.Mapping[str, tuple[type, ...]]) -> dict[str, typing.Any] | None:
    """The known keys of a dictionary; None where it is none, or lacks one of them."""
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
        return None
    if not all(key in found for key in kinds):
        return None
    return {key: found[key] for key in kinds}
