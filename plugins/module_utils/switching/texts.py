# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The texts within data, those that may be secret by their names, and the one line that a person reads first."""

from __future__ import annotations

import re
import typing

# As long as a cause may be, on one line.
LONGEST = 200
# What a switch says is no secret, whatever it is called.
_SWITCHES = ("0", "1", "true", "false", "yes", "no", "on", "off")
# Not TOKENIZERS_PARALLELISM or max_num_batched_tokens: hiding their values would hide every False, or a port.
_SECRET_NAME = re.compile(r"token(?!s|iz)|key|secret|passw|credential", re.IGNORECASE)


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


def is_secret_name(name: object) -> bool:
    """Whether a key's name sounds as if its value were a secret."""
    return bool(_SECRET_NAME.search(str(name)))


def secret_texts(value: typing.Any, secret: bool = False) -> typing.Iterator[str]:
    """The texts and long numbers of an unchecked inventory that stand below a key whose name sounds secret."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from secret_texts(item, secret or is_secret_name(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from secret_texts(item, secret)
    elif isinstance(value, str):
        if secret and value and value.lower() not in _SWITCHES:
            yield value
    # To hide a short number would hide every port and count that has it within.
    elif secret and isinstance(value, (int, float)) and len(str(value)) > 5:
        yield str(value)
