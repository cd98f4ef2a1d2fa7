# SPDX-License-Identifier: MIT
"""The figures that the README states, each a ratio or a delay measured in one run on this machine.

    .venv/bin/python bench/run.py [--only core|manager|playbook|ready|fleet|bootstrap|warm|gateway|door|peers|waiters]
                              [--quick] [--write]

`bootstrap` needs a Docker engine and the images for tests (`make images`), and takes eight minutes. `warm` needs real
vLLM (`tools/real_vllm.sh`), 15 GB of RAM and ten minutes.

What is compared is done by turns, so that whatever else the machine does hits both. The status is 1 if a median is
over its limit.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / ".build"))

import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.http_connection import Answer, Connection
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from bench import door, gateway, manager, medians, peers, warm
from tests.e2e.stack import PLAY, Stack, contained
from tests.fleet.fleet import FORKS, NEW, OLD, Fleet
from tests.gateway import waiters
from tests.part import leave_out
from tests.playbooklib import Ansible, Host, Run, is_sleeping, launched, served
from tests.serverlib import ROOT, Server, start_standin

# With few samples the status tells of figures that are over their limit by more than a quarter; the table tells of all.
QUICK_SLACK = 1.25
# The least of which a median leaves out one that something else has disturbed. So few are not taken of fifty hosts.
FEW_ON_A_FLEET = 3
# The least that tell what 99 of 100 do not exceed.
OF_A_HUNDRED = 100

Call = tuple[int, str, str, dict[str, str], bytes | None]  # port, method, path, headers, body


class Figure:
    """One line of the table: samples, and the limit of their median."""

    def __init__(self, name: str, limit: float, unit: str = "") -> None:
        self.name = name
        self.limit = limit
        self.unit = unit
        self.samples: list[float] = []

    @property
    def good(self) -> bool:
        """Whether the median is within the limit."""
        return self.within(1.0)

    def within(self, slack: float) -> bool:
        """Whether the median is within so many times the limit."""
        return statistics.median(self.samples) <= self.limit * slack

    def cells(self) -> list[str]:
        """Return what the table says of it."""
        numbers = [min(self.samples), statistics.median(self.samples), max(self.samples)]
        form = "{:.1f}" if self.unit else "{:.2f}"
        shown = [form.format(number) + self.unit for number in numbers]
        limit = f"<= {self.limit:g}{self.unit}"
        return [self.name, *shown, limit, str(len(self.samples)), "ok" if self.good else "OVER"]


@contextlib.contextmanager
def pair(folder: Path) -> Iterator[tuple[Server, Server]]:
    """Two stand-ins that sleep and wake in no time: `a` awake, `b` asleep."""
    with start_standin("org/b", names=["b"], log=folder / "b.log") as b:
        b.call("POST", "/sleep?level=1").raise_for_status()
        with start_standin("org/a", names=["a"], log=folder / "a.log") as a:
            yield a, b


def models_of(servers: tuple[Server, ...]) -> list[dict[str, Any]]:
    """The inventory's entries. They are no containers, so that Docker's command line is not timed with the core."""
    return [served(server, name, start_command=["false"], env={}) for server, name in zip(servers, "ab", strict=True)]


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# ---- the core against the bare calls ----------------------------------------------------------


def recorded(work: Callable[[], object], servers: tuple[Server, ...]) -> list[Call]:
    """Return the calls that the work makes, in order; the servers' access logs must hold the same."""
    calls: list[Call] = []
    real = Connection.call

    def call(
        self: Connection, method: str, path: str, headers: Mapping[str, str], body: bytes | None, until: float
    ) -> Answer:
        calls.append((self.port, method, path, dict(headers), body))
        return real(self, method, path, headers, body, until)

    marks = [server.mark() for server in servers]
    Connection.call = call  # type: ignore[method-assign]
    try:
        work()
    finally:
        Connection.call = real  # type: ignore[method-assign]
    for server, mark in zip(servers, marks, strict=True):
        made = [f"{method} {path}" for port, method, path, *_more in calls if port == server.port]
        assert made == server.accesses(since=mark), (made, server.accesses(since=mark))
    return calls


def bare(calls: list[Call]) -> None:
    """Make the calls as a script would, with the library requests: one session for each server."""
    sessions: dict[int, requests.Session] = {}
    for port, method, path, headers, body in calls:
        if port not in sessions:
            sessions[port] = requests.Session()
            sessions[port].trust_env = False
        url = f"http://127.0.0.1:{port}{path}"
        sessions[port].request(method, url, headers=headers, data=body, timeout=120).raise_for_status()
    for session in sessions.values():
        session.close()


