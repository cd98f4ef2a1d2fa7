# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The model inventory: C(vllm_models) and C(vllm_switching) to checked, frozen values.

The one place for defaults and validation. Every mistake of an inventory is found in one go.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import math
import re
import typing

from . import options
from .errors import InventoryError, SwitchingError, UnknownModel
from .texts import map_text

# A model of which only this much RAM is free for sleepers is better discarded than offloaded (homeGPT's rule).
LEVEL_1_MINIMUM_RAM_GB = 64.0

# vllm serve's arguments whose product is the number of GPUs; the first is that number unless it is given. From
# __post_init__ and world_size_across_dp of ParallelConfig in vLLM 0.32.0's config/parallel.py. Decode context and
# expert parallelism use the same GPUs once more; prefill context parallelism came with 0.12.
PARALLEL_SIZES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "data_parallel_size",
)

# A GPU by its number on the host, or by the UUID of it or of one of its MIG instances.
Gpu = typing.Union[int, str]
# Turns a raw value into the checked one, or raises _Wrong.
Check = typing.Callable[[typing.Any], typing.Any]
# The path of one entry of vllm_models, and its checked fields.
Entry = typing.Tuple[str, typing.Dict[str, typing.Any]]

_ID = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MACRO_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_ARGUMENT_NAME = re.compile(r"[a-z][a-z0-9_.-]*\Z")
# As `nvidia-smi -L` tells them, whole; an AMD GPU's, as `rocminfo` does, has 16 digits.
_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z|GPU-[0-9a-f]{16}\Z", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
# What a switch says is no secret, whatever it is called.
_SWITCHES = ("0", "1", "true", "false", "yes", "no", "on", "off")
# Not TOKENIZERS_PARALLELISM or max_num_batched_tokens: hiding their values would hide every False, or a port.
_SECRET_NAME = re.compile(r"token(?!s|iz)|key|secret|passw|credential", re.IGNORECASE)
# What requests and commands can use beside macros and, in requests that sleep or wake, level.
_BUILTIN_VARIABLES = ("id", "name", "model", "container_name", "port", "host_port")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# What may be done about a step that fails, in the order in which it is tried.
ESCALATION = ("stop", "retry", "restart", "roll_back")
CANARY = ("auto", "off", "warn", "enforce")
# How older images of vLLM start it. Unlike `vllm serve` it takes no notice of a model that is no option: it
# serves its default one (`model_tag` is read by entrypoints/cli/serve.py alone, in vLLM 0.11.0 as in 0.32.0).
API_SERVER = "vllm.entrypoints.openai.api_server"
KIND = ("auto", "text", "pooling", "speech")
# What vllm serve's own arguments say about that (the last one is of vLLM before 0.12).
_KIND_OF_ARGUMENT = {
    "runner": {"generate": "auto", "pooling": "pooling"},
    "convert": dict.fromkeys(("embed", "classify", "reward"), "pooling"),
    "task": {
        **dict.fromkeys(("embed", "embedding", "classify", "score", "reward", "encode"), "pooling"),
        "transcription": "speech",
    },
}
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
    """A regular expression: found in the answer's body, the server sleeps."""


