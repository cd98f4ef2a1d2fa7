# SPDX-License-Identifier: MIT
"""The canaries of LoRA adapters: a wake that loses them, and a restart that forgets them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import adapters, canary, model_list
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import Blocked, SwitchFailed, WrongAdapter
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model, Switching, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.kinds import TEXT, Reply
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import Command
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result

from .conftest import Host

ANSWER, LIST, LOAD = "/v1/completions", "/v1/models", "/v1/load_lora_adapter"
STATIC, LOADED = "calm", "loud"


@pytest.fixture
def pair(host: Host, tmp_path: Path) -> Host:
    """The models a, which is active and has no adapters, and b, which sleeps at level 2 and has one of its own."""
    host.settings["canary"] = "auto"
    for name in "ab":
        host.declare(name, sleep_level=2, env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if name == "b" else {})
    host.models[1]["start_command"] += ["--enable-lora", "--lora-modules", f"{STATIC}={folder(tmp_path, STATIC)}"]
    host.switch("b")
    host.switch("a")
    return host


@pytest.fixture
def both(pair: Host, tmp_path: Path) -> Host:
    """The same, and b has been given another adapter while it was awake."""
    pair.switch("b")
    load(pair, LOADED, folder(tmp_path, LOADED))
    pair.switch("a")
    return pair


def folder(tmp_path: Path, name: str) -> str:
    path = tmp_path / "adapters" / name
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


def load(host: Host, name: str, path: str) -> None:
    host.call("b", "POST", LOAD, json={"lora_name": name, "lora_path": path}).raise_for_status()


def unload(host: Host, name: str) -> None:
    host.call("b", "POST", "/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()


def record(host: Host, name: str = "b") -> Any:
    return json.loads((host.stack_dir / "run" / "canary.json").read_text(encoding="utf-8"))["models"][name]["adapters"]


def served(host: Host) -> dict[str, str]:
    """The adapters that b lists."""
    cards = host.call("b", "GET", LIST).json()["data"]
    return {card["id"]: card["root"] for card in cards if card["parent"]}


def answer(host: Host, route: str) -> str:
    """What a client gets."""
    body = {"model": route, "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
    told = host.call("b", "POST", ANSWER, json=body)
    told.raise_for_status()
    return str(told.json()["choices"][0]["text"])


def calls(host: Host, name: str, path: str) -> int:
    """How often a server was asked for this."""
    return host.log(name).count(f" {path} HTTP")


def notes(result: Result) -> list[str]:
    return [step["note"] for step in result.steps if "note" in step]


def rungs(result: Result) -> list[str]:
    return [f"{step.get('escalation', '-')} {step['action']} {step['model']}" for step in result.steps]


RETRIED = ["retry reload b", "retry verify b"]
RESTARTED = ["restart stop b", "restart start b", "restart verify b"]


def failed(host: Host) -> tuple[str, Result]:
    with pytest.raises(SwitchFailed) as caught:
        host.switch("b")
    return str(caught.value), caught.value.result


def test_an_adapter_is_recorded_with_the_model_and_compared_after_a_wake(pair: Host) -> None:
    known = record(pair)
    assert list(known) == [STATIC]
    assert known[STATIC]["text"] != known[STATIC]["base"]
    assert (known[STATIC]["reproducible"], known[STATIC]["own"], known[STATIC]["suspect"]) == (True, True, False)
    result = pair.switch("b")
    assert notes(result) == ["answers as recorded; 1 adapter answers as recorded"]
    assert result.warnings == []
    assert record(pair) == known


def test_a_model_without_adapters_costs_no_call_more(pair: Host) -> None:
    pair.switch("b")
    before = calls(pair, "a", LIST), calls(pair, "a", ANSWER)
    pair.switch("a")
    # A look at the beginning, one at the end; one short completion.
    assert (calls(pair, "a", LIST) - before[0], calls(pair, "a", ANSWER) - before[1]) == (2, 1)
    assert record(pair, "a") == {}


@pytest.mark.parametrize("level", [1, 2])
def test_a_lost_adapter_is_a_failed_wake_and_a_restart_mends_it(both: Host, level: int) -> None:
    both.models[1]["sleep_level"] = level
    both.switch("b")
    right = {route: answer(both, route) for route in (STATIC, LOADED, "b")}
    both.switch("a")
    both.fault("b", "/wake_up", "lose_adapters")
    result = both.switch("b")
    retried = RETRIED if level == 2 else []
    assert rungs(result) == ["- drain a", "- sleep a", "- wake b", "- verify b", *retried, *RESTARTED]
    why = result.steps[3]["failed"]
    assert f"b's adapter {STATIC} answers the fixed prompt with the answer of the bare model, not with '" in why
    assert f"b's adapter {LOADED} answers the fixed prompt with the answer of the bare model, not with '" in why
    assert why.endswith("(canary)")
    # What was loaded at run time is there again.
    assert list(served(both)) == [STATIC, LOADED]
    assert f"adapter {LOADED} loaded again" in result.steps[-1]["note"]
    assert {route: answer(both, route) for route in right} == right
    assert [one["suspect"] for one in record(both).values()] == [False, False]


def test_without_a_restart_the_switch_fails_and_says_which_adapter(pair: Host) -> None:
    pair.settings["escalation"] = ["retry", "roll_back"]
    pair.fault("b", "/wake_up", "lose_adapters")
    text, result = failed(pair)
    assert result.active_model == "a"
    assert f"adapter {STATIC} answers the fixed prompt with the answer of the bare model" in text
    assert "What to do: check that the adapter's files have not changed since it was loaded" in text
    assert pair.states() == {"a": "active", "b": "sleeping"}
    assert record(pair)[STATIC]["suspect"]
    # It is no better the second time.
    failed(pair)


def test_swapped_adapters_are_found(both: Host) -> None:
    both.fault("b", "/wake_up", "swap_adapters")
    result = both.switch("b")
    why = result.steps[3]["failed"]
    assert f"b's adapter {STATIC} answers the fixed prompt with the answer of {LOADED}, not with '" in why
    assert f"b's adapter {LOADED} answers the fixed prompt with the answer of {STATIC}, not with '" in why
    assert rungs(result)[4:] == [*RETRIED, *RESTARTED]


def test_an_adapter_that_is_not_listed_after_a_wake_is_a_failed_wake(both: Host) -> None:
    both.fault("b", "/wake_up", "drop_adapters")
    result = both.switch("b")
    assert f"b's adapter {LOADED} is missing from /v1/models since the wake" in result.steps[3]["failed"]
    assert rungs(result)[4:] == [*RETRIED, *RESTARTED]
    assert list(served(both)) == [STATIC, LOADED]


def test_a_route_that_does_not_answer_is_a_failed_wake(pair: Host) -> None:
    pair.fault("b", ANSWER, "status_500", skip=1)
    result = pair.switch("b")
    assert rungs(result)[3:] == ["- verify b", *RETRIED]
    assert f"b's adapter {STATIC} does not answer: b: POST " in result.steps[3]["failed"]
    assert result.warnings == []


@pytest.mark.parametrize("mode", ["warn", "off"])
def test_the_canary_of_the_model_says_what_becomes_of_it(both: Host, mode: str) -> None:
    both.models[1]["canary"] = mode
    both.fault("b", "/wake_up", "lose_adapters")
    before = calls(both, "b", ANSWER)
    result = both.switch("b")
    assert rungs(result)[2:] == ["- wake b", "- verify b"]
    assert [warning.count("the answer of the bare model") for warning in result.warnings] == [2] * (mode == "warn")
    assert calls(both, "b", ANSWER) - before == (3 if mode == "warn" else 1)


def test_one_whose_answer_is_not_reproducible_is_only_warned_of(host: Host, tmp_path: Path) -> None:
    host.settings["canary"] = "auto"
    # Of the model two answers are asked for, then two of the adapter.
    order = {"path": ANSWER, "fault": "wrong_text", "skip": 2}
    host.declare("b", sleep_level=1, env={"STANDIN_FAULTS": json.dumps([order])})
    host.models[0]["start_command"] += ["--enable-lora", "--lora-modules", f"{STATIC}={folder(tmp_path, STATIC)}"]
    assert notes(host.switch("b")) == [f"answer recorded; adapter {STATIC} recorded, but a second answer differed"]
    host.switch("b", "sleeping")
    result = host.switch("b")
    assert len(result.warnings) == 1
    assert f"b's adapter {STATIC} answers the fixed prompt with '" in result.warnings[0]


def test_what_came_later_is_recorded_before_the_sleep_once(both: Host) -> None:
    known = record(both)
    assert list(known) == [STATIC, LOADED]
    assert (known[LOADED]["own"], known[LOADED]["reproducible"]) == (False, True)
    assert notes(both.switch("b")) == ["answers as recorded; 2 adapters answer as recorded"]
    before = calls(both, "b", ANSWER)
    both.switch("a")
    assert calls(both, "b", ANSWER) == before


def test_what_came_later_is_not_recorded_while_the_model_answers_wrongly(pair: Host, tmp_path: Path) -> None:
    pair.switch("b")
    load(pair, LOADED, folder(tmp_path, LOADED))
    pair.fault("b", ANSWER, "wrong_text")
    pair.switch("a")
    assert list(record(pair)) == [STATIC]
    assert notes(pair.switch("b")) == [
        "answers as recorded; 1 adapter answers as recorded; adapter loud is not recorded yet"
    ]


def test_a_sleep_does_not_wait_long_for_what_came_later(
    pair: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "SECONDS_BEFORE_SLEEP", 0.3)
    pair.switch("b")
    load(pair, LOADED, folder(tmp_path, LOADED))
    pair.fault("b", ANSWER, "hang", times=0, seconds=30, skip=1)
    result = pair.switch("a")
    drain = result.steps[0]
    assert (drain["action"], drain["seconds"] < 15) == ("drain", True)
    assert "not all adapters could be recorded: " in drain["note"]
    assert result.active_model == "a"
    assert list(record(pair)) == [STATIC]


def test_what_was_removed_is_forgotten_before_the_sleep(both: Host) -> None:
    both.switch("b")
    unload(both, LOADED)
    result = both.switch("a")
    assert f"adapter {LOADED} is not listed any more" in result.steps[0]["note"]
    assert list(record(both)) == [STATIC]
    assert notes(both.switch("b")) == ["answers as recorded; 1 adapter answers as recorded"]


def test_what_was_removed_from_an_active_model_is_no_failure(both: Host) -> None:
    both.switch("b")
    unload(both, LOADED)
    both.settings["prove_interval_seconds"] = 0
    result = both.switch("b")
    assert notes(result) == [
        f"answers as recorded; 1 adapter answers as recorded; adapter {LOADED} is not listed any more"
    ]
    assert list(record(both)) == [STATIC]


def test_what_was_removed_while_the_model_slept_is_no_failure(both: Host) -> None:
    unload(both, LOADED)
    result = both.switch("b")
    assert rungs(result)[2:] == ["- wake b", "- verify b"]
    assert notes(result) == [
        f"answers as recorded; 1 adapter answers as recorded; adapter {LOADED} is not listed any more"
    ]
    assert list(record(both)) == [STATIC]


def test_what_is_missing_where_no_start_is_known_was_not_removed(both: Host) -> None:
    (both.stack_dir / "run" / "b.pid").unlink()  # as if somebody else had started it
    unload(both, LOADED)
    text, _result = failed(both)
    assert f"adapter {LOADED} is missing from /v1/models since the wake" in text
    assert list(record(both)) == [STATIC, LOADED]


def test_what_somebody_elses_restart_has_lost_is_not_removed(both: Host) -> None:
    both.switch("b")
    Command(both.model("b"), str(both.stack_dir), both.inventory.switching).stop()
    both.start("b")
    both.wait_until(lambda: both.answers("b"), "it is loaded")
    both.switch("a")
    assert list(record(both)) == [STATIC, LOADED]
    result = both.switch("b")
    assert notes(result) == [f"answers as recorded; 2 adapters answer as recorded; adapter {LOADED} loaded again"]
    assert list(served(both)) == [STATIC, LOADED]


def test_what_is_not_known_is_not_removed(both: Host) -> None:
    both.switch("b")
    both.fault("b", LIST, "status_500", times=2)
    with pytest.raises(Blocked):
        both.switch("a")
    assert list(record(both)) == [STATIC, LOADED]


def test_another_path_is_another_adapter(both: Host, tmp_path: Path) -> None:
    both.switch("b")
    unload(both, LOADED)
    load(both, LOADED, folder(tmp_path, "louder"))
    before = record(both)
    both.switch("a")
    assert record(both)[LOADED]["text"] != before[LOADED]["text"]
    assert notes(both.switch("b")) == ["answers as recorded; 2 adapters answer as recorded"]


def test_a_start_by_intent_loads_them_again(both: Host) -> None:
    known = record(both)
    both.switch("b", "stopped")
    result = both.switch("b")
    assert result.warnings == []
    assert notes(result) == [f"answers as recorded; 2 adapters answer as recorded; adapter {LOADED} loaded again"]
    assert record(both)[LOADED]["start"] != known[LOADED]["start"]
    assert record(both)[LOADED]["own"] is False


@pytest.mark.parametrize("why", ["not allowed", "no files"])
def test_what_can_not_be_loaded_again_is_told(both: Host, tmp_path: Path, why: str) -> None:
    both.switch("b", "stopped")
    if why == "not allowed":
        del both.models[1]["env"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]
    else:
        Path(folder(tmp_path, LOADED)).rmdir()
    result = both.switch("b")
    (warning,) = result.warnings
    assert warning.startswith(f"b's adapter {LOADED} was lost by a start of the server and could not be loaded again (")
    told = {"not allowed": "VLLM_ALLOW_RUNTIME_LORA_UPDATING is not set", "no files": "No adapter found for"}
    assert told[why] in warning
    assert "or add it to lora_modules in the model's args" in warning
    both.switch("a")
    # Told once.
    assert both.switch("b").warnings == []


def test_files_that_are_gone_are_told_however_long_their_path(pair: Host, tmp_path: Path) -> None:
    path = folder(tmp_path, "two\nlines" + "x" * 150)
    pair.switch("b")
    load(pair, LOADED, path)
    pair.switch("b", "stopped")
    Path(path).rmdir()
    (warning,) = pair.switch("b").warnings
    assert "No adapter found for" in warning
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in warning
    assert "\n" not in warning


def test_what_a_wake_has_lost_is_not_forgotten_where_that_is_undone(both: Host) -> None:
    known = record(both)
    both.settings["escalation"] = ["roll_back"]
    both.fault("b", "/wake_up", "drop_adapters")
    both.fault("b", ANSWER, "refuse")  # nobody learns what it has lost
    _text, result = failed(both)
    assert rungs(result)[4:6] == ["roll_back drain b", "roll_back sleep b"]
    assert record(both) == known


def test_one_that_is_declared_no_more_is_told_and_forgotten(pair: Host) -> None:
    pair.switch("b", "stopped")
    del pair.models[1]["start_command"][-2:]
    result = pair.switch("b")
    (warning,) = result.warnings
    assert warning.startswith(f"b's adapter {STATIC} is not served any more since the server was started")
    assert record(pair) == {}


def test_a_start_by_intent_may_answer_otherwise(pair: Host, tmp_path: Path) -> None:
    known = record(pair)
    pair.switch("b", "stopped")
    order = {"path": ANSWER, "fault": "wrong_text", "skip": 1, "times": 2}
    pair.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([order])
    result = pair.switch("b")
    (warning,) = result.warnings
    assert f"b's adapter {STATIC} answers the fixed prompt with '" in warning
    assert "the server was started since then, so the new answer was recorded" in warning
    assert record(pair)[STATIC]["text"] != known[STATIC]["text"]


def test_a_restart_for_a_failure_is_no_reason_to_believe_another_answer(pair: Host) -> None:
    known = record(pair)
    order: dict[str, Any] = {"path": ANSWER, "fault": "wrong_text", "skip": 1, "times": 0}
    pair.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([order])
    pair.fault("b", "/wake_up", "lose_adapters")
    text, result = failed(pair)
    assert "restart verify b" in rungs(result)
    assert f"adapter {STATIC} answers" in text
    assert record(pair)[STATIC] == {**known[STATIC], "suspect": True}


def test_after_a_refused_answer_none_is_taken_on_trust(pair: Host) -> None:
    pair.settings["escalation"] = ["roll_back"]
    pair.fault("b", "/wake_up", "lose_adapters")
    failed(pair)
    pair.switch("b", "stopped")
    order = {"path": ANSWER, "fault": "wrong_text", "skip": 1, "times": 0}
    pair.models[1]["env"]["STANDIN_FAULTS"] = json.dumps([order])
    text, _result = failed(pair)
    assert f"adapter {STATIC} answers the fixed prompt with '" in text


def test_an_adapter_that_refuses_is_not_recorded_and_the_model_starts(host: Host, tmp_path: Path) -> None:
    host.settings["canary"] = "auto"
    order = {"path": ANSWER, "fault": "status_500", "skip": 2}
    host.declare("b", sleep_level=1, env={"STANDIN_FAULTS": json.dumps([order])})
    host.models[0]["start_command"] += ["--enable-lora", "--lora-modules", f"{STATIC}={folder(tmp_path, STATIC)}"]
    result = host.switch("b")
    (warning,) = result.warnings
    assert warning.startswith(f"b's adapter {STATIC} does not answer, so nothing is recorded of it: ")
    assert record(host) == {}


def test_adapters_of_another_model_are_recorded_anew(pair: Host) -> None:
    known = record(pair)
    pair.switch("b", "stopped")
    pair.models[1]["start_command"][3] = "org/other"
    result = pair.switch("b")
    assert len(result.warnings) == 1
    assert "b answers the fixed prompt with" in result.warnings[0]
    # That the adapter answers otherwise goes without saying.
    assert "adapter" not in result.warnings[0]
    assert record(pair)[STATIC]["base"] != known[STATIC]["base"]


def test_one_that_can_not_be_told_from_the_bare_model_is_said_once(host: Host, tmp_path: Path) -> None:
    host.settings["canary"] = "auto"
    host.declare("b", sleep_level=1)
    host.models[0]["start_command"] += ["--enable-lora", "--lora-modules", f"{STATIC}={folder(tmp_path, STATIC)}"]
    host.models[0]["env"]["STANDIN_FAULTS"] = json.dumps([{"path": "/health", "fault": "lose_adapters"}])
    host.switch("b", "sleeping")
    # From this wake on its adapter has no effect.
    with host.switcher() as switcher:
        result = switcher.switch("b", record_canary=True)
    (warning,) = result.warnings
    assert f"b's adapter {STATIC} answers the fixed call as the bare model does" in warning
    host.switch("b", "sleeping")
    result = host.switch("b")
    assert result.warnings == []
    assert notes(result) == [f"answers as recorded; 1 adapter answers as recorded ({STATIC}: as the bare model does)"]
    # It had been lost already. When a restart brings it back, that is no failure.
    host.fault("b", "/wake_up", "status_500", times=0)
    host.switch("b", "sleeping")
    result = host.switch("b")
    assert rungs(result)[-1] == "restart verify b"
    (warning,) = result.warnings
    assert "the server was started since then, so the new answer was recorded" in warning
    assert record(host)[STATIC]["text"] != record(host)[STATIC]["base"]


def test_on_request_the_answers_are_recorded_as_they_are(both: Host) -> None:
    known = record(both)
    both.fault("b", "/wake_up", "swap_adapters")
    with both.switcher() as switcher:
        result = switcher.switch("b", record_canary=True)
    assert notes(result) == [f"answer recorded; adapter {STATIC} recorded; adapter {LOADED} recorded"]
    assert record(both)[STATIC]["text"] == known[LOADED]["text"]


def test_on_request_what_a_restart_has_lost_is_loaded_first(both: Host) -> None:
    both.switch("b", "stopped")
    with both.switcher() as switcher:
        switcher.switch("b", record_canary=True)
    assert list(record(both)) == [STATIC, LOADED]
    unload(both, LOADED)
    with both.switcher() as switcher:
        switcher.switch("b", record_canary=True)
    assert list(record(both)) == [STATIC]


@pytest.mark.parametrize("damaged", [None, [], {STATIC: None}, {STATIC: {"text": 5}}])
def test_records_that_can_not_be_read(pair: Host, damaged: Any) -> None:
    path = pair.stack_dir / "run" / "canary.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    known["models"]["b"]["adapters"] = damaged
    path.write_text(json.dumps(known), encoding="utf-8")
    assert notes(pair.switch("b")) == [f"answers as recorded; adapter {STATIC} is not recorded yet"]
    pair.switch("a")
    assert list(record(pair)) == [STATIC]


def test_records_of_before_there_were_any(pair: Host) -> None:
    path = pair.stack_dir / "run" / "canary.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    for one in known["models"].values():
        del one["adapters"]
    path.write_text(json.dumps(known), encoding="utf-8")
    assert pair.switch("b").warnings == []


def test_what_a_model_list_tells() -> None:
    cards: list[dict[str, Any]] = [
        {"id": "m", "root": "/m", "parent": None, "max_model_len": 4096},
        {"id": "x", "root": "/x", "parent": "m"},
        {"id": "y", "root": None, "parent": "another"},
        {"id": "z", "root": "/z", "parent": ""},
        {"id": "w", "root": "/w", "parent": 7, "max_model_len": "long"},
        {"id": "alias", "root": "/m", "parent": "m"},
        {"id": "", "root": "/e", "parent": "m"},
    ]
    told = model_list.parse({"data": cards}, ("m", "alias"))
    assert told
    assert told.served == {"m": 4096, "x": None, "y": None, "z": None, "w": None, "alias": None, "": None}
    assert told.adapters == {"x": "/x", "y": ""}
    for odd in ({}, {"data": None}, {"data": ["m"]}, {"data": [{"id": 7}]}):
        assert model_list.parse(odd, ("m",)) is None


# ---- many of them -------------------------------------------------------------------------------


class Many:
    """A server of so many adapters, each of whose answers takes so long, by a clock of its own."""

    def __init__(self, count: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.switching = Switching(request_timeout_seconds=10)
        self.adapters = {f"x{number}": f"/x{number}" for number in range(count)}
        self.seconds = seconds
        self.now = 1000.0
        self.lost = False
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def list_adapters(self) -> dict[str, str]:
        return dict(self.adapters)

    def route_canary(self, route: str, kind: str, seconds: float | None = None) -> Reply:
        self.now += self.seconds if seconds is None else min(self.seconds, seconds)
        return Reply(kind, "bare" if self.lost else route or "bare")

    def prove(self, model: Model, stack_dir: Path, came: str) -> canary.Verdict:
        return adapters.prove(self, model, str(stack_dir), "1", came, None)  # type: ignore[arg-type]


@pytest.fixture(name="model")
def model_fixture(stack_dir: Path) -> Model:
    """A model whose own answer is recorded."""
    (model,) = parse([{"id": "m", "model": "m", "host_port": 8000, "weights_gb": 1}]).models
    canary.write(model, str(stack_dir), canary.Record("bare", True, "1", "", {}, "", kind=TEXT))
    return model


def recorded(model: Model, stack_dir: Path) -> int:
    known = canary.read(model, str(stack_dir))
    return len(known.adapters) if known else 0


def test_neither_a_start_nor_a_wake_waits_for_all_of_many(
    model: Model, stack_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Many(5, 4, monkeypatch)
    verdict = server.prove(model, stack_dir, canary.STARTED)
    assert verdict.warning == "3 of 5 adapters of m were not verified within 10 s (request_timeout_seconds)"
    assert recorded(model, stack_dir) == 2
    server.seconds = 1
    for _start in range(2):
        server.prove(model, stack_dir, canary.STARTED)
    assert recorded(model, stack_dir) == 5
    server.seconds = 4
    verdict = server.prove(model, stack_dir, canary.WOKEN)
    assert verdict == (
        "3 adapters answer as recorded",
        "2 of 5 adapters of m were not verified within 10 s (request_timeout_seconds)",
    )
    assert recorded(model, stack_dir) == 5


def test_a_sleep_waits_no_longer_for_many_quick_ones(
    model: Model, stack_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Many(1000, 0.008, monkeypatch)
    verdict = adapters.before_sleep(server, model, str(stack_dir), lambda: "1")  # type: ignore[arg-type]
    assert server.now - 1000 < adapters.SECONDS_BEFORE_SLEEP + 0.1
    assert verdict.note.endswith(" more")
    assert 300 < recorded(model, stack_dir) < 320


def test_a_message_does_not_name_all_of_many(model: Model, stack_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Many(500, 0, monkeypatch)
    assert server.prove(model, stack_dir, canary.STARTED).note.endswith("adapter x9 recorded; and 490 more")
    server.lost = True
    with pytest.raises(WrongAdapter) as caught:
        server.prove(model, stack_dir, canary.WOKEN)
    assert str(caught.value).endswith("; and 490 more (canary)")
