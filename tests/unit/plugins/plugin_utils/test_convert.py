# SPDX-License-Identifier: MIT
"""What homeGPT and llama-swap say becomes a right inventory, and what does not is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.from_homegpt import from_homegpt
from ansible_collections.homegpt.vllm.plugins.filter.from_llama_swap import from_llama_swap
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.plugin_utils import (
    compose,
    convert,
    convert_builder,
    convert_homegpt,
    convert_llama_swap,
    inventory_file,
)

DATA = Path(__file__).parents[3] / "integration_playbooks/data"
SLEEP_1 = {
    "sleepEndpoints": [{"endpoint": "/sleep?level=1"}],
    "wakeEndpoints": [{"endpoint": "/wake_up"}],
}
RELOAD = {"endpoint": "/collective_rpc", "body": '{"method": "reload_weights"}'}


def load(name: str) -> Any:
    return yaml.safe_load((DATA / name).read_text(encoding="utf-8"))


def service(**fields: Any) -> dict[str, Any]:
    """A compose file of one model."""
    return {"services": {"vllm-a": {"image": "vllm/vllm-openai:v0.11.0", "command": "org/a", **fields}}}


def homegpt(variables: Any = None, entry: Any = None, **fields: Any) -> tuple[dict[str, Any], convert.Converted]:
    """The entry of a single model out of homeGPT's files."""
    config = {"models": [{"id": "a", "host_port": 8001, **(entry or {})}]}
    found = convert_homegpt.from_homegpt(config, [("a.yml", service(**fields))], variables=variables)
    return found.variables["vllm_models"][0], found


def swap(variables: Any = None, servers: str = "containers", **fields: Any) -> tuple[dict[str, Any], convert.Converted]:
    """The entry of a single model out of a llama-swap configuration."""
    entry = {"cmd": "vllm serve org/a --port ${PORT}", **SLEEP_1, **fields}
    top = entry.pop("top", {})
    config = {"models": {"a": {key: value for key, value in entry.items() if value is not None}}, **top}
    found = convert_llama_swap.from_llama_swap(config, servers=servers, variables=variables)
    return found.variables["vllm_models"][0], found


def noted(found: convert.Converted, *texts: str) -> bool:
    return any(all(text in note for text in texts) for note in found.notes)


# -- homeGPT


def test_homegpts_files() -> None:
    files = [(name, load(f"homegpt/{name}")) for name in ("compose-vllm-vision.yml", "compose-vllm-coder.yml")]
    found = convert_homegpt.from_homegpt(load("homegpt/config.yaml"), files)
    args = {
        "gpu_memory_utilization": 0.9,
        "max_model_len": 32768,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        "hf_overrides": {"rope_scaling": {"factor": 2.0}},
        "enable_prefix_caching": False,
    }
    vision = {"id": "vision", "name": "Vision (FP8)", "model": "org/vision", "host_port": 8001, "gpus": [0, 1]}
    coder = {"id": "coder", "name": "Coder", "model": "org/coder", "host_port": 8002, "gpus": [0, 1]}
    thinker = {"id": "thinker", "name": "Thinker", "model": convert.PLACEHOLDER + "thinker", "host_port": 8003}
    assert found.variables == {
        "vllm_image": "vllm/vllm-openai:v0.11.0",
        "vllm_env": {"NCCL_P2P_DISABLE": "1"},
        "vllm_cache_dir": "/srv/cache",
        "vllm_models": [
            {**vision, "gpu_memory_gb": 57.0, "startup_mode": "active", "args": args},
            {**coder, "gpu_memory_gb": 36.0, "startup_mode": "sleep", "args": args},
            {**thinker, "gpu_memory_gb": 60.0, "startup_mode": "disabled"},
        ],
        "vllm_switching": {"available_ram_gb": 128.0, "max_retries": 450, "health_check_interval_seconds": 2},
    }
    assert noted(
        found, "models[2] (thinker)", "no compose file has the container vllm-thinker", "compose-vllm-thinker.yml"
    )
    assert noted(found, "HUGGING_FACE_HUB_TOKEN", "vllm_hf_token")
    # What the collection makes of it is what homeGPT gave the container.
    model = parse(found.variables["vllm_models"]).as_dict()["vllm_models"][0]
    words = compose.service(model, "nvidia", found.variables["vllm_image"], found.variables["vllm_env"])["command"]
    given = [
        "org/vision", "--gpu-memory-utilization=0.9", "--max-model-len=32768", "--tensor-parallel-size=2",
        "--enable-sleep-mode", "--enable-auto-tool-choice", "--tool-call-parser=hermes", "--no-enable-prefix-caching",
        '--hf-overrides={"rope_scaling": {"factor": 2.0}}',
    ]  # fmt: skip
    own = {"--served-model-name", "vision", "--port=8000"}
    assert set(words) - own == set(given)


