# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The switch: lock the host, observe its servers, plan, do it, prove the result, or put back what was there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import time
import typing

from . import canary, capacity
from . import wanted as record
from .drain import CUT, FATES, PARKED, Drain
from .errors import (
    DrainTimeout,
    LifecycleError,
    NoMemory,
    ServerDied,
    ServerError,
    SwitchFailed,
    SwitchingError,
    Unreachable,
    Unresponsive,
    WrongAnswer,
)
from .inventory import Inventory, Model, Switching, secret_texts
from .lifecycle import Lifecycle, for_model
from .lock import HostLock
from .plan import (
    ACTIVE,
    DISABLED,
    DRAIN,
    ERROR,
    LOADING,
    RECORD,
    RELOAD,
    SLEEP,
    SLEEPING,
    START,
    STOP,
    STOPPED,
    VERIFY,
    WAIT,
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


@dataclasses.dataclass
class Result:
    """What a switch found, did and left.

    C(steps) are dicts with action, model, level, seconds and, where there is such a thing, note, failed, escalation
    (the rung that it belongs to) and requests (how many were drained, parked and cut).
    """

    changed: bool
    active_model: str | None
    previous_model: str | None
    before: typing.Mapping[str, Observation]
    models: typing.Mapping[str, Observation]
    steps: list[dict[str, typing.Any]]
    elapsed_seconds: float
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def requests(self) -> dict[str, int | None]:
        """How many requests were drained, parked and cut in all; None where nobody knows."""
        counts = {fate: [step.get("requests", {}).get(fate, 0) for step in self.steps] for fate in FATES}
        return {fate: None if None in numbers else sum(numbers) for fate, numbers in counts.items()}

    def as_dict(self) -> dict[str, typing.Any]:
        """Plain data for whoever asked."""
        return {
            "changed": self.changed,
            "active_model": self.active_model,
            "previous_model": self.previous_model,
            "models": {name: summary(seen) for name, seen in self.models.items()},
            "steps": self.steps,
            "requests": self.requests,
            "warnings": self.warnings,
            "elapsed_seconds": round(self.elapsed_seconds, 3),
        }

    def diff(self) -> dict[str, str]:
        """C(before) and C(after) as text, a line for each model, and the steps between them."""
        before, after = (
            "".join(f"{m}: {describe(s)}\n" for m, s in states.items()) for states in (self.before, self.models)
        )
        for number, step in enumerate(self.steps, 1):
            after += f"step {number}: {say_step(step)}\n"
        return {"before": before, "after": after}


def say_step(step: typing.Mapping[str, typing.Any]) -> str:
    """One of the steps of a result in a few words, with the rung that it belongs to."""
    rung = f"{step['escalation']}: " if "escalation" in step else ""
    return rung + str(Step(step["action"], step["model"], step["level"]))


def summary(seen: Observation) -> dict[str, typing.Any]:
    """The state of one model as plain data."""
    return {"state": seen.state, "level": seen.level, **({"problem": seen.problem} if seen.problem else {})}


def describe(seen: Observation) -> str:
    """The state of one model in a few words."""
    return (
        seen.state
        + (f" (level {seen.level})" if seen.level is not None else "")
        + (" in doubt" if seen.doubtful else "")
    )


class Switcher:
    """Switches the models of the host it runs on. Time and the outside world are parameters, for tests to own."""

    def __init__(
        self,
        inventory: Inventory,
        stack_dir: str = DEFAULT_STACK_DIR,
        *,
        clock: typing.Callable[[], float] = time.monotonic,
        sleep: typing.Callable[[float], None] = time.sleep,
        now: typing.Callable[[], float] = time.time,
        tell: typing.Callable[[str], None] | None = None,
        mem_available_gb: typing.Callable[[], float | None] = capacity.read_mem_available_gb,
        server: typing.Callable[[Model, Switching], Server] = Server,
        lifecycle: typing.Callable[[Model, str, Switching], Lifecycle] = for_model,
        lock: HostLock | None = None,
        reserved_gb: float = 0.0,
    ) -> None:
        self.inventory = inventory
        self.settings = inventory.switching
        self.stack_dir = stack_dir
        self.clock = clock
        self.sleep = sleep
        self.now = now
        self.tell = tell
        self.mem_available_gb = mem_available_gb
        self.models = {m.id: m for m in inventory.models}
        self.servers = {m.id: server(m, inventory.switching) for m in inventory.models}
        self.make_server, self.make_lifecycle = server, lifecycle
        self.lifecycles = {m.id: lifecycle(m, stack_dir, inventory.switching) for m in inventory.models}
        self.lock = lock or HostLock(stack_dir)
        self.reserved_gb = reserved_gb
        self.pool = concurrent.futures.ThreadPoolExecutor(max_workers=len(inventory.models))
        self._begin()

    def _begin(self) -> None:
        """Forget the switch before."""
        self.steps: list[dict[str, typing.Any]] = []
        self.warnings: list[str] = []
        # What the sleep of a model is to do with requests; whether its server, woken or started here, was restarted
        # because something failed; who is to end.
        self.modes: dict[str, str] = {}
        self.begun: dict[str, bool] = {}
        self.ending: set[str] = set()
        # Those that a drain has paused, and that have not slept or ended since.
        self.held: set[str] = set()
        self.free_before: dict[str, dict[int, float] | None] = {}
        self.rung = ""
        self.to_record: str | None = None
        self.wrong: set[str] = set()

    def __enter__(self) -> Switcher:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.pool.shutdown()
        for server in self.servers.values():
            server.close()

    def report(self) -> dict[str, typing.Any]:
        """What every model is and how many requests it has, as plain data. Changes nothing, and never fails."""
        self.lock.peek()
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

    def switch(
        self,
        name: str | typing.Sequence[str],
        wanted: str = ACTIVE,
        check: bool = False,
        for_now: bool = False,
        record_canary: bool = False,
    ) -> Result:
        """Bring the model called C(name) to the state C(wanted) (active, sleeping or stopped).

        Several models are brought there side by side; no two of them may have a GPU to do with each other. With
        C(check) nothing is locked or changed, and the result tells what would be done. C(for_now): after a boot the
        host is to come back to what it was meant to be before. C(record_canary): the model, once active, is known good,
        so its answer is recorded. Raises UnknownModel, Blocked or LockTimeout when nothing has been touched,
        SwitchFailed when something has.
        """
        models = [self.inventory.find(one) for one in ([name] if isinstance(name, str) else name)]
        self._check_apart(models)
        for model in models if record_canary else ():
            if wanted != ACTIVE or not canary.applies(model):
                raise SwitchingError(
                    f"record_canary: {model.id} can't give an answer to record: that takes the state active, a canary "
                    "that is not off, and ready_completion"
                )
        started = self.clock()
        with self._checking() if check else self._lock(f"{', '.join(m.id for m in models)} {wanted}"):
            outcomes = self._side_by_side(models, wanted, check, started, record_canary)
            if not check and not for_now and any(isinstance(outcome, Result) for outcome in outcomes):
                meant = record.read(self.inventory, self.stack_dir)
                for model, outcome in zip(models, outcomes):
                    if isinstance(outcome, Result):
                        meant = record.after(self.inventory, meant, model, wanted)
                record.write(self.stack_dir, meant)
            return _together(models, outcomes)

    def _check_apart(self, models: typing.Sequence[Model]) -> None:
        if not models:
            self.inventory.find("")
        if len(self.inventory.rounds(models)) > 1:
            raise SwitchingError(
                f"{', '.join(m.id for m in models)} have GPUs to do with each other, so they can't be switched side by "
                "side: switch them one after the other"
            )

    @contextlib.contextmanager
    def _checking(self) -> typing.Iterator[None]:
        self.lock.peek()
        yield

    def _side_by_side(
        self, models: typing.Sequence[Model], wanted: str, check: bool, started: float, record_canary: bool = False
    ) -> list[Result | SwitchingError]:
        """How it went with each of the models. The caller holds the lock, unless this is a C(check)."""
        if len(models) == 1:
            return [self._outcome(models[0], wanted, check, started, record_canary)]
        parts = [self._part(model) for model in models]

        def work(item: tuple[Model, Switcher]) -> Result | SwitchingError:
            model, part = item
            with part:
                return part._outcome(model, wanted, check, started, record_canary)

        return self._each(work, list(zip(models, parts)))

    def _part(self, model: Model) -> Switcher:
        """A switcher of those models alone that have a GPU to do with this one, with its share of the host's RAM."""
        group = self.inventory.group(model)
        share = sum(m.weights_gb or 1.0 for m in group) / sum(m.weights_gb or 1.0 for m in self.inventory.models)

        def mem_available_gb() -> float | None:
            free = self.mem_available_gb()
            return None if free is None else free * share

        return Switcher(
            Inventory(group, self.settings),
            self.stack_dir,
            clock=self.clock,
            sleep=self.sleep,
            now=self.now,
            mem_available_gb=mem_available_gb,
            server=self.make_server,
            lifecycle=self.make_lifecycle,
            lock=self.lock,
            reserved_gb=self.settings.available_ram_gb * (1 - share),
        )

    def _outcome(
        self, model: Model, wanted: str, check: bool, started: float, record_canary: bool = False
    ) -> Result | SwitchingError:
        try:
            return self._switch(model, wanted, check, started, record_canary)
        except SwitchingError as error:
            return error

    def _switch(self, model: Model, wanted: str, check: bool, started: float, record_canary: bool = False) -> Result:
        """Switch under the lock, which was asked for when C(started)."""
        self._begin()
        hidden = [other for other in self.inventory.conflicting(model) if other.disabled]
        before = self._observe((*self.inventory.enabled, *hidden))
        plan = self._plan(before, model, wanted)
        last = Step(RECORD, model.id) if record_canary else None
        if check:
            waits = [Step(WAIT, name) for name, _left in self._stays(model, before, plan)]
            steps = [_record(step) for step in (*waits, *plan.steps, *([last] if last else []))]
            return self._result(model, before, predict(before, plan), steps, started)
        self.to_record = model.id if last else None
        try:
            if self._let_stay(model, before, plan):
                before = self._observe((*self.inventory.enabled, *hidden))
                plan = self._plan(before, model, wanted)
            self._execute(plan)
            after = self._after(before, plan)
            if after[model.id].state != predict(before, plan)[model.id].state:
                failures = (s["failed"] for s in self.steps if "failed" in s and s["model"] == model.id)
                failed = next(failures, f"{model.id} did not become {wanted}")
                raise LifecycleError(f"{failed}, so it was stopped")
            if last:
                self._perform(last)
        except SwitchingError as error:
            after, message = self._put_back(model, wanted, before, error)
            self._note_end(after, failed=True)
            raise SwitchFailed(message, self._result(model, before, after, self.steps, started)) from error
        except (Exception, KeyboardInterrupt) as error:
            self._put_back(model, wanted, before, error)
            raise
        self._note_end(after, failed=False)
        return self._result(model, before, after, self.steps, started)

    def _plan(self, seen: States, model: Model, wanted: str) -> Plan:
        return make_plan(self.inventory, seen, model, wanted, self.mem_available_gb(), self.reserved_gb)

    def _stays(self, model: Model, before: States, plan: Plan) -> list[tuple[str, float]]:
        """Those that have to make room and have not been active for as long as they may, with the seconds left."""
        least = self.settings.min_active_seconds
        leaving = {step.model for step in plan.steps if step.action in (SLEEP, STOP)} - {model.id}
        known = {name: self.lock.active_since[name] for name in leaving if name in self.lock.active_since}
        left = {name: least - (self.now() - since) for name, since in known.items() if before[name].state == ACTIVE}
        return [(name, seconds) for name, seconds in sorted(left.items()) if 0 < seconds <= least]

    def _let_stay(self, model: Model, before: States, plan: Plan) -> bool:
        """Wait for those that may stay; whether that took time."""
        started = self.now()
        stays = self._stays(model, before, plan)
        for name, left in stays:
            self._perform(Step(WAIT, name), functools.partial(self._stay, left - (self.now() - started)))
        return bool(stays)

    def _stay(self, seconds: float, step: Step) -> str:
        self.sleep(max(0.0, seconds))
        return f"{step.model} stays active for {self.settings.min_active_seconds:g} s at least (min_active_seconds)"

    def _note_end(self, after: States, failed: bool) -> None:
        touched = {step["model"] for step in self.steps if step["action"] != WAIT}
        since: dict[str, float | None] = {}
        for m in self.inventory.models:
            known = self.lock.active_since.get(m.id) if m.id not in touched else None
            since[m.id] = (known or self.now()) if after[m.id].state == ACTIVE else None
        self.lock.note(since, self.now() if failed else 0.0)

    def restore(self) -> typing.Iterator[tuple[Model, str, Result | SwitchingError]]:
        """Bring the host back to what it is meant to be, as after a boot.

        Yields each model, its wanted state and how it went; one that fails does not keep the others from coming back.
        The sleeping ones are loaded first, one at a time where they share GPUs, and the active ones last. The record
        stays as it is on the way: what is asked for is what it says. Should somebody switch meanwhile, then that
        counts.
        """

        def is_wanted(model: Model, state: str) -> bool:
            return record.read(self.inventory, self.stack_dir)[model.id] == state

        for wanted in (SLEEPING, ACTIVE):
            for round_ in self.inventory.rounds(m for m in self.inventory.enabled if is_wanted(m, wanted)):
                models = round_
                started = self.clock()
                outcomes: list[Result | SwitchingError]
                try:
                    with self._lock(f"{', '.join(m.id for m in models)} {wanted}"):
                        # What somebody has changed while this waited for the lock is left out.
                        models = tuple(m for m in round_ if is_wanted(m, wanted))
                        outcomes = self._side_by_side(models, wanted, False, started) if models else []
                except SwitchingError as error:
                    outcomes = [error for model in models]
                for model, outcome in zip(models, outcomes):
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
            warnings=self.warnings,
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
        """Hold the host's lock, and let a host have its rest after a switch that failed."""
        with self.lock.hold(purpose, self.settings.lock_timeout_seconds, self._wait, self.tell):
            rest = self.settings.failure_backoff_seconds
            left = rest - (self.now() - self.lock.last_failed_at)
            if 0 < left <= rest:
                self.sleep(left)
            yield

    def _observe(self, models: typing.Iterable[Model], count_requests: bool = False) -> dict[str, Observation]:
        """What the given models are, asked all at once; the others count as disabled."""

        def look(model: Model) -> Observation:
            seen = self.servers[model.id].observe(count_requests)
            if seen.state in (ACTIVE, SLEEPING):
                if model.id in self.lock.doubtful:
                    return dataclasses.replace(seen, doubtful=True, problem="its last wake was not proved")
                return seen
            process = self.lifecycles[model.id].process()
            running = process.running
            if seen.remedy:
                seen = dataclasses.replace(seen, remedy=seen.remedy.format(log=self.lifecycles[model.id].log_command))
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
        interrupted: KeyboardInterrupt | None = None
        try:
            first = [function(item) for item in items[:1]]  # here: a thread less to start
        finally:
            # Whoever interrupts this: nothing may be rolled back, and the lock not be let go, while others work.
            while not all(future.done() for future in others):
                try:
                    concurrent.futures.wait(others)
                except KeyboardInterrupt as error:
                    interrupted = error
        if interrupted:
            raise interrupted
        return first + [future.result() for future in others]

    def _execute(self, plan: Plan) -> None:
        for stage in plan.stages:
            self._each(self._lane, stage)

    def _lane(self, lane: Lane) -> None:
        sleeps = any(step.action == SLEEP for step in lane)
        wakes = any(step.action == WAKE for step in lane)
        self.ending.update(step.model for step in lane if step.action == STOP)
        for planned in lane:
            step = planned
            if step.action == WAKE and self._stopped(step.model):
                step = Step(START, step.model)  # it was to sleep until now, and could not
            try:
                self._perform(step)
            except (DrainTimeout, NoMemory):
                raise  # nothing was done to the server, and to do more to it would not help
            except (ServerError, LifecycleError) as error:
                if step.action in (DRAIN, SLEEP) and sleeps and "stop" in self.settings.escalation:
                    self._stop_sleepless(step, error)
                    if wakes:  # a paused target
                        if "restart" not in self.settings.escalation:
                            raise
                        self._perform(Step(START, step.model), rung="restart")
                        self._perform(Step(VERIFY, step.model), rung="restart")
                elif step.action not in (DRAIN, SLEEP) and (
                    # What seemed to load may have been about to end: its port is closed, its process not yet gone.
                    wakes
                    or isinstance(error, WrongAnswer)
                    or (step == lane[0] and step.action == VERIFY and isinstance(error, ServerDied))
                ):
                    self._wake_again(lane, step, error)
                else:
                    raise
                return

    def _stop_sleepless(self, step: Step, error: Exception) -> None:
        """A server that can't be put to sleep is stopped: the GPU has to be free."""
        try:
            self._perform(Step(STOP, step.model), rung="stop")
        except SwitchingError as second:
            raise LifecycleError(f"{error}; and it could not be stopped: {second}") from None
        for done in self.steps:
            if done["model"] == step.model and done["action"] == DRAIN and isinstance(error, Unresponsive):
                # It waited for requests that came when there had been none, or for nothing.
                done.setdefault("requests", {**dict.fromkeys(FATES, 0), CUT: None})
            if done["model"] == step.model and "requests" in done:
                lost = [done["requests"][fate] for fate in (PARKED, CUT)]
                done["requests"] = {**done["requests"], PARKED: 0, CUT: None if None in lost else sum(lost)}

    def _wake_again(self, lane: Lane, step: Step, error: Exception) -> None:
        """What is done about a wake that failed: once more, then a restart."""
        name = lane[-1].model
        if "retry" in self.settings.escalation:
            second = self._retry_wake(lane, step, error)
            if second is None:
                return
            error = second
        if "restart" not in self.settings.escalation:
            raise error
        self.begun[name] = True
        try:
            for action in (STOP, START, VERIFY):
                self._perform(Step(action, name), rung="restart")
        except SwitchingError as second:
            kind = type(second) if isinstance(second, (WrongAnswer, NoMemory)) else LifecycleError
            raise kind(f"{error}; and a restart failed: {second}") from None

    def _retry_wake(self, lane: Lane, step: Step, error: Exception) -> Exception | None:
        """Try a wake that failed once more, if that can help. What went wrong; None when it is ready now."""
        name = lane[-1].model
        level = next((step.level for step in lane if step.action == WAKE), None)
        steps = []
        if isinstance(error, WrongAnswer):
            # From level 1 the weights come back as they were, so there is nothing to load again.
            if level != 1 and self.servers[name].can_reload:
                steps = [Step(RELOAD, name), Step(VERIFY, name)]
        else:
            seen = self.servers[name].observe()
            if seen.state == SLEEPING:
                # What the gauge says of one that is half awake is the level it slept at.
                steps = [Step(WAKE, name, seen.level), Step(VERIFY, name)]
            elif seen.state == ACTIVE and (step.action == VERIFY or level in (0, 1)):
                steps = [Step(VERIFY, name)]  # only the answer was lost, or wrong
            elif seen.state == ACTIVE and self.servers[name].can_reload:
                steps = [Step(RELOAD, name), Step(VERIFY, name)]
        if not steps:
            return error
        try:
            for step in steps:
                self._perform(step, rung="retry")
        except (ServerError, LifecycleError) as second:
            return second
        return None

    def _put_back(
        self, model: Model, wanted: str, before: States, error: BaseException
    ) -> tuple[dict[str, Observation], str]:
        """After a failure: wake what was awake. Returns what is left and the message for the person."""
        failed = ", ".join(map(say_step, (step for step in self.steps if "failed" in step)))
        message = f"{model.id} could not be made {wanted}: {error}" + (f"\nFailed: {failed}" if failed else "")
        self.rung = "roll_back"
        for name in self.held:
            # It has only been paused: nothing is to be made good but that.
            with contextlib.suppress(ServerError):
                self.servers[name].resume()
        seen = self._observe_failed()
        for previous in self.inventory.enabled:
            if before[previous.id].state != ACTIVE or seen[previous.id].state == ACTIVE:
                continue
            if previous.id == model.id and wanted != ACTIVE:
                continue
            if "roll_back" not in self.settings.escalation:
                message += f"\n{previous.id}, active before, was not put back (escalation is without roll_back)"
                continue
            # Where two that conflict were found awake, one of them is enough.
            if any(seen[m.id].state == before[m.id].state == ACTIVE for m in self.inventory.conflicting(previous)):
                continue
            try:
                self._execute(self._plan(seen, previous, ACTIVE))
                message += f"\n{previous.id} is active again"
            except SwitchingError as second:
                message += f"\n{previous.id}, active before, could not be put back: {second}"
            seen = self._observe_failed()
        for name in sorted(self.wrong):
            if seen[name].state == ACTIVE:
                # Awake, it would go on giving wrong answers to whoever asks.
                try:
                    self._execute(self._plan(seen, self.models[name], SLEEPING))
                except SwitchingError as second:
                    message += (
                        f"\n{name} answers wrongly and could not be put to sleep ({second}), so it was to be stopped"
                    )
                    with contextlib.suppress(SwitchingError):
                        self._perform(Step(STOP, name))
                seen = self._observe_failed()
        for name, state in seen.items():
            if state.state == ERROR and state.dead and name in self.begun:
                # Left alone it would stand in the way of every later switch.
                with contextlib.suppress(SwitchingError):
                    self._perform(Step(STOP, name))
                    seen[name] = Observation(STOPPED)
        left = ", ".join(f"{name} {describe(state)}" for name, state in seen.items() if state.state != DISABLED)
        message += f"\nThe host is left with: {left}"
        remedy = error.remedy if isinstance(error, SwitchingError) else ""
        if remedy:
            at_fault = next((s["model"] for s in self.steps if "failed" in s), model.id)
            message += "\nWhat to do: " + remedy.format(log=self.lifecycles[at_fault].log_command)
        return seen, message

    def _observe_failed(self) -> dict[str, Observation]:
        """What the models are. One that this switch has woken or started and that makes no sense counts as dead."""
        seen = self._observe(self.inventory.enabled)
        for name in self.begun:
            if seen[name].state == ERROR and seen[name].process is not False:
                seen[name] = dataclasses.replace(seen[name], dead=True, process=True)
        return seen

    def _perform(self, step: Step, act: typing.Callable[[Step], str | None] | None = None, rung: str = "") -> None:
        """Do one step, confirm it and write it down."""
        actions: dict[str, typing.Callable[[Step], str | None]] = {
            DRAIN: self._drain,
            SLEEP: self._sleep,
            WAKE: self._wake,
            START: self._start,
            STOP: self._stop,
            VERIFY: self._verify,
            RELOAD: self._reload,
            RECORD: self._record_canary,
        }
        started = self.clock()
        record = _record(step)
        if rung or self.rung:
            record["escalation"] = rung or self.rung
        self.steps.append(record)
        try:
            note = (act or actions[step.action])(step)
            if note:
                record["note"] = note
        except BaseException as error:
            record["failed"] = str(error) or type(error).__name__
            raise
        finally:
            record["seconds"] = round(self.clock() - started, 3)
        if step.action in (STOP, SLEEP, VERIFY):
            self.held.discard(step.model)
            self.lock.settle(step.model)

    def _drain(self, step: Step) -> str:
        server = self.servers[step.model]
        # Before the drain: nvidia-smi may take its time, and nothing may come between the drain and the sleep.
        self.free_before[step.model] = self._free_memory(step.model)
        drain = Drain(server, self.settings, self._wait, step.model in self.ending, self.clock)
        try:
            outcome = drain.run()
        finally:
            if drain.held:
                self.held.add(step.model)
        self.modes[step.model] = outcome.mode
        if outcome.requests:
            next(done for done in reversed(self.steps) if done["model"] == step.model)["requests"] = outcome.requests
        return outcome.note

    def _sleep(self, step: Step) -> None:
        server = self.servers[step.model]
        free = self.free_before.pop(step.model) if step.model in self.free_before else self._free_memory(step.model)
        try:
            server.sleep(step.level or 1, self.modes.get(step.model, "wait"))
        except Unresponsive:
            # The answer may be all that is lost. One that still waits for requests is not asleep, whatever it says.
            if not self._wait(lambda: server.observe().asleep, self.settings.probe_timeout_seconds):
                raise
        mode, paused = self.modes.get(step.model, "wait"), step.model in self.held
        if paused and mode != "wait":
            # The drain that was broken off ends now too, and leaves the gauge at its own level 0. To ask a sleeping
            # server again does nothing but put that right; not by abort, which would cut what has come since.
            server.sleep(step.level or 1, "keep" if mode == "keep" else "wait")
        # A server that a drain has paused says that it sleeps, and has all its memory.
        asleep = (lambda: server.observe().asleep) if paused else server.is_sleeping
        if not self._wait(asleep, self.settings.request_timeout_seconds):
            raise ServerError(
                f"{step.model} took the call to sleep but is still awake after "
                f"{self.settings.request_timeout_seconds:g} s (request_timeout_seconds)"
            )
        self._remember_freed(step.model, free)

    def _free_memory(self, name: str) -> dict[int, float] | None:
        """The free memory of a model's GPUs, if it is worth knowing before a sleep."""
        if capacity.remembered(self.stack_dir).get(name):
            return None
        gpus = capacity.read_gpus()
        return {i: gpus[i].free_gb for i in self.models[name].gpus if i in gpus} if gpus else None

    def _remember_freed(self, name: str, before: typing.Mapping[int, float] | None) -> None:
        """What a sleep has freed is what the wake will need."""
        gpus = capacity.read_gpus() if before else None
        if not before or not gpus:
            return
        freed = {i: max(0.0, gpus[i].free_gb - free) for i, free in before.items() if i in gpus}
        with contextlib.suppress(OSError), self.lock.writing:
            capacity.remember(self.stack_dir, name, freed)

    def _stopped(self, name: str) -> bool:
        """Whether this switch has stopped the model."""
        return any(done["action"] == STOP and done["model"] == name and "failed" not in done for done in self.steps)

    def _check_memory(
        self, name: str, need: typing.Mapping[int, float], gpus: typing.Mapping[int, capacity.Gpu] | None
    ) -> None:
        """Raise NoMemory where the GPUs have less free than the model will take, also after a moment."""
        if not gpus:
            return
        short = ""

        def enough() -> bool:
            nonlocal short, gpus
            short = capacity.shortage(self.models[name], need, gpus or {})
            gpus = capacity.read_gpus() if short else gpus
            return not short

        # Who has just been stopped may still be giving its memory back.
        if not self._wait(enough, self.settings.probe_timeout_seconds):
            raise NoMemory(short)

    def _wake(self, step: Step) -> str | None:
        need = capacity.remembered(self.stack_dir).get(step.model)
        # One that is half awake holds a part of that itself.
        if need and step.model not in self.lock.doubtful:
            self._check_memory(step.model, need, capacity.read_gpus())
        self.lock.doubt(step.model)
        self.begun.setdefault(step.model, False)
        return self.servers[step.model].wake(step.level)

    def _reload(self, step: Step) -> str | None:
        return self.servers[step.model].reload()

    def _start(self, step: Step) -> None:
        model = self.models[step.model]
        gpus = capacity.read_gpus()
        self._check_memory(step.model, capacity.load_need(model, gpus), gpus)
        if gpus:
            with contextlib.suppress(OSError), self.lock.writing:
                capacity.remember(self.stack_dir, step.model, {})
        # Not by intent but in the course of this switch: then its answer has to be the one known.
        self.begun[step.model] = bool(self.rung) or self._stopped(step.model)
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

    def _verify(self, step: Step) -> str | None:
        """Wait until the server is ready: healthy, awake and, unless turned off, able to answer, and as it should."""
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
        if step.model == self.to_record or not model.ready_completion:
            return None
        if not canary.applies(model):
            server.complete()
            return None
        try:
            verdict = canary.prove(server, model, self.stack_dir, self.begun.get(step.model, False))
            self.wrong.discard(step.model)
        except WrongAnswer:
            self.wrong.add(step.model)
            raise
        except OSError as error:
            verdict = canary.Verdict("", f"the canary's answer of {model.id} could not be recorded: {error}")
        if verdict.warning:
            self.warnings.append(verdict.warning)
        return verdict.note

    def _record_canary(self, step: Step) -> str | None:
        model = self.models[step.model]
        try:
            return canary.record(self.servers[step.model], model, self.stack_dir).note
        except OSError as error:
            raise SwitchingError(f"the canary's answer of {model.id} could not be recorded: {error}") from None

    def _last_lines(self, model: Model) -> str:
        # vLLM writes its arguments into its log, and this goes to terminals and other logs.
        secrets = sorted(
            set(secret_texts([dataclasses.asdict(model), {"macros": dict(self.settings.macros)}])),
            key=len,
            reverse=True,
        )
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


def _together(models: typing.Sequence[Model], outcomes: typing.Sequence[Result | SwitchingError]) -> Result:
    """The one result of several. Raises the error of a single one as it is, else SwitchFailed with all of them."""
    if len(outcomes) == 1:
        if isinstance(outcomes[0], SwitchingError):
            raise outcomes[0]
        return outcomes[0]
    errors = [one for one in outcomes if isinstance(one, SwitchingError)]
    results = [one.result if isinstance(one, SwitchFailed) else one for one in outcomes]
    done = [one for one in results if isinstance(one, Result)]
    message = "\n".join(f"{m.id}: {one}" for m, one in zip(models, outcomes) if isinstance(one, SwitchingError))
    if not done:
        raise SwitchingError(message)
    joined = Result(
        changed=any(one.changed for one in done),
        active_model=done[0].active_model,
        previous_model=done[0].previous_model,
        before={name: seen for one in done for name, seen in one.before.items()},
        models={name: seen for one in done for name, seen in one.models.items()},
        steps=[step for one in done for step in one.steps],
        elapsed_seconds=max(one.elapsed_seconds for one in done),
        warnings=[warning for one in done for warning in one.warnings],
    )
    if errors:
        raise SwitchFailed(message, joined)
    return joined
