# SPDX-License-Identifier: MIT
"""Faults on request.

    POST   /standin/faults   {"path": "/sleep", "fault": "status_500"}   or a list of these
    GET    /standin/faults   those that are left
    DELETE /standin/faults   forget them all

Optional keys: `times` (default 1; 0 = until deleted), `seconds` (for hang and slow_drip),
`match` (only when the query string contains this), `skip` (let so many matching calls pass first).
STANDIN_FAULTS holds such a list from the start. `path` "*" is any path; `path` "load" concerns
loading, with the faults die, kill, oom and hang.

status_500      500 with an error body as vLLM's; nothing is done
hang            wait `seconds` (default: an hour) before doing anything
refuse          close the connection without an answer
reset_mid_body  an answer that promises more than comes before the connection is reset
slow_drip       the right answer, one byte at a time over `seconds` (default: 5)
empty_200       200 with no body; nothing is done
html            200 with a log-in page; nothing is done
wrong_json      200 with JSON of another shape; nothing is done
not_done        200 with the usual answer; nothing is done
die_after_200   do it, answer 200, and die
kill            die at once, as under SIGKILL
oom             500, the engine dies of CUDA out of memory
wrong_text      a completion that the model would not give
redirect        302 to a log-in page; nothing is done
unauthorized    401 as with a wrong API key; nothing is done
"""

from __future__ import annotations

import os
import signal
from dataclasses import asdict, dataclass
from typing import Any

NAMES = {
    "status_500", "hang", "refuse", "reset_mid_body", "slow_drip", "empty_200", "html", "wrong_json", "not_done",
    "die_after_200", "kill", "oom", "wrong_text", "redirect", "unauthorized",
}  # fmt: skip
LOAD_NAMES = {"die", "kill", "oom", "hang"}


@dataclass
class Fault:
    """One order; `times` counts down to its end."""

    path: str
    fault: str
    times: int = 1
    seconds: float | None = None
    match: str = ""
    skip: int = 0

    def __post_init__(self) -> None:
        known = LOAD_NAMES if self.path == "load" else NAMES
        if self.fault not in known:
            raise ValueError(f"unknown fault {self.fault!r} for {self.path!r}; there are {', '.join(sorted(known))}")


class Faults:
    """The faults that are left."""

    def __init__(self, orders: list[dict[str, Any]]) -> None:
        self.left = [Fault(**order) for order in orders]

    def add(self, orders: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Order one fault or several."""
        self.left += [Fault(**order) for order in (orders if isinstance(orders, list) else [orders])]

    def take(self, path: str, query: str = "") -> Fault | None:
        """Return the fault that this call meets, if any, and count it."""
        for fault in self.left:
            if fault.path not in (path, "*") or fault.match not in query:
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.times == 1:
                self.left.remove(fault)
            elif fault.times:
                fault.times -= 1
            return fault
        return None

    def listed(self) -> list[dict[str, Any]]:
        """Return what is left, as it could be ordered again."""
        return [asdict(fault) for fault in self.left]


def die() -> None:
    """End as under SIGKILL: the first process of a container does not heed one that it sends itself."""
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(128 + signal.SIGKILL)
