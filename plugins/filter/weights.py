# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: weights
positional: env, cache_dir, volumes, stack_dir, home, disabled
short_description: Which models have their weights in a cache, and where that is
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Of the managed models with containers of their own, picks those whose C(model) is the name of a repository of a hub
    that vLLM will look for in its cache, and tells where in the container and on the host the weights are. A path, a
    URL or a single GGUF file is left to vLLM.
  - It follows what the environment says, such as C(HF_HOME), C(HF_HUB_CACHE), C(VLLM_USE_MODELSCOPE) and
    C(MODELSCOPE_CACHE), C(args.download_dir), and the volumes, of which the deepest counts.
options:
  _input:
    description: The models, as P(homegpt.vllm.inventory#filter) returns them.
    type: list
    elements: dict
    required: true
  env:
    description: Environment variables of every model's server; a model's own win.
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
  home:
    description: The home of who runs docker compose, for volumes that begin with a tilde.
    type: str
    default: "~"
  disabled:
    description: Whether disabled models count too.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show what is fetched
  ansible.builtin.debug:
    msg: "{{ (vllm_models | homegpt.vllm.inventory).vllm_models | homegpt.vllm.weights(vllm_env, vllm_cache_dir) }}"
"""

RETURN = r"""
_value:
  description: >-
    Dictionaries by the models' ids, each with the keys C(hub) (V(huggingface) or V(modelscope)), C(repo),
    C(revision), C(load_format), C(cache) (the folder of all repositories in the container), C(folder) and C(locks)
    (what the repository has on the host; empty where the host has no folder for it, and for ModelScope), C(marker)
    (the file in C(folder) that says that all is fetched) and C(fetch). That one is V(fetch), V(ask) where only the
    container can tell what is missing, V(look) where it can't be fetched, since the cache is read-only or in no
    volume, and V(leave) where it is left to vLLM.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def weights(models, env=None, cache_dir="/root/.cache", volumes=(), stack_dir="/opt/homegpt", home="~", disabled=False):
    """Where the weights of which model are; raises AnsibleFilterError for an environment that leaves it open."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import weights as places

    found = {}
    for model in plain(models):
        if model["start_command"] or (model["startup_mode"] == "disabled" and not disabled):
            continue
        own = {**plain(env or {}), **model["env"]}
        given = places.all_volumes(cache_dir, plain(volumes), stack_dir, home, places.uses_modelscope(own))
        try:
            one = places.weights_of(model["model"], model["args"], own, given)
        except ValueError as error:
            if model["startup_mode"] == "disabled":
                continue  # it is left alone, mistaken or not
            raise AnsibleFilterError(f"{model['id']}: {error}") from error
        if one is not None:
            found[model["id"]] = places.plain(one, given)
    return found


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"weights": weights}
