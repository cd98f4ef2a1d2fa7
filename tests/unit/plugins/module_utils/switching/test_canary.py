# SPDX-License-Identifier: MIT
"""The canary: a server that answers otherwise after a wake than when it was known good."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import canary
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import Command
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result

from .conftest import Host

ANSWER = "/v1/completions"


@pytest.fixture
def pair(host: Host) -> Host:
    """The models a, which is active, and b, which sleeps at level 2; both were loaded by a switch."""
    host.settings["canary"] = "auto"
    for name in "ab":
        host.declare(name, sleep_level=2)
    host.switch("b")
    host.switch("a")
    return host


def record(host: Host, name: str) -> Any:
    return json.loads((host.stack_dir / "run" / "canary.json").read_text(encoding="utf-8"))["models"][name]


def starter(host: Host, name: str) -> Command:
    """Who may start a server, and knows which start it is."""
    return Command(host.model(name), str(host.stack_dir), host.inventory.switching)


def started_by_somebody_else(host: Host, name: str) -> None:
    """It is started anew behind the engine's back, and sleeps when that is found."""
    starter(host, name).stop()
    host.start(name)
    host.wait_until(lambda: host.answers(name), "it is loaded")
    host.call(name, "POST", "/sleep?level=2").raise_for_status()
    host.forget_events()


def notes(result: Result) -> list[str]:
    return [step["note"] for step in result.steps if step["action"] in ("verify", "record") and "note" in step]


def rungs(result: Result) -> list[str]:
    return [f"{step.get('escalation', '-')} {step['action']} {step['model']}" for step in result.steps]


def failed(host: Host, name: str) -> tuple[str, Result]:
    with pytest.raises(SwitchFailed) as caught:
        host.switch(name)
    return str(caught.value), caught.value.result


def test_the_answer_is_recorded_when_a_server_has_been_started(pair: Host) -> None:
    path = pair.stack_dir / "run" / "canary.json"
    assert path.stat().st_mode & 0o777 == 0o600
    known = record(pair, "b")
    assert known["reproducible"]
    assert known["version"] == "0.32.0"
    assert known["served"]["model"] == "org/b"
    assert known["start"] == starter(pair, "b").start_id() != ""
    assert not known["suspect"]
    # Twice, and once after the wake.
    assert pair.changing_calls("b").count("POST " + ANSWER) == 2
    switched = pair.switch("b")
    assert notes(switched) == ["answers as recorded"]
    *others, verify = switched.steps
    assert 0 < verify["answer_seconds"] <= verify["seconds"]
    assert not any("answer_seconds" in step for step in others)
    assert pair.changing_calls("b").count("POST " + ANSWER) == 3
    assert record(pair, "b") == known


def test_weights_that_were_not_loaded_again_are_loaded_again(pair: Host) -> None:
    # It says that it has reloaded the weights, and has not.
    pair.fault("b", "/collective_rpc", "not_done")
    result = pair.switch("b")
    assert rungs(result) == [
        "- drain a", "- sleep a", "- wake b", "- verify b", "retry reload b", "retry verify b",
    ]  # fmt: skip
    assert "b answers the fixed prompt with " in result.steps[3]["failed"]
    assert result.active_model == "b"


def test_a_wake_that_keeps_going_wrong_ends_in_a_restart(pair: Host) -> None:
    right = pair.completion("a")
    known = record(pair, "a")
    pair.switch("b")
    pair.fault("a", "/collective_rpc", "not_done", times=0)
    result = pair.switch("a")
    assert rungs(result)[3:] == [
        "- verify a", "retry reload a", "retry verify a", "restart stop a", "restart start a", "restart verify a",
    ]  # fmt: skip
    assert pair.completion("a") == right
    again = record(pair, "a")
    assert again["text"] == known["text"]
    assert again["start"] == starter(pair, "a").start_id() != known["start"]


