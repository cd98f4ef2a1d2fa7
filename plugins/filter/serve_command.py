# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: serve_command
short_description: The command line of a model's server
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Turns a model into the words behind C(vllm serve), without any quoting.
  - The first word is the model; C(--served-model-name) names its C(id), its C(aliases) and itself.
  - Each of its C(args) follows. V(true) is C(--flag), V(false) is C(--no-flag) where vLLM has that and else nothing,
    null is nothing, a list is C(--flag item item), a dictionary is C(--flag=JSON), everything else is C(--flag=value).
  - C(--tensor-parallel-size) follows from C(gpus), and C(--enable-sleep-mode) is given, unless C(args) say otherwise.
  - Secrets are in the words as they are; do not show them.
options:
  _input:
    description: A model as the filter P(homegpt.vllm.inventory#filter) returns it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show how a model would be served by hand
  ansible.builtin.debug:
    msg: "vllm serve {{ model | homegpt.vllm.serve_command | map('quote') | join(' ') }}"
  vars:
    model: "{{ (vllm_models | homegpt.vllm.inventory).vllm_models | first }}"
"""

RETURN = r"""
_value:
  description: The words.
  type: list
  elements: str
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def serve_command(model):
    """The words; raises AnsibleFilterError for what vLLM's command line can't take."""
    try:
        return [word.plain for word in compose.serve_words(plain(model))]
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"serve_command": serve_command}
