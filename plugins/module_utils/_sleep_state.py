# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What the modules of these names do, by the engine that came along or by the host's. Private to this collection."""

from __future__ import annotations

import typing

from ._adapter import COMMON_ARGUMENTS, Module, run


def vllm_sleep_state(kind: type[Module] = Module) -> None:
    """Bring models to a state."""
    module = kind(
        argument_spec=dict(
            COMMON_ARGUMENTS,
            model={"type": "list", "elements": "str"},
            state={
                "type": "str",
                "choices": ["active", "sleeping", "stopped", "previous", "undone"],
                "default": "active",
            },
            change={"type": "str"},
            record_canary={"type": "bool", "default": False},
        ),
        required_if=[
            *(("state", state, ["model"]) for state in ("active", "sleeping", "stopped")),
            ("state", "undone", ["change"]),
        ],
        supports_check_mode=True,
    )

    def work(switcher: typing.Any) -> dict[str, typing.Any]:
        if module.params["state"] == "previous":
            result = switcher.roll_back(check=module.check_mode)
        elif module.params["state"] == "undone":
            result = switcher.undo(module.params["change"], check=module.check_mode)
        else:
            result = switcher.switch(
                module.params["model"],
                module.params["state"],
                check=module.check_mode,
                record_canary=module.params["record_canary"],
                change=module.params["change"] or "",
            )
        return dict(result.as_dict(), diff=result.diff())

    run(module, work)


def vllm_sleep_state_info(kind: type[Module] = Module) -> None:
    """Tell what every model is."""
    module = kind(argument_spec=COMMON_ARGUMENTS, supports_check_mode=True)
    run(module, lambda switcher: dict(switcher.report(), changed=False))


MODULES: dict[str, typing.Callable[[type[Module]], None]] = {
    "vllm_sleep_state": vllm_sleep_state,
    "vllm_sleep_state_info": vllm_sleep_state_info,
}
