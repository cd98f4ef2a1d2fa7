# SPDX-License-Identifier: MIT
"""The manager: the one queue of a host's switches, and the last observation of its models.

A worker thread makes one switch at a time, by the engine. An observing thread looks at the servers, at what others do
to them (module and command line), at the inventory, and has the reconciler decide what is to be done by itself. Nobody
who asks the manager waits for a server.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import (
    desired_state,
    odometer,
    plan,
    state_files,
    status,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.__main__ import read_inventory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import (
    ServerError,
    SwitchFailed,
    SwitchingError,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.metrics import Counters
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import Observation
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import Mask, secrets_of
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from . import eta, view
from .config import Config
from .events import Bus
from .history import History, HistoryError, Switch
from .host_state import HostState, eviction_level
from .reconcile import GuardedLock, Reconciler, Situation, Superseded, still_holds
from .schedule import Schedule
from .tickets import (
    DONE,
    FAILED,
    RECONCILER,
    RUNNING,
    Busy,
    Conflict,
    ManagerError,
    Ticket,
    UnknownModel,
    Unsupported,
)
from .view import ModelView, View

# What others need of the manager, so that they know one module.
__all__ = ("Busy", "Conflict", "Manager", "ManagerError", "Observed", "Ticket", "UnknownModel", "Unsupported")

_LOG = logging.getLogger(__name__)

AUTO = "auto"
MANUAL = "manual"
_STATES = (plan.ACTIVE, plan.SLEEPING, plan.STOPPED)
# How often is looked whether somebody else has switched, and the inventory has changed.
_POLL_SECONDS = 0.25
# The servers have enough to do while a switch goes on, and it tells what it does.
_OBSERVE_DURING_SWITCH_SECONDS = 10.0
# How many tickets that have ended can still be asked for by their id. Older ones are in the history.
_KEPT_TICKETS = 100
# From how many past switches the times of the next ones are learnt.
_LEARNT_SWITCHES = 200


@dataclasses.dataclass(frozen=True)
class Observed:
    """What one look at the servers has found. `at` is in seconds since 1970; `counters` are those of active models."""

    at: float
    seen: Mapping[str, Observation]
    counters: Mapping[str, Counters]


class _Ending(SwitchingError):
    """The service ends, and the switch that runs is to be taken back."""


class Manager:
    """Switches the models of a host for whoever asks, one switch at a time, and knows what they are.

    Every method but `start` and `stop` returns at once, and may be called from any thread. `clock` counts seconds,
    `now` tells the time in seconds since 1970, `switcher` makes the engine; they are parameters for tests.
    """

    def __init__(
        self,
        config: Config,
        inventory: Inventory,
        *,
        history: History,
        bus: Bus,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        switcher: Callable[..., Switcher] = Switcher,
    ) -> None:
        self.config = config
        self.history = history
        self.bus = bus
        self._clock = clock
        self._now = now
        self._make_switcher = switcher
        # Of all that follows; told where something in the queue has changed.
        self._changed = threading.Condition(threading.RLock())
        self._reconciler = Reconciler(config)
        self._host = HostState(inventory, self._reconciler.breakers, now, clock)
        self._schedule = Schedule(config, self._host, now)
        self._ended: collections.OrderedDict[str, Ticket] = collections.OrderedDict()
        self._mode = AUTO
        self._pinned: str | None = None
        self._lock_holder = ""
        self._problem = ""
        self._last_switch: dict[str, Any] | None = None
        self._held_gb: dict[str, float | None] = {}
        self._leaks: Mapping[str, Any] = {}
        # What has been published of each model.
        self._told: dict[str, tuple[str, int | None, str]] = {}
        self._told_breakers: dict[str, dict[str, Any]] = {}
        self._ending = False
        self._take_back = threading.Event()
        self._taken_back = threading.Lock()
        self._observed_at = clock()
        # Counts what makes an observation that is under way an old one.
        self._generation = 0
        self._hooks: list[Callable[[Observed], None]] = []
        self._observing: Switcher | None = None
        self._stop_observing = threading.Event()
        self._worker = threading.Thread(target=self._work, name="worker", daemon=True)
        self._observer = threading.Thread(target=self._observe_always, name="observer", daemon=True)
        self._models_stamp = _stamp(self._models_path)
        self._stamps: tuple[Any, ...] = ()
        self._next_report = 0.0

    @property
    def inventory(self) -> Inventory:
        """The models of the host, as `models.json` has them now."""
        return self._host.inventory

    # What the service does with it.

    def start(self) -> None:
        """Look at the servers once, which takes as long as the slowest answers, and begin to work."""
        self._restore_state()
        with contextlib.suppress(HistoryError):
            switches = self.history.switches(_LEARNT_SWITCHES)
            self._host.timings = eta.Timings(one["steps"] for one in reversed(switches))
        self._last_switch = status.read_last_switch(self.config.stack_dir)
        self._stamps = self._read_stamps()
        self._look()
        self._worker.start()
        self._observer.start()

    def stop(self, timeout: float | None = None) -> bool:
        """End: what waits is refused, what runs may go on for `timeout` seconds and is then taken back.

        Taking it back has as long. Returns whether nothing runs any more; if it does, the engine's journal tells the
        next switch what this one has left undone.
        """
        timeout = self.config.stop_timeout_seconds if timeout is None else timeout
        with self._changed:
            self._ending = True
            waiting, self._schedule.waiting = self._schedule.waiting, []
            for ticket in waiting:
                self._end(ticket, error=_ending_error().as_dict())
            self._changed.notify_all()
        self._stop_observing.set()
        for thread in (self._worker, self._observer):
            if thread.ident is None:
                continue
            thread.join(timeout)
            if thread is self._worker and thread.is_alive():
                _LOG.warning("the switch that runs has had its %g s (stop_timeout_seconds): it is taken back", timeout)
                self._take_back.set()
                thread.join(timeout)
        self._save_state()
        if self._observing and not self._observer.is_alive():
            self._observing.__exit__()
            self._observing = None
        return not self._worker.is_alive()

    def on_observed(self, hook: Callable[[Observed], None]) -> None:
        """Have this called after each look at the servers, from the thread that looks."""
        self._hooks.append(hook)

    # What callers may ask.

    def request(
        self,
        model: str,
        desired: str = plan.ACTIVE,
        *,
        level: int | None = None,
        by: str = "",
        for_now: bool = False,
        manual: bool = False,
        guard: Callable[[], bool] | None = None,
    ) -> Ticket:
        """Ask for a model to be brought to a state: active, sleeping (at this level, if one is given) or stopped.

        Whoever asks for what is asked for already gets the same ticket. C(by) says who asks, for people. With
        `for_now` the desired state that a boot restores does not change. `manual` says that a person asks on the
        control API: in manual mode nobody else may, and the pin moves along. `guard` is asked under the host's lock
        whether it is still to be done. Raises UnknownModel, Conflict, Unsupported or Busy.
        """
        with self._changed:
            found = self._find(model)
            if desired not in _STATES:
                raise Unsupported(f"desired must be one of {', '.join(_STATES)}, is {desired}")
            if level is not None and (desired != plan.SLEEPING or level not in (1, 2)):
                raise Unsupported(f"level must be 1 or 2, and goes with sleeping, is {level} with {desired}")
            if self._ending:
                raise _ending_error()
            self._check_allowed(found, desired, level, by, manual)
            for ticket in self._schedule.asked():
                if ticket.asks_for != (found.id, desired, level, for_now) or (
                    ticket is self._schedule.running and ticket.guard and not guard
                ):
                    continue  # what may yet turn out not to be done is no answer to who wants it done
                ticket.waiters += 1
                ticket.manual = ticket.manual or manual
                if not guard:
                    ticket.guard, ticket.by = None, by if ticket.by == RECONCILER else ticket.by
                self._move_pin(ticket, manual)
                return ticket
            if len(self._schedule.waiting) >= self.config.max_queue:
                last = max(ticket.eta_seconds or 0.0 for ticket in self._schedule.waiting)
                raise Busy(
                    f"{len(self._schedule.waiting)} switches wait already (max_queue)",
                    "try again later",
                    max(1.0, last),
                )
            ticket = Ticket(found.id, desired, level, by, for_now, manual, self._now(), self._withdraw, self._place)
            ticket.guard = guard
            self._schedule.waiting.append(ticket)
            self._move_pin(ticket, manual)
            self.bus.publish("switch_queued", ticket.as_dict())
            self._changed.notify_all()
            return ticket

    def ticket(self, number: str) -> Ticket | None:
        """The ticket of this id, if it has not ended long ago."""
        with self._changed:
            here = [one for one in (self._schedule.running, *self._schedule.waiting) if one and one.id == number]
            return here[0] if here else self._ended.get(number)

    def set_mode(self, mode: str) -> None:
        """Set the mode: auto, or manual, in which nothing but what a person asks for on the control API is done.

        What is pinned is then so no more. Raises Unsupported for another word.
        """
        if mode not in (AUTO, MANUAL):
            raise Unsupported(f"mode must be auto or manual, is {mode}")
        self._set_mode(mode, None)

    def pin(self, model: str, by: str = "") -> Ticket:
        """Make a model active and keep it so: manual mode. If the switch fails, the former mode comes back.

        Raises what `request` does.
        """
        with self._changed:
            found, former = self._find(model), (self._mode, self._pinned)
            ticket = self.request(found.id, by=by, manual=True)
            self._set_mode(MANUAL, found.id)

            def ended(ticket: Ticket) -> None:
                if ticket.status == FAILED and (self._mode, self._pinned) == (MANUAL, found.id):
                    self._set_mode(*former)

            ticket.when_ended.append(ended)
            return ticket

    def unpin(self) -> None:
        """Let the pinned model make room again, and switches be made for whoever asks: mode auto."""
        self._set_mode(AUTO, None)

    def eviction(self, model: str) -> dict[str, str]:
        """What is done to a model that has to make room: `weights` and `process`. Raises UnknownModel."""
        with self._changed:
            return self._host.eviction(self._find(model, disabled=True))

    def set_eviction(self, model: str, weights: str, process: str) -> dict[str, str]:
        """Set that for the switches that this service makes, over a restart of it too; returns what holds now.

        `offload` is level 1, `discard` level 2, `stop` ends the process; `retain` with `keep_running` means that the
        model never makes room. Raises UnknownModel, Conflict, or Unsupported with the reason.
        """
        eviction_level(weights, process)
        with self._changed:
            found = self._find(model)
            self._host.evictions[found.id] = (weights, process)
            self._save_state()
            self.bus.publish("eviction", {"model": found.id, "weights": weights, "process": process})
            return self._host.eviction(found)

    @staticmethod
    def eviction_level(weights: str, process: str) -> str:
        """Which `sleep_level` an eviction is: 1, 2, stop, or empty for never. Raises Unsupported with the reason."""
        return eviction_level(weights, process)

    def view(self) -> View:
        """The host as it was observed last."""
        with self._changed:
            running = self._schedule.running
            switches = running if running and running.desired == plan.ACTIVE else None
            models = {model.id: self._model_view(model) for model in self.inventory.models}
            return View(
                models=models,
                active=[name for name, one in models.items() if one.state == view.READY],
                switching=(switches.from_model, switches.model) if switches else None,
                mode=self._mode,
                pinned=self._pinned,
                queue=[ticket.view() for ticket in self._schedule.asked()],
                age_seconds=max(0.0, self._clock() - self._observed_at),
                lock_holder=self._lock_holder,
                problem=self._problem,
                last_switch=self._last_switch,
            )

    # The queue. Who calls these has the lock.

    def _find(self, name: str, disabled: bool = False) -> Model:
        """The declared model of this name. Raises UnknownModel, or Conflict for a disabled one."""
        declared = [m for m in self.inventory.models if name == m.id]
        declared = declared or [m for m in self.inventory.models if name in m.names]
        if len(declared) != 1:
            raise UnknownModel(f"model not found: {name}", f"use one of {self.inventory.listed()}")
        if declared[0].disabled and not disabled:
            raise Conflict(f"{declared[0].id} is disabled", "set its startup_mode to sleep or active in vllm_models")
        return declared[0]

    def _check_allowed(self, model: Model, desired: str, level: int | None, by: str, manual: bool) -> None:
        """Raise Conflict where the mode, the pin or an eviction is against it."""
        rivals = self._host.rivals(model.id)
        if self._pinned == model.id and desired != plan.ACTIVE:
            raise Conflict(f"{model.id} is pinned", "unpin it first")
        if self._mode == MANUAL and not manual and self._pinned != model.id:
            if by != RECONCILER:
                what = f"{self._pinned} is pinned" if self._pinned else "the mode is manual"
                raise Conflict(f"{what}, so nothing is switched but by hand", "set the mode to auto, or unpin")
            if desired == plan.ACTIVE and self._pinned in rivals:
                raise Conflict(f"{self._pinned} is pinned", "unpin it first")
        # Who says at which level means it, whatever is set for other times.
        leaving = rivals & self._host.awake() if desired == plan.ACTIVE else {model.id} if level is None else set()
        for name in sorted(leaving & self._host.kept_awake()):
            raise Conflict(f"{name} never makes room (its eviction is retain, keep_running)", "set another one")

    def _move_pin(self, ticket: Ticket, manual: bool) -> None:
        if manual and self._mode == MANUAL and ticket.desired == plan.ACTIVE and self._pinned != ticket.model:
            self._set_mode(MANUAL, ticket.model)

    def _set_mode(self, mode: str, pinned: str | None) -> None:
        with self._changed:
            if (self._mode, self._pinned) == (mode, pinned):
                return
            self._mode, self._pinned = mode, pinned
            self._save_state()
            self.bus.publish("mode", {"mode": mode, "pinned": pinned})
            self._changed.notify_all()

    def _withdraw(self, ticket: Ticket) -> bool:
        with self._changed:
            ticket.waiters = max(0, ticket.waiters - 1)
            if ticket.waiters or ticket not in self._schedule.waiting:
                return False
            self._schedule.waiting.remove(ticket)
            self._end(ticket, error={"message": "nobody waits for it any more", "kind": "Withdrawn", "remedy": ""})
            return True

    def _place(self, ticket: Ticket) -> tuple[int | None, float | None]:
        with self._changed:
            return self._schedule.place(ticket)

    # The worker.

    def _work(self) -> None:
        while True:
            with self._changed:
                ticket, again = self._schedule.next()
                while ticket is None and not self._ending:
                    self._changed.wait(again)
                    ticket, again = self._schedule.next()
                if ticket is None or self._ending:
                    return
                self._begin(ticket)
            self._switch(ticket)

    def _begin(self, ticket: Ticket) -> None:
        self._schedule.waiting.remove(ticket)
        self._schedule.running = ticket
        ticket.status, ticket.begun_at = RUNNING, self._now()
        ticket.active_before = self._host.awake()
        leaving = self._host.rivals(ticket.model) & ticket.active_before
        ticket.from_model = min(leaving, default="") if ticket.desired == plan.ACTIVE else ""
        self._generation += 1
        self.bus.publish("switch_begun", ticket.as_dict())
        self._publish_queue()

    def _switch(self, ticket: Ticket) -> None:
        inventory, stack_dir = self.inventory, self.config.stack_dir
        error: dict[str, Any] | None = None
        result = None
        try:
            with self._make_switcher(
                self._with_evictions(inventory, ticket),
                stack_dir,
                sleep=self._sleep,
                tell=lambda text: _LOG.info("%s", text),
                observer=self._step,
                lock=GuardedLock(stack_dir, ticket.guard) if ticket.guard else None,
            ) as switcher:
                result = switcher.switch(ticket.model, ticket.desired, for_now=ticket.for_now)
        except SwitchingError as failure:
            result = failure.result if isinstance(failure, SwitchFailed) else None
            remedy = failure.remedy.replace(" ({log})", "")  # a command for people on the host
            error = {"message": str(failure), "kind": type(failure).__name__, "remedy": remedy}
        except Exception as failure:  # a mistake of ours: this switch has failed, the next one may not
            mask = Mask(secrets_of(inventory.as_dict()))
            _LOG.error("%s %s: %s", ticket.model, ticket.desired, mask(repr(failure)), exc_info=_LOG.isEnabledFor(10))
            error = {
                "message": mask(f"the manager failed ({failure!r})"),
                "kind": "InternalError",
                "remedy": "check the service's log, then switch again",
            }
        with self._changed:
            self._generation += 1
            self._host.moving.clear()
            if result is not None:
                self._host.take_over(result.models)
                self._host.timings.add(result.steps)
                self._observed_at = self._clock()
            self._last_switch = status.read_last_switch(stack_dir) or self._last_switch
            self._schedule.running = None
            told = result.as_dict() if result else None
            self._reconciler.ended(self._clock(), ticket.model, ticket.desired, ticket.by, told, error)
            self._publish_states()
            self._end(ticket, result=told, error=error)
            self._publish_queue()
            self._changed.notify_all()
        self._record(ticket)

    def _end(self, ticket: Ticket, result: dict[str, Any] | None = None, error: dict[str, Any] | None = None) -> None:
        """The ticket is over: tell it. The caller has the lock."""
        ticket.status = FAILED if error else DONE
        ticket.ended_at = self._now()
        ticket.result, ticket.error = result, error
        self._ended[ticket.id] = ticket
        while len(self._ended) > _KEPT_TICKETS:
            self._ended.popitem(last=False)
        for act in ticket.when_ended:
            act(ticket)
        self.bus.publish("switch_ended", ticket.as_dict())
        ticket.future.set_result(ticket)

    def _record(self, ticket: Ticket) -> None:
        result = ticket.result or {}
        error = ticket.error or {}
        if ticket.begun_at is None or ticket.ended_at is None or not (result.get("steps") or error):
            return  # nothing was done
        if error.get("kind") == Superseded.__name__:
            return
        self.history.record_switch(
            Switch(
                model=ticket.model,
                desired=ticket.desired,
                asked_at=ticket.asked_at,
                begun_at=ticket.begun_at,
                ended_at=ticket.ended_at,
                result=ticket.status,
                requested_by=ticket.by,
                error=error.get("message", ""),
                previous=result.get("previous_models", ()),
                active=result.get("active_models", ()),
                rung=result.get("rung", ""),
                seconds=ticket.ended_at - ticket.begun_at,
                steps=result.get("steps", ()),
            )
        )

    def _with_evictions(self, inventory: Inventory, ticket: Ticket) -> Inventory:
        """The inventory with the sleep levels that were set at run time."""
        with self._changed:
            levels = self._host.levels()
        if ticket.level is not None:
            levels[ticket.model] = str(ticket.level)
        models = tuple(
            dataclasses.replace(m, sleep_level=levels[m.id]) if levels.get(m.id) else m for m in inventory.models
        )
        return Inventory(models, inventory.switching)

    def _sleep(self, seconds: float) -> None:
        """How the engine waits. When the service ends, the switch fails here, once, and the engine takes it back."""
        if self._take_back.wait(seconds):
            if self._taken_back.acquire(blocking=False):
                raise _Ending("the manager ends")
            time.sleep(seconds)

    def _step(self, step: dict[str, Any]) -> None:
        """The engine tells of a step."""
        data = {key: value for key, value in step.items() if key != "event"}
        with self._changed:
            ticket = self._schedule.running
            self._host.step(step)
            self.bus.publish(step["event"], {"ticket": ticket.id if ticket else "", **data})
            self._publish_states()

    # The observing thread.

    def _observe_always(self) -> None:
        while not self._stop_observing.wait(_POLL_SECONDS):
            try:
                self._round()
            except Exception as failure:  # what can't be seen now may be seen the next time
                mask = Mask(secrets_of(self.inventory.as_dict()))
                _LOG.error("the host could not be looked at: %s", mask(repr(failure)), exc_info=_LOG.isEnabledFor(10))

    def _round(self) -> None:
        self._reload_inventory()
        stamps = self._read_stamps()
        changed, self._stamps = stamps != self._stamps, stamps
        age = self._clock() - self._observed_at
        if self._schedule.running:
            if age >= _OBSERVE_DURING_SWITCH_SECONDS:
                self._look()
            return
        if changed or self._lock_holder or age >= self.config.observe_seconds:
            changed |= self._look_for_others()
        if changed or age >= self.config.observe_seconds or not self._observing:
            self._look()
            self._wake_worker()

    def _wake_worker(self) -> None:
        """What the servers do may change what the policy decides."""
        with self._changed:
            if self._schedule.waiting:
                self._changed.notify_all()

    def _look_for_others(self) -> bool:
        """See whether somebody else switches; whether that has changed."""
        holder = self._engine().lock.held_by()
        with self._changed:
            if self._schedule.running or holder == self._lock_holder:
                return False  # a lock that is held may be our own
            self._lock_holder = holder
            self.bus.publish("lock", {"holder": holder})
            return True

    def _look(self) -> None:
        """Observe all servers, and take over what they are unless a switch has begun or ended meanwhile."""
        generation, inventory = self._generation, self.inventory
        switcher = self._engine()
        host, lock, stack_dir = switcher.host, switcher.lock, self.config.stack_dir
        locked, lock_stamp = lock.held_by(), _stamp(lock.path)
        lock.peek()
        held: dict[str, float | None] | None = None
        if self._clock() >= self._next_report and not self._schedule.running:
            self._next_report = self._clock() + self.config.report_seconds
            seen, held = host.report()
        else:
            seen = host.observe(inventory.enabled, count_requests=True)
        awake = [m.id for m in inventory.enabled if seen[m.id].state == plan.ACTIVE]

        def count(name: str) -> Counters:
            with contextlib.suppress(ServerError):
                return host.servers[name].counters()
            return Counters()

        counters = dict(zip(awake, host.each(count, awake), strict=True))
        desired = desired_state.read(inventory, stack_dir)
        known, last = state_files.models(stack_dir, state_files.COSTS), status.read_last_switch(stack_dir)
        leaks = odometer.reports(inventory, stack_dir)
        # What was read while somebody switched does not go together.
        undisturbed = not locked and not lock.held_by() and lock_stamp == _stamp(lock.path)
        with self._changed:
            if generation != self._generation:
                return
            self._observed_at = self._clock()
            self._host.desired, self._host.costs, self._leaks = desired, known, leaks
            self._held_gb = self._held_gb if held is None else held
            self._host.observe(seen, counters, lock.active_since)
            if last and last != self._last_switch and not self._schedule.running:
                self._last_switch = last
                self._note_others_switch(last)
            if undisturbed:
                self._check_pin()
            self._reconcile(inventory, last, lock_stamp, not undisturbed)
            self._publish_states()
        observed = Observed(self._now(), seen, counters)
        for hook in self._hooks:
            hook(observed)

    def _reconcile(
        self, inventory: Inventory, last_switch: Mapping[str, Any] | None, lock_stamp: object, locked: bool
    ) -> None:
        """Ask for what the service does by itself. The caller has the lock."""
        if not self.config.reconcile or self._ending:
            return
        situation = Situation(
            now=self._clock(),
            inventory=inventory,
            observed=self._host.seen,
            desired=self._host.desired,
            last_switch=last_switch,
            lock_stamp=lock_stamp,
            locked=locked and not self._schedule.running,
            tickets=bool(self._schedule.asked()),
            waiting={one.model for one in self._schedule.asked() if one.desired == plan.ACTIVE},
            manual=self._mode == MANUAL,
            kept_awake=self._host.kept_awake() | ({self._pinned} if self._pinned else set()),
            idle_seconds={m.id: self._host.idle_seconds(m.id) for m in inventory.enabled},
        )
        for action in self._reconciler.round(situation):
            guard = functools.partial(still_holds, action, inventory, self.config.stack_dir)
            try:
                self.request(action.model, action.desired, by=RECONCILER, guard=guard)
            except ManagerError as error:
                _LOG.warning("%s is not brought to the state %s: %s", action.model, action.desired, error)
            else:
                _LOG.info("%s is brought to the state %s: %s", action.model, action.desired, action.reason)

    def _engine(self) -> Switcher:
        if self._observing is None:
            self._observing = self._make_switcher(self.inventory, self.config.stack_dir)
        return self._observing

    def _note_others_switch(self, last: Mapping[str, Any]) -> None:
        """A switch that the module or the command line has made."""
        self.bus.publish("switch_seen", dict(last))
        for model in last["models"]:
            self.history.record_switch(
                Switch(
                    model=model,
                    desired=last["state"],
                    asked_at=last["ended"] - last["seconds"],
                    begun_at=last["ended"] - last["seconds"],
                    ended_at=last["ended"],
                    result=last["result"],
                    requested_by="module or command line",
                    error=last["reason"] if last["result"] == FAILED else "",
                    rung=last["rung"] or "",
                    seconds=last["seconds"],
                )
            )

    def _check_pin(self) -> None:
        """Whoever has switched past a pin, by the module or the command line, has ended it."""
        asked = [one.model for one in self._schedule.asked()]
        if self._pinned and self._pinned not in asked and self._host.desired.get(self._pinned) != plan.ACTIVE:
            _LOG.warning("%s is pinned no more: another model was made active without this service", self._pinned)
            self._set_mode(AUTO, None)

    def _reload_inventory(self) -> None:
        """Take over a new `models.json`. One that can't be used is said, and the old one kept."""
        stamp = _stamp(self._models_path)
        if stamp == self._models_stamp:
            return
        self._models_stamp = stamp
        try:
            inventory = read_inventory(self.config.stack_dir)
        except SwitchingError as error:
            self._problem = f"{error}\nThe models are those of before."
            _LOG.error("%s", self._problem)
            self.bus.publish("inventory", {"problem": self._problem})
            return
        with self._changed:
            self._problem = ""
            self._generation += 1
            self._host.inventory = inventory
            self.bus.publish("inventory", {"models": [m.id for m in inventory.models]})
        if self._observing:
            self._observing.__exit__()
            self._observing = None
        self._next_report = 0.0

    @property
    def _models_path(self) -> str:
        return os.path.join(self.config.stack_dir, "models.json")

    def _read_stamps(self) -> tuple[Any, ...]:
        """What changes when anybody switches: the lock's file, and what is recorded for a boot."""
        names = [os.path.join(self.config.stack_dir, "run", "switch.lock")]
        names += [
            state_files.path(self.config.stack_dir, one) for one in (state_files.DESIRED_STATE, state_files.LAST_SWITCH)
        ]
        return tuple(map(_stamp, names))

    # What is shown. Who calls these has the lock.

    def _breaker(self, name: str) -> dict[str, Any] | None:
        breaker = self._reconciler.breakers.get(name)
        if breaker is None:
            return None
        now = self._clock()
        left = breaker.retry_at - now
        return {
            "state": breaker.state(now),
            "failures": breaker.recent(now),
            "reason": breaker.reason,
            "retry_at": round(self._now() + left, 1) if left > 0 else None,
        }

    def _model_view(self, model: Model) -> ModelView:
        host = self._host
        state, level, problem = host.state_of(model.id)
        seen = host.seen.get(model.id, Observation(plan.ERROR))
        return ModelView(
            id=model.id,
            name=model.name,
            container_name=model.container_name,
            port=model.port,
            host_port=model.host_port,
            gpu_memory_gb=model.gpu_memory_gb,
            startup_mode=model.startup_mode,
            state=state,
            level=level,
            problem=problem,
            engine_state=seen.state,
            unknown=seen.unknown,
            desired=host.desired.get(model.id, ""),
            last_active=host.last_active.get(model.id),
            active_seconds=host.active_seconds(model.id),
            in_flight=host.in_flight(model.id),
            idle_seconds=host.idle_seconds(model.id),
            queue_depth=sum(one.waiters for one in self._schedule.asked() if one.model == model.id),
            eta_seconds=None if model.disabled else self._schedule.eta(model),
            breaker=self._breaker(model.id),
            note=self._reconciler.notes.get(model.id, ""),
            eviction=host.eviction(model),
            gpu_memory_held_gb=self._held_gb.get(model.id),
            leak=self._leaks.get(model.id),
        )

    def _publish_states(self) -> None:
        for model in self.inventory.models:
            now = self._host.state_of(model.id)
            before = self._told.get(model.id)
            if now != before:
                self._told[model.id] = now
                state, level, problem = now
                data = {"model": model.id, "state": state, "level": level, "problem": problem}
                self.bus.publish("state", {**data, "before": before[0] if before else None})
            breaker = self._breaker(model.id)
            told = self._told_breakers.get(model.id)
            keys = ("state", "failures")
            if breaker and (not told or any(breaker[key] != told[key] for key in keys)):
                self._told_breakers[model.id] = breaker
                self.bus.publish("breaker", {"model": model.id, **breaker})

    def _publish_queue(self) -> None:
        shown = [ticket.view() for ticket in self._schedule.asked()]
        keys = ("id", "model", "desired", "position", "eta_seconds")
        self.bus.publish("queue", {"queue": [{key: getattr(one, key) for key in keys} for one in shown]})

    # What outlives a restart.

    def _restore_state(self) -> None:
        saved = state_files.read(self.config.stack_dir, state_files.MANAGER)
        ids = {m.id for m in self.inventory.enabled}
        if saved.get("mode") in (AUTO, MANUAL):
            self._mode = saved["mode"]
            self._pinned = saved.get("pinned") if saved.get("pinned") in ids else None
        evictions = saved.get("evictions")
        for name, pair in evictions.items() if isinstance(evictions, dict) else ():
            with contextlib.suppress(Unsupported, TypeError, ValueError):
                weights, process = pair
                eviction_level(weights, process)
                self._host.evictions[str(name)] = (weights, process)
        last = saved.get("last_active")
        for name, at in last.items() if isinstance(last, dict) else ():
            if isinstance(at, (int, float)):
                self._host.last_active[str(name)] = float(at)

    def _save_state(self) -> None:
        content = {
            "mode": self._mode,
            "pinned": self._pinned,
            "evictions": self._host.evictions,
            "last_active": self._host.last_active,
        }
        try:
            with self._changed:
                state_files.write(self.config.stack_dir, state_files.MANAGER, content)
        except OSError as error:
            path = state_files.path(self.config.stack_dir, state_files.MANAGER)
            _LOG.warning("%s can't be written (%s): %s", path, error.strerror, state_files.remedy(error))


def _ending_error() -> Busy:
    return Busy("the manager ends", "try again when it runs again", 10.0)


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_ino, seen.st_size
