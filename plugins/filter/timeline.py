# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: timeline
short_description: Draw a switch of one or more hosts as an SVG timeline
version_added: 0.2.0
author:
  - HomeGPT (@homegpt)
description:
  - Draws the steps of each server with their start and duration. One host has a lane for each model with steps. Several
    hosts have one lane each, ordered by waves.
  - The file supports light and dark backgrounds, and contains neither scripts nor fonts.
options:
  _input:
    description:
      - The C(rows) of the report that M(homegpt.vllm.vllm_rollout) returns with a C(timeline). The keys C(host),
        C(from), C(to), C(seconds), C(result), C(wave), C(steps) and C(back) of a row are used; only C(host) is
        required.
      - C(steps) are those that M(homegpt.vllm.vllm_sleep_state) returns. Steps of check mode have no times and are not
        drawn.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Draw the switch of this host
  ansible.builtin.copy:
    content: "{{ [{'host': inventory_hostname, 'steps': switched.steps}] | homegpt.vllm.timeline }}"
    dest: "{{ playbook_dir }}/switch.svg"
    mode: "0644"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The text of the SVG file.
  type: str
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain
from ansible_collections.homegpt.vllm.plugins.plugin_utils.timeline import svg


def timeline(rows):
    """The picture of the rows of a report."""
    rows = plain(rows)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and "host" in row for row in rows):
        raise AnsibleFilterError("timeline requires a list of dictionaries with the key host, as in a report")
    return svg(rows)


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"timeline": timeline}
