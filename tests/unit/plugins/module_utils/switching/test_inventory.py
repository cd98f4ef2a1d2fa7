# SPDX-License-Identifier: MIT
"""The model inventory: defaults, every mistake with its exact words, variables, names, plain data and back."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import InventoryError, UnknownModel
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import (
    Inventory,
    Model,
    Request,
    StateRequest,
    Switching,
    parse,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import is_secret_name, secret_texts
from hypothesis import example, given, settings
from hypothesis import strategies as st

# What is said of a value that YAML may have made a boolean.
YES = "a boolean (True, as YAML reads a bare on or yes)"
NO = "a boolean (False, as YAML reads a bare off or no)"

# Which there are, docs/inventory.md says, and a test of that.
KEYS, SWITCHING_KEYS = (", ".join(field.name for field in dataclasses.fields(cls)) for cls in (Model, Switching))
REQUESTS = {"sleep_requests": [{"endpoint": "/down"}], "wake_requests": [{"endpoint": "/up"}]}


GPU, MIG = "GPU-8f3b7c1e-2d4a-4b6c-9e8f-0a1b2c3d4e5f", "MIG-8f3b7c1e-2d4a-5b6c-9e8f-0a1b2c3d4e5f"
AMD = "GPU-4b2c1a9f8d3e6f7a"


def entry(model_id: str = "a", host_port: Any = 8001, **keys: Any) -> dict[str, Any]:
    """One entry of vllm_models; a key that is None is left out."""
    fields = {"id": model_id, "model": f"org/{model_id.upper()}", "host_port": host_port, **keys}
    return {key: value for key, value in fields.items() if value is not None}


def only(**keys: Any) -> Model:
    """The one parsed model of an inventory with nothing else in it."""
    return parse([entry(**keys)]).models[0]


def mistakes_of(models: Any, switching: Any = None) -> list[str]:
    with pytest.raises(InventoryError) as caught:
        parse(models, switching)
    return caught.value.mistakes


def parse_again(inventory: Inventory) -> Inventory:
    plain = inventory.as_dict()
    return parse(plain["vllm_models"], plain["vllm_switching"])


# Defaults


def test_the_defaults_of_a_model() -> None:
    assert only() == Model(
        id="a",
        model="org/A",
        host_port=8001,
        name="a",
        container_name="vllm-a",
        port=8000,
        gpus=(0,),
        gpu_memory_gb=None,
        weights_gb=None,
        startup_mode="sleep",
        sleep_level="auto",
        args={},
        env={},
        image="",
        aliases=(),
        ready_completion=True,
        kind="auto",
        canary="auto",
        sleep_requests=(),
        wake_requests=(),
        state_request=None,
        start_command=(),
        stop_command=(),
        macros={},
    )


@pytest.mark.parametrize("switching", [None, {}], ids=["absent", "empty"])
def test_the_defaults_of_switching(switching: Any) -> None:
    assert parse([entry()], switching).switching == Switching(
        available_ram_gb=128.0,
        max_retries=450,
        health_check_interval_seconds=2.0,
        request_timeout_seconds=120.0,
        connect_timeout_seconds=0.5,
        probe_timeout_seconds=5.0,
        drain_timeout_seconds=30.0,
        drain_timeout_action="abort",
        stop_timeout_seconds=20.0,
        command_timeout_seconds=120.0,
        lock_timeout_seconds=600.0,
        min_active_seconds=0.0,
        failure_backoff_seconds=2.0,
        escalation=("stop", "retry", "restart", "roll_back"),
        canary="auto",
        ready_completion=True,
        macros={},
    )


def test_the_defaults_of_a_request() -> None:
    model = only(state_request={"endpoint": "/state", "sleeping": "zzz"}, **REQUESTS)
    assert model.sleep_requests == (Request("/down", method="POST", body=None, timeout=None),)
    assert model.state_request == StateRequest("/state", method="GET", body=None, timeout=None, sleeping="zzz")


def test_ready_timeout_is_retries_times_interval() -> None:
    switching = parse([entry()], {"max_retries": 10, "health_check_interval_seconds": 1.5}).switching
    assert switching.ready_timeout_seconds == 15.0


def test_weights_default_to_the_memory_of_the_gpu() -> None:
    assert only(gpu_memory_gb=36.0).weights_gb == 36.0
    assert only(gpu_memory_gb=36.0, weights_gb=14.0).weights_gb == 14.0


def test_ready_completion_is_for_the_host_unless_a_model_says_otherwise() -> None:
    models = [entry("a", 1), entry("b", 2, ready_completion=True), entry("c", 3, ready_completion=False)]
    assert [m.ready_completion for m in parse(models, {"ready_completion": False}).models] == [False, True, False]
    assert [m.ready_completion for m in parse(models).models] == [True, True, False]


def test_the_canary_of_the_host_holds_for_models_that_say_nothing() -> None:
    models = [entry("a", 1), entry("b", 2, canary=False), entry("c", 3, canary="enforce")]
    assert [m.canary for m in parse(models, {"canary": "warn"}).models] == ["warn", "off", "enforce"]
    assert [m.canary for m in parse(models).models] == ["auto", "off", "enforce"]


def test_rungs_of_the_escalation_have_one_order() -> None:
    assert parse([entry()], {"escalation": ["roll_back", "stop", "stop"]}).switching.escalation == ("stop", "roll_back")
    assert parse([entry()], {"escalation": []}).switching.escalation == ()


def test_what_may_be_loaded_side_by_side() -> None:
    gpus = {"a": [0], "b": [1], "c": [0], "d": [2, 3], "e": [3], "f": [4]}
    inventory = parse([entry(name, 8000 + number, gpus=use) for number, (name, use) in enumerate(gpus.items())])
    batches = [[m.id for m in models] for models in inventory.load_batches(inventory.models)]
    assert batches == [["a", "b", "d", "f"], ["c", "e"]]
    # By way of a third that shares a GPU with each, two have to do with each other.
    gpus["g"] = [0, 1]
    inventory = parse([entry(name, 8000 + number, gpus=use) for number, (name, use) in enumerate(gpus.items())])
    batches = [[m.id for m in models] for models in inventory.load_batches(inventory.models)]
    assert batches == [["a", "d", "f"], ["b", "e"], ["c"], ["g"]]
    assert [m.id for m in inventory.group(inventory.find("a"))] == ["a", "b", "c", "g"]
    assert inventory.load_batches([]) == []


def test_a_key_that_is_null_counts_as_absent() -> None:
    keys = [key for key in KEYS.split(", ") if key not in ("id", "model", "host_port")]
    assert parse([{**entry(), **dict.fromkeys(keys)}]).models == (only(),)
    assert parse([entry()], dict.fromkeys(SWITCHING_KEYS.split(", "))).switching == Switching()


# What is taken


@pytest.mark.parametrize(
    ("key", "given_value", "taken"),
    [
        # Jinja hands numbers over as text unless it runs in native mode.
        ("host_port", "8001", 8001),
        ("host_port", 8001.0, 8001),
        ("port", "9000", 9000),
        ("gpus", ["0", "1"], (0, 1)),
        ("gpus", (2, 3), (2, 3)),
        ("gpus", [GPU.upper(), GPU[:-1] + "0"], (GPU, GPU[:-1] + "0")),
        ("gpus", [MIG], (MIG,)),
        ("gpus", [AMD], (AMD,)),
        ("gpu_memory_gb", "57.5", 57.5),
        ("weights_gb", "14", 14.0),
        ("sleep_level", 1, "1"),
        ("sleep_level", "2", "2"),
        ("sleep_level", "stop", "stop"),
        ("ready_completion", "no", False),
        ("ready_completion", "True", True),
        ("image", "", ""),
        ("entrypoint", [], ()),
        (
            "entrypoint",
            ["/opt/nvidia/nvidia_entrypoint.sh", "vllm", "serve"],
            ("/opt/nvidia/nvidia_entrypoint.sh", "vllm", "serve"),
        ),
        ("entrypoint", ["/usr/bin/vllm", "serve"], ("/usr/bin/vllm", "serve")),
        ("entrypoint", ["/start.sh"], ("/start.sh",)),
        ("container_name", "my_Model.v1-x", "my_Model.v1-x"),
        ("id", "0.a_b-c", "0.a_b-c"),
        (
            "env",
            {"A": 1, "B": 1.5, "C": True, "D": False, "E": "x", "F": ""},
            {"A": "1", "B": "1.5", "C": "true", "D": "false", "E": "x", "F": ""},
        ),
        (
            "args",
            {"max-model-len": 10, "json": {"a": [1]}, "flag": None},
            {"max_model_len": 10, "json": {"a": [1]}, "flag": None},
        ),
        ("args", {"api_key": 0}, {"api_key": "0"}),
        ("args", {"api_key": ["a", 1.5]}, {"api_key": ["a", "1.5"]}),
        ("args", {"api_key": ""}, {"api_key": ""}),
        ("start_command", ["run", "it"], ("run", "it")),
        ("aliases", ["gpt", "GPT 4"], ("gpt", "GPT 4")),
    ],
)
def test_a_value_is_taken(key: str, given_value: Any, taken: Any) -> None:
    model = parse([{**entry(), key: given_value}]).models[0]
    assert getattr(model, key) == taken
    assert type(getattr(model, key)) is type(taken)


@pytest.mark.parametrize(
    ("key", "given_value", "taken"),
    [
        ("available_ram_gb", "64", 64.0),
        ("available_ram_gb", 0, 0.0),
        ("max_retries", "1", 1),
        ("health_check_interval_seconds", "0.1", 0.1),
        ("drain_timeout_seconds", 0, 0.0),
        ("lock_timeout_seconds", 0, 0.0),
        ("min_active_seconds", "30", 30.0),
        ("ready_completion", "false", False),
        ("macros", {"a": 1}, {"a": "1"}),
    ],
)
def test_a_setting_is_taken(key: str, given_value: Any, taken: Any) -> None:
    assert getattr(parse([entry()], {key: given_value}).switching, key) == taken


def test_a_request_is_taken_whole() -> None:
    request = {"endpoint": "/x", "method": "patch", "body": {"a": [1, None]}, "timeout": "2.5"}
    model = only(sleep_requests=[request, {"endpoint": "/y"}], wake_requests=[request])
    assert model.sleep_requests == (Request("/x", "PATCH", {"a": [1, None]}, 2.5), Request("/y"))


# Mistakes of one entry. The path is the same for all: vllm_models[0] (a)

ONE_MISTAKE = [
    ("model", 5, "model must be text, is a number (5): put it in quotes"),
    ("model", "", "model must not be empty"),
    ("model", "  ", "model must not be empty"),
    ("model", True, f"model must be text, is {YES}: put it in quotes"),
    ("name", ["x"], "name must be text, is a list"),
    ("name", {}, "name must be text, is a dictionary"),
    ("host_port", "eight", "host_port must be a whole number, is text (eight)"),
    ("host_port", "", "host_port must be a whole number, is text ()"),
    ("host_port", 8000.5, "host_port must be a whole number, is a number (8000.5)"),
    ("host_port", True, f"host_port must be a whole number, is {YES}"),
    ("host_port", [1], "host_port must be a whole number, is a list"),
    ("host_port", 0, "host_port must be a port from 1 to 65535, is 0"),
    ("host_port", 65536, "host_port must be a port from 1 to 65535, is 65536"),
    ("host_port", float("inf"), "host_port must be a whole number, is a number (inf)"),
    ("port", -1, "port must be a port from 1 to 65535, is -1"),
    (
        "container_name",
        "a b",
        "container_name must be a container name (letters, digits, dots, dashes and underscores), is a b",
    ),
    (
        "container_name",
        "-a",
        "container_name must be a container name (letters, digits, dots, dashes and underscores), is -a",
    ),
    (
        "container_name",
        "ab\n",
        "container_name must be a container name (letters, digits, dots, dashes and underscores), is ab\n",
    ),
    ("gpus", [], "gpus must name at least one GPU, each once, is []"),
    ("gpus", [1, "1"], "gpus must name at least one GPU, each once, is [1, 1]"),
    ("gpus", 0, "gpus must be a list of GPU numbers or UUIDs, is a number (0)"),
    ("gpus", [0, -1], "gpus[1] must be a whole number of at least 0, is -1"),
    ("gpus", [GPU, GPU.lower()], f"gpus must name at least one GPU, each once, is ['{GPU}', '{GPU}']"),
    # CUDA takes the beginning of one; the container toolkit doesn't.
    ("gpus", ["GPU-1a2b"], "gpus[0] must be a complete UUID, as nvidia-smi -L shows it, is GPU-1a2b"),
    (
        "gpus",
        [f"MIG-{GPU}/1/0"],
        f"gpus[0] must be a complete UUID, as nvidia-smi -L shows it, is MIG-{GPU}/1/0",
    ),
    (
        "gpus",
        [MIG, MIG[:-1] + "0"],
        f"gpus must contain nothing else beside a MIG instance, because a process can use only one, is "
        f"['{MIG}', '{MIG[:-1]}0']",
    ),
    ("gpus", ["all"], "gpus[0] must be a whole number, is text (all)"),
    ("gpus", [False], f"gpus[0] must be a whole number, is {NO}"),
    ("gpu_memory_gb", 0, "gpu_memory_gb must be greater than 0, is 0"),
    ("gpu_memory_gb", "nan", "gpu_memory_gb must be a number, is text (nan)"),
    ("weights_gb", -1.5, "weights_gb must be greater than 0, is -1.5"),
    ("weights_gb", True, f"weights_gb must be a number, is {YES}"),
    ("startup_mode", "on", "startup_mode must be one of active, sleep, disabled, is on"),
    (
        "startup_mode",
        True,
        f"startup_mode must be one of active, sleep, disabled, is {YES}",
    ),
    ("sleep_level", 3, "sleep_level must be one of auto, 1, 2, stop, is 3"),
    ("sleep_level", 0, "sleep_level must be one of auto, 1, 2, stop, is 0"),
    (
        "sleep_level",
        True,
        f"sleep_level must be one of auto, 1, 2, stop, is {YES}",
    ),
    ("args", ["--x"], "args must be a dictionary, is a list"),
    ("args", {"Max": 1}, "args has the key Max, which is not a valid argument of vllm serve"),
    ("args", {"--x": 1}, "args has the key --x, which is not a valid argument of vllm serve"),
    ("args", {1: 1}, "args has the key 1, which is not a valid argument of vllm serve"),
    ("args", {"max-len": 1, "max_len": 2}, "args has max_len twice"),
    ("args", {"model": "x"}, "args must not have model: use the model's model"),
    (
        "args",
        {"host": "::"},
        "args must not have host: use the model's host_port (servers always listen for the host alone)",
    ),
    ("args", {"port": 1}, "args must not have port: use the model's port"),
    ("args", {"served-model-name": "x"}, "args must not have served_model_name: use the model's aliases"),
    (
        "args",
        {"api-key": True},
        f"args.api-key must be text, is {YES}",
    ),
    ("args", {"api_key": {"a": 1}}, "args.api_key must be text, is a dictionary"),
    ("args", {"api_key": ["a", ""]}, "args.api_key[1] must not be empty"),
    ("args", {"api_key": [None]}, "args.api_key[0] must be text, is nothing"),
    ("env", "A=1", "env must be a dictionary, is text (A=1)"),
    ("env", {"A-B": 1}, "env has the key A-B, which is not a valid name of an environment variable"),
    ("env", {"A": ["x"]}, "env.A must be text or a number, is a list"),
    ("image", 5, "image must be text, is a number (5): put it in quotes"),
    ("entrypoint", "vllm serve", "entrypoint must be a list of words, is text (vllm serve)"),
    ("entrypoint", ["vllm", 5], "entrypoint[1] must be text, is a number (5): put it in quotes"),
    ("entrypoint", ["vllm"], "entrypoint ends with vllm, which starts nothing: add serve"),
    ("entrypoint", ["/bin/vllm", "serve", "vllm", "serve"], "entrypoint has `vllm serve` twice: name it once"),
    (
        "entrypoint",
        ["vllm", "serve", "org/a"],
        "entrypoint must end with serve, ends with org/a: the words after it come from model and args",
    ),
    (
        "entrypoint",
        ["python3", "-m", "vllm.entrypoints.openai.api_server"],
        "entrypoint has vllm.entrypoints.openai.api_server, which does not accept the model as a positional "
        "argument: use [vllm, serve]",
    ),
    ("aliases", "gpt", "aliases must be a list of names, is text (gpt)"),
    ("aliases", ["gpt", ""], "aliases[1] must not be empty"),
    ("ready_completion", 1, "ready_completion must be true or false, is a number (1)"),
    ("ready_completion", "maybe", "ready_completion must be true or false, is text (maybe)"),
    (
        "canary",
        True,
        f"canary must be one of auto, off, warn, enforce, is {YES}",
    ),
    ("start_command", "run it", "start_command must be a list of words, is text (run it)"),
    ("start_command", ["run", 5], "start_command[1] must be text, is a number (5): put it in quotes"),
    ("macros", ["a"], "macros must be a dictionary, is a list"),
    ("macros", {"1a": "x"}, "macros has the key 1a, which is not a valid name of a macro"),
    ("macros", {"a": {}}, "macros.a must be text or a number, is a dictionary"),
    ("macros", {"id": "x"}, "macros.id hides the variable of that name: rename the macro"),
    ("macros", {"level": "x"}, "macros.level hides the variable of that name: rename the macro"),
    ("state_request", "/x", "state_request: must be a dictionary, is text (/x)"),
    ("state_request", {"endpoint": "/x"}, "state_request: sleeping is required"),
    ("state_request", {"sleeping": "x"}, "state_request: endpoint is required"),
    (
        "state_request",
        {"endpoint": "/x", "sleeping": "("},
        "state_request: sleeping must be a regular expression: missing ), unterminated subpattern at position 0",
    ),
    (
        "stop_command",
        ["kill"],
        "stop_command requires start_command: without it, a stopped server can't be started again",
    ),
    ("sleep_requests", [{"endpoint": "/x"}], "sleep_requests requires wake_requests: set both lists or neither"),
    ("wake_requests", [{"endpoint": "/x"}], "wake_requests requires sleep_requests: set both lists or neither"),
    ("gpu_memory", 1.0, "unknown key gpu_memory; did you mean gpu_memory_gb?"),
    ("host-port", 1, "unknown key host-port; did you mean host_port?"),
    ("sleep_level_", 1, "unknown key sleep_level_; did you mean sleep_level?"),
    ("zzz", 1, f"unknown key zzz; the keys are: {KEYS}"),
    (5, 1, f"unknown key 5; the keys are: {KEYS}"),
]


@pytest.mark.parametrize(("key", "value", "mistake"), ONE_MISTAKE)
def test_a_mistake_names_the_entry_the_cause_and_what_would_be_right(key: Any, value: Any, mistake: str) -> None:
    assert mistakes_of([{**entry(), key: value}]) == [f"vllm_models[0] (a): {mistake}"]


TENSOR, PIPELINE, DATA = "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"
PREFILL = "prefill_context_parallel_size"


@pytest.mark.parametrize(
    ("gpus", "args"),
    [
        (None, {TENSOR: 1}),
        ([0, 1], {}),
        ([0, 1], {TENSOR: "2"}),
        ([0, 1], {"tensor-parallel-size": 2, DATA: 1}),
        ([0, 1], {TENSOR: 1, PIPELINE: 2}),
        ([0, 1], {TENSOR: None, DATA: 2}),
        ([0, 1, 2, 3, 4, 5, 6, 7], {TENSOR: 2, PIPELINE: 2, DATA: 2}),
        # Decode context and expert parallelism are spread over the same GPUs.
        ([0, 1, 2, 3], {TENSOR: 4, "decode_context_parallel_size": 2, "enable_expert_parallel": True}),
        ([0, 1, 2, 3], {TENSOR: 2, PREFILL: 2, "decode_context_parallel_size": 4}),
        ([0, 1], {TENSOR: 1, DATA: 2, "data_parallel_size_local": 2, "nnodes": 1}),
    ],
)
def test_parallel_sizes_that_make_the_number_of_gpus(gpus: list[int] | None, args: dict[str, Any]) -> None:
    assert len(only(gpus=gpus, args=args).gpus) == len(gpus or [0])


@pytest.mark.parametrize(
    ("gpus", "args", "mistake"),
    [
        (None, {TENSOR: 2}, f"args take 2 GPUs ({TENSOR} 2), but gpus names 1"),
        ([0, 1], {TENSOR: 1}, f"args take 1 GPUs ({TENSOR} 1), but gpus names 2"),
        ([0, 1], {PIPELINE: 2}, f"args take 4 GPUs ({TENSOR} 2 x {PIPELINE} 2), but gpus names 2"),
        ([0, 1], {DATA: 1, TENSOR: None}, f"args take 1 GPUs ({TENSOR} 1 x {DATA} 1), but gpus names 2"),
        ([0, 1], {PREFILL: 2}, f"args take 4 GPUs ({TENSOR} 2 x {PREFILL} 2), but gpus names 2"),
        ([0, 1], {PREFILL: 0}, "args.prefill_context_parallel_size must be a whole number of at least 1, is 0"),
        ([0, 1], {TENSOR: 1.5}, "args.tensor_parallel_size must be a whole number, is a number (1.5)"),
        (
            [0, 1],
            {PIPELINE: True},
            f"args.pipeline_parallel_size must be a whole number, is {YES}",
        ),
        ([0, 1], {DATA: 0}, "args.data_parallel_size must be a whole number of at least 1, is 0"),
        ([0, 1], {DATA: "two"}, "args.data_parallel_size must be a whole number, is text (two)"),
    ],
)
def test_parallel_sizes_that_do_not(gpus: list[int] | None, args: dict[str, Any], mistake: str) -> None:
    if "GPUs" in mistake:
        size, product = len(gpus or [0]), mistake.split()[2]
        mistake += f": name {product} GPUs in gpus, or set args.{TENSOR} so that the product is {size}"
    assert mistakes_of([entry(gpus=gpus, args=args)]) == [f"vllm_models[0] (a): {mistake}"]


def test_gpus_that_are_mistaken_are_one_mistake() -> None:
    assert len(mistakes_of([entry(gpus="0", args={TENSOR: 2})])) == 1


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "api_key", "AWS_SECRET", "password", "PASSWD", "credentials", "my-token", "VLLM_API_KEY"]
)
def test_names_that_sound_secret(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "max_num_batched_tokens", "tokenizer_mode", "host_port", 3])
def test_names_that_do_not(name: object) -> None:
    assert not is_secret_name(name)


def test_the_texts_that_are_secret() -> None:
    env = {"HF_TOKEN": "hf_1", "PIN_KEY": 123456, "SHORT_KEY": 123, "EMPTY_KEY": "", "OTHER": "seen"}
    nested = {"default_headers": [{"secret": {"inner": ["deep", None, True]}}]}
    models = [entry(env=env, args={**nested, "api_key": ["k1", "k2"]}), "no model"]
    assert sorted(secret_texts(models)) == ["123456", "deep", "hf_1", "k1", "k2"]


@pytest.mark.parametrize("model_id", ["A", "a b", "-a", "ü", "a\n"])
def test_an_id_is_made_of_few_characters(model_id: str) -> None:
    assert mistakes_of([entry(model_id)]) == [
        f"vllm_models[0] ({model_id}): "
        f"id must be lower-case letters, digits, dots, dashes and underscores, is {model_id}"
    ]


@pytest.mark.parametrize(
    ("models", "mistakes"),
    [
        ([entry(model=None)], ["vllm_models[0] (a): model is required"]),
        (
            [{}],
            [
                "vllm_models[0]: id is required",
                "vllm_models[0]: model is required",
                "vllm_models[0]: host_port is required",
            ],
        ),
        ([entry(), "b"], ["vllm_models[1]: must be a dictionary, is text (b)"]),
        ([{**entry(), "id": 5}], ["vllm_models[0]: id must be text, is a number (5): put it in quotes"]),
        ([], ["vllm_models is empty: declare at least one model"]),
        ("a", ["vllm_models must be a list of models, is text (a)"]),
        ({"a": 1}, ["vllm_models must be a list of models, is a dictionary"]),
    ],
)
def test_what_is_no_list_of_models(models: Any, mistakes: list[str]) -> None:
    assert mistakes_of(models) == mistakes


@pytest.mark.parametrize(
    ("switching", "mistake"),
    [
        ("fast", "must be a dictionary, is text (fast)"),
        ({"available_ram_gb": -1}, "available_ram_gb must be a number of at least 0, is -1"),
        ({"available_ram_gb": "much"}, "available_ram_gb must be a number, is text (much)"),
        (
            {"available_ram_gb": True},
            f"available_ram_gb must be a number, is {YES}",
        ),
        ({"max_retries": 0}, "max_retries must be a whole number of at least 1, is 0"),
        ({"max_retries": 1.5}, "max_retries must be a whole number, is a number (1.5)"),
        ({"health_check_interval_seconds": 0}, "health_check_interval_seconds must be greater than 0, is 0"),
        ({"request_timeout_seconds": 0}, "request_timeout_seconds must be greater than 0, is 0"),
        ({"request_timeout_seconds": "-5"}, "request_timeout_seconds must be greater than 0, is -5"),
        ({"connect_timeout_seconds": 0.0}, "connect_timeout_seconds must be greater than 0, is 0.0"),
        ({"drain_timeout_seconds": -1}, "drain_timeout_seconds must be a number of at least 0, is -1"),
        ({"lock_timeout_seconds": -0.5}, "lock_timeout_seconds must be a number of at least 0, is -0.5"),
        ({"min_active_seconds": []}, "min_active_seconds must be a number, is a list"),
        ({"ready_completion": "on"}, "ready_completion must be true or false, is text (on)"),
        (
            {"escalation": ["stop", "pray"]},
            "escalation[1] must be one of stop, retry, restart, roll_back, is pray",
        ),
        ({"drain_timeout_action": "hope"}, "drain_timeout_action must be one of abort, keep, fail, is hope"),
        ({"macros": {"a": []}}, "macros.a must be text or a number, is a list"),
        ({"max_retry": 3}, "unknown key max_retry; did you mean max_retries?"),
        ({"zzz": 3}, f"unknown key zzz; the keys are: {SWITCHING_KEYS}"),
    ],
)
def test_a_mistake_in_switching(switching: Any, mistake: str) -> None:
    assert mistakes_of([entry()], switching) == [f"vllm_switching: {mistake}"]


@pytest.mark.parametrize(
    ("request_", "mistake"),
    [
        ({"endpoint": "x"}, "endpoint must be a path that starts with /, is x"),
        ({"endpoint": "http://a/x"}, "endpoint must be a path that starts with /, is http://a/x"),
        ({"endpoint": 5}, "endpoint must be text, is a number (5): put it in quotes"),
        ({"endpoint": "/x", "method": "fly"}, "method must be one of GET, POST, PUT, PATCH, DELETE, is FLY"),
        ({"endpoint": "/x", "timeout": 0}, "timeout must be greater than 0, is 0"),
        ({"endpoint": "/x", "timeout": "soon"}, "timeout must be a number, is text (soon)"),
        ({"endpoint": "/x", "sleeping": "x"}, "unknown key sleeping; the keys are: endpoint, method, body, timeout"),
        (
            {"endpont": "/x", "timeout": -1},
            "unknown key endpont; did you mean endpoint?; endpoint is required; timeout must be greater than 0, is -1",
        ),
    ],
)
@pytest.mark.parametrize("key", ["sleep_requests", "wake_requests"])
def test_a_mistake_in_a_request(key: str, request_: Any, mistake: str) -> None:
    found = mistakes_of([{**entry(), **REQUESTS, key: [{"endpoint": "/ok"}, request_]}])[0]
    assert re.fullmatch(rf"vllm_models\[0\] \(a\): {key}\[1\] ?: {re.escape(mistake)}", found)


# Mistakes between entries


@pytest.mark.parametrize(
    ("second", "mistake"),
    [
        (entry("b"), "host_port 8001 is taken by a"),
        (entry("b", "8001"), "host_port 8001 is taken by a"),
        (entry("b", 2, container_name="vllm-a"), "container_name vllm-a is taken by a"),
        (entry("b", 2, aliases=["a"]), "alias a already names a"),
        (entry("b", 2, aliases=["org/A"]), "alias org/A already names a"),
    ],
)
def test_what_must_be_unique(second: dict[str, Any], mistake: str) -> None:
    assert mistakes_of([entry(), second]) == [f"vllm_models[1] (b): {mistake}"]


def test_an_id_twice() -> None:
    assert mistakes_of([entry(), entry(host_port=2, container_name="other")]) == [
        "vllm_models[1] (a): id a is taken by vllm_models[0] (a)"
    ]


def test_an_alias_twice_is_told_to_both() -> None:
    assert mistakes_of([entry(aliases=["x"]), entry("b", 2, aliases=["y", "x"])]) == [
        "vllm_models[0] (a): alias x already names b",
        "vllm_models[1] (b): alias x already names a",
    ]


def test_a_disabled_model_keeps_its_port() -> None:
    assert mistakes_of([entry(startup_mode="disabled"), entry("b")]) == [
        "vllm_models[1] (b): host_port 8001 is taken by a"
    ]


def test_an_entry_without_an_id_is_named_by_its_place() -> None:
    models = [{"model": "x", "host_port": 1}, entry("b", 1)]
    assert mistakes_of(models) == [
        "vllm_models[0]: id is required",
        "vllm_models[1] (b): host_port 1 is taken by vllm_models[0]",
    ]


def active(model_id: str, port: int, *gpus: int) -> dict[str, Any]:
    return entry(model_id, port, gpus=list(gpus) or None, startup_mode="active")


@pytest.mark.parametrize(
    ("models", "mistakes"),
    [
        ([active("a", 1), active("b", 2)], ["vllm_models[1] (b): ... by a: both use GPU 0 ..."]),
        ([active("a", 1, 0, 1), active("b", 2, 0, 1)], ["vllm_models[1] (b): ... by a: both use GPU 0, 1 ..."]),
        ([active("a", 1, 0, 1), active("b", 2, 2, 1)], ["vllm_models[1] (b): ... by a: both use GPU 1 ..."]),
        (
            [active("a", 1, 0), active("b", 2, 1), active("c", 3, 1, 2), active("d", 4, 2)],
            ["vllm_models[2] (c): ... by b: both use GPU 1 ...", "vllm_models[3] (d): ... by c: both use GPU 2 ..."],
        ),
        ([active("a", 1, 0, 1), active("b", 2, 2, 3)], []),
        ([active("a", 1, 1), entry("b", 2, gpus=[0, 1])], []),
        ([active("a", 1), entry("b", 2, startup_mode="disabled")], []),
    ],
    ids=["default", "same", "overlap", "chain", "disjoint", "other sleeps", "other disabled"],
)
def test_one_model_of_a_gpu_group_may_be_active(models: list[dict[str, Any]], mistakes: list[str]) -> None:
    if not mistakes:
        assert len(parse(models).models) == len(models)
        return
    assert mistakes_of(models) == [
        mistake.replace("... by", "startup_mode active is taken by").replace(
            " ...", " and only one of them can be awake; set one to sleep"
        )
        for mistake in mistakes
    ]


def test_all_mistakes_at_once() -> None:
    models = [
        entry(gpu_memroy_gb=1),
        entry("b", 8001, startup_mode="active", sleep_level=3),
        entry("c", "x", startup_mode="active", sleep_requests=[{"endpoint": "/${nope}"}]),
        entry("d e", 4, container_name="vllm-a", env={"A": {}}),
        7,
    ]
    switching = {"request_timeout_seconds": 0, "retries": 5}
    mistakes = [
        "vllm_switching: unknown key retries; did you mean max_retries?",
        "vllm_switching: request_timeout_seconds must be greater than 0, is 0",
        "vllm_models[0] (a): unknown key gpu_memroy_gb; did you mean gpu_memory_gb?",
        "vllm_models[1] (b): sleep_level must be one of auto, 1, 2, stop, is 3",
        "vllm_models[1] (b): host_port 8001 is taken by a",
        "vllm_models[2] (c): host_port must be a whole number, is text (x)",
        "vllm_models[2] (c): sleep_requests requires wake_requests: set both lists or neither",
        "vllm_models[2] (c): startup_mode active is taken by b: both use GPU 0 and only one of them can be awake; "
        "set one to sleep",
        "vllm_models[3] (d e): id must be lower-case letters, digits, dots, dashes and underscores, is d e",
        "vllm_models[3] (d e): env.A must be text or a number, is a dictionary",
        "vllm_models[3] (d e): container_name vllm-a is taken by a",
        "vllm_models[4]: must be a dictionary, is a number (7)",
    ]
    with pytest.raises(InventoryError) as caught:
        parse(models, switching)
    told = [m for m in caught.value.mistakes if "unknown variable" not in m]
    assert sorted(told) == sorted(mistakes)
    assert len(caught.value.mistakes) == len(mistakes) + 1
    assert str(caught.value) == "the model inventory has 13 mistakes:\n- " + "\n- ".join(caught.value.mistakes)


def test_one_mistake_is_counted_as_one() -> None:
    with pytest.raises(InventoryError, match=r"\Athe model inventory has 1 mistake:\n- vllm_models is empty"):
        parse([])


# Variables in requests and commands

MACROS = {"prefix": "/model", "both": "model's"}
GLOBAL_MACROS = {"both": "host's", "host": "h"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("/x", "/x"),
        ("/${id}", "/a"),
        ("/${model}/${name}", "/org/A/Model A"),
        ("/${container_name}", "/vllm-a"),
        ("/${port}/${host_port}", "/8000/8001"),
        ("/${prefix}${prefix}", "//model/model"),
        ("/${both}", "/model's"),
        ("/${host}", "/h"),
        ("/$id {id} $ {id} ${", "/$id {id} $ {id} ${"),
        ("/x?level=${level}", "/x?level=${level}"),
    ],
)
def test_variables_are_replaced_in_requests(text: str, value: str) -> None:
    request = {"endpoint": text, "body": {"deep": [text, {"er": text}], "n": 1, "${id}": None}}
    model = parse(
        [entry(name="Model A", macros=MACROS, sleep_requests=[request], wake_requests=[request])],
        {"macros": GLOBAL_MACROS},
    ).models[0]
    expected = Request(value, body={"deep": [value, {"er": value}], "n": 1, "${id}": None})
    assert (model.sleep_requests, model.wake_requests) == ((expected,), (expected,))


def test_variables_are_replaced_in_the_state_request_and_in_commands() -> None:
    model = only(
        port=9000,
        macros=MACROS,
        state_request={"endpoint": "/${id}${prefix}", "body": "${id}", "sleeping": "^${id}$"},
        start_command=["serve", "${model}", "--port=${host_port}"],
        stop_command=["stop", "${container_name}:${port}"],
    )
    # The regular expression is left alone: it has its own use for $ and {}.
    assert model.state_request == StateRequest("/a/model", body="a", sleeping="^${id}$")
    assert model.start_command == ("serve", "org/A", "--port=8001")
    assert model.stop_command == ("stop", "vllm-a:9000")


def test_the_level_is_put_in_when_it_is_known() -> None:
    request = {"endpoint": "/x?level=${level}", "body": {"level": "${level}", "list": ["l${level}", 1]}, "timeout": 3}
    (parsed,) = only(sleep_requests=[request], wake_requests=[request]).sleep_requests
    assert parsed.at_level(2) == Request("/x?level=2", "POST", {"level": "2", "list": ["l2", 1]}, 3.0)
    assert parsed.endpoint == "/x?level=${level}"


VARIABLES = "container_name, host_port, id, model, name, port"


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        (
            {"sleep_requests": [{"endpoint": "/ok"}, {"endpoint": "/${zzz}"}]},
            f"sleep_requests[1].endpoint uses the unknown variable ${{zzz}}; the variables are: {VARIABLES}, level",
        ),
        (
            {"wake_requests": [{"endpoint": "/x", "body": {"a": ["${hst_port}"]}}]},
            "wake_requests[0].body uses the unknown variable ${hst_port}; did you mean ${host_port}?",
        ),
        (
            {"sleep_requests": [{"endpoint": "/${macrox}"}], "macros": {"macros": "x"}},
            "sleep_requests[0].endpoint uses the unknown variable ${macrox}; did you mean ${macros}?",
        ),
        (
            {"state_request": {"endpoint": "/${idd}", "sleeping": "x"}},
            "state_request.endpoint uses the unknown variable ${idd}; did you mean ${id}?",
        ),
        (
            {"start_command": ["run", "${zzz}"]},
            f"start_command[1] uses the unknown variable ${{zzz}}; the variables are: {VARIABLES}",
        ),
        (
            {"start_command": ["run", "${level}"]},
            f"start_command[1] uses the unknown variable ${{level}}; the variables are: {VARIABLES}",
        ),
        (
            {"start_command": ["run"], "stop_command": ["${}"]},
            f"stop_command[0] uses the unknown variable ${{}}; the variables are: {VARIABLES}",
        ),
    ],
)
def test_an_unknown_variable_is_told_with_model_and_field(keys: dict[str, Any], mistake: str) -> None:
    custom = REQUESTS if "sleep_requests" in keys or "wake_requests" in keys else {}
    assert mistakes_of([entry(**{**custom, **keys})]) == [f"vllm_models[0] (a): {mistake}"]


# One mistake is one message


def test_the_path_of_a_request_has_no_blank() -> None:
    assert mistakes_of([{**entry(), **REQUESTS, "sleep_requests": [{}]}])[0] == (
        "vllm_models[0] (a): sleep_requests[0]: endpoint is required"
    )


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        ({"host_port": "x", "start_command": ["${host_port}"]}, "host_port must be a whole number, is text (x)"),
        ({**REQUESTS, "sleep_requests": "x"}, "sleep_requests must be a list of requests, is text (x)"),
        (
            {"start_command": "x", "stop_command": ["x"]},
            "start_command must be a list of words, is text (x)",
        ),
        (
            {"macros": {"my": "x", "a": []}, "start_command": ["${my}"]},
            "macros.a must be text or a number, is a list",
        ),
        (
            {"macros": {"a": []}, "start_command": ["${a}"]},
            "macros.a must be text or a number, is a list",
        ),
    ],
)
def test_a_mistake_entails_no_other(keys: dict[str, Any], mistake: str) -> None:
    assert mistakes_of([entry(**keys)]) == [f"vllm_models[0] (a): {mistake}"]


def test_mistaken_gpus_conflict_with_nothing() -> None:
    models = [active("a", 1), {**active("b", 2), "gpus": "1"}]
    assert mistakes_of(models) == ["vllm_models[1] (b): gpus must be a list of GPU numbers or UUIDs, is text (1)"]


def test_an_id_twice_is_one_mistake() -> None:
    assert mistakes_of([entry(), entry(host_port=2)]) == ["vllm_models[1] (a): id a is taken by vllm_models[0] (a)"]


@pytest.mark.parametrize(
    "keys", [{"host_port": 10**400}, {"state_request": {"endpoint": "/", "sleeping": "a{99999999999999999999}"}}]
)
def test_what_python_can_not_compute_is_a_mistake(keys: dict[str, Any]) -> None:
    assert len(mistakes_of([entry(**keys)])) == 1


def test_a_state_request_has_no_level() -> None:
    assert mistakes_of([entry(state_request={"endpoint": "/${level}", "sleeping": "x"})]) == [
        "vllm_models[0] (a): state_request.endpoint uses the unknown variable ${level}; "
        f"the variables are: {VARIABLES}"
    ]


@pytest.mark.parametrize("name", ["id", "level"])
def test_a_macro_of_the_host_hides_no_variable(name: str) -> None:
    assert mistakes_of([entry()], {"macros": {name: "x"}}) == [
        f"vllm_switching: macros.{name} hides the variable of that name: rename the macro"
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {"macros": {"m": "${id}"}, "start_command": ["run", "${m}"]},
        {"name": "${zzz}", "start_command": ["run", "${name}"]},
    ],
)
def test_values_that_look_like_variables_survive_a_round_trip(keys: dict[str, Any]) -> None:
    try:
        inventory = parse([entry(**keys)])
    except InventoryError:
        return  # to refuse them is as good
    assert parse_again(inventory) == inventory


ENDLESS = 16**5000  # Python prints no decimal number of so many digits, and YAML has hexadecimal ones
CIRCLE: list[Any] = []
CIRCLE += [CIRCLE, CIRCLE]


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        ({"host_port": ENDLESS}, "vllm_models[0]: host_port must be a shorter number"),
        ({"args": {"a": [1, ENDLESS]}}, "vllm_models[0]: args.a[1] must be a shorter number"),
        ({"env": {ENDLESS: 1}}, "vllm_models[0]: env: a key must be a shorter number"),
        ({"start_command": ["run", "a\0b"]}, "vllm_models[0]: start_command[1] must not contain NUL characters"),
        (
            {"model": "a\ud800"},
            "vllm_models[0]: model must be valid Unicode, contains half of a surrogate pair",
        ),
    ],
)
def test_what_nobody_can_write_down(keys: dict[str, Any], mistake: str) -> None:
    assert mistakes_of([{**entry(), **keys}]) == [mistake]


def test_what_nobody_can_write_down_elsewhere() -> None:
    assert mistakes_of([entry()], {"macros": {"a": "\0"}}) == [
        "vllm_switching: macros.a must not contain NUL characters"
    ]
    assert mistakes_of(["\0"]) == ["vllm_models[0]: must not contain NUL characters"]
    assert mistakes_of(ENDLESS) == ["vllm_models must be a list of models, is a number"]
    (mistake,) = mistakes_of([entry(args={"a": CIRCLE})])
    assert mistake.endswith(" must be nested less than 50 levels deep")


JSON = "must be text, a number, true or false, a list or a dictionary of these, is"


@pytest.mark.parametrize("value", [{"day": datetime.date(2026, 1, 1)}, [math.nan], {"a": math.inf}, {(1, 2): 1}])
def test_a_body_and_an_argument_are_json(value: Any) -> None:
    kind = "a list" if isinstance(value, list) else "a dictionary"
    assert mistakes_of([entry(args={"x": value})]) == [f"vllm_models[0] (a): args.x {JSON} {kind}"]
    requests: Any = {**REQUESTS, "sleep_requests": [{"endpoint": "/x", "body": value}]}
    assert mistakes_of([entry(**requests)]) == [f"vllm_models[0] (a): sleep_requests[0]: body {JSON} {kind}"]


def test_keys_are_what_json_makes_of_them() -> None:
    assert only(args={"x": {1: {None: True}}}).args == {"x": {"1": {"null": True}}}


@pytest.mark.parametrize("word", ["${${id}}", "${dollar}{id}"])
def test_variables_make_up_no_other(word: str) -> None:
    # It would be replaced when the normalised inventory is read.
    becomes = "${a}" if word == "${${id}}" else "${id}"
    assert mistakes_of([entry(start_command=[word], macros={"dollar": "$"})]) == [
        f"vllm_models[0] (a): start_command[0] becomes {becomes}: the result must not contain another variable"
    ]


def test_a_word_of_nothing_but_an_empty_variable() -> None:
    assert mistakes_of([entry(start_command=["run", "${nothing}"], macros={"nothing": ""})]) == [
        "vllm_models[0] (a): start_command[1] must not be empty, but its variables are"
    ]


def test_a_regular_expression_too_deep_for_python() -> None:
    assert len(mistakes_of([entry(state_request={"endpoint": "/", "sleeping": "(" * 5000 + ")" * 5000})])) == 1


def test_a_missing_key_is_told_once() -> None:
    assert mistakes_of([{"id": "a", "model": "x", "start_command": ["${host_port}"]}]) == [
        "vllm_models[0] (a): host_port is required"
    ]


def test_a_container_name_twice_is_told_without_ids_too() -> None:
    nameless = {"model": "x", "container_name": "same"}
    assert "vllm_models[1]: container_name same is taken by vllm_models[0]" in mistakes_of(
        [{**nameless, "host_port": 1}, {**nameless, "host_port": 2}]
    )


def test_every_gpu_clash_is_told() -> None:
    models = [active("a", 1), {**active("b", 2), "gpus": [1]}, {**active("c", 3), "gpus": [0, 1]}]
    assert len(mistakes_of(models)) == 2


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        ({"args": {"when": datetime.date(2026, 1, 1)}}, "args.when must be text, a number, true or false, a list or"),
        ({"aliases": ["x", "x"]}, "aliases must not contain duplicates, is ['x', 'x']"),
        ({"aliases": [None]}, "aliases[0] must be text, is nothing"),
    ],
)
def test_odd_values_are_mistakes(keys: dict[str, Any], mistake: str) -> None:
    (told,) = mistakes_of([entry(**keys)])
    assert told.startswith(f"vllm_models[0] (a): {mistake}")


# Finding a model, and how models relate

NAMED = parse(
    [
        entry("a", 1, model="org/shared", aliases=["first", "b-like"]),
        entry("b", 2, model="org/shared"),
        entry("c", 3, model="org/c"),
        entry("d", 4, model="a"),
        entry("off", 5, startup_mode="disabled", aliases=["away"]),
    ]
)


@pytest.mark.parametrize(
    ("name", "model_id"), [("a", "a"), ("b", "b"), ("first", "a"), ("b-like", "a"), ("org/c", "c"), ("d", "d")]
)
def test_find(name: str, model_id: str) -> None:
    assert NAMED.find(name).id == model_id


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", "model nope is not declared; the models are: a, b, c, d, off (disabled)"),
        ("awa", "model awa is not declared; did you mean away? the models are: a, b, c, d, off (disabled)"),
        ("A", "model A is not declared; the models are: a, b, c, d, off (disabled)"),
        ("org/shared", "model org/shared is ambiguous; the models are: a, b, c, d, off (disabled)"),
        ("", "no model given: use one of a, b, c, d, off (disabled)"),
        ("off", "model off is disabled: set its startup_mode to sleep or active in vllm_models to use it"),
        ("away", "model off is disabled: set its startup_mode to sleep or active in vllm_models to use it"),
        ("org/OFF", "model off is disabled: set its startup_mode to sleep or active in vllm_models to use it"),
    ],
)
def test_find_tells_what_there_is(name: str, message: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        NAMED.find(name)
    assert str(caught.value) == message


def test_names_begin_with_the_id() -> None:
    assert NAMED.models[0].names == ("a", "first", "b-like", "org/shared")


def test_enabled_models_keep_their_order() -> None:
    assert [m.id for m in NAMED.enabled] == ["a", "b", "c", "d"]


def test_models_conflict_when_they_share_a_gpu() -> None:
    gpus = {"a": [0], "b": [0, 1], "c": [1], "d": [2]}
    inventory = parse([entry(name, 8000 + n, gpus=numbers) for n, (name, numbers) in enumerate(gpus.items())])
    conflicts = {m.id: [other.id for other in inventory.conflicting(m)] for m in inventory.models}
    assert conflicts == {"a": ["b"], "b": ["a", "c"], "c": ["b"], "d": []}


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({}, None),
        ({"args": {"api-key": "k1"}, "env": {"VLLM_API_KEY": "k2"}}, "k1"),
        ({"args": {"api_key": ["k1", "k2"]}}, "k1"),
        ({"args": {"api_key": []}}, None),
        ({"args": {"api_key": 5}}, "5"),
        ({"env": {"VLLM_API_KEY": "k2"}}, "k2"),
    ],
)
def test_the_api_key_comes_from_arguments_or_environment(keys: dict[str, Any], key: str | None) -> None:
    assert only(**keys).api_key == key


# As plain data

FULL = [
    entry(
        "full",
        8009,
        name="Full",
        container_name="full-1",
        port=9000,
        gpus=[1, 0],
        gpu_memory_gb=57,
        weights_gb="14",
        startup_mode="active",
        sleep_level=2,
        args={"max-model-len": 4096, "limit": {"image": 1}, "list": [1, "a"], "flag": True, "none": None},
        env={"A": 1, "B": True},
        image="vllm/vllm-openai:v0.11.0",
        aliases=["x", "y"],
        ready_completion=False,
        kind="speech",
        canary="warn",
        sleep_requests=[{"endpoint": "/s/${id}/${level}", "body": {"l": "${level}"}, "method": "PUT", "timeout": 1}],
        wake_requests=[{"endpoint": "/w/${m}"}],
        state_request={"endpoint": "/q/${g}", "sleeping": "zz$", "body": "text"},
        start_command=["run", "${model}"],
        stop_command=["halt"],
        macros={"m": "x"},
    ),
    entry("plain", 8010, gpus=[2]),
    entry("off", 8011, startup_mode="disabled"),
]
FULL_SWITCHING = {"available_ram_gb": 64, "ready_completion": False, "macros": {"g": "y"}, "lock_timeout_seconds": "5"}


def test_as_dict_is_plain_json_of_every_key() -> None:
    plain = parse(FULL, FULL_SWITCHING).as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain) == ["vllm_models", "vllm_switching"]
    assert [sorted(m) for m in plain["vllm_models"]] == [sorted(KEYS.split(", "))] * 3
    assert sorted(plain["vllm_switching"]) == sorted(SWITCHING_KEYS.split(", "))
    full = plain["vllm_models"][0]
    assert full["gpus"] == [1, 0]
    assert full["sleep_requests"] == [
        {"endpoint": "/s/full/${level}", "method": "PUT", "body": {"l": "${level}"}, "timeout": 1.0}
    ]
    assert plain["vllm_models"][1]["container_name"] == "vllm-plain"


def test_what_as_dict_gives_parses_to_the_same_inventory() -> None:
    inventory = parse(FULL, FULL_SWITCHING)
    assert parse_again(inventory) == inventory


# Any inventory at all

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
# What JSON and commands can hold.
plain_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
plain_values = json_values.filter(lambda value: not re.search(r"nan|inf|x00", repr(value)))
words = st.text("ab1 -${}", min_size=1, max_size=8).filter(str.strip)
plain_words = st.text("ab1 -", min_size=1, max_size=8).filter(str.strip)
endpoints = st.lists(
    st.sampled_from(["a", "/", "?b=1", "${id}", "${level}", "${port}", "${model}", "${own}", "${global}", "$"]),
    max_size=4,
).map(lambda parts: "/" + "".join(parts))
requests = st.fixed_dictionaries(
    {"endpoint": endpoints},
    optional={
        "method": st.sampled_from(["GET", "post", "PATCH"]),
        "body": plain_values | endpoints,
        "timeout": st.floats(0.1, 100) | st.integers(1, 100) | st.just("2.5"),
    },
)
sizes = st.floats(0.1, 500) | st.integers(1, 500)
arguments = st.dictionaries(
    st.sampled_from(["max-model-len", "kv_cache_dtype", "flag", "lora.x"]),
    plain_values,
    max_size=3,
)
macros = st.fixed_dictionaries({"own": plain_words}, optional={"more": plain_words})
# What each optional key takes.
VALID = {
    "name": plain_words,
    "port": st.integers(1, 65535) | st.just("8000"),
    "gpu_memory_gb": sizes,
    "weights_gb": sizes,
    "sleep_level": st.sampled_from(["auto", 1, 2, "1", "2", "stop"]),
    "startup_mode": st.sampled_from(["sleep", "disabled"]),
    "gpus": st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
    "args": arguments,
    "env": st.dictionaries(st.sampled_from(["A", "B_1"]), st.integers() | st.booleans() | plain_texts),
    "image": st.sampled_from(["", "vllm/vllm-openai:v0.11.0"]),
    "entrypoint": st.just([]),
    "ready_completion": st.booleans() | st.sampled_from(["yes", "no"]),
    "kind": st.sampled_from(["auto", "text", "pooling", "speech"]),
    "canary": st.sampled_from(["auto", "off", "warn", "enforce", False]),
    "state_request": st.fixed_dictionaries({"endpoint": st.just("/${id}"), "sleeping": st.just("(?i)zz+$")}),
    "start_command": st.lists(plain_words | st.just("${model}"), max_size=3),
}


@st.composite
def valid_inventories(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """vllm_models and vllm_switching without mistakes."""
    models = []
    for number in range(draw(st.integers(1, 3))):
        keys = draw(st.fixed_dictionaries({"macros": macros}, optional=VALID))
        if draw(st.booleans()):
            keys.update(
                draw(st.fixed_dictionaries(dict.fromkeys(REQUESTS, st.lists(requests, min_size=1, max_size=2))))
            )
        models.append(entry(f"m{number}", 8000 + number, **keys))
    switching = draw(
        st.fixed_dictionaries(
            {"macros": st.fixed_dictionaries({"global": plain_words})},
            optional={
                "available_ram_gb": st.floats(0, 1000),
                "max_retries": st.integers(1, 1000) | st.just("7"),
                "health_check_interval_seconds": st.floats(0.01, 100),
                "ready_completion": st.booleans(),
                "escalation": st.lists(st.sampled_from(["stop", "retry", "restart", "roll_back"])),
            },
        )
    )
    return models, switching


@settings(max_examples=150)
@given(valid_inventories())
def test_any_valid_inventory_survives_a_round_trip(variables: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    before = json.dumps(variables)
    inventory = parse(*variables)
    assert parse_again(inventory) == inventory
    assert [m.id for m in inventory.models] == [m["id"] for m in variables[0]]
    assert json.dumps(variables) == before, "parse must not change what it is given"


keys_of_a_model = st.sampled_from(KEYS.split(", ")) | st.text(max_size=8) | st.integers(0, 3)
junk_requests = st.lists(
    st.dictionaries(
        st.sampled_from(["endpoint", "method", "body", "timeout", "sleeping"]), json_values | words | endpoints
    )
    | json_values,
    max_size=2,
)
junk_entries = st.dictionaries(keys_of_a_model, json_values | words | junk_requests, max_size=6)
half_right_entries = st.builds(
    lambda right, wrong: {**right, **wrong},
    st.fixed_dictionaries(
        {"id": st.sampled_from(["a", "b", "c("]), "model": words, "host_port": st.integers(8001, 8003)},
        optional={
            **VALID,
            **dict.fromkeys(REQUESTS, st.lists(requests, max_size=2)),
            "startup_mode": st.just("active"),
            "aliases": st.lists(st.sampled_from("abx")),
        },
    ),
    st.dictionaries(keys_of_a_model, json_values | words, max_size=2),
)
PATH = re.compile(r"(vllm_models\[\d+\]( \(.+?\))?: .|vllm_models (is empty|must be)|vllm_switching: .)", re.DOTALL)


@settings(max_examples=400)
@given(
    json_values | st.lists(junk_entries | half_right_entries | json_values, max_size=4),
    json_values | st.dictionaries(st.sampled_from(SWITCHING_KEYS.split(", ")) | st.text(max_size=8), json_values),
)
@example([entry()], None)
def test_junk_raises_nothing_but_mistakes_with_a_path(models: Any, switching: Any) -> None:
    try:
        inventory = parse(models, switching)
    except InventoryError as error:
        assert error.mistakes
        assert [mistake for mistake in error.mistakes if not PATH.match(mistake)] == []
    else:
        assert len(inventory.models) == len(models)


def test_an_entrypoint_beside_a_start_command() -> None:
    assert mistakes_of([entry(entrypoint=["vllm", "serve"], start_command=["run"])]) == [
        "vllm_models[0] (a): entrypoint is for containers and has no effect with a start_command: remove one of them"
    ]
    assert parse([entry(entrypoint=[], start_command=["run"])]).models[0].entrypoint == ()


@pytest.mark.parametrize("model", ["vllm serve org/a", "vllm", "serve org/a"])
def test_a_model_that_is_a_command(model: str) -> None:
    assert mistakes_of([entry(model=model)]) == [
        f"vllm_models[0] (a): model must be what `vllm serve` loads, is {model}: remove the command (the image "
        "or the entrypoint sets it)"
    ]
    # What only begins like it is a name as any other.
    assert parse([entry(model="vllm/tiny")]).models[0].model == "vllm/tiny"


# GPUs by their UUIDs


def test_models_conflict_when_they_share_a_uuid() -> None:
    other = GPU[:-1] + "0"
    given = {"a": [GPU], "b": [GPU.lower(), other], "c": [other], "d": [MIG], "e": [MIG[:-1] + "0"], "f": [MIG.lower()]}
    models = [entry(name, 8001 + n, gpus=gpus) for n, (name, gpus) in enumerate(given.items())]
    inventory = parse(models)
    conflicts = {m.id: "".join(o.id for o in inventory.conflicting(m)) for m in inventory.models}
    assert conflicts == {"a": "b", "b": "ac", "c": "b", "d": "f", "e": "", "f": "d"}
    assert parse_again(inventory) == inventory


def test_numbers_and_uuids_in_one_inventory_are_refused() -> None:
    models = [entry("a", 1), entry("b", 2, gpus=[GPU]), entry("c", 3, gpus=[1]), entry("d", 4, gpus=[MIG])]
    assert mistakes_of(models) == [
        "vllm_models: gpus are numbers in a, c and UUIDs in b, so it is unknown which models share a GPU: use one "
        "form for all of them (nvidia-smi -L lists both)"
    ]
    # A MIG instance is a GPU of its own: the GPU that it is a part of can't be used as a whole.
    assert mistakes_of([entry("a", 1, gpus=[0, GPU])]) != []
    apart = parse([models[0], models[3]])
    assert not apart.conflicting(apart.models[0])


def test_a_disabled_model_may_have_the_other_form_and_conflicts_then() -> None:
    inventory = parse([entry("a", 1, startup_mode="disabled"), entry("b", 2, gpus=[GPU]), entry("c", 3, gpus=[MIG])])
    assert [m.id for m in inventory.conflicting(inventory.models[0])] == ["b"]
    assert [m.id for m in inventory.conflicting(inventory.models[1])] == ["a"]


def test_two_active_models_on_one_uuid() -> None:
    models = [entry(name, port, gpus=[GPU], startup_mode="active") for name, port in (("a", 1), ("b", 2))]
    assert mistakes_of(models) == [
        f"vllm_models[1] (b): startup_mode active is taken by a: both use {GPU} and only one of them can be awake; set "
        "one to sleep"
    ]


# What no switch can follow

SEVERAL = "the server is one of several that only sleep together: set only data_parallel_size"
NO_API = "the server has no API, so it can't be put to sleep: remove it"
OTHER_HOSTS = "the server waits for servers on other hosts, but a model runs on one host: remove it"
SOCKET = "the server listens on a socket file instead of the port that a switch uses: remove it"
GRPC = "the server uses gRPC instead of HTTP, which a switch needs: remove it"
CLIENTS = "the server requires a client certificate, which a switch does not have: set it to 0 or 1"
TLS = (
    "a container's port is published on this host only, and Open WebUI uses plain HTTP: remove it, and terminate TLS "
    "in a proxy"
)


@pytest.mark.parametrize(
    ("args", "mistakes"),
    [
        ({"uds": "/run/vllm.sock"}, [f"args.uds: {SOCKET}"]),
        ({"headless": True}, [f"args.headless: {NO_API}"]),
        ({"api-server-count": "0"}, [f"args.api_server_count: {NO_API}"]),
        ({"grpc": True}, [f"args.grpc: {GRPC}"]),
        ({"data_parallel_external_lb": True}, [f"args.data_parallel_external_lb: {SEVERAL}"]),
        ({"data_parallel_hybrid_lb": True}, [f"args.data_parallel_hybrid_lb: {SEVERAL}"]),
        ({"data_parallel_multi_port_external_lb": True}, [f"args.data_parallel_multi_port_external_lb: {SEVERAL}"]),
        ({"data_parallel_rank": 0}, [f"args.data_parallel_rank: {SEVERAL}"]),
        ({"data_parallel_start_rank": 0}, [f"args.data_parallel_start_rank: {SEVERAL}"]),
        ({"data_parallel_size_local": 0}, [f"args.data_parallel_size_local: {OTHER_HOSTS}"]),
        ({"nnodes": 2, "node_rank": 1}, [f"args.nnodes: {OTHER_HOSTS}"]),
        ({"ssl_cert_reqs": 2}, [f"args.ssl_cert_reqs: {CLIENTS}"]),
        ({"ssl_keyfile": "/k", "ssl_certfile": "/c"}, [f"args.ssl_keyfile: {TLS}", f"args.ssl_certfile: {TLS}"]),
        (
            {"host": "10.0.0.5"},
            ["args must not have host: use the model's host_port (servers always listen for the host alone)"],
        ),
    ],
)
def test_options_that_no_switch_can_follow(args: dict[str, Any], mistakes: list[str]) -> None:
    assert mistakes_of([entry(args=args)]) == [f"vllm_models[0] (a): {mistake}" for mistake in mistakes]


@pytest.mark.parametrize(
    "args",
    [
        {"root_path": "/llm"},
        {"uds": None, "headless": False, "grpc": False, "ssl_keyfile": "", "data_parallel_rank": None},
        {"api_server_count": 2, "nnodes": 1, "ssl_cert_reqs": 0, "data_parallel_address": "127.0.0.1"},
    ],
)
def test_options_that_a_switch_can_follow(args: dict[str, Any]) -> None:
    assert only(args=args).listens == ("127.0.0.1", False)


@pytest.mark.parametrize(
    ("words", "mistakes"),
    [
        (["--uds", "/run/vllm.sock"], [f"--uds: {SOCKET}"]),
        (["--uds=/run/vllm.sock"], [f"--uds: {SOCKET}"]),
        (["--headless"], [f"--headless: {NO_API}"]),
        (["-asc", "0"], [f"--api-server-count: {NO_API}"]),
        (["--grpc", "--port", "8001"], [f"--grpc: {GRPC}"]),
        (["--data_parallel_hybrid_lb"], [f"--data-parallel-hybrid-lb: {SEVERAL}"]),
        (["-dp", "2", "-dpl=1"], [f"--data-parallel-size-local: {OTHER_HOSTS}"]),
        (["-n", "2"], [f"--nnodes: {OTHER_HOSTS}"]),
        (["--ssl-cert-reqs", "2"], [f"--ssl-cert-reqs: {CLIENTS}"]),
        (
            ["--host", "gpu1.lan"],
            ["--host: gpu1.lan is a host name, but a switch needs an address: set the address, or 127.0.0.1"],
        ),
        (
            ["--host=fe80::1%eth0"],
            ["--host: fe80::1%eth0 is an address of one interface, which nginx can't use: set another, or 127.0.0.1"],
        ),
        (
            ["--port", "8000"],
            ["--port: the server listens on 8000, but a switch uses host_port 8001: set it to ${host_port}"],
        ),
    ],
)
def test_words_that_no_switch_can_follow(words: list[str], mistakes: list[str]) -> None:
    for command in (["/opt/vllm/bin/vllm", "serve", "m"], ["python3", "-m", "vllm.entrypoints.openai.api_server"]):
        assert mistakes_of([entry(start_command=[*command, *words])]) == [
            f"vllm_models[0] (a): start_command: {mistake}" for mistake in mistakes
        ]
    # What it is, or where its address is, nobody can tell; and args are not its own.
    docker = ["docker", "run", "vllm/vllm-openai", "vllm", "serve"]
    for command in (
        docker,
        ["sudo", "-n", *docker],
        ["env", "A=1", "/usr/bin/ssh", "b", "vllm", "serve"],
        ["llama-server"],
    ):
        assert only(start_command=[*command, *words], args={"headless": True}).listens == ("127.0.0.1", False)


@pytest.mark.parametrize(
    ("words", "listens"),
    [
        ([], ("127.0.0.1", False)),
        (["--host", "0.0.0.0", "--port", "${host_port}"], ("127.0.0.1", False)),
        (["--host=localhost", "--data-parallel-size", "2", "-dpl", "2"], ("127.0.0.1", False)),
        (["--host", "::"], ("127.0.0.1", False)),
        (["--host", "::1"], ("::1", False)),
        (["--host", "[::1]"], ("::1", False)),
        (["--host", "127.0.0.2"], ("127.0.0.2", False)),
        (["--host", "10.0.0.5", "--ssl-certfile", "/c", "--ssl_keyfile=/k", "--root-path", "/x"], ("10.0.0.5", True)),
    ],
)
def test_where_a_command_listens(words: list[str], listens: tuple[str, bool]) -> None:
    assert only(start_command=["vllm", "serve", "m", *words]).listens == listens


# ---- what a model answers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, "auto"),
        ({"args": {"runner": "pooling"}}, "pooling"),
        ({"args": {"runner": "auto", "convert": "embed"}}, "pooling"),
        ({"args": {"runner": "generate"}}, "auto"),
        ({"args": {"convert": "none"}}, "auto"),
        ({"args": {"task": "embed"}}, "pooling"),
        ({"args": {"task": "score"}}, "pooling"),
        ({"args": {"task": "transcription"}}, "speech"),
        ({"args": {"task": "generate"}}, "auto"),
        ({"args": {"task": None, "runner": ["pooling"]}}, "auto"),
        ({"kind": "auto", "args": {"runner": "pooling"}}, "pooling"),
        ({"kind": "pooling", "args": {"runner": "pooling"}}, "pooling"),
        ({"kind": "pooling"}, "pooling"),
        ({"kind": "speech"}, "speech"),
        ({"kind": "text", "args": {"runner": "generate"}}, "text"),
    ],
)
def test_the_kind_of_a_model(keys: dict[str, Any], kind: str) -> None:
    model = only(**keys)
    assert model.kind == kind
    (again,) = parse([json.loads(json.dumps(dataclasses.asdict(model)))]).models
    assert again.kind == kind


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        ({"kind": "embedding"}, "kind must be one of auto, text, pooling, speech"),
        (
            {"kind": "text", "args": {"runner": "pooling"}},
            "kind text conflicts with args.runner pooling: remove kind",
        ),
    ],
)
def test_a_kind_that_is_none(keys: dict[str, Any], mistake: str) -> None:
    with pytest.raises(InventoryError) as caught:
        only(**keys)
    assert mistake in str(caught.value)
