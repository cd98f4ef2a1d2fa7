#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Proves that a newcomer's first two commands hold on a bare machine: in minimal roots of Debian, as root and as an ordinary
# user, in a clone in a folder with a space, `make demo` and `make test` with next to nothing in the environment. Of the
# tests, all run on the older release as root and on the newer one as a user, and a quarter on the two others; with QUICK=1
# a quarter on the former and none on the latter.
#
#   tools/fresh.sh [debian12] [debian13] [root] [user] [-- SCRIPT]
#
# The words choose releases and accounts, for which all tests run; SCRIPT is run instead of the two commands. A root holds
# what CONTRIBUTING.md asks of a machine and no more. It is made once and kept in $HOMEGPT_CACHE (default: homegpt.vllm in
# the user's cache); what a run changes lies on a layer above it, so that each begins bare. What is printed is also in
# .build/fresh.
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=git,make,python3,python3-venv
# shellcheck disable=SC2016 # what stands there is for the shell within
script='
echo "$(. /etc/os-release; echo "$PRETTY_NAME"), $(python3 --version), $(id -un), $PWD"
echo "env | grep PYTHON: $(env | grep PYTHON || echo nothing)"
for target in $targets; do
    start=$(date +%s)
    if make --no-print-directory "$target"; then verdict=ok; else verdict=FAILED; fi
    echo "fresh: $target $verdict $(($(date +%s) - start))"
done'

releases=() accounts=() other=
# Where a quarter of the tests run, and where none do.
shared="" untested=""
if [ $# -eq 0 ]; then
    shared="debian12-user debian13-root"
    [ -z "${QUICK:-}" ] || untested=$shared shared="debian12-root debian13-user"
fi
while [ $# -gt 0 ]; do
    case $1 in
    debian12 | debian13) releases+=("$1") ;;
    root | user) accounts+=("$1") ;;
    --)
        other=yes script=${2:?a script for sh}
        break
        ;;
    *)
        echo "There is no $1: debian12, debian13, root or user" >&2
        exit 1
        ;;
    esac
    shift
done
[ ${#releases[@]} -gt 0 ] || releases=(debian12 debian13)
[ ${#accounts[@]} -gt 0 ] || accounts=(root user)
if [ "$(id -u)" -ne 0 ]; then
    echo "Only root can make a root and run a command in it: sudo make fresh" >&2
    exit 1
fi

cache=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}/fresh
logs=.build/fresh
mkdir -p "$cache" "$logs"
exec 9>"$cache/lock"
flock --nonblock 9 || {
    echo "Another one is using $cache: waiting for it"
    flock 9
}
# What one that was killed has left.
rm -rf "$cache"/run.*
work=$(mktemp -d "$cache/run.XXXXXX")
inside=

# shellcheck disable=SC2329 # the trap calls it
# Every process and every mount of a run ends with the one that keeps its namespaces.
cleanup() {
    if [ -n "$inside" ]; then
        kill -KILL "$inside" 2>/dev/null || true
        wait "$inside" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

base() { # RELEASE: made when it is absent or was made otherwise
    local root=$cache/$1 suite=bookworm wanted
    [ "$1" = debian12 ] || suite=trixie
    wanted="$suite $packages 1"
    if [ "$(cat "$root.made" 2>/dev/null)" = "$wanted" ]; then return; fi
    echo "Making a minimal $1 ($suite)"
    rm -rf "$root" "$root.made"
    bash tools/debian.sh "$suite" "$root" "$packages"
    chroot "$root" /usr/sbin/useradd --create-home --shell /bin/bash user
    echo "$wanted" >"$root.made"
}

[ -z "$(git status --porcelain)" ] || echo "What is not committed is not in the clones."
table=$(printf '%-10s %-6s %-16s %s' "" "" "make demo" "make test")
failed=0 number=0
for release in "${releases[@]}"; do
    base "$release"
    for account in "${accounts[@]}"; do
        log=$logs/$release-$account.log
        targets="demo test" share="" share_said=""
        if [[ " $untested " == *" $release-$account "* ]]; then
            targets=demo share_said=", no tests"
        elif [[ " $shared " == *" $release-$account "* ]]; then
            # As .ci/run has it for the second of two Pythons. Each draws another quarter.
            draw=$((16#$(git rev-parse HEAD | cut -c 1-8) + number++))
            share="export QUICK=1 PYTHON_OF_TWO=2 PART_SEED=$draw" share_said=", a quarter of the tests"
        fi
        printf '\n==== %s, %s%s\n' "$release" "$account" "$share_said"
        exec {out}> >(exec tee "$log" 9>&-)
        tee=$!
        set -m # a job of its own, which Ctrl-C does not reach, so that it ends as a whole
        setpriv --pdeathsig KILL unshare --mount --pid --ipc --fork --kill-child \
            bash tools/fresh_root.sh "$cache/$release" "$work/$release-$account" "$account" "targets='$targets'"$'\n'"$share"$'\n'"$script" >&"$out" 2>&1 9>&- &
        inside=$!
        set +m
        status=0
        wait "$inside" || status=$?
        inside=
        exec {out}>&-
        wait "$tee" || true
        [ "$status" -eq 0 ] || failed=1
        row=
        for target in $targets; do
            read -r verdict seconds < <(
                sed -n "s/^fresh: $target //p" "$log"
                echo "FAILED 0"
            )
            [ "$verdict" = ok ] || [ -n "$other" ] || failed=1
            row+=$(printf '%-6s %4d s    ' "$verdict" "$seconds")
        done
        table+=$'\n'$(printf '%-10s %-6s %s%s' "$release" "$account" "$row" "${share_said#, }")
        rm -rf "$work/$release-$account"
    done
done
[ -n "$other" ] || printf '\n%s\n' "$table"
exit "$failed"
