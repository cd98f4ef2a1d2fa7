# SPDX-License-Identifier: MIT
"""What is counted of those who wait at the gateway, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Why requests are refused: a counter that begins at 1 has never increased.
CODES = (
    "busy_task",
    "model_failing",
    "model_not_found",
    "model_unavailable",
    "queue_full",
    "switch_failed",
    "unsupported",
)


class GatewayMetrics:
    """The metrics of those who wait. Not before `models` was called do the models have any."""

    def __init__(self, registry: CollectorRegistry, buckets: Iterable[float]) -> None:
        self._links = Gauge("homegpt_gateway_links", "Workers of the gateway that are connected.", registry=registry)
        self._waiting = Gauge(
            "homegpt_gateway_waiting", "Requests that wait at the gateway for the model.", ["model"], registry=registry
        )
        self._held = Counter(
            "homegpt_gateway_held", "Requests that had to wait for the model.", ["model"], registry=registry
        )
        self._waited = Histogram(
            "homegpt_gateway_wait_seconds",
            "How long requests waited that were then let go to the model.",
            ["model"],
            buckets=tuple(buckets),
            registry=registry,
        )
        self._refused = Counter(
            "homegpt_gateway_refused",
            "Requests that the manager has refused, by the error code that the client gets.",
            ["code"],
            registry=registry,
        )
        for code in CODES:
            self._refused.labels(code)

    def models(self, names: Iterable[str]) -> None:
        """Have these models begin at 0."""
        for name in names:
            self._waiting.labels(name)
            self._held.labels(name)
            self._waited.labels(name)

    def links(self, number: int) -> None:
        """So many workers are connected."""
        self._links.set(number)

    def held(self, model: str) -> None:
        """One begins to wait."""
        self._held.labels(model).inc()
        self._waiting.labels(model).inc()

    def left(self, model: str) -> None:
        """One waits no more, for whatever reason."""
        self._waiting.labels(model).dec()

    def let_go(self, model: str, seconds: float) -> None:
        """One was let go after so long."""
        self._waited.labels(model).observe(max(0.0, seconds))

    def refused(self, code: str) -> None:
        """One was refused."""
        self._refused.labels(code).inc()
