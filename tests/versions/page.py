# SPDX-License-Identifier: MIT
"""docs/vllm-versions.md, from seen.json: what `make vllm-versions` saw when it was last run with --write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.consistency import blocks
from tests.serverlib import REAL_VERSIONS, ROOT

PAGE = ROOT / "docs" / "vllm-versions.md"
FILE = Path(__file__).with_name("seen.json")
HEAD = """\
# Behaviour of vLLM versions

A switch depends on what a server can do, and that differs between versions of vLLM. This page is the result of
`make vllm-versions`, which tests real servers of the versions below. They are CPU builds with a tiny model each. A CPU
server pauses its scheduler and answers every call truthfully, but releases no memory. Effects that need a GPU are not
visible here: on a GPU, a request that accesses sleeping memory ends the engine, and level 2 discards the weights.

Each version has to pass the contract, which is the behaviour that a switch relies on in the calls that it makes. The
stand-in server of the other tests has to pass the same cases when it simulates that version. Then `switch.yml` switches
between two servers of the version while clients read streams from them, also with a reload of the weights that fails
once, and after a switch that was killed in the middle of a wake-up.
"""
PARTS = ("contract", "switches")
TOLD = """
## Observations

Each question is put to a server that is awake and idle, with `VLLM_SERVER_DEV_MODE=1`. The stand-in gives the same
answers.

"""


def read() -> dict[str, dict[str, Any]]:
    """Return what is known of each version."""
    known: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return known


def write(known: dict[str, dict[str, Any]]) -> None:
    """Keep it, and write the page anew."""
    ordered = {version: known[version] for version in REAL_VERSIONS if version in known}
    FILE.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(rendered(ordered), encoding="utf-8")


def spans(answers: dict[str, str]) -> list[tuple[str, str]]:
    """Return which versions gave which answer, neighbours that gave the same one put together."""
    found: list[tuple[list[str], str]] = []
    for version, answer in answers.items():
        if found and found[-1][1] == answer:
            found[-1][0].append(version)
        else:
            found.append(([version], answer))
    return [(" to ".join(dict.fromkeys((those[0], those[-1]))), answer) for those, answer in found]


def rendered(known: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    text = HEAD + "\n"
    rows = []
    for version, seen in known.items():
        counts = [f"{seen[what][0]} passed, {seen[what][1]} failed" for what in PARTS]
        rows.append([version, *counts, seen["date"]])
    text += blocks.table(["vLLM", *PARTS, "tested on"], rows) + TOLD
    rows = []
    for question in next(iter(known.values()))["seen"] if known else []:
        answers = {version: seen["seen"].get(question, "-") for version, seen in known.items()}
        for number, (versions, answer) in enumerate(spans(answers)):
            rows.append([question if number == 0 else "", versions, answer])
    return text + blocks.table(["request", "vLLM", "observed"], rows)
