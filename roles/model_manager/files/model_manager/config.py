# SPDX-License-Identifier: MIT
"""The settings of the service: a JSON file, which the role writes. Every mistake of it is told at once."""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

POLICIES = ("fifo", "batched")
_URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")


class ConfigError(Exception):
    """The settings can't be used; `mistakes` lists all that is wrong, each with its key and the remedy."""

    def __init__(self, path: str, mistakes: list[str]) -> None:
        self.mistakes = mistakes
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__(f"{path} has {count}:\n" + "\n".join(f"- {mistake}" for mistake in mistakes))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What is set for one model alone. None: as for all models."""

    idle_sleep_seconds: float | None = None
    idle_stop_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the service. Times are in seconds."""

    stack_dir: str
    """The folder of the stack, with `models.json` and the engine's state files in `run`."""
    listen: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 9000
    """The port to listen on."""
    tokens_file: str = ""
    """The file of the bearer tokens. Without one, only this host itself may change anything."""
    allowed_hosts: tuple[str, ...] = ()
    """The names by which clients may call the service (the header Host), beside the host's own addresses."""
    answer_seconds: float = 900.0
    """How long a caller waits for its switch. After that it gets 504 and the address at which the switch, which
    continues, can be watched."""
    max_body_bytes: int = 65536
    """The longest body of a request."""
    requests_per_second: float = 200.0
    """How often one client may ask on average; five seconds' worth may come at once."""
    max_readers: int = 100
    """How many clients may read the events at the same time."""
    max_connections: int = 1000
    """How many connections clients may have at once. Whoever waits for a switch has one."""
    policy: str = "fifo"
    """Who is switched to next: `fifo`, in the order of the requests; `batched`, requests for the active model first."""
    max_wait_seconds: float = 120.0
    """`batched`: the longest time for which a request waits while requests for the active model are preferred."""
    observe_seconds: float = 2.0
    """The interval between two observations of the servers while nothing happens."""
    report_seconds: float = 60.0
    """The interval between two readings of the GPU memory that the servers hold, which take longer."""
    max_queue: int = 100
    """How many switches may wait. More are refused until there is room."""
    history_switches: int = 10000
    """How many past switches are kept."""
    idle_sleep_seconds: float = 0.0
    """A model that had no request for so long is put to sleep; 0: never."""
    idle_stop_seconds: float = 0.0
    """A model that had no request for so long, asleep or not, is stopped; 0: never."""
    models: Mapping[str, ModelConfig] = dataclasses.field(default_factory=dict)
    """For models alone, by their ids: `idle_sleep_seconds`, `idle_stop_seconds`."""
    breaker_failures: int = 3
    """After so many failures within `breaker_minutes`, a model is only tried again every `retry_seconds`."""
    breaker_minutes: float = 10.0
    """See `breaker_failures`."""
    retry_seconds: float = 300.0
    """The time between two attempts to start a model that has failed too often."""
    reconcile: bool = True
    """Whether the service brings lost models back and lets idle ones go, without being asked."""
    reload_idle_seconds: float = 300.0
    """A sleeping model whose server was lost is loaded again once the models that have to make room for it have had no
    request for this time; 0: only on request."""
    gateway_listen: str = ""
    """The address and port at which the gateway's workers connect, `127.0.0.1:9001`; without one there is none."""
    gateway_token_file: str = ""
    """The file of the secret that the gateway and the service share."""
    linger_seconds: float = 0.5
    """With the gateway: how long a model without requests stays after its last answer before it makes room, with both
    policies, unless somebody has waited for `max_wait_seconds`."""
    traces_endpoint: str = ""
    """The OpenTelemetry collector that gets a trace of each switch, by OTLP over HTTP: `http://127.0.0.1:4318`."""
    stop_timeout_seconds: float = 60.0
    """When the service ends: how long a running switch may continue. Then it is rolled back, which may take as long
    again."""

    def idle(self, model: str) -> tuple[float, float]:
        """After how many seconds without a request a model is put to sleep, and stopped; 0 for never."""
        own = self.models.get(model, ModelConfig())
        sleep, stop = own.idle_sleep_seconds, own.idle_stop_seconds
        return (
            self.idle_sleep_seconds if sleep is None else sleep,
            self.idle_stop_seconds if stop is None else stop,
        )


class _Wrong(Exception):
    """A value that can't be used; the text goes on after the key."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"must be a text, is {json.dumps(value)}: put it in quotes")
    return value


def _folder(value: Any) -> str:
    if not _text(value).startswith("/"):
        raise _Wrong(f"must be an absolute path, is {json.dumps(value)}: begin it with /")
    return str(value)


def _file(value: Any) -> str:
    return _folder(value) if value else _text(value)


def _url(value: Any) -> str:
    if value and not _URL.fullmatch(_text(value)):
        raise _Wrong(f"must be the URL of a collector, is {json.dumps(value)}: write it as http://HOST:4318")
    return _text(value)


def _address(value: Any) -> str:
    try:
        ipaddress.ip_address(_text(value))
    except ValueError:
        raise _Wrong(f"must be an IP address, is {json.dumps(value)}: use 127.0.0.1, or 0.0.0.0 for all") from None
    return str(value)


def address_and_port(text: str) -> tuple[str, int]:
    """The IP address and the port of a text such as 127.0.0.1:9001 or [::1]:9001. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    else:
        host = str(ipaddress.IPv4Address(host))
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError("no port")
    return host, int(port)


