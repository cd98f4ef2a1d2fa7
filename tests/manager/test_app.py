# SPDX-License-Identifier: MIT
"""The API over HTTP, of a manager whose host has stand-ins: every endpoint's answer, and every kind of error.

All tests of this file share one host, which each finds as it was: `a` active, `b` asleep at level 1, `c` disabled.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import functools
import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher
from fastapi import FastAPI
from model_manager.app import create_app
from model_manager.config import Config
from model_manager.events import Bus
from model_manager.history import History
from model_manager.manager import Manager
from model_manager.metrics import Metrics
from model_manager.usage import Usage
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.manager.conftest import PATIENCE_SECONDS, until, write_inventory
from tests.serverlib import two_awake
from tests.unit.plugins.module_utils.switching.conftest import MARK, Host, Processes

SECRET = "hf_ThisIsNobodysBusiness"
OPERATOR = "o" * 32
READER = "r" * 32
FIRST_KEYS = [
    "id", "name", "container_name", "port", "host_port", "gpu_memory_gb", "startup_mode", "status", "last_active",
]  # fmt: skip
SLOW_SECONDS = 2


@contextlib.contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """Serve an application on a port of its own; its URL."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=2))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            until(lambda: server.started, "the application is served")
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


@dataclasses.dataclass
class Api:
    """A manager that is served."""

    host: Host
    manager: Manager
    url: str
    client: httpx.Client

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """One call."""
        given = {} if body is None else {"json": body}
        return self.client.request(method, path, **given, **options)

    def get(self, path: str, **options: Any) -> Any:
        """What a GET answers, which is no error."""
        answer = self.call("GET", path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """The status and the answer of a POST."""
        answer = self.call("POST", path, body, **options)
        return answer.status_code, answer.json()

    def models(self) -> dict[str, Any]:
        """The models by their ids."""
        return {one["id"]: one for one in self.get("/models")["models"]}

    def begin(self, model: str) -> str:
        """Have a switch to a model begin, which then takes a while; its URL."""
        self.host.fault(model, "/wake_up", "slow", seconds=SLOW_SECONDS)
        status, ticket = self.post("/switch?wait=false", {"model_id": model})
        assert status == 202
        until(lambda: self.get(ticket["url"])["status"] == "running", "it has begun")
        return str(ticket["url"])

    def end(self, url: str) -> Any:
        """What has become of a switch, when it has ended."""
        until(lambda: self.get(url)["status"] in ("done", "failed"), f"{url} has ended")
        return self.get(url)

    def until_idle(self) -> None:
        """Wait until nothing goes on."""
        until(lambda: not self.manager.view().queue, "nothing goes on")

    def app(self, tmp_path: Path | None = None, **changed: Any) -> FastAPI:
        """Another application of the same manager; with a folder, with tokens."""
        if tmp_path:
            tokens = tmp_path / "tokens"
            tokens.touch(0o600)
            tokens.write_text(f"operator {OPERATOR}\nreader {READER}\n")
            changed["tokens_file"] = str(tokens)
        return create_app(self.manager, dataclasses.replace(self.manager.config, **changed))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The host of this file, and a manager that is served."""
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("STANDIN_", "VLLM_", "CUDA_")):
                patch.delenv(name)
        patch.setenv(MARK, str(folder))
        host = Host(folder / "stack")
        host.settings["escalation"] = ["roll_back"]
        host.declare("a", aliases=["first"], gpu_memory_gb=20)
        host.declare("b", env={"HF_TOKEN": SECRET})
        host.declare("c", startup_mode="disabled")
        processes = Processes(str(folder))
        try:
            host.up(a="active", b=1)
            write_inventory(host)
            chosen: dict[str, Any] = {
                "observe_seconds": 0.1,
                "max_queue": 2,
                "reconcile": False,
                "breaker_failures": 1000,
            }
            config = Config(stack_dir=str(host.stack_dir), stop_timeout_seconds=5, **chosen)
            switcher = functools.partial(Switcher, mem_available_gb=lambda: 1000.0)
            manager = Manager(config, host.inventory, history=History(":memory:"), bus=Bus(), switcher=switcher)
            manager.start()
            try:
                usage = Usage(config.stack_dir, manager.history)
                metrics = Metrics(manager.view, usage.totals)
                app = create_app(manager, config, [metrics.router(), usage.router()])
                with serve(app) as url, httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
                    yield Api(host, manager, url, client)
                    manager.bus.close()
            finally:
                manager.stop()
                manager.history.close()
        finally:
            processes.kill()
    assert two_awake(host.events(), host.events_before) == []


@pytest.fixture
def api(shared: Api) -> Iterator[Api]:
    """The same, each time in the same state."""
    yield shared
    shared.until_idle()
    manager = shared.manager
    manager.set_mode("auto")
    for name in ("a", "b"):
        if shared.host.connects(name):
            shared.host.call(name, "DELETE", "/standin/faults")
        manager.set_eviction(name, "offload", "keep_running")
    seen = manager.view().models
    wanted = ["b"] * ((seen["b"].state, seen["b"].level) not in (("asleep", 1), ("ready", None))) + ["a"]
    for name in wanted:
        ticket = manager.request(name).future.result(PATIENCE_SECONDS)
        assert ticket.status == "done", ticket.error


# Of the manager's own API.


def test_health(api: Api) -> None:
    assert api.get("/health") == {"status": "healthy"}


def test_models(api: Api) -> None:
    answer = api.get("/models")
    assert list(answer)[:2] == ["models", "active_model"]
    assert answer["active_model"] == "a"
    first, second, third = answer["models"]
    assert list(first)[:9] == FIRST_KEYS
    port = api.host.model("a").host_port
    assert {key: first[key] for key in FIRST_KEYS[:8]} == {
        "id": "a",
        "name": "a",
        "container_name": "vllm-a",
        "port": 8000,
        "host_port": port,
        "gpu_memory_gb": 20.0,
        "startup_mode": "sleep",
        "status": "active",
    }
    moment = datetime.datetime.fromisoformat(first["last_active"].replace("Z", "+00:00"))
    assert abs(moment.timestamp() - datetime.datetime.now().timestamp()) < 60
    assert [one["status"] for one in (second, third)] == ["sleeping", "disabled"]
    assert [one["can_sleep"] for one in answer["models"]] == [True, True, False]
    assert (second["state"], second["level"]) == ("asleep", 1)
    assert third["last_active"] is None
    assert (answer["switching"], answer["queue"], answer["pinned"]) == (None, [], None)
    assert first["eta_seconds"] == 0 and second["eta_seconds"] > 0


def test_switch(api: Api) -> None:
    assert api.post("/switch", {"model_id": "b"}) == (200, {"status": "success", "active_model": "b"})
    assert api.host.states() == {"a": "sleeping", "b": "active", "c": "disabled"}
    assert api.get("/models")["active_model"] == "b"
    # Nothing to do, and by another name.
    assert api.post("/switch", {"model_id": "b"}) == (200, {"status": "success", "active_model": "b"})
    assert api.post("/switch", {"model_id": "first"}) == (200, {"status": "success", "active_model": "a"})


def test_switch_to_what_is_not_there(api: Api) -> None:
    assert api.post("/switch", {"model_id": "nope"}) == (404, {"error": "model not found: nope"})


def test_status_while_switching(api: Api) -> None:
    url = api.begin("b")
    assert api.get("/control/status")["state"] == "switching:a->b"
    answer = api.get("/models")
    assert answer["switching"] == {"from": "a", "to": "b"}
    assert {one["status"] for one in answer["models"][:2]} <= {"switching", "sleeping"}
    assert [(one["model"], one["status"], one["position"]) for one in answer["queue"]] == [("b", "running", 0)]
    assert api.end(url)["status"] == "done"


def test_a_second_switch_to_the_same_model_joins(api: Api) -> None:
    url = api.begin("b")
    status, joined = api.post("/switch?wait=false", {"model_id": "b"})
    assert (status, joined["url"], joined["waiters"]) == (202, url, 2)
    before = api.get("/switches")["switches"]
    assert api.post("/switch", {"model_id": "b"}) == (200, {"status": "success", "active_model": "b"})
    until(lambda: len(api.get("/switches")["switches"]) > len(before), "it is in the history")
    assert len(api.get("/switches")["switches"]) == len(before) + 1


def test_a_switch_to_another_model_queues(api: Api) -> None:
    first = api.begin("b")
    status, second = api.post("/switch?wait=false", {"model_id": "a"})
    assert (status, second["status"], second["position"]) == (202, "queued", 1)
    assert [one["url"] for one in api.get("/switches")["queue"]] == [first, second["url"]]
    assert [api.end(url)["status"] for url in (first, second["url"])] == ["done", "done"]
    assert api.get("/models")["active_model"] == "a"


def test_not_waiting(api: Api) -> None:
    answer = api.call("POST", "/switch?wait=false", {"model_id": "b"})
    assert (answer.status_code, answer.headers["Location"]) == (202, answer.json()["url"])
    ended = api.end(answer.json()["url"])
    assert (ended["status"], ended["model"], ended["desired"], ended["error"]) == ("done", "b", "active", None)
    assert ended["result"]["active_model"] == "b"
    assert ended["by"] == "HTTP 127.0.0.1"
    assert ended["asked_at"] <= ended["begun_at"] <= ended["ended_at"]
    assert api.call("GET", "/switches/none").status_code == 404


def test_switches(api: Api) -> None:
    for name in ("b", "a", "b"):
        api.post("/switch", {"model_id": name})
    until(lambda: [one["model"] for one in api.get("/switches?limit=3")["switches"]] == ["b", "a", "b"], "all are kept")
    page = api.get("/switches?limit=2")
    last = page["switches"][0]
    assert (last["result"], last["previous"], last["active"], last["error"]) == ("done", ["a"], ["b"], "")
    assert {"sleep", "wake"} <= {step["action"] for step in last["steps"]}
    assert page["before"] == page["switches"][-1]["id"]
    assert api.get(f"/switches?limit=1&before={page['before']}")["switches"][0]["model"] == "b"


# Of the control API.


def test_control_status(api: Api) -> None:
    until(lambda: api.models()["a"]["in_flight"] == 0, "requests are counted")
    asleep = api.get("/control/status")["models"]["b"]["in_flight"]
    assert asleep in (0, None)
    assert api.get("/control/status") == {
        "state": "active:a",
        "active_model": "a",
        "mode": {"mode": "auto", "pinned": None},
        "models": {
            "a": {"in_flight": 0, "queue_depth": 0, "process_state": "running"},
            "b": {"in_flight": asleep, "queue_depth": 0, "process_state": "sleeping:offload+keep_running"},
            "c": {"in_flight": None, "queue_depth": 0, "process_state": "not_started"},
        },
    }
    api.post("/control/sleep", {"model": "a"})
    status = api.get("/control/status")
    assert (status["state"], status["active_model"]) == ("idle", None)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"mode": "manual"}, 200),
        ({"mode": "auto"}, 200),
        ({"mode": "else"}, 400),
        ({"mode": 1}, 400),
        ({}, 400),
        ([], 400),
        ({"mode": "auto", "more": 1}, 400),
    ],
)
def test_control_mode(api: Api, body: Any, status: int) -> None:
    answered, answer = api.post("/control/mode", body)
    assert answered == status
    if status == 200:
        assert answer == {"message": f"the mode is {body['mode']}"}
        assert api.get("/control/status")["mode"] == {"mode": body["mode"], "pinned": None}
    else:
        assert list(answer) == ["error"]


def test_control_mode_that_is_no_json(api: Api) -> None:
    for content in (b"", b"{", b"\xff", b"[" * 10_000):
        answer = api.call("POST", "/control/mode", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, content


def test_control_pin(api: Api) -> None:
    assert api.post("/control/pin", {"model": "b"}) == (200, {"message": "b is active and pinned"})
    assert api.get("/control/status")["mode"] == {"mode": "manual", "pinned": "b"}
    assert api.host.states()["b"] == "active"
    for path in ("/switch", "/api/models/sleep/b", "/api/models/load/a"):
        status, answer = api.post(path, {"model_id": "a"} if path == "/switch" else None)
        assert status == 409 and "pinned" in answer["error"]
    assert api.post("/control/switch", {"model": "a"}) == (200, {"message": "a is active"})
    assert api.get("/control/status")["mode"] == {"mode": "manual", "pinned": "a"}
    assert api.post("/control/unpin") == (200, {"message": "nothing is pinned, the mode is auto"})
    assert api.get("/control/status")["mode"] == {"mode": "auto", "pinned": None}
    assert api.post("/switch", {"model_id": "b"})[0] == 200


@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_a_pin_that_fails_restores_the_mode(api: Api, mode: str) -> None:
    api.post("/control/mode", {"mode": mode})
    api.host.fault("b", "/wake_up", "status_500", times=0)
    status, answer = api.post("/control/pin", {"model": "b"})
    assert status == 500 and "b" in answer["error"]
    assert api.get("/control/status")["mode"] == {"mode": mode, "pinned": None}
    assert api.host.states()["a"] == "active"


def test_control_failures(api: Api) -> None:
    for path in ("pin", "switch", "sleep", "wake"):
        assert api.post(f"/control/{path}", {"model": "nope"}) == (404, {"error": "model not found: nope"})
    api.host.fault("b", "/wake_up", "status_500", times=0)
    status, answer = api.post("/control/switch", {"model": "b"})
    assert status == 500 and answer["error"] and answer["url"].startswith("/switches/")


def test_control_eviction(api: Api) -> None:
    default = {"weights": "offload", "process": "keep_running"}
    for name in ("a", "b"):
        api.post("/control/eviction", {"model": name, "eviction": default})
    assert api.get("/control/eviction")["models"]["a"] == default
    pair = {"weights": "discard", "process": "keep_running"}
    assert api.post("/control/eviction", {"model": "a", "eviction": pair}) == (
        200,
        {"message": "a: weights discard, process keep_running"},
    )
    assert api.get("/control/eviction")["models"] == {
        "a": pair,
        "b": default,
        "c": api.get("/models")["models"][2]["eviction"],
    }
    api.post("/switch", {"model_id": "b"})
    assert api.models()["a"]["level"] == 2
    assert api.get("/control/status")["models"]["a"]["process_state"] == "sleeping:discard+keep_running"
    api.post("/control/eviction", {"model": "b", "eviction": {"weights": "discard", "process": "stop"}})
    assert api.models()["b"]["can_sleep"] is False
    api.post("/switch", {"model_id": "a"})
    assert api.host.states()["b"] == "stopped"
    assert api.get("/control/status")["models"]["b"]["process_state"] == "not_started"


def test_evictions_that_are_not_possible(api: Api) -> None:
    before = api.get("/control/eviction")
    for process in ("cuda_suspend", "checkpoint"):
        pair = {"weights": "offload", "process": process}
        status, answer = api.post("/control/eviction", {"model": "a", "eviction": pair})
        assert status == 422 and process in answer["error"] and "keep_running" in answer["error"]
        assert api.post("/control/sleep", {"model": "a", "eviction": pair})[0] == 422
    never = {"weights": "retain", "process": "keep_running"}
    assert api.post("/control/sleep", {"model": "a", "eviction": never})[0] == 422
    for wrong in ({"weights": "gone", "process": "stop"}, {"weights": "offload"}, {}, None):
        assert api.post("/control/eviction", {"model": "a", "eviction": wrong})[0] == 422
    good = {"weights": "offload", "process": "stop"}
    assert api.post("/control/eviction", {"model": "nope", "eviction": good})[0] == 404
    assert api.post("/control/eviction", {"model": "c", "eviction": good})[0] == 409
    assert api.get("/control/eviction") == before
    assert api.host.states()["a"] == "active"


def test_a_model_that_never_makes_room(api: Api) -> None:
    never = {"weights": "retain", "process": "keep_running"}
    api.post("/control/eviction", {"model": "a", "eviction": never})
    assert api.post("/switch", {"model_id": "b"})[0] == 409
    assert api.models()["a"]["can_sleep"] is False
    assert api.host.states() == {"a": "active", "b": "sleeping", "c": "disabled"}


@pytest.mark.parametrize(
    ("eviction", "state", "level"),
    [
        (None, "sleeping", 1),
        ({"weights": "offload", "process": "keep_running"}, "sleeping", 1),
        ({"weights": "discard", "process": "keep_running"}, "sleeping", 2),
        ({"weights": "retain", "process": "stop"}, "stopped", None),
    ],
)
def test_control_sleep_and_wake(api: Api, eviction: Any, state: str, level: int | None) -> None:
    api.post("/switch", {"model_id": "b"})
    body = {"model": "b"} if eviction is None else {"model": "b", "eviction": eviction}
    assert api.post("/control/sleep", body) == (200, {"message": f"b is {state}"})
    assert api.host.states()["b"] == state
    assert api.models()["b"]["level"] == level
    assert api.post("/control/wake", {"model": "b"}) == (200, {"message": "b is active"})
    assert api.host.states()["b"] == "active"


def test_a_model_that_is_stopped_to_make_room_is_not_said_to_sleep(api: Api) -> None:
    stop = {"weights": "discard", "process": "stop"}
    api.post("/control/eviction", {"model": "b", "eviction": stop})
    api.post("/control/wake", {"model": "b"})
    assert api.post("/control/sleep", {"model": "b"}) == (200, {"message": "b is stopped"})
    assert api.host.states()["b"] == "stopped"


# Of one model by hand.


def test_one_model_by_hand(api: Api) -> None:
    for verb, state, level in (
        ("wake", "active", None),
        ("sleep", "sleeping", 1),
        ("unload", "stopped", None),
        ("load", "active", None),
    ):
        answer = {"message": f"b is {state}", "model": "b", "status": state, "level": level}
        assert api.post(f"/api/models/{verb}/b") == (200, answer)
        assert api.host.states()["b"] == state
        assert api.post(f"/api/models/{verb}/nope") == (404, {"error": "model not found: nope"})
        assert api.post(f"/api/models/{verb}/c")[0] == 409


def test_a_model_by_a_name_with_a_slash(api: Api) -> None:
    assert api.post("/api/models/wake/org/b")[1]["model"] == "b"


# Errors.


def test_a_disabled_model(api: Api) -> None:
    status, answer = api.post("/switch", {"model_id": "c"})
    assert status == 409 and "disabled" in answer["error"] and "startup_mode" in answer["remedy"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[" * 20_000, "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"model_id": 7}', "application/json"),
        (b'{"model_id": ""}', "application/json"),
        (b'{"model_id": "\\ud800"}', "application/json"),
        (b'{"model_id": "b", "\\ud800": 1}', "application/json"),
        (b'{"model": "b"}', "application/json"),
        (b'{"model_id": "b"}', "text/plain"),
        (b"model_id=b", "application/x-www-form-urlencoded"),
    ],
)
def test_a_wrong_body(api: Api, content: bytes, kind: str) -> None:
    answer = api.call("POST", "/switch", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 422
    assert set(answer.json()) <= {"error", "remedy"}
    assert ("remedy" in answer.json()) == (kind != "application/json")
    assert api.host.states()["a"] == "active"


def test_a_server_that_fails(api: Api) -> None:
    api.host.fault("b", "/wake_up", "status_500", times=0)
    status, answer = api.post("/switch", {"model_id": "b"})
    assert status == 502 and "b" in answer["error"]
    failed = api.get(answer["url"])
    assert (failed["status"], failed["error"]["message"]) == ("failed", answer["error"])
    assert api.get("/models")["active_model"] == "a"
    until(lambda: api.get("/switches?limit=1")["switches"][0]["result"] == "failed", "it is in the history")


def test_what_is_no_servers_fault_is_not_said_to_be(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_way = api.host.stack_dir / "run" / "wanted.json.new"
    in_the_way.mkdir()
    status, answer = api.post("/switch", {"model_id": "b"})
    in_the_way.rmdir()
    assert status == 500 and str(in_the_way) in answer["error"]
    with monkeypatch.context() as patch:
        patch.delattr(Switcher, "switch")  # a mistake of the service
        status, answer = api.post("/switch", {"model_id": "b"})
    assert status == 500 and "the manager failed" in answer["error"] and "log" in answer["remedy"]
    assert api.host.states()["a"] == "active"


def test_a_full_queue(api: Api) -> None:
    api.begin("b")
    assert api.post("/switch?wait=false", {"model_id": "a"})[0] == 202
    assert api.post("/api/models/sleep/a?wait=false")[0] == 202
    answer = api.call("POST", "/api/models/unload/b?wait=false")
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1
    assert "max_queue" in answer.json()["error"]


def _ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


def test_an_answer_that_takes_too_long(api: Api) -> None:
    api.host.fault("b", "/wake_up", "slow", seconds=SLOW_SECONDS)
    answer = _ask(api.app(answer_seconds=0.05), "POST", "/switch", json={"model_id": "b"})
    assert answer.status_code == 504 and "goes on" in answer.json()["error"]
    assert api.end(answer.json()["url"])["status"] == "done"


def test_a_caller_that_goes_away_is_no_longer_waited_for(api: Api) -> None:
    api.begin("b")
    with pytest.raises(httpx.ReadTimeout):
        api.call("POST", "/switch", {"model_id": "a"}, timeout=0.1)
    until(lambda: [one.model for one in api.manager.view().queue] == ["b"], "the other switch is withdrawn")
    api.until_idle()
    assert api.get("/models")["active_model"] == "b"


def test_who_waits_together_is_not_harmed_by_who_goes(api: Api) -> None:
    api.begin("b")
    with ThreadPoolExecutor() as pool:
        stays = pool.submit(api.post, "/switch", {"model_id": "a"})
        with pytest.raises(httpx.ReadTimeout):
            api.call("POST", "/switch", {"model_id": "a"}, timeout=0.1)
        assert stays.result() == (200, {"status": "success", "active_model": "a"})


def test_paths_and_methods_that_are_not_there(api: Api) -> None:
    assert api.call("GET", "/nothing").json() == {"error": "Not Found"}
    answer = api.call("GET", "/switch")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert list(answer.json()) == ["error"]


def test_one_switch_at_a_time_whoever_asks(api: Api) -> None:
    calls = [("/switch", {"model_id": name}) for name in ("a", "b", "a", "b")]
    calls += [(f"/control/{verb}", {"model": name}) for verb in ("switch", "sleep") for name in ("a", "b")]
    with ThreadPoolExecutor(len(calls)) as pool:
        answers = list(pool.map(lambda call: api.post(*call), calls))
    for (path, body), (status, answer) in zip(calls, answers, strict=True):
        assert status in (200, 503)
        if path == "/switch" and status == 200:
            assert answer["active_model"] == body["model_id"]
    assert any(status == 200 for status, _answer in answers)
    assert two_awake(api.host.events(), api.host.events_before) == []


def test_no_answer_has_a_secret(api: Api) -> None:
    api.host.fault("b", "/wake_up", "status_500", times=0)
    said = [json.dumps(api.post("/switch", {"model_id": "b"}))]
    said += [api.call("GET", path).text for path in ("/models", "/switches", "/control/status", "/openapi.json")]
    assert "status_500" not in said[0] and SECRET not in "".join(said)


# Events.


def _frames(answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """The id and the data of each event of a stream."""
    found: dict[str, str] = {}
    for line in answer.iter_lines():
        if line:
            key, _colon, value = line.partition(": ")
            found[key] = value
        elif "data" in found:
            data = json.loads(found["data"])
            assert (str(data["id"]), data["kind"]) == (found["id"], found["event"])
            yield found["id"], data
            found = {}


def _until_ended(events: Iterator[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    seen = []
    for _number, event in events:
        seen.append(event)
        if event["kind"] == "switch_ended":
            return seen
    raise AssertionError(f"the events end: {seen}")


def test_events(api: Api) -> None:
    with api.client.stream("GET", "/events") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["Cache-Control"] == "no-store"
        events = _frames(answer)
        number, snapshot = next(events)
        assert (snapshot["kind"], snapshot["data"]["active_model"]) == ("snapshot", "a")
        api.post("/switch", {"model_id": "b"})
        seen = _until_ended(events)
    kinds = [event["kind"] for event in seen]
    assert kinds[0] == "switch_queued" and {"switch_begun", "step_begun", "step_ended", "state", "queue"} <= set(kinds)
    assert [event["id"] for event in seen] == list(range(seen[0]["id"], seen[0]["id"] + len(seen)))
    states = [(event["data"]["model"], event["data"]["state"]) for event in seen if event["kind"] == "state"]
    # A level that becomes known is told, too.
    assert list(dict.fromkeys(state for name, state in states if name == "a")) == ["sleepPending", "asleep"]
    assert list(dict.fromkeys(state for name, state in states if name == "b")) == ["waking", "ready"]
    queued = seen[0]["data"]
    assert queued["position"] == 1 and queued["eta_seconds"] > 0

    # Read on from where a reader was.
    for headers, query in (({"Last-Event-ID": number}, {}), ({}, {"after": number})):
        with api.client.stream("GET", "/events", headers=headers, params=query) as answer:
            assert _until_ended(_frames(answer)) == seen


def test_events_over_a_websocket(api: Api) -> None:
    url = api.url.replace("http", "ws") + "/events"
    with connect(url) as reader:
        first = json.loads(reader.recv(timeout=PATIENCE_SECONDS))
        assert (first["kind"], first["data"]["active_model"]) == ("snapshot", "a")
        reader.send("what a reader says is of no interest")
        api.post("/switch", {"model_id": "b"})
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["kind"] != "switch_ended":
            seen.append(json.loads(reader.recv(timeout=PATIENCE_SECONDS)))
        assert {"switch_queued", "switch_begun", "step_begun", "step_ended", "state"} <= {one["kind"] for one in seen}
    with connect(f"{url}?after={first['id']}") as reader:
        assert [json.loads(reader.recv(timeout=PATIENCE_SECONDS)) for _one in seen] == seen


def test_a_page_of_another_site_reads_no_events(api: Api) -> None:
    with pytest.raises(InvalidStatus) as caught:
        connect(api.url.replace("http", "ws") + "/events", origin=Origin("https://evil.example"))
    assert caught.value.response.status_code == 403


def test_readers_of_events_are_bounded_and_forgotten(api: Api) -> None:
    frames: list[Iterator[Any]] = []
    with serve(api.app(max_readers=1)) as url:
        for _again in range(3):
            with contextlib.ExitStack() as open_streams:

                def reads() -> bool:
                    stream = api.client.stream("GET", f"{url}/events")
                    answer = open_streams.enter_context(stream)
                    frames.append(_frames(answer))  # a generator that is forgotten closes its stream
                    return answer.status_code == 200 and bool(next(frames[-1]))

                # The one before has gone, which the server notices a moment later.
                until(reads, "there is room for a reader")
                with api.client.stream("GET", f"{url}/events") as refused:
                    assert refused.status_code == 503 and "Retry-After" in refused.headers
                with pytest.raises(InvalidStatus):
                    connect(url.replace("http", "ws") + "/events")


def test_readers_that_come_at_once_are_bounded_too(api: Api) -> None:
    app = api.app(max_readers=2)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/events",
        "raw_path": b"/events",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 9000),
    }

    async def ask() -> list[int]:
        statuses: list[int] = []
        leave = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            if len(statuses) == 5:
                leave.set()

        readers = [app(dict(scope), receive, send) for _each in range(5)]
        await asyncio.wait_for(asyncio.gather(*readers), PATIENCE_SECONDS)
        return sorted(statuses)

    for _again in range(2):  # nor is one that has left counted for ever
        assert asyncio.run(ask()) == [200, 200, 503, 503, 503]


def test_a_reader_of_events_that_takes_nothing_is_given_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_manager.events_api._TAKE_SECONDS", 0.2)
    with serve(api.app(max_readers=1)) as url, socket.socket() as hangs:
        hangs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        hangs.settimeout(PATIENCE_SECONDS)
        hangs.connect(("127.0.0.1", httpx.URL(url).port))
        hangs.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert hangs.recv(12) == b"HTTP/1.1 200"

        def refused() -> bool:
            with api.client.stream("GET", f"{url}/events") as answer:
                return answer.status_code == 503

        assert refused()
        much = "x" * 20_000  # more than all buffers between the two take
        for _each in range(900):
            api.manager.bus.publish("test", {"text": much})
        until(lambda: not refused(), "there is room for another reader")


# Tokens, and the description of it all.


def test_tokens(api: Api, tmp_path: Path) -> None:
    app = api.app(tmp_path)
    paths = app.openapi()["paths"]
    calls = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(calls) >= 18
    for method, path in calls:
        for token, status in (("w" * 32, 401), ("", 401), (READER, 403)):
            if (method, token) == ("GET", READER):
                continue
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            answer = _ask(app, method, path.replace("{model}", "a"), headers=headers)
            assert answer.status_code == status, (method, path)
    assert api.host.states()["a"] == "active"
    reader, operator = ({"Authorization": f"Bearer {token}"} for token in (READER, OPERATOR))
    assert _ask(app, "GET", "/models", headers=reader).status_code == 200
    assert _ask(app, "POST", "/control/unpin", headers=operator).status_code == 200
    assert app.openapi()["security"] == [{"bearer": []}]


def test_every_endpoint_is_described(api: Api) -> None:
    paths = api.get("/openapi.json")["paths"]
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation["description"], path
            assert {"401", "403", "413", "429"} <= set(operation["responses"]), path
            # A switch may be asked for without waiting; what is read with `wait` is there in any case.
            may_not_wait = method == "post" and any(one["name"] == "wait" for one in operation.get("parameters", ()))
            assert ("202" in operation["responses"]) == may_not_wait, path
            assert method in ("get", "post")
    assert "422" not in paths["/control/mode"]["post"]["responses"]
