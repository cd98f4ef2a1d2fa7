# SPDX-License-Identifier: MIT
"""prefetch.yml fetches what real vLLM loads without a network, from a Hub of the tests' own, with the real client."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import inventory_of
from tests.e2e.hub import Hub, Repository
from tests.e2e.stack import CPU_IMAGE, PLAY, Stack, contained, docker, inspect
from tests.playbooklib import Ansible, Run, complete, unspaced_python
from tests.serverlib import ROOT

pytestmark = pytest.mark.timeout(1800)
Provision = Callable[..., tuple[Stack, Ansible]]
# What a repository has beside what a server reads.
USELESS = {
    "original/model.safetensors": b"o" * 99,
    "metal/model.bin": b"m" * 99,
    "README.md": b"r",
    "onnx/model.onnx": b"x",
}
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def hub(engine: None) -> Iterator[Hub]:
    with Hub("0.0.0.0") as hub:
        yield hub


@pytest.fixture(scope="module")
def endpoint(hub: Hub) -> str:
    """The Hub's address as containers see it."""
    # The engine itself says it: before its first restart, its default network does not show a gateway.
    asked = docker("run", "--rm", "--add-host", "hub:host-gateway", "--entrypoint", "getent", CPU_IMAGE, "hosts", "hub")
    return f"http://{asked.split()[0]}:{hub.port}"


@pytest.fixture(scope="module")
def tiny() -> dict[str, bytes]:
    """The files of a tiny real model, as they are in the image."""
    folder = "/models/tiny-a"
    names = docker("run", "--rm", "--entrypoint", "ls", CPU_IMAGE, folder).split()
    files = {}
    for name in names:
        command = ["docker", "run", "--rm", "--entrypoint", "cat", CPU_IMAGE, f"{folder}/{name}"]
        files[name] = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    return files


def big(*sizes: int) -> dict[str, bytes]:
    """Return the files of a model in parts, of so many bytes; nothing could load it."""
    parts = {f"model-{n + 1:05}-of-{len(sizes):05}.safetensors": random.randbytes(size) for n, size in enumerate(sizes)}
    index = {"weight_map": {f"w{n}": name for n, name in enumerate(parts)}}
    # One more that the index does not name.
    return {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "x.safetensors": b"x",
        **parts,
    }


def provisioned(
    provision: Provision, endpoint: str, models: list[dict[str, Any]], **more: Any
) -> tuple[Stack, Ansible]:
    env = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    stack, ansible = provision(models, image=CPU_IMAGE, vllm_servers_prefetch_report_seconds=2, **more)
    stack.more["vllm_env"] = {**env, **more.get("vllm_env", {})}
    stack.more["ansible_python_interpreter"] = unspaced_python(stack.stack.parent)  # for the pulls
    ansible = inventory_of(ansible, stack)
    ansible.play("site", timeout=PLAY).changed()
    return stack, ansible


def fetching(stack: Stack) -> list[str]:
    """Return the names of the containers that fetch, running or not."""
    label = f"label=homegpt.vllm.prefetch={stack.stack}"
    return docker("ps", "--all", "--filter", label, "--format", "{{.Names}}").split()


def hub_folder(stack: Stack, model: str) -> Path:
    return Path(stack.more["vllm_cache_dir"]) / f"huggingface/hub/models--org--{model}"


def snapshot(stack: Stack, model: str) -> set[str]:
    (folder,) = (hub_folder(stack, model) / "snapshots").iterdir()
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def lines(run: Run) -> list[str]:
    """Return the last task's message, line by line."""
    assert run.status == 2, run.output
    assert "Traceback" not in run.output, run.output
    found: list[str] = run.results("fatal", "failed")[-1]["msg"]
    return found


