# SPDX-License-Identifier: MIT
"""The fault matrix at the gateway: each cell of `tests.faults.cells` happens while clients alternate models.

    python -m tests.gateway.matrix                      all cells; the last line tells what became of the requests
    python -m tests.gateway.matrix --only sleep/500     those of a step, or a fault of a step

A cell is a host of two stand-ins that share a GPU, with the real manager and a gateway of two workers in front of it.
Clients ask for both models in turn, and others for one of them without pause, so that the manager switches again and
again under requests, and one of these switches meets the fault. Moments at which the matrix kills the command line kill
the manager, which is started again as systemd does. When every client has been told something of each model, the fault
ends. Then:

G1  each request was answered whole and by its own model, or failed in words, within a bound. One may be cut where the
    models' owner wants that (`drain_timeout_action: abort`), and be broken off, visibly, where its server ended;
G2  no request was sent to a server that was not awake, and none lay at one over a sleep;
G3  never were both on the GPU at one moment;
G4  without the fault, each client is answered by both models again;
G5  then no request is counted as waiting or in flight, the gate of the awake model is open and the other one's is not,
    and neither the manager nor nginx has said that it failed.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests

from tests.serverlib import ROOT, free_port

sys.path.insert(0, str(ROOT / ".build"))  # pytest knows that by itself

from tests.faults.cells import Cell
from tests.faults.host import Answer, Host, Run, Setup
from tests.faults.matrix import _fault as fault
from tests.faults.matrix import chosen
from tests.faults.scene import Moment, Scene
from tests.gateway.gatewaylib import Gateway, missing, until
from tests.gateway.load import (
    ANSWERED,
    BROKEN_OFF,
    CUT,
    IN_WORDS,
    OWN,
    TOKENS,
    WRONG,
    Client,
    Ended,
    ask,
    traffic,
)
from tests.manager.conftest import MAIN, Service
from tests.manager.gateway_workers import TOKEN

SIDE_BY_SIDE = 6
# What each client asks for, in turn.
CLIENTS = ("ab",) * 8 + ("a", "b") * 2
# Longer than any switch here takes with all its rungs.
MAX_WAIT_SECONDS = 25
# For one that is asked and silent, as frozen ones are: an hour outside of tests.
SERVER_SECONDS = 8
BOUND_SECONDS = MAX_WAIT_SECONDS + SERVER_SECONDS + 7.0
# How long a fault goes on at least, and where no switch meets it or some clients are told nothing.
LEAST_SECONDS, UNMET_SECONDS, MOST_SECONDS = 0.5, 5.0, 40.0
HEALING_SECONDS = 60.0
# For the manager to come up on a machine that is as busy as can be.
START_SECONDS = 60.0
# systemd takes a second (RestartSec).
RESTART_SECONDS = 0.5
NO_LIMIT = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class Managed(Service):
    """The manager, which is started again when it was killed, and whose moments are those of a cell."""

    def __init__(self, host: FrontedHost) -> None:
        self._host = host
        self.orders = host.folder / "moments.json"
        self.orders.write_text("[]", encoding="utf-8")
        self.deaths: list[int] = []
        self._over = threading.Event()
        self.link_port = free_port()
        token = host.stack / "link-token"
        token.write_text(TOKEN + "\n", encoding="ascii")
        declaration = host.declaration()
        declared: Any = SimpleNamespace(
            stack_dir=host.stack, models=declaration["vllm_models"], settings=declaration["vllm_switching"]
        )
        link = {"gateway_listen": f"127.0.0.1:{self.link_port}", "gateway_token_file": str(token)}
        super().__init__(declared, linger_seconds=0, retry_seconds=2, **link)
        self._guard = threading.Thread(target=self._keep, daemon=True)
        self._guard.start()

    def start(self, before: str = "") -> subprocess.Popen[bytes]:
        """As a service of the host, which starts servers."""
        hook = f"from tests.gateway.hooks import follow; follow({str(self.orders)!r}, {str(self._host.stack)!r})"
        path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
        command = [sys.executable, "-c", f"{before or hook}; {MAIN}", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**self._host.environment(), "PYTHONPATH": path}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: self.process.poll() is not None or self.serves(), "the manager answers", START_SECONDS)
        return self.process

    def serves(self) -> bool:
        """Whether it answers now. While it starts it takes connections already."""
        with contextlib.suppress(requests.RequestException):
            return self._answers()
        return False

    def _keep(self) -> None:
        while not self._over.wait(0.05):
            status = self.process.poll()
            if status is None:
                continue
            # What has killed it happens once.
            self.forget_orders()
            self.deaths.append(status)
            if not self._over.wait(RESTART_SECONDS):
                with contextlib.suppress(AssertionError, OSError):  # it is told by whoever waits for it
                    self.start()

    def forget_orders(self) -> None:
        """No moment means anything any more, and nobody waits at one."""
        count = len(json.loads(self.orders.read_text(encoding="utf-8")))
        new = self.orders.with_suffix(".new")
        new.write_text("[]", encoding="utf-8")
        new.replace(self.orders)
        for number in range(count):
            self.orders.with_name(f"{self.orders.name}.{number}.go").touch()
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, NO_LIMIT)

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self._guard.join()
        self.process.kill()
        self.process.wait()

    def shown(self) -> dict[str, Any]:
        """What it knows of the gateway."""
        return dict(requests.get(self.url + "/gateway", timeout=10).json())


@dataclass
class FrontedHost(Host):
    """A host of the matrix with a manager, once it is up, and a gateway."""

    manager: Managed | None = None
    gateway: Gateway | None = None
    words: dict[str, str] = field(default_factory=dict)  # what each model answers to the clients

    def begin(self) -> None:
        """Bring all of it up: a is active, and b is not."""
        self.up()
        self.manager = Managed(self)
        link: Any = SimpleNamespace(port=self.manager.link_port, token=TOKEN)
        # No stream of 0 s: those who wait are told of it.
        self.gateway = Gateway(link, workers=2, max_wait_seconds=MAX_WAIT_SECONDS, edit=_impatient)
        lua = self.gateway.folder / "lua" / "gateway" / "upstream.lua"
        lua.write_text(_replaced(lua.read_text(), "READ_SECONDS = 3600", f"READ_SECONDS = {SERVER_SECONDS}"))
        self.gateway.start()
        until(lambda: self.ask("a").how == ANSWERED, "a answers through the gateway")
        for name in ("b", "a"):
            ended = self.ask(name)
            if ended.how != ANSWERED:
                raise RuntimeError(f"{name} does not answer through the gateway: {ended}")
            self.words[name] = ended.detail

    def ask(self, name: str, stream: bool = False, tokens: int = TOKENS) -> Ended:
        """A request of a client, and what became of it."""
        assert self.gateway is not None
        right = self.words.get(name) if tokens == TOKENS else None
        return ask(self.gateway.port, name, stream, tokens, right, BOUND_SECONDS)

    def patiently(self, name: str, **settings: str) -> Answer:
        """Once there is a manager, it is the one who switches."""
        if self.manager is None:
            return super().patiently(name, **settings)
        began = time.monotonic()
        answer = requests.post(self.manager.url + "/switch", json={"model_id": name}, timeout=60)
        now = time.monotonic()
        return Answer(0 if answer.ok else 1, "" if answer.ok else answer.text, None, now - began, now)

    def end(self) -> None:
        """End all that runs here."""
        if self.gateway:
            self.gateway.stop()
        if self.manager:
            self.manager.stop()
        super().end()


def _impatient(conf: str) -> str:
    return _replaced(conf, "proxy_read_timeout 1h;", f"proxy_read_timeout {SERVER_SECONDS}s;")


def _replaced(text: str, old: str, new: str) -> str:
    assert old in text, f"there is no {old!r} any more"
    return text.replace(old, new)


class Crowd(Scene):
    """What goes on around the manager's switches."""

    host: FrontedHost

    def __init__(self, host: FrontedHost) -> None:
        super().__init__(host)
        self._ended = threading.Event()
        self._watchers: list[threading.Thread] = []

    def switch(self, name: str, *moments: Moment) -> Answer:
        """The manager switches, and at its moments happens what belongs to them: it is killed at one of them."""
        manager = self.host.manager
        assert manager is not None
        deaths = len(manager.deaths)
        self.arm(moments)
        with contextlib.suppress(requests.RequestException):  # it is killed
            self.host.patiently(name)
        with contextlib.suppress(AssertionError):
            until(lambda: len(manager.deaths) > deaths, "the manager is killed", 10)
        manager.forget_orders()
        until(manager.serves, "the manager is there again", START_SECONDS)
        status = manager.deaths[-1] if len(manager.deaths) > deaths else 0
        return Answer(status, "", None, 0.0)

    def arm(self, moments: tuple[Moment, ...]) -> None:
        """Order what is to happen at moments of the manager's switches, from now on."""
        if not moments:
            return
        file = self._orders("moments", moments)
        watcher = threading.Thread(target=self._watch, args=(file, moments, self._ended), daemon=True)
        watcher.start()
        self._watchers.append(watcher)
        manager = self.host.manager
        assert manager is not None
        for moment in moments:
            if moment.limit is not None:
                resource.prlimit(manager.process.pid, resource.RLIMIT_FSIZE, (moment.limit, resource.RLIM_INFINITY))

    def met(self, moments: tuple[Moment, ...]) -> bool:
        """Whether a switch has come to all moments that it surely comes to."""
        return all(
            (self.host.folder / f"moments.json.{number}.here").exists() or moment.at == "begin" or not moment.certain
            for number, moment in enumerate(moments)
        )

    @property
    def gates(self) -> Path:
        """Where a cell that plays the manager would tell of the gates: not where the manager itself does."""
        return self.host.folder / "gates.json"

    def end(self) -> None:
        """Nobody does anything any more."""
        self._ended.set()
        for watcher in self._watchers:
            watcher.join()
        super().end()


