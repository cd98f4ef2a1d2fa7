#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_report
short_description: Print lines at once, hand data on, tell a failure once
version_added: 0.2.0
description:
  - Prints lines of progress and tables on the controller. They are seen at once, while what a task returns is shown
    when it has ended, and as lines whatever format results are printed in. Where the standard output is one for
    machines (a callback whose name has C(json) in it) they go to the standard error.
  - Asks no host.
options:
  lines:
    description:
      - Lines to print.
    type: list
    elements: str
  report:
    description:
      - What P(homegpt.vllm.rollout#filter) returned, or any dictionary with C(table), lines that are printed, and
        C(rows). It is returned as it is.
      - Where its C(shown) is false nothing is printed or handed on.
    type: dict
  stat:
    description:
      - The name by which the C(rows) are handed on, as C(ansible.builtin.set_stats) does.
    type: str
  timeline:
    description:
      - A file on the controller, relative to the folder where C(ansible-playbook) was called, that the rows are drawn
        into, as P(homegpt.vllm.timeline#filter) does. Where it can't be written there is a warning. In check mode
        nothing is drawn.
    type: str
  failure:
    description:
      - What went wrong, in lines. Where there are any the task fails, and they are its message, which is shown once.
    type: list
    elements: str
    default: []
attributes:
  action:
    support: full
    description: It runs on the controller.
  check_mode:
    support: full
    description: It changes no host, in check mode or not. O(timeline) is not written in check mode.
  diff_mode:
    support: N/A
    description: It changes nothing.
  idempotent:
    support: full
    description: It changes nothing.
seealso:
  - plugin: homegpt.vllm.rollout
    plugin_type: filter
  - plugin: homegpt.vllm.status_table
    plugin_type: filter
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Say what takes its time
  homegpt.vllm.vllm_report:
    lines: ["{{ inventory_hostname }}: pulling the images ..."]

- name: Show what became of the hosts
  homegpt.vllm.vllm_report:
    report: "{{ ansible_play_hosts_all | homegpt.vllm.rollout(hostvars, {} | homegpt.vllm.rollout_settings) }}"
    stat: vllm_switch
  run_once: true

- name: Fail where something went wrong
  homegpt.vllm.vllm_report:
    failure: "{{ problems }}"
"""

RETURN = r"""
report:
  description: What was given as O(report).
  returned: always
  type: dict
  sample: {table: [host  from  to], rows: []}
"""
