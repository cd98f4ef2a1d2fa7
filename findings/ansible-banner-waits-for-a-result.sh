#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# ansible-core 2.19.14: with `display_skipped_hosts = false`, which is set to be rid of skipped tasks, the default callback holds
# every task's banner back until the first host has a result. Whoever watches sees nothing at all while a long task runs, not even its name,
# and it looks as if the task before were the one that hangs. The option's description speaks of skipped hosts only.
#
# Seen, for a task that takes 4 s: its banner comes at its begin (after less than 2 s of the task) by default, and
# together with its result with the setting.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ansible-core==2.19.14
cat >play.yml <<'PLAY'
- name: Take long
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Take four seconds
      ansible.builtin.command:
        argv: [sleep, "4"]
      changed_when: false
PLAY
ahead() { # NAME=VALUE ...: by how many whole seconds the banner comes before the result
    env -i PATH="$PATH" HOME="$work" LC_ALL=C.UTF-8 PYTHONUNBUFFERED=1 ANSIBLE_NOCOLOR=1 ANSIBLE_LOCALHOST_WARNING=false "$@" \
        venv/bin/ansible-playbook play.yml | while IFS= read -r line; do
        case $line in
            "TASK [Take four seconds]"*) began=$SECONDS ;;
            "ok: [localhost]"*) echo $((SECONDS - began)) ;;
        esac
    done
}
default=$(ahead ANSIBLE_DISPLAY_SKIPPED_HOSTS=true)
hidden=$(ahead ANSIBLE_DISPLAY_SKIPPED_HOSTS=false)
echo "the banner is ahead of the result by: $default s by default, $hidden s with display_skipped_hosts = false"
[ "$default" -ge 3 ]
[ "$hidden" -le 1 ]
echo "as stated"
