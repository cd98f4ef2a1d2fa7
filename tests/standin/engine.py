# SPDX-License-Identifier: MIT
"""The stand-in's engine: scheduler, sleep state and VRAM, as vLLM's engine core has them.

Read against v1/engine/core.py and the executors of vLLM 0.11 and 0.32. Two things are kept apart
there, and here: the scheduler may be paused, and memory (tags `weights` and `kv_cache`) may be
asleep. `is_sleeping` is true if either holds, so it is already true while a sleep with mode=wait
lets running requests finish. Before 0.17 the scheduler could not be paused: whatever comes runs,
and on a GPU the engine dies of it. What else differs from version to version is in family.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from .gpu import GpuHost, OutOfMemory
from .settings import Settings

TAGS = ("weights", "kv_cache")
SECONDS_FROM_DEATH_TO_EXIT = 0.5
WITHOUT_DRAFT_WEIGHTS = ("ngram", "suffix")
VOCABULARY = (
    "a about after all and any are as at be because been before but by can come could day do even find first for"
    " from get give go good have here how if in into it just know like look make many may more most much new no not"
    " now of on one only or other our out over people place say see should so some such take tell than that the"
    " their them then there these they thing think this time to two up use very want way we well what when which"
    " who will with work would year you"
)
WORDS = VOCABULARY.split()


class EngineDead(Exception):
    """The engine has died, before or during the call."""


@dataclass(eq=False)
class Generation:
    """One request that the engine has."""

    prompt: str
    wanted: int
    finish_with: str = "length"
    wrong_text: bool = False  # a fault
    ids: int = 0  # of how many token ids the prompt is, where it is not of words
    adapter: str = ""  # the path of the LoRA adapter that it is for
    pooled: bool = False  # what is wanted are numbers: all of them come of one step
    words: list[str] = field(default_factory=list)  # of the whole answer, once it has begun
    tokens: int = 0
    started: bool = False
    preempted: bool = False  # by a sleep with mode=keep, until the wake
    finish: str = ""

    @property
    def prompt_tokens(self) -> int:
        """A word is a token, and there is one for the beginning."""
        return self.ids or len(self.prompt.split()) + 1

    @property
    def text(self) -> str:
        """What has been generated."""
        return "".join(self.words[: self.tokens])


class Engine:
    """What answers the HTTP layer's questions."""

    def __init__(self, settings: Settings, host: GpuHost) -> None:
        self.settings = settings
        self.family = settings.family
        self.host = host
        self.dead = False
        self.paused = ""  # "", "new" (running ones go on) or "all"
        self.asleep: set[str] = set()
        self.level = 0  # that really holds
        self.leaked_gb = 0.0  # never given back, more with each sleep
        self.keeps_seconds = 0.0  # a fault of the next sleep: how long it keeps its memory
        self.weights_right = True
        # Faults: what a wake is to do to the LoRA adapters, and what the last one has done: "", "lose" or "swap".
        self.wake_harms_adapters = ""
        self.adapters_are = ""
        self.adapters = dict(settings.adapters)  # name -> path
        self.reported_sleep = (0, 0)  # (sleeping, level) as the gauge says: the level that was asked for
        self.door_shut = False  # before 0.17: what comes is held before the engine knows of it
        self.held = 0
        self.when_idle: Callable[[], None] | None = None  # called once, when there are no more requests
        self.generations: list[Generation] = []
        # Real gauges change when the scheduler steps, so those of a paused engine stay as they were.
        self.gauges = (0, 0)
        self.finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0}
        self.token_totals = [0, 0]
        self.drafts = [0.0, 0.0]  # drafted and accepted tokens
        self.drafts_right = True
        # The engine core handles one call at a time: while memory is moved, is_sleeping waits too.
        self._core = asyncio.Lock()
        self._door_lock = asyncio.Lock()
        self._waiters: set[asyncio.Future[None]] = set()

    # ---- sleep and wake -------------------------------------------------------------------

    async def sleep(self, level: int, mode: str, gauge: bool = True) -> None:
        """Put the engine to sleep; returns when it is so. Without `gauge` the gauge is not told."""
        self.check_alive()
        if self.family.old:
            # There are no modes, and level 0 is a sleep like another.
            await self._sleep_memory_locked(level)
            self.check_alive()
            self.reported_sleep = (1, level)
            return
        async with self._core:
            self.check_alive()
            if mode == "abort":
                for generation in self.generations:
                    generation.finish = "abort"
                self.gauges = (0, 0)
            self.paused = "all" if mode == "keep" else "new"
            if mode == "keep" and level >= 1:
                # Clearing the caches takes their blocks: they start over when the engine wakes.
                for generation in self._running():
                    generation.preempted = True
            self._notify()
            draining = mode == "wait" and bool(self._running())
            if not draining and level >= 1:
                await self._sleep_memory(level)
        if draining:
            while self._running():
                await self._change()
            # A wake in the meantime does not take this back: vLLM goes to sleep all the same.
            if level >= 1:
                await self._sleep_memory_locked(level)
        self.check_alive()
        if gauge:
            self.reported_sleep = (1, level)

    async def wake_up(self, tags: list[str] | None) -> bool:
        """Wake what the tags name, or all; tell whether all is awake."""
        self.check_alive()
        return await self._wake_locked(tags)

    async def is_sleeping(self) -> bool:
        """Paused or without memory; waits while memory is moved."""
        async with self._core:
            pass
        self.check_alive()
        return bool(self.paused or self.asleep)

    async def pause(self, mode: str) -> None:
        """Hold what comes, until resume(); returns when what runs has ended (wait) or was ended (abort)."""
        if not self.family.holds_at_the_door:
            await self.sleep(0, mode, gauge=False)
            return
        async with self._door():
            self.check_alive()
            if self.door_shut:
                return
            self.door_shut = True
            if mode == "abort":
                for generation in self.generations:
                    generation.finish = "abort"
                self._notify()
            while self.generations and not self.dead:
                await self._change()
            self.check_alive()

    async def resume(self) -> None:
        """Let what is held go on."""
        async with self._door():
            self.check_alive()
            self.door_shut = False
            if not self.family.holds_at_the_door:
                self.paused = ""
                for generation in self.generations:
                    generation.preempted = False
            self._notify()

    async def is_paused(self) -> bool:
        """Whether what comes is held, by whatever pauses."""
        async with self._door():
            return bool(self.door_shut or self.paused)

    def _door(self) -> contextlib.AbstractAsyncContextManager[None]:
        return self._door_lock if self.family.locks_the_door else contextlib.nullcontext()

    async def reset_prefix_cache(self) -> bool:
        """Fails while requests hold blocks."""
        async with self._core:
            self.check_alive()
            return not self._running()

    async def collective_rpc(self, method: str) -> list[None]:
        """Call a method on every worker; of those only reload_weights matters here."""
        async with self._core:
            self.check_alive()
            if method not in ("reload_weights", "check_health"):
                raise RuntimeError(
                    "Call to collective_rpc method failed: Worker failed with error "
                    f"''Worker' object has no attribute '{method}'', please check the stack trace above for the root "
                    "cause"
                )
            if method == "reload_weights":
                if self._memory_is_gone("weights"):
                    self.die("CUDA error: an illegal memory access was encountered (weights, no memory)")
                    raise EngineDead
                self.weights_right = True
                self.drafts_right |= self.settings.reloads_drafts
            return [None] * len(self.settings.gpus)

    async def _sleep_memory_locked(self, level: int) -> None:
        async with self._core:
            await self._sleep_memory(level)

    async def _sleep_memory(self, level: int) -> None:
        if "weights" in self.asleep or (self.asleep and not self.family.sleeps_from_half_awake):
            say("WARNING", "abstract.py:384", "Executor is already sleeping.")
            return
        seconds = self.settings.sleep_seconds_2 if level == 2 else self.settings.sleep_seconds
        if seconds:
            await asyncio.sleep(seconds)
        if self.dead:
            return
        self.asleep = set(TAGS)
        self.level = level
        # Without --enable-sleep-mode the calls answer as usual, but nothing was allocated in a way that can be freed.
        if self.settings.sleep_mode:
            if level != 1:
                self.weights_right = False
                # Those of a draft model are gone too, and no version loads them again.
                method = (self.settings.speculative or {}).get("method")
                self.drafts_right = method in WITHOUT_DRAFT_WEIGHTS
            self.leaked_gb += self.settings.leak_gb
            if not self.keeps_seconds:
                self._let_go()
            elif self.keeps_seconds < math.inf:
                asyncio.get_running_loop().call_later(self.keeps_seconds, self._let_go)
            self.keeps_seconds = 0.0
        self.host.event("sleeping", level=level)
        say("INFO", "abstract.py:390", f"It took {seconds:.6f} seconds to fall asleep.")
        if self.family.old and self._running() and self.settings.sleep_mode:
            self.die("CUDA error: an illegal memory access was encountered (a running request, no memory)")

    def _let_go(self) -> None:
        self.host.hold(self.settings.asleep_gb + self.leaked_gb)

    async def _wake_locked(self, tags: list[str] | None) -> bool:
        async with self._core:
            self.check_alive()
            memory_tags = None if tags is None else [tag for tag in tags if tag != "scheduling"]
            if memory_tags is None or memory_tags:
                await self._wake_memory(memory_tags)
            if not self.asleep or not self.family.gauge_knows_half_awake:
                self.reported_sleep = (0, 0)
            if self.asleep and not self.family.wakes_the_scheduler_with_any_tag:
                return False
            self.paused = ""
            for generation in self.generations:
                generation.preempted = False
            self._notify()
            return not self.asleep

    async def _wake_memory(self, tags: Iterable[str] | None) -> None:
        if not self.asleep:
            say("WARNING", "abstract.py:396", "Executor is not sleeping.")
            return
        wanted = set(tags) if tags is not None else set(self.asleep)
        if not wanted <= self.asleep:
            say("WARNING", "abstract.py:401", f"Tag {min(wanted - self.asleep)} is not in sleeping tags {self.asleep}")
            return
        if self.family.old and tags is None and self.asleep != set(TAGS) and self.settings.sleep_mode:
            # The old allocator does not remember what it has mapped, and maps the rest and that again.
            self.die("CUDA error: invalid argument (memory that is awake was to be woken)")
            raise EngineDead
        self.host.event("waking", tags=sorted(wanted))
        still = self.asleep - wanted
        if self.settings.sleep_mode:
            share = (len(TAGS) - len(still)) / len(TAGS)
            try:
                awake = (self.settings.vram_gb - self.settings.asleep_gb) * share
                self.host.hold(self.settings.asleep_gb + awake + self.leaked_gb)
            except OutOfMemory as exc:
                self.die(
                    f"CUDA out of memory. GPU {exc.index} has a total capacity of {self.settings.gpu_total_gb:.2f} GiB "
                    f"of which {exc.free:.2f} GiB is free. CUDA Error: out of memory at cumem_allocator.cpp"
                )
                raise EngineDead from exc
        seconds = self.settings.wake_seconds_2 if self.level == 2 else self.settings.wake_seconds
        if seconds:
            await asyncio.sleep(seconds * len(wanted) / len(TAGS))
        self.check_alive()
        self.asleep = still
        if still:
            self.host.event("partly_awake", asleep=sorted(still), level=self.level)
        else:
            self.level = 0
            self.adapters_are = self.wake_harms_adapters or self.adapters_are
            self.wake_harms_adapters = ""
            self.host.event("awake", weights_right=self.weights_right)
        say("INFO", "abstract.py:408", f"It took {seconds:.6f} seconds to wake up tags {sorted(wanted)}.")

    # ---- generation -----------------------------------------------------------------------

    async def generate(self, generation: Generation) -> AsyncIterator[int]:
        """Yield how many tokens there are, whenever there are more; `generation.finish` says how it ended."""
        rate = self.settings.tokens_per_second
        # A short timer per token costs more than it shows: several tokens per turn at high rates.
        step = max(1, int(rate * 0.01)) if rate else generation.wanted
        loop = asyncio.get_running_loop()
        due = 0.0
        self.held += 1
        try:
            while self.door_shut:
                self.check_alive()
                await self._change()
        finally:
            self.held -= 1
        self.check_alive()  # a dead engine begins nothing
        self.generations.append(generation)
        self._step()
        self.host.event("request_start")
        try:
            while not generation.finish:
                self.check_alive()
                if generation.preempted or self.paused == "all" or (self.paused and not generation.started):
                    due = 0.0
                    await self._change()
                    continue
                if not generation.started:
                    if len(self._running()) >= self.settings.max_num_seqs:
                        await self._change()
                        continue
                    generation.started = True
                    self._step()
                if self._memory_is_gone("weights") or self._memory_is_gone("kv_cache"):
                    self.die("CUDA error: an illegal memory access was encountered (a request, no memory)")
                    raise EngineDead
                generation.words = generation.words or self._words(generation)
                if rate:
                    due = due or loop.time() + min(step, generation.wanted - generation.tokens) / rate
                    if loop.time() < due:
                        await self._change(due - loop.time())
                        continue
                    due = 0.0
                made = min(step, generation.wanted - generation.tokens)
                if not generation.tokens:
                    self.token_totals[0] += generation.prompt_tokens
                generation.tokens += made
                self.token_totals[1] += made
                self._count_drafts(made)
                if generation.tokens >= generation.wanted:
                    generation.finish = generation.finish_with
                yield generation.tokens
        finally:
            self.generations.remove(generation)
            self._step(finished=generation.started)
            self._notify()
            self.finished[generation.finish or "abort"] += 1
            self.host.event("request_end", finish=generation.finish or "lost", tokens=generation.tokens)
            if self.when_idle and not self.generations:
                # When that has been answered.
                asyncio.get_running_loop().call_later(0.1, self.when_idle)

    def _count_drafts(self, tokens: int) -> None:
        """Count what so many tokens took in drafts: each step gives the accepted ones and one more."""
        each = int((self.settings.speculative or {}).get("num_speculative_tokens", 0))
        accepted = each * self.settings.acceptance * self.drafts_right
        steps = tokens / (1 + accepted)
        self.drafts[0] += steps * each
        self.drafts[1] += steps * accepted

    def _words(self, generation: Generation) -> list[str]:
        """Return what this model answers: always the same, but something else while its weights are wrong."""
        right = self.weights_right and not generation.wrong_text
        model = self.settings.model + self._adapter_in_effect(generation.adapter)
        source = random.Random(f"{model}\0{generation.prompt}\0{'' if right else 'other weights'}")
        return [" " + word for word in source.choices(WORDS, k=generation.wanted)]

    def _adapter_in_effect(self, path: str) -> str:
        """Return which adapter's weights a request runs with that is for this one."""
        if not path or self.adapters_are == "lose":
            return ""
        if self.adapters_are == "swap":
            paths = sorted(self.adapters.values())
            return "\0" + paths[(paths.index(path) + 1) % len(paths)]
        return "\0" + path

    def numbers(self, asked: str, count: int, wrong: bool) -> list[float]:
        """Return a vector of length 1: always the same, but another while the weights are wrong."""
        right = self.weights_right and not wrong
        source = random.Random(f"{self.settings.model}\0{asked}\0{'' if right else 'other weights'}")
        values = [source.gauss(0, 1) for _number in range(count)]
        length = sum(value * value for value in values) ** 0.5
        return [value / length for value in values]

    # ---- life and death -------------------------------------------------------------------

    def die(self, cause: str) -> None:
        """Print the cause, free the memory, fail every request, and exit soon."""
        if self.dead:
            return
        self.dead = True
        say("ERROR", "core.py:1210", "EngineCore encountered a fatal error.")
        say("ERROR", "core.py:1210", f"torch.AcceleratorError: {cause}")
        self.host.end(cause)
        self._notify()
        asyncio.get_running_loop().call_later(SECONDS_FROM_DEATH_TO_EXIT, os._exit, 1)

    def check_alive(self) -> None:
        if self.dead:
            raise EngineDead

    def _memory_is_gone(self, tag: str) -> bool:
        return self.settings.sleep_mode and tag in self.asleep

    def _running(self) -> list[Generation]:
        return [generation for generation in self.generations if generation.started and not generation.preempted]

    def _step(self, *, finished: bool = False) -> None:
        """Bring the gauges up to date, if a real scheduler would make a step now."""
        # One step is all that numbers take, so that no step ends with such a request running.
        running = sum(not generation.pooled for generation in self._running())
        if not self.paused or finished or (running and self.paused == "new"):
            self.gauges = (running, sum(not generation.started for generation in self.generations))

    def _notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _change(self, timeout: float | None = None) -> None:
        """Wait until something has changed, or for so long."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout)
        finally:
            self._waiters.discard(waiter)


def say(level: str, place: str, message: str, process: str = "EngineCore") -> None:
    """Print a line as vLLM's logger does."""
    print(f"({process} pid={os.getpid()}) {level} {time.strftime('%m-%d %H:%M:%S')} [{place}] {message}", flush=True)
