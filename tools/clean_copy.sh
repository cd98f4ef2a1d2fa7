#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Copies what git would commit to DEST/ansible_collections/homegpt/vllm and prints that path.
#
#   tools/clean_copy.sh DEST      DEST lies outside the checkout
#
# ansible-test refuses the link in .build, and inside a folder that git ignores it finds no file to
# check and calls that success; ansible-galaxy packs what git ignores. Both want a copy of their own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
copy=${1:?usage: tools/clean_copy.sh DEST}/ansible_collections/homegpt/vllm
mkdir -p "$copy"
git ls-files --cached --others --exclude-standard -z |
    while IFS= read -r -d '' name; do
        # A file deleted but not yet committed is still listed.
        if [ -e "$name" ] || [ -L "$name" ]; then printf '%s\0' "$name"; fi
    done | tar --null --files-from=- --create --file=- | tar --extract --file=- --directory="$copy"
git -C "$copy" init --quiet
git -C "$copy" add --all
echo "$copy"
