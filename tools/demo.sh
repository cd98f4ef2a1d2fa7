#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Shows on this machine what the collection does: four models, served by stand-ins for vLLM, are loaded,
# switched and ended by the playbooks that do the same to real ones. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The GPUs are pretended: this machine's own are not asked.
PATH=$PWD/.venv/bin:$PWD/tests/standin/bin:$PATH

# The demo's own settings, whatever this shell has for other projects.
for name in ${!ANSIBLE_*}; do
    case $name in ANSIBLE_NOCOLOR | ANSIBLE_FORCE_COLOR) ;; *) unset "$name" ;; esac
done
inventory=$PWD/inventory/demo
if [ -n "${DEMO_COLLECTIONS:-}" ]; then
    # The collection as it was installed there, from a folder with nothing in it.
    export ANSIBLE_COLLECTIONS_PATH=$DEMO_COLLECTIONS
    cd "$(mktemp -d)"
    playbook() { echo "homegpt.vllm.$1"; }
else
    export ANSIBLE_CONFIG=$PWD/ansible.cfg
    inventory=inventory/demo
    playbook() { echo "playbooks/$1.yml"; }
fi
# Ansible starts in a UTF-8 locale only.
if [ "$(locale charmap 2>/dev/null)" != UTF-8 ]; then export LC_ALL=C.UTF-8; fi
# Prints a table's lines as lines.
export ANSIBLE_CALLBACK_RESULT_FORMAT=yaml
# Behind the pipe of `show` there is no terminal to be seen.
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ -z "${ANSIBLE_NOCOLOR:-}" ]; then export ANSIBLE_FORCE_COLOR=1; fi

# The inventory reads these two: the demo disturbs nobody who has its usual ports or folder.
DEMO_FIRST_PORT=$(python - <<'PY'
import contextlib, socket

def free(port):
    with contextlib.closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

print(next(first for first in range(8001, 32000, 10) if all(free(first + n) for n in range(4))))
PY
)
DEMO_STACK_DIR=$(mktemp -d "${TMPDIR:-/tmp}/homegpt-vllm-demo.XXXXXX")
export DEMO_FIRST_PORT DEMO_STACK_DIR

cleanup() {
    local status=$?
    trap '' INT TERM HUP # once is enough; a second Ctrl-C must not leave servers behind
    if [ "$status" -ne 0 ]; then printf '\nEnding the demo: stopping its servers ...\n'; fi
    # In a session of its own, where Ctrl-C does not reach it.
    if ! said=$(setsid --wait ansible-playbook -i "$inventory" "$(playbook teardown)" 2>&1); then
        printf '%s\n' "$said" "The servers could not all be stopped; their logs are in ${DEMO_STACK_DIR@Q}/run" >&2
        exit 1
    fi
    rm -rf "$DEMO_STACK_DIR"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

output=$DEMO_STACK_DIR/output

show() { # EXPLANATION COMMAND ...: print both, run the command, keep its output for `expect`
    printf '\n# %s\n$%s\n' "$1" "$(printf ' %q' "${@:2}")"
    "${@:2}" 2>&1 | tee -p "$output"
}

expect() { # WHAT COUNT PATTERN: the output must have that many lines that match
    local found
    found=$(grep -cE "$3" "$output" || true)
    if [ "$found" -ne "$2" ]; then
        printf '\nThe demo FAILED: %s (%d lines match "%s", not %d)\n' "$1" "$found" "$3" "$2" >&2
        exit 1
    fi
}

expect_states() { # MODEL: it is active, and the three others sleep
    expect "$1 should be active" 1 " $1 +active "
    expect "one model should be active" 1 '^.* - demo .* active '
    expect "three models should be sleeping" 3 '^.* - demo .* sleeping '
}

printf 'Four models on a pretended host with two GPUs, of which only one fits at a time (ports %d to %d).\n' \
    "$DEMO_FIRST_PORT" $((DEMO_FIRST_PORT + 3))
echo "To type such a command yourself, begin with: . .venv/bin/activate"

show "Load the models, one at a time, and put all but the default one to sleep:" \
    ansible-playbook -i "$inventory" "$(playbook bootstrap)"
expect "bootstrap should load the models" 1 'changed=2.* failed=0'

show "What is every model doing?" \
    ansible-playbook -i "$inventory" "$(playbook status)"
expect_states qwen3-vl-30b-a3b

show "Another model, please. The active one finishes its requests and sleeps before the other wakes:" \
    ansible-playbook -i "$inventory" "$(playbook switch)" -e model=gpt-oss-20b
expect "the switch should change something" 1 'changed=1.* failed=0'

show "The same again. It is already so, and nothing is touched (changed=0):" \
    ansible-playbook -i "$inventory" "$(playbook switch)" -e model=gpt-oss-20b
expect "the second switch should change nothing" 1 'changed=0.* failed=0'

show "What would a switch back do? Check mode shows the very steps and does none of them:" \
    ansible-playbook -i "$inventory" "$(playbook switch)" -e model=qwen3-vl-30b-a3b --check --diff
expect "check mode should show sleep, then wake" 2 'step 2: sleep gpt-oss-20b|step 3: wake qwen3-vl-30b-a3b'

show "So gpt-oss-20b is still the active one:" \
    ansible-playbook -i "$inventory" "$(playbook status)"
expect_states gpt-oss-20b

printf '\nShown: four models loaded one at a time, one switch, one that changed nothing, one only planned;\n'
printf 'gpt-oss-20b is active and the others sleep. Now its servers are stopped and its files removed.\n'
