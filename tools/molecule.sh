#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs every role's molecule scenarios: docker_host on Debian 12 and 13, and the stack on this machine's engine.
#
# With QUICK=1 docker_host alone: the roles of the stack are played on the same engine by `make e2e`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH
if [ -n "${QUICK:-}" ]; then
    python -m tests.part molecule "make molecule" stack
    exec molecule test --scenario-name docker_host
fi
bash tools/images.sh standin webui
exec molecule test --all
