# SPDX-License-Identifier: MIT
"""The service as a process: how it begins, how it ends, and what it leaves when it is killed."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import desired_state, state_files
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.manager.conftest import Service, declare_two, until, write_inventory
from tests.serverlib import free_port
from tests.unit.plugins.module_utils.switching.conftest import Host

# What a process runs that is the service with a part of the engine replaced.
ENGINE = "import ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch as s; s.{}"


def test_sigterm_lets_a_switch_end_and_answers_who_waits(host: Host, services: list[Service]) -> None:
    declare_two(host, wake_seconds=2)
    host.up(a="active", b=1)
    service = Service(host)
    services.append(service)
    assert service.active() == "a"
    events = requests.get(service.url + "/events", stream=True, timeout=20)
    thread, answers = service.switch("b")
    until(lambda: service.state("b") == "waking", "the switch goes on")
    second, refused = service.switch("a")
    until(lambda: len(requests.get(service.url + "/switches", timeout=5).json()["queue"]) == 2, "the other one waits")
    assert service.end() == 0
    thread.join(10)
    second.join(10)
    assert [(one.status_code, one.json().get("active_model")) for one in answers] == [(200, "b")]
    assert [(one.status_code, "Retry-After" in one.headers) for one in refused] == [(503, True)]
    lines = list(events.iter_lines(decode_unicode=True))  # the stream ends, and not with an error
    assert "event: switch_ended" in lines
    assert host.states() == {"a": "sleeping", "b": "active"}
    assert "Traceback" not in service.log.read_text()


def test_a_reader_of_events_can_not_send_much(host: Host, services: list[Service]) -> None:
    declare_two(host)
    service = Service(host, reconcile=False, max_body_bytes=1000)
    services.append(service)
    with connect(service.url.replace("http", "ws") + "/events") as reader:
        reader.send("x" * 1001)
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                reader.recv(timeout=20)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009  # the message is too big


def test_after_a_kill_in_mid_switch_the_host_comes_back_to_what_it_was_meant_to_be(
    host: Host, services: list[Service]
) -> None:
    declare_two(host, wake_seconds=2)
    host.up(a="active", b=1)
    service = Service(host)
    services.append(service)
    requests.post(service.url + "/switch", json={"model_id": "a"}, timeout=30).raise_for_status()
    thread, answers = service.switch("b")
    until(lambda: service.state("b") == "waking", "the switch goes on")
    service.end(signal.SIGKILL)
    thread.join(10)
    assert answers == []
    service.start()
    until(lambda: service.active() == "a", "a is active again")
    until(lambda: host.states() == {"a": "active", "b": "sleeping"}, "nothing else is done")


@pytest.mark.parametrize("end", ["status.record_last_switch", "desired_state.update"])
def test_a_switch_that_was_done_when_the_service_was_killed_counts(
    host: Host, services: list[Service], end: str
) -> None:
    """The servers are as asked for; only the last records are missing. Killed there, at that very call."""
    declare_two(host)
    host.up(a="active", b=1)
    service = Service(host)
    services.append(service)
    requests.post(service.url + "/switch", json={"model_id": "a"}, timeout=30).raise_for_status()
    assert service.end() == 0
    service.start(
        before=f"import os, signal; {ENGINE.format(end)} = lambda *given: os.kill(os.getpid(), signal.SIGKILL)"
    )
    thread, answers = service.switch("b")
    assert service.process.wait(timeout=30) == -signal.SIGKILL
    thread.join(10)
    assert answers == []
    assert desired_state.recorded(str(host.stack_dir)) == {"a": "active", "b": "sleeping"}
    service.start()
    until(lambda: desired_state.recorded(str(host.stack_dir))["b"] == "active", "it is recorded")
    assert service.active() == "b"
    assert host.states() == {"a": "sleeping", "b": "active"}
    assert [call for call in host.changing_calls("a") if call.startswith("POST /wake_up")] == []


def test_what_is_set_up_wrongly_ends_it_at_once_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from model_manager.__main__ import main

    config = tmp_path / "config.json"
    config.write_text(json.dumps({"stack_dir": str(tmp_path), "prot": 9000, "port": "x"}))
    assert main([str(config)]) == 2
    assert "has 2 mistakes" in caplog.text
    assert "did you mean port?" in caplog.text
    caplog.clear()
    config.write_text(json.dumps({"stack_dir": str(tmp_path)}))
    assert main([str(config)]) == 1
    assert "models.json does not exist: provision the host" in caplog.text


def test_a_service_that_can_not_start_keeps_what_the_one_before_was_told(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    from model_manager.__main__ import main

    declare_two(host)
    write_inventory(host)
    told = {"mode": "manual", "pinned": "a", "evictions": {"b": ["discard", "keep_running"]}, "last_active": {"a": 1.0}}
    state_files.write(str(host.stack_dir), state_files.MANAGER, told)
    tokens = host.stack_dir / "tokens"
    tokens.write_text("operator 0123456789abcdef\n")
    tokens.chmod(0o644)
    config = host.stack_dir / "config.json"
    config.write_text(json.dumps({"stack_dir": str(host.stack_dir), "port": free_port(), "tokens_file": str(tokens)}))
    assert main([str(config)]) == 2
    assert "set its mode to 0600" in caplog.text
    assert state_files.read(str(host.stack_dir), state_files.MANAGER) == told


def test_a_service_does_not_start_without_what_was_set(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    from model_manager.__main__ import main

    declare_two(host)
    write_inventory(host)
    config = host.stack_dir / "config.json"
    config.write_text(json.dumps({"stack_dir": str(host.stack_dir), "port": free_port()}))
    file = host.stack_dir / "run" / "manager.json"
    file.mkdir(parents=True)
    assert main([str(config)]) == 1
    assert f"{file} can't be read (Is a directory), and the mode, the pin and the evictions are in it" in caplog.text


def test_a_service_that_can_not_listen_switches_nothing(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    from model_manager.__main__ import main

    declare_two(host)  # as after a boot: nothing runs, and the service would begin to load
    write_inventory(host)
    config = host.stack_dir / "config.json"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config.write_text(json.dumps({"stack_dir": str(host.stack_dir), "port": port}))
        assert main([str(config)]) == 1
    assert f"can't listen on 127.0.0.1, port {port} (Address already in use)" in caplog.text
    assert host.events() == []
