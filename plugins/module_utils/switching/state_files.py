# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The small JSON files in which switches keep state, in the folder C(run) of the stack.

All are named here but the journal, which is in the lock's file, and the files of processes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import threading
import typing

from .errors import SwitchingError

# Which models are to be active, sleeping or stopped after a boot, and which the last switch displaced. Its file has had
# another name since 0.1.0.
DESIRED_STATE = "wanted"
# How the last switch ended.
LAST_SWITCH = "last_switch"
# The answer of each model when it was known good.
CANARY = "canary"
# How many drafted tokens of each model were accepted when it was known good.
DRAFTS = "drafts"
# Which start of each model was last proved right, and when.
PROOF = "proof"
# What each model frees when it sleeps, and whether the GPUs share the RAM.
MEMORY = "memory"
# What sleeping and waking have taken, by model and level.
COSTS = "costs"
# What each sleep of a model has freed, and what its server holds after it.
ODOMETER = "odometer"
# What the switches of one named change have done, so that it can be undone.
CHANGES = "changes"
# Where on this host the weights of each model are; the role vllm_servers writes it.
WEIGHTS = "weights"
# What the model manager was told at run time: mode, pin, evictions. It writes this itself.
MANAGER = "manager"
# What the model manager shows of itself while it runs. It writes this itself; status reads it.
MANAGER_VIEW = "manager_view"
# What the model manager tells whoever else switches of the gateway's gates. It writes this itself.
GATES = "gates"
# What the model manager is about to do, and its circuit breakers. It writes this before it acts.
RECONCILER = "reconciler"
# What the models' servers had counted when the model manager asked them last. It writes this itself.
USAGE = "usage"
_ENGINE = (DESIRED_STATE, LAST_SWITCH, CANARY, DRAFTS, PROOF, MEMORY, ODOMETER, COSTS, CHANGES, WEIGHTS)
ALL = (*_ENGINE, MANAGER, MANAGER_VIEW, GATES, RECONCILER, USAGE)
# What nobody can find out anew. Some file systems put a new file in place before what it says is on the disk: without
# power it is empty then.
_SYNCED = (DESIRED_STATE, CANARY, MANAGER)

# No file takes as much.
_ROOM_BYTES = 65536

_REMEDY = "run as a user who may write there"
_REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.EFBIG: "raise the limit of the file size (ulimit -f)",
    errno.EROFS: "mount that disk read-write",
    errno.EISDIR: "remove it",
}

# For who changes a part of a file: one process holds the host's lock, but its threads may be at it at once.
changing = threading.Lock()


def path(stack_dir: str, name: str) -> str:
    """Where the state file of this name is."""
    return os.path.join(stack_dir, "run", name + ".json")


def read(stack_dir: str, name: str) -> dict[str, typing.Any]:
    """What a state file says; nothing where there is none, or one that can't be read."""
    with contextlib.suppress(OSError):
        return read_or_raise(stack_dir, name)
    return {}


def read_or_raise(stack_dir: str, name: str) -> dict[str, typing.Any]:
    """As C(read), but raises OSError where there is a file that can't be read, because of the disk or its owner.

    One whose text is no JSON says nothing here, too.
    """
    try:
        with open(path(stack_dir, name), encoding="utf-8") as file:
            found = json.load(file)
    except (FileNotFoundError, ValueError, RecursionError):  # the last one where it is nested too deeply
        return {}
    return found if isinstance(found, dict) else {}


def models(stack_dir: str, name: str) -> dict[str, typing.Any]:
    """What a state file says of each model."""
    return models_of(read(stack_dir, name))


def models_of(content: typing.Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """What the content of a state file says of each model."""
    found = content.get("models")
    return found if isinstance(found, dict) else {}


def write(stack_dir: str, name: str, content: typing.Mapping[str, typing.Any]) -> None:
    """Replace a state file at once. Raises OSError when that fails; what it said before is then still there.

    What nobody can find out anew is on the disk before it is in place, so that a loss of power leaves one of the two.
    """
    new = path(stack_dir, name) + ".new"
    os.makedirs(os.path.dirname(new), 0o755, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # an interrupted one, maybe with another mode
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(content))  # in one piece: json.dump takes several times as long
            if name in _SYNCED:
                file.flush()
                os.fsync(descriptor)
        os.replace(new, path(stack_dir, name))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def write_model(stack_dir: str, name: str, model_id: str, content: typing.Mapping[str, typing.Any]) -> None:
    """Replace what a state file says of a model, unless it says so. Raises OSError as C(write) does, and where what it
    says of others can't be read."""
    with changing:
        known = models_of(read_or_raise(stack_dir, name))
        if known.get(model_id) != content:
            write(stack_dir, name, {"models": {**known, model_id: content}})


def unread(stack_dir: str, name: str, error: OSError, unknown: str) -> SwitchingError:
    """That a state file can't be read, for who must not take it for an empty one, and what is C(unknown) therefore."""
    return SwitchingError(
        f"{path(stack_dir, name)} can't be read ({error.strerror}): {read_remedy(error)}; until then it is unknown "
        f"{unknown}"
    )


def read_remedy(error: OSError) -> str:
    """What to do where a file of the stack can't be read."""
    return "run as root (sudo)" if isinstance(error, PermissionError) else "repair or remove it"


def remedy(error: OSError) -> str:
    """What to do where a file of the stack can't be written."""
    return _REMEDIES.get(error.errno or 0, _REMEDY)


def prove(stack_dir: str, name: str) -> None:
    """Check that state files can be written, before anything is done that they would have to tell of.

    Raises OSError where the disk is full or it can't be replaced.
    """
    for file in (path(stack_dir, name), path(stack_dir, name) + ".new"):
        if os.path.isdir(file):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), file)
    folder = os.path.dirname(path(stack_dir, ""))
    os.makedirs(folder, 0o755, exist_ok=True)
    try:
        # Its name goes at once, so that nothing is left of it, whatever happens.
        with tempfile.TemporaryFile(dir=folder, prefix="room.") as room:
            room.write(os.urandom(_ROOM_BYTES))  # nothing that a file system could make smaller
    except OSError as error:
        raise OSError(error.errno, error.strerror, folder) from None
