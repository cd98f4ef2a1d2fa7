# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What the modules that use the switching engine have in common."""

    DOCUMENTATION = r"""
options:
  models:
    description:
      - The models of the host, as in C(vllm_models) of the model inventory. C(docs/inventory.md) of the collection
        describes the keys.
      - All mistakes in it are reported at once, before anything is touched.
      - Values whose names contain token (not tokens or tokenizer), key, secret, password or credential are kept out of
        all logs and results, wherever in a model they stand, words of commands and requests included, if they have at
        least eight characters and are no part of a model's names.
    type: list
    elements: dict
    required: true
  switching:
    description:
      - The host's settings for switching, as in C(vllm_switching) of the model inventory.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Tells in check mode what would change, without changing anything.
  diff_mode:
    description: Says what has changed, or in check mode would change, when in diff mode.
  idempotent:
    description: A second run with the same arguments changes nothing and says so.
"""

    # Of those that talk to servers.
    SERVERS = r"""
options:
  stack_dir:
    description:
      - The folder of the host's compose project. Its C(run) folder has the lock, what the host is meant to be, the
        recorded answers and memory needs of the models, and the logs of servers that a C(start_command) starts.
    type: path
    default: /opt/homegpt
notes:
  - The servers are reached on the loopback address of the managed host; no model port has to be open to anybody else.
"""
