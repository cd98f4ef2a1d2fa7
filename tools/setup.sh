#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds .venv with everything pinned and makes the checkout resolvable as homegpt.vllm. Safe to
# run again: it does nothing when the environment already fits requirements.txt and the Python, and the
# collections that this one depends on are there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Ansible finds collections by folder name; the link gives the checkout that name wherever it lies
# (ansible.cfg points collections_path at .build).
mkdir -p .build/ansible_collections/homegpt
ln -sfn ../../.. .build/ansible_collections/homegpt/vllm

# The choice made the first time stays, unless PYTHON asks for another.
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && [ -f .venv/made-for ] && .venv/bin/python -c "" 2>/dev/null; then
    python=$(PYTHON=.venv/bin/python bash tools/python.sh)
else
    python=$(bash tools/python.sh 3.10)
fi

# A virtual environment holds absolute paths, so a checkout that was moved needs a new one.
wanted=$({ "$python" -c 'import sys; print(sys.version, sys.executable)'; pwd -P; cat requirements.txt; } | cksum)
if [ ! -f .venv/made-for ] || [ "$(cat .venv/made-for)" != "$wanted" ]; then
    echo "Building .venv with $("$python" --version) ($python)"
    rm -rf .venv
    "$python" -m venv .venv
    # The lock is complete, so nothing needs resolving; `pip check` proves that it is.
    .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --requirement requirements.txt
    .venv/bin/python -m pip --disable-pip-version-check check
    echo "$wanted" > .venv/made-for
fi
.venv/bin/python tools/unpack_collections.py .build/ansible_collections
