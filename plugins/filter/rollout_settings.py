# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rollout_settings
short_description: How a switch of many hosts is to go, checked
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Checks the variables of C(homegpt.vllm.switch) that say how it goes on over many hosts, and fills in their defaults.
  - Raises every mistake at once. Numbers may be given as text, as a survey of AWX does; an empty text counts as not
    given.
options:
  _input:
    description:
      - A dictionary of C(switch_waves), C(switch_max_failures), C(switch_keep), C(switch_on_stop), C(switch_timeout).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the waves
  ansible.builtin.debug:
    msg: "{{ ({'switch_waves': '1,25%,100%'} | homegpt.vllm.rollout_settings).waves }}"
"""

RETURN = r"""
_value:
  description:
    - A dictionary of C(waves), a list for C(serial), C(max_failures), null for any number, C(keep) and C(on_stop).
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchingError
from ansible_collections.homegpt.vllm.plugins.plugin_utils import rollout
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def rollout_settings(variables):
    """The settings as a dictionary; raises AnsibleFilterError with every mistake."""
    try:
        return rollout.read(plain(variables))._asdict()
    except SwitchingError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"rollout_settings": rollout_settings}
