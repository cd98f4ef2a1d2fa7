# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The canaries of a model's LoRA adapters: what each answered when it was known good, compared after a wake.

A wake can lose an adapter without any call failing: its route then answers as the bare model (vLLM issue 53888). A
restart loses those that were loaded at run time; they are loaded again. Imported only for a server that lists adapters,
or whose record has some.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing

from . import canary
from .client import printable
from .errors import Refused, ServerError, Unresponsive, WrongAdapter
from .inventory import Model
from .kinds import KINDS, Reply
from .server import Server

# What all answers that are recorded before a sleep may take together: a switch waits for them.
SECONDS_BEFORE_SLEEP = 5.0
# So many are named in one message; a server may have thousands.
_MOST_NAMED = 10

T = typing.TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The answer of one adapter, and that of the bare model C(base) at that time.

    C(start) is the start of the server that gave it last, empty where it is not known; C(own) says that the server
    lists it as soon as it is started. C(suspect) and C(renewed) are as in the record of the model.
    """

    path: str
    text: str
    base: str
    reproducible: bool
    start: str
    recorded: str
    own: bool = False
    suspect: bool = False
    renewed: bool = False

    def is_undecidable(self, kind: str) -> bool:
        """Whether it answers as the bare model does, so that its loss would not show."""
        return Reply(kind, self.text).is_as(kind, self.base)


class _Look:
    """One look at the adapters of a server: what is known of them, what will be, and what is to be said."""

    def __init__(self, server: Server, model: Model, stack_dir: str, start: str, record: canary.Record) -> None:
        self.server = server
        self.model = model
        self.stack_dir = stack_dir
        self.start = start
        self.record = record
        self.known = known_of(record)
        self.made = dict(self.known)
        self.loaded: set[str] = set()
        self.right: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.wrong: list[str] = []
        self.until = time.monotonic() + server.switching.request_timeout_seconds

    def in_time(self, items: typing.Collection[T]) -> typing.Iterator[T]:
        """The items, as long as a wake may wait for them; the rest of them are warned of."""
        for done, item in enumerate(items):
            if time.monotonic() >= self.until:
                self.warnings.append(
                    f"{len(items) - done} of {len(items)} adapters of {self.model.id} were not verified within "
                    f"{self.server.switching.request_timeout_seconds:g} s (request_timeout_seconds)"
                )
                return
            yield item

    def name(self, adapter: str) -> str:
        """An adapter, for messages."""
        return f"{self.model.id}'s adapter {printable(adapter)}"

    def is_of_another_start(self, adapter: Adapter) -> bool:
        """Whether its server is known to have been started since."""
        return "" not in (self.start, adapter.start) and self.start != adapter.start

    def is_current(self, adapter: Adapter, path: str) -> bool:
        """Whether it is an answer of this adapter, on the model as it is now."""
        if adapter.path != path:
            return False
        return Reply(self.record.kind, adapter.base).is_as(self.record.kind, self.record.text)

    def record_anew(self, adapter: str, path: str, own: bool, told: Reply | None = None, until: float = 0.0) -> None:
        """Ask twice and remember the answer; C(until) is when that has to be over, by the monotonic clock.

        What one adapter refuses is only warned of: the model and the others are well.
        """
        kind = self.record.kind
        try:
            told = told or self.server.route_canary(adapter, kind, seconds_until(until))
            again = self.server.route_canary(adapter, kind, seconds_until(until))
        except Refused as error:
            self.forget(adapter)
            self.warnings.append(f"{self.name(adapter)} does not answer, so nothing is recorded of it: {error}")
            return
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        made = Adapter(path, told.text, self.record.text, again.is_as(kind, told.text), self.start, now, own)
        self.made[adapter] = made
        but = "" if made.reproducible else ", but a second answer differed"
        self.notes.append(f"adapter {printable(adapter)} recorded{but}")
        if made.is_undecidable(kind):
            self.warnings.append(
                f"{self.name(adapter)} answers the fixed call as the bare model does, so that its loss would not be "
                "noticed at a wake"
            )

    def load_again(self, adapter: str, known: Adapter) -> bool:
        """Load what was loaded at run time before a restart; whether it is served again."""
        try:
            self.server.load_adapter(adapter, known.path)
        except ServerError as error:
            self.forget(adapter)
            self.warnings.append(
                f"{self.name(adapter)} was lost by a start of the server and could not be loaded again ({error}): load "
                f"it from {printable(known.path)}, or add it to lora_modules in the model's args"
            )
            return False
        self.loaded.add(adapter)
        self.notes.append(f"adapter {printable(adapter)} loaded again")
        return True

    def forget(self, adapter: str) -> None:
        """Have nothing recorded of it."""
        self.made.pop(adapter, None)

    def forget_unlisted(self, adapter: str) -> None:
        """The same for one that was removed from a server that was not started since."""
        self.forget(adapter)
        self.notes.append(f"adapter {printable(adapter)} is not listed any more")

    def compare(self, adapter: str, known: Adapter, came: str) -> None:
        """Compare what a route answers with what is known of it."""
        kind = self.record.kind
        own = known.own or (came != canary.WOKEN and adapter not in self.loaded)
        try:
            told = self.server.route_canary(adapter, kind)
        except Refused as error:
            self.refuse(adapter, known, f"{self.name(adapter)} does not answer: {error}", came, certain=True)
            return
        if told.is_as(kind, known.text):
            self.made[adapter] = dataclasses.replace(known, start=self.start, own=own, suspect=False, renewed=False)
            self.right.append(adapter)
            return
        differs = (
            f"{self.name(adapter)} answers the fixed {canary.prompt_of(kind)} with {self._whose(told, adapter)}, not "
            f"with {canary.short(known.text)} as recorded on {known.recorded}"
        )
        by_intent = came == canary.STARTED or (came == canary.RESTARTED and known.renewed)
        # What was recorded as the answer of the bare model may have been that of an adapter that was lost already.
        if (by_intent and not known.suspect) or (came != canary.WOKEN and known.is_undecidable(kind)):
            self.record_anew(adapter, known.path, own, told)
            self.warnings.append(f"{differs}; the server was started since then, so the new answer was recorded")
        else:
            self.refuse(adapter, known, differs, came)

    def _whose(self, told: Reply, adapter: str) -> str:
        kind = self.record.kind
        if told.is_as(kind, self.record.text):
            return "the answer of the bare model"
        for other, known in self.known.items():
            if other != adapter and told.is_as(kind, known.text):
                return f"the answer of {printable(other)}"
        return canary.short(told.text)

    def refuse(self, adapter: str, known: Adapter, what: str, came: str, certain: bool = False) -> None:
        """Have the proof fail, or warn, as the model's canary says; C(certain) where it is no matter of words."""
        if self.model.canary == "enforce" or (self.model.canary == "auto" and (certain or known.reproducible)):
            renewed = came == canary.WOKEN and self.is_of_another_start(known)
            self.made[adapter] = dataclasses.replace(
                known, suspect=known.suspect or not renewed, renewed=known.renewed or renewed
            )
            self.wrong.append(what)
        else:
            self.warnings.append(f"{what} (canary)")

    def end(self) -> canary.Verdict:
        """Write down what is known now; raises WrongAdapter, and OSError where that can't be written."""
        # A full disk makes no answer right.
        with contextlib.suppress(*([OSError] if self.wrong else [])):
            if self.made != self.known:
                made = {name: dataclasses.asdict(one) for name, one in self.made.items()}
                canary.write(self.model, self.stack_dir, dataclasses.replace(self.record, adapters=made))
        if self.wrong:
            raise WrongAdapter(f"{_joined(self.wrong)} (canary)")
        if self.right:
            same = [printable(one) for one in self.right if self.known[one].is_undecidable(self.record.kind)]
            count = f"{len(self.right)} adapters answer" if len(self.right) > 1 else "1 adapter answers"
            told = f"{count} as recorded" + (f" ({_joined(same, ', ')}: as the bare model does)" if same else "")
            self.notes.insert(0, told)
        return canary.Verdict(_joined(self.notes), _joined(self.warnings))


