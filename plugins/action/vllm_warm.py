# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.homegpt.vllm.plugins.plugin_utils.host_engine import EngineAction


class ActionModule(EngineAction):
    """Runs the module of this name."""

    def run(self, tmp=None, task_vars=None):
        return {**super().run(tmp, task_vars), **self.run_module(task_vars)}
