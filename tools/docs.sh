#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Renders the documentation of everything the collection ships and lints it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH
unset ANSIBLE_CONFIG ANSIBLE_COLLECTIONS_PATH

names() {
    ansible-doc --type "$1" --list --json homegpt.vllm | python -c 'import json, sys; print(*sorted(json.load(sys.stdin)))'
}

total=0
for type in module filter role; do
    found=$(names "$type")
    if [ -z "$found" ]; then
        echo "homegpt.vllm has no $type that ansible-doc can find" >&2
        exit 1
    fi
    for name in $found; do
        # A mistake in the documentation is often no more than a warning on stderr.
        if ! said=$(ansible-doc --type "$type" "$name" 2>&1 >/dev/null) || [ -n "$said" ]; then
            printf '%s\n' "$said" >&2
            exit 1
        fi
        total=$((total + 1))
    done
    echo "$type: $found"
done
for module in vllm_sleep_state vllm_sleep_state_info; do
    ansible-doc --type module "homegpt.vllm.$module" >/dev/null
done
antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck .
echo "$total pages rendered"