def _joined(texts: typing.Sequence[str], between: str = "; ") -> str:
    """The texts as one, of which not all are shown where there are many."""
    more = len(texts) - _MOST_NAMED
    return between.join([*texts[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def seconds_until(until: float) -> float | None:
    """The seconds that are left, None for no end. Raises Unresponsive where there are none."""
    left = until - time.monotonic() if until else None
    if left is not None and left <= 0:
        raise Unresponsive(f"they took longer than {SECONDS_BEFORE_SLEEP:g} s")
    return left


def known_of(record: canary.Record) -> dict[str, Adapter]:
    """What is recorded of the adapters; what can't be read is left out."""
    found = {}
    for name, saved in record.adapters.items():
        with contextlib.suppress(TypeError):
            one = Adapter(**saved)
            if all(isinstance(text, str) for text in (one.path, one.text, one.base, one.start)):
                found[name] = one
    return found


def prove(
    server: Server, model: Model, stack_dir: str, start: str, came: str, before: typing.Mapping[str, str] | None
) -> canary.Verdict:
    """Compare the answers of a model's adapters with the recorded ones, when its own has been.

    C(before) is what the server listed before this switch woke it, None where nobody knows; the rest is as in
    C(canary.prove). Raises WrongAdapter.
    """
    record = canary.read(model, stack_dir)
    if record is None or record.kind not in KINDS:
        return canary.Verdict("")
    look = _Look(server, model, stack_dir, start, record)
    listed = server.list_adapters()
    for name in look.in_time([name for name in look.known if name not in listed]):
        known = look.known[name]
        if came != canary.WOKEN or look.is_of_another_start(known):
            if known.own:
                look.forget(name)
                look.warnings.append(
                    f"{look.name(name)} is not served any more since the server was started: if that is not intended, "
                    "add it to lora_modules in the model's args"
                )
            elif look.load_again(name, known):
                listed[name] = known.path
        elif before is not None and name not in before:
            look.forget_unlisted(name)
        else:
            look.refuse(name, known, f"{look.name(name)} is missing from /v1/models since the wake", came, certain=True)
    for name, path in look.in_time(listed.items()):
        answer = look.known.get(name)
        if answer is not None and look.is_current(answer, path):
            look.compare(name, answer, came)
        elif came == canary.WOKEN:
            look.notes.append(f"adapter {printable(name)} is not recorded yet")
        else:
            look.record_anew(name, path, own=name not in look.loaded)
    return look.end()


def record(server: Server, model: Model, stack_dir: str, start: str) -> canary.Verdict:
    """Remember what all adapters answer now; those that only a restart has lost are loaded again first."""
    made = canary.read(model, stack_dir)
    if made is None:
        return canary.Verdict("")
    look = _Look(server, model, stack_dir, start, made)
    listed = server.list_adapters()
    for name, known in look.known.items():
        if name in listed:
            continue
        if not known.own and look.is_of_another_start(known) and look.load_again(name, known):
            listed[name] = known.path
        else:
            look.forget(name)
    for name, path in listed.items():
        before = look.known.get(name)
        look.record_anew(name, path, own=before is not None and before.own)
    return look.end()


def before_sleep(server: Server, model: Model, stack_dir: str, start: typing.Callable[[], str]) -> canary.Verdict:
    """Remember what adapters answer that came since the model was proved, and forget those that went.

    Of an awake server, with what it has listed when this switch looked. Only while the model itself answers as
    recorded, and no longer than SECONDS_BEFORE_SLEEP; what fails here fails no switch. C(start) tells which start of
    the server it is; asking may cost a docker command.
    """
    made, listed = canary.read(model, stack_dir), server.adapters
    if made is None or listed is None or made.suspect or made.kind not in KINDS:
        return canary.Verdict("")
    look = _Look(server, model, stack_dir, "", made)
    known = look.known
    new = [name for name, path in listed.items() if name not in known or not look.is_current(known[name], path)]
    gone = [name for name in known if name not in listed]
    if not new and not gone:
        return canary.Verdict("")
    until = time.monotonic() + SECONDS_BEFORE_SLEEP
    look.start = start()
    for name in gone:
        # What a restart has lost was not removed by intent.
        if not look.is_of_another_start(known[name]):
            look.forget_unlisted(name)
    try:
        if new and not server.route_canary("", made.kind, seconds_until(until)).is_as(made.kind, made.text):
            new = []
        for name in new:
            look.record_anew(name, listed[name], own=False, until=until)
    except ServerError as error:
        look.notes.append(f"not all adapters could be recorded: {error}")
    try:
        return look.end()
    except OSError as error:
        return canary.Verdict("", f"the adapters of {model.id} could not be recorded: {error}")
