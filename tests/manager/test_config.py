# SPDX-License-Identifier: MIT
"""The settings of the service: what is right is taken, what is wrong is told at once, each with its key and remedy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from model_manager import config
from model_manager.config import Config, ConfigError, ModelConfig


def mistakes(given: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        config.parse(given)
    return error.value.mistakes


def test_the_stack_is_all_that_has_to_be_given() -> None:
    assert config.parse({"stack_dir": "/opt/homegpt"}) == Config("/opt/homegpt")


def test_every_key_can_be_set() -> None:
    given = {
        **json.loads(json.dumps(dataclasses.asdict(Config("/opt/homegpt")))),
        "allowed_hosts": ["gpu1.example.org"],
        "models": {"a": {"idle_sleep_seconds": 60}},
    }
    assert config.parse(given) == Config(
        "/opt/homegpt", allowed_hosts=("gpu1.example.org",), models={"a": ModelConfig(idle_sleep_seconds=60.0)}
    )


def test_a_model_may_have_idle_times_of_its_own() -> None:
    found = config.parse(
        {
            "stack_dir": "/s",
            "idle_sleep_seconds": 600,
            "idle_stop_seconds": 7200,
            "models": {"a": {"idle_sleep_seconds": 0}},
        }
    )
    assert found.idle("a") == (0.0, 7200.0)
    assert found.idle("b") == (600.0, 7200.0)


def test_every_mistake_is_told_at_once_with_its_key_and_what_to_do() -> None:
    found = mistakes(
        {
            "stak_dir": "/s",
            "port": 70000,
            "listen": "everywhere",
            "policy": "lifo",
            "observe_seconds": 0,
            "max_queue": 1.5,
            "allowed_hosts": "gpu1",
            "tokens_file": "tokens",
            "breaker_failures": True,
            "models": {"a": {"idle_sleep_second": 1}, "b": 3},
        }
    )
    expected = {
        "stak_dir": "did you mean stack_dir?",
        "port": "from 1 to 65535",
        "listen": "use 127.0.0.1",
        "policy": "fifo, batched",
        "observe_seconds": "above 0",
        "max_queue": "whole number",
        "allowed_hosts": '["name"]',
        "tokens_file": "begin it with /",
        "breaker_failures": "whole number",
        "models.a.idle_sleep_second": "did you mean idle_sleep_seconds?",
        "models.b": "write it as {...}",
        "stack_dir": "is missing",
    }
    assert len(found) == len(expected)
    for key, remedy in expected.items():
        assert [one for one in found if one.startswith(key + " ") and remedy in one], (key, found)


@pytest.mark.parametrize("name", ["gpu1:9000", "http://gpu1", "gpu1/", "gpu1 gpu2"])
def test_an_allowed_host_is_a_name_alone(name: str) -> None:
    (found,) = mistakes({"stack_dir": "/s", "allowed_hosts": ["gpu1", name]})
    assert found.startswith("allowed_hosts must be names alone") and json.dumps([name]) in found
    assert config.parse({"stack_dir": "/s", "allowed_hosts": ["gpu1.example", "2001:db8:0:1:2:3:4:5"]}).allowed_hosts


@pytest.mark.parametrize("value", ["9001", "localhost:9001", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:x", "::1:9001", 7])
def test_the_gateways_address_has_a_port(value: object) -> None:
    (found,) = mistakes({"stack_dir": "/s", "gateway_listen": value, "gateway_token_file": "/t"})
    assert found.startswith("gateway_listen must be ")


def test_a_gateway_has_a_token() -> None:
    (found,) = mistakes({"stack_dir": "/s", "gateway_listen": "127.0.0.1:9001"})
    assert found.startswith("gateway_token_file is missing")
    given = {"stack_dir": "/s", "gateway_listen": "[::1]:9001", "gateway_token_file": "/t"}
    assert config.address_and_port(config.parse(given).gateway_listen) == ("::1", 9001)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "1", None, True])
def test_a_time_is_a_number_that_ends(value: object) -> None:
    assert len(mistakes({"stack_dir": "/s", "retry_seconds": value})) == 1


@pytest.mark.parametrize("given", [[], None, 3, "x"])
def test_the_settings_are_an_object(given: object) -> None:
    assert "JSON object" in mistakes(given)[0]


def test_the_file_is_named_where_it_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"config\.json has 1 mistake:\n- it can't be read \(No such file"):
        config.read(str(path))
    path.write_text("{")
    with pytest.raises(ConfigError, match="it is no JSON"):
        config.read(str(path))
    path.write_text('{"stack_dir": "/s"}')
    assert config.read(str(path)) == Config("/s")
