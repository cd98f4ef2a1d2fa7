#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Renders the documentation of everything the collection ships, lints it, and builds the site out of it and of the
# pages in docs/: .build/site/html/index.html. Any warning, a broken link within the site among them, is an error. Nothing
# is fetched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH
# antsibull-docs writes a log into the home folder.
mkdir -p .build/home
export HOME=$PWD/.build/home
unset ANSIBLE_CONFIG ANSIBLE_COLLECTIONS_PATH
# Ansible starts in a UTF-8 locale only.
if [ "$(locale charmap 2>/dev/null)" != UTF-8 ]; then export LC_ALL=C.UTF-8; fi

names() {
    ansible-doc --type "$1" --list --json homegpt.vllm | python -c 'import json, sys; print(*sorted(json.load(sys.stdin)))'
}

total=0
for type in module filter role; do
    found=$(names "$type")
    if [ -z "$found" ]; then
        echo "homegpt.vllm has no $type that ansible-doc can find" >&2
        exit 1
    fi
    for name in $found; do
        # A mistake in the documentation is often no more than a warning on stderr.
        if ! said=$(ansible-doc --type "$type" "$name" 2>&1 >/dev/null) || [ -n "$said" ]; then
            printf '%s\n' "$said" >&2
            exit 1
        fi
        total=$((total + 1))
    done
    echo "$type: $found"
done
antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck .
echo "$total pages rendered"

site=.build/site
rm -rf "$site"
mkdir -p "$site/source"
cp docs/*.md docs/*.svg docs/*.png "$site/source"
# It wants a folder that nobody else can write to.
mkdir -m 700 "$site/source/collections"
antsibull-docs collection --use-current --squash-hierarchy --fail-on-error --dest-dir "$site/source/collections" homegpt.vllm
HOMEGPT_ROOT=$PWD sphinx-build -b html -c tools/site -q -n -W --keep-going -d "$site/doctrees" "$site/source" "$site/html"
echo "the site: $site/html/index.html, $(find "$site/html" -name '*.html' | wc -l) pages"
