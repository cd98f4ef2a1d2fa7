# SPDX-License-Identifier: MIT
"""What sleeps free is looked at, with stand-ins that free nothing or hold more each time, and nvidia-smi's stand-in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import (
    costs,
    hardware,
    memory,
    odometer,
    state_files,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.drain import Drain
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import LifecycleError, SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.freed import _Look
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import Command
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result

from tests.standin.gpu import GpuHost

from .conftest import Host

# For a model of 20 GB and those that sleep beside it; for others' memory too.
TIGHT_GB, ROOMY_GB = 24, 60


@pytest.fixture
def tells(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host whose nvidia-smi answers, of two GPUs of 24 GB."""
    monkeypatch.setenv("STANDIN_GPU_DIR", str(host.gpu_dir))
    monkeypatch.setenv("STANDIN_GPU_TOTAL_GB", str(TIGHT_GB))
    host.settings["probe_timeout_seconds"] = 3
    return host


@pytest.fixture
def roomy(tells: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The same with GPUs of 60 GB. The servers read it from their own environment, which has the same."""
    monkeypatch.setenv("STANDIN_GPU_TOTAL_GB", str(ROOMY_GB))
    return tells


def declare(host: Host, name: str, *, leak_gb: float = 0, **fields: Any) -> None:
    standin = {"gpu_total_gb": os.environ["STANDIN_GPU_TOTAL_GB"], "asleep_gb": 1, "leak_gb": leak_gb}
    gpus = fields.get("gpus", [0])
    host.declare(
        name,
        standin=standin,
        args={"gpu_memory_utilization": 0.3},
        sleep_level="1",
        **{**fields, "env": {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}},
    )


@pytest.fixture
def pair(tells: Host) -> Host:
    """The models a (active) and b, of 20 GB each, of which it is known what their sleeps free."""
    return both_known(tells)


@pytest.fixture
def roomy_pair(roomy: Host) -> Host:
    """The same on a GPU of 60 GB."""
    return both_known(roomy)


def both_known(host: Host) -> Host:
    for name in "ab":
        declare(host, name)
    for name in "aba":
        host.switch(name)
    return host


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What nvidia-smi is asked."""
    queries: list[str] = []
    ask = hardware._ask

    def note(query: str) -> list[list[str]]:
        queries.append(query.partition("=")[0])
        return ask(query)

    monkeypatch.setattr(hardware, "_ask", note)
    yield queries


def steps(result: Result) -> list[tuple[str, str, bool]]:
    return [(step["action"], step["model"], "failed" in step) for step in result.steps if step["action"] != "verify"]


def series(host: Host, name: str) -> odometer.Series:
    return odometer.read(str(host.stack_dir))[name]


# ---- what is concluded of figures ----


KNOWN = odometer.Series("1", freed={"1": {0: 20.0}}, first={0: 1.0}, held=({0: 1.0},), woken={0: 23.0})


def look(
    monkeypatch: pytest.MonkeyPatch,
    stack_dir: Path,
    free: float,
    *,
    series: odometer.Series = KNOWN,
    before: float | None = None,
    level: int = 1,
    holds: float | None = None,
    alone: bool = True,
    weights_gb: float = 10,
    **gpu: Any,
) -> Any:
    """The look at one model of GPU 0, which has 24 GB."""
    model = SimpleNamespace(id="a", gpus=(0,), weights_gb=weights_gb)
    lifecycle = SimpleNamespace(start_id=lambda: "1", pids=lambda: [7])
    host = SimpleNamespace(stack_dir=str(stack_dir), lifecycles={"a": lifecycle}, proved_start=lambda _name: "")
    odometer.record(str(stack_dir), {"a": series})
    monkeypatch.setattr(hardware, "read_held", lambda _gpus, _pids: {} if holds is None else {0: holds})
    one: Any = _Look(host, model, level, None if before is None else {0: before}, alone)  # type: ignore[arg-type]
    one.read({0: hardware.Gpu(0, 24.0, free, "GPU-0", **gpu)})
    return one


@pytest.mark.parametrize(
    ("free", "more", "failed"),
    [
        # As known from before, by what was free when it was woken.
        (23, {"holds": 1}, False),
        (13.1, {"holds": 10.9}, False),
        (12.9, {"holds": 11.1}, True),
        (3, {"holds": 21}, True),
        # Others have it: by a part, or by all.
        (3, {"holds": 1}, False),
        (3, {"holds": 10.9}, False),
        (3, {"holds": 11.1}, True),
        # Nobody tells who has it.
        (3, {}, False),
        (3, {"before": 3.0}, True),
        (3, {"before": 3.0, "alone": False}, False),
        (3, {"before": 3.0, "alone": False, "holds": 21}, True),
        # What was free at its wake is unknown: then by what the GPU has.
        (15, {"series": KNOWN._replace(woken={}), "holds": 21}, False),
        (3, {"series": KNOWN._replace(woken={}), "holds": 21}, True),
        # At another level: only the weights can tell.
        (8, {"level": 2, "before": 3.0, "holds": 16}, False),
        (3.9, {"level": 2, "before": 3.0, "holds": 20.1}, True),
        (3, {"level": 2, "holds": 21}, False),
        # Nothing is known from before.
        (3.9, {"series": odometer.Series(), "before": 3.0}, True),
        (4.1, {"series": odometer.Series(), "before": 3.0}, False),
        (3.9, {"series": odometer.Series(), "before": 3.0, "weights_gb": 0}, False),
        (3.9, {"series": odometer.Series(), "before": 3.0, "holds": 1}, False),
        (3, {"series": odometer.Series(), "holds": 21}, False),
        # Of little nothing is concluded.
        (3, {"series": KNOWN._replace(freed={"1": {0: 0.9}}), "before": 3.0}, False),
        # Of another start.
        (3, {"series": KNOWN._replace(start="2"), "holds": 21}, False),
        # Of a GPU that has no memory of its own, or is divided.
        (3, {"before": 3.0, "unified": True}, False),
        (3, {"before": 3.0, "divided": True}, False),
    ],
)
def test_what_is_too_little(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, more: dict[str, Any], failed: bool
) -> None:
    assert look(monkeypatch, tmp_path, free, **more).failing() == ([0] if failed else [])


@pytest.mark.parametrize(("free", "freed"), [(23.0, {"1": {0: 20.0}}), (3.0, {})])
def test_what_others_have_disturbed_is_no_measure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, freed: dict[str, Any]
) -> None:
    one = look(monkeypatch, tmp_path, free, series=odometer.Series(), before=3.0, holds=1)
    assert one.settle() == ""
    assert odometer.read(str(tmp_path))["a"].freed == freed
    assert memory.remembered(str(tmp_path)) == ({"a": freed["1"]} if freed else {})
    assert odometer.read(str(tmp_path))["a"].last == {0: 1.0}


