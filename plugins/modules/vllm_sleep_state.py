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
  - Brings a model of a host's model inventory into a state with vLLM's sleep mode, and makes room for it on its GPUs.
  - Models that share a GPU with it are drained and put to sleep first. When all of them are confirmed asleep, the
    model is woken with the calls that its sleep level needs, or its server is started.
  - The model is active when its server is healthy and awake. Unless C(ready_completion) is off, it must also have
    answered a completion or, if its server has no completions, a request for a vector, a score or a transcription.
  - States are read from the running servers, never from a file. Only one switch runs on a host at a time.
  - The answer of the model to a fixed prompt or call, the canary, is compared with the recorded answer from the
    start of its server.
  - If a step fails, the module tries what C(escalation) allows, and then makes the previous model active again.
    It fails with the cause, the state of the host, and the remedy.
  - The C(timeout) of a task limits how long Ansible waits, not the switch, which goes on and keeps the host's lock.
    What limits the switch is in the model inventory, such as C(drain_timeout_seconds).
options:
  model:
    description:
      - The C(id) of the model, one of its C(aliases), or its C(model) if no other model has the same.
      - Several models are brought into O(state) in parallel. They must not share GPUs, neither directly nor through
        another model that shares a GPU with each of them.
      - Required unless O(state=previous) or O(state=undone), which do not use it.
    type: list
    elements: str
  state:
    description:
      - V(active) makes it the only awake model on its GPUs.
      - V(sleeping) puts it to sleep at its C(sleep_level). A model that is not running is loaded first. A model that
        had to make room for that is active again at the end.
      - V(stopped) stops its server.
      - V(previous) makes the models active again that the last switch of the host replaced, without waiting for
        C(min_active_seconds). Repeating it changes nothing.
      - V(undone) undoes what the tasks with this O(change) have changed on the host, unless it was changed again since.
    type: str
    choices: [active, sleeping, stopped, previous, undone]
    default: active
  change:
    description:
      - A name for what this task changes, such as the number of a ticket. O(state=undone) can then undo exactly that.
        Tasks with the same name are one change.
      - Several O(model) are then switched together. If one fails, the others are rolled back, too, unless C(escalation)
        does not contain C(roll_back).
      - O(state=undone) makes the models active again that were active before, and takes those off the GPUs that
        replaced nothing. It does all of that or nothing, and does not wait for C(min_active_seconds).
      - The current state is compared with the state that the change left, while no other switch can run. If another
        model was made active or put to sleep since, nothing is changed, and the module fails with
        RV(error=ChangedSince) and the active models. A model whose server ended by itself does not prevent the undo.
    type: str
    version_added: 0.2.0
  record_canary:
    description:
      - Records the answer of the active model to the canary prompt as the correct one, and replaces the recorded one.
        Otherwise, an answer is only recorded after the start of a server.
      - Requires O(state=active).
    type: bool
    default: false
extends_documentation_fragment:
  - homegpt.vllm.switching
  - homegpt.vllm.switching.servers
attributes:
  check_mode:
    support: full
    description: Shows the steps that a run would execute. The servers are only queried for their states.
  diff_mode:
    support: full
    description: Shows the state of every model before and after, and the steps.
  idempotent:
    support: full
    description: A model that is already in the desired state receives no request that changes anything.
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

- name: Set models and switching once for all tasks of a play
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

    - name: Record its current answer as the correct one
      homegpt.vllm.vllm_sleep_state:
        model: gpt-oss-20b
        record_canary: true

    - name: Roll back the last switch
      homegpt.vllm.vllm_sleep_state:
        state: previous

    - name: Switch two models on different GPUs together, as a change that can be undone
      homegpt.vllm.vllm_sleep_state:
        model: [gpt-oss-20b, qwen3-vl-32b]
        change: OPS-4711

    - name: Undo this change, unless other models were switched since
      homegpt.vllm.vllm_sleep_state:
        state: undone
        change: OPS-4711

    - name: Stop a server
      homegpt.vllm.vllm_sleep_state:
        model: qwen3-next-80b-a3b-thinking
        state: stopped
"""

RETURN = r"""
active_model:
  description: The id of the model that is active on the GPUs of the (first) O(model) afterwards, null if there is none.
  returned: when the switch was attempted
  type: str
  sample: gpt-oss-20b
previous_model:
  description: The id of the model that was active there before; the same as RV(active_model) if nothing changed.
  returned: when the switch was attempted
  type: str
  sample: qwen3-vl-30b-a3b
active_models:
  description: The ids of all models that are active afterwards on the GPUs of every O(model).
  returned: when the switch was attempted
  type: list
  elements: str
  sample: [gpt-oss-20b]
  version_added: 0.2.0
