#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_sleep_state_info
short_description: Tell what every model of a host is doing
version_added: 0.1.0
description:
  - Asks the servers of a host's model inventory, all at once, for their states and counts of requests.
  - It does not fail because a server is asleep, down or broken; that is what it reports.
extends_documentation_fragment:
  - homegpt.vllm.switching
  - homegpt.vllm.switching.servers
attributes:
  check_mode:
    support: full
    description: It changes nothing, in check mode or not.
  diff_mode:
    support: N/A
    description: It changes nothing.
  idempotent:
    support: full
    description: It changes nothing.
seealso:
  - module: homegpt.vllm.vllm_sleep_state
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Ask what the models are doing
  homegpt.vllm.vllm_sleep_state_info:
    models: "{{ vllm_models }}"
    switching: "{{ vllm_switching }}"
  register: status

- name: Insist that the default model is active
  ansible.builtin.assert:
    that: status.models['qwen3-vl-30b-a3b'].state == 'active'
"""

RETURN = r"""
active_models:
  description:
    - The ids of the models that are active, in the order of the inventory. Models on different GPUs can be active
      together.
  returned: success
  type: list
  elements: str
  sample: [qwen3-vl-30b-a3b]
last_switch:
  description:
    - How the last switch of the host that did something ended. Null where none is known. One that was killed leaves the
      one before.
  returned: success
  type: dict
  version_added: 0.2.0
  contains:
    models:
      description: The ids of the models that were asked for.
      type: list
      elements: str
      returned: always
      sample: [gpt-oss-20b]
    state:
      description: The state that was asked for.
      type: str
      returned: always
      sample: active
    ended:
      description: When it ended, in seconds since 1970.
      type: float
      returned: always
      sample: 1795882811.25
    seconds:
      description: How long it took.
      type: float
      returned: always
      sample: 2.318
    result:
      description: V(done) or V(failed).
      type: str
      returned: always
      sample: done
    rung:
      description: The furthest rung of C(escalation) that was gone to; null where no step failed.
      type: str
      returned: always
      sample: retry
    reason:
      description: Why it failed, or what was recovered; empty where nothing went wrong.
      type: str
      returned: always
      sample: gpt-oss-20b woke at the second try
models:
  description: Every model by its id.
  returned: success
  type: dict
  contains:
    state:
      description: One of active, sleeping, loading, stopped, error, disabled.
      type: str
      returned: always
      sample: active
    level:
      description: The level it sleeps at; null when it does not sleep or the server doesn't tell.
      type: int
      returned: always
      sample: 1
    name:
      description: Its name for people.
      type: str
      returned: always
      sample: GPT-OSS 20B
    description:
      description: What it is for.
      type: str
      returned: when the inventory says it
      sample: Tools and long contexts
      version_added: 0.2.0
    host_port:
      description: The port of its server on the host.
      type: int
      returned: always
      sample: 8004
    startup_mode:
      description: What the inventory wants it to be after a start.
      type: str
      returned: always
      sample: sleep
    running:
      description: How many requests it is working on; null where the server doesn't tell.
      type: int
      returned: always
      sample: 3
    waiting:
      description: How many requests are queued in it; null where the server doesn't tell.
      type: int
      returned: always
      sample: 0
    gpu_memory_gb:
      description:
        - The memory that the processes of its server hold now, on all GPUs together, in GB of 10^9 bytes; null where
          C(nvidia-smi) doesn't tell, or not which processes they are.
      type: float
      returned: always
      sample: 1.14
    problem:
      description: What is wrong with it.
      type: str
      returned: when its state is error, or when it does not run and nothing is there to start it from
      sample: gpt-oss-20b's engine is dead (/health answers 503)
mistakes:
  description: Every mistake of the model inventory, each with its path and what would be right.
  returned: when O(models) or O(switching) has mistakes
  type: list
  elements: str
  sample: ["vllm_models[2] (gpt-oss-20b): host_port 8001 is taken by qwen3-vl-30b-a3b"]
"""

from ansible_collections.homegpt.vllm.plugins.module_utils._adapter import run


def main():
    run("vllm_sleep_state_info")


if __name__ == "__main__":
    main()
