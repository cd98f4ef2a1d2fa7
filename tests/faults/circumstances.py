# SPDX-License-Identifier: MIT
"""The cells of time, records and other people: nothing answers wrongly, but slowly, unwritten, or to somebody else too.

Each is a circumstance of the switch from a to b, named by its heading, by what happens and by when:

- servers that are slow, or that were in the middle of it when the switch before was killed;
- requests that come between the look at a server and its sleep;
- records that can't be written, and writers that are killed;
- the lock: held by strangers, removed, replaced, wanted by two;
- the gateway's gates, which the model manager is asked to close: it is silent, slow, stopped, or talks nonsense;
- servers that somebody wakes, pauses or ends by hand;
- records that would be believed without a reason, and a server of another start;
- answers that no parser takes;
- vLLM's other families.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .cells import EVER, LEVEL_2, ONCE, STOPPED, Cell, set_
from .host import TOKENS_PER_SECOND, Setup
from .scene import (
    ONE_GPU,
    Moment,
    answers,
    asks,
    begins_and_is_killed,
    frees,
    holds_lock,
    kills,
    opens_lock,
    posts,
    removes_lock,
    replaces_lock,
    rival,
    rival_of_another_stack,
    several,
    switches,
    tells,
)

B, A, NAMED = "b active", "a active again", "error state"
# As a switch takes them, in the order of its calls; the first two only where requests run.
PAUSE, SLEEP = "POST /sleep.*level=0", "POST /sleep.*level=[12]"
WAKE, WEIGHTS, RELOAD, CACHE = "POST /wake_up", "POST /wake_up.*weights", "POST /collective_rpc", "POST /wake_up.*kv_"
RESET, ANSWER = "POST /reset_prefix_cache", "POST /v1/completions"
# By the seconds that each call takes: a look is slower than one call may be, and each of its calls is not.
QUICK_LOOK = {
    0.3: (("probe_timeout_seconds", 1.0), ("request_timeout_seconds", 4.0)),
    0.6: (("probe_timeout_seconds", 1.5), ("request_timeout_seconds", 6.0)),
}
STANDING = ("stop", "start")  # steps that no server here is in need of


def cells() -> Iterator[Cell]:
    """All of them."""
    yield from _slow()
    yield from _unanswering()
    yield from _cut_off_amid()
    yield from _waited_for()
    yield from _come_between()
    yield from _unwritten()
    yield from _killed_writers()
    yield from _locks()
    yield from _gates()
    yield from _left_half_way()
    yield from _by_hand()
    yield from _proved()
    yield from _believed()
    yield from _hells()
    yield from _families()


def _every_call(seconds: float, fault: str = "hang", **more: Any) -> list[dict[str, Any]]:
    return [{"path": "*", "fault": fault, "seconds": seconds, "times": 0, **more}]


def _slow() -> Iterator[Cell]:
    """Slow is not dead."""
    step = "a slow host"
    for seconds, quick in QUICK_LOOK.items():
        for names in ("a", "b", "ab"):
            who = {"a": "the active one takes", "b": "the target takes", "ab": "both take"}[names]
            for kind, more in (
                ("level 1", Setup(more=quick)),
                ("level 2", Setup(a="2", b="2", more=quick)),
                ("abort", Setup(client_seconds=2, drain_seconds=20, more=quick)),
                ("fail", Setup(client_seconds=2, drain_seconds=20, drain_action="fail", more=quick)),
                ("keep", Setup(client_seconds=4, drain_seconds=1, drain_action="keep", more=quick)),
            ):
                what = f"{who} {seconds} s for each call"
                yield Cell(
                    step,
                    f"{names} {seconds} s",
                    kind,
                    what,
                    more,
                    {n: _every_call(seconds) for n in names},
                    ends=(B,),
                    never=STANDING,
                    more_seconds=60,
                )


def _unanswering() -> Iterator[Cell]:
    """No answer in time: nobody knows what such a server is, or how many requests it has."""
    step = "a silent server"
    for action in ("abort", "fail", "keep"):
        for busy in (0.0, 3.0):
            setup = Setup(client_seconds=busy, drain_seconds=2, drain_action=action)
            ends = (B,) if action == "abort" else (A,)
            never = () if action == "abort" else ("stop", "sleep", "wake")
            who = f"the active one{', which has a request,' if busy else ''}"
            what = f"{who} answers too late for ever (drain_timeout_action: {action})"
            yield Cell(
                step,
                f"a {'busy' if busy else 'idle'}",
                action,
                what,
                setup,
                {"a": _every_call(2.0)},
                ends=ends,
                never=never,
                more_seconds=20,
            )
        setup = Setup(drain_seconds=2, drain_action=action)
        yield Cell(
            step,
            "b",
            action,
            f"the target answers too late for ever (drain_timeout_action: {action})",
            setup,
            {"b": _every_call(2.0)},
            ends=(A, NAMED),
            more_seconds=20,
        )
    patient = (("request_timeout_seconds", 4.0), ("connect_timeout_seconds", 0.3))
    for name, who in (("a", "the active one"), ("b", "the target")):
        for busy in (0.0, 3.0) if name == "a" else (0.0,):
            setup = Setup(client_seconds=busy, drain_seconds=12, drain_action="fail", more=patient)
            for fault, what in (("hang", "does not answer"), ("full", "takes no connection")):
                order = {"path": "*", "fault": fault, "seconds": 2.5, "times": 3 if fault == "hang" else 1}
                when = "busy" if busy else "for a while"
                yield Cell(
                    step,
                    f"{name} {fault}",
                    when,
                    f"{who} {what} for a while",
                    setup,
                    {name: [order]},
                    ends=(B,),
                    never=STANDING,
                    more_seconds=20,
                )


# What servers are told by a switch from a to b.
TOLD = {
    "sleep": "a's sleep",
    "wake": "b's wake-up",
    "reload": "b's reload of the weights",
    "caches": "b's wake-up of the KV cache",
    "reset": "b's reset of the prefix cache",
    "answer": "b's answer",
}


def _waited_for() -> Iterator[Cell]:
    """The switch before was killed, and a server is still busy with what it was told."""
    step = "after a switch that was killed"
    slow: dict[str, Any] = {"move_seconds": 2.0, "more": (("request_timeout_seconds", 8.0),)}
    for kind, setup, calls in (
        ("level 1", Setup(**slow), [("sleep", "a", SLEEP), ("wake", "b", WAKE)]),
        (
            "level 2",
            Setup(a="2", b="2", **slow),
            [("sleep", "a", SLEEP), ("wake", "b", WEIGHTS), ("caches", "b", CACHE)],
        ),
    ):
        for call, server, match in calls:
            for target in ("b", "a"):
                cut = begins_and_is_killed("b", Moment("call", match, server, kill=0.3))
                # b is half awake then, and a is wanted: what b still has there is to go.
                half_awake = call == "wake" and kind == "level 2" and target == "a"
                what = f"{TOLD[call]} is still running when a switch to {target} begins"
                yield Cell(
                    step,
                    f"{call} goes on",
                    f"{kind}, to {target}",
                    what,
                    setup,
                    target=target,
                    before=(cut,),
                    ends=(B,) if target == "b" else (A,),
                    never=("stop a", "start") if half_awake else STANDING,
                    more_seconds=30,
                )


def _come_between() -> Iterator[Cell]:
    """A request comes after the server was seen idle."""
    step = "a request comes between"
    for action in ("abort", "fail", "keep"):
        for level in ("1", "2", "stop"):
            setup = Setup(a=level, tokens_per_second=TOKENS_PER_SECOND, drain_action=action)
            moments = [("before the first count", Moment("call", "GET /metrics", "a", act=asks("a", 2)))]
            if level != "stop":
                moments.append(("before the sleep", Moment("call", SLEEP, "a", act=asks("a", 2))))
                moments.append(("before the pause", Moment("call", PAUSE, "a", act=asks("a", 2))))
            for when, moment in moments:
                # Where it may not be cut and does not end in time, there is no switch.
                yield Cell(
                    step,
                    when,
                    f"{level} {action}",
                    f"a request of 2 s comes {when} (drain_timeout_action: {action}, sleep_level: {level})",
                    setup,
                    moments=(moment,),
                    never=("stop a",) if level != "stop" or action != "abort" else (),
                )


def _left_half_way() -> Iterator[Cell]:
    """What the switch before has left counts, and the switch after it fails."""
    step = "what a switch that was killed has left"
    failing = {"b": [{"path": "/wake_up", "fault": "status_500", "times": 0}]}
    for action in ("abort", "fail", "keep"):
        # Longer than a second switch takes to begin on a busy machine.
        for client in (2.0, 4.0):
            setup = Setup(
                client_seconds=0,
                tokens_per_second=TOKENS_PER_SECOND,
                drain_seconds=6,
                drain_action=action,
                without=("retry", "restart"),
            )
            cut = begins_and_is_killed("b", Moment("call", PAUSE, "a", kill=0.3))
            yield Cell(
                step,
                f"a paused, {client:g} s",
                action,
                "a is paused, and b does not wake",
                setup,
                failing,
                before=(asks("a", client), cut),
                ends=(A,),
                more_seconds=10,
            )


def _by_hand() -> Iterator[Cell]:
    """Somebody acts past the engine."""
    step = "somebody acts by hand"
    half = "/wake_up?tags=weights"
    for level in ("1", "2"):
        setup = Setup(a=level, b=level)
        whole = [half, "/collective_rpc", "/wake_up?tags=kv_cache"] if level == "2" else ["/wake_up"]
        for what, path in (("half wakes", [half]), ("wakes", whole)):
            # b is awake, and then a is too: nothing is to be left so.
            for target in ("a", "b"):
                before = (switches("b"), frees("b"), posts("a", *path))
                yield Cell(
                    step,
                    f"{what} a",
                    f"level {level}, to {target}",
                    f"b was active, and somebody {what} a before a switch to {target}",
                    setup,
                    target=target,
                    before=before,
                    by_hand=True,
                    ends=(B,) if target == "b" else (A,),
                )
    yield Cell(
        step, "pauses a", ONCE, "somebody has paused a", before=(posts("a", "/sleep?level=0&mode=wait"),), ends=(B,)
    )
    yield Cell(
        step,
        "pauses a",
        "and b does not wake",
        "somebody has paused a, and b does not wake",
        Setup(without=("retry", "restart")),
        {"b": [{"path": "/wake_up", "fault": "status_500", "times": 0}]},
        before=(posts("a", "/sleep?level=0&mode=wait"),),
        ends=(A,),
    )
    for fault, are in (("html", "HTML"), ("odd_numbers", "no numbers"), ("status_500", "answered 500")):
        for times, when in ((1, ONCE), (0, EVER)):
            yield Cell(
                step,
                f"pauses a, {fault}",
                when,
                f"somebody has paused a, whose metrics are {are}",
                orders={"a": [{"path": "/metrics", "fault": fault, "times": times}]},
                before=(posts("a", "/sleep?level=0&mode=wait"),),
                ends=(B,),
            )
    for what, act in (
        ("wakes a", several(frees("b"), posts("a", "/wake_up"))),
        ("puts b to sleep", posts("b", "/sleep?level=1")),
        ("kills a", kills("a")),
        ("kills b", kills("b")),
    ):
        for when, moment in (
            ("at its answer", Moment("call", ANSWER, "b", act=act)),
            ("at its last look", Moment("call", "GET /is_sleeping", "b", skip=1, act=act)),
        ):
            said = f"somebody {what} {when}"
            yield Cell(step, what, when, said, moments=(moment,), by_hand=what == "wakes a")


def _proved() -> Iterator[Cell]:
    """Nothing is to be done, as it seems."""
    step = "it is active already"
    now = (("prove_interval_seconds", 0),)
    for fault in ("500", "hang", "dropped", "killed", "frozen", "oom"):
        yield _seen(step, "a", "/health", fault, ONCE)
    for fault in ("wrong-text", "500", "hang"):
        yield _seen(step, "a", "/v1/completions", fault, EVER, Setup(more=now))
    yield Cell(
        step,
        "paused",
        ONCE,
        "somebody has paused it",
        target="a",
        ends=(A,),
        before=(posts("a", "/sleep?level=0&mode=wait"),),
    )


def _seen(step: str, server: str, path: str, fault: str, variant: str, setup: Setup | None = None) -> Cell:
    from .cells import FAULTS

    order = {"path": path, "fault": FAULTS[fault][0], "times": 1 if variant == ONCE else 0}
    name = f"{fault} {path}".replace("/", " ")
    what = FAULTS[fault][1] if fault == "oom" else f"it {FAULTS[fault][1]}"
    return Cell(step, name, variant, f"{what} ({path})", setup or Setup(), {server: [order]}, target=server)


def _believed() -> Iterator[Cell]:
    """Which answer is the right one."""
    step = "what is recorded"
    wrong = [{"path": "/v1/completions", "fault": "wrong_text", "times": 0}]
    edit = set_("b", "args", {"gpu_memory_utilization": 0.5})
    for setup, kind in ((Setup(), "level 1"), (LEVEL_2, "level 2")):
        what = f"args were edited, and b answers wrongly after a mere wake ({kind})"
        yield Cell(step, "edited", kind, what, setup, {"b": wrong}, change=edit, ends=(A, NAMED))
    dumb = [{"path": "/metrics", "fault": "html", "times": 0}]
    for setup, kind in ((Setup(), "wake"), (LEVEL_2, "wake, level 2"), (STOPPED, "start")):
        yield Cell(step, "no metrics", kind, "its metrics tell no start", setup, {"a": dumb, "b": dumb}, ends=(B,))
    yield Cell(
        step,
        "no metrics, wrong",
        "wake",
        "its metrics tell no start, and it answers wrongly",
        Setup(),
        {"b": [*dumb, *wrong]},
        ends=(A, NAMED),
    )


def _families() -> Iterator[Cell]:
    """Servers of other versions."""
    for version in ("0.11.0", "0.12.0", "0.16.0", "0.17.1", "0.20.2", "0.29.0"):
        step = f"vLLM {version}"
        plain, level_2 = Setup(version=version), Setup(a="2", b="2", version=version)
        yield Cell(step, "nothing", "level 1", "nothing", plain, ends=(B,))
        yield Cell(
            step,
            "wake 500",
            ONCE,
            "its wake is answered 500",
            plain,
            {"b": [{"path": "/wake_up", "fault": "status_500"}]},
        )
        yield Cell(
            step,
            "reload 500",
            ONCE,
            "the first reload of weights is answered 500",
            level_2,
            {"b": [{"path": "/collective_rpc", "fault": "status_500"}]},
        )
        yield Cell(
            step,
            "killed after weights",
            ONCE,
            "the switch was killed when half of b was awake",
            level_2,
            moments=(Moment("call", RELOAD, "b", kill=0),),
            killed=True,
        )
        for action in ("abort", "fail"):
            busy = Setup(version=version, client_seconds=4, drain_seconds=1, drain_action=action)
            yield Cell(step, "busy", action, f"a request does not end in time (drain_timeout_action: {action})", busy)
        between = Setup(version=version, tokens_per_second=TOKENS_PER_SECOND, drain_seconds=4)
        yield Cell(
            step,
            "a request comes",
            "before the sleep",
            "a request of 2 s comes before the sleep",
            between,
            moments=(Moment("call", SLEEP, "a", act=asks("a", 2)),),
        )


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
                    f"it was killed {'during' if when == 'amid' else when} {TOLD[call]}",
                    setup,
                    moments=(moment,),
                    killed=True,
                )
    for action in ("abort", "fail", "keep"):
        # Long enough for a slow machine to come to the drain.
        busy = Setup(client_seconds=8, drain_seconds=12, drain_action=action)
        yield Cell(
            step,
            "drain amid",
            action,
            "it was killed during a's drain",
            busy,
            moments=(Moment("call", PAUSE, "a", kill=0.3),),
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
        for name, setup, first, since in (
            ("wake, from its first call on", Setup(), ("call", "POST"), "from the first call on (b is woken)"),
            ("start, from its first call on", STOPPED, ("call", "POST"), "from the first call on (b is started)"),
            ("start, once it was started", STOPPED, ("start", "vllm_standin"), "from the start of b on"),
        ):
            yield Cell(
                step,
                code,
                name,
                f"{why} {since}",
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
        ("started 0.4 s", Moment("start", "vllm_standin", kill=0.4), "while a server loaded"),
    ):
        loads = Setup(b="stop", load_seconds=1.0)  # long enough to be killed in
        yield Cell(step, fault, "start", f"it was killed {what}", loads, moments=(moment,), killed=True)


def _gates() -> Iterator[Cell]:
    """The host has a gateway, whose gates the model manager closes for whoever else switches."""
    step, manager = "the gateway's gates", "the model manager"
    said: dict[str, Any] = {"ask": "", "closed": [], "busy": [], "runs": True, "number": 0}
    silent, wait = tells(said), 4.0
    for fault, what, told in (
        ("silent", "does not answer", said),
        ("stopped", "was stopped", {**said, "runs": False}),
        ("another", "answers somebody else", {**said, "ask": "0123", "closed": ["a", "b"]}),
        ("not all", "tells something else", {"gates": "open"}),
        ("nonsense", "tells what nobody can read", "{" * 100000),
    ):
        yield Cell(step, fault, ONCE, f"{manager} {what}", before=(tells(told),), ends=(B,), more_seconds=wait)
    failing = {"b": [{"path": "/wake_up", "fault": "status_500", "times": 0}]}
    off = Setup(without=("retry", "restart"))
    what = f"{manager} does not answer, and b does not wake"
    yield Cell(step, "silent", "no wake", what, off, failing, before=(silent,), ends=(A,), more_seconds=wait)
    refused = {"a": [{"path": "/sleep", "match": "level=1", "fault": "status_500", "times": 0}]}
    what = f"{manager} does not answer, and a does not sleep"
    yield Cell(step, "silent", "no sleep", what, Setup(), refused, before=(silent,), ends=(B,), more_seconds=wait)
    yield Cell(step, "slow", ONCE, f"{manager} answers after 2 s", before=(answers(2.0),), ends=(B,), more_seconds=wait)
    what = "the gateway has requests of a, and says so for ever"
    yield Cell(step, "busy", EVER, what, before=(answers(busy=True),), ends=(B,), more_seconds=wait)
    busy = Setup(client_seconds=4, drain_seconds=6)
    what = f"{manager} answers, and a request runs"
    yield Cell(step, "answers", "drained", what, busy, before=(answers(),), ends=(B,), more_seconds=wait)
    # At its look at b the switch has a second to come to where it waits.
    look = Moment("call", "GET /is_sleeping", "b", kill=1.0)
    what = f"it was killed while it waited for the answer of {manager}"
    yield Cell(step, "killed", "asked", what, before=(silent,), moments=(look,), killed=True)
    what = "it was killed while it waited for requests of the gateway"
    patient = Setup(drain_seconds=10)
    yield Cell(step, "killed", "closed", what, patient, before=(answers(busy=True),), moments=(look,), killed=True)


def _locks() -> Iterator[Cell]:
    """Whose the lock is."""
    step = "the lock"
    for name, match, server in (("sleep", SLEEP, "a"), ("wake", WAKE, "b")):
        for to in ("a", "b"):
            yield Cell(
                step,
                f"rival to {to}",
                f"at the {name}",
                f"somebody else switches to {to} meanwhile",
                moments=(Moment("call", match, server, act=rival(to)),),
            )
        for what, removes in (("removes", removes_lock), ("replaces", replaces_lock)):
            at = Moment("call", match, server, act=removes)
            yield Cell(step, what, f"at the {name}", f"somebody {what} its file at the {name}", moments=(at,))
        for to in ("a", "b"):
            at = Moment("call", match, server, act=rival_of_another_stack(to))
            what = f"another stack of the same GPU is switched to {to} meanwhile"
            yield Cell(step, f"another stack's rival to {to}", f"at the {name}", what, moments=(ONE_GPU, at))
        for what, removes in (("removes", removes_lock), ("replaces", replaces_lock)):
            for to in ("a", "b"):
                at = Moment("call", match, server, act=several(removes, rival(to)))
                yield Cell(
                    step,
                    f"{what}, rival to {to}",
                    f"at the {name}",
                    f"somebody {what} its file at the {name}, and another switches to {to}",
                    moments=(at,),
                )
    for kind in ("shared", "exclusive"):
        yield Cell(
            step, "stranger", kind, "another user of the host wants to hold it", before=(holds_lock(kind),), ends=(B,)
        )
        what = "another user of the host wants to hold it, and it was everybody's"
        yield Cell(
            step, "stranger, old file", kind, what, before=(opens_lock, switches("a"), holds_lock(kind)), ends=(B,)
        )
    yield Cell(step, "mode", ONCE, "its file was everybody's", before=(opens_lock,), private=True, ends=(B,))


def _hells() -> Iterator[Cell]:
    """Answers that no parser takes."""
    step = "answers that can't be read"
    for server in ("a", "b"):
        for path in ("/is_sleeping", "/v1/models"):
            for variant in (ONCE, EVER):
                yield _answers(step, server, path, "deep-json", variant)
    for fault in ("odd-numbers", "two-engines"):
        for server in ("a", "b"):
            for variant in (ONCE, EVER):
                yield _answers(step, server, "/metrics", fault, variant)
    yield _answers(step, "b", "/v1/completions", "deep-json", ONCE)
    yield _answers(step, "b", "/v1/completions", "deep-json", EVER)
    yield _answers(step, "b", "/collective_rpc", "deep-json", ONCE, LEVEL_2)


def _answers(step: str, server: str, path: str, fault: str, variant: str, setup: Setup | None = None) -> Cell:
    from .cells import FAULTS

    order = {"path": path, "fault": FAULTS[fault][0], "times": 1 if variant == ONCE else 0}
    what = f"{server} {FAULTS[fault][1]} ({path})"
    return Cell(step, f"{server} {fault} {path}".replace("/", " "), variant, what, setup or Setup(), {server: [order]})
