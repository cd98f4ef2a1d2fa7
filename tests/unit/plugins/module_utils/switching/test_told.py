# SPDX-License-Identifier: MIT
"""What a person is told of a switch that failed, was recovered, or is over."""

from __future__ import annotations

import json
import re

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import server_log, state_files, status
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.tables import status_lines
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import brief

from tests.unit.plugins.module_utils.switching.conftest import Host


@pytest.fixture
def pair(host: Host) -> Host:
    """A host with the models a and b, which share a GPU."""
    host.declare("a")
    host.declare("b")
    return host


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("b: POST http://127.0.0.1:8004/wake_up: answered 500", "POST /wake_up: answered 500"),
        (
            "b's server ended; and a restart failed: b: GET /health",
            "its server ended; and a restart failed: GET /health",
        ),
        ("a: POST http://127.0.0.1:8001/sleep: no answer", "a: POST /sleep: no answer"),
        ("b is not ready\n  after 1 s", "it is not ready after 1 s"),
        ("GPU 0 has 1 GB free and b needs 2 GB", "GPU 0 has 1 GB free and b needs 2 GB"),
        ("sub-b's server; web b: x", "sub-b's server; web x"),
    ],
)
def test_a_cause_names_nothing_twice(text: str, told: str) -> None:
    assert brief(text, "b") == told


def test_a_long_cause_keeps_a_bit_of_each_failure() -> None:
    text = brief("x" * 500 + "; and a restart failed: its server ended", "b", 100)
    assert text == "x" * 57 + "...; and a restart failed: its server ended"
    assert len(brief("y; and " * 100, "b", 100)) <= 100
    assert len(brief("z" * 500, "b", 30)) == 30


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "gpu_memory_utilization or max_model",
        ),
        ("RuntimeError: CUDA error: out of memory", "lower gpu_memory_utilization or max_model_len"),
        (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "raise gpu_mem",
        ),
        (
            "Free memory on device (3/80 GiB) on startup is less than desired GPU memory utilization (0.9)",
            "end other processes",
        ),
        ("huggingface_hub.errors.GatedRepoError: 403 Client Error.", "vllm_hf_token"),
        ("OSError: [Errno 28] No space left on device", "free space"),
        ("OSError: [Errno 98] Address already in use", "host_port"),
        ("ValueError: something else", ""),
    ],
)
def test_what_a_log_says_has_its_remedy(line: str, wanted: str) -> None:
    told = server_log.remedy(["INFO loading", line, "RuntimeError: Engine core initialization failed."])
    assert wanted in told
    assert bool(told) == bool(wanted)


