# SPDX-License-Identifier: MIT
"""What the history keeps of a switch that has ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .guarded_lock import Superseded
from .history import Switch
from .tickets import FAILED, Ticket


def of_ticket(ticket: Ticket) -> Switch | None:
    """A switch of the manager; None where nothing was done."""
    result = ticket.result or {}
    error = ticket.error or {}
    if ticket.begun_at is None or ticket.ended_at is None or not (result.get("steps") or error):
        return None
    if error.get("kind") == Superseded.__name__:
        return None
    return Switch(
        model=ticket.model,
        desired=ticket.desired,
        asked_at=ticket.asked_at,
        begun_at=ticket.begun_at,
        ended_at=ticket.ended_at,
        result=ticket.status,
        requested_by=ticket.by,
        error=error.get("message", ""),
        previous=result.get("previous_models", ()),
        active=result.get("active_models", ()),
        rung=result.get("rung", ""),
        seconds=ticket.ended_at - ticket.begun_at,
        steps=result.get("steps", ()),
    )


def of_others(last: Mapping[str, Any]) -> list[Switch]:
    """A switch that the module or the command line has made, as the engine has recorded it; one for each model."""
    return [
        Switch(
            model=model,
            desired=last["state"],
            asked_at=last["ended"] - last["seconds"],
            begun_at=last["ended"] - last["seconds"],
            ended_at=last["ended"],
            result=last["result"],
            requested_by="module or command line",
            error=last["reason"] if last["result"] == FAILED else "",
            rung=last["rung"] or "",
            seconds=last["seconds"],
        )
        for model in last["models"]
    ]
