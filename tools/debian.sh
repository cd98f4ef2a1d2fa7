#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Makes a minimal Debian in a folder, out of Debian's packages alone; needs root.
#
#   tools/debian.sh SUITE FOLDER PACKAGE[,PACKAGE...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin:/sbin
suite=$1 root=$2 packages=$3

[ "$(id -u)" -eq 0 ] || {
    echo "debootstrap wants root: run this as root once; what it makes stays" >&2
    exit 1
}
command -v debootstrap >/dev/null || bash tools/apt.sh debootstrap debian-archive-keyring

# Any Debian release may be the host; where the host is none, Debian's own server is asked.
# shellcheck disable=SC2016 # apt's own variable
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' 2>/dev/null |
    grep -v security | head -n 1 || true)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! debootstrap --variant=minbase --include="$packages" "$suite" "$root" "${mirror:-http://deb.debian.org/debian}" >"$log" 2>&1; then
    tail -n 15 "$log" "$root/debootstrap/debootstrap.log" >&2 || true
    echo "debootstrap could not make Debian $suite: see above" >&2
    exit 1
fi
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
