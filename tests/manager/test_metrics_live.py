# SPDX-License-Identifier: MIT
"""Metrics and usage of the running service on stand-ins, and every query of panels and alerts in a real Prometheus."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.manager.conftest import Service, until
from tests.manager.prometheus import RULES, alerts, as_prometheus_has_it, panels
from tests.manager.test_metrics import EVENTS, filled, switch
from tests.serverlib import free_port
from tests.unit.plugins.module_utils.switching.conftest import Host


@contextlib.contextmanager
def running(host: Host) -> Iterator[str]:
    """The service as systemd runs it; its URL. It is asked to end, and has to end well."""
    service = Service(host)
    try:
        yield service.url
        assert service.end() == 0, service.log.read_text()
    finally:
        service.process.kill()
        service.process.wait()


def sample(url: str, name: str, **labels: str) -> float | None:
    """One sample of the service's metrics; None where there is none."""
    answer = requests.get(url + "/metrics", timeout=10)
    answer.raise_for_status()
    for family in text_string_to_metric_families(answer.text):
        for one in family.samples:
            if one.name == name and labels.items() <= one.labels.items():
                return float(one.value)
    return None


def test_a_service_tells_what_its_servers_and_switches_did(host: Host) -> None:
    host.settings["canary"] = "auto"
    for name in ("a", "b"):
        host.declare(name)
    host.up(a="active", b=1)
    asked: dict[str, int] = {"prompt_tokens": 0, "completion_tokens": 0}

    def ask() -> None:
        body = {"model": "a", "prompt": "one two three", "max_tokens": 7}
        usage = host.call("a", "POST", "/v1/completions", json=body).json()["usage"]
        for key in asked:
            asked[key] += usage[key]

    ask()  # before the service: nobody knows when that was
    asked = dict.fromkeys(asked, 0)
    with running(host) as url:
        until(lambda: sample(url, "homegpt_model_state", model="a", state="ready") == 1, "a is seen")
        until(lambda: sample(url, "homegpt_observation_age_seconds") is not None, "it was looked at")
        time.sleep(0.5)  # its counters too
        for _number in range(3):
            ask()
        until(lambda: sample(url, "homegpt_model_requests_total", model="a") == 3, "three requests are counted")
        assert requests.post(url + "/switch", json={"model_id": "b"}, timeout=30).json()["status"] == "success"
        assert sample(url, "homegpt_switches_total", to="b", result="done", **{"from": "a"}) == 1
        assert sample(url, "homegpt_switch_duration_seconds_count", to="b") == 1
        for phase, model in (("sleep", "a"), ("wake", "b"), ("ready", "b"), ("canary", "b")):
            name = "homegpt_switch_phase_duration_seconds_count"
            assert sample(url, name, phase=phase, model=model) == 1, phase
        assert sample(url, "homegpt_model_state", model="b", state="ready") == 1
        assert sample(url, "homegpt_model_prompt_tokens_total", model="a") == asked["prompt_tokens"]
        assert sample(url, "homegpt_model_generation_tokens_total", model="a") == asked["completion_tokens"]
        assert (sample(url, "homegpt_model_active_seconds_total", model="a") or 0) > 0.5
        assert sample(url, "process_resident_memory_bytes") is not None
    with running(host) as url:
        days = {row["model"]: row for row in requests.get(url + "/usage", timeout=10).json()["days"]}
    assert days["a"]["requests"] == 3
    assert days["a"]["prompt_tokens"] == asked["prompt_tokens"]
    assert days["a"]["generation_tokens"] == asked["completion_tokens"]
    assert days["a"]["seconds_active"] > 0.5


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[str, str], Any]]:
    """A Prometheus that asks for the metrics each second, while switches go on; asks it for a path's `data`."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("allowed: prometheus is not here (apt-get install prometheus)")
    metrics = filled()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            for event in EVENTS:
                metrics.feed(event)
            metrics.feed(switch("b", result={"changed": True, "rung": "retry"}))
            content, content_type = metrics.text(self.headers.get("Accept", ""))
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_given: Any) -> None:
            pass

    target = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=target.serve_forever, daemon=True).start()
    dead = f"127.0.0.1:{free_port()}"
    port = free_port()
    job = {
        "job_name": "homegpt-manager",
        "static_configs": [{"targets": [f"127.0.0.1:{target.server_port}", dead]}],
    }
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [job],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )

    def get(path: str, query: str = "") -> Any:
        with contextlib.suppress(requests.ConnectionError):
            answer = requests.get(f"http://127.0.0.1:{port}/api/v1/{path}", params={"query": query}, timeout=10)
            assert process.poll() is None
            return answer.json().get("data") if answer.ok else {"error": answer.text}
        assert process.poll() is None, (tmp_path / "prometheus.log").read_text()
        return None

    try:
        yield get
    finally:
        process.kill()
        process.wait()
        target.shutdown()
        target.server_close()


def test_each_panel_and_each_alert_works_in_prometheus(prometheus: Callable[[str, str], Any]) -> None:
    def scraped() -> bool:
        found = prometheus("query", "count_over_time(homegpt_switch_queue_length[1m])")
        return bool(found and found.get("result") and float(found["result"][0]["value"][1]) >= 3)

    until(scraped, "three scrapes")
    for where, query, _text in panels():
        found = prometheus("query", as_prometheus_has_it(query))
        assert found.get("result"), f"{where}: {found}"
    until(lambda: {r["health"] for g in prometheus("rules", "")["groups"] for r in g["rules"]} == {"ok"}, "all rules")
    states = {rule["name"]: rule["state"] for group in prometheus("rules", "")["groups"] for rule in group["rules"]}
    # The host in the test has all that there is an alert for.
    assert states.keys() == {name for name, _query, _text in alerts()}
    assert {name for name, state in states.items() if state == "inactive"} == set()
