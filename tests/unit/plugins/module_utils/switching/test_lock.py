# SPDX-License-Identifier: MIT
"""What outlives a switch: the lock's journal, by which the next one recovers a host, waits, and lets a model stay."""

from __future__ import annotations

import builtins
import concurrent.futures
import errno
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import (
    LifecycleError,
    SwitchFailed,
    SwitchingError,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.executor import Executor
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import Command
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import Begun, HostLock
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import WAKE
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.recovery import Recovery
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.server import Server

from .conftest import Host


@pytest.fixture
def pair(host: Host) -> Host:
    """The models a and b, which share a GPU and sleep at level 2."""
    for name in "ab":
        host.declare(name, sleep_level=2)
    return host


def cut_off(host: Host, name: str, before: str) -> None:
    """A switch to a model that is killed at a call to its server; this thread takes the place of a process."""

    class Killed(BaseException):
        pass

    def roll_back(*_arguments: Any) -> None:
        raise Killed

    with host.switcher() as switcher, pytest.MonkeyPatch.context() as patch:
        server, send = switcher.host.servers[name], switcher.host.servers[name]._send

        def last(request: Any, level: int) -> str:
            if before in request.endpoint:
                raise Killed
            return send(request, level)

        server._send = last  # type: ignore[method-assign]
        patch.setattr(Recovery, "roll_back", roll_back)
        with pytest.raises(Killed):
            switcher.switch(name)


def taken(result: Result) -> list[str]:
    return [f"{step['action']} {step['model']}" for step in result.steps]


@pytest.mark.parametrize("wanted", ["active", "sleeping"])
def test_the_target_of_a_wake_that_was_cut_off_is_woken_from_wherever_it_is(pair: Host, wanted: str) -> None:
    pair.up(a="active", b=2)
    cut_off(pair, "b", "kv_cache")
    with pair.switcher() as switcher:
        assert switcher.report()["models"]["b"]["problem"] == "its last wake was not confirmed"
    result = pair.switch("b", wanted)
    assert pair.states() == {"a": "sleeping", "b": wanted}
    assert taken(result)[:2] == ["wake b", "verify b"]
    assert pair.call("b", "GET", "/standin/state").json()["weights_right"] is (wanted == "active")


def test_the_half_awake_make_room_for_another(pair: Host) -> None:
    pair.up(a="active", b=2)
    cut_off(pair, "b", "kv_cache")
    assert taken(pair.switch("a")) == ["stop b", "wake a", "verify a"]
    assert pair.states() == {"a": "active", "b": "stopped"}


def test_a_wake_that_was_cut_off_before_it_was_proved_is_proved(pair: Host) -> None:
    pair.settings["canary"] = "auto"
    pair.switch("b")
    pair.switch("a")
    # All awake, and the weights not loaded: the last call that makes it right never came.
    pair.models[1].update(
        sleep_requests=[{"endpoint": "/sleep?level=${level}"}],
        wake_requests=[{"endpoint": "/wake_up"}, {"endpoint": "/collective_rpc", "body": {"method": "reload_weights"}}],
    )
    cut_off(pair, "b", "collective_rpc")
    assert pair.states() == {"a": "sleeping", "b": "active"}
    result = pair.switch("b")
    assert taken(result) == ["verify b", "stop b", "start b", "verify b"]
    assert result.steps[0]["failed"].endswith("(canary)")
    assert pair.switch("b").steps == []


def test_a_damaged_note_is_none(pair: Host) -> None:
    pair.up(a="active", b=2)
    cut_off(pair, "b", "kv_cache")
    lock = pair.stack_dir / "run" / "switch.lock"
    ends = ', "active_since": {}, "failed_at": 0, "holder": ""}'
    for text in (
        "",
        "[]",
        "{",
        '{"doubtful": 5}',
        "process 42: b active",
        '{"begun": 5' + ends,
        '{"begun": {"b": 5}' + ends,
    ):
        lock.write_text(text, encoding="utf-8")
        lock_read = HostLock(str(pair.stack_dir))
        lock_read.peek()
        assert (lock_read.begun, lock_read.active_since, lock_read.failed_at) == ({}, {}, 0.0)
    pair.switch("b", "stopped")


def test_notes_that_can_not_be_read_are_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_given: object, **_more: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    lock = HostLock(str(tmp_path))
    lock.peek()
    assert not lock.unreadable, "there are none"
    Path(lock.path).parent.mkdir()
    Path(lock.path).touch()
    for owner, name in ((builtins, "open"), (os, "pread")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails)
            lock.peek()
        assert lock.unreadable
    lock.peek()
    assert not lock.unreadable


def test_notes_are_not_read_while_a_switch_goes_on(tmp_path: Path) -> None:
    lock = HostLock(str(tmp_path))
    with lock.hold("b active", 1, lambda _done, _seconds: False):
        lock.begin("b", WAKE)
        other = HostLock(str(tmp_path))
        other.peek()
        assert other.doubtful == set()
    other.peek()
    assert other.doubtful == {"b"}
    # A note that is shorter than the one before covers it.
    with lock.hold("b active", 1, lambda _done, _seconds: False):
        for name in [f"{number:0200d}" for number in range(10)]:
            lock.begin(name, WAKE)
        for name in lock.doubtful:
            lock.settle(name)
    other.peek()
    assert other.doubtful == set()


def test_who_holds_the_lock_is_told_to_whoever_asks_and_takes_nothing_from_them(tmp_path: Path) -> None:
    asking = HostLock(str(tmp_path))
    assert asking.held_by() is None  # nobody has ever switched
    holding = HostLock(str(tmp_path), place=str(tmp_path / "machine"), gpus=dict)
    with holding.hold("b active", 1, lambda done, _seconds: done(), models=["b"]):
        holding.begin("b", "wake")
        holder = asking.held_by()
        assert holder is not None
        assert holder.text.startswith("process ")
        assert ": b active, since " in holder.text
        assert holder.models == ("b",)
        assert asking.begun == {}  # what is begun is not over
        holding.check()
    assert asking.held_by() is None


def test_a_lock_of_which_nothing_can_be_told_is_not_taken_for_free(tmp_path: Path) -> None:
    lock = HostLock(str(tmp_path))
    assert (lock.asked(), lock.held_by()) == (None, None)
    Path(lock.path).mkdir(parents=True)  # it can't be opened
    for ask in (lock.asked, lock.held_by):
        with pytest.raises(IsADirectoryError):
            ask()


def notes(host: Host) -> dict[str, str]:
    """What was begun on each model and not proved, as the next switch reads it."""
    lock = HostLock(str(host.stack_dir))
    lock.peek()
    return {name: begun.action for name, begun in lock.begun.items()}


@pytest.mark.parametrize(
    ("call", "noted"),
    [
        ("/sleep?level=0", {"a": "drain"}),
        ("/sleep?level=2", {"a": "sleep"}),
        ("/wake_up?tags=weights", {"b": "wake"}),
        ("/reset_prefix_cache", {"b": "wake"}),
        ("/v1/completions", {"b": "wake"}),
    ],
)
def test_what_a_killed_switch_had_begun_is_known(
    host: Host, call: str, noted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.declare("a", sleep_level=2, standin={"tokens_per_second": 40})
    host.declare("b", sleep_level=2)
    host.up(a="active", b=2)
    before = time.time()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(host.completion, "a", 40)  # what runs, so that there is something to drain
        host.wait_until(lambda: host.running("a") == 1, "the completion runs")
        killed_at(host, "b", call, monkeypatch)
        answer.result(timeout=300)
    assert notes(host) == noted
    lock = HostLock(str(host.stack_dir))
    lock.peek()
    assert all(before <= begun.at + 0.001 <= time.time() + 0.002 for begun in lock.begun.values())


def killed_at(host: Host, name: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch to a model that is killed when it is about to make a call, whose server never hears of it."""

    class Killed(BaseException):
        pass

    ask = Server._call

    def last(self: Server, method: str, path: str, *more: Any, **options: Any) -> Any:
        if path.startswith(call):
            raise Killed
        return ask(self, method, path, *more, **options)

    def roll_back(*_arguments: Any) -> None:
        raise Killed

    with host.switcher() as switcher, monkeypatch.context() as patch:
        patch.setattr(Server, "_call", last)
        patch.setattr(Recovery, "roll_back", roll_back)
        with pytest.raises(Killed):
            switcher.switch(name)


def busy(host: Host, name: str, seconds: float) -> concurrent.futures.Future[Any]:
    """A completion that runs for so long on a server of 40 tokens per second."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    answer = pool.submit(host.completion, name, int(40 * seconds))
    host.wait_until(lambda: host.running(name) == 1, "the completion runs")
    pool.shutdown(wait=False)
    return answer


def paused_by_a_killed_drain(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch to b that was killed when a had been paused; a runs a request for a second or two."""
    host.declare("a", sleep_level=1, standin={"tokens_per_second": 40})
    host.declare("b", sleep_level=1)
    host.declare("c", sleep_level=1)
    host.up(b=1)
    host.up(c=1)
    host.up(a="active")
    answer = busy(host, "a", 1)
    killed_at(host, "b", "/sleep?level=1", monkeypatch)  # the drain has ended well
    answer.result(timeout=300)
    with host.switcher() as switcher, switcher.lock.hold("killed", 1, lambda _done, _seconds: False):
        switcher.lock.begin("a", "drain")  # as it was a moment before
    assert host.call("a", "GET", "/is_sleeping").json()["is_sleeping"] is True


def test_what_a_killed_drain_has_paused_goes_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    paused_by_a_killed_drain(host, monkeypatch)
    before = host.changing_calls("a")
    result = host.switch("a")
    assert taken(result) == ["wake a", "verify a"]
    assert host.changing_calls("a")[len(before) :] == ["POST /wake_up?tags=scheduling", "POST /v1/completions"]
    assert (result.previous_model, result.active_model, notes(host)) == ("a", "a", {})
    assert host.completion("a")["finish_reason"] == "length"


def test_what_a_killed_drain_has_paused_is_restored(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    paused_by_a_killed_drain(host, monkeypatch)
    host.settings["escalation"] = ["roll_back"]
    host.fault("c", "/wake_up", "status_500", times=0)
    with pytest.raises(SwitchFailed, match="a is active again") as caught:
        host.switch("c")
    assert (caught.value.result.previous_model, caught.value.result.active_model) == ("a", "a")
    assert host.states() == {"a": "active", "b": "sleeping", "c": "stopped"}
    assert notes(host) == {}


def test_what_a_killed_drain_has_paused_makes_room_and_is_what_was_replaced(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused_by_a_killed_drain(host, monkeypatch)
    result = host.switch("c")
    assert taken(result) == ["drain a", "sleep a", "wake c", "verify c"]
    assert (result.previous_model, result.displaced) == ("a", ["a"])
    with host.switcher() as switcher:
        assert switcher.roll_back().active_model == "a"


def test_a_load_that_was_cut_off_is_what_was_to_serve(host: Host) -> None:
    host.declare("a", standin={"load_seconds": 60})
    host.declare("b")
    host.up(b=1)
    host.up(a="loading")
    with host.switcher() as switcher:
        with switcher.lock.hold("killed", 1, lambda _done, _seconds: False):
            switcher.lock.begin("a", "start")
        before = switcher.host.observe(switcher.inventory.enabled)
        assert before["a"].serving
        assert not before["b"].serving
    assert host.switch("b").displaced == ["a"]


@pytest.fixture
def half(host: Host) -> Host:
    """The models a and b, of which b was woken half by somebody who left no note, on a vLLM that calls that awake."""
    for name in "ab":
        host.declare(name, sleep_level=2, standin={"version": "0.29.0"})
    host.up(b=2)
    host.call("b", "POST", "/wake_up?tags=weights")
    return host


@pytest.mark.parametrize("wanted", ["active", "sleeping"])
def test_one_that_somebody_woke_half_is_never_woken_plainly(half: Host, wanted: str) -> None:
    with half.switcher() as switcher:
        seen = switcher.report()["models"]["b"]
    assert (seen["state"], seen["level"]) == ("sleeping", None)
    assert seen["problem"] == "its sleep gauge shows that it is awake, but /is_sleeping that it is not"
    result = half.switch("b", wanted)
    assert taken(result)[:2] == ["wake b", "verify b"]
    assert "POST /wake_up" not in half.changing_calls("b")
    assert half.call("b", "GET", "/standin/state").json()["weights_right"] is (wanted == "active")
    assert half.states()["b"] == wanted


def test_one_that_somebody_woke_half_is_stopped_to_make_room(half: Host) -> None:
    assert taken(half.switch("a")) == ["stop b", "start a", "verify a"]
    assert half.states() == {"a": "active", "b": "stopped"}


def test_one_that_is_paused_by_somebody_else_may_have_requests(half: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all that is known: a sleep that waits for them looks the same."""
    half.settings["drain_timeout_seconds"] = 0.3
    monkeypatch.setattr(Server, "count_requests", lambda _self: (1, 0))
    metrics = Server._metrics
    monkeypatch.setattr(Server, "_metrics", lambda self: metrics(self)._replace(running=1))
    calls = half.changing_calls("b")
    result = half.switch("a")
    assert taken(result) == ["drain b", "stop b", "start a", "verify a"]
    assert result.requests["cut"] == 1
    # It was only looked at: a pause would hide what it is.
    assert half.changing_calls("b") == calls


def test_a_start_is_noted_before_it_is_made(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[dict[str, Any]] = []

    def start(self: Command) -> None:
        lock = json.loads((pair.stack_dir / "run" / "switch.lock").read_text(encoding="utf-8"))
        noted.append({name: action for name, (action, _at) in lock["begun"].items()})
        raise LifecycleError("no")

    monkeypatch.setattr(Command, "start", start)
    with pytest.raises(SwitchFailed):
        pair.switch("b")
    assert noted == [{"b": "start"}]


def test_what_has_come_true_or_was_taken_back_is_not_noted(host: Host) -> None:
    host.settings.update(drain_timeout_seconds=0.3, drain_timeout_action="fail")
    host.declare("a", standin={"tokens_per_second": 20})
    host.declare("b")
    host.up(a="active", b=1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(host.completion, "a", 120)
        host.wait_until(lambda: host.running("a") == 1, "the completion runs")
        with pytest.raises(SwitchFailed, match="still ran after"):
            host.switch("b")
        assert notes(host) == {}
        answer.result(timeout=300)
    for name, wanted in (("b", "active"), ("b", "sleeping"), ("a", "active"), ("a", "stopped"), ("a", "active")):
        host.switch(name, wanted)
        assert notes(host) == {}


def test_of_switches_side_by_side_one_that_ends_well_does_not_hide_that_another_failed(tmp_path: Path) -> None:
    lock = HostLock(str(tmp_path))
    with lock.hold("a and c active", 1, lambda _done, _seconds: False):
        lock.record_end({}, 5.0)
        lock.record_end({"c": 4.0}, 0.0)
    lock.peek()
    assert (lock.active_since, lock.failed_at) == ({"c": 4.0}, 5.0)


def test_notes_of_an_older_engine_are_read(tmp_path: Path) -> None:
    lock = HostLock(str(tmp_path))
    (tmp_path / "run").mkdir()
    Path(lock.path).write_text(
        '{"holder": "process 42: b active", "doubtful": ["b"], "active_since": {"a": 5.0}, "failed_at": 7}\n',
        encoding="utf-8",
    )
    lock.peek()
    assert (lock.begun, lock.doubtful) == ({"b": Begun(WAKE, 0.0)}, {"b"})
    assert (lock.active_since, lock.failed_at) == ({"a": 5.0}, 7.0)
    # And an older engine reads those of this one.
    with lock.hold("a active", 1, lambda _done, _seconds: False):
        lock.begin("a", "sleep")
    assert json.loads(Path(lock.path).read_text(encoding="utf-8"))["doubtful"] == ["b"]


def test_who_waits_is_told_for_whom(tmp_path: Path) -> None:
    holder = HostLock(str(tmp_path))
    told: list[str] = []
    with holder.hold("a active", 1, lambda _done, _seconds: False, models=["a"]):
        waiting = HostLock(str(tmp_path))

        def tell(text: str) -> None:
            told.append(text)
            assert waiting.waits_for is not None
            assert waiting.waits_for.models == ("a",)
            assert waiting.waits_for.text in text

        with (
            pytest.raises(SwitchingError, match=r"timed out after 3 s .*process .*: a active, since 20"),
            waiting.hold("b active", 3, lambda done, _seconds: done(), tell),
        ):
            pass
        assert waiting.waits_for is None
    assert len(told) == 1
    assert told[0].startswith("waiting for another switch of this host (process ")
    with open(holder.path, encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


class Clocks:
    """Time that passes when somebody sleeps, and only then."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))
        self.seconds += seconds


def test_a_model_stays_active_for_as_long_as_it_may(pair: Host) -> None:
    pair.settings["min_active_seconds"] = 60
    pair.up(a="active", b=2)
    clocks = Clocks()
    pair.switch("b", now=clocks.now)  # nobody knows since when a is active
    clocks.seconds += 10
    result = pair.switch("a", now=clocks.now, sleep=clocks.sleep)
    assert clocks.slept[0] == 50
    assert taken(result)[0] == "wait b"
    assert result.steps[0]["note"] == "b stays active for at least 60 s (min_active_seconds)"
    assert taken(pair.switch("b", check=True, now=clocks.now))[:2] == ["wait a", "drain a"]
    clocks.seconds += 100
    assert taken(pair.switch("b", check=True, now=clocks.now))[0] == "drain a"
    assert taken(pair.switch("b", now=clocks.now))[0] == "drain a"
    # The model that is asked for by name does not wait.
    assert taken(pair.switch("b", "stopped", now=clocks.now))[0] == "drain b"


def test_what_has_changed_while_a_model_stayed_active_is_seen(pair: Host) -> None:
    pair.settings["min_active_seconds"] = 60
    pair.up(a="active", b=2)
    clocks = Clocks()
    pair.switch("b", now=clocks.now)

    def sleep(seconds: float) -> None:
        if not clocks.slept:
            pair.call("b", "POST", "/sleep?level=1&mode=wait")  # somebody acts by hand
        clocks.sleep(seconds)

    result = pair.switch("a", now=clocks.now, sleep=sleep)
    assert taken(result) == ["wait b", "wake a", "verify a"]
    assert pair.states() == {"a": "active", "b": "sleeping"}


def test_a_clock_that_was_set_back_is_not_waited_for(pair: Host) -> None:
    pair.settings["min_active_seconds"] = 60
    pair.up(a="active", b=2)
    clocks = Clocks()
    pair.switch("b", now=clocks.now)
    clocks.seconds -= 3600
    assert taken(pair.switch("a", now=clocks.now, sleep=clocks.sleep))[0] == "drain b"


def test_after_a_failure_the_host_rests(pair: Host) -> None:
    pair.settings["failure_backoff_seconds"] = 2
    pair.up(a="active", b=2)
    pair.models[1]["start_command"] = ["no-such-vllm"]
    pair.fault("b", "/wake_up", "kill")
    clocks = Clocks()
    with pytest.raises(SwitchFailed):
        pair.switch("b", now=clocks.now)
    clocks.seconds += 0.5
    pair.switch("a", now=clocks.now, sleep=clocks.sleep)
    assert clocks.slept[0] == 1.5
    clocks.slept.clear()
    pair.switch("a", now=clocks.now, sleep=clocks.sleep)
    assert clocks.slept == []


def two_groups(host: Host) -> None:
    for number, name in enumerate("abcd"):
        settings = {"gpus": str(number // 2), "load_seconds": 3}  # a process may start much later than another
        host.declare(name, gpus=[number // 2], standin=settings)


def test_models_of_other_gpus_are_switched_side_by_side(host: Host) -> None:
    two_groups(host)
    result = host.switcher().switch(["a", "c"])
    assert result.changed
    assert host.states() == {"a": "active", "b": "stopped", "c": "active", "d": "stopped"}
    loads = [event["event"] for event in host.events() if event["event"] in ("loading", "awake")]
    assert loads == ["loading", "loading", "awake", "awake"]
    assert set(result.as_dict()["models"]) == set("abcd")
    lock = json.loads((host.stack_dir / "run" / "switch.lock").read_text(encoding="utf-8"))
    assert set(lock["active_since"]) == {"a", "c"}
    wanted = json.loads((host.stack_dir / "run" / "wanted.json").read_text(encoding="utf-8"))
    assert wanted["models"] == {"a": "active", "b": "sleeping", "c": "active", "d": "sleeping"}


def test_one_of_several_that_fails_keeps_no_other_from_its_state(host: Host) -> None:
    two_groups(host)
    host.models[0]["start_command"] = ["no-such-vllm"]
    with pytest.raises(SwitchFailed) as caught:
        host.switcher().switch(["a", "c"])
    assert str(caught.value).startswith("a: a could not be made active")
    assert host.states()["c"] == "active"
    assert caught.value.result.models["c"].state == "active"
    wanted = json.loads((host.stack_dir / "run" / "wanted.json").read_text(encoding="utf-8"))
    assert (wanted["models"]["a"], wanted["models"]["c"]) == ("sleeping", "active")


def test_models_that_share_a_gpu_are_not_switched_side_by_side(host: Host) -> None:
    two_groups(host)
    with pytest.raises(SwitchingError, match="a, b share GPUs, directly or through another model"):
        host.switcher().switch(["a", "b"])
    assert host.events() == []


def test_a_restore_brings_groups_back_side_by_side(host: Host) -> None:
    two_groups(host)
    host.models[0]["startup_mode"] = host.models[2]["startup_mode"] = "active"
    with host.switcher() as switcher:
        assert [(m.id, wanted) for m, wanted, _outcome in switcher.restore()] == [
            ("b", "sleeping"), ("d", "sleeping"), ("a", "active"), ("c", "active"),
        ]  # fmt: skip
    assert host.states() == {"a": "active", "b": "sleeping", "c": "active", "d": "sleeping"}
    loads = [event["event"] for event in host.events() if event["event"] in ("loading", "sleeping")]
    assert loads == ["loading", "loading", "sleeping", "sleeping", "loading", "loading"]


def test_an_interrupt_waits_for_the_other_lanes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.declare("a", gpus=[0])
    host.declare("b", gpus=[1], standin={"gpus": "1", "sleep_seconds": 0.7})
    host.declare("c", gpus=[0, 1], standin={"gpus": "0,1"})
    host.up(c=1)
    host.up(a="active", b="active")

    def interrupted(self: Executor, step: Any) -> str:
        raise KeyboardInterrupt

    drain = Executor._drain
    monkeypatch.setattr(
        Executor, "_drain", lambda self, step: (interrupted if step.model == "a" else drain)(self, step)
    )
    with pytest.raises(KeyboardInterrupt):
        host.switch("c")
    assert host.states() == {"a": "active", "b": "active", "c": "sleeping"}
