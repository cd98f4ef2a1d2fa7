# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What switches that were given a name for it have changed, so that just that can be undone.

What is recorded is dropped as soon as another switch changes which of those models are active: then nobody knows any
more whether it is still wanted.
"""

from __future__ import annotations

import typing

from . import state_files
from .inventory import Inventory, Model
from .plan import ACTIVE, SLEEPING, STOPPED, Observation
from .result import Result

States = typing.Dict[str, str]


class Change(typing.NamedTuple):
    """The states of the models concerned, by id, before the first of its switches and after the last.

    C(displaced) is what a roll back would have taken back before it.
    """

    before: States
    after: States
    displaced: list[str]


def read(stack_dir: str, name: str) -> Change | None:
    """What the change of this name has changed; None where it has not, or another switch has changed that since.

    Raises SwitchingError where that can't be read.
    """
    try:
        return _all(stack_dir).get(name)
    except OSError as error:
        raise state_files.unread(stack_dir, state_files.CHANGES, error, f"what {name} has changed") from None


def record(stack_dir: str, name: str, results: typing.Iterable[Result], displaced: list[str]) -> None:
    """Record what a switch has done, under the change's name where it has one. Raises OSError."""
    results = [result for result in results if result.displaced or result.activated]
    known = saved = _all(stack_dir) if results else {}
    for result in results:
        concerned = {model for place in result.places for model in place}
        before, after = ({n: seen[n].state for n in concerned} for seen in (result.before, result.models))
        known = {other: one for other, one in known.items() if other == name or not concerned & set(one.after)}
        if name:
            old = known.pop(name, Change({}, {}, displaced))
            known[name] = Change({**before, **old.before}, {**old.after, **after}, old.displaced)
    _write(stack_dir, saved, known)


def undone(stack_dir: str, name: str, change: Change, after: States) -> None:
    """Record that a change is undone: to undo it once more changes nothing. Raises OSError."""
    saved = _all(stack_dir)
    known = {other: one for other, one in saved.items() if not set(change.after) & set(one.after)}
    _write(stack_dir, saved, {**known, name: change._replace(after=after)})


def changed_since(change: Change, seen: typing.Mapping[str, Observation]) -> list[str]:
    """The models that somebody has woken or put to sleep since the change.

    One that has ended by itself is none: that it did may be why the change is to be undone.
    """
    return [
        name
        for name, state in change.after.items()
        if name in seen and (seen[name].asleep if state == ACTIVE else seen[name].state == ACTIVE)
    ]


Goals = typing.List[typing.Tuple[typing.Tuple[Model, ...], str]]


def goals(inventory: Inventory, target: States, seen: typing.Mapping[str, Observation]) -> Goals:
    """The switches that make those models active again that were in C(target), and of its models no others.

    What makes room for one of them is asked for by that.
    """
    back: list[Model] = []
    for model in inventory.enabled:
        lost = target.get(model.id) == ACTIVE and seen[model.id].state != ACTIVE
        if lost and not any(model.conflicts_with(other) for other in back):
            back.append(model)
    over = [
        model
        for model in inventory.enabled
        if target.get(model.id, ACTIVE) != ACTIVE
        and seen[model.id].state == ACTIVE
        and not any(model.conflicts_with(other) for other in back)
    ]
    ended = [model for model in over if target[model.id] == STOPPED]
    asleep = [model for model in over if model not in ended]
    parts = ((back, ACTIVE), (asleep, SLEEPING), (ended, STOPPED))
    return [(batch, desired) for models, desired in parts for batch in inventory.load_batches(models)]


def _all(stack_dir: str) -> dict[str, Change]:
    saved: typing.Any = state_files.read_or_raise(stack_dir, state_files.CHANGES).get("changes")
    found: dict[str, typing.Any] = saved if isinstance(saved, dict) else {}
    changes = {}
    for name, one in found.items():
        before, after, displaced = [one.get(key) for key in Change._fields] if isinstance(one, dict) else [None] * 3
        if isinstance(before, dict) and isinstance(after, dict):
            left = [str(model) for model in displaced] if isinstance(displaced, list) else []
            changes[name] = Change(_states(before), _states(after), left)
    return changes


def _states(saved: dict[typing.Any, typing.Any]) -> States:
    return {str(model): str(state) for model, state in saved.items()}


def _write(stack_dir: str, saved: dict[str, Change], known: dict[str, Change]) -> None:
    if known != saved:
        # No two are about the same model, so there are never many.
        state_files.write(
            stack_dir, state_files.CHANGES, {"changes": {name: one._asdict() for name, one in known.items()}}
        )