def measure_core(folder: Path, rounds: int) -> list[Figure]:
    """Time the core's switch, from the raw inventory on, against the bare sequence of the calls that it makes."""
    figures = []
    for canary in ("off", "enforce"):
        figures.append(Figure(f"core's switch / its HTTP calls alone, canary {canary}", 1.3))
        measure_core_with(folder / canary, rounds, canary, figures[-1])
    return figures


def measure_core_with(folder: Path, rounds: int, canary: str, figure: Figure) -> None:
    """Take the samples of one figure of the core."""
    folder.mkdir()
    with pair(folder) as servers:
        models = models_of(servers)

        def switch(model: str) -> None:
            with Switcher(parse(models, {"canary": canary}), str(folder / "stack")) as switcher:
                assert switcher.switch(model).changed

        for model in "ba":
            with Switcher(parse(models, {"canary": canary}), str(folder / "stack")) as switcher:
                switcher.switch(model, record_canary=canary != "off")
        calls = {model: recorded(lambda: switch(model), servers) for model in "ba"}  # noqa: B023
        for number in range(rounds):
            # Both go in both directions, and each comes first as often as the other.
            if number % 2:
                core, alone = timed(lambda: switch("b")), timed(lambda: bare(calls["a"]))
            else:
                alone, core = timed(lambda: bare(calls["b"])), timed(lambda: switch("a"))
            assert [is_sleeping(server.port) for server in servers] == [False, True]
            figure.samples.append(core / alone)


# ---- the model manager's service against the bare calls -----------------------------------------


def measure_manager(folder: Path, rounds: int) -> list[Figure]:
    """Time `POST /switch` against the bare sequence of the calls that it makes: those are the servers' own time."""
    ratio = Figure("POST /switch / its HTTP calls alone", 1.3)
    added = Figure("POST /switch over its HTTP calls alone, median", 10, " ms")
    late = Figure("POST /switch over its HTTP calls alone, 99 of 100", 30, " ms")
    switching = {"canary": "off"}
    with pair(folder) as servers:
        models = models_of(servers)

        def switch(model: str) -> None:
            with Switcher(parse(models, switching), str(folder / "stack")) as switcher:
                assert switcher.switch(model).changed

        for model in "ba":
            switch(model)
        calls = {model: recorded(lambda: switch(model), servers) for model in "ba"}  # noqa: B023
        with manager.service(folder / "stack", models, switching) as service:

            def by_service(model: str) -> float:
                service.settle(servers)
                marks = [server.mark() for server in servers]
                seconds = service.switch(model)
                for server, mark in zip(servers, marks, strict=True):
                    made = [f"{method} {path}" for port, method, path, *_more in calls[model] if port == server.port]
                    # What comes after is the service's look at the servers.
                    assert server.accesses(since=mark)[: len(made)] == made
                service.settle(servers)
                return seconds

            by_service("b")  # warms the caches
            by_service("a")
            for number in range(rounds):
                if number % 2:
                    through, alone = by_service("b"), timed(lambda: bare(calls["a"]))
                else:
                    alone, through = timed(lambda: bare(calls["b"])), by_service("a")
                assert [is_sleeping(server.port) for server in servers] == [False, True]
                ratio.samples.append(through / alone)
                added.samples.append((through - alone) * 1000)
    if rounds < OF_A_HUNDRED:
        leave_out("bench", "make bench", ["POST /switch, 99 of 100"])
        return [ratio, added]
    late.samples.append(statistics.quantiles(added.samples, n=100, method="inclusive")[98])
    return [ratio, added, late]


# ---- switch.yml against a ping, and against uri ------------------------------------------------


def costing(run: Callable[[], Run]) -> tuple[Run, float]:
    """Return how a play went, and the seconds of CPU that its command took with all that it started on this machine."""

    def taken() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    # The stand-ins are children too, but count only when they have ended.
    before = taken()
    ended = run()
    return ended, taken() - before


