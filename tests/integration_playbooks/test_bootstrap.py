# SPDX-License-Identifier: MIT
"""bootstrap.yml, status.yml and teardown.yml on a host whose servers their start_commands start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests

from tests.integration_playbooks.conftest import Inventory
from tests.playbooklib import Ansible, Host, Run, launched

LOADING = {"STANDIN_LOAD_SECONDS": 0.4}


def posts(host: Host) -> list[str]:
    return [call for model in host.models for call in host.calls(model["id"]) if not call.startswith("GET ")]


def rows(ansible: Ansible) -> list[list[str]]:
    """The status table without its columns of hosts and ports, which are seen to be right, and of GPU memory."""
    run = ansible.play("status")
    assert run.changed() == 0
    host = ansible.hosts[0]
    assert [(row[0], row[1], row[4]) for row in run.table] == [
        (host.name, model["id"], str(model["host_port"])) for model in host.models
    ]
    return [row[1:4] + row[5:7] + row[8:] for row in run.table]


@pytest.mark.versions
def test_from_nothing_and_back(inventory: Inventory, tmp_path: Path) -> None:
    models = [
        launched("first", env=LOADING, startup_mode="active", args={"limit_mm_per_prompt": {"image": 2}}),
        launched("second", env=LOADING, args={"middleware": ["a.b"]}),
        launched("unused", env=LOADING, startup_mode="disabled"),
        launched("third", env=LOADING, sleep_level=2),
    ]
    host = Host(tmp_path, models)
    ansible = inventory(host)

    assert rows(ansible) == [
        ["first", "stopped", "-", "-", "-"],
        ["second", "stopped", "-", "-", "-"],
        ["unused", "disabled", "-", "-", "-"],
        ["third", "stopped", "-", "-", "-"],
    ]

    run = ansible.play("bootstrap")
    assert run.changed() == 2

    happened = [(event["event"], event["model"]) for event in host.events() if not event["event"].startswith("request")]
    assert happened == [
        ("loading", "second"), ("awake", "second"), ("sleeping", "second"),
        ("loading", "third"), ("awake", "third"), ("sleeping", "third"),
        ("loading", "first"), ("awake", "first"),
    ]  # fmt: skip
    assert rows(ansible) == [
        ["first", "active", "-", "0", "0"],
        ["second", "sleeping", "1", "0", "0"],
        ["unused", "disabled", "-", "-", "-"],
        ["third", "sleeping", "2", "0", "0"],
    ]

    before, calls = host.events(), posts(host)
    assert ansible.play("bootstrap").changed() == 0
    assert (host.events(), posts(host)) == (before, calls)

    assert ansible.play("teardown", "--check").changed() == 2
    assert (host.events(), posts(host)) == (before, calls)
    assert ansible.play("teardown").changed() == 2
    for model in models:
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{model['host_port']}/health", timeout=5)
    # Their logs are data.
    assert sorted(path.name for path in host.stack.rglob("*")) == ["first.log", "run", "second.log", "third.log"]
    assert ansible.play("teardown").changed() == 0
    assert ansible.play("teardown", "-e", "teardown_data=true").changed() == 1
    assert not host.stack.exists()
    assert ansible.play("teardown", "-e", "teardown_data=true").changed() == 0


def test_check_mode_starts_nothing(inventory: Inventory, tmp_path: Path) -> None:
    host = Host(tmp_path, [launched("first", startup_mode="active"), launched("second")])
    run = inventory(host).play("bootstrap", "--check", "--diff")
    assert run.changed() == 2
    # Each task is predicted from what is there now.
    assert run.steps == ["start second", "verify second", "sleep second (level 1)", "start first", "verify first"]
    assert host.events() == []
    assert not host.stack.exists()


def test_a_model_that_dies_while_loading(inventory: Inventory, tmp_path: Path) -> None:
    dying = {**LOADING, "STANDIN_FAULTS": '[{"path": "load", "fault": "die"}]'}
    models = [
        launched("first", startup_mode="active"),
        launched("broken", env=dying),
        launched("third"),
        launched("other", env=dying, gpus=[1], startup_mode="active"),
    ]
    host = Host(tmp_path, models)
    ansible = inventory(host)

    run = ansible.play("bootstrap")
    assert run.status == 2
    assert "Traceback" not in run.output
    assert run.said_at("host: broken FAILED after ") < run.said_at("host: loading third (2 of 4) ...")  # at once
    assert (run.count("failed"), run.count("ignored")) == (1, 0)
    # And again at the very end, both of them, below what the host is then.
    lines = run.failure().splitlines()
    for name in ("broken", "other"):
        (line,) = [line for line in lines if f"{name} could not be made " in line]
        assert "its server ended with exit code 1" in line
        assert f"No supported config format found in org/{name}" in line  # the cause, from its log
    assert lines[-1].startswith("run bootstrap again")
    assert not [line for line in lines if line.startswith("State of the host")]
    assert run.output.rindex("Report failures") > run.output.rindex("Load and activate the default models")
    assert [row[1:3] for row in run.table] == [
        ["first", "active"], ["broken", "stopped"], ["third", "sleeping"], ["other", "stopped"]
    ]  # fmt: skip

    assert rows(ansible) == [
        ["first", "active", "-", "0", "0"],
        ["broken", "stopped", "-", "-", "-"],
        ["third", "sleeping", "1", "0", "0"],
        ["other", "stopped", "-", "-", "-"],
    ]


def test_a_model_that_dies_does_not_cost_the_one_that_was_active(inventory: Inventory, tmp_path: Path) -> None:
    host = Host(tmp_path, [launched("first", startup_mode="active"), launched("second")])
    ansible = inventory(host)
    ansible.play("bootstrap").changed()
    dying = launched("broken", env={"STANDIN_FAULTS": '[{"path": "load", "fault": "kill"}]'})
    host = Host(tmp_path, [*host.models, dying])
    ansible = inventory(host)

    message = ansible.play("switch", "-e", "model=broken").failure()
    assert "broken could not be made active" in message
    assert "first is active again" in message
    assert [row[:2] for row in rows(ansible)] == [["first", "active"], ["second", "sleeping"], ["broken", "stopped"]]


def told(run: Run) -> list[tuple[float, str]]:
    """The lines of progress and when they came. What a slow machine takes so long for is told once more: that aside."""
    lines = [(when, line.rstrip()) for when, line in run.lines if line.startswith("host: ")]
    return [(when, line) for when, line in lines if "still loading" not in line]


@pytest.mark.versions
@pytest.mark.parametrize("banners", ["true", "false"])
def test_nobody_waits_without_a_word(inventory: Inventory, tmp_path: Path, banners: str) -> None:
    """Also where Ansible holds a task's banner back until there is a result."""
    load = 3.0
    names = ["first", "second", "third", "fourth"]
    models = [launched(name, env={"STANDIN_LOAD_SECONDS": load}) for name in names]
    models[0]["startup_mode"] = "active"
    ansible = inventory(Host(tmp_path, models))
    run = ansible.play("bootstrap", env={"ANSIBLE_DISPLAY_SKIPPED_HOSTS": banners}, terminal=True)
    run.changed()
    said = told(run)
    order = ["second", "third", "fourth", "first"]
    following = [f"; next: {name}" for name in order[1:]] + [""]
    assert [re.sub(r"\d+\.\d s", "N s", line) for _when, line in said] == [
        text
        for number, (name, after) in enumerate(zip(order, following, strict=True), 1)
        for text in (
            f"host: loading {name} ({number} of 4) ...",
            f"host: {name} is loaded and {'active' if name == 'first' else 'asleep'}, N s{after}",
        )
    ]
    assert all(len(line) <= 80 for _when, line in said)
    # Each is printed when it is so, and not when the task has ended.
    for (began, _line), (ended, _end) in zip(said[::2], said[1::2], strict=True):
        assert ended - began >= load
    silences = [after - before for (before, _one), (after, _other) in zip(run.lines, run.lines[1:], strict=False)]
    assert (
        max(silences)
        < sum(ended - began for (began, _line), (ended, _end) in zip(said[::2], said[1::2], strict=True)) / 2
    )


@pytest.mark.versions
def test_models_that_load_side_by_side_are_told_together(inventory: Inventory, tmp_path: Path) -> None:
    models = [launched("a", env=LOADING), launched("b", gpus=[1], env=LOADING), launched("c", env=LOADING)]
    ansible = inventory(Host(tmp_path, models))
    lines = [re.sub(r"\d+\.\d s", "N s", line) for _when, line in told(ansible.play("bootstrap"))]
    assert lines[0] == "host: loading a and b (1, 2 of 3) ..."
    assert lines[1:3] == ["host: a is loaded and asleep, N s", "host: b is loaded and asleep, N s; next: c"]
    lines = [line for _when, line in told(ansible.play("bootstrap"))]
    assert lines[1:3] == ["host: a is asleep already", "host: b is asleep already; next: c"]
