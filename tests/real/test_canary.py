# SPDX-License-Identifier: MIT
"""The canary on real vLLM: weights that were exchanged while a model slept are noticed when it wakes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.playbooklib import is_sleeping

from .stack import A, Answer, B, Pair, Stack

pytestmark = pytest.mark.timeout(900)  # vLLM has perhaps to be built first


@dataclass
class Recorded:
    """The host with A active and B asleep at level 2, both with a canary, and what they answer to others."""

    pair: Pair
    texts: dict[str, str]

    @property
    def stack(self) -> Stack:
        return self.pair.stack

    def put_weights(self, of: str) -> None:
        """Put weights into B's folder."""
        self.pair.put_weights(B, of)

    def check_only_active(self, name: str) -> None:
        """It alone is awake, and answers as it should."""
        assert [is_sleeping(self.stack.port(one)) for one in (A, B)] == [name == B, name == A]
        assert self.stack.text(name) == self.texts[name]


@pytest.fixture(scope="module")
def recorded(real_pair: Pair) -> Recorded:
    real_pair.settle()
    real_pair.stack.declare(sleep_level="2")
    texts = {}
    for name in (B, A):
        answer = real_pair.stack.switch(name, "--record-canary")
        assert answer.status == 0, answer.errors
        assert answer.result["steps"][-1]["action"] == "record"
        texts[name] = real_pair.stack.text(name)
    assert texts[A] != texts[B]
    return Recorded(real_pair, texts)


@pytest.fixture
def settled(recorded: Recorded) -> Recorded:
    """A active, B asleep at level 2."""
    recorded.put_weights(B)
    recorded.stack.declare(sleep_level="2")
    for name in (B, A):
        answer = recorded.stack.switch(name)
        assert answer.status == 0, answer.errors
        assert answer.result["warnings"] == []
    recorded.check_only_active(A)
    return recorded


def rungs(answer: Answer) -> list[tuple[str, str, str]]:
    """What was done after the first failure."""
    steps = answer.result["steps"]
    return [(step["escalation"], step["action"], step["model"]) for step in steps if "escalation" in step]


ROLLED_BACK = [
    ("roll_back", "drain", B),
    ("roll_back", "sleep", B),
    ("roll_back", "wake", A),
    ("roll_back", "verify", A),
]
RETRIED = [("retry", "reload", B), ("retry", "verify", B)]


def test_a_greedy_answer_is_reproducible(settled: Recorded) -> None:
    records = {name: settled.stack.record(name) for name in (A, B)}
    assert [record["reproducible"] for record in records.values()] == [True, True]
    assert [record["suspect"] for record in records.values()] == [False, False]
    assert records[A]["text"] != records[B]["text"]
    assert all(record["version"].startswith("0.") and record["start"] for record in records.values())


def test_exchanged_weights_are_noticed_and_the_other_model_put_back(settled: Recorded) -> None:
    stack = settled.stack
    stack.declare(sleep_level="2", escalation=["stop", "retry", "roll_back"])
    settled.put_weights(A)
    answer = stack.switch(B)
    assert answer.status == 1
    assert "(canary)" in answer.errors
    assert f"{A} is active again" in answer.errors
    assert rungs(answer) == [*RETRIED, *ROLLED_BACK]
    assert (answer.result["active_model"], answer.result["previous_model"]) == (A, A)
    settled.check_only_active(A)
    assert stack.record(B)["suspect"]

    # It is no better the second time, although it is the second time that this answer is given.
    assert stack.switch(B).status == 1
    settled.check_only_active(A)

    settled.put_weights(B)
    answer = stack.switch(B)
    assert answer.status == 0, answer.errors
    assert answer.result["steps"][-1]["note"] == "answers as recorded"
    settled.check_only_active(B)
    assert not stack.record(B)["suspect"]


@pytest.mark.whole
def test_a_restart_with_the_exchanged_weights_is_no_excuse(settled: Recorded) -> None:
    stack = settled.stack
    settled.put_weights(A)
    before = stack.record(B)
    answer = stack.switch(B)
    assert answer.status == 1
    assert "(canary)" in answer.errors
    assert "and a restart failed: " in answer.errors
    assert f"{A} is active again" in answer.errors
    restart = [("restart", action, B) for action in ("stop", "start", "verify")]
    assert rungs(answer) == [*RETRIED, *restart, *ROLLED_BACK]
    settled.check_only_active(A)
    assert stack.record(B) == {**before, "suspect": True}

    settled.put_weights(B)
    answer = stack.switch(B)
    assert answer.status == 0, answer.errors
    assert rungs(answer) == []
    assert answer.result["warnings"] == []
    settled.check_only_active(B)
    after = stack.record(B)
    assert after["start"] > before["start"]
    assert after == {**before, "start": after["start"]}
