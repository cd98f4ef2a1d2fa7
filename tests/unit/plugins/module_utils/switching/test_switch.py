# SPDX-License-Identifier: MIT
"""The whole switch on stand-in servers: real processes, real HTTP, the engine's own lifecycle.

After every test the `host` fixture checks that no two servers were awake on one GPU at any moment of it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import transition
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import (
    Blocked,
    LockTimeout,
    SwitchFailed,
    SwitchingError,
    UnknownModel,
    Unreachable,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.executor import Executor
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model, Switching
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.kinds import Reply
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import Command, Process
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import ACTIVE, STOPPED, Observation
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.server import Server
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.transition import Transition

from tests import serverlib

if TYPE_CHECKING:
    from .conftest import Host, Processes, TwoAwake

PAUSE = "POST /sleep?level=0&mode=wait"
SLEEP_1 = "POST /sleep?level=1&mode=wait"
SLEEP_2 = "POST /sleep?level=2&mode=wait"
COMPLETION = "POST /v1/completions"
RELOADING_WAKE = [
    "POST /wake_up?tags=weights",
    "POST /collective_rpc",
    "POST /wake_up?tags=kv_cache",
    "POST /reset_prefix_cache",
]


def steps(result: Result) -> list[str]:
    """What was done, or would be: a line for each step."""
    return [
        f"{step['action']} {step['model']}" + ("" if step["level"] is None else f" {step['level']}")
        for step in result.steps
    ]


def failed(call: Callable[[], object]) -> tuple[str, Result]:
    """The text and the result of the SwitchFailed that the call raises."""
    with pytest.raises(SwitchFailed) as caught:
        call()
    assert isinstance(caught.value.result, Result)
    return str(caught.value), caught.value.result


@pytest.fixture
def pair(host: Host) -> Host:
    """A host with the models a and b, which share a GPU."""
    host.declare("a")
    host.declare("b")
    return host


@pytest.fixture
def quick_probes(host: Host) -> None:
    host.settings["probe_timeout_seconds"] = 1.5


# ---- what a switch does -----------------------------------------------------------------------


def test_a_switch_at_level_1(pair: Host) -> None:
    pair.up(a="active", b=1)
    answer = pair.completion("a")
    result = pair.switch("b")
    assert steps(result) == ["drain a", "sleep a 1", "wake b 1", "verify b"]
    assert (result.changed, result.previous_model, result.active_model) == (True, "a", "b")
    assert result.as_dict()["models"] == {
        "a": {"state": "sleeping", "level": 1},
        "b": {"state": "active", "level": None},
    }
    assert pair.states() == {"a": "sleeping", "b": "active"}
    assert pair.changing_calls("a")[-1:] == [SLEEP_1]
    assert pair.changing_calls("b")[-2:] == ["POST /wake_up", COMPLETION]
    assert all(0 <= step["seconds"] <= result.elapsed_seconds for step in result.steps)

    assert steps(pair.switch("a")) == ["drain b", "sleep b 1", "wake a 1", "verify a"]
    assert pair.completion("a") == answer


def test_a_switch_at_level_2(host: Host) -> None:
    host.declare("a", sleep_level="2")
    host.declare("b", sleep_level="2")
    host.up(b="active")
    answer = host.completion("b")
    host.call("b", "POST", "/sleep?level=2")
    host.up(a="active")
    result = host.switch("b")
    assert steps(result) == ["drain a", "sleep a 2", "wake b 2", "verify b"]
    assert host.changing_calls("a") == [PAUSE, SLEEP_2]
    assert host.changing_calls("b")[-5:] == [*RELOADING_WAKE, COMPLETION]
    assert host.completion("b") == answer


def test_a_switch_between_models_that_stop(host: Host) -> None:
    host.declare("a", sleep_level="stop")
    host.declare("b", sleep_level="stop")
    host.up(a="active")
    result = host.switch("b")
    assert steps(result) == ["drain a", "stop a", "start b", "verify b"]
    assert host.states() == {"a": "stopped", "b": "active"}
    assert host.changing_calls("a") == [PAUSE]


@pytest.mark.parametrize("level", [1, 2])
def test_servers_that_answer_before_they_are_done(host: Host, level: int) -> None:
    for name in ("a", "b"):
        host.declare(name, sleep_level=str(level), standin={"version": "0.11.0"})
    host.up(a="active", b=level)
    host.fault("a", "/sleep", "early", seconds=0.3)
    host.fault("b", "/wake_up", "early", match="kv_cache", seconds=0.3)
    assert steps(host.switch("b")) == ["drain a", f"sleep a {level}", "wake b", "verify b"]
    assert host.states() == {"a": "sleeping", "b": "active"}
    assert host.changing_calls("b")[-5:] == [*RELOADING_WAKE, COMPLETION]
    assert host.call("b", "GET", "/standin/state").json()["weights_right"] is True


def test_a_cold_start(pair: Host) -> None:
    result = pair.switch("a")
    assert steps(result) == ["start a", "verify a"]
    assert (result.previous_model, result.active_model) == (None, "a")
    assert pair.states() == {"a": "active", "b": "stopped"}
    assert steps(pair.switch("b")) == ["drain a", "sleep a 1", "start b", "verify b"]


def test_a_second_run_does_nothing(pair: Host) -> None:
    pair.up(a="active", b=1)
    pair.switch("b")
    before = pair.all_changing_calls()
    for wanted, name in (("active", "b"), ("sleeping", "a")):
        result = pair.switch(name, wanted)
        assert (result.changed, result.steps, result.previous_model, result.active_model) == (False, [], "b", "b")
    assert pair.all_changing_calls() == before


@pytest.mark.parametrize(
    ("up", "name", "wanted"),
    [
        ({"a": "active", "b": 1}, "b", "active"),
        ({"a": "active"}, "b", "active"),
        ({"a": "active"}, "b", "sleeping"),
        ({"a": "active"}, "a", "sleeping"),
        ({"a": "active"}, "a", "stopped"),
        ({"a": "active"}, "a", "active"),
    ],
)
def test_check_mode_leaves_no_trace_and_tells_the_truth(
    pair: Host, up: dict[str, int | str], name: str, wanted: str
) -> None:
    pair.up(**up)
    calls, states = pair.all_changing_calls(), pair.states()
    files = sorted(path.name for path in (pair.stack_dir / "run").iterdir())
    predicted = pair.switch(name, wanted, check=True)
    assert (pair.all_changing_calls(), pair.states()) == (calls, states)
    assert sorted(path.name for path in (pair.stack_dir / "run").iterdir()) == files

    result = pair.switch(name, wanted)
    assert steps(predicted) == steps(result)
    assert (predicted.changed, predicted.active_model) == (result.changed, result.active_model)
    assert predicted.models == result.models
    assert predicted.diff() == result.diff()
    assert {name: seen.state for name, seen in result.models.items()} == pair.states()


def test_check_mode_makes_no_folder(pair: Host) -> None:
    assert steps(pair.switch("a", check=True)) == ["start a", "verify a"]
    assert not pair.stack_dir.exists()


def test_the_diff_shows_states_and_steps(pair: Host) -> None:
    pair.up(a="active", b=1)
    assert pair.switch("b", check=True).diff() == {
        "before": "a: active\nb: sleeping (level 1)\n",
        "after": "a: sleeping (level 1)\nb: active\n"
        "step 1: drain a\nstep 2: sleep a (level 1)\nstep 3: wake b (level 1)\nstep 4: verify b\n",
    }


def test_a_stopped_model_is_put_to_sleep_and_the_active_one_restored(pair: Host) -> None:
    pair.up(a="active")
    result = pair.switch("b", "sleeping")
    assert steps(result) == [
        "drain a", "sleep a 1", "start b", "verify b", "sleep b 1", "wake a 1", "verify a",
    ]  # fmt: skip
    assert (result.previous_model, result.active_model) == ("a", "a")
    assert pair.states() == {"a": "active", "b": "sleeping"}


def test_a_model_is_stopped(pair: Host, processes: Processes) -> None:
    pair.up(a="active", b=1)
    assert steps(pair.switch("a", "stopped")) == ["drain a", "stop a"]
    assert steps(pair.switch("b", "stopped")) == ["stop b"]
    assert pair.states() == {"a": "stopped", "b": "stopped"}
    assert processes.left() == []


def test_other_gpus_are_left_alone(host: Host) -> None:
    host.declare("a", gpus=[0])
    host.declare("b", gpus=[0])
    host.declare("c", gpus=[1])
    host.up(a="active", b=1, c="active")
    result = host.switch("b")
    assert steps(result) == ["drain a", "sleep a 1", "wake b 1", "verify b"]
    assert host.states() == {"a": "sleeping", "b": "active", "c": "active"}
    assert host.changing_calls("c") == []
    assert (result.previous_model, result.active_model) == ("a", "b")


def test_a_model_on_two_gpus_displaces_both(host: Host) -> None:
    host.declare("a", gpus=[0], standin={"sleep_seconds": 1})
    host.declare("b", gpus=[1], standin={"sleep_seconds": 1})
    host.declare("wide", gpus=[0, 1])
    host.up(wide=1, a="active", b="active")
    result = host.switch("wide")
    assert sorted(steps(result)[:4]) == ["drain a", "drain b", "sleep a 1", "sleep b 1"]
    assert steps(result)[4:] == ["wake wide 1", "verify wide"]
    assert host.states() == {"a": "sleeping", "b": "sleeping", "wide": "active"}
    # The two slept side by side: each began before the other had ended.
    sleeps = [step for step in result.steps if step["action"] == "sleep"]
    assert max(step["started_seconds"] for step in sleeps) < min(
        step["started_seconds"] + step["seconds"] for step in sleeps
    )


def test_models_are_found_by_every_name_and_mistakes_touch_nothing(pair: Host) -> None:
    pair.models[1]["aliases"] = ["bee"]
    pair.declare("off", startup_mode="disabled")
    pair.up(a="active", b=1)
    assert pair.switch("bee").active_model == "b"
    before = {model["id"]: pair.log(model["id"]) for model in pair.models}
    with pytest.raises(UnknownModel, match="nope is not declared; the models are: a, b, off"):
        pair.switch("nope")
    with pytest.raises(UnknownModel, match="off is disabled"):
        pair.switch("off")
    assert {model["id"]: pair.log(model["id"]) for model in pair.models} == before  # not even a GET


def test_a_disabled_model_that_holds_the_gpu_blocks(pair: Host) -> None:
    pair.up(a="active", b=1)
    pair.models[0]["startup_mode"] = "disabled"
    with pytest.raises(Blocked, match="a is disabled, so it is left alone, but its server is active"):
        pair.switch("b")
    assert pair.changing_calls("a") == []


def test_without_dev_mode_nothing_is_touched(host: Host) -> None:
    host.declare("a", env={"VLLM_SERVER_DEV_MODE": "0"})
    host.declare("b")
    host.up(a="active", b=1)
    before = host.all_changing_calls()
    for name in ("a", "b"):
        with pytest.raises(Blocked, match="VLLM_SERVER_DEV_MODE=1 in its environment and --enable-sleep-mode"):
            host.switch(name)
    assert host.all_changing_calls() == before


@pytest.mark.parametrize("asked", [True, False])
def test_the_completion_that_proves_a_server_ready_can_be_turned_off(host: Host, asked: bool) -> None:
    host.declare("a", ready_completion=asked)
    host.switch("a")
    assert host.changing_calls("a") == ([COMPLETION] if asked else [])


# ---- the end is looked at ---------------------------------------------------------------------


@pytest.mark.parametrize(("times", "left"), [(1, "sleeping"), (2, "active")])
def test_who_is_woken_meanwhile_is_put_to_sleep_once_and_told_as_it_is(
    pair: Host, monkeypatch: pytest.MonkeyPatch, times: int, left: str
) -> None:
    pair.up(a="active", b=1)
    verify, sleep = Executor._verify, Executor._sleep
    woken: list[str] = []

    def wake() -> None:
        if len(woken) < times:
            woken.append("a")
            pair.call("a", "POST", "/wake_up").raise_for_status()

    def verified(self: Executor, step: Any) -> str | None:
        note = verify(self, step)
        wake()
        return note

    def asleep(self: Executor, step: Any) -> None:
        sleep(self, step)
        if woken:
            wake()

    monkeypatch.setattr(Executor, "_verify", verified)
    monkeypatch.setattr(Executor, "_sleep", asleep)
    result = pair.switch("b")
    assert {name: seen.state for name, seen in result.models.items()} == pair.states() == {"a": left, "b": "active"}
    assert (result.active_model, result.previous_model) == ("b", "a")
    assert result.displaced == (["a"] if left == "sleeping" else [])
    assert (
        result.warnings == ["a was active again, although this switch left it sleeping: another client woke it"] * times
    )
    assert [step["model"] for step in result.steps if step["action"] == "sleep"] == ["a", "a"]
    pair.forget_events()


def test_who_dies_when_it_was_proved_is_not_told_active(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.up(a="active", b=1)
    look_again = Transition._observe_end

    def dies(self: Transition, *arguments: Any) -> dict[str, Observation]:
        self.host.lifecycles["b"].stop()
        return look_again(self, *arguments)

    monkeypatch.setattr(Transition, "_observe_end", dies)
    text, _result = failed(lambda: pair.switch("b"))
    assert text.startswith("b could not be made active: it was ready, but is stopped at the end")
    assert "\nFailed: verify b\na is active again\nState of the host: a active, b stopped\nWhat to do: " in text
    assert pair.states() == {"a": "active", "b": "stopped"}


@pytest.mark.parametrize(("times", "end"), [(1, "sleeping"), (0, "stopped")])
def test_who_is_paused_by_hand_makes_room_though_its_metrics_can_not_be_read(pair: Host, times: int, end: str) -> None:
    pair.up(a="active", b=1)
    pair.call("a", "POST", "/sleep?level=0&mode=wait")
    pair.fault("a", "/metrics", "html", times=times)
    pair.switch("b")
    assert pair.states() == {"a": end, "b": "active"}


def test_who_had_been_loaded_and_refuses_connections_is_not_waited_for(pair: Host) -> None:
    pair.up(a=1, b=1)
    pair.switch("b")
    pair.fault("b", "/health", "deaf")
    with contextlib.suppress(requests.RequestException):
        pair.call("b", "GET", "/health")
    result = pair.switch("b")
    assert [step["action"] for step in result.steps] == ["stop", "start", "verify"]
    # It may have been working still.
    assert result.requests == {"drained": 0, "parked": 0, "cut": None}
    assert pair.states() == {"a": "sleeping", "b": "active"}


def test_who_was_loaded_by_a_roll_back_and_refuses_connections_is_not_waited_for(host: Host) -> None:
    host.declare("a")
    host.declare("b", sleep_level="stop")
    host.up(a=1)
    host.switch("b")
    host.fault("a", "/wake_up", "status_500", times=0)
    host.settings["escalation"] = ["roll_back"]
    text, result = failed(lambda: host.switch("a"))
    assert "\nb is active again\n" in text, text
    assert [(step["action"], step["model"]) for step in result.steps][-2:] == [("start", "b"), ("verify", "b")]
    host.fault("b", "/health", "deaf")
    with contextlib.suppress(requests.RequestException):
        host.call("b", "GET", "/health")
    assert [step["action"] for step in host.switch("b").steps] == ["stop", "start", "verify"]
    assert host.states()["b"] == "active"


def test_a_model_put_to_sleep_that_somebody_woke_is_told_active(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.up(a="active")
    sleep = Executor._sleep

    def woken(self: Executor, step: Any) -> None:
        sleep(self, step)
        pair.call("a", "POST", "/wake_up").raise_for_status()

    monkeypatch.setattr(Executor, "_sleep", woken)
    result = pair.switch("a", "sleeping")
    assert (result.models["a"].state, result.active_model, len(result.warnings)) == ("active", "a", 1)


@pytest.mark.parametrize("version", ["0.11.0", "0.32.0"])
def test_the_level_of_a_sleep_is_told_also_where_the_server_does_not(host: Host, version: str) -> None:
    host.declare("a", sleep_level=2, standin={"version": version})
    host.up(a="active")
    assert host.switch("a", "sleeping").models["a"] == Observation("sleeping", level=2)


class Now:
    """The time of day, which moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1e9

    def __call__(self) -> float:
        return self.seconds


