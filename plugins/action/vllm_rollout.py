# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.homegpt.vllm.plugins.plugin_utils import door, live, rollout
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


class ActionModule(ActionBase):
    """Makes the report of a rollout from what the hosts registered, and prints it when it is due."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        given = self.validate_argument_spec(
            {
                "plan": {"type": "dict"},
                "report": {"type": "dict"},
                "finish": {"type": "bool"},
                "timeline": {"type": "str"},
                "placement": {"type": "bool"},
            },
            required_one_of=[("plan", "placement")],
        )[1]

        def registered(name, hosts):
            found = {}
            for host in hosts:
                values = task_vars["hostvars"][host]
                if name in values:
                    found[host] = rollout.without_templates(plain(values[name]))
            return found

        if given["placement"]:
            # A host that routes to others has no models.
            stat, values = "vllm_placement", task_vars["hostvars"]
            hosts = [one for one in plain(task_vars["ansible_play_hosts_all"]) if not door.is_door(values[one])]
            drifts, placed = registered("__vllm_drift", hosts), registered("__vllm_placed", hosts)
            report = rollout.placement_report(hosts, drifts, placed)
        else:
            stat, last = "vllm_switch", plain(given["report"] or {})
            plan = rollout.Plan(**{key: plain(given["plan"])[key] for key in rollout.Plan._fields})
            tried, undone = list(last.get("tried", ())), {}
            if given["finish"]:
                undone = registered("__vllm_rolled_back", last["roll_back"])
            else:
                # What other hosts have registered is of an earlier rollout.
                tried += plain(task_vars["ansible_play_batch"])
            switched = registered("__vllm_switch", tried)
            report = rollout.report(plan, switched, self._task.check_mode, tried, undone, bool(given["timeline"]))
        if report["shown"]:
            live.show(report, result, stat, given["timeline"], self._task.check_mode)
        return {**result, "changed": False, "report": report}
