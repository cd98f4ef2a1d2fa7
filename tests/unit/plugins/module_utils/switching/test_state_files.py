# SPDX-License-Identifier: MIT
"""What a switch writes down: known to be possible before anything is done; a warning, when it fails after."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import __main__ as program
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed, SwitchingError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.executor import Executor
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import HostLock
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import WAKE
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result

from tests.part import ROOT

from .conftest import Host, Processes


@pytest.fixture
def pair(host: Host) -> Host:
    """The models a and b, which share a GPU."""
    for name in "ab":
        host.declare(name)
    return host


def no_room(*_arguments: Any, **_options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_the_end(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Something happens while the last step of a switch is done."""
    verify = Executor._verify

    def last(self: Executor, step: Any) -> str | None:
        happens()
        return verify(self, step)

    monkeypatch.setattr(Executor, "_verify", last)


def broken_disk(_file: object) -> None:
    """In place of what reads a file."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def refused(pair: Host) -> str:
    """What a switch says that does nothing."""
    before, states = pair.all_changing_calls(), pair.states()
    with pytest.raises(SwitchingError) as caught:
        pair.switch("b")
    assert not isinstance(caught.value, SwitchFailed)
    assert (pair.all_changing_calls(), pair.states()) == (before, states)
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "1e999", "\0"])
def test_what_can_not_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "canary.json").write_text(text, encoding="utf-8")
    assert state_files.models(str(tmp_path), state_files.CANARY) == {}


@pytest.mark.parametrize("name", ["wanted.json", "wanted.json.new"])
def test_what_cannot_be_recorded_is_not_begun(pair: Host, name: str) -> None:
    pair.up(a="active", b=1)
    (pair.stack_dir / "run" / name).mkdir()
    assert refused(pair) == (
        f"nothing was changed: a switch writes state files, and {pair.stack_dir}/run/{name} can't be written "
        "(Is a directory): remove it"
    )
    # What is as it should be needs no room.
    assert not pair.switch("a").changed


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "(No space left on device): free space on that disk"),
        (errno.EDQUOT, "(Disk quota exceeded): free space there, or raise the quota"),
        (errno.EROFS, "(Read-only file system): mount that disk read-write"),
        (errno.EACCES, "(Permission denied): run as a user who may write there"),
    ],
)
def test_a_disk_that_takes_no_record_is_known_before_anything_is_touched(
    pair: Host, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise OSError(number, os.strerror(number))

    pair.up(a="active", b=1)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert refused(pair).endswith(f"{pair.stack_dir}/run can't be written {remedy}")


def test_room_is_written_to_and_given_back(tmp_path: Path) -> None:
    state_files.prove(str(tmp_path), "wanted")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_switch_whose_records_cannot_be_written_any_more_is_told_as_done(
    pair: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.up(a="active", b=1)
    run = pair.stack_dir / "run"

    def full() -> None:
        for name in ("wanted", "last_switch"):
            (run / f"{name}.json.new").mkdir()

    at_the_end(monkeypatch, full)
    result = pair.switch("b")
    assert result.active_model == "b"
    assert {name: seen.state for name, seen in result.models.items()} == pair.states()
    assert pair.states() == {"a": "sleeping", "b": "active"}
    status, back = result.warnings
    assert status.startswith(f"{run}/last_switch.json can't be written (")
    assert status.endswith("): status shows an earlier switch as the last one")
    assert back.startswith(f"the switch succeeded, but {run}/wanted.json can't be written (")


def test_the_command_line_says_so_and_succeeds(
    pair: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair.up(a="active", b=1)
    declaration = {"vllm_models": pair.models, "vllm_switching": pair.settings}
    (pair.stack_dir / "models.json").write_text(json.dumps(declaration), encoding="utf-8")
    at_the_end(monkeypatch, (pair.stack_dir / "run" / "wanted.json.new").mkdir)
    assert program.main(["--stack-dir", str(pair.stack_dir), "switch", "b"]) == 0
    printed, said = capsys.readouterr()
    assert printed.splitlines()[-1] == "b: active"
    assert said.startswith("warning: the switch succeeded, but ")


def test_a_failed_switch_that_cannot_be_recorded_still_says_why_it_failed(
    pair: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.settings["escalation"] = ["roll_back"]
    pair.up(a="active", b=1)
    pair.fault("b", "/wake_up", "status_500", times=0)
    write = state_files.write

    def full(stack_dir: str, name: str, content: Any) -> None:
        (no_room if name == "last_switch" else write)(stack_dir, name, content)

    monkeypatch.setattr(state_files, "write", full)
    with pytest.raises(SwitchFailed, match="b could not be made active: POST /wake_up: answered 500") as caught:
        pair.switch("b")
    result = caught.value.result
    assert isinstance(result, Result)
    assert [warning.split(" ", 1)[1] for warning in result.warnings] == [
        "can't be written (No space left on device): status shows an earlier switch as the last one"
    ]


def test_an_answer_that_cannot_be_recorded_on_request_takes_nothing_back(
    pair: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.settings["canary"] = "auto"
    pair.up(a="active", b=1)
    at_the_end(monkeypatch, (pair.stack_dir / "run" / "canary.json.new").mkdir)
    with pair.switcher() as switcher:
        result = switcher.switch("b", record_canary=True)
    assert result.active_model == "b"
    assert pair.states() == {"a": "sleeping", "b": "active"}
    assert result.steps[-1]["note"] == "not recorded"
    assert "the canary answer of b could not be recorded" in result.warnings[0]


def test_a_server_whose_pid_file_cannot_be_written_is_never_awake_beside_the_one_restored(
    pair: Host, processes: Processes
) -> None:
    pair.models[1]["env"]["STANDIN_LOAD_SECONDS"] = "0.3"
    pair.up(a="active")
    (pair.stack_dir / "run" / "b.pid").mkdir()
    with pytest.raises(SwitchFailed, match="b could not be made active: it could not be started: ") as caught:
        pair.switch("b")
    assert caught.value.result.active_model == "a"
    pair.wait_until(lambda: len(processes.left()) == 1, "nothing but a runs")
    assert not [event for event in pair.events() if event["event"] == "loading" and event["model"] == "org/b"]


def test_a_record_that_cannot_be_written_leaves_nothing_beside_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_files.write(str(tmp_path), "wanted", {"models": {}})
    monkeypatch.setattr(json, "dumps", no_room)
    with pytest.raises(OSError, match="No space left"):
        state_files.write(str(tmp_path), "wanted", {"models": {"a": "active"}})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["wanted.json"]
    assert state_files.read(str(tmp_path), "wanted") == {"models": {}}


@pytest.mark.parametrize("name", [state_files.DESIRED_STATE, state_files.CANARY, state_files.MANAGER])
def test_what_nobody_can_find_out_anew_is_on_the_disk_before_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(f"synced: {Path(os.readlink(f'/proc/self/fd/{descriptor}')).read_text(encoding='utf-8')}")
        fsync(descriptor)

    def put(new: str, place: str) -> None:
        done.append(f"put in place: {Path(place).name}")
        replace(new, place)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", put)
    state_files.write(str(tmp_path), name, {"models": {"a": "active"}})
    assert done == ['synced: {"models": {"a": "active"}}', f"put in place: {name}.json"]


def test_a_disk_that_fails_to_take_a_record_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_files.write(str(tmp_path), state_files.MANAGER, {"mode": "auto"})
    monkeypatch.setattr(os, "fsync", broken_disk)
    with pytest.raises(OSError, match="Input/output error"):
        state_files.write(str(tmp_path), state_files.MANAGER, {"mode": "manual"})
    assert state_files.read(str(tmp_path), state_files.MANAGER) == {"mode": "auto"}
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["manager.json"]


@pytest.mark.parametrize("kind", ["reserved", "written in part"])
def test_notes_that_there_is_no_room_for_leave_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lock = HostLock(str(tmp_path))
    many = [f"{number:0200d}" for number in range(10)]
    with lock.hold("b active", 1, lambda _done, _seconds: False):
        lock.begin("b", WAKE)
        if kind == "reserved":
            monkeypatch.setattr(os, "posix_fallocate", no_room)
        else:
            monkeypatch.setattr(os, "pwrite", lambda _descriptor, _text, _offset: 4096)
        for name in many:
            with pytest.raises(
                SwitchingError, match=r"journal in the lock .* can't be written \(No space .*\): free space"
            ):
                for _more in many:
                    lock.begin(name + _more, WAKE)
        monkeypatch.undo()
    other = HostLock(str(tmp_path))
    other.peek()
    assert "b" in other.doubtful


def test_teardown_removes_every_state_file() -> None:
    removal = (ROOT / "roles" / "compose_stack" / "tasks" / "teardown.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"'run/(\w+)\.json'", removal)) == set(state_files.ALL)


def test_the_removal_of_the_manager_leaves_of_its_state_files_what_its_history_goes_on_from() -> None:
    removal = (ROOT / "roles" / "model_manager" / "tasks" / "teardown.yml").read_text(encoding="utf-8")
    own = set(state_files.ALL) - set(state_files._ENGINE)
    assert set(re.findall(r"'run/(\w+)\.json'", removal)) == own - {state_files.USAGE}


def test_a_switch_leaves_a_record_that_can_not_be_read(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.up(a="active", b=1)
    for name in "ba":
        pair.switch(name)
    record = pair.stack_dir / "run" / "wanted.json"
    before = record.read_text(encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(json, "load", broken_disk)
        for name in "ab":  # the first one has nothing to do
            told = [text for text in pair.switch(name).warnings if "wanted.json" in text]
            why = "can't be read (Input/output error): a reboot would restore other models; repair or remove it"
            assert told == [f"the switch succeeded, but {record} {why}, then switch again"]
            assert record.read_text(encoding="utf-8") == before
    pair.switch("a")
    assert record.read_text(encoding="utf-8") == before


def once_broken(patch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Have the first read of this state file fail; the list has its name as soon as it has."""
    failed: list[str] = []
    whole = state_files.read_or_raise

    def read(stack_dir: str, one: str) -> dict[str, Any]:
        if one == name and not failed:
            failed.append(one)
            broken_disk(None)
        return whole(stack_dir, one)

    patch.setattr(state_files, "read_or_raise", read)
    return failed


