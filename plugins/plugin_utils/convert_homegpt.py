# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From homeGPT's files to a model inventory. Pure."""

from __future__ import annotations

import posixpath
import typing

from ansible_collections.homegpt.vllm.plugins.plugin_utils import convert

# homeGPT's manager has them, vllm_models and vllm_switching have them under the same name.
_HOMEGPT_KEYS = ("gpu_memory_gb", "startup_mode")
_HOMEGPT_SWITCHING = ("available_ram_gb", "max_retries", "health_check_interval_seconds")
_SERVICE_KEYS = frozenset(
    [
        "image",
        "container_name",
        "command",
        "entrypoint",
        "ports",
        "deploy",
        "gpus",
        "volumes",
        "environment",
        "runtime",
        "hostname",
    ]
)


def from_homegpt(
    config: typing.Any,
    composes: typing.Sequence[tuple[str, typing.Any]] = (),
    name: str = "config.yaml",
    variables: typing.Mapping[str, typing.Any] | None = None,
) -> convert.Converted:
    """The inventory of homeGPT's manager configuration and its compose files, given as (file name, content).

    C(variables) are the values of variables in the compose files. Raises ConvertError.
    """
    notes = convert.Notes()
    mistakes: list[str] = []
    listed = config.get("models") if isinstance(config, dict) else None
    if isinstance(listed, dict):
        raise convert.ConvertError(
            [name + ": models is a dictionary, as llama-swap's is: give the file as llama_swap_config"]
        )
    if not isinstance(listed, list) or not listed:
        raise convert.ConvertError(
            [name + ": has no list `models`: it must be the config.yaml of homeGPT's model manager"]
        )
    services = _services(composes, notes, mistakes)
    builder = convert.Builder(notes, variables)
    taken: set[str] = set()
    for index, entry in enumerate(listed):
        place = "%s: models[%d]" % (name, index)
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (str, int)):
            mistakes.append(place + ": must be a dictionary with an id")
            continue
        place += " (%s)" % entry["id"]
        model = _homegpt_model(entry, place, services, taken, builder, mistakes)
        builder.add(model, place)
    if mistakes:
        raise convert.ConvertError(mistakes)
    if not taken:
        raise convert.ConvertError(
            [
                "%s: none of its models has a compose file: it does not say what they load. Give the files as "
                "homegpt_compose, one for each model: %s"
                % (name, ", ".join("compose-vllm-%s.yml" % entry["id"] for entry in listed))
            ]
        )
    for key, (place, _dummy, _dummy2) in services.items():
        if key not in taken:
            notes.add(place, "no model of %s belongs to this service: it is left out" % posixpath.basename(name))
    switching = _homegpt_switching(config, name, notes)
    for key in sorted(set(map(str, config)) - {"models", "switching"}):
        notes.add(
            "%s: %s" % (name, key), "not taken over: there is no manager; switches are made by homegpt.vllm.switch"
        )
    return builder.finish(switching, name)


def _homegpt_switching(
    config: typing.Mapping[str, typing.Any], name: str, notes: convert.Notes
) -> dict[str, typing.Any]:
    given = config.get("switching") or {}
    if not isinstance(given, dict):
        raise convert.ConvertError(["%s: switching must be a dictionary" % name])
    for key in given:
        if key not in _HOMEGPT_SWITCHING:
            notes.add("%s: switching.%s" % (name, key), "not taken over: vllm_switching has no such key")
    return {key: given[key] for key in _HOMEGPT_SWITCHING if key in given}


def _services(
    composes: typing.Sequence[tuple[str, typing.Any]], notes: convert.Notes, mistakes: list[str]
) -> dict[str, tuple[str, str, typing.Mapping[str, typing.Any]]]:
    """The services of all compose files by their container's name, each with its place and its file."""
    found: dict[str, tuple[str, str, typing.Mapping[str, typing.Any]]] = {}
    for file, content in composes:
        services = content.get("services") if isinstance(content, dict) else None
        if isinstance(content, dict) and content.get("include") and not services:
            notes.add(file, "only what it includes counts: give each of those files as homegpt_compose")
            continue
        if not isinstance(services, dict) or not all(isinstance(service, dict) for service in services.values()):
            mistakes.append(file + ": has no dictionary `services`: it must be a compose file")
            continue
        for key, service in services.items():
            place = "%s: services.%s" % (file, key)
            container = str(service.get("container_name") or key)
            if container in found:
                mistakes.append("%s: the container %s is in %s too" % (place, container, found[container][0]))
            found[container] = (place, file, service)
    return found


