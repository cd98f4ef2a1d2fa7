#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_preflight
short_description: Find every mistake that can be known before a host is touched
version_added: 0.2.0
description:
  - The first task of each playbook of the collection. It looks at the inventory, at the variables of all hosts of the
    target and at the extra variables, and fails with the list of what is wrong, each mistake once.
  - It never connects to a host, and has no result for each host. Give the task C(run_once).
options:
  playbook:
    description: The playbook that it is the first task of, which says what is needed.
    type: str
    choices: [site, bootstrap, prefetch, status, teardown, switch, roll_back, awx, convert]
    required: true
attributes:
  check_mode:
    support: full
    description: It changes nothing.
  diff_mode:
    support: none
    description: It changes nothing.
notes:
  - The hosts are those of the variable C(target), else of the group C(vllm_hosts), as far as C(--limit) leaves them.
  - It runs on the controller, as an action plugin.
  - For V(convert), which has no hosts, it looks at the files that are to be read and written, by the variables of
    C(homegpt.vllm.convert).
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Check what can be known before a host is touched
  hosts: >-
    {{ 'localhost' if ansible_limit is not defined else 'all' if groups.all else undef('the inventory has no hosts') }}
  gather_facts: false
  tasks:
    - name: Find every mistake
      homegpt.vllm.vllm_preflight:
        playbook: switch
      run_once: true
"""

RETURN = r"""
rollout:
  description:
    - The plan of a rollout. C(hosts), all hosts in the order of the inventory; C(held), those that keep their model;
      C(waves), the names of the others, wave by wave; C(max_failures), null for any number; C(on_stop).
    - For the play C(play_hosts), its hosts or their pattern, and C(serial). For the hosts C(change), the name by which
      they know what this run has changed.
  returned: success, with O(playbook=switch) and O(playbook=roll_back)
  type: dict
  sample: {hosts: [gpu1, gpu2], held: [], waves: [[gpu1], [gpu2]], serial: [1, 1]}
msg:
  description: Every mistake, and where it is.
  returned: failure
  type: list
  elements: str
  sample: ["gpu1: vllm_models[2] (gpt-oss-20b): host_port 8001 is taken by qwen3-vl-30b-a3b"]
"""
