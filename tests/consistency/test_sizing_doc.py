# SPDX-License-Identifier: MIT
"""docs/sizing.md says what the engine reckons today for the models that are shipped."""

from __future__ import annotations

import pytest

from tests.consistency import blocks, sizing_doc


def test_the_page_is_up_to_date() -> None:
    page = sizing_doc.PAGE.read_text(encoding="utf-8")
    assert page == blocks.written(page, sizing_doc.rendered()), f"run {blocks.COMMAND} and look at the diff"


def test_another_figure_of_the_engine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing_doc.memory, "SLEEPER_GB", 3.0)
    assert sizing_doc.PAGE.read_text(encoding="utf-8") != blocks.written(
        sizing_doc.PAGE.read_text(encoding="utf-8"), sizing_doc.rendered()
    )


def test_no_round_of_switches_exceeds_the_budget() -> None:
    models = {model.id: model for model in sizing_doc.declared().enabled}
    for budget in sizing_doc.BUDGETS:
        at_1 = [models[name].weights_gb or 0 for name, level in sizing_doc.sleeps(budget).items() if level == 1]
        # The one that is awake sleeps nowhere.
        assert sum(at_1) - max(at_1, default=0) <= budget
