# SPDX-License-Identifier: MIT
"""The manager: what callers may ask of a host, and its parts, which do it.

The worker makes one switch at a time, by the engine. The observer looks at the servers, at what others do to them
(module and command line) and at the inventory, and has the reconciler decide what is to be done by itself. Nobody who
asks the manager waits for a server.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from . import eta
from .asked_gates import AskedGates
from .board import Board
from .config import Config
from .context import Context
from .control import AUTO, MANUAL, Control
from .events import Bus
from .gateway import Gateway
from .history import History, HistoryError
from .host_state import HostState, eviction_level
from .observer import Observed, Observer
from .reconcile import Reconciler
from .schedule import Schedule
from .tickets import (
    RECONCILER,
    Busy,
    Conflict,
    ManagerError,
    Ticket,
    UnknownModel,
    Unsupported,
    ending,
)
from .view import View
from .worker import Worker

# What others need of the manager, so that they know one module.
__all__ = ("Busy", "Conflict", "Manager", "ManagerError", "Observed", "Ticket", "UnknownModel", "Unsupported")

_STATES = (plan.ACTIVE, plan.SLEEPING, plan.STOPPED)
# From how many past switches the times of the next ones are learnt.
_LEARNT_SWITCHES = 200


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
        self._now = now
        context = Context(config, history, bus, clock, now, switcher)
        self._changed = context.changed
        reconciler = Reconciler(config, clock, now)
        self._host = HostState(inventory, reconciler.breakers, now, clock)
        self._schedule = Schedule(config, self._host, now)
        self._control = Control(context, self._host)
        self.gateway = Gateway(context, self._host, self._schedule, reconciler.breakers, self.request, self._find)
        self._board = Board(context, self._host, self._schedule, self._control, reconciler, self.gateway)
        parts = (context, self._host, self._schedule, self._control, reconciler, self._board, self.gateway)
        self._worker = Worker(*parts)
        self._observer = Observer(*parts, self.request)
        self._asked_gates = AskedGates(context, self.gateway, self._observer.look_soon)

    @property
    def inventory(self) -> Inventory:
        """The models of the host, as `models.json` has them now."""
        return self._host.inventory

    # What the service does with it.

    def start(self) -> None:
        """Look at the servers once, which takes as long as the slowest answers, and begin to work."""
        self._control.restore()
        self._asked_gates.start()
        with contextlib.suppress(HistoryError):
            switches = self.history.switches(_LEARNT_SWITCHES)
            self._host.timings = eta.Timings(one["steps"] for one in reversed(switches))
        self._observer.look_first()
        self._worker.start()
        self._observer.start()

    def stop(self, timeout: float | None = None) -> bool:
        """End: what waits is refused, what runs may go on for `timeout` seconds and is then taken back.

        Taking it back has as long. Returns whether nothing runs any more; if it does, the engine's journal tells the
        next switch what this one has left undone.
        """
        timeout = self.config.stop_timeout_seconds if timeout is None else timeout
        with self._changed:
            self._schedule.closed = True
            waiting, self._schedule.waiting = self._schedule.waiting, []
            for ticket in waiting:
                self._worker.end(ticket, error=ending().as_dict())
            self._changed.notify_all()
        self._observer.end()
        ended = self._worker.join(timeout)
        self._observer.join(timeout)
        with self._changed:
            left = self._schedule.running
            if left:  # it hangs at a server: who waits for it is answered all the same
                self._worker.end(left, error=ending().as_dict())
            self._control.save()
        self._asked_gates.stop()
        return ended

    def on_observed(self, hook: Callable[[Observed], None]) -> None:
        """Have this called after each look at the servers, from the thread that looks."""
        self._observer.on_observed(hook)

    # What callers may ask.

    def request(
        self,
        model: str,
        desired: str = plan.ACTIVE,
        *,
        level: int | None = None,
        by: str = "",
        manual: bool = False,
        guard: Callable[[], bool] | None = None,
    ) -> Ticket:
        """Ask for a model to be brought to a state: active, sleeping (at this level, if one is given) or stopped.

        Whoever asks for what is asked for already gets the same ticket. C(by) says who asks, for people. `manual` says
        that a person asks on the control API: in manual mode nobody else may, and the pin moves along. `guard` is asked
        under the host's lock whether it is still to be done. Raises UnknownModel, Conflict, Unsupported or Busy.
        """
        with self._changed:
            found = self._find(model)
            if desired not in _STATES:
                raise Unsupported(f"desired must be one of {', '.join(_STATES)}, is {desired}")
            if level is not None and (desired != plan.SLEEPING or level not in (1, 2)):
                raise Unsupported(f"level must be 1 or 2, and goes with sleeping, is {level} with {desired}")
            _check_sleeps(found, str(level))
            if self._schedule.closed:
                raise ending()
            self._control.check(found.id, desired, level, by, manual)
            for ticket in self._schedule.asked():
                if ticket.asks_for != (found.id, desired, level) or (
                    ticket is self._schedule.running and ticket.guarded and not guard
                ):
                    continue  # what may yet turn out not to be done is no answer to who wants it done
                ticket.waiters += 1
                ticket.manual = ticket.manual or manual
                if not guard:
                    ticket.unconditional += 1
                    ticket.by = by if ticket.by == RECONCILER else ticket.by
                if manual:
                    self._control.move_pin(ticket)
                return ticket
            if len(self._schedule.waiting) >= self.config.max_queue:
                last = self._schedule.asked()[-1].eta_seconds or 0.0
                raise Busy(
                    f"{len(self._schedule.waiting)} switches wait already (max_queue)",
                    "try again later",
                    max(1.0, last),
                )
            ticket = Ticket(found.id, desired, level, by, manual, self._now(), self._withdraw, self._place)
            ticket.guard, ticket.unconditional = guard, 0 if guard else 1
            self._schedule.waiting.append(ticket)
            if manual:
                self._control.move_pin(ticket)
            self.bus.publish("switch_queued", ticket.as_dict())
            self._board.publish_queue()
            self._changed.notify_all()
            return ticket

    def ticket(self, number: str) -> Ticket | None:
        """The ticket of this id, if it has not ended long ago."""
        with self._changed:
            here = [one for one in (self._schedule.running, *self._schedule.waiting) if one and one.id == number]
            return here[0] if here else self._worker.ended(number)

    def set_mode(self, mode: str) -> None:
        """Set the mode: auto, or manual, in which nothing but what a person asks for on the control API is done.

        What is pinned is then so no more. Raises Unsupported for another word.
        """
        if mode not in (AUTO, MANUAL):
            raise Unsupported(f"mode must be auto or manual, is {mode}")
        with self._changed:
            self._control.set(mode, None)

    def pin(self, model: str, by: str = "") -> Ticket:
        """Make a model active and keep it so: manual mode. If the switch fails, the former mode comes back.

        Raises what `request` does.
        """
        with self._changed:
            ticket = self.request(model, by=by, manual=True)
            self._control.pin(ticket)
            return ticket

    def unpin(self) -> None:
        """Let the pinned model make room again, and switches be made for whoever asks: mode auto."""
        with self._changed:
            self._control.set(AUTO, None)

    def eviction(self, model: str) -> dict[str, str]:
        """What is done to a model that has to make room: `weights` and `process`. Raises UnknownModel."""
        with self._changed:
            return self._host.eviction(self._find(model, disabled=True))

    def set_eviction(self, model: str, weights: str, process: str) -> dict[str, str]:
        """Set that for the switches that this service makes, over a restart of it too; returns what holds now.

        `offload` is level 1, `discard` level 2, `stop` ends the process; `retain` with `keep_running` means that the
        model never makes room. Raises UnknownModel, Conflict, or Unsupported with the reason.
        """
        level = eviction_level(weights, process)
        with self._changed:
            found = self._find(model)
            _check_sleeps(found, level)
            self._host.evictions[found.id] = (weights, process)
            self._control.save()
            self.bus.publish("eviction", {"model": found.id, "weights": weights, "process": process})
            return self._host.eviction(found)

    @staticmethod
    def eviction_level(weights: str, process: str) -> str:
        """Which `sleep_level` an eviction is: 1, 2, stop, or empty for never. Raises Unsupported with the reason."""
        return eviction_level(weights, process)

    def view(self) -> View:
        """The host as it was observed last."""
        with self._changed:
            return self._board.view()

    def _find(self, name: str, disabled: bool = False) -> Model:
        """The declared model of this name. Raises UnknownModel, or Conflict for a disabled one."""
        declared = [m for m in self.inventory.models if name == m.id]
        declared = declared or [m for m in self.inventory.models if name in m.names]
        if len(declared) != 1:
            raise UnknownModel(f"model not found: {name}", f"use one of {self.inventory.listed()}")
        if declared[0].disabled and not disabled:
            raise Conflict(f"{declared[0].id} is disabled", "set its startup_mode to sleep or active in vllm_models")
        return declared[0]

    def _withdraw(self, ticket: Ticket) -> bool:
        with self._changed:
            # Only people go away: the manager waits for what it has asked for itself.
            ticket.waiters = max(0, ticket.waiters - 1)
            ticket.unconditional = max(0, ticket.unconditional - 1)
            if ticket not in self._schedule.waiting:
                return False
            if ticket.waiters:
                ticket.by = RECONCILER if ticket.guarded else ticket.by
                return False
            self._schedule.waiting.remove(ticket)
            self._worker.end(
                ticket, error={"message": "nobody waits for it any more", "kind": "Withdrawn", "remedy": ""}
            )
            self._board.publish_queue()
            return True

    def _place(self, ticket: Ticket) -> tuple[int | None, float | None]:
        with self._changed:
            return self._schedule.place(ticket)


def _check_sleeps(model: Model, level: str) -> None:
    """Raise Unsupported for a sleep of a server that may have no way to: the engine would not know its state."""
    if model.sleep_level == "stop" and level in ("1", "2"):
        raise Unsupported(f"{model.id} can't sleep: its sleep_level is stop", "set another one in vllm_models")
