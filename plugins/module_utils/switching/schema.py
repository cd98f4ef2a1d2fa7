# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The keys of a model inventory: what each is, its default, what it may be, and what C(docs/inventory.md) says of it.

A key is a field of a dataclass, with its description below, and an entry in the table of checks at the end.
"""

from __future__ import annotations

import dataclasses
import re
import typing

from . import checks, options
from .checks import Check, Field, Wrong
from .gpus import Gpu, gpu_uuid, is_mig, share_gpu
from .texts import map_text

_ID = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MACRO_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_ARGUMENT_NAME = re.compile(r"[a-z][a-z0-9_.-]*\Z")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# What may be done about a step that fails, in the order in which it is tried.
ESCALATION = ("stop", "retry", "restart", "roll_back")
CANARY = ("auto", "off", "warn", "enforce")
DRAFTS = ("warn", "restart", "ignore")
# How older images of vLLM start it. Unlike `vllm serve` it takes no notice of a model that is no option: it
# serves its default one (`model_tag` is read by entrypoints/cli/serve.py alone, in vLLM 0.11.0 as in 0.32.0).
API_SERVER = "vllm.entrypoints.openai.api_server"
KIND = ("auto", "text", "pooling", "speech")
# vllm serve's arguments that the inventory derives from other keys, and the key to use instead.
_DERIVED_ARGUMENTS = {
    "model": "model",
    "host": "host_port (servers always listen for the host alone)",
    "port": "port",
    "served_model_name": "aliases",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """One HTTP call of a custom sleep or wake sequence. C(timeout) is in seconds; None means the inventory's."""

    endpoint: str
    """The path, such as `/sleep?level=${level}`."""
    method: str = "POST"
    """The method."""
    body: typing.Any = None
    """What is sent, as JSON."""
    timeout: float | None = None
    """Seconds; without it `request_timeout_seconds`, for a `state_request` `probe_timeout_seconds`."""

    def at_level(self, level: int) -> Request:
        """The request with C(${level}) replaced."""
        return dataclasses.replace(
            self,
            endpoint=self.endpoint.replace("${level}", str(level)),
            body=map_text(self.body, lambda text: text.replace("${level}", str(level))),
        )


@dataclasses.dataclass(frozen=True)
class StateRequest(Request):
    """The call that tells whether a server that is not vLLM sleeps: C(sleeping), a regular expression, is searched in
    the body of its answer."""

    method: str = "GET"
    sleeping: str = ""
    """A regular expression. If it matches anywhere in the body of the answer, the server sleeps."""


