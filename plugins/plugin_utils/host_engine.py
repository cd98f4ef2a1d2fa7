# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module that is run by the engine that the host has, and sent whole only where the host has none or another one."""

from __future__ import annotations

import base64
import json
import os
import typing

from ansible.module_utils.common.arg_spec import ModuleArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.homegpt.vllm.plugins.module_utils import switching
from ansible_collections.homegpt.vllm.plugins.module_utils._arguments import SPECS
from ansible_collections.homegpt.vllm.plugins.modules.vllm_host_engine import digest_of, texts_of

# Of what Ansible would send. Strategies import action plugins before they fork, so it is made once for all hosts.
_DIGEST = digest_of(texts_of(os.path.dirname(switching.__file__)))


class EngineAction(ActionBase):
    """Runs the module of the task."""

    _supports_check_mode = True
    _supports_async = True

    def run_module(self, task_vars: dict[str, typing.Any]) -> dict[str, typing.Any]:
        """The module's result, the same in both ways."""
        wrap_async = self._task.async_val and not self._connection.has_native_async
        # Of what goes on in the background nobody waits for an answer by which the other way could be tried.
        result = None if self._task.async_val else self._by_host_engine(task_vars)
        if result is None:
            result = self._execute_module(task_vars=task_vars, wrap_async=wrap_async)
        if not wrap_async:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _by_host_engine(self, task_vars: dict[str, typing.Any]) -> dict[str, typing.Any] | None:
        """The result, or None where the engine of the host can't be used."""
        request = _request(self._task.action.rpartition(".")[2], self._task.args)
        if request is None:
            return None
        arguments = {"module": self._task.action, "request": request, "digest": _DIGEST}
        result = self._execute_module("homegpt.vllm.vllm_host_engine", arguments, task_vars=task_vars)
        if "engine_unused" not in result:
            return result
        Display().vvv(f"the engine is sent: {result['engine_unused']}", host=task_vars["inventory_hostname"])
        return None


def _request(name: str, arguments: dict[str, typing.Any]) -> str | None:
    """The checked arguments as base64, which no text can break; None where the module itself has to see them."""
    if "~" in str(arguments.get("stack_dir", "")) or "$" in str(arguments.get("stack_dir", "")):
        return None  # the host's, not the controller's
    checked = ModuleArgumentSpecValidator(**SPECS[name]).validate(dict(arguments))
    if checked.error_messages:
        return None
    return base64.b64encode(json.dumps(checked.validated_parameters, default=_text).encode()).decode()


def _text(value: typing.Any) -> str:
    """What JSON has no word for: a text that a vault has encrypted."""
    if "Encrypted" in type(value).__name__:
        return str(value)
    raise TypeError(f"{type(value).__name__} can't be sent to a host")
