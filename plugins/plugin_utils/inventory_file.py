# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the YAML of others, and writes the variables of a host as a file that people go on editing."""

from __future__ import annotations

import textwrap
import typing

import yaml


class ReadError(Exception):
    """A file is no YAML."""


def read(name: str, text: str) -> typing.Any:
    """What a YAML file says. Raises ReadError with the place of the mistake, and no line of the file."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = ", line %d, column %d" % (mark.line + 1, mark.column + 1) if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it can't be read"
        raise ReadError("%s%s is not right YAML: %s" % (name, where, problem)) from None
    except (ValueError, RecursionError) as error:
        raise ReadError("%s is not right YAML: %s" % (name, type(error).__name__)) from None


class _Dumper(yaml.SafeDumper):
    """Lists of single values on one line, other lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> typing.Any:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: typing.Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # Ansible would take it for a template.
    template = any(mark in value for mark in ("{{", "{%", "{#"))
    style = '"' if template or not value.isprintable() else None
    return dumper.represent_scalar("!unsafe" if template else "tag:yaml.org,2002:str", value, style=style)


def _list(dumper: yaml.SafeDumper, value: typing.Sequence[typing.Any]) -> yaml.Node:
    flat = not any(isinstance(item, (dict, list)) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)


def write(
    variables: typing.Mapping[str, typing.Any], notes: typing.Iterable[str], sources: typing.Sequence[str]
) -> str:
    """The file: where it is from, what is left to do, and the variables."""
    lines = ["---", "# Made by homegpt.vllm.convert out of %s." % ", ".join(sources)]
    notes = list(notes)
    if notes:
        lines += ["#", "# To look at:"]
    for note in notes:
        shown = "".join(character if character.isprintable() else "?" for character in note)
        lines += textwrap.wrap(shown, 118, initial_indent="# - ", subsequent_indent="#   ", break_on_hyphens=False)
    blocks = []
    for key, value in variables.items():
        if key == "vllm_models":
            # An empty line between models.
            entries = [textwrap.indent(_dump([model]), "  ") for model in value]
            blocks.append("vllm_models:\n" + "\n".join(entries))
        else:
            blocks.append(_dump({key: value}))
    return "\n".join(lines) + "\n\n" + "\n".join(blocks)


def _dump(value: typing.Any) -> str:
    return str(
        yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110)
    )
