# SPDX-License-Identifier: MIT
"""Faults on request.

    POST   /standin/faults   {"path": "/sleep", "fault": "status_500"}   or a list of these
    GET    /standin/faults   those that are left
    DELETE /standin/faults   forget them all

Optional keys: `times` (default 1; 0 = until deleted), `seconds` (for those below that name it),
`match` (only when the query string contains this), `skip` (let so many matching calls pass first),
`after` (only once this path has been called).
STANDIN_FAULTS holds such a list from the start. `path` "*" is any path; `path` "load" concerns
loading, with the faults die, kill, oom and hang; `path` "term" concerns SIGTERM, with the fault hang: it is ignored.

STANDIN_FAULTS_FILE names a file that may hold such a list, which is read at every call and counted down in place. So it
reaches a server that is yet to be started, outlives a restart, and ends when the file is removed.

status_500      500 with an error body as vLLM's; nothing is done
hang            wait `seconds` (default: an hour) before doing anything
refuse          close the connection without an answer
reset_mid_body  an answer that promises more than comes before the connection is reset
slow_drip       the right answer, one byte at a time over `seconds` (default: 5)
empty_200       200 with no body; nothing is done
html            200 with a log-in page; nothing is done
wrong_json      200 with JSON of another shape; nothing is done
deep_json       200 with JSON that is nested more deeply than a parser goes; nothing is done
odd_numbers     200 with metrics whose numbers are none, or have no end; nothing is done
two_engines     200 with the metrics of two engines, of which one sleeps and one has a request; nothing is done
not_done        200 with the usual answer; nothing is done
early           200 with the usual answer at once; it is done `seconds` later (default: 1.5)
late            do it `seconds` later (default: 1.5), whether the client still waits or not
lost            do it, and close the connection without an answer
slow            do it, and answer `seconds` later (default: 1)
full            for `seconds` (default: 1.5) nothing is answered, and no connection is taken: the backlog is full
die_after_200   do it, answer 200, and die
kill            die at once, as under SIGKILL
freeze          stop at once, as under SIGSTOP: connections are taken, and nothing answers
deaf            close the connection and the port, and live on: from now on connections are refused
oom             500, the engine dies of CUDA out of memory
lose_adapters   do it, and from the next wake on LoRA adapters have no effect: their routes answer as the bare model
swap_adapters   do it, and from the next wake on each LoRA adapter answers as the next one
drop_adapters   do it, and forget the LoRA adapters: their routes are gone
wrong_text      a completion that the model would not give
redirect        302 to a log-in page; nothing is done
unauthorized    401 as with a wrong API key; nothing is done
frees_nothing   do it, but the sleep gives no memory back, or does so `seconds` later (default: never)
not_ready       503 as /health has where the engine is dead; nothing is done
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NAMES = {
    "status_500", "hang", "refuse", "reset_mid_body", "slow_drip", "empty_200", "html", "wrong_json", "not_done",
    "early", "late", "lost", "die_after_200", "kill", "freeze", "deaf", "oom", "wrong_text", "redirect", "unauthorized",
    "slow", "full", "deep_json", "odd_numbers", "two_engines", "not_ready", "frees_nothing",
    "lose_adapters", "swap_adapters", "drop_adapters",
}  # fmt: skip
# Of what is no call.
OTHER_NAMES = {"load": {"die", "kill", "oom", "hang"}, "term": {"hang"}}


@dataclass
class Fault:
    """One order; `times` counts down to its end."""

    path: str
    fault: str
    times: int = 1
    seconds: float | None = None
    match: str = ""
    skip: int = 0
    after: str = ""

    def __post_init__(self) -> None:
        known = OTHER_NAMES.get(self.path, NAMES)
        if self.fault not in known:
            raise ValueError(f"unknown fault {self.fault!r} for {self.path!r}; there are {', '.join(sorted(known))}")


class Faults:
    """The faults that are left."""

    def __init__(self, orders: list[dict[str, Any]], file: Path | None = None) -> None:
        self.left = [Fault(**order) for order in orders]
        self.file = file

    def add(self, orders: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Order one fault or several."""
        self.left += [Fault(**order) for order in (orders if isinstance(orders, list) else [orders])]

    def take(self, path: str, query: str = "") -> Fault | None:
        """Return the fault that this call meets, if any, and count it."""
        return _take(self.left, path, query) or self._take_from_file(path, query)

    def _take_from_file(self, path: str, query: str) -> Fault | None:
        if self.file is None or not self.file.exists():
            return None
        # In place: a file that is removed meanwhile must not come back.
        with self.file.open("r+", encoding="utf-8") as file:
            text = file.read()
            left = [Fault(**order) for order in json.loads(text)]
            fault = _take(left, path, query)
            after = json.dumps([asdict(order) for order in left])
            if after != text:
                file.seek(0)
                file.truncate()
                file.write(after)
        return fault

    def listed(self) -> list[dict[str, Any]]:
        """Return what is left, as it could be ordered again."""
        return [asdict(fault) for fault in self.left]


def _take(left: list[Fault], path: str, query: str) -> Fault | None:
    for fault in left:
        if fault.after:
            # It counts from the next call on.
            fault.after = "" if fault.after == path else fault.after
            continue
        whatever = fault.path == "*" and path not in OTHER_NAMES and not path.startswith("/standin/")
        if not (whatever or fault.path == path) or fault.match not in query:
            continue
        if fault.skip:
            fault.skip -= 1
            continue
        if fault.times == 1:
            left.remove(fault)
        elif fault.times:
            fault.times -= 1
        return fault
    return None


def die() -> None:
    """End as under SIGKILL: the first process of a container does not heed one that it sends itself."""
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(128 + signal.SIGKILL)
