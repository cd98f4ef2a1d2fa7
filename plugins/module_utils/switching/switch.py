# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The switch: lock the host, observe its servers, plan, do it, prove the result, or put back what was there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import os
import time
import typing

from . import wanted as record
from .errors import (
    LifecycleError,
    LockTimeout,
    ServerDied,
    ServerError,
    SwitchFailed,
    SwitchingError,
    Unreachable,
    Unresponsive,
)
from .inventory import Inventory, Model, Switching, secret_texts
from .lifecycle import Lifecycle, for_model
from .plan import (
    ACTIVE,
    DISABLED,
    DRAIN,
    ERROR,
    LOADING,
    SLEEP,
    SLEEPING,
    START,
    STOP,
    STOPPED,
    VERIFY,
    WAKE,
    Lane,
    Observation,
    Plan,
    Step,
    make_plan,
    predict,
)  # fmt: skip
from .server import Server

DEFAULT_STACK_DIR = "/opt/homegpt"

T = typing.TypeVar("T")
R = typing.TypeVar("R")
States = typing.Mapping[str, Observation]

# Waiting polls at once, and then never adds more than this share to the time already waited: a server that wakes within
# a second is noticed after 10 ms at most, one that loads for a minute after 0.6 s at most.
_POLL_FIRST_SECONDS = 0.01
_POLL_SHARE = 0.01
# However long it has been: a server that ends while it loads has to be noticed within seconds of that.
_POLL_LAST_SECONDS = 2.0
# Looking whether a process lives may cost a docker command, so it is done less often.
_PROCESS_LOOK_SECONDS = 0.5
# The holder's line in the lock has a fixed width, so that it covers the one before: to truncate a file takes longer.
_HOLDER_WIDTH = 120


@dataclasses.dataclass
class Result:
    """What a switch found, did and left. C(steps) are dicts with action, model, level, seconds and, if any, note."""

    changed: bool
    active_model: str | None
    previous_model: str | None
    before: typing.Mapping[str, Observation]
    models: typing.Mapping[str, Observation]
    steps: list[dict[str, typing.Any]]
    elapsed_seconds: float

    def as_dict(self) -> dict[str, typing.Any]:
        """Plain data for whoever asked."""
        return {
            "changed": self.changed,
            "active_model": self.active_model,
            "previous_model": self.previous_model,
            "models": {name: summary(seen) for name, seen in self.models.items()},
            "steps": self.steps,
            "elapsed_seconds": round(self.elapsed_seconds, 3),
        }

    def diff(self) -> dict[str, str]:
        """C(before) and C(after) as text, a line for each model, and the steps between them."""
        before, after = (
            "".join(f"{m}: {describe(s)}\n" for m, s in states.items()) for states in (self.before, self.models)
        )
        for number, step in enumerate(self.steps, 1):
            after += f"step {number}: {Step(step['action'], step['model'], step['level'])}\n"
        return {"before": before, "after": after}


def summary(seen: Observation) -> dict[str, typing.Any]:
    """The state of one model as plain data."""
    return {"state": seen.state, "level": seen.level, **({"problem": seen.problem} if seen.problem else {})}


def describe(seen: Observation) -> str:
    """The state of one model in a few words."""
    return seen.state + (f" (level {seen.level})" if seen.level is not None else "")


def read_mem_available_gb() -> float | None:
    """The RAM of this host that is free for use, in GB; None where the kernel doesn't tell."""
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 / 1e9
    return None


