# SPDX-License-Identifier: MIT
"""A change can be undone by its name: just what it has changed, wholly or not at all, where nobody else has since."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import ChangedSince, SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result

from tests.unit.plugins.module_utils.switching.conftest import Host


def switch(host: Host, *names: str, change: str = "roll", desired: str = "active", **parameters: Any) -> Result:
    with host.switcher(**parameters) as switcher:
        return switcher.switch(list(names), desired, change=change)


def undo(host: Host, change: str = "roll", check: bool = False, **parameters: Any) -> Result:
    with host.switcher(**parameters) as switcher:
        return switcher.undo(change, check)


def awake(host: Host) -> str:
    return "".join(name for name, state in host.states().items() if state == "active")


def steps(result: Result) -> list[str]:
    return [f"{step['action']} {step['model']}" for step in result.steps]


def desired(host: Host) -> dict[str, Any]:
    return dict(json.loads((host.stack_dir / "run" / "wanted.json").read_text(encoding="utf-8")))


@pytest.fixture
def quartet(host: Host) -> Host:
    """Models a and b on GPU 0, c and d on GPU 1. Each test says which are up."""
    for name in "abcd":
        gpu = int(name in "cd")
        host.declare(name, gpus=[gpu], standin={"gpus": str(gpu)})
    return host


def breaks(host: Host, name: str) -> None:
    """Let the model neither wake nor load."""
    next(m for m in host.models if m["id"] == name)["env"]["STANDIN_FAULTS"] = json.dumps(
        [{"path": "load", "fault": "die"}]
    )
    host.fault(name, "/wake_up", "status_500", times=0)


def heals(host: Host, name: str) -> None:
    del next(m for m in host.models if m["id"] == name)["env"]["STANDIN_FAULTS"]


def test_all_groups_are_restored_at_once(quartet: Host) -> None:
    quartet.up(a=1, b="active", c="active", d=1)
    quartet.settings["min_active_seconds"] = 3600
    switch(quartet, "b", change="")  # so that a roll back has something older to take back
    done = switch(quartet, "a", "d") if quartet.settings.pop("min_active_seconds") else None
    assert done
    assert (done.previous_models, done.active_models) == (["b", "c"], ["a", "d"])
    planned, before = undo(quartet, check=True), quartet.all_changing_calls()
    assert quartet.all_changing_calls() == before
    back = undo(quartet)
    assert sorted(steps(planned)) == sorted(steps(back))
    assert (back.changed, back.previous_models, back.active_models) == (True, ["a", "d"], ["b", "c"])
    assert awake(quartet) == "bc"
    assert desired(quartet)["models"] == {"a": "sleeping", "b": "active", "c": "active", "d": "sleeping"}
    again = undo(quartet)
    assert (again.changed, again.active_models) == (False, ["b", "c"])


@pytest.mark.parametrize(
    ("before", "asked", "left"),
    [("c", "ad", "stopped"), ("", "a", "sleeping"), ("bc", "b", "")],
    ids=["one of two had nobody", "from nothing", "nothing changed"],
)
def test_what_took_nobodys_place_is_off_the_gpu_again(quartet: Host, before: str, asked: str, left: str) -> None:
    """Stopped where it was stopped, asleep where it slept."""
    up: dict[str, Any] = dict.fromkeys(before, "active")
    if left == "sleeping":
        up["a"] = 1
    quartet.up(**{**up, "d": 1})
    switch(quartet, *asked)
    if not left:
        with pytest.raises(ChangedSince):
            undo(quartet)
        return
    undo(quartet)
    assert awake(quartet) == before
    assert quartet.states()["a"] == left
    assert desired(quartet)["models"]["a"] == left


def by_the_engine(host: Host) -> None:
    switch(host, "x", change="")


def by_another_rollout(host: Host) -> None:
    switch(host, "x", change="other")


def and_back_again(host: Host) -> None:
    switch(host, "x", change="")
    switch(host, "a", change="")


def by_hand(host: Host) -> None:
    host.call("a", "POST", "/sleep?level=1")
    host.call("x", "POST", "/wake_up")


def asleep_by_hand(host: Host) -> None:
    host.call("a", "POST", "/sleep?level=1")


@pytest.mark.parametrize("change", [by_the_engine, by_another_rollout, and_back_again, by_hand, asleep_by_hand])
def test_what_somebody_else_has_changed_since_is_left_alone(host: Host, change: Any) -> None:
    for name in "abx":
        host.declare(name)
    host.up(a=1, b="active", x=1)
    switch(host, "a")
    change(host)
    left, calls, meant = awake(host), host.all_changing_calls(), desired(host)
    for check in (True, False):
        with pytest.raises(ChangedSince) as caught:
            undo(host, check=check)
        assert caught.value.result.active_models == list(left)
        assert (f"{left} is active" if left else "a is sleeping") in str(caught.value)
    assert (awake(host), host.all_changing_calls(), desired(host)) == (left, calls, meant)


def test_what_others_do_elsewhere_is_no_reason_not_to(quartet: Host) -> None:
    quartet.up(a=1, b="active", c="active", d=1)
    switch(quartet, "a")
    switch(quartet, "d", change="other")
    switch(quartet, "c", change="")
    switch(quartet, "d", change="third")
    assert undo(quartet).active_models == ["b"]
    assert awake(quartet) == "bd"
    assert undo(quartet, "third").active_models == ["c"]
    with pytest.raises(ChangedSince):
        undo(quartet, "other")


def test_a_switch_that_came_to_nothing_has_changed_nothing(quartet: Host) -> None:
    quartet.up(a=1, b="active", c="active", d=1)
    switch(quartet, "d")
    switch(quartet, "c", change="")
    switch(quartet, "a")
    breaks(quartet, "b")
    with pytest.raises(SwitchFailed):
        switch(quartet, "b", change="")
    heals(quartet, "b")
    assert undo(quartet).active_models == ["b"]


def test_one_that_ended_by_itself_is_why_it_is_undone(quartet: Host) -> None:
    quartet.up(a=1, b="active")
    switch(quartet, "a")
    quartet.started[0].stop()
    assert undo(quartet).active_models == ["b"]


def test_the_tasks_of_one_name_are_one_change(quartet: Host) -> None:
    quartet.up(a=1, b="active", c="active", d=1)
    switch(quartet, "a")
    switch(quartet, "d")
    assert undo(quartet).active_models == ["b", "c"]
    assert awake(quartet) == "bc"


def test_a_big_model_makes_room_for_all_that_it_has_displaced(host: Host) -> None:
    for gpu, name in enumerate("ab"):
        host.declare(name, gpus=[gpu], standin={"gpus": str(gpu)})
    host.declare("big", gpus=[0, 1], standin={"gpus": "0,1"})
    host.up(a="active", b="active")
    switch(host, "big")
    back = undo(host)
    assert steps(back) == ["drain big", "sleep big", "wake a", "verify a", "wake b", "verify b"]
    assert (back.previous_models, back.active_models) == (["big"], ["a", "b"])


def test_a_change_of_several_is_made_whole_or_not_at_all(quartet: Host) -> None:
    quartet.up(a=1, b="active", c="active", d=1)
    breaks(quartet, "d")
    with pytest.raises(SwitchFailed) as caught:
        switch(quartet, "a", "d")
    assert caught.value.result.active_models == ["b", "c"]
    assert "a was restored because d failed" in str(caught.value)
    assert awake(quartet) == "bc"
    # Without the name each stands for itself, as when a host's models are loaded; and so it does without the rung.
    with pytest.raises(SwitchFailed) as caught:
        switch(quartet, "a", "d", change="")
    assert caught.value.result.active_models == ["a", "c"]
    assert awake(quartet) == "ac"


def test_without_the_rung_what_is_left_can_be_undone(quartet: Host) -> None:
    quartet.up(a=1, b="active", c="active", d=1)
    quartet.settings["escalation"] = ["stop"]
    quartet.fault("d", "/wake_up", "status_500", times=0)
    with pytest.raises(SwitchFailed) as caught:
        switch(quartet, "a", "d")
    assert caught.value.result.active_models == ["a"]
    assert undo(quartet).active_models == ["b", "c"]
    assert awake(quartet) == "bc"


def test_what_can_not_be_restored_whole_is_left_as_it_was(quartet: Host) -> None:
    """Else one half of the host would be old, and the other new."""
    quartet.up(a=1, b="active", c="active", d=1)
    switch(quartet, "a", "d")
    breaks(quartet, "c")
    meant = desired(quartet)
    with pytest.raises(SwitchFailed, match="c could not be made active") as caught:
        undo(quartet)
    assert not isinstance(caught.value, ChangedSince)
    assert caught.value.result.active_models == ["a", "d"]
    assert awake(quartet) == "ad"
    assert desired(quartet) == meant
    assert (
        json.loads((quartet.stack_dir / "run" / "last_switch.json").read_text(encoding="utf-8"))["result"] == "failed"
    )
    heals(quartet, "c")
    assert undo(quartet).active_models == ["b", "c"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"changes": []}', '{"changes": {"roll": {"before": {"a": "active"}}}}', '{"changes": {"roll": 1}}'],
)
def test_a_record_that_can_not_be_read_is_none(quartet: Host, text: str) -> None:
    quartet.up(a="active")
    (quartet.stack_dir / "run" / "changes.json").write_text(text, encoding="utf-8")
    with pytest.raises(ChangedSince):
        undo(quartet)
    switch(quartet, "b")
    assert undo(quartet).active_models == ["a"]


def test_old_changes_are_forgotten(quartet: Host) -> None:
    quartet.up(a="active", b=1)
    for number in range(10):
        switch(quartet, "ba"[number % 2], change=f"number {number}")
    found = json.loads((quartet.stack_dir / "run" / "changes.json").read_text(encoding="utf-8"))["changes"]
    assert list(found) == ["number 9"]
