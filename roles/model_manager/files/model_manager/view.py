# SPDX-License-Identifier: MIT
"""What the manager shows of the host: frozen data, in the words that its API has for states."""

from __future__ import annotations

import dataclasses
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan

# The states of a model. While a step is done to its server, it is in between.
READY = "ready"
SLEEP_PENDING = "sleepPending"
ASLEEP = "asleep"
WAKING = "waking"
STOPPED = "stopped"
STARTING = "starting"
ERROR = "error"
DISABLED = "disabled"

OF_ENGINE = {
    plan.ACTIVE: READY,
    plan.SLEEPING: ASLEEP,
    plan.LOADING: STARTING,
    plan.STOPPED: STOPPED,
    plan.ERROR: ERROR,
    plan.DISABLED: DISABLED,
}
# What a model is while this step is done to it.
DURING_STEP = {
    plan.DRAIN: SLEEP_PENDING,
    plan.SLEEP: SLEEP_PENDING,
    plan.STOP: SLEEP_PENDING,
    plan.WAKE: WAKING,
    plan.START: STARTING,
}
_STATUS = {
    READY: "active",
    SLEEP_PENDING: "switching",
    ASLEEP: "sleeping",
    WAKING: "switching",
    STOPPED: "sleeping",  # not active, and a switch can make it so
    STARTING: "switching",
    ERROR: "error",
    DISABLED: "disabled",
}
# In the words of the gateway, whose clients are told what they wait for.
GATEWAY_STATUS = {**_STATUS, STOPPED: "stopped"}
# What becomes of the weights when a model sleeps at a level.
WEIGHTS_OF_LEVEL = {0: "retain", 1: "offload", 2: "discard", None: "offload"}
KEEP_RUNNING = "keep_running"


@dataclasses.dataclass(frozen=True)
class ModelView:
    """One model as it was observed last, and what the manager knows of it. Times are in seconds."""

    id: str
    name: str
    description: str
    """What the inventory says of it, for people."""
    container_name: str
    port: int
    host_port: int
    gpu_memory_gb: float | None
    startup_mode: str
    state: str
    """One of this module's states."""
    level: int | None
    """The level at which it sleeps; None where it doesn't, or its server does not tell."""
    problem: str
    """What is wrong with it, in words; empty where nothing is."""
    unknown: bool
    """Its server gave no answer in time: it may be busy, and is neither dead nor idle for all that is known."""
    desired: str
    """What it is meant to be: active, sleeping or stopped."""
    last_active: float | None
    """When it was seen active last, in seconds since 1970; None: never by this service."""
    active_seconds: float | None
    """For how long it has been active; None where it is not."""
    in_flight: int | None
    """The requests that its server has; None where that is unknown."""
    idle_seconds: float | None
    """For how long it has had no request, as far as this service has seen; None where that is unknown."""
    queue_depth: int
    """How many callers wait for a switch of this model."""
    eta_seconds: float | None
    """How long until it could be active, its place in the queue included; 0 where it is."""
    breaker: dict[str, Any] | None
    """The circuit breaker: `state`, `failures`, `retry_at`; None where it has never failed."""
    note: str
    """Why the service does not bring it back to what it is meant to be, in words; empty where it does, or need not."""
    eviction: dict[str, str]
    """What is done to it when it has to make room: `weights` and `process`."""
    gpu_memory_held_gb: float | None
    """The GPU memory that its server holds; None where nobody can tell."""
    leak: dict[str, Any] | None
    """What its server has kept of sleep to sleep, as the engine reports it."""
    down: bool = False
    """Whether it should be active, does not run, and is not brought back by the service now: somebody has to help."""

    @property
    def status(self) -> str:
        """The state in the words of `GET /models`: active, sleeping, switching, error or disabled."""
        return _STATUS[self.state]

    @property
    def process_state(self) -> str:
        """The state of its process: not_started, starting, running, sleeping:WEIGHTS+PROCESS or failed:REASON."""
        if self.state == ASLEEP:
            return f"sleeping:{WEIGHTS_OF_LEVEL.get(self.level, 'discard')}+{KEEP_RUNNING}"
        if self.state == ERROR:
            return f"failed:{self.problem}"
        return {STOPPED: "not_started", DISABLED: "not_started", STARTING: "starting"}.get(self.state, "running")

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {**dataclasses.asdict(self), "status": self.status, "process_state": self.process_state}


@dataclasses.dataclass(frozen=True)
class TicketView:
    """One switch that was asked for, as it was at that moment; the same keys as `Ticket.as_dict`."""

    id: str
    model: str
    desired: str
    level: int | None
    by: str
    status: str
    asked_at: float
    begun_at: float | None
    ended_at: float | None
    waiters: int
    position: int | None
    eta_seconds: float | None


@dataclasses.dataclass(frozen=True)
class View:
    """The host as it was observed last. Nothing here has asked a server."""

    models: dict[str, ModelView]
    active: list[str]
    """The ids of the models that are active."""
    switching: tuple[str, str] | None
    """The model that makes room (empty where none does) and the one that becomes active, while that goes on."""
    mode: str
    """`auto`, or `manual`: only a person switches."""
    pinned: str | None
    """The model that stays active, come what may."""
    queue: list[TicketView]
    """What is done now and what waits, in order."""
    age_seconds: float
    """How long ago the servers were looked at."""
    lock_holder: str
    """Who else switches on this host now, in words; empty where nobody does."""
    problem: str
    """Why a new `models.json` is not used; empty where there is none, or it is."""
    last_switch: dict[str, Any] | None
    """How the last switch ended, whoever made it, as the engine has recorded it."""
    reconciles: bool = True
    """Whether the service brings lost models back without being asked."""
