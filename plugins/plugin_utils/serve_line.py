# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the words of a `vllm serve` command line to C(model) and C(args): the inverse of C(compose.serve_words).

What is read is written by C(compose) as words that mean the same to vLLM.
"""

from __future__ import annotations

import json
import re
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import is_secret_name
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import map_text
from ansible_collections.homegpt.vllm.plugins.plugin_utils import weights
from ansible_collections.homegpt.vllm.plugins.plugin_utils.compose import JSON_LISTS, REPEATED, WITHOUT_NO_FORM

# From vLLM 0.32.0's parser, like the sets in C(compose): the options that take several words.
_SEVERAL = frozenset(
    (
        "allowed_media_domains",
        "api_key",
        "collect_detailed_traces",
        "cpu_offload_params",
        "cudagraph_capture_sizes",
        "ignore_patterns",
        "kv_cache_dtype_skip_layers",
        "logits_processors",
        "lora_modules",
        "lora_target_modules",
        "numa_bind_cpus",
        "numa_bind_nodes",
        "offload_params",
        "served_model_name",
        "sleep_preserve_parameter_names",
    )
)
_SHORT = {
    "ac": "attention_config",
    "asc": "api_server_count",
    "cc": "compilation_config",
    "dc": "diffusion_config",
    "dcp": "decode_context_parallel_size",
    "dp": "data_parallel_size",
    "dpa": "data_parallel_address",
    "dpb": "data_parallel_backend",
    "dpe": "data_parallel_external_lb",
    "dph": "data_parallel_hybrid_lb",
    "dpl": "data_parallel_size_local",
    "dpm": "data_parallel_multi_port_external_lb",
    "dpn": "data_parallel_rank",
    "dpp": "data_parallel_rpc_port",
    "dpr": "data_parallel_start_rank",
    "ep": "enable_expert_parallel",
    "n": "nnodes",
    "O": "compilation_config",
    "pcp": "prefill_context_parallel_size",
    "pp": "pipeline_parallel_size",
    "q": "quantization",
    "r": "node_rank",
    "sc": "speculative_config",
    "tp": "tensor_parallel_size",
}
# A switch takes no word, so one behind it is the model. The parser has a hundred; nearly all are called like this.
_SWITCH = re.compile(r"(enable|disable|trust|skip|return|use|no)_|(enforce_eager|headless|fully_sharded_loras)\Z")
# A variable whose value nobody knows, as C(convert.UNKNOWN) writes it.
_MARKED = re.compile("\ue000[^\ue001]*\ue001\\Z")
_OPTION = re.compile(r"--?[A-Za-z]")
_CANONICAL = re.compile(r"-?(0|[1-9]\d{0,14})\Z")
_DECIMAL = re.compile(r"-?\d{0,9}\.\d{1,9}\Z")


class Line(typing.NamedTuple):
    """What a command line says. C(names) are what the server answers to beside the model."""

    model: str
    names: list[str]
    args: dict[str, typing.Any]
    host: str
    port: str
    problems: list[str]


def parse(words: typing.Sequence[str]) -> Line:
    """The command line behind `vllm serve`. Problems name places and options, never a value: it may be a secret."""
    words, together = _apart(words)
    unknown = [word for index, word in enumerate(words) if index and _stray(words[index - 1], word)]
    loose, given = _options(
        [word for index, word in enumerate(words) if not (index and _stray(words[index - 1], word))]
    )
    problems = ["more arguments are in %s: add them to args" % word for word in unknown if word]
    problems += ["%s and its value are one word, which vLLM rejects: split into two" % flag for flag in together]
    model = loose.pop(0) if loose else ""
    args: dict[str, typing.Any] = {}
    for name, values in given:
        if name in args and name not in REPEATED:
            problems.append("--%s is given more than once: the last one counts" % name.replace("_", "-"))
        if not values:
            off = name.startswith("no_") and name[3:] not in WITHOUT_NO_FORM
            args[name[3:] if off else name] = not off
        elif name in REPEATED:
            args.setdefault(name, []).extend(values)
        elif len(values) == 1:
            args[name] = _value(name, values[0])
        else:
            args[name] = [_value(name, value, in_list=True) for value in values]
    # What nobody gave has to come from a switch that seems to have a value.
    option_model = args.pop("model", "")
    model = str(option_model) if option_model and option_model is not True else model
    guessed = [name for name, values in given if len(values) == 1 and _SWITCH.match(name)] if not model else []
    if len(guessed) == 1:
        model, args[guessed[0]] = str(dict(given)[guessed[0]][0]), True
    if loose:
        problems.append(
            "%d word(s) of the command belong to no option and are left out: check the quotes of the command"
            % len(loose)
        )
    names = args.pop("served_model_name", [])
    names = [str(name) for name in (names if isinstance(names, list) else [names]) if name is not True]
    host, port = (str(args.pop(name, "")) for name in ("host", "port"))
    return Line(model, names, args, host, port, problems)


def _apart(words: typing.Sequence[str]) -> tuple[list[str], list[str]]:
    """The words, where an item of a list is an option with its value made two; and the options of those."""
    apart: list[str] = []
    flags = []
    for word in words:
        found = re.match(r"(--[A-Za-z][\w.-]*)\s+(\S.*)\Z", word, re.DOTALL)
        if found:
            flags.append(found.group(1))
            apart += found.groups()
        else:
            apart.append(word)
    return apart, flags


def _stray(before: str, word: str) -> bool:
    """Whether a word that a variable stood for is no value of what is before it, but nothing, or more words."""
    option = bool(_OPTION.match(before)) and "=" not in before
    if not word:
        return not option or bool(_SWITCH.match(_name(before)))
    return option and bool(_MARKED.match(word) and _SWITCH.match(_name(before)))


def _options(words: typing.Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The words that belong to no option, and each option with its words."""
    loose: list[str] = []
    given: list[tuple[str, list[str]]] = []
    complete = True  # whether the last option takes no further word
    for word in words:
        if _OPTION.match(word):
            flag, equals, value = word.partition("=")
            name = _name(flag)
            level = re.match(r"-O(\d+)\Z", flag)
            if level:
                name, equals, value = "optimization_level", "=", level.group(1)
            given.append((name, [value] if equals else []))
            complete = bool(equals)
        elif complete or (given[-1][1] and given[-1][0] not in _SEVERAL and not loose and not _modelled(given)):
            loose.append(word)
        else:
            given[-1][1].append(word)
    return loose, given