def test_an_active_model_without_its_compose_file_is_no_longer_active() -> None:
    config = {"models": [{"id": "a", "host_port": 1}, {"id": "b", "host_port": 2, "startup_mode": "active"}]}
    found = convert_homegpt.from_homegpt(config, [("a.yml", service())])
    assert found.variables["vllm_models"][1]["startup_mode"] == "disabled"
    assert noted(found, "models[1] (b)", "set startup_mode back to active")


def test_no_compose_file_at_all() -> None:
    with pytest.raises(convert.ConvertError, match=r"none of its models has a compose file.*compose-vllm-vision\.yml"):
        convert_homegpt.from_homegpt(load("homegpt/config.yaml"))


@pytest.mark.parametrize(
    ("fields", "gpus", "args", "note"),
    [
        ({}, [0], {}, "gpus is [0], check it"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "1"}}, [1], {}, ""),
        ({"environment": ["CUDA_VISIBLE_DEVICES=2,3"], "command": "org/a -tp 2"}, [2, 3], {}, ""),
        ({"environment": ["CUDA_VISIBLE_DEVICES=2,3"]}, [2], {}, "uses only the first one"),
        ({"environment": ["CUDA_VISIBLE_DEVICES=card-1"]}, [0], {}, "contains neither plain numbers"),
        ({"gpus": [{"count": 2}], "command": "org/a -tp 2"}, [0, 1], {}, ""),
        ({"gpus": [{"device_ids": ["2", "3"]}], "command": "org/a -tp 2"}, [2, 3], {}, ""),
        # Numbers within the container.
        ({"gpus": [{"device_ids": ["2", "3"]}], "environment": {"CUDA_VISIBLE_DEVICES": 1}}, [3], {}, ""),
        (
            {"command": "org/a -pp 2", "environment": {"CUDA_VISIBLE_DEVICES": "0,1"}},
            [0, 1],
            {"pipeline_parallel_size": 2, "tensor_parallel_size": 1},
            "",
        ),
        ({"command": "org/a -tp 4"}, [0, 1, 2, 3], {}, "check it"),
    ],
)
def test_gpus(fields: dict[str, Any], gpus: list[int], args: dict[str, Any], note: str) -> None:
    model, found = homegpt(**fields)
    assert model["gpus"] == gpus
    assert model.get("args", {}) == args
    assert noted(found, note) if note else not noted(found, "gpus")


def test_too_few_gpus_is_a_mistake_at_its_place() -> None:
    with pytest.raises(convert.ConvertError, match=r"config\.yaml: models\[0\] \(a\): args take 2 GPUs"):
        homegpt(command="org/a -tp 2", environment={"CUDA_VISIBLE_DEVICES": "0"})


