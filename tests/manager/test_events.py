# SPDX-License-Identifier: MIT
"""Events: everybody gets all of them in order, and who misses some is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

import pytest
from model_manager.events import Bus, Event


def numbers(events: Iterable[Event]) -> list[object]:
    """The numbers of events that count, and of those that tell of lost ones how many."""
    return [event.data["number"] if event.kind == "count" else ("lost", event.data["events"]) for event in events]


def count(bus: Bus, *which: int) -> list[Event]:
    return [bus.publish("count", {"number": number}) for number in which]


def test_events_are_numbered_and_dated() -> None:
    bus = Bus(now=lambda: 1234.5)
    first, second = count(bus, 1, 2)
    assert second.id == first.id + 1 == bus.last_id
    assert first.as_dict() == {"id": first.id, "kind": "count", "at": 1234.5, "data": {"number": 1}}


def test_ids_go_on_growing_over_a_restart() -> None:
    old = count(Bus(now=lambda: 1000.0), *range(500))[-1]
    assert count(Bus(now=lambda: 1001.0), 1)[0].id > old.id


def test_a_reader_gets_what_comes_after_it_subscribed() -> None:
    bus = Bus()
    count(bus, 1)
    reader = bus.subscribe()
    count(bus, 2, 3)
    assert numbers(reader.take()) == [2, 3]
    assert reader.take() == []


def test_a_reader_resumes_after_the_last_event_that_it_had() -> None:
    bus = Bus()
    events = count(bus, 1, 2, 3)
    assert numbers(bus.subscribe(after=events[0].id).take()) == [2, 3]
    assert numbers(bus.subscribe(after=events[2].id).take()) == []
    assert numbers(bus.subscribe(after=events[0].id - 1).take()) == [1, 2, 3]


def test_who_resumes_too_late_is_told_how_many_it_has_lost() -> None:
    bus = Bus(kept=3)
    events = count(bus, *range(6))
    assert numbers(bus.subscribe(after=events[0].id).take()) == [("lost", 2), 3, 4, 5]


@pytest.mark.parametrize("after", [0, 17, 10**18])
def test_an_id_of_another_service_gets_all_there_is(after: int) -> None:
    bus = Bus()
    count(bus, 1, 2)
    assert numbers(bus.subscribe(after=after).take()) == [("lost", -1), 1, 2]


def test_a_slow_reader_loses_the_oldest_events_and_nobody_else_does() -> None:
    bus = Bus()
    slow, quick = bus.subscribe(size=2), bus.subscribe()
    events = count(bus, *range(5))
    told = slow.take()
    assert numbers(told) == [("lost", 3), 3, 4]
    assert told[0].id == events[2].id  # from where it would resume
    assert numbers(quick.take()) == list(range(5))


def test_a_reader_waits_for_events_of_other_threads() -> None:
    bus = Bus()

    async def read() -> list[object]:
        reader = bus.subscribe()
        threads = [threading.Thread(target=count, args=(bus, *range(at, at + 100))) for at in (0, 100, 200)]
        for thread in threads:
            thread.start()
        found = numbers([await asyncio.wait_for(anext(reader), 10) for _each in range(300)])
        for thread in threads:
            thread.join()
        return found

    found = asyncio.run(read())
    assert sorted(found, key=str) == sorted(range(300), key=str)
    for first in (0, 100, 200):  # of each thread in its order
        assert [one for one in found if isinstance(one, int) and first <= one < first + 100] == [
            *range(first, first + 100)
        ]


def test_waiting_for_an_event_has_a_limit_and_loses_none() -> None:
    bus = Bus()

    async def read() -> list[object]:
        reader = bus.subscribe()
        with pytest.raises(asyncio.TimeoutError):
            await reader.next(timeout=0.01)
        count(bus, 1)
        return numbers([event for event in [await reader.next(timeout=10)] if event])

    assert asyncio.run(read()) == [1]


def test_the_end_of_the_bus_ends_every_reader_after_what_came() -> None:
    bus = Bus()

    async def read() -> list[object]:
        reader = bus.subscribe()
        count(bus, 1)
        threading.Timer(0.05, bus.close).start()
        return numbers([event async for event in reader])

    assert asyncio.run(asyncio.wait_for(read(), 10)) == [1]
    assert asyncio.run(bus.subscribe().next(timeout=1)) is None


def test_a_closed_reader_gets_nothing_more() -> None:
    bus = Bus()
    reader = bus.subscribe()
    reader.close()
    count(bus, 1)
    assert reader.take() == []


def test_a_listener_that_fails_harms_nobody() -> None:
    bus = Bus()
    heard: list[Event] = []

    def fail(event: Event) -> None:
        raise RuntimeError(str(event))

    bus.listen(fail)
    bus.listen(heard.append)
    assert count(bus, 1) == heard
