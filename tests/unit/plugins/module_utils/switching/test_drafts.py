# SPDX-License-Identifier: MIT
"""Speculative decoding whose draft model a wake left without weights: right answers at half the speed."""

from __future__ import annotations

import concurrent.futures
import json
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import (
    drafts,
    metrics,
    options,
    state_files,
    versions,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import (
    InventoryError,
    ServerError,
    SwitchFailed,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Switching, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.metrics import Drafts
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.server import Server

from tests.serverlib import STANDIN

from .conftest import Host

DRAFT_MODEL = {"method": "eagle3", "model": "org/drafts", "num_speculative_tokens": 3}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3}
COMPLETION = "POST /v1/completions"


def declare(host: Host, name: str, said: dict[str, Any], *, known: bool = True, **fields: Any) -> None:
    """Declare a model that speculates; whether its command tells that it is vLLM's."""
    host.declare(name, **fields)
    model = host.models[-1]
    model["start_command"] += ["--speculative-config", json.dumps(said)]
    if known:
        vllm = host.stack_dir.parent / "vllm"
        if not vllm.exists():
            vllm.symlink_to(STANDIN)
        model["start_command"][1] = str(vllm)


@pytest.fixture
def pair(host: Host) -> Host:
    """The models a, with a draft model, which sleeps at level 2 by name, and b, which is active; a was started here."""
    declare(host, "a", DRAFT_MODEL, sleep_level="2")
    host.declare("b", sleep_level="1")
    host.switch("a")
    host.switch("b")
    return host


def notes(result: Result) -> list[str]:
    return [step["note"] for step in result.steps if step["action"] in ("verify", "record") and "note" in step]


def rungs(result: Result) -> list[str]:
    return [f"{step.get('escalation', '-')} {step['action']} {step['model']}" for step in result.steps]


def remembered(host: Host) -> dict[str, Any]:
    return state_files.models(str(host.stack_dir), state_files.DRAFTS)


# ---- who is concerned ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ({}, None),
        ({"max_model_len": 4096, "speculative_config": None}, None),
        ({"speculative_config": DRAFT_MODEL}, True),
        ({"speculative_config": json.dumps(DRAFT_MODEL)}, True),
        ({"speculative_config": {"model": "org/drafts"}}, True),
        ({"speculative_config": {"method": "mtp"}}, True),
        ({"speculative_config": NGRAM}, False),
        ({"speculative_config": {"model": "[ngram]"}}, False),
        ({"speculative_config": json.dumps({"method": "suffix"})}, False),
        ({"speculative_config.method": "ngram_gpu"}, False),
        ({"speculative_config.method": "eagle", "speculative_config.model": "ngram"}, True),
        ({"spec_method": "mtp"}, True),
        ({"spec_model": "org/drafts"}, True),
        ({"speculative_model": "[ngram]"}, False),
        ({"speculative_model": "org/drafts"}, True),
        ({"speculative_config": "{"}, None),
        ({"speculative_config": [1]}, None),
    ],
)
def test_which_options_have_drafts_with_weights(given: dict[str, Any], weights: bool | None) -> None:
    assert options.draft_weights(given) is weights


def test_a_command_tells_it_as_args_do() -> None:
    for flag in (["--speculative-config", json.dumps(DRAFT_MODEL)], ["-sc=" + json.dumps(DRAFT_MODEL)]):
        command = ["vllm", "serve", "org/m", *flag, "--port", "8000"]
        (model,) = parse(
            [{"id": "m", "model": "m", "host_port": 8000, "start_command": command, "weights_gb": 1}]
        ).models
        assert model.draft_weights is True
    args = {"speculative-config": NGRAM}
    (model,) = parse([{"id": "m", "model": "m", "host_port": 8000, "args": args, "weights_gb": 1}]).models
    assert model.draft_weights is False


