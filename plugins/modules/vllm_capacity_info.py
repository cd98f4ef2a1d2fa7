#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_capacity_info
short_description: Check whether a host has enough memory for its model inventory
version_added: 0.1.0
description:
  - Compares a host's model inventory with its RAM and, if C(nvidia-smi) or the driver of AMD's GPUs reports them, with
    its GPUs. It queries no server, so it can run before the stack is provisioned.
  - It does not fail if something does not fit; it reports the problems.
  - The memory that a sleeping server keeps on its GPUs is not known in advance; 1 GB for each server is assumed.
options:
  stack_dir:
    description:
      - The directory of the host's compose project. C(run/costs.json) in it says how long the models take to sleep and
        to wake. It need not exist.
    type: path
    default: /opt/homegpt
extends_documentation_fragment:
  - homegpt.vllm.switching
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
  - module: homegpt.vllm.vllm_sleep_state_info
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Check whether the models fit the host
  homegpt.vllm.vllm_capacity_info:
    models: "{{ vllm_models }}"
    switching: "{{ vllm_switching }}"
  register: capacity

- name: Fail if they do not
  ansible.builtin.assert:
    that: capacity.problems | length == 0
    fail_msg: "{{ capacity.problems | join('\n') }}"
"""

RETURN = r"""
ram_gb:
  description: The RAM of the host, in GB of 10^9 bytes; null if the kernel does not report it.
  returned: success
  type: float
  sample: 134.9
gpus:
  description: The GPUs whose memory C(nvidia-smi) or the driver of AMD's GPUs reports; empty if neither is available.
  returned: success
  type: list
  elements: dict
  contains:
    index:
      description: Its number on the host, as in C(gpus) of O(models).
      type: int
      returned: always
      sample: 0
    uuid:
      description: Its UUID, which stays the same if the numbers change.
      type: str
      returned: always
      sample: GPU-8f3b7c1e-2d4a-4b6c-9e8f-0a1b2c3d4e5f
    total_gb:
      description: Its memory, in GB.
      type: float
      returned: always
      sample: 34.19
    free_gb:
      description: Its free memory, in GB.
      type: float
      returned: always
      sample: 33.6
unified_memory:
  description:
    - Whether the GPUs use the RAM of the host as their memory, as on a DGX Spark or a Jetson. C(total_gb) and
      C(free_gb) of C(gpus) are then the total and the available RAM. Null if C(nvidia-smi) does not report it.
  returned: success
  type: bool
  sample: false
problems:
  description: What in the inventory can't work on this host, each with the remedy.
  returned: success
  type: list
  elements: str
  sample:
    - "the weights of a and b take 150.0 GB of RAM when they sleep at level 1, but the host has 134.9 GB: set
      sleep_level of a to 2"
advice:
  description:
    - What works but is probably not intended, each with the remedy. That includes a C(sleep_level) or
      C(available_ram_gb) that keeps a model from the sleep level that was measured to be faster on this host.
  returned: success
  type: list
  elements: str
  sample: []
mistakes:
  description: All mistakes in the model inventory, each with its path and the remedy.
  returned: when O(models) or O(switching) contains mistakes
  type: list
  elements: str
  sample: ["vllm_models[2] (gpt-oss-20b): host_port 8001 is taken by qwen3-vl-30b-a3b"]
"""

from ansible_collections.homegpt.vllm.plugins.module_utils._adapter import Module, look
from ansible_collections.homegpt.vllm.plugins.module_utils._arguments import COMMON_ARGUMENTS
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import capacity, hardware, state_files


def told(inventory, stack_dir):
    ram, gpus = hardware.read_ram_total_gb(), hardware.read_gpus()
    return {
        "changed": False,
        "ram_gb": None if ram is None else round(ram, 2),
        "gpus": [
            {"index": gpu.index, "uuid": gpu.uuid, "total_gb": round(gpu.total_gb, 2), "free_gb": round(gpu.free_gb, 2)}
            for gpu in (gpus or {}).values()
        ],
        "unified_memory": hardware.shared(gpus),
        "problems": capacity.lint(inventory, ram, gpus),
        "advice": capacity.advice(inventory, ram, gpus, state_files.models(stack_dir, state_files.COSTS)),
    }


def main():
    module = Module(argument_spec=COMMON_ARGUMENTS, supports_check_mode=True)
    look(module, lambda inventory: told(inventory, module.params["stack_dir"]))


if __name__ == "__main__":
    main()
