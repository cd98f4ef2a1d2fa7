#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Makes a root of Debian with systemd and the Docker engine that this Debian ships, once, and prints its folder:
#
#   tests/firewall/root.sh SUITE      bookworm (engine 20.10) or trixie (26.1); needs root and Debian's packages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
suite=$1
packages=busybox-static,ca-certificates,curl,dbus,docker.io,iproute2,iptables,libnuma1,nftables,python3,python3-requests,python3-venv,systemd
packages+=,systemd-sysv,ufw
[ "$suite" = bookworm ] || packages+=,docker-cli
cache=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}/firewall
root=$cache/$suite
wanted="$suite $packages 1"
made() { [ "$(cat "$root.made" 2>/dev/null)" = "$wanted" ]; }
if ! made; then
    mkdir -p "$cache"
    exec 9>"$cache/$suite.lock"
    flock 9
    if ! made; then
        rm -rf "$root" "$root.made"
        bash tools/debian.sh "$suite" "$root" "$packages" >&2
        echo "$wanted" >"$root.made"
    fi
fi
echo "$root"
