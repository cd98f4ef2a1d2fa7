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
# Failure modes of a switch

A switch is a transaction. It observes the servers, makes a plan, performs one step after the other and verifies each of
them. In the last verification, the new model has to answer a fixed prompt as it did when it was known to be good. If a
step fails, the switch recovers from the failure itself where that is possible. Otherwise the previously active model is
made active again, and the switch fails with a message that names the step, the cause, the state of the host, and what
to do. Two models are never awake on one GPU. After a failure, and also after a switch that was killed, the next switch
starts from the state of the servers at that time. No manual clean-up is needed unless the message says so.

This page is the result of `python -m tests.faults.matrix` (a part of `make faults`). It switches from a model `a`,
which is active, to a model `b`, which sleeps at level 1 unless the heading says otherwise. Both run on stand-in servers
that share one GPU. In each of {count} cells, one fault is injected. After each of them, the next switch, without the
fault, succeeded. A run prints where its findings differ from this page.

## Escalation

The rungs that were tried are listed in `escalation` of the steps in the result of the module and of
`python3 -m switching switch --json`. `vllm_switching.escalation` lists the rungs that are allowed, by default all of
them: `[stop, retry, restart, roll_back]`. A rung that is not listed is not tried.

{rungs}
Some steps fail the switch at once, without escalation: a drain that reaches its deadline with
`drain_timeout_action: fail`, GPU memory that another process holds, and a server that supports none of the calls that
show that it is ready. In the tables, *once* is a fault of one call, *until a restart* is a fault of all such calls of
that process, and *for ever* is a fault that a restart does not end either.
"""
# What each is, and how long it takes at most.
RUNGS = {
    "stop": (
        "The model that has to make room can't be drained or put to sleep, or keeps its memory while it sleeps, so its "
        "server is stopped. It is loaded again when it is next needed.",
        "`command_timeout_seconds` if it has a `stop_command`, then twice `stop_timeout_seconds` (SIGTERM, "
        "SIGKILL), then `request_timeout_seconds` until its port is closed",
    ),
    "retry": (
        "A server that still sleeps after a failed wake-up is woken once more. A server that answers wrongly after "
        "level 2 reloads its weights once more.",
        "`request_timeout_seconds` for each call, then `max_retries` x `health_check_interval_seconds` until it is "
        "ready",
    ),
    "restart": (
        "The server that did not wake up is stopped and started, and the switch waits until it is ready.",
        "as `stop`, then `max_retries` x `health_check_interval_seconds`",
    ),
    "roll_back": (
        "The previously active model is woken or, if it had to be stopped, started.",
        "the same as for a switch to it",
    ),
}
COLUMNS = ("fault", "state of the host", "tried", "message", "remedy")
LEFT = {
    "b active": "b active",
    "a active again": "a active, as before",
    "error state": "what the message says",
    "cut off": "unchanged since the kill; the next switch recovers it",
    "": "none of the allowed states",
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
    rungs = list(_head(("rung", "action", "maximum duration")))
    rungs += [f"| `{rung}` | {what} | {most} |" for rung, (what, most) in RUNGS.items()]
    parts = [HEAD.format(count=len(rows), rungs="\n".join(rungs) + "\n")]
    for step, those in steps.items():
        heading = step if step.startswith("vLLM") else step[0].upper() + step[1:]
        parts += [f"\n## {heading}\n\n", *_table(those)]
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
