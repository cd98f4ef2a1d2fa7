# SPDX-License-Identifier: MIT
"""The medians that the README shows beside the limits: what `bench/run.py --write` has measured, and on which machine.

They are kept in medians.json; `python -m tests.consistency.write` makes the README's table of them.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

FILE = Path(__file__).with_name("medians.json")


class Measured(Protocol):
    """What is kept of a figure."""

    name: str
    limit: float
    unit: str
    samples: list[float]


def machine() -> dict[str, Any]:
    """What this machine is: cores that may be used, memory in GB, model of the processor."""
    memory = Path("/proc/meminfo").read_text(encoding="ascii")
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    kilobytes = re.search(r"^MemTotal: +(\d+)", memory, re.MULTILINE)
    named = re.search(r"^(?:model name|Model|Hardware)\s*: (.+)$", processor, re.MULTILINE)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(kilobytes[1]) * 1024 / 1e9) if kilobytes else None,
        "processor": named[1].strip() if named else os.uname().machine,
    }


def read() -> dict[str, Any]:
    """What was written last."""
    known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return known


def write(figures: Iterable[Measured]) -> None:
    """Keep these; what else is known of the same machine stays, with its own date."""
    here = machine()
    known = read() if FILE.exists() else {}
    kept = known["figures"] if known.get("machine") == here else {}
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    for figure in figures:
        kept[figure.name] = {
            "median": round(statistics.median(figure.samples), 3),
            "limit": figure.limit,
            "unit": figure.unit.strip(),
            "samples": len(figure.samples),
            "date": today,
        }
    FILE.write_text(json.dumps({"machine": here, "figures": kept}, indent=1) + "\n", encoding="utf-8")
