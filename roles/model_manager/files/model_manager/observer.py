# SPDX-License-Identifier: MIT
"""The observer: the thread that looks at the servers, at what others do to them, and at the inventory.

After each look the reconciler decides what is to be done unasked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import (
    desired_state,
    odometer,
    plan,
    state_files,
    status,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.__main__ import read_inventory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import ServerError, SwitchingError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import HostLock
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.metrics import Counters
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import Observation
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import Mask, secrets_of
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from . import records
from .board import Board
from .context import Context
from .control import MANUAL, Control
from .gateway import Gateway
from .guarded_lock import still_holds
from .history import Switch
from .host_state import HostState
from .reconcile import Reconciler
from .rules import Situation, is_unknown, serves
from .schedule import Schedule
from .tickets import RECONCILER, ManagerError, Ticket

_LOG = logging.getLogger(__name__)

# How often is looked whether somebody else has switched, and the inventory has changed.
_POLL_SECONDS = 0.25
# After a switch, the GPU memory is looked at so soon, but no more often, however many switches there are.
_REPORT_AFTER_SECONDS = 5.0
# The servers have enough to do while a switch goes on, and it tells what it does.
_OBSERVE_DURING_SWITCH_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Observed:
    """What one look at the servers has found. `at` is in seconds since 1970; `counters` are those of active models."""

    at: float
    seen: Mapping[str, Observation]
    counters: Mapping[str, Counters]


class Request(Protocol):
    """How a switch is asked for: `Manager.request`."""

    def __call__(self, model: str, desired: str, *, by: str, guard: Callable[[], bool]) -> Ticket:
        """The ticket. Raises ManagerError."""


class Observer:
    """Looks at the host, takes over what it finds, and asks by `request` for what the reconciler decides.

    It takes the manager's lock, but never while it looks.
    """

    def __init__(
        self,
        context: Context,
        host: HostState,
        schedule: Schedule,
        control: Control,
        reconciler: Reconciler,
        board: Board,
        gateway: Gateway,
        request: Request,
    ) -> None:
        self._context = context
        self._config = context.config
        self._clock = context.clock
        self._changed = context.changed
        self._host = host
        self._schedule = schedule
        self._control = control
        self._reconciler = reconciler
        self._board = board
        self._gateway = gateway
        self._request = request
        self._hooks: list[Callable[[Observed], None]] = []
        self._observing: Switcher | None = None
        self._models_stamp: Any = None
        self._stamps: tuple[Any, ...] = ()
        self._reported_at = -math.inf
        # Whether nothing ran when the host was seen first, and what is desired was never read.
        self._comes_up: bool | None = None
        # Which files can't be read now.
        self._unread: set[str] = set()
        # Somebody else has just let go of the host's lock.
        self._asked_to = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._observe_always, name="observer", daemon=True)

    def on_observed(self, hook: Callable[[Observed], None]) -> None:
        """Have this called after each look at the servers, from the thread that looks."""
        self._hooks.append(hook)

    def look_first(self) -> None:
        """Look once, before `start`. The inventory may have changed since it was read."""
        self._host.last_switch = status.read_last_switch(self._config.stack_dir)
        self._reload_inventory()
        self._stamps = self._read_stamps()
        self._look()

    def start(self) -> None:
        """Begin to look again and again."""
        self._thread.start()

    def look_soon(self) -> None:
        """Look at once, or once more after the look that is under way; from whatever thread."""
        self._asked_to.set()

    def end(self) -> None:
        """Look no more, once this look is over."""
        self._ending.set()
        self._asked_to.set()

    def join(self, timeout: float) -> None:
        """Wait so long for that, in seconds. May be called by several threads at once."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if not self._thread.is_alive():
            self._close()

    def _observe_always(self) -> None:
        while True:
            asked_to = self._asked_to.wait(_POLL_SECONDS)
            if self._ending.is_set():
                return
            self._asked_to.clear()
            try:
                self._round(asked_to)
            except Exception as failure:  # what can't be seen now may be seen the next time
                mask = Mask(secrets_of(self._host.inventory.as_dict()))
                _LOG.error("the host could not be looked at: %s", mask(repr(failure)), exc_info=_LOG.isEnabledFor(10))

    def _round(self, asked_to: bool) -> None:
        self._reload_inventory()
        stamps = self._read_stamps()
        changed, self._stamps = asked_to or stamps != self._stamps, stamps
        age = self._clock() - self._host.observed_at
        if self._schedule.running:
            if age >= _OBSERVE_DURING_SWITCH_SECONDS:
                self._look()
            return
        if changed or self._host.lock_holder or age >= self._config.observe_seconds:
            changed |= self._look_for_others()
        if changed:
            self._look_for_quick_ones()
        if changed or age >= self._config.observe_seconds or not self._observing:
            self._look()
            self._wake_worker()

    def _wake_worker(self) -> None:
        """What the servers do may change what the policy decides."""
        with self._changed:
            if self._schedule.waiting:
                self._changed.notify_all()

    def _look_for_others(self) -> bool:
        """See whether somebody else switches; whether that has changed."""
        generation = self._host.generation
        lock = self._engine().lock
        try:
            holder = lock.held_by()
        except OSError:
            return False  # the look says so
        with self._changed:
            if self._schedule.running or generation != self._host.generation:
                return False  # a lock that is held may be our own, or have been
            return self._board.note_holder(holder)

    def _look_for_quick_ones(self) -> None:
        """See whether somebody has switched so quickly that nobody has seen the lock held."""
        last = status.read_last_switch(self._config.stack_dir)
        with self._changed:
            if not self._schedule.running and last != self._host.last_switch:
                self._gateway.foreign(())

    def _report_is_due(self, inventory: Inventory) -> bool:
        """Whether to look at what takes longer: from time to time, and soon after something has changed."""
        unknown = any(m.id not in self._host.held_gb for m in inventory.enabled)
        seconds = self._config.report_seconds
        return self._clock() >= self._reported_at + (min(seconds, _REPORT_AFTER_SECONDS) if unknown else seconds)

    def _look(self) -> None:
        """Observe all servers, and take over what they are unless a switch has begun or ended meanwhile."""
        generation, inventory = self._host.generation, self._host.inventory
        switcher = self._engine()
        host, lock, stack_dir = switcher.host, switcher.lock, self._config.stack_dir
        free, lock_stamp = _is_free(lock), _stamp(lock.path)
        lock.peek()
        self._say_once(lock.path, lock.unreadable)
        held: dict[str, float | None] | None = None
        if self._report_is_due(inventory) and not self._schedule.running:
            self._reported_at = self._clock()
            seen, told = host.report()
            held = {**dict.fromkeys((m.id for m in inventory.enabled), None), **told}
        else:
            seen = host.observe(inventory.enabled, count_requests=True)
        awake = [m.id for m in inventory.enabled if seen[m.id].state == plan.ACTIVE]

        def count(name: str) -> Counters:
            with contextlib.suppress(ServerError):
                return host.servers[name].counters()
            return Counters()

        adapters = {m.id: host.servers[m.id].adapters for m in inventory.enabled}
        counters = dict(zip(awake, host.each(count, awake), strict=True))
        desired, is_desired = self._read_desired(inventory)
        if is_desired or self._comes_up is None:
            self._comes_up = not is_desired and all(one.state == plan.STOPPED for one in seen.values())
        known, last = state_files.models(stack_dir, state_files.COSTS), status.read_last_switch(stack_dir)
        former = status.read_former_switches(stack_dir)
        leaks = odometer.reports(inventory, stack_dir)
        kept: list[Switch] = []
        with self._changed:
            if generation != self._host.generation:
                return
            # What was read while somebody switched does not go together. Not asked before: he who begins now has to
            # wait for this lock before his gates are said to be closed.
            undisturbed = free and _is_free(lock) and lock_stamp == _stamp(lock.path) and not lock.unreadable
            self._host.observed_at = self._clock()
            self._host.desired, self._host.costs, self._host.leaks = desired, known, leaks
            self._host.observe(seen, counters, lock.active_since)
            self._host.held_gb = self._host.held_gb if held is None else held
            if last and not self._schedule.running and self._board.note_others_switch(last):
                kept = records.of_others(last)
            self._host.adapters.update({name: tuple(told) for name, told in adapters.items() if told is not None})
            if undisturbed:
                self._gateway.looked()
                if is_desired:
                    self._control.check_pin(self._schedule.asked())
            self._reconcile(inventory, last, former, lock_stamp, not undisturbed or not (is_desired or self._comes_up))
            if undisturbed and not self._schedule.asked():
                self._host.abandoned = self._abandoned(inventory)
            self._board.publish_states()
        # Without the lock: the history may have to wait for the disk.
        for switch in kept:
            self._context.history.record_switch(switch)
        observed = Observed(self._context.now(), seen, counters)
        for hook in self._hooks:
            hook(observed)

    def _read_desired(self, inventory: Inventory) -> tuple[desired_state.DesiredState, bool]:
        """What is desired, and whether that was read; where it can't be, what was known, else the startup modes."""
        stack_dir, failed = self._config.stack_dir, None
        try:
            desired = desired_state.read_or_raise(inventory, stack_dir)
        except OSError as error:
            desired, failed = {**desired_state.read(inventory, stack_dir), **self._host.desired}, error
        self._say_once(state_files.path(stack_dir, state_files.DESIRED_STATE), failed)
        return desired, not failed

    def _say_once(self, path: str, error: OSError | None) -> None:
        """Log that a file can't be read, once until it can: there are several looks a second."""
        if error and path not in self._unread:
            _LOG.error(
                "%s can't be read (%s): repair it; nothing more is done unasked until then", path, error.strerror
            )
        (self._unread.add if error else self._unread.discard)(path)

    def _reconcile(
        self,
        inventory: Inventory,
        last_switch: Mapping[str, Any] | None,
        former_switches: Sequence[Mapping[str, Any]],
        lock_stamp: object,
        locked: bool,
    ) -> None:
        """Ask for what the service does by itself. The caller has the lock."""
        if not self._config.reconcile or self._schedule.closed:
            return
        pinned = self._control.pinned
        situation = Situation(
            now=self._clock(),
            inventory=inventory,
            observed=self._host.seen,
            desired=self._host.desired,
            last_switch=last_switch,
            former_switches=former_switches,
            lock_stamp=lock_stamp,
            locked=locked and not self._schedule.running,
            tickets=bool(self._schedule.asked()),
            waiting={one.model for one in self._schedule.asked() if one.desired == plan.ACTIVE},
            manual=self._control.mode == MANUAL,
            kept_awake=self._host.kept_awake() | ({pinned} if pinned else set()),
            idle_seconds={m.id: self._least_idle_seconds(m.id) for m in inventory.enabled},
        )
        for action in self._reconciler.round(situation):
            guard = functools.partial(still_holds, action, inventory, self._config.stack_dir)
            try:
                self._request(action.model, action.desired, by=RECONCILER, guard=guard)
            except ManagerError as error:
                _LOG.warning("%s is not brought to the state %s: %s", action.model, action.desired, error)
            else:
                _LOG.info("%s is brought to the state %s: %s", action.model, action.desired, action.reason)

    def _least_idle_seconds(self, name: str) -> float | None:
        """For how long a model surely had no request, neither through the gateway nor past it."""
        found = [self._host.idle_seconds(name), self._host.unused_seconds(name)]
        return None if None in found else min(one for one in found if one is not None)

    def _abandoned(self, inventory: Inventory) -> set[str]:
        """The models that should be active and do not run, that the service does not bring back now by itself."""
        found = set()
        for model in inventory.enabled:
            seen = self._host.seen[model.id]
            runs_not = seen.state in (plan.STOPPED, plan.ERROR) and not is_unknown(model, seen)
            if self._host.desired.get(model.id) != plan.ACTIVE or not runs_not:
                continue
            # Who serves in its place was woken past the engine, or for now.
            rivals = any(serves(self._host.seen[m.id]) for m in inventory.conflicting(model) if not m.disabled)
            tried = self._config.reconcile and not self._reconciler.breaker(model.id).opened
            unusable = seen.state == plan.ERROR and bool(self._reconciler.notes.get(model.id)) and not seen.dead
            if not rivals and (unusable or not tried):
                found.add(model.id)
        return found

    def _engine(self) -> Switcher:
        if self._observing is None:
            self._observing = self._context.switcher(self._host.inventory, self._config.stack_dir)
        return self._observing

    def _close(self) -> None:
        """Let the engine go with which this looks."""
        with self._changed:
            observing, self._observing = self._observing, None
        if observing:
            observing.__exit__()

    def _reload_inventory(self) -> None:
        """Take over a new `models.json`. One that can't be used is said, and the old one kept."""
        stamp = _stamp(os.path.join(self._config.stack_dir, "models.json"))
        if stamp == self._models_stamp:
            return
        self._models_stamp = stamp
        bus = self._context.bus
        try:
            inventory = read_inventory(self._config.stack_dir)
        except SwitchingError as error:
            self._host.problem = f"{error}\nThe models are those of before."
            _LOG.error("%s", self._host.problem)
            bus.publish("inventory", {"problem": self._host.problem})
            return
        with self._changed:
            self._host.problem = ""
            self._host.generation += 1
            self._host.inventory = inventory
            bus.publish("inventory", {"models": [m.id for m in inventory.models]})
            self._gateway.refresh()
        self._close()
        self._reported_at = -math.inf

    def _read_stamps(self) -> tuple[Any, ...]:
        """What changes when anybody switches: the lock's file, and what is recorded for a boot."""
        stack_dir = self._config.stack_dir
        names = [os.path.join(stack_dir, "run", "switch.lock")]
        names += [state_files.path(stack_dir, one) for one in (state_files.DESIRED_STATE, state_files.LAST_SWITCH)]
        return tuple(map(_stamp, names))


def _is_free(lock: HostLock) -> bool:
    """Whether it is known that nobody has it."""
    try:
        return lock.held_by() is None
    except OSError:
        return False


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_ino, seen.st_size
