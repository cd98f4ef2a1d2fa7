# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Between Ansible and the switching engine. Private to this collection; nothing else in it knows both."""

from __future__ import annotations

import importlib
import typing

from ansible.module_utils.basic import AnsibleModule

from ._host_engine import DEFAULT_STACK_DIR, FOLDER

ENGINE = f"{__package__}.{FOLDER}"

COMMON_ARGUMENTS: dict[str, dict[str, typing.Any]] = {
    "models": {"type": "list", "elements": "dict", "required": True},
    "switching": {"type": "dict", "default": {}},
    "stack_dir": {"type": "path", "default": DEFAULT_STACK_DIR},
}


def engine(name: str) -> typing.Any:
    """A module of the engine. Imported by its name alone: whatever an import statement names, Ansible sends along."""
    return importlib.import_module(f"{ENGINE}.{name}")


class Module(AnsibleModule):
    """An AnsibleModule that keeps the secrets within O(models) and O(switching) out of every log."""

    def _load_params(self):
        # The whole of models can't be no_log: every id in a result would be masked. Its secrets have to be known before
        # AnsibleModule refuses other parameters, showing all of them, and before it writes the target's system log:
        # both happen while it is being made.
        super()._load_params()
        secrets_of = engine("masking").secrets_of
        self.no_log_values.update(secrets_of(self.params.get("models"), self.params.get("switching")))


def run(module: Module, work: typing.Callable[[typing.Any], dict[str, typing.Any]]) -> None:
    """Give the work a Switcher for the module's models and exit with what it returns; translate the engine's errors."""

    def switch(inventory: typing.Any) -> dict[str, typing.Any]:
        with engine("switch").Switcher(inventory, module.params["stack_dir"]) as switcher:
            return work(switcher)

    look(module, switch)


def look(module: Module, work: typing.Callable[[typing.Any], dict[str, typing.Any]]) -> None:
    """The same for work that asks no server: it gets the checked inventory."""
    errors = engine("errors")
    try:
        inventory = engine("inventory").parse(module.params["models"], module.params["switching"])
        # A macro may have any name, and only what uses it tell that it is a secret.
        module.no_log_values.update(engine("masking").secrets_of(inventory.as_dict()))
        result = work(inventory)
    except errors.SwitchingError as error:
        # By the name of its class a playbook may tell errors apart.
        failure = {"msg": str(error), "error": type(error).__name__}
        if isinstance(error, errors.InventoryError):
            failure["mistakes"] = error.mistakes
        elif isinstance(error, errors.SwitchFailed):
            failure.update(_warned(module, error.result.as_dict()))
        module.fail_json(**failure)
    module.exit_json(**_warned(module, result))


def _warned(module: Module, result: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The result without its warnings, which go the way of Ansible's."""
    for text in result.pop("warnings", ()):
        module.warn(text)
    return result
