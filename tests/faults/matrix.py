# SPDX-License-Identifier: MIT
"""The fault matrix: every step of a switch meets every fault, and what is left is asked from the servers themselves.

    python -m tests.faults.matrix                        all cells; the last line is `N cells, M violations`
    python -m tests.faults.matrix --only sleep/500       those of a step, or a fault of a step
    python -m tests.faults.matrix --part                 those that this commit concerns, and a draw of the others
    python -m tests.faults.matrix --write docs/failure-modes.md

A cell is a host of two stand-ins that share one GPU, a active and b not, brought there and switched to b by the host's
own command line. The fault hits one call of one step. Then:

I1  never, the healing included, were both on the GPU at one moment;
I2  b is active and a is not (exit status 0), or a is active again and b is not (1), or the message names what is left
    (1). Whoever is awake answers with the right text. The exit status and the result say what is so;
I3  the switch and each of its steps took no longer than their settings say;
I4  where it failed, the message names the model, the step, the cause and a remedy;
I5  without the fault, the next switch to b succeeds, and then one to a.

A client's request that ran on a ended whole, or the result says that it was cut.

Where somebody else switches meanwhile, I2 is asked of who ended last. A switch that was killed says nothing: of that
cell I1 and I5 are left. The answers that are recorded as right are those of before, whatever the cell does.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import difflib
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests import part
from tests.serverlib import ROOT
from tests.standin.gpu import GpuHost, OutOfMemory

from . import document
from .cells import FAULTS, Cell, cells, concerned
from .host import GPU_GB, Answer, Client, Host, Run, Seen, Setup
from .scene import Scene

SIDE_BY_SIDE = 5
LONGEST_LINE = 800
# Of each step, in a part.
SHARE = 0.25
# What a machine with two busy cores adds to a step, and to begin and end a process.
SLACK_STEP, SLACK_PROCESS = 1.0, 2.0
# The engine asks it before and after a sleep, and up to three times before a wake or a start.
NVIDIA_SMI_SECONDS = 10.0
B_ACTIVE, A_ACTIVE, NAMED = "b active", "a active again", "error state"
CUT_OFF = "cut off"
AS_IT_WAS = "as it was"  # of several alone: a host that was not touched has what it had
ENDED = "ended at its end"  # of several alone: a server that was proved, and was to end at a call that came after it
ENDING = {FAULTS[kind][0] for kind in ("killed", "frozen", "oom")}


@dataclass
class Outcome:
    """What became of one cell."""

    cell: Cell
    left: str = ""
    rungs: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cause: str = ""
    remedy: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)  # violations of I3, unless it was the machine
    note: str = ""


class Hosts:
    """Hosts that are well and have nothing to do: to bring one up takes longer than most cells."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._idle: dict[Setup, list[Host]] = collections.defaultdict(list)
        self._lock = threading.Lock()

    def take(self, setup: Setup) -> Host:
        """Return a host with a active and b not."""
        with self._lock:
            if self._idle[setup]:
                return self._idle[setup].pop()
        host = self.run.host(setup)
        host.up()
        return host

    def give_back(self, host: Host, well: bool) -> None:
        """Keep it for the next cell, or end it."""
        host.used += 1
        if well and host.as_it_was():
            with self._lock:
                self._idle[host.setup].append(host)
        else:
            host.end()


