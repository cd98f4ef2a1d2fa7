# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Common options of the modules that use the switching engine."""

    DOCUMENTATION = r"""
options:
  models:
    description:
      - The models of the host, as in C(vllm_models) of the model inventory. C(docs/inventory.md) of the collection
        describes the keys.
      - All mistakes in it are reported at once, before anything is touched.
      - Values whose names contain token (not tokens or tokenizer), key, secret, password or credential are kept out of
        all logs and results, wherever they occur in a model, including the words of commands and requests, if they have
        at least eight characters and are not part of a model's names.
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
    description: In check mode, reports what would change, without changing anything.
  diff_mode:
    description: In diff mode, shows what has changed, or in check mode would change.
  idempotent:
    description: A second run with the same arguments changes nothing and reports that.
"""

    # For those that communicate with servers.
    SERVERS = r"""
options:
  stack_dir:
    description:
      - The directory of the host's compose project. Its C(run) directory contains the lock, the desired state, the
        recorded answers, memory needs and sleep times of the models, and the logs of servers that a C(start_command)
        starts.
    type: path
    default: /opt/homegpt
notes:
  - The servers are reached on the loopback address of the managed host. No model port has to be open to other hosts.
"""
