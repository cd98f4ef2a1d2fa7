# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From homeGPT's files to a model inventory. Pure."""

from __future__ import annotations

import posixpath
import re
import typing

from ansible_collections.homegpt.vllm.plugins.plugin_utils import convert, convert_builder, convert_container

# homeGPT's manager has them, vllm_models and vllm_switching have them under the same name.
_HOMEGPT_KEYS = ("gpu_memory_gb", "startup_mode")
_SAYS = "does not name the model that it loads"
_HOMEGPT_SWITCHING = ("available_ram_gb", "max_retries", "health_check_interval_seconds")


def from_homegpt(
    config: typing.Any,
    composes: typing.Sequence[tuple[str, typing.Any]] = (),
    name: str = "config.yaml",
    variables: typing.Mapping[str, typing.Any] | None = None,
) -> convert.Converted:
    """The inventory of homeGPT's manager configuration and its compose files, given as (file name, content).

    Without a C(name) there is no such configuration: then each service of vLLM is a model. C(variables) are the values
    of variables in the compose files. Raises ConvertError.
    """
    notes = convert.Notes()
    mistakes: list[str] = []
    builder = convert_builder.Builder(notes, variables)
    alone = not name
    if alone:
        services = _services(composes, builder, mistakes, alone=True)
        name = ", ".join(file for file, _dummy in composes)
        origins = _origins(services)
        config = {"models": _entries(origins, services, notes)}
        if not origins and not mistakes:
            mistakes.append("%s: contains no vLLM service: nothing in it is named vllm" % name)
        if mistakes:
            raise convert.ConvertError(mistakes)
        listed = config["models"]
    else:
        listed, origins = _listed(config, name), []
        services = _services(composes, builder, mistakes)
    taken: set[str] = set()
    for index, entry in enumerate(listed):
        place = "%s: models[%d]" % (name, index)
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (str, int)):
            mistakes.append(place + ": must be a dictionary with an id")
            continue
        place = services[origins[index]][0] if alone else "%s (%s)" % (place, entry["id"])
        # A service of a file without a manager is called as it likes.
        container = origins[index] if alone else str(entry.get("container_name") or "vllm-%s" % entry["id"])
        model = _homegpt_model(entry, place, container, services, taken, builder, mistakes)
        builder.add(model, place)
    if mistakes:
        raise convert.ConvertError(mistakes)
    if not taken:
        raise convert.ConvertError(
            [
                "%s: none of its models has a compose file, so it is unknown what they load. Pass the files as "
                "homegpt_compose, one for each model: %s"
                % (name, ", ".join("compose-vllm-%s.yml" % entry["id"] for entry in listed))
            ]
        )
    for key, (place, _dummy) in services.items():
        if key not in taken:
            why = "nothing in it is named vllm" if alone else "no model of %s belongs to it" % posixpath.basename(name)
            notes.add(place, "left out: " + why)
    switching = _homegpt_switching(config, name, notes)
    for key in sorted(set(map(str, config)) - {"models", "switching"}):
        notes.add(
            "%s: %s" % (name, key), "not converted: see model_manager_settings, or switch with homegpt.vllm.switch"
        )
    return builder.finish(switching, name)


def _listed(config: typing.Any, name: str) -> list[typing.Any]:
    listed = config.get("models") if isinstance(config, dict) else None
    if isinstance(listed, dict):
        raise convert.ConvertError(
            [name + ": models is a dictionary, as llama-swap's is: give the file as llama_swap_config"]
        )
    if not isinstance(listed, list) or not listed:
        raise convert.ConvertError(
            [name + ": has no list `models`: it must be the config.yaml of homeGPT's model manager"]
        )
    return listed


def _origins(services: typing.Mapping[str, tuple[str, typing.Mapping[str, typing.Any]]]) -> list[str]:
    """The containers of the services that are vLLM's servers, where no manager lists them."""
    return [
        container
        for container, (_dummy, service) in services.items()
        if any("vllm" in str(service.get(key)).lower() for key in ("image", "command", "entrypoint"))
    ]


