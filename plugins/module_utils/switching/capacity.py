# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Whether an inventory goes together with the memory of a host. Does no I/O. Sizes are in GB, of 1e9 bytes."""

from __future__ import annotations

import math
import typing

from . import costs, hardware, memory
from .gpus import Gpu as Name
from .gpus import gpu_text, is_mig
from .inventory import Inventory, Model
from .texts import in_words

# For sums of numbers such as 0.1, not for what was measured.
_ROUNDING = 1e-6


def lint(inventory: Inventory, ram_total_gb: float | None, gpus: typing.Mapping[int, hardware.Gpu] | None) -> list[str]:
    """What of an inventory can't work on a host with so much memory, each with its remedy. Does no I/O.

    None as C(ram_total_gb) or C(gpus) means that it is not known; nothing is said about it then.
    """
    problems = []
    if gpus:
        known = hardware.named(gpus, [name for model in inventory.enabled for name in model.gpus])
        for model in inventory.enabled:
            problems += _absent(model, gpus)
            problem = memory.divided_problem(model, gpus) or _awake_problem(inventory, model, known)
            problem = problem or _load_problem(inventory, model, known)
            problems += [problem] if problem else []
    problem = _ram_problem(inventory, ram_total_gb)
    return problems + ([problem] if problem else [])


def _absent(model: Model, gpus: typing.Mapping[int, hardware.Gpu]) -> list[str]:
    """The model's GPUs that the host has not, as a problem."""
    # nvidia-smi numbers GPUs without gaps: a missing one is there and doesn't tell its memory.
    there = range(max(gpus) + 1)
    uuids = [gpu.uuid for gpu in gpus.values() if gpu.uuid]
    beginning = f"{model.id}: gpus names"
    numbers = [str(name) for name in model.gpus if isinstance(name, int) and name not in there]
    if numbers:
        return [
            f"{beginning} GPU {in_words(numbers)}, but the host has {in_words([*map(str, there)])}: correct its gpus"
        ]
    lost = [name for name in model.gpus if isinstance(name, str) and not is_mig(name) and name not in uuids]
    if lost and len(uuids) == len(there):
        return [f"{beginning} {in_words(lost)}, but the host has {in_words(uuids)}: correct its gpus"]
    return []


def advice(
    inventory: Inventory,
    ram_total_gb: float | None,
    gpus: typing.Mapping[int, hardware.Gpu] | None = None,
    measured: typing.Mapping[str, typing.Any] | None = None,
) -> list[str]:
    """What of an inventory works on the host and is still not as meant, each with its remedy. Does no I/O.

    C(measured) is what the state file says of what levels have taken.
    """
    shared = hardware.shared(gpus) is True
    slow = [_slow_level(inventory, model, costs.known(measured or {}, model), shared) for model in inventory.enabled]
    return [*_memory_advice(inventory, ram_total_gb, shared), *filter(None, slow)]


def _slow_level(inventory: Inventory, model: Model, known: typing.Mapping[int, costs.Cost], shared: bool) -> str:
    """What keeps a model from the level that was measured to take less time, with the remedy; "" where nothing does."""
    level = costs.quicker(known)
    budget = inventory.switching.available_ram_gb
    least = max(costs.LEVEL_1_MINIMUM_RAM_GB, model.weights_gb or 0.0)
    if level is None or (level == 1 and shared):
        return ""
    remedy = ""
    if model.sleep_level not in ("auto", "stop", str(level)):
        remedy = f"set its sleep_level to auto instead of {model.sleep_level}"
    if model.sleep_level in ("auto", "2") and level == 1 and budget < least:
        more = f"vllm_switching.available_ram_gb to at least {math.ceil(least)}, if the host has that much RAM to spare"
        remedy = f"{remedy}, and {more}" if remedy else f"set {more}"
    why = costs.choose(known, "", "", False).why
    return f"{model.id} would switch faster at another level ({why}): {remedy}" if remedy else ""


