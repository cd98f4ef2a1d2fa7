# SPDX-License-Identifier: MIT
"""OpenTelemetry traces of the manager's switches: a span for each switch, and one within it for each of its steps.

The packages for it (`requirements-tracing.txt`) are imported only where an endpoint is set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .config import ConfigError
from .events import Event

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

_NANOSECONDS = 1_000_000_000
# A collector that does not answer shall not keep the service from ending.
_EXPORT_SECONDS = 5.0


class Tracing:
    """Sends traces to the collector at `endpoint`, by OTLP over HTTP, in the background.

    `feed` is to be called with each event of the bus, `stop` at the end: it sends what is left. Raises ConfigError
    where the packages are not there.
    """

    def __init__(self, endpoint: str, host: str) -> None:
        try:
            from opentelemetry import trace  # noqa: PLC0415 - most hosts have none of these packages
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                "the configuration",
                [f"traces_endpoint: the packages for it are missing ({error.name}): install requirements-tracing.txt"],
            ) from None
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=_EXPORT_SECONDS)
        resource = Resource.create({"service.name": "homegpt-manager", "host.name": host})
        # Not the process's own: nobody else's spans are sent.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("homegpt.vllm")
        self._within: Callable[[Any], Any] = trace.set_span_in_context
        self._failure: Callable[[str], Any] = lambda text: trace.Status(trace.StatusCode.ERROR, text)

    def feed(self, event: Event) -> None:
        """Make the spans of a switch that has ended."""
        if event.kind == "switch_ended" and event.data["begun_at"] is not None:
            self._switch(event.data)

    def stop(self) -> None:
        """Send what is left, within seconds."""
        self._provider.shutdown()

    def _switch(self, ticket: Mapping[str, Any]) -> None:
        began = ticket["begun_at"]
        result = ticket["result"] or {}
        attributes = {
            "homegpt.model": ticket["model"],
            "homegpt.state": ticket["desired"],
            "homegpt.from": ticket["from_model"],
            "homegpt.ticket": ticket["id"],
            "homegpt.rung": result.get("rung", ""),
            "homegpt.queued_seconds": began - ticket["asked_at"],
        }
        whole = self._tracer.start_span("switch", start_time=_at(began), attributes=_known(attributes))
        for step in result.get("steps", ()):
            if step["seconds"] is not None and step["started_seconds"] is not None:
                self._step(self._within(whole), began + step["started_seconds"], step)
        if ticket["error"]:
            whole.set_status(self._failure(ticket["error"]["message"]))
        whole.end(_at(ticket["ended_at"]))

    def _step(self, within: Any, began: float, step: Mapping[str, Any]) -> None:
        attributes = {
            "homegpt.model": step["model"],
            "homegpt.level": step["level"],
            "homegpt.rung": step.get("escalation"),
            "homegpt.note": step.get("note"),
            "homegpt.answer_seconds": step.get("answer_seconds"),
        }
        span = self._tracer.start_span(
            step["action"], context=within, start_time=_at(began), attributes=_known(attributes)
        )
        if "failed" in step:
            span.set_status(self._failure(step["failed"]))
        span.end(_at(began + step["seconds"]))


def _at(seconds: float) -> int:
    return int(seconds * _NANOSECONDS)


def _known(attributes: Mapping[str, Any]) -> dict[str, AttributeValue]:
    return {key: value for key, value in attributes.items() if value not in (None, "")}