def test_a_log_names_the_cause_and_not_what_follows_from_it() -> None:
    log = [
        "(EngineCore pid=3) ERROR 11-28 16:16:07 [core.py:1036] torch.OutOfMemoryError: CUDA out of memory.",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert server_log.culprit(log) == "OutOfMemoryError: CUDA out of memory."
    assert server_log.culprit(["INFO ready"]) == ""


@pytest.mark.parametrize("fault", [{"path": "load", "fault": "oom"}, {"path": "/wake_up", "fault": "oom", "times": 0}])
def test_cuda_out_of_memory_names_the_settings(host: Host, fault: dict[str, object]) -> None:
    host.settings["escalation"] = ["roll_back"]
    host.declare("a")
    host.declare("b", env={"STANDIN_FAULTS": json.dumps([fault])})
    host.up(a="active")
    if fault["path"] != "load":
        host.switch("b", "sleeping")
    with pytest.raises(SwitchFailed) as caught:
        host.switch("b")
    first, *rest = str(caught.value).splitlines()
    assert len(first) <= 200
    assert "CUDA out of memory" in first
    (todo,) = [line for line in rest if line.startswith("What to do: ")]
    assert "gpu_memory_utilization" in todo
    assert "max_model_len" in todo


def last(host: Host) -> list[list[str]]:
    """The cells of the table of last switches."""
    with host.switcher() as switcher:
        tables = "\n".join(status_lines({"host": switcher.report()})).split("\n\n")
    shown = [table.splitlines()[1:] for table in tables if table.startswith("host  last_switch")]
    return [re.split(r" {2,}", line) for lines in shown for line in lines]


def test_the_last_switch_is_remembered(pair: Host) -> None:
    pair.up(a="active", b=1)
    assert last(pair) == []
    pair.fault("b", "/wake_up", "status_500")
    result = pair.switch("b")
    assert (result.rung, result.recovery) == ("retry", "b woke at the second attempt")
    ((name, ended, to, seconds, *more),) = last(pair)
    assert (name, to, more) == ("host", "b", ["done", "retry", "b woke at the second attempt"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", ended)
    assert float(seconds) < 60
    # One that has nothing to do is none.
    assert pair.switch("b").rung == ""
    assert last(pair)[0][1] == ended

    pair.fault("b", "/sleep", "status_500", times=0)
    result = pair.switch("a")
    assert (result.rung, result.recovery) == ("stop", "b had to be stopped")
    assert last(pair)[0][4:] == ["done", "stop", "b had to be stopped"]

    pair.fault("a", "/wake_up", "status_500", times=0)
    pair.switch("a", "sleeping")
    result = pair.switch("a")
    assert (result.rung, result.recovery) == ("restart", "a was restarted")


def test_those_before_the_last_switch_are_remembered_too(pair: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_FORMER_SWITCHES", 2)
    pair.up(a="active", b=1)
    stack_dir = str(pair.stack_dir)
    assert status.read_former_switches(stack_dir) == []
    before = []
    for name in ("b", "a", "b", "a"):
        pair.switch(name)
        before.append(status.read_last_switch(stack_dir))
    assert status.read_former_switches(stack_dir) == before[1:3]
    state_files.write(stack_dir, state_files.LAST_SWITCH, {"former": [{"models": 1}, 2]})
    assert status.read_former_switches(stack_dir) == []
    state_files.write(stack_dir, state_files.LAST_SWITCH, {"former": 1})
    assert status.read_former_switches(stack_dir) == []


def test_a_failure_is_remembered_and_a_record_that_is_none_is_left_out(pair: Host) -> None:
    pair.up(a="active", b=1)
    pair.fault("b", "/v1/models", "html", times=0)
    with pytest.raises(Exception, match="b"):
        pair.switch("b")
    row = last(pair)[0]
    assert row[4] == "failed"
    path = state_files.path(str(pair.stack_dir), "last_switch")
    for text in ("{", "[]", '{"models": 1}'):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        assert last(pair) == []


def test_a_record_that_can_not_be_written_costs_no_switch(pair: Host) -> None:
    pair.up(a="active", b=1)
    (pair.stack_dir / "run" / "last_switch.json").mkdir()
    assert pair.switch("b").active_model == "b"
    assert last(pair) == []


def test_a_leak_stands_below_the_table(pair: Host) -> None:
    with pair.switcher() as switcher:
        report = switcher.report()
    assert len(status_lines({"host": report})) == 3
    told = {"sleeps": 5, "held_gb": 3.5, "gb_per_sleep": 0.5, "switches_left": 1}
    report["models"]["a"]["leak"] = told
    report["models"]["b"]["leak"] = {**told, "switches_left": None}
    assert status_lines({"host": report})[3:] == [
        "",
        "host: a holds 0.50 GB more of its GPUs after each sleep: fit for about 1 more switch, then stop it and "
        "make it active again (leak_limit_gb does that)",
    ]
    report["models"]["a"]["leak"] = {**told, "switches_left": 7}
    assert "fit for about 7 more switches, then" in status_lines({"host": report})[4]


def test_what_a_model_is_for_stands_in_the_table(pair: Host) -> None:
    pair.models[1]["description"] = "  Tools and\nlong contexts "
    with pair.switcher() as switcher:
        report = switcher.report()
    assert "description" not in report["models"]["a"]
    header, first, second = (re.split(r" {2,}", line) for line in status_lines({"host": report}))
    assert header[-2:] == ["gpu_gb", "description"]
    assert (first[-1], second[-1]) == ("-", "Tools and long contexts")
