# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the converters have in common: notes and mistakes, and the texts and values of their sources.

Pure: they are given what was read from the files. Notes and errors name keys and places, and never the value of an
argument or of an environment variable, since that may be a secret.
"""

from __future__ import annotations

import collections
import re
import shlex
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import redaction
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import map_text
from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose_variables, launch

# Stands in a text where a variable was whose value nobody knows. No file has these characters.
UNKNOWN = "\ue000%s\ue001"
UNKNOWN_NAME = re.compile("\ue000(.*?)\ue001")
# The model of an entry whose compose file is missing, and of one whose command says nothing that is understood. Hugging
# Face has no such names, so they can't be loaded by mistake.
PLACEHOLDER = "COMPOSE-FILE-MISSING/"
UNREAD = "COMMAND-NOT-READ/"
# So many places are named before what is said of them.
_FEW = 3
# Environment variables that choose GPUs; each counts among those that the one before it has left. The collection sets
# them from gpus.
VISIBLE = ("NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


class ConvertError(Exception):
    """What can't be converted: every mistake, each with its place in the source."""

    def __init__(self, mistakes: typing.Sequence[str]) -> None:
        super().__init__("nothing was written:\n- " + "\n- ".join(mistakes))
        self.mistakes = list(mistakes)


class Converted(typing.NamedTuple):
    """The variables of a host, and what to look at."""

    variables: dict[str, typing.Any]
    notes: list[str]


class Notes:
    """Notes in their order; one text about many places is one note."""

    def __init__(self) -> None:
        self._places: collections.OrderedDict[str, list[str]] = collections.OrderedDict()

    def add(self, place: str, text: str) -> None:
        """One more note about a place in the source."""
        places = self._places.setdefault(text, [])
        if place not in places:
            places.append(place)

    def join(self, other: Notes) -> None:
        """The notes of another one, behind these."""
        for text, places in other._places.items():
            for place in places:
                self.add(place, text)

    def texts(self) -> list[str]:
        """The notes, each with its places."""
        return [readable(_note(places, text)) for text, places in self._places.items()]


def _note(places: typing.Sequence[str], text: str) -> str:
    """A note; many places of one file stand behind its text, where they hide nothing."""
    files = {place.partition(": ")[0] for place in places}
    if len(places) <= _FEW or len(files) > 1:
        return "%s: %s" % (_together(places), text)
    (file,) = files
    return "%s: %s: %s" % (file, text, ", ".join(place.partition(": ")[2] for place in places))


def _together(places: typing.Iterable[str]) -> str:
    """Places as one text, each file named once."""
    files: dict[str, list[str]] = {}
    for place in places:
        file, _dummy, inner = place.partition(": ")
        files.setdefault(file, []).append(inner)
    return ", ".join(file + ": " * any(inner) + ", ".join(filter(None, inner)) for file, inner in files.items())


class Server(typing.NamedTuple):
    """How a source says that a server is run."""

    words: list[str]  # behind `vllm serve`
    env: dict[str, str]
    image: str = ""
    reserved: list[str] | None = None  # GPUs by name
    number: int | None = None  # or so many
    volumes: typing.Sequence[str] = ()
    access: str = ""  # the vllm_gpu_access that its devices stand for, where they do
    start: launch.Launch | None = None  # how it is started


def values(
    variables: typing.Mapping[str, typing.Any] | None, files: typing.Iterable[tuple[str, str]]
) -> dict[str, str]:
    """The values of variables: those that are given one by one, then those of C(.env) files, given as (name, text).

    Raises ConvertError.
    """
    found = {str(name): scalar(value) for name, value in (variables or {}).items()}
    for file, text in files:
        try:
            read = compose_variables.dotenv(text, found.get)
        except compose_variables.BadVariable as error:
            raise ConvertError(["%s: compose knows no variable %s" % (file, quoted(str(error)))]) from None
        found = {**read, **found}
    return found


def split_words(command: typing.Any, place: str) -> list[str]:
    """The words of a command that is a text or a list."""
    if isinstance(command, (list, tuple)):
        return [scalar(word) for word in command]
    try:
        return shlex.split(command or "")
    except (ValueError, AttributeError, TypeError):
        raise ConvertError([place + ": can't be split into words: check its quotes"]) from None


def environment(
    given: typing.Any, place: str, notes: Notes, values: typing.Mapping[str, str] | None = None
) -> dict[str, str]:
    """Environment variables, given as a dictionary or as C(NAME=value); C(values) are those without a value here."""
    if isinstance(given, dict):
        pairs = [(str(name), value) for name, value in given.items()]
    else:
        split = [str(item).partition("=") for item in as_list(given)]
        pairs = [(name, value if equals else None) for name, equals, value in split]
    found = {}
    for name, value in pairs:
        if value is None and name in (values or {}):
            found[name] = (values or {})[name]
        elif value is None:
            key = "gpus" if name in VISIBLE else "env"
            notes.add(
                "%s.%s" % (place, name), "not converted: its value comes from where compose runs; set it in " + key
            )
        else:
            found[name] = scalar(value)
    return found


def readable(text: str) -> str:
    """A text with its unknown variables as they were."""
    return UNKNOWN_NAME.sub(r"${\1}", text)


def quoted(text: str) -> str:
    """A part of the source for a note: on one line, not too long, and without values that may be secret."""
    text = redaction.Mask(redaction.secrets_of(text))(text)
    text = re.sub(r"""\b([A-Za-z_]\w*)=("[^"]*"|'[^']*'|[^\s;|&)]+)""", r"\1=...", text)
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:397] + "..."


def unknown(value: typing.Any) -> list[str]:
    """The names of the variables in a value that nobody knows."""
    found: list[str] = []

    def look(text: str) -> str:
        found.extend(UNKNOWN_NAME.findall(text))
        return text

    map_text(value, look)
    return list(dict.fromkeys(found))


def scalar(value: typing.Any) -> str:
    """The text that YAML would have for the value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def as_list(value: typing.Any) -> list[typing.Any]:
    """The value as a list: empty for None, of one item for what is no list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
