# SPDX-License-Identifier: MIT
"""What the gateway is told of the models: their names, addresses, gates and entries of `/v1/models`. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import options, plan
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import Observation

from . import view

# What people read of each of the gateway's words for states.
_DESCRIPTIONS = {
    "active": "Active",
    "sleeping": "Asleep",
    "switching": "Switching",
    "stopped": "Stopped",
    "error": "Failed",
    "disabled": "Disabled",
}
_LONGEST_PROBLEM = 160
# An estimate is shown as the next of these, so that the list does not change with every second.
_ETA_STEPS = (1, 2, 3, 4, 5, 7, 10, 12, 15, 20, 25, 30, 40, 50, 60, 90, 120, 180, 240, 300, 450, 600, 900, 1200)


def is_open(seen: Observation | None, moving: bool, closed: bool, was_open: bool) -> bool:
    """Whether requests may go to a model's server.

    Only if it was observed awake, nothing is being done to it (`moving`) and no switch concerns it (`closed`). One that
    does not answer in time is slow, not asleep: its gate stays as it was.
    """
    if seen is None or moving or closed:
        return False
    if seen.unknown:
        return was_open
    return seen.state == plan.ACTIVE and not seen.held and not seen.doubtful


def rounded(eta: float | None) -> int | None:
    """An estimate in seconds as it is shown: 0 for none to wait."""
    if eta is None or not math.isfinite(eta):
        return None
    if eta <= 0:
        return 0
    return next((step for step in _ETA_STEPS if eta <= step), math.ceil(eta / 600) * 600)


def names(inventory: Inventory) -> dict[str, list[str]]:
    """The names of each model that mean it and no other, its id first, as `Manager` finds it by them."""
    ids = {m.id for m in inventory.models}
    owners: dict[str, set[str]] = {}
    for model in inventory.models:
        for name in model.names:
            owners.setdefault(name, set()).add(model.id)
    return {
        m.id: [
            m.id,
            *(name for name in dict.fromkeys((*m.aliases, m.model)) if name not in ids and len(owners[name]) == 1),
        ]
        for m in inventory.models
    }


class Card:
    """What stays the same of a model while the inventory does."""

    def __init__(self, model: Model, own_names: Sequence[str], created: int) -> None:
        self.model = model
        self.adapters = options.adapters(model.args, model.start_command)
        told = options.of_command(model.start_command) if model.start_command else model.args
        length = (told or {}).get("max_model_len")
        self._entry: dict[str, Any] = {
            "id": model.id,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": model.model,
            "parent": None,
        }
        if str(length).isdigit():
            self._entry["max_model_len"] = int(str(length))
        # What was shown last, and of what that was made.
        self._last: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._capabilities: dict[str, Any] = {}
        if told is not None and not options.calls_tools(told):
            self._capabilities = {"capabilities": {"builtin_tools": False}}
        address = model.listens.address
        self._fixed = {
            "id": model.id,
            "names": list(own_names),
            # Without its brackets nginx takes the end of one for a port.
            "host": f"[{address}]" if ":" in address else address,
            "port": model.host_port,
            "api_key": model.api_key,
            **({"tls": True} if model.listens.tls else {}),
        }

    def shown(self, state: str, problem: str, gate: bool, eta: float | None, seen: Iterable[str]) -> dict[str, Any]:
        """The model in a state message; `state` is one of `view`, `seen` the adapters that its server has told."""
        key = view.GATEWAY_STATUS[state], problem, gate, rounded(eta), tuple(dict.fromkeys((*self.adapters, *seen)))
        if self._last is None or self._last[0] != key:
            self._last = key, self._made(*key)
        return self._last[1]

    def _made(self, now: str, problem: str, gate: bool, seconds: int | None, adapters: Sequence[str]) -> dict[str, Any]:
        entry = self._shown_entry(now, problem, seconds)
        # As texts: what takes them apart makes {} of an empty list.
        others = [{**entry, "id": one, "name": one, "root": one, "parent": self.model.id} for one in adapters]
        return {
            **self._fixed,
            "adapters": list(adapters),
            "gate": "open" if gate else "closed",
            "state": now,
            "eta_seconds": seconds,
            "entry": json.dumps(entry),
            "adapter_entries": [json.dumps(one) for one in others],
        }

    def _shown_entry(self, state: str, problem: str, seconds: int | None) -> dict[str, Any]:
        text = _DESCRIPTIONS[state]
        if state == "error" and problem:
            text = f"{text}: {problem.splitlines()[0][:_LONGEST_PROBLEM]}"
        elif state in ("sleeping", "switching", "stopped") and seconds:
            text = f"{text}, ready in about {_duration(seconds)}"
        own = self.model.description.strip()
        meta = {"description": f"{own.rstrip('.')}. {text}" if own else text, **self._capabilities}
        return {
            **self._entry,
            "name": self.model.name,
            "loaded": state == "active",
            "tags": [{"name": state}],
            "info": {"meta": meta},
        }


def cards(inventory: Inventory, created: int) -> dict[str, Card]:
    """The cards of all models, in the order of the inventory."""
    own = names(inventory)
    return {m.id: Card(m, own[m.id], created) for m in inventory.models}


def _duration(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
