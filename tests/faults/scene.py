# SPDX-License-Identifier: MIT
"""What goes on around a switch: moments of it at which it is killed, a call fails, or somebody else does something.

scene = Scene(host)
answer = scene.switch("b", Moment("call", "POST .*/wake_up", act=rival("a")))
scene.end()
scene.others    # what the others were told
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from .host import MARK, Answer, Client, Host

Act = Callable[["Scene"], None]
NOBODY = 65534


@dataclass(frozen=True)
class Moment:
    """A moment of a switch, and what happens at it: see moments.py. C(act) is done by somebody else while it waits."""

    at: str
    match: str
    server: str = ""  # whose call it is; "" for any
    skip: int = 0
    times: int = 1
    after: tuple[str, str] | None = None
    kill: float | None = None
    errno: str = ""
    limit: int | None = None
    machine: bool = False
    act: Act | None = None
    certain: bool = True  # a switch that never comes to it proves nothing

    def order(self, host: Host) -> dict[str, Any]:
        """As moments.py reads it."""
        match = self.match
        if self.at == "call":
            method, _blank, path = match.partition(" ")
            match = rf"^{method} {host.ports[self.server] if self.server else '.*'} {path}"
        order: dict[str, Any] = {"at": self.at, "match": match, "skip": self.skip, "times": self.times}
        order |= {"after": self.after} if self.after else {}
        if self.act:
            return {**order, "pause": True}
        if self.limit is not None:
            return {**order, "limit": self.limit}
        if self.machine:
            return {**order, "machine": str(host.folder / "machine")}
        return {**order, "errno": self.errno} if self.errno else {**order, "kill": self.kill or 0}


# Where the locks of the machine count: for two stacks on it.
ONE_GPU = Moment("begin", "", machine=True)


class Scene:
    """A host, one who switches it, and the others."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.clients: list[Client] = []
        self.others: list[tuple[str, Answer]] = []
        self.problems: list[str] = []
        self.killed: set[str] = set()  # servers
        self.holders: list[subprocess.Popen[str]] = []
        self._rivals: list[threading.Thread] = []
        self._over = threading.Event()

    def switch(self, name: str, *moments: Moment) -> Answer:
        """Run the host's command line, and at its moments what belongs to them."""
        if not moments:
            return self.host.switch(name)
        file = self._orders("moments", moments)
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(file, moments, over), daemon=True)
        watcher.start()
        try:
            answer = self.host.switch(name, moments=file)
        finally:
            over.set()
            watcher.join()
        for number, moment in enumerate(moments):
            if moment.certain and not file.with_name(f"{file.name}.{number}.here").exists():
                self.problems.append(f"it never came to the moment {moment.at} {moment.match}: {answer.said}")
        return answer

    def _orders(self, name: str, moments: tuple[Moment, ...]) -> Path:
        file = self.host.folder / f"{name}.json"
        for old in file.parent.glob(f"{file.name}.*"):
            old.unlink()
        file.write_text(json.dumps([moment.order(self.host) for moment in moments]), encoding="utf-8")
        return file

    def _watch(self, file: Path, moments: tuple[Moment, ...], over: threading.Event) -> None:
        todo = {number: moment.act for number, moment in enumerate(moments) if moment.act}
        while todo and not over.wait(0.003):
            for number, act in list(todo.items()):
                if file.with_name(f"{file.name}.{number}.here").exists():
                    del todo[number]
                    try:
                        act(self)
                    except Exception as error:
                        self.problems.append(f"what somebody else did failed: {type(error).__name__}: {error}")
                    file.with_name(f"{file.name}.{number}.go").touch()

    def rival(self, name: str, stack: Path | None = None) -> None:
        """Let somebody else begin a switch; returns when it waits for the lock, or has ended."""
        number = len(self._rivals)
        said = self.host.folder / f"rival-{number}.said"
        said.unlink(missing_ok=True)
        moments = self._orders(f"rival-{number}", (ONE_GPU,)) if stack else None

        def run() -> None:
            self.others.append((name, self.host.switch(name, moments, said, stack)))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._rivals.append(thread)
        until = time.monotonic() + 30
        while thread.is_alive() and time.monotonic() < until:
            if said.exists() and "waiting for another switch" in said.read_text(encoding="utf-8"):
                return
            time.sleep(0.01)

    def hold(self, path: Path, kind: str) -> bool:
        """Let another user of the host hold a file's lock, if the system allows it; whether it does."""
        # No Python: it may be for its owner alone. The lock is held, if it can be opened, until the input ends.
        command = ["flock", "--nonblock", f"--{kind}", str(path), "sh", "-c", "echo held; read -r _end"]
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
            env={MARK: str(self.host.folder), "PATH": os.environ.get("PATH", os.defpath)}, **user,  # type: ignore[call-overload]
        )  # fmt: skip
        self.holders.append(holder)
        return bool(holder.stdout.readline().strip() == "held")

    def end(self) -> None:
        """Wait for the others' switches, and let go of what is held."""
        for thread in self._rivals:
            thread.join()
        for holder in self.holders:
            holder.communicate()
        self._over.set()
        self.gates.unlink(missing_ok=True)

    @property
    def gates(self) -> Path:
        """What the model manager tells of the gateway's gates; there is neither."""
        return self.host.stack / "run" / "gates.json"

    def answer(self, seconds: float, busy: bool) -> None:
        """In the place of the manager: answer who asks for gates to be closed, so much later; a may have requests."""
        told: dict[str, Any] = {"ask": "", "closed": [], "busy": [], "runs": True, "number": 0}
        self.tell(told)

        def work() -> None:
            since: dict[str, float] = {}
            while not self._over.wait(0.01):
                asked = None
                with contextlib.suppress(OSError, ValueError):
                    lock = self.host.stack / "run" / "switch.lock"
                    asked = json.loads(lock.read_text(encoding="utf-8").split("\n", 1)[0]).get("gates")
                now = time.monotonic()
                if asked and now - since.setdefault(asked["ask"], now) >= seconds:
                    told.update(ask=asked["ask"], closed=asked["models"], busy=["a"] if busy else [])
                    told["number"] += busy
                    self.tell(told)

        threading.Thread(target=work, daemon=True).start()

    def tell(self, told: object) -> None:
        """In the place of the manager: tell this."""
        new = self.gates.with_suffix(".other")
        new.write_text(json.dumps(told) if isinstance(told, dict) else str(told), encoding="utf-8")
        if not self._over.is_set():
            new.replace(self.gates)


