# SPDX-License-Identifier: MIT
"""What the manager tells Prometheus: its switches, by its events, and the host, as it was observed last.

What is unknown has no sample: it is neither 0 nor fine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import prometheus_client
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from . import view as states
from .events import Event
from .gateway_metrics import GatewayMetrics
from .usage import Use
from .view import ModelView, View

# From a wake out of RAM to a model of hundreds of GB that is loaded from a disk.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
STATES = tuple(dict.fromkeys((*states.OF_ENGINE.values(), *states.DURING_STEP.values())))
_BYTES_PER_GB = 1e9
_FORMATS = ("text/plain", "application/openmetrics-text")
# What a verify is made of: the wait until the server is ready, and the proof by an answer.
_READY, _CANARY = "ready", "canary"


class Metrics:
    """The metrics of one manager, in a registry of their own.

    `view` is the manager's, `totals` what each model has done since the service was started. `feed` is to be called
    with each event of the bus, from whatever thread.
    """

    def __init__(
        self,
        view: Callable[[], View],
        totals: Callable[[], Mapping[str, Use]],
        now: Callable[[], float] = time.time,
    ) -> None:
        # The time at which each series began, as one more series: of no use here, and promtool finds fault with it.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._view = view
        self._switches = Counter(
            "homegpt_switches",
            "Switches that the manager has made, by the model that was active before in the place of the one switched.",
            ["from", "to", "state", "result", "rung"],
            registry=self.registry,
        )
        self._seen_switches = Counter(
            "homegpt_foreign_switches",
            "Switches that the module or the command line has made, as far as the manager has seen them.",
            ["to", "state", "result", "rung"],
            registry=self.registry,
        )
        self._failures = Counter(
            "homegpt_switch_failures",
            "Switches of the manager that failed, by the model to switch.",
            ["model"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "homegpt_switch_duration_seconds",
            "How long switches of the manager took that changed something, without the time in the queue.",
            ["to", "state"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._waited = Histogram(
            "homegpt_switch_queue_duration_seconds",
            "How long switches waited in the manager's queue until they began.",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._phases = Histogram(
            "homegpt_switch_phase_duration_seconds",
            "How long the parts of switches took that succeeded: drain, sleep, wake, start, stop, ready, canary, ...",
            ["model", "phase", "level"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.gateway = GatewayMetrics(self.registry, BUCKETS)
        self.registry.register(_Host(view, totals, now))
        prometheus_client.ProcessCollector(registry=self.registry)

    def feed(self, event: Event) -> None:
        """Count what an event tells."""
        if event.kind == "step_ended":
            self._step(event.data)
        elif event.kind == "switch_ended" and event.data["begun_at"] is not None:
            self._switch(event.data)
        elif event.kind == "switch_seen":
            for model in event.data["models"]:
                labels = (model, event.data["state"], event.data["result"], event.data["rung"] or "")
                self._seen_switches.labels(*labels).inc()

    def _step(self, step: Mapping[str, Any]) -> None:
        if "failed" in step or step["seconds"] is None:
            return  # how long something does not work is set by timeouts
        seconds, action = step["seconds"], step["action"]
        if action == plan.VERIFY:
            answering = step.get("answer_seconds")
            self._phase(step, _READY, seconds - (answering or 0.0))
            if answering is not None:
                self._phase(step, _CANARY, answering)
        else:
            self._phase(step, action, seconds)

    def _phase(self, step: Mapping[str, Any], phase: str, seconds: float) -> None:
        level = "" if step["level"] is None else str(step["level"])
        self._phases.labels(step["model"], phase, level).observe(max(0.0, seconds))

    def _switch(self, ticket: Mapping[str, Any]) -> None:
        result = ticket["result"] or {}
        failed = ticket["error"] is not None
        outcome = "failed" if failed else "done" if result.get("changed") else "unchanged"
        model, desired = ticket["model"], ticket["desired"]
        self._switches.labels(ticket["from_model"], model, desired, outcome, result.get("rung", "")).inc()
        self._waited.observe(max(0.0, ticket["begun_at"] - ticket["asked_at"]))
        if failed:
            self._failures.labels(model).inc()
        elif result.get("changed"):
            self._seconds.labels(model, desired).observe(max(0.0, ticket["ended_at"] - ticket["begun_at"]))

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics in the format that `accept` asks for, and its content type."""
        for name in self._view().models:
            self._failures.labels(name)  # a counter that begins at 1 has never increased
        self.gateway.models(self._view().models)
        # Not the library's choose_encoder: it fails at a version that is no number.
        if "application/openmetrics-text" in accept:
            text: bytes = openmetrics.generate_latest(self.registry)  # type: ignore[no-untyped-call]
            return text, openmetrics.CONTENT_TYPE_LATEST
        return prometheus_client.generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4

    def router(self) -> APIRouter:
        """GET /metrics."""
        router = APIRouter()

        @router.get(
            "/metrics",
            response_class=Response,
            responses={200: {"content": {kind: {"schema": {"type": "string"}} for kind in _FORMATS}}},
        )
        def metrics(request: Request) -> Response:
            """The manager's metrics in the format that the header Accept asks for: Prometheus' or OpenMetrics'."""
            content, content_type = self.text(request.headers.get("accept", ""))
            return Response(content, media_type=content_type)

        return router


