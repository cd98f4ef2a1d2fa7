# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What a switch found, did and left, as data for programs and in words for people."""

from __future__ import annotations

import dataclasses
import typing

from .costs import LEVELS, Measure
from .drain import FATES
from .errors import SwitchFailed, SwitchingError
from .inventory import ESCALATION, Model
from .plan import ACTIVE, SLEEP, VERIFY, WAKE, Observation, Step

States = typing.Mapping[str, Observation]
Steps = typing.List[typing.Dict[str, typing.Any]]

_MENDED = {"stop": " had to be stopped", "retry": " woke at the second attempt", "restart": " was restarted"}


@dataclasses.dataclass
class Result:
    """What a switch found, did and left.

    C(steps) are dicts with action, model, level, started_seconds (since the start of the switch), seconds and, if they
    apply, note, failed, escalation (the rung of the step), requests (how many were drained, parked and cut) and, of a
    verify, answer_seconds (how long the proof by an answer took).
    C(places) contains for each requested model its id and those of the models that share a GPU with it.
    """

    changed: bool
    places: tuple[tuple[str, ...], ...]
    before: States
    models: States
    steps: Steps
    elapsed_seconds: float
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def active_models(self) -> list[str]:
        """The models that are active on the GPUs of the requested models."""
        return self._active(self.models, self.places)

    @property
    def previous_models(self) -> list[str]:
        """The models that served there before, or were about to serve."""
        return self._serving(self.before, self.places)

    @property
    def active_model(self) -> str | None:
        """The model that is active on the GPUs of the first requested model."""
        return next(iter(self._active(self.models, self.places[:1])), None)

    @property
    def previous_model(self) -> str | None:
        """The model that served there before, or was about to serve."""
        return next(iter(self._serving(self.before, self.places[:1])), None)

    @staticmethod
    def _active(states: States, places: typing.Iterable[typing.Iterable[str]]) -> list[str]:
        names = dict.fromkeys(name for place in places for name in place)
        return [name for name in names if name in states and states[name].state == ACTIVE]

    @staticmethod
    def _serving(states: States, places: typing.Iterable[typing.Iterable[str]]) -> list[str]:
        names = dict.fromkeys(name for place in places for name in place)
        serving = [name for name in names if name in states and states[name].serving]
        return sorted(serving, key=lambda name: states[name].state != ACTIVE)

    @property
    def requests(self) -> dict[str, int | None]:
        """How many requests were drained, parked and cut in total; None if unknown."""
        counts = {fate: [step.get("requests", {}).get(fate, 0) for step in self.steps] for fate in FATES}
        return {fate: None if None in numbers else sum(numbers) for fate, numbers in counts.items()}

    @property
    def rung(self) -> str:
        """The last rung of the escalation that was tried; empty if no step failed."""
        gone = [step["escalation"] for step in self.steps if "escalation" in step]
        return max(gone, key=ESCALATION.index) if gone else ""

    @property
    def recovery(self) -> str:
        """How failed steps were recovered, as text; empty if no step failed."""
        said: dict[str, str] = {}
        for step in self.steps:
            rung, name = step.get("escalation"), step["model"]
            if "failed" in step or rung not in _MENDED:
                continue
            # What helped is what came last.
            said[name] = name + _MENDED[rung]
        return ", ".join(said.values())

    @property
    def displaced(self) -> list[str]:
        """The models that served before, or were about to serve, and are not active now."""
        return [n for n, seen in self.before.items() if seen.serving and self._left(seen, self.models[n])]

    @staticmethod
    def _left(before: Observation, now: Observation) -> bool:
        return now.state != ACTIVE and (before.state, before.level) != (now.state, now.level)

    @property
    def activated(self) -> list[str]:
        """The models that are active and were not before."""
        return [n for n, seen in self.models.items() if seen.state == ACTIVE and self.before[n].state != ACTIVE]

    def as_dict(self) -> dict[str, typing.Any]:
        """The result as plain data for the caller."""
        return {
            "changed": self.changed,
            "active_model": self.active_model,
            "previous_model": self.previous_model,
            "active_models": self.active_models,
            "previous_models": self.previous_models,
            "displaced": self.displaced,
            "activated": self.activated,
            "models": {name: summary(seen) for name, seen in self.models.items()},
            "steps": self.steps,
            "requests": self.requests,
            "rung": self.rung,
            "recovery": self.recovery,
            "warnings": self.warnings,
            "elapsed_seconds": round(self.elapsed_seconds, 3),
        }

    def diff(self) -> dict[str, str]:
        """C(before) and C(after) as text, a line for each model, and the steps between them."""
        before, after = (
            "".join(f"{m}: {describe(s)}\n" for m, s in states.items()) for states in (self.before, self.models)
        )
        for number, step in enumerate(self.steps, 1):
            # What has been done has its notes elsewhere.
            note = f" ({step['note']})" if step["seconds"] is None and "note" in step else ""
            after += f"step {number}: {say_step(step)}{note}\n"
        return {"before": before, "after": after}


