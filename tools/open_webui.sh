#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds, when absent, a virtual environment with Open WebUI and what drives a browser, and prints its path.
#
#   venv=$(tools/open_webui.sh)       then: $venv/bin/open-webui serve ...
#
# It takes 3 GB and one to eight minutes, once: the result is kept outside the checkout, in $HOMEGPT_CACHE (default:
# homegpt.vllm in the user's cache folder). PYTHON=... names the Python to build it with: 3.11 or 3.12.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The version of the role's image; a test compares.
version=0.12.4
# The torch of the newest real vLLM, so that the cache of packages has it, and the day whose packages go with all this.
torch=2.13.0
playwright=1.65.2
day=2026-11-28
recipe="open-webui==$version torch==$torch playwright==$playwright day $day recipe 1"

python=$("$here/python.sh" 3.11 3.13)
tag=$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
cache=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}
venv=$cache/open-webui-$version-$tag
stamp=$venv/.homegpt-stamp

is_there() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$recipe" ] && "$venv/bin/python" -c '' 2>/dev/null; }

build() {
    echo "open_webui.sh: building $venv (a few minutes)" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
    # Compiled once: else the first start takes minutes.
    UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}} "$("$here/uv.sh")" pip install --compile-bytecode --python "$venv/bin/python" \
        --exclude-newer "$day" "open-webui==$version" "torch==$torch" "playwright==$playwright" >"$venv/install.log" 2>&1 || {
        tail -n 5 "$venv/install.log" >&2
        return 1
    }
    echo "$recipe" >"$stamp"
}

mkdir -p "$cache"
exec 9>"$venv.lock"
flock 9 # another build of the same thing: wait for it
is_there || build
echo "$venv"
