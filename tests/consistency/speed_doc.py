# SPDX-License-Identifier: MIT
"""README.md's table of speed: the limits of the bench, and the medians that `bench/run.py --write` has measured.

docs/gateway.md has a part of it.
"""

from __future__ import annotations

import re
from typing import Any

from bench import medians
from tests.consistency import blocks

# These are in docs/gateway.md, too.
DOOR_ROWS = (
    (
        "CPU of a request at the gateway of many hosts, against that at the gateway of the host behind it",
        ("CPU a request, gateway of many hosts / gateway of a host",),
    ),
    (
        "what the gateway of many hosts adds to the gateway of a host for 99 of 100 requests",
        ("99 of 100 requests, gateway of many hosts - gateway of a host",),
    ),
    (
        "what it adds until the first byte of a stream",
        ("a stream's first byte, gateway of many hosts - gateway of a host",),
    ),
)
# What a row says, and the figures of the bench that it is about.
ROWS = (
    (
        "a switch by the engine, against the bare sequence of the same HTTP calls by the library `requests`, without "
        "the canary and with it",
        (
            "core's switch / its HTTP calls alone, canary off",
            "core's switch / its HTTP calls alone, canary enforce",
        ),
    ),
    (
        "a switch by the model manager (`POST /switch`), against the bare sequence of the same HTTP calls",
        ("POST /switch / its HTTP calls alone",),
    ),
    (
        "the same, what it takes beyond these calls",
        ("POST /switch over its HTTP calls alone, median",),
    ),
    (
        "the same, what 99 of 100 do not exceed",
        ("POST /switch over its HTTP calls alone, 99 of 100",),
    ),
    (
        "`switch.yml` on one host, the report included, against a play with one `ping`; its CPU against that play's",
        ("switch.yml / a play with one ping", "CPU of switch.yml / of a play with one ping"),
    ),
    (
        "`status.yml` on one host, against a play with one `ping`; its CPU",
        ("status.yml / a play with one ping", "CPU of status.yml / of a play with one ping"),
    ),
    (
        "`switch.yml`, against a playbook that makes the same calls with `ansible.builtin.uri`",
        ("switch.yml / the same by uri tasks",),
    ),
    (
        "`switch.yml` on 10, 20 and 50 SSH hosts, against a play with one `ping` on them",
        tuple(f"switch.yml / a play with one ping, {size} hosts" for size in (10, 20, 50)),
    ),
    (
        "the same, the CPU of the controller",
        tuple(f"controller's CPU, switch.yml / a play with one ping, {size} hosts" for size in (10, 20, 50)),
    ),
    (
        "the same, against the `uri` playbook",
        tuple(f"switch.yml / the same by uri tasks, {size} hosts" for size in (10, 20, 50)),
    ),
    (
        "from the moment a server is ready to the moment the engine knows it",
        ("ready to known, all of them",),
    ),
    (
        "`bootstrap.yml` with three models that load for two minutes each, against the sum of their own load times",
        ("bootstrap.yml against the servers' own loading",),
    ),
    (
        "on real vLLM, a reload of 2.3 GB of weights that were read ahead, against one from a disk of 0.34 GB a second",
        ("a reload, weights read ahead / from a disk of 0.34 GB a second",),
    ),
    (
        "the whole switch that reads them ahead, against one that does not",
        ("a switch with weights read ahead / without, on that disk",),
    ),
    (
        "the same with weights that are in RAM anyway",
        ("a switch with weights read ahead / without, in RAM",),
    ),
    (
        "a copy within RAM, as a sleep at level 1 makes it, while weights are read, against one alone",
        ("a copy within RAM while weights are read / alone",),
    ),
    (
        "a request for the active model by the gateway, against one by nginx's plain `proxy_pass`: CPU",
        ("CPU a request, gateway / plain proxy_pass",),
    ),
    (
        "requests a second by plain `proxy_pass`, against those by the gateway",
        ("requests a second, plain proxy_pass / gateway",),
    ),
    (
        "what the gateway adds to plain `proxy_pass` for 99 of 100 requests",
        ("99 of 100 requests, gateway - plain proxy_pass",),
    ),
    (
        "what it adds until the first byte of a stream",
        ("a stream's first byte, gateway - plain proxy_pass",),
    ),
    (
        "a request of 20 MB by the gateway, against one by plain `proxy_pass`",
        ("a body of 20 MB, gateway / plain proxy_pass",),
    ),
    *DOOR_ROWS,
    (
        "CPU of a request by the gateway, in percent of that by LiteLLM 1.100.0",
        ("CPU a request, gateway in percent of LiteLLM 1.100.0",),
    ),
    (
        "in percent of that by vllm-router 0.1.17",
        ("CPU a request, gateway in percent of vllm-router 0.1.17",),
    ),
    (
        "in percent of that by local-llm-server 0.38.6",
        ("CPU a request, gateway in percent of local-llm-server 0.38.6",),
    ),
    (
        "memory of each of 5,000 requests that wait at the gateway for a minute",
        ("memory of each of 5,000 requests that wait",),
    ),
    (
        "CPU of the gateway while they wait, in percent of a core",
        ("CPU while 5,000 requests wait, of a core",),
    ),
)
_FIGURE = re.compile(r'Figure\(\s*f?"(?P<name>[^"]+)",\s*(?P<limit>[\d.]+)(?:, "(?P<unit>[^"]+)")?')


def limits() -> dict[str, tuple[float, str]]:
    """Return the limits that the bench has, with their units, by the names of the figures as it makes them."""
    source = medians.FILE.with_name("run.py").read_text(encoding="utf-8")
    return {match["name"]: (float(match["limit"]), match["unit"] or "") for match in _FIGURE.finditer(source)}


def limit(name: str) -> tuple[float, str]:
    """Return the limit of one figure, in whose name the bench may put a word or a number."""
    (found,) = {
        value
        for template, value in limits().items()
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(template)), name)
    }
    return found


def shown(figure: dict[str, Any]) -> str:
    """Return a median as the table has it."""
    return f"{figure['median']:.1f} {figure['unit']}" if figure["unit"] else f"{figure['median']:.2f}"


def table(known: dict[str, Any], of: tuple[tuple[str, tuple[str, ...]], ...] = ROWS) -> str:
    """Return the table of these rows, and below it when and on what it was measured."""
    figures = known["figures"]
    rows = []
    for what, names in of:
        ((most, unit),) = {limit(name) for name in names}
        measured = [shown(figures[name]) if name in figures else "-" for name in names]
        rows.append([what, f"{most:g}{unit}", ", ".join(measured)])
    dates = sorted({figures[name]["date"] for _what, names in of for name in names if name in figures})
    if not dates:
        return blocks.table(["what", "limit", "median"], rows) + "\nA dash is what was not measured.\n"
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    machine = known["machine"]
    cores = f"{machine['cores']} core" + ("" if machine["cores"] == 1 else "s")
    below = f"Medians of {when} on {cores} of {machine['processor']}, {machine['memory_gb']} GB of RAM"
    some = any(name not in figures for _what, names in of for name in names)
    missing = "; a dash is what was not measured there" if some else ""
    return blocks.table(["what", "limit", "median"], rows) + f"\n{below}{missing}.\n"


def rendered() -> dict[str, str]:
    """Return the blocks of the page."""
    return {"speed": table(medians.read())}


def door_rendered() -> dict[str, str]:
    """Return those of the gateway's page."""
    return {"door-speed": table(medians.read(), DOOR_ROWS)}