class Foreign:
    """Another process's share of the GPU's memory."""

    def __init__(self, host: Host, gigabytes: float, patient: bool) -> None:
        self._holder = GpuHost(host.gpus, ("0",), GPU_GB, "python3")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._grab, args=(gigabytes,), daemon=True)
        if patient:
            self._thread.start()
        else:
            self._holder.hold(gigabytes)

    def _grab(self, gigabytes: float) -> None:
        while not self._end.wait(0.01):
            with contextlib.suppress(OutOfMemory):
                self._holder.hold(gigabytes)
                return

    def release(self) -> None:
        """Give it back."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        self._holder.end("gone")
        self._holder.life.close()


def run_cell(cell: Cell, hosts: Hosts) -> Outcome:
    """Run one cell and tell what became of it."""
    outcome = Outcome(cell)
    try:
        host = hosts.take(cell.setup)
    except Exception as error:
        outcome.violations.append(f"no host: {type(error).__name__}: {error}")
        return outcome
    try:
        _run_cell(cell, host, outcome)
    except Exception as error:  # a cell that can't be judged must not hide
        outcome.violations.append(f"the cell broke: {type(error).__name__}: {error}")
    finally:
        hosts.give_back(host, not outcome.violations)
    return outcome


def _run_cell(cell: Cell, host: Host, outcome: Outcome) -> None:
    since = len(host.events())
    scene = Scene(host)
    wrong = outcome.violations
    try:
        for act in cell.before:
            act(scene)
        if cell.setup.client_seconds:
            scene.clients.append(Client(host, cell.setup.client_seconds))
        with _fault(cell, host):
            answer = scene.switch(cell.target, *cell.moments)
            if cell.fault == "late":
                time.sleep(2)  # until it has come true
    finally:
        scene.end()
    answers = [(cell.target, answer), *scene.others]
    # Who waited for the other had the lock after him, even if that one took longer to end its process.
    asked, last = max(answers, key=lambda one: ("waiting for another switch" in one[1].said, one[1].ended))
    seen = {name: host.look(name) for name in ("a", "b")}
    outcome.seconds = answer.seconds
    outcome.steps = answer.result["steps"] if answer.result else []
    outcome.rungs = sorted({step["escalation"] for step in outcome.steps if "escalation" in step})
    outcome.cause, outcome.remedy = told(answer, host)
    outcome.note = ", ".join(f"{name} {one.state}" for name, one in seen.items())
    wrong += scene.problems
    if cell.killed and not cell.several and answer.status != -signal.SIGKILL:
        wrong.append(f"it was to be killed and exits {answer.status}: {answer.said}")
    elif cell.killed and last.status == -signal.SIGKILL:
        outcome.left = CUT_OFF
    else:
        outcome.left = left(last, seen, host, asked, cell.several)
        if cell.several and not outcome.left and untouched(last):
            outcome.left = AS_IT_WAS
        if cell.several and not outcome.left and ended_after_proof(cell, last, seen, asked):
            outcome.left = ENDED
        wrong += end_state(last, seen, host, outcome.left)
        wrong += truth(cell, last, seen, asked)
        wrong += [text for name, one in answers for text in message(one, name, cell)]
        wrong += as_meant(cell, outcome)
        outcome.slow = [] if cell.several else in_time(answer, cell)
    if wrong and scene.others:
        wrong.append(
            "; ".join(f"to {name}: exit status {one.status} at {one.ended:.2f}, {one.said}" for name, one in answers)
        )
    if cell.private:
        wrong += private(host)
    if cell.by_hand:
        wrong += [f"two awake: {text}" for text in two_awake_since(host, seen, since)]
        since = len(host.events())
    wrong += healing(cell, host, scene, [one.result for _name, one in answers])
    wrong += [f"two awake: {text}" for text in host.two_awake(since)]


def two_awake_since(host: Host, seen: dict[str, Seen], since: int) -> list[str]:
    """Whoever wakes a server past the engine may have two awake for a moment, but no switch leaves it so."""
    if all(one.state == "active" for one in seen.values()):
        return [*host.two_awake(since), "and both are"]
    return []


def as_meant(cell: Cell, outcome: Outcome) -> list[str]:
    """What this cell has to come to, and may not do on the way."""
    wrong = []
    if cell.ends and outcome.left and outcome.left not in cell.ends:
        wrong.append(f"it ends with {outcome.left}, not with {' or '.join(cell.ends)}: {outcome.cause}")
    for step in outcome.steps:
        if {step["action"], f"{step['action']} {step['model']}"} & set(cell.never):
            wrong.append(f"a step that nothing calls for: {step['action']} {step['model']}")
    return wrong


def private(host: Host) -> list[str]:
    """Whether nobody else can write to the folder of the lock, or open it."""
    wrong = []
    for path, bits in ((host.stack / "run" / "switch.lock", 0o077), (host.stack / "run", 0o022)):
        mode = path.stat().st_mode & 0o777
        if mode & bits:
            wrong.append(f"{path.name} has mode {mode:o}")
    return wrong


@contextlib.contextmanager
def _fault(cell: Cell, host: Host) -> Iterator[None]:
    """Make the fault, and end it."""
    for name, orders in cell.orders.items():
        if cell.running:
            requests.post(host.url(name) + "/standin/faults", json=orders, timeout=5).raise_for_status()
        else:
            host.order(name, orders)
    if cell.change:
        declaration = host.declaration()
        cell.change(declaration)
        host.write(declaration)
    pid_file = host.stack / "run" / "a.pid"
    if cell.orphan:
        pid_file.rename(pid_file.with_suffix(".hidden"))
    foreign = None
    if cell.foreign_gb or cell.grabbed_gb:
        foreign = Foreign(host, cell.foreign_gb or cell.grabbed_gb, patient=bool(cell.grabbed_gb))
    try:
        yield
    finally:
        if foreign:
            foreign.release()
        if cell.orphan and not pid_file.exists():
            pid_file.with_suffix(".hidden").rename(pid_file)
        if cell.change:
            host.write(host.declaration())
        for name in cell.orders:
            host.faults(name).unlink(missing_ok=True)
            if cell.running:
                with contextlib.suppress(requests.RequestException):
                    requests.delete(host.url(name) + "/standin/faults", timeout=2)


def left(answer: Answer, seen: dict[str, Seen], host: Host, asked: str = "b", several: bool = False) -> str:
    """Which of the three allowed ends it was, "" for none of them. C(asked) is what was switched to."""
    right = {name: one.state == "active" and one.text == host.right[name] for name, one in seen.items()}
    other = "a" if asked == "b" else "b"
    if answer.status == 0 and right[asked] and seen[other].state != "active":
        return B_ACTIVE if asked == "b" else A_ACTIVE
    if answer.status == 1 and right["a"] and seen["b"].state != "active":
        return A_ACTIVE
    named = re.search("could not be restored|was not restored|State of the host: ", answer.said)
    told = {
        name: right[name] or one.state != "active" or (several and f"{name} gives wrong answers" in answer.said)
        for name, one in seen.items()
    }
    if answer.status == 1 and named and all(told.values()):
        return NAMED
    return ""


def untouched(answer: Answer) -> bool:
    """Whether a switch was refused before it did anything, and said so."""
    return answer.status == 1 and not (answer.result or {}).get("steps") and bool(answer.said)


def ended_after_proof(cell: Cell, answer: Answer, seen: dict[str, Seen], asked: str) -> bool:
    """Whether a switch ended well, and its server ended, as was ordered, at a call after its last proof.

    A look that gets no answer counts as slow, since the answer to the proof is known: of no server is it told that it
    fails because one look at it has failed.
    """
    other = "a" if asked == "b" else "b"
    if answer.status != 0 or not ends(cell, asked) or seen[asked].state not in ("error", "stopped"):
        return False
    steps = [step for step in answer.result["steps"] if step["model"] == asked] if answer.result else []
    proved = not steps or (steps[-1]["action"] == "verify" and "failed" not in steps[-1])
    return proved and seen[other].state != "active"


def end_state(answer: Answer, seen: dict[str, Seen], host: Host, which: str) -> list[str]:
    """I2: one of the three."""
    if answer.status is None:
        return ["it did not end and had to be killed"]
    if which:
        return []
    wrong = {name for name, one in seen.items() if one.state == "active" and one.text != host.right[name]}
    is_ = ", ".join(f"{n} is {one.state}{' with a wrong text' if n in wrong else ''}" for n, one in seen.items())
    return [f"exit status {answer.status}, but {is_}: {answer.said or 'nothing was said'}"]


def truth(cell: Cell, answer: Answer, seen: dict[str, Seen], asked: str = "b") -> list[str]:
    """I2: what the result says is so."""
    wrong = []
    if answer.result is None:
        return ["exit status 0 without a result"] if answer.status == 0 else []
    says = answer.result["active_model"] == asked and answer.result["models"][asked]["state"] == "active"
    # One that is active and can't be proved stays so; and of several somebody else may have made it active.
    kept = answer.status == 1 and (cell.several or answer.result["previous_model"] == asked)
    if (answer.status == 0) != says and not kept:
        wrong.append(f"exit status {answer.status} with active_model {answer.result['active_model']}")
    for name, one in seen.items():
        said = answer.result["models"][name]
        # A server that still answers nonsense while it is looked at can't be known.
        blind = name in cell.orders and (cell.variant != "once" or cell.several)
        if cell.several and one.state == "error" and ends(cell, name):
            continue  # at the last look, or after it
        if said["state"] in ("error", "loading"):
            if one.state in ("active", "sleeping") and not blind:
                wrong.append(f"the result says that {name} is {said['state']}, but it is {one.state}")
        elif cell.fault == "dies-after" and (said["state"], one.state) == ("sleeping", "stopped"):
            pass  # it said that it sleeps, and died
        elif said["state"] == one.state and said["level"] is None and not tells_level(cell, name):
            pass
        elif said["state"] != one.state or (one.state == "sleeping" and said["level"] != one.level):
            claim, fact = (said["state"], said["level"]), (one.state, one.level)
            wrong.append(f"the result says that {name} is {claim}, but it is {fact}")
    active = [name for name, one in seen.items() if one.state == "active"]
    says = answer.result["active_model"]
    unknown = any(answer.result["models"][name]["state"] in ("error", "loading") for name in active)
    differs = says not in active if active else says is not None
    ended = cell.several and says is not None and not active and ends(cell, says)
    if differs and not (says is None and unknown) and not ended:
        wrong.append(f"the result says that {says} is active, but {' and '.join(active) or 'none'} is")
    return wrong


def ends(cell: Cell, name: str) -> bool:
    """Whether a server is to end, or to stop answering, at a call that comes when it comes."""
    return any(order["fault"] in ENDING for order in cell.orders.get(name, []))


def drips(cell: Cell, name: str) -> float:
    """For how many seconds a server may take to send the answer to a client that it has computed."""
    orders = cell.orders.get(name, [])
    mine = [one for one in orders if one["fault"] == "slow_drip" and one["path"] in ("*", "/v1/completions")]
    return float(max((one["seconds"] or 5.0 for one in mine), default=0.0))


def tells_level(cell: Cell, name: str) -> bool:
    """Whether a server has a sleep gauge that can be read."""
    orders = cell.orders.get(name, [])
    return cell.setup.version != "0.11.0" and all(order["path"] not in ("/metrics", "*") for order in orders)


def bound(action: str, setup: Setup) -> float:
    """How long a step may take at most, as its settings say."""
    settings = setup.settings
    call, probe, stop = (settings[f"{key}_timeout_seconds"] for key in ("request", "probe", "stop"))
    ready = settings["max_retries"] * settings["health_check_interval_seconds"]
    told = {"sleep": 2, "wake": 3, "start": 3}.get(action, 0) * NVIDIA_SMI_SECONDS if setup.gpus_tell else 0.0
    return told + float(
        {
            # Counted before and after, asked for its version, and told to go on.
            "drain": setup.drain_seconds + 3 * probe + call,
            # The call, the wait until it is so, and the last look.
            "sleep": 2 * call + probe,
            # On a rung two calls tell what it cuts. Two looks; SIGTERM and SIGKILL, or the command; the wait until its
            # port is closed, and its last looks.
            "stop": 4 * probe + max(2 * stop, settings["command_timeout_seconds"] + 2 * stop) + call + 2 * probe,
            # Four calls, one of them up to three times.
            "wake": 6 * call,
            "reload": 4 * call,
            "start": 2 * stop,
            # The wait, the last two looks, the answer, and when the server was started.
            "verify": ready + 2 * probe + call + probe,
            # For an answer: one of a wake or a sleep at most, and a look of two tries at its end.
            "wait": max(setup.drain_seconds, call) + 4 * probe,
            "record": 2 * call + 2 * probe,
            "first_answer": call,
        }[action]
    )


def in_time(answer: Answer, cell: Cell) -> list[str]:
    """I3: the whole and each step."""
    wrong = []
    setup = cell.setup
    if answer.status is None:
        return []
    steps = answer.result["steps"] if answer.result else []
    for step in steps:
        most = bound(step["action"], setup) + SLACK_STEP + cell.more_seconds
        if step["seconds"] is None or step["seconds"] > most:
            wrong.append(f"{step['action']} {step['model']} took {step['seconds']} s, {most:g} s at most were stated")
    # Before all; at the end; after a wait; before a retry; when it is to be drained before a rung; and on the way back
    # before and after each of two, with a count of what was woken.
    observations = 2 + any(step["action"] == "wait" for step in steps) + any("failed" in step for step in steps)
    observations += any(step.get("escalation") in ("stop", "restart") for step in steps) + (8 if answer.status else 0)
    most = sum(bound(step["action"], setup) for step in steps) + SLACK_PROCESS
    most += observations * 2 * setup.settings["probe_timeout_seconds"] + cell.more_seconds
    if answer.seconds > most:
        wrong.append(f"the switch took {answer.seconds:.1f} s, {most:g} s at most were stated")
    return wrong


def message(answer: Answer, asked: str, cell: Cell) -> list[str]:
    """I4: what the person is told."""
    from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import brief

    wrong = []
    if "Traceback" in answer.said:
        wrong.append(f"a traceback: {answer.said.splitlines()[-1]}")
    if answer.status == 0:
        return wrong
    if answer.status != 1:
        return [*wrong, f"exit status {answer.status}: {answer.said}"]
    if cell.several:
        return wrong
    wanted = {"the model": r"\b[ab]\b", "a remedy": r"What to do: \S"}
    if answer.result is None and (cell.moments or cell.before):
        # It came to no model: what is wrong is the host's own.
        wanted = {"the stack's file": "/stack/", "a remedy": r"What to do: \S|try again|: (run|free|mount|raise|see) "}
    elif answer.result is not None:
        # Where there is none, nothing was done that could fail.
        wanted |= {"what was asked for": rf"^{asked} could not be made active: \S", "the step": r"Failed: \w+ [ab]\b"}
        causes = [step["failed"] for step in answer.result["steps"] if "failed" in step]
        if causes and not any(brief(cause, asked)[:60] in answer.said for cause in causes):
            wrong.append(f"the message does not name the cause ({causes[0]}): {answer.said}")
    for what, pattern in wanted.items():
        if not re.search(pattern, answer.said, re.MULTILINE):
            wrong.append(f"the message does not name {what}: {answer.said}")
    return wrong


def healing(cell: Cell, host: Host, scene: Scene, results: list[dict[str, Any] | None]) -> list[str]:
    """I5: without the fault all is well, and the clients have their answers or are accounted for."""
    wrong = []
    for client in scene.clients if host.setup.drain_action == "fail" else ():
        client.wait(10)  # the request is the fault
    for name, other in (("b", "a"), ("a", "b")):
        again = host.patiently(name)
        results.append(again.result)
        if again.status == 1 and cell.several:
            again = as_told(cell, host, name, again)
            results.append(again.result)
        if again.status != 0:
            wrong.append(f"healing: switch {name} exits {again.status}: {again.said}")
            break
        seen = {one: host.look(one) for one in ("a", "b")}
        if seen[name] != Seen("active", None, host.right[name]) or seen[other].state == "active":
            wrong.append(f"healing: after switch {name} {name} is {seen[name]} and {other} is {seen[other]}")
        for client in scene.clients if name == "b" and not _cut(results) else ():
            # What ran on is over by now; what was parked goes on with a.
            client.wait(0 if _parked(results) else 1)
    for client in scene.clients:
        client.wait(10 + drips(cell, client.name))
        # Whoever ends a server, or a switch amid its sleep, cuts what runs on it; and nobody is told.
        excused = cell.several and (None in results or client.name in scene.killed or ends(cell, client.name))
        if not client.whole and not _cut(results) and not excused:
            counts = [result["requests"] for result in results if result]
            wrong.append(f"the client's request was lost, and no result says that it was cut: {counts}")
    # What is started by intent may answer otherwise than before: that is recorded anew, with a warning.
    for name, known in _known_answers(host).items() if (cell.step, cell.fault) != ("start", "wrong-text") else ():
        by_intent = any(
            warning.startswith(f"{name} answers the fixed prompt")
            and warning.endswith("so the new answer was recorded")
            for result in results
            for warning in (result["warnings"] if result else ())
        )
        if known != host.canaries[name] and not (cell.several and by_intent):
            wrong.append(f"recorded as the right answer of {name} is {known!r} now, and was {host.canaries[name]!r}")
    return wrong


def as_told(cell: Cell, host: Host, name: str, failed: Answer) -> Answer:
    """Do what the message says, where a server that never answers again is to be told from one that will."""
    if "drain_timeout_action to abort" in failed.said and any(ends(cell, one) for one in cell.orders):
        return host.patiently(name, drain_timeout_action="abort")
    if "is not ready after" in failed.said and any(
        order["fault"] == "deaf" for orders in cell.orders.values() for order in orders
    ):
        return host.patiently(name)
    return failed


def _known_answers(host: Host) -> dict[str, str]:
    try:
        return host.known_answers()
    except (OSError, ValueError, KeyError) as error:
        return dict.fromkeys(("a", "b"), f"nothing ({error})")


def _cut(results: list[dict[str, Any] | None]) -> bool:
    # None: some were, and nobody knows how many.
    return any(result["requests"]["cut"] != 0 for result in results if result)


def _parked(results: list[dict[str, Any] | None]) -> bool:
    return any(result["requests"]["parked"] for result in results if result)


def told(answer: Answer, host: Host) -> tuple[str, str]:
    """The cause and the remedy, as the person is told them."""
    failed = [step["failed"] for step in (answer.result or {"steps": []})["steps"] if "failed" in step]
    warnings = answer.result["warnings"] if answer.result else []
    said = host.normal(answer.said)
    found = re.search(r"What to do: (.*)", said)
    cause = host.normal(failed[0]) if failed else said if answer.status else "; ".join(map(host.normal, warnings))
    return cause.split("\n", maxsplit=1)[0], found.group(1) if found else ""


def measure_again(outcomes: list[Outcome], hosts: Hosts) -> None:
    """Run those that took too long once more, one at a time: a busy machine is no fault of the engine's."""
    for number, outcome in enumerate(outcomes):
        if outcome.slow and not outcome.violations:
            again = run_cell(outcome.cell, hosts)
            again.violations += [*again.slow, *(f"(before: {text})" for text in outcome.slow)] if again.slow else []
            print(f"took too long ({'; '.join(outcome.slow)}), so alone once more:\n{line(again)}", flush=True)
            outcomes[number] = again


