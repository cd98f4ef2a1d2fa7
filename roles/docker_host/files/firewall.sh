#!/bin/sh
# SPDX-License-Identifier: MIT
# firewall.sh [teardown]: prints what there is of the firewall, a NAME=VALUE a line, and changes nothing. Follows probe.sh;
# teardown runs it alone.
LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
rules=/etc/homegpt-firewall.nft
unit=/etc/systemd/system/homegpt-firewall.service

say() { printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr '\n' ' ')"; }
sum() { test -e "$1" && { sha256sum < "$1" 2> /dev/null || echo unreadable; } | cut -d ' ' -f 1; }

say firewall_file "$(sum "$rules")"
say firewall_unit "$(sum "$unit")"
say firewall_systemd "$(test -d /run/systemd/system && echo yes)"
if [ -d /run/systemd/system ] && [ -e "$unit" ]; then
    say firewall_unit_state "$(systemctl is-enabled homegpt-firewall.service 2> /dev/null) $(
        systemctl is-active homegpt-firewall.service 2> /dev/null)"
fi
say nft "$(command -v nft)"
# Each rule carries a mark of the file that it came from. Only root may look.
if command -v nft > /dev/null 2>&1; then
    if answer=$(nft list table ip homegpt_vllm 2>&1); then
        say firewall_marks "$(printf '%s\n' "$answer" | sed -n 's/.* comment "\([^"]*\)".*/\1/p') loaded"
    else
        case $answer in
            *'No such file or directory'*) ;;
            *) say firewall_marks unknown ;;
        esac
    fi
fi

# Networks whose containers are meant to be reached without a published port, and bridges that are not the engine's.
engine_major=$(timeout 20 docker version --format '{{.Server.Version}}' 2> /dev/null | sed -n 's/^\([0-9]*\)\..*/\1/p')
if [ -n "$engine_major" ]; then
    ids=$(docker network ls --quiet --no-trunc --filter driver=bridge 2> /dev/null)
    # shellcheck disable=SC2016,SC2086 # the template's names; each id is a word
    guarded=$(test -z "$ids" || docker network inspect --format \
        '{{.Id}}|{{range $name, $value := .Options}}{{$name}}={{$value}},{{end}}' $ids 2> /dev/null |
        awk -F '|' '!/enable_ip_masquerade=false|gateway_mode_ipv4=(routed|nat-unprotected)/ {
            name = "br-" substr($1, 1, 12)
            if (match($2, /com.docker.network.bridge.name=[^,]*/)) name = substr($2, RSTART + 31, RLENGTH - 31)
            print name }')
    for bridge in /sys/class/net/docker0/bridge /sys/class/net/br-*/bridge; do
        [ -d "$bridge" ] || continue
        name=${bridge#/sys/class/net/}
        name=${name%/bridge}
        printf '%s\n' "$guarded" | grep -qx "$name" || left_open="${left_open:-} $name"
    done
fi
say firewall_left_open "${left_open:-}"

# Containers, running or not, whose ports are published on loopback: who else relies on the rules.
if [ "${1:-}" = teardown ]; then
    # shellcheck disable=SC2016 # the template's names
    say firewall_relied_on "$(docker ps --all --quiet 2> /dev/null | xargs -r docker inspect --format \
        '{{.Name}}{{range .HostConfig.PortBindings}}{{range .}} {{.HostIp}}{{end}}{{end}}' 2> /dev/null |
        sed -n 's,^/\([^ ]*\).* 127\..*,\1,p')"
fi
