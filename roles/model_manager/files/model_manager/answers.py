# SPDX-License-Identifier: MIT
"""What the API takes and what it answers. Times are in seconds, moments in seconds since 1970 unless they say so."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .tickets import Ticket
from .view import KEEP_RUNNING, ModelView, TicketView, View

ModelName = Annotated[str, Field(min_length=1, max_length=200, description="A model's id, or another of its names.")]
Desired = Literal["active", "sleeping", "stopped"]
TicketStatus = Literal["queued", "running", "done", "failed"]
Weights = Literal["retain", "offload", "discard"]
Process = Literal["keep_running", "cuda_suspend", "checkpoint", "stop"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SwitchBody(_Body):
    """The model to switch to."""

    model_id: ModelName


class ModelBody(_Body):
    """The model that is meant."""

    model: ModelName


class ModeBody(_Body):
    """The mode to set."""

    mode: Literal["auto", "manual"]


class EvictionPair(_Body):
    """What is done to a model that has to make room.

    vLLM has no way for `cuda_suspend` and `checkpoint`; `retain` with `keep_running` means that it never makes room.
    """

    weights: Weights
    process: Process


class EvictionBody(_Body):
    """The eviction to set for a model."""

    model: ModelName
    eviction: EvictionPair


class SleepBody(_Body):
    """The model to put to sleep; with `eviction`, in this way this once."""

    model: ModelName
    eviction: EvictionPair | None = None


class ErrorAnswer(BaseModel):
    """What is wrong, and what to do about it where the text does not say it."""

    error: str
    remedy: str | None = Field(default=None, description="What to do about it.")
    url: str | None = Field(default=None, description="Where the switch that was asked for tells how it goes.")


class HealthAnswer(BaseModel):
    """The service answers."""

    status: Literal["healthy"] = "healthy"


class MessageAnswer(BaseModel):
    """What was done, in words."""

    message: str


class SwitchAnswer(BaseModel):
    """The switch is done."""

    status: Literal["success"] = "success"
    active_model: str


class TicketAnswer(BaseModel):
    """A switch that was asked for."""

    id: str
    model: str
    desired: Desired
    level: int | None = Field(description="The sleep level that was asked for, if one was.")
    by: str = Field(description="Who asked for it.")
    status: TicketStatus
    asked_at: float
    begun_at: float | None
    ended_at: float | None
    waiters: int = Field(description="How many have asked for the same.")
    position: int | None = Field(description="Its place in the queue; 0 while it is done, null when it has ended.")
    eta_seconds: float | None = Field(description="How long until it is done; null where that is unknown.")
    url: str = Field(description="Where it tells how it goes.")

    @classmethod
    def of(cls, ticket: TicketView) -> TicketAnswer:
        """The answer about a ticket."""
        return cls.model_validate({**vars(ticket), "url": ticket_url(ticket.id)})


class TicketError(BaseModel):
    """Why a switch has failed."""

    message: str
    kind: str
    remedy: str


class WholeTicketAnswer(TicketAnswer):
    """A switch that was asked for, with what has become of it."""

    from_model: str = Field(description="The model that was active in its place when it began; empty: none.")
    result: dict[str, Any] | None = Field(description="What the engine did: the result of the Ansible module.")
    error: TicketError | None

    @classmethod
    def whole(cls, ticket: Ticket) -> WholeTicketAnswer:
        """The answer about a ticket."""
        return cls.model_validate({**ticket.as_dict(), "url": ticket_url(ticket.id)})


class SwitchRecord(BaseModel):
    """A switch that has ended."""

    id: int
    model: str
    desired: str
    requested_by: str
    asked_at: float
    begun_at: float
    ended_at: float
    seconds: float
    result: str = Field(description="`done` or `failed`.")
    error: str
    previous: list[str] = Field(description="The models that were active there before.")
    active: list[str] = Field(description="The models that are active there after it.")
    rung: str = Field(description="The last rung of the escalation that was tried; empty: no step failed.")
    steps: list[dict[str, Any]]


class SwitchesAnswer(BaseModel):
    """What goes on and waits, and the last switches, the newest first."""

    queue: list[TicketAnswer]
    switches: list[SwitchRecord]
    before: int | None = Field(description="The parameter that gives the next page; null: there is none.")


class ModelAnswer(BaseModel):
    """A model of the host, as it was observed last."""

    id: str
    name: str
    container_name: str
    port: int
    host_port: int
    gpu_memory_gb: float | None
    startup_mode: Literal["active", "sleep", "disabled"]
    status: Literal["active", "sleeping", "switching", "error", "disabled"]
    last_active: datetime.datetime | None = Field(description="When it was seen active last; null: never.")
    description: str = Field(description="What the inventory says of it, for people.")
    state: Literal["ready", "sleepPending", "asleep", "waking", "stopped", "starting", "error", "disabled"]
    process_state: str = Field(
        description="`not_started`, `starting`, `running`, `sleeping:WEIGHTS+PROCESS` or `failed:REASON`."
    )
    level: int | None = Field(description="The level at which it sleeps.")
    problem: str = Field(description="What is wrong with it; empty: nothing.")
    unknown: bool = Field(description="Its server gave no answer in time: it may be busy.")
    desired: str = Field(description="What it is meant to be: `active`, `sleeping` or `stopped`.")
    can_sleep: bool = Field(description="Whether it can be put to sleep, rather than stopped or left alone.")
    active_seconds: float | None
    idle_seconds: float | None = Field(description="For how long it has had no request; null where that is unknown.")
    in_flight: int | None = Field(description="The requests that its server has; null where that is unknown.")
    queue_depth: int = Field(description="How many callers wait for a switch of it.")
    eta_seconds: float | None = Field(description="How long until it could be active; null where that is unknown.")
    gpu_memory_held_gb: float | None = Field(description="The GPU memory that its server holds.")
    leak: dict[str, Any] | None = Field(description="What its server keeps from sleep to sleep.")
    eviction: dict[str, str]
    breaker: dict[str, Any] | None = Field(description="Its circuit breaker; null: it has not failed.")
    note: str = Field(description="Why the service leaves it as it is, though it is meant to be another; empty: no.")
    down: bool = Field(description="It should be active, does not run, and the service does not bring it back now.")

    @classmethod
    def of(cls, model: ModelView) -> ModelAnswer:
        """The answer about a model."""
        at = model.last_active
        moment = None if at is None else datetime.datetime.fromtimestamp(at, datetime.timezone.utc)
        return cls.model_validate({**model.as_dict(), "last_active": moment, "can_sleep": _can_sleep(model)})


class Switching(BaseModel):
    """The switch that goes on. `from` is empty where no model makes room."""

    from_model: str = Field(serialization_alias="from")
    to_model: str = Field(serialization_alias="to")


class ModelsAnswer(BaseModel):
    """The models of the host, and what goes on."""

    models: list[ModelAnswer]
    active_model: str = Field(description="The first of the active models; empty: none is.")
    active_models: list[str]
    switching: Switching | None
    mode: Literal["auto", "manual"]
    pinned: str | None
    queue: list[TicketAnswer]
    age_seconds: float = Field(description="How long ago the servers were looked at.")
    lock_holder: str = Field(description="Who else switches on this host now; empty: nobody.")
    problem: str = Field(description="Why a new models.json is not used; empty: nothing is wrong with it.")
    reconciles: bool = Field(description="Whether the service brings lost models back without being asked.")

    @classmethod
    def of(cls, view: View) -> ModelsAnswer:
        """The answer about the host."""
        moving = view.switching and Switching(from_model=view.switching[0], to_model=view.switching[1])
        return cls(
            models=[ModelAnswer.of(one) for one in view.models.values()],
            active_model=next(iter(view.active), ""),
            active_models=view.active,
            switching=moving,
            mode="manual" if view.mode == "manual" else "auto",
            pinned=view.pinned,
            queue=[TicketAnswer.of(one) for one in view.queue],
            age_seconds=view.age_seconds,
            lock_holder=view.lock_holder,
            problem=view.problem,
            reconciles=view.reconciles,
        )


class ModelControl(BaseModel):
    """A model, as the control API shows it."""

    in_flight: int | None = Field(description="The requests that its server has; null where that is unknown.")
    queue_depth: int
    process_state: str


class ModeAnswer(BaseModel):
    """The mode, and the model that is pinned in it."""

    mode: Literal["auto", "manual"]
    pinned: str | None


class ControlAnswer(BaseModel):
    """The host, as the control API shows it."""

    state: str = Field(description="`idle`, `active:MODEL` or `switching:FROM->TO`; FROM may be empty.")
    active_model: str | None
    mode: ModeAnswer
    models: dict[str, ModelControl]

    @classmethod
    def of(cls, view: View) -> ControlAnswer:
        """The answer about the host."""
        active = next(iter(view.active), None)
        state = f"active:{active}" if active else "idle"
        if view.switching:
            state = "switching:{}->{}".format(*view.switching)
        return cls(
            state=state,
            active_model=active,
            mode=ModeAnswer(mode="manual" if view.mode == "manual" else "auto", pinned=view.pinned),
            models={
                name: ModelControl(
                    in_flight=one.in_flight, queue_depth=one.queue_depth, process_state=one.process_state
                )
                for name, one in view.models.items()
            },
        )


class GatedModel(BaseModel):
    """A model, as the host's gateway knows it."""

    id: str
    names: list[str] = Field(description="The names that mean it and no other, its id first.")
    adapters: list[str]
    gate: Literal["open", "closed"] = Field(description="Whether the gateway lets requests through to it now.")
    state: str
    eta_seconds: int | None = Field(description="How long until it could be active, about; null: unknown.")
    entry: str = Field(description="Its entry of `/v1/models`, as JSON.")
    adapter_entries: list[str]


class GatewayAnswer(BaseModel):
    """What the host's gateway is told, and how many requests it has."""

    links: int = Field(description="Its workers that are connected; 0: it does not run.")
    waiting: dict[str, int] = Field(description="Requests that wait, by model; only those that have some.")
    in_flight: dict[str, int] = Field(description="Requests at the servers, by model; only those that have some.")
    models: list[GatedModel]


class EvictionsAnswer(BaseModel):
    """What is done to each model that has to make room."""

    models: dict[str, EvictionPair]


class ActionAnswer(BaseModel):
    """A model was brought to a state."""

    message: str
    model: str
    status: Literal["active", "sleeping", "loading", "stopped", "error", "disabled"]
    level: int | None


def ticket_url(number: str) -> str:
    """Where a ticket tells how it goes."""
    return f"/switches/{number}"


def _can_sleep(model: ModelView) -> bool:
    """Whether it sleeps when it has to make room, by its eviction: it is not stopped then, and not left alone."""
    if model.state == "disabled":
        return False
    return model.eviction["process"] == KEEP_RUNNING and model.eviction["weights"] != "retain"