def test_variables_of_compose() -> None:
    fields = {
        "command": "org/${NAME:-a} --max-model-len ${LENGTH} --seed $SEED --chat-template $$x",
        "environment": {"A": "${A-b}", "B": "${B}", "C": "$$c"},
        "image": "vllm/vllm-openai:${TAG:-v0.11.0}",
    }
    model, found = homegpt({"SEED": 7}, **fields)
    assert (model["model"], model["args"]) == ("org/a", {"seed": 7, "chat_template": "$x"})
    assert model["env"] == {"A": "b", "C": "$c"}
    assert found.variables["vllm_image"] == "vllm/vllm-openai:v0.11.0"
    assert noted(found, "--max-model-len", "(LENGTH)", "set args.max_model_len")
    assert noted(found, ": B: not converted", "set env.B")


def test_an_unknown_model_of_a_compose_file() -> None:
    model, found = homegpt(command="${MODEL}")
    assert (model["model"], model["startup_mode"]) == (convert.UNREAD + "a", "disabled")
    assert noted(found, "convert_variables: MODEL")
    assert homegpt({"MODEL": "org/a"}, command="${MODEL}")[0]["model"] == "org/a"


def test_names_and_ports() -> None:
    entry = {"id": "My Model", "container_name": "vllm-a", "port": 9000}
    model, found = homegpt(entry=entry, ports=["8009:8000"], command="org/a --served-model-name a org/a b")
    assert model["id"] == "my-model"
    assert model["aliases"] == ["a", "b", "My Model"]
    assert (model["port"], model["container_name"]) == (9000, "vllm-a")
    assert noted(found, "services.vllm-a.ports", "is 8009:8000", "8001:9000")


def test_an_entrypoint() -> None:
    assert homegpt(entrypoint=["vllm", "serve"])[0]["model"] == "org/a"
    python = homegpt(entrypoint="python3 -m vllm.entrypoints.openai.api_server", command=["--model", "org/b"])[0]
    assert python["model"] == "org/b"


def test_volumes_and_caches() -> None:
    volumes = ["/x:/root/.cache/huggingface", "/models:/models:ro", "./here:/there", "/logs:/logs"]
    found = homegpt(volumes=volumes)[1]
    assert found.variables["vllm_volumes"] == ["/models:/models:ro"]
    assert noted(found, "volume of /there", "full path")
    assert noted(found, "set vllm_cache_dir")
    assert homegpt(volumes=["/srv/c:/root/.cache"])[1].variables["vllm_cache_dir"] == "/srv/c"
    usual = homegpt(volumes=["/root/.cache/huggingface:/root/.cache/huggingface"])[1]
    assert "vllm_cache_dir" not in usual.variables
    assert not noted(usual, "cache")


@pytest.mark.parametrize(
    ("image", "moves"),
    [
        ("vllm/vllm-openai:nightly-x86_64", True),
        ("vllm/vllm-openai", True),
        ("hub:5000/vllm/vllm-openai", True),
        ("vllm/vllm-openai:v0.11.0", False),
        ("hub:5000/vllm-openai:0.11", False),
        ("vllm/vllm-openai@sha256:0123", False),
    ],
)
def test_an_image_that_can_change_is_told(image: str, moves: bool) -> None:
    found = homegpt(image=image)[1]
    assert found.variables["vllm_image"] == image
    assert noted(found, image, "pin it") == moves


def test_what_has_no_place_here_is_told() -> None:
    found = homegpt(shm_size="8g", env_file=".env", environment=["LATER"])[1]
    assert noted(found, "shm_size", "no such setting")
    assert noted(found, "env_file", "set its content")
    assert noted(found, "LATER")
    config = {"models": [{"id": "a", "host_port": 1, "colour": "red"}], "server": {}, "switching": {"speed": 9}}
    files = [("a.yml", service()), ("b.yml", {"services": {"open-webui": {}}}), ("c.yml", {"include": ["a.yml"]})]
    found = convert_homegpt.from_homegpt(config, files)
    for text in (
        "models[0] (a): colour",
        "config.yaml: server",
        "switching.speed",
        "b.yml: services.open-webui",
        "c.yml",
    ):
        assert noted(found, text), text


SECRETS = ("hf_verysecret", "keyverysecret", "envverysecret", "nestverysecret")