def line(outcome: Outcome) -> str:
    """One cell for the terminal."""
    cell = outcome.cell
    rungs = "+".join(outcome.rungs) or "-"
    text = f"{cell.step:26} {cell.fault:18} {cell.variant:26} {outcome.left or 'NONE':15} {rungs:28}"
    text = f"{text} {outcome.seconds:5.1f} s"
    told = (" ".join(one.split()) for one in outcome.violations)
    # The last words of a traceback are its cause.
    short = (one if len(one) <= LONGEST_LINE else f"{one[: LONGEST_LINE - 200]} ... {one[-200:]}" for one in told)
    return "\n    VIOLATION: ".join([text, *short])


def worst(outcomes: list[Outcome]) -> Iterator[str]:
    """The worst time of each rung and of each step."""
    rungs: dict[str, float] = collections.defaultdict(float)
    steps: dict[str, float] = collections.defaultdict(float)
    for outcome in outcomes:
        spent: dict[str, float] = collections.defaultdict(float)
        for step in outcome.steps:
            steps[step["action"]] = max(steps[step["action"]], step["seconds"] or 0)
            if "escalation" in step:
                spent[step["escalation"]] += step["seconds"] or 0
        for rung, seconds in spent.items():
            rungs[rung] = max(rungs[rung], seconds)
    yield "worst time of a rung: " + ", ".join(f"{rung} {rungs[rung]:.2f} s" for rung in sorted(rungs))
    yield "worst time of a step: " + ", ".join(f"{step} {steps[step]:.2f} s" for step in sorted(steps))


