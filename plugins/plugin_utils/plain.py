# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain data out of what Ansible hands to a filter."""

from __future__ import annotations

import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import map_text


def plain(value: typing.Any) -> typing.Any:
    """Ordinary lists and dictionaries: since ansible-core 2.19 a filter is given ones that refuse to be copied."""
    return map_text(value, lambda text: text)
