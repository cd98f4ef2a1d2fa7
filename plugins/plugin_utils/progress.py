# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said before models are loaded, and when they are."""

from __future__ import annotations

import threading
import time
import typing

from ansible_collections.homegpt.vllm.plugins.plugin_utils.live import say

# After how many seconds it is said that the loading goes on; then each minute.
_STILL = (10, 20, 40, 60)
_IS = {"active": "active", "sleeping": "asleep"}


class Progress:
    """The loading of one batch of a host's models; C(batches) are all of them in their order."""

    def __init__(self, host: str, batches: list[list[str]], models: list[str], state: str | None) -> None:
        self.host = host
        self.models = models
        self.state = _IS.get(state or "active", state)
        order = [model for one in batches for model in one]
        self.numbers = [order.index(model) + 1 for model in models]
        self.count = len(order)
        later = [one for one in batches if order.index(one[0]) >= max(self.numbers)]
        self.next = later[0] if later else []
        self.began = time.monotonic()
        self.ended = threading.Event()

    def begin(self) -> None:
        """Say what begins."""
        where = f"{', '.join(map(str, self.numbers))} of {self.count}"
        say([f"{self.host}: loading {' and '.join(self.models)} ({where}) ..."])
        threading.Thread(target=self._go_on, daemon=True).start()

    def _go_on(self) -> None:
        count = 0
        while True:
            after = _STILL[count] if count < len(_STILL) else 60 * (count - len(_STILL) + 2)
            if self.ended.wait(max(0.0, self.began + after - time.monotonic())):
                return
            say([f"{self.host}: still loading {' and '.join(self.models)}, {after} s"])
            count += 1

    def end(self, result: typing.Mapping[str, typing.Any]) -> None:
        """Say how each model fared, and what comes next."""
        self.ended.set()
        lines = [f"{self.host}: {self._said(model, result)}" for model in self.models]
        if self.next:
            lines[-1] += f"; next: {' and '.join(self.next)}"
        say(lines)

    def _said(self, model: str, result: typing.Mapping[str, typing.Any]) -> str:
        taken = time.monotonic() - self.began
        steps = [step for step in result.get("steps", ()) if step["model"] == model]
        state = (result.get("models") or {}).get(model, {}).get("state")
        if _IS.get(state, state) != self.state:
            # The causes of several are apart in the report at the end.
            cause = str(result.get("msg") or "").split("\n", maxsplit=1)[0] if len(self.models) == 1 else ""
            return f"{model} FAILED after {taken:.1f} s" + (f": {cause}" if cause else "")
        if not steps:
            return f"{model} is {self.state} already"
        seconds = sum(step["seconds"] or 0 for step in steps) if len(self.models) > 1 else taken
        how = "loaded" if "start" in [step["action"] for step in steps] else "ready"
        return f"{model} is {how} and {self.state}, {seconds:.1f} s"
