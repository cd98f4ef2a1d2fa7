# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The canary: the answer to a fixed greedy prompt, remembered while a server is known good and compared after a wake.

A wake can go wrong without any call failing: weights that were not loaded again, or come back corrupted, give fluent
nonsense behind a 200 (vLLM issues 16564, 29341, 25800).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import typing

from . import records
from .errors import WrongAnswer
from .inventory import Model, is_secret_name
from .masking import Mask, secrets_of
from .server import Server
from .texts import map_text

_NAME = "canary"


@dataclasses.dataclass(frozen=True)
class Record:
    """The answer of one start of a server, and what it was started with. C(start) is in seconds since 1970.

    C(suspect) says that a later answer was refused: until one is right, or recorded on request, none is taken on trust.
    """

    text: str
    reproducible: bool
    start: float | None
    version: str
    served: typing.Mapping[str, typing.Any]
    recorded: str
    suspect: bool = False


class Verdict(typing.NamedTuple):
    """What was found, in a few words; C(warning) is for a person to see."""

    note: str
    warning: str = ""


def applies(model: Model) -> bool:
    """Whether the model has a canary: not if it is turned off, or if the model does not complete text."""
    return model.canary != "off" and bool(model.ready_completion)


def read(model: Model, stack_dir: str) -> Record | None:
    """The record of a model; None where there is none, or one that can't be read."""
    with contextlib.suppress(TypeError):
        saved = records.models(stack_dir, _NAME).get(model.id)
        known = Record(**saved) if saved else None
        return known if known is None or isinstance(known.text, str) else None
    return None


def record(server: Server, model: Model, stack_dir: str) -> Verdict:
    """Ask twice and remember the answer. The server has to be ready. Raises ServerError or OSError."""
    return _record(server, model, stack_dir, server.canary())


def prove(server: Server, model: Model, stack_dir: str, restarted: bool) -> Verdict:
    """Compare the answer of a server that is ready with the recorded one; record it where there is none.

    C(restarted): the server has been started because something failed, not by intent. Raises WrongAnswer where the
    answer is another and must not be, and OSError where the record can't be written.
    """
    text = server.canary()
    known = read(model, stack_dir)
    if known is None or known.served != _served(model):
        return _record(server, model, stack_dir, text)
    start = server.started()
    if text == known.text:
        if known.suspect or known.start != start:
            _write(model, stack_dir, dataclasses.replace(known, start=start, suspect=False))
        return Verdict("answers as recorded")
    differs = f"{model.id} answers the fixed prompt with {_short(text)}, not with {_short(known.text)} as recorded"
    known_start = known.start == start or restarted or known.suspect
    if not known_start:
        # Started by intent, so its weights or vLLM may have been changed by intent.
        verdict = _record(server, model, stack_dir, text)
        return Verdict(verdict.note, f"{differs} on {known.recorded}; it was started since, so that was recorded anew")
    if model.canary == "enforce" or (model.canary == "auto" and known.reproducible):
        with contextlib.suppress(OSError):  # a full disk makes no answer right
            _write(model, stack_dir, dataclasses.replace(known, suspect=True))
        raise WrongAnswer(f"{differs} on {known.recorded} (canary)")
    return Verdict("answers otherwise than recorded", f"{differs} on {known.recorded} (canary)")


def _record(server: Server, model: Model, stack_dir: str, text: str) -> Verdict:
    reproducible = server.canary() == text
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    _write(model, stack_dir, Record(text, reproducible, server.started(), server.version(), _served(model), now))
    return Verdict("answer recorded" + ("" if reproducible else ", but a second one was another"))


def _served(model: Model) -> dict[str, typing.Any]:
    """What the answer may depend on, without secrets."""
    plain = {
        "model": model.model,
        "image": model.image,
        "args": _without_secrets(model.args),
        "env": _without_secrets(model.env),
    }
    mask = Mask(secrets_of(dataclasses.asdict(model)))
    return typing.cast("dict[str, typing.Any]", map_text(json.loads(json.dumps(plain)), mask))


def _without_secrets(value: typing.Any) -> typing.Any:
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items() if not is_secret_name(key)}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item) for item in value]
    return value


def _write(model: Model, stack_dir: str, made: Record) -> None:
    with records.changing:
        known = records.models(stack_dir, _NAME)
        records.write(stack_dir, _NAME, {"models": {**known, model.id: dataclasses.asdict(made)}})


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
