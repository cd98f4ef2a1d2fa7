# SPDX-License-Identifier: MIT
"""What becomes of the requests that a server has when it is to sleep: drained, parked or cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result

from .conftest import Host

Ask = Callable[[str, int], "Future[dict[str, Any]]"]


@pytest.fixture
def ask(host: Host) -> Iterator[Ask]:
    """A client that asks for so many tokens; returns when the server has the request."""
    pool = ThreadPoolExecutor(8)

    def begin(name: str, tokens: int) -> Future[dict[str, Any]]:
        before = host.running(name)
        answer = pool.submit(host.completion, name, tokens)
        host.wait_until(lambda: host.running(name) > before, f"{name} has the request")
        return answer

    yield begin
    pool.shutdown()


def declare(host: Host, *, version: str = "0.32.0", **fields: Any) -> None:
    """Models a, which is active, and b, which sleeps; a makes 100 tokens a second."""
    host.declare("a", standin={"tokens_per_second": 100, "version": version}, **fields)
    host.declare("b")
    host.up(a="active", b=1)


def requests_of(result: Result) -> list[int | None]:
    return list(result.requests.values())


@pytest.mark.parametrize("version", ["0.32.0", "0.11.0"])
def test_what_runs_is_finished(host: Host, ask: Ask, version: str) -> None:
    declare(host, version=version)
    answers = [ask("a", 60), ask("a", 100)]
    result = host.switch("b")
    assert [(len(one.result()["text"].split()), one.result()["finish_reason"]) for one in answers] == [
        (60, "length"), (100, "length"),
    ]  # fmt: skip
    assert requests_of(result) == [2, 0, 0]
    assert result.steps[0]["requests"] == {"drained": 2, "parked": 0, "cut": 0}
    assert ("POST /sleep?level=0&mode=wait" in host.changing_calls("a")) == (version != "0.11.0")


def test_what_comes_while_it_drains_waits_for_the_wake(host: Host, ask: Ask) -> None:
    declare(host)
    first = ask("a", 300)
    with ThreadPoolExecutor(1) as pool:
        switch = pool.submit(host.switch, "b")
        host.wait_until(lambda: host.call("a", "GET", "/standin/state").json()["paused"], "a takes no more requests")
        second = ask("a", 5)
        assert requests_of(switch.result())[2] == 0
    assert first.result()["finish_reason"] == "length"
    assert not second.done()
    host.switch("a")
    assert len(second.result(timeout=300)["text"].split()) == 5


def test_at_the_deadline_what_runs_is_cut(host: Host, ask: Ask) -> None:
    host.settings["drain_timeout_seconds"] = 0.3
    declare(host)
    answer = ask("a", 1500)
    result = host.switch("b")
    assert answer.result(timeout=300)["finish_reason"] == "abort"
    assert requests_of(result) == [0, 0, 1]
    assert result.steps[0]["note"] == "1 requests still ran after 0.3 s and were cut"
    assert "POST /sleep?level=1&mode=abort" in host.changing_calls("a")
    with host.switcher() as switcher:
        assert switcher.report()["models"]["a"]["level"] == 1
    assert [step["action"] for step in host.switch("a").steps] == ["drain", "sleep", "wake", "verify"]


@pytest.mark.parametrize("level", [1, 2])
def test_at_the_deadline_what_runs_is_parked_and_goes_on_after_the_wake(host: Host, ask: Ask, level: int) -> None:
    host.settings.update(drain_timeout_seconds=0.3, drain_timeout_action="keep")
    declare(host, sleep_level=level)
    answer = ask("a", 300)
    result = host.switch("b")
    assert requests_of(result) == [0, 1, 0]
    assert result.steps[0]["note"] == "1 requests still ran after 0.3 s and are parked until the next wake"
    assert not answer.done()
    assert host.call("a", "GET", "/metrics").text.count('sleep_state="awake"} 0.0') == 1
    with host.switcher() as switcher:
        assert switcher.report()["models"]["a"]["level"] == level
    host.switch("a")
    assert len(answer.result(timeout=300)["text"].split()) == 300
    # The drain that was given up does not come true when the request has ended.
    assert host.states()["a"] == "active"
    assert host.completion("a")["finish_reason"] == "length"


@pytest.mark.parametrize("version", ["0.32.0", "0.11.0"])
def test_at_the_deadline_nothing_changes_where_that_is_wanted(host: Host, ask: Ask, version: str) -> None:
    host.settings.update(drain_timeout_seconds=0.3, drain_timeout_action="fail")
    declare(host, version=version)
    answer = ask("a", 300)
    with pytest.raises(SwitchFailed) as caught:
        host.switch("b")
    text = str(caught.value)
    assert "a: 1 requests still ran after 0.3 s (drain_timeout_seconds; drain_timeout_action is fail)" in text
    assert (
        "Failed: drain a\nThe host is left with: a active, b sleeping (level 1)\nWhat to do: switch when it has" in text
    )
    assert len(answer.result(timeout=300)["text"].split()) == 300
    assert host.states() == {"a": "active", "b": "sleeping"}
    assert host.changing_calls("b")[-1] == "POST /sleep?level=1"


@pytest.mark.parametrize(("version", "sleep_level"), [("0.11.0", 1), ("0.32.0", "stop")])
def test_what_cannot_be_parked_is_not_cut_instead(host: Host, ask: Ask, version: str, sleep_level: int | str) -> None:
    host.settings.update(drain_timeout_seconds=0.3, drain_timeout_action="keep")
    declare(host, version=version, sleep_level=sleep_level)
    answer = ask("a", 300)
    with pytest.raises(SwitchFailed, match="can't park them"):
        host.switch("b")
    assert len(answer.result(timeout=300)["text"].split()) == 300
    assert host.states() == {"a": "active", "b": "sleeping"}


def test_parked_requests_of_a_server_that_had_to_be_stopped_are_cut(host: Host, ask: Ask) -> None:
    host.settings.update(drain_timeout_seconds=0.3, drain_timeout_action="keep")
    declare(host)
    answer = ask("a", 1500)
    host.fault("a", "/sleep", "status_500", match="level=1", times=0)
    result = host.switch("b")
    assert requests_of(result) == [0, 0, 1]
    assert [step.get("escalation") for step in result.steps] == [None, None, "stop", None, None]
    assert answer.exception(timeout=60) is not None


def test_a_server_that_does_not_answer_a_drain_is_drained_by_looking(host: Host, ask: Ask) -> None:
    declare(host)
    answer = ask("a", 60)
    host.fault("a", "/sleep", "status_500", match="level=0")
    assert requests_of(host.switch("b")) == [1, 0, 0]
    assert len(answer.result()["text"].split()) == 60


def test_a_drained_server_that_only_says_that_it_sleeps_is_stopped(host: Host, ask: Ask) -> None:
    host.settings["request_timeout_seconds"] = 1
    declare(host)
    answer = ask("a", 60)
    host.fault("a", "/sleep", "not_done", match="level=1", times=0)
    result = host.switch("b")
    assert [step.get("escalation") for step in result.steps][:3] == [None, None, "stop"]
    assert len(answer.result()["text"].split()) == 60
    assert host.states() == {"a": "stopped", "b": "active"}


def test_a_resume_that_fails_is_no_reason_to_cut(host: Host, ask: Ask) -> None:
    host.settings.update(drain_timeout_seconds=0.3, drain_timeout_action="fail")
    declare(host)
    answer = ask("a", 300)
    host.fault("a", "/wake_up", "status_500")
    with pytest.raises(SwitchFailed, match="drain_timeout_action is fail"):
        host.switch("b")
    assert len(answer.result(timeout=300)["text"].split()) == 300
    assert host.states() == {"a": "active", "b": "sleeping"}
