# SPDX-License-Identifier: MIT
"""Before a server is to sleep or to end, the manager is asked to close the gateway's gates. A test is the manager."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import gates, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gates import Answer
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.host import Host as EngineHost
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import Asked, HostLock
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from .conftest import Host


@pytest.fixture
def pair(host: Host) -> Host:
    """The models a, which is active, and b, which sleeps; they share a GPU."""
    for name in "ab":
        host.declare(name)
    host.up(a="active", b=1)
    return host


@contextlib.contextmanager
def manager(host: Host, answer: Callable[[Asked], Answer | None]) -> Iterator[list[tuple[Asked, list[str]]]]:
    """Answers what is asked, again and again; what was asked first, and what had been done to a by then."""
    stack, over = str(host.stack_dir), threading.Event()
    heard: list[tuple[Asked, list[str]]] = []
    before = len(host.changing_calls("a"))
    gates.write(stack, Answer())

    def work() -> None:
        while not over.wait(0.01):
            asked = HostLock(stack).asked()
            if asked:
                if asked not in [one for one, _calls in heard]:
                    heard.append((asked, host.changing_calls("a")[before:]))
                told = answer(asked)
                if told:
                    gates.write(stack, told)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield heard
    finally:
        over.set()
        thread.join()


def closed(asked: Asked) -> Answer:
    return Answer(asked.ask, frozenset(asked.models))


def held(switcher: Switcher) -> contextlib.AbstractContextManager[None]:
    """Its lock, which is free."""
    return switcher.lock.hold("a test", 1, lambda done, _seconds: done())


def left_in_lock(host: Host) -> Any:
    return json.loads((host.stack_dir / "run" / "switch.lock").read_text().splitlines()[0]).get("gates")


def test_nobody_is_asked_where_there_is_no_gateway(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostLock, "ask", lambda *_arguments: pytest.fail("asked"))
    assert pair.switch("b").warnings == []


@pytest.mark.parametrize(("name", "desired"), [("b", "active"), ("a", "sleeping"), ("a", "stopped")])
def test_gates_are_closed_before_anything_is_done_to_a_server(pair: Host, name: str, desired: str) -> None:
    with manager(pair, closed) as heard:
        assert pair.switch(name, desired).warnings == []
    ((asked, calls),) = heard
    assert asked.models == ("a", "b")
    assert calls == []
    assert len(pair.changing_calls("a")) > 0
    assert left_in_lock(pair) is None


def test_gates_are_closed_before_a_server_is_stopped_that_can_not_sleep(pair: Host) -> None:
    pair.fault("a", "/sleep", "status_500", times=0)
    with manager(pair, closed) as heard:
        result = pair.switch("b")
    assert [step["action"] for step in result.steps if step.get("escalation") == "stop"] == ["stop"]
    assert [calls for _asked, calls in heard] == [[]]


def test_a_switch_that_changes_nothing_closes_no_gate(pair: Host) -> None:
    with manager(pair, closed) as heard:
        assert not pair.switch("a").changed
    assert heard == []


def test_each_switch_asks_anew(pair: Host) -> None:
    with manager(pair, closed) as heard:
        pair.switch("b")
        pair.switch("a")
    assert len({asked.ask for asked, _calls in heard}) == 2


def test_models_of_other_gpus_are_asked_for_together(host: Host) -> None:
    for name in "abcd":
        host.declare(name, gpus=[0] if name in "ab" else [1])
    host.up(a="active", b=1, c="active", d=1)
    with manager(host, closed) as heard, host.switcher() as switcher:
        assert switcher.switch(["b", "d"]).warnings == []
    assert heard[-1][0].models == ("a", "b", "c", "d")
    assert len({asked.ask for asked, _calls in heard}) == 1


@pytest.mark.parametrize(
    "answer",
    [
        lambda _asked: None,
        lambda _asked: Answer("another", frozenset("ab")),
        lambda asked: Answer(asked.ask, frozenset("a")),
    ],
    ids=["none", "to another", "not of all"],
)
def test_what_is_no_answer_is_waited_for_and_told(
    pair: Host, answer: Callable[[Asked], Answer | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 0.6)
    with manager(pair, answer) as heard:
        began = time.monotonic()
        result = pair.switch("b")
        took = time.monotonic() - began
    assert result.models["b"].state == "active"
    (warning,) = result.warnings
    assert "did not confirm that the gateway sends no more requests to a (it has not answered for 0.6 s)" in warning
    assert 0.6 <= took < 10
    assert len(heard) == 1


def test_a_file_that_can_not_be_read_confirms_nothing(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 0.1)
    path = pair.stack_dir / "run" / f"{state_files.GATES}.json"
    endless = '{"ask": "", "closed": [], "busy": [], "runs": true, "number": 1e999}'
    for text in ("", "[]", '{"ask": 1}', "[" * 100000, endless, "{"):
        path.write_text(text, encoding="utf-8")
        assert gates.read(str(pair.stack_dir)) == Answer()
    assert ["did not confirm" in one for one in pair.switch("a", "sleeping").warnings] == [True]


def test_a_file_that_can_not_be_opened_is_named(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the gates of each group are given the time to close."""
    pair.declare("c", gpus=[1])
    pair.up(c=1)
    path = pair.stack_dir / "run" / f"{state_files.GATES}.json"
    path.mkdir(parents=True)
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 60.0)
    warnings: list[str] = []
    with pair.switcher() as switcher, held(switcher):
        for name in "ac":
            began = time.monotonic()
            gates.Gates(switcher.host, warnings).close(name)
            assert 0.5 <= time.monotonic() - began < 60
    assert len(warnings) == 2
    for name, one in zip("ac", warnings, strict=True):
        assert f"requests to {name} ({path} can't be read: Is a directory)" in one
    assert all(one.endswith("check that file") for one in warnings)


