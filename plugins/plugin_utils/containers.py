# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Docker says on a host: why it can't run the stack, and what its containers need to follow an inventory. Pure."""

from __future__ import annotations

import json
import re
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gpus import share_gpu

_BY_ROLE = "or let the role homegpt.vllm.docker_host do it (vllm_docker_host: true)"

Values = typing.Mapping[str, typing.Any]


def docker_problem(
    ps: Values, config: Values, may_be_missing: bool = False, look_at: str = "args, env and vllm_volumes"
) -> str:
    """Why containers can't run on the host, and the remedy; empty when nothing is wrong.

    C(ps) and C(config): the results of C(docker ps) and C(docker compose config). C(may_be_missing): as in check mode
    on a host that gets Docker later. C(look_at): the variables to look at where compose refuses its configuration.
    """
    said, tried = (str(result.get("stderr") or result.get("msg") or "").strip() for result in (ps, config))
    # Where there is no such command it is the module that speaks, with the error's number: 2 is ENOENT.
    if ps.get("rc") == 2 and not ps.get("stderr") and "module_stdout" not in ps:
        if may_be_missing:
            return ""
        return (
            "Docker is not installed on this host: install the engine and its compose plugin, %s, or give every model "
            "a start_command" % _BY_ROLE
        )
    if ps.get("rc") and not ps.get("stderr"):
        return "the containers of the host can't be listed: %s: check ansible_python_interpreter" % said
    if ps.get("rc"):
        return (
            "the Docker engine does not answer: %s: start it (systemctl start docker), or use a user who has access "
            "(ansible_become)" % said
        )
    if re.search(r"'compose' is not a docker command|unknown (shorthand )?flag", tried):
        if may_be_missing:
            return ""
        return "Docker's compose plugin is missing or older than 2.20.3: install docker-compose-plugin, %s" % _BY_ROLE
    if config.get("rc"):
        return "docker compose rejects the configuration, check %s: %s" % (look_at, tried)
    return ""


def convergence(
    models: typing.Iterable[Values],
    containers: typing.Iterable[str],
    hashes: typing.Iterable[str],
    status: str,
    project: str,
) -> dict[str, list[str]]:
    """What has to be done for the host's containers to follow the model inventory.

    C(stop) and C(start) are ids of models, C(remove) names of containers, C(taken) names that are wanted and belong to
    something else. A model whose container has another configuration is stopped, its container removed, and it is
    started again only if it was active. One that is no longer declared is stopped and its container removed, one that
    has become disabled is stopped; if it was active, the default model of its GPUs is made active where it sleeps.
    Models that were disabled before are left alone.

    C(containers): the lines C(NAME MODEL PROJECT HASH) of every container. C(hashes): those of C(docker compose config
    --hash) for the services that are wanted. C(status): what the host's own command line printed for C(status --json)
    before anything was changed; anything else where it could not be asked.
    """
    wanted = {model["id"]: model for model in models}
    hash_of = dict(line.rsplit(" ", 1) for line in hashes if " " in line)
    states, was_active, meant_active = _states(status)
    disabled = {name for name, model in wanted.items() if model["startup_mode"] == "disabled"}
    unmanaged = disabled | {name for name, state in states.items() if state == "disabled"}

    changed: set[str] = set()
    remove: list[str] = []
    taken: list[str] = []
    names = {model["container_name"] for model in wanted.values() if not model["start_command"]}
    for name, model_id, owner, config_hash in (line.split(" ") for line in containers):
        if owner != project:
            if name in names:
                taken.append(name)
            continue
        # The web interface and whatever else is in the project is no model.
        if not model_id:
            continue
        model = wanted.get(model_id)
        if model is not None and model_id in unmanaged:
            continue
        current = model is not None and not model["start_command"] and name == model["container_name"]
        if not current or hash_of.get(name) != config_hash:
            changed.add(model_id)
            remove.append(name)

    given_up = (set(states) - set(wanted)) | disabled
    stop = [
        name for name, state in states.items() if name in changed | given_up and state not in ("stopped", "disabled")
    ]
    # Also what an earlier run has stopped and, since it was cut off, not started again.
    down = [name for name in meant_active if states.get(name) == "stopped"]
    start = [
        name
        for name in dict.fromkeys([name for name in was_active if name in changed] + down)
        if name in wanted and name not in unmanaged and not _conflicts(wanted, name, set(was_active) - given_up)
    ]
    if set(was_active) & given_up:
        start += [
            name
            for name, model in wanted.items()
            if model["startup_mode"] == "active"
            and states.get(name) == "sleeping"
            and name not in changed
            and not _conflicts(wanted, name, (set(was_active) | set(start)) - given_up)
        ]
    return {"stop": stop, "remove": remove, "start": start, "taken": taken}


def _conflicts(wanted: typing.Mapping[str, Values], name: str, others: typing.Iterable[str]) -> bool:
    """Whether the model shares a GPU with one of the others."""
    return any(share_gpu(wanted[name]["gpus"], wanted[o]["gpus"]) for o in others if o in wanted and o != name)


def _states(status: str) -> tuple[dict[str, str], list[str], list[str]]:
    """The state of every model that the host knew, which were active and which were meant to be, as far as it told."""
    try:
        report = json.loads(status)
        states = {name: model["state"] for name, model in report["models"].items()}
        return states, list(report["active_models"]), [n for n, state in report["wanted"].items() if state == "active"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}, [], []
