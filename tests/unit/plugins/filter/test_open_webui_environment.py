# SPDX-License-Identifier: MIT
"""What Open WebUI is told of the models. tests/webui shows what it makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.internal import FilterModule
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse

FILTERS = FilterModule().filters()
compose_environment = FILTERS["compose_environment"]
open_webui_environment = FILTERS["open_webui_environment"]

PARSER = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
LOOPBACK = "localhost,127.0.0.1,::1"
URLS = "OPENAI_API_BASE_URLS"
KEYS = "OPENAI_API_KEYS"


def models(*given: dict[str, Any]) -> list[dict[str, Any]]:
    entries = [{"id": "abc"[n], "model": "org/m", "host_port": 8001 + n, **model} for n, model in enumerate(given)]
    return list(parse(entries).as_dict()["vllm_models"]) if entries else []


def environment(*given: dict[str, Any], env: dict[str, Any] | None = None, **more: int) -> dict[str, str]:
    """The whole environment, as the role's template puts it together."""
    inline = more.get("inline", False)
    gateway = (more.get("gateway_port", 0), more.get("gateway_key", False))
    return {
        **compose_environment(env or {}, "OPEN_WEBUI_", inline),
        **open_webui_environment(models(*given), env, more.get("models_for_all", True), inline, *gateway),
    }


def test_all_that_is_set() -> None:
    assert environment({"args": {"api_key": "k"}}, {"port": 9001, "container_name": "b-server"}) == {
        "ENABLE_OPENAI_API": "True",
        URLS: "http://vllm-a:8000/v1;http://b-server:9001/v1",
        KEYS: "${MODEL_8001_API_KEY};dummy",
        "ENABLE_OLLAMA_API": "False",
        "ENABLE_PERSISTENT_CONFIG": "False",
        "BYPASS_MODEL_ACCESS_CONTROL": "True",
        "OFFLINE_MODE": "True",
        "AIOHTTP_CLIENT_TIMEOUT_MODEL_LIST": "3",
        "WEBUI_SECRET_KEY": "${WEBUI_SECRET_KEY}",
        "DEFAULT_MODEL_PARAMS": '{"function_calling": "legacy"}',
        "NO_PROXY": f"{LOOPBACK},vllm-a,b-server",
        "no_proxy": f"{LOOPBACK},vllm-a,b-server",
    }


def test_what_is_given_wins() -> None:
    given = {
        "ENABLE_OPENAI_API": "False",
        "ENABLE_OLLAMA_API": "True",
        "ENABLE_PERSISTENT_CONFIG": "True",
        "BYPASS_MODEL_ACCESS_CONTROL": "False",
        "OFFLINE_MODE": False,
        "AIOHTTP_CLIENT_TIMEOUT_MODEL_LIST": 30,
        "DEFAULT_LOCALE": "de",
        "WEBUI_SECRET_KEY": "mine",
    }
    told = environment({}, env=given)
    assert {name: told[name] for name in given} == {
        **given,
        "OFFLINE_MODE": "false",
        "AIOHTTP_CLIENT_TIMEOUT_MODEL_LIST": "30",
        "WEBUI_SECRET_KEY": "${OPEN_WEBUI_WEBUI_SECRET_KEY}",
    }


def test_models_are_not_for_all() -> None:
    assert environment({}, models_for_all=False)["BYPASS_MODEL_ACCESS_CONTROL"] == "False"


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ([{}], "dummy"),
        ([{"args": {"api_key": "k$"}}], "k$$"),
        # An empty key is none: vLLM takes it so too.
        ([{"env": {"VLLM_API_KEY": ""}}], "dummy"),
        ([{"args": {"api_key": ""}}], "dummy"),
        (
            [{"env": {"VLLM_API_KEY": "k"}}, {"env": {"VLLM_API_KEY": ""}}, {"args": {"api_key": ["l", "m"]}}],
            "k;dummy;l",
        ),
    ],
)
def test_there_are_as_many_keys_as_addresses_and_none_is_empty(given: list[dict[str, Any]], keys: str) -> None:
    told = environment(*given, inline=True)
    assert told[KEYS] == keys
    urls = told[URLS].split(";")
    assert urls == [f"http://vllm-{id}:8000/v1" for id in "abc"[: len(given)]]
    assert all(told[KEYS].split(";")) and len(told[KEYS].split(";")) == len(urls)


