# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What memory a model needs on each of its GPUs to load and to wake, what is remembered of that, and what is short.

Sizes are in GB, of 1e9 bytes.
"""

from __future__ import annotations

import contextlib
import re
import typing

from . import hardware, state_files
from .errors import NoMemory
from .gpus import Gpu as Name
from .gpus import gpu_text, is_amd
from .inventory import Model
from .texts import in_words

# What a vLLM server that sleeps keeps on each of its GPUs: CUDA's context, NCCL, captured graphs. Nobody guarantees a
# figure. Users report from 0.5 to 1.3 GiB: 1.14 GB on each 3090 (vLLM issue 32714), 1.27 GiB on an H100 (llm-d
# fast-model-actuation issue 746).
SLEEPER_GB = 1.0
# vLLM's own, in config/cache.py of 0.32; it was 0.9 in older ones.
DEFAULT_GPU_MEMORY_UTILIZATION = 0.92
# nvidia-smi counts the little that drivers reserve a bit differently from CUDA.
TOLERANCE_GB = 0.25
# Whoever holds less of a GPU is not why something doesn't fit.
HOLDER_GB = 1.0
_UTILIZATION_FLAG = re.compile(r"--gpu[-_]memory[-_]utilization[=\s]+(\S+)")
# GB by the GPU's name in the model's C(gpus).
Need = typing.Dict[Name, float]


def remembered(stack_dir: str) -> dict[str, Need]:
    """What each model is known to need on each GPU when it wakes; nothing where no record can be read."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, OverflowError):
        return {
            model: {gpu_name(name): hardware.finite(gb) for name, gb in need.items()}
            for model, need in state_files.models(stack_dir, state_files.MEMORY).items()
        }
    return {}


def gpu_name(text: str) -> Name:
    """The name of a GPU out of a record."""
    return text if text.startswith("GPU-") else int(text)


def remembered_of(stack_dir: str, model_id: str) -> str:
    """Which start of a model's server is known to need what is remembered; empty where nobody can tell."""
    return str(_starts(stack_dir).get(model_id) or "")


def _starts(stack_dir: str) -> dict[str, typing.Any]:
    found = state_files.read(stack_dir, state_files.MEMORY).get("starts")
    return found if isinstance(found, dict) else {}


def remembered_shared(stack_dir: str) -> bool:
    """Whether it is known that the host's GPUs have no memory but its RAM."""
    return state_files.read(stack_dir, state_files.MEMORY).get("shared") is True


def remember(
    stack_dir: str,
    model_id: str,
    need: typing.Mapping[Name, float],
    start: str = "",
    gpus: typing.Mapping[int, hardware.Gpu] | None = None,
) -> None:
    """Record what a start of a model needs on each GPU, unless the record says so. The caller holds the host's lock.

    And whether the C(gpus) have no memory but the host's RAM, where they tell.

    Raises OSError when the record can't be read or written; what it said before is then still there.
    """
    with state_files.changing:
        state_files.read_or_raise(stack_dir, state_files.MEMORY)  # what can't be read is not replaced
        saved, starts = remembered(stack_dir), _starts(stack_dir)
        known = remembered_shared(stack_dir)
        told = hardware.shared(gpus)
        now = known if told is None else told
        if saved.get(model_id) != need or remembered_of(stack_dir, model_id) != start or now != known:
            starts = {**starts, model_id: start}
            content = {"models": {**saved, model_id: dict(need)}, "starts": starts}
            state_files.write(stack_dir, state_files.MEMORY, {**content, "shared": True} if now else content)


def free_before_sleep(stack_dir: str, model: Model) -> Need | None:
    """The free memory of a model's GPUs, for what its sleep frees."""
    gpus = hardware.read_gpus()
    if hardware.shared(gpus):
        with contextlib.suppress(OSError):  # then it is seen again
            remember(stack_dir, model.id, {}, gpus=gpus)
    found = hardware.named(gpus or {}, model.gpus)
    return {called: gpu.free_gb for called, gpu in found.items()} or None


def load_need(model: Model, gpus: typing.Mapping[int, hardware.Gpu] | None) -> Need:
    """What vLLM insists on finding free, on each GPU of the model that nvidia-smi knows, when it loads the model.

    Nothing for a server that is not vLLM, which may load as it likes.
    """
    return shares(model, hardware.named(gpus or {}, model.gpus))


