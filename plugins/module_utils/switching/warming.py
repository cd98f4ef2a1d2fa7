# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Reading the weights of models ahead because somebody asks for it, before a switch to them.

It only reads files, so that it takes no lock and asks no server: a switch may go on meanwhile.
"""

from __future__ import annotations

import typing

from . import hardware, memory
from .errors import SwitchingError
from .inventory import Inventory, Model
from .page_cache import RAM_SHARE, Place, Seen, Warmed, Warmer, look, place_of


class Warming(typing.NamedTuple):
    """What there was of a model's weights and what came of reading them; in a C(check), what would come of it."""

    model: str
    seen: Seen
    warmed: Warmed
    check: bool

    def as_dict(self) -> dict[str, typing.Any]:
        """The figures as plain data: sizes in bytes, C(cached_bytes) None where nobody can tell."""
        return {
            "files": self.seen.files,
            "bytes": self.seen.size,
            "cached_bytes": self.seen.cached,
            "read_bytes": self.warmed.read,
            "seconds": None if self.check else round(self.warmed.seconds, 3),
            "limited": self.warmed.limited,
        }

    @property
    def lines(self) -> list[str]:
        """The figures for a reader."""
        seen = self.seen
        told = "an unknown part of them" if seen.cached is None else f"{seen.cached / 1e9:.1f} GB of them"
        read = "would be read" if self.check else f"read in {self.warmed.seconds:.1f} s"
        return [
            f"{self.model}: {seen.size / 1e9:.1f} GB of weights in {seen.files} files, {told} in the page cache",
            f"{self.model}: {self.warmed.read / 1e9:.1f} GB {read}{self.warmed.rest}",
        ]


def warm(
    inventory: Inventory,
    stack_dir: str,
    names: typing.Sequence[str],
    check: bool = False,
    mem_available_gb: typing.Callable[[], float | None] = hardware.read_mem_available_gb,
) -> list[Warming]:
    """Read the weights of these models into the page cache, all of them together within the free RAM.

    A C(check) reads nothing. Raises UnknownModel, or SwitchingError where weights can't be found or read; those of all
    models are looked for before any are read.
    """
    models = {model.id: model for model in map(inventory.find, names)}
    found = [(model.id, *_look(stack_dir, model)) for model in models.values()]
    available = mem_available_gb()
    if available is None:
        raise SwitchingError(
            "nothing was read: it is unknown how much RAM is free, since /proc/meminfo has no MemAvailable here"
        )
    if memory.remembered_shared(stack_dir):
        raise SwitchingError(
            "nothing was read: the GPU of this host shares its RAM, which the page cache would take from the models"
        )
    left = available * RAM_SHARE * 1e9
    done = []
    for name, place, seen in found:
        # The same steps without the reading tell what a run would read.
        warmer = Warmer(place, left, read=lambda _file, buffer, _at: len(buffer)) if check else Warmer(place, left)
        warmed = warmer.run()
        if warmed.problem:
            raise _unreadable(name, warmed.problem)
        left -= warmed.cached + warmed.read
        done.append(Warming(name, seen, warmed, check))
    return done


def _look(stack_dir: str, model: Model) -> tuple[Place, Seen]:
    place = place_of(stack_dir, model)
    if place is None:
        raise SwitchingError(
            f"it is unknown where the weights of {model.id} are on this host: run homegpt.vllm.site, which records it "
            "for models in containers whose weights are in a directory of the host; a model with a start_command needs "
            "a full path as its model"
        )
    try:
        seen = look(place)
    except OSError as error:
        raise _unreadable(model.id, error) from None
    if not seen.files:
        raise SwitchingError(f"there are no weights of {model.id} in {' or '.join(place.folders)}: run prefetch first")
    return place, seen


def _unreadable(name: str, why: object) -> SwitchingError:
    return SwitchingError(f"the weights of {name} can't be read: {why}")
