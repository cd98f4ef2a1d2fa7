# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: from_homegpt
short_description: Create a model inventory from homeGPT's files
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Converts the configuration of homeGPT's model manager and its compose files to the variables of a host.
  - Fails with all mistakes at once. Notes list what is not converted.
positional: compose
options:
  _input:
    description: The text of C(config.yaml).
    type: str
    required: true
  compose:
    description: The texts of the compose files by their names.
    type: dict
    default: {}
  name:
    description:
      - The name of C(config.yaml) in notes and mistakes.
      - Empty if there is none. Then each vLLM service in the compose files becomes a model.
    type: str
    default: config.yaml
  variables:
    description: The values of the variables that the compose files use.
    type: dict
    default: {}
  env:
    description: The texts of C(.env) files with more values, by their names. Values in O(variables) take precedence.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show the models of a homeGPT host
  ansible.builtin.debug:
    msg: "{{ (lookup('file', 'config.yaml') | homegpt.vllm.from_homegpt(files)).variables.vllm_models }}"
  vars:
    files:
      compose-vllm-qwen3-vl-32b.yml: "{{ lookup('file', 'compose-vllm-qwen3-vl-32b.yml') }}"
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


def from_homegpt(config, compose=None, name="config.yaml", variables=None, env=None):
    """Variables, notes and text; raises AnsibleFilterError with every mistake."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import (
        convert,
        convert_builder,
        convert_homegpt,
        inventory_file,
    )

    try:
        values = convert.values(plain(variables or {}), plain(env or {}).items())
        files = [(file, inventory_file.read(file, text)) for file, text in plain(compose or {}).items()]
        read = inventory_file.read(name, plain(config)) if name else None
        found = convert_homegpt.from_homegpt(read, files, name, values)
    except (convert.ConvertError, inventory_file.ReadError) as error:
        raise AnsibleFilterError(str(error)) from None
    return {
        "variables": found.variables,
        "notes": found.notes,
        "text": inventory_file.write(
            found.variables, found.notes, [*([name] if name else []), *(file for file, dummy in files)]
        ),
        "secret": convert_builder.holds_secrets(found.variables),
    }


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"from_homegpt": from_homegpt}
