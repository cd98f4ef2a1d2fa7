#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds, when absent, a virtual environment with one package of PyPI that the bench compares with, and prints its path.
#
#   venv=$(tools/peer.sh 'litellm[proxy]==1.100.0')
#
# It is kept outside the checkout, in $HOMEGPT_CACHE (default: homegpt.vllm in the user's cache folder).
# PYTHON=... names the Python to build it with: 3.11 or 3.12.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
package=$1
python=$("$here/python.sh" 3.11 3.13)
tag=$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
cache=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}
venv=$cache/peer-$(sed -E 's/\[.*\]//; s/==/-/' <<<"$package")-$tag
stamp=$venv/.homegpt-stamp

is_there() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$package" ] && "$venv/bin/python" -c '' 2>/dev/null; }

build() {
    echo "peer.sh: building $venv (less than a minute)" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$package" >&2
    echo "$package" >"$stamp"
}

mkdir -p "$cache"
exec 9>"$venv.lock"
flock 9 # another build of the same thing: wait for it
is_there || build
echo "$venv"
