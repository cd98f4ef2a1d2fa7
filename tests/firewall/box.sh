#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Boots a root with systemd as a host of its own:  tests/firewall/box.sh ROOT FOLDER NAME [PATH ...]
# FOLDER takes what is written; each PATH of this machine can be read there at the same place.
# tests/firewall/box.py calls it in namespaces of its own, as their first process: all mounts and processes end with it.
set -euo pipefail
lower=$1 folder=$2 name=$3
shared=("${@:4}")
root=$folder/root

mount --make-rprivate /
mkdir -p "$folder"/{root,upper,layer,engine}
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/layer" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root"/dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
# The engine's layers can't lie on a layer.
mkdir -p "$root/var/lib/docker"
mount --bind "$folder/engine" "$root/var/lib/docker"

for path in "${shared[@]}"; do
    if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$root${path%/*}" && touch "$root$path"; fi
    mount --bind "$path" "$root$path"
    mount -o remount,bind,ro "$root$path"
done

echo "$name" >"$root/etc/hostname"
hostname "$name"
# What would change the machine that this one is a part of, or waits for hardware.
for unit in systemd-sysctl systemd-udevd systemd-udev-trigger systemd-modules-load systemd-binfmt systemd-remount-fs systemd-networkd \
    systemd-logind getty.target console-getty; do
    case $unit in *.*) ;; *) unit=$unit.service ;; esac
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

mkdir "$root/run/old"
cd "$root"
pivot_root . run/old
umount --lazy /run/old
# The second word lets systemd 257 run on a machine that still has the old control groups.
exec env -i container=box PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /sbin/init \
    SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1 </dev/null
