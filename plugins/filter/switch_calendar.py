# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: switch_calendar
short_description: Convert a calendar of switches to schedules of AWX
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Converts the variable C(awx_switch_calendar) of P(homegpt.vllm.awx#role) to the arguments of C(awx.awx.schedule).
  - Fails with all mistakes at once.
positional: survey
options:
  _input:
    description:
      - The calendar. Each entry has a C(name), an answer for each question of the survey that has no default, and
        either C(at) (a time of day, C(HH:MM)) and, optionally, C(days) and C(timezone), or an C(rrule).
      - C(warm_minutes) of an entry adds a schedule of the job template C(warm), so many minutes before C(at), with the
        same model and target. Without it, such a schedule is removed.
      - C(enabled=false) suspends an entry, C(state=absent) removes it.
    type: list
    elements: dict
    required: true
  survey:
    description: The questions of the job template C(switch), as AWX has them in C(survey_spec.spec).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the schedules of a calendar
  ansible.builtin.debug:
    msg: "{{ calendar | homegpt.vllm.switch_calendar(survey) }}"
  vars:
    calendar:
      - {name: coder by day, model: coder, at: "08:00", days: [mon, tue, wed, thu, fri], timezone: Europe/Berlin}
      - {name: vision by night, model: vision, at: "20:00", timezone: Europe/Berlin, warm_minutes: 15}
    survey:
      - {variable: model, type: multiplechoice, choices: [coder, vision], required: true}
"""

RETURN = r"""
_value:
  description:
    - A list of dictionaries with the keys C(name), C(template) (V(switch) or V(warm)), C(rrule), C(extra_data),
      C(enabled) and C(state), two for each entry.
  type: list
  elements: dict
"""

import re

from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WHEN = ("at", "days", "timezone", "rrule")
ITS_OWN = ("name", "enabled", "state", *WHEN, "warm_minutes")
# What the job template `warm` asks, too.
WARM_ANSWERS = ("model", "target")
# Half a day: the system would drop what was read earlier, and a rule is moved to the day before at most.
WARM_MINUTES_LIMIT = 720
DAY_MINUTES = 24 * 60
# A Monday that is long over. It is part of the rule that AWX stores, so it must be the same in every run.
FIRST_DAY = "20240101"


class _Entry:
    """One entry of the calendar and what is wrong with it."""

    def __init__(self, number, entry):
        self.entry = entry if isinstance(entry, dict) else {}
        self.name = self.entry.get("name")
        self.where = "awx_switch_calendar[%d]" % number
        self.mistakes = []
        if not isinstance(entry, dict):
            self.wrong("", "must be a dictionary")
        elif not isinstance(self.name, str) or not self.name.strip():
            self.wrong("name", "is missing: every entry needs a unique name")
        else:
            self.where += " (%s)" % self.name

    def wrong(self, key, what):
        self.mistakes.append(" ".join(part for part in (self.where + ":", key, what) if part))

    @property
    def warm_name(self):
        return "%s (warm)" % self.name

    def schedules(self, survey):
        """What the module takes for the switch, and for the reading before it; not to be used if there are mistakes."""
        state = self.entry.get("state", "present")
        gone = {"name": self.warm_name, "template": "warm", "state": "absent"}
        if state == "absent":
            return [{"name": self.name, "template": "switch", "state": state}, gone]
        if state != "present":
            self.wrong("state", "must be present or absent, not %r" % (state,))
        enabled = self.entry.get("enabled", True)
        if not isinstance(enabled, bool):
            self.wrong("enabled", "must be true or false, not %r" % (enabled,))
        answers = self.answers({question["variable"]: question for question in survey})
        common = {"state": state, "enabled": enabled}
        switch = {"name": self.name, "template": "switch", "rrule": self.rule(), "extra_data": answers, **common}
        minutes = self.warm_minutes()
        if minutes is None:
            return [switch, gone]
        answers = {key: answers[key] for key in WARM_ANSWERS if key in answers}
        warm = {"name": self.warm_name, "template": "warm", "rrule": self.weekly(minutes), "extra_data": answers}
        return [switch, {**warm, **common}]

    def answers(self, questions):
        for key in self.entry:
            if key not in questions and key not in ITS_OWN:
                self.wrong(key, "is not a valid key; valid keys are %s" % ", ".join(ITS_OWN + tuple(questions)))
        given = {}
        for key, question in questions.items():
            if key in self.entry:
                given[key] = self.answer(question, self.entry[key])
            elif question.get("required") and "default" not in question:
                hint = ": one of %s" % ", ".join(question["choices"]) if "choices" in question else ""
                self.wrong(key, "is missing" + hint)
        return given

    def answer(self, question, value):
        """What AWX would refuse, or only a run at night."""
        key, lowest = question["variable"], question.get("min")
        if question["type"] == "multiplechoice":
            if value not in question["choices"]:
                self.wrong(key, "must be one of %s, not %r" % (", ".join(question["choices"]), value))
        elif question["type"] == "integer":
            if not isinstance(value, int) or isinstance(value, bool) or (lowest is not None and value < lowest):
                least = "" if lowest is None else ", at least %d" % lowest
                self.wrong(key, "must be a whole number%s, not %r" % (least, value))
        elif not isinstance(value, str):
            return str(value)  # `switch_waves: 1` is meant as text
        return value

    def rule(self):
        if "rrule" in self.entry:
            beside = [key for key in WHEN if key in self.entry and key != "rrule"]
            if beside:
                self.wrong("rrule", "can't be combined with %s: remove one or the other" % ", ".join(beside))
            rule = self.entry["rrule"]
            if not isinstance(rule, str) or not re.match(r"DTSTART\S*:\S+ RRULE:\S*INTERVAL=", rule):
                self.wrong(
                    "rrule", "must be like DTSTART;TZID=Europe/Berlin:20240101T080000 RRULE:FREQ=DAILY;INTERVAL=1"
                )
            return rule
        self.at, self.on, self.zone = self.minute(), self.days(), self.timezone()
        return self.weekly()

    def weekly(self, before=0):
        """The rule of what was read of the entry, so many minutes before; they may be of the day before."""
        shift, minute = divmod(self.at - before, DAY_MINUTES)
        clock = "%sT%02d%02d00" % (FIRST_DAY, *divmod(minute, 60))
        start = "DTSTART:%sZ" % clock if self.zone == "UTC" else "DTSTART;TZID=%s:%s" % (self.zone, clock)
        days = [DAYS[number][:2].upper() for number in sorted((day + shift) % len(DAYS) for day in self.on)]
        often = "FREQ=WEEKLY;INTERVAL=1;BYDAY=%s" % ",".join(days) if days else "FREQ=DAILY;INTERVAL=1"
        return "%s RRULE:%s" % (start, often)

    def warm_minutes(self):
        if "warm_minutes" not in self.entry:
            return None
        minutes = self.entry["warm_minutes"]
        if "rrule" in self.entry:
            self.wrong("warm_minutes", "can't be combined with rrule: use at, days and timezone, or remove it")
            return None
        if not isinstance(minutes, int) or isinstance(minutes, bool) or not 1 <= minutes <= WARM_MINUTES_LIMIT:
            self.wrong("warm_minutes", "must be a whole number from 1 to %d, not %r" % (WARM_MINUTES_LIMIT, minutes))
            return None
        return minutes

    def timezone(self):
        zone = self.entry.get("timezone", "UTC")
        if not isinstance(zone, str) or not re.match(r"[A-Za-z]+(/[A-Za-z0-9_+-]+)*$", zone):
            self.wrong("timezone", "must be a name such as Europe/Berlin, not %r" % (zone,))
        return zone

    def minute(self):
        """The minute of the day."""
        if "at" not in self.entry:
            self.wrong("at", "is missing: the time of day, such as '08:00' (or give an rrule)")
            return 0
        at = self.entry["at"]
        if isinstance(at, int) and not isinstance(at, bool):
            # YAML reads 20:00 without quotes as a number to the base 60.
            at = "%02d:%02d" % divmod(at, 60)
        match = re.match(r"([01][0-9]|2[0-3]):([0-5][0-9])$", at) if isinstance(at, str) else None
        if not match:
            self.wrong("at", "must be a time of day in quotes, such as '08:00', not %r" % (self.entry["at"],))
            return 0
        return int(match[1]) * 60 + int(match[2])

    def days(self):
        days = self.entry.get("days", [])
        if not isinstance(days, list) or any(day not in DAYS for day in days):
            self.wrong("days", "must be a list of %s, not %r" % (", ".join(DAYS), days))
            return []
        return [number for number, day in enumerate(DAYS) if day in days]


def switch_calendar(calendar, survey):
    """The schedules; raises AnsibleFilterError with every mistake."""
    calendar, survey = plain(calendar), plain(survey)
    if not isinstance(calendar, list):
        raise AnsibleFilterError("awx_switch_calendar must be a list")
    entries = [_Entry(number, entry) for number, entry in enumerate(calendar)]
    schedules = [schedule for entry in entries if entry.entry for schedule in entry.schedules(survey)]
    names = [entry.name for entry in entries]
    for number, entry in enumerate(entries):
        if entry.name is not None and entry.name in names[:number]:
            entry.wrong("name", "is used by another entry, which would be overwritten")
    mistakes = [mistake for entry in entries for mistake in entry.mistakes]
    if mistakes:
        raise AnsibleFilterError("\n".join(mistakes))
    return schedules


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"switch_calendar": switch_calendar}
