# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: container_volumes
positional: cache_dir, stack_dir, home, modelscope
short_description: The volumes of the models' containers
version_added: 0.2.0
author:
  - HomeGPT (@homegpt)
description:
  - Puts together the caches that every model's container has and what the inventory adds. A cache that one of
    these would hide, or be hidden by, is left out.
options:
  _input:
    description: The volumes of the inventory, as C(SOURCE:TARGET[:MODE]).
    type: list
    elements: str
    required: true
  cache_dir:
    description: The folder on the host for the caches.
    type: str
    required: true
  stack_dir:
    description: The folder of the compose project, where relative volumes begin.
    type: str
    required: true
  home:
    description: The home of who runs docker compose, for volumes that begin with a tilde.
    type: str
    default: "~"
  modelscope:
    description: Whether there are models that come from ModelScope, which has a cache of its own.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show which folders of the host containers need
  ansible.builtin.debug:
    msg: "{{ (vllm_volumes | homegpt.vllm.container_volumes('/root/.cache', '/opt/homegpt')).folders }}"
"""

RETURN = r"""
_value:
  description: >-
    A dictionary with C(caches), folders of the host that are caches and where containers have them, C(volumes), those
    of the inventory with the home written out, C(named), the names of those that are Docker's own, and C(folders),
    all folders of the host.
  type: dict
"""

from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def container_volumes(volumes, cache_dir, stack_dir, home="~", modelscope=False):
    """The volumes, in all forms that are needed."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import weights as places

    given = plain(volumes)
    parsed = [places.volume_of(text, stack_dir, home) for text in given]
    return {
        "caches": places.cache_volumes(cache_dir, given, modelscope),
        "volumes": [home + text[1:] if text.startswith(("~/", "~:")) else text for text in given],
        "named": list(dict.fromkeys(volume.name for volume in parsed if volume.name)),
        "folders": places.host_folders(cache_dir, given, stack_dir, modelscope),
    }


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"container_volumes": container_volumes}
