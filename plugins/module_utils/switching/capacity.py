# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What memory a host has, what its models take, and whether that goes together. Sizes are in GB, of 1e9 bytes.

GPUs are known by nvidia-smi, and AMD's by the kernel's driver (C(devices)). Where these don't tell (another vendor's
GPU, none at all) nothing is said about GPUs, and nothing is refused because of them. Where CPU and GPU share their
memory (DGX Spark, Jetson) nvidia-smi answers C([N/A]), for the total and for what is free; what is reckoned with is
then the RAM, as vLLM does (C(MemorySnapshot.measure) of 0.32).
"""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import typing

from . import devices, records
from .gpus import Gpu as Name
from .gpus import gpu_text, is_amd, is_mig
from .inventory import Inventory, Model

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
# It takes up to two seconds where no driver is kept loaded; at a GPU that has failed it hangs for ever.
NVIDIA_SMI_TIMEOUT_SECONDS = 10.0

_GPUS = "--query-gpu=index,uuid,memory.total,memory.free,mig.mode.current"
_LEAST_AMD_GB = 8.0
_UTILIZATION_FLAG = re.compile(r"--gpu[-_]memory[-_]utilization[=\s]+(\S+)")
# For sums of numbers such as 0.1, not for what was measured.
_ROUNDING = 1e-6

_NAME = "memory"

# GB by the GPU's name in the model's C(gpus).
Need = typing.Dict[Name, float]


class Gpu(typing.NamedTuple):
    """One GPU of the host. C(divided): into MIG instances, so that nobody can use it as a whole. C(unified): it has no
    memory of its own, so that C(total_gb) is the host's RAM and C(free_gb) what of that is available."""

    index: int  # type: ignore[assignment]  # instead of a tuple's method, which nobody misses
    total_gb: float
    free_gb: float
    uuid: str = ""
    divided: bool = False
    unified: bool = False


class Holder(typing.NamedTuple):
    """A process that holds memory of a GPU."""

    pid: int
    name: str
    used_gb: float


def read_gpus(root: str = "/") -> dict[int, Gpu] | None:
    """The host's GPUs by their numbers, without those that don't tell their memory. Never raises.

    None where nvidia-smi can't be asked or tells of none, and the kernel of none of AMD's. Takes as long as nvidia-smi
    does, 10 s at most.
    """
    gpus = {}
    rows = _ask(_GPUS)
    if not rows and not devices.read_nvidia(root):
        return _amd(root) or None
    if rows and all(row[0].isdigit() and _has_none(row) for row in rows):
        total, free = read_ram_total_gb(), read_mem_available_gb()
        if total is None or free is None:
            return None
        return {int(row[0]): Gpu(int(row[0]), total, free, row[1], unified=True) for row in rows}
    for row in rows:
        if len(row) < 4 or not row[0].isdigit():
            return None
        total, free = _gigabytes(row[2]), _gigabytes(row[3])
        if total is not None and free is not None:
            gpus[int(row[0])] = Gpu(int(row[0]), total, free, row[1], row[4:] == ["Enabled"])
    return gpus or None


def _amd(root: str) -> dict[int, Gpu]:
    """AMD's GPUs that have memory enough to be meant: one within a processor may take more than it tells of."""
    return {
        gpu.number: Gpu(gpu.number, gpu.total / 1e9, (gpu.total - gpu.used) / 1e9, gpu.uuid)
        for gpu in devices.read_amd(root)
        if gpu.total is not None and gpu.used is not None and gpu.total >= _LEAST_AMD_GB * 1e9
    }


def _has_none(row: typing.Sequence[str]) -> bool:
    """Whether a GPU has no memory of its own. One that has failed, and one that is divided, says so in other words."""
    none = ("[N/A]", "N/A", "[Not Supported]")
    return len(row) == 5 and row[2] in none and row[3] in none and row[4] != "Enabled"