def secretive() -> tuple[dict[str, Any], convert.Converted]:
    return homegpt(
        command=["org/a", "--api-key", SECRETS[1], "--hf-overrides", json.dumps({"token": SECRETS[3]})],
        environment={"HF_TOKEN": SECRETS[0], "MY_PASSWORD": SECRETS[2]},
    )


def test_secrets_are_kept_and_never_told() -> None:
    model, found = secretive()
    assert found.variables["vllm_hf_token"] == SECRETS[0]
    assert model["args"] == {"api_key": SECRETS[1], "hf_overrides": {"token": SECRETS[3]}}
    assert model["env"] == {"MY_PASSWORD": SECRETS[2]}
    assert convert_builder.holds_secrets(found.variables)
    assert not any(secret in note for secret in SECRETS for note in found.notes)
    assert noted(found, "ansible-vault")
    assert not convert_builder.holds_secrets(homegpt(command="org/a --max-num-batched-tokens 5")[1].variables)


def test_a_mistake_tells_no_secret() -> None:
    with pytest.raises(convert.ConvertError) as error:
        swap(
            sleepEndpoints=[{"endpoint": "no-path-${k}"}],
            macros={"k": "keyverysecret"},
            env=["API_KEY=no-path-keyverysecret"],
        )
    assert "must be a path that starts with /, is ********" in str(error.value)


# -- llama-swap


def test_llama_swaps_file() -> None:
    found = convert_llama_swap.from_llama_swap(load("llama-swap.yaml"))
    assert found.variables == {
        "vllm_models": [
            {
                "id": "vision",
                "model": "org/vision",
                "host_port": 7001,
                "gpus": [0],
                "startup_mode": "active",
                "sleep_level": 1,
                "aliases": ["gpt-4o-mini"],
                "args": {"max_model_len": 32768, "chat_template": "{{ messages }}"},
            },
            # As llama-swap does it: ports go by the order of the names.
            {
                "id": "org-coder",
                "model": "org/coder",
                "host_port": 7000,
                "gpus": [0, 1],
                "sleep_level": 2,
                "aliases": ["Org/Coder"],
            },
        ],
        "vllm_switching": {"max_retries": 150},
    }
    for texts in (("ttl", "idle"), ("gpu_memory_gb",), ("logLevel",), ("becomes a container",), ("id is org-coder",)):
        assert noted(found, *texts), texts


@pytest.mark.parametrize(
    ("sleeps", "wakes", "level", "note"),
    [
        (["/sleep"], ["/wake_up"], 1, ""),
        (["/sleep?level=1"], ["/wake_up", "/reset_prefix_cache"], 1, ""),
        (["/sleep?level=1"], ["/wake_up", RELOAD], 1, "did not|does not need to"),
        (["/sleep?level=2"], ["/wake_up"], 2, "did not load the weights again"),
        (["/sleep?level=2"], ["/wake_up?tags=weights", RELOAD, "/wake_up?tags=kv_cache"], 2, ""),
        (["/reset_prefix_cache", "/sleep?level=2"], ["/wake_up", RELOAD], 2, ""),
        (["/sleep?level=3"], ["/wake_up"], None, ""),
        (["/sleep?level=1&mode=wait"], ["/wake_up"], None, ""),
        (["/release"], ["/resume"], None, ""),
        (["/sleep"], [{"endpoint": "/wake_up", "method": "PUT"}], None, ""),
        (["/sleep", "/sleep"], ["/wake_up"], None, ""),
        (["/sleep"], [RELOAD], None, ""),
    ],
)
def test_levels(sleeps: list[Any], wakes: list[Any], level: int | None, note: str) -> None:
    def calls(given: list[Any]) -> list[Any]:
        return [call if isinstance(call, dict) else {"endpoint": call} for call in given]

    model, found = swap(sleepEndpoints=calls(sleeps), wakeEndpoints=calls(wakes))
    assert model.get("sleep_level") == level
    assert ("sleep_requests" in model) == ("wake_requests" in model) == (level is None)
    told = noted(found, "load the weights again") or noted(found, "loaded the weights again")
    assert told == bool(note)