def _memory_advice(inventory: Inventory, ram_total_gb: float | None, shared: bool) -> list[str]:
    budget = inventory.switching.available_ram_gb
    insisting = [model.id for model in inventory.enabled if model.sleep_level == "1"]
    if shared:
        # The budget is of no use there: auto never means level 1.
        return (
            [
                f"the GPU of this host shares its RAM, so the weights of {in_words(insisting)} stay in that "
                "memory at sleep_level 1: set it to auto, 2 or stop"
            ]
            if insisting
            else []
        )
    if ram_total_gb is None or budget <= ram_total_gb:
        return []
    return [
        f"vllm_switching.available_ram_gb is {budget:.1f}, but the host has {ram_total_gb:.1f} GB of RAM: set it to "
        "the RAM that the host can spare for the weights of sleeping models"
    ]


def _ram_problem(inventory: Inventory, ram_total_gb: float | None) -> str:
    """Weights of models that sleep at level 1 because the inventory insists, together, against the RAM there is."""
    budget = inventory.switching.available_ram_gb
    limit = budget if ram_total_gb is None else min(budget, ram_total_gb)
    crowd = _worst_placement(inventory, ())
    size = _weights_gb(crowd)
    if size <= limit + _ROUNDING:
        return ""
    discarded: list[Model] = []
    left = crowd
    while _weights_gb(left) > limit + _ROUNDING:
        discarded.append(max(left, key=lambda model: model.weights_gb or 0.0))
        left = _worst_placement(inventory, discarded)
    names = in_words([model.id for model in crowd])
    beginning = (
        f"the weights of {names} take {size:.1f} GB of RAM when {'they sleep' if crowd[1:] else 'it sleeps'} at level 1"
    )
    remedy = f"set sleep_level of {in_words([model.id for model in discarded])} to 2"
    if ram_total_gb is not None and size > ram_total_gb + _ROUNDING:
        return f"{beginning}, but the host has {ram_total_gb:.1f} GB: {remedy}"
    return (
        f"{beginning}, but vllm_switching.available_ram_gb allows {budget:.1f} GB: {remedy}, or raise available_ram_gb"
    )


def _worst_placement(inventory: Inventory, discarded: typing.Sequence[Model]) -> list[Model]:
    """Those models with sleep_level 1 that sleep together and have the most weights, of the placements that are usual.

    Usual is the declared one, and what a switch from there to any one model makes of it.
    """
    declared = [model for model in inventory.enabled if model.startup_mode == "active"]
    placements = [declared]
    for model in inventory.enabled:
        placements.append([model, *(other for other in declared if not other.conflicts_with(model))])
    spared = {model.id for model in discarded}
    crowds = []
    for awake in placements:
        up = {model.id for model in awake} | spared
        crowds.append([model for model in inventory.enabled if model.sleep_level == "1" and model.id not in up])
    return max(crowds, key=_weights_gb)


def _weights_gb(models: typing.Iterable[Model]) -> float:
    return sum(model.weights_gb or 0.0 for model in models)


def _awake_problem(inventory: Inventory, model: Model, gpus: typing.Mapping[Name, hardware.Gpu]) -> str:
    """The memory that the inventory says a model takes, beside what the others keep there asleep."""
    if model.gpu_memory_gb is None:
        return ""
    takes = model.gpu_memory_gb / len(model.gpus)
    index = _tightest(inventory, model, {name: takes for name in model.gpus if name in gpus}, gpus)
    if index is None:
        return ""
    total, asleep = gpus[index].total_gb, _sleepers(inventory, model, index)
    over = takes + _kept_gb(asleep, gpus[index]) - total
    has = f"{gpu_text(index)} has {total:.1f} GB and {model.id} takes {takes:.1f} GB of it (gpu_memory_gb)"
    more = [] if gpus[index].unified else [f"give {model.id} more GPUs (gpus)"]
    remedies = [*_to_discard(asleep, gpus[index]), *_to_stop(asleep, over), *more, "correct its gpu_memory_gb"]
    return f"{has}{_beside(asleep, gpus[index])}: {', or '.join(remedies)}"