def shared(gpus: typing.Mapping[int, Gpu] | None) -> bool | None:
    """Whether the GPUs have no memory but the host's RAM; None where it is not known."""
    return any(gpu.unified for gpu in gpus.values()) if gpus else None


def named(gpus: typing.Mapping[int, Gpu], names: typing.Iterable[Name]) -> dict[Name, Gpu]:
    """Those of the GPUs that a model's C(gpus) call so, by number or by UUID. MIG instances are none of them."""
    known: dict[Name, Gpu] = {gpu.uuid: gpu for gpu in gpus.values() if gpu.uuid}
    known.update(gpus.items())
    return {name: known[name] for name in names if name in known}


def read_holders(name: Name, root: str = "/") -> list[Holder]:
    """The processes that hold memory of a GPU, the biggest first; none where nobody tells. Never raises."""
    rows = _ask(_GPUS)
    uuids = [row[1] for row in rows if row[1:] and str(name) in row[:2]]
    holders = []
    if not rows and not devices.read_nvidia(root):
        ids = [gpu.kernel_id for gpu in devices.read_amd(root) if name in (gpu.number, gpu.uuid)]
        for gpu, pid, held in devices.read_amd_processes(root):
            if gpu in ids:
                holders.append(Holder(pid, devices.process_name(pid, root), held / 1e9))
    for row in _processes():
        used = _gigabytes(row[-1])
        if row[0] in uuids and used is not None:
            # A name may have commas.
            holders.append(Holder(int(row[1]), ", ".join(row[2:-1]), used))
    return sorted(holders, key=lambda holder: -holder.used_gb)


def read_used(root: str = "/") -> dict[int, float | None]:
    """The memory that processes hold, on all GPUs together, by their ids; those that are told of. Never raises.

    None for a process of which nvidia-smi doesn't tell everywhere.
    """
    found: dict[int, float | None] = {}
    if not devices.read_nvidia(root):
        for _gpu, pid, held in devices.read_amd_processes(root):
            found[pid] = (found.get(pid) or 0.0) + held / 1e9
    for row in _processes():
        pid, used = int(row[1]), _gigabytes(row[-1])
        before = found.get(pid, 0.0)
        found[pid] = None if used is None or before is None else before + used
    return found


def _processes() -> list[list[str]]:
    """What nvidia-smi tells of each process on each of its GPUs: the GPU's id, the process's, its name, its memory."""
    rows = _ask("--query-compute-apps=gpu_uuid,pid,process_name,used_memory")
    return [row for row in rows if len(row) >= 4 and row[1].isdigit()]


def read_ram_total_gb() -> float | None:
    """The RAM of this host; None where the kernel doesn't tell."""
    return _meminfo_gb("MemTotal:")


def read_mem_available_gb() -> float | None:
    """The RAM of this host that is free for use; None where the kernel doesn't tell."""
    return _meminfo_gb("MemAvailable:")


def _meminfo_gb(name: str) -> float | None:
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1]) * 1024 / 1e9
    return None


def remembered(stack_dir: str) -> dict[str, Need]:
    """What each model is known to need on each GPU when it wakes; nothing where no record can be read."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, OverflowError):
        return {
            model: {_name(name): _finite(gb) for name, gb in need.items()}
            for model, need in records.models(stack_dir, _NAME).items()
        }
    return {}


def _name(text: str) -> Name:
    return text if text.startswith("GPU-") else int(text)


def remembered_of(stack_dir: str, model_id: str) -> str:
    """Which start of a model's server is known to need what is remembered; empty where nobody can tell."""
    return str(_starts(stack_dir).get(model_id) or "")


def _starts(stack_dir: str) -> dict[str, typing.Any]:
    found = records.read(stack_dir, _NAME).get("starts")
    return found if isinstance(found, dict) else {}


def remembered_shared(stack_dir: str) -> bool:
    """Whether it is known that the host's GPUs have no memory but its RAM."""
    return records.read(stack_dir, _NAME).get("shared") is True


