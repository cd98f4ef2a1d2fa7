# SPDX-License-Identifier: MIT
"""What differs between the versions of vLLM, as far as the cases of the contract know it: one table.

A case says with @where(trait=value) what it is about, and looks up in its server's family what it must see.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """The traits of one version."""

    # /sleep has mode=abort|wait|keep, and what comes to a sleeping server is held; else it is answered.
    modes: bool = False
    # Held requests are answered after `wake_up?tags=weights`, with what is in the weights.
    runs_half_awake: bool = False
    # /sleep and /wake_up answer JSON; else nothing.
    speaks: bool = False
    # The sleep gauge; and what it says after `wake_up?tags=weights`.
    gauge: bool = True
    gauge_half_awake: str = "awake"
    # /metrics tells how long sleeps and wakes took, and whether one is under way.
    times: bool = False
    # /reset_prefix_cache tells whether it did it; else it answers nothing.
    reset_tells: bool = False
    # /pause: there is "none"; it "drains" only; or it "sleeps", that is, is_sleeping says so too.
    pause: str = "sleeps"
    # What the model can't do is refused by a 200 with an error in it; else there is no such call.
    every_call: bool = False
    # LoRA adapters can be loaded at run time, and this has been seen; what older versions answer has not.
    adapters: bool = False
    # The statuses of /sleep with level=3, level=-1, level=x, mode=drain.
    wrong_sleeps: tuple[int, int, int, int] = (200, 200, 500, 200)


_0_11 = Family(gauge=False, pause="none", every_call=True)
_0_12 = replace(_0_11, gauge=True, pause="drains")
_0_16 = replace(_0_12, every_call=False)
_0_17 = replace(_0_16, modes=True, runs_half_awake=True, pause="sleeps", wrong_sleeps=(200, 200, 500, 500))
_0_20 = replace(_0_17, wrong_sleeps=(200, 200, 400, 500))
_0_29 = replace(_0_20, runs_half_awake=False, reset_tells=True)
_0_31 = replace(
    _0_29, speaks=True, times=True, adapters=True, gauge_half_awake="level", wrong_sleeps=(400, 400, 400, 400)
)

FAMILIES = {
    "0.11.0": _0_11,
    "0.12.0": _0_12,
    "0.16.0": _0_16,
    "0.17.1": _0_17,
    "0.20.2": _0_20,
    "0.29.0": _0_29,
    "0.32.0": _0_31,
}
