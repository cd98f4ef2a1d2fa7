#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs the tests marked `versions`, and ansible-test's sanity tests, which differ from version to version,
# under the lowest and the newest supported ansible-core; the tests also under one between.
#
# With QUICK=1 the tests under the lowest and the sanity tests under the newest: under what lies between are both
# in .venv, and all tests under the newest where there is a Python for it (.ci/run).
#
# Each has a virtual environment of its own in the user's cache, made when it is absent. Those tests call
# the ansible-playbook that ANSIBLE_PLAYBOOK names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset ANSIBLE_CONFIG ANSIBLE_COLLECTIONS_PATH

asked() { # CHECK CORE
    # The sanity tests of what lies between are those of one end or the other.
    case $1-$2 in tests-* | sanity-2.18.* | sanity-2.21.*) ;; *) return 1 ;; esac
    case ${QUICK:+$1-$2} in "" | tests-2.18.* | sanity-2.21.*) return 0 ;; esac
    .venv/bin/python -m tests.part versions "make versions" "$1 under ansible-core $2"
    return 1
}

# Version, oldest Python it runs on, first Python it does not.
for line in "2.18.0 3.11 3.14" "2.20.10 3.12 3.15" "2.21.5 3.12 3.15"; do
    read -r core oldest beyond <<<"$line"
    if ! python=$(env -u PYTHON bash tools/python.sh "$oldest" "$beyond"); then
        echo "SKIPPED: no Python here for ansible-core $core"
        # Whoever runs this by hand may not have one; CI must.
        if [ "${CI:-}" = true ]; then exit 1; else continue; fi
    fi
    checks=()
    for check in tests sanity; do
        if asked "$check" "$core"; then checks+=("$check"); fi
    done
    [ ${#checks[@]} -gt 0 ] || continue
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    venv=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}/ansible-core-$core-python-$version
    if ! "$venv/bin/ansible" --version >/dev/null 2>&1 || [ ! -f "$venv/complete" ]; then
        rm -rf "$venv"
        "$python" -m venv "$venv"
        # The lock fits the newest ansible-core; of another one, resolvelib is what differs.
        "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "ansible-core==$core" requests \
            --constraint <(grep -vE '^(ansible-core|resolvelib)=' requirements.txt)
        touch "$venv/complete"
    fi
    echo "ansible-core $core on Python $version"
    for check in "${checks[@]}"; do
        case $check in
        tests) ANSIBLE_PLAYBOOK=$venv/bin/ansible-playbook .venv/bin/python -m pytest -n 2 -m versions tests ;;
        sanity) ANSIBLE_VENV=$venv bash tools/sanity.sh ;;
        esac
    done
done
