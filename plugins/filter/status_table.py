# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: status_table
short_description: The states of models on hosts as a table for people
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Turns results of M(homegpt.vllm.vllm_sleep_state_info) into the lines of a table, a row for each model of each host.
options:
  _input:
    description: The results by host name.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what every host is doing
  ansible.builtin.debug:
    msg: "{{ {inventory_hostname: status} | homegpt.vllm.status_table }}"
"""

RETURN = r"""
_value:
  description: The lines of the table.
  type: list
  elements: str
"""

_HEADER = ("host", "model", "state", "level", "port", "running", "waiting", "problem")


def status_table(results):
    """The lines of the table. What is not known is a dash; the column of problems is left out where there are none."""
    rows: list[tuple[str, ...]] = [_HEADER]
    for host, result in results.items():
        for name, model in result["models"].items():
            cells = (host, name, *(model.get(key) for key in ("state", "level", "host_port", "running", "waiting")))
            rows.append((*("-" if cell is None else str(cell) for cell in cells), model.get("problem", "")))
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"status_table": status_table}
