# SPDX-License-Identifier: MIT
"""What many hosts have together: which models there are, where each is active, where a switch costs least. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# What a host tells of a model.
KEYS = ("id", "names", "adapters", "gate", "state", "eta_seconds", "entry", "adapter_entries")
OPEN, CLOSED = "open", "closed"
# The states of a model from the best to the worst, as hosts tell them; others come last.
_STATES = ("active", "switching", "sleeping", "stopped", "error", "disabled")
# A host in whose state a switch may do is asked before one in which it hardly will.
_HARDLY = ("error", "disabled")


class Server(NamedTuple):
    """How the gateway of a host is reached; the keys of `servers` in a message of the state."""

    name: str
    host: str
    port: int
    tls: bool
    api_key: str | None


class HostView(NamedTuple):
    """A host as it is known now. `models` are those that its manager has told last, by id, also where it is down."""

    name: str
    up: bool
    why: str
    """Why it is not up, in words."""
    server: Server | None
    models: Mapping[str, Mapping[str, Any]]
    waiting: int = 0
    """How many requests wait there, for whatever model."""
    in_flight: int = 0
    """How many requests its models have."""
    load: Mapping[str, int] = {}
    """How many requests each model has there that others than this door have sent."""

    def has_open(self, model: str) -> bool:
        """Whether requests may go to this model there."""
        return self.up and self.server is not None and self.models.get(model, {}).get("gate") == OPEN


def declaring(hosts: Iterable[HostView], model: str) -> list[HostView]:
    """The hosts that have this model, whether they are up or not."""
    return [host for host in hosts if model in host.models]


def cheapest(
    hosts: Iterable[HostView], model: str, asked: Mapping[str, Iterable[str]] | None = None
) -> HostView | None:
    """Where a switch to this model costs least; of hosts that are up and have it.

    By the time that the host's own manager expects, and that it expects for what it was `asked` for already (models by
    host); where that is the same, where fewest requests wait, then where fewest are under way; then the first.
    """

    def cost(host: HostView) -> tuple[bool, float, int, int]:
        told = host.models[model]
        before = [other for other in (asked or {}).get(host.name, ()) if other != model]
        etas = [host.models.get(other, {}).get("eta_seconds") or 0.0 for other in before]
        eta = told.get("eta_seconds")
        whole = math.inf if eta is None else float(eta) + sum(etas)
        return told.get("state") in _HARDLY, whole, host.waiting + len(before), host.in_flight

    return min((host for host in declaring(hosts, model) if host.up), key=cost, default=None)


def find(hosts: Iterable[HostView], name: str) -> str | None:
    """The id of the model that has this name."""
    hosts = list(hosts)
    if declaring(hosts, name):
        return name
    for which in ("names", "adapters"):
        for model in ids(hosts):
            if name in _shared(declaring(hosts, model), model, which):
                return model
    return None


def ids(hosts: Iterable[HostView]) -> list[str]:
    """The ids of all models, in the order of the hosts."""
    return list(dict.fromkeys(model for host in hosts for model in host.models))


def state(hosts: Sequence[HostView]) -> list[dict[str, Any]]:
    """The models of a message of the state: the union of what all hosts have."""
    return [_model(model, declaring(hosts, model)) for model in ids(hosts)]


def _model(model: str, hosts: Sequence[HostView]) -> dict[str, Any]:
    up = [host for host in hosts if host.up]
    serving = [host for host in hosts if host.has_open(model)]
    best = min(up, key=lambda host: (not host.has_open(model), _rank(host.models[model])), default=None)
    adapters = _shared(hosts, model, "adapters")
    shown = (best or hosts[0]).models[model]
    entries = dict(zip(shown["adapters"], shown["adapter_entries"], strict=False))
    etas = [host.models[model]["eta_seconds"] for host in up if host.models[model]["eta_seconds"] is not None]
    why = "" if best else " and ".join(f"{host.name} can't be reached ({host.why})" for host in hosts)
    return {
        "id": model,
        "names": _shared(hosts, model, "names"),
        "adapters": adapters,
        "gate": OPEN if serving else CLOSED,
        "state": shown["state"] if best else "error",
        "eta_seconds": 0 if serving else min(etas, default=None),
        "entry": shown["entry"] if best else _unreachable(shown["entry"], why),
        "adapter_entries": [
            entries[name] if best else _unreachable(entries[name], why) for name in adapters if name in entries
        ],
        # Also where there are none: by this the gateway knows a model that is not its own host's.
        "servers": [{**host.server._asdict(), "load": host.load.get(model, 0)} for host in serving if host.server],
    }


def _rank(told: Mapping[str, Any]) -> tuple[int, float]:
    known = told["state"] in _STATES
    eta = told["eta_seconds"]
    return _STATES.index(told["state"]) if known else len(_STATES), math.inf if eta is None else float(eta)


def _shared(hosts: Sequence[HostView], model: str, which: str) -> list[str]:
    """The names or adapters that a model has on all its hosts: a request may go to any of them."""
    first, *others = (host.models[model][which] for host in hosts)
    return [name for name in first if all(name in other for other in others)]


def _unreachable(entry: str, why: str) -> str:
    """An entry of `/v1/models` of a model whose hosts are all down."""
    told = json.loads(entry)
    told.update(loaded=False, tags=[{"name": "error"}])
    told.setdefault("info", {}).setdefault("meta", {})["description"] = f"Failed: {why}"
    return json.dumps(told)
