# SPDX-License-Identifier: MIT
"""A host with the manager that is hurt comes back by itself: a round of each fault.

`python -m tests.e2e.manager_rounds` runs twenty, ROUNDS=N here so many.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.e2e.manager_rounds import FAULTS, Rounds, hurt_host, table

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.whole,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make hosts of namespaces: sudo make e2e"),
]
ROUNDS = int(os.environ.get("ROUNDS", "1"))


@pytest.fixture(scope="module")
def rounds(engine: None, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rounds]:
    """A host to be hurt."""
    with hurt_host(tmp_path_factory.mktemp("rounds"), "bookworm", ansible_playbook) as box:
        yield Rounds(box, random.Random(1), lambda _text: None)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_host_comes_back_by_itself(rounds: Rounds, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = rounds.run(fault, ROUNDS)
    with capsys.disabled():
        print("\n" + table(rounds.box, {fault: outcome}))
    assert len(outcome.seconds) == ROUNDS
