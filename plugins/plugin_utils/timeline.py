# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A switch as a picture: what was done to which server, when, and for how long.

One host has a lane for each model. Of many hosts each has one lane, below its wave's name; a wave begins where the one
before ends, as the controller lets it.
"""

from __future__ import annotations

import html
import math
import os
import typing

Given = typing.Mapping[str, typing.Any]

WIDTH = 940
_MARGIN = 20
_CHARACTER = 7.2  # the most that one takes on average in a label; there is no font to measure
_LONGEST_LABEL = 30
_NOTE = 250  # the column to the right of many hosts' lanes
_TICKS = 7
_NOT_IN_XML = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF])

# In the order of the legend.
ACTIONS = ("wait", "drain", "sleep", "stop", "start", "wake", "reload", "verify", "record", "first_answer")

_STYLE = """\
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .h { font-weight: 600; font-size: 15px; } .w { font-weight: 600; } .s { font-size: 12px; fill: #59636e; }
  .s { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; }
  .panel { fill: #ffffff; stroke: #d1d9e0; } .grid { stroke: #d1d9e0; } .bar { stroke-width: 1; }
  .wait { fill: #eaeef2; stroke: #818b98; } .drain { fill: #fff8c5; stroke: #bf8700; }
  .sleep { fill: #b6e3ff; stroke: #0969da; } .stop { fill: #d1d9e0; stroke: #59636e; }
  .start { fill: #ecd8ff; stroke: #8250df; } .wake { fill: #aceebb; stroke: #1a7f37; }
  .reload { fill: #c3faea; stroke: #0f766e; } .verify { fill: #4ac26b; stroke: #116329; }
  .record { fill: #ffd8b5; stroke: #bc4c00; } .first_answer { fill: #ffd3e5; stroke: #bf3989; }
  .recovery { stroke-dasharray: 4 2; }
  .failed { stroke: #cf222e; stroke-width: 2.5; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .s { fill: #9198a1; stroke: #0d1117; }
    .panel { fill: #0d1117; stroke: #3d444d; } .grid { stroke: #3d444d; }
    .wait { fill: #262c36; stroke: #9198a1; } .drain { fill: #4b2900; stroke: #d29922; }
    .sleep { fill: #0c2d6b; stroke: #58a6ff; } .stop { fill: #3d444d; stroke: #9198a1; }
    .start { fill: #3c1e70; stroke: #be8fff; } .wake { fill: #04260f; stroke: #3fb950; }
    .reload { fill: #042f2e; stroke: #2dd4bf; } .verify { fill: #196c2e; stroke: #7ee787; }
    .record { fill: #5a1e02; stroke: #ffa657; } .first_answer { fill: #5e103e; stroke: #f778ba; }
    .failed { stroke: #ff7b72; }
  }
"""


def path_of(file: str) -> str:
    """Where a file is that was named where the command was typed."""
    return os.path.abspath(os.path.expanduser(file))


def unwritable(file: str) -> str:
    """Why such a file can't be written, as far as that can be known before; else \"\"."""
    path = path_of(file)
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        why = "it is a folder"
    elif not os.path.isdir(folder):
        why = f"there is no folder {folder}"
    elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
        why = "permission denied"
    else:
        return ""
    return f"timeline: {path} can't be written: {why}"


class Bar(typing.NamedTuple):
    """A step: from when on, in seconds since everything began, and for how long."""

    start: float
    step: Given

    @property
    def end(self) -> float:
        """When it ended."""
        return self.start + self.step["seconds"]


class Lane(typing.NamedTuple):
    """A line of the picture: a name, its bars, and what is said of it. Without a name it is a headline."""

    label: str
    bars: list[Bar]
    note: str


def svg(rows: typing.Sequence[Given]) -> str:
    """The picture of what rows of a report say.

    Of each C(host), C(from), C(to), C(seconds), C(result), C(wave) (a number) and C(steps) count, and C(back), the
    steps of putting it back; what is missing is not known.
    """
    rows = [row for row in rows if row.get("result") not in ("kept", "not kept")] or list(rows)
    if len(rows) == 1:
        lanes, end = _of_models(rows[0])
        return _drawn(_headline(rows[0]), lanes, end, 0)
    # What they have in common is said once.
    pairs = {(row.get("from"), row.get("to")) for row in rows if row.get("result") == "switched"}
    models = _models(*pairs.pop()) if len(pairs) == 1 else ""
    lanes, end, waves = _of_hosts(rows, models)
    title = f"{len(rows)} hosts" + (f" in {waves} waves" if waves > 1 else "") + (f": {models}" if models else "")
    return _drawn(f"{title}, {end:.1f} s", lanes, end, _NOTE)


def _of_models(row: Given) -> tuple[list[Lane], float]:
    bars, end = _bars(row, 0.0)
    names = list(dict.fromkeys(each.step["model"] for each in bars))
    lanes = []
    for name in names:
        own = [each for each in bars if each.step["model"] == name]
        lanes.append(Lane(name, own, ", ".join(_short(each.step) for each in own)))
    return (lanes, end) if lanes else ([Lane("", [], "nothing was done")], 0.0)


def _of_hosts(rows: typing.Sequence[Given], usual: str) -> tuple[list[Lane], float, int]:
    """The lanes, when the last one ends, and how many waves there were. C(usual) models are not told again."""
    began = 0.0
    lanes: list[Lane] = []
    waves = sorted({row["wave"] for row in rows if row.get("wave") is not None})
    ended: dict[str, list[Bar]] = {}
    for wave in waves or [None]:
        members = [row for row in rows if row.get("wave") == wave]
        lanes += [Lane("", [], f"wave {wave}")] if len(waves) > 1 else []
        end = began
        for row in members:
            bars, last = _bars({**row, "back": ()}, began)
            lanes.append(Lane(row["host"], bars, _note(row, usual)))
            ended[row["host"]] = bars
            end = max(end, last)
        began = end
    # The hosts are put back when no other wave begins.
    end = began
    for row in rows:
        back, last = _bars({"steps": row.get("back"), "seconds": None}, began)
        ended.get(row["host"], []).extend(back)
        end = max(end, last)
    untried = [row for row in rows if row.get("wave") is None] if waves else []
    lanes += [Lane("", [], "not tried")] if untried else []
    lanes += [Lane(row["host"], [], _note(row, usual)) for row in untried]
    return lanes, end, len(waves)


def _bars(row: Given, began: float) -> tuple[list[Bar], float]:
    """The steps of one host that began then, those of putting it back after the others; and when they ended."""
    bars: list[Bar] = []
    end = began
    for steps, seconds in ((row.get("steps"), row.get("seconds")), (row.get("back"), None)):
        start, last = end, end + (seconds or 0.0)
        for step in steps or ():
            # A plan has no times.
            if step.get("seconds") is not None and step.get("started_seconds") is not None:
                bars.append(Bar(start + step["started_seconds"], step))
                last = max(last, bars[-1].end)
        end = last
    return bars, end


def _headline(row: Given) -> str:
    seconds = "" if row.get("seconds") is None else f", {row['seconds']:.1f} s"
    return f"{row['host']}: {_note({**row, 'seconds': None})}{seconds}"


def _note(row: Given, usual: str = "") -> str:
    """What became of a host, in a few words."""
    models = _models(row.get("from"), row.get("to"))
    result = row.get("result") or ""
    seconds = "" if row.get("seconds") is None else f"{row['seconds']:.1f} s"
    told = models if models != usual else ""
    return ", ".join(filter(None, (seconds, result if result != "switched" or not told else "", told)))


def _models(before: str | None, after: str | None) -> str:
    if before == after:
        return f"{after} stays" if after else ""
    return f"{before or 'none'} → {after or 'none'}"


def _short(step: Given) -> str:
    failed = " failed" if "failed" in step else ""
    rung = f"{step['escalation'].replace('_', ' ')}: " if "escalation" in step else ""
    return f"{rung}{step['action']}{failed} {step['seconds']:.2f} s"


def _long(each: Bar) -> str:
    """All that is to be said of a step, for who points at it."""
    step = each.step
    level = f" (level {step['level']})" if step.get("level") is not None else ""
    more = step.get("failed") or step.get("note") or ""
    text = f"{_short({**step, 'action': step['action'] + ' ' + step['model'] + level})}, from {each.start:.2f} s on"
    return f"{text}: {more}" if more else text


def _drawn(title: str, lanes: typing.Sequence[Lane], end: float, beside: int) -> str:
    """The SVG. What is said of a lane stands to its right, in a column that is so wide, or without one below it."""
    labels = [_cut(lane.label) for lane in lanes]
    left = _MARGIN + max([60.0, *(len(label) * _CHARACTER + 16 for label in labels)])
    right = WIDTH - _MARGIN - beside
    unit = _tick(end)
    # The axis ends with a whole unit.
    scale = (right - left - 30) / (unit * max(1, math.ceil(round(end / unit, 6))))
    top = 74.0
    body: list[str] = []
    y = top
    for label, lane in zip(labels, lanes):
        if not lane.label:
            body.append(_text(_MARGIN, y + 15, lane.note, "w"))
            y += 24
            continue
        body.append(_text(_MARGIN, y + 15, label, ""))
        for each in lane.bars:
            body.append(_rectangle(each, left, y, scale))
        if beside:
            body.append(_text(right + 12, y + 15, _cut(lane.note, 36), "s"))
            y += 28
        else:
            wide = len(lane.note) * (_CHARACTER - 0.7)
            x = min(left + lane.bars[0].start * scale, right - wide)
            body.append(_text(max(x, _MARGIN), y + 36, _cut(lane.note, int((right - _MARGIN) / 6.5)), "s"))
            y += 52
    axis = []
    count = math.ceil(round(end / unit, 6)) if end else 0
    for number in range(count + 1):
        x = left + number * unit * scale
        axis.append(f'<path class="grid" d="M{x:.1f} {top - 10:.0f}V{y:.0f}"/>')
        axis.append(_text(x, top - 16, f"{number * unit:g}" + (" s" if number == count else ""), "s", "middle"))
    height = y + 44
    legend = _legend([each.step for lane in lanes for each in lane.bars], y + 24)
    style = f"<style>\n{_STYLE}</style>"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" role="img" aria-labelledby="title">',
            f'<title id="title">{_clean(title)}</title>',
            style,
            f'<rect class="panel" x="1" y="1" width="{WIDTH - 2}" height="{height - 2:.0f}" rx="12"/>',
            _text(_MARGIN, 32, title, "h"),
            *axis,
            *body,
            *legend,
            "</svg>\n",
        ]
    )


def _rectangle(each: Bar, left: float, y: float, scale: float) -> str:
    classes = ["bar", each.step["action"] if each.step["action"] in ACTIONS else "wait"]
    classes += ["recovery"] if "escalation" in each.step else []
    classes += ["failed"] if "failed" in each.step else []
    width = max(2.0, each.step["seconds"] * scale)
    return (
        f'<rect class="{" ".join(classes)}" x="{left + each.start * scale:.1f}" y="{y:.0f}" width="{width:.1f}" '
        f'height="20" rx="2"><title>{_clean(_long(each))}</title></rect>'
    )


def _legend(steps: typing.Sequence[Given], y: float) -> list[str]:
    entries = [(action, action) for action in ACTIONS if any(step["action"] == action for step in steps)]
    entries += [("wait failed", "failed")] if any("failed" in step for step in steps) else []
    entries += [("wait recovery", "retry, restart, stop or roll back")] if any("escalation" in s for s in steps) else []
    drawn = []
    x = float(_MARGIN)
    for classes, text in entries:
        drawn.append(f'<rect class="bar {classes}" x="{x:.0f}" y="{y - 11:.0f}" width="16" height="12" rx="2"/>')
        drawn.append(_text(x + 22, y, text, "s"))
        x += 22 + len(text) * _CHARACTER + 18
    return drawn


def _tick(end: float) -> float:
    """How many seconds lie between two lines: 1, 2 or 5 times a power of ten."""
    if end <= 0:
        return 1.0
    rough = end / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9)))


def _text(x: float, y: float, text: str, classes: str, anchor: str = "") -> str:
    more = (f' class="{classes}"' if classes else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.0f}"{more}>{_clean(text)}</text>'


def _cut(text: str, longest: int = _LONGEST_LABEL) -> str:
    """Without its middle where it is too long: names of hosts differ at both ends."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-(longest - half - 1) :]}"


def _clean(text: str) -> str:
    return html.escape(" ".join(text.translate(_NOT_IN_XML).split()))
