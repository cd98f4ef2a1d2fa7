# SPDX-License-Identifier: MIT
"""The cells of time, records and other people: nothing answers wrongly, but slowly, unwritten, or to somebody else too.

Each is a circumstance of the switch from a to b, named by its heading, by what happens and by when:

- servers that are slow, or that were in the middle of it when the switch before was killed;
- requests that come between the look at a server and its sleep;
- records that can't be written, and writers that are killed;
- the lock: held by strangers, removed, replaced, wanted by two;
- servers that somebody wakes, pauses or ends by hand;
- records that would be believed without a reason, and a server of another start;
- answers that no parser takes;
- vLLM's other families.
"""

from __future__ import annotations

from collections.abc import Iterator

from .cells import STOPPED, Cell
from .host import Setup
from .scene import Moment

B, A, NAMED = "b active", "a active again", "error state"
# As a switch takes them, in the order of its calls.
SLEEP = "POST /sleep.*level=[12]"
WAKE, WEIGHTS, RELOAD, CACHE = "POST /wake_up", "POST /wake_up.*weights", "POST /collective_rpc", "POST /wake_up.*kv_"
RESET, ANSWER = "POST /reset_prefix_cache", "POST /v1/completions"


def cells() -> Iterator[Cell]:
    """All of them."""
    yield from _cut_off_amid()
    yield from _unwritten()
    yield from _killed_writers()


def _cut_off_amid() -> Iterator[Cell]:
    """A switch was killed while a server was busy with what it had been told."""
    step = "after a switch that was killed"
    kinds: list[tuple[str, Setup, list[tuple[str, str, str]]]] = [
        ("level 1", Setup(move_seconds=0.3), [("sleep", "a", SLEEP), ("wake", "b", WAKE), ("answer", "b", ANSWER)]),
        (
            "level 2",
            Setup(a="2", b="2", move_seconds=0.3),
            [
                ("sleep", "a", SLEEP),
                ("wake", "b", WEIGHTS),
                ("reload", "b", RELOAD),
                ("caches", "b", CACHE),
                ("reset", "b", RESET),
                ("answer", "b", ANSWER),
            ],
        ),
    ]
    for kind, setup, calls in kinds:
        for call, server, match in calls:
            # The last two are quick.
            moments = ((0.0, "before"), (0.1, "amid")) if call not in ("answer", "reset") else ((0.0, "before"),)
            for seconds, when in moments:
                moment = Moment("call", match, server, kill=seconds)
                yield Cell(
                    step,
                    f"{call} {when}",
                    kind,
                    f"it was killed {when} its {call}",
                    setup,
                    moments=(moment,),
                    killed=True,
                )


def _unwritten() -> Iterator[Cell]:
    """Records that can't be written."""
    step = "records"
    whys = {"ENOSPC": "the disk is full", "EROFS": "the disk is read only", "EACCES": "the run folder is forbidden"}
    for name, setup in (("wake", Setup()), ("start", STOPPED)):
        for code, why in whys.items():
            yield Cell(
                step,
                code,
                f"{name}, from the beginning",
                why,
                setup,
                moments=(Moment("write", ".", errno=code, times=0),),
                ends=(A,),
                never=("drain", "sleep", "wake", "start", "stop"),
            )
    for code, why in whys.items():
        for name, setup, first in (
            ("wake, from its first call on", Setup(), ("call", "POST")),
            ("start, from its first call on", STOPPED, ("call", "POST")),
            ("start, once it was started", STOPPED, ("start", "vllm_standin")),
        ):
            yield Cell(
                step,
                code,
                name,
                f"{why} from then on",
                setup,
                moments=(Moment("write", ".", errno=code, times=0, after=first, certain=False),),
                ends=(B,) if "wake" in name else (A, B),
            )
    for size in (0, 500):
        yield Cell(
            step,
            "limit",
            f"{size} bytes",
            f"no file may be longer than {size} bytes",
            moments=(Moment("begin", "", limit=size),),
            ends=(A,),
            never=("sleep", "wake", "start", "stop"),
        )
    for record in ("wanted", "last_switch"):
        for code, why in whys.items():
            failing = Moment("write", rf"^{record}\.json", errno=code, times=0)
            yield Cell(step, code, record, f"{why} when it writes {record}.json", moments=(failing,), ends=(B,))


def _killed_writers() -> Iterator[Cell]:
    """A switch was killed while it wrote."""
    step = "after a switch that was killed writing"
    for kind, setup, names in (
        ("wake", Setup(), ("wanted", "last_switch")),
        ("start", STOPPED, ("wanted", "last_switch", "canary")),
    ):
        for name in names:
            for at in ("write", "replace"):
                how = {"write": "before it wrote", "replace": "before it put in place"}[at]
                moment = Moment(at, rf"^{name}\.json", kill=0)
                yield Cell(
                    step,
                    f"{name} {at}",
                    kind,
                    f"it was killed {how} {name}.json",
                    setup,
                    moments=(moment,),
                    killed=True,
                )
    for fault, moment, what in (
        ("start", Moment("start", "vllm_standin", kill=0), "before it started a server"),
        ("pid write", Moment("write", r"^b\.pid", kill=0), "before it noted the process"),
        ("started 0.1 s", Moment("start", "vllm_standin", kill=0.1), "a moment after it started a server"),
    ):
        yield Cell(step, fault, "start", f"it was killed {what}", STOPPED, moments=(moment,), killed=True)
