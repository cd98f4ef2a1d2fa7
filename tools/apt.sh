#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs packages of Debian or Ubuntu:  tools/apt.sh PACKAGE ...
# Says what to do instead where it may not, or cannot.
set -euo pipefail
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Needed and not here: $*. Install it as root (on Debian and Ubuntu: apt-get install $*) and try again." >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# Another call waits: apt-get refuses to update the lists that another one updates. No service that is started keeps it.
exec 9>/run/homegpt-vllm-apt.lock
flock 9
install() {
    apt-get --yes --quiet --no-install-recommends -o DPkg::Lock::Timeout=300 install "$@" </dev/null 2>&1 9>&-
}
echo "Installing $*" >&2
# The package lists are fetched only when those that are here will not do.
if ! said=$(install "$@" || { apt-get --quiet update && install "$@"; } 2>&1); then
    printf '%s\n' "$said" | tail -n 15 >&2
    echo "apt-get could not install $*: see above. Check the package sources of this machine." >&2
    exit 1
fi
