# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment of Open WebUI's container, and what is wrong with one. Runs on the controller.

What is said here of Open WebUI was seen with its version 0.12.4, or stands in its source (config.py, env.py,
utils/middleware.py, routers/openai.py). tests/webui shows it.
"""

from __future__ import annotations

import json
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import options
from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose

Models = typing.Sequence[typing.Mapping[str, typing.Any]]

URLS = "OPENAI_API_BASE_URLS"
KEYS = "OPENAI_API_KEYS"
CONFIGS = "OPENAI_API_CONFIGS"
PARAMS = "DEFAULT_MODEL_PARAMS"
NO_PROXY = ("NO_PROXY", "no_proxy")

# Its health check asks itself.
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# The host as its containers know it; the service's extra_hosts says so.
HOST = "host.docker.internal"
# The key that the role model_gateway has made on the host, in .env.
GATEWAY_KEY = "MODEL_GATEWAY_WEBUI_KEY"
# By these the gateway tells the title of a chat from the chat itself. Open WebUI fills them in.
HEADERS = {"X-OpenWebUI-Task": "{{TASK}}", "X-OpenWebUI-Chat": "{{CHAT_ID}}"}

# For the list of models every server is asked at once, and the slowest is waited for: 10 s unless this is set. A server
# that sleeps answers at once, and one that does not run refuses.
LIST_SECONDS = "3"


def environment(
    models: Models,
    env: typing.Any = None,
    models_for_all: bool = True,
    inline: bool = False,
    gateway_port: int = 0,
    gateway_key: bool = False,
) -> dict[str, str]:
    """What the models add to the environment that was given, as texts for a compose file.

    What was given wins, and is left out here. Only hosts without a proxy and the models' default parameters are joined:
    who gives some does not mean the others to go. Raises ValueError for what mistakes() tells.

    C(gateway_port): that of the host's gateway, which alone is asked then; 0 where there is none. C(gateway_key):
    whether it asks for a key.
    """
    wrong = list(mistakes(() if gateway_port else models, env))
    if wrong:
        raise ValueError("; ".join(wrong))
    own = _texts(env)
    enabled = [model for model in models if model["startup_mode"] != "disabled"]
    running = [model for model in enabled if not model["start_command"]]
    # The gateway reaches all of them.
    talking = [model for model in (enabled if gateway_port else running) if _talks(model)]
    gateway = "http://%s:%d/v1" % (HOST, gateway_port) if gateway_port else ""
    if gateway:
        known = {gateway: "${%s}" % GATEWAY_KEY if gateway_key else "dummy"}
    else:
        known = {_url(model): compose.api_key(model).in_compose(inline) for model in talking}
    urls = _entries(own[URLS]) if URLS in own else list(known)
    added = {
        "ENABLE_OPENAI_API": str(bool(urls)),
        URLS: ";".join(known),
        # A key goes to the address at its place: none of a model's to another server.
        KEYS: ";".join(known.get(url, "") for url in urls),
        CONFIGS: _configs(urls, gateway),
        "ENABLE_OLLAMA_API": "False",
        "ENABLE_PERSISTENT_CONFIG": "False",
        # Else accounts of the role `user` see no model until an administrator shares each.
        "BYPASS_MODEL_ACCESS_CONTROL": str(models_for_all),
        # Else each start asks a hub for weights, and hangs for ever where that takes connections and never answers.
        "OFFLINE_MODE": "True",
        "AIOHTTP_CLIENT_TIMEOUT_MODEL_LIST": LIST_SECONDS,
        "WEBUI_SECRET_KEY": "${WEBUI_SECRET_KEY}",
    }
    # An empty list is none for it, but one of an empty entry.
    found = {name: text for name, text in added.items() if name not in own and text.strip(";")}
    if not all(options.calls_tools(model["args"]) for model in talking):
        # A chat from the browser carries the built-in tools, and vLLM answers 400 to tools unless it was given a parser
        # for them. With `legacy` tools go into the prompt. That is for all models then: an administrator can set
        # `native` for one, an environment variable can't.
        params = {"function_calling": "legacy", **json.loads(own.get(PARAMS, "{}"))}
        found[PARAMS] = compose.escape(json.dumps(params))
    # Programs differ in which of the two they read, and a lower-case one hides the other. A server of vectors may be
    # asked about documents.
    unproxied = _unproxied(running, [own.get(name, "") for name in NO_PROXY], [HOST] if gateway else [])
    return {**found, **dict.fromkeys(NO_PROXY, compose.escape(",".join(unproxied)))}


def mistakes(models: Models, given: typing.Any) -> typing.Iterator[str]:
    """What Open WebUI would get wrong, with the remedy."""
    for model in models:
        if model["start_command"] or model["startup_mode"] == "disabled" or not _talks(model):
            continue
        try:
            key = compose.api_key(model).plain
        except ValueError:
            continue  # its args can't be written at all, which the preflight tells of every model
        if ";" in key:
            yield "%s: Open WebUI treats a semicolon as the end of a key: use an API key without one" % model["id"]
    wrong = list(compose.environment_mistakes(given, "open_webui_env"))
    if wrong:
        yield from wrong
        return
    own = _texts(given)
    if not all(_entries(own.get(URLS, "x"))):
        yield (
            "open_webui_env.%s contains an empty entry, which Open WebUI replaces by api.openai.com, with the key at "
            "that place: remove it with its semicolon, or write https://api.openai.com/v1" % URLS
        )
    try:
        right = isinstance(json.loads(own.get(PARAMS, "{}")), dict)
    except ValueError:
        right = False
    if not right:
        yield "open_webui_env.%s must be a JSON object, or Open WebUI ignores it" % PARAMS


def _talks(model: typing.Mapping[str, typing.Any]) -> bool:
    """Whether it may be one to chat with: nobody does with a model of vectors or of speech."""
    return model["kind"] in ("auto", "text")


def _texts(given: typing.Any) -> dict[str, str]:
    return {name: word.plain for name, word in compose.plain_environment_words(given, "OPEN_WEBUI_").items()}


def _url(model: typing.Mapping[str, typing.Any]) -> str:
    return "http://%s:%s/v1" % (model["container_name"], model["port"])


def _configs(urls: typing.Sequence[str], gateway: str) -> str:
    """What is set for each address by its number: the gateway is told which requests are tasks, and of which chat."""
    found = {str(number): {"headers": HEADERS} for number, url in enumerate(urls) if gateway and url == gateway}
    return json.dumps(found, separators=(",", ":")) if found else ""


def _entries(urls: str) -> list[str]:
    return [url.strip() for url in urls.split(";")]


def _unproxied(models: Models, given: typing.Iterable[str], more: typing.Sequence[str] = ()) -> list[str]:
    entries = [entry.strip() for text in given for entry in text.split(",") if entry.strip()]
    if "*" in entries:
        return ["*"]  # it means all only where it stands alone
    return list(dict.fromkeys([*entries, *LOOPBACK, *more, *(model["container_name"] for model in models)]))
