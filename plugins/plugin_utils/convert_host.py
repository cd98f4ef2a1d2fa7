# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all models of a host have in common becomes the host's variables. Pure."""

from __future__ import annotations

import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import is_secret_name
from ansible_collections.homegpt.vllm.plugins.plugin_utils import weights
from ansible_collections.homegpt.vllm.plugins.plugin_utils.convert import Notes, unknown

# What of the host's caches lies where in a container, as the collection mounts them.
_CACHES = {**{inside: "/" + name for name, inside in weights.CACHES.items()}, "/root/.cache": ""}


def shared_environment(found: dict[str, typing.Any], models: list[dict[str, typing.Any]]) -> None:
    """What all models in containers have in their environment is the host's."""
    if len(models) < 2:
        return
    first = models[0].get("env", {})
    shared = {
        name: value
        for name, value in first.items()
        if not is_secret_name(name) and all(model.get("env", {}).get(name) == value for model in models)
    }
    if shared:
        found["vllm_env"] = shared
    for model in models:
        model["env"] = {name: value for name, value in model.get("env", {}).items() if name not in shared}
        if not model["env"]:
            del model["env"]


def access(found: dict[str, typing.Any], accesses: typing.Mapping[str, typing.Sequence[str]], notes: Notes) -> None:
    """How containers are given their GPUs, where all that say so say the same."""
    named = {name: places for name, places in accesses.items() if name}
    if len(accesses) == 1 and named:
        (found["vllm_gpu_access"],) = named
    elif named:
        notes.add(
            ", ".join(place for places in named.values() for place in places),
            "has devices for vllm_gpu_access: %s, but other models do not: it applies to all models of a host"
            % ", ".join(sorted(named)),
        )


def volumes(found: dict[str, typing.Any], given: typing.Iterable[tuple[str, str]], notes: Notes) -> None:
    """The volumes of all models, and the folder of their caches, where they agree. C(given): each with its place."""
    bases: dict[str, str] = {}
    kept: dict[str, str] = {}
    for volume, place in given:
        source, _colon, rest = volume.partition(":")
        target, _colon, mode = rest.partition(":")
        target = target.rstrip("/")
        where = "%s: volume of %s" % (place, target or source)
        if target in ("/logs", "/logs/logging.json"):
            continue
        if target in _CACHES:
            bases.setdefault(_cache_base(source, _CACHES[target]), place)
        elif not source.startswith("/") or not target or unknown(volume):
            notes.add(where, "not converted: set it in vllm_volumes with the full path of the source")
        else:
            others = [option for option in mode.split(",") if option not in ("", "ro", "rw")]
            if others:
                notes.add(where, "its options are not converted: %s" % ", ".join(others))
            taken = source + ":" + target + (":ro" if "ro" in mode.split(",") else "")
            if kept.setdefault(target, taken) != taken:
                notes.add(where, "not converted: another model has another one there, and vllm_volumes is for all")
    if kept:
        found["vllm_volumes"] = list(kept.values())
    base = next(iter(bases), "")
    if len(bases) == 1 and base.startswith("/") and not unknown(base):
        if base.rstrip("/") != "/root/.cache":
            found["vllm_cache_dir"] = base.rstrip("/")
    elif bases:
        notes.add(
            ", ".join(dict.fromkeys(bases.values())),
            "its caches are in %s: set vllm_cache_dir to that folder's full path, or the weights are fetched again "
            "into /root/.cache" % ", ".join(base or "folders of their own" for base in bases if not unknown(base)),
        )


def _cache_base(source: str, folder: str) -> str:
    """The folder that vllm_cache_dir would be for the source of a cache's volume; empty if it is called otherwise."""
    if not folder:
        return source
    return source[: -len(folder)] if source.endswith(folder) else ""
