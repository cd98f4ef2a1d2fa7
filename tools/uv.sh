#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Prints the path of a pinned uv, which is put into the cache when it is not there:  uv=$(tools/uv.sh)
# It takes packages as they were on a day, which pip cannot, and links what two environments share.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=0.13.9
cache=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}
venv=$cache/uv-$version
mkdir -p "$cache"
exec 8>"$venv.lock"
flock 8 # another one makes it: wait for it
if ! "$venv/bin/uv" --version >/dev/null 2>&1; then
    rm -rf "$venv"
    "$("$here/python.sh" 3.10 3.15)" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$version" >&2
fi
echo "$venv/bin/uv"
