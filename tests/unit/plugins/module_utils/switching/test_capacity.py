# SPDX-License-Identifier: MIT
"""What memory a host has, as nvidia-smi and the kernel tell it, and whether an inventory goes with that."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import capacity, costs, hardware, memory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.hardware import Gpu, Holder
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, parse

from tests.standin.gpu import GpuHost, uuid_of

GPU_24 = {0: Gpu(0, 24.0, 24.0)}


def declared(switching: dict[str, Any] | None = None, **models: dict[str, Any]) -> Inventory:
    """An inventory of models by their ids."""
    listed = [
        {"id": name, "model": f"org/{name}", "host_port": 8001 + n, **m} for n, (name, m) in enumerate(models.items())
    ]
    return parse(listed, switching)


@pytest.fixture
def gpu_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GPUs that the nvidia-smi on the PATH tells of: two of 24 GB."""
    monkeypatch.setenv("STANDIN_GPU_DIR", str(tmp_path / "gpus"))
    monkeypatch.delenv("STANDIN_GPU_TOTAL_GB", raising=False)
    return tmp_path / "gpus"


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a nvidia-smi on the PATH that is a shell script."""

    def say(script: str) -> None:
        path = tmp_path / "path" / "nvidia-smi"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)

    return say


# nvidia-smi


def test_gpus_nobody_uses(gpu_dir: Path) -> None:
    gpus = hardware.read_gpus()
    assert gpus is not None
    assert list(gpus) == [0, 1]
    assert gpus[1].index == 1
    # nvidia-smi tells whole MiB.
    assert gpus[1].total_gb == pytest.approx(24.0, abs=0.001)
    assert gpus[1].free_gb == gpus[1].total_gb
    assert hardware.read_holders(0) == []


def test_gpus_that_somebody_uses(gpu_dir: Path) -> None:
    both, one = GpuHost(gpu_dir, ("0", "1"), 24.0, "big"), GpuHost(gpu_dir, ("1",), 24.0, "python3, not vLLM")
    both.hold(16.0)
    one.hold(3.5)
    gpus = hardware.read_gpus()
    assert gpus is not None
    assert [gpu.free_gb for gpu in gpus.values()] == pytest.approx([8.0, 4.5], abs=0.002)
    assert [holder.name for holder in hardware.read_holders(0)] == ["big"]
    holders = hardware.read_holders(1)
    assert [(holder.pid, holder.name) for holder in holders] == [
        (os.getpid(), "big"),
        (os.getpid(), "python3, not vLLM"),
    ]
    assert [holder.used_gb for holder in holders] == pytest.approx([16.0, 3.5], abs=0.001)
    assert hardware.read_holders(7) == []


def test_who_was_killed_holds_nothing(gpu_dir: Path) -> None:
    program = f"""
import os, pathlib
from tests.standin.gpu import GpuHost, uuid_of
GpuHost(pathlib.Path({str(gpu_dir)!r}), ("0",), 24.0, "gone").hold(20.0)
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[5], check=False, timeout=300)
    assert "gone" in (gpu_dir / "ledger.json").read_text(encoding="utf-8")
    gpus = hardware.read_gpus()
    assert gpus is not None
    assert gpus[0].free_gb == gpus[0].total_gb


def test_no_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.read_gpus() is None
    assert hardware.read_holders(0) == []


@pytest.mark.parametrize(
    "script",
    [
        "echo 'No devices were found'; exit 6",
        "echo 'No devices were found'",
        "exit 0",
        "echo '0, GPU-1, 24576, 24000'; exit 15",
        "echo 'a, b, c, d'",
        "echo '0, GPU-1, [N/A], [N/A]'",  # unified memory
        "echo '0, GPU-1, [Unknown Error], 24000'",
        "printf '\\377\\376'",
    ],
)
def test_a_nvidia_smi_that_does_not_tell(says: Any, script: str) -> None:
    says(script)
    assert hardware.read_gpus() is None
    assert hardware.read_holders(0) == []


