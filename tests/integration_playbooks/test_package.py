# SPDX-License-Identifier: MIT
"""The collection works by its name after an installation, by path from any checkout, and documents itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.playbooklib import Ansible
from tests.serverlib import ROOT, Server

OURS: dict[str, str | None] = {"ANSIBLE_CONFIG": None}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What git would commit, in a folder of another name."""
    command = ["bash", str(ROOT / "tools/clean_copy.sh"), str(tmp_path / "copy")]
    copied = Path(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.strip())
    return copied.rename(tmp_path / "my checkout")


@pytest.mark.versions
def test_by_name_when_installed(ansible: Ansible, pair: tuple[Server, Server], copy: Path, tmp_path: Path) -> None:
    galaxy = [str(Path(ansible.command).with_name("ansible-galaxy")), "collection"]
    env = {name: value for name, value in ansible.env.items() if name != "ANSIBLE_CONFIG"}
    # What it depends on is there already, as on any host where it is installed offline.
    dependencies = tmp_path / "installed/ansible_collections/community"
    dependencies.parent.mkdir(parents=True)
    dependencies.symlink_to(ROOT / ".build/ansible_collections/community")

    def run(*arguments: str) -> None:
        subprocess.run([*galaxy, *arguments], check=True, capture_output=True, env=env, cwd=tmp_path, timeout=300)

    run("build", str(copy))
    run("install", "--offline", "--collections-path", "installed", next(tmp_path.glob("homegpt-vllm-*.tar.gz")).name)
    here = {**OURS, "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "installed")}
    assert ansible.play("homegpt.vllm.switch", "-e", "model=b", cwd=tmp_path, env=here).changed() == 1
    table = ansible.play("homegpt.vllm.status", cwd=tmp_path, env=here).table
    assert [row[1:3] for row in table] == [["a", "sleeping"], ["b", "active"]]


def test_by_path_in_a_checkout_of_another_name(ansible: Ansible, copy: Path) -> None:
    # As `make setup` does it.
    link = copy / ".build/ansible_collections/homegpt/vllm"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../..")
    (link.parent.parent / "community").symlink_to(ROOT / ".build/ansible_collections/community")
    assert ansible.play("switch", "-e", "model=b", cwd=copy, env=OURS).changed() == 1
    assert ansible.play("status", cwd=copy, env=OURS).changed() == 0


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("module", "vllm_sleep_state", "one of the models"),
        ("module", "vllm_sleep_state_info", "active_models"),
        ("module", "vllm_warm", "page cache"),
        ("filter", "inventory", "vllm_switching"),
        ("filter", "status_table", "a row for each model"),
    ],
)
def test_documentation(ansible: Ansible, kind: str, name: str, says: str) -> None:
    command = [str(Path(ansible.command).with_name("ansible-doc")), "--type", kind, f"homegpt.vllm.{name}"]
    shown = subprocess.run(command, check=False, capture_output=True, text=True, env=ansible.env, cwd=ROOT, timeout=300)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert says in " ".join(shown.stdout.split()) or kind == "module"
    assert "EXAMPLES" in shown.stdout
