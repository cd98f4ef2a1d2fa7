# SPDX-License-Identifier: MIT
"""Weights are fetched to, found in and removed from where the environment and the volumes of the user put them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import inventory_of
from tests.e2e.stack import PLAY, Stack, contained, docker
from tests.playbooklib import Ansible

pytestmark = pytest.mark.timeout(1800)
Provision = Callable[..., tuple[Stack, Ansible]]


def fill(hub: Path, model: str, *left_out: str) -> Path:
    """Put a repository into a cache, but for some files; return its folder."""
    folder = hub / f"models--org--{model}"
    files = {"refs/main": "abc", "snapshots/abc/config.json": "{}", "snapshots/abc/model.safetensors": "weights"}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name not in left_out:
            path.write_text(text, encoding="utf-8")
    return folder


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_weights_are_where_the_user_says(provision: Provision) -> None:
    models: list[dict[str, Any]] = [
        contained("home", env={"HF_HOME": "/nas/hf"}),
        contained("over"),
        contained("shelf", env={"HF_HUB_CACHE": "/shelf"}),
        contained("drawer", env={"HF_HUB_CACHE": "/drawer"}),
    ]
    stack, ansible = provision(models)
    root = stack.stack.parent
    nas, shelf, drawer = root / "nas", root / "shelf", f"{stack.tag}-drawer"
    for folder in (nas, shelf):
        folder.mkdir()
    stack.more["vllm_volumes"] += [
        f"{nas}:/nas",
        f"{nas}/cache:/root/.cache",
        f"{shelf}:/shelf:ro",
        f"{drawer}:/drawer",
    ]
    fill(shelf, "shelf")
    before = tree(shelf)
    ansible = inventory_of(ansible, stack)
    try:
        ansible.play("site", timeout=PLAY).changed()
        # Of the caches only the one that lies elsewhere is not hidden by the user's volume.
        assert {path.name for path in (root / "cache").iterdir()} == {"triton"}
        assert ansible.play("prefetch", "--check", timeout=PLAY).changed() > 0
        run = ansible.play("prefetch", timeout=PLAY)
        assert run.changed() > 0
        for name in ("home", "over", "shelf", "drawer"):
            assert f"{name}: complete" in run.output, run.output
        assert (nas / "hf/hub/models--org--home/.homegpt-main.auto").exists()
        assert (nas / "cache/huggingface/hub/models--org--over/.homegpt-main.auto").exists()
        # Nothing is written where nothing may be, and all the same it is looked at.
        assert tree(shelf) == before
        for mode in ([], ["--check"]):
            assert ansible.play("prefetch", *mode, timeout=PLAY).changed() == 0
        assert ansible.play("site", timeout=PLAY).changed() == 0

        # A read-only cache with a file too few can't be completed.
        (shelf / "models--org--shelf/snapshots/abc/model.safetensors").unlink()
        message = ansible.play("prefetch", timeout=PLAY).failure()
        assert message.startswith("shelf: the weights could not be fetched: not all files are in /shelf, ")
        assert "read-only or not in a volume" in message
    finally:
        docker("volume", "rm", "--force", drawer, check=False)


def test_weights_are_removed_where_they_were(provision: Provision) -> None:
    models = [
        contained("home", env={"HF_HOME": "/nas/hf"}),
        contained("shelf", env={"HF_HUB_CACHE": "/shelf"}),
        contained("over"),
    ]
    stack, ansible = provision(models)
    nas, shelf = stack.stack.parent / "nas", stack.stack.parent / "shelf"
    stack.more["vllm_volumes"] += [f"{nas}:/nas", f"{nas}/cache:/root/.cache", f"{shelf}:/shelf:ro"]
    stack.more["vllm_servers_remove_weights"] = True
    home, other, over = (
        fill(nas / "hf/hub", "home"),
        fill(nas / "hf/hub", "other"),
        fill(nas / "cache/huggingface/hub", "over"),
    )
    read_only = fill(shelf, "shelf")
    ansible = inventory_of(ansible, stack)
    ansible.play("site", timeout=PLAY).changed()

    stack.models[:] = models[2:]
    ansible = inventory_of(ansible, stack)
    ansible.play("site", timeout=PLAY).changed()
    assert [folder.exists() for folder in (home, other, over, read_only)] == [False, True, True, True]
    assert (read_only / "snapshots/abc/model.safetensors").exists()
    ansible.play("teardown", "-e", "teardown_caches=true", timeout=PLAY).changed()
    assert [folder.exists() for folder in (home, other, over, read_only)] == [False, True, False, True]