# ---- a sleep that frees nothing ----


def test_a_server_whose_sleep_frees_nothing_is_stopped_and_the_target_woken(pair: Host) -> None:
    pair.fault("a", "/sleep", "frees_nothing", match="level=1")
    result = pair.switch("b")
    assert pair.states() == {"a": "stopped", "b": "active"}
    assert steps(result) == [("drain", "a", False), ("sleep", "a", True), ("stop", "a", False), ("wake", "b", False)]
    told = result.steps[1]["failed"]
    assert told == (
        "a sleeps at level 1, but that has freed 0.0 GB of GPU 0: such a sleep of it has freed 19.0 GB before, and its "
        "processes still hold 20.0 GB: if this happens again, set its sleep_level to stop"
    )
    assert result.rung == "stop"
    assert result.recovery == "a had to be stopped"
    assert result.requests == {"drained": 0, "parked": 0, "cut": 0}
    # It starts afresh, and all is well with it.
    assert steps(pair.switch("a")) == [("drain", "b", False), ("sleep", "b", False), ("start", "a", False)]
    assert steps(pair.switch("b")) == [("drain", "a", False), ("sleep", "a", False), ("wake", "b", False)]


def test_a_first_sleep_that_frees_nothing_is_known_by_the_weights(tells: Host) -> None:
    for name in "ab":
        declare(tells, name)
    tells.switch("a")
    tells.fault("a", "/sleep", "frees_nothing", match="level=1")
    result = tells.switch("b")
    assert steps(result)[1:3] == [("sleep", "a", True), ("stop", "a", False)]
    assert "freed 0.0 GB of GPU 0: its weights take 10.0 GB there" in result.steps[1]["failed"]
    assert tells.states() == {"a": "stopped", "b": "active"}


