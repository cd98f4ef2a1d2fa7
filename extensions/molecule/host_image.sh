#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# host_image.sh RELEASE: makes the container image homegpt-host:RELEASE, a Debian as bare as Ansible can manage, from
# the package mirror that this machine uses. Does nothing where the image is there. Needs root.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

release=$1
image=homegpt-host:$release
if docker image inspect "$image" >/dev/null 2>&1; then
    exit 0
fi
command -v debootstrap >/dev/null || bash "$(dirname "${BASH_SOURCE[0]}")/../../tools/apt.sh" debootstrap debian-archive-keyring

# shellcheck disable=SC2016 # the dollar is apt's
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' 2>/dev/null |
    grep -v security | head -n 1 || true)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase --include=python3 "$release" "$work/root" "${mirror:-http://deb.debian.org/debian}" >"$work/log" 2>&1 || {
    tail -n 20 "$work/log" >&2
    exit 1
}
# Installing a package starts no service: a container without systemd can't run one.
printf '#!/bin/sh\nexit 101\n' >"$work/root/usr/sbin/policy-rc.d"
chmod 0755 "$work/root/usr/sbin/policy-rc.d"
rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
tar --create --directory "$work/root" --one-file-system . | docker import - "$image" >/dev/null
echo "made $image"