@dataclasses.dataclass(frozen=True)
class Model:
    """One declared model and how its server is run. Sizes are in GB."""

    id: str
    """The name of the model: lower-case letters, digits, dots, dashes, underscores."""
    model: str
    """The model that `vllm serve` loads."""
    host_port: int
    """The port of its server on the host."""
    name: str = ""
    """Its display name."""
    description: str = ""
    """What it is for, in words for people. `status` shows it."""
    container_name: str = ""
    """The name of its container and compose service."""
    port: int = 8000
    """The port inside the container."""
    gpus: tuple[Gpu, ...] = (0,)
    """The GPUs that it uses: their numbers, or their UUIDs (`GPU-...`, `MIG-...` for one MIG instance), which stay the
    same if the numbers change at a boot. Two models conflict if they share a GPU; others can be active together."""
    gpu_memory_gb: float | None = None
    """The GPU memory that it takes, on all its GPUs together."""
    weights_gb: float | None = None
    """The host RAM that its weights take while it sleeps at level 1."""
    startup_mode: str = "sleep"
    """`active`: loaded and left awake, at most one for each GPU; `sleep`: loaded and put to sleep; `disabled`: left
    alone."""
    sleep_level: str = "auto"
    """`1`: weights are copied to host RAM; `2`: weights are discarded and reloaded at the wake-up; `stop`: the server
    is stopped; `auto`: 1 while the RAM budget allows it, or 2 if that was measured to be faster; otherwise 2, or `stop`
    with vLLM 0.17 to 0.23 and for models with a draft model."""
    args: typing.Mapping[str, typing.Any] = dataclasses.field(default_factory=dict)
    """Arguments of `vllm serve`, such as `max_model_len: 131072`. `true` is a flag, `false` its `--no-` form; lists and
    dictionaries are passed in the form that vLLM expects."""
    env: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables of the server."""
    image: str = ""
    """Its container image, if it differs from the host's."""
    entrypoint: tuple[str, ...] = ()
    """The command that starts its container, as a list of words, instead of the image's own: `[vllm, serve]` for an
    image that starts something else. The arguments of `vllm serve` are appended."""
    aliases: tuple[str, ...] = ()
    """Other names that clients may use."""
    ready_completion: bool | None = None
    """Whether it must answer a request to count as ready: a one-token completion or, if its server has no completions,
    a call of its own kind. Turn it off for servers that answer none of these calls."""
    kind: str = "auto"
    """What it answers: `text`; `pooling`: vectors, scores, classes or rewards; `speech`: transcriptions of audio;
    `auto`: determined by `runner`, `convert` or `task` in its `args`, otherwise by the answers of its server. Models of
    the kinds `pooling` and `speech` are not offered to Open WebUI."""
    canary: str = "auto"
    """How to treat an answer to the fixed prompt that differs from the recorded one, see the key of the same name
    below."""
    drafts: str = "warn"
    """What to do if speculative decoding no longer helps after a wake-up from level 2, see
    [Draft models](switch.md#draft-models). `warn`: a warning; `restart`: the server is restarted; `ignore`: nothing is
    measured, and `sleep_level: auto` does not avoid level 2."""
    first_answer_tokens: int = 0
    """If above 0, a prompt of so many tokens, at most as many as the model accepts, is sent after each wake-up and each
    start, see [The first answer](switch.md#the-first-answer)."""
    sleep_requests: tuple[Request, ...] = ()
    """HTTP calls that put it to sleep, instead of vLLM's. Set both lists or neither."""
    wake_requests: tuple[Request, ...] = ()
    """HTTP calls that wake it up."""
    state_request: StateRequest | None = None
    """The HTTP call that returns whether it sleeps, for a server without vLLM's `/is_sleeping`."""
    start_command: tuple[str, ...] = ()
    """The command that runs its server, as a list of words, instead of docker compose."""
    stop_command: tuple[str, ...] = ()
    """The command that stops it, as a list of words. Without one, the process that `start_command` started is ended. A
    server with both commands is only detected once its port is open."""
    macros: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables for requests and commands."""

    @property
    def disabled(self) -> bool:
        """Declared, but not managed."""
        return self.startup_mode == "disabled"

    @property
    def status_fields(self) -> dict[str, typing.Any]:
        """What C(status) tells of it beside its state; what is empty is left out."""
        keys = ("name", "description", "host_port", "startup_mode")
        return {key: getattr(self, key) for key in keys if getattr(self, key) != ""}

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that clients may call this model by, the id first."""
        return (self.id, *self.aliases, self.model)

    @property
    def api_key(self) -> str | None:
        """The key that the server wants on C(/v1), or None. vLLM takes it from C(--api-key) or C(VLLM_API_KEY)."""
        key = self.args.get("api_key") or self.env.get("VLLM_API_KEY")
        if isinstance(key, (list, tuple)):
            key = key[0]
        return str(key) if key else None

    @property
    def draft_weights(self) -> bool | None:
        """Whether its server speculates with drafts that have weights; None where its options do not tell."""
        given = options.of_command(self.start_command) if self.start_command else self.args
        return options.draft_weights(given or {})

    @property
    def listens(self) -> options.Listens:
        """Where its server is to be asked. A container's port is published on loopback."""
        return options.listens(self.start_command)

    def conflicts_with(self, other: Model) -> bool:
        """Whether both need the same GPU, so that only one of them can be awake."""
        return self.id != other.id and share_gpu(self.gpus, other.gpus)


