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
# What each version of vLLM does

A switch goes by what a server can do, and that has changed from version to version. This page is what `make
vllm-versions` saw on real servers of the versions below, builds for the CPU with a tiny model each. A CPU's server
pauses its scheduler and answers every call truthfully, but frees no memory. What a GPU adds to that is not seen here:
there a request that meets memory which sleeps ends the engine, and level 2 discards the weights.

Each version has to pass the contract, which is what a switch takes for granted of the calls that it makes; the stand-in
server that the other tests use, told to be that version, has to pass the same cases. Then `switch.yml` switches between
two servers of the version while clients read streams from them, with a reload of the weights that fails once, and after
a switch that was killed half way through a wake.
"""
PARTS = ("contract", "switches")
TOLD = """
## What was seen

Each question is asked of a server that is awake and has nothing to do, `VLLM_SERVER_DEV_MODE=1` set. The stand-in gives
the same answers.

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
    text += blocks.table(["vLLM", *PARTS, "tried on"], rows) + TOLD
    rows = []
    for question in next(iter(known.values()))["seen"] if known else []:
        answers = {version: seen["seen"].get(question, "-") for version, seen in known.items()}
        for number, (versions, answer) in enumerate(spans(answers)):
            rows.append([question if number == 0 else "", versions, answer])
    return text + blocks.table(["asked", "vLLM", "seen"], rows)