@pytest.mark.whole
def test_all_at_once_and_each_failure_told(
    provision: Provision, hub: Hub, endpoint: str, tiny: dict[str, bytes]
) -> None:
    token = "hf_" + uuid.uuid4().hex
    hub.add("org/one", {**tiny, **USELESS}, cut=True)
    sizes = [MEGABYTE // 2 * n for n in (1, 2, 3, 4)]
    hub.add("org/parts", {**big(*sizes), **USELESS}, token=token, speed=MEGABYTE / 16)
    hub.add("org/gated", tiny, token="somebody else's", gated=True)
    hub.add("org/private", tiny, token="somebody else's")
    hub.add("org/empty", {"config.json": b"{}", "model.gguf": b"x"})
    models = [
        contained("one", args={"max_model_len": 512, "max_num_seqs": 4, "enforce_eager": True}),
        contained("parts"),
        contained("gated"),
        contained("private"),
        contained("old", model="org/one", args={"revision": "v0"}),
        contained("empty"),
        contained("imageless", image="127.0.0.1:9/none:1"),
        contained("local", model="/models/tiny-a"),
        contained("unused", startup_mode="disabled"),
    ]
    stack, ansible = provisioned(provision, endpoint, models, vllm_hf_token=token)

    run = ansible.play("prefetch", "--check", "--diff", timeout=PLAY)
    assert run.changed() > 0
    assert not hub_folder(stack, "one").exists()
    assert [repository.asked for repository in hub.repositories.values() if repository.asked] == []

    run = ansible.play("prefetch", "-vvv", timeout=PLAY)
    told = dict(line.split(": ", 1) for line in lines(run))
    assert set(told) == {"gated", "private", "old", "empty", "imageless"}, run.output
    assert "is gated (403): accept its conditions" in told["gated"]
    assert "vllm_hf_token" in told["private"]
    assert "org/one has no revision v0 (404): correct args.revision" in told["old"]
    assert "no weights that vLLM loads" in told["empty"]
    assert "the image 127.0.0.1:9/none:1 could not be pulled" in told["imageless"]
    assert "correct `image` or vllm_image" in told["imageless"]

    # Fetched: what vLLM reads and no more, and what was lost on the way once more.
    assert snapshot(stack, "one") == set(tiny)
    assert snapshot(stack, "parts") == set(big(*sizes)) - {"x.safetensors"}
    assert sorted(hub.fetched("org/one")) == sorted([*tiny, "model.safetensors"])
    # Somebody who watches sees how far it is.
    assert len(set(re.findall(r"parts: fetching (\d\.\d) of 5\.2 MB", run.output))) > 1
    assert "one: complete" in run.output
    assert fetching(stack) == []
    assert token not in run.output

    # Asked again with only what worked: nobody is asked, and nothing is run.
    stack.models[:] = [model for model in stack.models if model["id"] in ("one", "parts", "local")]
    ansible = inventory_of(ansible, stack)
    ansible.play("site", timeout=PLAY).changed()
    marks = [len(repository.asked) for repository in hub.repositories.values()]
    for mode in ([], ["--check"]):
        assert ansible.play("prefetch", *mode, timeout=PLAY).changed() == 0
    assert [len(repository.asked) for repository in hub.repositories.values()] == marks

    # And real vLLM, which is kept offline, finds all it wants.
    stack.models[:] = [model for model in stack.models if model["id"] == "one"]
    stack.models[0]["startup_mode"] = "active"
    ansible = inventory_of(ansible, stack)
    ansible.play("site", timeout=PLAY).changed()
    run = ansible.play("bootstrap", timeout=400)
    assert run.changed() > 0
    environment = inspect(stack.container("one"))["Config"]["Env"]
    assert "HF_HUB_OFFLINE=1" in environment
    assert complete(stack.port("one"), "one", 8)["tokens"] == 8
    assert [len(repository.asked) for repository in hub.repositories.values()] == marks
    assert ansible.play("bootstrap", timeout=PLAY).changed() == 0


def begin(ansible: Ansible) -> subprocess.Popen[bytes]:
    """Start prefetch.yml without waiting for it."""
    command = [ansible.command, "-i", str(ansible.inventory), "playbooks/prefetch.yml"]
    return subprocess.Popen(
        command, cwd=ROOT, env=ansible.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )


def wait_until(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def interrupted(provision: Provision, hub: Hub, endpoint: str, name: str) -> tuple[Stack, Ansible, Repository]:
    """A host whose prefetch.yml was killed in the middle of the second file; its container runs on."""
    files = big(MEGABYTE, 8 * MEGABYTE)
    # Slow enough for a second play to get there, also on a busy machine.
    repository = hub.add(f"org/{name}", files, speed=MEGABYTE / 6)
    stack, ansible = provisioned(provision, endpoint, [contained(name)])
    play = begin(ansible)
    try:
        blobs = hub_folder(stack, name) / "blobs"
        # Both files without weights and the small one with them; the large one is on its way.
        wait_until(lambda: len([path for path in blobs.glob("*") if "." not in path.name]) == 3)
    finally:
        os.killpg(play.pid, signal.SIGKILL)
        play.wait()
    assert inspect(f"{stack.container(name)}-prefetch")["State"]["Running"]
    return stack, ansible, repository


@pytest.mark.whole
def test_a_fetch_under_way_is_joined(provision: Provision, hub: Hub, endpoint: str) -> None:
    stack, ansible, repository = interrupted(provision, hub, endpoint, "joined")
    before = inspect(fetching(stack)[0])["Id"]
    play = begin(ansible)
    seen = set()
    while play.poll() is None:
        seen |= {inspect(name).get("Id", before) for name in fetching(stack)}
        time.sleep(0.2)
    assert play.returncode == 0
    assert seen == {before}
    # Nothing was fetched twice.
    assert sorted(hub.fetched("org/joined")) == sorted(set(repository.files) - {"x.safetensors"})
    assert fetching(stack) == []
    assert ansible.play("prefetch", timeout=PLAY).changed() == 0


def test_a_killed_fetch_is_resumed(provision: Provision, hub: Hub, endpoint: str) -> None:
    stack, ansible, repository = interrupted(provision, hub, endpoint, "killed")
    docker("kill", *fetching(stack))
    wait_until(lambda: not fetching(stack))
    first = hub.fetched("org/killed")
    repository.speed = 0
    assert list(hub_folder(stack, "killed").glob("blobs/*.incomplete"))
    assert ansible.play("prefetch", timeout=PLAY).changed() > 0
    assert set(hub.fetched("org/killed")[len(first) :]) == {"model-00002-of-00002.safetensors"}
    assert snapshot(stack, "killed") == set(repository.files) - {"x.safetensors"}
    assert not list(hub_folder(stack, "killed").glob("blobs/*.incomplete"))
    assert ansible.play("prefetch", timeout=PLAY).changed() == 0


def test_an_unreachable_hub(provision: Provision, endpoint: str) -> None:
    models = [contained("far")]
    stack, ansible = provisioned(provision, endpoint, models, vllm_env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    (line,) = lines(ansible.play("prefetch", timeout=PLAY))
    assert line.startswith("far: the weights could not be fetched: http://127.0.0.1:9 can't be reached")
    assert "HF_ENDPOINT" in line
    assert fetching(stack) == []
