# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The servers of a host and their processes: what they are, and waiting for what they become."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import typing

from . import hardware, state_files
from .inventory import Inventory, Model, Switching
from .lifecycle import Lifecycle
from .lock import HostLock
from .plan import (
    ACTIVE,
    DISABLED,
    DRAIN,
    ERROR,
    LOADING,
    SLEEP,
    SLEEPING,
    START,
    STOPPED,
    WAKE,
    Observation,
)  # fmt: skip
from .redaction import Mask, secrets_of
from .server import Server

T = typing.TypeVar("T")
R = typing.TypeVar("R")

# Told of each step of a switch: C(event) is step_begun or step_ended, the other keys are those of Result's C(steps).
Observer = typing.Callable[[typing.Dict[str, typing.Any]], None]

# Waiting polls at once, and then never adds more than this share to the time already waited: a server that wakes within
# a second is noticed after 10 ms at most, one that loads for a minute after 0.6 s at most.
_POLL_FIRST_SECONDS = 0.01
_POLL_SHARE = 0.01
# However long it has been: a server that ends while it loads has to be noticed within seconds of that.
_POLL_LAST_SECONDS = 2.0
# Looking whether a process lives may cost a docker command, so it is done less often.
_PROCESS_LOOK_SECONDS = 0.5


class Host:
    """The servers and processes of an inventory's models, with the lock and the clock that go with them."""

    def __init__(
        self,
        inventory: Inventory,
        stack_dir: str,
        lock: HostLock,
        clock: typing.Callable[[], float],
        sleep: typing.Callable[[float], None],
        server: typing.Callable[[Model, Switching], Server],
        lifecycle: typing.Callable[[Model, str, Switching], Lifecycle],
        observer: Observer | None = None,
    ) -> None:
        self.inventory = inventory
        self.settings = inventory.switching
        self.stack_dir = stack_dir
        self.lock = lock
        self.clock = clock
        self.sleep = sleep
        self.observer = observer
        self.models = {m.id: m for m in inventory.models}
        self.servers = {m.id: server(m, self.settings) for m in inventory.models}
        self.lifecycles = {m.id: lifecycle(m, stack_dir, self.settings) for m in inventory.models}
        # What each was when it was looked at last.
        self.seen: dict[str, Observation] = {}
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=len(inventory.models))

    @functools.cached_property
    def mask(self) -> Mask:
        """What takes the secrets of the inventory out of a text. Whatever a server or a command says may have them."""
        return Mask(secrets_of(self.inventory.as_dict()))

    def close(self) -> None:
        """End the threads and connections."""
        self._pool.shutdown()
        for server in self.servers.values():
            server.close()

    def tell_step(self, event: str, record: typing.Mapping[str, typing.Any]) -> None:
        """Tell the observer, if there is one, that a step begins or has ended; from the thread that does it.

        What the observer makes of it never harms a switch.
        """
        if self.observer:
            with contextlib.suppress(Exception):
                self.observer({"event": event, **record})

    def observe(self, models: typing.Iterable[Model], count_requests: bool = False) -> dict[str, Observation]:
        """What the given models are, asked all at once; the others count as disabled."""

        def look(model: Model) -> Observation:
            seen = self.servers[model.id].observe(count_requests)
            if seen.state in (ACTIVE, SLEEPING):
                return self._with_journal(model, seen)
            process = self.lifecycles[model.id].process()
            running = process.running
            if seen.state == LOADING and running is False:
                # Its process may just have ended, and its last connections with it: then connection refused now.
                seen = self.servers[model.id].observe(count_requests)
            if seen.remedy:
                seen = dataclasses.replace(seen, remedy=seen.remedy.format(log=self.lifecycles[model.id].log_command))
            begun, was_active = self.lock.begun.get(model.id), model.id in self.lock.active_since
            if seen.state == STOPPED and running and self.was_proved(model):
                problem = f"{model.id}'s process is running but refuses connections, although it had been loaded"
                return Observation(
                    ERROR, problem=problem, dead=True, uncounted=True, process=True, was_serving=was_active
                )
            listens = seen.state == LOADING and not seen.dead  # and says itself that it is not ready
            if listens and running is not False and self.was_proved(model):
                problem = f"{model.id}'s engine is dead (/health answers 503), although it had been loaded"
                return Observation(ERROR, problem=problem, dead=True, process=running, was_serving=was_active)
            if (seen.state in (STOPPED, LOADING) and running) or (listens and running is None):
                comes = begun is not None and begun.action in (START, WAKE)
                return Observation(LOADING, was_serving=comes or was_active)
            if seen.state == STOPPED and process.remains:
                problem = f"{model.id}'s server ended, but processes that it started are still running"
                return Observation(ERROR, problem=problem, dead=True, process=True)
            known = seen.process or running
            unknown = seen.unknown or (seen.state == LOADING and known is not False)
            if unknown and known is False:
                # Nothing of ours runs, so it is somebody else; unless the last that is known of it is that it served.
                known, unknown = (None, True) if was_active or begun else (False, False)
            return dataclasses.replace(
                seen,
                state=ERROR if seen.state == LOADING else seen.state,
                dead=(seen.dead or seen.unknown) and not unknown,
                unknown=unknown,
                process=known,
                was_serving=unknown and (was_active or (begun is not None and begun.action in (DRAIN, SLEEP))),
            )

        models = tuple(models)
        seen = dict(zip((m.id for m in models), self.each(look, models)))
        seen.update({n: dataclasses.replace(o, problem=self.mask(o.problem)) for n, o in seen.items() if o.problem})
        self.seen.update(seen)
        return {m.id: seen.get(m.id, Observation(DISABLED)) for m in self.inventory.models}

    def _with_journal(self, model: Model, seen: Observation) -> Observation:
        """What a server that answers is, with what was begun on it and not proved."""
        begun = self.lock.begun.get(model.id)
        action = begun.action if begun else ""
        if seen.state == SLEEPING and seen.level == 0:
            if action in (DRAIN, SLEEP):
                # Paused by a switch that was cut off; after a drain nothing else is still to come.
                return dataclasses.replace(seen, doubtful=False, problem="", held=action == DRAIN, was_serving=True)
            if seen.doubtful:
                seen = dataclasses.replace(seen, level=None)
        if action == WAKE:
            return dataclasses.replace(seen, doubtful=True, problem="its last wake was not confirmed")
        # Before 0.17 a pause is not seen.
        return dataclasses.replace(seen, held=True) if seen.state == ACTIVE and action == DRAIN else seen

    def proved_start(self, name: str) -> str:
        """The start of a model's server that was proved last, which costs no command; empty where none is known."""
        proof = state_files.models(self.stack_dir, state_files.PROOF).get(name)
        return str(proof.get("start") or "") if isinstance(proof, dict) else ""

    def was_proved(self, model: Model) -> bool:
        """Whether the start of its server that runs now was proved before; not where nobody knows which start it is."""
        start = self.proved_start(model.id)
        return bool(start) and start == self.lifecycles[model.id].start_id()

    def record_proof(self, name: str, start: str, at: float | None) -> None:
        """Record that this start of a model's server is proved; with None that it is to be proved once more."""
        proof = {"start": start, "at": at}
        try:
            state_files.write_model(self.stack_dir, state_files.PROOF, name, proof)
        except OSError:
            # It is proved once more then. So are others, while a proof that stays would be believed.
            with state_files.changing, contextlib.suppress(OSError):
                if at is None:
                    state_files.write(self.stack_dir, state_files.PROOF, {"models": {name: proof}})

    def forget_proof(self, name: str) -> None:
        """Record that what is awake after this has to be proved, whoever wakes it."""
        try:
            proof = state_files.models_of(state_files.read_or_raise(self.stack_dir, state_files.PROOF)).get(name)
        except OSError:
            proof = {"at": 0.0}  # maybe
        if isinstance(proof, dict) and proof.get("at") is not None:
            self.record_proof(name, str(proof.get("start") or ""), None)

    def report(self) -> tuple[dict[str, Observation], dict[str, float | None]]:
        """What all models are, with their requests, and the GPU memory that each one's server holds, in GB.

        None where nobody can tell, and where no server runs.
        """
        asked = self._pool.submit(hardware.read_used)  # meanwhile: nvidia-smi may take its time
        seen = self.observe(self.inventory.enabled, count_requests=True)
        used = asked.result()

        def held(model: Model) -> float | None:
            told = [used[pid] for pid in self.lifecycles[model.id].pids() if pid in used]
            known = [gb for gb in told if gb is not None]
            return round(sum(known), 2) if known and len(known) == len(told) else None

        up = [m for m in self.inventory.enabled if used and seen[m.id].state != STOPPED]
        return seen, dict(zip((m.id for m in up), self.each(held, up)))

    def each(self, function: typing.Callable[[T], R], items: typing.Sequence[T]) -> list[R]:
        """The results of the function for all items, worked on side by side; all end before an error is raised."""
        others = [self._pool.submit(function, item) for item in items[1:]]
        interrupted: KeyboardInterrupt | None = None
        try:
            first = [function(item) for item in items[:1]]  # here: a thread less to start
        finally:
            # Whoever interrupts this: nothing may be rolled back, and the lock not be let go, while others work.
            while not all(future.done() for future in others):
                try:
                    concurrent.futures.wait(others)
                except KeyboardInterrupt as error:
                    interrupted = error
        if interrupted:
            raise interrupted
        return first + [future.result() for future in others]

    def wait(
        self, done: typing.Callable[[], bool], seconds: float, look: typing.Callable[[], None] | None = None
    ) -> bool:
        """Poll until done() or the seconds are over; whether it is done. look() is called now and then."""
        started = self.clock()
        next_look = started
        while not done():
            now = self.clock()
            waited = now - started
            if waited >= seconds:
                return False
            if look and now >= next_look:
                look()
                next_look = now + _PROCESS_LOOK_SECONDS
            pause = min(max(_POLL_FIRST_SECONDS, waited * _POLL_SHARE), _POLL_LAST_SECONDS)
            self.sleep(min(pause, self.settings.health_check_interval_seconds, seconds - waited))
        return True

    def last_lines(self, model: Model) -> list[str]:
        """The end of the log of a model's server, without secrets; nothing where there is none."""
        # vLLM writes its arguments into its log, and this goes to terminals and other logs.
        return [self.mask(line) for line in self.lifecycles[model.id].last_lines()]
