# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why hosts, variables and files can't be found or read, and the remedy, from what Ansible says of them. Pure."""

from __future__ import annotations

import difflib
import re
import typing

_SHOWN = 12  # names of a list that are told; who has more groups than that knows them

Values = typing.Mapping[str, typing.Any]
Files = typing.Sequence[typing.Tuple[str, str]]  # their names and what is in them


class Selection(typing.NamedTuple):
    """Which hosts were asked for, and what there is."""

    target: typing.Any
    limit: str | None
    sources: typing.Sequence[str]
    groups: typing.Mapping[str, typing.Sequence[str]]
    hosts: typing.Sequence[str]  # of the inventory
    unlimited: typing.Sequence[str] = ()  # of the target, whatever the limit
    files: Files = ()


def conversion(given: Values) -> str:
    """Why it is not known what to convert; empty where it is."""
    sources = [key for key in ("homegpt_config", "llama_swap_config") if given.get(key)]
    alone = not sources and bool(given.get("homegpt_compose"))
    mixed = "llama_swap_config" in sources and "homegpt_compose" in given
    if (len(sources) == 1 or alone) and not mixed and given.get("dest"):
        return ""
    return (
        "no files given: set the file to convert and the file to write: -e homegpt_config=config.yaml "
        "-e homegpt_compose='compose-vllm-*.yml', -e homegpt_compose=compose.yaml alone, or -e llama_swap_config=FILE, "
        "and -e dest=group_vars/vllm_hosts.yml"
    )


def unconverted(error: str) -> list[str]:
    """The mistakes of the files, from what Ansible says of the filter that failed."""
    found = re.findall(r"^- (.*)$", error, re.MULTILINE)
    return list(dict.fromkeys(found)) or [unresolved(error, False, ())]


def no_host(selection: Selection) -> str:
    """Why there is no host to work on."""
    pattern = shown(selection.target)
    if not selection.hosts:
        sources = ", ".join(selection.sources)
        tabs = _tabs(selection.files)
        if tabs:
            return f"no host matches {pattern}: {'; '.join(tabs)}"
        return (
            f"no host matches {pattern}: the inventory has no hosts ({sources} is missing, empty or can't be read): "
            "name yours with -i, such as -i inventory"
        )
    if selection.unlimited:
        return f"--limit {selection.limit} leaves no host of {pattern}, which has: {_some(selection.unlimited)}"
    groups = [name for name in selection.groups if name not in ("all", "ungrouped")]
    near = difflib.get_close_matches(pattern, [*groups, *selection.hosts], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    known = (
        f"the groups are: {_some(groups)}"
        if groups
        else f"there are no groups, and the hosts are: {_some(selection.hosts)}"
    )
    return (
        f"no host matches {pattern} ({hint}{known}): put the GPU hosts into the group vllm_hosts, or name another host "
        "or group with -e target=NAME"
    )


def missing_parts(target: typing.Any, parts: typing.Sequence[str], selection: Selection) -> list[str]:
    """The names within a target of several that no host or group has; a pattern is none."""
    known = {*selection.groups, *selection.hosts, "localhost"}
    plain = [part.lstrip("!&") for part in parts]
    lost = [part for part in plain if re.fullmatch(r"[\w.-]+", part) and part not in known]
    return [f"target {shown(target)}: there is no host or group {part}{_near(part, known)}" for part in lost]


def shown(target: typing.Any) -> str:
    """A pattern of hosts as one would type it."""
    return ",".join(map(str, target)) if isinstance(target, (list, tuple)) else str(target)


def unresolved(error: str, secret: bool, known: typing.Iterable[str]) -> str:
    """Why a variable has no value, behind its name: from what Ansible says of it."""
    found = re.search(r"'([^']+)' is undefined", error)
    if found:
        return f"refers to {found[1]}, which is not defined{_near(found[1], known)}"
    found = re.search(r"has no attribute '([^']+)'", error)
    if found:
        return f"refers to {found[1]}, which its object does not have"
    if "vault secrets found" in error or "vault password" in error.lower():
        return "is encrypted, and there is no vault password: give --ask-vault-pass or --vault-password-file"
    if "vault" in error.lower() or "decrypt" in error.lower():
        return "is encrypted, and none of the vault passwords matches"
    if "recursive" in error.lower() or "recursion" in error.lower():
        return "refers to itself"
    if secret:
        return "can't be evaluated (the error is not shown because the name looks secret)"
    return "can't be evaluated: " + " ".join(error.split())[:160]


def unreadable(error: str, files: Files) -> str:
    """Why a host's variables can't be read at all."""
    if "vault" in error.lower() or "decrypt" in error.lower():
        encrypted = [name for name, text in files if text.startswith("$ANSIBLE_VAULT")]
        return f"{_some(encrypted) or 'the file of its variables'} {unresolved(error, True, ())}"
    return "; ".join(_tabs(files)) or "its variables can't be read: " + " ".join(error.split())[:160]


def _tabs(files: Files) -> list[str]:
    """The files of YAML that are indented by a tab."""
    found = []
    for name, text in files:
        lines = [i for i, line in enumerate(text.splitlines(), 1) if re.match(r" *\t", line)]
        if lines and name.endswith((".yml", ".yaml")):
            found.append(f"{name} line {lines[0]} is indented with a tab, but YAML requires spaces")
    return found


def mistaken_names(names: typing.Iterable[str], known: typing.Iterable[str]) -> list[str]:
    """Names that are one of the collection's but for a slip, where that one is not set."""
    names, known = set(names), set(known)
    unset = known - names
    found = []
    for name in sorted(names - known):
        near = difflib.get_close_matches(name, unset, n=1, cutoff=0.85)
        if near:
            found.append(f"there is no variable {name}; did you mean {near[0]}?")
    return found


def _some(names: typing.Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _near(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""
