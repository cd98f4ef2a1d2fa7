# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container of another system is, as a compose service says it, and C(docker run) in the same keys. Pure.

Whatever is read is taken out of the service. What is left at the end is told, key by key: so nothing can be forgotten.
"""

from __future__ import annotations

import re
import typing

from ansible_collections.homegpt.vllm.plugins.plugin_utils import convert, convert_builder, launch

_OWN = "not converted: the collection sets its own"
_NO_SUCH = "not converted: the collection's containers have no such setting"
_HELD = "not converted: set its content in env or args of the model"
# Keys that become nothing, and why; others become nothing because there is no such setting.
_UNTAKEN = {
    "restart": _OWN,
    "healthcheck": _OWN,
    "logging": _OWN,
    "labels": _OWN,
    "depends_on": _OWN,
    "networks": _OWN,
    "network_mode": _OWN,
    "pull_policy": _OWN,
    "hostname": _OWN,
    "env_file": _HELD,
    "extends": _HELD,
    "secrets": _HELD,
    "configs": _HELD,
    "build": "not converted: build that image and name it in image",
    "stop_grace_period": "not converted: vllm_switching.stop_timeout_seconds is how long a server may take to end",
}
# What the role gives every container, and those with vllm_gpu_access amd.
_GIVEN = {"ipc": "host", "runtime": "nvidia"}
_AMD_GIVEN = {"group_add": ("video", "render"), "security_opt": ("seccomp=unconfined", "seccomp:unconfined")}
_AMD_DEVICES = re.compile(r"/dev/(kfd|dri)(/|:|\Z)")
_DOCKER_SWITCHES = frozenset(
    [
        "detach",
        "disable-content-trust",
        "help",
        "init",
        "interactive",
        "no-healthcheck",
        "oom-kill-disable",
        "privileged",
        "publish-all",
        "quiet",
        "read-only",
        "replace",
        "rm",
        "sig-proxy",
        "tls-verify",
        "tty",
        "d",
        "i",
        "t",
        "q",
        "P",
    ]
)
_DOCKER_NAMES = {"e": "env", "p": "publish", "v": "volume", "w": "workdir", "u": "user", "h": "hostname", "l": "label"}
# Whether a container is waited for, and that it goes at its end: what a run is, not what is run.
_DOCKER_RUN = frozenset(["detach", "interactive", "rm", "tty", "quiet", "sig-proxy", "replace", "d", "i", "t", "q"])
# What a service of a compose file calls them.
_SERVICE_KEYS = {
    "env": "environment",
    "volume": "volumes",
    "device": "devices",
    "group-add": "group_add",
    "security-opt": "security_opt",
    "env-file": "env_file",
    "label": "labels",
    "network": "networks",
    "net": "networks",
    "pull": "pull_policy",
    "cap-add": "cap_add",
    "ulimit": "ulimits",
    "workdir": "working_dir",
}
_SINGLE = ("ipc", "runtime", "restart", "hostname", "shm_size", "user", "working_dir", "pull_policy")


def read(
    service: typing.Mapping[str, typing.Any], place: str, builder: convert_builder.Builder, mistakes: list[str]
) -> convert.Server:
    """The server of a compose service without variables. What is not converted is told in notes."""
    notes = builder.notes
    left = dict(service)
    words: dict[str, list[str]] = {}
    for key in ("entrypoint", "command"):
        try:
            # A backslash at the end of a line is no more than a blank word to compose.
            words[key] = [
                word for word in convert.split_words(left.pop(key, None), place + "." + key) if word.strip() or not word
            ]
        except convert.ConvertError as error:
            mistakes.extend(error.mistakes)
            words[key] = []
    image = str(left.pop("image", None) or "")
    env = convert.environment(left.pop("environment", None), place + ".environment", notes, builder.values)
    start = launch.read(words["entrypoint"], words["command"], image, env, lambda name: convert.UNKNOWN % name)
    reserved, number = _devices(left, place, notes)
    access = _access(left)
    cards = _cdi(left)
    for key, value in _GIVEN.items():
        if left.get(key) == value:
            del left[key]
    volumes = list(filter(None, (_volume(item, place, notes) for item in convert.as_list(left.pop("volumes", None)))))
    for path, value in _leaves(left, ""):
        key = path.partition(".")[0]
        if value in (None, [], {}, ""):
            continue
        notes.add("%s.%s" % (place, path), _UNTAKEN.get(key, _NO_SUCH))
    return convert.Server(
        start.words, {**env, **start.env}, image, reserved or cards or None, number, volumes, access, start
    )


def _leaves(value: typing.Any, path: str) -> typing.Iterator[tuple[str, typing.Any]]:
    """What is left of a service, by its path; the keys of deploy one by one, since a part of it is taken over."""
    if isinstance(value, dict) and (not path or path.partition(".")[0] == "deploy"):
        for key, item in value.items():
            yield from _leaves(item, "%s.%s" % (path, key) if path else str(key))
    else:
        yield path, value


def _devices(left: dict[str, typing.Any], place: str, notes: convert.Notes) -> tuple[list[str] | None, int | None]:
    """The GPUs that a service reserves, by name, or how many; neither where it takes all."""
    found: list[str] = []
    number: int | None = None
    places = [("gpus", left.pop("gpus", None))]
    deploy = left["deploy"] = _copied(left.get("deploy"))
    path = "deploy.resources.reservations.devices"
    within = deploy
    for key in ("resources", "reservations"):
        within = within.get(key) if isinstance(within, dict) else None
    if isinstance(within, dict) and "devices" in within:
        places.append((path, within.pop("devices")))
    for where, devices in places:
        for device in convert.as_list(devices):
            if isinstance(device, str):
                # `gpus: all`
                if device.isdigit():
                    number = int(device)
                elif device != "all":
                    notes.add("%s.%s" % (place, where), "not understood: check gpus")
                continue
            rest = dict(device) if isinstance(device, dict) else {"": device}
            driver, capabilities = rest.get("driver"), convert.as_list(rest.get("capabilities"))
            if driver in (None, "", "nvidia", "cdi"):
                rest.pop("driver", None)
            names = [str(name) for name in convert.as_list(rest.pop("device_ids", None))]
            # Those of CDI are the same GPUs under another name.
            found += [part.strip() for name in names for part in re.sub(r"\Anvidia\.com/gpu=", "", name).split(",")]
            count = str(rest.pop("count", "all"))
            if count.isdigit():
                number = int(count)
            elif count not in ("all", "-1"):
                notes.add(
                    "%s.%s.count" % (place, where), "not converted: it is not in the file as a number: check gpus"
                )
            flat = [name for item in capabilities for name in convert.as_list(item)]
            if set(map(str, flat)) <= {"gpu", "compute", "utility", "nvidia"}:
                rest.pop("capabilities", None)
            for key in rest:
                notes.add("%s.%s.%s" % (place, where, key), _NO_SUCH)
    found = [name for name in found if name != "all"]
    return found or None, None if found else number


def _copied(value: typing.Any) -> typing.Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def _access(left: dict[str, typing.Any]) -> str:
    """The vllm_gpu_access of an AMD card's devices; takes with it what the role gives such containers."""
    devices = [item for item in convert.as_list(left.get("devices")) if isinstance(item, str)]
    if not any(_AMD_DEVICES.match(item) and "kfd" in item for item in devices):
        return ""
    left["devices"] = [item for item in convert.as_list(left["devices"]) if not _AMD_DEVICES.match(str(item))]
    for key, given in _AMD_GIVEN.items():
        if key in left:
            left[key] = [item for item in convert.as_list(left[key]) if str(item) not in given]
    return "amd"