def test_a_wrong_answer_brings_the_previous_model_back_and_does_not_stay_awake(pair: Host) -> None:
    pair.settings["escalation"] = ["roll_back"]
    pair.fault("b", "/collective_rpc", "not_done", times=0)
    text, result = failed(pair, "b")
    assert result.active_model == "a"
    assert pair.states() == {"a": "active", "b": "sleeping"}
    assert "as recorded on 20" in text
    assert "\nFailed: verify b\na is active again" in text
    assert re.search(r"\nFull cause: it answers .*, not with .* as recorded on .* \(canary\)$", text)
    assert "What to do: check that the model's files have not changed since it was loaded" in text
    assert record(pair, "b")["suspect"]
    # It is not taken on trust by a fresh start either, while it answers wrongly.
    pair.fault("b", ANSWER, "wrong_text", times=0)
    failed(pair, "b")
    pair.call("b", "DELETE", "/standin/faults")
    assert pair.switch("b").active_model == "b"
    assert not record(pair, "b")["suspect"]


def test_without_a_roll_back_a_server_with_wrong_weights_is_put_to_sleep(pair: Host) -> None:
    pair.settings["escalation"] = []
    pair.fault("b", "/collective_rpc", "not_done", times=0)
    text, result = failed(pair, "b")
    assert "a was active before and was not restored (escalation does not contain roll_back)" in text
    assert result.active_model is None
    assert pair.states() == {"a": "sleeping", "b": "sleeping"}


@pytest.mark.parametrize("mode", ["warn", "off"])
def test_a_wrong_answer_that_is_only_warned_of(pair: Host, mode: str) -> None:
    pair.models[1]["canary"] = mode
    pair.fault("b", "/collective_rpc", "not_done", times=0)
    result = pair.switch("b")
    assert result.active_model == "b"
    assert rungs(result)[2:] == ["- wake b", "- verify b"]
    assert len(result.warnings) == (mode == "warn")
    assert all("b answers the fixed prompt with" in warning for warning in result.warnings)


def test_an_answer_that_was_not_reproducible_is_only_warned_of(host: Host) -> None:
    host.settings["canary"] = "auto"
    host.declare("a", env={"STANDIN_FAULTS": json.dumps([{"path": ANSWER, "fault": "wrong_text"}])})
    host.declare("b")
    assert notes(host.switch("a")) == ["answer recorded, but a second answer differed"]
    host.switch("b")
    result = host.switch("a")
    assert notes(result) == ["the answer differs from the recorded one"]
    assert len(result.warnings) == 1


def test_a_fresh_start_may_answer_otherwise(pair: Host) -> None:
    pair.switch("b", "stopped")
    # Its weights have been changed: another model answers under the same name.
    pair.models[1]["start_command"][3] = "org/other"
    result = pair.switch("b")
    assert "the server was started since then, so the new answer was recorded" in result.warnings[0]
    pair.switch("a")
    assert pair.switch("b").warnings == []


def test_another_command_line_is_another_record(pair: Host) -> None:
    before = record(pair, "b")
    pair.switch("b", "stopped")
    pair.models[1]["args"] = {"max_model_len": 100, "api_key": "s3cret", "deep": [{"token": "s3cret", "n": 1}]}
    assert notes(pair.switch("b")) == ["answer recorded"]
    after = record(pair, "b")
    assert (before["served"]["args"], after["served"]["args"]) == (
        {},
        {"max_model_len": 100, "deep": [{"n": 1}]},
    )


def test_what_is_answered_after_a_mere_wake_is_never_recorded(pair: Host) -> None:
    before = record(pair, "b")
    # Edited, but the server still runs with what it was started with.
    pair.models[1]["args"] = {"max_model_len": 100}
    pair.fault("b", "/collective_rpc", "not_done", times=0)
    pair.settings["escalation"] = ["roll_back"]
    text, result = failed(pair, "b")
    assert "b answers the fixed prompt with" in result.steps[3]["failed"]
    assert "(canary)" in text
    assert record(pair, "b") == {**before, "suspect": True}
    pair.call("b", "DELETE", "/standin/faults")
    # What is right is right, whatever has been edited since.
    assert notes(pair.switch("b")) == ["answers as recorded"]
    assert record(pair, "b") == before


