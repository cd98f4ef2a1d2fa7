#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_sleep_state
short_description: Make a model of a host active, put it to sleep, or stop it
version_added: 0.1.0
description:
  - Brings one model of a host's model inventory to a state by vLLM's sleep mode, and makes room for it on its GPUs.
  - The models that share a GPU with it are drained and put to sleep, and only when every one of them is confirmed
    asleep is the model woken by the calls that its sleep level needs, or started when nothing runs.
  - The model counts as active when its server is healthy, awake and, unless C(ready_completion) is off, has answered a
    completion, or where it knows none a call of its own kind, for a vector, a score or a transcription.
  - States are read from the running servers, never from a file. One switch runs on a host at a time.
  - Its answer to a fixed prompt or call, the canary, is compared with the one it gave when its server was started.
  - When a step fails, what C(escalation) allows is tried, then the model that was active before is put back, and the
    module fails with what happened, what the host is left with, and what to do.
options:
  model:
    description:
      - The model, by its C(id), one of its C(aliases), or its C(model) where that names only one.
      - Several models are brought to O(state) side by side. They must have no GPU to do with each other, also not by
        way of a third model that shares one with each.
      - Required unless O(state=previous) or O(state=undone), which have no use for it.
    type: list
    elements: str
  state:
    description:
      - V(active) makes it the one awake model of its GPUs.
      - V(sleeping) takes it off its GPUs as its C(sleep_level) says. A model that is not running is loaded first, and a
        model that had to make room for that is active again at the end.
      - V(stopped) ends its server.
      - V(previous) makes active again what the last switch of the host has taken off its GPUs, without waiting for
        C(min_active_seconds). It may be asked for again, and stays so.
      - V(undone) takes back what the tasks of this O(change) have changed on the host, if it is still as they left it.
    type: str
    choices: [active, sleeping, stopped, previous, undone]
    default: active
  change:
    description:
      - A name of your choosing for what this task changes, such as a ticket's, so that O(state=undone) can take just
        that back later. Tasks of the same name are one change.
      - Several O(model) are then switched as one. Where one fails, the others are put back, too, unless C(escalation)
        is without C(roll_back).
      - O(state=undone) puts back what was active before, and takes off the GPUs what took nobody's place. It does all
        of that or nothing, and nothing waits for C(min_active_seconds).
      - Whether the models concerned are as the change left them is looked at when no other switch can come in between.
        Where somebody has made another one active since, or put one to sleep, nothing is touched, and the module
        fails with RV(error=ChangedSince) and what is active. A model that has ended by itself keeps nobody from that.
    type: str
    version_added: 0.2.0
  record_canary:
    description:
      - Whether the model is known to answer rightly once it is active, so that its answer to the canary's prompt is
        recorded, in place of one recorded before. Without this an answer is recorded when a server has been started.
      - Goes with O(state=active).
    type: bool
    default: false
extends_documentation_fragment:
  - homegpt.vllm.switching
  - homegpt.vllm.switching.servers
attributes:
  check_mode:
    support: full
    description: Shows the very steps that would be done. The servers are asked for their states and nothing else.
  diff_mode:
    support: full
    description: Shows the state of every model before and after, and the steps.
  idempotent:
    support: full
    description: A model that is already as wanted gets no request that changes anything.
seealso:
  - module: homegpt.vllm.vllm_sleep_state_info
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Make gpt-oss-20b the active model
  homegpt.vllm.vllm_sleep_state:
    model: gpt-oss-20b
    models: "{{ vllm_models }}"
    switching: "{{ vllm_switching }}"

- name: Give models and switching once for every task of a play
  hosts: vllm_hosts
  gather_facts: false
  module_defaults:
    group/homegpt.vllm.switching:
      models: "{{ vllm_models }}"
      switching: "{{ vllm_switching }}"
  tasks:
    - name: Load a model and leave it asleep
      homegpt.vllm.vllm_sleep_state:
        model: qwen3-vl-32b
        state: sleeping

    - name: Take the answer that it gives now for the right one
      homegpt.vllm.vllm_sleep_state:
        model: gpt-oss-20b
        record_canary: true

    - name: Take the last switch back
      homegpt.vllm.vllm_sleep_state:
        state: previous

    - name: Switch two models of different GPUs as one, and so that just this can be undone
      homegpt.vllm.vllm_sleep_state:
        model: [gpt-oss-20b, qwen3-vl-32b]
        change: OPS-4711

    - name: Undo that, unless somebody has switched since
      homegpt.vllm.vllm_sleep_state:
        state: undone
        change: OPS-4711

    - name: End a server
      homegpt.vllm.vllm_sleep_state:
        model: qwen3-next-80b-a3b-thinking
        state: stopped