def test_custom_calls_have_their_timeouts_and_macros() -> None:
    model, _dummy = swap(
        sleepEndpoints=[{"endpoint": "/release/${MODEL_ID}", "body": '{"tags": ["${tag}"]}', "timeout": 5}],
        wakeEndpoints=[{"endpoint": "/resume?port=${PORT}", "method": "put", "body": "no ${tag} json"}],
        macros={"tag": "kv"},
        top={"sleepRequestTimeout": 20, "wakeRequestTimeout": 30, "macros": {"tag": "weights"}},
    )
    assert model["sleep_requests"] == [
        {"endpoint": "/release/a", "method": "POST", "body": {"tags": ["kv"]}, "timeout": 5}
    ]
    assert model["wake_requests"] == [
        {"endpoint": "/resume?port=5800", "method": "PUT", "body": "no kv json", "timeout": 30}
    ]
    alone: dict[str, Any] = {"sleepEndpoints": [{"endpoint": "/a"}], "wakeEndpoints": [{"endpoint": "/b"}]}
    assert swap(**alone)[0]["sleep_requests"][0]["timeout"] == 10


def test_no_endpoints_means_stop() -> None:
    model, found = swap(sleepMode="disable")
    assert model["sleep_level"] == "stop"
    assert noted(found, "disables its sleep")
    model, found = swap(sleepEndpoints=None, wakeEndpoints=None)
    assert model["sleep_level"] == "stop"
    assert noted(found, "it is stopped, as before")


@pytest.mark.parametrize(
    "command",
    [
        "vllm serve org/a --port ${PORT} --max-model-len 9",
        "/opt/venv/bin/vllm serve org/a --max-model-len 9",
        "env CUDA_VISIBLE_DEVICES=1 vllm serve org/a --max-model-len 9",
        "uv run vllm serve org/a --max-model-len 9",
        "python3 -m vllm.entrypoints.openai.api_server --model org/a --max-model-len 9",
        "docker run --rm -it --gpus '\"device=1\"' -e A=b -p ${PORT}:8000 --ipc=host vllm/vllm-openai:v1 --model org/a "
        "--max-model-len 9",
        "podman run --init --name x -eA=b -p${PORT}:8000 vllm/vllm-openai:v1 org/a --max-model-len 9",
        "# comment\n vllm serve org/a \\\n --max-model-len 9",
    ],
)
def test_commands(command: str) -> None:
    model, found = swap(cmd=command)
    assert (model["model"], model["args"]) == ("org/a", {"max_model_len": 9})
    if "docker" in command:
        assert model["gpus"] == [1]
    if "run -" in command and "uv" not in command:
        assert model["env"] == {"A": "b"}
        assert found.variables["vllm_image"] == "vllm/vllm-openai:v1"
    if "CUDA" in command:
        assert model["gpus"] == [1]


def test_processes_keep_their_commands() -> None:
    command = "vllm serve org/a --port ${PORT} --host 0.0.0.0"
    model, _dummy = swap(None, "processes", cmd=command, env=["A=b", "CUDA_VISIBLE_DEVICES=3"], useModelName="x")
    assert model["start_command"] == [
        *("vllm", "serve", "org/a", "--port", "5800", "--host", "0.0.0.0", "--enable-sleep-mode"),
        *("--served-model-name", "a", "x", "org/a"),
    ]
    assert model["env"] == {"A": "b", "CUDA_VISIBLE_DEVICES": "3", "VLLM_SERVER_DEV_MODE": "1"}
    assert (model["gpus"], model["aliases"]) == ([3], ["x"])
    assert "args" not in model