def test_garbage_after_a_wake_is_not_recorded_by_a_restart_either(pair: Host) -> None:
    before = record(pair, "b")
    pair.models[1]["args"] = {"max_model_len": 100}
    order: dict[str, Any] = {"path": ANSWER, "fault": "wrong_text", "times": 0}
    pair.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([order])
    pair.fault("b", **order)
    text, result = failed(pair, "b")
    assert "restart verify b" in rungs(result)
    assert "(canary)" in text
    assert result.active_model == "a"
    assert record(pair, "b") == {**before, "suspect": True}
    # By intent it is another matter.
    pair.switch("b", "stopped")
    assert notes(pair.switch("b")) == ["answer recorded"]


def test_a_restart_after_a_wake_that_failed_is_no_reason_to_believe_another_answer(pair: Host) -> None:
    before = record(pair, "b")
    pair.models[1]["start_command"][3] = "org/other"
    pair.fault("b", "/wake_up", "status_500", times=0)
    text, result = failed(pair, "b")
    assert rungs(result)[4:7] == ["restart stop b", "restart start b", "restart verify b"]
    assert "(canary)" in text
    assert record(pair, "b") == {**before, "suspect": True}


@pytest.mark.parametrize("right_between", [True, False])
def test_a_restart_that_was_refused_is_no_start_by_somebody_else(pair: Host, right_between: bool) -> None:
    before = record(pair, "b")
    order: dict[str, Any] = {"path": ANSWER, "fault": "wrong_text", "times": 0}
    pair.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([order])
    pair.fault("b", **order)
    for _time in range(2):
        text, result = failed(pair, "b")
        assert "restart verify b" in rungs(result)
        assert "(canary)" in text
        assert record(pair, "b")["text"] == before["text"]
        if right_between:
            pair.call("b", "DELETE", "/standin/faults")
            assert notes(pair.switch("b")) == ["answers as recorded"]
            assert record(pair, "b")["start"] == starter(pair, "b").start_id() != before["start"]
            pair.switch("a")
            pair.fault("b", **order)


def test_without_a_record_a_wake_makes_none(pair: Host) -> None:
    path = pair.stack_dir / "run" / "canary.json"
    path.unlink()
    assert notes(pair.switch("b")) == ["answers; no answer from a fresh start is recorded to compare it with"]
    assert not path.exists()
    pair.switch("b", "stopped")
    assert notes(pair.switch("b")) == ["answer recorded"]


def test_a_start_that_a_switch_saw_begin_is_recorded(host: Host) -> None:
    host.settings["canary"] = "auto"
    host.declare("a", standin={"load_seconds": 1})
    host.up(a="loading")
    assert notes(host.switch("a")) == ["answer recorded"]
    assert record(host, "a")["start"] == starter(host, "a").start_id()


def test_a_new_start_may_answer_otherwise_though_no_metrics_tell_of_it(pair: Host) -> None:
    pair.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([{"path": "/metrics", "fault": "empty_200", "times": 0}])
    pair.switch("b", "stopped")
    pair.switch("b")
    for _start in range(2):
        pair.switch("b", "stopped")
        pair.models[1]["start_command"][3] += "-newer"
        result = pair.switch("b")
        assert "the server was started since then, so the new answer was recorded" in result.warnings[0]
        assert result.active_model == "b"


