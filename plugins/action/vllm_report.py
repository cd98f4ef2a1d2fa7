# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.homegpt.vllm.plugins.plugin_utils.live import failed, say
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


class ActionModule(ActionBase):
    """Prints lines at once, and hands data on; it asks no host."""

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
                "failure": {"type": "list", "elements": "str", "default": []},
            },
            required_one_of=[("lines", "report", "failure")],
            required_by={"stat": "report", "timeline": "report"},
        )[1]
        # With all that a filter has returned in one argument, it has not to be asked once for each.
        report = plain(given["report"] or {})
        if report.get("shown", True):
            table = report.get("table")
            # Apart from what is above it, where the task's banner comes with its result only.
            say([*plain(given["lines"] or []), *(["", *table] if table else [])])
            if given["stat"]:
                result["ansible_stats"] = {
                    "data": {given["stat"]: report["rows"]},
                    "aggregate": False,
                    "per_host": False,
                }
            if given["timeline"]:
                self._draw(given["timeline"], report["rows"], result)
        if given["failure"]:
            return {**result, **failed(plain(given["failure"]))}
        return {**result, "changed": False, "report": report}

    def _draw(self, file, rows, result):
        """Write the timeline; where that can't be done, warn: it is no reason to lose a result."""
        # Not above: few ask for one.
        from ansible_collections.homegpt.vllm.plugins.plugin_utils.timeline import path_of, svg

        path = path_of(file)
        if self._task.check_mode:
            say(["", f"timeline: check mode does nothing that could be drawn, so {path} is not written"])
            return
        try:
            with open(path, "w", encoding="utf-8") as written:
                written.write(svg(rows))
        except OSError as error:
            result.setdefault("warnings", []).append(
                f"timeline: {path} could not be written: {error.strerror or error}"
            )
        else:
            say(["", f"timeline: {path}"])
