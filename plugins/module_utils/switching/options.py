# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Those options of C(vllm serve) that have to be known here, such as where the server listens.

From vLLM's parsers (C(cli_args.py) in C(entrypoints/openai) of 0.11.0 and in C(entrypoints/launchers) of 0.32.0) and
from C(entrypoints/cli/serve.py), which tells what becomes of them. C(root_path) is none: paths without it are answered
too. What speculates is from C(config/speculative.py) and C(engine/arg_utils.py) of 0.11.0, 0.32.0 and 0.33.0.
"""

from __future__ import annotations

import json
import os
import typing

# Names as the inventory's args have them.
Options = typing.Mapping[str, typing.Any]

_ONE_OF_SEVERAL = "the server is one of several that only sleep together: set only data_parallel_size"
_NO_API = "the server has no API, so it can't be put to sleep: remove it"
_OTHER_HOSTS = "the server waits for servers on other hosts, but a model runs on one host: remove it"
_UNFOLLOWED = {
    "uds": "the server listens on a socket file instead of the port that a switch uses: remove it",
    "headless": _NO_API,
    "grpc": "the server uses gRPC instead of HTTP, which a switch needs: remove it",
    "data_parallel_external_lb": _ONE_OF_SEVERAL,
    "data_parallel_hybrid_lb": _ONE_OF_SEVERAL,
    "data_parallel_multi_port_external_lb": _ONE_OF_SEVERAL,
    "data_parallel_rank": _ONE_OF_SEVERAL,
    "data_parallel_start_rank": _ONE_OF_SEVERAL,
}
_TLS = ("ssl_keyfile", "ssl_certfile")
_SHORT = {
    "asc": "api_server_count",
    "dp": "data_parallel_size",
    "dpe": "data_parallel_external_lb",
    "dph": "data_parallel_hybrid_lb",
    "dpl": "data_parallel_size_local",
    "dpm": "data_parallel_multi_port_external_lb",
    "dpn": "data_parallel_rank",
    "dpr": "data_parallel_start_rank",
    "n": "nnodes",
    "sc": "speculative_config",
}
# Methods whose drafts come of the texts, or that draft nothing: there are no weights that a wake could leave wrong.
_DRAFT_WITHOUT_WEIGHTS = ("ngram", "[ngram]", "ngram_gpu", "suffix", "extract_hidden_states")
# What runs its command elsewhere: an address in it is not one of this host.
_ELSEWHERE = ("docker", "kubectl", "nerdctl", "podman", "ssh")
_LOOPBACK = "127.0.0.1"


class Listens(typing.NamedTuple):
    """Where a server is to be asked: an address of this host, and whether by TLS."""

    address: str = _LOOPBACK
    tls: bool = False


def of_command(words: typing.Sequence[str]) -> dict[str, typing.Any] | None:
    """The options of a command that surely is vLLM's server on this host, each as text or true; None for another."""
    start = next(
        (
            index
            for index, (word, following) in enumerate(zip(words, [*words[1:], ""]))
            if (os.path.basename(word) == "vllm" and following == "serve")
            or (word == "-m" and following.startswith("vllm.entrypoints."))
        ),
        None,
    )
    # Also behind sudo, env or a shell's exec.
    if start is None or any(os.path.basename(word) in _ELSEWHERE for word in words[:start]):
        return None
    found: dict[str, typing.Any] = {}
    name = ""
    for word in words[start + 2 :]:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word[2:].partition("=")
            name = flag.replace("-", "_")
        elif word[:1] == "-" and word[1:].partition("=")[0] in _SHORT:
            flag, equals, value = word[1:].partition("=")
            name = _SHORT[flag]
        else:
            if found.get(name) is True:
                found[name] = word
            name = ""
            continue
        found[name] = value if equals else True
        name = "" if equals else name
    return found


def listens(words: typing.Sequence[str]) -> Listens:
    """Where the server of a C(start_command) that was found right is to be asked."""
    options = of_command(words) or {}
    host = options.get("host")
    # A server that listens at all addresses does at this one; without IPv4 nothing here would work.
    address = _LOOPBACK if host in (None, True, "", "0.0.0.0", "localhost", "::") else str(host)  # noqa: S104
    return Listens(address.strip("[]"), any(options.get(name) for name in _TLS))


def calls_tools(options: Options) -> bool:
    """Whether the server takes requests that let the model call tools; else it answers 400 (seen with 0.32.0)."""
    return bool(options.get("enable_auto_tool_choice") and options.get("tool_call_parser"))


