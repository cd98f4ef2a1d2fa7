# SPDX-License-Identifier: MIT
"""A short one of `make soak`: rounds of half a minute, always the same; `make soak` draws others."""

from __future__ import annotations

import time

import pytest

from tests.faults.host import Run
from tests.faults.soak import ROUNDS, line, play
from tests.part import leave_out, quick

SECONDS = 30.0
# Also a busy machine has time for these. A faster one is not to be the first to try others.
MOST = 12
SEED = 4048651372


def test_half_a_minute_of_random_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    count = 0
    different = []
    with Run() as run:
        # Of each begun in that time, the end is waited for.
        rounds = play(range(MOST), SEED, run, time.monotonic() + SECONDS)
        for number, outcome in rounds:
            count += 1
            different += [line(number, outcome)] if outcome.violations else []
    with capsys.disabled():
        print(f"\n{count} random rounds (seed {SEED}), {len(different)} of them with differences")
    if quick():
        leave_out("soak", "make soak", ["random rounds"], ROUNDS - count)
    assert different == []
    assert count > 0
