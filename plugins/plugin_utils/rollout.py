# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A switch of many hosts by waves: its settings, its plan, when it stops, and the report on every host. Pure."""

from __future__ import annotations

import re
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchingError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.tables import lines

ROLL_BACK, KEEP = "roll_back", "keep"

# What became of a host. Those of BAD count towards switch_max_failures and make the play fail.
SWITCHED, UNCHANGED, WOULD_SWITCH = "switched", "unchanged", "would switch"
HELD, NO_SUCH_MODEL, NOT_TRIED = "kept", "no such model", "not tried"
FAILED, HUNG, UNREACHABLE, NOT_HELD = "failed", "hung", "unreachable", "not kept"
ROLLED_BACK, ROLL_BACK_FAILED, CHANGED_SINCE = "rolled back", "roll back failed", "changed by somebody else"
# Of a declared placement.
NOT_LOADED, NOT_DECLARED = "not loaded", "not declared"
BAD = (FAILED, HUNG, UNREACHABLE, NOT_HELD, ROLL_BACK_FAILED, CHANGED_SINCE)

# What a host says may not become a template on the controller: ansible-core 2.18 forgets that it is not to be trusted.
_TEMPLATE = re.compile(r"\{(?=[{%#])")

_WAVE = re.compile(r"([1-9]\d*)(%?)")
_WIDEST = 120  # characters of a cell of the table; the rows have all of it
_HEADER = ("host", "from", "to", "seconds", "result", "reason")

Row = typing.Dict[str, typing.Any]
Given = typing.Mapping[str, typing.Any]


class Settings(typing.NamedTuple):
    """What was asked of a rollout."""

    waves: list[str]
    max_failures: int | None  # None: any number
    keep: int
    on_stop: str


class Plan(typing.NamedTuple):
    """Which hosts are switched in which order, and when that stops."""

    hosts: list[str]  # all of them, in the order of the inventory
    waves: list[list[str]]
    held: list[str]  # they keep their model, and are inspected before the first wave
    max_failures: int | None
    on_stop: str

    @property
    def serial(self) -> list[int]:
        """The sizes of the play's batches; the held hosts are the first one."""
        return [len(batch) for batch in (self.held, *self.waves) if batch]

    @property
    def order(self) -> list[str]:
        """The hosts in the order of the play."""
        return [host for batch in (self.held, *self.waves) for host in batch]


def read(variables: Given) -> Settings:
    """The settings by the names of their variables. Raises SwitchingError with every mistake."""
    mistakes: list[str] = []

    def given(name: str, default: typing.Any) -> str:
        value = variables.get(name)
        return str(default if value is None or value == "" else value).strip()

    def number(name: str, default: str, least: int) -> int:
        text = given(name, default)
        if text.isdecimal() and int(text) >= least:
            return int(text)
        mistakes.append(f"{name}: {text!r} is not a whole number of {least} or more")
        return least

    text = given("switch_waves", "100%")
    waves = [wave.strip() for wave in text.strip("[]").replace("'", "").replace('"', "").split(",")]
    for wave in waves:
        match = _WAVE.fullmatch(wave)
        if not match or (match[2] and int(match[1]) > 100):
            mistakes.append(
                f"switch_waves: {wave!r} is neither a number of hosts nor a percentage of them: "
                "give a list such as 1,25%,100%"
            )
    # One wave of all can't be stopped half way, so a host that is down does not undo the others.
    unlimited = waves == ["100%"] and given("switch_max_failures", "") == ""
    on_stop = given("switch_on_stop", ROLL_BACK)
    if on_stop not in (ROLL_BACK, KEEP):
        mistakes.append(f"switch_on_stop: {on_stop!r} is neither {ROLL_BACK} nor {KEEP}")
    settings = Settings(
        waves,
        None if unlimited else number("switch_max_failures", "0", 0),
        number("switch_keep", "0", 0),
        on_stop,
    )
    # Only checked: the tasks have it from vars/rollout.yml.
    number("switch_timeout", "1", 1)
    if mistakes:
        raise SwitchingError("\n".join(mistakes))
    return settings


def make_plan(hosts: typing.Sequence[str], settings: Settings) -> Plan:
    """The hosts in waves, of the sizes that Ansible's serial makes of the settings; the last ones are held."""
    last = list(hosts[-settings.keep :]) if settings.keep else []
    left = [host for host in hosts if host not in last]
    total = len(left)
    waves: list[list[str]] = []
    while left:
        wave = settings.waves[min(len(waves), len(settings.waves) - 1)]
        size = int(int(wave[:-1]) / 100.0 * total) or 1 if wave.endswith("%") else int(wave)
        waves.append(left[:size])
        left = left[size:]
    return Plan(list(hosts), waves, last, settings.max_failures, settings.on_stop)