class Switcher:
    """Switches the models of the host it runs on. Time and the outside world are parameters, for tests to own."""

    def __init__(
        self,
        inventory: Inventory,
        stack_dir: str = DEFAULT_STACK_DIR,
        *,
        clock: typing.Callable[[], float] = time.monotonic,
        sleep: typing.Callable[[float], None] = time.sleep,
        mem_available_gb: typing.Callable[[], float | None] = read_mem_available_gb,
        server: typing.Callable[[Model, Switching], Server] = Server,
        lifecycle: typing.Callable[[Model, str], Lifecycle] = for_model,
    ) -> None:
        self.inventory = inventory
        self.settings = inventory.switching
        self.stack_dir = stack_dir
        self.clock = clock
        self.sleep = sleep
        self.mem_available_gb = mem_available_gb
        self.models = {m.id: m for m in inventory.models}
        self.servers = {m.id: server(m, inventory.switching) for m in inventory.models}
        self.lifecycles = {m.id: lifecycle(m, stack_dir) for m in inventory.models}
        self.pool = concurrent.futures.ThreadPoolExecutor(max_workers=len(inventory.models))
        self.steps: list[dict[str, typing.Any]] = []
        self.overdue: set[str] = set()

    def __enter__(self) -> Switcher:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.pool.shutdown()
        for server in self.servers.values():
            server.close()

    def report(self) -> dict[str, typing.Any]:
        """What every model is and how many requests it has, as plain data. Changes nothing, and never fails."""
        seen = self._observe(self.inventory.enabled, count_requests=True)
        return {
            "active_models": [name for name, state in seen.items() if state.state == ACTIVE],
            "models": {
                m.id: {
                    **summary(seen[m.id]),
                    "name": m.name,
                    "host_port": m.host_port,
                    "startup_mode": m.startup_mode,
                    "running": seen[m.id].running,
                    "waiting": seen[m.id].waiting,
                }
                for m in self.inventory.models
            },
        }

    def switch(self, name: str, wanted: str = ACTIVE, check: bool = False, for_now: bool = False) -> Result:
        """Bring the model called C(name) to the state C(wanted) (active, sleeping or stopped).

        With C(check) nothing is locked or changed, and the result tells what would be done. C(for_now): after a boot
        the host is to come back to what it was meant to be before. Raises UnknownModel, Blocked or LockTimeout when
        nothing has been touched, SwitchFailed when something has.
        """
        model = self.inventory.find(name)
        started = self.clock()
        with contextlib.nullcontext() if check else self._lock(f"{model.id} {wanted}"):
            result = self._switch(model, wanted, check, started)
            if not check and not for_now:
                meant = record.after(self.inventory, record.read(self.inventory, self.stack_dir), model, wanted)
                record.write(self.stack_dir, meant)
            return result

    def _switch(self, model: Model, wanted: str, check: bool, started: float) -> Result:
        """Switch under the lock, which was asked for when C(started)."""
        self.steps = []
        self.overdue = set()
        hidden = [other for other in self.inventory.conflicting(model) if other.disabled]
        before = self._observe((*self.inventory.enabled, *hidden))
        plan = make_plan(self.inventory, before, model, wanted, self.mem_available_gb())
        if check:
            steps = [_record(step) for step in plan.steps]
            return self._result(model, before, predict(before, plan), steps, started)
        try:
            self._execute(plan)
            after = self._after(before, plan)
            if after[model.id].state != predict(before, plan)[model.id].state:
                failed = next(s["failed"] for s in self.steps if "failed" in s and s["model"] == model.id)
                raise SwitchingError(f"{failed}, so it was stopped")
        except SwitchingError as error:
            after, message = self._put_back(model, wanted, before, error)
            raise SwitchFailed(message, self._result(model, before, after, self.steps, started)) from error
        except (Exception, KeyboardInterrupt) as error:
            self._put_back(model, wanted, before, error)
            raise
        return self._result(model, before, after, self.steps, started)

    def restore(self) -> typing.Iterator[tuple[Model, str, Result | SwitchingError]]:
        """Bring the host back to what it is meant to be, as after a boot.

        Yields each model, its wanted state and how it went; one that fails does not keep the others from coming back.
        The sleeping ones are loaded first, one at a time, and the active ones last. The record stays as it is on the
        way: what is asked for is what it says. Should somebody switch meanwhile, then that is what counts.
        """

        def is_wanted(model: Model, state: str) -> bool:
            return record.read(self.inventory, self.stack_dir)[model.id] == state

        for wanted in (SLEEPING, ACTIVE):
            for model in self.inventory.enabled:
                if not is_wanted(model, wanted):
                    continue
                outcome: Result | SwitchingError
                started = self.clock()
                try:
                    with self._lock(f"{model.id} {wanted}"):
                        if not is_wanted(model, wanted):
                            continue  # changed while this waited for the lock
                        outcome = self._switch(model, wanted, False, started)
                except SwitchingError as error:
                    outcome = error
                yield model, wanted, outcome

    def _result(
        self, model: Model, before: States, after: States, steps: list[dict[str, typing.Any]], started: float
    ) -> Result:
        group = [m for m in self.inventory.enabled if m.id == model.id or m.conflicts_with(model)]

        def active(states: States) -> str | None:
            return next((m.id for m in group if states[m.id].state == ACTIVE), None)

        # A disabled model may have been looked at, but it is not ours to report on.
        shown = [
            {m.id: Observation(DISABLED) if m.disabled else states[m.id] for m in self.inventory.models}
            for states in (before, after)
        ]
        return Result(
            changed=any("failed" not in step for step in steps),
            active_model=active(after),
            previous_model=active(before),
            before=shown[0],
            models=shown[1],
            steps=steps,
            elapsed_seconds=self.clock() - started,
        )

    def _after(self, before: States, plan: Plan) -> dict[str, Observation]:
        """What is left after a plan: every step confirmed its outcome, but one that failed may have been mended."""
        after = predict(before, plan)
        for step in self.steps:
            if step["action"] == STOP:
                after[step["model"]] = Observation(STOPPED)
            elif step["action"] == VERIFY:
                after[step["model"]] = Observation(ACTIVE)
            elif step["action"] == SLEEP and "failed" not in step:
                after[step["model"]] = Observation(SLEEPING, level=step["level"])
        return after

    @contextlib.contextmanager
    def _lock(self, purpose: str) -> typing.Iterator[None]:
        """Hold the one lock of the host: a file of the stack, so that module, command line and manager share it."""
        path = os.path.join(self.stack_dir, "run", "switch.lock")
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")
        except OSError as error:
            raise SwitchingError(
                f"the lock {path} can't be opened ({error.strerror}): run as a user who may write there, or set "
                "stack_dir (vllm_stack_dir in the playbooks)"
            ) from None
        with file:
            if not self._wait(lambda: _try_lock(file), self.settings.lock_timeout_seconds):
                holder = file.readline().strip() or "somebody unknown"
                raise LockTimeout(
                    f"another switch holds the host's lock ({holder}), and did for "
                    f"{self.settings.lock_timeout_seconds:g} s (lock_timeout_seconds): try again later"
                )
            file.write(f"process {os.getpid()}: {purpose}"[:_HOLDER_WIDTH].ljust(_HOLDER_WIDTH) + "\n")
            file.flush()
            yield

    def _observe(self, models: typing.Iterable[Model], count_requests: bool = False) -> dict[str, Observation]:
        """What the given models are, asked all at once; the others count as disabled."""

        def look(model: Model) -> Observation:
            seen = self.servers[model.id].observe(count_requests)
            if seen.state in (ACTIVE, SLEEPING):
                return seen
            process = self.lifecycles[model.id].process()
            running = process.running
            if seen.state in (STOPPED, LOADING) and running:
                return Observation(LOADING)
            if seen.state == STOPPED and process.remains:
                problem = f"{model.id}'s server ended, but processes that it started have not"
                return Observation(ERROR, problem=problem, dead=True, process=True)
            state = ERROR if seen.state == LOADING else seen.state
            return dataclasses.replace(seen, state=state, process=seen.process or running)

        models = tuple(models)
        seen = dict(zip((m.id for m in models), self._each(look, models)))
        return {m.id: seen.get(m.id, Observation(DISABLED)) for m in self.inventory.models}

    def _each(self, function: typing.Callable[[T], R], items: typing.Sequence[T]) -> list[R]:
        """The results of the function for all items, worked on side by side; all end before an error is raised."""
        others = [self.pool.submit(function, item) for item in items[1:]]
        try:
            first = [function(item) for item in items[:1]]  # here: a thread less to start
        finally:
            concurrent.futures.wait(others)
        return first + [future.result() for future in others]

    def _execute(self, plan: Plan) -> None:
        for stage in plan.stages:
            self._each(self._lane, stage)

    def _lane(self, lane: Lane) -> None:
        sleeps = any(step.action == SLEEP for step in lane)
        wakes = any(step.action == WAKE for step in lane)
        for step in lane:
            try:
                self._perform(step)
            except (ServerError, LifecycleError) as error:
                if step.action in (DRAIN, SLEEP) and sleeps:
                    self._stop_sleepless(step, error)
                    if wakes:  # a paused target
                        self._perform(Step(START, step.model))
                        self._perform(Step(VERIFY, step.model))
                elif wakes or (step == lane[0] and step.action == VERIFY and isinstance(error, ServerDied)):
                    # What seemed to load may have been about to end: its port is closed, its process not yet gone.
                    self._wake_again(step, error)
                else:
                    raise
                return

    def _stop_sleepless(self, step: Step, error: Exception) -> None:
        """A server that can't be put to sleep is stopped: the GPU has to be free."""
        try:
            self._perform(Step(STOP, step.model))
        except SwitchingError as second:
            raise LifecycleError(f"{error}; and it could not be stopped: {second}") from None

    def _wake_again(self, step: Step, error: Exception) -> None:
        """A wake that failed is tried once more if the server still sleeps, and then the server is started afresh."""
        seen = self.servers[step.model].observe()
        if seen.state == SLEEPING:
            try:
                self._perform(Step(WAKE, step.model, seen.level))
                self._perform(Step(VERIFY, step.model))
                return
            except (ServerError, LifecycleError) as second:
                error = second
        try:
            for action in (STOP, START, VERIFY):
                self._perform(Step(action, step.model))
        except SwitchingError as second:
            raise LifecycleError(f"{error}; and a restart failed: {second}") from None

    def _put_back(
        self, model: Model, wanted: str, before: States, error: BaseException
    ) -> tuple[dict[str, Observation], str]:
        """After a failure: wake what was awake. Returns what is left and the message for the person."""
        message = f"{model.id} could not be made {wanted}: {error}"
        seen = self._observe_wary()
        for previous in self.inventory.enabled:
            if before[previous.id].state != ACTIVE or seen[previous.id].state == ACTIVE:
                continue
            if previous.id == model.id and wanted != ACTIVE:
                continue
            # Where two that conflict were found awake, one of them is enough.
            if any(seen[m.id].state == before[m.id].state == ACTIVE for m in self.inventory.conflicting(previous)):
                continue
            try:
                self._execute(make_plan(self.inventory, seen, previous, ACTIVE, self.mem_available_gb()))
                message += f"; {previous.id} is active again"
            except SwitchingError as second:
                message += f"; {previous.id}, active before, could not be put back: {second}"
            seen = self._observe_wary()
        left = ", ".join(f"{name} {describe(state)}" for name, state in seen.items() if state.state != DISABLED)
        return seen, f"{message}. The host is left with: {left}"

    def _observe_wary(self) -> dict[str, Observation]:
        """What the models are. One that says it sleeps after a wake that failed may hold its GPU: it counts as dead, so
        that it is stopped before another one wakes."""
        doubtful: dict[str, bool] = {}
        for step in self.steps:
            if step["action"] == WAKE:
                doubtful[step["model"]] = True
            elif step["action"] in (STOP, SLEEP, VERIFY) and "failed" not in step:
                doubtful[step["model"]] = False
        seen = self._observe(self.inventory.enabled)
        for name, state in seen.items():
            if state.state == SLEEPING and doubtful.get(name):
                seen[name] = Observation(ERROR, problem=f"{name} may be half awake", dead=True, process=True)
        return seen

    def _perform(self, step: Step) -> None:
        """Do one step, confirm it and write it down."""
        actions: dict[str, typing.Callable[[Step], str | None]] = {
            DRAIN: self._drain,
            SLEEP: self._sleep,
            WAKE: self._wake,
            START: self._start,
            STOP: self._stop,
            VERIFY: self._verify,
        }
        started = self.clock()
        record = _record(step)
        self.steps.append(record)
        try:
            note = actions[step.action](step)
            if note:
                record["note"] = note
        except BaseException as error:
            record["failed"] = str(error) or type(error).__name__
            raise
        finally:
            record["seconds"] = round(self.clock() - started, 3)

    def _drain(self, step: Step) -> str:
        count: list[int | None] = []

        def idle() -> bool:
            try:
                count.append(self.servers[step.model].count_requests())
            except Unreachable:
                count.append(0)  # a server that is gone runs nothing
            except Unresponsive:
                return False  # a busy server is no reason to stop it
            return not count[-1]

        if not self._wait(idle, self.settings.drain_timeout_seconds):
            self.overdue.add(step.model)
            left = f"{count[-1]} requests still ran" if count else "the server did not say which requests still ran"
            return f"{left} after {self.settings.drain_timeout_seconds:g} s and were cut"
        if count[-1] is None:
            return "the server does not count its requests"
        return ""

    def _sleep(self, step: Step) -> None:
        server = self.servers[step.model]
        server.sleep(step.level or 1, abort=step.model in self.overdue)
        if not self._wait(server.is_sleeping, self.settings.request_timeout_seconds):
            raise ServerError(
                f"{step.model} took the call to sleep but is still awake after "
                f"{self.settings.request_timeout_seconds:g} s (request_timeout_seconds)"
            )

    def _wake(self, step: Step) -> None:
        self.servers[step.model].wake(step.level)

    def _start(self, step: Step) -> None:
        self.lifecycles[step.model].start()

    def _stop(self, step: Step) -> None:
        lifecycle = self.lifecycles[step.model]

        def gone() -> bool:
            return self.servers[step.model].observe().state == STOPPED

        process = lifecycle.process()
        # Where nothing of ours runs but the port answers, the lifecycle can tell why it can't stop that.
        if process.running is not False or process.remains or not gone():
            lifecycle.stop()
        if not self._wait(gone, self.settings.request_timeout_seconds):
            raise LifecycleError(
                f"{step.model} was stopped, but port {self.models[step.model].host_port} still answers: its server was "
                "not started by this stack, so end it by hand"
            )

    def _verify(self, step: Step) -> None:
        """Wait until the server is ready: healthy, awake and, unless turned off, able to answer a completion."""
        model, server = self.models[step.model], self.servers[step.model]
        listens = False

        def ready() -> bool:
            nonlocal listens
            listens = True
            try:
                if not server.is_healthy():
                    raise ServerError(f"{model.id}'s engine died (/health answers 503){self._last_lines(model)}")
                return not server.is_sleeping()
            except Unreachable:
                listens = False
            except Unresponsive:
                pass
            return False

        def check_alive() -> None:
            if listens:
                return  # so it lives, even if it was started by somebody else and its process is not known here
            process = self.lifecycles[model.id].process()
            if process.running is False:
                code = "" if process.exit_code is None else f" with exit code {process.exit_code}"
                raise ServerDied(f"{model.id}'s server ended{code} while it was waited for{self._last_lines(model)}")

        if not self._wait(ready, self.settings.ready_timeout_seconds, check_alive):
            raise ServerError(
                f"{model.id} is not ready after {self.settings.ready_timeout_seconds:g} s "
                f"(max_retries x health_check_interval_seconds){self._last_lines(model)}"
            )
        if model.ready_completion:
            server.complete()

    def _last_lines(self, model: Model) -> str:
        # vLLM writes its arguments into its log, and this goes to terminals and other logs.
        secrets = sorted(set(secret_texts({"args": model.args, "env": model.env})), key=len, reverse=True)
        lines = self.lifecycles[model.id].last_lines()
        for secret in secrets:
            lines = [line.replace(secret, "********") for line in lines]
        return "; its last log lines:\n{}".format("\n".join("  " + line for line in lines)) if lines else ""

    def _wait(
        self, done: typing.Callable[[], bool], seconds: float, look: typing.Callable[[], None] | None = None
    ) -> bool:
        """Poll until done() or the seconds are over; whether it is done. look() is called now and then."""
        started = self.clock()
        next_look = started
        while not done():
            now = self.clock()
            waited = now - started
            if waited >= seconds:
                return False
            if look and now >= next_look:
                look()
                next_look = now + _PROCESS_LOOK_SECONDS
            pause = min(max(_POLL_FIRST_SECONDS, waited * _POLL_SHARE), _POLL_LAST_SECONDS)
            self.sleep(min(pause, self.settings.health_check_interval_seconds, seconds - waited))
        return True


def _record(step: Step) -> dict[str, typing.Any]:
    return {"action": step.action, "model": step.model, "level": step.level, "seconds": None}


def _try_lock(file: typing.IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
