# SPDX-License-Identifier: MIT
"""What is shown of the host and its queue, and told when it changes.

Nothing here has a lock: whoever calls has the manager's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import Holder
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import Observation

from . import view
from .context import Context
from .control import Control
from .gateway import Gateway
from .host_state import HostState
from .reconcile import Reconciler
from .schedule import Forecast, Schedule
from .view import ModelView, View


class Board:
    """Shows the host as it was observed last, and publishes what has changed since it was published."""

    def __init__(
        self,
        context: Context,
        host: HostState,
        schedule: Schedule,
        control: Control,
        reconciler: Reconciler,
        gateway: Gateway,
    ) -> None:
        self._clock = context.clock
        self._now = context.now
        self._bus = context.bus
        self._host = host
        self._schedule = schedule
        self._control = control
        self._reconciler = reconciler
        self._gateway = gateway
        # What has been published of each model.
        self._told: dict[str, tuple[str, int | None, str, bool]] = {}
        self._told_breakers: dict[str, dict[str, Any]] = {}

    def view(self) -> View:
        """The host as it was observed last."""
        host, running = self._host, self._schedule.running
        switches = running if running and running.desired == plan.ACTIVE else None
        forecast = self._schedule.forecast()
        models = {model.id: self._model_view(model, forecast) for model in host.inventory.models}
        return View(
            models=models,
            active=[name for name, one in models.items() if one.state == view.READY],
            switching=(switches.from_model, switches.model) if switches else None,
            mode=self._control.mode,
            pinned=self._control.pinned,
            queue=[ticket.view(forecast.places[ticket.id]) for ticket in forecast.tickets],
            age_seconds=max(0.0, self._clock() - host.observed_at),
            lock_holder=host.lock_holder,
            problem=host.problem,
            last_switch=host.last_switch,
            reconciles=self._reconciler.config.reconcile,
        )

    def publish_states(self) -> None:
        """Tell of the models and breakers that have changed, the gateway first."""
        self._gateway.refresh()
        for model in self._host.inventory.models:
            now = (*self._host.state_of(model.id), self._host.is_down(model.id))
            before = self._told.get(model.id)
            if now != before:
                self._told[model.id] = now
                state, level, problem, down = now
                data = {"model": model.id, "state": state, "level": level, "problem": problem}
                data.update(before=before[0] if before else None, desired=self._desired(model.id), down=down)
                self._bus.publish("state", data)
            breaker = self._breaker(model.id)
            told = self._told_breakers.get(model.id)
            keys = ("state", "failures")
            if breaker and (not told or any(breaker[key] != told[key] for key in keys)):
                self._told_breakers[model.id] = breaker
                self._bus.publish("breaker", {"model": model.id, **breaker})

    def publish_queue(self) -> None:
        """Tell what waits now."""
        forecast = self._schedule.forecast()
        shown = [ticket.view(forecast.places[ticket.id]) for ticket in forecast.tickets]
        keys = ("id", "model", "desired", "position", "eta_seconds", "waiters")
        queue = [{key: getattr(one, key) for key in keys} for one in shown]
        self._bus.publish("queue", {"queue": queue, "length": len(self._schedule.waiting)})

    def note_holder(self, holder: Holder | None) -> bool:
        """Somebody else has the host's lock now, or nobody has; whether that is new."""
        said = holder.text if holder else ""
        if said == self._host.lock_holder:
            return False
        self._host.lock_holder = said
        if holder:
            self._gateway.foreign(holder.models)
        self._bus.publish("lock", {"holder": said})
        return True

    def note_others_switch(self, last: Mapping[str, Any]) -> bool:
        """Take over the record of the last switch, which none of this service has written; whether it is new."""
        if last == self._host.last_switch:
            return False
        self._host.last_switch = dict(last)
        self._bus.publish("switch_seen", dict(last))
        return True

    def _desired(self, name: str) -> str:
        return self._host.desired.get(name, "")

    def _breaker(self, name: str) -> dict[str, Any] | None:
        breaker = self._reconciler.breakers.get(name)
        if breaker is None:
            return None
        now = self._clock()
        left = breaker.retry_at - now
        return {
            "state": breaker.state(now),
            "failures": breaker.recent(now),
            "reason": breaker.reason,
            "retry_at": round(self._now() + left, 1) if left > 0 else None,
        }

    def _model_view(self, model: Model, forecast: Forecast) -> ModelView:
        host = self._host
        state, level, problem = host.state_of(model.id)
        seen = host.seen.get(model.id, Observation(plan.ERROR))
        return ModelView(
            id=model.id,
            name=model.name,
            description=model.description,
            container_name=model.container_name,
            port=model.port,
            host_port=model.host_port,
            gpu_memory_gb=model.gpu_memory_gb,
            startup_mode=model.startup_mode,
            state=state,
            level=level,
            problem=problem,
            unknown=seen.unknown,
            desired=self._desired(model.id),
            last_active=host.last_active.get(model.id),
            active_seconds=host.active_seconds(model.id),
            in_flight=host.in_flight(model.id),
            idle_seconds=host.idle_seconds(model.id),
            queue_depth=max(forecast.waiters(model.id), self._gateway.waiting(model.id)),
            eta_seconds=None if model.disabled else self._schedule.eta(model, forecast),
            breaker=self._breaker(model.id),
            note=self._reconciler.notes.get(model.id, ""),
            eviction=host.eviction(model),
            gpu_memory_held_gb=host.held_gb.get(model.id),
            leak=host.leaks.get(model.id),
            down=host.is_down(model.id),
        )
