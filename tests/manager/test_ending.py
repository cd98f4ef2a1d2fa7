# SPDX-License-Identifier: MIT
"""What the callers of the service are told when it ends before their switch does."""

from __future__ import annotations

from tests.manager.conftest import Service, until
from tests.unit.plugins.module_utils.switching.conftest import Host


def test_a_switch_that_is_taken_back_is_no_failure_of_a_server(host: Host, services: list[Service]) -> None:
    host.declare("a")
    host.declare("b", standin={"load_seconds": 60})
    host.up(a="active")
    service = Service(host, reconcile=False, stop_timeout_seconds=3)
    services.append(service)
    thread, answers = service.switch("b")
    until(lambda: service.state("b") == "starting", "it loads")
    assert service.end() == 0
    thread.join(10)
    (answer,) = answers
    assert (answer.status_code, int(answer.headers["Retry-After"])) == (503, 10)
    assert "the manager ends" in answer.json()["error"]
    assert answer.json()["remedy"] == "try again when it runs again"
    until(lambda: host.states()["a"] == "active", "the model of before is active again")


def test_who_waits_for_a_server_that_hangs_is_answered(host: Host, services: list[Service]) -> None:
    host.settings["request_timeout_seconds"] = 60
    host.declare("a")
    host.declare("b")
    host.up(a="active", b=1)
    service = Service(host, reconcile=False, stop_timeout_seconds=0.5)
    services.append(service)
    host.fault("b", "/wake_up", "hang", seconds=60)
    thread, answers = service.switch("b")
    until(lambda: service.state("b") == "waking", "it hangs")
    assert service.end() == 0
    thread.join(10)
    assert [(one.status_code, one.headers["Retry-After"]) for one in answers] == [(503, "10")]
    assert "Traceback" not in service.log.read_text()