def test_unchanged_is_proved_now_and_then(pair: Host) -> None:
    now = Now()
    pair.up(a="active")
    for passed, done in ((0, ["verify a"]), (0, []), (3599, []), (2, ["verify a"]), (1, []), (-50, ["verify a"])):
        now.seconds += passed
        before = len(pair.changing_calls("a"))
        assert steps(pair.switch("a", check=True, now=now)) == done
        result = pair.switch("a", now=now)
        assert (steps(result), result.changed, result.active_model) == (done, False, "a")
        assert pair.changing_calls("a")[before:] == [COMPLETION] * len(done)
    pair.settings["prove_interval_seconds"] = 0
    for _run in range(2):
        assert steps(pair.switch("a", now=now)) == ["verify a"]


def test_a_proof_is_of_one_start(pair: Host) -> None:
    pair.switch("a")
    assert pair.switch("a").steps == []
    lifecycle = Command(pair.model("a"), str(pair.stack_dir), pair.inventory.switching)
    lifecycle.stop()
    pair.up(a="active")
    assert steps(pair.switch("a")) == ["verify a"]
    # One that nobody knows is never the one that was proved.
    (pair.stack_dir / "run" / "a.pid").rename(pair.stack_dir / "run" / "a.hidden")
    for _run in range(2):
        assert steps(pair.switch("a")) == ["verify a"]
    (pair.stack_dir / "run" / "a.hidden").rename(pair.stack_dir / "run" / "a.pid")