def step_record(step: Step) -> dict[str, typing.Any]:
    """A step as it is in a result, before it is done."""
    note = {"note": step.choice.why} if step.choice and step.choice.measured else {}
    return {
        "action": step.action,
        "model": step.model,
        "level": step.level,
        "started_seconds": None,
        "seconds": None,
        **note,
    }


def measures(steps: Steps) -> list[Measure]:
    """What the sleeps and wakes of a switch have taken, by level; not those on a rung, which are no measure.

    A wake takes until it is verified.
    """
    found = []
    for number, step in enumerate(steps):
        if step["action"] not in (SLEEP, WAKE) or step["level"] not in LEVELS or "escalation" in step:
            continue
        parts = [step]
        if step["action"] == WAKE and "failed" not in step:
            parts += [later for later in steps[number + 1 :] if later["model"] == step["model"]][:1]
            if parts[-1]["action"] != VERIFY or "escalation" in parts[-1]:
                continue
        seconds = None if any("failed" in part for part in parts) else sum(part["seconds"] for part in parts)
        found.append(Measure(step["model"], step["level"], step["action"], seconds, step.get("warm")))
    return found


def say_step(step: typing.Mapping[str, typing.Any]) -> str:
    """One of the steps of a result in a few words, with the rung that it belongs to."""
    rung = f"{step['escalation']}: " if "escalation" in step else ""
    return rung + str(Step(step["action"], step["model"], step["level"]))


def summary(seen: Observation) -> dict[str, typing.Any]:
    """The state of one model as plain data."""
    return {"state": seen.state, "level": seen.level, **({"problem": seen.problem} if seen.problem else {})}


def describe(seen: Observation) -> str:
    """The state of one model in a few words."""
    return (
        seen.state
        + (f" (level {seen.level})" if seen.level is not None else "")
        + (" in doubt" if seen.doubtful else "")
    )


def results_of(outcomes: typing.Iterable[Result | SwitchingError]) -> list[Result]:
    """All results, including those of switches that failed after the first step."""
    found = (one.result if isinstance(one, SwitchFailed) else one for one in outcomes)
    return [one for one in found if isinstance(one, Result)]


def together(models: typing.Sequence[Model], outcomes: typing.Sequence[Result | SwitchingError]) -> Result:
    """The one result of several. Raises the error of a single one as it is, else SwitchFailed with all of them."""
    if len(outcomes) == 1:
        if isinstance(outcomes[0], SwitchingError):
            raise outcomes[0]
        return outcomes[0]
    errors = [one for one in outcomes if isinstance(one, SwitchingError)]
    done = results_of(outcomes)
    message = "\n".join(f"{m.id}: {one}" for m, one in zip(models, outcomes) if isinstance(one, SwitchingError))
    if not done:
        raise SwitchingError(message)
    result = joined(done)
    if errors:
        raise SwitchFailed(message, result)
    return result


def joined(results: typing.Sequence[Result]) -> Result:
    """The combined result of switches that ran in parallel or one after the other."""
    if len(results) == 1:
        return results[0]
    return Result(
        changed=any(one.changed for one in results),
        places=tuple(dict.fromkeys(place for one in results for place in one.places)),
        before={name: seen for one in reversed(results) for name, seen in one.before.items()},
        models={name: seen for one in results for name, seen in one.models.items()},
        steps=[step for one in results for step in one.steps],
        elapsed_seconds=max(one.elapsed_seconds for one in results),
        warnings=[warning for one in results for warning in one.warnings],
    )
