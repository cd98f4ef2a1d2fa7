# SPDX-License-Identifier: MIT
"""What the model manager makes of a host that is hurt, round for round: how long until it serves as before.

    python -m tests.e2e.manager_rounds [--rounds 20] [--only manager,server,engine,reboot,broken] [--suite bookworm]

The host has systemd, the Docker engine that its Debian ships, and three stand-ins in containers that share a GPU; it is
made as those of tests/firewall, by root. Nobody helps it: each round hurts it once, and waits.

    manager   kill -9 of the manager at any moment of a switch
    server    kill -9 of the active model's server
    engine    kill -9 of the Docker engine
    reboot    the power goes, and comes back
    broken    the active model's server dies and can't load any more; others are served; then the service is restarted

A round fails if two servers are on the GPU at one moment, loading or awake, by their own record; or if the host does
not come back to what is recorded as desired.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.managed import STACK, UNIT, ManagedBox
from tests.e2e.stack import STANDIN_IMAGE, WEBUI_IMAGE
from tests.serverlib import two_awake

FAULTS = ("manager", "server", "engine", "reboot", "broken")
NAMES = ("a", "b", "c")
PATIENCE_SECONDS = 150.0
# How long a switch takes here, and a bit more: the manager is killed at any moment of that.
SWITCH_SECONDS = 2.0
SETTINGS = {
    "observe_seconds": 0.5,
    # Each round begins with all models loaded.
    "reload_idle_seconds": 1,
    "retry_seconds": 120,
    # No server is hurt three times within that; one that can't load fails three times.
    "breaker_minutes": 20 / 60,
}
# The least time from one round to the next, so that each of the three models is hurt once within the time above.
ROUND_SECONDS = 7.0
FAULTS_FILE = "/gpus/faults-{}.json"
BROKEN = [{"path": "load", "fault": "die", "times": 0}]


def models() -> list[dict[str, Any]]:
    """Three that share a GPU; what they do takes a moment, so that there is something to be hurt."""
    slow = {"STANDIN_LOAD_SECONDS": "0.5", "STANDIN_SLEEP_SECONDS": "0.3", "STANDIN_WAKE_SECONDS": "0.3"}
    return [
        {
            "id": name,
            "model": f"org/{name}",
            "host_port": 8001 + number,
            "weights_gb": 0.01,
            "startup_mode": "active" if name == NAMES[0] else "sleep",
            "env": {**slow, "STANDIN_FAULTS_FILE": FAULTS_FILE.format(name)},
        }
        for number, name in enumerate(NAMES)
    ]


@dataclass
class Outcome:
    """How the rounds of one fault went: seconds until it was all right again, and what is worth telling."""

    seconds: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, fault: str) -> str:
        """A line of the table."""
        counted = {note: self.notes.count(note) for note in sorted(set(self.notes))}
        told = ", ".join(f"{note} ({count})" for note, count in counted.items())
        if not self.seconds:
            return f"{fault:8}      0"
        middle = statistics.median(self.seconds)
        times = f"{min(self.seconds):7.1f} {middle:7.1f} {max(self.seconds):7.1f}"
        return f"{fault:8} {len(self.seconds):6} {times}  {told}"


HEAD = f"{'fault':8} {'rounds':>6} {'min s':>7} {'median':>7} {'max s':>7}  how"


class Rounds:
    """Hurts a host, and watches how it comes back."""

    def __init__(self, box: ManagedBox, chance: random.Random, say: Callable[[str], object] = print) -> None:
        self.box = box
        self.chance = chance
        self.say = say
        self.texts: dict[str, str] = {}
        self.outcomes: dict[str, Outcome] = {}

    # What is known of the host.

    def events(self) -> list[dict[str, Any]]:
        """What the servers did, in order; also while the host is down."""
        file = self.box.folder / "upper/gpus/events.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def loads(self, name: str, since: int) -> int:
        """How often a model has begun to load since that many events."""
        return sum(one["event"] == "loading" and one["model"] == name for one in self.events()[since:])

    def view(self) -> dict[str, Any] | None:
        """What the manager says of the host; None where it does not answer."""
        status, answer = self.box.ask("GET", "/models", seconds=10)
        return answer if status == 200 else None

    def serves(self, name: str) -> bool:
        """Whether the manager says that this model alone is active, and its server gives the answer of before."""
        seen = self.view()
        if seen is None or seen["active_models"] != [name]:
            return False
        text = self.box.complete(name)
        return bool(text) and self.texts.setdefault(name, text) == text

    def rests(self) -> bool:
        """Whether each model is what it is meant to be, none is stopped, and nothing goes on."""
        seen = self.view()
        if seen is None or seen["queue"] or seen["lock_holder"]:
            return False
        states = {"active": "ready", "sleeping": "asleep"}
        return all(one["state"] == states.get(one["desired"]) for one in seen["models"])

    def until(self, true: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until it is true; if it does not become so, tell what the host says."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.view()}\n{self.story()}")
            time.sleep(0.05)

    def story(self) -> str:
        """What the host can tell of itself."""
        look = ["docker ps --all", "ss --listening --tcp --numeric --processes", "cat /opt/homegpt/run/switch.lock"]
        look += [f"docker logs --tail 15 --timestamps vllm-{name}" for name in NAMES]
        # What a container is by its engine, and which command of the manager may hang.
        shown = "{{.Name}} {{json .State}} {{json .NetworkSettings.Ports}}"
        look += [f"docker inspect --format '{shown}' vllm-{name}" for name in NAMES]
        look += ["ps -e --format pid,ppid,stat,etimes,wchan:20,args"]
        look += ["journalctl --unit docker --lines 40 --output short-precise --no-pager"]
        told = [f"$ {words}\n{self.box.run('sh', '-c', words, check=False)}" for words in look]
        events = [json.dumps(one) for one in self.events()[-25:]]
        return "\n".join([self.box.journal(), *told, *events])

    # What is done to it.

    def run(self, fault: str, number: int) -> Outcome:
        """So many rounds."""
        outcome = self.outcomes[fault] = Outcome()
        hurt = getattr(self, "_" + fault)
        for each in range(number):
            self.until(self.rests, "all models are what they are meant to be")
            began, begun = time.monotonic(), len(self.events())
            seconds, note, hurt_at = hurt()
            self.until(self.rests, "all models are what they are meant to be again")
            together = two_awake(self.events()[:hurt_at], begun) + two_awake(self.events(), hurt_at)
            assert together == [], f"{fault}, round {each + 1}: {together}"
            outcome.seconds.append(seconds)
            outcome.notes.append(note)
            self.say(f"  {fault} {each + 1}/{number}: {seconds:.1f} s, {note}")
            time.sleep(max(0.0, began + ROUND_SECONDS - time.monotonic()))
        return outcome

    def _active(self) -> str:
        (name,) = [name for name, state in self.box.desired().items() if state == "active"]
        return name

    def _next(self) -> str:
        return NAMES[(NAMES.index(self._active()) + 1) % len(NAMES)]

    def _switch(self, name: str) -> None:
        status, answer = self.box.ask("POST", "/switch", {"model_id": name})
        assert (status, answer) == (200, {"status": "success", "active_model": name}), (status, answer)
        assert self.serves(name)

    def _manager(self) -> tuple[float, str, int]:
        before, target = self._active(), self._next()
        old = self.box.unit()["InvocationID"]
        status, _answer = self.box.ask("POST", "/switch?wait=false", {"model_id": target})
        assert status == 202, status
        time.sleep(self.chance.uniform(0.0, SWITCH_SECONDS))
        self.box.run("systemctl", "kill", "--kill-whom", "main", "--signal", "KILL", UNIT)
        began, hurt_at = time.monotonic(), len(self.events())
        recorded = self._active()
        self.until(lambda: self.box.unit()["InvocationID"] != old, "systemd starts the service again")
        self.until(lambda: self.serves(self._active()), "the desired model serves")
        seconds = time.monotonic() - began
        self.until(self.rests, "nothing more is done")
        now = self._active()
        if recorded == target:
            assert now == target, f"{target} was recorded, and {now} is active"
            return seconds, "was done", hurt_at
        assert now in (before, target), f"{now} is active, neither {before} nor {target}"
        return seconds, "went back" if now == before else "was ready, and is recorded", hurt_at

    def _server(self) -> tuple[float, str, int]:
        self._switch(self._next())
        name = self._active()
        hurt_at = len(self.events())
        self._kill(name)
        began = time.monotonic()
        self.until(lambda: self.loads(name, hurt_at) > 0 and self.serves(name), f"{name} serves again")
        assert self.loads(name, hurt_at) == 1
        return time.monotonic() - began, "was loaded again", hurt_at

    def _kill(self, name: str) -> None:
        program = f"kill -9 $(docker inspect --format '{{{{.State.Pid}}}}' vllm-{name})"
        self.box.run("sh", "-c", program)

    def _engine(self) -> tuple[float, str, int]:
        self._switch(self._next())
        name, old = self._active(), self.box.unit("docker.service")["MainPID"]
        container = self._started(name)
        hurt_at = len(self.events())
        # Those of former rounds do not count: systemd starts it three times within a minute.
        self.box.run("systemctl", "reset-failed", "docker.service")
        self.box.run("systemctl", "kill", "--kill-whom", "main", "--signal", "KILL", "docker.service")
        began = time.monotonic()

        def back() -> bool:
            unit = self.box.unit("docker.service")
            return unit["ActiveState"] == "active" and unit["MainPID"] not in ("0", old) and self.serves(name)

        self.until(back, f"the engine is back, and {name} serves")
        seconds = time.monotonic() - began
        kept = self._started(name) == container
        return seconds, "its container went on" if kept else "was loaded again", hurt_at

    def _started(self, name: str) -> str:
        return self.box.run("docker", "inspect", "--format", "{{.State.StartedAt}}", f"vllm-{name}")

    def _reboot(self) -> tuple[float, str, int]:
        self._switch(self._next())
        name = self._active()
        began = time.monotonic()
        self.box.halt()
        hurt_at = len(self.events())
        self.box.boot()
        booted = time.monotonic() - began
        self.until(lambda: self.serves(name), f"{name} serves again")
        seconds = time.monotonic() - began
        loaded = [one["model"] for one in self.events()[hurt_at:] if one["event"] == "loading"]
        assert sorted(loaded) == [*NAMES] and loaded[-1] == name, loaded
        return seconds, f"the boot took {round(booted)} s", hurt_at

    def _broken(self) -> tuple[float, str, int]:
        bad, good = NAMES[2], NAMES[0]
        if self._active() != bad:
            self._switch(bad)
        # One that was given up shortly before is given up again at once.
        self.until(lambda: not self._breaker(bad).get("failures"), f"the failures of {bad} are long ago")
        hurt_at = len(self.events())
        try:
            self.box.write(FAULTS_FILE.format(bad), json.dumps(BROKEN))
            self._kill(bad)
            began = time.monotonic()
            self.until(lambda: self._breaker(bad).get("state") == "open", f"the breaker of {bad} opens")
            tried = self.loads(bad, hurt_at)
            assert tried > 0, "that it crashed once is no reason not to try it"
            self._switch(good)
            seconds = time.monotonic() - began
            assert self.box.ask("POST", "/switch", {"model_id": bad})[0] == 502
            assert self.serves(good), "who asked for the broken one is told so, and the others are none the worse"
            after = self.loads(bad, hurt_at)
            self.box.run("systemctl", "restart", UNIT)
            self.until(lambda: self.view() is not None, "the service answers again")
            for _look in range(10):
                assert self._breaker(bad).get("state") == "open"
                assert self.serves(good)
                time.sleep(0.3)
            assert self.loads(bad, hurt_at) == after, "it is not tried because the service was restarted"
        finally:
            self.box.run("rm", "-f", FAULTS_FILE.format(bad))
        self._switch(bad)
        assert self._breaker(bad).get("state") == "closed"
        return seconds, f"open after {tried} loads", hurt_at

    def _breaker(self, name: str) -> dict[str, Any]:
        seen = self.view()
        models = {one["id"]: one for one in seen["models"]} if seen else {}
        return (models.get(name) or {}).get("breaker") or {}


@contextmanager
def hurt_host(folder: Path, suite: str, ansible_playbook: str) -> Iterator[ManagedBox]:
    """The host, with its models loaded."""
    with ManagedBox(
        folder,
        suite,
        models(),
        vllm_image=STANDIN_IMAGE,
        open_webui_image=WEBUI_IMAGE,
        vllm_volumes=["/gpus:/gpus"],
        vllm_env={"STANDIN_GPU_DIR": "/gpus"},
        model_manager_settings=SETTINGS,
    ) as box:
        box.install_compose()
        box.run("mkdir", "/gpus")
        with subprocess.Popen(["docker", "save", STANDIN_IMAGE, WEBUI_IMAGE], stdout=subprocess.PIPE) as images:
            assert images.stdout
            box.feed(images.stdout, "docker", "load", "--quiet")
        assert images.returncode == 0
        box.provision(ansible_playbook)
        yield box


def table(box: ManagedBox, outcomes: dict[str, Outcome]) -> str:
    """How it went."""
    engine = box.run("docker", "version", "--format", "{{.Server.Version}}", check=False)
    title = f"{box.suite}, Docker engine {engine}, models in {STACK}; until the desired model serves:"
    return "\n".join([title, HEAD, *(one.row(fault) for fault, one in outcomes.items())])


def main(arguments: Sequence[str] | None = None) -> int:
    """Hurt the host for so many rounds, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.manager_rounds", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default=",".join(FAULTS), help="faults, with commas between them")
    parser.add_argument("--suite", choices=["bookworm", "trixie"], default="bookworm")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args(arguments)
    faults = options.only.split(",")
    if not set(faults) <= set(FAULTS):
        parser.error(f"the faults are {', '.join(FAULTS)}")
    print(f"seed {options.seed}", flush=True)
    playbook = str(Path(sys.executable).with_name("ansible-playbook"))
    with (
        tempfile.TemporaryDirectory(prefix="manager-rounds-") as folder,
        hurt_host(Path(folder), options.suite, playbook) as box,
    ):
        rounds = Rounds(box, random.Random(options.seed), lambda text: print(text, flush=True))
        failed = 0
        for fault in faults:
            try:
                rounds.run(fault, options.rounds)
            except AssertionError as problem:
                failed += 1
                print(f"{fault}: {problem}", flush=True)
        print(table(box, rounds.outcomes), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
