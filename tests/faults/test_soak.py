# SPDX-License-Identifier: MIT
"""A short one of `make soak`: as many rounds as half a minute has, always the same; `make soak` draws others."""

from __future__ import annotations

import itertools
import time

import pytest

from tests.faults.host import Run
from tests.faults.soak import ROUNDS, line, play
from tests.part import leave_out, quick

SECONDS = 30.0
SEED = 4048651372


@pytest.mark.timeout(300)
def test_half_a_minute_of_random_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    count = 0
    different = []
    with Run() as run:
        # Of each begun in that time, the end is waited for.
        rounds = play(itertools.islice(itertools.count(), ROUNDS), SEED, run, time.monotonic() + SECONDS)
        for number, outcome in rounds:
            count += 1
            different += [line(number, outcome)] if outcome.violations else []
    with capsys.disabled():
        print(f"\n{count} random rounds (seed {SEED}), {len(different)} of them with differences")
    if quick():
        leave_out("soak", "make soak", ["random rounds"], ROUNDS - count)
    assert different == []
    assert count > 0
