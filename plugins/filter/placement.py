# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: placement
short_description: Which models of a host are to be active, and which are to sleep
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Sorts the models that are not disabled. Those that C(vllm_active_model) names are to be active; on the other GPUs it
    is those whose C(startup_mode) says so.
positional: switching, wanted
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
  wanted:
    description: What C(vllm_active_model) says, the name of a model or a list of several. Nothing where it is not set.
    type: raw
"""

EXAMPLES = r"""
- name: Show which models are to be active
  ansible.builtin.debug:
    msg: "{{ (vllm_models | homegpt.vllm.placement(vllm_switching, 'gpt-oss-20b')).active }}"
"""

RETURN = r"""
_value:
  description:
    - A dictionary of lists of ids, C(active) and C(asleep), and C(wanted), those of C(active) that C(vllm_active_model)
      names.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchingError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def placement(models, switching=None, wanted=None):
    """The ids by what the models are to be; raises AnsibleFilterError for what can't be."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
    from ansible_collections.homegpt.vllm.plugins.plugin_utils.placement import names_of, place

    try:
        return place(parse(plain(models), plain(switching)), names_of(plain(wanted or [])))
    except SwitchingError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"placement": placement}
