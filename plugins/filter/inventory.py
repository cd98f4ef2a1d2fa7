# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: inventory
short_description: Validate the model inventory and fill in the defaults
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Checks C(vllm_models) and C(vllm_switching) on the controller and returns both with all defaults filled in.
  - Fails with all mistakes at once.
positional: switching
options:
  _input:
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
- name: Show which models are managed
  ansible.builtin.debug:
    msg: >-
      {{ (vllm_models | homegpt.vllm.inventory(vllm_switching)).vllm_models
         | rejectattr('startup_mode', 'equalto', 'disabled') | map(attribute='id') }}
"""

RETURN = r"""
_value:
  description: A dictionary with the keys C(vllm_models) and C(vllm_switching).
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import InventoryError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def inventory(models, switching=None):
    """The normalised inventory as plain data; raises AnsibleFilterError with every mistake."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse

    try:
        return parse(plain(models), plain(switching)).as_dict()
    except InventoryError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"inventory": inventory}