def test_a_start_by_somebody_else_is_believed_after_one_of_our_own(pair: Host) -> None:
    before = record(pair, "b")
    pair.models[1]["start_command"][3] = "org/other"
    started_by_somebody_else(pair, "b")
    result = pair.switch("b")
    # Its wake may have gone wrong as well as its weights been changed.
    assert rungs(result)[2:] == [
        "- wake b", "- verify b", "retry reload b", "retry verify b", "restart stop b", "restart start b",
        "restart verify b",
    ]  # fmt: skip
    assert "the server was started since then, so the new answer was recorded" in result.warnings[0]
    after = record(pair, "b")
    assert after["text"] != before["text"]
    assert (after["suspect"], after["renewed"]) == (False, False)
    pair.switch("a")
    assert notes(pair.switch("b")) == ["answers as recorded"]


def test_what_cannot_be_compared_is_told_and_not_recorded(pair: Host) -> None:
    before = record(pair, "b")
    pair.models[1]["start_command"][3] = "org/other"
    pair.models[1]["args"] = {"max_model_len": 100}
    started_by_somebody_else(pair, "b")
    result = pair.switch("b")
    assert notes(result) == ["the answer differs from the recorded one"]
    assert (
        "the server was started with other settings since then: if the new answer is correct, record it (record_canary)"
        in result.warnings[0]
    )
    assert record(pair, "b") == before


@pytest.mark.parametrize("start", [1764358943.51, None])
def test_a_record_that_tells_a_start_by_the_metrics_is_read(pair: Host, start: float | None) -> None:
    path = pair.stack_dir / "run" / "canary.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    del known["models"]["b"]["renewed"]
    known["models"]["b"]["start"] = start
    path.write_text(json.dumps(known), encoding="utf-8")
    assert notes(pair.switch("b")) == ["answers as recorded"]
    pair.switch("a")
    # What is not known is not the same as what is not known.
    pair.switch("b", "stopped")
    pair.models[1]["start_command"][3] = "org/other"
    assert "the server was started since then, so the new answer was recorded" in pair.switch("b").warnings[0]


def test_an_answer_is_recorded_on_request(pair: Host) -> None:
    pair.fault("b", ANSWER, "wrong_text", times=0)
    with pair.switcher() as switcher:
        assert [step["action"] for step in switcher.switch("b", check=True, record_canary=True).steps][-1] == "record"
        result = switcher.switch("b", record_canary=True)
    assert notes(result) == ["answer recorded"]
    assert result.changed
    pair.switch("a")
    assert pair.switch("b").warnings == []
    with pair.switcher() as switcher:
        again = switcher.switch("b", record_canary=True)
    assert [step["action"] for step in again.steps] == ["record"]


def test_a_record_that_cannot_be_read_or_written(pair: Host, tmp_path: Path) -> None:
    path = pair.stack_dir / "run" / "canary.json"
    for damaged in ("{", "[]", '{"models": {"b": {}}}', '{"models": {"b": {"text": 5}}}'):
        path.write_text(damaged, encoding="utf-8")
        assert notes(pair.switch("b")) == ["answers; no answer from a fresh start is recorded to compare it with"]
        pair.switch("a")
    path.unlink()
    pair.switch("b", "stopped")
    (pair.stack_dir / "run" / "canary.json.new").mkdir()
    result = pair.switch("b")
    assert result.active_model == "b"
    assert "the canary answer of b could not be recorded" in result.warnings[0]


def test_a_model_that_completes_no_text_has_no_canary(host: Host) -> None:
    host.settings["canary"] = "enforce"
    host.declare("a", ready_completion=False)
    host.switch("a")
    assert host.changing_calls("a") == []
    assert not (host.stack_dir / "run" / "canary.json").exists()


def test_the_entrypoint_is_a_part_of_what_was_served() -> None:
    plain = parse([{"id": "a", "model": "org/a", "host_port": 8001}]).models[0]
    words = ("bash", "-c", 'API_KEY=sk-verysecret exec vllm serve "$@"', "--")
    served = canary._served(dataclasses.replace(plain, entrypoint=words))
    assert served["entrypoint"] == ["bash", "-c", 'API_KEY=******** exec vllm serve "$@"', "--"]
    # As in the records of before there was one.
    assert "entrypoint" not in canary._served(plain)
