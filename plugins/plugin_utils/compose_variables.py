# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables of compose files, and the C(.env) that has their values. Pure.

The grammar is docs.docker.com/reference/compose-file/interpolation; where that says nothing, this does what docker
compose 2.40.3 does. A test compares both.
"""

from __future__ import annotations

import re
import typing

# The value of a variable; None where it has none.
Lookup = typing.Callable[[str], "str | None"]
# What stands for a variable that has no value, where nothing else is said.
Missing = typing.Callable[[str], str]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-+?]")
_ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*[=:][ \t]*")
_QUOTED = {quote: re.compile(r"%s((?:\\.|[^%s\\])*)%s" % (quote, quote, quote), re.DOTALL) for quote in ("'", '"')}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


class BadVariable(Exception):
    """A text has a C(${...}) that compose does not know either."""


def interpolate(text: str, lookup: Lookup, missing: Missing) -> str:
    """The text with its variables replaced. Raises BadVariable, which quotes what is wrong."""
    found: list[str] = []
    at = 0
    while True:
        dollar = text.find("$", at)
        if dollar < 0:
            return "".join([*found, text[at:]])
        found.append(text[at:dollar])
        name = _NAME.match(text, dollar + 1)
        if name:
            value = lookup(name.group())
            found.append(missing(name.group()) if value is None else value)
            at = name.end()
        elif text[dollar + 1 : dollar + 2] == "{":
            end = closing(text, dollar + 1)
            found.append(_braced(text[dollar : end + 1], lookup, missing))
            at = end + 1
        else:
            # Two are one; before anything else it is itself.
            found.append("$")
            at = dollar + (2 if text[dollar + 1 : dollar + 2] == "$" else 1)


def closing(text: str, start: int) -> int:
    """Where the brace closes that opens at C(start): those of JSON within count as well."""
    depth, at = 0, start
    while at < len(text):
        if text[at] == "{":
            # Compose looks at no letter that follows one, so that an empty pair of them counts as one that opens.
            depth, at = depth + 1, at + 1
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return at
        at += 1
    # One that is open for ever is a letter like others.
    last = text.rfind("}", start)
    if last < 0:
        raise BadVariable(text[start - 1 :])
    return last


def _braced(text: str, lookup: Lookup, missing: Missing) -> str:
    name = _NAME.match(text, 2)
    operator = _OPERATOR.match(text, name.end()) if name else None
    if not name or not (operator or name.end() == len(text) - 1):
        raise BadVariable(text)
    value = lookup(name.group())
    if operator is None:
        return missing(name.group()) if value is None else value
    kind = operator.group()
    given = bool(value) if kind[0] == ":" else value is not None
    if kind[-1] == "?":
        return value if given and value is not None else missing(name.group())
    if kind[-1] == "-" and given:
        return value or ""
    if kind[-1] == "+" and not given:
        return ""
    return interpolate(text[operator.end() : -1], lookup, missing)


def dotenv(text: str, lookup: Lookup) -> dict[str, str]:
    """The variables of a C(.env); C(lookup) has what is set elsewhere, which wins. Raises BadVariable."""
    found: dict[str, str] = {}

    def known(name: str) -> str | None:
        value = lookup(name)
        return found.get(name) if value is None else value

    text = text.replace("\r\n", "\n").lstrip("\ufeff")
    at = 0
    while at < len(text):
        assignment = _ASSIGNMENT.match(text, at)
        if not assignment:
            # A comment, an empty line, or a name whose value is to come from elsewhere.
            at = (text.find("\n", at) + 1) or len(text)
            continue
        at = assignment.end()
        quote = text[at : at + 1]
        quoted = _QUOTED.get(quote)
        match = quoted.match(text, at) if quoted else None
        if match:
            value = match.group(1)
            double = quote == '"'
            value = re.sub(r"\\(.)", _unescaped, value, flags=re.DOTALL) if double else value.replace("\\'", "'")
            at = match.end()
        else:
            end = text.find("\n", at)
            end = len(text) if end < 0 else end
            value = re.sub(r"[ \t]#.*", "", text[at:end]).strip()
            at = end
        found[assignment.group(1)] = value if quote == "'" else interpolate(value, known, lambda dummy: "")
        at = (text.find("\n", at) + 1) or len(text)
    return found


def _unescaped(match: re.Match[str]) -> str:
    letter = match.group(1)
    return "$$" if letter == "$" else _ESCAPES.get(letter, letter)
