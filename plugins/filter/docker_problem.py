# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: docker_problem
short_description: Why a host's Docker can't run the stack
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Tells from two commands that were tried on a host why containers can't run there, and what to do about it.
positional: config
options:
  _input:
    description: The result of the task that ran C(docker ps).
    type: dict
    required: true
  config:
    description: The result of the task that ran C(docker compose config).
    type: dict
    required: true
  may_be_missing:
    description: Whether Docker may be missing, as in check mode on a host that gets it later.
    type: bool
    default: false
  look_at:
    description: The variables to look at where compose refuses its configuration.
    type: str
    default: args, env and vllm_volumes
"""

EXAMPLES = r"""
- name: Refuse a host without Docker
  ansible.builtin.fail:
    msg: "{{ ps | homegpt.vllm.docker_problem(config) }}"
  when: ps | homegpt.vllm.docker_problem(config)
"""

RETURN = r"""
_value:
  description: What is wrong and the remedy, empty when nothing is.
  type: str
"""

import re

_BY_ROLE = "or let the role homegpt.vllm.docker_host do it (vllm_docker_host: true)"


def docker_problem(ps, config, may_be_missing=False, look_at="args, env and vllm_volumes"):
    """The problem in words, or nothing."""
    said, tried = (str(result.get("stderr") or result.get("msg") or "").strip() for result in (ps, config))
    # Where there is no such command it is the module that speaks, with the error's number: 2 is ENOENT.
    if ps.get("rc") == 2 and not ps.get("stderr") and "module_stdout" not in ps:
        if may_be_missing:
            return ""
        return (
            "Docker is not installed on this host: install the engine and its compose plugin, %s, or give every model "
            "a start_command" % _BY_ROLE
        )
    if ps.get("rc") and not ps.get("stderr"):
        return "the host can't be asked for its containers: %s: see to ansible_python_interpreter" % said
    if ps.get("rc"):
        return (
            "the Docker engine does not answer: %s: start it (systemctl start docker), or be a user who may use it "
            "(ansible_become)" % said
        )
    if re.search(r"'compose' is not a docker command|unknown (shorthand )?flag", tried):
        if may_be_missing:
            return ""
        return "Docker's compose plugin is missing or older than 2.20.3: install docker-compose-plugin, %s" % _BY_ROLE
    if config.get("rc"):
        return "Docker compose refuses what it would be given, look at %s: %s" % (look_at, tried)
    return ""


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"docker_problem": docker_problem}
