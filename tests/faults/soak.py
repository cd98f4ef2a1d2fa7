# SPDX-License-Identifier: MIT
"""Random rounds of all at once: a state, clients, faults, and a second operator. After each the servers are asked.

    python -m tests.faults.soak                     500 rounds; the last line is `500 rounds, D differences`
    python -m tests.faults.soak --seed 7            the rounds of that seed
    python -m tests.faults.soak --seed 7 --round 31   that one again

A round is a cell of the matrix that nobody wrote: it has the same invariants, but for what a message names when several
things go wrong, and for how long they take. A difference is whatever of these does not hold: most of all that what a
result says is not what the servers are.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import random
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tests.part import seed as seed_of_commit
from tests.serverlib import ROOT

from .cells import FAULTS, Cell
from .host import TOKENS_PER_SECOND, Run, Setup
from .matrix import SIDE_BY_SIDE, Hosts, Outcome, run_cell
from .scene import Act, Moment, asks, begins_and_is_killed, kills, opens_lock, posts, removes_lock, rival, switches

ROUNDS = 500
# Few, so that a host that is well serves many rounds.
SETUPS = tuple(
    Setup(a=a, b=b, drain_action=action, drain_seconds=2, move_seconds=0.1, tokens_per_second=TOKENS_PER_SECOND)
    for a, b, action in (
        ("1", "1", "abort"),
        ("1", "2", "keep"),
        ("2", "1", "fail"),
        ("2", "2", "abort"),
        ("1", "stop", "keep"),
    )
)
# What comes true after the end of a switch can't be told at its end.
KINDS = tuple(kind for kind in FAULTS if kind not in ("late", "dies-after"))
PATHS = (
    "*", "/health", "/is_sleeping", "/metrics", "/v1/models", "/version", "/sleep", "/wake_up", "/collective_rpc",
    "/reset_prefix_cache", "/v1/completions",
)  # fmt: skip
RECORDS = ("wanted", "last_switch", "canary", "memory", "switch", "b")


def draw(chance: random.Random) -> Cell:
    """A round."""
    setup = chance.choice(SETUPS)
    target = chance.choice("aabbb")
    told: list[str] = []
    before: list[Act] = []
    moments: list[Moment] = []
    orders: dict[str, list[dict[str, Any]]] = {}

    for what, act in _states(chance, setup):
        told.append(what)
        before.append(act)
    for _client in range(chance.choice((0, 0, 1, 2, 3))):
        seconds = chance.choice((0.3, 1.0, 3.0))
        told.append(f"a client for {seconds:g} s")
        before.append(_asks_whoever_is_awake(seconds))
    for _fault in range(chance.choice((0, 0, 1, 1, 2))):
        server, order = chance.choice("ab"), _order(chance)
        told.append(f"{server} {order['fault']} {order['path']} x {order['times']}")
        orders.setdefault(server, []).append(order)
    for what, moment in _meanwhile(chance):
        told.append(what)
        moments.append(moment)
    what = "; ".join(told) or "nothing"
    blind = "once" if all(order["times"] for those in orders.values() for order in those) else "for ever"
    return Cell("soak", "a round", blind, f"to {target}: {what}", setup, orders, target=target, before=tuple(before),
                moments=tuple(moments), several=True, killed=any(one.kill is not None for one in moments))  # fmt: skip


def _states(chance: random.Random, setup: Setup) -> Iterator[tuple[str, Act]]:
    """What the host is before the switch."""
    kind = chance.choice(("as it was", "as it was", "b", "killed", "killed", "paused", "a dead", "b dead", "lock"))
    if kind == "b":
        yield "b is active", switches("b")
    elif kind == "killed":
        moment = Moment(
            "call", "POST .*", skip=chance.randrange(4), kill=chance.choice((0.0, 0.05, 0.15)), certain=False
        )
        yield (
            f"a switch was killed {moment.kill:g} s after call {moment.skip}",
            begins_and_is_killed("b", moment, surely=False),
        )
    elif kind == "paused":
        yield "a is paused", posts("a", "/sleep?level=0&mode=wait")
    elif kind == "a dead":
        yield "a is dead", kills("a")
    elif kind == "b dead" and setup.b != "stop":
        yield "b is dead", kills("b")
    elif kind == "lock":
        yield "the lock is everybody's", opens_lock


def _order(chance: random.Random) -> dict[str, Any]:
    kind, path = chance.choice(KINDS), chance.choice(PATHS)
    seconds = {"drip": 30.0, "hang": chance.choice((0.2, 0.7, 30.0)), "slow": 0.3, "full": 0.8}.get(kind)
    times = chance.choice((1, 1, 1, 3, 0))
    return {
        "path": path,
        "fault": FAULTS[kind][0],
        "times": times,
        "seconds": seconds,
        "skip": chance.choice((0, 0, 1, 3)),
    }


def _meanwhile(chance: random.Random) -> Iterator[tuple[str, Moment]]:
    """What somebody else does while the switch goes on."""
    at: dict[str, Any] = {"skip": chance.randrange(5), "certain": False}
    kind = chance.choice(("", "", "rival", "rival", "asks", "asks", "disk", "kills", "lock", "killed"))
    when = f"at call {at['skip']}"
    if kind == "rival":
        other = chance.choice("ab")
        yield f"another switches to {other} {when}", Moment("call", "POST .*", act=rival(other), **at)
    elif kind == "asks":
        yield f"a request comes {when}", Moment("call", ".*", act=_asks_whoever_is_awake(1.5), **at)
    elif kind == "disk":
        record, code = chance.choice(RECORDS), chance.choice(("ENOSPC", "EROFS"))
        yield f"{code} for {record}", Moment("write", rf"^{record}\.", errno=code, times=0, certain=False)
    elif kind == "kills":
        server = chance.choice("ab")
        yield f"{server} is killed {when}", Moment("call", "POST .*", act=_kills_if_it_lives(server), **at)
    elif kind == "lock":
        yield f"the lock is removed {when}", Moment("call", "POST .*", act=removes_lock, **at)
    elif kind == "killed":
        seconds = chance.choice((0.0, 0.1))
        yield f"it is killed {when}", Moment("call", "POST .*", kill=seconds, **at)


def _asks_whoever_is_awake(seconds: float) -> Act:
    def act(scene: Any) -> None:
        for name in "ab":
            if scene.host.look(name).state == "active":
                asks(name, seconds)(scene)
                return

    return act


def _kills_if_it_lives(name: str) -> Act:
    def act(scene: Any) -> None:
        if scene.host.lives(name):
            kills(name)(scene)

    return act


def play(numbers: Iterable[int], seed: int, run: Run, until: float | None = None) -> Iterator[tuple[int, Outcome]]:
    """Play rounds side by side, and tell of each; C(until) is when no more are begun."""
    hosts = Hosts(run)

    def one(number: int) -> tuple[int, Outcome] | None:
        if until is not None and time.monotonic() > until:
            return None
        return number, run_cell(draw(random.Random(f"{seed}/{number}")), hosts)

    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        try:
            yield from filter(None, pool.map(one, numbers))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            run.end()
            raise


def line(number: int, outcome: Outcome) -> str:
    """One round for the terminal."""
    setup = outcome.cell.setup
    text = f"{number:4} {setup.a:4} {setup.b:4} {setup.drain_action:5} {outcome.left or 'NONE':14} {outcome.cell.what}"
    return "\n    DIFFERENCE: ".join([text, *(" ".join(one.split())[:600] for one in outcome.violations)])


def _interrupt(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Run the rounds and return the exit status."""
    sys.path.insert(0, str(ROOT / ".build"))
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=None, help="default: the commit's own")
    parser.add_argument("--round", type=int, default=None, help="this one alone")
    options = parser.parse_args(argv)
    seed = seed_of_commit() if options.seed is None else options.seed
    numbers = range(options.rounds) if options.round is None else [options.round]
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, _interrupt)
    started = time.monotonic()
    count = differences = 0
    print(f"seed {seed}")
    with Run() as run:
        for number, outcome in play(numbers, seed, run):
            count += 1
            differences += len(outcome.violations)
            print(line(number, outcome), flush=True)
    print(f"{time.monotonic() - started:.0f} s in all, seed {seed}")
    print(f"{count} rounds, {differences} differences", flush=True)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