def with_steps(found: typing.Sequence[Row], plan: Plan, results: Given, undone: Given) -> list[Row]:
    """The rows with what a timeline draws: each host's wave, its steps, and those of its roll back."""
    numbers = {host: number for number, wave in enumerate(plan.waves, 1) for host in wave}
    return [
        {
            **row,
            "wave": numbers.get(row["host"]) if row["host"] in results else None,
            "steps": list(results.get(row["host"], {}).get("steps", ())),
            "back": list(undone.get(row["host"], {}).get("steps", ())),
        }
        for row in found
    ]


def report(
    plan: Plan,
    switched: Given,
    check: bool,
    tried: typing.Sequence[str],
    undone: Given | None = None,
    steps: bool = False,
) -> dict[str, typing.Any]:
    """The report on a rollout, from what the switch and the roll back registered on each host that was C(tried).

    C(rows) and C(table); C(tried); C(reasons), by failed host the lines to fail it with; C(should_stop), whether too
    many hosts have failed; C(roll_back), the hosts to roll back then; C(finish), the hosts of the play after the
    waves; C(shown), whether the table is due, since the last wave is over and no host has failed.
    """
    undone = undone or {}
    found = rows(plan, switched, check, undone)
    if steps:
        found = with_steps(found, plan, switched, undone)
    bad = failures(found)
    reasons = {row["host"]: _lines(row, undone, switched) for row in bad}
    stop = plan.max_failures is not None and len(bad) > plan.max_failures
    undo = [row["host"] for row in found if to_undo(row, switched.get(row["host"]))]
    roll_back = undo if stop and plan.on_stop == ROLL_BACK and not check else []
    return {
        "rows": found,
        "table": table(found, {host: place(undone.get(host) or switched.get(host) or {}) for host in reasons}),
        "tried": list(tried),
        "reasons": reasons,
        "should_stop": stop,
        "roll_back": roll_back,
        "finish": [host for host in plan.hosts if host in reasons or host in roll_back],
        "shown": not bad and plan.order[-1] in tried,
    }


def placement_report(hosts: typing.Sequence[str], drifts: Given, results: Given) -> dict[str, typing.Any]:
    """The report on a declared placement. It is shown where one is declared."""
    found = places(hosts, drifts, results)
    shown = any(row["result"] not in (NOT_DECLARED, FAILED) for row in found)
    return {"rows": found, "table": table(found), "shown": shown}


def rows(plan: Plan, results: Given, check: bool, undone: Given | None = None) -> list[Row]:
    """A row for each host, from what the switch and, of those rolled back, that registered there."""
    found = [_row(host, results.get(host), host in plan.held, check) for host in plan.hosts]
    if all(row["result"] in (NO_SUCH_MODEL, UNREACHABLE) for row in found):
        # All were asked and none has it: then it is the name that is wrong, and not the hosts that differ.
        for row in found:
            if row["result"] == NO_SUCH_MODEL:
                row["result"] = FAILED
    for row in found:
        back = (undone or {}).get(row["host"])
        if back is None:
            continue
        # What the servers are now; where nobody could ask them, that is not known.
        row["to"] = _active(back, "active_models", "active_model")
        if back.get("error") == "ChangedSince":
            row.update(result=CHANGED_SINCE, reason=_reason(back))
        elif has_failed(back):
            row.update(result=ROLL_BACK_FAILED, reason=_reason(back))
        elif row["result"] == SWITCHED and back.get("changed"):
            row.update(result=ROLLED_BACK, reason="the rollout stopped")
    return found


def places(hosts: typing.Sequence[str], drifts: Given, results: Given) -> list[Row]:
    """A row for each host: how its models differed from the declared placement, and what the switch after that did."""
    found = []
    for host in hosts:
        drift, result = drifts.get(host), results.get(host)
        if drift is None:
            row = _row(host, None, False, True)
            row.update(result=FAILED, reason="failed before its models were checked")
        elif drift.get("skipped"):
            row = {**_row(host, None, False, True), "result": NOT_DECLARED, "reason": "no vllm_active_model"}
        elif drift.get("error") == "NotProvisioned":
            row = {
                **_row(host, None, False, True),
                "result": NOT_LOADED,
                "reason": "not provisioned yet: run bootstrap",
            }
        elif result is not None and not result.get("skipped"):
            # In check mode as well: whether something was to be changed is what the look before tells.
            row = _row(host, result, False, all(step.get("seconds") is None for step in result.get("steps", ())))
        else:
            row = _row(host, drift, False, True)
            if drift.get("steps") and row["result"] not in BAD:
                row.update(result=NOT_LOADED, reason=f"run bootstrap or a switch to load {row['to']}", to=row["from"])
        found.append(row)
    return found


