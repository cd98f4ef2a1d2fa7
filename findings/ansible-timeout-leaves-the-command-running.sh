#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# ansible-core 2.19.14: a task's `timeout` ends the waiting, not the work. Ansible's table of keywords says that it "will interrupt the
# process", and the task fails in time. But the command that the module has started runs on to its end, and nothing of the result
# tells so. What comes next, such as a `rescue` that tries once more or puts something back, therefore runs beside it: for a switch that
# takes long, two of them at once. `async` with the same number of seconds does end what it has started.
#
# Seen, for a command that takes 12 s, with a limit of 6 s:
#     async, at once: Timeout exceeded, begun
#     timeout, at once: Task failed: Timed out after 6 second(s)., begun
#     later, timeout: begun ended
#     later, async: begun
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ansible-core==2.19.14
cat >play.yml <<'PLAY'
- name: Limit how long a command takes
  hosts: localhost
  gather_facts: false
  vars:
    ansible_async_dir: "{{ playbook_dir }}/jobs"
  tasks:
    - name: Limit it by async
      block:
        - name: Take twelve seconds as a job
          ansible.builtin.command:
            argv: [sh, -c, "echo begun > async; sleep 12; echo ended >> async"]
            chdir: "{{ playbook_dir }}"
          async: 6
          poll: 1
      rescue:
        - name: Say what it has done until now
          ansible.builtin.debug:
            msg: "async, at once: {{ ansible_failed_result.msg }}, {{ lookup('ansible.builtin.file', 'async').split() | join(' ') }}"
    - name: Limit it by timeout
      block:
        - name: Take twelve seconds
          ansible.builtin.command:
            argv: [sh, -c, "echo begun > timeout; sleep 12; echo ended >> timeout"]
            chdir: "{{ playbook_dir }}"
          timeout: 6
      rescue:
        - name: Say what it has done until now
          ansible.builtin.debug:
            msg: "timeout, at once: {{ ansible_failed_result.msg }}, {{ lookup('ansible.builtin.file', 'timeout').split() | join(' ') }}"
    - name: Wait for the end of the later one
      ansible.builtin.wait_for:
        path: "{{ playbook_dir }}/timeout"
        search_regex: ended
        timeout: 60
    - name: Say what both have done
      ansible.builtin.debug:
        msg: "later, {{ item }}: {{ lookup('ansible.builtin.file', item).split() | join(' ') }}"
      loop: [timeout, async]
PLAY
env -i PATH="$PATH" HOME="$work" LC_ALL=C.UTF-8 ANSIBLE_NOCOLOR=1 ANSIBLE_LOCALHOST_WARNING=false venv/bin/ansible-playbook play.yml >log 2>&1 || {
    cat log
    exit 1
}
said=$(sed -n 's/.*"msg": "\(.*\)"$/\1/p' log)
printf '%s\n' "$said"
grep -qx 'async, at once: Timeout exceeded, begun' <<<"$said"
grep -qx 'timeout, at once: .*Timed out after 6 second(s).*, begun' <<<"$said"
grep -qx 'later, timeout: begun ended' <<<"$said"
grep -qx 'later, async: begun' <<<"$said"
echo "as stated"