class _Host(Collector):
    """The host as it was observed last, whenever somebody asks for metrics."""

    def __init__(
        self, view: Callable[[], View], totals: Callable[[], Mapping[str, Use]], now: Callable[[], float]
    ) -> None:
        self._view = view
        self._totals = totals
        self._now = now

    def describe(self) -> Iterable[Metric]:
        """Nothing: the host is not asked when this is registered."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment."""
        view = self._view()
        yield from self._of_queue(view)
        state = GaugeMetricFamily(
            "homegpt_model_state", "1 for the state that the model is in, 0 for the others.", labels=["model", "state"]
        )
        for model in view.models.values():
            for name in STATES:
                state.add_metric([model.id, name], float(model.state == name))
        yield state
        for name, text, read in _GAUGES:
            family = GaugeMetricFamily(name, text, labels=["model"])
            for model in view.models.values():
                value = read(model)
                if value is not None:
                    family.add_metric([model.id], value)
            yield family
        sleeps = CounterMetricFamily(
            "homegpt_model_sleeps", "How often the server has slept since it was started.", labels=["model"]
        )
        for model in view.models.values():
            if model.leak:
                sleeps.add_metric([model.id], model.leak["sleeps"])
        yield sleeps
        totals = dict(self._totals())
        for name, text, key in _TOTALS:
            counter = CounterMetricFamily(name, text, labels=["model"])
            for model_id in view.models:
                counter.add_metric([model_id], getattr(totals.get(model_id, Use()), key))
            yield counter

    def _of_queue(self, view: View) -> Iterable[Metric]:
        waiting = [ticket for ticket in view.queue if ticket.begun_at is None]
        oldest = min((ticket.asked_at for ticket in waiting), default=None)
        waited = 0.0 if oldest is None else max(0.0, self._now() - oldest)
        yield GaugeMetricFamily("homegpt_switch_queue_length", "Switches that wait to begin.", len(waiting))
        yield GaugeMetricFamily(
            "homegpt_switch_queue_oldest_wait_seconds",
            "How long the oldest switch in the queue has waited; 0 without any.",
            waited,
        )
        yield GaugeMetricFamily(
            "homegpt_switching", "1 while the manager switches models.", float(view.switching is not None)
        )
        yield GaugeMetricFamily(
            "homegpt_host_locked", "1 while somebody else switches models of this host.", float(bool(view.lock_holder))
        )
        yield GaugeMetricFamily(
            "homegpt_manual_mode", "1 while only a person switches models.", float(view.mode == "manual")
        )
        yield GaugeMetricFamily(
            "homegpt_inventory_refused",
            "1 while models.json can't be used and the former one is.",
            float(bool(view.problem)),
        )
        yield GaugeMetricFamily(
            "homegpt_observation_age_seconds", "How long ago the servers were looked at.", view.age_seconds
        )


def _gb(value: float | None) -> float | None:
    return None if value is None else value * _BYTES_PER_GB


def _leak(model: ModelView, key: str) -> float | None:
    value = (model.leak or {}).get(key)
    return None if value is None else float(value)


_GAUGES: tuple[tuple[str, str, Callable[[ModelView], float | None]], ...] = (
    ("homegpt_model_requests_in_flight", "Requests that the model's server has.", lambda model: model.in_flight),
    ("homegpt_model_queue_depth", "Callers that wait for a switch of the model.", lambda model: model.queue_depth),
    ("homegpt_model_sleep_level", "The level at which the model sleeps.", lambda model: model.level),
    (
        "homegpt_model_switch_eta_seconds",
        "How long it would take until the model is active, by past switches.",
        lambda model: model.eta_seconds,
    ),
    (
        "homegpt_model_last_active_timestamp_seconds",
        "When the model was seen active last, in seconds since 1970.",
        lambda model: model.last_active,
    ),
    (
        "homegpt_model_breaker_open",
        "1 while the model is only tried now and then because it has failed too often.",
        lambda model: float(model.breaker is not None and model.breaker["state"] != "closed"),
    ),
    (
        "homegpt_model_gpu_memory_bytes",
        "GPU memory that the model's server holds.",
        lambda model: _gb(model.gpu_memory_held_gb),
    ),
    (
        "homegpt_model_sleep_memory_bytes",
        "GPU memory that the model's server held after its last sleep, on the GPU where that was most.",
        lambda model: _gb(_leak(model, "held_gb")),
    ),
    (
        "homegpt_model_sleep_memory_growth_bytes",
        "How much more GPU memory that is with each sleep.",
        lambda model: _gb(_leak(model, "gb_per_sleep")),
    ),
    (
        "homegpt_model_switches_left",
        "For how many switches the GPU memory is enough if it goes on growing so.",
        lambda model: _leak(model, "switches_left"),
    ),
)
_TOTALS = (
    ("homegpt_model_requests", "Requests that ended, by the server's own counter.", "requests"),
    ("homegpt_model_prompt_tokens", "Tokens of prompts, by the server's own counter.", "prompt_tokens"),
    ("homegpt_model_generation_tokens", "Tokens of answers, by the server's own counter.", "generation_tokens"),
    ("homegpt_model_active_seconds", "For how long the model has been active.", "seconds_active"),
)