def test_a_gpu_that_does_not_tell_is_left_out(says: Any) -> None:
    says("echo '0, GPU-1, [N/A], [N/A]'; echo '1, GPU-2, 1000, 500'")
    gpus = hardware.read_gpus()
    assert gpus == {1: Gpu(1, 1.048576, 0.524288, "GPU-2")}
    # It is there nevertheless.
    assert capacity.lint(declared(a={"args": {"gpu_memory_utilization": 1}}), None, gpus) == []


def test_processes_whose_memory_is_not_told(says: Any) -> None:
    says(
        """case $1 in
        --query-gpu*) echo '0, GPU-1, 1000, 500' ;;
        *)
            echo 'GPU-1, 11, python3, [N/A]'
            echo 'GPU-1, 12, [Not Found], 1000'
            echo 'GPU-2, 13, python3, 1000'
            echo
            ;;
        esac"""
    )
    assert hardware.read_holders(0) == [Holder(12, "[Not Found]", 1.048576)]
    gpus = {0: Gpu(0, 24.0, 3.0, "GPU-1"), 1: Gpu(1, 24.0, 3.0, "GPU-2")}
    assert hardware.read_held(gpus, [12, 13]) == {0: 1.048576, 1: 1.048576}
    assert hardware.read_held(gpus, [11, 12, 13]) == {1: 1.048576}  # not of one of which a part is not told
    assert hardware.read_held(gpus, [14]) == {}


def test_what_each_process_holds(says: Any) -> None:
    says(
        """echo 'GPU-1, 11, python3, 1000'
        echo 'GPU-2, 11, python3, with a comma, 500'
        echo 'GPU-1, 12, [Not Found], [N/A]'
        echo 'GPU-2, 12, [Not Found], 1000'
        echo 'GPU-2, 13, python3, [N/A]'
        echo 'GPU-2, ?, python3, 7'
        echo"""
    )
    assert hardware.read_used() == {11: pytest.approx(1.572864), 12: None, 13: None}
    says("echo 'No devices were found'; exit 6")
    assert hardware.read_used() == {}


def test_a_nvidia_smi_that_hangs(says: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "NVIDIA_SMI_TIMEOUT_SECONDS", 0.2)
    # The process that it leaves behind keeps its output open.
    says("sleep 20 & sleep 20")
    started = time.monotonic()
    assert hardware.read_gpus() is None
    assert time.monotonic() - started < 15


def test_the_kernel_tells_the_ram() -> None:
    ram = hardware.read_ram_total_gb()
    assert ram == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, rel=0.01)


# What is remembered


