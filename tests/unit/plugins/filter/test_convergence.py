# SPDX-License-Identifier: MIT
"""What an edited inventory does to containers that exist."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.filter.internal import FilterModule
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse

FILTERS = FilterModule().filters()
convergence = FILTERS["convergence"]
docker_problem = FILTERS["docker_problem"]

NOTHING: dict[str, list[str]] = {"stop": [], "remove": [], "start": [], "taken": []}


def plan(
    models: dict[str, dict[str, Any]],
    containers: list[str],
    states: dict[str, str] | None,
    hashes: dict[str, str] | None = None,
    meant: dict[str, str] | None = None,
) -> dict[str, list[str]]:
    """Plan for models by id; their services have the hash `new`, a container is `NAME MODEL PROJECT HASH`."""
    entries = [{"id": name, "model": name, "host_port": 8001 + n, **m} for n, (name, m) in enumerate(models.items())]
    parsed = parse(entries).as_dict()["vllm_models"]
    wanted = {f"vllm-{name}": "new" for name in models} if hashes is None else hashes
    report = {
        "models": {name: {"state": state} for name, state in (states or {}).items()},
        "active_models": [name for name, state in (states or {}).items() if state == "active"],
        "wanted": meant or {},
    }
    status = "" if states is None else json.dumps(report)
    return convergence(parsed, containers, [f"{name} {text}" for name, text in wanted.items()], status, "p")


def test_a_bare_host() -> None:
    assert plan({"a": {}, "b": {}}, [], None) == NOTHING


def test_what_is_current_is_left_alone() -> None:
    containers = ["vllm-a a p new", "vllm-b b p new", "webui  p other", "stranger   ", "x y q old"]
    assert plan({"a": {}, "b": {}}, containers, {"a": "active", "b": "sleeping"}) == NOTHING


@pytest.mark.parametrize(
    ("state", "stop", "start"),
    [
        ("active", ["a"], ["a"]),
        ("sleeping", ["a"], []),
        ("loading", ["a"], []),
        ("error", ["a"], []),
        ("stopped", [], []),
    ],
)
def test_a_changed_model(state: str, stop: list[str], start: list[str]) -> None:
    made = plan({"a": {}, "b": {}}, ["vllm-a a p old", "vllm-b b p new"], {"a": state, "b": "sleeping"})
    assert made == {"stop": stop, "remove": ["vllm-a"], "start": start, "taken": []}


def test_another_container_name_is_a_change() -> None:
    made = plan({"a": {"container_name": "other"}}, ["vllm-a a p new"], {"a": "active"}, {"other": "new"})
    assert made == {"stop": ["a"], "remove": ["vllm-a"], "start": ["a"], "taken": []}


def test_a_model_that_gets_a_start_command_loses_its_container() -> None:
    made = plan({"a": {"start_command": ["x"]}}, ["vllm-a a p new"], {"a": "active"}, {})
    assert made == {"stop": ["a"], "remove": ["vllm-a"], "start": ["a"], "taken": []}


def test_a_disabled_model_is_left_alone() -> None:
    containers = ["vllm-a a p old"]
    assert plan({"a": {"startup_mode": "disabled"}}, containers, {"a": "disabled"}) == NOTHING
    assert plan({"a": {}}, containers, {"a": "disabled"}) == NOTHING


def test_without_its_command_line_only_containers_are_known() -> None:
    assert plan({"a": {}}, ["vllm-a a p old"], None) == {**NOTHING, "remove": ["vllm-a"]}


def test_a_model_that_is_gone() -> None:
    made = plan({"a": {}}, ["vllm-a a p new", "vllm-b b p new"], {"a": "sleeping", "b": "sleeping"})
    assert made == {"stop": ["b"], "remove": ["vllm-b"], "start": [], "taken": []}


def test_one_without_a_container_that_is_gone_is_stopped_too() -> None:
    assert plan({"a": {}}, [], {"a": "active", "b": "active"}) == {**NOTHING, "stop": ["b"]}


def test_the_default_takes_the_place_of_an_active_model_that_is_gone() -> None:
    containers = ["vllm-a a p new", "vllm-b b p new"]
    default = {"a": {"startup_mode": "active"}}
    assert plan(default, containers, {"a": "sleeping", "b": "active"})["start"] == ["a"]
    # Not where it is not loaded, is no default, or has itself been stopped for a change.
    assert plan(default, containers, {"a": "stopped", "b": "active"})["start"] == []
    assert plan({"a": {}}, containers, {"a": "sleeping", "b": "active"})["start"] == []
    assert plan(default, ["vllm-a a p old", "vllm-b b p new"], {"a": "sleeping", "b": "active"})["start"] == []
    # Nor where another model is active on its GPUs.
    models: dict[str, dict[str, Any]] = {"a": {"startup_mode": "active"}, "c": {}}
    assert plan(models, ["vllm-b b p new"], {"a": "sleeping", "b": "active", "c": "active"})["start"] == []
    models["c"] = {"gpus": [1]}
    assert plan(models, ["vllm-b b p new"], {"a": "sleeping", "b": "active", "c": "active"})["start"] == ["a"]


def test_a_model_that_has_become_disabled_is_stopped_and_keeps_its_container() -> None:
    models = {"a": {"startup_mode": "disabled"}, "b": {"startup_mode": "active"}}
    made = plan(models, ["vllm-a a p new", "vllm-b b p new"], {"a": "active", "b": "sleeping"})
    assert made == {**NOTHING, "stop": ["a"], "start": ["b"]}
    assert plan(models, ["vllm-a a p old"], {"a": "disabled", "b": "sleeping"}) == NOTHING


def test_what_a_run_that_was_cut_off_left_stopped_is_started() -> None:
    containers = ["vllm-b b p new"]
    states = {"a": "stopped", "b": "sleeping"}
    assert plan({"a": {}, "b": {}}, containers, states, meant={"a": "active"}) == {**NOTHING, "start": ["a"]}
    # Not where it is meant to be stopped or is disabled, nor where somebody has made another one active.
    assert plan({"a": {}, "b": {}}, containers, states, meant={"a": "sleeping", "b": "sleeping"}) == NOTHING
    assert plan({"a": {"startup_mode": "disabled"}, "b": {}}, containers, states, meant={"a": "active"}) == NOTHING
    other = {"a": "stopped", "b": "active"}
    assert plan({"a": {}, "b": {}}, containers, other, meant={"a": "active"}) == NOTHING
    # One that is changed as well is started once.
    made = plan({"a": {}}, ["vllm-a a p old"], {"a": "active"}, meant={"a": "active"})
    assert made == {**NOTHING, "stop": ["a"], "remove": ["vllm-a"], "start": ["a"]}


def test_containers_of_others_are_in_the_way() -> None:
    assert plan({"a": {}, "b": {}}, ["vllm-a   ", "vllm-b b q new", "c   "], None)["taken"] == ["vllm-a", "vllm-b"]


FINE = {"rc": 0, "stdout": "", "stderr": "", "msg": ""}


@pytest.mark.parametrize(
    ("ps", "config", "problem"),
    [
        (FINE, FINE, ""),
        # ansible-core up to 2.18, then from 2.19 on.
        ({"rc": 2, "msg": "[Errno 2] No such file or directory: b'docker'"}, {}, "Docker is not installed"),
        ({"rc": 2, "msg": "Error executing command.", "stderr": ""}, {}, "Docker is not installed"),
        (
            {"rc": 1, "msg": "non-zero return code", "stderr": "Cannot connect to it"},
            FINE,
            "Cannot connect to it: start",
        ),
        ({"rc": 1, "msg": "MODULE FAILURE", "module_stdout": ""}, {}, "can't be listed: MODULE FAILURE"),
        ({"rc": 1, "msg": "Module result deserialization failed"}, {}, "ansible_python_interpreter"),
        (FINE, {"rc": 1, "stderr": "docker: 'compose' is not a docker command."}, "compose plugin is missing"),
        (FINE, {"rc": 125, "stderr": "unknown shorthand flag: 'f' in -f"}, "compose plugin is missing"),
        (FINE, {"rc": 15, "stderr": "services.a.image must be a string"}, "services.a.image must be a string"),
    ],
)
def test_docker_problem(ps: dict[str, Any], config: dict[str, Any], problem: str) -> None:
    said = docker_problem(ps, config)
    assert problem in said
    assert bool(said) == bool(problem)
    missing = "not installed" in said or "plugin" in said
    assert docker_problem(ps, config, may_be_missing=True) == ("" if missing else said)