def test_another_server() -> None:
    custom: dict[str, Any] = {"sleepEndpoints": [{"endpoint": "/off"}], "wakeEndpoints": [{"endpoint": "/on"}]}
    model, found = swap(cmd="sglang --port ${PORT}", cmdStop="pkill ${MODEL_ID}", **custom)
    assert model["start_command"] == ["sglang", "--port", "5800"]
    assert model["stop_command"] == ["pkill", "a"]
    assert noted(found, "state_request")
    config = {"models": {"a": {"cmd": "llama-server -m x"}, "b": {"cmd": "vllm serve org/b"}}}
    found = convert_llama_swap.from_llama_swap(config)
    assert [entry["id"] for entry in found.variables["vllm_models"]] == ["b"]
    assert noted(found, "models.a", "left out: its cmd is not `vllm serve`")


def test_ports_of_proxies_are_kept() -> None:
    models = {
        "b": {"cmd": "vllm serve org/b --port ${PORT}"},
        "a": {"cmd": "vllm serve org/a --port 5800", "proxy": "http://127.0.0.1:5800"},
        "c": {"cmd": "vllm serve org/c --port ${PORT}", "proxy": "http://gpu7:${PORT}/x"},
    }
    found = convert_llama_swap.from_llama_swap({"models": models})
    assert {entry["id"]: entry["host_port"] for entry in found.variables["vllm_models"]} == {
        "b": 5801,
        "a": 5800,
        "c": 5802,
    }
    assert noted(found, "models.c.proxy", "another host")


def test_environment_variables() -> None:
    fields: dict[str, Any] = {
        "cmd": "vllm serve ${env.DIR}/a --revision ${env.REV}",
        "env": ["A=${env.A}", "HF_TOKEN=${env.HF_TOKEN}"],
    }
    unknown = swap(**fields)
    assert (unknown[0]["model"], unknown[0]["startup_mode"]) == (convert.UNREAD + "a", "disabled")
    assert noted(unknown[1], "convert_variables: DIR")
    with pytest.raises(convert.ConvertError, match=r"models\.a\.cmd: give the values .* as convert_variables: DIR"):
        swap(servers="processes", **fields)
    model, found = swap({"DIR": "/models"}, **fields)
    assert model["model"] == "/models/a"
    assert "env" not in model
    for texts in (("--revision", "(REV)"), (": A:", "env.A"), ("HF_TOKEN", "vllm_hf_token"), ("vllm_volumes",)):
        assert noted(found, *texts), texts


def test_hosts_and_groups_of_llama_swap_are_told() -> None:
    found = swap(filters={"x": 1}, odd=1, checkEndpoint="/x", top={"groups": {}, "apiKeys": ["hidden"], "other": 1})[1]
    for text in ("models.a.filters", "models.a.odd", "checkEndpoint", "groups", "apiKeys", "other"):
        assert noted(found, text), text
    assert not noted(found, "hidden")


def test_aliases_with_names() -> None:
    aliases = [{"id": "x", "name": "X"}, "y", "a"]
    assert swap(aliases=aliases, useModelName="org/a")[0]["aliases"] == ["x", "y"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"cmd": "vllm serve ${nope}"},
            "models.a.cmd: uses ${nope}, which no macro defines; there are: MODEL_ID, PORT",
        ),
        ({"cmd": "vllm serve 'org/a"}, "models.a.cmd: can't be split into words"),
        ({"cmd": 5}, "models.a: must be a dictionary with a cmd"),
        ({"wakeEndpoints": None}, "has one of sleepEndpoints and wakeEndpoints: give both or neither"),
        ({"sleepEndpoints": [{}]}, "sleepEndpoints[0]: must be a dictionary with an endpoint"),
        ({"sleepEndpoints": [{"endpoint": "/x", "timeout": -1}]}, "timeout must be a number greater than 0"),
        ({"top": {"sleepRequestTimeout": 0}}, "sleepRequestTimeout must be a number greater than 0"),
        ({"aliases": ["x", "x"], "proxy": "http://127.0.0.1:70000"}, "models.a: host_port must be a port"),
        (
            {"macros": {"m": "${m}"}, "cmd": "vllm serve ${m}"},
            "models.a.cmd: its macros refer to each other in a circle",
        ),
    ],
)
def test_mistakes_of_llama_swaps_file(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(convert.ConvertError) as error:
        swap(**fields)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "has no list `models`"),
        ({"services": {}}, "has no list `models`"),
        ({"models": {"a": {}}}, "give the file as llama_swap_config"),
        ({"models": [1]}, "models[0]: must be a dictionary with an id"),
        ({"models": [{"id": "a", "host_port": 1}], "switching": 5}, "switching must be a dictionary"),
        (
            {"models": [{"id": "a", "host_port": 1}], "switching": {"max_retries": 0}},
            "config.yaml: switching: max_retries",
        ),
        ({"models": [{"id": "a"}]}, "config.yaml: models[0] (a): host_port is required"),
    ],
)
def test_mistakes_of_homegpts_files(config: Any, says: str) -> None:
    with pytest.raises(convert.ConvertError) as error:
        convert_homegpt.from_homegpt(config, [("a.yml", service())])
    assert says in str(error.value)


