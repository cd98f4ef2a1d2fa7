#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_sleep_state_info
short_description: Show the state of every model of a host
version_added: 0.1.0
description:
  - Queries all servers of a host's model inventory in parallel for their states and their numbers of requests.
  - It does not fail if a server is asleep, stopped or broken; it reports the state.
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
- name: Get the states of the models
  homegpt.vllm.vllm_sleep_state_info:
    models: "{{ vllm_models }}"
    switching: "{{ vllm_switching }}"
  register: status

- name: Check that the default model is active
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
    - The outcome of the last switch of the host that changed something. Null if none is known. A switch that was killed
      leaves the outcome of the previous one.
  returned: success
  type: dict
  version_added: 0.2.0
  contains:
    models:
      description: The ids of the requested models.
      type: list
      elements: str
      returned: always
      sample: [gpt-oss-20b]
    state:
      description: The requested state.
      type: str
      returned: always
      sample: active
    ended:
      description: When it ended, in seconds since 1970.
      type: float
      returned: always
      sample: 1795882811.25
    seconds:
      description: Its duration.
      type: float
      returned: always
      sample: 2.318
    result:
      description: V(done) or V(failed).
      type: str
      returned: always
      sample: done
    rung:
      description: The last rung of C(escalation) that was tried; null if no step failed.
      type: str
      returned: always
      sample: retry
    reason:
      description: Why it failed, or how it recovered; empty if no step failed.
      type: str
      returned: always
      sample: gpt-oss-20b woke at the second attempt
models:
  description: The models by their ids.
  returned: success
  type: dict
  contains:
    state:
      description: One of active, sleeping, loading, stopped, error, disabled.
      type: str
      returned: always
      sample: active
    level:
      description: The level at which it sleeps; null if it does not sleep or if the level is unknown.
      type: int
      returned: always
      sample: 1
    name:
      description: Its display name.
      type: str
      returned: always
      sample: GPT-OSS 20B
    description:
      description: What it is for.
      type: str
      returned: when the inventory sets it
      sample: Tools and long contexts
      version_added: 0.2.0
    host_port:
      description: The port of its server on the host.
      type: int
      returned: always
      sample: 8004
    startup_mode:
      description: Its state after a start, from the inventory.
      type: str
      returned: always
      sample: sleep
    running:
      description: The number of running requests; null if the server does not report it.
      type: int
      returned: always
      sample: 3
    waiting:
      description: The number of waiting requests; null if the server does not report it.
      type: int
      returned: always
      sample: 0
    gpu_memory_gb:
      description:
        - The memory that the processes of its server hold now, on all GPUs together, in GB of 10^9 bytes; null if
          C(nvidia-smi) does not report it, or if the processes are unknown.
      type: float
      returned: always
      sample: 1.14
    levels:
      description:
        - The time that its server took to sleep and to wake on this host, by level. A level at which it neither slept
          nor woke is missing. The times are medians of the last 9 at most. They are forgotten when the inventory starts
          the server in another way.
      type: list
      elements: dict
      returned: always
      version_added: 0.2.0
      contains:
        level:
          description: The level, 1 or 2.
          type: int
          returned: always
          sample: 2
        sleep_seconds:
          description: The duration of a sleep, without the drain; null if none was measured.
          type: float
          returned: always
          sample: 0.512
        sleeps:
          description: The number of measured sleeps.
          type: int
          returned: always
          sample: 3
        wake_seconds:
          description: The duration of a wake-up, until it was verified; null if none was measured.
          type: float
          returned: always
          sample: 6.318
        wakes:
          description: The number of measured wake-ups.
          type: int
          returned: always
          sample: 3
        warm:
          description:
            - The share of the weights that was in the page cache at the wake-ups; null if it is unknown, as always at
              level 1, where no weights are read.
          type: float
          returned: always
          sample: 0.96
    next_sleep:
      description: The level at which it would sleep if it was put to sleep now, and the reason; null if it is disabled.
      type: str
      returned: always
      version_added: 0.2.0
      sample: "level 2: 6.8 s measured (3), level 1: 12.8 s (2)"
    leak:
      description:
        - What its server holds on its GPUs after its sleeps, since its start; null until it has slept four times, where
          C(nvidia-smi) does not tell, and while it is stopped.
      type: dict
      returned: always
      version_added: 0.2.0
      contains:
        sleeps:
          description: How often it has slept.
          type: int
          returned: always
          sample: 7
        held_gb:
          description:
            - What it held after the last sleep, on the GPU where that is most, in GB of 10^9 bytes; null if
              C(nvidia-smi) does not tell what its processes hold.
          type: float
          returned: always
          sample: 4.5
        gb_per_sleep:
          description: By how much that grows with each sleep, on the GPU where it grows most.
          type: float
          returned: always
          sample: 0.5
        switches_left:
          description:
            - The number of switches away from it after which a model on these GPUs would not find enough free memory to
              wake, or C(leak_limit_gb) is reached; null if nothing grows, or if that is unknown.
          type: int
          returned: always
          sample: 12
    problem:
      description: What is wrong with it.
      type: str
      returned: when its state is error, or when it is stopped and the files to start it are missing
      sample: gpt-oss-20b's engine is dead (/health answers 503)
mistakes:
  description: All mistakes in the model inventory, each with its path and the remedy.
  returned: when O(models) or O(switching) contains mistakes
  type: list
  elements: str
  sample: ["vllm_models[2] (gpt-oss-20b): host_port 8001 is taken by qwen3-vl-30b-a3b"]
"""

from ansible_collections.homegpt.vllm.plugins.module_utils._adapter import run


def main():
    run("vllm_sleep_state_info")


if __name__ == "__main__":
    main()
