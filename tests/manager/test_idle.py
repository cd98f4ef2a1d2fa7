# SPDX-License-Identifier: MIT
"""For how long a model has had no request, as far as the manager knows."""

from __future__ import annotations

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.metrics import Counters
from model_manager.host_state import HostState

from tests.manager.situations import (
    ASLEEP,
    AWAKE,
    BUSY,
    GONE,
    GPUS,
    HOST,
    UNTOLD,
)


def test_a_corrected_time_of_day_makes_no_model_idle() -> None:
    times = {"now": 1e9, "clock": 50.0}
    host = HostState(HOST, {}, lambda: times["now"], lambda: times["clock"])
    host.observe({"a": AWAKE}, {}, {})
    times["now"] += 1e6
    assert host.idle_seconds("a") == 0.0
    times["clock"] += 7.0
    assert host.idle_seconds("a") == 7.0
    host.observe({"a": BUSY}, {}, {})
    assert host.idle_seconds("a") == 0.0


def test_a_model_that_comes_up_is_idle_only_from_then_on() -> None:
    clock = [0.0]
    host = HostState(HOST, {}, lambda: 1e9, lambda: clock[0])
    seen = dict.fromkeys(GPUS, ASLEEP)
    host.observe({**seen, "a": GONE, "b": GONE}, {}, {})
    clock[0] = 1000.0
    # Loaded by the service, by somebody else; woken by somebody else.
    host.take_over({**seen, "a": ASLEEP, "b": GONE})
    host.observe({**seen, "b": ASLEEP, "c": AWAKE}, {}, {})
    assert [host.idle_seconds(name) for name in GPUS] == [0.0, 0.0, 0.0, 1000.0]
    clock[0] = 1010.0
    host.take_over(seen)  # it goes on to count while it sleeps
    host.observe(seen, {}, {})
    assert [host.idle_seconds(name) for name in GPUS] == [10.0, 10.0, 10.0, 1010.0]


def test_a_server_that_does_not_tell_what_it_does_is_never_idle() -> None:
    """One that counts only requests that have ended may have one that goes on for long."""
    times = {"clock": 50.0}
    host = HostState(HOST, {}, lambda: 1e9, lambda: times["clock"])
    for counters in (Counters(requests=5), Counters()):
        for _look in range(3):
            host.observe({"a": UNTOLD}, {"a": counters}, {})
            times["clock"] += 1000.0
            assert host.idle_seconds("a") is None
    host.observe({"a": AWAKE}, {"a": Counters(requests=5)}, {})
    assert host.idle_seconds("a") == 0.0
