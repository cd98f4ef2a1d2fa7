# SPDX-License-Identifier: MIT
"""GPU memory that somebody else holds is seen before a wake or a load, with nvidia-smi's stand-in."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import hardware
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import Command
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import HostLock
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import WAKE

from tests.standin.gpu import GpuHost, uuid_of

from .conftest import Host


@pytest.fixture
def pair(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The models a and b, of 20 GB each, on a GPU of 24 GB, and its nvidia-smi."""
    monkeypatch.setenv("STANDIN_GPU_DIR", str(host.gpu_dir))
    monkeypatch.setenv("STANDIN_GPU_TOTAL_GB", "24")
    for name in "ab":
        host.declare(name, standin={"gpu_total_gb": 24}, args={"gpu_memory_utilization": 0.8})
    host.switch("b")
    host.switch("a")
    return host


def test_what_a_sleep_has_freed_is_remembered(pair: Host) -> None:
    remembered = json.loads((pair.stack_dir / "run" / "memory.json").read_text(encoding="utf-8"))["models"]
    assert remembered == {"a": {}, "b": {"0": pytest.approx(20, abs=0.01)}}  # a has not slept yet


def test_a_wake_that_would_run_out_of_memory_is_not_tried(pair: Host) -> None:
    thief = GpuHost(pair.gpu_dir, ("0",), 24, "python3")
    pair.call("a", "POST", "/sleep?level=1")
    thief.hold(10)
    with pytest.raises(SwitchFailed) as caught:
        pair.switch("b")
    text = str(caught.value)
    assert f"process {os.getpid()} (python3) holds " in text
    assert "GPU 0 has " in text
    assert "b needs " in text
    assert "Failed: wake b (level 1)\n" in text
    assert "POST /wake_up" not in pair.changing_calls("b")
    assert pair.states()["b"] == "sleeping"
    thief.life.close()
    assert pair.switch("b").active_model == "b"


def test_what_another_start_has_needed_keeps_no_wake_from_being_tried(pair: Host) -> None:
    # Somebody has started it anew with less, and it has slept since.
    command = Command(pair.model("b"), str(pair.stack_dir), pair.inventory.switching)
    command.stop()
    pair.switch("a", "stopped")
    pair.models[1]["env"]["STANDIN_VRAM_GB"] = "5"
    pair.up(b=1)
    thief = GpuHost(pair.gpu_dir, ("0",), 24, "python3")
    thief.hold(10)
    assert pair.switch("b").active_model == "b"
    remembered = json.loads((pair.stack_dir / "run" / "memory.json").read_text(encoding="utf-8"))
    assert remembered["models"]["b"] == {}
    pair.switch("b", "sleeping")
    remembered = json.loads((pair.stack_dir / "run" / "memory.json").read_text(encoding="utf-8"))
    assert remembered["models"]["b"] == {"0": pytest.approx(5, abs=1.5)}
    assert remembered["starts"]["b"] == command.start_id() != ""
    thief.life.close()


def test_a_load_that_would_run_out_of_memory_is_not_tried(pair: Host) -> None:
    pair.switch("b", "stopped")
    pair.call("a", "POST", "/sleep?level=1")
    thief = GpuHost(pair.gpu_dir, ("0",), 24, "python3")
    thief.hold(10)
    loads = len(pair.events())
    with pytest.raises(SwitchFailed, match=rf"process {os.getpid()} \(python3\) holds"):
        pair.switch("b")
    assert len(pair.events()) == loads
    thief.life.close()
    assert pair.switch("b").active_model == "b"


def test_the_memory_of_a_half_awake_target_is_its_own(pair: Host) -> None:
    pair.call("a", "POST", "/sleep?level=1")
    lock = HostLock(str(pair.stack_dir))
    with lock.hold("b active", 1, lambda _done, _seconds: False):
        lock.begin("b", WAKE)
    pair.call("b", "POST", "/wake_up?tags=weights")
    assert pair.switch("b").active_model == "b"


