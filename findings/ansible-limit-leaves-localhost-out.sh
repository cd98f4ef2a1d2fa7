#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# ansible-core 2.19.14: `--limit HOST` leaves the implicit localhost out as well. A play with `hosts: localhost`
# that checks something first, as many playbooks begin, is then passed over with "skipping: no hosts matched", and
# the plays behind it go on unchecked; the exit status is 0. One would guess that a limit chooses among the inventory's
# hosts, and that a host which is in no inventory is none of its business.
#
# Seen:
#     PLAY [Refuse to go on] *********************************************************
#     skipping: no hosts matched
#     PLAY [Go on] *******************************************************************
#     ok: [gpu1] => { "msg": "went on" }
#     exit status with --limit: 0, without: 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ansible-core==2.19.14
printf 'gpu1 ansible_connection=local\n' >hosts.ini
cat >play.yml <<'PLAY'
- name: Refuse to go on
  hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.fail:
        msg: refused
- name: Go on
  hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: went on
PLAY
play() { # ARGUMENT ...: print what ansible-playbook says and its exit status
    local status=0
    env -i PATH="$PATH" HOME="$work" LC_ALL=C.UTF-8 ANSIBLE_NOCOLOR=1 venv/bin/ansible-playbook -i hosts.ini play.yml "$@" || status=$?
    echo "exit status $status"
}
without=$(play 2>&1)
with=$(play --limit gpu1 2>&1)
printf '%s\n' "$without" "$with"
grep -q 'exit status 2' <<<"$without"
if grep -q 'went on' <<<"$without"; then exit 1; fi
grep -q 'skipping: no hosts matched' <<<"$with"
grep -q 'went on' <<<"$with"
grep -q 'exit status 0' <<<"$with"
echo "as stated"