def shares(model: Model, gpus: typing.Mapping[Name, hardware.Gpu]) -> Need:
    """What of each of these GPUs a model takes, by the share that its vLLM is given."""
    if model.state_request is not None:
        return {}
    share = _utilization(model)
    return {name: share * gpus[name].total_gb for name in model.gpus if name in gpus}


def wake_need(model: Model, level: int | None, gpus: typing.Mapping[int, hardware.Gpu] | None) -> Need:
    """What a model takes when it wakes, where nobody has measured what its sleep freed, of memory that is the RAM.

    At level 1 its weights are there already. Nothing for GPUs with memory of their own: a wake that fails there harms
    nobody else.
    """
    asleep = SLEEPER_GB + (model.weights_gb or 0.0) / len(model.gpus) if level != 2 else SLEEPER_GB
    need = load_need(model, gpus)
    return {name: max(0.0, gb - asleep) for name, gb in need.items()} if hardware.shared(gpus) else {}


def shortage(
    model: Model,
    need: typing.Mapping[Name, float],
    gpus: typing.Mapping[int, hardware.Gpu] | None,
    holders: typing.Callable[[Name], typing.Sequence[hardware.Holder]] = hardware.read_holders,
) -> str:
    """What is wrong when a GPU has less free than the model needs, and who holds it; "" when all is well.

    C(need) is in GB by the name of the GPU; a GPU that C(gpus) doesn't know is taken to have enough.
    """
    told = []
    for name, gpu in hardware.named(gpus or {}, sorted(need, key=str)).items():
        wanted = need[name]
        if gpu.free_gb >= wanted - TOLERANCE_GB:
            continue
        holding = [holder for holder in holders(name) if holder.used_gb >= HOLDER_GB]
        who = in_words([f"process {holder.pid} ({holder.name}) holds {holder.used_gb:.1f} GB" for holder in holding])
        if not holding and gpu.unified:
            remedy = (
                "end other processes that use RAM (ps aux --sort=-rss), or give the model less memory "
                "(gpu_memory_utilization)"
            )
        elif not holding and is_amd(gpu.uuid):
            remedy = "the process that holds it is unknown; as root, `fuser -v /dev/kfd` lists those that use a GPU"
        elif not holding:
            remedy = (
                "nvidia-smi lists no process that holds it; as root, `fuser -v /dev/nvidia*` lists those that use a GPU"
            )
        else:
            remedy = who
        what = f"{gpu_text(name)}, which shares the host's RAM," if gpu.unified else gpu_text(name)
        told.append(f"{what} has {gpu.free_gb:.1f} GB free and {model.id} needs {wanted:.1f} GB: {remedy}")
    return ". ".join(told)


def await_free(
    model: Model,
    need: Need,
    gpus: typing.Mapping[int, hardware.Gpu] | None,
    wait: typing.Callable[[typing.Callable[[], bool], float], bool],
    seconds: float,
) -> None:
    """Raise NoMemory if the GPUs have less free than the model needs, also after so many C(seconds)."""
    short = ""

    def enough() -> bool:
        nonlocal short, gpus
        short = shortage(model, need, gpus or {})
        gpus = hardware.read_gpus() if short else gpus
        return not short

    # Who has just been stopped may still be giving its memory back.
    if gpus and not wait(enough, seconds):
        raise NoMemory(short)


def divided_problem(model: Model, gpus: typing.Mapping[int, hardware.Gpu] | None) -> str:
    """Which GPU the model can't use as a whole, since it is divided; "" where there is none."""
    lost = [gpu_text(name) for name, gpu in hardware.named(gpus or {}, model.gpus).items() if gpu.divided]
    if not lost:
        return ""
    return (
        f"{model.id} is configured to use all of {in_words(lost)}, which is divided into MIG instances: set its gpus "
        "to one of these (nvidia-smi -L)"
    )


def _utilization(model: Model) -> float:
    """The share of each GPU that its vLLM takes."""
    flag = _UTILIZATION_FLAG.search(" ".join(model.start_command))
    given = flag.group(1) if flag else model.args.get("gpu_memory_utilization")
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        share = hardware.finite(given)
        if 0 < share <= 1 and not isinstance(given, bool):
            return share
    return DEFAULT_GPU_MEMORY_UTILIZATION  # or it is something that vLLM refuses