def left_out(cell: Cell) -> str:
    """Why a cell can't be played in front of a gateway; empty: it can."""
    if any(moment.machine for moment in cell.moments):
        return "another stack on the same GPU, which the gateway does not know of"
    if cell.step == "the gateway's gates":
        return "it plays the manager, which is there"
    return ""


@dataclass
class Outcome:
    """What became of the requests of one cell."""

    cell: Cell
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0
    healed: float = 0.0
    met: bool = True
    replaced: bool = False


class Hosts:
    """Hosts that are well and have nothing to do."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._idle: dict[Setup, list[FrontedHost]] = collections.defaultdict(list)
        self._lock = threading.Lock()

    def take(self, setup: Setup) -> FrontedHost:
        """Return a host with a active and b not."""
        with self._lock:
            if self._idle[setup]:
                return self._idle[setup].pop()
        plain = self.run.host(setup)
        host = FrontedHost(plain.folder, plain.setup, plain.ports, plain.run, plain.over)
        try:
            host.begin()
        except BaseException:
            host.end()
            raise
        return host

    def give_back(self, host: FrontedHost, well: bool) -> bool:
        """Keep it for the next cell, or end it; whether it is kept."""
        kept = well and host.as_it_was()
        if kept:
            with self._lock:
                self._idle[host.setup].append(host)
        else:
            host.end()
        return kept

    def let_go(self, setup: Setup) -> None:
        """No cell needs this any more."""
        with self._lock:
            idle = self._idle.pop(setup, [])
        for host in idle:
            host.end()

    def end(self) -> None:
        """End all."""
        for setup in list(self._idle):
            self.let_go(setup)


def run_cell(cell: Cell, hosts: Hosts) -> Outcome:
    """Run one cell and tell what became of it."""
    outcome = Outcome(cell)
    began = time.monotonic()
    try:
        host = hosts.take(cell.setup)
    except Exception as error:
        outcome.violations.append(f"no host: {type(error).__name__}: {error}")
        return outcome
    try:
        _run_cell(cell, host, outcome)
    except Exception as error:  # a cell that can't be judged must not hide
        outcome.violations.append(f"the cell broke: {type(error).__name__}: {error}")
    outcome.seconds = time.monotonic() - began
    outcome.replaced = not hosts.give_back(host, not outcome.violations)
    return outcome


def _run_cell(cell: Cell, host: FrontedHost, outcome: Outcome) -> None:
    manager, gateway = host.manager, host.gateway
    assert manager is not None
    assert gateway is not None
    since, log, errors = len(host.events()), manager.log.stat().st_size, len(gateway.failures())
    crowd = Crowd(host)
    wrong = outcome.violations
    clients = [Client(gateway.port, n, models, host.words, BOUND_SECONDS) for n, models in enumerate(CLIENTS)]
    long: list[Ended] = []
    try:
        for act in cell.before:
            act(crowd)
        with fault(cell, host):
            if cell.change:
                time.sleep(0.6)  # until the manager has read it
            aside = _one_that_takes_long(host, cell.setup.client_seconds, long)
            crowd.arm(cell.moments)
            armed = time.monotonic()
            for client in clients:
                client.start()
            outcome.met = _until_told(cell, host, crowd, clients, armed)
            if cell.fault == "late":
                time.sleep(1.5)  # until it has come true
        manager.forget_orders()
        healing = time.monotonic()
        try:
            until(lambda: all(client.well(healing) for client in clients), "all is well again", HEALING_SECONDS)
        except AssertionError:
            last = collections.Counter(str(client.ended[-1:]) for client in clients)
            wrong.append(f"G4: not well {HEALING_SECONDS:g} s after the fault: {last.most_common(3)}")
        outcome.healed = time.monotonic() - healing
    finally:
        for client in clients:
            client.stop.set()
        for client in (one for one in clients if one.ident):
            client.join(BOUND_SECONDS + 10)
            if client.is_alive():
                wrong.append("G1: a client hangs")
        crowd.end()
    if aside:
        aside.join(BOUND_SECONDS + 10)
    wrong += crowd.problems
    ended = [one for client in clients for one in client.ended] + long
    # Back to where the next cell begins.
    ended.append(host.ask("a"))
    events = host.events()
    _judge(outcome, ended, events, since, crowd)
    wrong += [f"G3: two awake: {text}" for text in host.two_awake(since)] if not cell.by_hand else []
    wrong += _left(host)
    wrong += [f"nginx: {text}" for text in gateway.failures()[errors:]]
    with manager.log.open(encoding="utf-8", errors="replace") as file:
        file.seek(log)
        said = file.read()
    if "Traceback" in said:
        wrong.append(f"G5: the manager's log: {said[said.index('Traceback') :][-1500:]}")


def _one_that_takes_long(host: FrontedHost, seconds: float, ended: list[Ended]) -> threading.Thread | None:
    """A request runs on a for so long."""
    if not seconds:
        return None
    tokens = int(seconds * 50)
    thread = threading.Thread(target=lambda: ended.append(host.ask("a", True, tokens)), daemon=True)
    thread.start()
    time.sleep(0.1)
    return thread


def _until_told(cell: Cell, host: FrontedHost, crowd: Crowd, clients: list[Client], armed: float) -> bool:
    """Wait until the fault has had its effect on everybody; whether it was met, as far as that can be told."""

    def met() -> bool:
        return crowd.met(cell.moments) and not any(_left_of(cell, host, name) for name in cell.orders)

    while True:
        time.sleep(0.05)
        spent = time.monotonic() - armed
        told = all(client.turned(armed) for client in clients)
        if told and spent > LEAST_SECONDS and (met() or spent > UNMET_SECONDS):
            return met()
        if spent > MOST_SECONDS:
            return False


def _left_of(cell: Cell, host: FrontedHost, name: str) -> list[dict[str, Any]]:
    """The orders that end and that no call has met yet."""
    orders: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError, requests.RequestException):
        if cell.running:
            orders = host.get(name, "/standin/faults").json()
        else:
            orders = json.loads(host.faults(name).read_text(encoding="utf-8"))
    return [order for order in orders if order["times"]]


def _judge(outcome: Outcome, ended: list[Ended], events: list[dict[str, Any]], since: int, crowd: Crowd) -> None:
    """G1 and G2."""
    cell, wrong = outcome.cell, outcome.violations
    outcome.counts = collections.Counter(one.how for one in ended)
    outcome.codes = collections.Counter(one.detail for one in ended if one.how == IN_WORDS)
    wrong += [f"G1: {one.detail}" for one in ended if one.how == WRONG]
    died = any(event["event"] == "dead" for event in events[since:]) or any(_kills(cell, name) for name in cell.orders)
    # vLLM 0.16 takes requests again only when what ran has ended: a stream that lies there for too long is broken off.
    silent = "server_timeout" in outcome.codes
    if outcome.counts[BROKEN_OFF] and not (died or silent):
        wrong.append(f"G1: {outcome.counts[BROKEN_OFF]} broken off, and no server has ended or been silent")
    if outcome.counts[CUT] and cell.setup.drain_action != "abort":
        wrong.append(f"G1: {outcome.counts[CUT]} cut, with drain_timeout_action {cell.setup.drain_action}")
    if outcome.counts[OWN] and not any(order["path"] == "*" for those in cell.orders.values() for order in those):
        wrong.append(f"G1: {outcome.counts[OWN]} answered with nonsense, which no fault asks for")
    # Who acts past the gateway sends requests where he likes, and puts models to sleep, or pauses them, under others'
    # requests.
    asleep, parked = (
        (0, 0) if crowd.clients or cell.by_hand or cell.fault.startswith("puts ") else traffic(events, since)
    )
    if asleep:
        wrong.append(f"G2: {asleep} requests came to a server that was not awake")
    if parked and cell.setup.drain_action != "keep" and not cell.fault.startswith("pause"):
        wrong.append(f"G2: {parked} requests lay at a server over a sleep")


def _kills(cell: Cell, name: str) -> bool:
    return any(order["fault"] in ("kill", "die_after_200", "freeze", "oom", "deaf") for order in cell.orders[name])


def _left(host: FrontedHost) -> Iterator[str]:
    """G5: what is left when nobody asks for anything."""
    manager = host.manager
    assert manager is not None
    seen: dict[str, Any] = {}

    def settled() -> bool:
        shown = manager.shown()
        gates = {model["id"]: model["gate"] for model in shown["models"]}
        awake = {name: "open" if host.look(name).state == "active" else "closed" for name in gates}
        seen.update(waiting=shown["waiting"], in_flight=shown["in_flight"], gates=gates, should=awake)
        return not shown["waiting"] and not shown["in_flight"] and gates == awake

    try:
        until(settled, "it has settled", 15)
    except AssertionError:
        yield f"G5: 15 s later this is left: {seen}"


def line(outcome: Outcome) -> str:
    """One cell for the terminal."""
    cell, counts = outcome.cell, outcome.counts
    parts = ", ".join(
        f"{counts[how]} {how}" for how in (ANSWERED, IN_WORDS, CUT, BROKEN_OFF, OWN, WRONG) if counts[how]
    )
    codes = " ".join(f"{code}:{count}" for code, count in outcome.codes.most_common())
    notes = ("" if outcome.met else " NOT MET") + (" (host replaced)" if outcome.replaced else "")
    text = f"{cell.name:70} {outcome.seconds:5.1f} s, well after {outcome.healed:4.1f} s; {parts} [{codes}]{notes}"
    return "\n    VIOLATION: ".join([text, *(one[:900] for one in collapsed(outcome.violations))])


def collapsed(violations: list[str]) -> list[str]:
    """Those that are alike, once."""
    return [f"{count} x {text}" if count > 1 else text for text, count in collections.Counter(violations).items()]


def closing(outcomes: list[Outcome], without: int = 0) -> str:
    """What became of all."""
    counts = sum((outcome.counts for outcome in outcomes), collections.Counter[str]())
    violations = sum(len(outcome.violations) for outcome in outcomes)
    unmet = sum(not outcome.met for outcome in outcomes)
    parts = {
        "answered": counts[ANSWERED],
        "failed in words": counts[IN_WORDS],
        "cut by their drain": counts[CUT],
        "broken off visibly with their server": counts[BROKEN_OFF],
        "answered with a server's own nonsense": counts[OWN],
        "lost": counts[WRONG],
    }
    cells = f"{len(outcomes)} cells at the gateway ({without} left out, {unmet} whose fault no switch met)"
    told = ", ".join(f"{count} {how}" for how, count in parts.items())
    return f"{cells}: {counts.total()} requests, {told}; {violations} violations"


def play(
    wanted: Iterable[Cell], side_by_side: int = SIDE_BY_SIDE, enough: Callable[[], bool] = lambda: False
) -> Iterator[Outcome]:
    """Run cells, those of one setup after the other, until it is enough, and give what became of each."""
    in_order = sorted(wanted, key=lambda cell: repr(cell.setup))
    lots = [list(those) for _setup, those in itertools.groupby(in_order, key=lambda cell: cell.setup)]
    # Those of the largest are shared.
    shares = [(lot, side_by_side if len(lot) > 20 else 1) for lot in lots]
    lots = [lot[start::count] for lot, count in shares for start in range(count)]
    lots.sort(key=len, reverse=True)

    def lot_of(lot: list[Cell], hosts: Hosts, out: list[Outcome]) -> None:
        for cell in lot:
            if run.over.is_set() or enough():
                break
            out.append(run_cell(cell, hosts))
            with told:
                told.notify_all()
        hosts.end()

    told = threading.Condition()
    with Run() as run, concurrent.futures.ThreadPoolExecutor(side_by_side) as pool:
        outs: list[list[Outcome]] = [[] for _lot in lots]
        all_hosts = [Hosts(run) for _lot in lots]
        work = [pool.submit(lot_of, *one) for one in zip(lots, all_hosts, outs, strict=True)]
        given = [0] * len(lots)
        try:
            while True:
                over = all(one.done() for one in work)
                for number, out in enumerate(outs):
                    while given[number] < len(out):
                        given[number] += 1
                        yield out[given[number] - 1]
                if over:
                    break
                with told:
                    told.wait(0.2)
            for one in work:
                one.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            run.over.set()
            for hosts in all_hosts:
                hosts.end()


def playable(wanted: Iterable[Cell]) -> list[Cell]:
    """Those that can be played in front of a gateway."""
    return [cell for cell in wanted if not left_out(cell)]


def _interrupt(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Run the matrix and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.gateway.matrix", description=(__doc__ or "").splitlines()[0])
    of_it: Any = {"action": "append", "default": [], "metavar": "STEP[/FAULT[/VARIANT]]"}
    parser.add_argument("--only", help="run a part; may be given more than once", **of_it)
    parser.add_argument("--side-by-side", help="how many hosts there are at once", type=int, default=SIDE_BY_SIDE)
    options = parser.parse_args(argv)
    if missing():
        print(missing())
        return 1 if os.environ.get("CI") == "true" else 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    wanted = chosen(options.only)
    outcomes = []
    for outcome in play(playable(wanted), options.side_by_side):
        outcomes.append(outcome)
        print(line(outcome), flush=True)
    print(closing(outcomes, len(wanted) - len(playable(wanted))), flush=True)
    assert len(outcomes) == len(playable(wanted)), "some were not played"
    return 1 if any(outcome.violations for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
