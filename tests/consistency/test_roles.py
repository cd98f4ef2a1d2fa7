# SPDX-License-Identifier: MIT
"""A role's defaults and its argument specification say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jinja2.nativetypes
import pytest
import yaml
from ansible_collections.homegpt.vllm.plugins.plugin_utils import gateway, preflight_services

from tests.serverlib import ROOT

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


def read(role: str, file: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "roles" / role / file).read_text(encoding="utf-8"))


def test_every_role_is_looked_at() -> None:
    assert ROLES == [
        "awx",
        "compose_stack",
        "docker_host",
        "model_gateway",
        "model_manager",
        "open_webui",
        "vllm_servers",
    ]


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_specified_with_its_default(role: str) -> None:
    defaults = read(role, "defaults/main.yml")
    entries = read(role, "meta/argument_specs.yml")["argument_specs"]
    specified = {(name, entry): option for entry in entries for name, option in entries[entry]["options"].items()}
    assert {name for name, _entry in specified} == set(defaults)
    for (name, entry), option in specified.items():
        assert name.startswith(f"{role}_")
        assert option["description"]
        computed = "{{" in str(defaults[name])
        # The specification takes no expression for a list, a dictionary or a switch.
        if not (computed and option["type"] in ("list", "dict", "bool")):
            assert option["default"] == defaults[name], (name, entry)


def test_the_default_of_another_roles_variable_is_the_one_that_it_has_there() -> None:
    """Roles can't read each other's defaults, nor can what is checked before any of them runs."""
    defaults = {name: value for role in ROLES for name, value in read(role, "defaults/main.yml").items()}
    handed_on = [re.search(r"^\{\{ (\w+) \| default\((.+?)(, true)?\) \}\}$", str(one)) for one in defaults.values()]
    told = [(one[1], yaml.safe_load(one[2])) for one in handed_on if one and one[1] in defaults and " | " not in one[2]]
    told += [
        ("model_gateway_port", gateway.PORT),
        ("model_gateway_link_port", gateway.LINK_PORT),
        ("model_manager_port", preflight_services.MANAGER_PORT),
    ]
    assert len(told) >= 8
    assert [(name, value) for name, value in told if defaults[name] != value] == []


@pytest.mark.parametrize("role", ROLES)
def test_every_way_into_the_role_is_specified(role: str) -> None:
    entries = set(read(role, "meta/argument_specs.yml")["argument_specs"])
    tasks = {path.stem for path in (ROOT / "roles" / role / "tasks").iterdir()}
    assert entries <= tasks
    assert {"main"} <= entries


# Modules that return the command line or the environment of containers, either of which may contain an API key.
SHOWING = re.compile(r"community\.docker\.(docker_compose_v2(_run|_exec)?|docker_container(_info|_exec)?)")


def tasks_of(found: Any) -> Iterator[dict[str, Any]]:
    """Each task of a file, those of blocks and of plays too."""
    if isinstance(found, list):
        for one in found:
            yield from tasks_of(one)
    elif isinstance(found, dict):
        yield found
        for key in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
            yield from tasks_of(found.get(key))


def test_no_task_shows_what_a_container_is_started_with() -> None:
    shown: list[tuple[str, str]] = []
    hidden: list[tuple[str, str]] = []
    for folder in ("roles", "playbooks"):
        for path in sorted((ROOT / folder).rglob("*.yml")):
            for task in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8"))):
                modules = [name for name in task if SHOWING.fullmatch(str(name))]
                # Of one that it removes, docker_container returns nothing but the id.
                if modules and not (modules[0].endswith(".docker_container") and task[modules[0]]["state"] == "absent"):
                    (hidden if task.get("no_log") is True else shown).append((path.name, task["name"]))
                command = task.get("ansible.builtin.command")
                words = command["argv"] if isinstance(command, dict) else None
                if isinstance(words, list) and "docker" in words and "inspect" in words and "--format" not in words:
                    shown.append((path.name, task["name"]))
    assert shown == []
    assert len(hidden) >= 3


def test_the_open_webui_that_is_tested_is_the_one_that_is_deployed() -> None:
    script = (ROOT / "tools" / "open_webui.sh").read_text(encoding="utf-8")
    (version,) = re.findall(r"^version=(\S+)$", script, re.MULTILINE)
    assert read("open_webui", "defaults/main.yml")["open_webui_image"].endswith(f":v{version}")


def test_the_service_that_is_tested_is_the_one_that_is_deployed() -> None:
    """Each package of the model manager, in the version that the tests run with."""
    deployed, tested = (
        dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))
        for file in ("roles/model_manager/files/requirements.txt", "requirements.txt")
    )
    assert {"fastapi", "prometheus-client", "uvicorn", "websockets"} <= deployed.keys()
    assert {name: tested.get(name) for name in deployed} == deployed


def test_the_packages_of_the_service_are_pinned_by_hashes() -> None:
    text = (ROOT / "roles/model_manager/files/requirements.txt").read_text(encoding="utf-8")
    for package in re.split(r"\n(?=[a-z])", text)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}$", package, re.MULTILINE), package


def test_a_host_may_have_whole_gpus_by_number_and_parts_of_others() -> None:
    """Numbers and texts can't be sorted together."""
    environment = jinja2.nativetypes.NativeEnvironment()
    environment.filters["homegpt.vllm.inventory"] = lambda models, switching: {"vllm_models": models}
    environment.filters["flatten"] = lambda lists: [item for one in lists for item in one]
    gpus = environment.from_string(read("docker_host", "defaults/main.yml")["docker_host_gpus"])
    models = [{"startup_mode": "sleep", "gpus": one} for one in ([10], ["MIG-b"], [2, 10], ["MIG-a"])]
    assert gpus.render(vllm_models=models) == [2, 10, "MIG-a", "MIG-b"]
    assert gpus.render(vllm_models=[*models, {"startup_mode": "disabled", "gpus": [3]}])[1] == 10
    assert gpus.render(vllm_models=[]) == []
