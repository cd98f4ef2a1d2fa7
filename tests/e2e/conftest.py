# SPDX-License-Identifier: MIT
"""What needs the container engine: `make e2e` starts one where none runs and builds the images first."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import part
from tests.e2e.stack import IMAGES, Stack, docker
from tests.playbooklib import Ansible

# Restarts the engine under whatever else runs on it.
LAST = "test_engine_restart.py"
# Of the files that are not left to `make e2e` anyhow, `.ci/run` runs so many.
DRAWN = 0.5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the restart of the engine come last; of a part, draw some of the files, each of which is a story."""
    items.sort(key=lambda item: item.path.name == LAST)
    if part.quick():
        mine = [item for item in items if "e2e" in item.path.parts and not item.get_closest_marker("whole")]
        drawn = part.draw(sorted({item.path.name for item in mine}), DRAWN, lambda _name: None)
        for item in mine:
            if item.path.name not in drawn:
                item.add_marker(pytest.mark.whole)


@pytest.fixture(scope="session")
def engine() -> None:
    """An engine that answers and has the images."""
    try:
        missing = [image for image in IMAGES if not docker("images", "--quiet", image)]
    except (AssertionError, FileNotFoundError, subprocess.TimeoutExpired) as problem:
        pytest.skip(f"no container engine answers ({problem}): make e2e")
    if missing:
        pytest.skip(f"{', '.join(missing)} not there: make images")


@pytest.fixture(scope="module")
def provision(
    engine: None, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., tuple[Stack, Ansible]]]:
    """Make a host of models in containers, of which nothing is left when the module's tests have ended."""
    made: list[Stack] = []

    def one(models: list[dict[str, Any]], **options: Any) -> tuple[Stack, Ansible]:
        folder = tmp_path_factory.mktemp("e2e")
        stack = Stack(folder, models, **options)
        made.append(stack)
        return stack, Ansible(ansible_playbook, folder, [stack])

    yield one
    for stack in made:
        stack.remove()


def inventory_of(ansible: Ansible, stack: Stack) -> Ansible:
    """Write the inventory anew, after an edit of the host's models."""
    return Ansible(ansible.command, Path(ansible.inventory).parent, [stack])