def _entries(
    containers: typing.Iterable[str],
    services: typing.Mapping[str, tuple[str, typing.Mapping[str, typing.Any]]],
    notes: convert.Notes,
) -> list[dict[str, typing.Any]]:
    """What a manager's configuration would say of them."""
    found = []
    used: set[int] = set()
    for container in containers:
        place, service = services[container]
        key = place.rpartition(": services.")[2]
        entry: dict[str, typing.Any] = {"id": re.sub(r"\Avllm-(?=.)", "", key)}
        if re.match(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z", container):
            entry["container_name"] = container
        elif container != place:
            entry["container_name"] = "vllm-" + entry["id"].lower()
            notes.add(place + ".container_name", "not converted: its value is not in the file")
        ports = [port for port, _dummy in _published(service) if re.match(r"\d+:", port)] or _of_the_host(service)
        port = int(ports[0].partition(":")[0]) if ports else 0
        inner = ports[0].partition(":")[2] if ports else ""
        if inner.isdigit():
            entry["port"] = int(inner)
        if not port or port in used:
            port = next(number for number in range(8001, 65536) if number not in used)
            notes.add(place, "has no port of its own that is published by number: host_port was chosen, check it")
        used.add(port)
        found.append({**entry, "host_port": port})
    return found


def _homegpt_switching(
    config: typing.Mapping[str, typing.Any], name: str, notes: convert.Notes
) -> dict[str, typing.Any]:
    given = config.get("switching") or {}
    if not isinstance(given, dict):
        raise convert.ConvertError(["%s: switching must be a dictionary" % name])
    for key in given:
        if key not in _HOMEGPT_SWITCHING:
            notes.add("%s: switching.%s" % (name, key), "not converted: vllm_switching has no such key")
    return {key: given[key] for key in _HOMEGPT_SWITCHING if key in given}


def _services(
    composes: typing.Sequence[tuple[str, typing.Any]],
    builder: convert_builder.Builder,
    mistakes: list[str],
    alone: bool = False,
) -> dict[str, tuple[str, typing.Mapping[str, typing.Any]]]:
    """The services of all compose files by their container's name, each with its place, variables replaced."""
    notes = builder.notes
    found: dict[str, tuple[str, typing.Mapping[str, typing.Any]]] = {}
    for file, content in composes:
        services = content.get("services") if isinstance(content, dict) else None
        if isinstance(content, dict) and content.get("include") and not services:
            notes.add(file, "only what it includes counts: give each of those files as homegpt_compose")
            continue
        if not isinstance(services, dict) or not all(isinstance(service, dict) for service in services.values()):
            mistakes.append(file + ": has no dictionary `services`: it must be a compose file")
            continue
        for key in map(str, content):
            if key == "include":
                notes.add(file + ": include", "not followed: give each of those files as homegpt_compose")
            elif key not in ("services", "version", "name", "networks", "volumes") and not key.startswith("x-"):
                notes.add("%s: %s" % (file, key), "not converted: set its content in env or args of the models")
        for key, written in services.items():
            place = "%s: services.%s" % (file, key)
            try:
                service = builder.known(written, place)
            except convert.ConvertError as error:
                mistakes.extend(error.mistakes)
                continue
            container = convert.readable(str(service.get("container_name") or key))
            if container in found and alone:
                # Of services with different profiles one container can have the name at a time.
                notes.add(place + ".container_name", "not converted: another service has the same name")
                container = place
            if container in found:
                mistakes.append("%s: the container %s is also in %s" % (place, container, found[container][0]))
            found[container] = (place, service)
    return found


def _homegpt_model(
    entry: typing.Mapping[str, typing.Any],
    place: str,
    source: str,
    services: typing.Mapping[str, tuple[str, typing.Mapping[str, typing.Any]]],
    taken: set[str],
    builder: convert_builder.Builder,
    mistakes: list[str],
) -> dict[str, typing.Any]:
    notes = builder.notes
    model: dict[str, typing.Any] = {"id": builder.new_id(str(entry["id"]), place)}
    container = str(entry.get("container_name") or source)
    if entry.get("name") and entry["name"] != model["id"]:
        model["name"] = str(entry["name"])
    model["model"] = ""
    for key in ("host_port", "port"):
        if entry.get(key) is not None and (key, entry[key]) != ("port", 8000):
            model[key] = entry[key]
    if container not in ("vllm-" + model["id"], place):
        model["container_name"] = container
    for key in _HOMEGPT_KEYS:
        if entry.get(key) is not None:
            model[key] = entry[key]
    if str(entry["id"]) != model["id"]:
        model["aliases"] = [str(entry["id"])]
    for key in sorted(set(map(str, entry)) - {"id", "name", "container_name", "port", "host_port", *_HOMEGPT_KEYS}):
        notes.add("%s: %s" % (place, key), "not converted: vllm_models has no such key")
    if source not in services:
        why = "no compose file has the container %s (compose-vllm-%s.yml)" % (container, entry["id"])
        builder.unread(model, place, convert.PLACEHOLDER, why)
        return model
    taken.add(source)
    where, service = services[source]
    was = model.get("startup_mode")
    rest = {key: value for key, value in service.items() if key not in ("container_name", "ports")}
    server = convert_container.read(rest, where, builder, mistakes)
    _check_ports(service, model, where, notes)
    builder.serve(model, server, where)
    if not model["model"]:
        builder.unread(model, place, convert.UNREAD, _SAYS if where == place else "%s %s" % (where, _SAYS))
    elif model.get("startup_mode") == was == "disabled":
        notes.add(
            place, "startup_mode is disabled, as before: no switch activates it until you set it to sleep or active"
        )
    return model


def _check_ports(
    service: typing.Mapping[str, typing.Any], model: typing.Mapping[str, typing.Any], place: str, notes: convert.Notes
) -> None:
    """The manager's configuration wins over the compose file; say so where they differ."""
    wanted = "%s:%s" % (model.get("host_port"), model.get("port", 8000))
    published = []
    for port, address in _published(service):
        published.append(port)
        if address and address not in ("127.0.0.1", "[::1]"):
            notes.add(place + ".ports", "published on %s: here on 127.0.0.1 only" % address)
    for item in convert.as_list(service.get("ports")):
        for key in sorted(set(map(str, item)) - {"host_ip", "published", "target"}) if isinstance(item, dict) else ():
            notes.add("%s.ports: %s" % (place, key), "not converted: only TCP ports of the host are supported")
    if published and wanted not in published:
        notes.add(place + ".ports", "is %s, but host_port is %s, which is used" % (published[0], wanted))
    others = [port for port in published[wanted not in published :] if port != wanted]
    if others:
        notes.add(place + ".ports", "not published: %s; a model has one port" % ", ".join(others))


def _of_the_host(service: typing.Mapping[str, typing.Any]) -> list[str]:
    """The same for a service with the host's own network: the port that its server listens on there."""
    if service.get("network_mode") != "host":
        return []
    words = " ".join(map(str, convert.as_list(service.get("entrypoint")) + convert.as_list(service.get("command"))))
    given = re.findall(r"(?:\A|\s)--port(?:=|\s+)(\d+)\b", words)
    return ["%s:" % (given[-1] if given else 8000)]


def _published(service: typing.Mapping[str, typing.Any]) -> list[tuple[str, str]]:
    """The ports that a service publishes, as HOST:CONTAINER, and on which address."""
    found = []
    for item in convert.as_list(service.get("ports")):
        if isinstance(item, dict):
            found.append(("%s:%s" % (item.get("published"), item.get("target")), str(item.get("host_ip") or "")))
        else:
            rest, _colon, inner = str(item).rpartition(":")
            address, _colon, outer = rest.rpartition(":")
            found.append((re.sub(r"/tcp\Z", "", ":".join(filter(None, (outer, inner)))), address))
    return found
