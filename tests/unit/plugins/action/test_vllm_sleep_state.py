# SPDX-License-Identifier: MIT
"""What the action decides for a task of a rollout: the options of ssh, and which hosts are only inspected."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.action.vllm_sleep_state import ActionModule

KEEP_ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"


class Connection:
    """A connection with, or without, options of ssh."""

    def __init__(self, transport: str = "ssh", **options: str | None) -> None:
        self.transport = transport
        self.options = options

    def has_option(self, name: str) -> bool:
        return name in self.options

    def get_option(self, name: str) -> str | None:
        return self.options[name]

    def set_option(self, name: str, value: str) -> None:
        self.options[name] = value


def run(
    task_vars: dict[str, Any], connection: Connection | None = None, check: bool = False
) -> tuple[bool, dict[str, Any]]:
    """Whether the module runs in check mode, and what becomes of its result."""
    action = ActionModule.__new__(ActionModule)
    action._connection = connection or Connection("local")
    action._task = SimpleNamespace(check_mode=check)
    modes = []

    def run_module(_task_vars: dict[str, Any]) -> dict[str, Any]:
        modes.append(action._task.check_mode)
        return {"changed": True}

    action.run_module = run_module  # type: ignore[method-assign, assignment]
    result = action._reported_later(task_vars)
    return modes[0], result


@pytest.mark.parametrize(
    ("given", "told"),
    [(None, KEEP_ALIVE), ("", KEEP_ALIVE), ("-o ServerAliveInterval=60", f"-o ServerAliveInterval=60 {KEEP_ALIVE}")],
)
def test_a_rollout_gives_up_a_host_that_hangs_unless_the_user_says_otherwise(given: str | None, told: str) -> None:
    connection = Connection(ssh_extra_args=given)
    run({"__vllm_in_rollout": True}, connection)
    assert connection.options == {"ssh_extra_args": told}  # of two values ssh takes the first


def test_no_other_connection_is_touched() -> None:
    for connection, task_vars in (
        (Connection(ssh_extra_args=None), {}),
        (Connection("paramiko", ssh_extra_args=None), {"__vllm_in_rollout": True}),
        (Connection(), {"__vllm_in_rollout": True}),
    ):
        before = dict(connection.options)
        run(task_vars, connection)
        assert connection.options == before


@pytest.mark.parametrize("keep", ["1", 1, "{{ some }}"])
@pytest.mark.parametrize("name", ["held", "other"])
def test_a_held_host_is_only_inspected(name: str, keep: Any) -> None:
    localhost = {"__vllm_recorded_plan": {"held": ["held"]}}
    task_vars = {"switch_keep": keep, "hostvars": {"localhost": localhost}, "inventory_hostname": name}
    rollout = {**task_vars, "__vllm_in_rollout": True}
    assert run(rollout) == (name == "held", {"changed": name != "held"})
    assert run(rollout, check=True) == (True, {"changed": name != "held"})
    assert run(task_vars) == (False, {"changed": True})


@pytest.mark.parametrize("keep", [0, "", None])
def test_without_the_setting_the_plan_is_not_looked_up(keep: Any) -> None:
    task_vars = {"switch_keep": keep, "hostvars": None, "inventory_hostname": "held", "__vllm_in_rollout": True}
    assert run(task_vars) == (False, {"changed": True})
