# SPDX-License-Identifier: MIT
"""What the manager tells of the GPU memory that servers hold: nothing that is no longer true, and soon what is."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.manager.conftest import Manage, ended, until
from tests.unit.plugins.module_utils.switching.conftest import Host


def test_after_a_switch_the_memory_is_looked_at_soon(
    host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_GPU_DIR", str(host.gpu_dir))
    monkeypatch.setenv("STANDIN_GPU_TOTAL_GB", "100")
    monkeypatch.setattr("model_manager.observer._REPORT_AFTER_SECONDS", 1.0)
    for name in ("a", "b", "c"):
        host.declare(name, standin={"asleep_gb": 2})
    host.up(a="active", b=1)  # c does not run
    manager = manage(report_seconds=3600, reconcile=False)

    def held() -> list[float | None]:
        return [one.gpu_memory_held_gb for one in manager.view().models.values()]

    until(lambda: held() == [20, 2, None], "it is looked at first")
    ended(manager.request("b"))
    seen = [held()]

    def known() -> bool:
        seen.append(held())
        return seen[-1] == [2, 20, None]

    until(known, "it is looked at again")
    # In between it is not known, rather than what it was.
    assert [one for one in seen if one[0] == 20 or one[1] == 2] == []


def test_where_nobody_can_tell_the_memory_it_is_not_asked_for_again_and_again(
    host: Host, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STANDIN_GPU_DIR", raising=False)  # so that there is no driver
    monkeypatch.setattr("model_manager.observer._REPORT_AFTER_SECONDS", 0.0)
    host.declare("a")
    host.up(a="active")
    manager = manage(report_seconds=3600, observe_seconds=0.1, reconcile=False)
    asked: list[float] = []
    engine = type(manager._observer._engine().host)
    report = engine.report

    def note(host: Any) -> Any:
        asked.append(time.monotonic())
        return report(host)

    monkeypatch.setattr(engine, "report", note)
    time.sleep(1.5)
    assert asked == []
    assert manager.view().models["a"].gpu_memory_held_gb is None
