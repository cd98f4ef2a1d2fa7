# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Tables for people."""

from __future__ import annotations

import time
import typing

_SWITCHES = ("host", "last_switch", "to", "seconds", "result", "rung", "reason")
_WIDEST = 60
_HEADER = ("host", "model", "state", "level", "port", "running", "waiting", "gpu_gb")
_KEYS = ("state", "level", "host_port", "running", "waiting", "gpu_memory_gb")
_LEVELS = ("host", "model", "level_1", "level_2", "next_sleep")
_MANAGERS = ("host", "manager", "mode", "reconciles", "switching", "waiting", "problem")
_MANAGED = ("host", "model", "queue", "eta", "breaker", "note")
# Columns that are left out where no model has such a text.
_TEXTS = ("description", "problem")


def status_lines(reports: typing.Mapping[str, typing.Mapping[str, typing.Any]]) -> list[str]:
    """The lines of the table for Switcher.report() of each host, and of those with the last switch of each, with what
    its model manager shows, and with what sleeping and waking have taken.

    What is not known is a dash.
    """
    models = [(host, *each) for host, report in reports.items() for each in report["models"].items()]
    texts = [key for key in _TEXTS if any(model.get(key) for _host, _name, model in models)]
    rows: list[tuple[str, ...]] = [(*_HEADER, *texts)]
    for host, name, model in models:
        told = [" ".join(model.get(key, "").split()) for key in texts]
        rows.append((host, name, *(_cell(model.get(key)) for key in _KEYS), *told))
    last = [_last(host, report["last_switch"]) for host, report in reports.items() if report.get("last_switch")]
    leaks = [_leak(host, name, model["leak"]) for host, name, model in models if _leaks(model)]
    measured = [_levels(*each) for each in models if _measured(each[2])]
    managers = [(host, report["manager"]) for host, report in reports.items() if report.get("manager")]
    managed = [(host, *each) for host, manager in managers for each in manager["models"].items()]
    tables = (
        (_SWITCHES, last),
        (_MANAGERS, [_manager(*each) for each in managers]),
        (_MANAGED, [_managed(*each) for each in managed if _is_of_note(each[2])]),
        (_LEVELS, measured),
    )
    more = [lines([header, *table]) for header, table in tables if table]
    more = [leaks, *more] if leaks else more
    return [*lines(rows), *(line for table in more for line in ("", *table))]


def _measured(model: typing.Mapping[str, typing.Any]) -> dict[int, str]:
    """What levels have taken to sleep and to wake, where both were measured, and how often."""
    found = {}
    for cost in model.get("levels") or ():
        if cost["sleeps"] and cost["wakes"]:
            times = min(cost["sleeps"], cost["wakes"])
            found[cost["level"]] = f"{cost['sleep_seconds']:.1f} + {cost['wake_seconds']:.1f} s ({times})"
    return found


def _levels(host: str, name: str, model: typing.Mapping[str, typing.Any]) -> tuple[str, ...]:
    told = _measured(model)
    return (host, name, told.get(1, "-"), told.get(2, "-"), model.get("next_sleep") or "-")


def _leaks(model: typing.Mapping[str, typing.Any]) -> bool:
    return bool((model.get("leak") or {}).get("switches_left") is not None)


def _leak(host: str, name: str, leak: typing.Mapping[str, typing.Any]) -> str:
    times = "1 more switch" if leak["switches_left"] == 1 else f"{leak['switches_left']} more switches"
    return (
        f"{host}: {name} holds {leak['gb_per_sleep']:.2f} GB more of its GPUs after each sleep: fit for about {times}, "
        "then stop it and make it active again (leak_limit_gb does that)"
    )


def _manager(host: str, manager: typing.Mapping[str, typing.Any]) -> tuple[str, ...]:
    moving = manager["switching"]
    waiting = sum(1 for one in manager["queue"] if one["position"] != 0)
    return (
        host,
        "running" if manager["running"] else "not running",
        f"pinned: {manager['pinned']}" if manager["pinned"] else manager["mode"],
        "yes" if manager["reconciles"] else "no",
        f"{moving['from'] or '-'} -> {moving['to']}" if moving else "-",
        str(waiting) if manager["running"] else "-",
        manager["problem"] or "-",
    )


def _is_of_note(model: typing.Mapping[str, typing.Any]) -> bool:
    """Whether the manager has more to tell of a model than its state."""
    return bool(model["queue_depth"] or model["note"] or model["down"] or (model["breaker"] or {}).get("failures"))


def _managed(host: str, name: str, model: typing.Mapping[str, typing.Any]) -> tuple[str, ...]:
    breaker, eta = model["breaker"], model["eta_seconds"]
    told = "-"
    if breaker and breaker["failures"]:
        told = f"{breaker['state']} ({breaker['failures']})"
        if breaker["retry_at"]:
            told += time.strftime(" until %H:%M:%S UTC", time.gmtime(breaker["retry_at"]))
    note = " ".join(str(model["note"] or (breaker or {}).get("reason") or "").split())
    note = "down" + (f": {note}" if note else "") if model["down"] else note
    return (host, name, str(model["queue_depth"]), "-" if eta is None else f"{eta:.1f} s", told, _short(note))


def _last(host: str, switch: typing.Mapping[str, typing.Any]) -> tuple[str, ...]:
    ended = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(switch["ended"]))
    state = "" if switch["state"] == "active" else " " + str(switch["state"])
    return (
        host,
        ended,
        ", ".join(map(str, switch["models"])) + state,
        f"{switch['seconds']:.1f}",
        str(switch["result"]),
        str(switch["rung"] or "-"),
        _short(str(switch["reason"])),
    )


def _short(text: str) -> str:
    return (text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "...") or "-"


def _cell(value: typing.Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def lines(rows: typing.Sequence[typing.Sequence[str]]) -> list[str]:
    """The rows with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
