# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: entrypoints
short_description: Which models can't be started by what their images start
version_added: 0.2.0
author:
  - HomeGPT (@homegpt)
description:
  - A model's container is given what C(vllm serve) is given, behind the entry point of its image or the C(entrypoint)
    of the model. This tells whose image starts something else, and what to set.
  - Disabled models, those with an C(entrypoint) of their own, and images that are not on the host are passed over.
positional: looked, image
options:
  _input:
    description: The models with containers, as the filter P(homegpt.vllm.inventory#filter) returns them.
    type: list
    elements: dict
    required: true
  looked:
    description:
      - The results of a task that ran C(docker image inspect) for each image in turn, with the format
        C({{json .Config.Entrypoint}}).
    type: list
    elements: dict
    required: true
  image:
    description: The image of models that name none.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse images that start something else
  ansible.builtin.fail:
    msg: "{{ models | homegpt.vllm.entrypoints(looked.results, vllm_image) }}"
  when: models | homegpt.vllm.entrypoints(looked.results, vllm_image)
"""

RETURN = r"""
_value:
  description: What is wrong and the remedy, by the models' ids; empty when nothing is.
  type: dict
"""

import json

from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def entrypoints(models, looked, image):
    """The problems by the models' ids."""
    # Not above: Ansible loads every filter of a collection for any of them.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose

    own = {}
    for result in plain(looked):
        if result.get("rc") == 0:
            own[result["item"]] = json.loads(result["stdout"])
    problems = {}
    for model in plain(models):
        name = model["image"] or image
        if model["startup_mode"] != "disabled" and name in own:
            problems[model["id"]] = compose.entrypoint_problem(model, name, own[name])
    return {name: problem for name, problem in problems.items() if problem}


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"entrypoints": entrypoints}
