# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The arguments of the modules, as AnsibleModule takes them. Private to this collection."""

from __future__ import annotations

import typing

DEFAULT_STACK_DIR = "/opt/homegpt"

COMMON_ARGUMENTS: dict[str, dict[str, typing.Any]] = {
    "models": {"type": "list", "elements": "dict", "required": True},
    "switching": {"type": "dict", "default": {}},
    "stack_dir": {"type": "path", "default": DEFAULT_STACK_DIR},
}

SPECS: dict[str, dict[str, typing.Any]] = {
    "vllm_sleep_state": {
        "argument_spec": dict(
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
        "required_if": [
            *(("state", state, ["model"]) for state in ("active", "sleeping", "stopped")),
            ("state", "undone", ["change"]),
        ],
    },
    "vllm_sleep_state_info": {"argument_spec": COMMON_ARGUMENTS},
    "vllm_warm": {"argument_spec": dict(COMMON_ARGUMENTS, model={"type": "list", "elements": "str", "required": True})},
}
