# SPDX-License-Identifier: MIT
"""Which of the gateway's gates are open, and the message that says so. Nothing here has a lock: whoever calls has it.

A gate is open only while its model was observed awake and no switch concerns it: none of this service (`close`), and
none by the module or the command line, from when that is seen until the host was looked at after it (`foreign`). What
these have asked for (`hold`) stays closed until they let go of the lock, whatever is seen.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory

from . import gateway_models
from .gateway_counts import Version
from .gateway_models import Card
from .host_state import HostState
from .schedule import Schedule
from .view import READY

# What of a model's message is nobody's business but the host's own gateway's.
_OWN = ("host", "port", "api_key", "tls")


class Gates:
    """The gates of all models. `now` is in seconds since 1970."""

    def __init__(self, host: HostState, schedule: Schedule, now: float) -> None:
        # The models whose gates are open.
        self.open: set[str] = set()
        self._host = host
        self._schedule = schedule
        self._boot = int(now * 1000)
        self._number = 0
        self._closed: set[str] = set()
        self._foreign: set[str] = set()
        self._held: frozenset[str] = frozenset()
        self._cards: dict[str, Card] = {}
        self._cards_of: Inventory | None = None
        self._etas: dict[str, float | None] = {}
        self._shown: list[dict[str, Any]] = []

    @property
    def version(self) -> Version:
        """That of the message as it is now; a later one is greater."""
        return self._boot, self._number

    def message(self) -> bytes:
        """The whole state, as a line of JSON."""
        told = {"t": "state", "version": self.version, "models": self._shown}
        return json.dumps(told, separators=(",", ":")).encode() + b"\n"

    def told(self) -> list[dict[str, Any]]:
        """The models of that message, without the addresses and keys of their servers."""
        return [{key: one[key] for key in one if key not in _OWN} for one in self._shown]

    def later_than(self, version: Version) -> None:
        """Have a version that is greater than one that workers hold: the clock was set back since it was made."""
        self._boot, self._number = max(self._boot, version[0]) + 1, 0

    def look(self) -> bool:
        """Take over what the models are now; whether the message is another one."""
        host, inventory = self._host, self._host.inventory
        if inventory is not self._cards_of:
            self._cards = gateway_models.cards(inventory, self._boot // 1000)
            self._cards_of = inventory
        closed = self._closed | self._foreign | (self._groups(self._held) if self._held else set())
        now_open, shown = set(), []
        for name, card in self._cards.items():
            state, _level, problem = host.state_of(name)
            moving = name in host.moving and host.moving[name][0] != READY
            if gateway_models.is_open(host.seen.get(name), moving, name in closed, name in self.open):
                now_open.add(name)
            eta = 0.0 if name in now_open else self._etas.get(name)
            shown.append(card.shown(state, problem, name in now_open, eta, host.adapters.get(name, ())))
        self.open = now_open
        if shown == self._shown:
            return False
        self._shown = shown
        self._number += 1
        return True

    def estimate(self) -> None:
        """Look anew how long it would take until each model is active."""
        forecast = self._schedule.forecast()
        models = [m for m in self._host.inventory.enabled if m.id not in self.open]
        self._etas = {m.id: self._schedule.eta(m, forecast) for m in models}

    def close(self, names: Collection[str]) -> None:
        """A switch of this service concerns these models."""
        self._closed = set(names)

    def reopen(self, observed: Iterable[str], doubtful: bool) -> None:
        """It is over, and has observed these at its end; the rest is doubtful until the next look, or as before."""
        if doubtful:
            self._foreign |= self._closed
        self._closed = set()
        self._foreign -= set(observed)

    def foreign(self, names: Collection[str]) -> None:
        """Somebody else switches these models, or has; any of them where none is named."""
        self._foreign |= self._groups(names)

    def hold(self, names: Collection[str]) -> None:
        """Whoever else has the host's lock asks that these be closed, instead of those that he has asked for before.

        None where he has let go of it. Those that are not held any more are doubtful: somebody else may have come after
        him, and asked for others, before anybody has seen that he has let go.
        """
        before = self._groups(self._held) if self._held else set()
        self._held = frozenset(names)
        self._foreign |= before - (self._groups(self._held) if self._held else set())

    def _groups(self, names: Collection[str]) -> set[str]:
        """Those that share GPUs with any of these; all where one of these is not known, or none is named."""
        inventory = self._host.inventory
        models = [m for m in inventory.models if m.id in names]
        if not names or len(models) != len(names):
            models = list(inventory.models)
        return {one.id for model in models for one in inventory.group(model)}

    def looked(self) -> None:
        """The host was looked at while nobody had its lock."""
        if not self._host.lock_holder:
            self._foreign = set()

    def is_doubtful(self, name: str) -> bool:
        """Whether somebody else may be switching this model: what comes of that is seen soon."""
        return name in self._foreign or (bool(self._held) and name in self._groups(self._held))
