#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# ansible-rulebook 1.3.2 (needs Java 17): `--inventory FILE` is valid, and the hosts and variables within the file reach the playbooks that
# `run_playbook` starts. The `group_vars` beside it don't: only the file is copied to where the playbook runs. ansible-playbook, given the same file,
# reads them. No message says so: a variable with a default quietly has its default. `--inventory DIRECTORY` takes them along.
#
# Seen: the play says "from group_vars" by ansible-playbook and by ansible-rulebook with the directory, "the default" by ansible-rulebook with the file.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ansible-rulebook==1.3.2 ansible-runner==2.4.3 ansible-core==2.19.14
mkdir -p inventory/group_vars
cat >inventory/hosts.yml <<'INVENTORY'
all:
  hosts:
    one:
      ansible_connection: local
INVENTORY
echo 'where: from group_vars' >inventory/group_vars/all.yml
cat >play.yml <<'PLAY'
- name: Say where a variable comes from
  hosts: all
  gather_facts: false
  tasks:
    - name: Say it
      ansible.builtin.debug:
        msg: "said: {{ where | default('the default') }}"
PLAY
cat >rulebook.yml <<'RULEBOOK'
- name: Play once
  hosts: all
  sources:
    - ansible.eda.range:
        limit: 1
  rules:
    - name: Play
      condition: event.i == 0
      action:
        run_playbook:
          name: play.yml
RULEBOOK
run() { # COMMAND ...: what the play says
    env -i PATH="$work/venv/bin:$PATH" HOME="$work" LC_ALL=C.UTF-8 ANSIBLE_NOCOLOR=1 ${JAVA_HOME:+JAVA_HOME="$JAVA_HOME"} "$@" >log 2>&1 || true
    sed -n 's/.*"msg": "said: \(.*\)".*/\1/p' log | head -n 1
}
play=$(run ansible-playbook --inventory inventory/hosts.yml play.yml)
file=$(run ansible-rulebook --rulebook rulebook.yml --inventory inventory/hosts.yml --print-events)
directory=$(run ansible-rulebook --rulebook rulebook.yml --inventory inventory --print-events)
echo "ansible-playbook with the file: $play; ansible-rulebook with the file: $file; with the directory: $directory"
[ "$play" = "from group_vars" ]
[ "$file" = "the default" ]
[ "$directory" = "from group_vars" ]
echo "as stated"
