#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Demonstrates the collection on this machine: the playbooks load, switch and stop four models, which are served by stand-ins for
# vLLM. Leaves nothing behind.
#
#   make demo KEEP=1      leaves the servers running, in .build/demo, and prints commands to try
#   make demo STOP=1      stops them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH

# The demo's own settings, whatever this shell has for other projects.
for name in ${!ANSIBLE_*}; do
    case $name in ANSIBLE_NOCOLOR | ANSIBLE_FORCE_COLOR) ;; *) unset "$name" ;; esac
done
keep=${KEEP:-}
kept=$PWD/.build/demo
unset DEMO_FIRST_PORT DEMO_STACK_DIR
inventory=$PWD/inventory/demo
if [ -n "${DEMO_COLLECTIONS:-}" ]; then
    # The collection as it was installed there, from a folder with nothing in it.
    export ANSIBLE_COLLECTIONS_PATH=$DEMO_COLLECTIONS
    keep=""
    playbook() { echo "homegpt.vllm.$1"; }
else
    export ANSIBLE_CONFIG=$PWD/ansible.cfg
    inventory=inventory/demo
    playbook() { echo "playbooks/$1.yml"; }
fi
# Ansible starts in a UTF-8 locale only.
locale=""
if [ "$(locale charmap 2>/dev/null)" != UTF-8 ]; then export LC_ALL=C.UTF-8 && locale="LC_ALL=C.UTF-8 "; fi
# Prints a table's lines as lines.
export ANSIBLE_CALLBACK_RESULT_FORMAT=yaml
# Behind the pipe of `show` there is no terminal to be seen.
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ -z "${ANSIBLE_NOCOLOR:-}" ]; then export ANSIBLE_FORCE_COLOR=1; fi

tear_down() {
    # In a session of its own, where Ctrl-C does not reach it.
    if ! said=$(setsid --wait ansible-playbook -i "$inventory" "$(playbook teardown)" 2>&1); then
        printf '%s\n' "$said" "The servers could not all be stopped; their logs are in ${DEMO_STACK_DIR@Q}/run" >&2
        exit 1
    fi
    rm -rf "$DEMO_STACK_DIR"
}

tell_what_to_try() {
    local play=$locale".venv/bin/ansible-playbook -i inventory/demo playbooks"
    local ill=qwen3-next-80b-a3b-thinking
    cat <<TEXT
Commands to try in any shell:

cd $(printf %q "$PWD")
export ANSIBLE_CALLBACK_RESULT_FORMAT=yaml  # prints failures as lines

# Switch to another model, and draw a timeline of the switch (open it in a browser):
$play/switch.yml -e model=qwen3-vl-32b -e timeline=.build/demo/switch.svg

# Switch to a model that runs out of GPU memory when it wakes up, and again when it is restarted: the switch fails, and the
# previous model is active again. (These faults occur only once; the same switch succeeds when it is repeated.)
echo '[{"path": "/wake_up", "fault": "oom"}, {"path": "load", "fault": "oom"}]' >.build/demo/faults.json && \\
  $play/switch.yml -e model=$ill

# Show the state of every model, and how the last switch ended:
$play/status.yml

make demo STOP=1 stops the servers and removes .build/demo.
TEXT
}

if [ -n "${STOP:-}" ] && [ -z "${DEMO_COLLECTIONS:-}" ]; then
    if [ ! -d "$kept" ]; then
        echo "There is no demo to stop in .build/demo."
        exit 0
    fi
    echo "Stopping the servers of the demo ..."
    export DEMO_STACK_DIR=$kept
    tear_down
    echo "Stopped. The files in .build/demo are removed."
    exit 0
fi

# The inventory reads the port and the directory, so that the demo does not collide with others. Until its servers listen,
# another demo waits: it would find the same ports free.
exec 8>>"/tmp/homegpt-vllm-demo-$UID.lock"
flock 8
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

# The ports from 8001 on are those of the models in inventory/homegpt.
print(next(first for first in range(8011, 32000, 10) if all(free(first + n) for n in range(4))))
PY
)

if [ -n "$keep" ]; then
    DEMO_STACK_DIR=$kept
    mkdir -p .build
    if ! mkdir "$kept" 2>/dev/null; then
        printf 'A demo is kept already in .build/demo; nothing was started.\n'
        tell_what_to_try
        exit 0
    fi
else
    DEMO_STACK_DIR=$(mktemp -d "${TMPDIR:-/tmp}/homegpt-vllm-demo.XXXXXX")
fi
export DEMO_FIRST_PORT DEMO_STACK_DIR

cleanup() {
    local status=$?
    trap '' INT TERM HUP # once is enough; a second Ctrl-C must not leave servers behind
    if [ "$status" -ne 0 ]; then printf '\nStopping the servers of the demo ...\n'; fi
    tear_down
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# For commands from another shell.
echo "$DEMO_FIRST_PORT" >"$DEMO_STACK_DIR/first_port"
if [ -n "${DEMO_COLLECTIONS:-}" ]; then
    mkdir "$DEMO_STACK_DIR/empty"
    cd "$DEMO_STACK_DIR/empty"
fi

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
    expect "one model should be active" 1 '(^| - )demo .* active '
    expect "three models should be sleeping" 3 '(^| - )demo .* sleeping '
}

printf 'Four models on a simulated host with two GPUs, of which only one fits at a time (ports %d to %d).\n' \
    "$DEMO_FIRST_PORT" $((DEMO_FIRST_PORT + 3))
echo "It takes about half a minute, a minute on a busy machine."
echo "To run such commands yourself, first run: . .venv/bin/activate"

show "Load the models, one at a time, and put all except the default one to sleep:" \
    ansible-playbook -i "$inventory" "$(playbook bootstrap)"
expect "bootstrap should load the models" 1 'demo.*changed=2.* failed=0'
exec 8>&-

show "Show the state of every model:" \
    ansible-playbook -i "$inventory" "$(playbook status)"
expect_states qwen3-vl-30b-a3b

show "Switch to another model. The active model finishes its requests and sleeps before the other wakes up:" \
    ansible-playbook -i "$inventory" "$(playbook switch)" -e model=gpt-oss-20b
expect "the switch should change something" 1 'demo.*changed=1.* failed=0'

show "Repeat the switch. The model is already active, so nothing changes (changed=0):" \
    ansible-playbook -i "$inventory" "$(playbook switch)" -e model=gpt-oss-20b
expect "the second switch should change nothing" 1 'demo.*changed=0.* failed=0'

show "Show the steps of a switch back. Check mode does not perform them:" \
    ansible-playbook -i "$inventory" "$(playbook switch)" -e model=qwen3-vl-30b-a3b --check --diff
expect "check mode should show sleep, then wake" 2 'step 2: sleep gpt-oss-20b|step 3: wake qwen3-vl-30b-a3b'

show "gpt-oss-20b is still active:" \
    ansible-playbook -i "$inventory" "$(playbook status)"
expect_states gpt-oss-20b

printf '\nDone: four models loaded one at a time, one switch, one switch that changed nothing, one in check mode;\n'
if [ -n "$keep" ]; then
    trap - EXIT INT TERM HUP
    printf 'gpt-oss-20b is active and the others sleep. The servers keep running.\n\n'
    tell_what_to_try
else
    printf 'gpt-oss-20b is active and the others sleep. The demo now stops the servers and removes its files.\n'
fi