def test_what_has_slept_is_proved_whoever_wakes_it(pair: Host) -> None:
    for name in ("a", "b"):
        pair.switch(name)
    pair.call("b", "POST", "/sleep?level=1").raise_for_status()
    pair.call("a", "POST", "/wake_up").raise_for_status()
    assert [steps(pair.switch("a")) for _run in range(2)] == [["verify a"], []]


def test_what_was_woken_is_proved_though_its_lock_was_lost(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.settings.update(canary="enforce")
    pair.switch("a")
    pair.call("a", "POST", "/sleep?level=1").raise_for_status()
    wake = Executor._wake

    def loses_the_lock(self: Executor, step: Any) -> str | None:
        note = wake(self, step)
        (pair.stack_dir / "run" / "switch.lock").unlink()
        return note

    with monkeypatch.context() as patch:
        patch.setattr(Executor, "_wake", loses_the_lock)
        pair.fault("a", "/v1/completions", "wrong_text")
        text, _result = failed(lambda: pair.switch("a"))
    assert "a gives wrong answers and could not be put to sleep" in text
    assert pair.states()["a"] == "active"
    assert steps(pair.switch("a")) == ["verify a"]


def test_unchanged_that_is_wrong_is_recovered(pair: Host) -> None:
    pair.settings.update(canary="enforce", prove_interval_seconds=0)
    pair.switch("a")
    pair.fault("a", "/v1/completions", "wrong_text")
    result = pair.switch("a")
    assert steps(result) == ["verify a", "reload a", "verify a"]
    assert result.changed


def test_a_model_that_completes_nothing_has_nothing_to_prove(host: Host) -> None:
    host.declare("a", ready_completion=False)
    host.up(a="active")
    assert host.switch("a").steps == []


# ---- servers in a bad way ---------------------------------------------------------------------


def test_a_loading_server_is_waited_for(host: Host) -> None:
    host.declare("a", standin={"load_seconds": 1})
    host.up(a="loading")
    assert host.states() == {"a": "loading"}
    result = host.switch("a")
    assert steps(result) == ["verify a"]
    assert host.states() == {"a": "active"}


DROPS_CONNECTIONS_FIRST = """\
import os, socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening:
    listening.settimeout(0.05)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        try:
            listening.accept()[0].close()
        except TimeoutError:
            pass
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_container_that_does_not_listen_yet_is_loading(pair: Host) -> None:
    """Docker takes connections for it from the start, and drops them."""
    model = pair.models[0]
    drops = [sys.executable, "-c", DROPS_CONNECTIONS_FIRST, str(model["host_port"])]
    model["start_command"] = [*drops, *model["start_command"]]
    pair.start("a")
    pair.wait_until(lambda: pair.connects("a"), "it takes connections")
    assert pair.states() == {"a": "loading", "b": "stopped"}
    assert steps(pair.switch("a")) == ["verify a"]
    assert pair.states() == {"a": "active", "b": "stopped"}


def test_a_loading_server_that_ends_is_started_afresh(pair: Host) -> None:
    broken = pair.stack_dir.parent / "a-is-broken"
    breakable(pair, "a", f"rm '{broken}'; sleep 5; exit 1")
    broken.touch()
    pair.start("a")
    pair.wait_until(lambda: not broken.exists(), "it loads")
    result = pair.switch("a")
    assert steps(result) == ["verify a", "stop a", "start a", "verify a"]
    assert pair.states()["a"] == "active"


def test_a_loading_server_in_the_way_is_stopped(host: Host) -> None:
    host.declare("a", standin={"load_seconds": 60})
    host.declare("b")
    host.up(b=1)
    host.up(a="loading")
    result = host.switch("b")
    assert steps(result) == ["stop a", "wake b 1", "verify b"]
    assert host.states() == {"a": "stopped", "b": "active"}


@pytest.mark.usefixtures("quick_probes")
def test_a_hanging_server_in_the_way_is_drained_and_stopped(pair: Host) -> None:
    pair.settings["drain_timeout_seconds"] = 0.5
    pair.up(a="active", b=1)
    pair.fault("a", "*", "hang", times=0)
    predicted = pair.switch("b", check=True)
    result = pair.switch("b")
    assert steps(predicted) == steps(result) == ["wait a", "drain a", "stop a", "wake b 1", "verify b"]
    assert result.steps[0]["note"] == "a did not answer for 0.5 s (drain_timeout_seconds)"
    assert result.steps[1]["note"] == "an unknown number of requests still ran after 0.5 s and were cut"
    assert result.requests["cut"] is None
    assert (result.before["a"].unknown, result.before["a"].dead) == (True, False)
    assert pair.states() == {"a": "stopped", "b": "active"}


@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize("action", ["fail", "keep"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_hanging_server_whose_requests_may_not_be_cut_is_left_alone(pair: Host, action: str, name: str) -> None:
    pair.settings.update(drain_timeout_seconds=0.5, drain_timeout_action=action)
    pair.models[0]["env"]["STANDIN_TOKENS_PER_SECOND"] = "20"
    pair.up(a="active", b=1)
    pair.switch("a")  # so that it is known to be the one that serves
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pair.completion, "a", 200)
        pair.wait_until(lambda: pair.running("a") == 1, "the completion runs")
        pair.fault("a", "*", "hang", times=0)
        text, result = failed(lambda: pair.switch(name))
        pair.call("a", "DELETE", "/standin/faults")
        assert answer.result(timeout=300)["finish_reason"] == "length"
    assert steps(result) == ["wait a", "drain a"]
    assert "an unknown number of requests still ran after 0.5 s" in text
    assert "\na was active before and does not answer: it was left unchanged\n" in text
    assert result.previous_model == "a"
    assert "\nWhat to do: switch when it is less busy, raise drain_timeout_seconds" in text
    assert pair.states() == {"a": "active", "b": "sleeping"}


def test_a_slow_server_is_drained_as_any_other(pair: Host) -> None:
    """Each of its calls is answered in time, all of them together are not."""
    pair.settings["probe_timeout_seconds"] = 2
    pair.models[0]["env"]["STANDIN_TOKENS_PER_SECOND"] = "20"
    pair.up(a="active", b=1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pair.completion, "a", 60)
        pair.wait_until(lambda: pair.running("a") == 1, "the completion runs")
        pair.fault("a", "*", "hang", seconds=0.8, times=0)
        result = pair.switch("b")
        assert answer.result(timeout=300)["finish_reason"] == "length"
    assert steps(result) == ["drain a", "sleep a 1", "wake b 1", "verify b"]
    assert (result.previous_model, result.requests["cut"]) == ("a", 0)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_server_that_answers_late_is_waited_for(pair: Host, name: str) -> None:
    pair.settings["probe_timeout_seconds"] = 1.5
    pair.up(a="active", b=1)
    pair.fault("a", "/is_sleeping", "hang", times=3)
    result = pair.switch(name)
    moved = ["drain a", "sleep a 1", "wake b 1", "verify b"] if name == "b" else ["verify a"]
    assert steps(result) == ["wait a", *moved]
    assert result.steps[0]["note"] == "a did not answer at first"
    assert (result.changed, result.previous_model, result.active_model) == (name == "b", "a", name)


def answers_soon(host: Host, name: str) -> bool:
    """Whether a server tells whether it sleeps: not while it moves memory."""
    try:
        host.call(name, "GET", "/is_sleeping", timeout=1)
    except requests.Timeout:
        return False
    return True


@pytest.mark.parametrize(
    ("what", "name", "done"),
    [
        ("wake", "b", ["wait b", "verify b"]),
        ("wake", "a", ["wait b", "drain b", "sleep b 1", "wake a 1", "verify a"]),
        ("sleep", "b", ["wait a", "wake b 1", "verify b"]),
        ("sleep", "a", ["wait a", "wake a 1", "verify a"]),
    ],
)
def test_what_a_killed_switch_has_begun_is_waited_for(host: Host, what: str, name: str, done: list[str]) -> None:
    """As long as a wake or a sleep may take, and not as long as a drain."""
    moves: dict[str, object] = {"sleep_seconds": 6, "wake_seconds": 6}
    host.declare("a", standin=moves if what == "sleep" else {})
    host.declare("b", standin=moves if what == "wake" else {})
    host.up(b=1)
    if what == "wake":
        host.up(a=1)
    else:
        host.up(a="active")
    host.settings.update(probe_timeout_seconds=1.2, drain_timeout_seconds=0.2)
    mover, call = ("b", "/wake_up") if what == "wake" else ("a", "/sleep?level=1&mode=wait")
    with host.switcher() as switcher, switcher.lock.hold("killed", 1, lambda _done, _seconds: False):
        switcher.lock.begin(mover, what)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(host.call, mover, "POST", call)
        host.wait_until(lambda: not answers_soon(host, mover), "it moves")
        result = host.switch(name)
    assert steps(result) == done
    other = "a" if name == "b" else "b"
    assert host.states() == {name: "active", other: "sleeping"}


def test_who_a_killed_switch_was_starting_is_restored_after_a_failure(host: Host) -> None:
    host.settings["escalation"] = ["stop", "roll_back"]
    host.declare("a", standin={"load_seconds": 2})
    host.declare("b")
    host.up(b=1)
    with host.switcher() as switcher, switcher.lock.hold("killed", 1, lambda _done, _seconds: False):
        switcher.lock.begin("a", "start")
        switcher.host.lifecycles["a"].start()
    host.fault("b", "/wake_up", "status_500")
    text, result = failed(lambda: host.switch("b"))
    assert steps(result) == ["stop a", "wake b 1", "stop b", "start a", "verify a"]
    assert "\na is active again\n" in text
    assert host.states() == {"a": "active", "b": "stopped"}


def test_a_restart_waits_for_what_runs(host: Host) -> None:
    """It was woken, and never proved: meanwhile somebody has found it."""
    host.settings["canary"] = "enforce"
    host.declare("a", standin={"tokens_per_second": 40})
    host.switch("a")
    with host.switcher() as switcher, switcher.lock.hold("killed", 1, lambda _done, _seconds: False):
        switcher.lock.begin("a", "wake")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(host.completion, "a", 320)
        host.wait_until(lambda: host.running("a") == 1, "the completion runs")
        host.fault("a", "/v1/completions", "wrong_text", times=0)
        result = host.switch("a")
        assert answer.result(timeout=300)["finish_reason"] == "length"
    assert steps(result) == [
        "verify a", "reload a", "verify a", "drain a", "stop a", "start a", "verify a",
    ]  # fmt: skip
    assert result.requests == {"drained": 1, "parked": 0, "cut": 0}


@pytest.mark.usefixtures("quick_probes")
def test_a_hanging_server_that_is_wanted_is_restarted(pair: Host) -> None:
    pair.settings["drain_timeout_seconds"] = 0.5
    pair.up(a="active")
    pair.fault("a", "/is_sleeping", "hang", times=0)
    assert steps(pair.switch("a")) == ["wait a", "drain a", "stop a", "start a", "verify a"]
    assert pair.states()["a"] == "active"


DEAD = """\
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        version = self.path == "/version"
        self.send_response(200 if version else 503)
        self.end_headers()
        self.wfile.write(b'{"version": "0.32.0"}' if version else b"")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_dead_engine_in_the_way_is_stopped(pair: Host) -> None:
    pair.up(b=1)
    dead, port = pair.models[0], pair.models[0]["host_port"]
    command, dead["start_command"] = dead["start_command"], [sys.executable, "-c", DEAD, str(port)]
    pair.start("a")
    pair.wait_until(lambda: pair.call("a", "GET", "/health").status_code == 503, "a answers 503")
    dead["start_command"] = command
    result = pair.switch("b")
    assert steps(result) == ["stop a", "wake b 1", "verify b"]
    assert result.before["a"].problem == "a's engine is dead (/health answers 503)"
    assert pair.states() == {"a": "stopped", "b": "active"}


def test_another_server_on_the_port_of_the_wanted_model_blocks(pair: Host) -> None:
    pair.up(a="active")
    port = pair.models[1]["host_port"]
    with (
        serverlib.start_standin("org/other", names=["other"], port=port),
        pytest.raises(Blocked, match=f"b can't be used: port {port} serves other, not b"),
    ):
        pair.switch("b")
    assert pair.changing_calls("a") == []


def drop(listening: socket.socket, times: int) -> None:
    """Take so many connections, drop them, and end."""
    with listening:
        for _time in range(times):
            listening.accept()[0].close()


def test_a_server_that_ends_while_it_is_looked_at_is_started(pair: Host) -> None:
    pair.up(a="active")
    listening = socket.create_server(("127.0.0.1", pair.models[1]["host_port"]))
    # One look asks twice.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(drop, listening, 2)
        assert steps(pair.switch("b"))[-2:] == ["start b", "verify b"]


def test_somebody_else_who_drops_connections_to_the_wanted_model_blocks(pair: Host) -> None:
    pair.up(a="active")
    listening = socket.create_server(("127.0.0.1", pair.models[1]["host_port"]))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(drop, listening, 4)
        with pytest.raises(Blocked, match=r"(?s)b can't be used: .*was lost.*What to do: find out what listens"):
            pair.switch("b")
    assert pair.changing_calls("a") == []


def test_a_rival_that_others_started_and_that_can_not_tell_whether_it_is_awake_blocks(pair: Host) -> None:
    """No process of ours runs, but it has said which model it serves."""
    port = pair.models[1]["host_port"]
    with (
        serverlib.start_standin("org/b", names=["b"], port=port, dev_mode=False),
        pytest.raises(
            Blocked, match=r"b shares a GPU with a, and it is unknown whether it is awake: .*VLLM_SERVER_DEV_MODE=1"
        ),
    ):
        pair.switch("a")
    assert pair.states()["a"] == "stopped"


def test_a_server_that_others_started_is_not_called_dead_while_it_wakes(pair: Host) -> None:
    """No process id is known for it, which is no sign that it has ended."""
    pair.settings.update(max_retries=5, health_check_interval_seconds=0.2)
    pair.up(a="active")
    gpu: dict[str, Any] = {"gpus": "0", "gpu_dir": pair.gpu_dir, "gpu_total_gb": 100, "vram_gb": 20}
    with serverlib.start_standin("org/b", names=["b"], port=pair.models[1]["host_port"], **gpu) as other:
        other.call("POST", "/sleep?level=1")
        other.fault("/wake_up", "not_done")
        pair.forget_events()
        result = pair.switch("b")
        assert steps(result) == ["drain a", "sleep a 1", "wake b 1", "verify b", "wake b 1", "verify b"]
        assert result.steps[3]["failed"].startswith("b is not ready after 1 s")
        assert pair.states()["b"] == "active"


@pytest.mark.usefixtures("quick_probes")
def test_a_server_that_others_started_and_that_has_to_stop_fails_at_once(pair: Host) -> None:
    port = pair.models[0]["host_port"]
    with serverlib.start_standin("org/a", names=["a"], port=port, gpu_dir=pair.gpu_dir, gpus="0"):
        started = time.monotonic()
        text, _result = failed(lambda: pair.switch("a", "stopped"))
        assert time.monotonic() - started < 9.5  # request_timeout_seconds is 10
        assert "it was not started by its start_command here, so it can't be stopped" in text
        assert pair.states()["a"] == "active"


# ---- requests under way -----------------------------------------------------------------------


def test_a_running_completion_is_finished_first(host: Host) -> None:
    host.declare("a", standin={"tokens_per_second": 40})
    host.declare("b")
    host.up(a="active", b=1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(host.completion, "a", 200)
        host.wait_until(lambda: host.running("a") == 1, "the completion runs")
        result = host.switch("b")
        whole = answer.result(timeout=300)
    assert (whole["finish_reason"], len(whole["text"].split())) == ("length", 200)
    assert "note" not in result.steps[0]
    assert result.steps[0]["seconds"] > 0.3
    assert host.changing_calls("a")[-1] == SLEEP_1


def test_a_completion_that_takes_too_long_is_cut(host: Host) -> None:
    host.settings["drain_timeout_seconds"] = 0.4
    host.declare("a", standin={"tokens_per_second": 10})
    host.declare("b")
    host.up(a="active", b=1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(host.completion, "a", 1000)
        host.wait_until(lambda: host.running("a") == 1, "the completion runs")
        result = host.switch("b")
        cut = answer.result(timeout=300)
    assert cut["finish_reason"] == "abort"
    assert result.steps[0]["note"] == "1 requests still ran after 0.4 s and were cut"
    assert 0.4 <= result.steps[0]["seconds"] < 50  # and not the 100 s of the whole answer
    assert "POST /sleep?level=1&mode=abort" in host.changing_calls("a")
    assert host.states() == {"a": "sleeping", "b": "active"}


@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize("fault", ["hang", "refuse"])
def test_a_count_that_does_not_come_is_asked_for_again(pair: Host, fault: str) -> None:
    pair.up(a="active", b=1)
    pair.fault("a", "/metrics", fault)
    result = pair.switch("b")
    assert steps(result) == ["drain a", "sleep a 1", "wake b 1", "verify b"]
    assert not any("failed" in step for step in result.steps)


def test_a_server_that_goes_while_it_is_drained_is_gone(pair: Host) -> None:
    pair.models[0]["sleep_level"] = "stop"
    pair.up(a="active", b=1)
    pair.fault("a", "/metrics", "kill")
    result = pair.switch("b")
    assert steps(result) == ["drain a", "stop a", "wake b 1", "verify b"]
    assert pair.states() == {"a": "stopped", "b": "active"}


# ---- steps that fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "gist"),
    [
        ("status_500", "/sleep?level=1&mode=wait: answered 500"),
        ("not_done", "a accepted the call to sleep but is still awake after 3 s (request_timeout_seconds)"),
        ("hang", "/sleep?level=1&mode=wait: no answer within 3 s"),
        ("kill", "/sleep?level=1&mode=wait: the connection was lost"),
    ],
)
def test_a_server_that_cannot_sleep_is_stopped(pair: Host, fault: str, gist: str) -> None:
    pair.settings["request_timeout_seconds"] = 3
    pair.up(a="active", b=1)
    pair.fault("a", "/sleep", fault, match="level=1", times=0)
    result = pair.switch("b")
    assert steps(result) == ["drain a", "sleep a 1", "stop a", "wake b 1", "verify b"]
    assert gist in result.steps[1]["failed"]
    assert result.models["a"].state == "stopped"
    assert pair.states() == {"a": "stopped", "b": "active"}


UNREAD = "a reports that it sleeps, but /metrics, which shows whether it is only paused, can't be read"


@pytest.mark.parametrize(
    ("times", "gist"),
    [
        pytest.param(
            2, "a accepted the call to sleep but is still awake after 3 s (request_timeout_seconds)", id="once"
        ),
        pytest.param(0, UNREAD, id="for ever"),
    ],
)
def test_who_did_not_do_its_sleep_is_stopped_though_its_metrics_can_not_be_read(
    pair: Host, times: int, gist: str
) -> None:
    pair.settings["request_timeout_seconds"] = 3
    pair.up(a="active", b=1)
    # The drain could read them.
    pair.call("a", "POST", "/standin/faults", json=[
        {"path": "/sleep", "fault": "not_done", "match": "level=1", "times": 0},
        {"path": "/metrics", "fault": "html", "skip": 2, "times": times},
    ])  # fmt: skip
    result = pair.switch("b")
    assert steps(result) == ["drain a", "sleep a 1", "stop a", "wake b 1", "verify b"]
    assert result.steps[1]["failed"] == gist
    assert pair.states() == {"a": "stopped", "b": "active"}


def test_a_sleep_whose_metrics_can_not_be_read_for_a_moment_is_proved(pair: Host) -> None:
    pair.up(a="active", b=1)
    pair.fault("a", "/metrics", "html", skip=2, times=4)
    result = pair.switch("b")
    assert steps(result) == ["drain a", "sleep a 1", "wake b 1", "verify b"]
    assert not any("failed" in step for step in result.steps)


def test_metrics_that_can_never_be_read_are_not_waited_for_as_long_as_for_a_sleep(pair: Host) -> None:
    pair.settings.update(probe_timeout_seconds=1, request_timeout_seconds=60)
    pair.up(a="active", b=1)
    pair.fault("a", "/metrics", "html", times=0)
    result = pair.switch("b")
    assert steps(result) == ["drain a", "sleep a 1", "stop a", "wake b 1", "verify b"]
    assert result.steps[1]["failed"] == UNREAD
    assert 1 <= result.steps[1]["seconds"] < 30
    assert pair.states() == {"a": "stopped", "b": "active"}


def test_who_sleeps_and_can_not_prove_it_is_woken_where_it_may_not_be_stopped(pair: Host) -> None:
    pair.settings.update(probe_timeout_seconds=1, escalation=["roll_back"])
    pair.up(a="active", b=1)
    pair.fault("a", "/metrics", "html", times=0)
    text, _result = failed(lambda: pair.switch("b"))
    assert text.startswith(f"b could not be made active: {UNREAD}")
    assert pair.states() == {"a": "active", "b": "sleeping"}


def test_a_model_that_was_to_sleep_and_cannot_is_a_failure(pair: Host) -> None:
    pair.up(a="active", b=1)
    pair.fault("a", "/sleep", "status_500", match="level=1")
    text, result = failed(lambda: pair.switch("a", "sleeping"))
    assert text.startswith("a could not be made sleeping: POST /sleep")
    assert "answered 500" in text
    assert (
        ", so it was stopped\nFailed: sleep a (level 1)\nState of the host: a stopped, b sleeping (level 1)\n" in text
    )
    assert result.changed
    assert pair.states() == {"a": "stopped", "b": "sleeping"}


def test_a_wake_that_fails_once_is_tried_again(pair: Host) -> None:
    pair.up(a="active", b=1)
    pair.fault("b", "/wake_up", "status_500")
    result = pair.switch("b")
    assert steps(result) == ["drain a", "sleep a 1", "wake b 1", "wake b 1", "verify b"]
    assert "answered 500" in result.steps[2]["failed"]
    assert pair.states() == {"a": "sleeping", "b": "active"}


def test_a_wake_that_keeps_failing_is_a_restart(pair: Host) -> None:
    pair.up(a="active", b=1)
    pair.fault("b", "/wake_up", "status_500", times=0)
    result = pair.switch("b")
    assert steps(result)[2:] == ["wake b 1", "wake b 1", "stop b", "start b", "verify b"]
    assert result.models["b"] == Observation("active")
    assert pair.states() == {"a": "sleeping", "b": "active"}


def test_a_wake_that_does_nothing_is_tried_again(pair: Host) -> None:
    pair.settings.update(max_retries=5, health_check_interval_seconds=0.2)
    pair.up(a="active", b=1)
    pair.fault("b", "/wake_up", "not_done")
    result = pair.switch("b")
    assert steps(result)[2:] == ["wake b 1", "verify b", "wake b 1", "verify b"]
    assert "b is not ready after 1 s (max_retries x health_check_interval_seconds)" in result.steps[3]["failed"]


def test_an_engine_that_dies_of_the_wake_is_restarted(pair: Host) -> None:
    pair.up(a="active", b=1)
    pair.fault("b", "/wake_up", "oom")
    result = pair.switch("b")
    assert steps(result)[2:] == ["wake b 1", "stop b", "start b", "verify b"]
    assert pair.states() == {"a": "sleeping", "b": "active"}


@pytest.mark.parametrize("fault", ["status_500", "wrong_json"])
def test_a_server_that_wakes_but_cannot_complete_is_restarted(pair: Host, fault: str) -> None:
    pair.up(a="active", b=1)
    pair.fault("b", "/v1/completions", fault)
    assert steps(pair.switch("b"))[2:] == ["wake b 1", "verify b", "verify b"]
    pair.switch("a")
    pair.fault("b", "/v1/completions", fault, times=0)
    result = pair.switch("b")
    assert steps(result)[2:] == ["wake b 1", "verify b", "verify b", "stop b", "start b", "verify b"]
    assert pair.completion("b")["text"]


def breakable(host: Host, name: str, script: str) -> Path:
    """Let a model's next start run the script instead, from the moment on that the file is there."""
    broken = host.stack_dir.parent / f"{name}-is-broken"
    (model,) = (model for model in host.models if model["id"] == name)
    program = f"if [ -e '{broken}' ]; then {script}; fi; exec \"$@\""
    model["start_command"] = ["sh", "-c", program, "sh", *model["start_command"]]
    return broken


def test_a_restart_that_fails_brings_the_previous_model_back(pair: Host) -> None:
    broken = breakable(pair, "b", "echo 'ValueError: no such weights'; exit 3")
    pair.up(a="active", b=1)
    answer = pair.completion("a")
    pair.fault("b", "/wake_up", "status_500", times=0)
    broken.touch()
    text, result = failed(lambda: pair.switch("b"))
    assert steps(result) == [
        "drain a", "sleep a 1", "wake b 1", "wake b 1", "stop b", "start b", "verify b", "wake a 1", "verify a",
    ]  # fmt: skip
    assert text.startswith("b could not be made active: POST /wake_up: answered 500: ")
    assert (
        "; and a restart failed: its server ended with exit code 3 while the switch waited for it"
        "; and its log says: ValueError: no such weights\n"
        "Failed: wake b (level 1), retry: wake b (level 1), restart: verify b\n"
        "a is active again\n"
        "State of the host: a active, b stopped\nWhat to do: check its log (cat "
    ) in text
    first, *rest = text.splitlines()
    assert len(first) <= 200
    assert "http://" not in text
    assert rest[-2:] == ["The last lines of its log:", "  ValueError: no such weights"]
    # Nothing is lost to the shortness of the first line.
    assert sum("Call to the engine failed" in line for line in rest) == 1
    assert (result.active_model, result.models["b"].state) == ("a", "stopped")
    assert pair.states() == {"a": "active", "b": "stopped"}
    assert pair.completion("a") == answer


def test_a_secret_in_a_log_is_hidden_before_the_message_is_cut_short(pair: Host) -> None:
    pair.settings["escalation"] = ["stop", "roll_back"]
    pair.models[1]["env"]["HF_TOKEN"] = token = "hf_sesame" * 40  # longer than the first line may be
    pair.up(a="active", b=1)
    pair.fault("b", "/wake_up", "refuse")
    with (pair.stack_dir / "run" / "b.log").open("a", encoding="utf-8") as log:
        log.write(f"ValueError: no such token: {token}\n")
    text, _result = failed(lambda: pair.switch("b"))
    assert "; and its log says: ValueError: no such token: ********\n" in text
    assert "hf_sesame" not in text


def test_a_server_that_dies_while_it_loads_ends_the_wait_at_once(host: Host) -> None:
    host.settings.update(max_retries=60, health_check_interval_seconds=1)
    host.declare("a")
    host.declare("b", env={"STANDIN_FAULTS": '[{"path": "load", "fault": "die"}]'}, standin={"load_seconds": 0.3})
    host.up(a="active")
    started = time.monotonic()
    text, result = failed(lambda: host.switch("b"))
    assert time.monotonic() - started < 50  # it might wait for 60
    assert text.splitlines()[0] == (
        "b could not be made active: its server ended with exit code 1 while the switch waited for it"
        "; and its log says: ValueError: No supported config format found in org/b"
    )
    assert "\nThe last lines of its log:\n  " in text
    assert "\na is active again\nState of the host: a active, b stopped\nWhat to do: " in text
    assert steps(result) == ["drain a", "sleep a 1", "start b", "verify b", "wake a 1", "verify a"]
    assert host.states() == {"a": "active", "b": "stopped"}


def test_a_server_that_is_killed_while_it_loads(host: Host) -> None:
    host.declare("a", env={"STANDIN_FAULTS": '[{"path": "load", "fault": "kill"}]'})
    text, _result = failed(lambda: host.switch("a"))
    assert "its server ended with exit code -9 while the switch waited for it" in text
    assert "\nState of the host: a stopped\nWhat to do: check its log (cat " in text


def test_a_server_that_does_not_become_ready_in_time(host: Host) -> None:
    host.settings.update(max_retries=5, health_check_interval_seconds=0.2)
    host.declare("a")
    host.declare("b", standin={"load_seconds": 60})
    host.up(a="active")
    text, result = failed(lambda: host.switch("b"))
    assert "it is not ready after 1 s (max_retries x health_check_interval_seconds)" in text
    assert "a is active again" in text
    assert steps(result)[-3:] == ["stop b", "wake a 1", "verify a"]
    assert host.states() == {"a": "active", "b": "stopped"}


def test_a_command_that_is_not_there_leaves_the_previous_model_active(pair: Host) -> None:
    pair.up(a="active")
    pair.models[1]["start_command"] = ["no-such-vllm"]
    text, _result = failed(lambda: pair.switch("b"))
    assert (
        "b could not be made active: it could not be started: its start_command[0], no-such-vllm, can't be run: "
        "No such file or directory"
        "\nFailed: start b\na is active again" in text
    )
    assert pair.states() == {"a": "active", "b": "stopped"}


def test_a_previous_model_that_cannot_be_restored_is_said(pair: Host) -> None:
    for name in ("a", "b"):
        breakable(pair, name, f"echo '{name} is broken'; exit 3")
    pair.up(a="active", b=1)
    for name in ("a", "b"):
        (pair.stack_dir.parent / f"{name}-is-broken").touch()
        pair.fault(name, "/wake_up", "status_500", times=0)
    text, result = failed(lambda: pair.switch("b"))
    assert "b is broken" in text
    assert "\na was active before and could not be restored: POST /wake_up: answered 500" in text
    assert "\nState of the host: a stopped, b stopped\n" in text
    assert (result.previous_model, result.active_model) == ("a", None)


def test_a_server_that_can_neither_sleep_nor_stop_leaves_all_as_it_was(
    pair: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.settings.update(stop_timeout_seconds=0.1)
    monkeypatch.setattr(os, "killpg", lambda _group, _signal: None)
    pair.up(a="active", b=1)
    pair.fault("a", "/sleep", "status_500", times=0)
    text, result = failed(lambda: pair.switch("b"))
    assert "answered 500" in text
    assert "; and it could not be stopped: a: process " in text
    assert "State of the host: a active, b sleeping (level 1)\nWhat to do: check its log (cat " in text
    assert "/a.log" in text
    assert (result.previous_model, result.active_model) == ("a", "a")
    assert "POST /wake_up" not in pair.changing_calls("b")


def test_a_dead_server_that_cannot_be_stopped_costs_nobody_the_gpu(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.settings.update(probe_timeout_seconds=1.5, stop_timeout_seconds=0.1, drain_timeout_seconds=0.2)
    pair.up(b=1)
    pair.up(a="active")
    pair.fault("b", "/health", "hang", times=0)
    before = pair.changing_calls("a")
    monkeypatch.setattr(os, "killpg", lambda _group, _signal: None)
    for wanted in ("active", "sleeping"):
        text, result = failed(lambda: pair.switch("b", wanted))  # noqa: B023
        assert "does not end, even when killed" in text
        assert steps(result) == ["wait b", "drain b", "stop b"]
        assert (result.previous_model, result.active_model) == ("a", "a")
    assert pair.changing_calls("a") == before


def test_a_half_woken_server_that_cannot_be_stopped_keeps_the_gpu(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.settings.update(stop_timeout_seconds=0.1)
    pair.up(a="active", b=2)
    pair.fault("b", "/wake_up", "status_500", match="kv_cache", times=0)
    monkeypatch.setattr(os, "killpg", lambda _group, _signal: None)
    text, result = failed(lambda: pair.switch("b"))
    assert pair.call("b", "GET", "/is_sleeping").json()["is_sleeping"] is True  # though it holds its weights
    assert "\na was active before and could not be restored: b: process " in text
    assert "State of the host: a sleeping (level 1), b sleeping (level 2) in doubt\n" in text
    assert "POST /wake_up" not in pair.changing_calls("a")
    assert result.models["b"].problem == "its last wake was not confirmed"


def test_an_interrupt_is_raised_when_all_that_works_side_by_side_has_ended(
    pair: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    go = threading.Event()
    wait = concurrent.futures.wait

    def interrupted(*_arguments: Any) -> None:
        monkeypatch.setattr(concurrent.futures, "wait", wait)
        go.set()
        raise KeyboardInterrupt

    def work(number: int) -> None:
        if number:
            go.wait(60)
            time.sleep(number / 4)  # it works on when the interrupt has come
        ended.append(number)

    monkeypatch.setattr(concurrent.futures, "wait", interrupted)
    with pair.switcher() as switcher:
        with pytest.raises(KeyboardInterrupt):
            switcher.host.each(work, [0, 1, 2])
        assert sorted(ended) == [0, 1, 2]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_of_the_engine_itself_the_previous_model_is_restored(
    pair: Host, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def broken(_server: Server, _level: int | None) -> None:
        monkeypatch.undo()
        raise error("a mistake in the program")

    pair.up(a="active", b=1)
    monkeypatch.setattr(Server, "wake", broken)
    executors: list[Executor] = []

    def noted(*arguments: Any) -> Executor:
        executors.append(Executor(*arguments))
        return executors[-1]

    monkeypatch.setattr(transition, "Executor", noted)
    with pytest.raises(error, match="a mistake in the program"), pair.switcher() as switcher:
        switcher.switch("b")
    assert [f"{step['action']} {step['model']}" for step in executors[0].steps] == [
        "drain a", "sleep a", "wake b", "stop b", "wake a", "verify a",
    ]  # fmt: skip
    assert executors[0].steps[2]["failed"] == "a mistake in the program"
    assert pair.states() == {"a": "active", "b": "stopped"}


@pytest.mark.parametrize("name", ["a", "b"])
def test_an_engine_that_outlived_its_server_is_stopped_first(pair: Host, processes: Processes, name: str) -> None:
    model = pair.models[0]
    served = model["start_command"]
    dies = pair.stack_dir.parent / "a-dies"
    script = f"sleep 300 & while [ ! -e '{dies}' ]; do sleep 0.01; done"
    model["start_command"] = ["sh", "-c", script]
    pair.start("a")
    pair.wait_until(lambda: len(processes.left()) >= 2, "the engine of a runs")
    dies.touch()
    pair.wait_until(lambda: pair.states()["a"] == "error", "its server has ended")
    (engine,) = (pid for pid in processes.left() if b"sleep\x00300" in Path(f"/proc/{pid}/cmdline").read_bytes())
    model["start_command"] = served
    assert steps(pair.switch(name)) == ["stop a", f"start {name}", f"verify {name}"]
    assert engine not in processes.left()


# ---- the lock ---------------------------------------------------------------------------------


def test_two_switches_never_interleave(host: Host) -> None:
    for name in ("a", "b", "c"):
        host.declare(name, standin={"sleep_seconds": 0.2, "wake_seconds": 0.2})
    host.up(a="active", b=1, c=1)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        results = list(pool.map(host.switch, ("b", "c", "b")))
    assert list(host.states().values()).count("active") == 1
    assert all(result.active_model for result in results)
    (active,) = (name for name, state in host.states().items() if state == "active")
    assert active in ("b", "c")


HOLDER = """\
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
file.write('{"holder": "process 42: c active", "doubtful": [], "active_since": {}, "failed_at": 0}')
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_that_another_process_holds_is_waited_for_and_named(pair: Host) -> None:
    pair.settings["lock_timeout_seconds"] = 0.3
    pair.up(a="active", b=1)
    lock = pair.stack_dir / "run" / "switch.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockTimeout) as caught:
            pair.switch("b")
        assert str(caught.value) == (
            "timed out after 0.3 s (lock_timeout_seconds) waiting for another switch, which holds the "
            "host's lock (process 42: c active): "
            "try again later"
        )
        assert pair.changing_calls("a") == []
        assert steps(pair.switch("b", check=True))  # only looks
        pair.settings["lock_timeout_seconds"] = 30
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            second = pool.submit(pair.switch, "b")
            with pytest.raises(concurrent.futures.TimeoutError):
                second.result(timeout=0.3)
            holder.communicate(b"")
            assert second.result(timeout=300).active_model == "b"
    assert f'"holder": "process {os.getpid()}: b active, since 20' in lock.read_text()


def test_the_lock_is_free_after_a_failure(pair: Host) -> None:
    pair.settings["lock_timeout_seconds"] = 0.2
    pair.models[1]["start_command"] = ["no-such-vllm"]
    for _run in range(2):
        failed(lambda: pair.switch("b"))


def test_a_stack_folder_that_cannot_be_written(pair: Host) -> None:
    pair.up(a="active", b=1)
    pair.stack_dir = pair.stack_dir.parent / "file"
    pair.stack_dir.touch()
    with pytest.raises(SwitchingError) as caught:
        pair.switch("b")
    assert str(caught.value) == (
        f"the lock {pair.stack_dir}/run/switch.lock can't be opened (Not a directory): run as a user who may write "
        "there, or set stack_dir (vllm_stack_dir in the playbooks)"
    )


# ---- time -------------------------------------------------------------------------------------


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        assert seconds > 0
        self.pauses.append(seconds)
        self.now += seconds


class Loading(Server):
    """A server that answers from a certain moment on."""

    def __init__(self, model: Model, switching: Switching, clock: Clock, ready_at: float) -> None:
        super().__init__(model, switching)
        self.clock = clock
        self.ready_at = ready_at
        self.polls: list[float] = []

    def observe(self, count_requests: bool = False) -> Observation:
        return Observation(STOPPED if self.clock.now < self.ready_at else ACTIVE)

    def is_healthy(self) -> bool:
        self.polls.append(self.clock.now)
        if self.clock.now < self.ready_at:
            raise Unreachable("not yet")
        return True

    def is_sleeping(self) -> bool:
        return False

    def prove(self) -> Reply:
        return Reply("text", "Hi")


class Runs:
    """A process that starts at once and runs."""

    def __init__(self, _model: Model, _stack_dir: str, _switching: Switching) -> None:
        self.log_command = "true"
        self.process_looks = 0

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    def process(self) -> Process:
        self.process_looks += 1
        return Process(True if self.process_looks > 1 else None)

    def start_id(self) -> str:
        return ""

    def last_lines(self) -> list[str]:
        return []


@pytest.fixture
def loading(host: Host) -> Iterator[Callable[..., tuple[Clock, Switcher, Loading, Runs]]]:
    """Makes a switcher in a world where only sleeping takes time."""
    made: list[Switcher] = []
    host.declare("a")

    def make(seconds: float, retries: int, interval: float) -> tuple[Clock, Switcher, Loading, Runs]:
        clock = Clock()
        host.settings.update(max_retries=retries, health_check_interval_seconds=interval)
        switcher = host.switcher(
            clock=clock,
            sleep=clock.sleep,
            server=lambda model, switching: Loading(model, switching, clock, clock.now + seconds),
            lifecycle=Runs,
        )
        made.append(switcher)
        server, process = switcher.host.servers["a"], switcher.host.lifecycles["a"]
        assert isinstance(server, Loading)
        assert isinstance(process, Runs)
        return clock, switcher, server, process

    yield make
    for switcher in made:
        switcher.__exit__()


@pytest.mark.parametrize("seconds", [0.004, 0.5, 3.0, 60.0, 600.0])
def test_readiness_is_noticed_soon(loading: Callable[..., Any], seconds: float) -> None:
    clock, switcher, server, process = loading(seconds, 450, 2)
    switcher.switch("a")
    assert clock.pauses[0] == pytest.approx(0.01)
    for poll, pause in zip(server.polls, clock.pauses, strict=False):
        assert pause <= max(0.01, 0.01 * (poll - 100)) + 1e-9
        assert pause <= 2
    late = server.polls[-1] - (100 + seconds)
    assert late <= min(max(0.01, 0.01 * seconds), 2) + 1e-6
    assert len(server.polls) < 1500
    # Looking after the process may cost a docker command.
    assert process.process_looks <= 3 + seconds / 0.5


@pytest.mark.parametrize("seconds", [2.0, 60.0, 890.0])
def test_a_server_that_ends_while_it_loads_is_noticed_soon(loading: Callable[..., Any], seconds: float) -> None:
    """Also one that has loaded for long, whatever the interval."""
    clock, switcher, _server, process = loading(10_000, 100, 10)

    def look() -> Process:
        return Process(False, 1) if clock.now >= 100 + seconds else Process(True)

    process.process = look
    with pytest.raises(SwitchFailed, match="its server ended with exit code 1 while the switch waited for it"):
        switcher.switch("a")
    assert clock.now - (100 + seconds) <= 2.5


def test_the_interval_is_never_exceeded(loading: Callable[..., Any]) -> None:
    clock, switcher, _server, _process = loading(100, 5000, 0.05)
    switcher.switch("a")
    assert max(clock.pauses) == pytest.approx(0.05)


def test_the_wait_ends_at_its_deadline(loading: Callable[..., Any]) -> None:
    clock, switcher, server, _process = loading(10_000, 7, 1.5)
    with pytest.raises(SwitchFailed, match=r"it is not ready after 10\.5 s"):
        switcher.switch("a")
    assert server.polls[-1] == pytest.approx(110.5)
    assert clock.now == pytest.approx(110.5)


def test_slow_servers_are_observed_side_by_side(host: Host) -> None:
    names = ("a", "b", "c", "d")
    for gpu, name in enumerate(names):
        host.declare(name, gpus=[gpu])
    host.up(**dict.fromkeys(names, "active"))
    for name in names:
        host.fault(name, "/health", "hang", seconds=2)
    started = time.monotonic()
    with host.switcher() as switcher:
        report = switcher.report()
    assert 2 <= time.monotonic() - started < 8
    assert report["active_models"] == list(names)
    assert report["models"]["a"] == {
        "state": "active",
        "level": None,
        "name": "a",
        "host_port": host.models[0]["host_port"],
        "startup_mode": "sleep",
        "running": 0,
        "waiting": 0,
        "gpu_memory_gb": None,
        "levels": [],
        "next_sleep": "level 1: RAM allows it, level 1 and level 2 never measured",
        "leak": None,
    }


def test_a_server_is_known_to_be_ready_within_moments(host: Host) -> None:
    host.settings.update(max_retries=450, health_check_interval_seconds=30)
    host.declare("a")
    host.up(a=1)
    host.fault("a", "/wake_up", "early", seconds=0.5)
    host.switch("a")
    events = [event for event in host.events() if event["event"] in ("awake", "request_start")]
    awake, asked = events[-2:]
    assert (awake["event"], asked["event"]) == ("awake", "request_start")
    assert asked["time"] - awake["time"] < 10


# ---- the check that every test above ends with ------------------------------------------------


def event(server: int, name: str, *gpus: str, **details: object) -> dict[str, Any]:
    """A line of events.jsonl."""
    return {"id": str(server), "model": f"m{server}", "event": name, "gpus": list(gpus or ("0",)), **details}


def test_two_awake_on_one_gpu_are_found(two_awake: TwoAwake) -> None:
    overlap = [event(1, "awake"), event(2, "waking"), event(1, "sleeping"), event(2, "awake")]
    assert two_awake(overlap) == ["m2 was waking while m1 was awake"]
    assert two_awake(overlap, since=2) == []
    assert two_awake([event(1, "awake", "0"), event(2, "loading", "1", "0")]) == ["m2 was loading while m1 was awake"]


def test_one_after_the_other_and_side_by_side_are_fine(two_awake: TwoAwake) -> None:
    assert two_awake([event(1, "awake", "0"), event(2, "awake", "1")]) == []
    assert two_awake([event(1, "awake"), event(1, "sleeping"), event(2, "waking"), event(2, "awake")]) == []
    # What was killed is noticed by the next one to take memory, when that has said that it loads.
    assert two_awake([event(1, "awake"), event(2, "loading"), event(1, "dead", cause="killed")]) == []
    assert two_awake([event(1, "awake"), event(2, "loading"), event(1, "dead", cause="terminated")]) != []
