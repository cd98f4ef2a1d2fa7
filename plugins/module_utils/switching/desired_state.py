# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What a host is meant to be, so that a boot can bring it back: which models are desired active, sleeping or stopped.

Never what they are: that is only ever read from the servers. And which models the last switch has taken off their GPUs,
so that it can be taken back.
"""

from __future__ import annotations

import typing

from . import state_files
from .inventory import Inventory, Model
from .plan import ACTIVE, SLEEPING, STOPPED

DesiredState = typing.Dict[str, str]


def read(inventory: Inventory, stack_dir: str) -> DesiredState:
    """The desired state of every managed model: as recorded, else as its C(startup_mode) says.

    A record that can't be read counts as none. A model that the record does not know does not claim a GPU that a
    recorded one is to be active on, nor does one of two that conflict only since the inventory was changed.
    """
    return _of(inventory, recorded(stack_dir))


def read_or_raise(inventory: Inventory, stack_dir: str) -> DesiredState:
    """As C(read), but raises OSError where there is a record that can't be read."""
    return _of(inventory, _states(state_files.read_or_raise(stack_dir, state_files.DESIRED_STATE)))


def _of(inventory: Inventory, saved: typing.Mapping[str, str]) -> DesiredState:
    known = {m.id: saved[m.id] for m in inventory.enabled if saved.get(m.id) in (ACTIVE, SLEEPING, STOPPED)}
    desired: DesiredState = {}
    for model in inventory.enabled:
        taken = any(known.get(other.id) == ACTIVE for other in inventory.conflicting(model))
        begins = ACTIVE if model.startup_mode == "active" and not taken else SLEEPING
        desired[model.id] = known.get(model.id, begins)
        if desired[model.id] == ACTIVE and any(desired.get(m.id) == ACTIVE for m in inventory.conflicting(model)):
            desired[model.id] = SLEEPING
    return desired


def after(inventory: Inventory, desired: DesiredState, model: Model, state: str) -> DesiredState:
    """What is desired once somebody has asked for this state of the model."""
    conflicting = {other.id for other in inventory.conflicting(model)} if state == ACTIVE else set()
    made_room = {name: SLEEPING for name in conflicting if desired.get(name) == ACTIVE}
    return {**desired, **made_room, model.id: state}


def update(
    inventory: Inventory,
    stack_dir: str,
    change: typing.Callable[[DesiredState], DesiredState],
    displaced: typing.Sequence[str] = (),
) -> list[str]:
    """Record what the C(change) makes of it, unless the record says so already. The caller holds the host's lock.

    Where nothing was C(displaced), what was before still counts. A record that can't be read is left as it is: it may
    say a lot of other models. Returns what to warn of.
    """
    doing, remedy = "read", state_files.read_remedy
    try:
        before = state_files.read_or_raise(stack_dir, state_files.DESIRED_STATE)
        desired = change(_of(inventory, _states(before)))
        displaced = list(displaced) or _displaced(before)
        if _states(before) == desired and _displaced(before) == displaced:
            return []
        doing, remedy = "written", state_files.remedy
        state_files.write(stack_dir, state_files.DESIRED_STATE, {"models": desired, "displaced": displaced})
    except OSError as error:
        path = state_files.path(stack_dir, state_files.DESIRED_STATE)
        return [
            f"the switch succeeded, but {path} can't be {doing} ({error.strerror}): a reboot would restore other "
            f"models; {remedy(error)}, then switch again"
        ]
    return []


def recorded(stack_dir: str) -> DesiredState:
    """What the record says; nothing where there is none, or one that can't be read."""
    return _states(state_files.read(stack_dir, state_files.DESIRED_STATE))


def last_displaced(stack_dir: str) -> list[str]:
    """The models that were active before the last switch and not after it.

    Raises SwitchingError where that can't be read.
    """
    try:
        return _displaced(state_files.read_or_raise(stack_dir, state_files.DESIRED_STATE))
    except OSError as error:
        unknown = "which models the last switch replaced"
        raise state_files.unread(stack_dir, state_files.DESIRED_STATE, error, unknown) from None


def _states(record: typing.Mapping[str, typing.Any]) -> DesiredState:
    return {str(name): str(state) for name, state in state_files.models_of(record).items()}


def _displaced(record: typing.Mapping[str, typing.Any]) -> list[str]:
    names = record.get("displaced")
    return [str(name) for name in names] if isinstance(names, list) else []
