#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_host_engine
short_description: Run a module of this collection by the engine that is on the host
version_added: 0.2.0
description:
  - Internal. The action plugins of M(homegpt.vllm.vllm_sleep_state) and M(homegpt.vllm.vllm_sleep_state_info) send this
    module first. It spares them the engine, which is most of what they send.
  - The copy that M(homegpt.vllm.vllm_engine) has left is used only if its files are those of the controller to the
    byte, and nobody but root and the user of the task can have written them. Cached bytecode is not looked at.
    Otherwise the action plugin sends the whole module.
options:
  module:
    description: The full name of the module.
    type: str
    required: true
  arguments:
    description: The module's arguments.
    type: dict
    required: true
  stack_dir:
    description: The folder in which the engine is, as C(switching).
    type: path
    required: true
  digest:
    description: The digest of the controller's engine.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: What the module called does.
  diff_mode:
    support: full
    description: What the module called does.
  idempotent:
    support: full
    description: What the module called does.
seealso:
  - module: homegpt.vllm.vllm_sleep_state
  - module: homegpt.vllm.vllm_sleep_state_info
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Make gpt-oss-20b the active model, by the host's engine where it is the controller's
  homegpt.vllm.vllm_sleep_state:
    model: gpt-oss-20b
    models: "{{ vllm_models }}"
"""

RETURN = r"""
engine_unused:
  description: Why the host's engine was not used. Otherwise the module called returns what it always does.
  returned: when the engine was not used
  type: str
  sample: /opt/homegpt/switching is not the controller's engine
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homegpt.vllm.plugins.module_utils import _adapter, _host_engine, _sleep_state


class Called(AnsibleModule):
    """Has the arguments of the module that is called, and what Ansible itself gives to every module."""

    params: dict

    def _load_params(self):
        super()._load_params()
        given = self.params
        internal = {name: value for name, value in given.items() if name.startswith("_ansible_")}
        self.params = {**given["arguments"], **internal, "_ansible_module_name": given["module"]}


class Module(_adapter.Module, Called):
    """Keeps the secrets out of every log as the module that is called does."""


def main():
    # It logs nothing of its own: what the arguments have of secrets is known to the engine alone.
    module = AnsibleModule(
        argument_spec={
            "module": {"type": "str", "required": True},
            "arguments": {"type": "dict", "required": True},
            "stack_dir": {"type": "path", "required": True},
            "digest": {"type": "str", "required": True},
        },
        supports_check_mode=True,
        no_log=True,
    )
    given = module.params
    folder = os.path.join(given["stack_dir"], _host_engine.FOLDER)
    reason = _host_engine.use(folder, given["digest"], _adapter.ENGINE)
    if reason:
        module.exit_json(changed=False, engine_unused=reason, invocation={})
    _sleep_state.MODULES[given["module"].rpartition(".")[2]](Module)


if __name__ == "__main__":
    main()
