# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What a vLLM server's C(/metrics) tell of its requests and of its sleep."""

from __future__ import annotations

import re
import typing

_GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
}
_SLEEP_GAUGE = "vllm:engine_sleep_state"
_GAUGE_LINE = re.compile(r"^(vllm:[a-z_]+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_SLEEP_LABEL = re.compile(r'sleep_state="([a-z_]+)"')
_ABORTED = re.compile(
    r'^vllm:request_success_total\{[^}]*finished_reason="abort"[^}]*\} (\d+(?:\.\d+)?(?:e\+\d\d?)?)$', re.MULTILINE
)
# Counters of C(SpecDecodingProm) in v1/spec_decode/metrics.py (0.11.0 to 0.33.0), there where it speculates; the client
# library adds the ending.
_DRAFTS = re.compile(
    r"^vllm:(spec_decode_num_draft|spec_decode_num_accepted|generation)_tokens(?:_total)?(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)
# Counters of C(PrometheusStatLogger) in v1/metrics/loggers.py (0.11.0 to 0.33.0), and the client library's own.
_COUNTERS = re.compile(
    r"^(vllm:request_success|vllm:prompt_tokens|vllm:generation_tokens|process_start_time_seconds)"
    r"(?:_total)?(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)
# Whatever serves Prometheus metrics says of each what it is.
_COMMENT = re.compile(r"^# (?:HELP|TYPE) ", re.MULTILINE)


class Drafts(typing.NamedTuple):
    """How many tokens were drafted, and how many of those the model itself would have given.

    C(answered) is how many tokens all answers had together; None where that is not told.
    """

    drafted: int
    accepted: int
    answered: int | None = None


class Counters(typing.NamedTuple):
    """What all engines of a server have done since it began: requests that ended, and the tokens of them.

    C(started) is when that was, in seconds since 1970. Each is None where the server does not tell.
    """

    requests: int | None = None
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    started: float | None = None


class Metrics(typing.NamedTuple):
    """C(running) and C(waiting) requests and the sleep C(level), each None where the server has no gauge for it.

    C(at_odds) says that its engines do not sleep at the same level, so that no level is known; C(awake) that a sleep
    gauge says so; C(unread) that there may be gauges, but what was answered is none that can be read; C(drafts) that it
    speculates.
    """

    running: int | None = None
    waiting: int | None = None
    level: int | None = None
    at_odds: bool = False
    awake: bool = False
    unread: bool = False
    drafts: bool = False


def parse(text: str) -> Metrics:
    """What the text of C(/metrics) tells. Each engine of the server has a line of each gauge."""
    numbers: dict[str, list[float | None]] = {}
    engines: dict[str, dict[str, float | None]] = {}
    for name, labels, value in _GAUGE_LINE.findall(text):
        if name in _GAUGES:
            numbers.setdefault(_GAUGES[name], []).append(_number(value))
        elif name == _SLEEP_GAUGE:
            label = _SLEEP_LABEL.search(labels)
            states = engines.setdefault(_SLEEP_LABEL.sub("", labels), {})
            states[label.group(1) if label else ""] = _number(value)
    running, waiting = _sum(numbers.get("running")), _sum(numbers.get("waiting"))
    if waiting is None and "waiting" in numbers:
        running = None
    # No gauge (0.11.0): the level is not known. One that says awake, or nothing, while /is_sleeping says true: the
    # server was paused, or finishes its requests before it sleeps, and has all its memory. Before 0.31 it says awake of
    # one that is half awake too.
    levels = [
        1 if states.get("weights_offloaded") else 2 if states.get("discard_all") else 0
        for states in engines.values()
        if None not in states.values()
    ]
    one = levels and len(levels) == len(engines) and len(set(levels)) == 1
    return Metrics(
        running,
        waiting,
        levels[0] if one else None,
        at_odds=len(set(levels)) > 1,
        awake=any(states.get("awake") for states in engines.values()),
        unread=len(levels) < len(engines) or not (numbers or engines or _COMMENT.search(text)),
        drafts="\nvllm:spec_decode_num_draft_tokens" in text,
    )


def aborted(text: str) -> int | None:
    """How many requests the server has ended before they were done, since it began; None where it doesn't tell."""
    found = _ABORTED.findall(text)
    return int(sum(map(float, found))) if found else None


def drafts(text: str) -> Drafts | None:
    """What all engines together have drafted since they began; None where that is not told."""
    found: dict[str, list[float | None]] = {}
    for name, value in _DRAFTS.findall(text):
        found.setdefault(name, []).append(_number(value))
    drafted, accepted = _sum(found.get("spec_decode_num_draft")), _sum(found.get("spec_decode_num_accepted"))
    return None if drafted is None or accepted is None else Drafts(drafted, accepted, _sum(found.get("generation")))


def counters(text: str) -> Counters:
    """What the server has done since it began, as far as it tells."""
    found: dict[str, list[float | None]] = {}
    for name, value in _COUNTERS.findall(text):
        found.setdefault(name, []).append(_number(value))
    return Counters(
        _sum(found.get("vllm:request_success")),
        _sum(found.get("vllm:prompt_tokens")),
        _sum(found.get("vllm:generation_tokens")),
        next(iter(found.get("process_start_time_seconds", ())), None),
    )


def _sum(values: typing.Sequence[float | None] | None) -> int | None:
    """The sum of what the engines say; None where one of them says no number."""
    read = [value for value in values or () if value is not None]
    return int(sum(read)) if values and len(read) == len(values) else None


def _number(text: str) -> float | None:
    """What a gauge says; None where that is no count of anything."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < 1e15 else None
