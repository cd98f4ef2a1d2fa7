# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The texts within data, and the one line that a person reads first."""

from __future__ import annotations

import re
import typing

# As long as a cause may be, on one line.
LONGEST = 200


def map_text(value: typing.Any, change: typing.Callable[[str], str]) -> typing.Any:
    """The value with every text in it changed, however deep; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: map_text(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_text(item, change) for item in value]
    return value


def in_words(words: typing.Sequence[str]) -> str:
    """The words as a list in a sentence."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def brief(text: str, known: str, room: int = LONGEST) -> str:
    """The text on one line of at most so many characters, without addresses and without the name that is known."""
    text = re.sub(r"https?://127\.0\.0\.1:\d+", "", " ".join(text.split()))
    name = r"(?<![\w./-])" + re.escape(known)
    text = re.sub(name + ": ", "", text)
    text = re.sub(name + "'s ", "its ", text)
    text = re.sub(name + r"(?= (?:is|was|accepted|received|could|answers) )", "it", text)
    parts = text.split("; and ")
    while len("; and ".join(parts)) > room:
        # The longest gives way: what one failure said must not hide another.
        over = len("; and ".join(parts)) - room
        index = max(range(len(parts)), key=lambda i: len(parts[i]))
        rest = max(len(parts[index]) - over - 3, 20)
        if rest + 3 >= len(parts[index]):
            return "; and ".join(parts)[: room - 3] + "..."
        parts[index] = parts[index][:rest].rstrip() + "..."
    return "; and ".join(parts)
