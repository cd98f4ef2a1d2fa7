# SPDX-License-Identifier: MIT
"""A part of the fault matrix at the gateway, and that what it finds wrong is what is wrong."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from tests import part
from tests.faults.cells import LEVEL_1, ONCE, cells
from tests.gateway.gatewaylib import missing
from tests.gateway.load import ANSWERED, CUT, IN_WORDS, OWN, WRONG, judge, traffic
from tests.gateway.matrix import Outcome, closing, line, play, playable

# Of those that are drawn, as many as begin within this time, once the host is up.
SECONDS = 6.0
DRAWN = 12


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.timeout(300)
def test_a_handful_of_the_matrix_at_the_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    # Of hosts as most are, so that one is enough. A fault for ever has each of many rungs come to its end.
    once = [cell for cell in playable(cells()) if cell.setup == LEVEL_1 and cell.variant == ONCE]
    drawn = random.Random(part.seed()).sample(once, DRAWN)
    outcomes: list[Outcome] = []
    until: list[float] = []

    def enough() -> bool:
        return bool(until) and time.monotonic() > until[0]

    for outcome in play(drawn, side_by_side=1, enough=enough):
        until = until or [time.monotonic() + SECONDS]
        outcomes.append(outcome)
    with capsys.disabled():
        print(f"\n{closing(outcomes)} (PART_SEED={part.seed()})")
    rest = {cell.name for cell in playable(cells())} - {outcome.cell.name for outcome in outcomes}
    if part.quick():
        part.leave_out("gateway", "python -m tests.gateway.matrix", sorted(rest))
    assert outcomes
    assert not any(outcome.violations for outcome in outcomes), "\n".join(map(line, outcomes))


def whole(model: str = "a", text: str = " one two three four", finish: str = "length") -> str:
    choice = {"message": {"content": text}, "finish_reason": finish}
    return json.dumps({"model": model, "choices": [choice]})


def stream(*words: str, end: str = "data: [DONE]\n\n", model: str = "a", finish: str = "length") -> str:
    chunks = [
        {"model": model, "choices": [{"delta": {"content": f" {word}"}, "finish_reason": None}]} for word in words
    ]
    chunks[-1]["choices"][0]["finish_reason"] = finish  # type: ignore[index]
    return ": waiting\n\n" + "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end


ERROR = {"error": {"message": "It failed.", "type": "server_error", "param": None, "code": "switch_failed"}}
FOUR = ("one", "two", "three", "four")
NO_WORDS = json.dumps({"error": {"message": "", "code": "switch_failed"}})


@pytest.mark.parametrize(
    ("status", "text", "streams", "how"),
    [
        (200, whole(), False, ANSWERED),
        (200, stream(*FOUR), True, ANSWERED),
        (503, json.dumps(ERROR), False, IN_WORDS),
        (503, json.dumps(ERROR), True, IN_WORDS),
        (200, f": waiting\n\ndata: {json.dumps(ERROR)}\n\n", True, IN_WORDS),
        (200, stream("one", end=f"data: {json.dumps(ERROR)}\n\ndata: [DONE]\n\n"), True, IN_WORDS),
        (200, whole(text=" one", finish="abort"), False, CUT),
        (200, stream("one", finish="abort"), True, CUT),
        (200, "", False, OWN),
        # What must not be.
        (200, stream(*FOUR, end=""), True, WRONG),
        (200, stream("one", "two"), True, WRONG),
        (200, whole(text=" one two"), False, WRONG),
        (200, whole(model="b"), False, WRONG),
        (200, stream(*FOUR, model="b"), True, WRONG),
        (200, whole(text=" of other weights here"), False, WRONG),
        (503, NO_WORDS, False, WRONG),
        (502, "<html>Bad Gateway</html>", False, WRONG),
        (200, f"data: {NO_WORDS}\n\n", True, WRONG),
        (200, "data: [DONE]\n\n", True, WRONG),
    ],
)
def test_what_became_of_a_request(status: int, text: str, streams: bool, how: str) -> None:
    kind = "text/event-stream" if status == 200 and streams else "application/json"
    found = judge(status, kind, text, "a", streams, 4, " one two three four")
    assert found[0] == how, found


def events(*those: str) -> list[dict[str, Any]]:
    return [{"id": word[0], "event": word[2:], "model": word[0]} for word in those]


@pytest.mark.parametrize(
    ("those", "asleep", "parked"),
    [
        (("a awake", "a request_start", "a request_end", "a sleeping"), 0, 0),
        (("a awake", "a sleeping", "a request_start", "a waking", "a awake", "a request_end"), 1, 0),
        (("a awake", "a request_start", "a sleeping", "a waking", "a awake", "a request_end"), 0, 1),
        # Aborted by the sleep, or ended with its server.
        (("a awake", "a request_start", "a sleeping", "a request_end", "a waking", "a awake"), 0, 0),
        (("a awake", "a request_start", "a sleeping", "a dead", "c loading", "c awake", "c request_start"), 0, 0),
        (("b loading", "b request_start"), 1, 0),
    ],
)
def test_which_requests_came_to_a_server_that_was_not_awake(those: tuple[str, ...], asleep: int, parked: int) -> None:
    assert traffic(events(*those), 0) == (asleep, parked)
    assert traffic(events(*those), len(those)) == (0, 0)
