# SPDX-License-Identifier: MIT
"""The manager on Debian 12 and 13 with two real vLLM servers: every call of its API by curl, and what it answers.

The hosts are made as those of tests/firewall, and provisioned by the playbooks. The calls build on each other, in
order; they are printed beside the rows that they show. What a model is is asked of its server, too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.managed import UNIT, ManagedBox, python_files, shown
from tests.firewall.box import until
from tests.serverlib import real_command, real_settings, real_venv

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.whole,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make hosts of namespaces: sudo make e2e"),
]
A, B = "tiny-a", "tiny-b"
PORTS = {A: 8001, B: 8002}
# What a model of GET /models has at least, in the words that clients know.
MODEL_KEYS = {
    "id", "name", "container_name", "port", "host_port", "gpu_memory_gb", "startup_mode", "status", "last_active",
}  # fmt: skip
STATUSES = {"active", "sleeping", "switching", "error", "disabled"}
LONGEST = 230


def real_models(venv: Path) -> list[dict[str, Any]]:
    """Two on one GPU, of which a file keeps each from starting; and one that is disabled."""
    environment = {**real_settings(venv), "VLLM_HOST_IP": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"}
    del environment["VLLM_RPC_BASE_PATH"]  # a folder of this machine
    environment["PATH"] = f"{venv}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    models = []
    for name, mode in ((A, "active"), (B, "sleep")):
        script = f'test ! -e /run/broken-{name} || {{ echo "the weights are gone"; exit 1; }}; exec "$@"'
        command = real_command(venv, name, "${host_port}", ["${id}"], 1024)
        models.append(
            {
                "id": name,
                "name": f"Tiny {name[-1].upper()}",
                "model": str(venv / "models" / name),
                "host_port": PORTS[name],
                "weights_gb": 0.01,
                "gpu_memory_gb": 1,
                "startup_mode": mode,
                "env": environment,
                "start_command": ["/bin/sh", "-c", script, "sh", *command],
            }
        )
    off = {"id": "off", "model": "org/off", "host_port": 8003, "startup_mode": "disabled", "env": {}}
    off["start_command"] = ["false"]
    return [*models, off]


@dataclasses.dataclass
class Shown:
    """A call and its answer."""

    row: str
    call: str
    status: int
    answer: str
    seconds: float


class Calls:
    """Calls the manager by curl, holds the answers to what is expected, and keeps them for the table."""

    def __init__(self, box: ManagedBox) -> None:
        self.box = box
        self.made: list[Shown] = []

    def __call__(self, row: str, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        """The answer, which must have this status."""
        began = time.monotonic()
        told, answer = self.box.ask(method, path, body)
        text = json.dumps(answer)
        data = f" {json.dumps(body)}" if body is not None else ""
        self.made.append(Shown(row, f"{method} {path}{data}", told, text, time.monotonic() - began))
        assert told == status, f"{shown(self.box.curl(method, path, body))}: {told} {text}\n{self.box.journal()}"
        return answer

    def told(self, row: str, what: str, answer: str) -> None:
        """Something beside the calls that the row is about."""
        self.made.append(Shown(row, what, 200, answer, 0.0))

    def table(self) -> str:
        """All of it."""
        lines = [f"{'row':4} {'status':6} {'s':>6}  call  ->  answer"]
        for one in self.made:
            text = one.answer if len(one.answer) <= LONGEST else one.answer[:LONGEST] + " ..."
            lines.append(f"{one.row:4} {one.status:6} {one.seconds:6.2f}  {one.call}  ->  {text}")
        return "\n".join(lines)


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def box(
    request: pytest.FixtureRequest, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ManagedBox]:
    """A host with the manager, whose two models are real and loaded."""
    venv = real_venv()
    folder = tmp_path_factory.mktemp(request.param)
    settings = {"observe_seconds": 0.5}
    shared = python_files(venv)
    # Two cores load one server in half a minute, when nothing else is on them.
    switching = {"max_retries": 450, "health_check_interval_seconds": 1, "request_timeout_seconds": 60}
    models = real_models(venv)
    with ManagedBox(
        folder, request.param, models, shared=shared, switching=switching, model_manager_settings=settings
    ) as made:
        try:
            made.provision(ansible_playbook)
        except BaseException:
            print(made.run("sh", "-c", "tail -n 40 /opt/homegpt/run/*.log", check=False))
            raise
        yield made


@pytest.fixture
def calls(box: ManagedBox, capsys: pytest.CaptureFixture[str]) -> Iterator[Calls]:
    """The calls, which are printed after the test, however it ends."""
    made = Calls(box)
    yield made
    release = box.run("sh", "-c", ". /etc/os-release; echo $PRETTY_NAME; systemctl --version | head -n 1")
    version = box.ask("GET", "/version", url=f"http://127.0.0.1:{PORTS[A]}")[1]
    with capsys.disabled():
        print(f"\n{', '.join(release.splitlines())}, {UNIT}, vLLM {(version or {}).get('version')}\n{made.table()}")


def asleep(box: ManagedBox) -> dict[str, bool | None]:
    """What the servers themselves say; None for one that does not answer."""
    told = {name: box.ask("GET", "/is_sleeping", url=f"http://127.0.0.1:{port}") for name, port in PORTS.items()}
    return {name: answer["is_sleeping"] if status == 200 else None for name, (status, answer) in told.items()}


def by_id(answer: Any) -> dict[str, dict[str, Any]]:
    """The models of GET /models."""
    return {one["id"]: one for one in answer["models"]}


def test_every_call_does_what_its_row_says(box: ManagedBox, calls: Calls) -> None:
    """H9, L10 to L13, S7."""
    # H9: the API of the model manager that this one replaces.
    assert calls("H9", "GET", "/health") == {"status": "healthy"}
    until(lambda: box.ask("GET", "/models")[1]["active_model"] == A, box.journal)
    models = calls("H9", "GET", "/models")
    assert models["active_model"] == A
    assert all(one.keys() >= MODEL_KEYS and one["status"] in STATUSES for one in models["models"])
    assert {name: one["status"] for name, one in by_id(models).items()} == {
        A: "active", B: "sleeping", "off": "disabled",
    }  # fmt: skip
    said = {A: box.complete(A)}
    assert said[A] and asleep(box) == {A: False, B: True}
    assert calls("H9", "POST", "/switch", {"model_id": B}) == {"status": "success", "active_model": B}
    assert asleep(box) == {A: True, B: False}
    said[B] = box.complete(B)
    assert said[B] and said[B] != said[A]
    missing = calls("H9", "POST", "/switch", {"model_id": "nobody"}, status=404)
    assert missing["error"] == "model not found: nobody"
    assert "error" in calls("H9", "POST", "/switch", {"model_id": "off"}, status=409)
    assert "error" in calls("H9", "POST", "/switch", {"model": B}, status=422)

    # L10: the state of the control API; while it switches, too.
    until(lambda: box.ask("GET", "/control/status")[1]["models"][B]["in_flight"] == 0, box.journal)
    status = calls("L10", "GET", "/control/status")
    assert (status["state"], status["active_model"]) == (f"active:{B}", B)
    assert status["mode"] == {"mode": "auto", "pinned": None}
    assert status["models"][B] == {"in_flight": 0, "queue_depth": 0, "process_state": "running"}
    assert status["models"][A]["process_state"] == "sleeping:offload+keep_running"

    # L11: mode, pin, switch by hand.
    assert "message" in calls("L11", "POST", "/control/mode", {"mode": "manual"})
    assert "error" in calls("L11", "POST", "/control/mode", {"mode": "off"}, status=400)
    assert "error" in calls("L11", "POST", "/switch", {"model_id": A}, status=409)
    assert "message" in calls("L11", "POST", "/control/pin", {"model": A})
    assert calls("L11", "GET", "/control/status")["mode"] == {"mode": "manual", "pinned": A}
    assert "error" in calls("L11", "POST", "/switch", {"model_id": B}, status=409)
    assert "message" in calls("L11", "POST", "/control/switch", {"model": B})
    status = calls("L11", "GET", "/control/status")
    assert (status["state"], status["mode"]["pinned"]) == (f"active:{B}", B), "the pin moves along"
    assert "message" in calls("L11", "POST", "/control/unpin")
    assert calls("L11", "GET", "/control/status")["mode"] == {"mode": "auto", "pinned": None}
    for verb in ("pin", "switch"):
        assert "error" in calls("L11", "POST", f"/control/{verb}", {"model": "nobody"}, status=404)

    # L12 and L13: evictions at run time, sleep and wake by hand, and the states of the processes.
    both = {"weights": "offload", "process": "keep_running"}
    assert calls("L12", "GET", "/control/eviction")["models"][B] == both
    for process in ("cuda_suspend", "checkpoint"):
        pair = {"weights": "offload", "process": process}
        refused = calls("L12", "POST", "/control/eviction", {"model": B, "eviction": pair}, status=422)
        assert process in refused["error"]
    never = {"weights": "retain", "process": "keep_running"}
    calls("L12", "POST", "/control/eviction", {"model": B, "eviction": never})
    assert "never makes room" in calls("L12", "POST", "/control/switch", {"model": A}, status=409)["error"]
    discard = {"weights": "discard", "process": "keep_running"}
    calls("L12", "POST", "/control/eviction", {"model": B, "eviction": discard})
    calls("L12", "POST", "/control/wake", {"model": A})
    assert asleep(box) == {A: False, B: True}
    status = calls("L13", "GET", "/control/status")
    assert status["models"][B]["process_state"] == "sleeping:discard+keep_running"
    calls("L12", "POST", "/control/switch", {"model": B})
    assert box.complete(B) == said[B], "its weights are loaded again"
    assert "error" in calls("L12", "POST", "/control/sleep", {"model": B, "eviction": never}, status=422)
    calls("L12", "POST", "/control/sleep", {"model": B, "eviction": both})
    assert asleep(box) == {A: True, B: True}
    status = calls("L10", "GET", "/control/status")
    assert (status["state"], status["active_model"]) == ("idle", None)
    assert "error" in calls("L12", "POST", "/control/wake", {"model": "nobody"}, status=404)

    # S7: one model by hand; the list says which can sleep.
    awake = calls("S7", "POST", f"/api/models/wake/{A}")
    assert (awake["model"], awake["status"]) == (A, "active")
    assert by_id(calls("S7", "GET", "/models"))[A]["can_sleep"] is True
    slept = calls("S7", "POST", f"/api/models/sleep/{A}")
    assert (slept["model"], slept["status"]) == (A, "sleeping") and asleep(box)[A] is True
    assert calls("S7", "POST", f"/api/models/unload/{A}")["status"] == "stopped"
    assert asleep(box) == {A: None, B: True}
    assert calls("L13", "GET", "/control/status")["models"][A]["process_state"] == "not_started"
    assert "error" in calls("S7", "POST", "/api/models/sleep/nobody", status=404)

    # L11: a failure is 500, and the former mode comes back; so does the model that was active.
    calls("L11", "POST", "/control/switch", {"model": B})
    box.run("touch", f"/run/broken-{A}")
    failed = calls("L11", "POST", "/control/pin", {"model": A}, status=500)
    assert "the weights are gone" in failed["error"]
    box.run("rm", f"/run/broken-{A}")
    status = calls("L11", "GET", "/control/status")
    assert (status["state"], status["mode"]) == (f"active:{B}", {"mode": "auto", "pinned": None})

    # While a model loads that shows what goes on, and others wait their turn.
    until(lambda: box.ask("GET", "/models")[1]["queue"] == [], box.journal)
    accepted = calls("S7", "POST", f"/api/models/load/{A}?wait=false", status=202)
    until(lambda: box.ask("GET", "/control/status")[1]["state"] == f"switching:{B}->{A}", box.journal)
    status = calls("L10", "GET", "/control/status")
    assert status["state"] == f"switching:{B}->{A}"
    until(lambda: box.ask("GET", accepted["url"])[1]["status"] == "done", box.journal, 240)
    assert asleep(box) == {A: False, B: True}
    assert box.complete(A) == said[A]
    calls.told("L13", f"{B} asleep, {A} awake: what the two servers answer to the same greedy prompt", json.dumps(said))
    assert calls("S7", "POST", f"/api/models/load/{A}")["status"] == "active"