def _address_and_port(value: Any) -> str:
    if value:
        try:
            address_and_port(_text(value))
        except ValueError:
            raise _Wrong(f"must be an IP address with a port, is {json.dumps(value)}: use 127.0.0.1:9001") from None
    return _text(value)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise _Wrong(f'must be a list of names, is {json.dumps(value)}: write it as ["name"]')
    odd = [one for one in value if re.search(r"[/\s]|^[^:]+:\d*$", one)]
    if odd:  # what no request could match
        raise _Wrong(f"must be names alone, is {json.dumps(odd)}: leave out http:// and the port")
    return tuple(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"must be true or false, is {json.dumps(value)}: correct or remove it")
    return value


def _policy(value: Any) -> str:
    if value not in POLICIES:
        raise _Wrong(f"must be one of {', '.join(POLICIES)}, is {json.dumps(value)}: correct or remove it")
    return str(value)


def _number(minimum: float, above: bool = False) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < minimum or (above and value == minimum):
            least = f"above {minimum:g}" if above else f"of at least {minimum:g}"
            raise _Wrong(f"must be a number {least}, is {json.dumps(value)}: correct or remove it")
        return float(value)

    return check


def _whole(minimum: int, maximum: int | None = None) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        good = isinstance(value, int) and not isinstance(value, bool)
        if not good or value < minimum or (maximum is not None and value > maximum):
            bound = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
            raise _Wrong(f"must be a whole number {bound}, is {json.dumps(value)}: correct or remove it")
        return int(value)

    return check


_MODEL_CHECKS: dict[str, Callable[[Any], Any]] = {
    "idle_sleep_seconds": _number(0),
    "idle_stop_seconds": _number(0),
}
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "stack_dir": _folder,
    "listen": _address,
    "port": _whole(1, 65535),
    "tokens_file": _file,
    "allowed_hosts": _names,
    "answer_seconds": _number(0, above=True),
    "max_body_bytes": _whole(1),
    "requests_per_second": _number(1),
    "max_readers": _whole(1),
    "max_connections": _whole(1),
    "policy": _policy,
    "max_wait_seconds": _number(0),
    "observe_seconds": _number(0, above=True),
    "report_seconds": _number(0, above=True),
    "max_queue": _whole(1),
    "history_switches": _whole(1),
    **_MODEL_CHECKS,
    "breaker_failures": _whole(1),
    "breaker_minutes": _number(0, above=True),
    "retry_seconds": _number(0, above=True),
    "reconcile": _boolean,
    "reload_idle_seconds": _number(0),
    "gateway_listen": _address_and_port,
    "gateway_token_file": _file,
    "linger_seconds": _number(0),
    "traces_endpoint": _url,
    "stop_timeout_seconds": _number(0),
}


def parse(given: Any, path: str = "the configuration") -> Config:
    """The Config of plain data. Raises ConfigError with all mistakes; `path` is how the message calls the data."""
    mistakes: list[str] = []
    if not isinstance(given, dict):
        raise ConfigError(path, ["it must be a JSON object: write the keys and values within { and }"])
    fields = _fields(given, {**_CHECKS, "models": lambda value: value}, "", mistakes)
    if "stack_dir" not in given:
        mistakes.append("stack_dir is missing: set it to the folder of the stack (vllm_stack_dir)")
    if fields.get("gateway_listen") and not given.get("gateway_token_file"):
        mistakes.append("gateway_token_file is missing: set it to the file of the gateway's link token")
    models = fields.get("models", {})
    if not isinstance(models, dict):
        mistakes.append(f'models must be an object, is {json.dumps(models)}: write it as {{"ID": {{...}}}}')
        models = {}
    fields["models"] = {}
    for name, own in models.items():
        if isinstance(own, dict):
            fields["models"][name] = ModelConfig(**_fields(own, _MODEL_CHECKS, f"models.{name}.", mistakes))
        else:
            mistakes.append(f"models.{name} must be an object, is {json.dumps(own)}: write it as {{...}}")
    if mistakes:
        raise ConfigError(path, mistakes)
    return Config(**fields)


def _fields(
    given: Mapping[str, Any], checks: Mapping[str, Callable[[Any], Any]], prefix: str, mistakes: list[str]
) -> dict[str, Any]:
    found = {}
    for key, value in given.items():
        if key not in checks:
            near = difflib.get_close_matches(key, checks, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(checks)}"
            mistakes.append(f"{prefix}{key} is unknown; {hint}")
            continue
        try:
            found[key] = checks[key](value)
        except _Wrong as wrong:
            mistakes.append(f"{prefix}{key} {wrong}")
    return found


def read(path: str) -> Config:
    """The Config of a JSON file. Raises ConfigError, also where it can't be read."""
    return parse(read_json(path), path)


def read_json(path: str) -> Any:
    """What a JSON file of settings says. Raises ConfigError."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise ConfigError(path, [f"it can't be read ({error.strerror}): create it, or correct its mode"]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, [f"it is no JSON ({error}): correct it"]) from None
