# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: stack_secrets
short_description: The secrets that the compose files of a stack refer to
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Collects the values behind the references that P(homegpt.vllm.compose_service#filter) and
    P(homegpt.vllm.compose_environment#filter) write.
  - A value is a secret when its name contains token (not tokens or tokenizer), key, secret, password or credential.
positional: env, others
options:
  _input:
    description: Models as the filter P(homegpt.vllm.inventory#filter) returns them.
    type: list
    elements: dict
    required: true
  env:
    description: Environment variables of every model's server.
    type: dict
    default: {}
  others:
    description: The environments of services that are no models, by the prefix of their secrets' names.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show what the secrets are called
  ansible.builtin.debug:
    msg: "{{ (vllm_models | homegpt.vllm.inventory).vllm_models | homegpt.vllm.stack_secrets | list }}"
"""

RETURN = r"""
_value:
  description: The values by the names that the compose files use.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def stack_secrets(models, env=None, others=None):
    """The values by name; raises AnsibleFilterError for what no compose file can say."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose

    try:
        found = compose.secrets(plain(models), plain(env))
        for prefix, environment in plain(others or {}).items():
            words = compose.plain_environment_words(environment, prefix)
            found.update({word.secret: word.value for word in words.values() if word.secret})
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error
    return found


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"stack_secrets": stack_secrets}