def test_without_the_rung_stop_the_former_model_is_awake_again(pair: Host) -> None:
    pair.settings["escalation"] = ["retry", "restart", "roll_back"]
    pair.fault("a", "/sleep", "frees_nothing", match="level=1")
    with pytest.raises(SwitchFailed, match=r"a sleeps at level 1, but that has freed 0\.0 GB of GPU 0"):
        pair.switch("b")
    assert pair.states() == {"a": "active", "b": "sleeping"}


def test_the_log_to_read_is_that_of_the_failure_that_was_not_recovered_from(pair: Host) -> None:
    pair.settings["escalation"] = ["stop", "roll_back"]
    pair.fault("a", "/sleep", "frees_nothing", match="level=1")
    pair.fault("b", "/wake_up", "status_500", times=0)
    with pytest.raises(SwitchFailed, match=r"b could not be made active: .*answered 500") as caught:
        pair.switch("b")
    assert "b.log)" in str(caught.value)
    assert "a.log)" not in str(caught.value)
    assert pair.states()["a"] == "active"


def test_who_interrupts_the_look_finds_the_former_model_awake(pair: Host) -> None:
    pair.fault("a", "/sleep", "frees_nothing", match="level=1")
    with pair.switcher() as switcher:
        wait = switcher.host.wait

        def interrupted(done: Any, *more: Any) -> bool:
            if done.__name__ == "freed":
                raise KeyboardInterrupt
            return wait(done, *more)

        switcher.host.wait = interrupted  # type: ignore[method-assign,assignment]
        with pytest.raises(KeyboardInterrupt):
            switcher.switch("b")
    assert pair.states() == {"a": "active", "b": "sleeping"}


def test_a_level_that_frees_nothing_is_tried_once(tells: Host) -> None:
    tells.settings["measure_levels"] = True
    for name in "ab":
        declare(tells, name)
        tells.models[-1]["sleep_level"] = "auto"
    for name in "aba":
        tells.switch(name)
    tells.fault("a", "/sleep", "frees_nothing", match="level=2", times=0)
    result = tells.switch("b")
    assert steps(result)[1:3] == [("sleep", "a", True), ("stop", "a", False)]
    assert (result.steps[1]["level"], result.rung) == (2, "stop")
    content = state_files.models(str(tells.stack_dir), state_files.COSTS)
    one, two = (costs.known(content, tells.model("a"))[level] for level in (1, 2))
    assert (len(one.sleep), len(one.wake), one.failed) == (1, 1, 0)
    assert (two.sleep, two.wake, two.failed) == ((), (), 1)
    tells.switch("a")
    assert [(step["level"], step.get("note")) for step in tells.switch("b").steps if step["action"] == "sleep"] == [
        (1, None)
    ]


def test_where_another_sleep_of_the_stage_fails_who_has_freed_nothing_is_awake_again(tells: Host) -> None:
    declare(tells, "a", gpus=[0])
    declare(tells, "c", gpus=[1])
    declare(tells, "b", gpus=[0, 1])
    for name in "bacbac":
        tells.switch(name)
    tells.settings["escalation"] = ["roll_back"]
    tells.fault("c", "/sleep", "frees_nothing", match="level=1")
    tells.fault("a", "/sleep", "status_500", match="level=1")
    with pytest.raises(SwitchFailed, match="c is active again"):
        tells.switch("b")
    assert tells.states() == {"a": "active", "b": "sleeping", "c": "active"}


def test_who_was_put_to_sleep_unseen_and_freed_nothing_can_be_woken_again(pair: Host) -> None:
    """As a switch does that is killed before it has looked."""
    pair.fault("a", "/sleep", "frees_nothing", match="level=1")
    pair.call("a", "POST", "/sleep?level=1").raise_for_status()
    with pytest.raises(SwitchFailed, match=r"GPU 0 has 3\.0 GB free and b needs 19\.0 GB"):
        pair.switch("b")
    assert pair.states() == {"a": "sleeping", "b": "sleeping"}
    assert pair.switch("a").active_model == "a"
    # Where others have it, it is missing.
    pair.switch("b")
    thief = GpuHost(pair.gpu_dir, ("0",), TIGHT_GB, "python3")
    pair.switch("b", "sleeping")
    thief.hold(10)
    with pytest.raises(SwitchFailed, match=r"and a needs 19\.0 GB"):
        pair.switch("a")
    thief.life.close()


