# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: host_folders
positional: env, cache_dir, volumes, stack_dir
short_description: Which folders of the host models need to be loaded
version_added: 0.2.0
author:
  - HomeGPT (@homegpt)
description:
  - Collects what containers of the managed models are given of the host and, for models with a C(start_command), what
    that names and where the weights are.
  - Their disks and shares have to be there before the models are started.
options:
  _input:
    description: The list C(vllm_models).
    type: list
    elements: dict
    required: true
  env:
    description: Environment variables of every model's container.
    type: dict
    default: {}
  cache_dir:
    description: The folder on the host for the caches.
    type: str
    default: /root/.cache
  volumes:
    description: More volumes of every model's container.
    type: list
    elements: str
    default: []
  stack_dir:
    description: The folder of the compose project, where relative volumes begin.
    type: str
    default: /opt/homegpt
"""

EXAMPLES = r"""
- name: Show what has to be mounted
  ansible.builtin.debug:
    msg: "{{ vllm_models | homegpt.vllm.host_folders(vllm_env, vllm_cache_dir, vllm_volumes) }}"
"""

RETURN = r"""
_value:
  description: The folders, each once; one in the home of who runs docker compose begins with a tilde.
  type: list
  elements: str
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import InventoryError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def host_folders(models, env=None, cache_dir="/root/.cache", volumes=(), stack_dir="/opt/homegpt"):
    """The folders; raises AnsibleFilterError with every mistake of the models."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import weights as places

    try:
        enabled = parse(plain(models)).enabled
    except InventoryError as error:
        raise AnsibleFilterError(str(error)) from error
    found = []
    contained = [model for model in enabled if not model.start_command]
    if contained:
        modelscope = any(places.uses_modelscope({**plain(env or {}), **model.env}) for model in contained)
        found += places.host_folders(cache_dir, plain(volumes), stack_dir, modelscope)
    for model in enabled:
        if model.start_command:
            found += places.command_folders(model.model, model.args, model.env, model.start_command)
    return list(dict.fromkeys(found))


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"host_folders": host_folders}
