# SPDX-License-Identifier: MIT
"""Images that start something else than `vllm serve` are refused at once, or started by an entrypoint of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.conftest import inventory_of
from tests.e2e.stack import PLAY, STANDIN_IMAGE, Stack, contained, docker, inspect
from tests.playbooklib import Ansible, complete

pytestmark = pytest.mark.timeout(1800)
Provision = Callable[..., tuple[Stack, Ansible]]


@pytest.fixture(scope="module")
def shell_image(engine: None) -> Iterator[str]:
    """An image with vLLM that starts a shell, like ROCm's."""
    name = "homegpt-shell:local"
    made = docker("create", STANDIN_IMAGE)
    try:
        change = ["--change", 'ENTRYPOINT ["/bin/bash"]', "--change", 'CMD ["-l"]']
        docker("commit", *change, made, name)
    finally:
        docker("rm", made)
    yield name
    docker("rmi", "--force", name, check=False)


def words(container: str) -> list[Any]:
    config = inspect(container)["Config"]
    return [config["Entrypoint"], config["Cmd"][0]]


def test_an_entrypoint_starts_what_the_image_does_not(provision: Provision, shell_image: str) -> None:
    models = [contained("a", startup_mode="active"), contained("shell", image=shell_image, gpus=[1])]
    stack, ansible = provision(models)
    said = (
        f"shell: the image {shell_image} starts `/bin/bash`, not `vllm serve`: set the model's entrypoint to "
        "[vllm, serve], or correct `image` or vllm_image"
    )
    for mode in (["--check"], []):
        assert ansible.play("site", *mode, timeout=PLAY).failure() == said
        assert not stack.stack.exists()

    models[1].update(entrypoint=["vllm", "serve"], startup_mode="active")
    ansible = inventory_of(ansible, stack)
    ansible.play("site", timeout=PLAY).changed()
    ansible.play("bootstrap", timeout=PLAY).changed()
    assert words(stack.container("shell")) == [["vllm", "serve"], "org/shell"]
    assert complete(stack.port("shell"), "shell", 4)["tokens"] == 4
    assert ansible.play("site", timeout=PLAY).changed() == 0
    before = stack.seen()

    # Another one makes its container anew and no other, and it is what it was.
    models[1]["entrypoint"] = ["/usr/bin/env", "vllm", "serve"]
    ansible = inventory_of(ansible, stack)
    ansible.play("site", timeout=PLAY).changed()
    after = stack.seen()
    assert after["a"] == before["a"]
    assert after["shell"].id != before["shell"].id
    assert words(stack.container("shell")) == [["/usr/bin/env", "vllm", "serve"], "org/shell"]
    assert stack.states() == {"a": "awake", "shell": "awake"}

    # Without one the container that runs is left as it is.
    del models[1]["entrypoint"]
    ansible = inventory_of(ansible, stack)
    assert ansible.play("site", timeout=PLAY).failure() == said
    assert stack.seen() == after


def test_an_image_that_comes_later_is_looked_at_when_it_is_here(provision: Provision, shell_image: str) -> None:
    late = "homegpt-late:local"
    models = [contained("a", startup_mode="active"), contained("late", image=late, gpus=[1])]
    stack, ansible = provision(models)
    # Weights of a hub are not what this is about.
    for model in models:
        model["model"] = f"/models/{model['id']}"
    ansible = inventory_of(ansible, stack)
    stack.more["vllm_image"] = STANDIN_IMAGE
    ansible.play("site", timeout=PLAY).changed()
    docker("tag", shell_image, late)
    try:
        run = ansible.play("bootstrap", timeout=PLAY)
        assert run.status == 2, run.output
        assert f"late: the image {late} starts `/bin/bash`, not `vllm serve`" in run.output
        assert inspect(stack.container("late")) == {}
        # Nobody else has to wait for it.
        assert stack.states() == {"a": "awake", "late": "stopped"}
        assert json.loads(docker("image", "inspect", late))[0]["Config"]["Entrypoint"] == ["/bin/bash"]
    finally:
        docker("rmi", late, check=False)