def remember(
    stack_dir: str,
    model_id: str,
    need: typing.Mapping[Name, float],
    start: str = "",
    gpus: typing.Mapping[int, Gpu] | None = None,
) -> None:
    """Record what a start of a model needs on each GPU, unless the record says so. The caller holds the host's lock.

    And whether the C(gpus) have no memory but the host's RAM, where they tell.

    Raises OSError when the record can't be written; what it said before is then still there.
    """
    with records.changing:
        saved, starts = remembered(stack_dir), _starts(stack_dir)
        known = remembered_shared(stack_dir)
        told = shared(gpus)
        now = known if told is None else told
        if saved.get(model_id) != need or remembered_of(stack_dir, model_id) != start or now != known:
            starts = {**starts, model_id: start}
            content = {"models": {**saved, model_id: dict(need)}, "starts": starts}
            records.write(stack_dir, _NAME, {**content, "shared": True} if now else content)


def load_need(model: Model, gpus: typing.Mapping[int, Gpu] | None) -> Need:
    """What vLLM insists on finding free, on each GPU of the model that nvidia-smi knows, when it loads the model.

    Nothing for a server that is not vLLM, which may load as it likes.
    """
    return _shares(model, named(gpus or {}, model.gpus))


def _shares(model: Model, gpus: typing.Mapping[Name, Gpu]) -> Need:
    if model.state_request is not None:
        return {}
    share = _utilization(model)
    return {name: share * gpus[name].total_gb for name in model.gpus if name in gpus}


def wake_need(model: Model, level: int | None, gpus: typing.Mapping[int, Gpu] | None) -> Need:
    """What a model takes when it wakes, where nobody has measured what its sleep freed, of memory that is the RAM.

    At level 1 its weights are there already. Nothing for GPUs with memory of their own: a wake that fails there harms
    nobody else.
    """
    asleep = SLEEPER_GB + (model.weights_gb or 0.0) / len(model.gpus) if level != 2 else SLEEPER_GB
    need = load_need(model, gpus)
    return {name: max(0.0, gb - asleep) for name, gb in need.items()} if shared(gpus) else {}


def shortage(
    model: Model,
    need: typing.Mapping[Name, float],
    gpus: typing.Mapping[int, Gpu] | None,
    holders: typing.Callable[[Name], typing.Sequence[Holder]] = read_holders,
) -> str:
    """What is wrong when a GPU has less free than the model needs, and who holds it; "" when all is well.

    C(need) is in GB by the name of the GPU; a GPU that C(gpus) doesn't know is taken to have enough.
    """
    told = []
    for name, gpu in named(gpus or {}, sorted(need, key=str)).items():
        wanted = need[name]
        if gpu.free_gb >= wanted - TOLERANCE_GB:
            continue
        holding = [holder for holder in holders(name) if holder.used_gb >= HOLDER_GB]
        who = _and([f"process {holder.pid} ({holder.name}) holds {holder.used_gb:.1f} GB" for holder in holding])
        if not holding and gpu.unified:
            remedy = "end what else takes RAM (ps aux --sort=-rss), or give the model less (gpu_memory_utilization)"
        elif not holding and is_amd(gpu.uuid):
            remedy = "no process is told to hold it; as root, `fuser -v /dev/kfd` names those that use a GPU"
        elif not holding:
            remedy = (
                "nvidia-smi names no process that holds it; as root, `fuser -v /dev/nvidia*` names those that use a GPU"
            )
        else:
            remedy = who
        what = f"{gpu_text(name)}, which shares the host's RAM," if gpu.unified else gpu_text(name)
        told.append(f"{what} has {gpu.free_gb:.1f} GB free and {model.id} needs {wanted:.1f} GB: {remedy}")
    return ". ".join(told)


def divided_problem(model: Model, gpus: typing.Mapping[int, Gpu] | None) -> str:
    """Which GPU the model can't use as a whole, since it is divided; "" where there is none."""
    lost = [gpu_text(name) for name, gpu in named(gpus or {}, model.gpus).items() if gpu.divided]
    if not lost:
        return ""
    return (
        f"{model.id} is to use {_and(lost)} as a whole, and that is divided into MIG instances: name one of those "
        "(nvidia-smi -L) in its gpus"
    )