def chosen(only: list[str]) -> list[Cell]:
    """The cells of steps, faults of them, or variants of those."""
    beginnings = tuple(one.rstrip("/") + "/" for one in only)
    return [cell for cell in cells() if not only or f"{cell.name}/".startswith(beginnings)]


def part_of(wanted: list[Cell]) -> list[Cell]:
    """Those that this commit concerns, and of each step a share of the others: another one with each commit."""
    files = part.changed()
    if files is None:
        print("there is no history here that tells what this commit has changed: the draw alone")
    about = {cell.name for cell in wanted if concerned(cell, files or ())}
    drawn = {cell.name for cell in part.draw(wanted, SHARE, lambda cell: cell.step)}
    print(f"{len(about)} cells that this commit concerns, and a draw of {len(drawn)} (PART_SEED={part.seed()})")
    rest = [cell.name for cell in wanted if cell.name not in about | drawn]
    part.leave_out("faults", "python -m tests.faults.matrix", rest)
    return [cell for cell in wanted if cell.name in about | drawn]


def _interrupt(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Run the matrix and return the exit status."""
    sys.path.insert(0, str(ROOT / ".build"))  # pytest knows that by itself
    parser = argparse.ArgumentParser(prog="python -m tests.faults.matrix", description=(__doc__ or "").splitlines()[0])
    part_of_it = {"action": "append", "default": [], "metavar": "STEP[/FAULT[/VARIANT]]"}
    parser.add_argument("--only", help="run a part; may be given more than once", **part_of_it)  # type: ignore[arg-type]
    parser.add_argument("--part", action="store_true", help="run a part, which differs from commit to commit")
    parser.add_argument("--list", action="store_true", help="name the cells and run none")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write what was found for readers")
    options = parser.parse_args(argv)
    wanted = chosen(options.only)
    if options.part:
        wanted = part_of(wanted)
    if options.list:
        print("\n".join(cell.name for cell in wanted))
        return 0
    # Whoever ends it, by Ctrl-C or not, wants nothing left.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    started = time.monotonic()
    outcomes: list[Outcome] = []
    with Run() as run, concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        hosts = Hosts(run)
        try:
            for outcome in pool.map(lambda cell: run_cell(cell, hosts), wanted):
                outcomes.append(outcome)
                print(line(outcome), flush=True)
            measure_again(outcomes, hosts)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            run.end()
            raise
    violations = sum(len(outcome.violations) for outcome in outcomes)
    counts = collections.Counter(outcome.left or "none of the three" for outcome in outcomes)
    print("\n".join(worst(outcomes)))
    print(", ".join(f"{count} {what}" for what, count in counts.most_common()), end="; ")
    print(f"{time.monotonic() - started:.0f} s in all")
    text = document.render([document.Row.of(outcome) for outcome in outcomes])
    committed = ROOT / "docs" / "failure-modes.md"
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    elif len(wanted) == len(cells()):
        # No violation by itself: on a busy machine a fault may be met a moment later and told in other words.
        page = committed.read_text(encoding="utf-8") if committed.exists() else ""
        lines = list(difflib.unified_diff(page.splitlines(), text.splitlines(), "the page", "this run", "", "", 0, ""))
        print("\n".join(["differs from docs/failure-modes.md:", *lines[2:]] if lines else []))
    print(f"{len(outcomes)} cells, {violations} violations", flush=True)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