def test_what_is_remembered(tmp_path: Path) -> None:
    stack = str(tmp_path / "stack")
    assert memory.remembered(stack) == {}
    memory.remember(stack, "a", {0: 20.5, 1: 20.25})
    memory.remember(stack, "b", {1: 3.0})
    memory.remember(stack, "a", {0: 21.0})
    assert memory.remembered(stack) == {"a": {0: 21.0}, "b": {1: 3.0}}
    path = tmp_path / "stack/run/memory.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.stat()
    memory.remember(stack, "b", {1: 3.0})
    assert path.stat().st_ino == before.st_ino
    assert memory.remembered_of(stack, "b") == ""
    memory.remember(stack, "b", {1: 3.0}, "4711 on Monday")
    assert memory.remembered_of(stack, "b") == "4711 on Monday"
    assert memory.remembered(stack) == {"a": {0: 21.0}, "b": {1: 3.0}}
    assert [left.name for left in path.parent.iterdir()] == ["memory.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "\x00\xff", '{"models": 3}', '{"models": {"a": 3}}', '{"models": {"a": {"x": 1}}}',
     '{"models": {"a": {"0": "much"}}}', '{"models": {"a": {"0": null}}}', '{"models": {"a": {"0": NaN}}}',
     '{"models": {"a": {"0": 1e999}}}', '{"models": {"a": {"0": "much"}}, "starts": 3}'],
)  # fmt: skip
def test_a_damaged_record_is_none_and_is_recovered(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run/memory.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    assert memory.remembered(str(tmp_path)) == {}
    (tmp_path / "run/memory.json.new").write_text("left by somebody who was killed", encoding="utf-8")
    memory.remember(str(tmp_path), "a", {0: 1.0})
    assert json.loads(path.read_text(encoding="utf-8")) == {"models": {"a": {"0": 1.0}}, "starts": {"a": ""}}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_record_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file", encoding="utf-8")
    with pytest.raises(OSError):
        memory.remember(str(tmp_path), "a", {0: 1.0})


# Before a load or a wake


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({}, 0.92),
        ({"args": {"gpu_memory_utilization": 0.5}}, 0.5),
        ({"args": {"gpu-memory-utilization": "0.5"}}, 0.5),
        *(
            ({"args": {"gpu_memory_utilization": odd}}, 0.92)
            for odd in ("most", "", None, [0.5], True, 0, 90, -1, "nan")
        ),
        ({"start_command": ["vllm", "serve", "--gpu-memory-utilization", "0.5"]}, 0.5),
        ({"start_command": ["vllm", "serve", "--gpu-memory-utilization=0.5"]}, 0.5),
        ({"start_command": ["sh", "-c", "exec vllm serve --gpu-memory-utilization 0.5 x"]}, 0.5),
    ],
)
def test_what_vllm_insists_on_when_it_loads(fields: dict[str, Any], share: float) -> None:
    model = declared(a={"gpus": [0, 2], **fields, "args": {"tensor_parallel_size": 2, **fields.get("args", {})}}).find(
        "a"
    )
    gpus = {0: Gpu(0, 10.0, 1.0), 1: Gpu(1, 20.0, 1.0), 2: Gpu(2, 30.0, 1.0)}
    assert memory.load_need(model, gpus) == pytest.approx({0: 10 * share, 2: 30 * share})
    assert memory.load_need(model, GPU_24) == pytest.approx({0: 24 * share})
    assert memory.load_need(model, None) == {}


def test_a_server_that_is_not_vllm_loads_as_it_likes() -> None:
    model = declared(a={"state_request": {"endpoint": "/state", "sleeping": "yes"}}).find("a")
    assert memory.load_need(model, GPU_24) == {}


def test_nothing_is_short() -> None:
    model = declared(a={}).find("a")
    gpus = {0: Gpu(0, 24.0, 20.0)}

    def asked(index: int | str) -> list[Holder]:
        raise AssertionError(f"nobody has to be asked about GPU {index}")

    needs: list[memory.Need] = [{}, {0: 20.0}, {0: 20.24}, {1: 99.0}]
    for need in needs:
        assert memory.shortage(model, need, gpus, asked) == ""
    assert memory.shortage(model, {0: 99.0}, None, asked) == ""


def test_who_holds_what_is_short() -> None:
    model = declared(qwen={}).find("qwen")
    gpus = {0: Gpu(0, 24.0, 3.1), 1: Gpu(1, 24.0, 23.0), 2: Gpu(2, 24.0, 2.0)}
    holders: dict[int | str, list[Holder]] = {
        0: [Holder(4711, "python3", 20.95), Holder(12, "Xorg", 0.2)],
        2: [Holder(1, "a", 15.0), Holder(2, "b", 5.0), Holder(3, "c", 1.0)],
    }
    first = "GPU 0 has 3.1 GB free and qwen needs 20.0 GB: process 4711 (python3) holds 20.9 GB"
    assert memory.shortage(model, {0: 20.0}, gpus, holders.__getitem__) == first
    assert memory.shortage(model, {0: 20.0, 1: 20.0, 2: 20.0}, gpus, holders.__getitem__) == (
        f"{first}. GPU 2 has 2.0 GB free and qwen needs 20.0 GB: process 1 (a) holds 15.0 GB, process 2 (b) holds 5.0 "
        "GB and process 3 (c) holds 1.0 GB"
    )
    nobody = memory.shortage(model, {0: 20.0}, gpus, lambda index: [])
    assert nobody.startswith(
        "GPU 0 has 3.1 GB free and qwen needs 20.0 GB: nvidia-smi lists no process that holds it; "
    )


