# SPDX-License-Identifier: MIT
"""A server does what docs/vllm-versions.md says of its version, where `make vllm-versions` asked a real one.

A stand-in that is told to be a version has to give the same answers. SURVEY=FILE: they are written there, and a real
server's are held against nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.versions import page

from .client import Client
from .conftest import Pair
from .survey import survey


def test_it_does_what_was_seen(server: Client, pair: Pair) -> None:
    answers = survey(server)
    if "SURVEY" in os.environ:
        Path(os.environ["SURVEY"]).write_text(json.dumps(answers), encoding="utf-8")
        assert not [answer for answer in answers.values() if answer.startswith("no answer")]
        return
    seen = page.read()[pair.version]["seen"]
    assert {question: answer for question, answer in answers.items() if answer != seen.get(question)} == {}
