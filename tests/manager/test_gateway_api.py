# SPDX-License-Identifier: MIT
"""`GET /gateway`: what a door is told of a host, when, and what it is not told."""

from __future__ import annotations

import threading

import requests

from tests.manager.conftest import until
from tests.manager.gateway_workers import Worker
from tests.manager.test_gateway_link import service
from tests.manager.test_main import Service
from tests.unit.plugins.module_utils.switching.conftest import Host


def test_a_caller_gets_what_is_new_when_it_is(host: Host) -> None:
    for name in ("a", "b"):
        host.declare(name, standin={}, env={"VLLM_API_KEY": f"key-of-{name}"})
    host.up(a="active", b=1)
    running, port = service(host)
    try:
        worker = Worker(port)

        def ask(wait: float = 0, tag: str = "") -> requests.Response:
            headers = {"If-None-Match": tag} if tag else {}
            return requests.get(f"{running.url}/gateway?wait={wait}", headers=headers, timeout=60)

        def gates(answer: requests.Response) -> dict[str, str]:
            return {one["id"]: one["gate"] for one in answer.json()["models"]}

        until(
            lambda: gates(ask()) == {"a": "open", "b": "closed"} and ask().json()["links"] == 1, "it knows its models"
        )
        first = ask()
        assert "key-of-" not in first.text
        assert not {"host", "port", "api_key"} & set(first.json()["models"][0])
        assert {"names", "adapters", "entry", "eta_seconds", "state"} <= set(first.json()["models"][0])
        # Who has it already waits for what is new.
        answers: list[requests.Response] = []
        until(lambda: ask(tag=ask().headers["ETag"]).status_code == 304, "nothing changes for a moment")
        thread = threading.Thread(target=lambda: answers.append(ask(30, ask().headers["ETag"])))
        thread.start()
        requests.post(running.url + "/switch", json={"model_id": "b"}, timeout=60).raise_for_status()
        thread.join(60)
        assert [one.status_code for one in answers] == [200]
        until(lambda: gates(ask()) == {"a": "closed", "b": "open"}, "b is open")
        worker.close()
        until(lambda: ask().json()["links"] == 0, "its gateway is gone")
    finally:
        running.process.kill()
        running.process.wait()


def test_a_host_without_a_gateway_says_so(host: Host) -> None:
    host.declare("a", standin={})
    host.up(a="active")
    running = Service(host)
    try:
        answer = requests.get(running.url + "/gateway", timeout=30)
        assert answer.status_code == 404
        assert answer.json()["error"] == "this host has no gateway"
    finally:
        running.process.kill()
        running.process.wait()
