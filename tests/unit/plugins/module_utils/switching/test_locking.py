# SPDX-License-Identifier: MIT
"""Whom the host's locks keep out: other users, a second switch beside a removed lock, stacks that share a GPU."""

from __future__ import annotations

import builtins
import concurrent.futures
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import __main__ as program
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import (
    LockLost,
    LockTimeout,
    SwitchFailed,
    SwitchingError,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import HostLock
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.server import Server

from .conftest import Host


def once(done: Callable[[], bool], _seconds: float) -> bool:
    """A wait that is over at once."""
    return done()


@pytest.fixture
def pair(host: Host) -> Host:
    """The models a and b, which share a GPU."""
    for name in "ab":
        host.declare(name)
    return host


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- other users --------------------------------------------------------------------------------


def test_the_lock_is_for_its_owner_alone(tmp_path: Path) -> None:
    stack = tmp_path / "stack"
    before = os.umask(0)
    try:
        with HostLock(str(stack), str(tmp_path / "place")).hold("a active", 1, once):
            pass
    finally:
        os.umask(before)
    assert mode(stack / "run" / "switch.lock") == 0o600
    assert mode(stack / "run") == 0o755
    assert mode(tmp_path / "place") == 0o700


def test_what_others_may_write_or_read_is_tightened(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o777)
    lock = run / "switch.lock"
    lock.touch()
    lock.chmod(0o644)
    with HostLock(str(tmp_path), str(tmp_path / "place")).hold("a active", 1, once):
        assert mode(lock) == 0o600
        assert mode(run) == 0o755


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("text", encoding="utf-8")
    (tmp_path / "run" / "switch.lock").symlink_to(tmp_path / "precious")
    with (
        pytest.raises(SwitchingError, match=r"switch\.lock can't be opened"),
        HostLock(str(tmp_path), str(tmp_path / "place")).hold("a active", 1, once),
    ):
        pass
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "text"


def test_who_may_not_read_the_notes_is_told_what_he_is_not_told(
    pair: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair.up(a="active", b=1)
    pair.switch("b")
    with pair.switcher() as switcher:
        assert switcher.report()["warnings"] == []
    opened, access = builtins.open, os.access

    def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("switch.lock"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(os, "access", lambda path, kind: "last_switch" not in str(path) and access(path, kind))
    run = pair.stack_dir / "run"
    warning = (
        f"it is unknown whether a model's last wake was confirmed and what the last switch was: {run} belongs "
        "to another user; run as root (sudo)"
    )
    with pair.switcher() as switcher:
        report = switcher.report()
        assert report["warnings"] == [warning]
        assert report["active_models"] == ["b"]
        assert switcher.switch("a", check=True).warnings == [warning]
        program._status(switcher, program._parser().parse_args(["--stack-dir", str(pair.stack_dir), "status"]))
    assert capsys.readouterr().err == f"warning: {warning}\n"


# ---- a lock that is removed -----------------------------------------------------------------------


def replaced(path: Path) -> None:
    """Another file takes the place of this one."""
    other = path.with_name("other")
    other.touch()
    other.rename(path)


@pytest.mark.parametrize("change", [Path.unlink, replaced])
def test_who_waited_for_a_lock_that_was_removed_takes_the_one_that_counts(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "switch.lock"
    path.touch()
    waiting = HostLock(str(tmp_path), str(tmp_path / "place"))

    def wait(done: Callable[[], bool], _seconds: float) -> bool:
        assert not done()
        change(path)
        return done()

    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with waiting.hold("a active", 1, wait), path.open() as now, pytest.raises(BlockingIOError):
            fcntl.flock(now, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_that_is_removed_lets_nobody_in(tmp_path: Path) -> None:
    first, second = (HostLock(str(tmp_path), str(tmp_path / "place")) for _one in "12")
    with first.hold("a active", 1, once):
        first.check()
        os.unlink(first.path)
        with (
            pytest.raises(
                LockTimeout,
                match=r"waiting for another switch, which holds the host's lock \(process .*: a active, since",
            ),
            second.hold("b active", 1, once),
        ):
            pass
        with pytest.raises(LockLost, match=r"switch\.lock was removed while this switch held it"):
            first.check()
    with second.hold("b active", 1, once):
        second.check()
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize("change", [Path.unlink, replaced])
def test_a_switch_whose_lock_was_removed_wakes_nobody_any_more(
    pair: Host, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    pair.up(a="active", b=1)
    sleep = Server.sleep

    def and_then(self: Server, level: int, mode: str = "wait") -> None:
        sleep(self, level, mode)
        change(pair.stack_dir / "run" / "switch.lock")

    monkeypatch.setattr(Server, "sleep", and_then)
    with pytest.raises(SwitchFailed) as caught:
        pair.switch("b")
    text = str(caught.value)
    assert "was removed while this switch held it, so another switch may be running" in text
    assert "a was active before and could not be restored: the lock " in text
    assert "What to do: check which model is active, then switch again" in text
    assert "POST /wake_up" not in pair.changing_calls("a") + pair.changing_calls("b")[2:]
    monkeypatch.undo()
    assert pair.switch("b").active_model == "b"


def test_two_switches_are_never_at_work_at_once_though_the_lock_was_removed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        host.declare(name, standin={"wake_seconds": 1})
    host.up(a="active", b=1)
    wakes = threading.Event()
    wake = Server.wake

    def begun(self: Server, level: int | None) -> str:
        if not wakes.is_set():
            os.unlink(host.stack_dir / "run" / "switch.lock")
        wakes.set()
        return wake(self, level)

    monkeypatch.setattr(Server, "wake", begun)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(host.switch, "b")
        assert wakes.wait(60)
        second = pool.submit(host.switch, "a")
        assert second.result(60).active_model == "a"
        assert first.result(60).active_model == "b"
    assert host.states() == {"a": "active", "b": "sleeping"}


# ---- stacks that share a GPU ------------------------------------------------------------------------


@pytest.fixture
def locked(host: Host, tmp_path: Path) -> Iterator[Callable[..., HostLock]]:
    """Makes the lock of a stack on a machine with two GPUs."""
    del host

    def make(stack: str = "stack", gpus: dict[int, str] | None = None) -> HostLock:
        there = {0: "0000:0a:00.0", 1: "0000:0b:00.0"} if gpus is None else gpus
        return HostLock(str(tmp_path / stack), str(tmp_path / "place"), lambda: there, lambda: {"GPU-0": 0, "GPU-1": 1})

    yield make
    assert list((tmp_path / "place").iterdir()) == []


def test_two_stacks_that_share_a_gpu_wait_for_each_other(locked: Callable[..., HostLock], tmp_path: Path) -> None:
    told: list[str] = []
    with locked().hold("a active", 1, once, gpus=[1, 0]):
        assert sorted(path.name for path in (tmp_path / "place").iterdir())[:2] == [
            "gpu-0000:0a:00.0", "gpu-0000:0b:00.0",
        ]  # fmt: skip
        assert {mode(path) for path in (tmp_path / "place").iterdir()} == {0o600}
        expected = rf"process {os.getpid()}: a active, since 20.* UTC, of {tmp_path}/stack"
        with (
            pytest.raises(
                LockTimeout, match=rf"^timed out after 3 s .*, which holds the lock of GPU 1 \({expected}\): "
            ),
            locked("other").hold("b active", 3, once, told.append, [1]),
        ):
            pass
    assert len(told) == 1
    assert told[0].startswith("waiting for another switch of GPU 1 (process ")
    with locked("other").hold("b active", 3, once, told.append, [1]):
        pass
    assert len(told) == 1


def test_stacks_on_other_gpus_do_not_meet(locked: Callable[..., HostLock]) -> None:
    with locked().hold("a active", 1, once, gpus=[0]), locked("other").hold("b active", 1, once, gpus=[1]):
        pass


def test_a_gpu_is_locked_alike_by_number_and_by_uuid(locked: Callable[..., HostLock], tmp_path: Path) -> None:
    with (
        locked().hold("a active", 1, once, gpus=["GPU-1"]),
        pytest.raises(LockTimeout, match=r", which holds the lock of GPU 1 "),
        locked("other").hold("b active", 3, once, gpus=[1]),
    ):
        pass
    with (
        locked().hold("a active", 1, once, gpus=[0]),
        pytest.raises(LockTimeout, match=r", which holds the lock of GPU-0 "),
        locked("other").hold("b active", 3, once, gpus=["GPU-1", "GPU-0"]),
    ):
        pass
    # The driver doesn't tell of this one.
    with locked().hold("a active", 1, once, gpus=["GPU-2"]):
        assert "gpu-GPU-2" in [path.name for path in (tmp_path / "place").iterdir()]


def test_a_mig_instance_is_locked_by_itself(locked: Callable[..., HostLock]) -> None:
    with locked().hold("a active", 1, once, gpus=["MIG-1"]):
        with locked("other").hold("b active", 1, once, gpus=["MIG-2", 0]):
            pass
        with (
            pytest.raises(LockTimeout, match=r", which holds the lock of MIG-1 "),
            locked("other").hold("b active", 3, once, gpus=["MIG-1"]),
        ):
            pass


def test_a_machine_without_gpus_locks_none(locked: Callable[..., HostLock], tmp_path: Path) -> None:
    with (
        locked(gpus={}).hold("a active", 1, once, gpus=[0]),
        locked("other", {}).hold("b active", 1, once, gpus=[0]),
    ):
        assert [path.name.split("-")[0] for path in (tmp_path / "place").iterdir()] == ["stack", "stack"]


def test_a_gpus_lock_that_is_removed_is_missed_too(locked: Callable[..., HostLock], tmp_path: Path) -> None:
    lock = locked()
    with lock.hold("a active", 1, once, gpus=[0]):
        (tmp_path / "place" / "gpu-0000:0a:00.0").unlink()
        with pytest.raises(LockLost, match=r"gpu-0000:0a:00\.0 was removed"):
            lock.check()


def test_who_waits_waits_for_all_locks_together(locked: Callable[..., HostLock]) -> None:
    waits: list[float] = []

    def wait(done: Callable[[], bool], seconds: float) -> bool:
        waits.append(seconds)
        return done()

    with (
        locked("other").hold("b active", 1, once, gpus=[0]),
        pytest.raises(LockTimeout),
        locked().hold("a active", 7, wait, gpus=[0]),
    ):
        pass
    assert waits == [7]


def test_a_place_that_is_not_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "place").touch()
    lock = HostLock(str(tmp_path), str(tmp_path / "place"))
    with (
        pytest.raises(
            SwitchingError, match=r"the lock .*/place/stack-.* can't be opened \(the directory belongs to another user"
        ),
        lock.hold("a active", 1, once),
    ):
        pass
    # Nothing of it is held.
    with HostLock(str(tmp_path), str(tmp_path / "other")).hold("a active", 1, once):
        pass


def test_a_switch_locks_the_gpus_that_it_may_have_to_do_with(
    host: Host, locked: Callable[..., HostLock], tmp_path: Path
) -> None:
    host.declare("a", gpus=[0])
    host.declare("b", gpus=[0])
    host.declare("c", gpus=[1], standin={"gpus": "1"})
    host.settings["lock_timeout_seconds"] = 0.3
    host.up(a="active", b=1, c=1)
    with locked("other").hold("x active", 1, once, gpus=[0]):
        with pytest.raises(LockTimeout, match="the lock of GPU 0"), host.switcher(lock=locked()) as switcher:
            switcher.switch("b")
        with host.switcher(lock=locked()) as switcher:
            assert switcher.switch("c").active_model == "c"
    assert host.states() == {"a": "active", "b": "sleeping", "c": "active"}