def test_a_report_tells_the_memory_that_each_server_holds(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def held() -> dict[str, float | None]:
        with pair.switcher() as switcher:
            return {name: seen["gpu_memory_gb"] for name, seen in switcher.report()["models"].items()}

    # The one that sleeps holds nothing in the ledger, so its process is not among those of nvidia-smi.
    assert held() == {"a": pytest.approx(20, abs=0.01), "b": None}
    GpuHost(pair.gpu_dir, ("0",), 24, "python3").hold(3)
    assert held()["a"] == pytest.approx(20, abs=0.01)
    pair.switch("a", "stopped")
    assert held() == {"a": None, "b": None}
    pair.switch("a")
    monkeypatch.delenv("STANDIN_GPU_DIR")
    assert held() == {"a": None, "b": None}


def test_memory_is_known_by_uuid_too(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_GPU_DIR", str(host.gpu_dir))
    monkeypatch.setenv("STANDIN_GPU_TOTAL_GB", "24")
    gpu = uuid_of("1")
    for name in "ab":
        settings = {"gpu_total_gb": 24, "gpus": "1"}
        host.declare(name, standin=settings, args={"gpu_memory_utilization": 0.8}, gpus=[gpu])
    host.switch("b")
    host.switch("a")
    remembered = json.loads((host.stack_dir / "run" / "memory.json").read_text(encoding="utf-8"))["models"]
    assert remembered == {"a": {}, "b": {gpu: pytest.approx(20, abs=0.01)}}
    host.call("a", "POST", "/sleep?level=1")
    thief = GpuHost(host.gpu_dir, ("1",), 24, "python3")
    thief.hold(10)
    with pytest.raises(SwitchFailed, match=rf"{gpu} has .* b needs .* process {os.getpid()} \(python3\) holds"):
        host.switch("b")
    assert "POST /wake_up" not in host.changing_calls("b")
    thief.life.close()
    assert host.switch("b").active_model == "b"


def test_a_gpu_that_is_divided_is_not_loaded_as_a_whole(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_GPU_DIR", str(host.gpu_dir))
    host.declare("a")
    monkeypatch.setenv("STANDIN_GPU_MIG", "0")
    with pytest.raises(SwitchFailed, match="is configured to use all of GPU 0, which is divided into MIG instances"):
        host.switch("a")
    monkeypatch.setenv("STANDIN_GPU_MIG", "1")
    assert host.switch("a").active_model == "a"


@pytest.fixture
def shared(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The models a and b on a GPU that has no memory but 128 GB of RAM, of which they take little."""
    monkeypatch.setattr(hardware, "_meminfo_gb", {"MemTotal:": 128.0, "MemAvailable:": 100.0}.get)
    monkeypatch.setenv("STANDIN_GPU_DIR", str(host.gpu_dir))
    monkeypatch.setenv("STANDIN_GPU_COUNT", "1")
    monkeypatch.setenv("STANDIN_GPU_UNIFIED", "1")
    for name in "ab":
        host.declare(name, args={"gpu_memory_utilization": 0.01})
    return host


def test_on_shared_memory_auto_is_level_2(shared: Host) -> None:
    shared.switch("a")
    result = shared.switch("b")
    assert [(s["action"], s.get("level")) for s in result.steps if s["action"] == "sleep"] == [("sleep", 2)]
    assert shared.switch("a", check=True).steps[1]["level"] == 2


def test_shared_memory_is_noticed_before_the_first_sleep(shared: Host) -> None:
    shared.up(a="active")  # somebody else started it
    result = shared.switch("b")
    assert [(s["action"], s.get("level")) for s in result.steps if s["action"] == "sleep"] == [("sleep", 2)]


def test_level_1_on_shared_memory_is_done_and_told(shared: Host) -> None:
    for model in shared.models:
        model["sleep_level"] = "1"
    shared.switch("a")
    result = shared.switch("b")
    assert shared.states() == {"a": "sleeping", "b": "active"}
    assert [warning for warning in result.warnings if "the GPU of this host shares its RAM" in warning]


def test_what_does_not_fit_shared_memory_is_not_woken_or_loaded(shared: Host) -> None:
    shared.switch("a")
    shared.switch("b")
    # More than is available.
    shared.models[0]["args"]["gpu_memory_utilization"] = 1.0
    path = shared.stack_dir / "run" / "memory.json"
    path.write_text(json.dumps({"models": {}, "shared": True}), encoding="utf-8")
    with pytest.raises(SwitchFailed, match=r"GPU 0, which shares the host's RAM, has .* GB free and (a|it) needs"):
        shared.switch("a")
    assert not [call for call in shared.changing_calls("a") if "wake_up" in call]
    assert shared.states() == {"a": "sleeping", "b": "active"}
    shared.switch("a", "stopped")
    with pytest.raises(SwitchFailed, match="GPU 0, which shares the host's RAM, has"):
        shared.switch("a")
