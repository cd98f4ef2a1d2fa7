# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.switch_calendar import FilterModule

switch_calendar = FilterModule().filters()["switch_calendar"]
SURVEY = [
    {"variable": "model", "type": "multiplechoice", "choices": ["coder", "vision"], "required": True},
    {"variable": "target", "type": "multiplechoice", "choices": ["all", "one"], "default": "all", "required": True},
    {"variable": "waves", "type": "text", "default": "100%", "required": True},
    {"variable": "keep", "type": "integer", "default": 0, "min": 0, "required": True},
]
ENTRY = {"name": "night", "model": "coder", "at": "20:00"}


def rule(**fields: Any) -> str:
    (schedule,) = switch_calendar([{**ENTRY, **fields}], SURVEY)
    return schedule["rrule"]


def test_an_entry_becomes_a_schedule() -> None:
    assert switch_calendar([{**ENTRY, "target": "one", "waves": 1, "keep": 2, "enabled": False}], SURVEY) == [
        {
            "name": "night",
            "state": "present",
            "enabled": False,
            "rrule": "DTSTART:20240101T200000Z RRULE:FREQ=DAILY;INTERVAL=1",
            "extra_data": {"model": "coder", "target": "one", "waves": "1", "keep": 2},
        }
    ]
    assert switch_calendar([{"name": "gone", "state": "absent"}], SURVEY) == [{"name": "gone", "state": "absent"}]
    assert switch_calendar([], SURVEY) == []


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
        ({"state": "gone"}, "state must be present or absent, not 'gone'"),
        (
            {"modle": "coder"},
            "modle is not a valid key; valid keys are name, enabled, state, at, days, timezone, rrule, model",
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
    with pytest.raises(AnsibleFilterError, match="must be a list"):
        switch_calendar({"name": "n"}, SURVEY)