def test_a_shortage_seen_by_nvidia_smi(gpu_dir: Path) -> None:
    foreign = GpuHost(gpu_dir, ("1",), 24.0, "python3")
    foreign.hold(21.0)
    model = declared(a={"gpus": [0, 1]}).find("a")
    gpus = hardware.read_gpus()
    message = memory.shortage(model, memory.load_need(model, gpus), gpus)
    assert message == (f"GPU 1 has 3.0 GB free and a needs 22.1 GB: process {os.getpid()} (python3) holds 21.0 GB")


# The whole inventory


def at_1(weights: float, **more: Any) -> dict[str, Any]:
    return {"weights_gb": weights, "sleep_level": "1", **more}


def test_what_fits() -> None:
    small = {"args": {"gpu_memory_utilization": 0.9}, "gpu_memory_gb": 20}
    inventory = declared(a={**small, "startup_mode": "active"}, b=at_1(60, **small), c=at_1(60, **small))
    assert capacity.lint(inventory, 128.0, GPU_24) == []
    assert capacity.lint(inventory, None, None) == []
    assert capacity.advice(inventory, 128.0) == []
    assert capacity.advice(inventory, None) == []


def test_weights_that_do_not_fit_the_ram() -> None:
    models = {"a": at_1(30, startup_mode="active"), "b": at_1(50), "c": at_1(40), "d": {"weights_gb": 500, "gpus": [1]}}
    inventory = declared(None, **models)
    assert capacity.lint(inventory, 100.0, None) == []
    # It is c's turn: a and b sleep then. Where b does, a and c do; at the start b and c.
    assert capacity.lint(inventory, 89.9, None) == [
        "the weights of b and c take 90.0 GB of RAM when they sleep at level 1, but the host has 89.9 GB: set "
        "sleep_level of b to 2"
    ]
    assert capacity.lint(inventory, 69.0, None) == [
        "the weights of b and c take 90.0 GB of RAM when they sleep at level 1, but the host has 69.0 GB: set "
        "sleep_level of b and c to 2"
    ]
    # And that remedy is one.
    for level in ("2", "auto", "stop"):
        cured = {**models, "b": {**models["b"], "sleep_level": level}, "c": {**models["c"], "sleep_level": level}}
        assert capacity.lint(declared(None, **cured), 69.0, None) == []
    disabled = {**models, "b": {**models["b"], "startup_mode": "disabled"}}
    assert capacity.lint(declared(None, **disabled), 70.0, None) == []


def test_weights_of_the_default_model_count_when_another_is_active() -> None:
    inventory = declared(
        a=at_1(90, startup_mode="active"), b=at_1(10), elsewhere=at_1(20, gpus=[1], startup_mode="active")
    )
    assert capacity.lint(inventory, 95.0, None) == []
    assert capacity.lint(inventory, 80.0, None) == [
        "the weights of a take 90.0 GB of RAM when it sleeps at level 1, but the host has 80.0 GB: set "
        "sleep_level of a to 2"
    ]


def test_weights_that_do_not_fit_what_is_set_aside() -> None:
    inventory = declared({"available_ram_gb": 64}, a=at_1(40), b=at_1(30), c=at_1(20))
    said = (
        "the weights of a, b and c take 90.0 GB of RAM when they sleep at level 1, but vllm_switching.available_ram_gb "
        "allows 64.0 GB: set sleep_level of a to 2, or raise available_ram_gb"
    )
    assert capacity.lint(inventory, 256.0, None) == [said]
    assert capacity.lint(inventory, None, None) == [said]


