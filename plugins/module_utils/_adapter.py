# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Between Ansible and the switching engine. Private to this collection; nothing else that is sent whole knows both."""

from __future__ import annotations

import typing

from ansible.module_utils.basic import AnsibleModule

from ._arguments import SPECS
from .switching import task
from .switching.inventory import Inventory
from .switching.redaction import secrets_of

WORK = {
    "vllm_sleep_state": task.sleep_state,
    "vllm_sleep_state_info": task.sleep_state_info,
    "vllm_warm": task.warm,
}


class Module(AnsibleModule):
    """An AnsibleModule that keeps the secrets within O(models) and O(switching) out of every log."""

    def _load_params(self):
        # The whole of models can't be no_log: every id in a result would be masked. Its secrets have to be known before
        # AnsibleModule refuses other parameters, showing all of them, and before it writes the target's system log:
        # both happen while it is being made.
        super()._load_params()
        self.no_log_values.update(secrets_of(self.params.get("models"), self.params.get("switching")))


def run(name: str) -> None:
    """Be the module of this name."""
    module = Module(**SPECS[name], supports_check_mode=True)
    _end(module, WORK[name](module.params, module.check_mode, module.no_log_values.update))


def look(module: Module, work: typing.Callable[[Inventory], dict[str, typing.Any]]) -> None:
    """Exit with what the work returns for the checked inventory. It asks no server."""
    _end(module, task.attempt(module.params, work, module.no_log_values.update))


def _end(module: Module, result: dict[str, typing.Any]) -> None:
    # Warnings go the way of Ansible's.
    for text in result.pop("warnings", ()):
        module.warn(text)
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)
