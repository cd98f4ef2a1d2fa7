#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds the container images that the tests use, from Debian packages alone; needs a Docker engine.
#
#   tools/images.sh [NAME ...]     base standin webui gateway cpu fleet; all of them unless told otherwise
#
#   homegpt-base:bookworm   Debian with Python and little more
#   vllm-standin:local      the stand-in (tests/standin) behind the entry point of vllm/vllm-openai
#   webui-standin:local     a stand-in for Open WebUI
#   gateway-debian:local    Debian's nginx with Lua, for the role model_gateway
#   vllm-cpu:local          real vLLM for CPUs, with the models /models/tiny-a and /models/tiny-b
#   fleet-host:SUITE        a host with sshd and the stand-in, for Debian bookworm and trixie
#
# An image carries a digest of what it was made of, and is made again only when that has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH

label=homegpt.inputs
packages=ca-certificates,libnuma1,libstdc++6,procps,python3,python3-requests
work=$(mktemp -d)
container=

# A failed build leaves layers without a name, and so does an image that another has replaced.
cleanup() {
    rm -rf "$work"
    [ -z "$container" ] || docker rm --force "$container" >/dev/null
    docker image prune --force --filter label=homegpt.image >/dev/null || true
}
trap cleanup EXIT

say() { echo "images.sh: $*" >&2; }

digest() { sha256sum | cut -c 1-16; }

# A digest of all files in these folders: names, modes and contents.
digest_of() {
    find "$@" -name __pycache__ -prune -o -type f -printf '%m %p\n' | LC_ALL=C sort
    find "$@" -name __pycache__ -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
}

# True if image $1 was made of what has the digest $2.
is_there() {
    [ "$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null)" = "$2" ]
}

id_of() { docker image inspect --format '{{.Id}}' "$1"; }

base() { # SUITE: of Debian
    local image=homegpt-base:$1 root=$work/root inputs
    inputs=$(echo "$1 $packages 1" | digest)
    if is_there "$image" "$inputs"; then return; fi
    say "building $image"
    bash tools/debian.sh "$1" "$root" "$packages"
    tar --create --directory "$root" --one-file-system . |
        docker import --change "LABEL $label=$inputs homegpt.image=1" --change 'CMD ["bash"]' - "$image" >/dev/null
    rm -rf "$root"
}

build() { # IMAGE DIGEST FOLDER [BASE]: the context, with its Dockerfile
    say "building $1"
    # The builder that every engine has, unless there is the newer one.
    docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0
    docker build --force-rm --tag "$1" --build-arg BASE="${4:-homegpt-base:bookworm}" --label "$label=$2" "$3" >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        exit 1
    }
}

# Puts the stand-in, with the aiohttp that the tests run with (Debian's is too old), into a context for an image.
standin_context() { # FOLDER PYTHON_VERSION
    local machine
    machine=$(uname -m)
    mkdir -p "$1/standin"
    cp tests/images/standin/* "$1"
    cp tests/standin/*.py "$1/standin"
    rm "$1"/standin/test_*.py
    python -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-compile --target "$1/site-packages" \
        --implementation cp --python-version "$2" --only-binary :all: \
        --platform "manylinux2014_$machine" --platform "manylinux_2_17_$machine" --platform "manylinux_2_28_$machine" \
        "aiohttp==$(aiohttp)"
}

aiohttp() { python -c 'import aiohttp; print(aiohttp.__version__)'; }

standin() {
    local image=vllm-standin:local context=$work/standin inputs
    base bookworm
    inputs=$({ id_of homegpt-base:bookworm; aiohttp; digest_of tests/images/standin tests/standin/*.py; } | digest)
    if is_there "$image" "$inputs"; then return; fi
    standin_context "$context" 3.11
    build "$image" "$inputs" "$context"
}

fleet() { # SUITE PYTHON_VERSION
    local image=fleet-host:$1 context=$work/fleet-$1 inputs
    base "$1"
    inputs=$({ id_of "homegpt-base:$1"; aiohttp; digest_of tests/images/standin tests/images/fleet tests/standin/*.py; } | digest)
    if is_there "$image" "$inputs"; then return; fi
    standin_context "$context" "$2"
    cp tests/images/fleet/* "$context"
    build "$image" "$inputs" "$context" "homegpt-base:$1"
}

webui() {
    local image=webui-standin:local inputs
    base bookworm
    inputs=$({ id_of homegpt-base:bookworm; digest_of tests/images/webui; } | digest)
    if is_there "$image" "$inputs"; then return; fi
    build "$image" "$inputs" tests/images/webui
}

gateway() {
    local image=gateway-debian:local inputs
    base bookworm
    inputs=$({ id_of homegpt-base:bookworm; digest_of tests/images/gateway; } | digest)
    if is_there "$image" "$inputs"; then return; fi
    build "$image" "$inputs" tests/images/gateway
}

cpu() {
    local image=vllm-cpu:local venv version suite inputs
    venv=$(bash tools/real_vllm.sh)
    version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    # The image runs Debian's own Python, which has to be the one that the environment was built with.
    case $version in
    3.11) suite=bookworm ;;
    3.13) suite=trixie ;;
    *)
        say "no Debian release has Python $version, with which $venv was built: name another, such as PYTHON=python3.11"
        exit 1
        ;;
    esac
    base "$suite"
    inputs=$({ id_of "homegpt-base:$suite"; cat "$venv/.homegpt-stamp" "$venv/models/.stamp"; digest_of tests/images/cpu; } | digest)
    if is_there "$image" "$inputs"; then return; fi
    say "building $image (2.6 GB)"
    # Straight into a container's own layer: no copy of it lies about, not even for a while.
    container=$(docker create --label homegpt.image=1 "homegpt-base:$suite")
    mkdir -p "$work/cpu/opt/vllm/bin" "$work/cpu/usr/local/bin"
    printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = %s\n' "$version" >"$work/cpu/opt/vllm/pyvenv.cfg"
    ln -s /usr/bin/python3 "$work/cpu/opt/vllm/bin/python"
    ln -s python "$work/cpu/opt/vllm/bin/python3"
    cp tests/images/cpu/vllm.py "$work/cpu/opt/vllm/vllm.py"
    cp tests/images/cpu/vllm.sh "$work/cpu/usr/local/bin/vllm"
    cp tests/images/cpu/hf.sh "$work/cpu/usr/local/bin/hf"
    tar --create --directory "$work/cpu" opt usr | docker cp - "$container:/"
    # Not Triton (1 GB): it has no CPU in it, so that vLLM does not use it here.
    tar --create --directory "$venv" --exclude 'site-packages/triton' --transform 's,^models,./models,;s,^\(lib\|opt\),opt/vllm/\1,' --owner 0 --group 0 \
        lib opt models | docker cp - "$container:/"
    docker commit --change "LABEL $label=$inputs" --change 'ENTRYPOINT ["vllm", "serve"]' --change 'CMD []' \
        --change 'ENV PATH=/usr/local/bin:/opt/vllm/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1' \
        "$container" "$image" >/dev/null
    docker rm "$container" >/dev/null
    container=
}

names=("$@")
[ $# -gt 0 ] || names=(base standin webui gateway cpu fleet)
for name in "${names[@]}"; do
    case $name in
    base) base bookworm ;;
    standin | webui | gateway | cpu) "$name" ;;
    fleet)
        fleet bookworm 3.11
        fleet trixie 3.13
        ;;
    *)
        say "there is no image $name: base, standin, webui, gateway, cpu or fleet"
        exit 1
        ;;
    esac
done