def failures(found: typing.Sequence[Row]) -> list[Row]:
    """The rows of the hosts on which it went wrong."""
    return [row for row in found if row["result"] in BAD]


def table(found: typing.Sequence[Row], told: typing.Mapping[str, str] | None = None) -> list[str]:
    """The rows as lines for people; a dash where there is nothing to say. C(told) has other reasons, by host."""
    shown = [{**row, "reason": (told or {}).get(row["host"], row["reason"])} for row in found]
    return lines([_HEADER, *([_cell(row[key]) for key in _HEADER] for row in shown)])


def _row(host: str, result: Given | None, is_held: bool, check: bool) -> Row:
    row: Row = {"host": host, "from": None, "to": None, "seconds": None, "result": NOT_TRIED, "reason": ""}
    if result is None:
        row["reason"] = "it keeps its model" if is_held else "the rollout had stopped"
        return row
    row["from"] = _active(result, "previous_models", "previous_model")
    row["to"] = _active(result, "active_models", "active_model")
    row["seconds"] = result.get("elapsed_seconds")
    if has_failed(result):
        row["result"] = _kind(result)
        row["reason"] = _reason(result)
    elif is_held:
        # It was looked at in check mode: nothing has changed, whatever would have.
        row["to"] = row["from"]
        row["result"] = HELD if row["from"] else NOT_HELD
        row["reason"] = "" if row["from"] else "no model is active that could be kept"
    elif result.get("changed"):  # a model that is only proved once more is not
        row["result"] = WOULD_SWITCH if check else SWITCHED
    else:
        row["result"] = UNCHANGED
    if row["result"] == SWITCHED:
        row["reason"] = result.get("recovery") or ""
    return row


def without_templates(value: typing.Any) -> typing.Any:
    """The same with nothing in it that Jinja would take for a template."""
    if isinstance(value, dict):
        return {key: without_templates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_templates(item) for item in value]
    return _TEMPLATE.sub("{ ", value) if isinstance(value, str) else value


def to_undo(row: Row, result: Given | None) -> bool:
    """Whether the host is to be rolled back when the rollout stops: where other models are active than before.

    A switch that failed has rolled back itself what it could, so only what it has left active instead is undone.
    """
    given = result or {}
    if row["result"] == SWITCHED:
        return bool(given.get("displaced") or given.get("activated"))
    return row["result"] == FAILED and bool(given.get("activated"))


def _active(result: Given, several: str, one: str) -> str | None:
    """The models that are active by a result, on all GPUs that it is about."""
    names = result.get(several)
    return result.get(one) if names is None else ", ".join(names) or None


def has_failed(result: Given) -> bool:
    """Whether a task failed, on the host or on the way there."""
    return bool(result.get("failed") or result.get("unreachable") or result.get("failure"))


def _kind(result: Given) -> str:
    if result.get("unreachable") or result.get("failure") == "unreachable":
        return UNREACHABLE
    if "timedout" in result or result.get("failure") == "hung":
        return HUNG
    return NO_SUCH_MODEL if result.get("error") == "UnknownModel" else FAILED


def message(result: Given) -> str:
    """What went wrong, in the words of the task."""
    return str(result.get("msg") or result.get("module_stderr") or "no error message")


def place(result: Given) -> str:
    """At which step it went wrong, for where the cause is told already."""
    failed = [step for step in result.get("steps", ()) if "failed" in step]
    return f"at: {failed[0]['action']} {failed[0]['model']}" if failed else "see above"


def _lines(row: Row, *results: Given) -> list[str]:
    """The message of the task that failed, or the row's reason where none has."""
    found = (each.get(row["host"], {}) for each in results)
    return next((message(one) for one in found if has_failed(one)), row["reason"]).splitlines()


def _reason(result: Given) -> str:
    """The cause alone: what a message says first."""
    return " ".join(message(result).split("\n", maxsplit=1)[0].split())


def _cell(value: typing.Any) -> str:
    if value is None or value == "":
        return "-"
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