def adapters(options: Options, words: typing.Sequence[str] = ()) -> list[str]:
    """The names of the LoRA adapters that a server is started with: by C(args), or by the words of its command."""
    given = list(_values(words, "--lora-modules")) if words else options.get("lora_modules")
    found = (_adapter(one) for one in ([given] if isinstance(given, (str, dict)) else given or ()))
    return list(dict.fromkeys(name for name in found if name))


def unfollowed(options: Options) -> typing.Iterator[tuple[str, str]]:
    """The options that no switch can follow, and why; C(options) by the names of args, as text or as they are."""
    for name, why in _UNFOLLOWED.items():
        value = options.get(name)
        if value is not None and value is not False and value != "":  # a rank of 0 is one
            yield name, why
    if _number(options.get("api_server_count")) == 0:
        yield "api_server_count", _NO_API
    if (_number(options.get("nnodes")) or 1) > 1:
        yield "nnodes", _OTHER_HOSTS
    local = _number(options.get("data_parallel_size_local"))
    if local is not None and local != (_number(options.get("data_parallel_size")) or 1):
        yield "data_parallel_size_local", _OTHER_HOSTS
    if _number(options.get("ssl_cert_reqs")) == 2:
        yield (
            "ssl_cert_reqs",
            "the server requires a client certificate, which a switch does not have: set it to 0 or 1",
        )


def unfollowed_in_container(options: Options) -> typing.Iterator[tuple[str, str]]:
    """The same for a server in a container."""
    yield from unfollowed(options)
    for name in _TLS:
        if options.get(name):
            yield (
                name,
                "a container's port is published on this host only, and Open WebUI uses plain HTTP: remove it, and "
                "terminate TLS in a proxy",
            )


def unfollowed_in_command(options: Options, port: int) -> typing.Iterator[tuple[str, str]]:
    """The same for a C(start_command), by the option's name, and what of its address is not this host's port."""
    yield from unfollowed(options)
    host = options.get("host")
    if isinstance(host, str) and not _is_address(host):
        yield "host", f"{host} is a host name, but a switch needs an address: set the address, or 127.0.0.1"
    elif isinstance(host, str) and "%" in host:
        yield "host", f"{host} is an address of one interface, which nginx can't use: set another, or 127.0.0.1"
    given = _number(options.get("port"))
    if given is not None and given != port:
        yield "port", f"the server listens on {given}, but a switch uses host_port {port}: set it to ${{host_port}}"


def draft_weights(options: Options) -> bool | None:
    """Whether the server speculates with drafts that have weights of their own; None where no option tells.

    C(options) by the names of args, as text or as they are. Without any a checkpoint may still bring its draft model.
    """
    whole = options.get("speculative_config")
    if isinstance(whole, str):
        try:
            whole = json.loads(whole)
        except (ValueError, RecursionError):  # vLLM's to refuse
            whole = None
    said = {str(key).replace("-", "_"): value for key, value in whole.items()} if isinstance(whole, dict) else {}
    for key in ("method", "model"):
        for name in (f"speculative_config.{key}", f"spec_{key}", f"speculative_{key}"):  # the last one before 0.9
            if options.get(name):
                said.setdefault(key, options[name])
    # A model without a method is a draft model, unless it is called as a method is.
    method = said.get("method") or said.get("model")
    return str(method) not in _DRAFT_WITHOUT_WEIGHTS if method else None


def _values(words: typing.Iterable[str], flag: str) -> typing.Iterator[str]:
    """The values that a flag of a command has, however often it is given."""
    taking = False
    for word in words:
        name, equals, value = word.partition("=")
        if name == flag:
            taking = True
            if equals:
                yield value
        elif word.startswith("--"):
            taking = False
        elif taking:
            yield word


def _adapter(given: typing.Any) -> str:
    """The name of one of C(lora_modules): NAME=PATH, or an object with C(name), also as JSON text."""
    if isinstance(given, str):
        if not given.lstrip().startswith("{"):
            return given.partition("=")[0].strip()
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):  # vLLM's to refuse
            return ""
    name = given.get("name") if isinstance(given, dict) else ""
    return name if isinstance(name, str) else ""


def _is_address(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    import ipaddress  # noqa: PLC0415 - few need it, and every switch would wait for it

    try:
        # Python 3.8 knows no address with an interface.
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def _number(value: typing.Any) -> int | None:
    """The whole number that a value is; None where it is none, which is told elsewhere or by vLLM itself."""
    if isinstance(value, bool):
        return None
    try:
        return int(str(value))
    except ValueError:
        return None
