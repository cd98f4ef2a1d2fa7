# SPDX-License-Identifier: MIT
"""A command line is read as arguments that are written as the same command line."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import is_secret_name
from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose, serve_line
from hypothesis import given
from hypothesis import strategies as st


def written(args: dict[str, Any], **fields: Any) -> list[str]:
    """The words that a model's container is given."""
    model = {"id": "a", "model": "org/a", "host_port": 8001, "args": args, **fields}
    return [word.plain for word in compose.serve_words(parse([model]).as_dict()["vllm_models"][0])]


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("--max-model-len 262144", {"max_model_len": 262144}),
        ("--max_model_len=262144", {"max_model_len": 262144}),
        ("--max-model-len 32k", {"max_model_len": "32k"}),
        ("--gpu-memory-utilization 0.90", {"gpu_memory_utilization": 0.9}),
        ("--gpu-memory-utilization .5", {"gpu_memory_utilization": 0.5}),
        ("--seed -1", {"seed": -1}),
        ("--enable-chunked-prefill --trust-remote-code", {"enable_chunked_prefill": True, "trust_remote_code": True}),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("--enable-lora --no-enable-lora", {"enable_lora": False}),
        ("--disable-log-stats", {"disable_log_stats": True}),
        ("--revision 0123456", {"revision": "0123456"}),
        ("--revision 1234567", {"revision": "1234567"}),
        ("--api-key 0123", {"api_key": "0123"}),
        ("--api-key one two", {"api_key": ["one", "two"]}),
        ('--lora-modules a=b \'{"name": "c"}\'', {"lora_modules": ["a=b", {"name": "c"}]}),
        ("--cudagraph-capture-sizes 1 2 4", {"cudagraph_capture_sizes": [1, 2, 4]}),
        ("--middleware a.b --middleware=c.d", {"middleware": ["a.b", "c.d"]}),
        ("--allowed-origins '[\"*\"]'", {"allowed_origins": ["*"]}),
        ("--limit-mm-per-prompt '{\"image\": 4}'", {"limit_mm_per_prompt": {"image": 4}}),
        ("--override-generation-config '[1, 2]'", {"override_generation_config": "[1, 2]"}),
        ("--hf-overrides '{\"a\": NaN}'", {"hf_overrides": '{"a": NaN}'}),
        ("--chat-template=", {"chat_template": ""}),
        ("--chat-template '{{ a }} b'", {"chat_template": "{{ a }} b"}),
        ("-tp 2 -q awq -ep", {"tensor_parallel_size": 2, "quantization": "awq", "enable_expert_parallel": True}),
        ("-cc.mode=3 -O2", {"compilation_config.mode": 3, "optimization_level": 2}),
        ("--compilation-config.pass_config.fuse_it true", {"compilation_config.pass_config.fuse_it": True}),
        ("--compilation-config.sizes '[1, 2]'", {"compilation_config.sizes": [1, 2]}),
    ],
)
def test_arguments(command: str, args: dict[str, Any]) -> None:
    line = serve_line.parse(["org/a", *shlex.split(command)])
    assert (line.model, line.args) == ("org/a", args)
    assert [type(value) for value in line.args.values()] == [type(value) for value in args.values()]
    # And back: what the container is given is read as the same.
    again = serve_line.parse(written({**line.args, "tensor_parallel_size": 1}))
    assert {**again.args, "tensor_parallel_size": 2} == {**args, "enable_sleep_mode": True, "tensor_parallel_size": 2}


@pytest.mark.parametrize(
    "command",
    [
        "org/a --max-model-len 1 --enable-sleep-mode",
        "--max-model-len 1 org/a --enable-sleep-mode",
        "--enable-sleep-mode org/a --max-model-len 1",
        "--model org/a --max-model-len 1 --enable-sleep-mode",
        "--enable-sleep-mode --max-model-len 1 --model=org/a",
    ],
)
def test_the_model_wherever_it_stands(command: str) -> None:
    line = serve_line.parse(command.split())
    assert (line.model, line.problems) == ("org/a", [])
    assert line.args == {"max_model_len": 1, "enable_sleep_mode": True}


def test_what_other_keys_say() -> None:
    line = serve_line.parse(["org/a", "--served-model-name", "x", "y", "--host", "0.0.0.0", "--port=9000"])
    assert line == serve_line.Line("org/a", ["x", "y"], {}, "0.0.0.0", "9000", [])


def test_problems_have_no_values() -> None:
    line = serve_line.parse(["org/a", "hidden1", "--seed=1", "hidden2", "--api-key", "hidden3", "--api-key", "hidden4"])
    assert len(line.problems) == 2
    assert "--api-key is given more than once: the last one counts" in line.problems
    assert "2 word(s)" in line.problems[1]
    assert "hidden" not in "".join(line.problems)
    assert serve_line.parse([]).model == ""


NAMES = st.from_regex(r"[a-z]{2}(_[a-z]{2,4}){0,2}", fullmatch=True).filter(
    lambda name: not name.startswith("no_") and name not in ("model", "host", "port") and not is_secret_name(name)
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
SINGLE = st.integers(-(10**14), 10**14) | st.booleans() | TEXTS | st.floats(0.5, 99)
JSON = st.recursive(SINGLE | st.none(), lambda inner: st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5)
LISTS = st.lists(TEXTS.filter(lambda text: not text.startswith("-")), min_size=2, max_size=4)


@given(st.dictionaries(NAMES, SINGLE | LISTS | st.dictionaries(TEXTS, JSON, max_size=3), max_size=5))
def test_what_is_written_is_read_as_what_it_was(args: dict[str, Any]) -> None:
    words = written(args)
    line = serve_line.parse(words)
    assert (line.model, line.port, line.names, line.problems) == ("org/a", "8000", ["a", "org/a"], [])
    again = written(line.args)
    assert serve_line.parse(again) == line
    # Each option is read as what it was, but for texts that look like another kind of value.
    for name, value in args.items():
        if isinstance(value, (bool, int, dict)) and "." not in name:
            assert line.args[name] == (
                str(value) if isinstance(line.args[name], str) else json.loads(json.dumps(value))
            )
