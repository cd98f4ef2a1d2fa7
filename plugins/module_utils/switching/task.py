# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What a task asks of the engine; parameters and results are plain data. Who calls it checks, masks and shows them."""

from __future__ import annotations

import typing

from .errors import InventoryError, SwitchFailed, SwitchingError
from .inventory import Inventory, parse
from .redaction import secrets_of
from .switch import Switcher

Data = typing.Dict[str, typing.Any]
Learn = typing.Callable[[typing.Set[str]], None]


def sleep_state(params: Data, check: bool, learn: Learn) -> Data:
    """Bring models to a state."""

    def work(switcher: Switcher) -> Data:
        if params["state"] == "previous":
            result = switcher.roll_back(check=check)
        elif params["state"] == "undone":
            result = switcher.undo(params["change"], check=check)
        else:
            record, change = params["record_canary"], params["change"] or ""
            result = switcher.switch(params["model"], params["state"], check=check, record_canary=record, change=change)
        return dict(result.as_dict(), diff=result.diff())

    return _switching(params, work, learn)


def sleep_state_info(params: Data, check: bool, learn: Learn) -> Data:
    """Tell what every model is."""
    del check  # it changes nothing
    return _switching(params, lambda switcher: dict(switcher.report(), changed=False), learn)


def warm(params: Data, check: bool, learn: Learn) -> Data:
    """Read weights into the page cache."""

    def work(inventory: Inventory) -> Data:
        from . import warming  # noqa: PLC0415 - no switch needs it

        done = warming.warm(inventory, params["stack_dir"], params["model"], check)
        return {
            "changed": any(one.warmed.read for one in done),
            "models": {one.model: one.as_dict() for one in done},
            "lines": [line for one in done for line in one.lines],
        }

    return attempt(params, work, learn)


def attempt(params: Data, work: typing.Callable[[Inventory], Data], learn: Learn) -> Data:
    """What the work returns for the checked inventory, or what is to be said of the engine's error."""
    try:
        inventory = parse(params["models"], params["switching"])
        # A macro may have any name, and only what uses it tell that it is a secret.
        learn(secrets_of(inventory.as_dict()))
        return work(inventory)
    except SwitchingError as error:
        # By the name of its class a playbook may tell errors apart.
        failure: Data = {"failed": True, "msg": str(error), "error": type(error).__name__}
        if isinstance(error, InventoryError):
            failure["mistakes"] = error.mistakes
        elif isinstance(error, SwitchFailed):
            failure.update(error.result.as_dict())
        return failure


def _switching(params: Data, work: typing.Callable[[Switcher], Data], learn: Learn) -> Data:
    def switch(inventory: Inventory) -> Data:
        with Switcher(inventory, params["stack_dir"]) as switcher:
            return work(switcher)

    return attempt(params, switch, learn)
