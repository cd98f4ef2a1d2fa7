# SPDX-License-Identifier: MIT
"""What the service does unasked is only done if nobody has switched since it was decided."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import desired_state, status
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchingError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gpus import Gpu
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import HostLock, Wait

from .rules import Action


class Superseded(SwitchingError):
    """Somebody else has switched since this was decided, so it was not done."""


class GuardedLock(HostLock):
    """The host's lock for a switch that is only made if nobody has switched since it was decided.

    To look before asking for the lock would not do: whoever has it then may be about to record something else.
    """

    # Those that the switch concerns were closed before it was begun.
    closes_gates = False

    def __init__(self, stack_dir: str, still: Callable[[], bool], **parameters: Any) -> None:
        super().__init__(stack_dir, **parameters)
        self._still = still

    @contextlib.contextmanager
    def hold(
        self,
        purpose: str,
        seconds: float,
        wait: Wait,
        tell: Callable[[str], None] | None = None,
        gpus: Iterable[Gpu] = (),
        models: Iterable[str] = (),
    ) -> Iterator[None]:
        """Hold the lock. Raises Superseded if somebody has switched, and LockTimeout."""
        with super().hold(purpose, seconds, wait, tell, gpus, models):
            if not self._still():
                self.record_end({}, self.last_failed_at)  # it was no switch
                raise Superseded("somebody else has switched in the meantime: nothing was done")
            yield


def still_holds(action: Action, inventory: Inventory, stack_dir: str) -> bool:
    """Whether nobody has switched since the action was decided. To be asked under the host's lock."""
    return (
        desired_state.read(inventory, stack_dir) == action.recorded
        and status.read_last_switch(stack_dir) == action.last_switch
    )
