# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleConnectionFailure
from ansible_collections.homegpt.vllm.plugins.plugin_utils.host_engine import EngineAction
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain

# Variables of a task. The batches in which the models load: a line tells of each when it begins, one when it is done.
_LOAD_BATCHES = "__vllm_load_batches"
# Whether a failure is left to the report that comes later, as its result's failure: else it would be told twice.
_REPORTED = "__vllm_reported_later"
# Whether the task is one of a rollout, which gives up hosts that hang, and only inspects held ones. Keywords of the
# task, such as check_mode, would be evaluated for each host, which costs the controller 12 ms.
_ROLLOUT = "__vllm_in_rollout"
_RECORDED_PLAN = "__vllm_recorded_plan"
# An open connection to a host that hangs would wait for ever. Of two values ssh takes the first, that of the user.
_KEEP_ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"


class ActionModule(EngineAction):
    """Runs the module of this name, and says what Ansible would only show when it has ended."""

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        progress = self._progress(task_vars)
        if progress:
            progress.begin()
        try:
            result.update(self._reported_later(task_vars) if task_vars.get(_REPORTED) else self.run_module(task_vars))
        finally:
            if progress:
                progress.end(result)
        return result

    def _reported_later(self, task_vars):
        """The module's result, in which a failure of any kind is one among other things that are known."""
        ssh = _ROLLOUT in task_vars and self._connection.transport == "ssh"
        # A connection plugin of somebody else's may be called so and have no such option.
        if ssh and self._connection.has_option("ssh_extra_args"):
            # Not by a variable of the play: each host's process would have to look a filter up.
            given = self._connection.get_option("ssh_extra_args") or ""
            self._connection.set_option("ssh_extra_args", f"{given} {_KEEP_ALIVE}".strip())
        held = _is_held(task_vars)
        self._task.check_mode = self._task.check_mode or held
        try:
            result = self.run_module(task_vars)
            if held:
                result["changed"] = False  # what it would be
            kind = "failed" if result.pop("failed", False) else ""
        except AnsibleConnectionFailure as error:
            kind, result = "unreachable", {"msg": str(error)}
        except Exception as error:  # pylint: disable=broad-exception-caught
            kind, result = "failed", {"msg": str(error)}
        except BaseException as error:
            # What ends a task at its timeout has no public name, and has moved between versions.
            if type(error).__name__ != "TaskTimeoutError":
                raise
            told = f"timed out after {self._task.timeout} s (switch_timeout); the task may still be running on the host"
            kind, result = "hung", {"msg": told}
        if kind:
            result.pop("exception", None)
            result["failure"] = kind
        return result

    def _progress(self, task_vars):
        models = self._task.args.get("model")
        if not models or self._task.check_mode or _LOAD_BATCHES not in task_vars:
            return None
        # Not above: a switch has no use for it.
        from ansible_collections.homegpt.vllm.plugins.plugin_utils.progress import Progress

        models = [models] if isinstance(models, str) else models
        batches = plain(self._templar.template(task_vars[_LOAD_BATCHES]))
        return Progress(task_vars["inventory_hostname"], batches, plain(models), self._task.args.get("state"))


def _is_held(task_vars):
    # Without the setting the plan is not looked up.
    if _ROLLOUT not in task_vars or not task_vars.get("switch_keep"):
        return False
    plan = task_vars["hostvars"]["localhost"].get(_RECORDED_PLAN) or {}
    return task_vars["inventory_hostname"] in plain(plan.get("held") or [])
