# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: open_webui_environment
short_description: What models in containers add to the environment of Open WebUI
version_added: 0.2.0
author:
  - HomeGPT (@homegpt)
description:
  - Returns the environment variables that Open WebUI's container needs for models that vLLM serves in containers of its
    network, as texts for a compose file. Dollars are doubled, and where a secret would stand there is a reference.
  - Those that were given are left out, since they win; but C(NO_PROXY), C(no_proxy) and C(DEFAULT_MODEL_PARAMS) are
    returned joined with what was given.
positional: env, models_for_all
options:
  _input:
    description:
      - The models, as the filter P(homegpt.vllm.inventory#filter) returns them. Those that are disabled or have a
        C(start_command) are left out, and only the proxy is told of those of the kinds V(pooling) and V(speech).
    type: list
    elements: dict
    required: true
  env:
    description: The variables that are given.
    type: dict
    default: {}
  models_for_all:
    description: Whether every account may use every model.
    type: bool
    default: true
  inline:
    description: Whether secrets stand there themselves, for a compose file that is never written.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show the addresses that Open WebUI asks
  ansible.builtin.debug:
    msg: "{{ (models | homegpt.vllm.open_webui_environment).OPENAI_API_BASE_URLS }}"
  vars:
    models: "{{ (vllm_models | homegpt.vllm.inventory).vllm_models }}"
"""

RETURN = r"""
_value:
  description: The texts by the variables' names.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def open_webui_environment(models, env=None, models_for_all=True, inline=False):
    """The texts by name; raises AnsibleFilterError for what Open WebUI would get wrong."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import open_webui

    try:
        return open_webui.environment(plain(models), plain(env), models_for_all, inline)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"open_webui_environment": open_webui_environment}
