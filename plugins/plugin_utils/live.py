# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines and reports that are seen at once, while a task's result is shown when it has ended; failures shown once."""

from __future__ import annotations

import typing

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.utils.display import Display


def say(lines: typing.Iterable[str]) -> None:
    """Print the lines; where the output is one for machines, on the standard error."""
    for_machines = "json" in str(C.DEFAULT_STDOUT_CALLBACK)
    for line in lines:
        # One at a time: a line of two would be wrapped as one.
        Display().display(line, stderr=for_machines)


def show(
    report: typing.Mapping[str, typing.Any],
    result: dict[str, typing.Any],
    stat: str | None,
    timeline: str | None,
    check: bool,
) -> None:
    """Print the table of a report, and add its rows to the C(result) as the statistic C(stat); draw the timeline."""
    say(["", *report["table"]])  # apart from what is above it
    if stat:
        result["ansible_stats"] = {"data": {stat: report["rows"]}, "aggregate": False, "per_host": False}
    if timeline:
        _draw(timeline, report["rows"], result, check)


def _draw(file: str, rows: typing.Any, result: dict[str, typing.Any], check: bool) -> None:
    """Write the timeline; where that can't be done, warn: it is no reason to lose a result."""
    # Not above: few ask for one.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils.timeline import path_of, svg

    path = path_of(file)
    if check:
        say(["", f"timeline: {path} is not written in check mode"])
        return
    try:
        with open(path, "w", encoding="utf-8") as written:
            written.write(svg(rows))
    except OSError as error:
        result.setdefault("warnings", []).append(f"timeline: {path} could not be written: {error.strerror or error}")
    else:
        say(["", f"timeline: {path}"])


class _Told(AnsibleActionFail):
    """Fails a task with lines that are shown once: of any other failure ansible-core 2.19 and later print all twice."""

    omit_exception_key = True

    def __init__(self, told: dict[str, typing.Any]) -> None:
        super().__init__("see msg", result=told)  # ansible-core 2.21 returns this
        self.told = told

    @property
    def result_contribution(self) -> dict[str, typing.Any]:
        """What ansible-core 2.19 and 2.20 return."""
        return self.told


def failed(lines: list[str]) -> dict[str, typing.Any]:
    """The result of an action that fails with the lines as its message. Raises it where that is the way."""
    told = {"failed": True, "changed": False, "msg": lines, "_ansible_verbose_always": True}
    if hasattr(AnsibleActionFail, "omit_exception_key"):
        raise _Told(told)
    # ansible-core 2.18 prints what is returned once, and adds to what is raised.
    return told
