#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds the collection into dist/, installs the package beside nothing but its dependencies and, by their fully
# qualified names, plays the playbooks of the demo and checks the syntax of all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH
unset ANSIBLE_CONFIG
# Ansible starts in a UTF-8 locale only.
if [ "$(locale charmap 2>/dev/null)" != UTF-8 ]; then export LC_ALL=C.UTF-8; fi

# All temporary files lie in there, those of the commands that are called too.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tmp"
export TMPDIR=$work/tmp
copy=$(bash tools/clean_copy.sh "$work")

version=$(sed -n 's/^version: //p' galaxy.yml)
package=homegpt-vllm-$version.tar.gz

listing() {
    tar --list --gzip --file="$1" | LC_ALL=C sort
}

rm -rf dist
ansible-galaxy collection build --output-path dist "$copy"
listing "dist/$package" >"$work/listing"
# Nothing else here looks for them.
git ls-files extensions/eda | LC_ALL=C sort >"$work/eda"
[ -s "$work/eda" ]
if LC_ALL=C comm -23 "$work/eda" "$work/listing" | grep .; then
    echo "galaxy.yml build_ignore keeps these files of Event-Driven Ansible out of the package" >&2
    exit 1
fi

# build_ignore must hold for a checkout in use as well: whoever builds there gets the same package.
ansible-galaxy collection build --output-path "$work/from-checkout" . >/dev/null
listing "$work/from-checkout/$package" >"$work/listing-from-checkout"
if ! diff "$work/listing" "$work/listing-from-checkout"; then
    echo "galaxy.yml build_ignore lets files into the package (>) that git does not know" >&2
    exit 1
fi

export ANSIBLE_COLLECTIONS_PATH=$work/installed
mkdir -p "$ANSIBLE_COLLECTIONS_PATH/ansible_collections"
ln -s "$PWD/.build/ansible_collections/community" "$ANSIBLE_COLLECTIONS_PATH/ansible_collections/"
# Not --no-deps: that galaxy.yml names what the collection needs is part of what is checked.
ansible-galaxy collection install --offline --collections-path "$ANSIBLE_COLLECTIONS_PATH" "dist/$package"
# Before anything is played: Ansible then writes bytecode beside what it imports, and the package has none.
ansible-galaxy collection verify --offline homegpt.vllm
playbooks=(playbooks/*.yml)
printf '\nThe demo, out of the installed package, from an empty folder. It plays bootstrap, status, switch and teardown by name.\n\n'
DEMO_COLLECTIONS=$ANSIBLE_COLLECTIONS_PATH bash tools/demo.sh
echo
cd "$work"
for playbook in "${playbooks[@]}"; do
    name=homegpt.vllm.$(basename "$playbook" .yml)
    echo "The syntax of $name"
    ansible-playbook --syntax-check --inventory "vllm_host," "$name" >/dev/null
done
echo "$(wc -l <"$work/listing") files and folders in dist/$package"
