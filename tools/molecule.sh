#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs every role's molecule scenarios: docker_host on Debian 12 and 13, and the stack on this machine's engine.
#
# With QUICK=1 docker_host on one of the two, by turns: the roles of the stack are played on the same engine by `make e2e`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH
if [ -z "${QUICK:-}" ]; then
    bash tools/images.sh standin webui
    exec molecule test --all
fi
suites=(bookworm trixie)
turn=$(($(python -m tests.part seed) % 2))
echo "docker_host on Debian ${suites[turn]} alone"
python -m tests.part leave-out molecule "make molecule" "docker_host on ${suites[1 - turn]}" "the stack"
molecule test --scenario-name docker_host --platform-name "${suites[turn]}"
