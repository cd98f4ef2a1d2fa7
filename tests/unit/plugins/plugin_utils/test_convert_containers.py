# SPDX-License-Identifier: MIT
"""What other people's containers are started with is read, or told; and nothing of a source is lost without a word."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import map_text
from ansible_collections.homegpt.vllm.plugins.plugin_utils import (
    compose_variables,
    convert,
    convert_builder,
    convert_gpus,
    convert_homegpt,
    convert_llama_swap,
)

from tests.unit.plugins.plugin_utils import accounting

Found = tuple[dict[str, Any], convert.Converted]
IMAGE = "vllm/vllm-openai:v0.32.0"
SCRIPT = (
    'source /opt/tools.sh\nif [ "$FAST" = 1 ]; then\n  exec vllm serve --fast "$@"\nelse\n  exec vllm serve "$@"\nfi\n'
)


@pytest.fixture(autouse=True)
def without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model has no key for is told; tests of such a key turn it on."""
    monkeypatch.setattr(convert_builder, "ENTRYPOINT_KEY", "")
    monkeypatch.setattr(convert_gpus, "GPU_IDS", False)


def alone(variables: Any = None, lost: Any = (), **fields: Any) -> Found:
    """The entry of a compose file with one service and no manager, every word of it accounted for."""
    service = {"image": IMAGE, **fields}
    found = convert_homegpt.from_homegpt(None, [("c.yml", {"services": {"a": service}})], "", variables)
    (model,) = found.variables["vllm_models"]
    account = accounting.Account(found.variables, found.notes, model)
    values = variables or {}
    shown = map_text(service, lambda text: compose_variables.interpolate(text, values.get, "${{{}}}".format))
    assert accounting.of_service(shown, "services.a", account) == list(lost)
    return model, found


def swapped(servers: str = "containers", **fields: Any) -> Found:
    """The same of llama-swap's file with one model."""
    entry = fields
    found = convert_llama_swap.from_llama_swap({"models": {"a": entry}}, "s.yaml", servers)
    (model,) = found.variables["vllm_models"]
    if servers == "containers":
        account = accounting.Account(found.variables, found.notes, model)
        assert accounting.of_swap(entry, "models.a", account) == []
    return model, found


def noted(found: convert.Converted, *texts: str) -> bool:
    return any(all(text in note for text in texts) for note in found.notes)


READ: list[dict[str, Any]] = [
    {"command": "org/a --max-model-len 9"},
    {"command": ["--model", "org/a", "--max-model-len=9"]},
    {"command": "serve org/a --max-model-len 9", "image": "registry/my-vllm:1"},
    {"command": "vllm serve org/a --max-model-len 9"},
    {"command": "vllm serve --model org/a --max-model-len 9", "image": "nvcr.io/nvidia/vllm:26.01-py3"},
    {"command": "org/a --max-model-len 9", "entrypoint": ["vllm", "serve"]},
    {"command": ["serve", "org/a", "--max-model-len", "9"], "entrypoint": ["/opt/venv/bin/vllm"]},
    {"command": "-m vllm.entrypoints.openai.api_server --model org/a --max-model-len 9", "entrypoint": "python3 -u"},
    {"command": "python3 -m vllm.entrypoints.cli.main serve org/a --max-model-len 9", "image": "rocm/vllm:1.0"},
    {"command": ["bash", "-c", "exec vllm serve org/a --max-model-len 9"], "image": "rocm/vllm:1.0"},
    {"command": ["bash", "-lc", "vllm serve 'org/a' \\\n  --max-model-len 9 # that much\n"]},
    {"command": 'sh -c "exec vllm serve org/a --max-model-len 9"'},
    {"command": "'set -e; exec vllm serve org/a --max-model-len 9'", "entrypoint": ["/bin/sh", "-c"]},
    {"command": ["--max-model-len", "9"], "entrypoint": ["bash", "-c", 'exec vllm serve org/a "$$@"', "--"]},
    {"command": ["org/a", "--max-model-len", "9"], "entrypoint": ["bash", "-ec", "exec vllm serve $$@", "_"]},
    {"command": ["bash", "-c", "LEN=9\nvllm serve ${NAME:-org/a} --max-model-len $$LEN"]},
    {"command": ["bash", "-c", "exec env A=b vllm serve org/a --max-model-len $${LEN:-9}"]},
    {"command": "bash -c \"bash -c 'vllm serve org/a --max-model-len 9'\""},
]


