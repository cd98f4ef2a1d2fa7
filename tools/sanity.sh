#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs `ansible-test sanity` on a clean copy of the checkout.
#
#   tools/sanity.sh [ARGUMENT ...]      arguments go to ansible-test, such as --test pylint
#
# ANSIBLE_VENV names a virtual environment whose ansible-core is used instead of that in .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=${ANSIBLE_VENV:+$ANSIBLE_VENV/bin:}$PWD/.venv/bin:$PATH
unset ANSIBLE_CONFIG ANSIBLE_COLLECTIONS_PATH

if ! python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "ansible-test of ansible-core 2.17, the newest for Python 3.10, is not supported: use Python 3.11 or later" >&2
    exit 1
fi
# By way of Python: the script itself does not start in a folder with a space in its name.
ansible_test() { python "$(command -v ansible-test)" "$@"; }

# ansible-test keeps environments of its own in the home folder, and two at once would both make them.
cache=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}
mkdir -p "$cache"
exec 9>"$cache/sanity.lock"
flock 9

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python tools/seed_get_pip.py
copy=$(bash tools/clean_copy.sh "$work")
cd "$copy"

if compgen -G "tests/sanity/ignore*" >/dev/null; then
    echo "tests/sanity holds ignore files; nothing is ignored here" >&2
    exit 1
fi
# ansible-test counts it as success when it finds nothing to look at.
files=$(ansible_test env --list-files 2>/dev/null | grep -c '^plugins/.*\.py$' || true)
if [ "$files" -eq 0 ]; then
    echo "ansible-test finds no Python file under plugins/" >&2
    exit 1
fi
echo "$files Python files under plugins/"

version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ansible_test sanity --local --requirements --color no --python "$version" "$@"
[ $# -eq 0 ] || exit 0

# Managed hosts may run a much older Python than the controller: compile and import with the oldest one here.
for oldest in $(python -c 'from ansible_test._util.target.common import constants as c
print(*c.REMOTE_ONLY_PYTHON_VERSIONS, *c.CONTROLLER_PYTHON_VERSIONS)'); do
    [ "$oldest" != "$version" ] || break
    for python in $(type -aP "python$oldest" || true) "${PYENV_ROOT:-$HOME/.pyenv}/versions/$oldest".*/bin/python3; do
        if "$python" -c 'import venv' 2>/dev/null; then
            # ansible-test takes the first of that name on PATH, which may be a shim that does not run.
            mkdir "$work/bin"
            ln -s "$python" "$work/bin/python$oldest"
            PATH=$work/bin:$PATH ansible_test sanity --local --requirements --color no --python "$oldest" \
                --test compile --test import
            exit 0
        fi
    done
done
echo "No Python older than $version here: compiled and imported with that alone"
