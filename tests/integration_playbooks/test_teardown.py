# SPDX-License-Identifier: MIT
"""teardown.yml on hosts that are not whole, and what it never touches; bootstrap.yml, prefetch.yml without a stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration_playbooks.conftest import Inventory
from tests.playbooklib import Host
from tests.serverlib import free_port

PROJECT = "docker-compose.yml"
FILES = (PROJECT, ".env", "models.json", "compose-vllm-a.yml", "compose-vllm-gone.yml", "vllm-logging.json")
MORE = (
    "compose-open-webui.yml",
    "switching/__main__.py",
    "run/wanted.json",
    "run/weights.json",
    "run/prefetch/a.json",
    "manager/config.json",
    "gateway/nginx.conf",
    "gateway/spool/0000000001",
    "compose-model-gateway.yml",
)
DATA = ("logs/a/vllm.log", "open-webui/webui.db", "run/a.log")
CACHE = "cache/huggingface/hub"
OURS = (f"{CACHE}/models--org--a/blobs/1", f"{CACHE}/.locks/models--org--a/1.lock")
OTHERS = (f"{CACHE}/models--org--b/blobs/1", "cache/huggingface/token", "cache/vllm/x")

KEY = "sk-nobody-may-see-this"
# What the module asks of docker, with one container, which can't be removed.
COMPOSE = f"""#!/bin/sh
case "$*" in
*"compose version"*) echo '{{"version": "v2.20.0"}}' ;;
*" version "*) echo '{{"Server": {{"ApiVersion": "1.41"}}}}' ;;
*"compose ps"*|*" ps --format json"*)
    echo '[{{"ID": "1", "Name": "a", "Command": "vllm serve --api-key={KEY}", "State": "running", "Service": "a"}}]' ;;
*" images "*) echo '[]' ;;
*--dry-run*down*|*down*--dry-run*) echo " DRY-RUN MODE -  Container a  Removed" >&2 ;;
*" down"*) echo "Error response from daemon: it is in use" >&2; exit 1 ;;
esac
"""


def contained() -> list[dict[str, Any]]:
    return [{"id": "a", "model": "org/a", "host_port": free_port()}]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path, contained())
    for name in (*FILES, *MORE, *DATA, "somebody's"):
        path = host.stack / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    for name in (*OURS, *OTHERS):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return host


def here(tmp_path: Path) -> list[str]:
    return ["-e", f"vllm_cache_dir={tmp_path}/cache", "-e", f"vllm_servers_logrotate_dir={tmp_path}"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def no_docker(tmp_path: Path) -> dict[str, str]:
    """A machine like this one without Docker."""
    programs = tmp_path / "bin"
    programs.mkdir()
    found = {
        program.name: program for folder in ("/usr/sbin", "/bin", "/usr/bin") for program in Path(folder).iterdir()
    }
    for name in found.keys() - {"docker"}:
        (programs / name).symlink_to(found[name])
    return {"PATH": str(programs)}


def test_a_host_without_docker(host: Host, inventory: Inventory, tmp_path: Path, no_docker: dict[str, str]) -> None:
    ansible = inventory(host)
    before = files(host.stack)
    predicted = ansible.play("teardown", "--check", *here(tmp_path), env=no_docker)
    assert files(host.stack) == before
    run = ansible.play("teardown", *here(tmp_path), env=no_docker)
    assert 0 < run.changed() == predicted.changed()
    assert files(host.stack) == {*DATA, "somebody's"}
    assert ansible.play("teardown", *here(tmp_path), env=no_docker).changed() == 0

    run = ansible.play(
        "teardown", "-e", "teardown_data=true", "-e", "teardown_caches=true", *here(tmp_path), env=no_docker
    )
    assert run.changed() == 3
    assert files(host.stack) == {"somebody's"}
    assert files(tmp_path / "cache") == {name.removeprefix("cache/") for name in OTHERS}


def test_an_engine_that_does_not_answer(
    host: Host, inventory: Inventory, tmp_path: Path, no_docker: dict[str, str]
) -> None:
    docker = Path(no_docker["PATH"]) / "docker"
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    docker.chmod(0o755)
    before = files(host.stack)
    message = inventory(host).play("teardown", *here(tmp_path), env=no_docker).failure()
    assert "The Docker engine does not answer" in message
    assert "Cannot connect to the Docker daemon" in message
    assert "systemctl start docker" in message
    assert files(host.stack) == before


@pytest.mark.parametrize("how", ["would be removed", "can not be removed"])
def test_the_command_line_of_a_container_is_not_shown(
    host: Host, inventory: Inventory, tmp_path: Path, no_docker: dict[str, str], how: str
) -> None:
    """It may contain an API key. The module returns it, whatever becomes of the containers."""
    docker = Path(no_docker["PATH"]) / "docker"
    docker.write_text(COMPOSE, encoding="utf-8")
    docker.chmod(0o755)
    # The records that other tests have there are none.
    (host.stack / "run/wanted.json").unlink()
    fails = how == "can not be removed"
    run = inventory(host).play("teardown", "-vvv", *([] if fails else ["--check"]), *here(tmp_path), env=no_docker)
    assert "TASK [homegpt.vllm.compose_stack : Remove the stack's containers and network]" in run.output
    assert KEY not in run.output
    if fails:
        assert "The stack's containers could not be removed: " in run.failure()
        assert (host.stack / PROJECT).exists()
    else:
        assert run.changed() > 0


def test_the_unit_of_the_manager_is_looked_for_where_it_is(
    inventory: Inventory, tmp_path: Path, no_docker: dict[str, str]
) -> None:
    unit = tmp_path / "units" / "homegpt-manager.service"

    class Managed(Host):
        def variables(self) -> dict[str, Any]:
            more = {"model_manager_unit_dir": str(unit.parent), "model_manager_systemd": False}
            return {**super().variables(), **more}

    host = Managed(tmp_path, contained())
    (host.stack / "manager").mkdir(parents=True)
    unit.parent.mkdir()
    unit.write_text(f"[Service]\nWorkingDirectory={host.stack}\n")
    assert inventory(host).play("teardown", *here(tmp_path), env=no_docker).changed() == 2
    assert not unit.exists()


def test_a_bare_host(inventory: Inventory, tmp_path: Path, no_docker: dict[str, str]) -> None:
    host = Host(tmp_path, contained())
    ansible = inventory(host)
    assert ansible.play("teardown", *here(tmp_path), env=no_docker).changed() == 0
    for playbook in ("bootstrap", "prefetch"):
        for mode in ([], ["--check"]):
            message = ansible.play(playbook, *mode, env=no_docker).failure()
            assert f"The stack in {host.stack} does not exist or can't be used, run homegpt.vllm.site first" in message
    assert not host.stack.exists()


@pytest.mark.parametrize("folder", ["", "/", "//", "/x/..", "somewhere"])
def test_a_folder_that_is_not_the_stacks_own(inventory: Inventory, tmp_path: Path, folder: str) -> None:
    run = inventory(Host(tmp_path, contained())).play(
        "teardown", "-e", f'{{"vllm_stack_dir": "{folder}"}}', "-e", "teardown_data=true", "--check", *here(tmp_path)
    )
    assert f"vllm_stack_dir must be the full path of the stack's folder, is '{folder}'" in run.failure()
