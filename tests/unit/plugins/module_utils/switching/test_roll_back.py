# SPDX-License-Identifier: MIT
"""A switch is taken back: what it has taken off the GPUs is active again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed, SwitchingError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result

if TYPE_CHECKING:
    from .conftest import Host


def roll_back(host: Host, check: bool = False, **parameters: Any) -> Result:
    """As one run of the module does."""
    with host.switcher(**parameters) as switcher:
        return switcher.roll_back(check)


def steps(result: Result) -> list[str]:
    return [f"{step['action']} {step['model']}" for step in result.steps]


def recorded(host: Host) -> dict[str, Any]:
    return dict(json.loads((host.stack_dir / "run" / "wanted.json").read_text(encoding="utf-8")))


@pytest.fixture
def switched(host: Host) -> Host:
    """A host with the models a, b and c on one GPU that has been switched from a to b."""
    for name in "abc":
        host.declare(name)
    host.up(a="active", b=1)
    host.switch("b")
    return host


def test_what_was_active_before_a_switch_is_active_again(switched: Host) -> None:
    result = roll_back(switched)
    assert steps(result) == ["drain b", "sleep b", "wake a", "verify a"]
    assert (result.changed, result.previous_model, result.active_model) == (True, "b", "a")
    assert switched.states() == {"a": "active", "b": "sleeping", "c": "stopped"}
    # So that a boot brings that back.
    assert recorded(switched) == {"models": {"a": "active", "b": "sleeping", "c": "sleeping"}, "displaced": ["a"]}


def test_done_twice_it_stays_so(switched: Host) -> None:
    roll_back(switched)
    again = roll_back(switched)
    assert (again.changed, again.active_model, steps(again)) == (False, "a", [])
    assert switched.states()["a"] == "active"
    switched.switch("c")
    assert roll_back(switched).active_model == "a"


def test_what_is_switched_while_it_waits_for_the_lock_is_not_rolled_back(switched: Host) -> None:
    with switched.switcher() as switcher:
        switched.while_it_waits(switcher, lambda: switched.switch("c"))
        with pytest.raises(SwitchingError, match="another switch of this host ended in the meantime"):
            switcher.roll_back()
    assert switched.states() == {"a": "sleeping", "b": "sleeping", "c": "active"}


def test_a_switch_that_displaces_nobody_leaves_the_one_before_to_be_taken_back(switched: Host) -> None:
    switched.switch("b")
    switched.switch("c", "sleeping")
    assert roll_back(switched).active_model == "a"


def test_a_switch_for_now_is_not_taken_back(switched: Host) -> None:
    with switched.switcher() as switcher:
        switcher.switch("c", for_now=True)
    assert roll_back(switched).active_model == "a"


def test_check_mode_tells_the_steps_and_changes_nothing(switched: Host) -> None:
    before = switched.all_changing_calls(), recorded(switched)
    planned = roll_back(switched, check=True)
    assert (planned.changed, planned.active_model) == (True, "a")
    assert (switched.all_changing_calls(), recorded(switched)) == before
    assert switched.states() == {"a": "sleeping", "b": "active", "c": "stopped"}
    assert steps(planned) == steps(roll_back(switched))


def test_where_no_switch_was_there_is_nothing_to_take_back(host: Host) -> None:
    host.declare("a")
    host.up(a="active")
    for check in (True, False):
        with pytest.raises(SwitchingError) as caught:
            roll_back(host, check)
        assert str(caught.value) == (
            "there is nothing to roll back: no switch has replaced a model on this host since it was provisioned; "
            "name the model to make active"
        )
    assert host.changing_calls("a") == []


@pytest.mark.parametrize("disabled", [False, True])
def test_a_model_that_is_not_managed_any_more_can_not_come_back(switched: Host, disabled: bool) -> None:
    if disabled:
        switched.models[0]["startup_mode"] = "disabled"
    else:
        del switched.models[0]
    before = switched.changing_calls("b")
    with pytest.raises(SwitchingError) as caught:
        roll_back(switched)
    assert str(caught.value) == (
        "there is nothing to roll back: the last switch replaced a, which is no longer declared or is disabled; "
        "name the model to make active"
    )
    assert switched.changing_calls("b") == before


def test_nobody_may_stay_active_for_a_while(switched: Host) -> None:
    switched.settings["min_active_seconds"] = 3600
    assert steps(switched.switch("a", check=True))[0] == "wait b"
    assert steps(roll_back(switched, check=True))[0] == "drain b"
    assert steps(roll_back(switched))[0] == "drain b"


@pytest.fixture
def big(host: Host) -> Host:
    """A big model on two GPUs that has displaced two small ones."""
    for gpu, name in enumerate("ab"):
        host.declare(name, gpus=[gpu], standin={"gpus": str(gpu)})
    host.declare("big", gpus=[0, 1], standin={"gpus": "0,1"})
    host.up(a="active", b="active")
    host.switch("big")
    assert host.states() == {"a": "sleeping", "b": "sleeping", "big": "active"}
    return host


def test_all_that_a_big_model_has_displaced_come_back(big: Host) -> None:
    planned = roll_back(big, check=True)
    result = roll_back(big)
    assert steps(result) == ["drain big", "sleep big", "wake a", "verify a", "wake b", "verify b"]
    assert steps(planned) == steps(result)
    for told in (planned, result):
        assert told.changed
        assert {name: seen.state for name, seen in told.before.items()} == {
            "a": "sleeping", "b": "sleeping", "big": "active",
        }  # fmt: skip
        assert {name: seen.state for name, seen in told.models.items()} == {
            "a": "active", "b": "active", "big": "sleeping",
        }  # fmt: skip
    assert big.states() == {"a": "active", "b": "active", "big": "sleeping"}
    # One after the other, counted from the same moment as the whole.
    ended = 0.0
    for step in result.steps:
        assert step["started_seconds"] >= ended - 0.002  # they are rounded
        ended = step["started_seconds"] + step["seconds"]
    assert ended <= result.elapsed_seconds + 0.002
    assert {step["started_seconds"] for step in planned.steps} == {None}
    assert not roll_back(big).changed


def test_one_of_two_that_can_not_come_back_is_told_with_what_was_done(big: Host) -> None:
    big.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([{"path": "load", "fault": "die"}])
    big.fault("b", "/wake_up", "status_500", times=0)
    with pytest.raises(SwitchFailed, match="b could not be made active") as caught:
        roll_back(big)
    result = caught.value.result
    assert steps(result)[:4] == ["drain big", "sleep big", "wake a", "verify a"]
    assert result.changed
    assert {name: seen.state for name, seen in result.models.items()} == big.states()
    assert big.states() == {"a": "active", "b": "stopped", "big": "sleeping"}


def test_one_that_fails_leaves_what_a_switch_that_fails_leaves(switched: Host) -> None:
    switched.models[0]["env"]["STANDIN_FAULTS"] = json.dumps([{"path": "load", "fault": "die"}])
    switched.fault("a", "/wake_up", "status_500", times=0)
    before = recorded(switched)
    with pytest.raises(SwitchFailed) as caught:
        roll_back(switched)
    assert str(caught.value).startswith("a could not be made active: ")
    assert "\nb is active again\nState of the host: a stopped, b active, c stopped" in str(caught.value)
    assert switched.states() == {"a": "stopped", "b": "active", "c": "stopped"}
    assert recorded(switched) == before
    # What was wrong is over: so it can be done again.
    del switched.models[0]["env"]["STANDIN_FAULTS"]
    assert roll_back(switched).active_model == "a"
