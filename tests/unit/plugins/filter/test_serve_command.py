# SPDX-License-Identifier: MIT
"""What a model says becomes the words of vLLM's command line; tests/real holds the same words to the real parser."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.filter.internal import FilterModule
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose

FILTERS = FilterModule().filters()
compose_service = FILTERS["compose_service"]

ALWAYS = ["org/a", "--served-model-name", "a", "org/a", "--port=8000"]
DEFAULTS = ["--enable-sleep-mode", "--tensor-parallel-size=1"]


def words(args: dict[str, Any] | None = None, **fields: Any) -> list[str]:
    model = {"id": "a", "model": "org/a", "host_port": 8001, "args": args or {}, **fields}
    return [word.plain for word in compose.serve_words(parse([model]).as_dict()["vllm_models"][0])]


def test_a_model_that_says_nothing() -> None:
    assert words() == [*ALWAYS, *DEFAULTS]


def test_every_name_is_served_once_the_id_first() -> None:
    served = words(aliases=["b", "a", "org/a", "c"])
    assert served[: served.index("--port=8000")] == ["org/a", "--served-model-name", "a", "b", "org/a", "c"]


def test_port_and_gpus() -> None:
    given = words(port=9000, gpus=[2, 3])
    assert "--port=9000" in given
    assert "--tensor-parallel-size=2" in given


def test_arguments_win_over_what_follows_from_other_keys() -> None:
    given = words({"tensor_parallel_size": 1, "pipeline_parallel_size": 2, "enable_sleep_mode": False}, gpus=[0, 1])
    assert given[len(ALWAYS) :] == [
        "--no-enable-sleep-mode",
        "--tensor-parallel-size=1",
        "--pipeline-parallel-size=2",
    ]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("max_model_len", 131072, ["--max-model-len=131072"]),
        ("max-model-len", 131072, ["--max-model-len=131072"]),
        ("gpu_memory_utilization", 0.9, ["--gpu-memory-utilization=0.9"]),
        ("enable_auto_tool_choice", True, ["--enable-auto-tool-choice"]),
        ("enable_prefix_caching", False, ["--no-enable-prefix-caching"]),
        ("disable_log_stats", False, []),
        ("disable_log_stats", True, ["--disable-log-stats"]),
        ("headless", False, []),
        ("chat_template", None, []),
        ("chat_template", "", ["--chat-template="]),
        ("chat_template", "-a 'b' \"c\" $d", ["--chat-template=-a 'b' \"c\" $d"]),
        ("speculative_config", {"method": "ngram", "n": 3}, ['--speculative-config={"method": "ngram", "n": 3}']),
        ("lora_modules", ["a=b", {"name": "ü"}], ["--lora-modules", "a=b", '{"name": "ü"}']),
        ("cudagraph_capture_sizes", [1, -1], ["--cudagraph-capture-sizes", "1", "-1"]),
        ("lora_modules", [], []),
        ("middleware", ["a.b", "c.d"], ["--middleware=a.b", "--middleware=c.d"]),
        ("allowed_origins", ["https://a"], ['--allowed-origins=["https://a"]']),
        ("compilation_config.pass_config.fuse_it", True, ["--compilation-config.pass_config.fuse_it=true"]),
        ("compilation_config.max_size", 7, ["--compilation-config.max_size=7"]),
        ("compilation_config.sizes", [1, 2], ["--compilation-config.sizes=[1, 2]"]),
        ("api_key", "hidden", ["--api-key=hidden"]),
    ],
)
def test_one_argument(key: str, value: Any, expected: list[str]) -> None:
    assert words({key: value}) == [*ALWAYS, *DEFAULTS, *expected]


def test_a_list_item_that_vllm_would_take_for_an_option_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a: args\.lora_modules\[1\] begins with a dash"):
        words({"lora_modules": ["a=b", "--trust-remote-code"]})


def test_the_model_of_a_template_is_read_as_it_is() -> None:
    class Lazy(dict):
        """Refuses to be copied, as what ansible-core hands to filters does."""

        def __deepcopy__(self, memo: object) -> None:
            raise AssertionError

    model = parse([{"id": "a", "model": "org/a", "host_port": 8001}]).as_dict()["vllm_models"][0]
    assert compose_service(Lazy(model), "none", "image:1")["command"] == [*ALWAYS, *DEFAULTS]
