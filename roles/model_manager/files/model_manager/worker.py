# SPDX-License-Identifier: MIT
"""The worker: the thread that makes the switches that were asked for, one at a time, and tells how each ends."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import threading
import time
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan, status
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed, SwitchingError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import Mask, secrets_of

from . import records
from .board import Board
from .context import Context
from .control import Control
from .gateway import Gateway
from .guarded_lock import GuardedLock, Superseded
from .history import Switch
from .host_state import HostState
from .reconcile import Reconciler
from .schedule import Schedule
from .tickets import DONE, FAILED, RECONCILER, RUNNING, Conflict, Ticket, ending

_LOG = logging.getLogger(__name__)

# How many tickets that have ended can still be asked for by their id. Older ones are in the history.
_KEPT_TICKETS = 100
# Before the next try, where a mistake of ours has nothing to do with any ticket.
_PAUSE_SECONDS = 1.0


class _Ending(SwitchingError):
    """The service ends, and the switch that runs is to be taken back."""


class Worker:
    """Makes the switches in the order of the schedule. It takes the manager's lock, but never while it switches."""

    def __init__(
        self,
        context: Context,
        host: HostState,
        schedule: Schedule,
        control: Control,
        reconciler: Reconciler,
        board: Board,
        gateway: Gateway,
    ) -> None:
        self._context = context
        self._changed = context.changed
        self._now = context.now
        self._bus = context.bus
        self._host = host
        self._schedule = schedule
        self._control = control
        self._reconciler = reconciler
        self._board = board
        self._gateway = gateway
        self._ended: collections.OrderedDict[str, Ticket] = collections.OrderedDict()
        self._take_back = threading.Event()
        self._taken_back = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait until the switch that runs has ended, and take it back after `timeout` seconds; it has as long for that.

        The schedule is closed already. Returns whether nothing runs any more.
        """
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        if self._thread.is_alive():
            _LOG.warning("the switch that runs has had its %g s (stop_timeout_seconds): it is taken back", timeout)
            self._take_back.set()
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # Who calls these has the lock.

    def ended(self, number: str) -> Ticket | None:
        """The ticket of this id, if it has ended, and not long ago."""
        return self._ended.get(number)

    def end(self, ticket: Ticket, result: dict[str, Any] | None = None, error: dict[str, Any] | None = None) -> None:
        """The ticket is over: tell it, unless it was told already."""
        if ticket.ended:
            return
        ticket.status = FAILED if error else DONE
        ticket.ended_at = self._now()
        ticket.result, ticket.error = result, error
        self._ended[ticket.id] = ticket
        while len(self._ended) > _KEPT_TICKETS:
            self._ended.popitem(last=False)
        try:
            for act in ticket.when_ended:
                act(ticket)
            self._gateway.ended(ticket)
            self._bus.publish("switch_ended", ticket.as_dict())
        finally:
            ticket.future.set_result(ticket)

    def _begin(self, ticket: Ticket) -> bool:
        """Begin with a ticket; whether it may still be done."""
        self._schedule.waiting.remove(ticket)
        self._schedule.running = ticket
        try:
            self._control.check(ticket.model, ticket.desired, ticket.level, ticket.by, ticket.manual)
        except Conflict as conflict:  # the mode, a pin or an eviction was set since it was asked for
            self.end(ticket, error=conflict.as_dict())
            self._schedule.running = None
            self._board.publish_queue()
            return False
        ticket.status, ticket.begun_at = RUNNING, self._now()
        ticket.active_before = self._host.awake()
        leaving = self._host.rivals(ticket.model) & ticket.active_before
        ticket.from_model = min(leaving, default="") if ticket.desired == plan.ACTIVE else ""
        self._host.generation += 1
        self._bus.publish("switch_begun", ticket.as_dict())
        self._board.publish_queue()
        return True

    # The thread.

    def _work(self) -> None:
        while not self._schedule.closed:
            try:
                self._work_once()
            except Exception as failure:  # a mistake of ours: whoever else waits is to be served
                error = self._internal_error("the next switch", failure)
                with self._changed:
                    ticket, self._schedule.running = self._schedule.running, None
                    if ticket and not ticket.ended:
                        self.end(ticket, error=error)
                    else:
                        self._changed.wait(_PAUSE_SECONDS)

    def _work_once(self) -> None:
        """Make the next switch, or wait until there may be one."""
        with self._changed:
            if self._schedule.closed:
                return
            try:
                ticket, again = self._schedule.next()
            except Exception:
                if self._schedule.waiting:  # it is the one that fails of this
                    self._schedule.running = self._schedule.waiting.pop(0)
                raise
            if ticket is None:
                self._changed.wait(again)
                return
            if not self._begin(ticket):
                return
        self._switch(ticket)

    def _switch(self, ticket: Ticket) -> None:
        cleared = self._gateway.clear(ticket)
        if cleared.error:
            self._call_off(ticket, cleared.error)
            return
        host = self._host
        inventory, stack_dir = host.inventory, self._context.config.stack_dir
        error: dict[str, Any] | None = None
        result = None
        kept: list[Switch] = []
        try:
            lock = GuardedLock(stack_dir, functools.partial(self._locked, ticket, kept))
            with self._context.switcher(
                self._with_evictions(inventory, ticket, cleared.drain_seconds),
                stack_dir,
                sleep=self._sleep,
                tell=functools.partial(self._tell, lock),
                observer=self._step,
                lock=lock,
            ) as switcher:
                result = switcher.switch(ticket.model, ticket.desired)
        except SwitchingError as failure:
            result = failure.result if isinstance(failure, SwitchFailed) else None
            remedy = failure.remedy.replace(" ({log})", "")  # a command for people on the host
            error = {"message": str(failure), "kind": type(failure).__name__, "remedy": remedy}
        except Exception as failure:  # a mistake of ours: this switch has failed, the next one may not
            error = self._internal_error(f"{ticket.model} {ticket.desired}", failure)
        if error and self._taken_back.locked():  # no server is to blame
            error = {**ending().as_dict(), "message": error["message"]}
        with self._changed:
            host.generation += 1
            host.moving.clear()
            if result is not None:
                host.take_over(result.models)
                host.timings.add(result.steps)
                host.observed_at = self._context.clock()
            host.last_switch = status.read_last_switch(stack_dir) or host.last_switch
            told = result.as_dict() if result else None
            self._reconciler.ended(self._context.clock(), ticket.model, ticket.desired, ticket.by, told, error)
            self._board.publish_states()
            self.end(ticket, result=told, error=error)
            self._schedule.running = None
            self._board.publish_queue()
            self._changed.notify_all()
        done = records.of_ticket(ticket)
        for switch in (*kept, *([done] if done else [])):
            self._context.history.record_switch(switch)

    def _call_off(self, ticket: Ticket, error: dict[str, Any]) -> None:
        """Nothing of this switch was begun but in the queue, and nothing will be."""
        with self._changed:
            ticket.begun_at = None
            if error["kind"] == Superseded.__name__:
                self._reconciler.ended(self._context.clock(), ticket.model, ticket.desired, ticket.by, None, error)
            self._schedule.running = None
            self.end(ticket, error=error)
            self._board.publish_queue()
            self._changed.notify_all()

    def _tell(self, lock: GuardedLock, text: str) -> None:
        """The engine tells what it waits for: whoever else has the host's lock switches now."""
        _LOG.info("%s", text)
        if lock.waits_for:
            self._gateway.foreign(lock.waits_for.models)

    def _with_evictions(self, inventory: Inventory, ticket: Ticket, drain_seconds: float | None) -> Inventory:
        """The inventory with the sleep levels that were set at run time, and what is left of the time to drain."""
        with self._changed:
            levels = self._host.levels()
        if ticket.level is not None:
            levels[ticket.model] = str(ticket.level)
        models = tuple(
            dataclasses.replace(m, sleep_level=levels[m.id]) if levels.get(m.id) else m for m in inventory.models
        )
        switching = inventory.switching
        if drain_seconds is not None:
            switching = dataclasses.replace(switching, drain_timeout_seconds=drain_seconds)
        return Inventory(models, switching)

    def _sleep(self, seconds: float) -> None:
        """How the engine waits. When the service ends, the switch fails here, once, and the engine takes it back."""
        if self._take_back.wait(seconds):
            if self._taken_back.acquire(blocking=False):
                raise _Ending("the manager ends")
            time.sleep(seconds)

    def _locked(self, ticket: Ticket, kept: list[Switch]) -> bool:
        """The host's lock is ours, and who had it before has ended: see that in time, before our own record is there.

        Adds to `kept` what the history is to keep of it; returns whether our switch is still to be made.
        """
        last = status.read_last_switch(self._context.config.stack_dir)
        with self._changed:
            self._board.note_holder(None)
            if last and self._board.note_others_switch(last):
                kept.extend(records.of_others(last))
            guard = ticket.guard if ticket.guarded else None
        if guard and not guard():
            return False
        if ticket.by != RECONCILER:
            with self._changed:
                self._reconciler.begun(ticket.model, ticket.desired, last)
        return True

    def _step(self, step: dict[str, Any]) -> None:
        """The engine tells of a step."""
        data = {key: value for key, value in step.items() if key != "event"}
        with self._changed:
            ticket = self._schedule.running
            self._host.step(step)
            self._bus.publish(step["event"], {"ticket": ticket.id if ticket else "", **data})
            self._board.publish_states()

    def _internal_error(self, what: str, failure: Exception) -> dict[str, Any]:
        """The error of a ticket for a mistake of ours, which is logged."""
        mask = Mask(secrets_of(self._host.inventory.as_dict()))
        _LOG.error("%s: %s", what, mask(repr(failure)), exc_info=_LOG.isEnabledFor(10))
        return {
            "message": mask(f"the manager failed ({failure!r})"),
            "kind": "InternalError",
            "remedy": "check the service's log, then switch again",
        }
