# SPDX-License-Identifier: MIT
"""What the stacks of a machine share: its GPUs, and the folder of their locks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import devices, hardware


def test_gpus_are_numbered_by_their_addresses(tmp_path: Path) -> None:
    for address in ("0000:c1:00.0", "0000:0a:00.0", "10000:01:00.0", "0000:a2:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / address).mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert devices.read_gpus(str(tmp_path)) == {
        0: "0000:0a:00.0",
        1: "0000:a2:00.0",
        2: "0000:c1:00.0",
        3: "10000:01:00.0",
    }


def test_where_the_driver_tells_of_none_the_device_files_count(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / "dev" / name).touch()
    assert devices.read_gpus(str(tmp_path)) == {0: "nvidia0", 12: "nvidia12"}


def test_a_machine_without_gpus_has_none(tmp_path: Path) -> None:
    assert devices.read_gpus(str(tmp_path)) == {}


@pytest.mark.parametrize(
    ("user", "runtime", "folder"),
    [
        (0, True, "/run/homegpt.vllm"),
        (1000, True, "/run/user/1000/homegpt.vllm"),
        (1000, False, "/tmp/homegpt.vllm-1000"),
    ],
)
def test_where_the_locks_are(monkeypatch: pytest.MonkeyPatch, user: int, runtime: bool, folder: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/run/user/1000" and runtime)
    assert devices.lock_folder() == folder


def test_the_folder_of_the_locks_is_for_its_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    before = os.umask(0)
    try:
        devices.private(str(folder))
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    devices.private(str(folder))
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_somebody_else_has_made_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(PermissionError, match="belongs to another user"):
        devices.private(str(tmp_path / "link"))
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(PermissionError, match="belongs to another user"):
        devices.private(str(tmp_path / "theirs"))


def test_uuids_of_the_driver(tmp_path: Path) -> None:
    for address, text in (
        ("0000:c1:00.0", "Model: \t\t NVIDIA A100\nIRQ:   \t\t 300\nGPU UUID: \t GPU-b\nVideo BIOS: \t ??\n"),
        ("0000:0a:00.0", "Model: NVIDIA A100\nGPU UUID: \t GPU-a\n"),
        ("0000:0b:00.0", "Model: Unknown\nGPU UUID: \t GPU-????????-????\n".replace("GPU-?", "?")),
    ):
        folder = tmp_path / "proc/driver/nvidia/gpus" / address
        folder.mkdir(parents=True)
        (folder / "information").write_text(text, encoding="utf-8")
    (tmp_path / "proc/driver/nvidia/gpus/0000:d0:00.0").mkdir()
    assert devices.read_uuids(str(tmp_path)) == {"GPU-a": 0, "GPU-b": 2}
    assert devices.read_uuids(str(tmp_path / "elsewhere")) == {}


@pytest.fixture
def amd(tmp_path: Path) -> Path:
    """What sysfs says on a machine with two GPUs of AMD's, one within the processor, and a node that is a CPU."""
    nodes = tmp_path / "sys/class/kfd/kfd/topology/nodes"
    for node, kernel_id, minor, unique, total, used in (
        (0, "0", 0, 0, None, None),
        (1, "51247", 128, 0x4B2C1A9F8D3E6F7A, 25753026560, 20_000_000_000),
        (2, "26967", 129, 0, 536870912, 1000),
        (10, "777", 130, 0x1A9F8D3E6F7A, 25753026560, 27856896),
    ):
        (nodes / str(node)).mkdir(parents=True)
        (nodes / str(node) / "gpu_id").write_text(f"{kernel_id}\n", encoding="utf-8")
        said = f"cpu_cores_count 0\nsimd_count 192\ndrm_render_minor {minor}\nunique_id {unique}\n"
        (nodes / str(node) / "properties").write_text(said, encoding="utf-8")
        if total is not None:
            device = tmp_path / f"sys/class/drm/renderD{minor}/device"
            device.mkdir(parents=True)
            (device / "mem_info_vram_total").write_text(f"{total}\n", encoding="utf-8")
            (device / "mem_info_vram_used").write_text(f"{used}\n", encoding="utf-8")
    for pid, name, gpu, held in ((4711, "python3", 51247, 18_000_000_000), (12, "Xorg", 777, 5_000_000)):
        folder = tmp_path / f"sys/class/kfd/kfd/proc/{pid}"
        folder.mkdir(parents=True)
        (folder / "pasid").write_text("32770\n", encoding="utf-8")
        (folder / f"vram_{gpu}").write_text(f"{held}\n", encoding="utf-8")
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/comm").write_text(f"{name}\n", encoding="utf-8")
    return tmp_path


def test_gpus_of_amd_are_numbered_by_their_nodes(amd: Path) -> None:
    assert devices.read_gpus(str(amd)) == {0: "kfd-51247", 1: "kfd-26967", 2: "kfd-777"}
    assert devices.read_uuids(str(amd)) == {"GPU-4b2c1a9f8d3e6f7a": 0, "GPU-00001a9f8d3e6f7a": 2}


def test_memory_of_amds_gpus(amd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(amd))  # no nvidia-smi
    # The one within the processor is there, and unknown: it takes RAM too.
    assert hardware.read_gpus(str(amd)) == {
        0: hardware.Gpu(0, 25.75302656, 5.75302656, "GPU-4b2c1a9f8d3e6f7a"),
        2: hardware.Gpu(2, 25.75302656, 25.725169664, "GPU-00001a9f8d3e6f7a"),
    }
    python = [hardware.Holder(4711, "python3", 18.0)]
    assert hardware.read_holders(0, str(amd)) == python
    assert hardware.read_holders("GPU-4b2c1a9f8d3e6f7a", str(amd)) == python
    assert hardware.read_holders(1, str(amd)) == []
    assert hardware.read_used(str(amd)) == {4711: 18.0, 12: 0.005}
    gpus = hardware.read_gpus(str(amd)) or {}
    assert hardware.read_held(gpus, [4711, 4712], str(amd)) == {0: 18.0}
    assert hardware.read_held(gpus, [4712], str(amd)) == {}


def test_amds_gpus_are_not_asked_where_nvidias_are(amd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(amd))
    (amd / "dev").mkdir()
    (amd / "dev/nvidia0").touch()
    assert devices.read_gpus(str(amd)) == {0: "nvidia0"}
    assert devices.read_uuids(str(amd)) == {}
    assert hardware.read_gpus(str(amd)) is None
    assert hardware.read_holders(0, str(amd)) == []
    assert hardware.read_used(str(amd)) == {}


def test_what_the_kernel_does_not_tell_of_amds_gpus(amd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(amd))
    for minor in (128, 130):
        (amd / f"sys/class/drm/renderD{minor}/device/mem_info_vram_used").unlink()
    (amd / "sys/class/kfd/kfd/topology/nodes/10/properties").unlink()
    assert devices.read_uuids(str(amd)) == {"GPU-4b2c1a9f8d3e6f7a": 0}
    assert hardware.read_gpus(str(amd)) is None
