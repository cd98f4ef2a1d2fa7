#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Prints the path of a Python that really runs and can build virtual environments.
#
#   tools/python.sh [MINIMUM [BELOW]]     from MINIMUM (3.10 unless given) on, older than BELOW
#
# PYTHON=... takes the choice away from this script. Otherwise `python3` comes first, being what its
# owner meant, then the newest of the versioned names. A name on PATH proves nothing (a version
# manager's shim may exist for a Python that is not there), so each candidate is executed.
set -euo pipefail
minimum=${1:-3.10}
below=${2:-4.0}

# Says what is wrong with the Python $1; says nothing when it will do.
fault() {
    "$1" - "$minimum" "$below" 2>/dev/null <<'PY' || echo "does not run"
import sys
minimum, below = [tuple(int(part) for part in given.split(".")) for given in sys.argv[1:]]
if not minimum <= sys.version_info[:2] < below:
    print("is Python %d.%d" % sys.version_info[:2])
else:
    try:
        import ensurepip, venv
    except ImportError:
        print("cannot build virtual environments")
PY
}

candidates() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" || echo "$PYTHON"
        return
    fi
    type -aP python3 || true
    for minor in 14 13 12 11 10; do
        type -aP "python3.$minor" || true
    done
    # Pythons that a version manager holds but has not switched on.
    printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3 | sort -rV
}

tried=
while read -r candidate; do
    if [ -x "$candidate" ]; then reason=$(fault "$candidate"); else reason="is not there"; fi
    if [ -z "$reason" ]; then
        # The interpreter behind a shim or a virtual environment: what is built on it outlives both.
        exec "$candidate" -c 'import os, sys; print(os.path.realpath(sys._base_executable))'
    fi
    tried+="    $candidate $reason"$'\n'
done < <(candidates)

{
    range="$minimum or later"
    [ "$below" = 4.0 ] || range+=" and older than $below"
    echo "No Python $range that can build virtual environments. Tried:"
    printf '%s' "$tried"
    echo "On Debian and Ubuntu:  apt-get install python3 python3-venv"
    echo "(for a Python that is not the system's: pythonX.Y-venv). Or name one: make setup PYTHON=/path/to/python3"
} >&2
exit 1
