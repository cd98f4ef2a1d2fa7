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
  - A model that is no longer declared is stopped and its container removed, one that has become disabled is stopped. If
    it was active, the default model of its GPUs is made active where it sleeps.
  - A model that was meant to be active and is stopped, as when an earlier run was cut off, is started.
  - Models that were disabled before are left alone.
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

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import share_gpu
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def convergence(models, containers, hashes, status, project):
    """What to do, as lists of ids and names."""
    wanted = {model["id"]: model for model in plain(models)}
    hash_of = dict(line.rsplit(" ", 1) for line in hashes if " " in line)
    states, was_active, meant_active = _states(status)
    disabled = {name for name, model in wanted.items() if model["startup_mode"] == "disabled"}
    unmanaged = disabled | {name for name, state in states.items() if state == "disabled"}

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

    given_up = (set(states) - set(wanted)) | disabled
    stop = [
        name for name, state in states.items() if name in changed | given_up and state not in ("stopped", "disabled")
    ]
    # Also what an earlier run has stopped and, since it was cut off, not started again.
    down = [name for name in meant_active if states.get(name) == "stopped"]
    start = [
        name
        for name in dict.fromkeys([name for name in was_active if name in changed] + down)
        if name in wanted and name not in unmanaged and not _conflicts(wanted, name, set(was_active) - given_up)
    ]
    if set(was_active) & given_up:
        start += [
            name
            for name, model in wanted.items()
            if model["startup_mode"] == "active"
            and states.get(name) == "sleeping"
            and name not in changed
            and not _conflicts(wanted, name, (set(was_active) | set(start)) - given_up)
        ]
    return {"stop": stop, "remove": remove, "start": start, "taken": taken}


def _conflicts(wanted, name, others):
    """Whether the model shares a GPU with one of the others."""
    return any(share_gpu(wanted[name]["gpus"], wanted[o]["gpus"]) for o in others if o in wanted and o != name)


def _states(status):
    """The state of every model that the host knew, which were active and which were meant to be, as far as it told."""
    try:
        report = json.loads(status)
        states = {name: model["state"] for name, model in report["models"].items()}
        return states, list(report["active_models"]), [n for n, state in report["wanted"].items() if state == "active"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}, [], []


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"convergence": convergence}
