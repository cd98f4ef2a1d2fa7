# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: service_weights
positional: stack_dir, home, staying
short_description: Where the weights of a container are, by its service in a compose file
version_added: 0.2.0
author:
  - HomeGPT (@homegpt)
description:
  - What P(homegpt.vllm.weights#filter) tells of models of the inventory, of one that is gone and left its compose file.
options:
  _input:
    description: The service, as the role P(homegpt.vllm.vllm_servers#role) writes it.
    type: dict
    required: true
  stack_dir:
    description: The folder of the compose project, where relative volumes begin.
    type: str
    required: true
  home:
    description: The home of who runs docker compose, for volumes that begin with a tilde.
    type: str
    default: "~"
  staying:
    description:
      - The models of the inventory, as the filter P(homegpt.vllm.inventory#filter) returns them. What one of them
        names, wherever that is, has no C(folder) and no C(locks). A C(start_command) may read the same cache, by
        whatever path.
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Show where its weights are
  ansible.builtin.debug:
    msg: "{{ (compose_file.services.values() | first) | homegpt.vllm.service_weights('/opt/homegpt') }}"
"""

RETURN = r"""
_value:
  description: The dictionary that P(homegpt.vllm.weights#filter) has for a model, empty for what is in no cache.
  type: dict
"""

from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def service_weights(service, stack_dir, home="~", staying=()):
    """Where the weights are; nothing where that can't be told."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import map_text
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import serve_line
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import weights as places

    said = map_text(plain(service), lambda text: text.replace("$$", "$"))
    forms = {"command": list, "volumes": list, "environment": dict}
    if any(not isinstance(said.get(key), form) for key, form in forms.items()):
        return {}  # somebody else has written it
    line = serve_line.parse(said["command"])
    given = [places.volume_of(text, stack_dir, home) for text in said["volumes"]]
    try:
        one = places.weights_of(line.model, line.args, said["environment"], given)
    except ValueError:
        return {}
    if one is None:
        return {}
    told = places.plain(one, given)
    return {**told, "folder": "", "locks": ""} if places.is_named(one.repo, plain(staying)) else told


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"service_weights": service_weights}