@pytest.mark.parametrize("fields", READ)
def test_a_command_that_is_read(fields: dict[str, Any]) -> None:
    model, found = alone(**fields)
    assert (model["model"], model["args"]) == ("org/a", {"max_model_len": 9})
    assert "startup_mode" not in model
    own = "vllm-openai" in fields.get("image", IMAGE)
    assert noted(found, "a container runs the entrypoint of its image") == (not own)
    if "A=b" in str(fields):
        assert model["env"] == {"A": "b"}


UNREAD: list[tuple[dict[str, Any], str]] = [
    ({"command": ["bash", "-c", "vllm serve org/a | tee log"]}, "vllm serve org/a | tee log"),
    ({"command": ["bash", "-c", "vllm serve org/a > log 2>&1"]}, "> log"),
    ({"command": ["bash", "-c", "sleep 5 & vllm serve org/a"]}, "sleep 5 & vllm"),
    ({"command": ["bash", "-c", "a=1\nif true; then vllm serve org/a; fi"]}, "here on: if true; then"),
    ({"command": ["bash", "-c", "for x in 1; do vllm serve org/a; done"]}, "for x in 1; do"),
    ({"command": ["bash", "-c", "vllm serve $$(cat name)"]}, "$(cat name)"),
    ({"command": ["bash", "-c", "vllm serve `cat name`"]}, "`cat name`"),
    ({"command": ["bash", "-c", "vllm serve $${X##*/}"]}, "${X##*/}"),
    ({"command": ["bash", "-c", "vllm serve 'org/a"]}, "'org/a"),
    ({"command": ["bash", "-c", "(vllm serve org/a)"]}, "(vllm serve"),
    ({"command": ["bash", "-c", "vllm serve org/a || sleep 9"]}, "|| sleep 9"),
    ({"command": ["bash", "-c", ""]}, "an empty text"),
    ({"command": "bash"}, "here on: bash"),
    ({"command": "/start.sh --model org/a"}, "/start.sh --model org/a"),
    ({"command": "python3 server.py"}, "python3 server.py"),
    ({"command": "vllm bench serve"}, "vllm bench serve"),
    ({"command": "vllm-omni serve org/a"}, "vllm-omni serve org/a"),
    ({"command": ["bash", "-c", "python3 -m other --model org/a"]}, "python3 -m other"),
    ({"command": None, "entrypoint": "/vllm-start.sh"}, "/vllm-start.sh"),
    ({"command": "--model org/vllm", "image": "ghcr.io/ggml-org/llama.cpp:server"}, "image of another server"),
]


@pytest.mark.parametrize(("fields", "quotes"), UNREAD)
def test_a_command_that_is_not_read(fields: dict[str, Any], quotes: str) -> None:
    model, found = alone(**fields)
    assert (model["model"], model["startup_mode"]) == (convert.UNREAD + "a", "disabled")
    assert noted(found, "services.a", "can't be parsed from here on", quotes, "disabled")
    assert noted(found, "it is unknown what it loads")


def test_a_shell_that_passes_its_words_on() -> None:
    fields: dict[str, Any] = {
        "entrypoint": ["bash", "-c", SCRIPT.replace("$", "$$"), "--"],
        "command": ["org/a", "--seed=1"],
    }
    model, found = alone(**fields)
    assert (model["model"], model["args"], model["startup_mode"]) == ("org/a", {"seed": 1}, "disabled")
    assert noted(found, 'if [ "$FAST" = 1 ]; then')


