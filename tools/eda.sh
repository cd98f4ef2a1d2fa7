#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds, when absent, a virtual environment with ansible-rulebook, which needs Java 17, and prints its path.
#
#   venv=$(tools/eda.sh)       then: $venv/bin/ansible-rulebook --rulebook homegpt.vllm.heal ...
#
# It has 150 MB, and is kept outside the checkout, in $HOMEGPT_CACHE (default: homegpt.vllm in the user's cache folder).
# PYTHON=... names the Python to build it with.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
requirements=$here/eda-requirements.txt

command -v java >/dev/null || bash "$here/apt.sh" default-jre-headless >&2
python=$("$here/python.sh" 3.11 3.15)
tag=$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
cache=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}
venv=$cache/ansible-rulebook-$(sed -n 's/^ansible-rulebook==\([0-9.]*\).*/\1/p' "$requirements")-$tag
stamp=$venv/.homegpt-stamp

is_there() { cmp --quiet "$stamp" "$requirements" && "$venv/bin/python" -c '' 2>/dev/null; }

build() {
    echo "eda.sh: building $venv (less than a minute)" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement "$requirements" >&2
    "$venv/bin/python" -m pip --disable-pip-version-check check >&2
    cp "$requirements" "$stamp"
}

mkdir -p "$cache"
exec 9>"$venv.lock"
flock 9 # another build of the same thing: wait for it
is_there || build
echo "$venv"
