# SPDX-License-Identifier: MIT
"""The cells of the fault matrix: every step of a switch, and what may go wrong with it.

Left out, because it means nothing:

- wrong text, but for the canary and a start: no other step looks at text;
- 200 but not done, for what only asks (observe, confirm, ready): there is nothing to be done. A server that says for
  ever that it is still awake, or asleep, is the one that did not do what it was told: see sleep and wake;
- empty 200 and JSON of another shape, for ready: /health has no body, and none is looked at;
- the answers of HTTP (500 to empty 200), for start and stop: there is no call. What a start leads to is seen by ready
  and the canary; a stop is confirmed by a port that is closed;
- memory that another process has taken, but for wake and start: no other step takes memory;
- a fault for ever, where it ends with the process and the step is not done again, or where the answer to it is to end
  that process: it is the same cell as the fault once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .host import Setup
from .scene import Act, Moment

ONCE, RUNNING, EVER = "once", "until a restart", "for ever"

# How a fault is called, what the stand-in calls it, and what it is for a reader.
FAULTS: dict[str, tuple[str, str]] = {
    "500": ("status_500", "answers 500"),
    "hang": ("hang", "does not answer"),
    "late": ("late", "does it, after the time is over"),
    "refused": ("deaf", "refuses connections, though its process lives"),
    "dropped": ("refuse", "closes the connection without an answer"),
    "lost": ("lost", "does it, but the connection breaks"),
    "reset": ("reset_mid_body", "resets the connection amid the answer"),
    "drip": ("slow_drip", "answers byte by byte, too slowly"),
    "empty": ("empty_200", "answers 200 with nothing"),
    "html": ("html", "answers with a web page"),
    "json": ("wrong_json", "answers with JSON of another shape"),
    "not-done": ("not_done", "answers 200 and does nothing"),
    "dies-after": ("die_after_200", "answers 200 and dies"),
    "killed": ("kill", "is killed"),
    "frozen": ("freeze", "is frozen (SIGSTOP)"),
    "oom": ("oom", "its engine dies of CUDA out of memory"),
    "wrong-text": ("wrong_text", "answers with a wrong text"),
    "deep-json": ("deep_json", "answers with JSON that is nested without end"),
    "odd-numbers": ("odd_numbers", "tells numbers that are none"),
    "two-engines": ("two_engines", "tells of two engines, of which one sleeps"),
}
ENDS = ("dies-after", "killed", "frozen", "oom", "refused")
ANSWERS = ("500", "hang", "dropped", "reset", "drip", "empty", "html", "json")
ASKED = (*ANSWERS, "dies-after", "killed", "frozen", "oom", "refused")
DONE = (*ANSWERS, "late", "lost", "not-done", *ENDS)

LEVEL_1 = Setup()
LEVEL_2 = Setup(b="2")
STOPPED = Setup(b="stop")
STOPS = Setup(a="stop")
BUSY = Setup(client_seconds=4, drain_seconds=6)

Change = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Cell:
    """One fault in one step of a switch from a to b."""

    step: str
    fault: str
    variant: str
    what: str  # for a reader
    setup: Setup = LEVEL_1
    orders: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # faults, by server
    running: bool = False  # order them of the process, so that a restart ends them
    change: Change | None = None  # of models.json, for this switch alone
    foreign_gb: float = 0.0  # that another process holds from before the switch
    grabbed_gb: float = 0.0  # that another process takes as soon as they are free
    orphan: bool = False  # nobody knows that a's process is a's
    target: str = "b"  # what is switched to
    before: tuple[Act, ...] = ()  # what somebody does before the switch
    moments: tuple[Moment, ...] = ()  # of the switch
    killed: bool = False  # the switch does not end by itself
    ends: tuple[str, ...] = ()  # which of the three are right; none named: all
    never: tuple[str, ...] = ()  # steps that are wrong here: "stop a", or "stop" of whichever
    by_hand: bool = False  # somebody wakes a server past the engine, and so may be the reason that two are awake
    more_seconds: float = 0.0  # that the switch may take, since a server does
    several: bool = False  # things go wrong, so that nobody can say which of them is told, and how long they take
    private: bool = False  # the lock and its folder are to be the owner's alone after it

    @property
    def name(self) -> str:
        """What --only and --list call it."""
        return f"{self.step}/{self.fault}/{self.variant}"


@dataclass(frozen=True)
class Step:
    """Which call of which server a step is."""

    name: str
    server: str
    path: str
    match: str = ""
    after: str = ""  # the call that comes before
    setup: Setup = LEVEL_1

    def cell(self, fault: str, variant: str = ONCE, what: str = "", **more: Any) -> Cell:
        """A fault of this call."""
        seconds = {"late": 1.5, "drip": 30}.get(fault)
        order: dict[str, Any] = {"path": self.path, "fault": FAULTS[fault][0], "times": 1 if variant == ONCE else 0}
        order |= {"match": self.match, "after": self.after, "seconds": seconds}
        cell: dict[str, Any] = {"setup": self.setup, "orders": {self.server: [order]}, "running": variant == RUNNING}
        return Cell(self.name, fault, variant, what or FAULTS[fault][1], **{**cell, **more})

    def cells(self, faults: tuple[str, ...], variant: str = ONCE) -> Iterator[Cell]:
        """A cell for each fault."""
        for fault in faults:
            yield self.cell(fault, variant)


def cells() -> list[Cell]:
    """All of them: the faults of answers in the order of a switch, then those of time, records and other people."""
    from . import circumstances

    return [
        *_observe(),
        *_drain(),
        *_sleep(),
        *_stop(),
        *_wake(),
        *_reload(),
        *_start(),
        *_verify(),
        *_canary(),
        *circumstances.cells(),
    ]


# The files of the engine that only some cells are about, or none. Whoever changes another one changes all.
ENGINE = "plugins/module_utils/switching/"
ROOMS: dict[str, Callable[[Cell], bool]] = {
    "adapters.py": lambda cell: False,
    "model_list.py": lambda cell: cell.step.startswith(("observe", "canary")),
    "canary.py": lambda cell: cell.step.startswith("canary"),
    "kinds.py": lambda cell: cell.step.startswith("canary"),
    "capacity.py": lambda cell: False,
    "memory.py": lambda cell: bool(cell.foreign_gb or cell.grabbed_gb or cell.setup.gpus_tell or cell.fault == "oom"),
    "drafts.py": lambda cell: False,
    "gates.py": lambda cell: cell.step == "the gateway's gates",
    "freed.py": lambda cell: cell.setup.gpus_tell,
    "odometer.py": lambda cell: cell.setup.gpus_tell,
    "drain.py": lambda cell: bool(cell.setup.client_seconds or cell.setup.tokens_per_second),
    "lifecycle.py": lambda cell: (
        cell.step in ("stop", "start") or cell.fault in ENDS or "stop" in (cell.setup.a, cell.setup.b)
    ),
    "changes.py": lambda cell: False,
    "costs.py": lambda cell: False,
    "page_cache.py": lambda cell: False,
    "server_log.py": lambda cell: False,
    "tables.py": lambda cell: False,
    "texts.py": lambda cell: False,
    "warming.py": lambda cell: False,
}
# What the cells are played with.
TOOLS = (
    "tests/standin/",
    *(f"tests/faults/{name}.py" for name in ("cells", "circumstances", "host", "matrix", "moments", "scene")),
)


def concerned(cell: Cell, files: Iterable[str]) -> bool:
    """Whether a cell is about one of these files."""
    for file in files:
        if file.startswith(TOOLS) or (file.startswith(ENGINE) and file.endswith(".py")):
            room = ROOMS.get(file.removeprefix(ENGINE))
            if room is None or room(cell):
                return True
    return False


def _observe() -> Iterator[Cell]:
    for server, name in (("a", "observe the active one"), ("b", "observe the target")):
        yield from Step(name, server, "/is_sleeping").cells(ASKED)
        # All that it is asked, as where something else has taken the port.
        yield from Step(name, server, "*").cells(("500", "hang", "dropped", "empty", "html", "json"), EVER)


def _drain() -> Iterator[Cell]:
    """A request runs, and ends before the deadline unless the cell says otherwise."""
    drain = Step("drain", "a", "/sleep", "level=0", setup=BUSY)
    yield from drain.cells(tuple(fault for fault in DONE if fault != "late"))
    count = Step("drain (counting)", "a", "/metrics", setup=BUSY)
    yield from count.cells(("500", "hang", "html", "killed", "refused"), EVER)
    for action, what in (("abort", "cut"), ("keep", "parked"), ("fail", "a reason to fail")):
        setup = Setup(client_seconds=4, drain_seconds=1, drain_action=action)
        yield Cell("drain", "busy", action, f"its request does not end in time, and is to be {what}", setup)


def _sleep() -> Iterator[Cell]:
    sleep = Step("sleep", "a", "/sleep", "level=1")
    yield from sleep.cells(DONE)
    # A server that a drain has paused says that it sleeps. The drain's two counts could be read.
    for times, variant in ((2, ONCE), (0, EVER)):
        unread = {"path": "/metrics", "fault": "html", "skip": 2, "times": times}
        what = "answers 200 and does nothing, and its metrics are HTML"
        orders = {"a": [*sleep.cell("not-done", variant).orders["a"], unread]}
        yield Cell("sleep", "not-done, html", variant, what, orders=orders, ends=("b active",))
    keeps = {"path": "/sleep", "match": "level=1", "fault": "frees_nothing"}
    for without, ends in (((), "b active"), (("stop",), "a active again")):
        setup = Setup(gpus_tell=True, without=without)
        off = ", with stop turned off" if without else ""
        yield Cell("sleep", "frees-nothing", "without stop" if without else ONCE,
                   f"sleeps and gives no memory back, and nvidia-smi tells{off}", setup, orders={"a": [keeps]},
                   change=set_("a", "weights_gb", 10), ends=(ends,))  # fmt: skip
    asked = Step("confirm sleep", "a", "/is_sleeping", after="/sleep")
    yield from asked.cells(ASKED)
    yield from asked.cells(("500", "hang", "html", "json"), EVER)


def _stop() -> Iterator[Cell]:
    deaf_to_term = {"path": "term", "fault": "hang", "times": 0}
    yield Cell("stop", "hang", ONCE, "ignores SIGTERM", STOPS, {"a": [deaf_to_term]})
    asked = Step("stop", "a", "/metrics", setup=STOPS)
    yield asked.cell("frozen")
    yield asked.cell("killed", what="is killed before")
    yield asked.cell("refused")
    commands: list[tuple[str, str, list[str]]] = [
        ("command-fails", "its stop_command fails", ["false"]),
        ("command-hangs", "its stop_command hangs", ["sleep", "60"]),
        ("command-missing", "its stop_command is not there", ["/nonexistent/stop"]),
        ("command-not-done", "its stop_command does nothing", ["true"]),
    ]
    for fault, what, command in commands:
        yield Cell("stop", fault, ONCE, what, STOPS, change=set_("a", "stop_command", command))
    busy = Setup(a="stop", client_seconds=4, drain_seconds=6)
    yield Cell("stop", "command-fails", "drained", "its stop_command fails after a drain", busy,
               change=set_("a", "stop_command", ["false"]))  # fmt: skip
    yield Cell("stop", "orphan", ONCE, "nobody knows its process", STOPS, orphan=True)
    sleep = Step("stop", "a", "/sleep", "level=1")
    yield sleep.cell("500", "no sleep, SIGTERM ignored", "its sleep fails, and it ignores SIGTERM",
                     orders={"a": [*(sleep.cell("500").orders["a"]), deaf_to_term]})  # fmt: skip
    yield sleep.cell("500", "no sleep, command fails", "its sleep fails, and so does its stop_command",
                     change=set_("a", "stop_command", ["false"]))  # fmt: skip
    yield sleep.cell("hang", "no sleep, command hangs", "its sleep hangs, and so does its stop_command",
                     change=set_("a", "stop_command", ["sleep", "60"]))  # fmt: skip
    yield sleep.cell("500", "without stop", "its sleep fails, with stop turned off",
                     setup=Setup(without=("stop",)))  # fmt: skip


def _wake() -> Iterator[Cell]:
    wake = Step("wake", "b", "/wake_up")
    yield from wake.cells(DONE)
    yield from wake.cells(("500", "hang", "dropped", "html", "not-done", "late"), EVER)
    for rungs in (("retry",), ("retry", "restart"), ("retry", "restart", "roll_back")):
        off = " and ".join(filter(None, (", ".join(rungs[:-1]), rungs[-1])))
        for fault in ("killed", "500"):
            what = f"{FAULTS[fault][1]}, with {off} turned off"
            yield wake.cell(fault, f"without {off}", what, setup=Setup(without=rungs))
    for tag in ("weights", "kv_cache"):
        half = Step(f"wake (level 2, {tag})", "b", "/wake_up", f"tags={tag}", setup=LEVEL_2)
        yield from half.cells(("500", "hang", "late", "lost", "reset", "html", "not-done", "dies-after", "killed"))
    # a is slow to say that it sleeps, so that there is time to take what it left.
    slow = {"path": "/is_sleeping", "fault": "hang", "after": "/sleep", "seconds": 0.3}
    for tell, what in ((False, ""), (True, ", and nvidia-smi tells")):
        setup, variant = Setup(gpus_tell=tell), "told" if tell else "not told"
        yield Cell("wake", "memory-taken", variant, f"another process has taken memory that it needs{what}", setup,
                   foreign_gb=3.5)  # fmt: skip
        yield Cell("wake", "all-memory-taken", variant, f"another process takes the memory of both{what}", setup,
                   orders={"a": [slow]}, grabbed_gb=15)  # fmt: skip


def _reload() -> Iterator[Cell]:
    reload = Step("reload", "b", "/collective_rpc", setup=LEVEL_2)
    yield from reload.cells(DONE)
    yield from reload.cells(("500", "hang", "not-done", "html"), EVER)
    yield from Step("reload (reset the cache)", "b", "/reset_prefix_cache", setup=LEVEL_2).cells(
        ("500", "hang", "html", "killed")
    )


def _start() -> Iterator[Cell]:
    for fault, kind, what in (
        ("ends", "die", "ends while it loads"),
        ("killed", "kill", "is killed while it loads"),
        ("oom", "oom", "runs out of GPU memory while it loads"),
        ("hang", "hang", "never finishes loading"),
    ):
        for variant in (ONCE, EVER):
            order = {"path": "load", "fault": kind, "times": 1 if variant == ONCE else 0}
            yield Cell("start", fault, variant, what, STOPPED, {"b": [order]})
    commands: list[tuple[str, str, list[str]]] = [
        ("command-missing", "its start_command is not there", ["/nonexistent/vllm"]),
        ("not-done", "its start_command ends at once, as if all were well", ["true"]),
        ("command-fails", "its start_command fails at once", ["false"]),
        ("refused", "its start_command never listens", ["sleep", "60"]),
        ("html", "something else comes to listen on its port",
         [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/var/empty", "${host_port}"]),
    ]  # fmt: skip
    for fault, what, command in commands:
        yield Cell("start", fault, EVER, what, STOPPED, change=set_("b", "start_command", command))
    yield from Step("start", "b", "/health", setup=STOPPED).cells(("killed", "oom"))
    yield from Step("start", "b", "/v1/completions", setup=STOPPED).cells(("wrong-text",))
    slow = {"path": "/is_sleeping", "fault": "hang", "after": "/sleep", "seconds": 0.3}
    for tell, more in ((False, ""), (True, ", and nvidia-smi tells")):
        setup, variant = Setup(b="stop", gpus_tell=tell), "told" if tell else "not told"
        yield Cell("start", "memory-taken", variant, f"another process has taken memory that it needs{more}", setup,
                   foreign_gb=4.2)  # fmt: skip
        yield Cell("start", "all-memory-taken", variant, f"another process takes the memory of both{more}", setup,
                   orders={"a": [slow]}, grabbed_gb=15)  # fmt: skip


def _verify() -> Iterator[Cell]:
    asked = Step("confirm wake", "b", "/is_sleeping", after="/wake_up")
    yield from asked.cells(ASKED)
    yield from asked.cells(("500", "hang"), RUNNING)
    yield from asked.cells(("500", "hang", "html", "json"), EVER)
    ready = Step("ready", "b", "/health", after="/wake_up")
    yield from ready.cells(tuple(fault for fault in ASKED if fault not in ("empty", "json")))
    yield from ready.cells(("500", "dropped"), RUNNING)
    yield from ready.cells(("500", "hang", "html"), EVER)


def _canary() -> Iterator[Cell]:
    canary = Step("canary", "b", "/v1/completions")
    yield from canary.cells((*ASKED, "wrong-text"))
    yield from canary.cells(("500", "hang", "wrong-text"), RUNNING)
    yield from canary.cells(("500", "hang", "html", "killed", "wrong-text"), EVER)
    loaded = Step("canary (level 2)", "b", "/v1/completions", setup=LEVEL_2)
    for variant in (ONCE, RUNNING, EVER):
        yield loaded.cell("wrong-text", variant)


def set_(name: str, key: str, value: object) -> Change:
    def change(declaration: dict[str, Any]) -> None:
        next(model for model in declaration["vllm_models"] if model["id"] == name)[key] = value

    return change
