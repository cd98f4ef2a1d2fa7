# SPDX-License-Identifier: MIT
"""Replay traces of requests against the policies of the model manager: how often each switches, how long requests wait.

    PYTHONPATH=roles/model_manager/files python -m tools.simulate [--seed N] [--hours H] [--max-wait SECONDS] ...

The models of a trace share one GPU. A switch waits until the requests of the active model have ended, then takes the
time of its sleep and the target's wake; requests that come meanwhile wait until their model is active. An active
server takes all its requests at once, and each takes as long as it would alone. Time is simulated.

Exits with 1 if `batched` lets a request wait longer than it may, or needs more than a third of the switches of `fifo`
where requests for two models alternate.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from model_manager.policy import BATCHED, FIFO, POLICIES, Active, Settings, Situation, Waiting, decide

MODELS = ("a", "b", "c")
# The longest request of the traces, in seconds.
LONGEST = 8.0
# How many of the switches of fifo batched may need for interleaved requests.
MOST_SWITCHES = 1 / 3
# What floats make of sums.
SLACK = 1e-3


@dataclass(frozen=True, order=True)
class Request:
    """A request for a model that comes at a time and then takes so long. In seconds."""

    at: float
    model: str
    seconds: float


@dataclass(frozen=True)
class Costs:
    """What a sleep and a wake take, in seconds."""

    leave: float = 1.0
    arrive: float = 4.0


@dataclass
class Outcome:
    """What a policy made of a trace: the wait of each request in seconds, and each switch: when it began, to whom."""

    waits: list[float] = field(default_factory=list)
    switches: list[tuple[float, str]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """The mean wait, 0 without requests."""
        return sum(self.waits) / len(self.waits) if self.waits else 0.0

    @property
    def longest(self) -> float:
        """The longest wait, 0 without requests."""
        return max(self.waits, default=0.0)

    def quantile(self, share: float) -> float:
        """The wait that this share of the requests does not exceed, 0 without requests."""
        return sorted(self.waits)[math.ceil(share * len(self.waits)) - 1] if self.waits else 0.0


class Replay:
    """One GPU, the requests of a trace, and a policy that decides when to switch."""

    def __init__(self, policy: str, trace: Sequence[Request], settings: Settings, costs: Costs) -> None:
        self.policy = policy
        self.settings = settings
        self.costs = costs
        self.models = frozenset(request.model for request in trace)
        self.coming = sorted(trace, reverse=True)
        self.outcome = Outcome()
        self.queues: dict[str, list[Request]] = {model: [] for model in sorted(self.models)}
        self.now = 0.0
        self.active: str | None = None
        self.active_since = 0.0
        # The ends of the requests that the active model works on.
        self.running: list[float] = []
        self.last_end = 0.0
        # The model that a switch brings, and when it is there.
        self.arrival: tuple[float, str] | None = None

    def run(self) -> Outcome:
        """Let all requests come and be answered."""
        again = math.inf
        while True:
            times = [again, self.coming[-1].at if self.coming else math.inf]
            times += [self.arrival[0]] if self.arrival else self.running[:1]
            if min(times) == math.inf:
                return self.outcome
            self.now = min(times)
            self._pass()
            again = math.inf if self.arrival else self._decide()

    def _pass(self) -> None:
        """What happens now."""
        if self.arrival and self.arrival[0] <= self.now:
            self.active, self.active_since, self.arrival = self.arrival[1], self.now, None
            self.running, self.last_end = [], self.now
            for request in self.queues[self.active]:
                self._serve(request)
            self.queues[self.active] = []
        while self.running and self.running[0] <= self.now:
            self.last_end = heapq.heappop(self.running)
        while self.coming and self.coming[-1].at <= self.now:
            request = self.coming.pop()
            if request.model == self.active and not self.arrival:
                self._serve(request)
            else:
                self.queues[request.model].append(request)

    def _serve(self, request: Request) -> None:
        self.outcome.waits.append(self.now - request.at)
        heapq.heappush(self.running, self.now + request.seconds)

    def _decide(self) -> float:
        """Ask the policy, begin the switch that it wants. Returns when to ask it again."""
        decision = decide(self.policy, self._situation())
        if decision.model is None:
            return math.inf if decision.again_seconds is None else self.now + decision.again_seconds
        self.outcome.switches.append((self.now, decision.model))
        leave = 0.0 if self.active is None else self.costs.leave
        drained = max([self.now, *self.running])
        self.arrival = drained + leave + self.costs.arrive, decision.model
        return math.inf

    def _situation(self) -> Situation:
        active: tuple[Active, ...] = ()
        if self.active is not None:
            idle = 0.0 if self.running else self.now - self.last_end
            since = self.now - self.active_since
            active = (Active(self.active, since, len(self.running), idle, self.costs.leave),)
        waiting = tuple(
            Waiting(
                model, len(queue), self.now - queue[0].at, self.costs.arrive, self.costs.leave, self.models - {model}
            )
            for model, queue in self.queues.items()
            if queue
        )
        return Situation(active, waiting, self.settings)


# ---- the traces ----------------------------------------------------------------------------------


def _took(chance: random.Random) -> float:
    return min(LONGEST, 0.2 + chance.expovariate(1 / 2.0))


def _poisson(chance: random.Random, end: float, gap: float) -> Iterator[float]:
    at = chance.expovariate(1 / gap)
    while at < end:
        yield at
        at += chance.expovariate(1 / gap)


def steady(chance: random.Random, end: float) -> list[Request]:
    """Three models, each asked every 30 s on average, independently of each other."""
    return [Request(at, model, _took(chance)) for model in MODELS for at in _poisson(chance, end, 30)]


def bursty(chance: random.Random, end: float) -> list[Request]:
    """Three models, each with a burst of some twelve requests every five minutes on average."""
    found = []
    for model in MODELS:
        for begin in _poisson(chance, end, 300):
            gaps = [chance.expovariate(1 / 4) for _number in range(chance.randint(4, 20))]
            found += [Request(at, model, _took(chance)) for at in itertools.accumulate(gaps, initial=begin)]
    return found


def dominant(chance: random.Random, end: float) -> list[Request]:
    """One model gets nine of ten requests, two others share the rest."""
    weights = (18, 1, 1)
    return [Request(at, *_pick(chance, weights)) for at in _poisson(chance, end, 3)]


def _pick(chance: random.Random, weights: Sequence[int]) -> tuple[str, float]:
    return chance.choices(MODELS, weights)[0], _took(chance)


def interleaved(chance: random.Random, end: float) -> list[Request]:
    """Two models take turns, a request every two seconds: the worst for whoever switches for each of them."""
    return [Request(2.0 * number, MODELS[number % 2], _took(chance)) for number in range(int(end / 2))]


TRACES: tuple[Callable[[random.Random, float], list[Request]], ...] = (steady, bursty, dominant, interleaved)


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay all traces, print what came of them. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="of the random traces (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=4.0, help="of requests (default: %(default)g)")
    parser.add_argument("--max-wait", type=float, default=60.0, help="max_wait_seconds (default: %(default)g)")
    parser.add_argument("--linger", type=float, help="linger_seconds (default: as long as the switch takes)")
    parser.add_argument("--min-active", type=float, default=0.0, help="min_active_seconds (default: %(default)g)")
    parser.add_argument("--sleep", type=float, default=1.0, help="seconds that a sleep takes (default: %(default)g)")
    parser.add_argument("--wake", type=float, default=4.0, help="seconds that a wake takes (default: %(default)g)")
    given = parser.parse_args(arguments)
    settings = Settings(given.max_wait, given.linger, given.min_active, LONGEST)
    costs = Costs(given.sleep, given.wake)
    least = len(MODELS) * (LONGEST + costs.leave + costs.arrive + settings.min_active_seconds)
    if settings.max_wait_seconds < least:
        parser.error(f"--max-wait must be at least {least:g} for these switches: raise it, or lower the others")
    print(f"{'trace':12} {'policy':8} {'requests':>8} {'switches':>8} {'mean wait':>10} {'95 %':>8} {'longest':>8}")
    wrong = []
    for trace in TRACES:
        requests = trace(random.Random(given.seed), given.hours * 3600)
        outcomes = {policy: Replay(policy, requests, settings, costs).run() for policy in POLICIES}
        for policy, one in outcomes.items():
            print(
                f"{trace.__name__:12} {policy:8} {len(one.waits):8} {len(one.switches):8} {one.mean:8.1f} s "
                f"{one.quantile(0.95):6.1f} s {one.longest:6.1f} s"
            )
        batched, fifo = outcomes[BATCHED], outcomes[FIFO]
        if batched.longest > settings.max_wait_seconds + SLACK:
            wrong.append(
                f"{trace.__name__}: a request waits {batched.longest:.1f} s, {settings.max_wait_seconds:g} allowed"
            )
        if trace is interleaved:
            share = len(batched.switches) / max(len(fifo.switches), 1)
            print(f"interleaved: batched needs {share:.0%} of the switches of fifo, {MOST_SWITCHES:.0%} are allowed")
            if share > MOST_SWITCHES:
                wrong.append(f"interleaved: batched needs {share:.0%} of the switches of fifo")
    for mistake in wrong:
        print(f"wrong: {mistake}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