def test_more_set_aside_than_there_is() -> None:
    assert capacity.advice(declared({"available_ram_gb": 128}, a={}), 67.2) == [
        "vllm_switching.available_ram_gb is 128.0, but the host has 67.2 GB of RAM: set it to the RAM "
        "that the host can spare for the weights of sleeping models"
    ]


def test_gpus_that_are_not_there() -> None:
    inventory = declared(a={"gpus": [0, 2, 3]}, b={"gpus": [1]}, off={"gpus": [9], "startup_mode": "disabled"})
    gpus = {0: Gpu(0, 24.0, 0.0), 1: Gpu(1, 24.0, 0.0)}
    assert capacity.lint(inventory, None, gpus) == [
        "a: gpus names GPU 2 and 3, but the host has 0 and 1: correct its gpus"
    ]


def test_a_model_that_does_not_fit_its_gpus() -> None:
    inventory = declared(a={"gpu_memory_gb": 50, "gpus": [0, 1]})
    gpus = {0: Gpu(0, 24.0, 0.0), 1: Gpu(1, 24.0, 0.0)}
    assert capacity.lint(inventory, None, gpus) == [
        "GPU 0 has 24.0 GB and a takes 25.0 GB of it (gpu_memory_gb): give a more GPUs (gpus), or correct its "
        "gpu_memory_gb"
    ]
    assert capacity.lint(declared(a={"gpu_memory_gb": 48, "gpus": [0, 1]}), None, gpus) == []


def test_a_model_that_does_not_fit_beside_the_sleepers() -> None:
    models: dict[str, Any] = {
        "a": {"gpu_memory_gb": 22.5, "startup_mode": "active"},
        "b": {},
        "c": {},
        "away": {"gpus": [1]},
        "ends": {"sleep_level": "stop"},
        "off": {"startup_mode": "disabled"},
    }
    gpus = {0: Gpu(0, 24.0, 0.0), 1: Gpu(1, 24.0, 0.0)}
    # The others load with the share that vLLM takes unasked.
    (problem, *others) = capacity.lint(declared(None, **models), None, gpus)
    assert problem == (
        "GPU 0 has 24.0 GB and a takes 22.5 GB of it (gpu_memory_gb), and b and c keep about 1.0 GB each while "
        "asleep: set sleep_level of c to stop, or give a more GPUs (gpus), or correct its gpu_memory_gb"
    )
    assert [text.split(" needs")[0] for text in others] == [f"GPU 0 has 24.0 GB, but {m}" for m in ("b", "c", "ends")]


def test_a_model_that_can_not_load_beside_the_sleepers() -> None:
    inventory = declared(
        a={"startup_mode": "active", "args": {"gpu_memory_utilization": 0.5}},
        b={"args": {"gpu_memory_utilization": 0.93}},
        c={"args": {"gpu_memory_utilization": "0.5"}},
        d={"start_command": ["vllm", "serve"], "sleep_level": "stop"},
    )
    assert capacity.lint(inventory, None, GPU_24) == [
        "GPU 0 has 24.0 GB, but b needs 22.3 GB of free memory to load (gpu_memory_utilization 0.93), and a and c keep "
        "about 1.0 GB each while asleep: set args.gpu_memory_utilization to at most 0.91, or set sleep_level of "
        "c to stop",
        "GPU 0 has 24.0 GB, but d needs 22.1 GB of free memory to load (gpu_memory_utilization 0.92), and a, b and c "
        "keep about 1.0 GB each while asleep: set --gpu-memory-utilization in its start_command to at most 0.87, or "
        "set sleep_level of c and b to stop",
    ]


def test_a_crowd_that_leaves_nothing() -> None:
    inventory = declared(None, **{f"m{n}": {"args": {"gpu_memory_utilization": 0.1}} for n in range(30)})
    problems = capacity.lint(inventory, None, GPU_24)
    assert len(problems) == 30
    assert problems[0].endswith(" to stop")
    assert "at most" not in problems[0]