@dataclasses.dataclass(frozen=True)
class Model:
    """One declared model and how its server is run. Sizes are in GB."""

    id: str
    """Its name: lower-case letters, digits, dots, dashes, underscores."""
    model: str
    """What `vllm serve` loads."""
    host_port: int
    """The port of its server on the host."""
    name: str = ""
    """Its name for people."""
    container_name: str = ""
    """Its container and compose service."""
    port: int = 8000
    """The port inside the container."""
    gpus: tuple[Gpu, ...] = (0,)
    """The GPUs it uses: their numbers, or their UUIDs (`GPU-...`, `MIG-...` for one MIG instance), which stay the same
    when numbers change at a boot. Two models conflict when they share one; others can be active together."""
    gpu_memory_gb: float | None = None
    """GPU memory it takes, of all its GPUs together."""
    weights_gb: float | None = None
    """Host RAM that its weights take while it sleeps at level 1."""
    startup_mode: str = "sleep"
    """`active`: loaded and left awake, at most one for each GPU; `sleep`: loaded and put to sleep; `disabled`: left
    alone."""
    sleep_level: str = "auto"
    """`1`: weights go to host RAM; `2`: weights are discarded and loaded again at the wake; `stop`: the server ends;
    `auto`: 1 while the RAM budget holds it, else 2, or `stop` with vLLM 0.17 to 0.23."""
    args: typing.Mapping[str, typing.Any] = dataclasses.field(default_factory=dict)
    """Arguments of `vllm serve`, such as `max_model_len: 131072`. `true` is a flag, `false` its `--no-` form, lists
    and dictionaries are what vLLM makes of them."""
    env: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables of the server."""
    image: str = ""
    """Its container image, where it differs from the host's."""
    entrypoint: tuple[str, ...] = ()
    """The words that start its container, instead of the image's own: `[vllm, serve]` for an image that starts
    something else. What `vllm serve` is given is put behind them."""
    aliases: tuple[str, ...] = ()
    """Other names that clients may use."""
    ready_completion: bool | None = None
    """Whether it must give an answer to count as ready: a one-token completion or, where its server knows none, one of
    its own kind. Turn it off for what answers none of these calls."""
    kind: str = "auto"
    """What it answers: `text`; `pooling`: vectors, scores, classes or rewards; `speech`: transcriptions of sound;
    `auto`: what `runner`, `convert` or `task` in its `args` say, else what its server answers. Models of the kinds
    `pooling` and `speech` are not offered to Open WebUI."""
    canary: str = "auto"
    """What an answer to the fixed prompt means that is not the recorded one, see the key of the same name below."""
    sleep_requests: tuple[Request, ...] = ()
    """HTTP calls that put it to sleep instead of vLLM's. Give both lists or neither."""
    wake_requests: tuple[Request, ...] = ()
    """HTTP calls that wake it."""
    state_request: StateRequest | None = None
    """The HTTP call that tells whether it sleeps, for a server without vLLM's `/is_sleeping`."""
    start_command: tuple[str, ...] = ()
    """The words of the command that runs its server, instead of docker compose."""
    stop_command: tuple[str, ...] = ()
    """The words of the command that ends it; without one the process that `start_command` began is ended. A server
    behind such a pair of commands is seen only once its port is open."""
    macros: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables for requests and commands."""

    @property
    def disabled(self) -> bool:
        """Declared, but not managed."""
        return self.startup_mode == "disabled"

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
    """Host RAM for the weights of models that sleep at level 1; below 64, `auto` means level 2."""
    max_retries: int = 450
    """Together with the next: how long a server may take to become ready."""
    health_check_interval_seconds: float = 2.0
    """The longest pause between two looks; the first ones are 10 ms apart."""
    request_timeout_seconds: float = 120.0
    """One call that sleeps, wakes or completes."""
    connect_timeout_seconds: float = 0.5
    """How long a connection may take."""
    probe_timeout_seconds: float = 5.0
    """How long each call of a look may take; a server that gives no answer is asked again before it is stopped."""
    drain_timeout_seconds: float = 30.0
    """How long running requests may go on before a sleep."""
    drain_timeout_action: str = "abort"
    """What becomes of those that still run then: `abort`, `keep` (they go on after the next wake; vLLM 0.17 and
    later) or `fail` (nothing changes)."""
    stop_timeout_seconds: float = 20.0
    """How long a server that is asked to end may take before it is killed."""
    command_timeout_seconds: float = 120.0
    """How long a `start_command`'s or `stop_command`'s program, or docker compose, may take."""
    lock_timeout_seconds: float = 600.0
    """How long to wait for another switch of the same host."""
    min_active_seconds: float = 0.0
    """How long a model stays active at least before it makes room for another; a switch waits for that."""
    failure_backoff_seconds: float = 2.0
    """How long a host rests after a switch that failed, before the next."""
    escalation: tuple[str, ...] = ESCALATION
    """What may be done when a step fails, see [When something goes wrong](switch.md#when-something-goes-wrong)."""
    canary: str = "auto"
    """`enforce`: another answer than the recorded one is a failed wake; `warn`: it is told; `off`; `auto`: enforce
    where the answer was the same twice in a row when it was recorded, else warn."""
    prove_interval_seconds: float = 3600.0
    """A switch that finds all as wanted asks for the answer again when the last proof of this start is older."""
    ready_completion: bool = True
    """Whether a model must give an answer to count as ready."""
    macros: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables for requests and commands of all models; a model's own win."""

    @property
    def ready_timeout_seconds(self) -> float:
        """How long a server may take to become ready."""
        return self.max_retries * self.health_check_interval_seconds


@dataclasses.dataclass(frozen=True)
class Inventory:
    """A checked model inventory."""

    models: tuple[Model, ...]
    switching: Switching

    def find(self, name: str) -> Model:
        """The model with this id, alias or, where only one says so, C(model).

        Raises UnknownModel, naming the models that exist, when there is none or when it is disabled.
        """
        if not name:
            raise UnknownModel(f"say which model is meant; the models are: {self.listed()}")
        found = [m for m in self.models if name == m.id] or [m for m in self.models if name in m.names]
        if len(found) != 1:
            near = difflib.get_close_matches(name, [n for m in self.models for n in m.names], n=1)
            hint = f"; did you mean {near[0]}?" if near and not found else ";"
            raise UnknownModel(
                "model {} is {}{} the models are: {}".format(
                    name, "ambiguous" if found else "not declared", hint, self.listed()
                )
            )
        if found[0].disabled:
            raise UnknownModel(
                f"model {found[0].id} is disabled: set its startup_mode to sleep or active in vllm_models to use it"
            )
        return found[0]

    def listed(self) -> str:
        """The ids of the models, for messages."""
        return ", ".join(m.id + (" (disabled)" if m.disabled else "") for m in self.models)

    def check_apart(self, models: typing.Sequence[Model]) -> None:
        """Raise SwitchingError where the models can't be switched side by side."""
        if len(self.rounds(models)) > 1:
            raise SwitchingError(
                f"{', '.join(m.id for m in models)} have GPUs to do with each other, so they can't be switched side by "
                "side: switch them one after the other"
            )

    def conflicting(self, model: Model) -> tuple[Model, ...]:
        """The models that can't be awake together with this one."""
        return tuple(m for m in self.models if m.conflicts_with(model))

    def group(self, model: Model) -> tuple[Model, ...]:
        """The model and all that it has to do with: those it conflicts with, those these conflict with, and so on."""
        found = {model.id: model}
        new = [model]
        while new:
            new = [m for one in new for m in self.conflicting(one) if m.id not in found]
            found.update((m.id, m) for m in new)
        return tuple(m for m in self.models if m.id in found)

    def rounds(self, models: typing.Iterable[Model]) -> list[tuple[Model, ...]]:
        """The models, in an order in which they may be loaded: those of one round have no GPU to do with each other."""
        queues: dict[str, list[Model]] = {}
        for model in models:
            queues.setdefault(self.group(model)[0].id, []).append(model)
        longest = max(map(len, queues.values()), default=0)
        return [tuple(queue[i] for queue in queues.values() if i < len(queue)) for i in range(longest)]

    @property
    def enabled(self) -> tuple[Model, ...]:
        """The managed models, in the order of the inventory."""
        return tuple(m for m in self.models if not m.disabled)

    def as_dict(self) -> dict[str, typing.Any]:
        """The normalised inventory as plain data, under the names of the two variables."""
        plain = {
            "vllm_models": [dataclasses.asdict(m) for m in self.models],
            "vllm_switching": dataclasses.asdict(self.switching),
        }
        return typing.cast("dict[str, typing.Any]", json.loads(json.dumps(plain)))


def parse(models: typing.Any, switching: typing.Any = None) -> Inventory:
    """The Inventory of C(vllm_models) (list of dict) and C(vllm_switching) (dict).

    Raises InventoryError with every mistake found. Does no I/O.
    """
    mistakes = list(_unwritable(switching, "vllm_switching")) if isinstance(switching, dict) else []
    if isinstance(models, (list, tuple)):
        mistakes += _unwritable(models, "vllm_models")
    if mistakes:
        # Nothing else can be said where such a value is in the way.
        raise InventoryError(mistakes)
    shared = _parse_fields(_SWITCHING_FIELDS, {} if switching is None else switching, "vllm_switching", mistakes)
    parsed: list[Entry] = []
    if not isinstance(models, (list, tuple)):
        mistakes.append(f"vllm_models must be a list of models, is {_describe(models)}")
    elif not models:
        mistakes.append("vllm_models is empty: declare at least one model")
    else:
        global_macros = _macros(switching, shared)
        _check_macros("vllm_switching", global_macros, mistakes)
        parsed = [_parse_model(index, entry, global_macros, mistakes) for index, entry in enumerate(models)]
        _check_together(parsed, mistakes)
    if mistakes:
        raise InventoryError(mistakes)
    settings = Switching(**shared)
    return Inventory(
        tuple(
            Model(**{**{key: getattr(settings, key) for key in ("ready_completion", "canary")}, **fields})
            for _path, fields in parsed
        ),
        settings,
    )


def share_gpu(gpus: typing.Iterable[Gpu], others: typing.Iterable[Gpu]) -> bool:
    """Whether two models with these C(gpus) need the same GPU.

    A number and a UUID may be the same GPU, so they count as one (only a disabled model can have the other form). A MIG
    instance is its own: nobody can use a GPU as a whole while it is divided, which C(capacity) sees on the host.
    """
    mine, theirs = set(gpus), set(others)
    (numbers, wholes), (other_numbers, other_wholes) = _forms(mine), _forms(theirs)
    return bool(mine & theirs or (numbers and other_wholes) or (wholes and other_numbers))


def _forms(gpus: typing.Iterable[Gpu]) -> tuple[list[Gpu], list[Gpu]]:
    """The whole GPUs that are named by number, and those by UUID."""
    whole = [gpu for gpu in gpus if not is_mig(gpu)]
    return [gpu for gpu in whole if isinstance(gpu, int)], [gpu for gpu in whole if isinstance(gpu, str)]


def is_mig(gpu: Gpu) -> bool:
    """Whether a GPU of C(gpus) is a MIG instance: a part of one."""
    return isinstance(gpu, str) and gpu.startswith("MIG-")


def is_amd(gpu: Gpu) -> bool:
    """Whether a GPU of C(gpus) is named by a UUID that only AMD's have."""
    return isinstance(gpu, str) and gpu.startswith("GPU-") and "-" not in gpu[4:]


def gpu_uuid(text: str) -> str:
    """A whole UUID as nvidia-smi and the container toolkit write it, who compare texts; empty for what is none."""
    return text[:4].upper() + text[4:].lower() if _UUID.match(text) else ""


def gpu_text(gpu: Gpu) -> str:
    """A GPU of C(gpus) as messages call it."""
    return gpu if isinstance(gpu, str) else f"GPU {gpu}"


def is_secret_name(name: object) -> bool:
    """Whether a key's name sounds as if its value were a secret."""
    return bool(_SECRET_NAME.search(str(name)))


def secret_texts(value: typing.Any, secret: bool = False) -> typing.Iterator[str]:
    """The texts and long numbers of an unchecked inventory that stand below a key whose name sounds secret."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from secret_texts(item, secret or is_secret_name(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from secret_texts(item, secret)
    elif isinstance(value, str):
        if secret and value and value.lower() not in _SWITCHES:
            yield value
    # To hide a short number would hide every port and count that has it within.
    elif secret and isinstance(value, (int, float)) and len(str(value)) > 5:
        yield str(value)


# Nobody nests deeper, and what contains itself is deeper too.
_DEEPEST = 50


def _unwritable(value: typing.Any, path: str, join: str = ": ", depth: int = 0) -> typing.Iterator[str]:
    """Mistakes about what no file, command line or message can hold. YAML has escapes for all of it."""
    wrong = ""
    if isinstance(value, str):
        if "\0" in value:
            wrong = "must be free of NUL characters"
        elif any("\ud800" <= character <= "\udfff" for character in value):
            wrong = "must be made of whole characters, has half of a surrogate pair"
    elif isinstance(value, int):
        try:
            str(value)
        except ValueError:
            wrong = "must be a shorter number"
    elif isinstance(value, (dict, list, tuple)) and depth > _DEEPEST:
        # At once: there may be no end to it.
        raise InventoryError([f"{path} must be nested less than {_DEEPEST} deep"])
    elif isinstance(value, dict):
        for key, item in value.items():
            odd = list(_unwritable(key, f"{path}: a key", ".", depth + 1))
            yield from odd or _unwritable(item, f"{path}{join}{key}", ".", depth + 1)
    elif isinstance(value, (list, tuple)):
        inner = path if depth == 0 or join == "." else path + join
        for index, item in enumerate(value):
            yield from _unwritable(item, f"{inner}[{index}]", "." if depth else join, depth + 1)
    if wrong:
        yield f"{path}{' ' if join == '.' else join}{wrong}"


class _Wrong(Exception):
    """A value is not what its key takes; the text goes behind the key's name."""


def _describe(value: typing.Any) -> str:
    kinds = (
        (bool, "a boolean"),
        (str, "text"),
        (int, "a number"),
        (float, "a number"),
        (dict, "a dictionary"),
        (list, "a list"),
        (type(None), "nothing"),
    )
    kind = next((text for cls, text in kinds if isinstance(value, cls)), type(value).__name__)
    if isinstance(value, bool):
        return "{} ({}, as YAML reads a bare {})".format(kind, value, "on or yes" if value else "off or no")
    if isinstance(value, datetime.date):
        return f"a date ({value})"
    try:
        return f"{kind} ({value})" if isinstance(value, (bool, str, int, float)) else kind
    except ValueError:
        return kind  # a number that Python doesn't print: it is too long


def _text(value: typing.Any) -> str:
    if not isinstance(value, str):
        quote = "" if value is None or isinstance(value, (dict, list, tuple)) else ": put it in quotes"
        raise _Wrong(f"must be text, is {_describe(value)}{quote}")
    if not value.strip():
        raise _Wrong("must not be empty")
    return str(value)


def _literal(value: typing.Any) -> str:
    text = _text(value)
    if "${" in text:
        raise _Wrong(f"must not use variables, is {text}")
    return text


def _optional_text(value: typing.Any) -> str:
    return "" if value == "" else _text(value)


def _matching(pattern: re.Pattern[str], description: str) -> Check:
    def check(value: typing.Any) -> str:
        text = _text(value)
        if not pattern.match(text):
            raise _Wrong(f"must be {description}, is {text}")
        return text

    return check


def _number(minimum: float | None = None, above: float | None = None, whole: bool = False) -> Check:
    # Jinja hands numbers over as text unless it runs in native mode, so text that is a number is one.
    def check(value: typing.Any) -> float:
        kind = "a whole number" if whole else "a number"
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
            if not math.isfinite(number) or (whole and number != int(number)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise _Wrong(f"must be {kind}, is {_describe(value)}") from None
        if minimum is not None and number < minimum:
            raise _Wrong(f"must be {kind} of at least {minimum}, is {value}")
        if above is not None and number <= above:
            raise _Wrong(f"must be greater than {above}, is {value}")
        return int(number) if whole else number

    return check


def _port(value: typing.Any) -> int:
    number: int = _number(whole=True)(value)
    if not 1 <= number <= 65535:
        raise _Wrong(f"must be a port from 1 to 65535, is {number}")
    return number


def _boolean(value: typing.Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "yes", "false", "no"):
        return value.lower() in ("true", "yes")
    if not isinstance(value, bool):
        raise _Wrong(f"must be true or false, is {_describe(value)}")
    return value


def _choice(*choices: str) -> Check:
    def check(value: typing.Any) -> str:
        text = str(value)
        if text not in choices or isinstance(value, bool):
            told = _describe(value) if isinstance(value, bool) else value
            raise _Wrong("must be one of {}, is {}".format(", ".join(choices), told))
        return text

    return check


def _canary(value: typing.Any) -> str:
    # YAML reads a bare off as false.
    text: str = _choice(*CANARY)("off" if value is False else value)
    return text


def _escalation(value: typing.Any) -> tuple[str, ...]:
    rungs = _list_of(_choice(*ESCALATION), "rungs")(value)
    return tuple(rung for rung in ESCALATION if rung in rungs)


def _list_of(check: Check, what: str) -> Check:
    def check_list(value: typing.Any) -> tuple[typing.Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise _Wrong(f"must be a list of {what}, is {_describe(value)}")
        return tuple(_at(f"[{index}]", check, item) for index, item in enumerate(value))

    return check_list


def _mapping_of(pattern: re.Pattern[str], description: str, check: Check) -> Check:
    def check_mapping(value: typing.Any) -> dict[str, typing.Any]:
        if not isinstance(value, dict):
            raise _Wrong(f"must be a dictionary, is {_describe(value)}")
        for key in value:
            if not isinstance(key, str) or not pattern.match(key):
                raise _Wrong(f"has the key {key}, which is no {description}")
        return {str(key): _at(f".{key}", check, item) for key, item in value.items()}

    return check_mapping


def _at(where: str, check: Check, value: typing.Any) -> typing.Any:
    try:
        return check(value)
    except _Wrong as wrong:
        text = str(wrong)
        raise _Wrong(where + (text if text[0] in ".[:" else " " + text)) from None


def _entrypoint(value: typing.Any) -> tuple[str, ...]:
    """Words behind which the model and its arguments can stand, as far as words can tell."""
    words: tuple[str, ...] = _list_of(_text, "words")(value)
    names = [word.rpartition("/")[2] for word in words]
    serving = [i for i in range(len(names) - 1) if names[i] == "vllm" and names[i + 1] == "serve"]
    if len(serving) > 1:
        raise _Wrong("has `vllm serve` twice: name it once")
    if serving and serving[0] != len(names) - 2:
        raise _Wrong(
            f"must end with serve, ends with {words[-1]}: what comes behind it is the inventory's (model, args)"
        )
    if names[-1:] == ["vllm"]:
        raise _Wrong("ends with vllm, which starts nothing: put serve behind it")
    if API_SERVER in words:
        raise _Wrong(f"has {API_SERVER}, which does not take the model as a word: use [vllm, serve]")
    return words


def _names(value: typing.Any) -> tuple[str, ...]:
    names: tuple[str, ...] = _list_of(_text, "names")(value)
    if len(set(names)) != len(names):
        raise _Wrong(f"must have each name once, is {list(names)}")
    return names


def _gpu(value: typing.Any) -> Gpu:
    uuid = gpu_uuid(value) if isinstance(value, str) else ""
    if uuid:
        return uuid
    if isinstance(value, str) and value[:4].upper() in ("GPU-", "MIG-"):
        raise _Wrong(f"must be a whole UUID, as nvidia-smi -L tells it, is {value}")
    number: int = _number(minimum=0, whole=True)(value)
    return number


def _gpus(value: typing.Any) -> tuple[Gpu, ...]:
    gpus: tuple[Gpu, ...] = _list_of(_gpu, "GPU numbers or UUIDs")(value)
    if not gpus or len(set(gpus)) != len(gpus):
        raise _Wrong(f"must name at least one GPU, each once, is {list(gpus)}")
    if len(gpus) > 1 and any(map(is_mig, gpus)):
        raise _Wrong(f"must name a MIG instance alone, since a process can use no second one, is {list(gpus)}")
    return gpus


def _scalar_text(value: typing.Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise _Wrong(f"must be text or a number, is {_describe(value)}")
    return str(value)


def _literal_scalar(value: typing.Any) -> str:
    text = _scalar_text(value)
    return _literal(text) if text else text


def _arguments(value: typing.Any) -> dict[str, typing.Any]:
    arguments = _mapping_of(_ARGUMENT_NAME, "argument of vllm serve", lambda item: item)(value)
    normalised = {}
    for key, item in arguments.items():
        name = key.replace("-", "_")
        if name in normalised:
            raise _Wrong(f"has {name} twice")
        if name in _DERIVED_ARGUMENTS:
            raise _Wrong(f"must not have {name}: use the model's {_DERIVED_ARGUMENTS[name]}")
        normalised[name] = _at(f".{key}", _keys if name == "api_key" else _json, item)
    return normalised


def _keys(value: typing.Any) -> typing.Any:
    """What vLLM takes for C(api_key): one or several, of which clients are given the first."""
    if value is None or value == "":
        return value
    return list(_list_of(_key, "keys")(value)) if isinstance(value, (list, tuple)) else _key(value)


def _key(value: typing.Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _Wrong(f"must be text, is {_describe(value)}")
    return _text(str(value))


def _json(value: typing.Any) -> typing.Any:
    """The value as JSON gives it back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise _Wrong(
            f"must be text, a number, true or false, a list or a dictionary of these, is {_describe(value)}"
        ) from None


def _request(cls: type[Request]) -> Check:
    fields = {
        "endpoint": _Field(_endpoint, required=True),
        "method": _Field(lambda value: _choice(*_METHODS)(str(value).upper())),
        "body": _Field(_json),
        "timeout": _Field(_number(above=0)),
    }
    if cls is StateRequest:
        fields["sleeping"] = _Field(_pattern, required=True)

    def check(value: typing.Any) -> Request:
        mistakes: list[str] = []
        parsed = _parse_fields(fields, value, "", mistakes)
        if mistakes:
            raise _Wrong(": " + "; ".join(mistakes))
        return cls(**parsed)

    return check


def _endpoint(value: typing.Any) -> str:
    text = _text(value)
    if not text.startswith("/"):
        raise _Wrong(f"must be a path that starts with /, is {text}")
    return text


def _pattern(value: typing.Any) -> str:
    try:
        re.compile(_text(value))
    except (re.error, OverflowError, RecursionError) as error:
        raise _Wrong(f"must be a regular expression: {error}") from None
    return str(value)


@dataclasses.dataclass(frozen=True)
class _Field:
    """How one key is checked. Its default is the one of the dataclass that the key belongs to."""

    check: Check
    required: bool = False


_MODEL_FIELDS = {
    "id": _Field(_matching(_ID, "lower-case letters, digits, dots, dashes and underscores"), required=True),
    "model": _Field(_literal, required=True),
    "host_port": _Field(_port, required=True),
    "name": _Field(_literal),
    "container_name": _Field(
        _matching(_CONTAINER_NAME, "a container name (letters, digits, dots, dashes and underscores)")
    ),
    "port": _Field(_port),
    "gpus": _Field(_gpus),
    "gpu_memory_gb": _Field(_number(above=0)),
    "weights_gb": _Field(_number(above=0)),
    "startup_mode": _Field(_choice("active", "sleep", "disabled")),
    "sleep_level": _Field(_choice("auto", "1", "2", "stop")),
    "args": _Field(_arguments),
    "env": _Field(_mapping_of(_ENVIRONMENT_NAME, "name of an environment variable", _scalar_text)),
    "image": _Field(_optional_text),
    "entrypoint": _Field(_entrypoint),
    "aliases": _Field(_names),
    "ready_completion": _Field(_boolean),
    "kind": _Field(_choice(*KIND)),
    "canary": _Field(_canary),
    "sleep_requests": _Field(_list_of(_request(Request), "requests")),
    "wake_requests": _Field(_list_of(_request(Request), "requests")),
    "state_request": _Field(_request(StateRequest)),
    "start_command": _Field(_list_of(_text, "words")),
    "stop_command": _Field(_list_of(_text, "words")),
    "macros": _Field(_mapping_of(_MACRO_NAME, "name of a macro", _literal_scalar)),
}

_SWITCHING_FIELDS = {
    "available_ram_gb": _Field(_number(minimum=0)),
    "max_retries": _Field(_number(minimum=1, whole=True)),
    "health_check_interval_seconds": _Field(_number(above=0)),
    "request_timeout_seconds": _Field(_number(above=0)),
    "connect_timeout_seconds": _Field(_number(above=0)),
    "probe_timeout_seconds": _Field(_number(above=0)),
    "drain_timeout_seconds": _Field(_number(minimum=0)),
    "drain_timeout_action": _Field(_choice("abort", "keep", "fail")),
    "stop_timeout_seconds": _Field(_number(above=0)),
    "command_timeout_seconds": _Field(_number(above=0)),
    "lock_timeout_seconds": _Field(_number(minimum=0)),
    "min_active_seconds": _Field(_number(minimum=0)),
    "failure_backoff_seconds": _Field(_number(minimum=0)),
    "escalation": _Field(_escalation),
    "canary": _Field(_canary),
    "prove_interval_seconds": _Field(_number(minimum=0)),
    "ready_completion": _Field(_boolean),
    "macros": _MODEL_FIELDS["macros"],
}


def _parse_fields(
    fields: typing.Mapping[str, _Field], entry: typing.Any, path: str, mistakes: list[str]
) -> dict[str, typing.Any]:
    """The checked values of the keys that are set; every mistake is added to C(mistakes), behind C(path)."""
    prefix = path + ": " if path else ""
    if not isinstance(entry, dict):
        mistakes.append(f"{prefix}must be a dictionary, is {_describe(entry)}")
        return {}
    for key in entry:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]}?" if near else "the keys are: {}".format(", ".join(fields))
            mistakes.append(f"{prefix}unknown key {key}; {hint}")
    parsed: dict[str, typing.Any] = {}
    for key, field in fields.items():
        value = entry.get(key)
        if value is None:
            if field.required:
                mistakes.append(f"{prefix}{key} is required")
            continue
        try:
            parsed[key] = field.check(value)
        except _Wrong as wrong:
            text = str(wrong)
            mistakes.append("{}{}{}{}".format(prefix, key, "" if text[0] in ".[:" else " ", text))
    return parsed


def _parse_model(index: int, entry: typing.Any, global_macros: typing.Mapping[str, str], mistakes: list[str]) -> Entry:
    """(path, fields) of one entry, with the defaults that depend on other keys."""
    name = entry.get("id") if isinstance(entry, dict) else None
    path = f"vllm_models[{index}]" + (f" ({name})" if isinstance(name, str) and name else "")
    fields = _parse_fields(_MODEL_FIELDS, entry, path, mistakes)
    if "id" in fields:
        fields.setdefault("name", fields["id"])
        fields.setdefault("container_name", "vllm-{}".format(fields["id"]))
    if "gpu_memory_gb" in fields:
        fields.setdefault("weights_gb", fields["gpu_memory_gb"])
    # What is given counts here, right or wrong: a mistake is told once, not also for what it entails.
    given = entry if isinstance(entry, dict) else {}
    if given.get("gpus") is None:
        fields["gpus"] = Model.gpus
    if bool(given.get("sleep_requests")) != bool(given.get("wake_requests")):
        one, other = ("sleep", "wake") if given.get("sleep_requests") else ("wake", "sleep")
        mistakes.append(f"{path}: {one}_requests needs {other}_requests too: give both lists or neither")
    if given.get("stop_command") and not given.get("start_command"):
        mistakes.append(f"{path}: stop_command needs start_command too, or a stopped server could not be started again")
    if given.get("entrypoint") and given.get("start_command"):
        mistakes.append(f"{path}: entrypoint is a container's, and a start_command needs none: leave one of them out")
    if str(fields.get("model", "")).split()[:1] in (["vllm"], ["serve"]):
        mistakes.append(
            f"{path}: model must be what `vllm serve` loads, is {fields['model']}: leave the command out (it is the "
            "image's, or the entrypoint's)"
        )
    _derive_kind(path, fields, mistakes)
    if "gpus" in fields:
        _check_parallel_sizes(path, fields.get("args", {}), fields["gpus"], mistakes)
    if not given.get("start_command"):  # which gets nothing of args
        for name, why in options.unfollowed_in_container(fields.get("args", {})):
            mistakes.append(f"{path}: args.{name}: {why}")
    macros = _macros(given, fields)
    _check_macros(path, macros, mistakes)
    variables = {name: str(fields.get(name, "")) for name in _BUILTIN_VARIABLES}
    variables["port"] = variables["port"] or str(Model.port)
    _expand_variables(path, fields, {**global_macros, **macros, **variables}, mistakes)
    told = options.of_command(fields.get("start_command", ()))
    if told is not None and "host_port" in fields:
        for name, why in options.unfollowed_in_command(told, fields["host_port"]):
            mistakes.append(f"{path}: start_command: --{name.replace('_', '-')}: {why}")
    return path, fields


def _derive_kind(path: str, fields: dict[str, typing.Any], mistakes: list[str]) -> None:
    """What kind of model it is by its arguments, where its C(kind) does not say."""
    args = fields.get("args", {})
    for name, kinds in _KIND_OF_ARGUMENT.items():
        value = args.get(name)
        derived = kinds.get(value, "auto") if isinstance(value, str) else "auto"
        if derived == "auto":
            continue
        if fields.setdefault("kind", "auto") == "auto":
            fields["kind"] = derived
        elif fields["kind"] != derived:
            mistakes.append(f"{path}: kind {fields['kind']} does not go with args.{name} {value}: leave kind out")


def _check_parallel_sizes(
    path: str, args: typing.Mapping[str, typing.Any], gpus: typing.Sequence[Gpu], mistakes: list[str]
) -> None:
    """A server that is told to use more GPUs than it is given does not start; told to use fewer, it wastes them."""
    sizes = {"tensor_parallel_size": len(gpus), **{key: args[key] for key in PARALLEL_SIZES if key in args}}
    product = 1
    for key, value in sizes.items():
        try:
            product *= 1 if value is None else _number(minimum=1, whole=True)(value)
        except _Wrong as wrong:
            mistakes.append(f"{path}: args.{key} {wrong}")
            return
    if product != len(gpus):
        told = " x ".join(f"{key} {1 if value is None else value}" for key, value in sizes.items())
        mistakes.append(
            f"{path}: args take {product} GPUs ({told}), but gpus names {len(gpus)}: name as many in gpus, or set "
            f"args.tensor_parallel_size so that the product is {len(gpus)}"
        )


def _macros(given: typing.Any, fields: dict[str, typing.Any]) -> dict[str, str]:
    """The macros of one place; where they are mistaken their names, so that their use is no second mistake."""
    raw = given.get("macros") if isinstance(given, dict) else None
    return fields.get("macros") or {str(name): "" for name in (raw if isinstance(raw, dict) else {})}


def _check_macros(path: str, macros: typing.Iterable[str], mistakes: list[str]) -> None:
    for name in macros:
        if name in (*_BUILTIN_VARIABLES, "level"):
            mistakes.append(f"{path}: macros.{name} hides the variable of that name: call the macro something else")


def _expand_variables(
    path: str, fields: dict[str, typing.Any], known: typing.Mapping[str, str], mistakes: list[str]
) -> None:
    """Replace C(${name}) in custom requests and commands; C(${level}) stays until a level is known."""

    def expand(text: str, where: str, level: bool) -> str:
        left = []

        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            if name == "level" and level:
                left.append(name)
                return match.group(0)
            if name in known:
                return known[name]
            names = sorted(known) + (["level"] if level else [])
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean ${{{near[0]}}}?" if near else "the variables are: {}".format(", ".join(names))
            mistakes.append(f"{path}: {where} uses the unknown variable ${{{name}}}; {hint}")
            left.append(name)
            return match.group(0)

        expanded = _VARIABLE.sub(value, text)
        # It would be replaced whenever the inventory is read again.
        if _VARIABLE.findall(expanded) != left:
            mistakes.append(f"{path}: {where} becomes {expanded}: variables must not make up another one")
        return expanded

    def expand_request(request: Request, where: str, level: bool) -> Request:
        return dataclasses.replace(
            request,
            endpoint=expand(request.endpoint, where + ".endpoint", level),
            body=map_text(request.body, lambda text: expand(text, where + ".body", level)),
        )

    for key in ("sleep_requests", "wake_requests"):
        if key in fields:
            fields[key] = tuple(expand_request(r, f"{key}[{i}]", True) for i, r in enumerate(fields[key]))
    if "state_request" in fields:
        fields["state_request"] = expand_request(fields["state_request"], "state_request", False)
    for key in ("start_command", "stop_command"):
        if key in fields:
            fields[key] = tuple(expand(word, f"{key}[{i}]", False) for i, word in enumerate(fields[key]))
            # What is mistaken is empty here as well, and told already.
            empty = [i for i, word in enumerate(fields[key]) if not mistakes and not word.strip()]
            mistakes += [f"{path}: {key}[{i}] must not be empty, and its variables are" for i in empty]


def _check_together(parsed: list[Entry], mistakes: list[str]) -> None:
    """What no entry can be told alone: things that must be unique, and one active model per GPU."""
    for key in ("id", "host_port", "container_name"):
        owners: dict[typing.Any, Entry] = {}
        for path, fields in parsed:
            if key not in fields:
                continue
            owner_path, owner = owners.setdefault(fields[key], (path, fields))
            # Two of the same id have the same container name by default: that is no mistake of its own.
            same_id = "id" in fields and owner.get("id") == fields["id"]
            if owner_path == path or (key == "container_name" and same_id):
                continue
            taken = owner_path if key == "id" else _short(owner_path)
            mistakes.append(f"{path}: {key} {fields[key]} is taken by {taken}")
    for path, fields in parsed:
        for alias in fields.get("aliases", ()):
            for other_path, other in parsed:
                if other_path != path and alias in (other.get("id"), other.get("model"), *other.get("aliases", ())):
                    mistakes.append(f"{path}: alias {alias} already names {_short(other_path)}")
    enabled = [(path, fields.get("gpus", ())) for path, fields in parsed if fields.get("startup_mode") != "disabled"]
    numbers, uuids = ([_short(path) for path, gpus in enabled if _forms(gpus)[form]] for form in (0, 1))
    if numbers and uuids:
        mistakes.append(
            f"vllm_models: gpus are numbers in {', '.join(numbers)} and UUIDs in {', '.join(uuids)}, so nobody can "
            "tell which models share a GPU: write all of them one way (nvidia-smi -L lists both)"
        )
    actives: list[tuple[str, set[Gpu]]] = []
    for path, fields in parsed:
        if fields.get("startup_mode") != "active":
            continue
        gpus = set(fields.get("gpus", ()))
        for other_path, other_gpus in actives:
            shared = sorted(gpus & other_gpus, key=str)
            if shared:
                mistakes.append(
                    f"{path}: startup_mode active is taken by {_short(other_path)}: both use "
                    f"{_gpus_text(shared)} and only one of them can be awake; set one to sleep"
                )
        actives.append((path, gpus))


def _gpus_text(gpus: typing.Sequence[Gpu]) -> str:
    return ("GPU " if isinstance(gpus[0], int) else "") + ", ".join(map(str, gpus))


def _short(path: str) -> str:
    """The id in a model's path, or the path itself where the entry has none."""
    return path[path.index("(") + 1 : -1] if path.endswith(")") else path