def test_without_a_model_nothing_is_asked() -> None:
    told = environment()
    assert told["ENABLE_OPENAI_API"] == "False"
    # Empty ones would be lists of an empty entry, which is api.openai.com.
    assert not {URLS, KEYS, "DEFAULT_MODEL_PARAMS"} & set(told)
    assert told["NO_PROXY"] == LOOPBACK


OWN = "https://api.example.com/v1"


@pytest.mark.parametrize(
    ("urls", "keys"),
    [
        (OWN, None),
        (f"{OWN};http://vllm-b:8000/v1", ";key-b"),
        (f"http://vllm-b:8000/v1; {OWN} ;http://vllm-a:8000/v1", "key-b;;key-a"),
        (f"http://vllm-a:8000/v1;{OWN}", "key-a;"),
    ],
)
def test_a_key_goes_to_its_own_server_alone(urls: str, keys: str | None) -> None:
    both = [{"args": {"api_key": f"key-{id}"}} for id in "ab"]
    told = environment(*both, env={URLS: urls}, inline=True)
    assert (told[URLS], told.get(KEYS)) == (urls, keys)
    assert environment(*both, env={URLS: urls, KEYS: "x;y"}, inline=True)[KEYS] == "x;y"


def test_addresses_of_ones_own_are_asked_where_there_is_no_model() -> None:
    told = environment(env={URLS: OWN, KEYS: "k"}, inline=True)
    assert (told["ENABLE_OPENAI_API"], told[URLS], told[KEYS]) == ("True", OWN, "k")


@pytest.mark.parametrize("urls", ["", ";", f"{OWN};", f";{OWN}", f"{OWN};;http://vllm-a:8000/v1", f"{OWN}; "])
def test_an_empty_address_is_refused(urls: str) -> None:
    with pytest.raises(
        AnsibleFilterError, match=r"open_webui_env\.OPENAI_API_BASE_URLS contains an empty entry, .*openai\.com/v1"
    ):
        environment({}, env={URLS: urls})


def test_a_key_with_a_semicolon_is_refused_and_not_shown() -> None:
    with pytest.raises(AnsibleFilterError, match=r"^b: Open WebUI treats a semicolon as the end of a key") as raised:
        environment({}, {"args": {"api_key": "sk-1;sk-2"}})
    assert "sk-" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "given_params", "params"),
    [
        ([PARSER], None, None),
        ([PARSER, PARSER], None, None),
        ([{}], None, {"function_calling": "legacy"}),
        ([PARSER, {}], None, {"function_calling": "legacy"}),
        ([{"tool_call_parser": "hermes"}], None, {"function_calling": "legacy"}),
        ([{**PARSER, "enable_auto_tool_choice": False}], None, {"function_calling": "legacy"}),
        ([{}], {"temperature": 0.5}, {"function_calling": "legacy", "temperature": 0.5}),
        ([{}], {"function_calling": "native"}, {"function_calling": "native"}),
        ([PARSER], {"system": "costs $5"}, {"system": "costs $$5"}),
        ([{}], {"system": "costs $5"}, {"function_calling": "legacy", "system": "costs $$5"}),
    ],
)
def test_models_without_a_tool_parser_get_no_tools(
    given: list[dict[str, Any]], given_params: dict[str, Any] | None, params: dict[str, Any] | None
) -> None:
    env = {} if given_params is None else {"DEFAULT_MODEL_PARAMS": json.dumps(given_params)}
    told = environment(*({"args": args} for args in given), env=env).get("DEFAULT_MODEL_PARAMS")
    assert (None if told is None else json.loads(told)) == params


@pytest.mark.parametrize("params", ["", "[]", "temperature=1", "null"])
def test_default_parameters_that_are_ignored_are_refused(params: str) -> None:
    with pytest.raises(AnsibleFilterError, match=r"open_webui_env\.DEFAULT_MODEL_PARAMS must be a JSON object"):
        environment({}, env={"DEFAULT_MODEL_PARAMS": params})


