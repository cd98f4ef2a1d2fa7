# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: ssh_keep_alive
short_description: Options of ssh with which a connection to a host that hangs ends
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Adds keep-alives to the extra options of ssh that are in force, so that setting C(ansible_ssh_extra_args) to the
    result loses none of them. A connection without a sign of life is given up after 15 seconds.
  - ssh takes the first of two values, so keep-alives that are configured already count.
options:
  _input:
    description: What the inventory says, an empty text where it says nothing.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the options
  ansible.builtin.debug:
    msg: "{{ '' | homegpt.vllm.ssh_keep_alive }}"
"""

RETURN = r"""
_value:
  description: The options as one text.
  type: str
"""

from ansible import constants, context

KEEP_ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"


def ssh_keep_alive(of_inventory):
    """The options of the inventory, else of the command line, else of the configuration, with keep-alives behind."""
    configured = constants.config.get_config_value("ssh_extra_args", plugin_type="connection", plugin_name="ssh")
    chosen = of_inventory or context.CLIARGS.get("ssh_extra_args") or configured or ""
    return f"{chosen} {KEEP_ALIVE}".strip()


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"ssh_keep_alive": ssh_keep_alive}