def lint(inventory: Inventory, ram_total_gb: float | None, gpus: typing.Mapping[int, Gpu] | None) -> list[str]:
    """What of an inventory can't work on a host with so much memory, each with its remedy. Does no I/O.

    None as C(ram_total_gb) or C(gpus) means that it is not known; nothing is said about it then.
    """
    problems = []
    if gpus:
        known = named(gpus, [name for model in inventory.enabled for name in model.gpus])
        for model in inventory.enabled:
            problems += _absent(model, gpus)
            problem = divided_problem(model, gpus) or _awake_problem(inventory, model, known)
            problem = problem or _load_problem(inventory, model, known)
            problems += [problem] if problem else []
    problem = _ram_problem(inventory, ram_total_gb)
    return problems + ([problem] if problem else [])


def _absent(model: Model, gpus: typing.Mapping[int, Gpu]) -> list[str]:
    """The model's GPUs that the host has not, as a problem."""
    # nvidia-smi numbers GPUs without gaps: a missing one is there and doesn't tell its memory.
    there = range(max(gpus) + 1)
    uuids = [gpu.uuid for gpu in gpus.values() if gpu.uuid]
    beginning = f"{model.id} is to use"
    numbers = [str(name) for name in model.gpus if isinstance(name, int) and name not in there]
    if numbers:
        return [f"{beginning} GPU {_and(numbers)}, and the host has {_and(list(map(str, there)))}: correct its gpus"]
    lost = [name for name in model.gpus if isinstance(name, str) and not is_mig(name) and name not in uuids]
    if lost and len(uuids) == len(there):
        return [f"{beginning} {_and(lost)}, and the host has {_and(uuids)}: correct its gpus"]
    return []