@dataclasses.dataclass(frozen=True)
class Switching:
    """The host's settings for switching. Times are in seconds, sizes in GB."""

    available_ram_gb: float = 128.0
    """The host RAM for the weights of models that sleep at level 1; below 64, `auto` means level 2."""
    max_retries: int = 450
    """Multiplied by the next key, this is the time that a server may take to become ready."""
    health_check_interval_seconds: float = 2.0
    """The longest interval between two checks whether a server is ready; the first ones are 10 ms apart."""
    request_timeout_seconds: float = 120.0
    """The timeout of a call that puts a server to sleep, wakes it or asks it for a completion."""
    connect_timeout_seconds: float = 0.5
    """The timeout of a connection attempt."""
    probe_timeout_seconds: float = 5.0
    """The timeout of each call that observes a server. A server that gives no answer is queried again before it is
    stopped."""
    drain_timeout_seconds: float = 30.0
    """How long running requests may continue before a sleep."""
    drain_timeout_action: str = "abort"
    """What happens to requests that still run then: `abort`, `keep` (they continue after the next wake-up; vLLM 0.17
    and later) or `fail` (nothing changes)."""
    stop_timeout_seconds: float = 20.0
    """How long a server may take to end before it is killed."""
    command_timeout_seconds: float = 120.0
    """How long the program of a `start_command` or `stop_command`, or docker compose, may take."""
    lock_timeout_seconds: float = 600.0
    """How long to wait for another switch on the same host."""
    min_active_seconds: float = 0.0
    """The minimum time for which a model stays active before it makes room for another; a switch waits for it."""
    failure_backoff_seconds: float = 2.0
    """How long a host waits after a failed switch before the next one."""
    escalation: tuple[str, ...] = ESCALATION
    """What may be done if a step fails, see [When something goes wrong](switch.md#when-something-goes-wrong)."""
    canary: str = "auto"
    """`enforce`: an answer that differs from the recorded one is a failed wake-up; `warn`: it causes a warning; `off`:
    answers are not compared; `auto`: `enforce` if the answer was the same twice in a row when it was recorded,
    otherwise `warn`."""
    prove_interval_seconds: float = 3600.0
    """A switch that has nothing to change verifies the model again if the last verification of this start is older."""
    ready_completion: bool = True
    """Whether a model must give an answer to count as ready."""
    warm: bool = True
    """Whether the weights of a model that has to load or reload them are read into the page cache while the previous
    model makes room, see [Reading ahead](switch.md#reading-ahead)."""
    measure_levels: bool = False
    """Whether `sleep_level: auto` tries a level that was never measured on this host, once, see
    [Sleep levels](switch.md#sleep-levels)."""
    leak_limit_gb: float = 0.0
    """A server that holds so much more of a GPU while asleep than after its first sleep is stopped and so starts afresh
    the next time; 0: never, see [What a sleep frees](sizing.md#what-a-sleep-frees)."""
    macros: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables for requests and commands of all models; a model's own take precedence."""

    @property
    def ready_timeout_seconds(self) -> float:
        """How long a server may take to become ready."""
        return self.max_retries * self.health_check_interval_seconds


def _canary(value: typing.Any) -> str:
    # YAML reads a bare off as false.
    text: str = checks.choice(*CANARY)("off" if value is False else value)
    return text


def _escalation(value: typing.Any) -> tuple[str, ...]:
    rungs = checks.list_of(checks.choice(*ESCALATION), "rungs")(value)
    return tuple(rung for rung in ESCALATION if rung in rungs)


def _entrypoint(value: typing.Any) -> tuple[str, ...]:
    """Words behind which the model and its arguments can stand, as far as words can tell."""
    words: tuple[str, ...] = checks.list_of(checks.text, "words")(value)
    names = [word.rpartition("/")[2] for word in words]
    serving = [i for i in range(len(names) - 1) if names[i] == "vllm" and names[i + 1] == "serve"]
    if len(serving) > 1:
        raise Wrong("has `vllm serve` twice: name it once")
    if serving and serving[0] != len(names) - 2:
        raise Wrong(f"must end with serve, ends with {words[-1]}: the words after it come from model and args")
    if names[-1:] == ["vllm"]:
        raise Wrong("ends with vllm, which starts nothing: add serve")
    if API_SERVER in words:
        raise Wrong(f"has {API_SERVER}, which does not accept the model as a positional argument: use [vllm, serve]")
    return words


def _gpu(value: typing.Any) -> Gpu:
    uuid = gpu_uuid(value) if isinstance(value, str) else ""
    if uuid:
        return uuid
    if isinstance(value, str) and value[:4].upper() in ("GPU-", "MIG-"):
        raise Wrong(f"must be a complete UUID, as nvidia-smi -L shows it, is {value}")
    number: int = checks.number(minimum=0, whole=True)(value)
    return number


def _gpus(value: typing.Any) -> tuple[Gpu, ...]:
    gpus: tuple[Gpu, ...] = checks.list_of(_gpu, "GPU numbers or UUIDs")(value)
    if not gpus or len(set(gpus)) != len(gpus):
        raise Wrong(f"must name at least one GPU, each once, is {list(gpus)}")
    if len(gpus) > 1 and any(map(is_mig, gpus)):
        raise Wrong(
            f"must contain nothing else beside a MIG instance, because a process can use only one, is {list(gpus)}"
        )
    return gpus