@pytest.mark.parametrize(("level", "done"), [("1", ["drain"]), ("2", ["look", "drain"]), ("stop", ["drain"])])
def test_nothing_is_looked_at_between_a_drain_and_its_sleep(
    pair: Host, monkeypatch: pytest.MonkeyPatch, level: str, done: list[str]
) -> None:
    noted: list[str] = []
    look_before, drain = memory.free_before_sleep, Drain.run

    def note_look(*arguments: Any) -> Any:
        noted.append("look")
        return look_before(*arguments)

    def note_drain(self: Drain) -> Any:
        noted.append("drain")
        return drain(self)

    monkeypatch.setattr(memory, "free_before_sleep", note_look)
    monkeypatch.setattr(Drain, "run", note_drain)
    pair.models[0]["sleep_level"] = level
    pair.switch("b")
    assert noted == done


def test_nvidia_smi_that_does_not_answer_is_waited_for_once(
    pair: Host, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STANDIN_GPU_DIR")
    asked.clear()
    assert steps(pair.switch("b"))[-1] == ("wake", "b", False)
    assert asked == ["--query-gpu"]


def test_a_model_that_was_to_sleep_and_frees_nothing_is_stopped_and_told(pair: Host) -> None:
    pair.fault("a", "/sleep", "frees_nothing", match="level=1")
    with pytest.raises(SwitchFailed, match=r"has freed 0\.0 GB .*, so it was stopped"):
        pair.switch("a", "sleeping")
    assert pair.states() == {"a": "stopped", "b": "sleeping"}


def test_memory_that_is_given_back_slowly_is_waited_for(pair: Host) -> None:
    pair.settings["probe_timeout_seconds"] = 10
    pair.fault("a", "/sleep", "frees_nothing", match="level=1", seconds=1)
    result = pair.switch("b")
    assert steps(result) == [("drain", "a", False), ("sleep", "a", False), ("wake", "b", False)]


def test_memory_that_others_have_taken_is_not_held_against_a_sleep(roomy_pair: Host) -> None:
    pair = roomy_pair
    thief = GpuHost(pair.gpu_dir, ("0",), ROOMY_GB, "python3")
    thief.hold(18)
    result = pair.switch("b")
    assert steps(result) == [("drain", "a", False), ("sleep", "a", False), ("wake", "b", False)]
    assert series(pair, "a").last == {0: pytest.approx(1, abs=0.01)}
    thief.life.close()


def test_where_nobody_tells_what_processes_hold_an_old_figure_proves_nothing(
    roomy_pair: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Command, "pids", lambda _self: [])
    roomy_pair.fault("a", "/sleep", "frees_nothing", match="level=1")
    assert steps(roomy_pair.switch("b"))[1] == ("sleep", "a", False)
    assert series(roomy_pair, "a").fixed is None


def test_where_nobody_tells_what_processes_hold_the_former_model_is_awake_again(
    pair: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Command, "pids", lambda _self: [])
    pair.fault("a", "/sleep", "frees_nothing", match="level=1")
    with pytest.raises(SwitchFailed, match=r"GPU 0 has 3\.0 GB free and b needs 19\.0 GB"):
        pair.switch("b")
    assert pair.states() == {"a": "active", "b": "sleeping"}


def test_where_nobody_tells_what_processes_hold_a_look_before_and_after_proves_it(
    tells: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Command, "pids", lambda _self: [])
    for name in "ab":
        declare(tells, name)
    tells.switch("a")
    tells.fault("a", "/sleep", "frees_nothing", match="level=1")
    assert steps(tells.switch("b"))[1:3] == [("sleep", "a", True), ("stop", "a", False)]


@pytest.mark.parametrize("variable", ["STANDIN_GPU_DIR", "STANDIN_GPU_MIG"])
def test_what_can_not_be_read_is_not_nothing(roomy_pair: Host, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    pair = roomy_pair
    if variable == "STANDIN_GPU_DIR":
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, "0")
    pair.fault("a", "/sleep", "frees_nothing", match="level=1")
    assert steps(pair.switch("b")) == [("drain", "a", False), ("sleep", "a", False), ("wake", "b", False)]


def test_another_level_is_not_compared(pair: Host) -> None:
    pair.models[0]["sleep_level"] = "2"
    pair.switch("b")
    assert sorted(series(pair, "a").freed) == ["1", "2"]


def test_two_that_make_room_are_looked_at_once(tells: Host, asked: list[str]) -> None:
    declare(tells, "a", gpus=[0])
    declare(tells, "c", gpus=[1])
    declare(tells, "b", gpus=[0, 1], weights_gb=20)
    for name in "bacbac":
        tells.switch(name)
    asked.clear()
    assert tells.switch("b").changed
    assert asked == ["--query-gpu"]
    for name in "ac":
        tells.switch(name)
    tells.fault("c", "/sleep", "frees_nothing", match="level=1")
    result = tells.switch("b")
    assert {step[:2] for step in steps(result) if step[2]} == {("sleep", "c")}
    assert tells.states() == {"a": "sleeping", "b": "active", "c": "stopped"}


def test_an_ordinary_switch_asks_nvidia_smi_once(pair: Host, asked: list[str]) -> None:
    pair.switch("b")
    pair.switch("a")
    asked.clear()
    pair.switch("b")
    assert asked == ["--query-gpu"]


# ---- a leak ----


@pytest.fixture
def leaking(roomy: Host) -> Host:
    """A model a that holds half a GB more after each sleep, and b that does not."""
    return leaks(roomy)


def leaks(host: Host) -> Host:
    declare(host, "a", leak_gb=0.5)
    declare(host, "b")
    return host


def cycle(host: Host, times: int) -> list[Result]:
    """Switch there and back so many times; the results of the way there."""
    results = []
    for _time in range(times):
        host.switch("a")
        results.append(host.switch("b"))
    return results


def test_a_leak_is_told_by_its_trend(leaking: Host) -> None:
    cycle(leaking, 3)
    assert leak(leaking, "a") is None
    cycle(leaking, 2)
    told = leak(leaking, "a")
    assert told is not None
    assert told["sleeps"] == 5
    assert told["held_gb"] == pytest.approx(3.5, abs=0.02)
    assert told["gb_per_sleep"] == pytest.approx(0.5, abs=0.01)
    # 60 GB less the 4.5 that the two hold asleep and the 19 that b takes when it wakes.
    assert told["switches_left"] == 73
    assert leak(leaking, "b") == {"sleeps": 4, "held_gb": 1.0, "gb_per_sleep": 0.0, "switches_left": None}


def test_so_many_switches_go_well_as_are_told(tells: Host) -> None:
    cycle(leaks(tells), 4)
    told = leak(tells, "a")
    assert told is not None
    assert told["switches_left"] == 2
    cycle(tells, 2)
    tells.switch("a")
    with pytest.raises(SwitchFailed, match="and b needs"):
        tells.switch("b")
    assert tells.states() == {"a": "active", "b": "sleeping"}


def test_with_a_limit_it_goes_on(tells: Host) -> None:
    tells.settings["leak_limit_gb"] = 1
    results = cycle(leaks(tells), 8)
    assert [i for i, one in enumerate(results) if ("stop", "a", False) in steps(one)] == [3, 7]
    assert not [one.rung for one in results if one.rung]


def leak(host: Host, name: str) -> dict[str, Any] | None:
    with host.switcher() as switcher:
        told: dict[str, Any] | None = switcher.report()["models"][name]["leak"]
    return told


def test_at_the_limit_a_server_is_stopped_and_starts_a_new_series(leaking: Host) -> None:
    leaking.settings["leak_limit_gb"] = 0.8
    results = cycle(leaking, 3)
    assert [[step["action"] for step in one.steps if step["model"] == "a"] for one in results] == [
        ["drain", "sleep"],
        ["drain", "sleep"],
        ["drain", "sleep", "stop"],
    ]
    why = "holds 2.5 GB while asleep, 1.0 GB more than after its first sleep (leak_limit_gb 0.8)"
    assert results[2].steps[2]["note"] == f"it {why}"
    assert results[2].warnings == [f"a {why}, so it was stopped: it starts afresh when it is asked for"]
    assert results[2].rung == ""
    assert leaking.states() == {"a": "stopped", "b": "active"}
    assert steps(cycle(leaking, 1)[0]) == [("drain", "a", False), ("sleep", "a", False), ("wake", "b", False)]
    assert series(leaking, "a").sleeps == 1
    assert series(leaking, "a").first == {0: pytest.approx(1.5, abs=0.01)}


def test_a_start_that_nobody_can_tell_begins_a_new_series_too(leaking: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Command, "start_id", lambda _self: "")
    cycle(leaking, 2)
    leaking.switch("a", "stopped")
    cycle(leaking, 1)
    assert series(leaking, "a").sleeps == 1


def test_a_model_that_was_to_sleep_may_come_to_its_limit(leaking: Host) -> None:
    cycle(leaking, 1)
    leaking.settings["leak_limit_gb"] = 0.4
    leaking.switch("a")
    result = leaking.switch("a", "sleeping")
    assert steps(result) == [("drain", "a", False), ("sleep", "a", False), ("stop", "a", False)]
    assert leaking.states() == {"a": "stopped", "b": "sleeping"}
    assert len(result.warnings) == 1


def test_a_model_that_was_to_sleep_and_can_not_be_stopped_at_its_limit_sleeps(
    leaking: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle(leaking, 1)
    leaking.settings["leak_limit_gb"] = 0.4
    leaking.switch("a")

    def fail(_self: Command) -> None:
        raise LifecycleError("no docker")

    monkeypatch.setattr(Command, "stop", fail)
    result = leaking.switch("a", "sleeping")
    assert steps(result)[-1] == ("stop", "a", True)
    assert [warning for warning in result.warnings if warning.endswith("could not be stopped: no docker")]
    assert leaking.states() == {"a": "sleeping", "b": "sleeping"}


def test_check_mode_predicts_no_limit(leaking: Host) -> None:
    cycle(leaking, 1)
    leaking.settings["leak_limit_gb"] = 0.4
    leaking.switch("a")
    assert steps(leaking.switch("b", check=True)) == [
        ("drain", "a", False),
        ("sleep", "a", False),
        ("wake", "b", False),
    ]


def test_a_server_that_keeps_requests_is_not_stopped_at_the_limit(leaking: Host) -> None:
    cycle(leaking, 2)
    leaking.settings["leak_limit_gb"] = 0.1
    leaking.switch("a")
    with leaking.switcher() as switcher:
        executor_of = switcher.host.servers["a"]
        count = executor_of.count_requests
        executor_of.count_requests = lambda: count() and (0, 1)  # type: ignore[method-assign]
        switcher.host.servers["a"] = executor_of
        result = switcher.switch("b")
    assert [warning for warning in result.warnings if "was not stopped, because it may keep requests" in warning]
    assert leaking.states()["a"] == "sleeping"


def test_what_others_hold_is_no_leak(roomy_pair: Host) -> None:
    pair = roomy_pair
    pair.settings["leak_limit_gb"] = 1
    thief = GpuHost(pair.gpu_dir, ("0",), ROOMY_GB, "python3")
    for size in (2, 4, 6):
        thief.hold(size)
        assert steps(pair.switch("b"))[-1] == ("wake", "b", False)
        pair.switch("a")
    thief.life.close()
    assert [round(point[0]) for point in series(pair, "a").held] == [1, 1, 1, 1]


def test_a_start_by_somebody_else_begins_a_new_series(leaking: Host) -> None:
    cycle(leaking, 3)
    command = Command(leaking.model("a"), str(leaking.stack_dir), leaking.inventory.switching)
    command.stop()
    leaking.switch("b", "sleeping")
    leaking.up(a="active")
    leaking.switch("b")
    assert series(leaking, "a").sleeps == 1
    assert series(leaking, "a").start == command.start_id() != ""


def test_records_that_make_no_sense_are_none(pair: Host) -> None:
    path = pair.stack_dir / "run" / "odometer.json"
    saved = json.loads(path.read_text(encoding="utf-8"))["models"]
    broken = {"a": {**saved["a"], "held": [{"0": "much"}]}, "b": saved["b"], "c": 3}
    path.write_text(json.dumps({"models": broken}), encoding="utf-8")
    assert set(odometer.read(str(pair.stack_dir))) == {"b"}
    assert pair.switch("b").active_model == "b"