def measure_playbook(folder: Path, rounds: int) -> list[Figure]:
    """Time switch.yml and status.yml against a play that only pings, and a switch against the same by uri tasks."""
    to_ping = Figure("switch.yml / a play with one ping", 1.15)
    cpu_to_ping = Figure("CPU of switch.yml / of a play with one ping", 1.15)
    status_to_ping = Figure("status.yml / a play with one ping", 1.1)
    status_cpu_to_ping = Figure("CPU of status.yml / of a play with one ping", 1.1)
    to_uri = Figure("switch.yml / the same by uri tasks", 0.35)
    with pair(folder) as servers:
        host = Host(folder, models_of(servers))
        ansible = Ansible(str(Path(sys.executable).with_name("ansible-playbook")), folder, [host])
        assert ansible.play(ROOT / "bench/engine.yml").status == 0

        def play(playbook: str | Path, model: str = "") -> tuple[float, float]:
            run, cpu = costing(lambda: ansible.play(playbook, *(("-e", f"model={model}") if model else ())))
            assert run.status == 0, run.output
            if model:
                assert run.count("changed") > 0, run.output
                assert [is_sleeping(server.port) for server in servers] == [model != "a", model != "b"]
            return run.seconds, cpu

        def all_of_them(there: str, back: str, switch_first: bool) -> None:
            ping = play(ROOT / "bench/ping.yml")
            if switch_first:
                switch, uri = play("switch", there), play(ROOT / "bench/uri_switch.yml", back)
            else:
                uri, switch = play(ROOT / "bench/uri_switch.yml", there), play("switch", back)
            status = play("status")
            for figure, took, measured in (
                (to_ping, 0, switch),
                (cpu_to_ping, 1, switch),
                (status_to_ping, 0, status),
                (status_cpu_to_ping, 1, status),
            ):
                figure.samples.append(measured[took] / ping[took])
            to_uri.samples.append(switch[0] / uri[0])

        figures = [to_ping, cpu_to_ping, status_to_ping, status_cpu_to_ping, to_uri]
        all_of_them("b", "a", True)  # warms the caches
        for figure in figures:
            figure.samples.clear()
        for number in range(rounds):
            all_of_them("b", "a", bool(number % 2))
    return figures


# ---- how soon the core knows that a server is ready --------------------------------------------


def measure_ready(folder: Path, rounds: int) -> list[Figure]:
    """Time from the moment a server is ready to the end of the core's wait, at an interval of 2 s.

    The servers answer a wake before it is done, so that the core has to find out. No completion is asked for: it is
    the knowing that is timed.
    """
    figures = [
        Figure("ready to known, a wake of 0.1 to 3 s", 25, " ms"),
        Figure("ready to known, a load of 0.5 to 5 s", 25, " ms"),
    ]
    switching = {"health_check_interval_seconds": 2, "ready_completion": False}
    chance = random.Random(1)  # the same times in every run
    for number in range(rounds):
        loads = number % 3 == 2
        gpus = folder / f"gpus-{number}"
        seconds = chance.uniform(0.5, 5) if loads else chance.uniform(0.1, 3)
        if loads:
            environment = {"STANDIN_LOAD_SECONDS": seconds, "STANDIN_GPU_DIR": str(gpus)}
            model = launched("a", env=environment)
            host = Host(folder, [model], name=str(number))
            try:
                with Switcher(parse([model], switching), str(host.stack)) as switcher:
                    switcher.switch("a")
                    known = time.time()
            finally:
                host.kill()
        else:
            with start_standin("org/a", names=["a"], log=folder / "a.log", gpu_dir=gpus) as server:
                server.fault("/wake_up", "early", seconds=seconds)
                server.call("POST", "/sleep?level=1").raise_for_status()
                while not is_sleeping(server.port):
                    time.sleep(0.01)
                with Switcher(parse([served(server, "a")], switching), str(folder / "stack")) as switcher:
                    switcher.switch("a")
                    known = time.time()
            host = Host(folder, [], name=str(number))
        ready = [event["time"] for event in host.events() if event["event"] == "awake"][-1]
        figures[loads].samples.append((known - ready) * 1000)
    both = Figure("ready to known, all of them", 25, " ms")
    both.samples = figures[0].samples + figures[1].samples
    return [*figures, both]


# ---- switch.yml on a fleet ---------------------------------------------------------------------