def _arguments(value: typing.Any) -> dict[str, typing.Any]:
    arguments = checks.mapping_of(_ARGUMENT_NAME, "argument of vllm serve", lambda item: item)(value)
    normalised = {}
    for key, item in arguments.items():
        name = key.replace("-", "_")
        if name in normalised:
            raise Wrong(f"has {name} twice")
        if name in _DERIVED_ARGUMENTS:
            raise Wrong(f"must not have {name}: use the model's {_DERIVED_ARGUMENTS[name]}")
        normalised[name] = checks.at(f".{key}", checks.api_keys if name == "api_key" else checks.json_value, item)
    return normalised


def _request(cls: type[Request]) -> Check:
    fields = {
        "endpoint": Field(checks.endpoint, required=True),
        "method": Field(lambda value: checks.choice(*_METHODS)(str(value).upper())),
        "body": Field(checks.json_value),
        "timeout": Field(checks.number(above=0)),
    }
    if cls is StateRequest:
        fields["sleeping"] = Field(checks.pattern, required=True)

    def check(value: typing.Any) -> Request:
        mistakes: list[str] = []
        parsed = checks.parse_fields(fields, value, "", mistakes)
        if mistakes:
            raise Wrong(": " + "; ".join(mistakes))
        return cls(**parsed)

    return check


MODEL_FIELDS = {
    "id": Field(checks.matching(_ID, "lower-case letters, digits, dots, dashes and underscores"), required=True),
    "model": Field(checks.literal, required=True),
    "host_port": Field(checks.port, required=True),
    "name": Field(checks.literal),
    "description": Field(checks.optional_text),
    "container_name": Field(
        checks.matching(_CONTAINER_NAME, "a container name (letters, digits, dots, dashes and underscores)")
    ),
    "port": Field(checks.port),
    "gpus": Field(_gpus),
    "gpu_memory_gb": Field(checks.number(above=0)),
    "weights_gb": Field(checks.number(above=0)),
    "startup_mode": Field(checks.choice("active", "sleep", "disabled")),
    "sleep_level": Field(checks.choice("auto", "1", "2", "stop")),
    "args": Field(_arguments),
    "env": Field(checks.mapping_of(_ENVIRONMENT_NAME, "name of an environment variable", checks.scalar_text)),
    "image": Field(checks.optional_text),
    "entrypoint": Field(_entrypoint),
    "aliases": Field(checks.names),
    "ready_completion": Field(checks.boolean),
    "kind": Field(checks.choice(*KIND)),
    "canary": Field(_canary),
    "drafts": Field(checks.choice(*DRAFTS)),
    "first_answer_tokens": Field(checks.number(minimum=0, whole=True)),
    "sleep_requests": Field(checks.list_of(_request(Request), "requests")),
    "wake_requests": Field(checks.list_of(_request(Request), "requests")),
    "state_request": Field(_request(StateRequest)),
    "start_command": Field(checks.list_of(checks.text, "words")),
    "stop_command": Field(checks.list_of(checks.text, "words")),
    "macros": Field(checks.mapping_of(_MACRO_NAME, "name of a macro", checks.literal_scalar)),
}

SWITCHING_FIELDS = {
    "available_ram_gb": Field(checks.number(minimum=0)),
    "max_retries": Field(checks.number(minimum=1, whole=True)),
    "health_check_interval_seconds": Field(checks.number(above=0)),
    "request_timeout_seconds": Field(checks.number(above=0)),
    "connect_timeout_seconds": Field(checks.number(above=0)),
    "probe_timeout_seconds": Field(checks.number(above=0)),
    "drain_timeout_seconds": Field(checks.number(minimum=0)),
    "drain_timeout_action": Field(checks.choice("abort", "keep", "fail")),
    "stop_timeout_seconds": Field(checks.number(above=0)),
    "command_timeout_seconds": Field(checks.number(above=0)),
    "lock_timeout_seconds": Field(checks.number(minimum=0)),
    "min_active_seconds": Field(checks.number(minimum=0)),
    "failure_backoff_seconds": Field(checks.number(minimum=0)),
    "escalation": Field(_escalation),
    "canary": Field(_canary),
    "prove_interval_seconds": Field(checks.number(minimum=0)),
    "ready_completion": Field(checks.boolean),
    "warm": Field(checks.boolean),
    "measure_levels": Field(checks.boolean),
    "leak_limit_gb": Field(checks.number(minimum=0)),
    "macros": MODEL_FIELDS["macros"],
}