def advice(inventory: Inventory, ram_total_gb: float | None, gpus: typing.Mapping[int, Gpu] | None = None) -> list[str]:
    """What of an inventory works on the host and is still not as meant, each with its remedy. Does no I/O."""
    budget = inventory.switching.available_ram_gb
    insisting = [model.id for model in inventory.enabled if model.sleep_level == "1"]
    if shared(gpus):
        # The budget is of no use there: auto never means level 1.
        return (
            [
                f"the GPU of this host shares its RAM, so that the weights of {_and(insisting)} stay in that memory at "
                "sleep_level 1: set it to auto, 2 or stop"
            ]
            if insisting
            else []
        )
    if ram_total_gb is None or budget <= ram_total_gb:
        return []
    return [
        f"vllm_switching.available_ram_gb is {budget:.1f} and the host has {ram_total_gb:.1f} GB of RAM: set it to "
        "what the host can spare for the weights of sleeping models"
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
    names = _and([model.id for model in crowd])
    beginning = (
        f"the weights of {names} take {size:.1f} GB of RAM when {'they sleep' if crowd[1:] else 'it sleeps'} at level 1"
    )
    remedy = f"put {_and([model.id for model in discarded])} at sleep_level 2"
    if ram_total_gb is not None and size > ram_total_gb + _ROUNDING:
        return f"{beginning}, and the host has {ram_total_gb:.1f} GB: {remedy}"
    return (
        f"{beginning}, and vllm_switching.available_ram_gb allows {budget:.1f} GB: {remedy}, or raise available_ram_gb"
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


def _awake_problem(inventory: Inventory, model: Model, gpus: typing.Mapping[Name, Gpu]) -> str:
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


def _load_problem(inventory: Inventory, model: Model, gpus: typing.Mapping[Name, Gpu]) -> str:
    """The memory that vLLM insists on finding free when it loads, beside what the others keep there asleep."""
    need = _shares(model, gpus)
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
        f"{gpu_text(index)} has {total:.1f} GB and {model.id} loads only where {need[index]:.1f} GB of it are free "
        f"(gpu_memory_utilization {need[index] / total:g}){_beside(asleep, gpus[index])}: "
        + (", or ".join(remedies) or "disable some of them")
    )


def _tightest(
    inventory: Inventory, model: Model, need: typing.Mapping[Name, float], gpus: typing.Mapping[Name, Gpu]
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


def _kept_gb(asleep: typing.Sequence[Model], gpu: Gpu) -> float:
    """What sleepers keep on a GPU; of memory that is the RAM also the weights of those at level 1."""
    return SLEEPER_GB * len(asleep) + _weights_gb(_holding(asleep, gpu))


def _holding(asleep: typing.Sequence[Model], gpu: Gpu) -> list[Model]:
    """The sleepers whose weights stay in the GPU's memory, which is the RAM."""
    return [model for model in asleep if gpu.unified and model.sleep_level == "1"]


def _to_discard(asleep: typing.Sequence[Model], gpu: Gpu) -> list[str]:
    """The remedy that sleepers give the weights up that they hold in the GPU's memory."""
    holding = _holding(asleep, gpu)
    return [f"put {_and([model.id for model in holding])} at sleep_level 2"] if holding else []


def _beside(asleep: typing.Sequence[Model], gpu: Gpu) -> str:
    if not asleep:
        return ""
    if _holding(asleep, gpu):
        names, keep = _and([model.id for model in asleep]), "keep" if asleep[1:] else "keeps"
        return f", while {names}, asleep, {keep} about {_kept_gb(asleep, gpu):.1f} GB, weights at level 1 included"
    keep = "keep about {:.1f} GB each" if asleep[1:] else "keeps about {:.1f} GB"
    return f", while {_and([model.id for model in asleep])}, asleep, {keep.format(SLEEPER_GB)}"


def _to_stop(asleep: typing.Sequence[Model], over: float) -> list[str]:
    """The remedy that so many sleepers end instead as make up for what is missing; none where all wouldn't do."""
    count = math.ceil(over / SLEEPER_GB - _ROUNDING)
    # The inventory's last first, and its defaults after all others: they are what is asked for most.
    order = sorted(asleep, key=lambda model: model.startup_mode != "active")[::-1]
    return [f"put {_and([model.id for model in order[:count]])} at sleep_level stop"] if 0 < count <= len(order) else []


def _utilization(model: Model) -> float:
    """The share of each GPU that its vLLM takes."""
    flag = _UTILIZATION_FLAG.search(" ".join(model.start_command))
    given = flag.group(1) if flag else model.args.get("gpu_memory_utilization")
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        share = _finite(given)
        if 0 < share <= 1 and not isinstance(given, bool):
            return share
    return DEFAULT_GPU_MEMORY_UTILIZATION  # or it is something that vLLM refuses


def _finite(value: typing.Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _and(words: typing.Sequence[str]) -> str:
    """The words as a list in a sentence."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _gigabytes(mebibytes: str) -> float | None:
    """What nvidia-smi says in MiB; None for its [N/A] and the like."""
    try:
        return _finite(mebibytes) * 1024 * 1024 / 1e9
    except ValueError:
        return None


def _ask(query: str) -> list[list[str]]:
    """The rows of nvidia-smi's answer, none where there is none. Each has at least one cell."""
    # The engine knows no AnsibleModule whose run_command it could use.
    # pylint: disable=ansible-bad-function
    try:
        process = subprocess.Popen(
            ("nvidia-smi", query, "--format=csv,noheader,nounits"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
    except OSError:
        return []
    try:
        output = process.communicate(timeout=NVIDIA_SMI_TIMEOUT_SECONDS)[0]
    except subprocess.TimeoutExpired:
        # Not awaited: what hangs in the driver can't be killed.
        process.kill()
        return []
    if process.returncode != 0:
        return []
    return [[cell.strip() for cell in line.split(",")] for line in output.splitlines() if line.strip()]
