# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rounds
short_description: Models in rounds that can be switched side by side
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Sorts ids of models into rounds. Models of one round have no GPU to do with each other, so that
    M(homegpt.vllm.vllm_sleep_state) can bring them to a state together.
positional: models, switching
options:
  _input:
    description: The ids of models, in the order in which they are to be switched.
    type: list
    elements: str
    required: true
  models:
    description: The list C(vllm_models).
    type: list
    elements: dict
    required: true
  switching:
    description: The dictionary C(vllm_switching).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Load models, those of different GPUs side by side
  homegpt.vllm.vllm_sleep_state:
    model: "{{ item }}"
    state: sleeping
    models: "{{ vllm_models }}"
  loop: "{{ ['a', 'b', 'c'] | homegpt.vllm.rounds(vllm_models, vllm_switching) }}"
"""

RETURN = r"""
_value:
  description: The rounds, each a list of ids.
  type: list
  elements: list
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchingError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def rounds(ids, models, switching=None):
    """The ids in rounds; raises AnsibleFilterError for an inventory with mistakes and for an unknown id."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse

    try:
        inventory = parse(plain(models), plain(switching))
        return [[m.id for m in one] for one in inventory.rounds(inventory.find(name) for name in plain(ids))]
    except SwitchingError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"rounds": rounds}