# ---- what somebody else does -----------------------------------------------------------------------


def several(*acts: Act) -> Act:
    """One after the other."""

    def act(scene: Scene) -> None:
        for one in acts:
            one(scene)

    return act


def posts(name: str, *paths: str) -> Act:
    """Calls a server by hand."""

    def act(scene: Scene) -> None:
        for path in paths:
            body = {"json": {"method": "reload_weights"}} if path == "/collective_rpc" else {}
            requests.post(scene.host.url(name) + path, timeout=20, **body).raise_for_status()  # type: ignore[arg-type]

    return act


def asks(name: str, seconds: float) -> Act:
    """A client's request comes, which takes so long."""

    def act(scene: Scene) -> None:
        scene.clients.append(Client(scene.host, seconds, name))

    return act


def rival(name: str) -> Act:
    """Another operator switches."""
    return lambda scene: scene.rival(name)


def rival_of_another_stack(name: str) -> Act:
    """Another operator switches, in another stack folder on the same GPU."""

    def act(scene: Scene) -> None:
        other = scene.host.folder / "other-stack"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(scene.host.stack, other, ignore=shutil.ignore_patterns("switch.lock"))
        scene.rival(name, other)

    return act


def kills(name: str) -> Act:
    """Ends a server's process."""

    def act(scene: Scene) -> None:
        pid = scene.host.pid(name)
        scene.killed.add(name)
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 10
        while scene.host.lives(name) and time.monotonic() < until:
            time.sleep(0.01)

    return act


def switches(name: str) -> Act:
    """Switches, and all is well."""

    def act(scene: Scene) -> None:
        answer = scene.host.patiently(name)
        if answer.status != 0:
            scene.problems.append(f"the switch to {name} before exits {answer.status}: {answer.said}")

    return act


def frees(name: str) -> Act:
    """Has a server hold no memory in the GPU's ledger, so that two can be awake: what is wrong then is what is told."""

    def act(scene: Scene) -> None:
        scene.host.forget_memory(name)

    return act


def tells(told: object) -> Act:
    """The model manager has told this of the gateway's gates, and tells nothing more."""
    return lambda scene: scene.tell(told)


def answers(seconds: float = 0.0, busy: bool = False) -> Act:
    """The model manager closes the gates that are asked for; with C(busy), the gateway has requests of a for ever."""
    return lambda scene: scene.answer(seconds, busy)


def removes_lock(scene: Scene) -> None:
    """Removes the lock's file."""
    (scene.host.stack / "run" / "switch.lock").unlink()


def replaces_lock(scene: Scene) -> None:
    """Puts another file in the place of the lock's."""
    removes_lock(scene)
    (scene.host.stack / "run" / "switch.lock").touch()


def holds_lock(kind: str) -> Act:
    """Another user of the host tries to hold the lock."""

    def act(scene: Scene) -> None:
        scene.hold(scene.host.stack / "run" / "switch.lock", kind)

    return act


def opens_lock(scene: Scene) -> None:
    """Lets everybody read and write the lock's file, as older versions did."""
    (scene.host.stack / "run" / "switch.lock").chmod(0o666)


def begins_and_is_killed(name: str, *moments: Moment, surely: bool = True) -> Act:
    """A switch that is killed at one of these moments; unless C(surely), it may have ended before."""

    def act(scene: Scene) -> None:
        answer = scene.switch(name, *moments)
        if surely and answer.status != -signal.SIGKILL:
            scene.problems.append(f"the switch that was to be killed exits {answer.status}: {answer.said}")

    return act


def locked_by(path: Path) -> bool:
    """Whether somebody holds a file's lock."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
