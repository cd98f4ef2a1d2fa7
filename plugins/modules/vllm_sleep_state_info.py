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
manager:
  description:
    - What the model manager of the host shows of itself. Null if the host has none, or none that was ever started.
  returned: success
  type: dict
  version_added: 0.2.0
  contains:
    running:
      description:
        - Whether its process runs. If not, it was killed; C(switching), C(queue) and C(models) are then empty, and the
          others are what holds when it is started again. A manager that was stopped shows nothing.
      type: bool
      returned: always
      sample: true
    problem:
      description: Why what it shows may be outdated; empty if it is not.
      type: str
      returned: always
      sample: ""
    age_seconds:
      description: How long ago it has shown this. It does so at each change, and at least every 30 seconds.
      type: float
      returned: always
      sample: 2.1
    address:
      description: Where it listens.
      type: str
      returned: always
      sample: http://127.0.0.1:9000
    mode:
      description: V(auto), or V(manual) if models are only switched by hand.
      type: str
      returned: always
      sample: auto
    pinned:
      description: The id of the model that is kept active; null if none is.
      type: str
      returned: always
      sample: gpt-oss-20b
    policy:
      description: Which request is served next, V(fifo) or V(batched).
      type: str
      returned: always
      sample: fifo
    reconciles:
      description: Whether it brings lost models back without being asked.
      type: bool
      returned: always
      sample: true
    switching:
      description:
        - The switch to an active model that is under way. C(from) is the id of the model that makes room, empty if none
          does, and C(to) the id of the one that becomes active. Null if there is none.
      type: dict
      returned: always
      sample: {from: qwen3-vl-30b-a3b, to: gpt-oss-20b}
    queue:
      description: The switches that are under way and that wait, in their order.
      type: list
      elements: dict
      returned: always
      contains:
        model:
          description: The id of the model.
          type: str
          returned: always
          sample: gpt-oss-20b
        desired:
          description: The state that it is brought to.
          type: str
          returned: always
          sample: active
        by:
          description: Who has asked for it.
          type: str
          returned: always
          sample: 10.0.0.7
        waiters:
          description: How many have asked for it.
          type: int
          returned: always
          sample: 3
        position:
          description: Its place; 0 if it is under way.
          type: int
          returned: always
          sample: 1
        eta_seconds:
          description: How long it takes until it is done, by past switches; null if that is unknown.
          type: float
          returned: always
          sample: 12.4
    models:
      description: The models by their ids.
      type: dict
      returned: always
      contains:
        state:
          description: One of ready, sleepPending, asleep, waking, stopped, starting, error, disabled.
          type: str
          returned: always
          sample: asleep
        desired:
          description: The state that it should be in, V(active), V(sleeping) or V(stopped).
          type: str
          returned: always
          sample: sleeping
        down:
          description: Whether it should be active, does not run, and the manager does not bring it back now.
          type: bool
          returned: always
          sample: false
        queue_depth:
          description: How many wait for it.
          type: int
          returned: always
          sample: 0
        eta_seconds:
          description: How long it takes until it can be active, by past switches; null if that is unknown.
          type: float
          returned: always
          sample: 8.7
        breaker:
          description:
            - Its circuit breaker, with C(state) (V(closed), V(open) or V(half_open)), the number of C(failures), the
              C(reason) of the last one, and in C(retry_at) when it is tried again, in seconds since 1970. Null if it
              has not failed.
          type: dict
          returned: always
          sample: {state: open, failures: 3, reason: its server has ended, retry_at: 1795882811.3}
        note:
          description: Why the manager leaves it in another state than it should be in; empty if it does not.
          type: str
          returned: always
          sample: ""
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
