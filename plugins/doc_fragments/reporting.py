# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What the modules that report on hosts have in common."""

    DOCUMENTATION = r"""
options: {}
attributes:
  action:
    support: full
    description: It runs on the controller.
  check_mode:
    support: full
    description: It changes no host. O(timeline) is not written in check mode.
  diff_mode:
    support: N/A
    description: It changes nothing.
  idempotent:
    support: full
    description: It changes nothing.
"""
