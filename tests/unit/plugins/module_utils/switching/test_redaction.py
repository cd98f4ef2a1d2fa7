# SPDX-License-Identifier: MIT
"""Secrets are shown nowhere, and what is none is never hidden: whoever reads a result acts on it."""

from __future__ import annotations

import json
import stat
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import canary
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.__main__ import main
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import Mask, secrets_of

from tests.unit.plugins.module_utils.switching.conftest import Host

# What a regular expression, JSON, Python and an address each write otherwise.
SECRET = "s3cr3t+'w\\rd"


def model(**fields: Any) -> dict[str, Any]:
    return {"id": "qwen3-14b-awq", "model": "Qwen/Qwen3-14B-AWQ", "host_port": 8001, **fields}


@pytest.mark.parametrize(
    "fields",
    [
        {"env": {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}},
        {"env": {"USE_TOKEN": "true", "KEY_B": "False", "A_KEY": "on", "PASSWORD": ""}},
        {"env": {"KEY_COUNT": 16, "KEY_PART": 0.123456789, "KEY_TEXT": "0.123456789", "KEY_MANY": 1234567}},
        {"env": {"SECRET": "short", "TOKEN": "awq"}},
        # Everybody sees those anyhow.
        {"env": {"MODEL_KEY": "qwen3-14b-awq", "OTHER_KEY": "Qwen3-14B", "CONTAINER_KEY": "the-vllm-one"}},
        {
            "container_name": "the-vllm-one",
            "aliases": ["some-alias"],
            "env": {"KEY": "some-alias", "TOKEN": "vllm-one"},
        },
        {"env": {"KEY_MODE": "disabled", "TOKEN_MODE": "sleeping"}},
        {"macros": {"api_key": "short"}, "stop_command": ["stop", "--api-key", "${api_key}", "--token=${api_key}"]},
        {"args": {"tokenizer_mode": "sentencepiece", "max_num_batched_tokens": 12345678}},
        {"start_command": ["serve", "--tokenizer", "some/tokenizer", "--max-num-batched-tokens", "12345678"]},
    ],
)
def test_what_is_no_secret(fields: dict[str, Any]) -> None:
    fields.setdefault("container_name", "the-vllm-one")
    assert secrets_of([model(**fields)], {}) == set()


@pytest.mark.parametrize(
    "fields",
    [
        {"env": {"HF_TOKEN": "hf_sesame"}},
        {"env": {"PIN_KEY": 12345678}, "shown": "12345678"},
        {"args": {"default_headers": [{"secret": {"inner": ["hf_sesame", None, True]}}]}},
        {"macros": {"my_password": "hf_sesame"}},
        {"stop_command": ["curl", "-H", "Authorization: Bearer hf_sesame", "http://x"]},
        {"stop_command": ["curl", "-HX-Api-Key:hf_sesame"]},
        {"stop_command": ["curl", "-u", "root:hf_sesame", "http://x"]},
        {"stop_command": ["curl", "http://root:hf_sesame@x/stop"]},
        {"stop_command": ["stop", "--api-key", "hf_sesame"]},
        {"stop_command": ["stop", "--api-key=hf_sesame"]},
        {"stop_command": ["env", "HF_TOKEN=hf_sesame", "stop"]},
        {"stop_command": ["sh", "-c", "HF_TOKEN='hf_sesame' stop --now"]},
        {"stop_command": ["sh", "-c", "exec stop --password hf_sesame --now"]},
        {"stop_command": ["sh", "-c", 'curl --user "root:hf_sesame" http://x']},
        {"stop_command": ["curl", "-d", '{"password": "hf_sesame"}']},
        {"sleep_requests": [{"endpoint": "/sleep?level=1&api_key=hf_sesame&x=y"}]},
        {"wake_requests": [{"endpoint": "/wake", "body": {"auth": {"token": "hf_sesame"}}}]},
        {"state_request": {"endpoint": "/state", "sleeping": "x", "body": "token=hf_sesame"}},
    ],
)
def test_what_is_one_wherever_it_stands(fields: dict[str, Any]) -> None:
    shown = fields.pop("shown", "hf_sesame")
    assert secrets_of([model(**fields)], {}) == {shown}


def test_the_macros_of_all_models_have_secrets_too() -> None:
    assert secrets_of([model()], {"macros": {"token": "hf_sesame", "flag": "hf_open"}}) == {"hf_sesame"}
    # Whatever it is called, what uses it tells that it is one.
    entry = model(start_command=["serve"], stop_command=["stop", "--token", "${x}"])
    assert "hf_sesame" in secrets_of(parse([entry], {"macros": {"x": "hf_sesame"}}).as_dict())


