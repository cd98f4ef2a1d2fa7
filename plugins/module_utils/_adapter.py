# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Between Ansible and the switching engine. Private to this collection; nothing else in it knows both."""

from __future__ import annotations

import re
import typing

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from .switching.errors import InventoryError, SwitchFailed, SwitchingError
from .switching.inventory import parse
from .switching.server import REQUESTS_IMPORT_ERROR
from .switching.switch import DEFAULT_STACK_DIR, Switcher

# Not TOKENIZERS_PARALLELISM or max_num_batched_tokens: hiding their values would hide every False, or a port.
_SECRET_NAME = re.compile(r"token(?!s|iz)|key|secret|passw|credential", re.IGNORECASE)

COMMON_ARGUMENTS: dict[str, dict[str, typing.Any]] = {
    "models": {"type": "list", "elements": "dict", "required": True},
    "switching": {"type": "dict", "default": {}},
    "stack_dir": {"type": "path", "default": DEFAULT_STACK_DIR},
}


class Module(AnsibleModule):
    """An AnsibleModule that keeps the secrets within O(models) out of every log."""

    def _load_params(self):
        # The whole of models can't be no_log: every id in a result would be masked. Its secrets have to be known before
        # AnsibleModule refuses other parameters, showing all of them, and before it writes the target's system log:
        # both happen while it is being made.
        super()._load_params()
        self.no_log_values.update(_secrets(self.params.get("models")))


def run(module: Module, work: typing.Callable[[Switcher], dict[str, typing.Any]]) -> None:
    """Give the work a Switcher for the module's models and exit with what it returns; translate the engine's errors."""
    if REQUESTS_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("requests"), exception=REQUESTS_IMPORT_ERROR)
    try:
        inventory = parse(module.params["models"], module.params["switching"])
        with Switcher(inventory, module.params["stack_dir"]) as switcher:
            result = work(switcher)
    except InventoryError as error:
        module.fail_json(msg=str(error), mistakes=error.mistakes)
    except SwitchFailed as error:
        module.fail_json(msg=str(error), **error.result.as_dict())
    except SwitchingError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


def _secrets(value, secret=False):
    """The texts and long numbers of an unchecked inventory that stand below a key whose name sounds secret."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _secrets(item, secret or bool(_SECRET_NAME.search(str(name))))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _secrets(item, secret)
    elif isinstance(value, str):
        if secret and value:
            yield value
    # To hide a short number would hide every port and count that has it within.
    elif secret and isinstance(value, (int, float)) and len(str(value)) > 5:
        yield str(value)
