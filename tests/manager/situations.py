# SPDX-License-Identifier: MIT
"""Situations of a host, on which the rules are tried that the manager follows unasked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    ERROR,
    LOADING,
    SLEEPING,
    STOPPED,
    Observation,
)
from model_manager.breaker import Breaker
from model_manager.rules import Action, Situation

AWAKE = Observation(ACTIVE, running=0, waiting=0)
BUSY = Observation(ACTIVE, running=1, waiting=0)
UNTOLD = Observation(ACTIVE)
HELD = Observation(ACTIVE, held=True)
ASLEEP = Observation(SLEEPING, level=1)
HALF_AWAKE = Observation(SLEEPING, level=1, doubtful=True, problem="its last wake was not confirmed")
GONE = Observation(STOPPED, process=False)
COMING = Observation(LOADING)
BEGUN = Observation(LOADING, was_serving=True)
DEAD = Observation(ERROR, dead=True, process=True, problem="its engine is dead")
WRONG = Observation(ERROR, problem="something else answers on its port")
HUNG = Observation(ERROR, unknown=True, problem="no answer")
EVERYTHING = (AWAKE, BUSY, UNTOLD, HELD, ASLEEP, HALF_AWAKE, GONE, COMING, BEGUN, DEAD, WRONG, HUNG)

# a, b and c share a GPU; d has one of its own.
GPUS = {"a": [0], "b": [0], "c": [0], "d": [1]}


def inventory(**switching: Any) -> Inventory:
    models = [
        {"id": name, "model": f"org/{name}", "host_port": 8001 + i, "gpus": gpus, "start_command": ["serve", name]}
        for i, (name, gpus) in enumerate(GPUS.items())
    ]
    return parse(models, switching)


HOST = inventory()
ASLEEP_ALL = dict.fromkeys(GPUS, SLEEPING)


def situation(observed: Mapping[str, Observation], desired: Mapping[str, str], **fields: Any) -> Situation:
    """One in which the rest of the host is asleep, as it should be."""
    return Situation(
        fields.pop("now", 1000.0),
        fields.pop("inventory", HOST),
        {**dict.fromkeys(GPUS, ASLEEP), **observed},
        {**ASLEEP_ALL, **desired},
        **{"reload_idle_seconds": 60.0, "idle_seconds": dict.fromkeys(GPUS, 0.0), **fields},
    )


def named(actions: list[Action]) -> list[tuple[str, str]]:
    return [(action.model, action.desired) for action in actions]


def breaker(**fields: Any) -> Breaker:
    return Breaker(**{"limit": 3, "window_seconds": 600.0, "retry_seconds": 300.0, **fields})
