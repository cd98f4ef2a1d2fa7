# SPDX-License-Identifier: MIT
from __future__ import annotations

import re
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.switch_calendar import FilterModule
from hypothesis import given
from hypothesis import strategies as st

switch_calendar = FilterModule().filters()["switch_calendar"]
SURVEY = [
    {"variable": "model", "type": "multiplechoice", "choices": ["coder", "vision"], "required": True},
    {"variable": "target", "type": "multiplechoice", "choices": ["all", "one"], "default": "all", "required": True},
    {"variable": "waves", "type": "text", "default": "100%", "required": True},
    {"variable": "keep", "type": "integer", "default": 0, "min": 0, "required": True},
]
ENTRY = {"name": "night", "model": "coder", "at": "20:00"}
NOT_WARM = {"name": "night (warm)", "template": "warm", "state": "absent"}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def rule(**fields: Any) -> str:
    switch, warm = switch_calendar([{**ENTRY, **fields}], SURVEY)
    assert (switch["template"], warm) == ("switch", NOT_WARM)
    return switch["rrule"]


def minutes_of(rule: str) -> set[int]:
    """The minutes of the week at which a rule is due, from Monday on."""
    hours, minutes = re.match(r"DTSTART\S*:\d{8}T(\d\d)(\d\d)00Z? RRULE:", rule).groups()  # type: ignore[union-attr]
    days = rule.partition("BYDAY=")[2].split(",") if "BYDAY" in rule else [day[:2].upper() for day in DAYS]
    numbers = [[day[:2].upper() for day in DAYS].index(day) for day in days]
    assert numbers == sorted(set(numbers))  # of a week in its order, so that the next run finds it as it is
    return {number * 24 * 60 + int(hours) * 60 + int(minutes) for number in numbers}


def test_an_entry_becomes_a_schedule() -> None:
    assert switch_calendar([{**ENTRY, "target": "one", "waves": 1, "keep": 2, "enabled": False}], SURVEY) == [
        {
            "name": "night",
            "template": "switch",
            "state": "present",
            "enabled": False,
            "rrule": "DTSTART:20240101T200000Z RRULE:FREQ=DAILY;INTERVAL=1",
            "extra_data": {"model": "coder", "target": "one", "waves": "1", "keep": 2},
        },
        NOT_WARM,
    ]
    assert switch_calendar([{"name": "gone", "state": "absent", "warm_minutes": 10}], SURVEY) == [
        {"name": "gone", "template": "switch", "state": "absent"},
        {"name": "gone (warm)", "template": "warm", "state": "absent"},
    ]
    assert switch_calendar([], SURVEY) == []


def test_what_is_read_before() -> None:
    entry = {**ENTRY, "target": "one", "waves": 1, "timezone": "Europe/Berlin", "enabled": False}
    alone = switch_calendar([entry], SURVEY)
    assert switch_calendar([{**entry, "warm_minutes": 25}], SURVEY) == [
        alone[0],
        {
            "name": "night (warm)",
            "template": "warm",
            "state": "present",
            "enabled": False,
            "rrule": "DTSTART;TZID=Europe/Berlin:20240101T193500 RRULE:FREQ=DAILY;INTERVAL=1",
            "extra_data": {"model": "coder", "target": "one"},
        },
    ]
    # Shortly after midnight it is read on the day before; a target that is not given is the survey's.
    early = {**ENTRY, "at": "00:10", "days": ["mon", "wed"], "warm_minutes": 20}
    warm = switch_calendar([early], SURVEY)[1]
    assert warm["rrule"] == "DTSTART:20240101T235000Z RRULE:FREQ=WEEKLY;INTERVAL=1;BYDAY=TU,SU"
    assert warm["extra_data"] == {"model": "coder"}


@given(
    at=st.integers(0, 24 * 60 - 1),
    days=st.lists(st.sampled_from(DAYS), unique=True),
    minutes=st.integers(1, 720),
    zone=st.sampled_from(["UTC", "Europe/Berlin"]),
)
def test_the_reading_is_due_so_many_minutes_before(at: int, days: list[str], minutes: int, zone: str) -> None:
    clock = f"{at // 60:02}:{at % 60:02}"
    entry = {**ENTRY, "at": clock, "days": days, "timezone": zone}
    switch, warm = switch_calendar([{**entry, "warm_minutes": minutes}], SURVEY)
    assert switch == switch_calendar([entry], SURVEY)[0]
    due = minutes_of(switch["rrule"])
    assert due == {DAYS.index(day) * 24 * 60 + at for day in days or DAYS}
    assert minutes_of(warm["rrule"]) == {(minute - minutes) % (7 * 24 * 60) for minute in due}
    assert ("TZID=Europe/Berlin:" in warm["rrule"]) == (zone != "UTC")


