# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""How a value of an inventory is checked, and what is said of a wrong one: what the key takes, and what it is.

They know no key. C(schema) says which of them is whose.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import math
import re
import typing

from .errors import InventoryError

# Turns a raw value into the checked one, or raises Wrong.
Check = typing.Callable[[typing.Any], typing.Any]

# Nobody nests deeper, and what contains itself is deeper too.
_DEEPEST = 50


class Wrong(Exception):
    """A value is not what its key takes; the text goes behind the key's name."""


def describe(value: typing.Any) -> str:
    """What a wrong value is, for a message."""
    kinds = (
        (bool, "a boolean"),
        (str, "text"),
        (int, "a number"),
        (float, "a number"),
        (dict, "a dictionary"),
        (list, "a list"),
        (type(None), "nothing"),
    )
    kind = next((words for cls, words in kinds if isinstance(value, cls)), type(value).__name__)
    if isinstance(value, bool):
        return "{} ({}, as YAML reads a bare {})".format(kind, value, "on or yes" if value else "off or no")
    if isinstance(value, datetime.date):
        return f"a date ({value})"
    try:
        return f"{kind} ({value})" if isinstance(value, (bool, str, int, float)) else kind
    except ValueError:
        return kind  # a number that Python doesn't print: it is too long


def text(value: typing.Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str):
        quote = "" if value is None or isinstance(value, (dict, list, tuple)) else ": put it in quotes"
        raise Wrong(f"must be text, is {describe(value)}{quote}")
    if not value.strip():
        raise Wrong("must not be empty")
    return str(value)


def literal(value: typing.Any) -> str:
    """Text without variables."""
    given = text(value)
    if "${" in given:
        raise Wrong(f"must not use variables, is {given}")
    return given


def optional_text(value: typing.Any) -> str:
    """Text, which may be empty."""
    return "" if value == "" else text(value)


def matching(pattern: re.Pattern[str], description: str) -> Check:
    """Text of a form."""

    def check(value: typing.Any) -> str:
        given = text(value)
        if not pattern.match(given):
            raise Wrong(f"must be {description}, is {given}")
        return given

    return check


