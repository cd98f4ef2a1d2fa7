# SPDX-License-Identifier: MIT
"""The settings of a door: a JSON file, which the role writes. Every mistake of it is told at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .config import ConfigError, address_and_port, read_json
from .door_host import HostConfig

# By the types of fields.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535,
        "a port, from 1 to 65535",
    ),
    "str": (lambda value: isinstance(value, str), "a text"),
}


@dataclasses.dataclass(frozen=True)
class DoorConfig:
    """The settings."""

    gateway_listen: str
    """The address and port at which the gateway's workers connect."""
    gateway_token_file: str
    """The file of the secret that they share with the door."""
    models_file: str
    """Where the door keeps what it has heard of the hosts' models, for its next start."""
    hosts: tuple[HostConfig, ...]


def parse(given: Any, path: str = "the configuration") -> DoorConfig:
    """The settings that plain data has. Raises ConfigError with all mistakes."""
    if not isinstance(given, dict):
        raise ConfigError(path, ["it must be a JSON object: write the keys and values within { and }"])
    mistakes: list[str] = []
    found = _fields(given, DoorConfig, "", mistakes, ("hosts",))
    hosts = given.get("hosts")
    if not isinstance(hosts, list) or not hosts:
        mistakes.append("hosts must be a list of at least one host: set model_gateway_hosts")
        hosts = []
    parsed = []
    for number, one in enumerate(hosts):
        if isinstance(one, dict):
            parsed.append(_fields(one, HostConfig, f"hosts[{number}].", mistakes))
        else:
            mistakes.append(f"hosts[{number}] must be an object")
    names = [one.get("name") for one in parsed]
    mistakes += [f"hosts: {name} is there twice" for name in {one for one in names if names.count(one) > 1}]
    try:
        address_and_port(str(found.get("gateway_listen")))
    except ValueError:
        mistakes.append("gateway_listen must be an IP address with a port: use 127.0.0.1:9001")
    if mistakes:
        raise ConfigError(path, mistakes)
    return DoorConfig(**found, hosts=tuple(HostConfig(**one) for one in parsed))


def read(path: str) -> DoorConfig:
    """The settings of a JSON file. Raises ConfigError, also where it can't be read."""
    return parse(read_json(path), path)


def _fields(
    given: dict[str, Any], shape: type, prefix: str, mistakes: list[str], left_out: tuple[str, ...] = ()
) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(shape)}
    mistakes += [f"{prefix}{key} is unknown; the keys are {', '.join(fields)}" for key in given if key not in fields]
    found = {}
    for name, field in fields.items():
        if name in left_out:
            continue
        if name not in given:
            if field.default is dataclasses.MISSING:
                mistakes.append(f"{prefix}{name} is missing")
            continue
        check, words = _KINDS[str(field.type)]
        if check(given[name]):
            found[name] = given[name]
        else:
            mistakes.append(f"{prefix}{name} must be {words}")
    return found