def test_the_choices_are_checked() -> None:
    model = {"id": "m", "model": "m", "host_port": 8000, "drafts": "reload", "first_answer_tokens": -1}
    with pytest.raises(InventoryError) as caught:
        parse([model])
    assert "drafts must be one of warn, restart, ignore" in str(caught.value)
    assert "first_answer_tokens must be" in str(caught.value)
    model = {"id": "m", "model": "m", "host_port": 8000, "first_answer_tokens": 9, "args": {"runner": "pooling"}}
    with pytest.raises(InventoryError, match="first_answer_tokens requires a model that completes text: remove it"):
        parse([{**model, "weights_gb": 1}])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", None),
        ('vllm:spec_decode_num_draft_tokens_total{engine="0"} 4.0', None),
        (
            'vllm:spec_decode_num_draft_tokens_total{engine="0"} 4.0\n'
            'vllm:spec_decode_num_draft_tokens_total{engine="1"} 1e+02\n'
            'vllm:spec_decode_num_accepted_tokens_total{engine="0"} 3.0\n'
            'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 7.0\n',
            Drafts(104, 3),
        ),
        (
            'vllm:spec_decode_num_draft_tokens_total{engine="0"} 4.0\n'
            'vllm:spec_decode_num_accepted_tokens_total{engine="0"} 3.0\n'
            'vllm:generation_tokens_total{engine="0"} 128.0\n'
            'vllm:request_generation_tokens_sum{engine="0"} 5.0\n',
            Drafts(4, 3, 128),
        ),
        ("vllm:spec_decode_num_draft_tokens 4.0\nvllm:spec_decode_num_accepted_tokens 0.0", Drafts(4, 0)),
        ("vllm:spec_decode_num_draft_tokens 4.0\nvllm:spec_decode_num_accepted_tokens NaN", None),
    ],
)
def test_what_the_counters_tell(text: str, told: Drafts | None) -> None:
    assert metrics.drafts(text) == told


# ---- what is found ------------------------------------------------------------------------------


class Told:
    """A server whose counters go on with each completion, as told."""

    def __init__(self, *made: tuple[int, int], answered: int | None = None) -> None:
        self.made = list(made)
        self.total = (1000, 500)
        self.answered = answered
        self.asked = 0

    def drafted(self) -> Drafts | None:
        return Drafts(*self.total, self.answered and (7 + self.answered if self.asked else 7))

    def complete(self, prompt: str, tokens: int, seconds: float) -> int:
        assert 0 < seconds <= 10
        assert tokens > 0
        self.asked += 1
        drafted, accepted = self.made.pop(0)
        self.total = (self.total[0] + drafted, self.total[1] + accepted)
        return len(prompt)


@pytest.fixture(name="model")
def model_fixture() -> Any:
    return parse([{"id": "m", "model": "m", "host_port": 8000, "weights_gb": 1}]).models[0]


def load(drafted: int, accepted: int, answered: int | None = 128) -> Any:
    """What answers the four texts with so many drafts in all, and so many tokens, those of others included."""
    return Told((drafted, accepted), (0, 0), (0, 0), (0, 0), answered=answered)


@pytest.mark.parametrize(
    ("before", "now", "note", "warned"),
    [
        ((100, 60), (100, 60), "60 % of 100 drafted tokens accepted", False),
        ((100, 60), (100, 30), "30 % of 100 drafted tokens accepted", False),  # half of it is not yet below
        ((100, 60), (100, 29), "29 % of 100 drafted tokens accepted", True),
        # Where others had answers too, or nobody knows, a tenth.
        ((100, 60), (100, 6, 129), "6 % of 100 drafted tokens accepted", False),
        ((100, 60), (100, 6, None), "6 % of 100 drafted tokens accepted", False),
        ((100, 60), (100, 5, 129), "5 % of 100 drafted tokens accepted", True),
        ((128, 120), (128 + 3000, 120 + 600, 1000), "23 % of 3128 drafted tokens accepted", False),
        ((100, 60), (372, 0), "0 % of 372 drafted tokens accepted", True),
        ((100, 60), (32, 0), "0 % of 32 drafted tokens accepted", True),
        ((100, 60), (31, 0), "too few drafts to tell what they are worth", False),
        ((31, 31), (100, 0), "0 % of 100 drafted tokens accepted; nothing is recorded to compare that with", False),
        ((100, 7), (100, 0), "0 % of 100 drafted tokens accepted; nothing is recorded to compare that with", False),
        ((100, 8), (100, 0), "0 % of 100 drafted tokens accepted", True),
    ],
)
def test_a_fall_by_more_than_half_is_warned_of(
    stack_dir: Path, model: Any, before: tuple[int, int], now: tuple[int, ...], note: str, warned: bool
) -> None:
    drafts.record(load(*before), model, str(stack_dir))
    verdict = drafts.prove(load(*now), model, str(stack_dir))
    assert verdict.note == note
    assert bool(verdict.warning) is warned