def _homegpt_model(
    entry: typing.Mapping[str, typing.Any],
    place: str,
    services: typing.Mapping[str, tuple[str, str, typing.Mapping[str, typing.Any]]],
    taken: set[str],
    builder: convert.Builder,
    mistakes: list[str],
) -> dict[str, typing.Any]:
    notes = builder.notes
    model: dict[str, typing.Any] = {"id": builder.new_id(str(entry["id"]), place)}
    container = str(entry.get("container_name") or "vllm-%s" % entry["id"])
    if entry.get("name") and entry["name"] != model["id"]:
        model["name"] = str(entry["name"])
    model["model"] = ""
    for key in ("host_port", "port"):
        if entry.get(key) is not None and (key, entry[key]) != ("port", 8000):
            model[key] = entry[key]
    if container != "vllm-" + model["id"]:
        model["container_name"] = container
    for key in _HOMEGPT_KEYS:
        if entry.get(key) is not None:
            model[key] = entry[key]
    if str(entry["id"]) != model["id"]:
        model["aliases"] = [str(entry["id"])]
    for key in sorted(set(map(str, entry)) - {"id", "name", "container_name", "port", "host_port", *_HOMEGPT_KEYS}):
        notes.add("%s: %s" % (place, key), "not taken over: vllm_models has no such key")
    if container in services:
        taken.add(container)
        where, _dummy, service = services[container]
        server = _compose_server(service, where, builder, mistakes)
        _check_ports(service, model, where, notes)
        builder.serve(model, server, where)
    missing = "no compose file has the container %s (compose-vllm-%s.yml)" % (container, entry["id"])
    if container in services and not model["model"]:
        missing = "%s does not say what it loads" % services[container][0]
    if not model["model"]:
        was = model.get("startup_mode", "sleep")
        model.update(model=convert.PLACEHOLDER + model["id"], startup_mode="disabled")
        notes.add(
            place,
            "%s, so nobody knows what it loads: it is disabled, with a placeholder as its model. Convert again with "
            "that file, or write its model, gpus and args by hand%s"
            % (missing, "" if was == "disabled" else " and put startup_mode back to %s" % was),
        )
    elif model.get("startup_mode") == "disabled":
        notes.add(
            place, "startup_mode is disabled, as it was: nothing switches to it until you make it sleep or active"
        )
    return model


def _check_ports(
    service: typing.Mapping[str, typing.Any], model: typing.Mapping[str, typing.Any], place: str, notes: convert.Notes
) -> None:
    """The manager's configuration wins over the compose file; say so where they differ."""
    wanted = "%s:%s" % (model.get("host_port"), model.get("port", 8000))
    published = []
    for item in convert.as_list(service.get("ports")):
        if isinstance(item, dict):
            published.append("%s:%s" % (item.get("published"), item.get("target")))
        else:
            published.append(":".join(str(item).split("/", maxsplit=1)[0].split(":")[-2:]))
    if published and wanted not in published:
        notes.add(
            place + ".ports", "says %s, the manager's configuration %s: the latter counts" % (published[0], wanted)
        )


def _compose_server(
    service: typing.Mapping[str, typing.Any], place: str, builder: convert.Builder, mistakes: list[str]
) -> convert.Server:
    """What a compose service says about its server, variables replaced."""
    notes = builder.notes
    try:
        words = [
            word
            for key in ("entrypoint", "command")
            for word in convert.split_words(builder.known(service.get(key)), place + "." + key)
        ]
    except convert.ConvertError as error:
        mistakes.extend(error.mistakes)
        words = []
    found = convert.serve_words(words)
    if found is None and service.get("entrypoint"):
        notes.add(place + ".entrypoint", "not taken over: the command in it is not `vllm serve`")
    words = words if found is None else found[1]
    reserved, count = _reservation(service)
    for key in sorted(map(str, service)):
        if key in ("env_file", "extends", "secrets", "configs"):
            notes.add("%s.%s" % (place, key), "not taken over: write what it holds into env or args of the model")
        elif key in ("restart", "healthcheck", "logging", "labels", "depends_on", "networks", "pull_policy"):
            notes.add("%s.%s" % (place, key), "not taken over: the collection sets its own")
        elif key == "ipc" and service[key] == "host":
            continue
        elif key not in _SERVICE_KEYS:
            notes.add("%s.%s" % (place, key), "not taken over: the collection's containers have no such setting")
    return convert.Server(
        words,
        convert.environment(builder.known(service.get("environment")), place + ".environment", notes),
        str(builder.known(service.get("image") or "")),
        reserved,
        count,
        [_volume(item) for item in convert.as_list(builder.known(service.get("volumes")))],
    )


def _reservation(service: typing.Mapping[str, typing.Any]) -> tuple[list[str] | None, int | None]:
    """The GPUs that a service reserves, by name, or how many; neither where it takes all."""
    devices = service.get("gpus")
    if devices is None:
        limits = service.get("deploy")
        for key in ("resources", "reservations", "devices"):
            limits = limits.get(key) if isinstance(limits, dict) else None
        devices = limits
    for device in convert.as_list(devices):
        if not isinstance(device, dict):
            continue
        if device.get("device_ids"):
            return [str(number) for number in convert.as_list(device["device_ids"])], None
        if str(device.get("count", "all")).isdigit():
            return None, int(device["count"])
    return None, None


def _volume(item: typing.Any) -> str:
    if isinstance(item, dict):
        text = "%s:%s" % (item.get("source", ""), item.get("target", ""))
        return text + (":ro" if item.get("read_only") else "")
    return str(item)
