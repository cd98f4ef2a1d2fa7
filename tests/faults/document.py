# SPDX-License-Identifier: MIT
"""docs/failure-modes.md, from what the matrix found. Without times, so that it is the same from run to run."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .matrix import Outcome

LONGEST_CAUSE = 180
HEAD = """\
# What may go wrong with a switch

A switch is a transaction. It looks at the servers, makes a plan, does one step after the other and proves each; the
last proof is that the new model answers a fixed prompt as it did when it was known good. A step that fails is recovered
where that can be done within the switch. Where it can't, the model that was active before is brought back, and the
switch fails with a message that names the step, the cause, what the host is left with, and what to do. Never are two
models awake on one GPU. After a failure, also after a switch that was killed, the next switch starts from what the
servers are then, so it needs no clean-up by hand unless the message says so.

This page is what `python -m tests.faults.matrix` (a part of `make faults`) found: it switches from a model `a`, active,
to a model `b`, asleep at level 1 unless the heading says otherwise, on stand-in servers that share one GPU, and lets
one thing go wrong in each of {count} cells. After every one of them the next switch, without the fault, succeeded. A
run prints where its findings differ from this page.

## What is tried

Each of these is named in the `escalation` of the steps that belong to it, in the result of the module and of
`python3 -m switching switch --json`. `vllm_switching.escalation` lists those that are allowed, by default all:
`[stop, retry, restart, roll_back]`. What is not listed is not tried.

{rungs}
A step that must not be recovered fails the switch at once: a drain at its deadline with `drain_timeout_action: fail`,
or GPU memory that another process holds. In the tables, *once* is a fault of one call, *until a restart* one of all
such calls of that process, and *for ever* one that a restart does not end either.
"""
# What each is, and how long it takes at most.
RUNGS = {
    "stop": (
        "The model that has to make room can't be drained or put to sleep, so its server is stopped. It loads again "
        "when it is next wanted.",
        "`command_timeout_seconds` where it has a `stop_command`, then twice `stop_timeout_seconds` (SIGTERM, "
        "SIGKILL), then `request_timeout_seconds` until its port is closed",
    ),
    "retry": (
        "A server that still sleeps after a wake that failed is woken once more. One that answers wrongly after level "
        "2 loads its weights once more.",
        "`request_timeout_seconds` for each call, then `max_retries` x `health_check_interval_seconds` until it is "
        "ready",
    ),
    "restart": (
        "The server that did not wake is stopped, started and waited for.",
        "as `stop`, then `max_retries` x `health_check_interval_seconds`",
    ),
    "roll_back": (
        "The model that was active before is woken or, if it had to be stopped, started.",
        "as a switch to it",
    ),
}
COLUMNS = ("what happens", "the host is left with", "tried", "what is told", "what to do")
LEFT = {
    "b active": "b active",
    "a active again": "a active, as before",
    "error state": "what the message says",
    "cut off": "whatever it was then; the next switch recovers it",
    "": "none of the allowed",
}
SUFFIXES = ("once", "until a restart", "for ever")


@dataclass(frozen=True)
class Row:
    """One cell as a reader needs it."""

    step: str
    what: str
    variant: str
    left: str
    note: str
    rungs: tuple[str, ...]
    cause: str
    remedy: str

    @classmethod
    def of(cls, outcome: Outcome) -> Row:
        """From what the matrix found."""
        cell, rungs = outcome.cell, tuple(outcome.rungs)
        return cls(cell.step, cell.what, cell.variant, outcome.left, outcome.note, rungs, outcome.cause, outcome.remedy)

    @property
    def found(self) -> tuple[str, ...]:
        """The other columns: rows that have them in common are one."""
        left = LEFT[self.left] + (f": {self.note}" if self.left == "error state" else "")
        tried = ", ".join(f"`{rung}`" for rung in ("stop", "retry", "restart", "roll_back") if rung in self.rungs)
        return (left, tried or "-", _cell(self.cause, LONGEST_CAUSE) or "-", _cell(self.remedy) or "-")


def render(rows: list[Row]) -> str:
    """The page."""
    steps: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        steps[row.step].append(row)
    rungs = list(_head(("rung", "what is done", "how long at most")))
    rungs += [f"| `{rung}` | {what} | {most} |" for rung, (what, most) in RUNGS.items()]
    parts = [HEAD.format(count=len(rows), rungs="\n".join(rungs) + "\n")]
    for step, those in steps.items():
        parts += [f"\n## {step[0].upper()}{step[1:]}\n\n", *_table(those)]
    return "".join(parts)


def _table(rows: list[Row]) -> Iterable[str]:
    grouped: dict[tuple[str, ...], list[Row]] = collections.defaultdict(list)
    for row in rows:
        grouped[row.found].append(row)
    yield "".join(f"{line}\n" for line in _head(COLUMNS))
    for found, those in grouped.items():
        variants: dict[str, list[str]] = collections.defaultdict(list)
        for row in those:
            variants[row.what] += [row.variant] if row.variant in SUFFIXES else []
        # Where the fault is one of one call only, that goes without saying.
        named = [f"{w} ({', '.join(v)})" if v and v != ["once"] else w for w, v in variants.items()]
        yield f"| {'; '.join(named)} | {' | '.join(found)} |\n"


def _head(columns: tuple[str, ...]) -> tuple[str, str]:
    return f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"


def _cell(text: str, longest: int = 400) -> str:
    """A text for one cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= longest else text[: longest - 3] + "..."
