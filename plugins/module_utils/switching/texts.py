# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The texts within data."""

from __future__ import annotations

import typing


def map_text(value: typing.Any, change: typing.Callable[[str], str]) -> typing.Any:
    """The value with every text in it changed, however deep; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: map_text(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_text(item, change) for item in value]
    return value
