# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Whether sleeps have freed what they should, by one look at the GPUs after all of a stage, and what is recorded of it.

The look is the one that the wake after it needs anyway. What processes hold is asked for only where the free memory
does not settle it: after the first sleep of a start, where memory is missing, and where others have moved.
"""

from __future__ import annotations

import contextlib
import typing

from . import hardware, memory, odometer
from .gpus import Gpu as Name
from .gpus import gpu_text
from .host import Host
from .inventory import Model
from .memory import Need
from .odometer import Series
from .plan import SLEEP, Stage

Gpus = typing.Mapping[int, hardware.Gpu]

# Less than this share of what the same sleep freed before is too little; where nothing is known from before, less than
# that of the model's weights.
_LEAST_SHARE = 0.5
_LEAST_OF_WEIGHTS = 0.1
# Of less nothing is concluded.
_LEAST_GB = 1.0


class Found(typing.NamedTuple):
    """C(failed) says of models what their sleep did not free, C(over) of others that they hold more than they may."""

    failed: typing.Mapping[str, str] = {}
    over: typing.Mapping[str, str] = {}


class Freed:
    """What the sleeps of one switch free.

    C(kept) are those that have kept their memory, or may have: they need none when they are woken again. Who has slept
    is one of them until it is seen to have freed its memory: a stage that is broken off before that is rolled back.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.kept: set[str] = set()
        self._planned: dict[str, int] = {}
        self._before: dict[str, Need | None] = {}
        self._slept: dict[str, int] = {}
        self._gpus: Gpus | None = None

    def begin(self, stage: Stage) -> None:
        """Begin a stage: what a failed one has left is of no use."""
        self._planned = {step.model: step.level or 1 for lane in stage for step in lane if step.action == SLEEP}
        self._before, self._slept = {}, {}

    def before_drain(self, name: str) -> None:
        """Read what is free, where a sleep is planned of which it is not known what it frees."""
        if name in self._planned:
            self._read_before(name, self._planned[name])

    def before_sleep(self, name: str, level: int) -> None:
        """Read what is free, where it was not read before a drain: there was none, or this is not the level planned."""
        self.kept.discard(name)
        if name not in self._before:
            self._read_before(name, level)

    def _read_before(self, name: str, level: int) -> None:
        if str(level) not in self._levels(name):
            self._before[name] = memory.free_before_sleep(self.host.stack_dir, self.host.models[name])

    def after_sleep(self, name: str, level: int) -> None:
        """Note that a sleep is confirmed."""
        self._slept[name] = level
        self.kept.add(name)

    def _levels(self, name: str) -> typing.Collection[str]:
        """The levels at which it is known what a sleep frees, or is of no use to know."""
        stack_dir = self.host.stack_dir
        if not memory.remembered(stack_dir).get(name):
            return ()
        if memory.remembered_shared(stack_dir):
            return ("1", "2")
        return odometer.levels(stack_dir, name, self.host.proved_start(name))

    def read_gpus(self) -> Gpus | None:
        """The GPUs as they were looked at after the last stage, also in vain, and only once; else as they are now."""
        gpus, self._gpus = self._gpus, None
        return hardware.read_gpus() if gpus is None else gpus

    def forget_gpus(self) -> None:
        """Have the GPUs read anew: something is about to change on them."""
        self._gpus = None

    def has_kept(self, name: str, need: Need) -> bool:
        """Whether a sleeping server itself holds what is missing for its wake.

        Then its sleep has freed nothing, and was no switch's, or that of one that was cut off before it could see that.
        """
        gpus = hardware.read_gpus()
        if not gpus:
            return False
        held = hardware.read_held(gpus, self.host.lifecycles[name].pids())
        short = {called: gpu for called, gpu in hardware.named(gpus, need).items() if gpu.free_gb < need[called]}
        return all(held.get(gpu.index, 0.0) > need[called] * _LEAST_SHARE for called, gpu in short.items())

    def look(self, stage: Stage) -> Found:
        """Look at what the sleeps of a stage have freed, and record it. Never raises for what can't be known."""
        before, slept = self._before, self._slept
        self._gpus = None
        looks = []
        # Not at one that was woken again in its lane.
        names = [lane[-1].model for lane in stage if lane[-1].action == SLEEP and lane[-1].model in slept]
        known = memory.remembered(self.host.stack_dir) if names else {}
        for name in [name for name in names if before.get(name) or known.get(name)]:
            model = self.host.models[name]
            others = [self.host.models[lane[-1].model] for lane in stage if lane[-1].model != name]
            alone = not any(model.conflicts_with(other) for other in others)
            looks.append(_Look(self.host, model, slept[name], before.get(name), alone))
        looks = [one for one in looks if one.before or one.usual]
        self.kept -= slept.keys() - {one.model.id for one in looks}
        gpus = hardware.read_gpus() if looks else None
        if not gpus:
            self._gpus = {} if looks else None
            return Found()
        for one in looks:
            one.read(gpus)

        def freed() -> bool:
            nonlocal gpus
            wrong = [one for one in looks if one.failing()]
            if wrong:
                gpus = hardware.read_gpus() or gpus
                for one in wrong:
                    one.read(gpus or {})
            return not wrong

        # Memory is given back slowly at times.
        self.host.wait(freed, self.host.settings.probe_timeout_seconds)
        failed, over = {}, {}
        for one in looks:
            problem = one.settle()
            if not problem and not one.unsettled():
                self.kept.discard(one.model.id)
            if problem:
                failed[one.model.id] = problem
            elif odometer.over(one.series, self.host.settings.leak_limit_gb):
                over[one.model.id] = odometer.over(one.series, self.host.settings.leak_limit_gb)
        self._gpus = None if failed or over else gpus
        return Found(failed, over)