def test_a_record_that_fails_to_be_read_once_is_not_replaced_by_what_the_inventory_says(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.declare("a", startup_mode="active")
    host.declare("b", gpus=[1])
    host.up(a="active", b="active")
    host.switch("b", "stopped")
    record = host.stack_dir / "run" / "wanted.json"
    before = json.loads(record.read_text(encoding="utf-8"))
    with monkeypatch.context() as patch:
        failed = once_broken(patch, "wanted")
        assert ["wanted.json can't be read" in text for text in host.switch("a", "sleeping").warnings] == [True]
    assert failed
    assert json.loads(record.read_text(encoding="utf-8")) == before
    host.switch("a", "sleeping")
    assert json.loads(record.read_text(encoding="utf-8"))["models"] == {"a": "sleeping", "b": "stopped"}


def test_a_roll_back_tells_that_the_record_can_not_be_read(pair: Host) -> None:
    record = pair.stack_dir / "run" / "wanted.json"
    record.mkdir(parents=True)
    with pair.switcher() as switcher, pytest.raises(SwitchingError) as told:
        switcher.roll_back()
    unknown = "it is unknown which models the last switch replaced"
    assert str(told.value) == f"{record} can't be read (Is a directory): repair or remove it; until then {unknown}"


def test_a_change_that_can_not_be_read_is_not_lost(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by another one, nor is it said to be none."""
    for name in "abcd":
        host.declare(name, gpus=[0] if name in "ab" else [1])
    host.up(a="active", b=1, c="active", d=1)
    file = host.stack_dir / "run" / "changes.json"
    with host.switcher() as switcher:
        switcher.switch("b", change="y")
    before = file.read_text(encoding="utf-8")
    with monkeypatch.context() as patch, host.switcher() as switcher:
        failed = once_broken(patch, "changes")
        (warning,) = switcher.switch("d", change="x").warnings
        assert warning.startswith(f"{file} can't be read or written (Input/output error): ")
        assert warning.endswith("; this switch can't be undone by its name")
        failed.clear()
        with pytest.raises(SwitchingError, match=r"can't be read \(.*\): .* unknown what y has changed"):
            switcher.undo("y")
    assert file.read_text(encoding="utf-8") == before
    with host.switcher() as switcher:
        switcher.undo("y")
    assert host.states()["a"] == "active"


def test_a_proof_is_forgotten_where_others_can_not_be_read(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = str(pair.stack_dir)
    with pair.switcher() as switcher:
        switcher.host.record_proof("a", "this start", 1.0)
        with monkeypatch.context() as patch:
            failed = once_broken(patch, "proof")
            switcher.host.forget_proof("a")
        assert failed
        assert state_files.models(stack, "proof") == {"a": {"start": "", "at": None}}


def test_what_can_not_be_read_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may say a lot of other models."""
    stack = str(tmp_path)
    state_files.write_model(stack, "costs", "b", {"much": 1})
    with monkeypatch.context() as patch:
        patch.setattr(json, "load", broken_disk)
        assert state_files.read(stack, "costs") == {}
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            state_files.write_model(stack, "costs", "a", {})
    assert state_files.models(stack, "costs") == {"b": {"much": 1}}