def test_nothing_recorded_or_nothing_told_is_unknown(stack_dir: Path, model: Any) -> None:
    verdict = drafts.prove(load(100, 0), model, str(stack_dir))
    assert verdict == ("0 % of 100 drafted tokens accepted; nothing is recorded to compare that with", "")
    (stack_dir / "run").mkdir(parents=True)
    odd = [5, *({"drafted": number, "accepted": 50, "recorded": ""} for number in ("x", float("inf"), None))]
    for content in ({"models": {"m": one}} for one in odd):
        state_files.write(str(stack_dir), state_files.DRAFTS, content)
        assert drafts.prove(load(100, 0), model, str(stack_dir)).warning == ""

    class Failing(Told):
        def complete(self, prompt: str, tokens: int, seconds: float) -> int:
            raise ServerError(prompt)

    class Silent(Told):
        def drafted(self) -> None:
            return None

    class Anew(Told):
        def complete(self, prompt: str, tokens: int, seconds: float) -> int:
            self.total = (40, 0)  # it was started in between
            return 0

    for server in (Failing(), Silent(), Anew()):
        drafts.record(load(100, 60), model, str(stack_dir))
        assert drafts.prove(server, model, str(stack_dir)) == ("too few drafts to tell what they are worth", "")  # type: ignore[arg-type]
        assert server.asked == 0


def test_what_was_known_of_another_start_is_forgotten(stack_dir: Path, model: Any) -> None:
    drafts.record(load(100, 60), model, str(stack_dir))
    assert drafts.record(load(0, 0), model, str(stack_dir)) == "no drafted tokens"
    assert drafts.prove(load(100, 0), model, str(stack_dir)).warning == ""


def test_what_is_too_little_to_compare_with_gives_way_to_what_is_known_good(stack_dir: Path, model: Any) -> None:
    drafts.record(load(0, 0), model, str(stack_dir))
    assert drafts.prove(load(100, 60), model, str(stack_dir), known_good=True).note.startswith("60 % of ")
    assert drafts.prove(load(100, 0), model, str(stack_dir), known_good=True).warning != ""


