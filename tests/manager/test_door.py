# SPDX-License-Identifier: MIT
"""The door of many hosts, whose managers are played: who is let go where, who is asked, what is said if none helps."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.manager.conftest import until
from tests.manager.door_hosts import PlayedHost, model, served
from tests.manager.gateway_workers import Worker
from tests.serverlib import ROOT


@pytest.fixture
def up() -> Iterator[Callable[..., PlayedHost]]:
    """Start hosts, which end with the test."""
    begun: list[PlayedHost] = []

    def start(name: str, *models: dict[str, Any], running: bool = True) -> PlayedHost:
        host = PlayedHost(name, *models)
        begun.append(host)
        if running:
            host.start()
        return host

    yield start
    for host in begun:
        host.hangs = False
        host.answer = (503, {"error": "the test has ended"})
        host.kill()


Up = Callable[..., PlayedHost]


def servers(worker: Worker, name: str) -> list[str]:
    """The hosts to which requests for a model may go now."""
    with worker.store.lock:
        found = worker.store.models.get(name, {})
        return [one["name"] for one in found.get("servers", [])] if found.get("gate") == "open" else []


def test_a_host_that_has_talked_nonsense_is_asked_again(tmp_path: Path, up: Up) -> None:
    host = up("one", model("a", "open"))
    with served(tmp_path, host) as worker:
        until(lambda: servers(worker, "a") == ["one"], "it is up")
        host.in_flight = {"a": float("inf")}  # type: ignore[dict-item]
        until(lambda: servers(worker, "a") == [], "it is left out")
        host.in_flight = {}
        until(lambda: servers(worker, "a") == ["one"], "it is up again")


def test_a_gate_is_open_where_hosts_have_the_model_active(tmp_path: Path, up: Up) -> None:
    first, second = up("one", model("a", "open"), model("b")), up("two", model("a"), model("b", "open"))
    with served(tmp_path, first, second) as worker:
        until(lambda: servers(worker, "a") == ["one"] and servers(worker, "b") == ["two"], "it knows who has what")
        (server,) = worker.store.models["a"]["servers"]
        assert server == {
            "name": "one", "host": server["host"], "port": 8000, "tls": False, "api_key": "key-of-one", "load": 0,
        }  # fmt: skip
        assert server["host"] in ("127.0.0.1", "[::1]")  # localhost, as a number
        second.set("a", "open")
        until(lambda: servers(worker, "a") == ["one", "two"], "both have it")
        first.set("a", "closed")
        until(lambda: servers(worker, "a") == ["two"], "one has put it to sleep")
        assert worker.outcome(worker.wait("a"))["t"] == "go"


def test_the_first_list_has_the_models_of_all_hosts(tmp_path: Path, up: Up) -> None:
    hosts = [up(name, model(name)) for name in ("one", "two", "three")]
    with served(tmp_path, *hosts) as worker:
        first = worker.of("state")[0]
        assert [one["id"] for one in first["models"]] == ["one", "two", "three"]
    # As well after a start while one of them is down.
    hosts[1].kill()
    with served(tmp_path, *hosts) as worker:
        first = worker.of("state")[0]
        assert [one["id"] for one in first["models"]] == ["one", "two", "three"]
        assert "two can't be reached" in json.loads(first["models"][1]["entry"])["info"]["meta"]["description"]


def test_the_host_where_it_costs_least_is_asked_and_those_who_wait_are_told_its_time(tmp_path: Path, up: Up) -> None:
    dear, cheap = up("dear", model("a", eta_seconds=60)), up("cheap", model("a", eta_seconds=3))
    cheap.answer = None
    with served(tmp_path, dear, cheap) as worker:
        until(lambda: len(worker.store.models) == 1 and worker.store.models["a"]["eta_seconds"] == 3, "it knows both")
        waiting = [worker.wait("a") for _each in range(3)]
        until(lambda: cheap.asked == ["a"], "the cheap one is asked, once")
        until(lambda: any(one["eta"] == 3 for one in worker.of("tell")), "they are told its time")
        until(lambda: [one["n"] for one in worker.of("held")] == [1, 2, 3], "all wait, in order")
        cheap.answer = (200, {})
        assert [worker.outcome(number)["t"] for number in waiting] == ["go"] * 3
        assert servers(worker, "a") == ["cheap"]
        assert (cheap.asked, dear.asked) == (["a"], [])


def test_a_switch_that_nobody_waits_for_any_more_is_taken_back(tmp_path: Path, up: Up) -> None:
    host = up("one", model("a"))
    host.answer = None
    with served(tmp_path, host) as worker:
        until(lambda: worker.store.models, "it knows the model")
        waiting = [worker.wait("a"), worker.wait("a")]
        until(lambda: host.asked == ["a"], "it is asked")
        worker.send(t="gone", id=waiting[0])
        worker.send(t="gone", id=waiting[1])
        until(lambda: host.withdrawn == ["a"], "it is taken back")


def kill(host: PlayedHost) -> None:
    host.kill()


def hang(host: PlayedHost) -> None:
    host.hangs = True


def lose_gateway(host: PlayedHost) -> None:
    host.links = 0


@pytest.mark.parametrize("fault", [kill, hang, lose_gateway])
def test_a_host_that_is_lost_is_left_out_and_those_who_wait_go_elsewhere(
    tmp_path: Path, up: Up, fault: Callable[[PlayedHost], None]
) -> None:
    lost, other = up("lost", model("a", eta_seconds=1), model("b", "open")), up("other", model("a"), model("b"))
    lost.answer = None
    with served(tmp_path, lost, other) as worker:
        until(lambda: servers(worker, "b") == ["lost"] and worker.store.models["a"]["eta_seconds"] == 1, "both are up")
        waiting = worker.wait("a")
        until(lambda: lost.asked == ["a"], "the one is asked")
        fault(lost)
        assert worker.outcome(waiting)["t"] == "go"
        assert servers(worker, "a") == ["other"]
        assert (other.asked, servers(worker, "b")) == (["a"], [])
        assert worker.outcome(worker.wait("b"))["t"] == "go"
        assert servers(worker, "b") == ["other"]


def test_a_host_that_comes_back_is_taken_in_again(tmp_path: Path, up: Up) -> None:
    host = up("one", model("a", "open"))
    with served(tmp_path, host) as worker:
        until(lambda: servers(worker, "a") == ["one"], "it is up")
        host.kill()
        until(lambda: servers(worker, "a") == [], "it is left out")
        # It may be back in a moment: its manager was started again.
        waiting = worker.wait("a")
        until(lambda: worker.of("held", waiting), "the request is held")
        host.start()
        assert worker.outcome(waiting)["t"] == "go"


def test_a_switch_that_fails_is_tried_elsewhere_and_then_refused_with_the_reasons(tmp_path: Path, up: Up) -> None:
    first, second = up("one", model("a", eta_seconds=1)), up("two", model("a", eta_seconds=9))
    first.answer = (502, {"error": "a did not wake\nand more"})
    second.answer = (500, {"error": "no memory"})
    with served(tmp_path, first, second) as worker:
        until(lambda: worker.store.models and worker.store.models["a"]["eta_seconds"] == 1, "both are up")
        said = worker.outcome(worker.wait("a"))
        assert (said["t"], said["status"], said["code"]) == ("refuse", 503, "switch_failed")
        assert "one: a did not wake; two: no memory" in said["message"]
        assert said["retry_after"] >= 1
        # A client that tries again causes no further switch for a while.
        said = worker.outcome(worker.wait("a"))
        assert (said["status"], said["code"]) == (503, "model_failing")
        assert (first.asked, second.asked) == (["a"], ["a"])


def test_a_model_that_is_pinned_away_everywhere_is_unavailable(tmp_path: Path, up: Up) -> None:
    host = up("one", model("a"))
    host.answer = (409, {"error": "b is pinned"})
    with served(tmp_path, host) as worker:
        until(lambda: worker.store.models, "it is up")
        said = worker.outcome(worker.wait("a"))
        assert (said["status"], said["code"]) == (409, "model_unavailable")
        assert "one: b is pinned" in said["message"]


def test_a_host_whose_queue_is_full_is_asked_again(tmp_path: Path, up: Up) -> None:
    host = up("one", model("a"))
    host.answer = (503, {"error": "the queue is full"})
    with served(tmp_path, host) as worker:
        until(lambda: worker.store.models, "it is up")
        waiting = worker.wait("a")
        until(lambda: host.asked == ["a"], "it is asked")
        host.answer = (200, {})
        assert worker.outcome(waiting)["t"] == "go"


def test_a_host_that_makes_room_again_at_once_is_asked_again(tmp_path: Path, up: Up) -> None:
    host = up("one", model("a"))
    host.opens = False
    with served(tmp_path, host) as worker:
        until(lambda: worker.store.models, "it is up")
        waiting = worker.wait("a")
        until(lambda: len(host.asked) == 1, "it is asked")
        host.opens = True
        assert worker.outcome(waiting)["t"] == "go"
        assert len(host.asked) == 2


def test_where_all_hosts_are_down_for_long_requests_are_refused(
    tmp_path: Path, up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_manager import door_asking

    monkeypatch.setattr(door_asking, "GRACE_SECONDS", 0.3)
    host = up("one", model("a"))
    with served(tmp_path, host) as worker:
        until(lambda: worker.store.models, "it is up")
        host.kill()
        said = worker.outcome(worker.wait("a"))
        assert (said["status"], said["code"]) == (503, "model_unavailable")
        assert "one can't be reached" in said["message"]


def test_what_is_no_model_and_tasks_cause_no_switch(tmp_path: Path, up: Up) -> None:
    host = up("one", model("a"))
    with served(tmp_path, host) as worker:
        until(lambda: worker.store.models, "it is up")
        assert worker.outcome(worker.wait("other"))["code"] == "model_not_found"
        assert worker.outcome(worker.wait("a", task="title_generation"))["code"] == "busy_task"
        assert host.asked == []


def test_load_is_what_others_have_there(tmp_path: Path, up: Up) -> None:
    host = up("one", model("a", "open"))

    def load() -> Any:
        return worker.store.models["a"]["servers"][0]["load"]

    with served(tmp_path, host) as worker:
        until(lambda: servers(worker, "a") == ["one"], "it is up")
        host.in_flight = {"a": 7}
        until(lambda: load() == 7, "seven of others")
        counts = worker.store.counts

        def ours() -> dict[str, Any]:
            told = counts()
            return {**told, "counts": {"a": {"in_flight": 5, "idle_seconds": 0, "servers": {"one": 5}}}}

        worker.store.counts = ours  # type: ignore[method-assign]
        until(lambda: load() == 2, "five of them are ours")


def test_a_worker_that_comes_back_brings_those_who_wait(tmp_path: Path, up: Up) -> None:
    host = up("one", model("a"))
    host.answer = None
    with served(tmp_path, host) as worker:
        until(lambda: worker.store.models, "it is up")
        port = worker._socket.getpeername()[1]
        worker.wait("a")
        until(lambda: host.asked == ["a"], "it is asked")
        with contextlib.closing(Worker(port, name="2.x")) as second:
            waiting = second.wait("a", waited=3.0)
            until(lambda: second.of("held", waiting), "it is held")
            worker.close()
            host.answer = (200, {})
            assert second.outcome(waiting)["t"] == "go"
        assert host.asked == ["a"]


def test_what_is_set_up_wrongly_ends_it_at_once_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from model_manager.door import main

    config = tmp_path / "config.json"
    config.write_text(json.dumps({"gateway_listen": "9001", "hosts": [{"name": "one", "port": "x"}], "prot": 1}))
    assert main([str(config)]) == 2
    for text in (
        "gateway_listen must be an IP address with a port",
        "prot is unknown",
        "hosts[0].port must be a port",
        "hosts[0].manager_address is missing",
        "models_file is missing",
    ):
        assert text in caplog.text
    caplog.clear()
    assert main([str(tmp_path / "none.json")]) == 2
    assert "can't be read" in caplog.text


def test_it_needs_no_packages(tmp_path: Path) -> None:
    """Its host gets none."""
    host = PlayedHost("one", model("a"))
    config = tmp_path / "config.json"
    told = {
        "gateway_listen": "127.0.0.1:9001",
        "gateway_token_file": "/t",
        "models_file": "/m",
        "hosts": [host.config()],
    }
    config.write_text(json.dumps(told))
    command = [sys.executable, "-S", "-s", "-E", "-B", "-m", "model_manager.door", "--check", str(config)]
    ended = subprocess.run(
        command, cwd=ROOT / "roles/model_manager/files", capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
