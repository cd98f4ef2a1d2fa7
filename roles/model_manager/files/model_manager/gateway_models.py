# SPDX-License-Identifier: MIT
"""What the gateway is told of the models: their names, addresses, gates and entries of `/v1/models`. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import options, plan
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import Observation

from . import view

ACTIVE, SLEEPING, SWITCHING = "active", "sleeping", "switching"
_WORDS = {
    view.READY: ACTIVE,
    view.SLEEP_PENDING: SWITCHING,
    view.ASLEEP: SLEEPING,
    view.WAKING: SWITCHING,
    view.STOPPED: "stopped",
    view.STARTING: SWITCHING,
    view.ERROR: "error",
    view.DISABLED: "disabled",
}
_DESCRIPTIONS = {
    ACTIVE: "Active",
    SLEEPING: "Asleep",
    SWITCHING: "Switching",
    "stopped": "Stopped",
    "error": "Failed",
    "disabled": "Disabled",
}
_LONGEST_PROBLEM = 160
# An estimate is shown as the next of these, so that the list does not change with every second.
_ETA_STEPS = (1, 2, 3, 4, 5, 7, 10, 12, 15, 20, 25, 30, 40, 50, 60, 90, 120, 180, 240, 300, 450, 600, 900, 1200)


def word(state: str) -> str:
    """The gateway's word for one of the states of `view`."""
    return _WORDS[state]


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


def declared_adapters(model: Model) -> list[str]:
    """The names of the LoRA adapters that its server is started with."""
    given: Any = model.args.get("lora_modules", ())
    if model.start_command:
        given = _words_after(model.start_command, "--lora-modules")
    found = [_adapter(one) for one in ([given] if isinstance(given, (str, dict)) else given or ())]
    return list(dict.fromkeys(name for name in found if name))


class Card:
    """What stays the same of a model while the inventory does."""

    def __init__(self, model: Model, own_names: Sequence[str], created: int) -> None:
        self.model = model
        self.adapters = declared_adapters(model)
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
        key = word(state), problem, gate, rounded(eta), tuple(dict.fromkeys((*self.adapters, *seen)))
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
        elif state in (SLEEPING, SWITCHING, "stopped") and seconds:
            text = f"{text}, ready in about {_duration(seconds)}"
        own = self.model.description.strip()
        meta = {"description": f"{own.rstrip('.')}. {text}" if own else text, **self._capabilities}
        return {
            **self._entry,
            "name": self.model.name,
            "loaded": state == ACTIVE,
            "tags": [{"name": state}],
            "info": {"meta": meta},
        }


def cards(inventory: Inventory, created: int) -> dict[str, Card]:
    """The cards of all models, in the order of the inventory."""
    own = names(inventory)
    return {m.id: Card(m, own[m.id], created) for m in inventory.models}


def _duration(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


def _words_after(words: Sequence[str], flag: str) -> list[str]:
    """The words that a flag of a command has, however often it is given."""
    found: list[str] = []
    taking = False
    for one in words:
        name, equals, value = one.partition("=")
        if name == flag or one == flag:
            taking = True
            found += [value] if equals else []
        elif one.startswith("--"):
            taking = False
        elif taking:
            found.append(one)
    return found


def _adapter(given: Any) -> str:
    """The name of one of `lora_modules`: NAME=PATH, or an object with `name`, also as JSON text."""
    if isinstance(given, str):
        if not given.lstrip().startswith("{"):
            return given.partition("=")[0].strip()
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):  # vLLM's to refuse
            return ""
    name = given.get("name") if isinstance(given, Mapping) else ""
    return name if isinstance(name, str) else ""
