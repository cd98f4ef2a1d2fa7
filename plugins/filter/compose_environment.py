# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: compose_environment
short_description: An environment for a compose file
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Turns the environment variables of a service that is no model into texts for a compose file. Dollars are doubled,
    and where a secret would stand there is a reference.
positional: prefix
options:
  _input:
    description: The environment variables.
    type: dict
    required: true
  prefix:
    description: What the names of the secrets in C(.env) begin with.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show what the compose file says about the environment
  ansible.builtin.debug:
    msg: "{{ {'OAUTH_CLIENT_SECRET': 'hidden'} | homegpt.vllm.compose_environment('WEBUI_') }}"
"""

RETURN = r"""
_value:
  description: The texts by the variables' names.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def compose_environment(env, prefix, inline=False):
    """The texts by name; raises AnsibleFilterError for what no environment can hold."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose

    try:
        words = compose.plain_environment_words(plain(env), prefix)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error
    return {name: word.in_compose(inline) for name, word in words.items()}


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"compose_environment": compose_environment}
