# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How llama-swap puts a model to sleep and wakes it: as a sleep level, where its calls are vLLM's own. Pure."""

from __future__ import annotations

import contextlib
import json
import re
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Switching
from ansible_collections.homegpt.vllm.plugins.plugin_utils import convert

Values = typing.Mapping[str, typing.Any]


def calls(
    entry: Values, config: Values, kind: str, place: str, expand: typing.Callable[[typing.Any, str], typing.Any]
) -> list[dict[str, typing.Any]]:
    """The calls of C(sleepEndpoints) or C(wakeEndpoints), as the inventory has them."""
    given = entry.get(kind + "Endpoints") or []
    default = config.get(kind + "RequestTimeout") or 10
    found = []
    for index, item in enumerate(convert.as_list(given)):
        field = "%sEndpoints[%d]" % (kind, index)
        if not isinstance(item, dict) or not isinstance(item.get("endpoint"), str):
            raise convert.ConvertError(["%s.%s: must be a dictionary with an endpoint" % (place, field)])
        timeout = item.get("timeout") or default
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout <= 0:
            raise convert.ConvertError(["%s.%s: timeout must be a number greater than 0" % (place, field)])
        call = {"endpoint": expand(item["endpoint"], field + ".endpoint")}
        call["method"] = str(item.get("method") or "POST").upper()
        if item.get("body") not in (None, ""):
            call["body"] = expand(item["body"], field + ".body")
            if isinstance(call["body"], str):
                # What is no JSON is sent as it stands.
                with contextlib.suppress(ValueError, RecursionError):
                    call["body"] = json.loads(call["body"])
        if convert.unknown(call):
            raise convert.ConvertError(
                [
                    "%s.%s: give the values of its environment variables as convert_variables: %s"
                    % (place, field, ", ".join(convert.unknown(call)))
                ]
            )
        found.append({**call, "timeout": timeout})
    return found


def settle(
    model: dict[str, typing.Any],
    sleeps: list[dict[str, typing.Any]],
    wakes: list[dict[str, typing.Any]],
    foreign: bool,
    place: str,
    notes: convert.Notes,
) -> None:
    """Its sleep level, or the calls, where they are none of vLLM's own sequences."""
    if not sleeps:
        model["sleep_level"] = "stop"
        notes.add(place, "has no sleepEndpoints: it is stopped, as before; remove sleep_level to have it sleep instead")
        return
    level, reloads = _level(sleeps), _reloads(wakes)
    if foreign or level is None or reloads is None:
        model["sleep_requests"], model["wake_requests"] = sleeps, wakes
        return
    model["sleep_level"] = level
    if level == 2 and not reloads:
        notes.add(place + ".wakeEndpoints", "did not load the weights again after level 2; the collection does")
    if level == 1 and reloads:
        notes.add(place + ".wakeEndpoints", "loaded the weights again after level 1; the collection does not need to")
    limit = Switching.request_timeout_seconds
    notes.add(
        place,
        "sleep_level replaces its sleepEndpoints and wakeEndpoints; their timeouts are not converted: "
        "vllm_switching.request_timeout_seconds is %d" % limit,
    )


def _level(sleeps: typing.Sequence[typing.Mapping[str, typing.Any]]) -> int | None:
    """The level of vLLM's own call that puts it to sleep, where nothing else is called."""
    calls = [call for call in sleeps if call["endpoint"] != "/reset_prefix_cache"]
    if len(calls) != 1 or any(call["method"] != "POST" or call.get("body") for call in sleeps):
        return None
    match = re.match(r"/sleep/?(?:\?level=([12]))?\Z", calls[0]["endpoint"])
    return int(match.group(1) or 1) if match else None


def _reloads(wakes: typing.Sequence[typing.Mapping[str, typing.Any]]) -> bool | None:
    """Whether vLLM's own calls that wake it load the weights; None where they are others."""
    woken = reloads = False
    for call in wakes:
        path = call["endpoint"]
        if call["method"] != "POST":
            return None
        if re.match(r"/wake_up/?(\?tags=(weights|kv_cache)(&tags=(weights|kv_cache))?)?\Z", path) and not call.get(
            "body"
        ):
            woken = True
        elif path == "/collective_rpc" and call.get("body") == {"method": "reload_weights"}:
            reloads = True
        elif path != "/reset_prefix_cache" or call.get("body"):
            return None
    return reloads if woken else None