def test_a_file_that_can_not_be_read_for_a_moment_is_read_again(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gates.read
    failed: list[str] = []

    def read(stack_dir: str) -> Answer | None:
        if len(failed) < 2:
            failed.append(stack_dir)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(stack_dir)

    with manager(pair, closed) as heard:
        monkeypatch.setattr(gates, "read", read)
        assert pair.switch("b").warnings == []
    assert (len(failed), len(heard)) == (2, 1)


def test_a_manager_that_falls_silent_is_waited_for_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it has answered what was asked first, too."""
    for number, name in enumerate("abc"):
        host.declare(name, gpus=[number])
    host.up(a=1, b=1, c=1)
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 1.5)
    answers: list[Answer] = []

    def once(asked: Asked) -> Answer:
        answers.append(closed(asked))
        return answers[0]

    took = []
    warnings: list[str] = []
    with manager(host, once), host.switcher() as switcher, held(switcher):
        for name in "abc":
            began = time.monotonic()
            gates.Gates(switcher.host, warnings).close(name)
            took.append(time.monotonic() - began)
    assert [seconds >= 1.5 for seconds in took] == [False, True, False]
    assert ["has not answered for 1.5 s" in one for one in warnings] == [True, True]


def test_who_does_not_answer_is_waited_for_once_whatever_is_done_under_the_lock(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        host.declare(name, gpus=[0] if name in "ab" else [1])
    host.up(a="active", b=1, c="active", d=1)
    host.settings["escalation"] = ["roll_back"]
    host.fault("d", "/wake_up", "status_500", times=0)
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 1.5)
    waited: list[float] = []
    wait = EngineHost.wait

    def watch(engine: EngineHost, done: Callable[[], bool], seconds: float, *more: Any) -> bool:
        began = time.monotonic()
        try:
            return wait(engine, done, seconds, *more)
        finally:
            if done.__qualname__.endswith("_close.<locals>.over"):
                waited.append(time.monotonic() - began)

    monkeypatch.setattr(EngineHost, "wait", watch)
    with manager(host, lambda _asked: None) as heard, host.switcher() as switcher, pytest.raises(SwitchFailed):
        switcher.switch(["b", "d"], change="both")
    # The two at once, or one after the other; then what had been done is taken back.
    assert len(waited) > 2
    assert waited[0] >= 1.5
    assert max(waited[2:]) < 1.5
    assert len({asked.ask for asked, _calls in heard}) == 1
    assert [name for name, state in host.states().items() if state == "active"] == ["a", "c"]


def test_a_manager_that_is_back_is_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        host.declare(name, gpus=[0] if name in "ab" else [1])
    host.up(a="active", b=1, c="active", d=1)
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 0.4)
    back = threading.Event()
    warnings: list[str] = []

    def answer(asked: Asked) -> Answer | None:
        return closed(asked) if back.is_set() else None

    with manager(host, answer), host.switcher() as switcher, held(switcher):
        gates.Gates(switcher.host, warnings).close("a")
        assert ["more requests to a" in one for one in warnings] == [True]
        back.set()
        ask = switcher.lock.ask([])
        switcher.host.wait(lambda: getattr(gates.read(str(host.stack_dir)), "ask", "") == ask, 10)
        monkeypatch.setattr(gates, "ANSWER_SECONDS", 10)
        gates.Gates(switcher.host, warnings).close("c")
    assert len(warnings) == 1


def test_a_gateway_that_is_not_connected_is_told(pair: Host) -> None:
    with manager(pair, lambda asked: closed(asked)._replace(linked=False)):
        (warning,) = pair.switch("b").warnings
    assert "(the gateway is not connected to it)" in warning


def test_what_a_manager_of_before_tells_is_understood(pair: Host) -> None:
    path = pair.stack_dir / "run" / f"{state_files.GATES}.json"
    path.write_text('{"ask": "x", "closed": ["a"], "busy": [], "runs": true, "number": 1}', encoding="utf-8")
    assert gates.read(str(pair.stack_dir)) == Answer("x", frozenset("a"), number=1)


def test_a_manager_that_was_stopped_is_not_waited_for(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 60.0)
    gates.write(str(pair.stack_dir), Answer(runs=False))
    began = time.monotonic()
    (warning,) = pair.switch("b").warnings
    assert "(it does not run)" in warning
    assert time.monotonic() - began < 60


def test_requests_that_the_gateway_has_sent_are_waited_for_before_the_drain(pair: Host) -> None:
    since: list[float] = []

    def busy(asked: Asked) -> Answer:
        since.append(time.monotonic())
        number = len(since)
        return closed(asked)._replace(busy=frozenset("a" if since[-1] - since[0] < 0.8 else ()), number=number)

    before = len(pair.changing_calls("a"))
    steps: list[dict[str, Any]] = []

    def look(step: dict[str, Any]) -> None:
        if step["event"] == "step_ended" and step["action"] == "drain":
            steps.append(step)

    with manager(pair, busy):
        pair.switch("b", observer=look)
    assert steps[0]["seconds"] >= 0.75
    assert pair.changing_calls("a")[before].startswith("POST /sleep")


def test_requests_are_waited_for_no_longer_than_a_drain_may_take(pair: Host) -> None:
    pair.settings["drain_timeout_seconds"] = 0.5
    numbers = iter(range(10**6))
    with manager(pair, lambda asked: closed(asked)._replace(busy=frozenset("a"), number=next(numbers))):
        began = time.monotonic()
        assert pair.switch("b").models["b"].state == "active"
        assert 0.5 <= time.monotonic() - began < 5


def test_requests_that_did_not_end_in_time_are_not_waited_for_again(pair: Host) -> None:
    """By a recovery that drains the same server."""
    numbers = iter(range(10**6))
    waited = []

    def busy(asked: Asked) -> Answer:
        return closed(asked)._replace(busy=frozenset("a"), number=next(numbers))

    with manager(pair, busy), pair.switcher() as switcher, held(switcher):
        asking = gates.Gates(switcher.host, [])
        asking.close("a")
        for _drain in range(2):
            began = time.monotonic()
            asking.wait_until_idle("a", 0.6)
            waited.append(time.monotonic() - began)
    assert [seconds >= 0.6 for seconds in waited] == [True, False]


def test_who_tells_nothing_any_more_is_not_believed(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "ANSWER_SECONDS", 0.5)
    pair.settings["drain_timeout_seconds"] = 60
    with manager(pair, lambda asked: closed(asked)._replace(busy=frozenset("a"))):
        began = time.monotonic()
        result = pair.switch("b")
        assert time.monotonic() - began < 20
    assert result.models["b"].state == "active"
    (warning,) = result.warnings
    assert "has told nothing for 0.5 s of the requests that the gateway has sent to a" in warning


def test_a_lock_that_closes_its_gates_itself_asks_nobody(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostLock, "closes_gates", False)
    with manager(pair, closed) as heard:
        pair.switch("b")
    assert heard == []


def test_a_question_is_over_when_the_switch_is_whatever_comes_of_it(pair: Host) -> None:
    class Interrupted(BaseException):
        pass

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if HostLock(str(pair.stack_dir)).asked():
            raise Interrupted

    gates.write(str(pair.stack_dir), Answer())
    with contextlib.suppress(Interrupted), Switcher(pair.inventory, str(pair.stack_dir), sleep=sleep) as switcher:
        switcher.switch("b")
    assert left_in_lock(pair) is None
    assert pair.states()["a"] == "active"


def test_who_loses_the_lock_while_he_waits_for_the_answer_does_nothing_more(pair: Host) -> None:
    def take_away(asked: Asked) -> Answer:
        (pair.stack_dir / "run" / "switch.lock").unlink(missing_ok=True)
        return closed(asked)

    with manager(pair, take_away), pytest.raises(SwitchFailed, match="was removed while this switch held it"):
        pair.switch("b", "stopped")
    assert pair.states()["b"] == "sleeping"
