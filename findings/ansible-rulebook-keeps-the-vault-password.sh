#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# ansible-rulebook 1.3.2 (needs Java 17) has `--vault-password-file`, `--vault-id` and `--ask-vault-pass`. They serve what the rulebook and
# its variables hold, and do not reach the playbooks that `run_playbook` starts: with an encrypted variable in the inventory, a play that
# ansible-playbook runs with the same option fails there. The environment does reach the plays, so ANSIBLE_VAULT_PASSWORD_FILE, as a full path,
# is the way to give them the password.
#
# Seen: the play says "from the vault" by ansible-playbook with the option and by ansible-rulebook with the variable; by ansible-rulebook with the
# option it fails with "no vault secrets", in one of Ansible's wordings of that.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ansible-rulebook==1.3.2 ansible-runner==2.4.3 ansible-core==2.19.14
export ANSIBLE_NOCOLOR=1 LC_ALL=C.UTF-8
echo 'a password' >password
mkdir -p inventory/group_vars
cat >inventory/hosts.yml <<'INVENTORY'
all:
  hosts:
    one:
      ansible_connection: local
INVENTORY
venv/bin/ansible-vault encrypt_string --vault-password-file password --name where 'from the vault' >inventory/group_vars/all.yml 2>/dev/null
cat >play.yml <<'PLAY'
- name: Say what a variable holds
  hosts: all
  gather_facts: false
  tasks:
    - name: Say it
      ansible.builtin.debug:
        msg: "said: {{ where }}"
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
run() { # COMMAND ...: what the play says, or that it had no secret
    env -i PATH="$work/venv/bin:$PATH" HOME="$work" LC_ALL=C.UTF-8 ANSIBLE_NOCOLOR=1 ${JAVA_HOME:+JAVA_HOME="$JAVA_HOME"} "$@" >log 2>&1 || true
    if grep -q '"msg": "said: ' log; then
        sed -n 's/.*"msg": "said: \(.*\)".*/\1/p' log | head -n 1
    elif grep -qi 'no vault secrets' log; then
        echo "no vault secrets"
    else
        tail -n 20 log
    fi
}
play=$(run ansible-playbook --vault-password-file password --inventory inventory play.yml)
option=$(run ansible-rulebook --vault-password-file password --rulebook rulebook.yml --inventory inventory --print-events)
variable=$(run ANSIBLE_VAULT_PASSWORD_FILE="$work/password" ansible-rulebook --rulebook rulebook.yml --inventory inventory --print-events)
echo "ansible-playbook with the option: $play; ansible-rulebook with the option: $option; with the variable: $variable"
[ "$play" = "from the vault" ]
[ "$option" = "no vault secrets" ]
[ "$variable" = "from the vault" ]
echo "as stated"