def measure_fleet(folder: Path, rounds: int) -> list[Figure]:
    """Time switch.yml on 10, 20 and 50 SSH hosts against a play that only pings them, and against uri tasks.

    The hosts are containers on this machine, whose cores do the hosts' part as well as the controller's. The number of
    rounds is odd, so that all hosts have the same model again before more of them are switched.
    """
    assert rounds % 2
    figures = []
    sizes = (10, 20, 50) if rounds > FEW_ON_A_FLEET else (10,)
    if len(sizes) == 1:
        leave_out("bench", "make bench", ("20 hosts", "50 hosts"))
    with Fleet(folder, sizes[-1]) as fleet:
        # One after the other: they share a GPU.
        for model in (NEW, OLD):
            for host in fleet.hosts:
                host.serve(model)
            for host in fleet.hosts:
                host.await_ready(model, sleep=model == NEW)
        there, back = NEW, OLD
        for size in sizes:
            to_ping = Figure(f"switch.yml / a play with one ping, {size} hosts", 1.2)
            # What the hosts do is not in it.
            cpu_to_ping = Figure(f"controller's CPU, switch.yml / a play with one ping, {size} hosts", 1.3)
            to_uri = Figure(f"switch.yml / the same by uri tasks, {size} hosts", 0.25)
            figures += [to_ping, cpu_to_ping, to_uri]
            (folder / str(size)).mkdir()
            ansible = Ansible(str(ROOT / ".venv/bin/ansible-playbook"), folder / str(size), fleet.hosts[:size])
            assert ansible.play(ROOT / "bench/engine.yml", *FORKS).status == 0  # opens the connections, too
            for number in range(rounds):
                seconds, cpu = {}, {}
                plays: list[tuple[str, str | Path, str]] = [
                    ("ping", ROOT / "bench/ping.yml", ""),
                    ("switch", "switch", there),
                ]
                if number == 0:
                    # Once: it takes minutes, and is far from its limit.
                    plays.append(("uri", ROOT / "bench/uri_switch.yml", back))
                else:
                    there, back = back, there
                for name, playbook, target in plays:
                    run, cpu[name] = costing(
                        partial(ansible.play, playbook, *FORKS, "-e", f"model={target}", timeout=600)
                    )
                    assert run.status == 0, run.output
                    assert not target or all(run.count("changed", host.name) > 0 for host in ansible.hosts)
                    seconds[name] = run.seconds
                to_ping.samples.append(seconds["switch"] / seconds["ping"])
                cpu_to_ping.samples.append(cpu["switch"] / cpu["ping"])
                if "uri" in seconds:
                    to_uri.samples.append(seconds["switch"] / seconds["uri"])
    return figures


# ---- bootstrap.yml against the servers' own loading ---------------------------------------------


def measure_bootstrap(folder: Path, rounds: int) -> list[Figure]:
    """The whole play with three models in containers, over the sum of the times from a container's start to `awake`.

    A load takes two minutes, as real ones do: the shorter, the more the rest of the play weighs. What the network gives
    is no part of loading, so images and weights are fetched before.
    """
    figure = Figure("bootstrap.yml against the servers' own loading", 1.05)
    for _round in range(rounds):
        models = [contained(name, env={"STANDIN_LOAD_SECONDS": "120"}) for name in ("first", "second", "third")]
        models[0]["startup_mode"] = "active"
        stack = Stack(folder, models)
        ansible = Ansible(str(ROOT / ".venv/bin/ansible-playbook"), folder, [stack])
        try:
            ansible.play("site", timeout=PLAY).changed()
            ansible.play("prefetch", timeout=PLAY).changed()
            run = ansible.play("bootstrap", timeout=900)
            run.changed()
            figure.samples.append(run.seconds / sum(stack.load_seconds().values()))
        finally:
            stack.remove()
    return [figure]


# ---- weights that are read ahead ---------------------------------------------------------------


def measure_warm(folder: Path, rounds: int) -> list[Figure]:
    """Time a reload and a switch on real vLLM with weights read ahead against those without."""
    figures = [
        Figure("a reload, weights read ahead / from a disk of 0.34 GB a second", 0.5),
        Figure("a switch with weights read ahead / without, on that disk", 0.7),
        Figure("a switch with weights read ahead / without, in RAM", 1.02),
        Figure("a copy within RAM while weights are read / alone", 1.1),
    ]
    for figure, samples in zip(figures, warm.measure(folder, rounds), strict=True):
        figure.samples += samples
    return figures


# ---- the gateway ---------------------------------------------------------------------------------


def measure_gateway(folder: Path, rounds: int) -> list[Figure]:
    """Load the gateway and nginx's plain proxy_pass in front of the same server."""
    figures = [
        Figure("CPU a request, gateway / plain proxy_pass", 1.5),
        Figure("requests a second, plain proxy_pass / gateway", 1.18),
        Figure("99 of 100 requests, gateway - plain proxy_pass", 1, " ms"),
        Figure("a stream's first byte, gateway - plain proxy_pass", 1, " ms"),
        Figure("a body of 20 MB, gateway / plain proxy_pass", 1.3),
    ]
    for figure, samples in zip(figures, gateway.measure(folder, rounds), strict=True):
        figure.samples += samples
    return figures