def test_when() -> None:
    assert rule(timezone="Europe/Berlin") == ("DTSTART;TZID=Europe/Berlin:20240101T200000 RRULE:FREQ=DAILY;INTERVAL=1")
    # In the order of the week, whatever was written.
    assert rule(days=["sun", "mon"]).endswith("RRULE:FREQ=WEEKLY;INTERVAL=1;BYDAY=MO,SU")
    # `at: 20:05` without quotes, as YAML reads it.
    assert rule(at=20 * 60 + 5).startswith("DTSTART:20240101T200500Z")
    own = "DTSTART;TZID=Europe/Berlin:20250101T080000 RRULE:FREQ=MONTHLY;INTERVAL=1;BYMONTHDAY=1"
    assert switch_calendar([{"name": "n", "model": "coder", "rrule": own}], SURVEY)[0]["rrule"] == own


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "visoin"}, "(night): model must be one of coder, vision, not 'visoin'"),
        ({"model": None}, "(night): model must be one of coder, vision, not None"),
        ({"target": "two"}, "target must be one of all, one, not 'two'"),
        ({"keep": -1}, "keep must be a whole number, at least 0, not -1"),
        ({"keep": "1"}, "keep must be a whole number, at least 0, not '1'"),
        ({"keep": True}, "keep must be a whole number, at least 0, not True"),
        ({"at": "8:00"}, "at must be a time of day in quotes, such as '08:00', not '8:00'"),
        ({"at": "24:00"}, "not '24:00'"),
        ({"at": 24 * 60}, "not 1440"),
        ({"days": ["monday"]}, "days must be a list of mon, tue, wed, thu, fri, sat, sun, not ['monday']"),
        ({"days": "mon"}, "not 'mon'"),
        ({"timezone": "+01:00"}, "timezone must be a name such as Europe/Berlin, not '+01:00'"),
        ({"rrule": "DTSTART:20240101T000000Z RRULE:FREQ=DAILY;INTERVAL=1"}, "can't be combined with at"),
        ({"enabled": "yes"}, "enabled must be true or false, not 'yes'"),
        ({"warm_minutes": 0}, "warm_minutes must be a whole number from 1 to 720, not 0"),
        ({"warm_minutes": 721}, "from 1 to 720, not 721"),
        ({"warm_minutes": "10"}, "from 1 to 720, not '10'"),
        ({"warm_minutes": True}, "from 1 to 720, not True"),
        ({"warm_minutes": None}, "from 1 to 720, not None"),
        ({"state": "gone"}, "state must be present or absent, not 'gone'"),
        (
            {"modle": "coder"},
            "modle is not a valid key; valid keys are name, enabled, state, at, days, timezone, rrule, warm_minutes, ",
        ),
        ({"name": ""}, "awx_switch_calendar[0]: name is missing"),
    ],
)
def test_a_mistake(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleFilterError) as raised:
        switch_calendar([{**ENTRY, **fields}], SURVEY)
    assert message in str(raised.value)


def test_all_mistakes_at_once() -> None:
    calendar = [{"name": "n"}, "x", {**ENTRY, "name": "n"}, {"name": "r", "model": "coder", "rrule": "FREQ=DAILY"}]
    with pytest.raises(AnsibleFilterError) as raised:
        switch_calendar(calendar, SURVEY)
    assert str(raised.value).splitlines() == [
        "awx_switch_calendar[0] (n): model is missing: one of coder, vision",
        "awx_switch_calendar[0] (n): at is missing: the time of day, such as '08:00' (or give an rrule)",
        "awx_switch_calendar[1]: must be a dictionary",
        "awx_switch_calendar[2] (n): name is used by another entry, which would be overwritten",
        "awx_switch_calendar[3] (r): rrule must be like "
        "DTSTART;TZID=Europe/Berlin:20240101T080000 RRULE:FREQ=DAILY;INTERVAL=1",
    ]
    own = {"name": "r", "model": "coder", "rrule": "DTSTART:20240101T000000Z RRULE:FREQ=DAILY;INTERVAL=1"}
    with pytest.raises(AnsibleFilterError) as raised:
        switch_calendar([{**own, "warm_minutes": 10}], SURVEY)
    assert str(raised.value).splitlines() == [
        "awx_switch_calendar[0] (r): warm_minutes can't be combined with rrule: use at, days and timezone, or remove it"
    ]
    with pytest.raises(AnsibleFilterError, match="must be a list"):
        switch_calendar({"name": "n"}, SURVEY)
