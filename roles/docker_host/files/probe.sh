#!/bin/sh
# SPDX-License-Identifier: MIT
# probe.sh GPU_ACCESS WEIGHTS_DIR IMAGE PYTHON: prints what this host has, a NAME=VALUE a line, and changes nothing.
# One script, since each task of a play costs about a quarter of a second on each host. What isn't there has an empty value.
LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
gpu_access=$1
weights_dir=$2
image=$3
python=$4

say() { printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr '\n' ' ')"; }
there() { command -v "$1" > /dev/null 2>&1; }
existing() { # the nearest parent of a folder that is there
    path=$1
    while [ ! -d "$path" ] && [ "$path" != / ]; do path=$(dirname "$path"); done
    printf '%s' "$path"
}
disk() { # disk PREFIX FOLDER: where it is or will be, on which device, with how much free
    at=$(existing "$2")
    say "$1_at" "$at"
    say "$1_device" "$(stat -c %d "$at")"
    say "$1_free_kb" "$(df -Pk "$at" | awk 'NR == 2 {print $4}')"
}

# The distribution. A relative of Debian or Ubuntu keeps its own name and says in `family` whose packages fit it.
# shellcheck source=/dev/null
if [ -r /etc/os-release ]; then . /etc/os-release; fi
say os "${PRETTY_NAME:-$(uname -s)}"
say distribution "${ID:-unknown}"
say release "${VERSION_ID:-0}"
case " ${ID:-} ${ID_LIKE:-} " in
    *' ubuntu '*) say family ubuntu; say codename "${UBUNTU_CODENAME:-${VERSION_CODENAME:-}}" ;;
    *) say family debian; say codename "${DEBIAN_CODENAME:-${VERSION_CODENAME:-}}" ;;
esac
say architecture "$(dpkg --print-architecture 2> /dev/null)"
say user "$(id -un)"
say systemd "$(test -d /run/systemd/system && echo yes)"

# Docker.
say client "$(command -v docker)"
say daemon "$(command -v dockerd)"
if there docker; then
    say compose "$(docker compose version --short 2> /dev/null | sed 's/^v//')"
    # shellcheck disable=SC2016 # $name is the template's
    info='{{.ServerVersion}}|{{.DockerRootDir}}|{{.ContainersRunning}}|{{.LiveRestoreEnabled}}|{{range $name, $_ := .Runtimes}}{{$name}} {{end}}'
    answer=$(timeout 20 docker info --format "$info" 2>&1)
    # The last line: a client writes warnings before it. Without an engine, the first field is empty or no field at all.
    line=$(printf '%s\n' "$answer" | grep '|' | tail -n 1)
    engine=$(printf '%s' "$line" | cut -d '|' -f 1)
    say engine "$engine"
    if [ -n "$engine" ]; then
        docker_root=$(printf '%s' "$line" | cut -d '|' -f 2)
        say running "$(printf '%s' "$line" | cut -d '|' -f 3)"
        say live_restore "$(printf '%s' "$line" | cut -d '|' -f 4)"
        say runtimes "$(printf '%s' "$line" | cut -d '|' -f 5)"
        say image "$(docker image inspect --format '{{.Id}}' "$image" 2> /dev/null)"
        if [ "$gpu_access" = cdi ]; then
            say cdi_folders "$(docker info --format '{{range .CDISpecDirs}}{{.}} {{end}}' 2> /dev/null)"
        fi
    else
        say engine_error "$(printf '%s\n' "$answer" | grep -v '|' | tail -n 3)"
    fi
fi
if [ -d /run/systemd/system ]; then
    say service "$(systemctl show --property UnitFileState --value docker.service 2> /dev/null)"
    say service_state "$(systemctl is-active docker.service 2> /dev/null)"
fi

# Package sources, and what fetching them needs.
sources() { grep -rlsF "$1" /etc/apt/sources.list /etc/apt/sources.list.d | head -n 1; }
say docker_source "$(sources download.docker.com)"
say nvidia_source "$(sources libnvidia-container)"
say certificates "$(ls /etc/ssl/certs/ca-certificates.crt 2> /dev/null)"
say requests "$("$python" -c 'import requests; print(requests.__version__)' 2> /dev/null)"

# GPUs.
case $gpu_access in
    nvidia | cdi)
        for device in /sys/bus/pci/devices/*; do
            case "$(cat "$device/vendor" "$device/class" 2> /dev/null | tr '\n' ' ')" in
                '0x10de 0x03'*) nvidia_devices=$((${nvidia_devices:-0} + 1)) ;;
            esac
        done
        say nvidia_devices "${nvidia_devices:-0}"
        say nvidia_smi "$(command -v nvidia-smi)"
        if there nvidia-smi; then
            if answer=$(timeout 60 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1); then
                driver=$(printf '%s\n' "$answer" | tail -n 1)
                say gpus "$(printf '%s\n' "$answer" | grep -c .)"
                say driver "$driver"
                say gpu_uuids "$(timeout 60 nvidia-smi -L 2> /dev/null | grep -oE '(GPU|MIG)-[0-9a-f-]{36}')"
            else
                say nvidia_error "$answer"
            fi
        fi
        say toolkit "$(command -v nvidia-ctk)"
        # A specification names the libraries of the driver that it was made with.
        say cdi_specification "$(test -n "${driver:-}" && grep -rlsF ".so.$driver" /etc/cdi /run/cdi | head -n 1)"
        ;;
    amd)
        say kfd "$(ls /dev/kfd 2> /dev/null)"
        say dri "$(ls -d /dev/dri 2> /dev/null)"
        ;;
esac

# Room. What is there of the weights needs no more room.
disk cache "$weights_dir"
say cache_used_kb "$(timeout 30 du -skx "$weights_dir" 2> /dev/null | awk '{print $1}')"
disk docker "${docker_root:-/var/lib/docker}"
