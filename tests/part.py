# SPDX-License-Identifier: MIT
"""The part of a long suite that `.ci/run` runs. QUICK=1 asks for it; without, everything is run, as by `make all`.

Left out are the tests marked `whole`, and the cases that a draw does not choose. The draw differs from commit to
commit; PART_SEED=N repeats one. Where LEFT_OUT names a file, what was left out is noted there, for the end of the run.

    python -m tests.part SUITE COMMAND WHAT ...        note what a script leaves out
"""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


def quick() -> bool:
    """Whether a part will do."""
    return bool(os.environ.get("QUICK"))


def _git(*arguments: str) -> str | None:
    try:
        ended = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None


@functools.cache
def seed() -> int:
    """What the draw begins from: PART_SEED, or the commit's own name; without git always the same."""
    given = os.environ.get("PART_SEED")
    return int(given) if given else int((_git("rev-parse", "HEAD") or "0")[:8], 16)


@functools.cache
def changed() -> frozenset[str] | None:
    """The files that differ from where this branch began or, on the main branch, from the commit before.

    None where nobody knows: without git, or without history, as in a shallow clone.
    """
    head = _git("rev-parse", "HEAD")
    base = _git("merge-base", "HEAD", "origin/main")
    if base in (None, head):
        base = _git("rev-parse", "--verify", "--quiet", "HEAD^1^{commit}")
    if base is None:
        return None
    told = [_git("diff", "--name-only", base), _git("ls-files", "--others", "--exclude-standard")]
    return None if None in told else frozenset("\n".join(map(str, told)).splitlines())


def leave_out(suite: str, command: str, cases: Iterable[str], count: int = 1) -> None:
    """Note what was left out, and by which command it is run. C(count): how many each of the names stands for."""
    # All workers of a run see the same.
    if "LEFT_OUT" in os.environ and os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
        with open(os.environ["LEFT_OUT"], "a", encoding="utf-8") as file:
            file.writelines(f"{suite}\t{command}\t{count}\t{case}\n" for case in cases)


def fewer(suite: str, command: str, what: str, everything: int, part: int) -> int:
    """How many of cases that are all alike."""
    if not quick():
        return everything
    leave_out(suite, command, [what], everything - part)
    return part


def draw(cases: Sequence[T], share: float, group: Callable[[T], object]) -> list[T]:
    """Return a share of the cases, in their order, and of each group at least one."""
    chance = random.Random(seed())
    groups: dict[object, list[int]] = {}
    for number, case in enumerate(cases):
        groups.setdefault(group(case), []).append(number)
    chosen: set[int] = set()
    for members in groups.values():
        chosen.update(chance.sample(members, max(1, round(len(members) * share))))
    return [case for number, case in enumerate(cases) if number in chosen]


if __name__ == "__main__":
    leave_out(sys.argv[1], sys.argv[2], sys.argv[3:])
