# SPDX-License-Identifier: MIT
"""The Hugging Face token and a model's own secret reach the servers they are for, and are seen nowhere else."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import inventory_of
from tests.e2e.stack import PLAY, Stack, contained, docker, inspect
from tests.playbooklib import Ansible, Run

pytestmark = pytest.mark.timeout(1800)
PLAYBOOKS = ("site", "prefetch", "bootstrap", "switch", "status", "site", "teardown --check", "teardown")


class Played:
    """The host, its secrets, and all that the playbooks said and left."""

    def __init__(self, stack: Stack, ansible: Ansible, token: str, key: str) -> None:
        self.stack = stack
        self.ansible = ansible
        self.token = token
        self.key = key
        self.since = time.time()
        self.runs: list[tuple[str, Run]] = []
        self.inspected: dict[str, str] = {}
        self.given: dict[str, str] = {}
        self.readable: list[str] = []

    def play(self, playbook: str, *arguments: str) -> None:
        run = self.ansible.play(playbook, "-e", "model=keyed", "-vvv", "--diff", *arguments, timeout=PLAY)
        assert run.status == 0, f"{playbook}: {run.output[-5000:]}"
        self.runs.append((" ".join((playbook, *arguments)), run))

    def look(self) -> None:
        """Note what the engine and the file system tell while everything runs."""
        for name in (*(str(model["container_name"]) for model in self.stack.models), self.stack.webui):
            self.inspected[name] = json.dumps(inspect(name))
        for model in self.stack.models:
            command = ["exec", str(model["container_name"]), "sh", "-c", "cat /run/secrets/hf_token; env"]
            self.given[str(model["id"])] = docker(*command)
        self.readable += self.world_readable()

    def world_readable(self) -> list[str]:
        """Return the files with a secret that anybody may read, in the stack's folders and in those of all."""
        found = []
        for root in (self.stack.stack.parent, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
            for path in self.files(root):
                try:
                    status = path.lstat()
                    if status.st_mode & 0o004 and status.st_mtime >= self.since - 1 and status.st_size < 10_000_000:
                        content = path.read_bytes()
                        if self.token.encode() in content or self.key.encode() in content:
                            found.append(str(path))
                except OSError:
                    continue  # gone in the meantime
        # The inventory is the test's own, and pytest keeps its folders from others.
        return sorted({path for path in found if path != str(self.ansible.inventory)})

    def files(self, root: Path) -> Iterator[Path]:
        for folder, _folders, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink():
                    yield path


@pytest.fixture(scope="module")
def played(provision: Callable[..., tuple[Stack, Ansible]]) -> Played:
    token, key = f"hf_{uuid.uuid4().hex}", f"sk-{uuid.uuid4().hex}"
    # The keyed server would answer nobody who does not know its key.
    models = [
        contained("open", startup_mode="active"),
        contained("keyed", env={"VLLM_API_KEY": key}),
        contained("argued", args={"api_key": key}),
    ]
    stack, ansible = provision(models, vllm_hf_token=token)
    played = Played(stack, ansible, token, key)
    for playbook in PLAYBOOKS:
        if playbook == "teardown":
            played.look()
        played.play(*playbook.split())
    return played


def test_they_reach_the_servers_they_are_for(played: Played) -> None:
    assert [name for name, _run in played.runs] == list(PLAYBOOKS)
    for given in played.given.values():
        assert given.startswith(played.token)
    assert f"VLLM_API_KEY={played.key}" in played.given["keyed"]
    assert played.key not in played.given["open"]


def test_no_playbook_shows_them(played: Played) -> None:
    shown = [
        (name, secret[:3]) for name, run in played.runs for secret in (played.token, played.key) if secret in run.output
    ]
    assert shown == []


def test_no_file_shows_them_to_everybody(played: Played) -> None:
    assert played.readable == []
    assert played.world_readable() == []
    # The same way of looking does find one.
    seen = played.stack.stack.parent / "seen"
    seen.write_text(played.token)
    seen.chmod(0o644)
    assert played.world_readable() == [str(seen)]
    seen.unlink()


def test_docker_inspect_does_not_show_the_token(played: Played) -> None:
    assert len(played.inspected) == 4
    for name, told in played.inspected.items():
        assert "running" in told, name
        assert played.token not in told, name
    assert played.key not in played.inspected[played.stack.container("open")]


def test_teardown_leaves_none_of_them(played: Played) -> None:
    left = [
        str(path)
        for path in played.files(played.stack.stack)
        if played.token.encode() in path.read_bytes() or played.key.encode() in path.read_bytes()
    ]
    assert left == []


@pytest.mark.whole
def test_a_changed_secret_reaches_the_containers_and_an_empty_token_is_none(
    provision: Callable[..., tuple[Stack, Ansible]],
) -> None:
    tokens, keys = ([f"{kind}{uuid.uuid4().hex}" for dummy in range(2)] for kind in ("hf_", "sk-"))
    models = [
        contained("first", startup_mode="active"),
        contained("keyed", env={"MY_SECRET": keys[0]}, gpus=[1], startup_mode="active"),
    ]
    stack, ansible = provision(models, vllm_hf_token=tokens[0])

    def given(name: str) -> str:
        """Return the token that a container has; nothing where there is no file."""
        return docker("exec", stack.container(name), "sh", "-c", "cat /run/secrets/hf_token || true")

    def site(*more: str) -> int:
        run = inventory_of(ansible, stack).play("site", "-vvv", "--diff", *more, timeout=PLAY)
        assert [secret for secret in (*tokens, *keys) if secret in run.output] == []
        return run.changed()

    site()
    ansible.play("bootstrap", timeout=PLAY).changed()
    assert site() == 0
    assert (given("first"), given("keyed")) == (tokens[0], tokens[0])

    # A container has the token that it was made with: with another one it is made anew, and is what it was.
    stack.more["vllm_hf_token"] = tokens[1]
    before = stack.seen()
    assert site("--check") > 0
    assert stack.seen() == before
    site()
    assert {name for name, seen in stack.seen().items() if seen.id != before[name].id} == {"first", "keyed"}
    assert (given("first"), given("keyed")) == (tokens[1], tokens[1])
    assert stack.states() == {"first": "awake", "keyed": "awake"}
    assert site() == 0

    # A secret of one model makes that one's anew.
    models[1]["env"]["MY_SECRET"] = keys[1]
    before = stack.seen()
    site()
    after = stack.seen()
    assert after["first"] == before["first"]
    assert after["keyed"].id != before["keyed"].id
    assert f"MY_SECRET={keys[1]}" in inspect(stack.container("keyed"))["Config"]["Env"]
    assert site() == 0

    # Without a token there is no file, not the old one and not an empty one.
    stack.more["vllm_hf_token"] = ""
    site()
    assert docker("exec", stack.container("first"), "sh", "-c", "ls /run/secrets 2>/dev/null || true") == ""
    assert stack.states() == {"first": "awake", "keyed": "awake"}
    assert site() == 0
