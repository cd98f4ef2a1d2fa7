# SPDX-License-Identifier: MIT
"""docs/failure-modes.md, from what the matrix found. Without times, so that it is the same from run to run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .matrix import Outcome


def json_text(value: object) -> str:
    """The text of a file."""
    return json.dumps(value)


@dataclass(frozen=True)
class Row:
    """One cell as a reader needs it."""

    step: str
    what: str
    variant: str
    left: str
    rungs: tuple[str, ...]
    cause: str
    remedy: str

    @classmethod
    def of(cls, outcome: Outcome) -> Row:
        """From what the matrix found."""
        cell = outcome.cell
        return cls(
            cell.step, cell.what, cell.variant, outcome.left, tuple(outcome.rungs), outcome.cause, outcome.remedy
        )


def render(rows: list[Row]) -> str:
    """The page."""
    return "\n".join(str(row) for row in rows)
