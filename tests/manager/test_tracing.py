# SPDX-License-Identifier: MIT
"""Traces: what a collector gets of the switches of a running service, and that none is needed."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from model_manager.config import ConfigError, parse
from model_manager.tracing import Tracing

from tests.manager.conftest import Service
from tests.manager.prometheus import FILES, ROOT
from tests.manager.test_metrics import switch
from tests.serverlib import free_port
from tests.unit.plugins.module_utils.switching.conftest import Host

THERE = importlib.util.find_spec("opentelemetry") is not None and importlib.util.find_spec("opentelemetry.sdk")
needs_packages = pytest.mark.skipif(
    not THERE, reason="allowed: the packages of requirements-tracing.txt are not here, which few hosts need"
)


class Collector:
    """What has come to a collector."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        got = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sent = ExportTraceServiceRequest.FromString(body)
                for one in sent.resource_spans:
                    got.resources.append({a.key: a.value.string_value for a in one.resource.attributes})
                    got.spans += [span for scope in one.scope_spans for span in scope.spans]
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.end_headers()

            def log_message(self, *_given: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def attributes(span: Any) -> dict[str, str]:
    return {one.key: one.value.string_value for one in span.attributes}


@needs_packages
def test_a_switch_is_a_trace_with_a_span_for_each_step(host: Host, collector: Collector) -> None:
    for name in ("a", "b"):
        host.declare(name)
    host.up(a="active", b=1)
    service = Service(host, traces_endpoint=collector.url)
    try:
        done = requests.post(service.url + "/switch", json={"model_id": "b"}, timeout=30)
        assert done.json()["status"] == "success"
        assert service.end() == 0, service.log.read_text()
    finally:
        service.process.kill()
        service.process.wait()
    (whole,) = (span for span in collector.spans if span.name == "switch")
    steps = sorted((span for span in collector.spans if span is not whole), key=lambda span: span.start_time_unix_nano)
    assert [(span.name, attributes(span)["homegpt.model"]) for span in steps][-3:] == [
        ("sleep", "a"),
        ("wake", "b"),
        ("verify", "b"),
    ]
    assert {span.trace_id for span in steps} == {whole.trace_id}
    assert {span.parent_span_id for span in steps} == {whole.span_id}
    for before, after in itertools.pairwise(steps):
        assert before.start_time_unix_nano <= before.end_time_unix_nano <= after.start_time_unix_nano + 2_000_000
    assert whole.start_time_unix_nano <= steps[0].start_time_unix_nano
    assert abs(whole.end_time_unix_nano / 1e9 - time.time()) < 60
    assert (attributes(whole)["homegpt.from"], attributes(whole)["homegpt.model"]) == ("a", "b")
    assert collector.resources[0]["service.name"] == "homegpt-manager"


@needs_packages
def test_a_failed_switch_is_a_span_that_failed(collector: Collector) -> None:
    tracing = Tracing(collector.url + "/", "gpu1")
    tracing.feed(switch("b", error={"message": "no answer"}, result=None))
    tracing.feed(switch("b", error={"message": "nobody waits"}, result=None, begun_at=None))
    tracing.stop()
    (span,) = collector.spans
    assert (span.status.code, span.status.message) == (2, "no answer")
    assert collector.resources[0]["host.name"] == "gpu1"


@needs_packages
def test_a_collector_that_is_gone_keeps_nobody(collector: Collector) -> None:
    del collector
    tracing = Tracing(f"http://127.0.0.1:{free_port()}", "gpu1")
    began = time.monotonic()
    tracing.feed(switch("b"))
    assert time.monotonic() - began < 1
    tracing.stop()
    assert time.monotonic() - began < 15


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = (
        "import sys, model_manager.__main__ as m; print([n for n in sys.modules if n.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT / '.build'}:{FILES}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_what_is_installed_with_traces_is_what_is_without_and_more() -> None:
    def pinned(name: str) -> dict[str, str]:
        text = (FILES / name).read_text(encoding="utf-8").replace("\\\n", "")
        return {line.split("==")[0]: re.sub(r"\s+", " ", line) for line in text.splitlines() if "==" in line}

    without, more = pinned("requirements.txt"), pinned("requirements-tracing.txt")
    assert without.items() <= more.items()
    assert {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"} <= more.keys() - without.keys()
    assert all("--hash=sha256:" in line for line in more.values())


def test_packages_that_are_missing_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(ConfigError, match=r"traces_endpoint: the packages .* install requirements-tracing\.txt"):
        Tracing("http://127.0.0.1:4318", "gpu1")


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "ftp://x", "http://", "http://user:secret@x", "http://x y"])
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(ConfigError, match="traces_endpoint must be the URL of a collector"):
        parse({"stack_dir": "/opt/homegpt", "traces_endpoint": url})


def test_what_is_an_endpoint() -> None:
    for url in ("", "http://127.0.0.1:4318", "https://traces.example.com/otlp"):
        assert parse({"stack_dir": "/opt/homegpt", "traces_endpoint": url}).traces_endpoint == url