def test_a_text_without_them() -> None:
    mask = Mask(secrets_of([model(env={"A_KEY": "hf_sesame", "B_KEY": "hf_sesame_street", "C_KEY": SECRET})]))
    assert mask("hf_sesame hf_sesame_street hf_sesam") == "******** ******** hf_sesam"
    for written in (SECRET, json.dumps(SECRET), repr(SECRET), repr({"key": SECRET}), "?x=s3cr3t%2B%27w%5Crd&y=1"):
        assert "s3cr3t" not in mask(written)
    key = "-----BEGIN KEY-----\nfirst line of it\nsecond line of it\n-----END KEY-----\n"
    assert Mask(secrets_of({"SSL_KEY": key}))("log: second line of it") == "log: ********"
    assert Mask(())("nothing") == "nothing"


def test_a_long_text_is_looked_through_in_no_time() -> None:
    assert (
        secrets_of([model(args={"chat_template": "a" * 300_000, "other": " -" * 100_000, "third": "a:" * 100_000})])
        == set()
    )


HIDDEN = "hf_nobody-may-see-this"


@pytest.fixture
def stubborn(host: Host) -> Host:
    """A host whose model a can't be stopped; its stop_command says so, with a secret of its words."""
    host.declare("a", sleep_level="stop")
    host.declare("b")
    script = 'echo "$1 is refused" >&2; exit 1'
    host.models[0]["stop_command"] = ["sh", "-c", script, "sh", "--api-key=${key_of_all}"]
    host.settings["macros"] = {"key_of_all": HIDDEN}
    host.up(a="active")
    return host


def files(host: Host) -> dict[str, str]:
    """The records and journals that a switch leaves, by name."""
    found = {path.name: path for path in (host.stack_dir / "run").iterdir()}
    return {name: path.read_text(encoding="utf-8") for name, path in found.items() if not name.endswith((".log", ".1"))}


def test_what_a_failed_command_says_is_told_without_them(stubborn: Host) -> None:
    with pytest.raises(SwitchFailed) as caught:
        stubborn.switch("b")
    result = caught.value.result
    assert "is refused" in str(caught.value)
    assert "--api-key=********" in str(caught.value)
    with stubborn.switcher() as switcher:
        told = switcher.report()
    for text in (str(caught.value), json.dumps(result.as_dict()), str(result.diff()), json.dumps(told)):
        assert HIDDEN not in text
    assert "is refused" in files(stubborn)["last_switch.json"]
    assert not [name for name, text in files(stubborn).items() if HIDDEN in text]


def test_the_command_line_does_not_tell_them_either(stubborn: Host, capsys: pytest.CaptureFixture[str]) -> None:
    path = stubborn.stack_dir / "models.json"
    path.write_text(json.dumps({"vllm_models": stubborn.models, "vllm_switching": stubborn.settings}), encoding="utf-8")
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    at = ["--stack-dir", str(stubborn.stack_dir)]
    for command in (["switch", "b", "--json"], ["switch", "b"], ["status", "--json"], ["status"]):
        assert main([*at, *command]) == (1 if command[0] == "switch" else 0)
        told = capsys.readouterr()
        assert "is refused" in told.out + told.err
        assert HIDDEN not in told.out + told.err
    stubborn.models[0]["stop_command"][-1] = "--api-key=" + HIDDEN + "${of_nobody}"
    path.write_text(json.dumps({"vllm_models": stubborn.models, "vllm_switching": stubborn.settings}), encoding="utf-8")
    stubborn.models[0]["stop_command"][-1] = "${of_nobody}"
    assert main([*at, "status"]) == 2
    assert HIDDEN not in capsys.readouterr().err


def test_a_server_that_repeats_its_request_does_not_tell_them(host: Host) -> None:
    """A custom request has a secret, and the error about it has the request."""
    calls = [{"endpoint": "/nothing/here?token=" + HIDDEN}]
    host.declare("a", sleep_requests=calls, wake_requests=calls, sleep_level="1")
    host.declare("b")
    host.settings["escalation"] = []
    host.up(a="active", b=1)
    with pytest.raises(SwitchFailed) as caught:
        host.switch("b")
    assert "/nothing/here?token=********" in str(caught.value)
    assert HIDDEN not in str(caught.value) + json.dumps(caught.value.result.as_dict()) + str(files(host))


def test_what_a_canary_is_recorded_for_is_without_them() -> None:
    given = parse([model(args={"headers": "X-Api-Key: " + HIDDEN, "api_key": HIDDEN}, env={"A": "1"})], {})
    served = canary._served(given.models[0])
    assert HIDDEN not in str(served)
    assert served["args"]["headers"] == "X-Api-Key: ********"
