#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Gives a minimal root what it needs of this machine and runs a command in it, in a clone of this checkout. tools/fresh.sh
# calls it in namespaces of its own: all mounts end with them.
#
#   tools/fresh_root.sh ROOT FOLDER ACCOUNT SCRIPT      FOLDER takes what is written; SCRIPT is one for sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lower=$1 folder=$2 account=$3 script=$4
root=$folder/root

mkdir -p "$folder"/{root,upper,layer}
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/layer" overlay "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"

# The ports are the machine's: those who look for some in there hold the same locks as those out here.
locks() { # BEGINNING END: of the name of a file, around the account's number
    local own
    own=$root$1$(chroot "$root" id -u "$account")$2
    touch "${1}0$2" "$own"
    chmod 666 "${1}0$2"
    mount --bind "${1}0$2" "$own"
}
locks /tmp/homegpt-vllm-test-ports- "" # tests/serverlib.py
locks /tmp/homegpt-vllm-demo- .lock # tools/demo.sh

copy() { # PATH AS: if it is there
    if [ ! -e "$1" ]; then return; fi
    mkdir -p "$(dirname "$root$2")"
    cp -aT --remove-destination "$(realpath "$1")" "$root$2"
}

# The network.
copy /etc/resolv.conf /etc/resolv.conf
copy /etc/hosts /etc/hosts
# The certificates.
for path in /etc/ssl /usr/share/ca-certificates /usr/local/share/ca-certificates; do copy "$path" "$path"; done
# The settings of pip, and the folders on the disk that they name: of an index also what lies beside its pages.
files=(/etc/pip.conf /etc/xdg/pip "$HOME/.config/pip" "$HOME/.pip")
for path in "${files[@]}"; do
    case $path in
    "$HOME"/*) for home in /root /home/user; do copy "$path" "$home/${path#"$HOME"/}"; done ;;
    *) copy "$path" "$path" ;;
    esac
done
variables=()
for name in $(compgen -e); do
    case $name in
    PIP_* | *_proxy | *_PROXY | SSL_CERT_* | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE) variables+=("$name=${!name}") ;;
    esac
done
while IFS= read -r path; do
    if [ ! -d "$path" ] || [ -e "$root$path" ]; then continue; fi
    mkdir -p "$root$path"
    mount --bind "$path" "$root$path"
    mount -o remount,bind,ro "$root$path"
done < <({
    printf '%s\n' "${variables[@]}"
    find "${files[@]}" -type f -exec cat {} + 2>/dev/null || true
} | grep -oE '(^|[[:space:]=]|file://)/[^[:space:]]+' | sed -E 's,^(file://|[^/]),,; s,/simple/?$,,' | sort -u)

home=/root
[ "$account" = root ] || home=/home/$account
clone="$home/a folder/homegpt.vllm"
git -c advice.detachedHead=false clone --quiet --no-hardlinks . "$root$clone"
git -C "$root$clone" remote remove origin
chroot "$root" chown -R "$account:$account" "$home"
# What a login gives, and how packages are reached. This shell stays, as root: a process that has changed its user no longer
# ends with its parent, and all that runs in here ends with this one.
chroot --userspec="$account:$account" "$root" /usr/bin/env -i --chdir="$clone" HOME="$home" USER="$account" \
    LOGNAME="$account" SHELL=/bin/bash PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    "${variables[@]}" /bin/sh -c "$script"
