#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_warm
short_description: Read the weights of models into the page cache
version_added: 0.2.0
description:
  - Reads the weight files of models into the page cache of the host, so that a later switch to such a model, which
    loads or reloads them, need not read them from the disk. A switch does this by itself while the previous model makes
    room. This module does it minutes before, for those who know which model comes next.
  - Only reads files, with the lowest priority for the disk and the processor. No server is asked and no lock is taken,
    so a switch can run at the same time.
  - Files that are in the page cache already are not read again. At most 90 % of the available RAM is used for all
    models of a task together. If their weights need more, the first part of them is read, and the module succeeds.
  - Fails without reading on hosts whose GPU shares the RAM, since the page cache would take it from the models.
  - If a disk may hang, set C(timeout) for the task.
options:
  model:
    description:
      - The C(id) of the model, one of its C(aliases), or its C(model) if no other model has the same. Several models
        are read one after the other.
    type: list
    elements: str
    required: true
extends_documentation_fragment:
  - homegpt.vllm.switching
  - homegpt.vllm.switching.servers
attributes:
  check_mode:
    support: full
    description: Shows how much would be read. Nothing is read.
  diff_mode:
    support: none
    description: No state of the host changes except its page cache.
  idempotent:
    support: partial
    description:
      - A second run reads nothing and changes nothing, unless the system has dropped weights since, or can't tell what
        the page cache contains. In that case, all of them are read again.
seealso:
  - module: homegpt.vllm.vllm_sleep_state
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Read the weights of the model that is switched to next
  homegpt.vllm.vllm_warm:
    model: qwen3-vl-32b
    models: "{{ vllm_models }}"
    switching: "{{ vllm_switching }}"
  timeout: 3600
"""

RETURN = r"""
models:
  description: What there is of the weights of each model, by its id.
  returned: success
  type: dict
  contains:
    files:
      description: The number of files with weights.
      type: int
      returned: always
      sample: 14
    bytes:
      description: Their size in bytes.
      type: int
      returned: always
      sample: 66700000000
    cached_bytes:
      description: How much of them was in the page cache before, in bytes. Null if the system does not tell.
      type: int
      returned: always
      sample: 33300000000
    read_bytes:
      description: How much was read, in bytes; in check mode, how much would be read.
      type: int
      returned: always
      sample: 33400000000
    seconds:
      description: How long the reading took. Null in check mode.
      type: float
      returned: always
      sample: 9.8
    limited:
      description: Whether the reading ended early, because there was not enough free RAM for the rest.
      type: bool
      returned: always
      sample: false
lines:
  description: The same as text, two lines for each model.
  returned: success
  type: list
  elements: str
  sample:
    - "qwen3-vl-32b: 66.7 GB of weights in 14 files, 33.3 GB of them in the page cache"
    - "qwen3-vl-32b: 33.4 GB read in 9.8 s"
error:
  description:
    - The kind of failure, for conditions in playbooks. V(UnknownModel), V(InventoryError), or V(SwitchingError) for all
      others, such as weights that can't be found or read.
  returned: failure
  type: str
  sample: UnknownModel
mistakes:
  description: All mistakes in the model inventory, each with its path and the remedy.
  returned: when O(models) or O(switching) contains mistakes
  type: list
  elements: str
  sample: ["vllm_models[2] (gpt-oss-20b): host_port 8001 is taken by qwen3-vl-30b-a3b"]
"""

from ansible_collections.homegpt.vllm.plugins.module_utils._adapter import run


def main():
    run("vllm_warm")


if __name__ == "__main__":
    main()
