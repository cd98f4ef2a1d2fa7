# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: from_llama_swap
short_description: Create a model inventory from a llama-swap configuration
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Converts a configuration of llama-swap, with or without C(sleepEndpoints) and C(wakeEndpoints), to the variables of
    a host.
  - Fails with all mistakes at once. Notes list what is not converted.
positional: servers
options:
  _input:
    description: The text of the configuration.
    type: str
    required: true
  servers:
    description:
      - How vLLM servers are converted.
      - To V(containers) of the collection, or to V(processes) that their own commands start, as before.
    type: str
    choices: [containers, processes]
    default: containers
  name:
    description: The name of the file in notes and mistakes.
    type: str
    default: config.yaml
  variables:
    description: The values of the environment variables that the file uses.
    type: dict
    default: {}
  env:
    description: The texts of C(.env) files with more values, by their names. Values in O(variables) take precedence.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show what is left to do after a conversion
  ansible.builtin.debug:
    msg: "{{ (lookup('file', 'llama-swap.yaml') | homegpt.vllm.from_llama_swap).notes }}"
"""

RETURN = r"""
_value:
  description:
    - A dictionary with C(variables), C(notes) (texts about what was omitted or guessed), C(text) (the variables as a
      YAML file, with the notes as comments), and C(secret), whether the variables seem to contain secrets.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def from_llama_swap(config, servers="containers", name="config.yaml", variables=None, env=None):
    """Variables, notes and text; raises AnsibleFilterError with every mistake."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import (
        convert,
        convert_builder,
        convert_llama_swap,
        inventory_file,
    )

    try:
        values = convert.values(plain(variables or {}), plain(env or {}).items())
        read = inventory_file.read(name, plain(config))
        found = convert_llama_swap.from_llama_swap(read, name, plain(servers), values)
    except (convert.ConvertError, inventory_file.ReadError) as error:
        raise AnsibleFilterError(str(error)) from None
    return {
        "variables": found.variables,
        "notes": found.notes,
        "text": inventory_file.write(found.variables, found.notes, [name]),
        "secret": convert_builder.holds_secrets(found.variables),
    }


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"from_llama_swap": from_llama_swap}
