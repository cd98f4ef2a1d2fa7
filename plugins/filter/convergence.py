# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: convergence
short_description: What has to be done to a host's containers for them to follow the model inventory
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Compares the containers of a host with the services that its compose files are going to describe.
  - A model whose container has another configuration is stopped and its container removed. It is started again only if
    it was active.
  - A model that is no longer declared is stopped and its container removed. If it was active, the default model of
    its GPUs is made active where it sleeps.
  - Disabled models are left alone.
positional: containers, hashes, status
options:
  _input:
    description: The models as the filter P(homegpt.vllm.inventory#filter) returns them.
    type: list
    elements: dict
    required: true
  containers:
    description:
      - The lines that C(docker ps --all) prints about every container of the host, its name, the id of its model, the
        name of its compose project and the hash of its configuration, with one space in between.
    type: list
    elements: str
    required: true
  hashes:
    description: The lines that C(docker compose config --hash) prints for the services that are wanted.
    type: list
    elements: str
    required: true
  status:
    description:
      - What the host's own command line printed for C(status --json) before anything was changed. Anything else where
        it could not be asked.
    type: str
    required: true
  project:
    description: The name of the compose project.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show what provisioning would do to the containers
  ansible.builtin.debug:
    msg: "{{ models | homegpt.vllm.convergence(ps.stdout_lines, config.stdout_lines, status.stdout, 'home-gpt') }}"
"""

RETURN = r"""
_value:
  description:
    - A dictionary of lists. C(stop) and C(start) are ids of models, C(remove) names of containers, C(taken) names of
      containers that are wanted but belong to something else.
  type: dict
"""

import json

from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def convergence(models, containers, hashes, status, project):
    """What to do, as lists of ids and names."""
    wanted = {model["id"]: model for model in plain(models)}
    hash_of = dict(line.rsplit(" ", 1) for line in hashes if " " in line)
    states, was_active = _states(status)
    unmanaged = {name for name, state in states.items() if state == "disabled"}
    unmanaged.update(name for name, model in wanted.items() if model["startup_mode"] == "disabled")

    changed, remove, taken = set(), [], []
    names = {model["container_name"] for model in wanted.values() if not model["start_command"]}
    for name, model_id, owner, config_hash in (line.split(" ") for line in containers):
        if owner != project:
            if name in names:
                taken.append(name)
            continue
        # The web interface and whatever else is in the project is no model.
        if not model_id:
            continue
        model = wanted.get(model_id)
        if model is not None and model_id in unmanaged:
            continue
        current = model is not None and not model["start_command"] and name == model["container_name"]
        if not current or hash_of.get(name) != config_hash:
            changed.add(model_id)
            remove.append(name)

    gone = set(states) - set(wanted)
    stop = [name for name, state in states.items() if name in changed | gone and state not in ("stopped", "disabled")]
    start = [name for name in was_active if name in changed and name in wanted and name not in unmanaged]
    if set(was_active) & gone:
        awake = [wanted[name] for name in was_active if name in wanted]
        start += [
            name
            for name, model in wanted.items()
            if model["startup_mode"] == "active"
            and states.get(name) == "sleeping"
            and name not in changed
            and not any(set(model["gpus"]) & set(other["gpus"]) for other in awake)
        ]
    return {"stop": stop, "remove": remove, "start": start, "taken": taken}


def _states(status):
    """The state of every model that the host knew, and which were active; nothing where nobody could tell."""
    try:
        report = json.loads(status)
        return {name: model["state"] for name, model in report["models"].items()}, list(report["active_models"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}, []


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"convergence": convergence}