def test_the_load_ends_in_time(stack_dir: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.0, 109.5, 110.5, 111.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    server = Told((50, 25), (50, 25))
    assert drafts.record(server, model, str(stack_dir)) == "50 % of 100 drafted tokens accepted"  # type: ignore[arg-type]
    assert server.asked == 2


# ---- a switch -----------------------------------------------------------------------------------


def test_a_wake_from_level_2_without_drafts_is_warned_of(pair: Host) -> None:
    assert remembered(pair)["a"]["drafted"] >= drafts.LEAST_DRAFTED
    asked = pair.changing_calls("a").count(COMPLETION)
    result = pair.switch("a")
    assert rungs(result) == ["- drain b", "- sleep b", "- wake a", "- verify a"]
    (note,) = notes(result)
    assert note.startswith("0 % of ")
    (warning,) = result.warnings
    assert warning.startswith("a answers correctly but slowly: 0 % of ")
    assert "and 60 % on 20" in warning
    assert "or its drafts to restart" in warning
    # Four texts, and the proof.
    assert pair.changing_calls("a").count(COMPLETION) - asked == 5
    assert result.active_model == "a"


def test_the_sleep_at_level_2_by_name_names_what_comes_of_it(pair: Host) -> None:
    pair.switch("a")
    result = pair.switch("b")
    assert result.steps[1]["level"] == 2
    assert result.warnings == [
        "a sleeps at level 2 because of its sleep_level, although vLLM 0.32.0 does not reload the weights of a draft "
        "model, so that it answers more slowly after each wake; sleep_level auto uses level 1 or stops it"
    ]


def test_by_choice_it_is_restarted(pair: Host) -> None:
    pair.models[0]["drafts"] = "restart"
    known = remembered(pair)
    result = pair.switch("a")
    assert rungs(result)[2:] == [
        "- wake a", "- verify a", "restart stop a", "restart start a", "restart verify a",
    ]  # fmt: skip
    assert result.warnings == []
    assert result.recovery == "a was restarted"
    assert notes(result)[-1].startswith("60 % of ")
    assert pair.call("a", "GET", "/standin/state").json()["drafts_right"]
    assert remembered(pair) == known  # it was compared, not taken on trust


def test_what_a_restart_makes_of_them_is_compared_and_restarted_once(pair: Host) -> None:
    pair.models[0]["drafts"] = "restart"
    pair.models[0]["env"]["STANDIN_ACCEPTANCE"] = "0.05"
    known = remembered(pair)
    result = pair.switch("a")
    assert rungs(result)[-3:] == ["restart stop a", "restart start a", "restart verify a"]
    assert result.active_model == "a"
    (warning,) = result.warnings
    assert warning.startswith("a answers correctly but slowly: 5 % of ")
    assert remembered(pair) == known


def test_what_a_restart_makes_of_them_is_recorded_where_nothing_was(pair: Host) -> None:
    pair.models[0]["drafts"] = "restart"
    known = remembered(pair)
    (pair.stack_dir / "run" / "drafts.json").unlink()
    result = pair.switch("a")
    assert (notes(result)[0][:6], result.warnings) == ("0 % of", [])  # unknown is not wrong
    pair.switch("b")
    pair.fault("a", "/wake_up", "status_500", times=2)
    result = pair.switch("a")
    assert rungs(result)[-1] == "restart verify a"
    assert remembered(pair) == known


@pytest.mark.parametrize("action", ["fail", "keep"])
def test_where_the_restart_may_not_cut_what_runs_it_is_only_warned_of(pair: Host, action: str) -> None:
    pair.models[0]["drafts"] = "restart"
    pair.models[0]["env"]["STANDIN_TOKENS_PER_SECOND"] = "300"
    pair.switch("a", "stopped")
    pair.switch("a")
    pair.switch("b")
    pair.settings.update(drain_timeout_seconds=0.2, drain_timeout_action=action)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(pair.completion, "a", 3000)  # it waits for the wake
        pair.wait_until(lambda: pair.running("a"), "a has a request")
        result = pair.switch("a")
        assert not running.done()
        assert rungs(result)[2:] == ["- wake a", "- verify a", "restart drain a"]
        (warning,) = result.warnings
        assert warning.startswith("a answers correctly but slowly: 0 % of ")
        assert "; it could not be restarted: a: 1 requests still ran after 0.2 s" in warning
        assert running.result()["finish_reason"] == "length"
    assert pair.states() == {"a": "active", "b": "sleeping"}
    # Nothing is left in doubt.
    assert (pair.switch("a").warnings, pair.switch("b").active_model) == ([], "b")


def test_one_that_can_not_be_stopped_is_only_warned_of(pair: Host) -> None:
    pair.models[0]["drafts"] = "restart"
    (pair.stack_dir / "run" / "a.pid").unlink()  # as if somebody else had started it
    result = pair.switch("a")
    assert rungs(result)[2:] == ["- wake a", "- verify a", "restart stop a"]
    (warning,) = result.warnings
    assert "; it could not be restarted: a was not started by its start_command here" in warning
    assert pair.states() == {"a": "active", "b": "sleeping"}
    assert pair.switch("a").warnings == []


def test_one_whose_restart_fails_fails_the_switch(pair: Host) -> None:
    pair.models[0]["drafts"] = "restart"
    pair.models[0]["start_command"] = ["/bin/false"]
    with pytest.raises(SwitchFailed, match="and a restart failed: its server ended"):
        pair.switch("a")
    assert pair.states() == {"a": "stopped", "b": "active"}


def test_without_that_rung_it_is_only_warned_of(pair: Host) -> None:
    pair.models[0]["drafts"] = "restart"
    pair.settings["escalation"] = ["stop", "retry", "roll_back"]
    result = pair.switch("a")
    assert rungs(result)[2:] == ["- wake a", "- verify a"]
    assert len(result.warnings) == 1


def test_by_choice_nothing_is_measured(pair: Host) -> None:
    pair.models[0]["drafts"] = "ignore"
    asked = pair.changing_calls("a").count(COMPLETION)
    result = pair.switch("a")
    assert (result.warnings, notes(result)) == ([], [])
    assert pair.changing_calls("a").count(COMPLETION) - asked == 1
    pair.models[0].update(sleep_level="auto")
    pair.settings["available_ram_gb"] = 0
    assert pair.switch("b").steps[1] | {"seconds": 0, "started_seconds": 0} == {
        "action": "sleep", "model": "a", "level": 2, "seconds": 0, "started_seconds": 0,
    }  # fmt: skip


def test_drafts_that_are_reloaded_are_found_right(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "DRAFTS_RELOADED_SINCE", (0, 32))
    host.settings["available_ram_gb"] = 0
    declare(host, "a", DRAFT_MODEL, sleep_level="auto", standin={"reloads_drafts": 1})
    host.switch("a")
    asleep = host.switch("a", "sleeping")
    assert (asleep.models["a"].level, asleep.warnings) == (2, [])
    result = host.switch("a")
    assert (notes(result)[0][:8], result.warnings) == ("60 % of ", [])


def test_auto_stops_it_instead_of_level_2(host: Host) -> None:
    host.settings["available_ram_gb"] = 0
    declare(host, "a", DRAFT_MODEL, sleep_level="auto")
    host.declare("b", sleep_level="1")
    host.up(a="active", b=1)
    predicted = [step["action"] for step in host.switch("b", check=True).steps]
    result = host.switch("b")
    assert predicted == [step["action"] for step in result.steps] == ["drain", "stop", "wake", "verify"]
    assert result.warnings == [
        "a is stopped instead of put to sleep at level 2 (its sleep_level is auto): vLLM 0.32.0 does not reload the "
        "weights of a draft model, so that it answers more slowly after each wake"
    ]


def test_auto_stops_one_of_which_only_its_metrics_tell(host: Host) -> None:
    host.settings["available_ram_gb"] = 0
    declare(host, "a", DRAFT_MODEL, sleep_level="auto", known=False)
    host.declare("b", sleep_level="1")
    host.up(a="active", b=1)
    result = host.switch("b")
    assert [step["action"] for step in result.steps] == ["drain", "stop", "wake", "verify"]
    assert "does not reload the weights of a draft model" in result.warnings[0]


def test_one_that_sleeps_at_level_2_by_name_and_of_which_only_its_metrics_tell(host: Host) -> None:
    declare(host, "a", DRAFT_MODEL, sleep_level="2", known=False)
    assert notes(host.switch("a"))[0].startswith("60 % of ")
    host.switch("a", "sleeping")
    (warning,) = host.switch("a").warnings
    assert warning.startswith("a answers correctly but slowly: 0 % of ")


def test_drafts_without_weights_and_none_at_all_cost_nothing(host: Host) -> None:
    host.settings["available_ram_gb"] = 0
    declare(host, "a", NGRAM, sleep_level="auto")
    host.declare("b", sleep_level="auto")
    for name in ("a", "b", "a", "b"):
        result = host.switch(name)
        assert (result.warnings, notes(result)) == ([], [])
    for name in "ab":
        assert host.changing_calls(name).count(COMPLETION) == 2  # a proof each time
    assert remembered(host) == {}
    assert host.call("a", "GET", "/standin/state").json()["drafts_right"]


@pytest.mark.parametrize("level", ["auto", "1", "stop"])
def test_a_model_that_does_not_sleep_at_level_2_is_not_measured_when_it_starts(host: Host, level: str) -> None:
    declare(host, "a", DRAFT_MODEL, sleep_level=level)
    assert notes(host.switch("a")) == []
    assert host.changing_calls("a").count(COMPLETION) == 1
    assert remembered(host) == {}


def test_a_reload_after_a_wrong_answer_is_measured_too(pair: Host) -> None:
    pair.settings["canary"] = "enforce"
    pair.models[0]["drafts"] = "restart"
    pair.switch("a", "stopped")
    pair.switch("a")
    pair.switch("b")
    pair.fault("a", "/collective_rpc", "not_done")
    result = pair.switch("a")
    assert rungs(result)[2:] == [
        "- wake a", "- verify a", "retry reload a", "retry verify a", "restart stop a", "restart start a",
        "restart verify a",
    ]  # fmt: skip
    assert "(canary)" in result.steps[3]["failed"]
    assert "answers correctly but slowly" in result.steps[5]["failed"]
    assert result.warnings == []


def test_a_wake_from_level_1_measures_nothing(pair: Host) -> None:
    pair.models[0].update(sleep_level="1")
    pair.switch("a")
    pair.switch("b")
    asked = pair.changing_calls("a").count(COMPLETION)
    assert notes(pair.switch("a")) == []
    assert pair.changing_calls("a").count(COMPLETION) - asked == 1


@pytest.mark.parametrize("choice", ["warn", "restart"])
def test_what_a_bad_wake_left_is_not_recorded_as_good(pair: Host, choice: str) -> None:
    pair.models[0]["drafts"] = choice
    known = remembered(pair)
    pair.settings["canary"] = "auto"
    with pair.switcher() as switcher:
        result = switcher.switch("a", record_canary=True)
    assert rungs(result)[-1] == "- record a"
    assert "answer recorded; 0 % of " in notes(result)[-1]
    assert len(result.warnings) == 1
    assert remembered(pair) == known


def test_what_a_bad_wake_of_an_earlier_switch_left_is_not_recorded_as_good(pair: Host) -> None:
    pair.settings["canary"] = "auto"
    pair.switch("a")
    known = remembered(pair)
    with pair.switcher() as switcher:
        result = switcher.switch("a", record_canary=True)
    assert "answer recorded; 0 % of " in notes(result)[-1]
    assert len(result.warnings) == 1
    assert remembered(pair) == known


def test_what_is_recorded_on_request_is_known_good(pair: Host) -> None:
    pair.models[0].update(sleep_level="1")
    pair.settings["canary"] = "auto"
    pair.switch("a", "stopped")
    (pair.stack_dir / "run" / "drafts.json").unlink(missing_ok=True)
    pair.up(a="active")
    with pair.switcher() as switcher:
        result = switcher.switch("a", record_canary=True)
    assert "answer recorded; 60 % of " in notes(result)[-1]
    assert remembered(pair)["a"]["drafted"] >= drafts.LEAST_DRAFTED


# ---- the first answer ---------------------------------------------------------------------------


@pytest.fixture
def first(host: Host) -> Host:
    """The models a, which gives a first answer, and b; b is active."""
    host.declare("a", sleep_level="1", first_answer_tokens=1000)
    host.declare("b", sleep_level="1")
    host.up(a=1, b="active")
    return host


def prompt_tokens(host: Host, name: str) -> int:
    text = host.call(name, "GET", "/metrics").text
    return int(float(text.split("\nvllm:prompt_tokens_total{")[1].split("} ")[1].split("\n")[0]))


def test_after_a_wake_a_long_prompt_is_answered(first: Host) -> None:
    predicted = [f"{step['action']} {step['model']}" for step in first.switch("a", check=True).steps]
    before = prompt_tokens(first, "a")
    result = first.switch("a")
    assert rungs(result) == ["- drain b", "- sleep b", "- wake a", "- verify a", "- first_answer a"]
    assert predicted == [entry[2:] for entry in rungs(result)]
    last = result.steps[-1]
    assert (last["note"], last["level"]) == ("a prompt of 1000 tokens", None)
    assert last["seconds"] >= 0
    assert prompt_tokens(first, "a") - before >= 1000
    assert result.warnings == []
    # b has none, and a stays as it is.
    assert all(step["action"] != "first_answer" for step in first.switch("a").steps)
    assert all(step["action"] != "first_answer" for step in first.switch("b").steps)


def test_after_a_start_too_and_not_before_a_sleep(first: Host) -> None:
    first.switch("a", "stopped")
    assert rungs(first.switch("a"))[-1] == "- first_answer a"
    first.switch("a", "stopped")
    assert all(step["action"] != "first_answer" for step in first.switch("a", "sleeping").steps)


def test_no_more_than_the_server_has_room_for(first: Host) -> None:
    first.models[0]["first_answer_tokens"] = 100_000
    assert first.switch("a").steps[-1]["note"] == "a prompt of 4095 tokens"


def test_a_prompt_has_an_end_where_the_server_tells_of_none(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, asked = Server(model, Switching()), []
    monkeypatch.setattr(server, "_check_identity", lambda: "m")
    monkeypatch.setattr(server, "_call", lambda _method, _path, body, _seconds: asked.append(len(body["prompt"])))
    monkeypatch.setattr(server, "_json", lambda *_answer: {})
    assert server.complete(10**7, 1, 1.0) == 999_999
    assert asked == [999_999]


@pytest.mark.parametrize("fault", ["status_500", "html", "refuse"])
def test_no_first_answer_is_a_warning(first: Host, fault: str) -> None:
    first.fault("a", "/v1/completions", fault, skip=1)
    result = first.switch("a")
    assert result.steps[-1]["note"] == "no answer"
    assert "failed" not in result.steps[-1]
    (warning,) = result.warnings
    assert warning.startswith("a is ready, but its first answer (first_answer_tokens) failed: a: POST ")
    assert result.active_model == "a"
    assert first.states() == {"a": "active", "b": "sleeping"}


def test_a_server_that_dies_of_it_is_no_success(first: Host) -> None:
    first.fault("a", "/v1/completions", "oom", skip=1)
    with pytest.raises(SwitchFailed, match="it was ready, but is error at the end"):
        first.switch("a")
    first.wait_until(lambda: first.states()["b"] == "active", "b is back")
