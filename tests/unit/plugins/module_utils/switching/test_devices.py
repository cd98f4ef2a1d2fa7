# SPDX-License-Identifier: MIT
"""What the stacks of a machine share: its GPUs, and the folder of their locks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import devices


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
    with pytest.raises(PermissionError, match="not this user's own folder"):
        devices.private(str(tmp_path / "link"))
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(PermissionError, match="not this user's own folder"):
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
