# SPDX-License-Identifier: MIT
"""bootstrap.yml loads containers one at a time and goes past one that can't load. How long it takes: bench/run.py."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.e2e.stack import PLAY, Stack, contained, inspect, moment
from tests.playbooklib import Ansible
from tests.serverlib import two_awake

pytestmark = pytest.mark.timeout(900)


def test_it_loads_one_at_a_time(
    provision: Callable[..., tuple[Stack, Ansible]], capsys: pytest.CaptureFixture[str]
) -> None:
    loading = {"STANDIN_LOAD_SECONDS": "10"}
    models = [contained(name, env=loading) for name in ("first", "second", "third")]
    models[0]["startup_mode"] = "active"
    stack, ansible = provision(models)
    ansible.play("site", timeout=PLAY).changed()
    # What the network gives is no part of loading.
    ansible.play("prefetch", timeout=PLAY).changed()
    run = ansible.play("bootstrap", timeout=PLAY)
    assert run.changed()
    assert stack.states() == {"first": "awake", "second": "asleep", "third": "asleep"}
    assert inspect(stack.webui)["State"]["Running"]
    assert two_awake(stack.events()) == []

    own = stack.load_seconds()
    assert set(own) == {"first", "second", "third"}
    assert min(own.values()) >= 9
    with capsys.disabled():
        shown = " + ".join(f"{seconds:.2f}" for seconds in own.values())
        print(f"\n  bootstrap.yml took {run.seconds:.2f} s, the servers' own loading {shown} s")


def test_a_container_that_exits_while_loading_is_told_at_once(
    provision: Callable[..., tuple[Stack, Ansible]], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"STANDIN_LOAD_SECONDS": "2", "STANDIN_FAULTS": json.dumps([{"path": "load", "fault": "die"}])}
    models = [
        contained("first", startup_mode="active"),
        contained("broken", env=broken),
        # argparse refuses it and the process ends with status 2, as vLLM's does.
        contained("misspelt", args={"max_model_len": "much"}),
        contained("last"),
    ]
    stack, ansible = provision(models)
    ansible.play("site", timeout=PLAY).changed()
    # Else live lines come through a pipe when the task has ended.
    run = ansible.play("bootstrap", timeout=PLAY, env={"PYTHONUNBUFFERED": "1"})
    assert run.status == 2, run.output
    assert "Traceback" not in run.output, run.output
    assert stack.states() == {"first": "awake", "broken": "stopped", "misspelt": "stopped", "last": "asleep"}

    causes = {"broken": "No supported config format found in org/broken", "misspelt": "--max-model-len"}
    for name, cause in causes.items():
        state = inspect(stack.container(name))["State"]
        assert not state["Running"]
        late = run.said_at(f"{name} FAILED after") - moment(state["FinishedAt"])
        with capsys.disabled():
            print(f"\n  {name}: told {late:.2f} s after its container ended")
        # By default a server may take ten minutes to load; the rest is the machine's.
        assert 0 < late < 120
        assert cause in run.output
    # At the end of the play: a line for each of the two.
    assert run.count("failed") == 1
    last = run.results("fatal", "failed")[-1]["msg"]
    for name, cause in causes.items():
        assert len([line for line in last if f"{name} could not be made " in line]) == 1, last
        assert cause in "\n".join(last)
    assert inspect(stack.webui)["State"]["Running"]