class _Look:
    """The look at one model that has just slept.

    C(before) is what was free before, None where that was not read; C(alone): nothing else of the stage has touched one
    of its GPUs.
    """

    def __init__(self, host: Host, model: Model, level: int, before: Need | None, alone: bool) -> None:
        self.host = host
        self.model, self.level, self.before, self.alone = model, level, before, alone
        self.start = host.proved_start(self.model.id)
        saved = odometer.read(host.stack_dir).get(self.model.id, Series())
        self.series = saved if saved.is_of(self.start) else Series()
        self.free: Need = {}
        self.gpus: Gpus = {}
        # What the model's processes hold, only of GPUs of which somebody tells; None where nobody has been asked.
        self.exact: Need | None = None
        self._asked = False

    @property
    def usual(self) -> Need:
        """What such a sleep has freed before."""
        return self.series.freed.get(str(self.level), {})

    @property
    def whole(self) -> bool:
        """Whether its GPUs have memory of their own and are not divided; of others nothing is concluded."""
        gpus = hardware.named(self.gpus, self.model.gpus).values()
        return bool(gpus) and not any(gpu.unified or gpu.divided for gpu in gpus)

    def read(self, gpus: Gpus) -> None:
        """Take what the GPUs tell."""
        self.gpus, self.exact = gpus, None
        self.free = {name: gpu.free_gb for name, gpu in hardware.named(gpus, self.model.gpus).items()}

    def freed(self) -> Need:
        """What the sleep has freed, as far as the free memory tells; rather too little than too much."""
        if self.before:
            return {name: gb - self.before[name] for name, gb in self.free.items() if name in self.before}
        totals = {name: gpu.total_gb for name, gpu in hardware.named(self.gpus, self.free).items()}
        woken = {**totals, **self.series.woken}
        return {name: self.usual[name] - (woken[name] - gb) for name, gb in self.free.items() if name in self.usual}

    def expected(self) -> Need:
        """What the sleep should free of each GPU, at the least."""
        if self.usual:
            share, whole = _LEAST_SHARE, self.usual
        else:
            share, whole = _LEAST_OF_WEIGHTS, self._weights()
        return {name: gb * share for name, gb in whole.items() if gb >= _LEAST_GB}

    def _weights(self) -> Need:
        """The weights on each GPU, as far as the inventory tells."""
        return dict.fromkeys(self.model.gpus, (self.model.weights_gb or 0.0) / len(self.model.gpus))

    def low(self) -> list[Name]:
        """The GPUs of which the sleep seems to have freed too little."""
        freed = self.freed()
        return [name for name, gb in self.expected().items() if name in freed and freed[name] < gb and self.whole]

    def failing(self) -> list[Name]:
        """The GPUs of which the sleep has freed too little, for all that is known."""
        exact = self._look_closely() if self.low() else {}
        # Once more: what was known from before may be of another start.
        return [name for name in self.low() if self._has_failed(name, exact)]

    def unsettled(self) -> bool:
        """Whether too little seems to be free, and nobody tells who has the rest."""
        return any(name not in (self.exact or {}) for name in self.low())

    def settle(self) -> str:
        """What the sleep has failed to free; "" where it has, or where that is unknown: then it is recorded."""
        failed = self.failing()
        if failed:
            return self._say(failed[0])
        if self.before:
            self._ask_start()
        reckoned = odometer.reckon(self.series, self.free)
        if self.whole and (reckoned is None or self._is_odd(reckoned)):
            self._look_closely()
            reckoned = odometer.reckon(self.series, self.free)
        self._record(reckoned)
        return ""

    def _is_odd(self, reckoned: Need) -> bool:
        """Whether what the server seems to hold is to be looked at before anything is concluded."""
        then = self.series.with_sleep(reckoned, self.free, self.series.fixed)
        return odometer.strays(self.series, reckoned) or bool(odometer.over(then, self.host.settings.leak_limit_gb))

    def _look_closely(self) -> Need:
        """What the model's own processes hold."""
        if self.exact is None:
            self._ask_start()
            held = hardware.read_held(self.gpus, self.host.lifecycles[self.model.id].pids())
            gpus = hardware.named(self.gpus, self.model.gpus)
            self.exact = {name: held[gpu.index] for name, gpu in gpus.items() if gpu.index in held}
        return self.exact

    def _ask_start(self) -> None:
        if self._asked:
            return
        self._asked, self.start = True, self.host.lifecycles[self.model.id].start_id()
        if not self.series.is_of(self.start):
            self.series = Series()  # somebody else has started it anew

    def _has_failed(self, name: Name, exact: Need) -> bool:
        """Whether too little was freed of a GPU that seems so: others may have taken it."""
        if name not in exact:
            # What was free at its wake, maybe hours ago, proves nothing.
            return bool(self.before) and self.alone
        whole = self.usual.get(name) or self._weights()[name]
        return exact[name] - self.series.last.get(name, 0.0) > whole * _LEAST_SHARE

    def _say(self, name: Name) -> str:
        exact, freed, because = self.exact or {}, self.freed().get(name, 0.0), ""
        if name in self.usual:
            because = f"such a sleep of it has freed {self.usual[name]:.1f} GB before"
            freed = self.usual[name] - exact[name] + self.series.last.get(name, 0.0) if name in exact else freed
        because = because or f"its weights take {self._weights()[name]:.1f} GB there"
        holds = f", and its processes still hold {exact[name]:.1f} GB" if name in exact else ""
        return (
            f"{self.model.id} sleeps at level {self.level}, but that has freed {max(0.0, freed):.1f} GB of "
            f"{gpu_text(name)}: {because}{holds}"
        )

    def _record(self, reckoned: Need | None) -> None:
        exact = self.exact or {}
        if self.before and self.alone and not self.low():
            freed = {name: max(0.0, gb) for name, gb in self.freed().items()}
            self.series = self.series._replace(freed={**self.series.freed, str(self.level): freed})
            # The wake will need as much. It only makes a later check sharper: no reason to fail a switch.
            with contextlib.suppress(OSError):
                memory.remember(self.host.stack_dir, self.model.id, freed, self.start, self.gpus)
        if not self.whole:
            return
        self.series = self.series._replace(start=self.start or self.series.start)
        if exact.keys() == self.free.keys():
            self.series = self.series.with_sleep(exact, self.free, exact)
        elif self.alone:
            gpus = hardware.named(self.gpus, self.free)
            held = reckoned or {name: gpu.total_gb - gpu.free_gb for name, gpu in gpus.items()}
            # Where it was asked for in vain, others may hold a part of that.
            fixed = self.series.fixed if self.exact is None else None
            self.series = self.series.with_sleep(held, self.free, fixed)
        odometer.record(self.host.stack_dir, {self.model.id: self.series})
