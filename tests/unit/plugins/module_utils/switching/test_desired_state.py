# SPDX-License-Identifier: MIT
"""What a host is meant to be: recorded by switches, brought back by a restore."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import desired_state
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed, SwitchingError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, parse

if TYPE_CHECKING:
    from .conftest import Host


def declared(**startup_modes: str) -> Inventory:
    """Models on one GPU, but those whose name ends with 2 on another."""
    models: list[dict[str, object]] = [
        {
            "id": name,
            "model": f"org/{name}",
            "host_port": 8001 + n,
            "startup_mode": mode,
            "gpus": [int(name[-1] == "2")],
        }
        for n, (name, mode) in enumerate(startup_modes.items())
    ]
    return parse(models)


def put(folder: Path, text: str) -> None:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "wanted.json").write_text(text, encoding="utf-8")


def test_without_a_record_the_startup_modes_count(tmp_path: Path) -> None:
    inventory = declared(a="active", b="sleep", c="disabled")
    assert desired_state.read(inventory, str(tmp_path)) == {"a": "active", "b": "sleeping"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"models": 3}', '{"models": {"a": "on"}}', "\x00\xff"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    put(tmp_path, text)
    assert desired_state.read(declared(a="active", b="sleep"), str(tmp_path)) == {"a": "active", "b": "sleeping"}


def test_the_record_counts_and_what_is_not_managed_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, json.dumps({"models": {"a": "stopped", "b": "active", "gone": "active", "c": "active"}}))
    inventory = declared(a="active", b="sleep", c="disabled")
    assert desired_state.read(inventory, str(tmp_path)) == {"a": "stopped", "b": "active"}


def test_a_new_default_does_not_claim_the_gpu_of_the_model_that_was_active(tmp_path: Path) -> None:
    put(tmp_path, json.dumps({"models": {"b": "active"}}))
    inventory = declared(b="sleep", new="active", new2="active")
    assert desired_state.read(inventory, str(tmp_path)) == {"b": "active", "new": "sleeping", "new2": "active"}


def test_of_two_that_conflict_since_the_inventory_changed_only_one_is_active(tmp_path: Path) -> None:
    put(tmp_path, json.dumps({"models": {"a": "active", "b": "active", "c2": "active"}}))
    inventory = declared(a="sleep", b="active", c2="sleep")
    assert desired_state.read(inventory, str(tmp_path)) == {"a": "active", "b": "sleeping", "c2": "active"}


def test_an_active_model_takes_the_place_of_the_conflicting_one_alone() -> None:
    inventory = declared(a="active", b="sleep", c="sleep", d2="active")
    before = {"a": "active", "b": "sleeping", "c": "stopped", "d2": "active"}
    after = desired_state.after(inventory, before, inventory.find("b"), "active")
    assert after == {"a": "sleeping", "b": "active", "c": "stopped", "d2": "active"}
    assert desired_state.after(inventory, before, inventory.find("b"), "stopped") == {**before, "b": "stopped"}
    assert desired_state.after(inventory, before, inventory.find("a"), "sleeping") == {**before, "a": "sleeping"}


def record(tmp_path: Path, desired: dict[str, str], displaced: Sequence[str] = ()) -> list[str]:
    return desired_state.update(declared(a="active"), str(tmp_path), lambda _before: desired, displaced)


def test_a_record_is_written_only_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    record(tmp_path, {"a": "active"})
    path = tmp_path / "run" / "wanted.json"
    written = path.stat().st_ino
    record(tmp_path, {"a": "active"})
    assert path.stat().st_ino == written
    record(tmp_path, {"a": "sleeping"})
    assert json.loads(path.read_text()) == {"models": {"a": "sleeping"}, "displaced": []}
    record(tmp_path, {"a": "sleeping"}, ["b"])
    assert json.loads(path.read_text()) == {"models": {"a": "sleeping"}, "displaced": ["b"]}
    record(tmp_path, {"a": "active"})  # displaces nobody, so that what was before still counts
    assert json.loads(path.read_text()) == {"models": {"a": "active"}, "displaced": ["b"]}
    written = path.stat().st_ino
    record(tmp_path, {"a": "active"}, ["b"])
    assert path.stat().st_ino == written
    assert [entry.name for entry in path.parent.iterdir()] == ["wanted.json"]


@pytest.mark.parametrize(("what", "remedy"), [("read", "repair or remove it"), ("written", "remove it")])
def test_a_record_that_cannot_be_read_or_written_says_what_that_means(tmp_path: Path, what: str, remedy: str) -> None:
    if what == "read":
        (tmp_path / "run").touch()
    else:
        (tmp_path / "run" / "wanted.json.new").mkdir(parents=True)
    (warning,) = record(tmp_path, {"a": "active"})
    assert re.search(f"but .*wanted.json can't be {what} .*a reboot would restore", warning)
    assert warning.endswith(f"{remedy}, then switch again")


# ---- by the engine --------------------------------------------------------------------------------


@pytest.fixture
def trio(host: Host) -> Host:
    host.declare("a", startup_mode="active")
    host.declare("b")
    host.declare("c")
    return host


def recorded(host: Host) -> dict[str, str]:
    text = (host.stack_dir / "run" / "wanted.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["models"])


def restored(host: Host) -> dict[str, str]:
    """Restore and tell how it went: changed, unchanged, or why it failed."""
    with host.switcher() as switcher:
        return {
            model.id: str(result)
            if isinstance(result, SwitchingError)
            else ("changed" if result.changed else "unchanged")
            for model, _state, result in switcher.restore()
        }


def test_switches_are_recorded_and_check_mode_is_not(trio: Host) -> None:
    trio.up(a="active", b=1, c=1)
    trio.switch("b")
    assert recorded(trio) == {"a": "sleeping", "b": "active", "c": "sleeping"}
    trio.switch("c", "stopped")
    trio.switch("a", check=True)
    assert recorded(trio) == {"a": "sleeping", "b": "active", "c": "stopped"}


def test_a_switch_that_fails_is_not_recorded(trio: Host) -> None:
    trio.up(a="active", b=1)
    trio.switch("a")
    trio.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([{"path": "load", "fault": "die"}])
    trio.fault("b", "/wake_up", "status_500", times=0)
    with pytest.raises(SwitchFailed):
        trio.switch("b")
    assert recorded(trio) == {"a": "active", "b": "sleeping", "c": "sleeping"}


def test_a_restore_after_a_boot_brings_back_what_was_active(trio: Host) -> None:
    trio.up(a="active", b=1)
    trio.switch("b")
    trio.switch("c", "stopped")
    for command in trio.started:
        command.stop()
    assert set(trio.states().values()) == {"stopped"}
    assert restored(trio) == {"a": "changed", "b": "changed"}
    assert trio.states() == {"a": "sleeping", "b": "active", "c": "stopped"}
    assert recorded(trio) == {"a": "sleeping", "b": "active", "c": "stopped"}
    assert restored(trio) == {"a": "unchanged", "b": "unchanged"}


def test_a_restore_does_not_undo_what_somebody_switches_meanwhile(trio: Host) -> None:
    with trio.switcher() as switcher:
        done = switcher.restore()
        assert [next(done)[0].id, next(done)[0].id] == ["b", "c"]
        trio.switch("c")
        assert [(model.id, state, result.changed) for model, state, result in done] == [("c", "active", False)]  # type: ignore[union-attr]
    assert trio.states() == {"a": "stopped", "b": "sleeping", "c": "active"}
    assert recorded(trio) == {"a": "sleeping", "b": "sleeping", "c": "active"}


def test_a_restore_does_not_undo_what_is_switched_while_it_waits_for_the_lock(trio: Host) -> None:
    trio.up(a=1, b=1, c=1)
    with trio.switcher() as switcher:
        done = switcher.restore()
        assert [next(done)[0].id, next(done)[0].id] == ["b", "c"]
        trio.while_it_waits(switcher, lambda: trio.switch("c"))
        assert list(done) == []  # it was to wake a, which is not wanted any more
    assert trio.states() == {"a": "sleeping", "b": "sleeping", "c": "active"}


def test_a_restore_goes_on_past_a_model_that_cannot_load(trio: Host) -> None:
    trio.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([{"path": "load", "fault": "die"}])
    outcome = restored(trio)
    assert "No supported config format found in org/b" in outcome.pop("b")
    assert outcome == {"c": "changed", "a": "changed"}
    assert trio.states() == {"a": "active", "b": "stopped", "c": "sleeping"}
