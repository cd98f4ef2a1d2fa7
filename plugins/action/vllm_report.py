# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.homegpt.vllm.plugins.plugin_utils import live
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


class ActionModule(ActionBase):
    """Prints lines or a report at once, or fails with lines; connects to no host."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        given = self.validate_argument_spec(
            {
                "lines": {"type": "list", "elements": "str"},
                "report": {"type": "dict"},
                "stat": {"type": "str"},
                "timeline": {"type": "str"},
                "failure": {"type": "list", "elements": "str"},
            },
            required_one_of=[("lines", "report", "failure")],
            required_by={"stat": "report", "timeline": "report"},
        )[1]
        live.say(plain(given["lines"] or []))
        if given["report"]:
            live.show(plain(given["report"]), result, given["stat"], given["timeline"], self._task.check_mode)
        if given["failure"]:
            return {**result, **live.failed(plain(given["failure"]))}
        return {**result, "changed": False}
