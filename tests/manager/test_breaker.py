# SPDX-License-Identifier: MIT
"""When a model that has failed may be tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from model_manager.breaker import CLOSED, HALF_OPEN, OPEN

from tests.manager.situations import (
    breaker,
)


def test_the_breaker_opens_after_so_many_failures_and_tries_slowly_from_then_on() -> None:
    one = breaker()
    assert one.state(0.0) == CLOSED and one.allows(0.0)
    one = one.failed(0.0, "it died")
    assert one.state(0.0) == CLOSED and not one.allows(1.9) and one.allows(2.0)
    one = one.failed(10.0, "it died")
    assert one.state(10.0) == CLOSED and not one.allows(13.9) and one.allows(14.0), "each rest is twice the last"
    one = one.failed(20.0, "it died again")
    assert one.state(20.0) == OPEN and one.reason == "it died again"
    assert not one.allows(319.9) and one.state(320.0) == HALF_OPEN
    one = one.failed(321.0, "it died")
    assert one.state(322.0) == OPEN and one.retry_at == 621.0
    # Long after all others, one failure keeps an open one open.
    one = one.failed(9000.0, "it died")
    assert one.state(9001.0) == OPEN


def test_failures_that_are_far_apart_do_not_open_the_breaker() -> None:
    one = breaker()
    for at in range(0, 6000, 300):
        one = one.failed(float(at), "it died")
        assert one.state(at) == CLOSED, at


def test_a_first_crash_costs_no_rest_and_a_server_that_crashes_again_and_again_opens_it() -> None:
    one = breaker().failed(100.0, "it crashed", crashed=True)
    assert one.allows(100.0)
    one = one.succeeded(101.0).failed(110.0, "it crashed", crashed=True)
    assert not one.allows(111.9) and one.allows(112.0)
    one = one.succeeded(115.0).failed(120.0, "it crashed", crashed=True)
    assert one.state(121.0) == OPEN, "that it came up in between does not hide that it crashes"
    one = one.succeeded(500.0)
    assert one.state(500.0) == CLOSED
    assert one.failed(510.0, "it crashed", crashed=True).state(511.0) == OPEN, "it is on probation"
    assert one.failed(1500.0, "it crashed", crashed=True).state(1500.0) == CLOSED, "which ends"


@given(st.lists(st.integers(0, 500), max_size=60), st.integers(1, 5), st.booleans())
def test_a_model_that_always_fails_is_tried_seldom_but_never_given_up(
    looks: list[int], limit: int, crashed: bool
) -> None:
    """Whoever looks now and then, and tries whenever it may, fails at most so often in any ten minutes."""
    one, now = breaker(limit=limit), 0.0
    tried: list[float] = []
    for after in looks:
        now += after
        if one.allows(now):
            assert not one.opened or now - tried[-1] >= 300.0
            one = one.failed(now, "it died", crashed=crashed)
            tried.append(now)
        assert one.retry_at <= now + 300.0
    for first in tried:
        assert sum(first <= at < first + 600.0 for at in tried) <= limit + 2


def test_a_corrected_time_of_day_makes_no_rest_longer() -> None:
    opened = breaker().failed(10.0, "x").failed(20.0, "x").failed(30.0, "it died")
    assert breaker().restored(opened.as_dict(1000.0), 1000.0, 31.0) == opened
    # It was an hour ahead when it was written.
    later = breaker().restored(opened.as_dict(4600.0), 1000.0, 31.0)
    assert later.failures == (31.0, 31.0, 31.0) and later.retry_at == 331.0 and later.opened
