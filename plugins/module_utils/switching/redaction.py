# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What of an inventory may be a secret, and texts without it.

A name is not enough: to hide every "1" because a switch is called ..._TOKEN would change data, and whoever reads that
acts on it.
"""

from __future__ import annotations

import json
import re
import typing
import urllib.parse

HIDDEN = "********"

# What a switch says is no secret, whatever it is called.
_SWITCHES = ("0", "1", "true", "false", "yes", "no", "on", "off")
# Not TOKENIZERS_PARALLELISM or max_num_batched_tokens: hiding their values would hide every False, or a port.
_SECRET_NAME = re.compile(r"token(?!s|iz)|key|secret|passw|credential", re.IGNORECASE)

# What is shorter is a part of other words and numbers, and hidden in all of them.
_SHORTEST = 8

# What results say themselves, and what settings are called that are no secret, whatever their name.
_WORDS = ("sleeping", "stopping", "disabled", "roll_back", "required", "optional", "unlimited", "undefined")

# The keys of a model that everybody may know. What is a part of their values is no secret.
_PUBLIC = ("id", "name", "model", "container_name", "aliases")

_VARIABLE = re.compile(r"\$\{[^{}]*\}")
_SHELLS = re.compile(r"\$\w+|\$\([^()]*\)|`[^`]*`")
_VALUE = r"""(?:"([^"]*)"|'([^']*)'|([^\s"'&;,|<>]+))"""
# Within a text, such as the words of a command or a request: NAME=VALUE and NAME: VALUE, --NAME VALUE, the word that an
# Authorization has, the password of an address.
_ASSIGNED = re.compile(r"""(?<![\w.])(?:--?)?([A-Za-z_][\w.-]*)["']?\s*[=:]\s*""" + _VALUE)
_OPTION = re.compile(r"(?:^|\s)--?([A-Za-z][\w.-]*)\s+(?!-)" + _VALUE)
_AUTHORIZED = re.compile(r"\b(?:bearer|basic)\s+" + _VALUE, re.IGNORECASE)
_ADDRESS = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
# An option of curl and its like, whose value is NAME:PASSWORD.
_USER = re.compile(r"(?:^|\s)(?:-u|--user|--proxy-user)[\s=]+" + _VALUE)


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


def secrets_of(*values: typing.Any) -> set[str]:
    """The texts in unchecked variables that are to be shown nowhere, in every way in which they may be written."""
    public = [*_WORDS, *_public(values)]
    found: set[str] = set()
    for text in (*secret_texts(values), *_within(values)):
        # A key of several lines is logged line by line.
        for written in (text, *text.splitlines()):
            part = _VARIABLE.sub("", written).strip()
            if len(part) >= _SHORTEST and not _is_fraction(part) and not any(part in name for name in public):
                found |= {part, json.dumps(part)[1:-1], repr(part)[1:-1], urllib.parse.quote(part, safe="")}
    return found


def secrets_in_shell(words: typing.Iterable[str]) -> set[str]:
    """The same of words that a shell may read: what it puts in the place of C($NAME) or C($(command)) is not there."""
    return secrets_of([_SHELLS.sub("", word) for word in words])


class Mask:
    """Texts without the secrets."""

    def __init__(self, secrets: typing.Iterable[str]) -> None:
        # One may be the beginning of another.
        longest_first = sorted(set(secrets), key=lambda secret: (-len(secret), secret))
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """The text, in which each secret is as many asterisks as any other."""
        return self._pattern.sub(HIDDEN, text) if self._pattern else text


def _is_fraction(text: str) -> bool:
    """Whether it is a number that nobody has for a password. A long whole one may be."""
    try:
        float(text)
    except ValueError:
        return False
    return not text.isdecimal()


def _public(value: typing.Any) -> typing.Iterator[str]:
    """The names within variables that everybody may know, whatever else is called so."""
    if isinstance(value, dict):
        if "id" in value:
            names = [value.get(key) for key in _PUBLIC]
            yield from (
                str(one) for name in names for one in (name if isinstance(name, (list, tuple)) else [name]) if one
            )
        else:
            for item in value.values():
                yield from _public(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _public(item)


def _within(value: typing.Any) -> typing.Iterator[str]:
    """What the texts in variables have in them that is called like a secret: commands and requests do."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _within(item)
    elif isinstance(value, (list, tuple)):
        words = [item if isinstance(item, str) else "" for item in value]
        for option, word in zip(words, words[1:]):
            if option.startswith("-") and not word.startswith("-"):
                name = option.lstrip("-")
                if "=" not in name and is_secret_name(name):
                    yield word
                elif option in ("-u", "--user", "--proxy-user"):
                    yield word.partition(":")[2]
        for item in value:
            yield from _within(item)
    elif isinstance(value, str):
        for pattern in (_ASSIGNED, _OPTION):
            for name, *parts in pattern.findall(value):
                if is_secret_name(name):
                    yield "".join(parts)
        for parts in _AUTHORIZED.findall(value):
            yield "".join(parts)
        yield from _ADDRESS.findall(value)
        for parts in _USER.findall(value):
            yield "".join(parts).partition(":")[2]
