# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: status_table
short_description: Format the states of models as a table
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Converts results of M(homegpt.vllm.vllm_sleep_state_info) to the lines of a table with a row for
    each model of each host.
options:
  _input:
    description: The results by host name.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the models of all hosts
  ansible.builtin.debug:
    msg: "{{ {inventory_hostname: status} | homegpt.vllm.status_table }}"
"""

RETURN = r"""
_value:
  description: The lines of the table.
  type: list
  elements: str
"""

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.tables import status_lines


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"status_table": status_lines}