# The host's own command line


def test_lint_on_the_host(tmp_path: Path, gpu_dir: Path) -> None:
    shutil.copytree(Path(capacity.__file__).parent, tmp_path / "switching")
    # It asks no server, so it doesn't want the library.
    (tmp_path / "requests.py").write_text("raise ImportError('no requests here')", encoding="utf-8")

    def lint(switching: dict[str, Any], *models: dict[str, Any]) -> tuple[int, list[str], str]:
        listed = [{"model": "org/a", "host_port": 8001 + number, **model} for number, model in enumerate(models)]
        given = {"vllm_models": listed, "vllm_switching": switching}
        (tmp_path / "models.json").write_text(json.dumps(given), encoding="utf-8")
        command = [sys.executable, "-m", "switching", "lint"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        return run.returncode, run.stdout.splitlines(), run.stderr

    assert lint({"available_ram_gb": 1}, {"id": "a"}) == (0, [], "")
    status, lines, said = lint({"available_ram_gb": 1e6}, {"id": "a", "gpus": [3]}, {"id": "b", **at_1(1e6)})
    assert (status, said) == (1, "")
    assert [line[:40] for line in lines] == [
        "problem: a: gpus names GPU 3, but the host has 0 and 1: correct its gpus"[:40],
        "problem: the weights of b take 1000000.0 GB of RAM"[:40],
        "advice: vllm_switching.available_ram_gb is 1000000.0"[:40],
    ]
    status, lines, said = lint({}, {"id": "A"})
    assert (status, lines) == (2, [])
    assert said.startswith("the model inventory has 1 mistake")


# GPUs by their UUIDs


def test_gpus_are_known_by_number_and_by_uuid(gpu_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_GPU_MIG", "1")
    gpus = hardware.read_gpus()
    assert gpus is not None
    assert [(gpu.uuid, gpu.divided) for gpu in gpus.values()] == [(uuid_of("0"), False), (uuid_of("1"), True)]
    names: list[int | str] = [0, uuid_of("1"), 7, uuid_of("7"), "MIG-8f3b7c1e-2d4a-5b6c-9e8f-0a1b2c3d4e5f"]
    assert hardware.named(gpus, names) == {0: gpus[0], uuid_of("1"): gpus[1]}
    host = GpuHost(gpu_dir, ("1",), 24.0, "python3")
    host.hold(3)
    assert [holder.name for holder in hardware.read_holders(uuid_of("1"))] == ["python3"]
    assert hardware.read_holders(uuid_of("0")) == []


def test_what_is_remembered_by_uuid(tmp_path: Path) -> None:
    memory.remember(str(tmp_path), "a", {uuid_of("0"): 3.5})
    assert memory.remembered(str(tmp_path)) == {"a": {uuid_of("0"): 3.5}}


def test_lint_of_gpus_by_uuid() -> None:
    first, second, other = map(uuid_of, "015")
    gpus = {0: Gpu(0, 24.0, 24.0, first), 1: Gpu(1, 48.0, 48.0, second, divided=True)}
    mig = "MIG-8f3b7c1e-2d4a-5b6c-9e8f-0a1b2c3d4e5f"
    inventory = declared(
        a={"gpus": [first], "gpu_memory_gb": 30, "args": {"gpu_memory_utilization": 0.9}},
        b={"gpus": [second], "gpu_memory_gb": 90},
        c={"gpus": [other]},
        d={"gpus": [mig]},
    )
    assert capacity.lint(inventory, None, gpus) == [
        f"{first} has 24.0 GB and a takes 30.0 GB of it (gpu_memory_gb): give a more GPUs (gpus), or correct its "
        "gpu_memory_gb",
        f"b is configured to use all of {second}, which is divided into MIG instances: set its gpus to one of these "
        "(nvidia-smi -L)",
        f"c: gpus names {other}, but the host has {first} and {second}: correct its gpus",
    ]
    # One that does not tell its memory does not tell its UUID either.
    assert capacity.lint(declared(c={"gpus": [other]}), None, {1: gpus[1]}) == []
    short = memory.shortage(inventory.models[0], {first: 21.6}, {0: Gpu(0, 24.0, 8.0, first)}, lambda _name: [])
    assert short.startswith(f"{first} has 8.0 GB free and a needs 21.6 GB: ")


# Memory that CPU and GPU share


RAM = 128.0
SHARED = {0: Gpu(0, RAM, 100.0, uuid_of("0"), unified=True)}


def test_gpus_without_memory_of_their_own(gpu_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_GPU_UNIFIED", "1")
    monkeypatch.setenv("STANDIN_GPU_COUNT", "1")
    monkeypatch.setattr(hardware, "_meminfo_gb", {"MemTotal:": RAM, "MemAvailable:": 100.0}.get)
    gpus = hardware.read_gpus()
    assert gpus == SHARED
    assert hardware.shared(gpus) is True
    # Processes are told of as anywhere.
    host = GpuHost(gpu_dir, ("0",), 24.0, "python3")
    host.hold(3)
    assert [holder.name for holder in hardware.read_holders(0)] == ["python3"]
    assert hardware.shared({0: Gpu(0, 24.0, 24.0)}) is False
    assert hardware.shared(None) is None


@pytest.mark.parametrize(
    "rows",
    [
        "0, GPU-1, [N/A], [N/A], Enabled",  # divided, seen from within a container
        "0, GPU-1, [N/A], [Unknown Error], [N/A]",
        "0, GPU-1, [GPU is lost], [GPU is lost], [N/A]",
        "0, GPU-1, [Insufficient Permissions], [Insufficient Permissions], Disabled",
    ],
)
def test_memory_that_is_not_told_for_another_reason(says: Any, rows: str) -> None:
    says(f"echo '{rows}'")
    assert hardware.read_gpus() is None


def test_one_gpu_that_tells_is_enough_to_know_that_none_shares(says: Any) -> None:
    says("echo '0, GPU-1, [N/A], [N/A], [N/A]'; echo '1, GPU-2, 1000, 500, Disabled'")
    assert hardware.read_gpus() == {1: Gpu(1, 1.048576, 0.524288, "GPU-2")}


def test_that_memory_is_shared_is_remembered(tmp_path: Path) -> None:
    stack = str(tmp_path)
    assert not memory.remembered_shared(stack)
    memory.remember(stack, "a", {}, gpus=SHARED)
    assert memory.remembered_shared(stack)
    memory.remember(stack, "a", {0: 3.0}, "start")
    assert memory.remembered_shared(stack)
    assert memory.remembered(stack) == {"a": {0: 3.0}}
    memory.remember(stack, "a", {0: 3.0}, "start", {0: Gpu(0, 24.0, 24.0)})
    assert not memory.remembered_shared(stack)


def test_what_a_wake_takes_of_shared_memory() -> None:
    model = declared(a={"weights_gb": 30, "args": {"gpu_memory_utilization": 0.5}}).models[0]
    assert memory.wake_need(model, 2, SHARED) == {0: 63.0}
    assert memory.wake_need(model, 1, SHARED) == {0: 33.0}
    assert memory.wake_need(model, None, SHARED) == {0: 33.0}
    assert memory.wake_need(model, 2, {0: Gpu(0, RAM, RAM)}) == {}
    assert memory.wake_need(model, 2, None) == {}


def test_a_shortage_of_shared_memory() -> None:
    model = declared(a={}).models[0]
    assert memory.shortage(model, {0: 100.1}, SHARED) == ""
    assert memory.shortage(model, {0: 110.0}, SHARED, lambda _name: []) == (
        "GPU 0, which shares the host's RAM, has 100.0 GB free and a needs 110.0 GB: end other processes that use RAM "
        "(ps aux --sort=-rss), or give the model less memory (gpu_memory_utilization)"
    )


def test_lint_and_advice_of_shared_memory() -> None:
    inventory = declared(
        a={"gpu_memory_gb": 80, "args": {"gpu_memory_utilization": 0.7}},
        b={"gpu_memory_gb": 40, "weights_gb": 40, "sleep_level": "1", "args": {"gpu_memory_utilization": 0.4}},
        c={"gpu_memory_gb": 40, "weights_gb": 40, "args": {"gpu_memory_utilization": 0.4}},
    )
    # What sleeps at level 1 holds its weights beside who is awake.
    assert capacity.lint(inventory, RAM, {0: Gpu(0, RAM, RAM)}) == []
    assert capacity.lint(inventory, RAM, SHARED) == [
        "GPU 0 has 128.0 GB, but a needs 89.6 GB of free memory to load (gpu_memory_utilization 0.7), and b and c keep "
        "about 42.0 GB while asleep, including weights at level 1: set args.gpu_memory_utilization to at most 0.67, or "
        "set sleep_level of b to 2"
    ]
    assert capacity.advice(inventory, RAM, SHARED) == [
        "the GPU of this host shares its RAM, so the weights of b stay in that memory at sleep_level 1: set it to "
        "auto, 2 or stop"
    ]
    assert capacity.advice(declared({"available_ram_gb": 999}, a={}), RAM, SHARED) == []


@pytest.mark.parametrize(
    ("model", "budget", "slow", "said"),
    [
        ({"sleep_level": "1"}, 128, 1, "set its sleep_level to auto instead of 1"),
        ({"sleep_level": "2"}, 128, 2, "set its sleep_level to auto instead of 2"),
        ({"sleep_level": "1"}, 128, 2, ""),
        # It sleeps at level 1 whatever the budget is.
        ({"sleep_level": "1"}, 60, 2, ""),
        ({"sleep_level": "2"}, 128, 1, ""),
        ({"sleep_level": "stop"}, 10, 2, ""),
        ({}, 128, 1, ""),
        ({}, 128, 2, ""),
        ({}, 128, 0, ""),
        ({"sleep_level": "1"}, 128, 0, ""),
        (
            {},
            63,
            2,
            "set vllm_switching.available_ram_gb to at least 64, if the host has that much RAM to spare",
        ),
        (
            {"sleep_level": "2", "weights_gb": 100},
            99,
            2,
            "set its sleep_level to auto instead of 2, and vllm_switching.available_ram_gb to at least 100, if the "
            "host has that much RAM to spare",
        ),
        (
            {"weights_gb": 100.4},
            100.2,
            2,
            "set vllm_switching.available_ram_gb to at least 101, if the host has that much RAM to spare",
        ),
    ],
)
def test_advice_by_what_levels_have_taken(model: dict[str, Any], budget: float, slow: int, said: str) -> None:
    """C(slow) is the level that takes longer, 0 where none does."""
    inventory = declared({"available_ram_gb": budget}, a=model)
    seconds = {1: 1.0, 2: 1.0, slow: 2.0}
    levels = {str(n): {"sleep": [seconds[n]], "wake": [[seconds[n], None]]} for n in (1, 2)}
    measured = {"a": {"served": costs.served(inventory.models[0]), "levels": levels}}
    advice = capacity.advice(inventory, 1000.0, None, measured)
    assert [line.split("): ")[1] for line in advice] == ([said] if said else [])
    if said:
        why = f"level {3 - slow}: 2.0 s measured (1), level {slow}: 4.0 s (1)"
        assert advice[0].startswith(f"a would switch faster at another level ({why}): ")
    assert capacity.advice(inventory, 1000.0, None, {"a": {**measured["a"], "served": ""}}) == []
    # There level 1 is of no use.
    faster = [] if slow == 2 or not said else advice
    assert [line for line in capacity.advice(inventory, 1000.0, SHARED, measured) if "faster" in line] == faster
