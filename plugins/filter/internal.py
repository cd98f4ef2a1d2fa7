# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: internal
short_description: Internal to the roles and playbooks of this collection
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - The filters with this page are how roles, playbooks and templates of this collection call its Python code.
  - They are no interface for others. Their arguments and results may change with any release.
options:
  _input:
    description: What the function behind the filter takes first.
    type: raw
    required: true
"""

EXAMPLES = r"""
# Roles and playbooks of this collection call these filters. There is no other use for them.
"""

RETURN = r"""
_value:
  description: What the function behind the filter returns.
  type: raw
"""

import functools
import importlib

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchingError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain

# The functions behind the filters, in plugin_utils. Their docstrings say what each takes and returns.
FUNCTIONS = {
    "compose_environment": "compose.plain_environment",
    "compose_service": "compose.service",
    "container_volumes": "weights.container_volumes",
    "convergence": "containers.convergence",
    "docker_problem": "containers.docker_problem",
    "dotenv_text": "compose.dotenv_text",
    "door_hosts": "door.hosts",
    "entrypoints": "compose.entrypoint_problems",
    "gateway_keys": "gateway.keys",
    "gateway_settings": "gateway.settings",
    "host_folders": "weights.folders_of_models",
    "load_batches": "placement.load_batches",
    "open_webui_environment": "open_webui.environment",
    "placement": "placement.placement",
    "service_weights": "serve_line.weights_of_service",
    "stack_secrets": "compose.stack_secrets",
    "weights": "weights.of_models",
    "weights_on_host": "weights.folders_on_host",
    "yaml_text": "compose.yaml_text",
}


def _call(place, *args, **kwargs):
    """Call the function with plain data; what it refuses is an error of the filter."""
    module, name = place.split(".")
    # Not above: Ansible loads every filter of a collection for any of them.
    imported = importlib.import_module("ansible_collections.homegpt.vllm.plugins.plugin_utils." + module)
    try:
        return getattr(imported, name)(*plain(args), **plain(kwargs))
    except (SwitchingError, ValueError) as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The internal filters."""

    def filters(self):
        return {name: functools.partial(_call, place) for name, place in FUNCTIONS.items()}