def test_mistakes_of_compose_files() -> None:
    config = {"models": [{"id": "a", "host_port": 1}]}
    with pytest.raises(convert.ConvertError) as error:
        convert_homegpt.from_homegpt(
            config, [("a.yml", service()), ("b.yml", service()), ("c.yml", []), ("d.yml", {"x": 1})]
        )
    for text in (
        "b.yml: services.vllm-a: the container vllm-a is also in a.yml: services.vllm-a",
        "c.yml: has",
        "d.yml",
    ):
        assert text in str(error.value)
    with pytest.raises(convert.ConvertError, match=r"services\.vllm-a\.command: can't be split"):
        homegpt(command="org/a 'x")
    with pytest.raises(convert.ConvertError, match="give the file as homegpt_config"):
        convert_llama_swap.from_llama_swap({"models": []})


# -- the file


class Unsafe(yaml.SafeLoader):
    """Reads Ansible's tag."""


Unsafe.add_constructor("!unsafe", lambda loader, node: str(node.value))


@pytest.mark.parametrize("source", ["homegpt", "llama-swap", "odd"])
def test_the_file_says_the_same(source: str) -> None:
    odd = {
        "a": "{{ x }}",
        "b": "{% y",
        "c": "no",
        "d": "0123",
        "e": "two\nlines",
        "f": "ü\x85\u2028",
        "g": "{# 'q\"",
        "h": "",
    }
    found = {
        "homegpt": lambda: secretive()[1],
        "llama-swap": lambda: convert_llama_swap.from_llama_swap(load("llama-swap.yaml")),
        "odd": lambda: homegpt(environment=odd, command=["org/a", "--lora-modules", "{{ x }}", "b: c"])[1],
    }[source]()
    text = inventory_file.write(found.variables, ["one", "two\nthree " * 50], ["config.yaml"])
    assert yaml.load(text, Unsafe) == found.variables
    for line in text.splitlines():
        assert "{{" not in line or "!unsafe" in line


def test_the_filters() -> None:
    found = from_llama_swap((DATA / "llama-swap.yaml").read_text(encoding="utf-8"), name="x.yaml")
    assert found["variables"]["vllm_models"][0]["id"] == "vision"
    assert found["text"].startswith("---\n# Generated by homegpt.vllm.convert from x.yaml.\n")
    assert not found["secret"]
    folder = DATA / "homegpt"
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("compose-*.yml")}
    assert "coder" in from_homegpt((folder / "config.yaml").read_text(encoding="utf-8"), files)["text"]


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "a: !odd hidden", "\x00", "? - a\n: b\n  c", "a: 2000-99-99"])
def test_no_yaml(text: str) -> None:
    for convertor in (from_homegpt, from_llama_swap):
        with pytest.raises(
            AnsibleFilterError, match=r"^some\.yaml(, line \d+, column \d+)? is not valid YAML: "
        ) as error:
            convertor(text, name="some.yaml")
        assert "hidden" not in str(error.value)
