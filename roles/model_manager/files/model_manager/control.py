# SPDX-License-Identifier: MIT
"""Who may have what switched: the mode, the pin and the evictions, which outlive a restart of the service.

Nothing here has a lock: whoever calls has the manager's.
"""

from __future__ import annotations

import contextlib
import logging

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import desired_state, plan, state_files

from .context import Context
from .host_state import HostState, eviction_level
from .tickets import FAILED, RECONCILER, Conflict, Ticket, Unsupported

_LOG = logging.getLogger(__name__)

AUTO = "auto"
MANUAL = "manual"


class Control:
    """What people have set. In the mode `manual` nothing is switched but by hand, on the control API."""

    def __init__(self, context: Context, host: HostState) -> None:
        self.mode = AUTO
        self.pinned: str | None = None
        self._context = context
        self._host = host
        self._restored = False

    def check(self, model: str, desired: str, level: int | None, by: str, manual: bool) -> None:
        """Raise Conflict where the mode, the pin or an eviction is against it."""
        rivals = self._host.rivals(model)
        if self.pinned == model and desired != plan.ACTIVE:
            raise Conflict(f"{model} is pinned", "unpin it first")
        if self.mode == MANUAL and not manual and self.pinned != model:
            if by != RECONCILER:
                what = f"{self.pinned} is pinned" if self.pinned else "the mode is manual"
                raise Conflict(f"{what}, so nothing is switched but by hand", "set the mode to auto, or unpin")
            if desired == plan.ACTIVE and self.pinned in rivals:
                raise Conflict(f"{self.pinned} is pinned", "unpin it first")
        # Whoever is awake there makes room for the one that comes.
        loads = desired == plan.SLEEPING and self._host.loads_to_sleep(model, level)
        gone = rivals & self._host.awake() if desired == plan.ACTIVE or loads else set()
        if loads and self.pinned in gone:
            raise Conflict(f"{self.pinned} is pinned, and would make room while {model} loads", "unpin it first")
        # Who says at which level means it, whatever is set for other times.
        leaving = {model} if desired != plan.ACTIVE and level is None else set()
        for name in sorted((leaving | gone) & self._host.kept_awake()):
            raise Conflict(f"{name} never makes room (its eviction is retain, keep_running)", "set another one")

    def set(self, mode: str, pinned: str | None) -> None:
        """Set the mode, and which model is pinned in it."""
        if (self.mode, self.pinned) == (mode, pinned):
            return
        self.mode, self.pinned = mode, pinned
        self.save()
        self._context.bus.publish("mode", {"mode": mode, "pinned": pinned})
        self._context.changed.notify_all()

    def pin(self, ticket: Ticket) -> None:
        """Pin the model of a ticket. If its switch fails, the former mode and pin come back."""
        former, new = (self.mode, self.pinned), (MANUAL, ticket.model)
        if former == new:
            return
        self.set(*new)

        def ended(ticket: Ticket) -> None:
            if ticket.status == FAILED and (self.mode, self.pinned) == new:
                self.set(*former)

        ticket.when_ended.append(ended)

    def move_pin(self, ticket: Ticket) -> None:
        """In manual mode, what is made active by hand is pinned."""
        if self.mode == MANUAL and ticket.desired == plan.ACTIVE:
            self.pin(ticket)

    def check_pin(self, asked: list[Ticket]) -> None:
        """Whoever has switched past a pin, by the module or the command line, has ended it. `asked`: the queue."""
        models = [one.model for one in asked]
        if not self.pinned or self.pinned in models or self._host.desired.get(self.pinned) == plan.ACTIVE:
            return
        # Where there is no record any more, nobody has switched.
        if desired_state.recorded(self._context.config.stack_dir).get(self.pinned, plan.ACTIVE) != plan.ACTIVE:
            _LOG.warning("%s is pinned no more: another model was made active without this service", self.pinned)
            self.set(AUTO, None)

    # What outlives a restart.

    def restore(self) -> None:
        """Take over what was saved, as far as it makes sense."""
        self._restored = True
        saved = state_files.read(self._context.config.stack_dir, state_files.MANAGER)
        ids = [m.id for m in self._host.inventory.enabled]
        if saved.get("mode") in (AUTO, MANUAL):
            self.mode = saved["mode"]
            self.pinned = saved.get("pinned") if saved.get("pinned") in ids else None
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

    def save(self) -> None:
        """Save it. A disk on which that can't be done is said, and does no harm before the next restart."""
        if not self._restored:
            return  # a service that could not start knows nothing of what the one before was told
        content = {
            "mode": self.mode,
            "pinned": self.pinned,
            "evictions": self._host.evictions,
            "last_active": self._host.last_active,
        }
        stack_dir = self._context.config.stack_dir
        try:
            state_files.write(stack_dir, state_files.MANAGER, content)
        except OSError as error:
            path = state_files.path(stack_dir, state_files.MANAGER)
            _LOG.warning("%s can't be written (%s): %s", path, error.strerror, state_files.remedy(error))
