# SPDX-License-Identifier: MIT
"""What becomes of the requests that a server has when it is to sleep: drained, parked or cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.drain import Drain
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import DrainTimeout, SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Switching
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result

from .conftest import Host

if TYPE_CHECKING:
    from ansible_collections.homegpt.vllm.plugins.module_utils.switching.server import Server

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
    answers = [ask("a", 250), ask("a", 300)]
    result = host.switch("b")
    assert [(len(one.result()["text"].split()), one.result()["finish_reason"]) for one in answers] == [
        (250, "length"), (300, "length"),
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
    answer = ask("a", 600)
    result = host.switch("b")
    assert requests_of(result) == [0, 1, 0]
    assert result.steps[0]["note"] == "1 requests still ran after 0.3 s and are parked until the next wake"
    assert not answer.done()
    assert host.call("a", "GET", "/metrics").text.count('sleep_state="awake"} 0.0') == 1
    with host.switcher() as switcher:
        assert switcher.report()["models"]["a"]["level"] == level
    host.switch("a")
    assert len(answer.result(timeout=300)["text"].split()) == 600
    # The drain that was given up does not come true when the request has ended.
    assert host.states()["a"] == "active"
    assert host.completion("a")["finish_reason"] == "length"


@pytest.mark.parametrize("version", ["0.32.0", "0.11.0"])
def test_at_the_deadline_nothing_changes_where_that_is_wanted(host: Host, ask: Ask, version: str) -> None:
    host.settings.update(drain_timeout_seconds=0.3, drain_timeout_action="fail")
    declare(host, version=version)
    answer = ask("a", 600)
    with pytest.raises(SwitchFailed) as caught:
        host.switch("b")
    text = str(caught.value)
    assert "a: 1 requests still ran after 0.3 s (drain_timeout_seconds; drain_timeout_action is fail)" in text
    assert (
        "Failed: drain a\nState of the host: a active, b sleeping (level 1)\nWhat to do: switch when it is less busy"
        in text
    )
    assert len(answer.result(timeout=300)["text"].split()) == 600
    assert host.states() == {"a": "active", "b": "sleeping"}
    assert host.changing_calls("b")[-1] == "POST /sleep?level=1"


@pytest.mark.parametrize(("version", "sleep_level"), [("0.11.0", 1), ("0.32.0", "stop")])
def test_what_cannot_be_parked_is_not_cut_instead(host: Host, ask: Ask, version: str, sleep_level: int | str) -> None:
    host.settings.update(drain_timeout_seconds=0.3, drain_timeout_action="keep")
    declare(host, version=version, sleep_level=sleep_level)
    answer = ask("a", 600)
    with pytest.raises(SwitchFailed, match="can't be parked"):
        host.switch("b")
    assert len(answer.result(timeout=300)["text"].split()) == 600
    assert host.states() == {"a": "active", "b": "sleeping"}


def test_a_drain_that_goes_on_by_looking_has_no_second_deadline(host: Host, ask: Ask) -> None:
    host.settings.update(drain_timeout_seconds=6, drain_timeout_action="fail")
    declare(host)
    answer = ask("a", 1200)
    with pytest.raises(SwitchFailed, match="still ran after 6 s") as caught:
        host.switch("b")
    drain = caught.value.result.steps[0]
    assert drain["action"] == "drain"
    assert drain["seconds"] < 11.5  # twice that, if the time began anew when the call was broken off
    assert answer.result(timeout=60)["finish_reason"] == "length"


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
    answer = ask("a", 250)
    host.fault("a", "/sleep", "status_500", match="level=0")
    assert requests_of(host.switch("b")) == [1, 0, 0]
    assert len(answer.result()["text"].split()) == 250


def test_a_drained_server_that_only_says_that_it_sleeps_is_stopped(host: Host, ask: Ask) -> None:
    host.settings["request_timeout_seconds"] = 3
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
    answer = ask("a", 600)
    host.fault("a", "/wake_up", "status_500")
    with pytest.raises(SwitchFailed, match="drain_timeout_action is fail"):
        host.switch("b")
    assert len(answer.result(timeout=300)["text"].split()) == 600
    assert host.states() == {"a": "active", "b": "sleeping"}


def test_a_server_that_can_not_be_drained_serves_again_at_once_and_not_when_all_others_have_ended(
    host: Host, ask: Ask
) -> None:
    host.settings.update(drain_timeout_seconds=0.3, drain_timeout_action="fail", probe_timeout_seconds=8)
    host.declare("a", gpus=[0], standin={"tokens_per_second": 100})
    host.declare("b", gpus=[0, 1])
    host.declare("c", gpus=[1])
    host.up(a="active", b=1, c="active")
    ask("a", 500)
    host.fault("c", "/metrics", "slow", seconds=6, times=1, skip=1)
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        switch = pool.submit(host.switch, "b")
        host.wait_until(lambda: "POST /wake_up?tags=scheduling" in host.changing_calls("a"), "a is resumed")
        assert time.monotonic() - began < 5  # c takes longer
        with pytest.raises(SwitchFailed, match="drain_timeout_action is fail"):
            switch.result()
    assert host.states() == {"a": "active", "b": "sleeping", "c": "active"}


class OnlyWaiting:
    """A server whose requests all wait: one that is paused has them, and one whose cache is full."""

    model = SimpleNamespace(id="a", sleep_requests=())

    def count_requests(self) -> tuple[int, int]:
        return 0, 1

    def can_cut(self) -> bool:
        return False


def test_what_waits_is_not_over() -> None:
    settings = Switching(drain_timeout_seconds=0.05, drain_timeout_action="fail")
    drain = Drain(cast("Server", OnlyWaiting()), settings, lambda done, _seconds: done(), True, by_looking=True)
    with pytest.raises(DrainTimeout, match="1 requests still ran"):
        drain.run()


# ---- between the look and the sleep -------------------------------------------------------------


def called(host: Host, name: str) -> bool:
    """Whether the call has come that has a fault."""
    return host.call(name, "GET", "/standin/faults").json() == []


@pytest.mark.parametrize("action", ["fail", "keep", "abort"])
def test_what_comes_between_the_look_and_the_sleep_is_held(host: Host, ask: Ask, action: str) -> None:
    host.settings.update(drain_timeout_action=action, request_timeout_seconds=1, probe_timeout_seconds=1)
    declare(host)
    # The call to sleep is slow to be heard, and then would wait for the request for longer than it may take.
    host.fault("a", "/sleep", "hang", match="level=1", seconds=0.7)
    with ThreadPoolExecutor(1) as pool:
        switch = pool.submit(host.switch, "b")
        host.wait_until(lambda: called(host, "a"), "a is to sleep")
        late = ask("a", 600)
        result = switch.result()
    assert requests_of(result) == [0, 0, 0]
    assert "escalation" not in str(result.steps)
    assert host.states() == {"a": "sleeping", "b": "active"}
    assert not late.done()
    host.switch("a")
    assert len(late.result(timeout=300)["text"].split()) == 600


def test_what_comes_while_one_drains_that_is_to_stop_is_let_in(host: Host, ask: Ask) -> None:
    host.settings["drain_timeout_action"] = "fail"
    declare(host, sleep_level="stop")
    first = ask("a", 400)
    with ThreadPoolExecutor(1) as pool:
        switch = pool.submit(host.switch, "b")
        host.wait_until(lambda: host.call("a", "GET", "/standin/state").json()["paused"], "a takes no more requests")
        second = ask("a", 50)
        result = switch.result()
    assert (len(first.result()["text"].split()), len(second.result()["text"].split())) == (400, 50)
    assert requests_of(result)[1:] == [0, 0]
    assert host.states() == {"a": "stopped", "b": "active"}


@pytest.mark.parametrize("action", ["fail", "keep"])
def test_one_that_does_not_hold_what_comes_does_not_sleep_where_nothing_may_be_cut(host: Host, action: str) -> None:
    host.settings["drain_timeout_action"] = action
    declare(host)
    host.fault("a", "/sleep", "status_500", match="level=0", times=0)
    with pytest.raises(SwitchFailed, match="a: it can't hold new requests"):
        host.switch("b")
    assert host.states() == {"a": "active", "b": "sleeping"}
    host.settings["drain_timeout_action"] = "abort"
    assert requests_of(host.switch("b")) == [0, 0, 0]
    assert host.states() == {"a": "sleeping", "b": "active"}


# ---- before 0.17 --------------------------------------------------------------------------------


def on_a_cpu(host: Host, version: str, **fields: Any) -> None:
    """Models a and b as C(declare), but a frees nothing: no engine dies of what runs while it sleeps."""
    host.declare("a", standin={"tokens_per_second": 100, "version": version}, **fields)
    host.models[-1]["start_command"].remove("--enable-sleep-mode")
    host.declare("b")
    host.up(a="active", b=1)


def asked_meanwhile(host: Host, ask: Ask, tokens: int) -> tuple[Future[dict[str, Any]], Result | BaseException]:
    """Switch to b; a gets a request when it has been looked at and is to sleep."""
    host.fault("a", "/sleep", "hang", seconds=2)
    with ThreadPoolExecutor(1) as pool:
        switch = pool.submit(host.switch, "b")
        host.wait_until(lambda: called(host, "a"), "a is to sleep")
        late = ask("a", tokens)
        return late, switch.exception() or switch.result()


@pytest.mark.parametrize("action", ["fail", "keep"])
def test_what_can_not_be_held_has_the_server_woken_again(host: Host, ask: Ask, action: str) -> None:
    host.settings["drain_timeout_action"] = action
    on_a_cpu(host, "0.11.0")
    late, error = asked_meanwhile(host, ask, 600)
    assert isinstance(error, SwitchFailed)
    assert (
        f"a received 1 requests while it was put to sleep, and can't hold them (drain_timeout_action is {action})"
        in (str(error))
    )
    assert len(late.result(timeout=60)["text"].split()) == 600
    assert requests_of(error.result)[2] == 0
    assert host.states() == {"a": "active", "b": "sleeping"}


def test_what_can_not_be_held_is_told_as_cut(host: Host, ask: Ask) -> None:
    host.settings["stop_timeout_seconds"] = 1
    on_a_cpu(host, "0.11.0")
    late, result = asked_meanwhile(host, ask, 1500)
    assert isinstance(result, Result)
    assert late.exception(timeout=60) is not None
    assert requests_of(result)[2] != 0
    assert host.states() == {"a": "stopped", "b": "active"}


def test_what_an_old_engine_dies_of_is_told_as_cut(host: Host, ask: Ask) -> None:
    declare(host, version="0.11.0")
    late, result = asked_meanwhile(host, ask, 1500)
    assert isinstance(result, Result)
    assert late.exception(timeout=60) is not None
    assert requests_of(result)[2] != 0
    assert host.states() == {"a": "stopped", "b": "active"}


@pytest.mark.parametrize("version", ["0.11.0", "0.12.0", "0.16.0"])
def test_what_no_sleep_cuts_is_cut_by_a_stop(host: Host, ask: Ask, version: str) -> None:
    host.settings.update(drain_timeout_seconds=0.3, stop_timeout_seconds=1)
    declare(host, version=version)
    answer = ask("a", 3000)
    result = host.switch("b")
    assert answer.exception(timeout=60) is not None
    assert requests_of(result) == [0, 0, 1]
    assert (
        "a: 1 requests still ran after 0.3 s, and this vLLM version can't cut them when it sleeps"
        in result.steps[0]["failed"]
    )
    assert [step.get("escalation") for step in result.steps][:2] == [None, "stop"]
    assert host.states() == {"a": "stopped", "b": "active"}


@pytest.mark.parametrize("version", ["0.12.0", "0.16.0"])
@pytest.mark.parametrize("level", [1, 2])
def test_an_old_server_holds_what_comes_at_its_door(host: Host, ask: Ask, version: str, level: int) -> None:
    declare(host, version=version, sleep_level=level)
    first = ask("a", 300)
    with ThreadPoolExecutor(2) as pool:
        switch = pool.submit(host.switch, "b")
        host.wait_until(lambda: host.call("a", "GET", "/standin/state").json()["door_shut"], "a takes no more requests")
        late = pool.submit(host.completion, "a", 50)
        host.wait_until(lambda: host.call("a", "GET", "/standin/state").json()["held"], "a holds the request")
        result = switch.result()
        assert requests_of(result) == [1, 0, 0]
        assert len(first.result()["text"].split()) == 300
        assert not late.done()
        host.switch("a")
        assert len(late.result(timeout=60)["text"].split()) == 50
    assert "POST /resume" in host.changing_calls("a")
    assert host.call("a", "GET", "/standin/state").json()["weights_right"] is True


@pytest.mark.parametrize("version", ["0.12.0", "0.16.0"])
@pytest.mark.parametrize("action", ["fail", "keep"])
def test_a_door_that_was_shut_in_vain_is_opened(host: Host, ask: Ask, version: str, action: str) -> None:
    host.settings.update(drain_timeout_seconds=0.3, drain_timeout_action=action, probe_timeout_seconds=1)
    declare(host, version=version)
    first = ask("a", 500)
    with pytest.raises(SwitchFailed):
        host.switch("b")
    assert len(host.completion("a", 5)["text"].split()) == 5
    assert len(first.result(timeout=60)["text"].split()) == 500
    assert host.states() == {"a": "active", "b": "sleeping"}


def test_an_old_server_without_a_door_is_drained_by_looking(host: Host, ask: Ask) -> None:
    declare(host, version="0.16.0")
    host.fault("a", "/pause", "status_500", times=0)
    answer = ask("a", 250)
    assert requests_of(host.switch("b")) == [1, 0, 0]
    assert len(answer.result()["text"].split()) == 250