def number(minimum: float | None = None, above: float | None = None, whole: bool = False) -> Check:
    """A number, or text that is one: Jinja hands numbers over as text unless it runs in native mode."""

    def check(value: typing.Any) -> float:
        kind = "a whole number" if whole else "a number"
        try:
            if isinstance(value, bool):
                raise ValueError
            found = float(value)
            if not math.isfinite(found) or (whole and found != int(found)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise Wrong(f"must be {kind}, is {describe(value)}") from None
        if minimum is not None and found < minimum:
            raise Wrong(f"must be {kind} of at least {minimum}, is {value}")
        if above is not None and found <= above:
            raise Wrong(f"must be greater than {above}, is {value}")
        return int(found) if whole else found

    return check


def port(value: typing.Any) -> int:
    """A TCP port."""
    found: int = number(whole=True)(value)
    if not 1 <= found <= 65535:
        raise Wrong(f"must be a port from 1 to 65535, is {found}")
    return found


def boolean(value: typing.Any) -> bool:
    """True or false, or text that is one of them."""
    if isinstance(value, str) and value.lower() in ("true", "yes", "false", "no"):
        return value.lower() in ("true", "yes")
    if not isinstance(value, bool):
        raise Wrong(f"must be true or false, is {describe(value)}")
    return value


def choice(*choices: str) -> Check:
    """One of several words."""

    def check(value: typing.Any) -> str:
        given = str(value)
        if given not in choices or isinstance(value, bool):
            told = describe(value) if isinstance(value, bool) else value
            raise Wrong("must be one of {}, is {}".format(", ".join(choices), told))
        return given

    return check


def list_of(check: Check, what: str) -> Check:
    """A list, each item of which is checked."""

    def check_list(value: typing.Any) -> tuple[typing.Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise Wrong(f"must be a list of {what}, is {describe(value)}")
        return tuple(at(f"[{index}]", check, item) for index, item in enumerate(value))

    return check_list


def mapping_of(pattern: re.Pattern[str], description: str, check: Check) -> Check:
    """A dictionary, each value of which is checked; its keys match C(pattern)."""

    def check_mapping(value: typing.Any) -> dict[str, typing.Any]:
        if not isinstance(value, dict):
            raise Wrong(f"must be a dictionary, is {describe(value)}")
        for key in value:
            if not isinstance(key, str) or not pattern.match(key):
                raise Wrong(f"has the key {key}, which is not a valid {description}")
        return {str(key): at(f".{key}", check, item) for key, item in value.items()}

    return check_mapping


def at(where: str, check: Check, value: typing.Any) -> typing.Any:
    """The checked value of a part; a mistake names where it is."""
    try:
        return check(value)
    except Wrong as wrong:
        said = str(wrong)
        raise Wrong(where + (said if said[0] in ".[:" else " " + said)) from None


def names(value: typing.Any) -> tuple[str, ...]:
    """A list of texts, each once."""
    found: tuple[str, ...] = list_of(text, "names")(value)
    if len(set(found)) != len(found):
        raise Wrong(f"must not contain duplicates, is {list(found)}")
    return found


def scalar_text(value: typing.Any) -> str:
    """Text, or a number or a boolean as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise Wrong(f"must be text or a number, is {describe(value)}")
    return str(value)


def literal_scalar(value: typing.Any) -> str:
    """The same without variables; it may be empty."""
    given = scalar_text(value)
    return literal(given) if given else given


def api_keys(value: typing.Any) -> typing.Any:
    """What vLLM takes for C(api_key): one or several, of which clients are given the first."""
    if value is None or value == "":
        return value
    return list(list_of(_api_key, "keys")(value)) if isinstance(value, (list, tuple)) else _api_key(value)


def _api_key(value: typing.Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Wrong(f"must be text, is {describe(value)}")
    return text(str(value))


def json_value(value: typing.Any) -> typing.Any:
    """The value as JSON gives it back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise Wrong(
            f"must be text, a number, true or false, a list or a dictionary of these, is {describe(value)}"
        ) from None


def endpoint(value: typing.Any) -> str:
    """A path of a server."""
    given = text(value)
    if not given.startswith("/"):
        raise Wrong(f"must be a path that starts with /, is {given}")
    return given


def pattern(value: typing.Any) -> str:
    """A regular expression."""
    try:
        re.compile(text(value))
    except (re.error, OverflowError, RecursionError) as error:
        raise Wrong(f"must be a regular expression: {error}") from None
    return str(value)


@dataclasses.dataclass(frozen=True)
class Field:
    """How one key is checked. Its default is the one of the dataclass that the key belongs to."""

    check: Check
    required: bool = False


def parse_fields(
    fields: typing.Mapping[str, Field], entry: typing.Any, path: str, mistakes: list[str]
) -> dict[str, typing.Any]:
    """The checked values of the keys that are set; every mistake is added to C(mistakes), behind C(path)."""
    prefix = path + ": " if path else ""
    if not isinstance(entry, dict):
        mistakes.append(f"{prefix}must be a dictionary, is {describe(entry)}")
        return {}
    for key in entry:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]}?" if near else "the keys are: {}".format(", ".join(fields))
            mistakes.append(f"{prefix}unknown key {key}; {hint}")
    parsed: dict[str, typing.Any] = {}
    for key, field in fields.items():
        value = entry.get(key)
        if value is None:
            if field.required:
                mistakes.append(f"{prefix}{key} is required")
            continue
        try:
            parsed[key] = field.check(value)
        except Wrong as wrong:
            said = str(wrong)
            mistakes.append("{}{}{}{}".format(prefix, key, "" if said[0] in ".[:" else " ", said))
    return parsed


def unwritable(value: typing.Any, path: str, join: str = ": ", depth: int = 0) -> typing.Iterator[str]:
    """Mistakes about what no file, command line or message can hold. YAML has escapes for all of it."""
    wrong = ""
    if isinstance(value, str):
        if "\0" in value:
            wrong = "must not contain NUL characters"
        elif any("\ud800" <= character <= "\udfff" for character in value):
            wrong = "must be valid Unicode, contains half of a surrogate pair"
    elif isinstance(value, int):
        try:
            str(value)
        except ValueError:
            wrong = "must be a shorter number"
    elif isinstance(value, (dict, list, tuple)) and depth > _DEEPEST:
        # At once: there may be no end to it.
        raise InventoryError([f"{path} must be nested less than {_DEEPEST} levels deep"])
    elif isinstance(value, dict):
        for key, item in value.items():
            odd = list(unwritable(key, f"{path}: a key", ".", depth + 1))
            yield from odd or unwritable(item, f"{path}{join}{key}", ".", depth + 1)
    elif isinstance(value, (list, tuple)):
        inner = path if depth == 0 or join == "." else path + join
        for index, item in enumerate(value):
            yield from unwritable(item, f"{inner}[{index}]", "." if depth else join, depth + 1)
    if wrong:
        yield f"{path}{' ' if join == '.' else join}{wrong}"