def test_an_entrypoint_of_its_own_is_kept_where_there_is_a_key_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_builder, "ENTRYPOINT_KEY", "entrypoint")
    monkeypatch.setattr(convert_builder.Builder, "_check", lambda *dummy: None)
    kept: list[tuple[dict[str, Any], Any]] = [
        ({"command": "vllm serve org/a", "image": "rocm/vllm:1.0"}, ["vllm", "serve"]),
        ({"command": "serve org/a", "image": "registry/vllm:1.0"}, ["vllm", "serve"]),
        ({"command": "org/a", "entrypoint": ["/opt/start", "vllm", "serve"]}, ["/opt/start", "vllm", "serve"]),
        (
            {"entrypoint": ["bash", "-c", SCRIPT.replace("$", "$$"), "--"], "command": "org/a"},
            ["bash", "-c", SCRIPT, "--"],
        ),
        (
            {"command": ["bash", "-c", "pip install x && cd /y\nvllm serve org/a"]},
            ["bash", "-c", 'pip install x && cd /y\nexec vllm serve "$@"', "--"],
        ),
        ({"command": "vllm serve org/a"}, None),
        ({"command": "org/a", "entrypoint": "python3 -m vllm.entrypoints.openai.api_server --model"}, None),
        ({"command": "--model org/a", "entrypoint": "/start.sh"}, ["/start.sh"]),
    ]
    for fields, entrypoint in kept:
        model, _found = alone(**fields)
        assert model["model"] == "org/a"
        assert model.get("entrypoint") == entrypoint, fields
        assert "startup_mode" not in model


def test_what_runs_before_is_told() -> None:
    text = "source /x.sh\npip install --token=hunter2hunter2 y || exit 1\nvllm serve org/a"
    # What seems to be a secret is the one word that no note has.
    model, found = alone(command=["bash", "-c", text], lost=["command: hunter2hunter2"])
    assert model["model"] == "org/a"
    assert noted(found, "runs before vLLM: source /x.sh")
    assert noted(found, "runs before vLLM: pip install")
    assert not noted(found, "hunter2")


