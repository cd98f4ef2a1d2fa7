# SPDX-License-Identifier: MIT
"""The observer of a switch: told of every step as it begins and as it ends, and never in its way."""

from __future__ import annotations

from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from tests.unit.plugins.module_utils.switching.conftest import Host


def two(host: Host) -> None:
    host.declare("a")
    host.declare("b")
    host.up(a="active", b=1)


def test_each_step_is_told_as_it_begins_and_as_it_ends(host: Host) -> None:
    two(host)
    told: list[dict[str, Any]] = []
    states: list[str] = []

    def observe(step: dict[str, Any]) -> None:
        told.append(step)
        if step["action"] == "wake":
            states.append(host.states()["b"])

    result = host.switch("b", observer=observe)
    ends = [step for step in told if step["event"] == "step_ended"]
    assert [(s["action"], s["model"], s["level"]) for s in ends] == [
        (s["action"], s["model"], s["level"]) for s in result.steps
    ]
    assert all(one["seconds"] is not None for one in ends)
    for begun, end in zip(told[::2], told[1::2], strict=True):  # here one after the other
        assert (begun["event"], begun["seconds"], end["event"]) == ("step_begun", None, "step_ended")
        assert (begun["action"], begun["model"]) == (end["action"], end["model"])
    assert states == ["sleeping", "active"]  # told when it happens, not afterwards


def test_a_step_that_fails_is_told_with_why(host: Host) -> None:
    two(host)
    host.fault("b", "/wake_up", "status_500")
    told: list[dict[str, Any]] = []
    host.switch("b", observer=told.append)
    failed = [step for step in told if step["event"] == "step_ended" and "failed" in step]
    assert [(step["action"], step["model"]) for step in failed] == [("wake", "b")]
    assert [step["action"] for step in told if step.get("escalation") == "retry" and step["event"] == "step_ended"]


def test_steps_of_several_models_are_told_from_their_lanes(host: Host) -> None:
    host.declare("a", gpus=[0])
    host.declare("b", gpus=[1])
    host.up(a=1, b=1)
    told: list[dict[str, Any]] = []
    with Switcher(host.inventory, str(host.stack_dir), mem_available_gb=lambda: 1000.0, observer=told.append) as one:
        one.switch(["a", "b"])
    for model in ("a", "b"):
        own = [(step["event"], step["action"]) for step in told if step["model"] == model]
        assert own[:2] == [("step_begun", "wake"), ("step_ended", "wake")]


def test_an_observer_that_fails_harms_no_switch(host: Host) -> None:
    two(host)

    def fail(step: dict[str, Any]) -> None:
        step.clear()
        raise RuntimeError("the observer")

    result = host.switch("b", observer=fail)
    assert result.active_model == "b"
    assert [step["action"] for step in result.steps][-1] == "verify"