"""

RETURN = r"""
active_model:
  description: The id of the model that is active on the GPUs of (the first) O(model) afterwards, null if none is.
  returned: when the switch was tried
  type: str
  sample: gpt-oss-20b
previous_model:
  description: The id of the model that was active there before; the same as RV(active_model) when nothing changed.
  returned: when the switch was tried
  type: str
  sample: qwen3-vl-30b-a3b
active_models:
  description: The ids of all models that are active afterwards on the GPUs of every O(model).
  returned: when the switch was tried
  type: list
  elements: str
  sample: [gpt-oss-20b]
  version_added: 0.2.0
previous_models:
  description: The ids of all models that were active there before.
  returned: when the switch was tried
  type: list
  elements: str
  sample: [qwen3-vl-30b-a3b]
  version_added: 0.2.0
displaced:
  description: The ids of the models that were active before and are not afterwards.
  returned: when the switch was tried
  type: list
  elements: str
  sample: [qwen3-vl-30b-a3b]
activated:
  description: The ids of the models that are active afterwards and were not before.
  returned: when the switch was tried
  type: list
  elements: str
  sample: [gpt-oss-20b]
models:
  description: The state of every model by its id; of several O(model), of those on their GPUs.
  returned: when the switch was tried
  type: dict
  sample: {gpt-oss-20b: {state: active, level: null}, qwen3-vl-30b-a3b: {state: sleeping, level: 1}}
steps:
  description: What was done, or in check mode would be done, in order.
  returned: when the switch was tried
  type: list
  elements: dict
  contains:
    action:
      description: One of drain, sleep, wake, start, stop, verify, reload (of weights), record (a canary), wait.
      type: str
      returned: always
      sample: sleep
    model:
      description: The id of the model whose server it was done to.
      type: str
      returned: always
      sample: qwen3-vl-30b-a3b
    level:
      description:
        - The level that a sleep puts it to or a wake brings it back from. Null for other actions, and where it is
          unknown.
      type: int
      returned: always
      sample: 1
    started_seconds:
      description:
        - When it began, in seconds since the switch was asked for, as RV(elapsed_seconds) counts them. Null in check
          mode. Steps of several servers may overlap.
      type: float
      returned: always
      sample: 0.021
    seconds:
      description: How long it took, null in check mode.
      type: float
      returned: always
      sample: 0.412
    escalation:
      description:
        - The rung of C(escalation) that it belongs to, V(stop), V(retry), V(restart) or V(roll_back).
      type: str
      returned: when an earlier step failed
      sample: retry
    requests:
      description:
        - How many requests of the server were C(drained), C(parked) until its next wake, or C(cut). Null if unknown.
      type: dict
      returned: for a drain that found some
      sample: {drained: 2, parked: 0, cut: 1}
    note:
      description:
        - What is worth knowing about it, such as how much of its weights was read ahead, or would be in check mode.
      type: str
      returned: when there is something
      sample: 2 requests still ran after 30 s and were cut
    failed:
      description: Why it failed.
      type: str
      returned: when it did
      sample: "gpt-oss-20b: POST http://127.0.0.1:8004/wake_up: answered 500"
requests:
  description: How many requests were drained, parked until the next wake of their model, and cut; null if unknown.
  returned: when the switch was tried
  type: dict
  sample: {drained: 3, parked: 0, cut: 0}
rung:
  description: The furthest rung of C(escalation) that was gone to; empty where no step failed.
  returned: when the switch was tried
  type: str
  sample: retry
  version_added: 0.2.0
recovery:
  description: What was done about steps that failed, and helped, in words; empty where none failed.
  returned: when the switch was tried
  type: str
  sample: gpt-oss-20b woke at the second try
  version_added: 0.2.0
elapsed_seconds:
  description: How long the whole switch took, the wait for the lock included.
  returned: when the switch was tried
  type: float
  sample: 2.318
error:
  description:
    - What kind of failure it was, for playbooks to tell apart. V(UnknownModel), V(InventoryError), V(NotProvisioned),
      V(Blocked), V(LockTimeout), V(SwitchFailed), V(ChangedSince), or V(SwitchingError) for the rest.
  returned: failure
  type: str
  sample: UnknownModel
mistakes:
  description: Every mistake of the model inventory, each with its path and what would be right.
  returned: when O(models) or O(switching) has mistakes
  type: list
  elements: str
  sample: ["vllm_models[2] (gpt-oss-20b): host_port 8001 is taken by qwen3-vl-30b-a3b"]
"""

from ansible_collections.homegpt.vllm.plugins.module_utils._adapter import run


def main():
    run("vllm_sleep_state")


if __name__ == "__main__":
    main()
