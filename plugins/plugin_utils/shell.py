# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what a shell is told, where it is no more than one command after the other. Pure.

Everything else (pipes, redirections, conditions, loops, substitutions) is refused by name: half a shell would guess.
"""

from __future__ import annotations

import posixpath
import re
import typing

from ansible_collections.homegpt.vllm.plugins.plugin_utils.compose_variables import BadVariable, closing, interpolate

SHELLS = frozenset(("bash", "sh", "dash", "ash", "zsh", "ksh"))
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_OR_EXIT = re.compile(r"\|\|[ \t]*exit(?:[ \t]+\d+)?[ \t]*(?=[;\n]|\Z)")
_NAME = re.compile(r"[A-Za-z_]\w*")
_RESERVED = frozenset(
    ("if", "then", "elif", "else", "fi", "for", "while", "until", "do", "done", "case", "esac", "select", "function",
     "time", "coproc", "eval", "trap", "alias", "{", "}", "!", "[[")
)  # fmt: skip


class Unread(Exception):
    """A shell text is no plain sequence of commands; the message is the place in it."""


class Command(typing.NamedTuple):
    """One command: where it begins in the text, its words, and C(NAME=value) that stand before them."""

    start: int
    words: list[str]
    assigned: dict[str, str]


def script(words: typing.Sequence[str]) -> tuple[str, list[str]] | None:
    """The text and the arguments (the first is C($0)) of C(bash -c TEXT ...); None where it is none."""
    if not words or posixpath.basename(words[0]) not in SHELLS:
        return None
    for index, word in enumerate(words[1:], 1):
        if re.match(r"-[a-z]*c[a-z]*\Z", word):
            return (words[index + 1], list(words[index + 2 :])) if len(words) > index + 1 else None
        if not word.startswith("-"):
            return None
    return None


def commands(
    text: str,
    variables: typing.Mapping[str, str],
    arguments: typing.Sequence[str],
    missing: typing.Callable[[str], str],
) -> typing.Iterator[Command]:
    """The commands of a text, one after the other; C(variables) may change between two. Raises Unread.

    C(missing) gives what stands for a variable without a value.
    """
    scan = _Scan(text, variables, arguments, missing)
    while True:
        command = scan.command()
        if command is None:
            return
        yield command


class _Scan:
    def __init__(
        self,
        text: str,
        variables: typing.Mapping[str, str],
        arguments: typing.Sequence[str],
        missing: typing.Callable[[str], str],
    ) -> None:
        self.text, self.variables, self.arguments, self.missing = text, variables, arguments, missing
        self.at = 0
        self.words: list[str] = []
        self.word: str | None = None  # the one that is being read; None between two

    def command(self) -> Command | None:
        """The next command; None at the end."""
        self.words, self.word = [], None
        start = -1
        while self.at < len(self.text):
            letter = self.text[self.at]
            ends_there = _OR_EXIT.match(self.text, self.at)
            if self.text.startswith("&&", self.at) or letter in ";\n":
                ends = bool(self.words or self.word is not None)
                if letter == "&" and not ends:
                    raise self.unread()
                self.at += 2 if letter == "&" else 1
                if ends:
                    break
            elif letter in " \t\r":
                self.finish()
                self.at += 1
            elif letter == "#" and self.word is None:
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text.startswith("\\\n", self.at):
                self.at += 2
            elif letter == "|" and self.word is None and self.words and ends_there:
                # What ends the text where the command fails changes nothing for the one after it.
                self.at = ends_there.end()
            elif letter in "|&<>()`":
                raise self.unread()
            else:
                start = self.at if start < 0 else start
                self.read(letter)
        self.finish()
        if start < 0:
            return None
        assigned = {}
        while self.words and _ASSIGNMENT.match(self.words[0]):
            name, _equals, value = self.words.pop(0).partition("=")
            assigned[name] = value
        if self.words and self.words[0] in _RESERVED:
            raise Unread(self.line(start))
        return Command(start, self.words, assigned)

    def read(self, letter: str) -> None:
        """One letter of a word, or what is in quotes."""
        if letter == "\\":
            self.add(self.text[self.at + 1 : self.at + 2])
            self.at += 2
        elif letter == "'":
            end = self.text.find("'", self.at + 1)
            if end < 0:
                raise self.unread()
            self.add(self.text[self.at + 1 : end])
            self.at = end + 1
        elif letter == '"':
            self.double()
        elif letter == "$":
            self.dollar(quoted=False)
        else:
            self.add(letter)
            self.at += 1

    def double(self) -> None:
        """What is in double quotes."""
        start = self.at
        self.at += 1
        if not re.match(r"\$(@|\{@\})\"", self.text[self.at : self.at + 5]):
            self.add("")
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter == '"':
                self.at += 1
                return
            if letter == "`":
                raise self.unread()
            if letter == "$":
                self.dollar(quoted=True)
            elif letter == "\\" and self.text[self.at + 1 : self.at + 2] in ("$", "`", '"', "\\", "\n"):
                self.add(self.text[self.at + 1].replace("\n", ""))
                self.at += 2
            else:
                self.add(letter)
                self.at += 1
        self.at = start
        raise self.unread()

    def dollar(self, quoted: bool) -> None:
        """A variable, or the arguments."""
        rest = self.text[self.at + 1 :]
        everything = re.match(r"[@*]|\{[@*]\}", rest)
        number = re.match(r"\d|\{\d+\}", rest)
        name = _NAME.match(rest)
        if everything:
            if self.word is not None or (quoted and "*" in everything.group()):
                raise self.unread()
            self.words.extend(self.arguments[1:])
            self.at += 1 + everything.end()
        elif number:
            index = int(number.group().strip("{}"))
            self.expanded(self.arguments[index] if index < len(self.arguments) else "", quoted)
            self.at += 1 + number.end()
        elif name or rest[:1] == "{":
            try:
                end = self.at + 1 + name.end() if name else closing(self.text, self.at + 1) + 1
                value = interpolate(self.text[self.at : end], self.variables.get, self.missing)
            except BadVariable:
                raise self.unread() from None
            self.expanded(value, quoted)
            self.at = end
        elif rest[:1] in ("(", "#", "?", "$", "!", "-", "'", '"') and not (quoted and rest[:1] in ("'", '"', "-")):
            raise self.unread()
        else:
            self.add("$")
            self.at += 1

    def expanded(self, value: str, quoted: bool) -> None:
        """The value of a variable; without quotes it is as many words as it has."""
        if quoted:
            self.add(value)
            return
        for index, part in enumerate(re.split(r"\s+", value)):
            if index:
                self.finish()
            if part:
                self.add(part)

    def add(self, letters: str) -> None:
        """More of the word."""
        self.word = (self.word or "") + letters

    def finish(self) -> None:
        """The word is at its end."""
        if self.word is not None:
            self.words.append(self.word)
            self.word = None

    def unread(self) -> Unread:
        """What is not understood: the line of it."""
        return Unread(self.line(self.at))

    def line(self, at: int) -> str:
        """The line around a place."""
        start = self.text.rfind("\n", 0, at) + 1
        end = self.text.find("\n", at)
        return self.text[start : len(self.text) if end < 0 else end].strip()
