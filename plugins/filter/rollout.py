# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rollout
short_description: What became of each host in a switch of many hosts
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Turns what M(homegpt.vllm.vllm_sleep_state) has registered on each host into a report, and says whether so many
    hosts have failed that the rollout is to stop.
positional: hostvars, settings, check, tried, rolled_back, placement, last, steps
options:
  _input:
    description: The names of all hosts of the rollout, in order.
    type: list
    elements: str
    required: true
  hostvars:
    description:
      - The variables of the hosts. C(__vllm_switch) is the result of the switch, C(__vllm_rolled_back) that of rolling
        the host back; of a placement C(__vllm_drift) is what check mode would change, and C(__vllm_placed) the result
        of doing it.
    type: dict
    required: true
  settings:
    description: What P(homegpt.vllm.rollout_settings#filter) returned.
    type: dict
    required: true
  check:
    description: Whether nothing was to be changed.
    type: bool
    default: false
  tried:
    description: The hosts that were tried; what others have registered is older. All of them unless it is given.
    type: list
    elements: str
  rolled_back:
    description: The hosts that were to be rolled back.
    aliases: [put_back]
    type: list
    elements: str
    default: []
  placement:
    description: Whether the report is about the declared placement.
    type: bool
    default: false
  last:
    description: Whether this is the last wave, so that nothing is to come if all went well.
    type: bool
    default: true
    version_added: 0.2.0
  steps:
    description:
      - Whether the rows are to have C(wave), C(steps) and C(back) as well, for P(homegpt.vllm.timeline#filter).
    type: bool
    default: false
    version_added: 0.2.0
"""

EXAMPLES = r"""
- name: Show what became of the hosts
  ansible.builtin.debug:
    msg: "{{ (ansible_play_hosts_all | homegpt.vllm.rollout(hostvars, settings)).table }}"
"""

RETURN = r"""
_value:
  description:
    - A dictionary of C(hosts), all of them; C(tried); C(rows), a list of dictionaries with C(host), C(from), C(to),
      C(seconds), C(result) and C(reason); C(table), the same as lines for people;
      C(failed) and C(changed), names of hosts; C(reasons), by host lists of lines, of those that failed;
      C(should_stop), and C(stops), which is its old name; and
      C(shown), whether it is the time to show the report, since nothing has failed and no other wave comes, or
      whether a placement is declared.
  type: dict
"""

from ansible_collections.homegpt.vllm.plugins.plugin_utils import rollout as rollouts
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain


def rollout(
    hosts,
    hostvars,
    settings,
    check=False,
    tried=None,
    rolled_back=(),
    placement=False,
    last=True,
    steps=False,
    put_back=(),
):
    """The report as a dictionary."""
    hosts, chosen = plain(hosts), rollouts.Settings(**plain(settings))
    tried = hosts if tried is None else plain(tried)

    def registered(name, among=tried):
        # A task that was skipped registers that.
        found = {h: rollouts.without_templates(plain(hostvars[h][name])) for h in among if name in hostvars[h]}
        return found if placement else {host: one for host, one in found.items() if not one.get("skipped")}

    undone = {}
    if placement:
        switched = registered("__vllm_placed")
        rows = rollouts.places(hosts, registered("__vllm_drift"), switched)
    else:
        switched = registered("__vllm_switch")
        undone = registered("__vllm_rolled_back", plain(rolled_back or put_back))
        rows = rollouts.rows(hosts, switched, chosen, check, undone)
        if steps:
            rows = rollouts.with_steps(rows, chosen, switched, undone)
    failures = rollouts.failures(rows)
    reasons = {row["host"]: _failure(row, undone, switched) for row in failures}
    places = {host: rollouts.place(undone.get(host) or switched.get(host) or {}) for host in reasons}
    stop = rollouts.should_stop(rows, chosen)
    declared = any(row["result"] not in (rollouts.NOT_DECLARED, rollouts.FAILED) for row in rows)
    return {
        "hosts": hosts,
        "tried": tried,
        "rows": rows,
        "table": rollouts.table(rows, {} if placement else places),
        "failed": [row["host"] for row in failures],
        "reasons": reasons,
        "changed": [row["host"] for row in rows if rollouts.to_undo(row, switched.get(row["host"]))],
        "should_stop": stop,
        "stops": stop,
        "shown": declared if placement else last and not failures,
    }


def _failure(row, *results):
    """The lines that the task said which failed, or the row's reason where none has."""
    found = (each.get(row["host"], {}) for each in results)
    return next((rollouts.message(one) for one in found if rollouts.has_failed(one)), row["reason"]).splitlines()


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"rollout": rollout}