def _cdi(left: dict[str, typing.Any]) -> list[str]:
    """The GPUs that are devices by the names of CDI."""
    found, rest = [], []
    for item in convert.as_list(left.get("devices")):
        match = re.match(r"nvidia\.com/gpu=(.+)\Z", str(item))
        if match:
            found.append(match.group(1))
        else:
            rest.append(item)
    if found:
        left["devices"] = rest
    return [name for name in found if name != "all"]


def _volume(item: typing.Any, place: str, notes: convert.Notes) -> str:
    """A volume in its short form."""
    if not isinstance(item, dict):
        return str(item)
    rest = dict(item)
    text = "%s:%s" % (rest.pop("source", None) or "", rest.pop("target", None) or "")
    kind = str(rest.pop("type", "bind"))
    if rest.pop("read_only", False):
        text += ":ro"
    for key in (*rest, *([] if kind in ("bind", "volume") else [kind])):
        notes.add("%s.volumes: %s of %s" % (place, key, text.split(":")[1]), _NO_SUCH)
    return text if kind in ("bind", "volume") else ""


def docker_run(words: list[str]) -> tuple[dict[str, typing.Any], list[str]]:
    """What `docker run` is told, as a service of a compose file, and its options that no such file has."""
    options: dict[str, list[str]] = {}
    switches: list[str] = []
    while words and words[0].startswith("-"):
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("--") and len(name) > 1 and name not in _DOCKER_SWITCHES:
            if all(letter in _DOCKER_SWITCHES for letter in name):
                switches += list(name)
                continue
            name, equals, value = name[0], "=", name[1:] + equals + value
        if name in _DOCKER_SWITCHES and (not equals or value in ("true", "false")):
            switches += [name] * (value != "false")
            continue
        if not equals:
            value = words.pop(0) if words else ""
        options.setdefault(_DOCKER_NAMES.get(name, name), []).append(value)
    service: dict[str, typing.Any] = {"image": words.pop(0) if words else "", "command": words}
    entrypoint = options.pop("entrypoint", [""])[-1]
    if entrypoint:
        service["entrypoint"] = [entrypoint]
    environment = [item if "=" in item else "%s=%s" % (item, convert.UNKNOWN % item) for item in options.pop("env", [])]
    if environment:
        service["environment"] = environment
    gpus: dict[str, typing.Any] = {}
    for item in options.pop("gpus", []):
        # Its value is a line of CSV, whose quotes a shell has left.
        device = re.search(r"device=([^\"']+)", item)
        if device:
            gpus.setdefault("device_ids", []).extend(device.group(1).split(","))
        elif item.strip("\"'").isdigit():
            gpus["count"] = int(item.strip("\"'"))
        elif item != "all":
            gpus[item] = item
    if gpus:
        service["gpus"] = [gpus]
    others = [name for name in switches if name not in _DOCKER_RUN]
    for name, values in options.items():
        key = _SERVICE_KEYS.get(name, name.replace("-", "_"))
        if key == "name":
            continue
        if key == "mount":
            service.setdefault("volumes", []).extend(map(_mount, values))
        else:
            service[key] = values[-1] if key in _SINGLE else values
    return service, others


def _mount(text: str) -> dict[str, typing.Any]:
    """A C(--mount) as a volume of a compose file."""
    names = {"src": "source", "dst": "target", "destination": "target", "readonly": "read_only", "ro": "read_only"}
    pairs = (part.partition("=") for part in text.split(","))
    return {names.get(name, name): value if equals else True for name, equals, value in pairs}
