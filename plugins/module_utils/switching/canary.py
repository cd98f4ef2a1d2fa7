# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The canary: the answer to a fixed greedy prompt, recorded when a server was started and compared after a wake.

Of a server that completes no text it is the answer to another fixed call (C(kinds)); numbers are compared with room
for rounding.

A wake can go wrong without any call failing: weights that were not loaded again, or come back corrupted, give fluent
nonsense behind a 200 (vLLM issues 16564, 29341, 25800).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import typing

from . import state_files
from .errors import WrongAnswer
from .inventory import Model
from .kinds import TEXT, Reply
from .redaction import Mask, is_secret_name, secrets_of
from .server import Server
from .texts import map_text

# How a server that is asked came to be awake: by a wake of this switch, or somebody else's; by a start that this switch
# made or saw begin; by a start that it made because something had failed.
WOKEN, STARTED, RESTARTED = "woken", "started", "restarted"


@dataclasses.dataclass(frozen=True)
class Record:
    """The answer of one start of a server, and what it was started with. C(start) is empty where it is not known.

    C(suspect) says that a later answer was refused: until one is right, or recorded on request, none is taken on trust.
    C(renewed) says so of an answer of another start, one that nobody here has seen: that may have been by intent.
    C(kind) is that of the call which C(text) is the answer to; C(adapters) are the records of C(adapters.Adapter), by
    the adapter's name.
    """

    text: str
    reproducible: bool
    start: str
    version: str
    served: typing.Mapping[str, typing.Any]
    recorded: str
    suspect: bool = False
    renewed: bool = False
    kind: str = TEXT
    adapters: typing.Mapping[str, typing.Any] = dataclasses.field(default_factory=dict)


class Verdict(typing.NamedTuple):
    """What was found, in a few words; C(warning) is for a person to see."""

    note: str
    warning: str = ""

    def also(self, other: Verdict) -> Verdict:
        """Both."""
        return Verdict(*("; ".join(filter(None, texts)) for texts in zip(self, other)))


def applies(model: Model) -> bool:
    """Whether the model has a canary: not if it is turned off, or if the model gives no answer."""
    return model.canary != "off" and bool(model.ready_completion)


def read(model: Model, stack_dir: str) -> Record | None:
    """The record of a model; None where there is none, or one that can't be read."""
    with contextlib.suppress(TypeError):
        saved = state_files.models(stack_dir, state_files.CANARY).get(model.id)
        known = Record(**saved) if saved else None
        if known is None or not isinstance(known.text, str) or not isinstance(known.kind, str):
            return None
        if not isinstance(known.adapters, dict):
            known = dataclasses.replace(known, adapters={})
        # It once was a time, as the server's metrics told it.
        return known if isinstance(known.start, str) else dataclasses.replace(known, start="")
    return None


def record(server: Server, model: Model, stack_dir: str, start: str) -> Verdict:
    """Ask twice and remember the answer. The server has to be ready. Raises ServerError or OSError."""
    known = read(model, stack_dir)
    return _record(server, model, stack_dir, start, server.canary(known.kind if known else ""), known)


def prove(server: Server, model: Model, stack_dir: str, start: str, came: str) -> Verdict:
    """Compare the answer of a server that is ready with the recorded one; record it where it was just started.

    C(start) tells which start of the server it is, and C(came) is one of WOKEN, STARTED and RESTARTED. What a server
    answers after a wake is never recorded: that is what is to be proved. Raises WrongAnswer where the answer is another
    and must not be, and OSError where the record can't be written.
    """
    known = read(model, stack_dir)
    told = server.canary(known.kind if known else "")
    other = known is not None and known.served != _served(model)
    refused = came == RESTARTED and known is not None and known.suspect
    if came != WOKEN and not refused and (known is None or other):
        return _record(server, model, stack_dir, start, told, known)
    if known is None:
        return Verdict("answers; no answer from a fresh start is recorded to compare it with")
    if told.is_as(known.kind, known.text):
        # So this start is known to be right, whoever made it: a wrong answer of it is not one of an unknown start.
        served = known.served if came == WOKEN else _served(model)
        proved = dataclasses.replace(known, start=start, served=served, suspect=False, renewed=False)
        if proved != known:
            write(model, stack_dir, proved)
        return Verdict("answers as recorded")
    differs = (
        f"{model.id} answers the fixed {prompt_of(told.kind)} with {short(told.text)}, not with {short(known.text)} as "
        f"recorded on {known.recorded}"
    )
    if not known.suspect and (came == STARTED or (came == RESTARTED and known.renewed)):
        # Started by intent, so its weights or vLLM may have been changed by intent.
        verdict = _record(server, model, stack_dir, start, told, known)
        return Verdict(verdict.note, f"{differs}; the server was started since then, so the new answer was recorded")
    renewed = came == WOKEN and start != known.start and "" not in (start, known.start)
    if renewed and other and not known.suspect:
        remedy = "if the new answer is correct, record it (record_canary)"
        return Verdict(
            "the answer differs from the recorded one",
            f"{differs}; the server was started with other settings since then: {remedy}",
        )
    if model.canary == "enforce" or (model.canary == "auto" and known.reproducible):
        doubted = dataclasses.replace(known, suspect=known.suspect or not renewed, renewed=known.renewed or renewed)
        with contextlib.suppress(OSError):  # a full disk makes no answer right
            write(model, stack_dir, doubted)
        raise WrongAnswer(f"{differs} (canary)")
    return Verdict("the answer differs from the recorded one", f"{differs} (canary)")


def _record(server: Server, model: Model, stack_dir: str, start: str, told: Reply, known: Record | None) -> Verdict:
    reproducible = server.canary(told.kind).is_as(told.kind, told.text)
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    version, served = server.version(), _served(model)
    made = Record(told.text, reproducible, start, version, served, now, kind=told.kind)
    if known:
        made = dataclasses.replace(made, adapters=known.adapters)
    write(model, stack_dir, made)
    what = "" if told.kind == TEXT else f" ({told.kind})"
    return Verdict(f"answer recorded{what}" + ("" if reproducible else ", but a second answer differed"))


def _served(model: Model) -> dict[str, typing.Any]:
    """What the answer may depend on, without secrets."""
    plain: dict[str, typing.Any] = {
        "model": model.model,
        "image": model.image,
        "args": _without_secrets(model.args),
        "env": _without_secrets(model.env),
    }
    # Records of before there was one hold.
    if model.entrypoint:
        plain["entrypoint"] = list(model.entrypoint)
    mask = Mask(secrets_of(dataclasses.asdict(model)))
    return typing.cast("dict[str, typing.Any]", map_text(json.loads(json.dumps(plain)), mask))


def _without_secrets(value: typing.Any) -> typing.Any:
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items() if not is_secret_name(key)}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item) for item in value]
    return value


def write(model: Model, stack_dir: str, made: Record) -> None:
    """Put down what is known of a model. Raises OSError."""
    state_files.write_model(stack_dir, state_files.CANARY, model.id, dataclasses.asdict(made))


def prompt_of(kind: str) -> str:
    """What a server is asked by, for messages."""
    return "prompt" if kind == TEXT else f"call for {kind}"


def short(text: str) -> str:
    """The beginning of an answer, for messages."""
    return repr(text if len(text) <= 60 else text[:60] + "...")
