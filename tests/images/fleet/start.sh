#!/bin/sh
# SPDX-License-Identifier: MIT
# Whoever has the key in /keys may log in as root. Sessions of sshd don't see the container's environment.
set -eu
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
exec /usr/sbin/sshd -D -e -o UsePAM=no -o StrictModes=no -o AuthorizedKeysFile=/keys/authorized_keys \
    -o HostKey=/etc/ssh/ssh_host_ed25519_key -o UseDNS=no