def _load_problem(inventory: Inventory, model: Model, gpus: typing.Mapping[Name, hardware.Gpu]) -> str:
    """The memory that vLLM insists on finding free when it loads, beside what the others keep there asleep."""
    need = memory.shares(model, gpus)
    index = _tightest(inventory, model, need, gpus)
    if index is None:
        return ""
    total, asleep = gpus[index].total_gb, _sleepers(inventory, model, index)
    kept = _kept_gb(asleep, gpus[index])
    # A start_command gets nothing of args.
    setting = "--gpu-memory-utilization in its start_command" if model.start_command else "args.gpu_memory_utilization"
    most = math.floor((total - kept) / total * 100 + _ROUNDING) / 100
    remedies = [f"set {setting} to at most {most:.2f}"] if most > 0 else []
    remedies += [*_to_discard(asleep, gpus[index]), *_to_stop(asleep, need[index] + kept - total)]
    return (
        f"{gpu_text(index)} has {total:.1f} GB, but {model.id} needs {need[index]:.1f} GB of free memory to load "
        f"(gpu_memory_utilization {need[index] / total:g}){_beside(asleep, gpus[index])}: "
        + (", or ".join(remedies) or "disable some of them")
    )


def _tightest(
    inventory: Inventory, model: Model, need: typing.Mapping[Name, float], gpus: typing.Mapping[Name, hardware.Gpu]
) -> Name | None:
    """The GPU that the greatest part is missing of when a model needs so much of each; None where all is well."""

    def over(index: Name) -> float:
        return need[index] + _kept_gb(_sleepers(inventory, model, index), gpus[index]) - gpus[index].total_gb

    short = [index for index in sorted(need, key=str) if over(index) > _ROUNDING]
    return max(short, key=lambda index: over(index) / gpus[index].total_gb, default=None)


def _sleepers(inventory: Inventory, model: Model, index: Name) -> list[Model]:
    """The models that may sleep on a GPU while this one uses it."""
    return [
        other
        for other in inventory.enabled
        if other.id != model.id and index in other.gpus and other.sleep_level != "stop"
    ]


def _kept_gb(asleep: typing.Sequence[Model], gpu: hardware.Gpu) -> float:
    """What sleepers keep on a GPU; of memory that is the RAM also the weights of those at level 1."""
    return memory.SLEEPER_GB * len(asleep) + _weights_gb(_holding(asleep, gpu))


def _holding(asleep: typing.Sequence[Model], gpu: hardware.Gpu) -> list[Model]:
    """The sleepers whose weights stay in the GPU's memory, which is the RAM."""
    return [model for model in asleep if gpu.unified and model.sleep_level == "1"]


def _to_discard(asleep: typing.Sequence[Model], gpu: hardware.Gpu) -> list[str]:
    """The remedy that sleepers give the weights up that they hold in the GPU's memory."""
    holding = _holding(asleep, gpu)
    return [f"set sleep_level of {in_words([model.id for model in holding])} to 2"] if holding else []


def _beside(asleep: typing.Sequence[Model], gpu: hardware.Gpu) -> str:
    if not asleep:
        return ""
    if _holding(asleep, gpu):
        names, keep = in_words([model.id for model in asleep]), "keep" if asleep[1:] else "keeps"
        return f", and {names} {keep} about {_kept_gb(asleep, gpu):.1f} GB while asleep, including weights at level 1"
    keep = "keep about {:.1f} GB each" if asleep[1:] else "keeps about {:.1f} GB"
    return f", and {in_words([model.id for model in asleep])} {keep.format(memory.SLEEPER_GB)} while asleep"


def _to_stop(asleep: typing.Sequence[Model], over: float) -> list[str]:
    """The remedy that so many sleepers end instead as make up for what is missing; none where all wouldn't do."""
    count = math.ceil(over / memory.SLEEPER_GB - _ROUNDING)
    # The inventory's last first, and its defaults after all others: they are what is asked for most.
    order = sorted(asleep, key=lambda model: model.startup_mode != "active")[::-1]
    return (
        [f"set sleep_level of {in_words([model.id for model in order[:count]])} to stop"]
        if 0 < count <= len(order)
        else []
    )