previous_models:
  description: The ids of all models that were active there before.
  returned: when the switch was attempted
  type: list
  elements: str
  sample: [qwen3-vl-30b-a3b]
  version_added: 0.2.0
displaced:
  description: The ids of the models that were active before and are not afterwards.
  returned: when the switch was attempted
  type: list
  elements: str
  sample: [qwen3-vl-30b-a3b]
activated:
  description: The ids of the models that are active afterwards and were not before.
  returned: when the switch was attempted
  type: list
  elements: str
  sample: [gpt-oss-20b]
models:
  description: The state of each model by its id. For several O(model), only the models on their GPUs.
  returned: when the switch was attempted
  type: dict
  sample: {gpt-oss-20b: {state: active, level: null}, qwen3-vl-30b-a3b: {state: sleeping, level: 1}}
steps:
  description: The executed steps in order; in check mode, the steps that a run would execute.
  returned: when the switch was attempted
  type: list
  elements: dict
  contains:
    action:
      description:
        - One of drain, sleep, wake, start, stop, verify, reload (of weights), record (a canary), first_answer (to a
          long prompt), wait.
      type: str
      returned: always
      sample: sleep
    model:
      description: The id of the model of the server.
      type: str
      returned: always
      sample: qwen3-vl-30b-a3b
    level:
      description:
        - The level of a sleep, or the level from which a model is woken. Null for other actions, and if it is unknown.
      type: int
      returned: always
      sample: 1
    started_seconds:
      description:
        - The start of the step in seconds since the start of the switch, as RV(elapsed_seconds). Null in check mode.
          Steps of several servers may overlap.
      type: float
      returned: always
      sample: 0.021
    seconds:
      description: The duration of the step, null in check mode.
      type: float
      returned: always
      sample: 0.412
    answer_seconds:
      description: The part of a verify that it took to see that the server answers as it should.
      type: float
      returned: for a verify that came to that
      sample: 0.087
      version_added: 0.2.0
    escalation:
      description:
        - The rung of C(escalation) to which it belongs, V(stop), V(retry), V(restart) or V(roll_back).
      type: str
      returned: when an earlier step failed
      sample: retry
    requests:
      description:
        - The number of requests that were C(drained), C(parked) until the next wake, or C(cut). Null if unknown.
      type: dict
      returned: for a drain that found requests
      sample: {drained: 2, parked: 0, cut: 1}
    warm:
      description: The share of the weights that was in the page cache at the end of the reading ahead.
      type: float
      returned: for a wake or start whose weights were looked for in the page cache, unless in check mode
      sample: 0.96
      version_added: 0.2.0
    note:
      description:
        - Additional information, such as how much of the weights was read ahead, or would be in check mode, or the
          measured times by which a C(sleep_level) of V(auto) was chosen.
      type: str
      returned: when there is additional information
      sample: 2 requests still ran after 30 s and were cut
    failed:
      description: Why it failed.
      type: str
      returned: when the step failed
      sample: "gpt-oss-20b: POST http://127.0.0.1:8004/wake_up: answered 500"
requests:
  description: The numbers of requests that were drained, parked until the next wake, and cut; null if unknown.
  returned: when the switch was attempted
  type: dict
  sample: {drained: 3, parked: 0, cut: 0}
rung:
  description: The last rung of C(escalation) that was tried; empty if no step failed.
  returned: when the switch was attempted
  type: str
  sample: retry
  version_added: 0.2.0
recovery:
  description: How failed steps were recovered, as text; empty if no step failed.
  returned: when the switch was attempted
  type: str
  sample: gpt-oss-20b woke at the second attempt
  version_added: 0.2.0
elapsed_seconds:
  description: The duration of the whole switch, including the wait for the lock.
  returned: when the switch was attempted
  type: float
  sample: 2.318
error:
  description:
    - The kind of failure, for conditions in playbooks. V(UnknownModel), V(InventoryError), V(NotProvisioned),
      V(Blocked), V(LockTimeout), V(SwitchFailed), V(ChangedSince), or V(SwitchingError) for all others.
  returned: failure
  type: str
  sample: UnknownModel
mistakes:
  description: All mistakes in the model inventory, each with its path and the remedy.
  returned: when O(models) or O(switching) contains mistakes
  type: list
  elements: str
  sample: ["vllm_models[2] (gpt-oss-20b): host_port 8001 is taken by qwen3-vl-30b-a3b"]
"""

from ansible_collections.homegpt.vllm.plugins.module_utils._adapter import run


def main():
    run("vllm_sleep_state")


if __name__ == "__main__":
    main()