def _modelled(given: typing.Iterable[tuple[str, list[str]]]) -> bool:
    return any(name == "model" for name, dummy in given)


def _name(flag: str) -> str:
    """The key of an option: C(--max-model-len) is C(max_model_len), C(-cc.mode) is C(compilation_config.mode)."""
    name, dot, part = flag.lstrip("-").partition(".")
    if not flag.startswith("--"):
        name = _SHORT.get(name, name)
    return name.replace("-", "_") + dot + part


def _value(name: str, text: str, in_list: bool = False) -> typing.Any:
    """A word as the value that C(compose) writes as a word of the same meaning."""
    if is_secret_name(name) or name.endswith("revision"):
        return text
    if _CANONICAL.match(text) and text != "-0":
        return int(text)
    if _DECIMAL.match(text):
        return float(text)
    dotted = "." in name
    if text[:1] in ("{", "[") or (dotted and text in ("true", "false")):
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return text
        # A list is written as words of its own, but for these.
        if not isinstance(value, list) or dotted or (name in JSON_LISTS and not in_list):
            return value
    return text


def _refuse(constant: str) -> typing.Any:
    raise ValueError(constant)


def weights_of_service(
    service: typing.Mapping[str, typing.Any], stack_dir: str, home: str = "~", staying: typing.Any = ()
) -> dict[str, str]:
    """Where the weights of a model that is gone are, as C(weights.plain) tells it, by the service that it has left.

    Empty where that can't be told. What a model of C(staying) names anywhere has no C(folder) and no C(locks):
    a C(start_command) may read the same cache, by whatever path.
    """
    said = map_text(service, lambda text: text.replace("$$", "$"))
    forms = {"command": list, "volumes": list, "environment": dict}
    if any(not isinstance(said.get(key), form) for key, form in forms.items()):
        return {}  # somebody else has written it
    line = parse(said["command"])
    volumes = [weights.volume_of(text, stack_dir, home) for text in said["volumes"]]
    try:
        found = weights.weights_of(line.model, line.args, said["environment"], volumes)
    except ValueError:
        return {}
    if found is None:
        return {}
    told = weights.plain(found, volumes)
    return {**told, "folder": "", "locks": ""} if weights.is_named(found.repo, staying) else told
