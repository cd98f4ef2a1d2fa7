# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The small JSON records that switches leave in the stack's folder; what one says is the business of who keeps it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import typing

# For who changes a part of a record: one process holds the host's lock, but its threads may be at it at once.
changing = threading.Lock()


def path(stack_dir: str, name: str) -> str:
    """Where the record of this name is."""
    return os.path.join(stack_dir, "run", name + ".json")


def read(stack_dir: str, name: str) -> dict[str, typing.Any]:
    """What a record says; nothing where there is none, or one that can't be read."""
    with contextlib.suppress(OSError, ValueError), open(path(stack_dir, name), encoding="utf-8") as file:
        found = json.load(file)
        if isinstance(found, dict):
            return found
    return {}


def models(stack_dir: str, name: str) -> dict[str, typing.Any]:
    """What a record says of each model."""
    found = read(stack_dir, name).get("models")
    return found if isinstance(found, dict) else {}


def write(stack_dir: str, name: str, content: typing.Mapping[str, typing.Any]) -> None:
    """Replace a record at once. Raises OSError when it can't be written; what it said before is then still there."""
    new = path(stack_dir, name) + ".new"
    os.makedirs(os.path.dirname(new), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # an interrupted one, maybe with another mode
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(new, path(stack_dir, name))