@pytest.mark.parametrize(
    ("env", "hosts"),
    [
        ({"HTTP_PROXY": "http://proxy:3128"}, f"{LOOPBACK},vllm-a"),
        ({"NO_PROXY": "search, .lan"}, f"search,.lan,{LOOPBACK},vllm-a"),
        ({"no_proxy": "search,,vllm-a"}, f"search,vllm-a,{LOOPBACK}"),
        ({"NO_PROXY": "one,127.0.0.1", "no_proxy": "two,one"}, "one,127.0.0.1,two,localhost,::1,vllm-a"),
        ({"NO_PROXY": ""}, f"{LOOPBACK},vllm-a"),
        ({"NO_PROXY": "*", "no_proxy": "one"}, "*"),
    ],
)
def test_models_and_the_health_check_go_past_a_proxy(env: dict[str, str], hosts: str) -> None:
    told = environment({}, env=env)
    assert (told["NO_PROXY"], told["no_proxy"]) == (hosts, hosts)
    assert told.get("HTTP_PROXY") == env.get("HTTP_PROXY")


def test_what_is_no_environment_is_refused_by_its_name() -> None:
    with pytest.raises(AnsibleFilterError, match=r"open_webui_env\.a b is not a valid name of an environment variable"):
        open_webui_environment(models({}), {"a b": 1})


def test_who_is_no_chat_model_is_known_to_the_proxy_alone() -> None:
    told = environment(
        {"args": PARSER},
        {"args": {"runner": "pooling", "api_key": "no;matter"}},
        {"startup_mode": "disabled", "args": {"api_key": "no;matter"}},
    )
    assert told[URLS] == "http://vllm-a:8000/v1"
    assert told[KEYS] == "dummy"
    assert "DEFAULT_MODEL_PARAMS" not in told
    # It may be named as RAG_OPENAI_API_BASE_URL.
    assert told["NO_PROXY"] == told["no_proxy"] == f"{LOOPBACK},vllm-a,vllm-b"


GATEWAY = "http://host.docker.internal:8000/v1"


@pytest.mark.parametrize(("asks", "key"), [(False, "dummy"), (True, "${MODEL_GATEWAY_WEBUI_KEY}")])
def test_a_gateway_is_asked_alone(asks: bool, key: str) -> None:
    # No server's key is of interest, not even one that Open WebUI could not be given.
    given: list[dict[str, Any]] = [
        {"args": {"api_key": "k;l"}},
        {"args": {"runner": "pooling"}},
        {"start_command": ["x"]},
    ]
    told = environment(*given, gateway_port=8000, gateway_key=asks)
    assert (told[URLS], told[KEYS]) == (GATEWAY, key)
    assert json.loads(told["OPENAI_API_CONFIGS"]) == {
        "0": {"headers": {"X-OpenWebUI-Task": "{{TASK}}", "X-OpenWebUI-Chat": "{{CHAT_ID}}"}}
    }
    assert told["NO_PROXY"] == told["no_proxy"] == f"{LOOPBACK},host.docker.internal,vllm-a,vllm-b"
    # One that comes by the gateway from outside of containers has no parser either.
    assert environment({"args": PARSER}, gateway_port=8000).get("DEFAULT_MODEL_PARAMS") is None
    both = environment({"args": PARSER}, {"start_command": ["x"]}, gateway_port=8000)
    assert both["DEFAULT_MODEL_PARAMS"] == '{"function_calling": "legacy"}'


def test_a_gateway_among_addresses_of_ones_own() -> None:
    told = environment({}, env={URLS: f"{OWN}; {GATEWAY}"}, gateway_port=8000, gateway_key=True, inline=True)
    assert told[KEYS] == ";${MODEL_GATEWAY_WEBUI_KEY}"
    assert list(json.loads(told["OPENAI_API_CONFIGS"])) == ["1"]
    told = environment({}, env={URLS: OWN}, gateway_port=8000, gateway_key=True, inline=True)
    assert (told.get(KEYS), told.get("OPENAI_API_CONFIGS")) == (None, None)


def test_without_a_gateway_there_are_no_headers_of_it() -> None:
    assert "OPENAI_API_CONFIGS" not in environment({})