@pytest.mark.parametrize(
    ("fields", "gpus", "note"),
    [
        ({"environment": {"HIP_VISIBLE_DEVICES": "1"}}, [1], ""),
        ({"environment": {"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}}, [3], ""),
        ({"environment": {"NVIDIA_VISIBLE_DEVICES": "1"}, "runtime": "nvidia"}, [1], ""),
        (
            {"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}, "runtime": "nvidia"},
            [0],
            "names no GPUs by number",
        ),
        (
            {"environment": {"CUDA_VISIBLE_DEVICES": "GPU-1a2b"}},
            [0],
            "CUDA_VISIBLE_DEVICES: contains neither plain numbers",
        ),
        (
            {"environment": {"CUDA_VISIBLE_DEVICES": "MIG-1a2b"}},
            [0],
            "CUDA_VISIBLE_DEVICES: contains neither plain numbers",
        ),
        ({"gpus": [{"device_ids": ["GPU-1a2b"]}]}, [0], "the reserved devices: contains neither plain numbers"),
        ({"gpus": [{"device_ids": ["${CARD:-2}"]}]}, [2], "without a value"),
        ({"gpus": [{"device_ids": ["${CARD}"]}]}, [0], "the reserved devices: contains neither plain numbers"),
        ({"gpus": "all"}, [0], "names no GPUs by number"),
        ({"gpus": [{"count": "${MANY}"}]}, [0], "services.a.gpus.count: not converted"),
        ({"gpus": [{"device_ids": ["1"]}], "environment": {"NVIDIA_VISIBLE_DEVICES": "0"}}, [1], "it has no effect"),
        (
            {"gpus": [{"device_ids": ["1"]}], "environment": {"CUDA_VISIBLE_DEVICES": "1"}},
            [1],
            "that are not assigned to it",
        ),
        ({"devices": ["nvidia.com/gpu=1"]}, [1], ""),
        ({"gpus": [{"driver": "cdi", "device_ids": ["nvidia.com/gpu=2"]}]}, [2], ""),
    ],
)
def test_gpus(fields: dict[str, Any], gpus: list[int], note: str) -> None:
    model, found = alone(command="org/a", **fields)
    assert model["gpus"] == gpus
    assert noted(found, note) if note else not noted(found, "gpus")


def test_gpus_by_their_ids_are_kept_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_gpus, "GPU_IDS", True)
    card = "GPU-6a3c1b2e-0f7d-4c55-9f0e-0123456789ab"
    assert alone(command="org/a", gpus=[{"device_ids": [card]}])[0]["gpus"] == [card]
    part = card.replace("GPU", "MIG")
    assert alone(command="org/a", environment={"CUDA_VISIBLE_DEVICES": part})[0]["gpus"] == [part]
    # The inventory takes whole ones alone.
    for shortened in ("GPU-6a3c1b2e", "MIG-%s/1/0" % card):
        model, found = alone(command="org/a", environment={"CUDA_VISIBLE_DEVICES": shortened})
        assert model["gpus"] == [0]
        assert noted(found, "CUDA_VISIBLE_DEVICES", "nor complete UUIDs: check gpus")


def cards(*ids: str, **fields: Any) -> dict[str, Any]:
    devices = [{"driver": "nvidia", "device_ids": list(ids), "capabilities": ["gpu"]}]
    return {"image": IMAGE, "deploy": {"resources": {"reservations": {"devices": devices}}}, **fields}


@pytest.mark.parametrize(
    ("services", "off"),
    [
        ([cards("0", command="a"), cards("GPU-6a3c1b2e-0f7d-4c55-9f0e-0123456789ab", command="b")], ["a"]),
        (
            [
                cards("0", command="a"),
                cards("1", command="b"),
                cards("GPU-6a3c1b2e-0f7d-4c55-9f0e-0123456789ab", command="c"),
            ],
            ["c"],
        ),
        ([cards("0", "GPU-6a3c1b2e-0f7d-4c55-9f0e-0123456789ab", command="a -tp 2"), cards("1", command="b")], ["a"]),
        ([cards("0", command="a"), cards("MIG-6a3c1b2e-0f7d-4c55-9f0e-0123456789ab", command="b")], []),
    ],
    ids=["one of each", "two numbers", "within a model", "a MIG instance is its own"],
)
def test_numbers_and_uuids_in_one_source(
    services: list[dict[str, Any]], off: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_gpus, "GPU_IDS", True)
    named = {
        "m%d" % index: {**service, "ports": ["%d:8000" % (8001 + index)]} for index, service in enumerate(services)
    }
    found = convert_homegpt.from_homegpt(None, [("c.yml", {"services": named})], "")
    models = found.variables["vllm_models"]
    assert [model["model"] for model in models if model.get("startup_mode") == "disabled"] == off
    assert noted(found, "gpus are numbers in some models", "back to sleep") == bool(off)


def test_an_entrypoint_that_no_inventory_should_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_builder, "ENTRYPOINT_KEY", "entrypoint")
    command = ["bash", "-c", "export HF_TOKEN=hf_abcdefghijk; pip install x; exec vllm serve org/a"]
    services = {"vllm": {"image": "rocm/vllm:1.0", "command": command}}
    found = convert_homegpt.from_homegpt(None, [("c.yml", {"services": services})], "")
    (model,) = found.variables["vllm_models"]
    assert model["entrypoint"] == ["vllm", "serve"]
    assert "hf_abcdefghijk" not in str([model, found.notes])
    assert found.variables["vllm_hf_token"] == "hf_abcdefghijk"
    assert noted(found, "not converted, although it runs before vLLM: pip install x")
    # The inventory refuses it, and the rest of the file is none the worse.
    model, found = alone(command="org/a", entrypoint=["/opt/run", "vllm"], image="my/vllm:1")
    assert "entrypoint" not in model
    assert model["startup_mode"] == "disabled"
    assert noted(found, "can't be parsed from here on: /opt/run vllm")


def test_options_that_no_switch_follows_stop_no_conversion() -> None:
    model, found = alone(command="org/a --ssl-keyfile /k")
    assert "args" not in model
    assert "startup_mode" not in model
    assert noted(found, "--ssl-keyfile: not converted", "terminate TLS")
    model, found = alone(command="org/a --headless --root-path /v")
    assert model["args"] == {"root_path": "/v"}
    assert model["startup_mode"] == "disabled"
    assert noted(found, "--headless: not converted: the server has no API", "It is disabled")


def test_an_amd_card() -> None:
    fields: dict[str, Any] = {
        "image": "rocm/vllm:1.0",
        "command": "vllm serve org/a",
        "devices": ["/dev/kfd", "/dev/dri:/dev/dri", "/dev/dri/renderD128", "/dev/snd"],
        "group_add": ["video", "render", "audio"],
        "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
        "cap_add": ["SYS_PTRACE"],
    }
    model, found = alone(**fields)
    assert found.variables["vllm_gpu_access"] == "amd"
    assert model["gpus"] == [0]
    for key in ("devices", "group_add", "security_opt", "cap_add"):
        assert noted(found, "services.a.%s" % key, "no such setting"), key
    del fields["cap_add"]
    fields.update(devices=["/dev/kfd", "/dev/dri"], group_add=["video"], security_opt=["seccomp=unconfined"])
    assert not noted(alone(**fields)[1], "no such setting")


def test_cards_of_two_makers_are_told() -> None:
    services = {
        "a": {"image": "rocm/vllm:1", "command": "vllm serve org/a", "devices": ["/dev/kfd", "/dev/dri"]},
        "b": {"image": IMAGE, "command": "org/b"},
    }
    found = convert_homegpt.from_homegpt(None, [("c.yml", {"services": services})], "")
    assert "vllm_gpu_access" not in found.variables
    assert noted(found, "services.a", "vllm_gpu_access: amd")


EVERYTHING: dict[str, Any] = {
    "image": "${REGISTRY:-hub}/vllm-openai:${TAG:-v1}",
    "container_name": "${PREFIX:-}box",
    "ports": ["${BIND:-0.0.0.0}:${PORT:-${OTHER:-8123}}:8000", "9090:9090"],
    "command": [
        "${MODEL:-org/a}",
        "--host",
        "0.0.0.0",
        "--port",
        "8000",
        "--max-model-len",
        "${LENGTH:-${SHORT:-9}}",
        "--override-generation-config",
        '{"temperature": ${TEMP:-0.5}, "stop": ["$$", "x"]}',
        "${EAGER:+--enforce-eager}",
        "--served-model-name",
        "${ALIAS-alpha}",
        "beta",
        "--api-key",
        "${KEY}",
        "--enable-sleep-mode",
        "-O2",
    ],
    "environment": {"A": "${A:-b}", "B": "${B}", "HF_TOKEN": "${HF_TOKEN:-}", "C": None, "HF_HOME": "/data"},
    "env_file": [".env"],
    "volumes": [
        "~/.cache/huggingface:/root/.cache/huggingface",
        "/models:/models:ro",
        "./x:/y",
        "named:/z",
        "${DIR:-/srv}/d:/d:rw,rshared",
        {"type": "bind", "source": "/e", "target": "/e", "read_only": True, "bind": {"create_host_path": False}},
        {"type": "tmpfs", "target": "/f"},
    ],
    "deploy": {
        "replicas": 2,
        "resources": {
            "limits": {"memory": "64g", "cpus": "8"},
            "reservations": {
                "memory": "8g",
                "devices": [
                    {"driver": "nvidia", "device_ids": ["${CARD:-1}"], "capabilities": ["gpu"], "options": {"x": 1}}
                ],
            },
        },
    },
    "ipc": "host",
    "shm_size": "16g",
    "ulimits": {"memlock": -1, "stack": 67108864},
    "restart": "unless-stopped",
    "healthcheck": {"test": ["CMD", "curl", "-f", "http://localhost:8000/health"]},
    "networks": ["one"],
    "hostname": "there",
    "user": "1000:1000",
    "working_dir": "/w",
    "privileged": True,
    "labels": {"traefik.enable": "true"},
    "x-own": 1,
    "logging": {"driver": "local"},
    "depends_on": ["db"],
    "profiles": ["p"],
    "extra_hosts": ["h:1.2.3.4"],
    "init": True,
    "stop_grace_period": "1m",
    "build": {"context": "."},
    "dns": "1.1.1.1",
    "tmpfs": "/tmp",
    "secrets": ["s"],
}


def test_every_word_of_a_service_is_taken_over_or_told() -> None:
    model, found = alone(**EVERYTHING)
    assert (model["model"], model["host_port"], model["container_name"]) == ("org/a", 8123, "box")
    assert model["args"] == {
        "max_model_len": 9,
        "override_generation_config": {"temperature": 0.5, "stop": ["$", "x"]},
        "optimization_level": 2,
    }
    assert model["aliases"] == ["alpha", "beta"]
    assert model["gpus"] == [1]
    assert found.variables["vllm_image"] == "hub/vllm-openai:v1"
    assert found.variables["vllm_volumes"] == ["/models:/models:ro", "/srv/d:/d", "/e:/e:ro"]
    for texts in (
        ("--api-key", "(KEY)"),
        ("services.a: B", "(B)"),
        (".environment.C",),
        ("env_file",),
        ("volume of /y",),
        ("volume of /z",),
        ("volumes: tmpfs of /f",),
        ("volume of /d", "rshared"),
        ("volumes: bind of /e",),
        ("deploy.resources.limits.memory",),
        ("deploy.replicas",),
        ("devices.options",),
        ("published on 0.0.0.0",),
        ("not published: 9090:9090",),
        ("healthcheck",),
        ("REGISTRY, TAG, PREFIX", "convert_env"),
    ):
        assert noted(found, *texts), texts


@pytest.mark.parametrize("key", sorted(EVERYTHING))
def test_the_account_notices_what_is_lost(key: str) -> None:
    """The account itself: without its notes, a service with one key more than the image loses that key."""
    model, found = alone(**EVERYTHING)
    without = accounting.Account({"vllm_models": []}, [], {"model": "org/a", "host_port": 4, "gpus": [7]})
    unset: dict[str, str] = {}
    service = map_text({key: EVERYTHING[key]}, lambda text: compose_variables.interpolate(text, unset.get, str))
    told = key in ("ipc", "container_name")
    assert bool(accounting.of_service(service, "services.a", without)) != told
    account = accounting.Account(found.variables, found.notes, model)
    assert accounting.of_service(service, "services.a", account) == []


@pytest.mark.parametrize("key", ["args", "env", "aliases"])
def test_the_account_notices_what_the_result_lacks(key: str) -> None:
    model, found = alone(**EVERYTHING)
    shown = map_text(EVERYTHING, lambda text: compose_variables.interpolate(text, {"B": "1"}.get, "${{{}}}".format))
    for item in list(model[key]):
        values = model[key]
        left = [value for value in values if value != item]
        lacking = {**model, key: left if isinstance(values, list) else {name: values[name] for name in left}}
        account = accounting.Account(found.variables, found.notes, lacking)
        assert accounting.of_service(shown, "services.a", account), item


def test_compose_files_without_a_manager() -> None:
    services: dict[str, Any] = {
        "vllm-one": {
            "image": IMAGE,
            "command": "org/a",
            "ports": ["8001:8000"],
            "profiles": ["x"],
            "container_name": "same",
        },
        "two": {
            "image": IMAGE,
            "command": "org/b",
            "ports": [{"published": "8002", "target": 8000}],
            "container_name": "same",
        },
        "three": {"image": IMAGE, "command": "org/c", "ports": ["${P}:8000"], "container_name": "${X}_c"},
        "proxy": {"image": "nginx:1"},
    }
    found = convert_homegpt.from_homegpt(None, [("c.yml", {"services": services, "secrets": {}})], "")
    assert [
        (entry["id"], entry["host_port"], entry.get("container_name")) for entry in found.variables["vllm_models"]
    ] == [
        ("one", 8001, "same"),
        ("two", 8002, None),
        ("three", 8003, None),
    ]
    assert noted(found, "services.two.container_name", "another service")
    assert noted(found, "services.three.container_name", "not in the file")
    assert noted(found, "services.three: has no port of its own")
    assert noted(found, "services.proxy", "left out: nothing in it is named vllm")
    assert noted(found, "c.yml: secrets")
    with pytest.raises(convert.ConvertError, match="contains no vLLM service"):
        convert_homegpt.from_homegpt(None, [("c.yml", {"services": {"proxy": services["proxy"]}})], "")
    with pytest.raises(convert.ConvertError, match=r"services\.a: compose knows no variable \$\{A/b\}: write \$\$"):
        alone(command="${A/b}")


def test_ports_and_values_from_elsewhere() -> None:
    fields: dict[str, Any] = {"command": "org/a --port 5000", "ports": ["8001:5000"]}
    fields["environment"] = ["A", "CUDA_VISIBLE_DEVICES"]
    model, found = alone({"A": "b"}, **fields)
    assert (model["host_port"], model["port"], model["env"]) == (8001, 5000, {"A": "b"})
    assert noted(found, "environment.CUDA_VISIBLE_DEVICES", "set it in gpus")
    assert noted(swapped(cmd="docker run -p 9797:8000 vllm/vllm-openai:v1 org/a")[1], "--publish", "its proxy")
    assert not noted(swapped(cmd="docker run -p ${PORT}:8000 vllm/vllm-openai:v1 org/a")[1], "--publish")


def test_places_do_not_hide_what_is_said_of_them() -> None:
    services = {name: {"image": IMAGE, "command": "org/" + name, "shm_size": "1g"} for name in "abcd"}
    found = convert_homegpt.from_homegpt(None, [("c.yml", {"services": services})], "")
    (note,) = [note for note in found.notes if "shm_size" in note]
    assert note.startswith("c.yml: not converted: ")
    assert note.endswith("services.c.shm_size, services.d.shm_size")


def test_an_env_file_has_the_values() -> None:
    values = convert.values({"LEN": 5}, [(".env", "NAME=org/a\nLEN=9\nDIR=/srv\nFULL=${DIR}/x # all\n")])
    assert values == {"LEN": "5", "NAME": "org/a", "DIR": "/srv", "FULL": "/srv/x"}
    model, found = alone(values, command="${NAME} --max-model-len ${LEN:-7}", volumes=["${FULL}:/x"])
    assert (model["model"], model["args"]) == ("org/a", {"max_model_len": 5})
    assert found.variables["vllm_volumes"] == ["/srv/x:/x"]
    assert not noted(found, "without a value")
    with pytest.raises(convert.ConvertError, match=r"\.env: compose knows no variable \$\{A/b\}"):
        convert.values(None, [(".env", "X=${A/b}")])


def test_words_of_an_unknown_variable_are_no_value_of_the_switch_before_it() -> None:
    model, found = alone(command="org/a --enable-prefix-caching ${MORE} --seed ${SEED}")
    assert model["args"] == {"enable_prefix_caching": True}
    assert noted(found, "more arguments are in ${MORE}")
    assert noted(found, "--seed", "(SEED)")


DOCKER = (
    "docker run --rm -it --gpus '\"device=1,2\"' -e A=b --env=C -v /m:/m:ro --mount type=bind,src=/n,dst=/n,readonly "
)


@pytest.mark.parametrize(
    "command",
    [
        DOCKER + "--entrypoint vllm hub/vllm:1 serve org/a -tp 2",
        DOCKER + "--entrypoint=bash hub/vllm:1 -c 'exec vllm serve org/a -tp 2'",
        DOCKER + "--shm-size 8g --ulimit memlock=-1 vllm/vllm-openai:v1 --model org/a -tp 2",
        DOCKER + "--init hub/vllm:1 bash -lc 'vllm serve org/a -tp 2'",
        DOCKER + "hub/vllm:1 python3 -m vllm.entrypoints.openai.api_server --model org/a -tp 2",
        'bash -c "docker rm -f x; exec %s vllm/vllm-openai:v1 org/a -tp 2"' % DOCKER.replace('"', '\\"'),
    ],
)
def test_docker_run(command: str) -> None:
    model, found = swapped(cmd=command, description="x", env=["D=e"])
    assert (model["model"], model["gpus"], model["env"]) == ("org/a", [1, 2], {"A": "b", "D": "e"})
    assert found.variables["vllm_volumes"] == ["/m:/m:ro", "/n:/n:ro"]
    assert noted(found, ": C: not converted")
    assert noted(found, "models.a.description")
    for option in ("shm_size", "ulimits", "--init"):
        assert noted(found, option, "no such setting") == (option.replace("_", "-").rstrip("s") in command)
    assert noted(found, "runs before vLLM: docker rm -f x") == ("docker rm" in command)


@pytest.mark.parametrize(
    ("options", "gpus", "access"),
    [
        ("--gpus all", [0], None),
        ("--gpus 2", [0], None),
        ("--gpus=device=3", [3], None),
        ("--device nvidia.com/gpu=2", [2], None),
        ("--device=/dev/kfd --device=/dev/dri --group-add video --security-opt seccomp=unconfined", [0], "amd"),
        ("--runtime=nvidia -e NVIDIA_VISIBLE_DEVICES=2", [2], None),
        ("--device /dev/kfd --device /dev/dri -e HIP_VISIBLE_DEVICES=1", [1], "amd"),
    ],
)
def test_gpus_of_docker_run(options: str, gpus: list[int], access: str | None) -> None:
    model, found = swapped(cmd="docker run %s vllm/vllm-openai:v1 org/a" % options)
    assert model["gpus"] == gpus
    assert found.variables.get("vllm_gpu_access") == access
    assert not noted(found, "no such setting")


def test_commands_of_llama_swap_that_are_not_read() -> None:
    for command in (
        "bash -c 'vllm serve org/a | tee x'",
        "docker run hub/vllm:1 bash -c 'cd /x; ./start'",
        "vllm-x serve org/a",
    ):
        model, found = swapped(cmd=command)
        assert (model["model"], model["startup_mode"]) == (convert.UNREAD + "a", "disabled")
        assert noted(found, "can't be parsed from here on")
    for command in ("bash -c 'llama-server -m x'", "docker run --gpus all ghcr.io/ggml-org/llama.cpp:server -m x"):
        config = {"models": {"a": {"cmd": command}, "b": {"cmd": "vllm serve org/b"}}}
        found = convert_llama_swap.from_llama_swap(config)
        assert [entry["id"] for entry in found.variables["vllm_models"]] == ["b"]


def test_a_process_behind_a_shell_is_started_without_it() -> None:
    model, _found = swapped("processes", cmd="bash -c 'export A=b; exec vllm serve org/a --seed 1'")
    assert model["start_command"][:5] == ["vllm", "serve", "org/a", "--seed", "1"]
    assert "--enable-sleep-mode" in model["start_command"]
    assert model["env"]["A"] == "b"
    model, found = swapped("processes", cmd="bash -c 'cd /x; vllm serve org/a'")
    assert model["start_command"] == ["bash", "-c", "cd /x; vllm serve org/a"]
    assert model["startup_mode"] == "disabled"
    assert noted(found, "--enable-sleep-mode", "by hand")
