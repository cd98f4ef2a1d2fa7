#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_rollout
short_description: Report on a rollout from what its hosts registered
version_added: 0.2.0
description:
  - Internal to the playbooks of this collection. Makes the report on all hosts of a rollout, says whether the rollout
    has to stop, and prints the report when it is due. Give the task C(run_once).
  - It reads what M(homegpt.vllm.vllm_sleep_state) registered on the hosts as C(__vllm_switch) and
    C(__vllm_rolled_back), of a placement C(__vllm_drift) and C(__vllm_placed). It connects to no host.
options:
  plan:
    description:
      - The plan of the rollout, C(rollout) of M(homegpt.vllm.vllm_preflight).
    type: dict
  report:
    description:
      - The report of the wave before.
    type: dict
  finish:
    description:
      - Whether the waves are over, so that nothing but roll backs is new since O(report).
    type: bool
  timeline:
    description:
      - The file of the timeline, as M(homegpt.vllm.vllm_report) has it.
    type: str
  placement:
    description:
      - Whether the report is on the declared placement. There are no waves then.
    type: bool
extends_documentation_fragment:
  - homegpt.vllm.reporting
seealso:
  - module: homegpt.vllm.vllm_preflight
  - module: homegpt.vllm.vllm_report
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Report results
  homegpt.vllm.vllm_rollout:
    plan: "{{ checked.rollout }}"
  register: reported
  run_once: true
"""

RETURN = r"""
report:
  description:
    - C(rows), for each host C(host), C(from), C(to), C(seconds), C(result) and C(reason), with O(timeline) also
      C(wave), C(steps) and C(back); C(table), the same as lines; C(tried), the hosts of this wave and those before;
      C(reasons), by failed host the lines of its failure; C(should_stop); C(roll_back), the hosts to roll back;
      C(finish), those of the play after the waves; C(shown), whether the report was printed.
    - Of a placement, C(rows), C(table) and C(shown).
  returned: always
  type: dict
  sample: {table: [host  from  to], rows: [], should_stop: false, shown: true}
"""