def measure_door(folder: Path, rounds: int) -> list[Figure]:
    """Load the gateway of many hosts and, directly, that of a host behind it."""
    figures = [
        Figure("CPU a request, gateway of many hosts / gateway of a host", 3),
        Figure("99 of 100 requests, gateway of many hosts - gateway of a host", 2, " ms"),
        Figure("a stream's first byte, gateway of many hosts - gateway of a host", 1, " ms"),
    ]
    for figure, samples in zip(figures, door.measure(folder, rounds), strict=True):
        figure.samples += samples
    return figures


def measure_peers(folder: Path, rounds: int) -> list[Figure]:
    """Load the gateway and other programs of its kind in front of the same server."""
    figures = [
        Figure("CPU a request, gateway in percent of LiteLLM 1.100.0", 1, " %"),
        Figure("CPU a request, gateway in percent of vllm-router 0.1.17", 50, " %"),
        Figure("CPU a request, gateway in percent of local-llm-server 0.38.6", 100, " %"),
    ]
    samples = peers.measure(folder, rounds)
    for figure, package in zip(figures, (peers.LITELLM, peers.VLLM_ROUTER, peers.LOCAL_LLM_SERVER), strict=True):
        figure.samples += samples[package]
    return figures


def measure_waiters(_folder: Path, rounds: int) -> list[Figure]:
    """Have 5,000 requests wait at the gateway for a minute."""
    memory = Figure("memory of each of 5,000 requests that wait", 20, " kB")
    cpu = Figure("CPU while 5,000 requests wait, of a core", 3, " %")
    for _round in range(rounds):
        found = waiters.measure(5000, 60)
        assert found.answered == 5000 and found.in_flight == 0, found
        memory.samples.append(found.bytes_each_at_most / 1000)
        cpu.samples.append(100 * found.cpu)
    return [memory, cpu]


def show(figures: list[Figure], file: TextIO) -> None:
    """Print the table."""
    rows = [["", "min", "median", "max", "limit", "n", ""], *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *numbers]).rstrip(), file=file, flush=True)


def measured(measure: Callable[[Path, int], list[Figure]], rounds: int, slack: float) -> list[Figure]:
    """Measure; where a median is over its limit once more, and both count: something else may have been at work."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        figures = measure(Path(folder), rounds)
    if not all(figure.within(slack) for figure in figures):
        print("over a limit, so it is measured again:", file=sys.stderr)
        show(figures, sys.stderr)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            for figure, again in zip(figures, measure(Path(folder), rounds), strict=True):
                figure.samples += again.samples
    return figures


def main() -> int:
    """Measure, print the table, and say by the status whether every median is within its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = {
        "core": (measure_core, 100, 20),
        "manager": (measure_manager, 200, 20),
        "playbook": (measure_playbook, 9, 5),
        "ready": (measure_ready, 36, 12),
        "fleet": (measure_fleet, 9, FEW_ON_A_FLEET),
        "bootstrap": (measure_bootstrap, 1, 1),
        "warm": (measure_warm, 7, 3),
        "gateway": (measure_gateway, 9, 3),
        "door": (measure_door, 9, 3),
        "peers": (measure_peers, 9, 3),
        "waiters": (measure_waiters, 1, 1),
    }
    parser.add_argument("--only", choices=measures, help="measure only this")
    parser.add_argument("--quick", action="store_true", help="few repetitions, and not what takes minutes for one")
    parser.add_argument("--write", action="store_true", help="write the medians into the README, beside the limits")
    args = parser.parse_args()
    # Containers and servers are to be removed, also where the shell has told a job of its own to ignore an interrupt.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_args: sys.exit(1))
    # Few samples on a machine that others use too say little of a figure that is close to its limit.
    slack = QUICK_SLACK if args.quick else 1.0
    figures: list[Figure] = []
    for name, (measure, all_rounds, few) in measures.items():
        if name in ("bootstrap", "warm", "gateway", "door", "peers", "waiters") and args.quick and not args.only:
            leave_out("bench", "make bench", [name])
        elif args.only in (None, name):
            print(f"measuring: {name} ...", file=sys.stderr, flush=True)
            figures += measured(measure, few if args.quick else all_rounds, slack)
    show(figures, sys.stdout)
    if args.write:
        medians.write(figures)
        subprocess.run([sys.executable, "-m", "tests.consistency.write"], cwd=ROOT, check=True)
    return 0 if all(figure.within(slack) for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
