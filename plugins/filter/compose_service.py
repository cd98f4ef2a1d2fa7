# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: compose_service
short_description: What a model's service in a compose file says
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Turns a model into those parts of its compose service that follow from the model inventory, as texts for a compose
    file. Dollars are doubled, and where a secret would stand there is a reference such as V(${MODEL_8001_API_KEY}).
  - The values of the secrets are what P(homegpt.vllm.stack_secrets#filter) returns.
positional: gpu_access, image, env
options:
  _input:
    description: A model as the filter P(homegpt.vllm.inventory#filter) returns it.
    type: dict
    required: true
  gpu_access:
    description: How containers get GPUs.
    type: str
    choices: [nvidia, cdi, amd, none]
    required: true
  image:
    description: The image of models that name none.
    type: str
    required: true
  env:
    description: Environment variables of every model's server; a model's own win.
    type: dict
    default: {}
  inline:
    description: Whether secrets stand there themselves, for a compose file that is never written.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show the environment of a model's container
  ansible.builtin.debug:
    msg: "{{ (model | homegpt.vllm.compose_service('nvidia', 'vllm/vllm-openai:v0.32.0')).environment }}"
  vars:
    model: "{{ (vllm_models | homegpt.vllm.inventory).vllm_models | first }}"
"""

RETURN = r"""
_value:
  description:
    - A dictionary with C(image), C(entrypoint) (a list, empty for the image's own), C(command) (a list), C(environment)
      (a dictionary), C(api_key), the key that the model's clients need, V(dummy) where it wants none, and
      C(modelscope), whether its weights come from ModelScope.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def compose_service(model, gpu_access, image, env=None, inline=False):
    """The parts of the service; raises AnsibleFilterError for what can't be said in a compose file."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose

    try:
        return compose.service(plain(model), gpu_access, image, plain(env), inline)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"compose_service": compose_service}
