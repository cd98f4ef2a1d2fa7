# SPDX-License-Identifier: MIT
"""What all parts of a manager work with."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from .config import Config
from .events import Bus
from .history import History


@dataclasses.dataclass(frozen=True)
class Context:
    """The settings, who is told and what is kept. `clock` counts seconds, `now` tells them since 1970.

    `switcher` makes the engine. `changed` is the manager's lock, of all that its parts know of the host and of the
    queue. Whoever waits with it is woken where something in the queue has changed.
    """

    config: Config
    history: History
    bus: Bus
    clock: Callable[[], float]
    now: Callable[[], float]
    switcher: Callable[..., Switcher]
    changed: threading.Condition = dataclasses.field(default_factory=lambda: threading.Condition(threading.RLock()))
