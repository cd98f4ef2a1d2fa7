# SPDX-License-Identifier: MIT
"""docs/sizing.md: what memory homeGPT's models take, worked out by the engine itself.

Every figure comes from the inventory that is shipped, by way of the functions that decide on a host: `capacity.lint`,
which `python3 -m switching lint` and `vllm_capacity_info` print, and `make_plan`, which chooses the sleep level.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import (
    capacity,
    costs,
    hardware,
    inventory,
    memory,
    plan,
)

from tests.consistency import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/sizing.md"
VARIABLES = ROOT / "inventory/homegpt/group_vars/vllm_hosts.yml"

# What two equal GPUs of a host may have, in GiB, and a card that has it.
GPUS = {24: "RTX 3090, RTX 4090", 32: "RTX 5090", 48: "L40S, RTX 6000 Ada", 80: "A100, H100"}
BUDGETS = (48.0, 64.0, 96.0, 128.0, 192.0)


def declared(**changed: dict[str, Any]) -> inventory.Inventory:
    """Return the shipped inventory, with keys of some models (by id, with _ for - and .) or of the host changed."""
    variables = yaml.safe_load(VARIABLES.read_text(encoding="utf-8"))
    for model in variables["vllm_models"]:
        model.update(changed.pop(model["id"].replace("-", "_").replace(".", "_"), {}))
    variables["vllm_switching"].update(changed.pop("switching", {}))
    assert not changed
    return inventory.parse(variables["vllm_models"], variables["vllm_switching"])


def pair(gib: int) -> dict[int, hardware.Gpu]:
    """Return two GPUs of so many GiB that nobody uses."""
    total = gib * 1024**3 / 1e9
    return {index: hardware.Gpu(index, total, total) for index in (0, 1)}


def gb(value: float | None) -> str:
    """Return a size as the page shows it."""
    return "" if value is None else f"{value:.1f} GB"


def models() -> str:
    """What each model takes."""
    rows = []
    for model in declared().models:
        share = None if model.gpu_memory_gb is None else model.gpu_memory_gb / len(model.gpus)
        copying = None if model.weights_gb is None else model.weights_gb * (1 + plan.LEVEL_1_TRANSIENT_SHARE)
        rows.append(
            [
                f"`{model.id}`",
                f"`{model.startup_mode}`",
                ", ".join(map(str, model.gpus)),
                gb(model.gpu_memory_gb),
                gb(share),
                gb(model.weights_gb),
                gb(copying),
            ]
        )
    head = [
        "model",
        "`startup_mode`",
        "GPUs",
        "`gpu_memory_gb`",
        "of each GPU",
        "`weights_gb`",
        "RAM to be free for level 1",
    ]
    return blocks.table(head, rows)


def gpus() -> str:
    """Whether the models fit two GPUs of each size."""
    rows = []
    for gib, cards in GPUS.items():
        has = pair(gib)
        load = max(need for model in declared().enabled for need in memory.load_need(model, has).values())
        three = capacity.lint(declared(), None, has)
        four = capacity.lint(declared(qwen3_next_80b_a3b_thinking={"startup_mode": "sleep"}), None, has)
        rows.append(
            [f"2 x {gib} GiB ({cards})", gb(has[0].total_gb), gb(load)]
            + ["yes" if not said else f"no, {len(said)} problem{'s' * (len(said) > 1)}" for said in (three, four)]
        )
    head = ["GPUs", "one has", "free for vLLM to load", "the three enabled models fit", "all four fit"]
    return blocks.table(head, rows)


def said(lines: Iterable[str]) -> str:
    """Return lines as they are printed, one to a problem."""
    return "```text\n" + "".join(f"problem: {line}\n" for line in lines) + "```\n"


def too_small() -> str:
    """What is said on the smallest of those GPUs."""
    return said(capacity.lint(declared(), None, pair(min(GPUS))))


def insisted() -> str:
    """What is said when all are to sleep at level 1 on a host with too little RAM."""
    level = {"sleep_level": 1}
    return said(capacity.lint(declared(qwen3_vl_30b_a3b=level, qwen3_vl_32b=level, gpt_oss_20b=level), 96.0, pair(32)))


def sleeps(budget: float) -> dict[str, int | None]:
    """The level at which each model is put to sleep, in a round of switches after a bootstrap."""
    models = declared(switching={"available_ram_gb": budget})
    seen = {model.id: plan.Observation(plan.STOPPED) for model in models.models}
    levels: dict[str, int | None] = {}

    def go(model: inventory.Model, wanted: str) -> None:
        nonlocal seen
        made = plan.make_plan(models, seen, model, wanted)
        levels.update({step.model: step.level for step in made.steps if step.action == plan.SLEEP})
        seen = plan.predict(seen, made)

    default = [model for model in models.enabled if model.startup_mode == "active"]
    for model in models.enabled:
        go(model, plan.SLEEPING)
    for model in (*default, *(m for m in models.enabled if m not in default), *default):
        go(model, plan.ACTIVE)
    return levels


def levels() -> str:
    """The levels by budget."""
    ids = [model.id for model in declared().enabled]
    rows = [[gb(budget), *(str(sleeps(budget)[name]) for name in ids)] for budget in BUDGETS]
    return blocks.table(["`available_ram_gb`", *(f"`{name}`" for name in ids)], rows)


def constants() -> str:
    """The figures that the engine reckons with."""
    return blocks.table(
        ["what", "figure"],
        [
            ["GPU memory that a sleeping server keeps on each of its GPUs", gb(memory.SLEEPER_GB)],
            [
                "share of a GPU that vLLM takes without `gpu_memory_utilization`",
                str(memory.DEFAULT_GPU_MEMORY_UTILIZATION),
            ],
            ["`available_ram_gb` below which `auto` is always level 2", gb(costs.LEVEL_1_MINIMUM_RAM_GB)],
            ["more RAM than the weights, free while they are copied", f"{plan.LEVEL_1_TRANSIENT_SHARE:.0%}"],
        ],
    )


def rendered() -> dict[str, str]:
    """Return the blocks of the page."""
    return {
        "constants": constants(),
        "models": models(),
        "gpus": gpus(),
        "too-small": too_small(),
        "levels": levels(),
        "insisted": insisted(),
    }
