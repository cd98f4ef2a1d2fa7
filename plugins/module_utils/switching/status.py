# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What a host tells whoever asks: its models and their requests, and how the last switch ended."""

from __future__ import annotations

import dataclasses
import os
import time
import typing

from . import costs, manager_view, memory, odometer, state_files
from .errors import Blocked, SwitchingError
from .host import Host
from .inventory import ESCALATION, Model
from .lifecycle import ComposeService
from .plan import ACTIVE, SLEEPING, STOPPED, Observation, make_plan
from .result import Result, results_of, summary

_LAST_SWITCH_KEYS: dict[str, typing.Any] = {
    "models": list,
    "state": str,
    "ended": (int, float),
    "seconds": (int, float),
    "result": str,
    "reason": str,
}
# Who looks now and then at what others switch sees so many of them at most.
_FORMER_SWITCHES = 20


def report(host: Host, mem_available_gb: float | None = None) -> dict[str, typing.Any]:
    """The state and the number of requests of every model, as plain data. Changes nothing and never fails.

    C(mem_available_gb) is the host's MemAvailable, None where it is not known.
    """
    host.lock.peek()
    seen, gpu_memory_gb = host.report()
    leaks = odometer.reports(host.inventory, host.stack_dir)
    for model in host.inventory.enabled:
        if seen[model.id].state == STOPPED and missing(host, model):
            problem = f"{missing(host, model)} does not exist: run homegpt.vllm.site first"
            seen[model.id] = dataclasses.replace(seen[model.id], problem=problem)
    content = state_files.models(host.stack_dir, state_files.COSTS)
    return {
        "active_models": [name for name, state in seen.items() if state.state == ACTIVE],
        "last_switch": read_last_switch(host.stack_dir),
        "manager": manager_view.read(host.stack_dir, time.time()),
        "warnings": unreadable(host),
        "models": {
            m.id: {
                **summary(seen[m.id]),
                **m.status_fields,
                "running": seen[m.id].running,
                "waiting": seen[m.id].waiting,
                "gpu_memory_gb": gpu_memory_gb.get(m.id),
                "levels": costs.told(costs.known(content, m)),
                "next_sleep": None if m.disabled else _next_sleep(host, seen, m, mem_available_gb, content),
                "leak": leaks.get(m.id) if seen[m.id].state != STOPPED else None,
            }
            for m in host.inventory.models
        },
    }


def _next_sleep(
    host: Host,
    seen: typing.Mapping[str, Observation],
    model: Model,
    free: float | None,
    content: typing.Mapping[str, typing.Any],
) -> str:
    """At which level a model would sleep now if it was active, and why."""
    state = seen[model.id]
    if free is not None and state.state == SLEEPING and state.level in (None, 1):
        free += model.weights_gb or 0.0  # it would hold them no longer
    awake = {**seen, model.id: Observation(ACTIVE, no_level_2=state.no_level_2)}
    shared = memory.remembered_shared(host.stack_dir)
    try:
        plan = make_plan(host.inventory, awake, model, SLEEPING, free, 0.0, shared, content)
    except Blocked as error:
        return str(error)
    choice = plan.steps[-1].choice
    return choice.why if choice else ""


def missing(host: Host, model: Model) -> str:
    """The compose file without which the model's server can't be started; empty where it is there or none is needed."""
    lifecycle = host.lifecycles[model.id]
    return lifecycle.missing() if isinstance(lifecycle, ComposeService) else ""


def unreadable(host: Host) -> list[str]:
    """Warnings about what is unknown because the state files can't be read, most often by this user alone."""
    path = state_files.path(host.stack_dir, state_files.LAST_SWITCH)
    hidden = ["whether a model's last wake was confirmed"] if host.lock.unreadable else []
    if os.path.exists(path) and not os.access(path, os.R_OK):
        hidden.append("what the last switch was")
    manager = state_files.path(host.stack_dir, state_files.MANAGER_VIEW)
    if os.path.exists(manager) and not os.access(manager, os.R_OK):
        hidden.append("what the model manager does")
    if not hidden:
        return []
    why = f"{os.path.dirname(path)} belongs to another user; run as root (sudo)"
    if host.lock.unreadable and not isinstance(host.lock.unreadable, PermissionError):
        why = f"{host.lock.path} can't be read ({host.lock.unreadable.strerror}): repair it"
    return [f"it is unknown {' and '.join(hidden)}: {why}"]


def read_last_switch(stack_dir: str) -> dict[str, typing.Any] | None:
    """How the last switch ended that did something; None where nothing is recorded, or something else."""
    return _end(state_files.read(stack_dir, state_files.LAST_SWITCH))


def read_former_switches(stack_dir: str) -> list[dict[str, typing.Any]]:
    """How some switches before the last one ended, the oldest first."""
    former = state_files.read(stack_dir, state_files.LAST_SWITCH).get("former")
    ends = [_end(one) for one in former if isinstance(one, dict)] if isinstance(former, list) else []
    return [end for end in ends if end]


def _end(found: typing.Mapping[str, typing.Any]) -> dict[str, typing.Any] | None:
    if not all(isinstance(found.get(key), kind) for key, kind in _LAST_SWITCH_KEYS.items()):
        return None
    return {**{key: found[key] for key in _LAST_SWITCH_KEYS}, "rung": found.get("rung")}


def record_last_switch(
    stack_dir: str,
    models: typing.Sequence[Model],
    desired: str,
    outcomes: typing.Sequence[Result | SwitchingError],
    ended: float,
    seconds: float,
) -> list[str]:
    """Record how a switch ended that did something; C(ended) is in seconds since 1970. Returns what to warn of."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, SwitchingError)]
    results = [one for one in results_of(outcomes) if one.steps]
    if not results and not errors:
        return []
    rungs = [one.rung for one in results if one.rung]
    last = read_last_switch(stack_dir)
    former = [*read_former_switches(stack_dir), *([last] if last else [])]
    end = {
        "models": [m.id for m in models],
        "state": desired,
        "ended": round(ended, 3),
        "seconds": round(seconds, 3),
        "result": "failed" if errors else "done",
        "rung": max(rungs, key=ESCALATION.index) if rungs else None,
        "reason": str(errors[0]).split("\n", 1)[0]
        if errors
        else ", ".join(one.recovery for one in results if one.recovery),
        "former": former[-_FORMER_SWITCHES:],
    }
    try:
        state_files.write(stack_dir, state_files.LAST_SWITCH, end)
    except OSError as error:
        path = state_files.path(stack_dir, state_files.LAST_SWITCH)
        return [f"{path} can't be written ({error.strerror}): status shows an earlier switch as the last one"]
    return []
