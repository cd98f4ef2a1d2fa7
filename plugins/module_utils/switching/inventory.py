# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The model inventory: C(vllm_models) and C(vllm_switching) to checked, frozen values, and which models conflict.

Every mistake of an inventory is found in one go. What is said of one key alone stands in C(schema); here is what keys
and models have to do with each other.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing

from . import checks, options, schema
from .errors import InventoryError, SwitchingError, UnknownModel
from .gpus import Gpu, forms, gpus_text
from .schema import ESCALATION, Model, Request, StateRequest, Switching
from .texts import map_text

# What callers need of the schema, so that they know one module.
__all__ = ("ESCALATION", "Inventory", "Model", "Request", "StateRequest", "Switching", "parse")

# vllm serve's arguments whose product is the number of GPUs; the first is that number unless it is given. From
# __post_init__ and world_size_across_dp of ParallelConfig in vLLM 0.32.0's config/parallel.py. Decode context and
# expert parallelism use the same GPUs once more; prefill context parallelism came with 0.12.
PARALLEL_SIZES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "data_parallel_size",
)

# The path of one entry of vllm_models, and its checked fields.
Entry = typing.Tuple[str, typing.Dict[str, typing.Any]]

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
# What requests and commands can use beside macros and, in requests that sleep or wake, level.
_BUILTIN_VARIABLES = ("id", "name", "model", "container_name", "port", "host_port")
# What vllm serve's own arguments say about the kind of a model (the last one is of vLLM before 0.12).
_KIND_OF_ARGUMENT = {
    "runner": {"generate": "auto", "pooling": "pooling"},
    "convert": dict.fromkeys(("embed", "classify", "reward"), "pooling"),
    "task": {
        **dict.fromkeys(("embed", "embedding", "classify", "score", "reward", "encode"), "pooling"),
        "transcription": "speech",
    },
}


