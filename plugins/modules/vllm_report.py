#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_report
short_description: Print lines and reports at once, and a failure once
version_added: 0.2.0
description:
  - Prints lines of progress and tables on the controller. They appear at once, while Ansible shows the result of a task
    when the task has ended, and as lines in any result format. If the standard output is for machines (a callback with
    C(json) in its name), they go to the standard error.
  - Connects to no host.
options:
  lines:
    description:
      - Lines to print.
    type: list
    elements: str
  report:
    description:
      - A report of M(homegpt.vllm.vllm_rollout), or any dictionary with C(table), a list of lines. It is printed.
    type: dict
  stat:
    description:
      - The name of the custom statistic that the C(rows) of O(report) are added as, as by
        C(ansible.builtin.set_stats).
    type: str
  timeline:
    description:
      - A file on the controller, relative to the current directory of C(ansible-playbook), into which the rows of
        O(report) are drawn, as P(homegpt.vllm.timeline#filter) does. If it can't be written, the task warns. In check
        mode nothing is drawn.
    type: str
  failure:
    description:
      - The lines of a failure. If there are any, the task fails with them as its message, which is shown once.
    type: list
    elements: str
extends_documentation_fragment:
  - homegpt.vllm.reporting
seealso:
  - module: homegpt.vllm.vllm_rollout
  - plugin: homegpt.vllm.status_table
    plugin_type: filter
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Report progress
  homegpt.vllm.vllm_report:
    lines: ["{{ inventory_hostname }}: pulling the images ..."]

- name: Show a table
  homegpt.vllm.vllm_report:
    report:
      table: "{{ {inventory_hostname: vllm_status} | homegpt.vllm.status_table }}"

- name: Report failures
  homegpt.vllm.vllm_report:
    failure: "{{ problems }}"
"""

RETURN = r"""
# Nothing but what every module returns.
"""