@dataclasses.dataclass(frozen=True)
class Inventory:
    """A checked model inventory."""

    models: tuple[Model, ...]
    switching: Switching

    def find(self, name: str) -> Model:
        """The model with this id, alias or, if it is unique, C(model).

        Raises UnknownModel, naming the models that exist, when there is none or when it is disabled.
        """
        if not name:
            raise UnknownModel(f"no model given: use one of {self.listed()}")
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
        """Raise SwitchingError if the models can't be switched in parallel."""
        if len(self.load_batches(models)) > 1:
            raise SwitchingError(
                f"{', '.join(m.id for m in models)} share GPUs, directly or through another model, and can't be "
                "switched in parallel: switch them one after the other"
            )

    def conflicting(self, model: Model) -> tuple[Model, ...]:
        """The models that can't be awake together with this one."""
        return tuple(m for m in self.models if m.conflicts_with(model))

    def group(self, model: Model) -> tuple[Model, ...]:
        """The model and all that share GPUs with it, directly or through other models."""
        found = {model.id: model}
        new = [model]
        while new:
            new = [m for one in new for m in self.conflicting(one) if m.id not in found]
            found.update((m.id, m) for m in new)
        return tuple(m for m in self.models if m.id in found)

    def load_batches(self, models: typing.Iterable[Model]) -> list[tuple[Model, ...]]:
        """The models in the order in which they can be loaded: the models of a batch share no GPUs, even indirectly."""
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

    Raises InventoryError with all mistakes. Does no I/O.
    """
    mistakes = list(checks.unwritable(switching, "vllm_switching")) if isinstance(switching, dict) else []
    if isinstance(models, (list, tuple)):
        mistakes += checks.unwritable(models, "vllm_models")
    if mistakes:
        # Nothing else can be said where such a value is in the way.
        raise InventoryError(mistakes)
    shared = checks.parse_fields(
        schema.SWITCHING_FIELDS, {} if switching is None else switching, "vllm_switching", mistakes
    )
    parsed: list[Entry] = []
    if not isinstance(models, (list, tuple)):
        mistakes.append(f"vllm_models must be a list of models, is {checks.describe(models)}")
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


def _parse_model(index: int, entry: typing.Any, global_macros: typing.Mapping[str, str], mistakes: list[str]) -> Entry:
    """(path, fields) of one entry, with the defaults that depend on other keys."""
    name = entry.get("id") if isinstance(entry, dict) else None
    path = f"vllm_models[{index}]" + (f" ({name})" if isinstance(name, str) and name else "")
    fields = checks.parse_fields(schema.MODEL_FIELDS, entry, path, mistakes)
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
        mistakes.append(f"{path}: {one}_requests requires {other}_requests: set both lists or neither")
    if given.get("stop_command") and not given.get("start_command"):
        mistakes.append(
            f"{path}: stop_command requires start_command: without it, a stopped server can't be started again"
        )
    if given.get("entrypoint") and given.get("start_command"):
        mistakes.append(
            f"{path}: entrypoint is for containers and has no effect with a start_command: remove one of them"
        )
    if str(fields.get("model", "")).split()[:1] in (["vllm"], ["serve"]):
        mistakes.append(
            f"{path}: model must be what `vllm serve` loads, is {fields['model']}: remove the command (the image "
            "or the entrypoint sets it)"
        )
    _derive_kind(path, fields, mistakes)
    if fields.get("first_answer_tokens") and fields.get("kind") in ("pooling", "speech"):
        mistakes.append(f"{path}: first_answer_tokens requires a model that completes text: remove it")
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
            mistakes.append(f"{path}: kind {fields['kind']} conflicts with args.{name} {value}: remove kind")


def _check_parallel_sizes(
    path: str, args: typing.Mapping[str, typing.Any], gpus: typing.Sequence[Gpu], mistakes: list[str]
) -> None:
    """A server that is told to use more GPUs than it is given does not start; told to use fewer, it wastes them."""
    sizes = {"tensor_parallel_size": len(gpus), **{key: args[key] for key in PARALLEL_SIZES if key in args}}
    product = 1
    for key, value in sizes.items():
        try:
            product *= 1 if value is None else checks.number(minimum=1, whole=True)(value)
        except checks.Wrong as wrong:
            mistakes.append(f"{path}: args.{key} {wrong}")
            return
    if product != len(gpus):
        told = " x ".join(f"{key} {1 if value is None else value}" for key, value in sizes.items())
        mistakes.append(
            f"{path}: args take {product} GPUs ({told}), but gpus names {len(gpus)}: name {product} GPUs in gpus, or "
            f"set args.tensor_parallel_size so that the product is {len(gpus)}"
        )


def _macros(given: typing.Any, fields: dict[str, typing.Any]) -> dict[str, str]:
    """The macros of one place; where they are mistaken their names, so that their use is no second mistake."""
    raw = given.get("macros") if isinstance(given, dict) else None
    return fields.get("macros") or {str(name): "" for name in (raw if isinstance(raw, dict) else {})}


def _check_macros(path: str, macros: typing.Iterable[str], mistakes: list[str]) -> None:
    for name in macros:
        if name in (*_BUILTIN_VARIABLES, "level"):
            mistakes.append(f"{path}: macros.{name} hides the variable of that name: rename the macro")


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
            mistakes.append(f"{path}: {where} becomes {expanded}: the result must not contain another variable")
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
            mistakes += [f"{path}: {key}[{i}] must not be empty, but its variables are" for i in empty]


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
    numbers, uuids = ([_short(path) for path, gpus in enabled if forms(gpus)[form]] for form in (0, 1))
    if numbers and uuids:
        mistakes.append(
            f"vllm_models: gpus are numbers in {', '.join(numbers)} and UUIDs in {', '.join(uuids)}, so it is "
            "unknown which models share a GPU: use one form for all of them (nvidia-smi -L lists both)"
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
                    f"{gpus_text(shared)} and only one of them can be awake; set one to sleep"
                )
        actives.append((path, gpus))


def _short(path: str) -> str:
    """The id in a model's path, or the path itself where the entry has none."""
    return path[path.index("(") + 1 : -1] if path.endswith(")") else path
