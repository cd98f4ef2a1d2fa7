# SPDX-License-Identifier: MIT
"""What people who host vLLM themselves have reported or published, in small, and the right outcome of each here.

Each case names its source on GitHub: a repository with an issue or pull request, or with a file. The inputs are made
for these tests: none of them is from there.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from ansible.plugins.filter.core import FilterModule as CoreFilters
from ansible_collections.homegpt.vllm.plugins.filter.internal import FilterModule
from ansible_collections.homegpt.vllm.plugins.filter.inventory import inventory as inventory_filter
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import hardware, kinds, memory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import InventoryError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model, parse
from ansible_collections.homegpt.vllm.plugins.plugin_utils import convert, convert_homegpt, convert_llama_swap
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.nativetypes import NativeEnvironment

from tests.unit.plugins.module_utils.switching import conftest
from tests.unit.plugins.module_utils.switching.conftest import Host

FILTERS = FilterModule().filters()
compose_service = FILTERS["compose_service"]
entrypoints = FILTERS["entrypoints"]
host_folders = FILTERS["host_folders"]
open_webui_environment = FILTERS["open_webui_environment"]
stack_secrets = FILTERS["stack_secrets"]
weights = FILTERS["weights"]
yaml_text = FILTERS["yaml_text"]

# Fixtures of another folder.
host, processes, stack_dir = conftest.host, conftest.processes, conftest.stack_dir

ROLES = Path(__file__).resolve().parents[3] / "roles"
IMAGE = "vllm/vllm-openai:v0.32.0"
CARD = "GPU-0c9d7a52-91b4-4f6e-8a3d-5e2f1b7c6d40"
SLICE = "MIG-3b8e6f14-7c2d-5a90-b1e4-9f0d2c7a6b58"


class Report(NamedTuple):
    """One row of the table."""

    subject: str
    where: str
    has: str
    right: str


SUBJECTS = (
    "images",
    "weights",
    "converters",
    "models without text",
    "loading",
    "GPUs",
    "options",
    "Open WebUI",
    "firewall",
    "secrets",
)
REPORTS: list[Report] = []


def report(subject: str, where: str, has: str, right: str, *values: Any) -> Any:
    """One case of a parametrised test, called by its source; its row joins the table."""
    REPORTS.append(Report(subject, where, has, right))
    return pytest.param(*values, id=where)


def declared(**fields: Any) -> Model:
    """The one model of an inventory."""
    return parse([{"id": "chat", "model": "org/chat", "host_port": 8001, **fields}]).models[0]


def plain(*models: dict[str, Any]) -> list[dict[str, Any]]:
    """Models as tasks have them."""
    listed = [{"id": f"m{n}", "model": "org/m", "host_port": 8001 + n, **model} for n, model in enumerate(models)]
    return list(parse(listed).as_dict()["vllm_models"])


def prepared(made: Any) -> Any:
    """A Jinja environment with the filters that the roles' templates and variables need."""
    made.filters.update(CoreFilters().filters())
    made.filters["homegpt.vllm.compose_service"] = compose_service
    made.filters["homegpt.vllm.inventory"] = inventory_filter
    made.filters["homegpt.vllm.yaml_text"] = yaml_text
    return made


def role_variable(role: str, name: str, **known: Any) -> Any:
    """A variable of a role's vars/main.yml, worked out."""
    text = yaml.safe_load((ROLES / role / "vars/main.yml").read_text(encoding="utf-8"))[name]
    return prepared(NativeEnvironment(undefined=StrictUndefined)).from_string(text.strip()).render(known)


def template(role: str, name: str, **known: Any) -> str:
    """A template of a role, rendered."""
    loader = FileSystemLoader(ROLES / role / "templates")
    made = prepared(Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, autoescape=False))
    return str(made.get_template(name).render(known))


def rendered(model: dict[str, Any], access: str = "nvidia", token_mark: str = "") -> dict[str, Any]:
    """The service of a model in the compose file that the role writes."""
    (one,) = plain(model)
    known = {
        "vllm_servers_gpu_access": access,
        "vllm_servers_image": IMAGE,
        "vllm_servers_env": {},
        "vllm_servers_network": "net",
        "inline_secrets": False,
        "model": one,
        "__vllm_servers_caches": {"/cache/huggingface": "/root/.cache/huggingface"},
        "__vllm_servers_mounted": {"volumes": []},
        "__vllm_servers_token_mark": token_mark,
    }
    (service,) = yaml.safe_load(template("vllm_servers", "service.yml.j2", **known)).values()
    return dict(service)


def composed(fields: dict[str, Any], values: dict[str, str] | None = None) -> convert.Converted:
    """What becomes of a compose file with this one service of vLLM."""
    files = [("c.yml", {"services": {"chat": {"image": IMAGE, **fields}}})]
    return convert_homegpt.from_homegpt(None, files, "", values)


def swapped(*entries: dict[str, Any]) -> convert.Converted:
    """What becomes of llama-swap's file with these models, called a, b and so on."""
    return convert_llama_swap.from_llama_swap({"models": dict(zip("abc", entries, strict=False))}, "s.yaml")


def told(found: convert.Converted, *texts: str) -> bool:
    """Whether one note has all of the texts."""
    return any(all(text in note for text in texts) for note in found.notes)


# ---- images --------------------------------------------------------------------------------------

NVIDIA = ["/opt/nvidia/nvidia_entrypoint.sh"]
API_SERVER = ["python3", "-m", "vllm.entrypoints.openai.api_server"]


@pytest.mark.parametrize(
    ("own", "remedy"),
    [
        report(
            "images",
            "NVIDIA/dgx-spark-playbooks:nvidia/vllm/README.md",
            "NVIDIA's image, whose entry point is a script that runs its words: the command is the whole `vllm serve`",
            "refused before a start, with the entrypoint to set: the script, vllm, serve",
            NVIDIA,
            [*NVIDIA, "vllm", "serve"],
        ),
        report(
            "images",
            "ROCm/legacy-rocm-build#4386",
            "AMD's image, which starts a shell; vLLM is started in it by hand",
            "refused before a start, with the entrypoint to set: vllm, serve",
            None,
            ["vllm", "serve"],
        ),
        report(
            "images",
            "vllm-project/vllm#27389",
            "an image that starts the API server's module, given the model as a word: that one takes no such word",
            "refused before a start, with the entrypoint to set: vllm, serve",
            API_SERVER,
            ["vllm", "serve"],
        ),
        report(
            "images",
            "NVIDIA-AI-IOT/jetson-ai-lab#420",
            "vLLM's own image, which starts `vllm serve` already",
            "nothing to set",
            ["vllm", "serve"],
            [],
        ),
    ],
)
def test_images(own: list[str] | None, remedy: list[str]) -> None:
    looked = [{"item": "image:1", "rc": 0, "stdout": json.dumps(own)}]
    problems = entrypoints(plain({"image": "image:1"}), looked, IMAGE)
    if not remedy:
        assert problems == {}
        return
    assert f"set the model's entrypoint to [{', '.join(remedy)}]" in problems["m0"]
    fixed = {"image": "image:1", "entrypoint": remedy, "args": {"max_model_len": 9}}
    assert entrypoints(plain(fixed), looked, IMAGE) == {}
    service = rendered(fixed)
    assert service["entrypoint"] == remedy
    assert service["command"][0] == "org/m"


@pytest.mark.parametrize(
    ("fields", "entrypoint", "args", "host_port"),
    [
        report(
            "images",
            "vllm-project/vllm#37133",
            "`vllm serve MODEL` behind vLLM's own image, on the host's network with a --port",
            "the model, its arguments and its port on the host; `vllm serve` stands there once",
            {"command": "vllm serve /w/chat --port 9527 --max-model-len 9", "network_mode": "host"},
            None,
            {"max_model_len": 9},
            9527,
        ),
        report(
            "images",
            "vllm-project/vllm#22072",
            "`serve` as the first word, and options with their values as single items of a list",
            "`vllm serve` is its entrypoint; the items are split into two words, and a note says so",
            {"command": ["serve", "/w/chat", "--dtype half", "--max-model-len 9"], "ports": ["10200:8000"]},
            ["vllm", "serve"],
            {"dtype": "half", "max_model_len": 9},
            10200,
        ),
        report(
            "images",
            "vllm-project/vllm#47578",
            "an image of Intel's whose entry point is emptied, so that the command is the whole `vllm serve`",
            "`vllm serve` is its entrypoint",
            {
                "image": "xpu:1",
                "entrypoint": [],
                "command": "vllm serve /w/chat --block-size 64",
                "ports": ["8002:8000"],
            },
            ["vllm", "serve"],
            {"block_size": 64},
            8002,
        ),
        report(
            "images",
            "LMCache/LMCache#906",
            "`vllm serve MODEL` as the entrypoint, the options as the command, JSON in one of them",
            "model and options are read as one command line, the JSON as a dictionary",
            {
                "image": "lmcache/vllm-openai:v1",
                "entrypoint": "vllm serve /w/chat",
                "command": '--kv-transfer-config \'{"kv_role": "kv_both"}\'',
                "ports": ["8003:8000"],
            },
            None,
            {"kv_transfer_config": {"kv_role": "kv_both"}},
            8003,
        ),
    ],
)
def test_commands_of_containers(
    fields: dict[str, Any], entrypoint: list[str] | None, args: dict[str, Any], host_port: int
) -> None:
    found = composed(fields)
    (model,) = found.variables["vllm_models"]
    assert (model["model"], model.get("entrypoint"), model["args"]) == ("/w/chat", entrypoint, args)
    assert model["host_port"] == host_port
    assert told(found, "--dtype and its value are one word") == ("--dtype half" in fields["command"])
    assert rendered(model)["command"].count("serve") == 0


# ---- weights -------------------------------------------------------------------------------------

REPO = "models--org--m"


@pytest.mark.parametrize(
    ("env", "volumes", "hub", "cache", "folder", "fetch"),
    [
        report(
            "weights",
            "eugr/spark-vllm-docker#310",
            "HF_HUB_CACHE on a NAS, HF_HOME left where it is",
            "weights are looked for, fetched and removed on the NAS, which the boot waits for",
            {"HF_HUB_CACHE": "/nas/hub", "HF_HOME": "/root/hf"},
            ["/mnt/nas/hub:/nas/hub"],
            "huggingface",
            "/nas/hub",
            f"/mnt/nas/hub/{REPO}",
            "fetch",
        ),
        report(
            "weights",
            "Center-for-AI-Innovation/LLMFlux#58",
            "HF_HOME in a folder that is mounted from a second disk",
            "weights are below hub in that folder",
            {"HF_HOME": "/scratch/hf"},
            ["/disk2/hf:/scratch/hf"],
            "huggingface",
            "/scratch/hf/hub",
            f"/disk2/hf/hub/{REPO}",
            "fetch",
        ),
        report(
            "weights",
            "ROCm/legacy-rocm-build#4386 (cache)",
            "the old variable HUGGINGFACE_HUB_CACHE",
            "counts as HF_HUB_CACHE does",
            {"HUGGINGFACE_HUB_CACHE": "/work"},
            ["/srv/models:/work"],
            "huggingface",
            "/work",
            f"/srv/models/{REPO}",
            "fetch",
        ),
        report(
            "weights",
            "huggingface/huggingface_hub#2797",
            "a complete cache that is only read",
            "looked at; neither fetched into nor removed",
            {"HF_HUB_CACHE": "/ro"},
            ["/srv/models:/ro:ro"],
            "huggingface",
            "/ro",
            "",
            "look",
        ),
        report(
            "weights",
            "opea-project/GenAIExamples#1642",
            "a volume for the weights over a folder in which vLLM looks for none",
            "weights are in the cache of the collection, not in that volume",
            {},
            ["/srv/data:/data"],
            "huggingface",
            "/root/.cache/huggingface/hub",
            f"/cache/huggingface/hub/{REPO}",
            "fetch",
        ),
        report(
            "weights",
            "vllm-project/vllm-omni#5427",
            "VLLM_USE_MODELSCOPE=0, meant as off",
            "Hugging Face",
            {"VLLM_USE_MODELSCOPE": "0"},
            [],
            "huggingface",
            "/root/.cache/huggingface/hub",
            f"/cache/huggingface/hub/{REPO}",
            "fetch",
        ),
        report(
            "weights",
            "vllm-project/vllm-metal#682",
            "VLLM_USE_MODELSCOPE=1 for all models",
            "ModelScope, with its own cache, which is not fetched into from here",
            {"VLLM_USE_MODELSCOPE": "1"},
            [],
            "modelscope",
            "/root/.cache/modelscope",
            "",
            "leave",
        ),
    ],
)
def test_weights(env: dict[str, Any], volumes: list[str], hub: str, cache: str, folder: str, fetch: str) -> None:
    models = plain({})
    found = weights(models, env, "/cache", volumes, "/opt/homegpt", "/home/u")["m0"]
    assert (found["hub"], found["cache"], found["folder"], found["fetch"]) == (hub, cache, folder, fetch)
    # The unit that starts models at boot waits for what they are mounted from.
    waited = host_folders(models, env, "/cache", volumes, "/opt/homegpt")
    assert {volume.partition(":")[0] for volume in volumes} <= set(waited)


# ---- converters ----------------------------------------------------------------------------------

SCRIPT = '. /x/find.sh\nif [ "$${FAST:-0}" = 1 ]; then\n  exec vllm serve "$$@"\nfi\nexec vllm serve --seed 1 "$$@"\n'


@pytest.mark.parametrize(
    ("fields", "values", "expected", "notes"),
    [
        report(
            "converters",
            "noonghunna/club-3090:models/qwen-agentworld-35b-a3b/vllm/compose/dual/cyankiwi-awq-int4/fp8.yml",
            "an entrypoint script that passes its words on, defaults within defaults in names, ports and JSON",
            "the script is the entrypoint; the innermost defaults are taken; whose values are missing is told",
            {
                "container_name": "${NAME:-vllm-chat}",
                "ports": ["${BIND:-0.0.0.0}:${PORT_A:-${PORT_B:-8080}}:8000"],
                "environment": ["HF_HUB_OFFLINE=${OFF_A:-${OFF_B:-0}}", "CUDA_VISIBLE_DEVICES"],
                "entrypoint": ["bash", "-c", SCRIPT, "--"],
                "command": ["--model", "/w/chat", "--override-generation-config", '{"temperature":${T:-${U:-0.6}}}'],
            },
            {},
            {
                "model": "/w/chat",
                "host_port": 8080,
                "entrypoint": ["bash", "-c", SCRIPT.replace("$$", "$"), "--"],
                "args": {"override_generation_config": {"temperature": 0.6}},
                "env": {"HF_HUB_OFFLINE": "0"},
            },
            [("NAME, BIND, PORT_A, PORT_B",), ("published on 0.0.0.0",), ("CUDA_VISIBLE_DEVICES", "set it in gpus")],
        ),
        report(
            "converters",
            "opea-project/GenAIComps#336",
            "`bash -c` that changes the folder, exports a variable and starts the API server's module",
            "the server's words are the model and args, the variable is its env, what runs before stays",
            {
                "image": "vllm-cpu:1",
                "command": [
                    "bash",
                    "-c",
                    "cd /w && export VLLM_CPU_KVCACHE_SPACE=4 && "
                    "python3 -m vllm.entrypoints.openai.api_server --model ${LLM} --port 80",
                ],
            },
            {"LLM": "org/chat"},
            {
                "model": "org/chat",
                "entrypoint": [
                    "bash",
                    "-c",
                    'cd /w && export VLLM_CPU_KVCACHE_SPACE=4 && exec vllm serve "$@"',
                    "--",
                ],
                "env": {"VLLM_CPU_KVCACHE_SPACE": "4"},
            },
            [],
        ),
        report(
            "converters",
            "Avarok-Cybersecurity/dgx-vllm#16",
            "an image whose own script makes the command line out of variables",
            "a disabled placeholder; the variables are kept, and a note says that it is unknown what it loads",
            {"image": "someone/dgx-vllm:1", "command": "serve", "environment": ["MODEL=org/chat", "PORT=8888"]},
            {},
            {
                "model": convert.UNREAD + "chat",
                "startup_mode": "disabled",
                "env": {"MODEL": "org/chat", "PORT": "8888"},
            },
            [("it is unknown what it loads", "disabled")],
        ),
        report(
            "converters",
            "kyuz0/amd-r9700-vllm-toolboxes#19",
            "AMD's devices and groups, HIP_VISIBLE_DEVICES, a volume of Docker's over the hub, the model a variable",
            "vllm_gpu_access amd, both GPUs by number; the volume is told",
            {
                "image": "vllm/vllm-openai-rocm:v0.28.0",
                "devices": ["/dev/kfd", "/dev/dri"],
                "group_add": ["video", "render"],
                "security_opt": ["seccomp:unconfined"],
                "environment": ["HIP_VISIBLE_DEVICES=0,1", "NCCL_P2P_DISABLE=1"],
                "volumes": ["llm:/root/.cache/huggingface/hub/"],
                "command": ["${LLM}", "--tensor-parallel-size", "2"],
            },
            {"LLM": "org/chat"},
            {"model": "org/chat", "gpus": [0, 1], "env": {"NCCL_P2P_DISABLE": "1"}, "image": None},
            [("volume of /root/.cache/huggingface/hub",)],
        ),
    ],
)
def test_compose_files(
    fields: dict[str, Any], values: dict[str, str], expected: dict[str, Any], notes: list[tuple[str, ...]]
) -> None:
    found = composed(fields, values)
    (model,) = found.variables["vllm_models"]
    assert {key: model.get(key) for key in expected} == expected
    assert [texts for texts in notes if not told(found, *texts)] == []
    assert found.variables.get("vllm_gpu_access") == ("amd" if "devices" in fields else None)
    parse(found.variables["vllm_models"])


READ = {"cmd": f"docker run -p 9100:8000 {IMAGE} org/b", "proxy": "http://127.0.0.1:9100"}


@pytest.mark.parametrize(
    ("entry", "expected", "notes"),
    [
        report(
            "converters",
            "mostlygeek/llama-swap#35",
            "podman with a GPU named by its UUID, and vLLM's image from a registry by its full name",
            "the model with that GPU, its names and its port",
            {
                "aliases": ["eyes"],
                "proxy": "http://127.0.0.1:9797",
                "cmd": f"podman run --rm -v /nvme/w:/w --device nvidia.com/gpu={CARD} -p 9797:8000 "
                f"docker.io/{IMAGE} --model /w/chat --served-model-name eyes a --enforce-eager",
            },
            {
                "model": "/w/chat",
                "gpus": [CARD],
                "aliases": ["eyes"],
                "host_port": 9797,
                "args": {"enforce_eager": True},
            },
            [],
        ),
        report(
            "converters",
            "SomeOddCodeGuy/WilmerAI#47",
            "llama-swap in a container, so that its proxy is the address of Docker's own bridge",
            "that is this host: the port is the model's, and no note sends the model to another host",
            {
                "proxy": "http://172.17.0.1:9797",
                "cmd": "docker run --runtime=nvidia --name eyes --gpus '\"device=0\"' -v /root/w:/w -p 9797:8000 "
                f"{IMAGE} --host 0.0.0.0 --model /w/chat",
            },
            {"model": "/w/chat", "gpus": [0], "host_port": 9797},
            [],
        ),
        report(
            "converters",
            "mostlygeek/llama-swap#41",
            "a server of Whisper's that is not vLLM's, beside one that is",
            "left out, and a note says why; the other is read",
            {"cmd": "docker run --gpus '\"device=0,1\"' -p 9797:5000 me/whisper.cpp:cuda", "checkEndpoint": "none"},
            None,
            [("models.a", "left out: its cmd is not `vllm serve`")],
        ),
    ],
)
def test_llama_swap(entry: dict[str, Any], expected: dict[str, Any] | None, notes: list[tuple[str, ...]]) -> None:
    found = swapped(entry, READ)
    models = {model["id"]: model for model in found.variables["vllm_models"]}
    assert list(models) == (["a", "b"] if expected else ["b"])
    for key, value in (expected or {}).items():
        assert models["a"][key] == value, key
    assert [texts for texts in notes if not told(found, *texts)] == []
    assert not told(found, "another host")
    # Its GPUs are only guessed, and a number can't be compared with a UUID.
    parted = expected is not None and expected["gpus"] == [CARD]
    assert models["b"].get("startup_mode") == ("disabled" if parted else None)
    assert told(found, "models.b: gpus are numbers in some models and UUIDs in others") == parted


# ---- models that complete no text ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kind", "calls"),
    [
        report(
            "models without text",
            "vllm-project/vllm#10193",
            "an embedding server beside chat models, with `--task embedding`",
            "a pooling model: proved by its own calls, and no chat model of the web interface",
            {"task": "embedding"},
            "pooling",
            ["/v1/embeddings", "/score", "/pooling"],
        ),
        report(
            "models without text",
            "langgenius/dify-plugins#766",
            "the same with `--task embed`",
            "the same",
            {"task": "embed"},
            "pooling",
            ["/v1/embeddings", "/score", "/pooling"],
        ),
        report(
            "models without text",
            "vllm-project/vllm#14127",
            "Whisper, which at that time needed `--task transcription`",
            "a model of speech: proved by a transcription, and no chat model of the web interface",
            {"task": "transcription"},
            "speech",
            ["/v1/audio/transcriptions"],
        ),
    ],
)
def test_kinds(args: dict[str, Any], kind: str, calls: list[str]) -> None:
    model = declared(args=args)
    assert model.kind == kind
    assert [kinds.KINDS[name].path for name in kinds.POSSIBLE[model.kind]] == calls
    urls = open_webui_environment(plain({"args": args}, {"port": 8001}))["OPENAI_API_BASE_URLS"]
    assert urls == "http://vllm-m1:8001/v1"


@pytest.mark.parametrize(
    ("standin", "call"),
    [
        report(
            "models without text",
            "vllm-project/vllm#11577",
            "embeddings need a server of their own beside the one for chats; here nothing tells its task",
            "found out by its answers: active after one start, and after a switch away and back",
            "embedding",
            "POST /v1/embeddings",
        ),
        report(
            "models without text",
            "vllm-project/vllm#14127 (no task)",
            "Whisper as it was started there, without a task",
            "the same, by a transcription of silence",
            "speech",
            "POST /v1/audio/transcriptions",
        ),
    ],
)
def test_switches_of_kinds(host: Host, standin: str, call: str) -> None:
    host.declare("other", sleep_level=1, standin={"kind": standin})
    host.declare("chat", sleep_level=1)
    assert host.switch("other").active_model == "other"
    assert host.switch("chat").active_model == "chat"
    back = host.switch("other")
    assert (back.active_model, back.rung, back.warnings) == ("other", "", [])
    calls = host.changing_calls("other")
    assert call in calls
    assert any(one.startswith("POST /sleep") for one in calls)
    assert [step["action"] for step in back.steps if step["model"] == "other"] == ["wake", "verify"]


# ---- servers that listen while they load ---------------------------------------------------------


@pytest.mark.parametrize(
    "seconds",
    [
        report(
            "loading",
            "mostlygeek/llama-swap#789",
            "llama-server listens at once, answers /health with 503 while it loads, and was ended for that",
            "it is loading, and waited for; nothing is started anew",
            2,
        ),
        report(
            "loading",
            "gpustack/gpustack#6203",
            "SGLang listens, and lists its models, before it is ready; /health says 503",
            "ready by /health, not by the list",
            1,
        ),
    ],
)
def test_loading(host: Host, seconds: int) -> None:
    host.declare("chat", standin={"listens_while_loading": 1, "load_seconds": seconds})
    host.start("chat")
    host.wait_until(lambda: host.call("chat", "GET", "/health").status_code == 503, "it listens")
    assert host.states() == {"chat": "loading"}
    result = host.switch("chat")
    assert result.active_model == "chat"
    assert [step["action"] for step in result.steps] == ["verify"]
    assert host.states() == {"chat": "active"}


# ---- GPUs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "access", "device_ids", "visible"),
    [
        report(
            "GPUs",
            "vllm-project/vllm#41848",
            "an instance of a divided GPU by its MIG UUID, which vLLM takes for a number and ends",
            "the reservation has the UUID, and within the container it is number 0",
            [SLICE],
            "nvidia",
            [SLICE],
            {"CUDA_VISIBLE_DEVICES": "0"},
        ),
        report(
            "GPUs",
            "jsboige/CoursIA#11650",
            "GPU 1 of two different ones, which CUDA numbers by their speed and nvidia-smi by their slot",
            "the reservation has nvidia-smi's number, and the container sees that GPU alone",
            [1],
            "nvidia",
            ["1"],
            {"CUDA_VISIBLE_DEVICES": "0"},
        ),
        report(
            "GPUs",
            "kyuz0/amd-r9700-vllm-toolboxes#19 (GPUs)",
            "two cards of AMD's",
            "AMD's devices, and HIP's view of the two",
            [0, 1],
            "amd",
            None,
            {"HIP_VISIBLE_DEVICES": "0,1"},
        ),
    ],
)
def test_gpus(gpus: list[Any], access: str, device_ids: list[str] | None, visible: dict[str, str]) -> None:
    service = rendered({"gpus": gpus}, access)
    assert {name: value for name, value in service["environment"].items() if "VISIBLE" in name} == visible
    if device_ids is None:
        assert service["devices"] == ["/dev/kfd", "/dev/dri"]
    else:
        (devices,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert devices["device_ids"] == device_ids


@pytest.mark.parametrize(
    ("fields", "free_gb", "shortage"),
    [
        report(
            "GPUs",
            "vllm-project/vllm#46307",
            "DGX Spark: a start that takes more of the one memory than is free, and only a power cycle helps",
            "refused before the start: what is free of the host's RAM counts",
            {"args": {"gpu_memory_utilization": 0.7}},
            60.0,
            "GPU 0, which shares the host's RAM, has 60.0 GB free and chat needs 89.6 GB",
        ),
        report(
            "GPUs",
            "AEON-7/vllm-ultimate-dgx-spark#9",
            "DGX Spark: all but 0.3 GB of the memory is used, and the host freezes",
            "refused, with what to end as the remedy",
            {"args": {"gpu_memory_utilization": 0.4}},
            0.3,
            "GPU 0, which shares the host's RAM, has 0.3 GB free and chat needs 51.2 GB: end other processes that",
        ),
    ],
)
def test_unified_memory(fields: dict[str, Any], free_gb: float, shortage: str) -> None:
    gpus = {0: hardware.Gpu(0, 128.0, free_gb, CARD, unified=True)}
    model = declared(**fields)
    said = memory.shortage(model, memory.load_need(model, gpus), gpus, lambda _name: [])
    assert said.startswith(shortage)
    gpus = {0: gpus[0]._replace(free_gb=120.0)}
    assert memory.shortage(model, memory.load_need(model, gpus), gpus, lambda _name: []) == ""


def test_unified_memory_as_nvidia_smi_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for told_so in ("[N/A]", "[Not Supported]"):
        row = ["0", CARD, told_so, told_so, "[N/A]"]
        monkeypatch.setattr(hardware, "_ask", lambda _query, row=row: [row])
        gpus = hardware.read_gpus()
        assert gpus is not None and gpus[0].unified


REPORTS.append(
    Report(
        "GPUs",
        "AEON-7/vllm-dflash#1",
        "a GB10, of which nvidia-smi tells no memory",
        "the host's RAM is its memory, and what is available of that is free",
    )
)


# ---- options that a switch can't follow ----------------------------------------------------------

SERVE = ["/opt/vllm/bin/vllm", "serve", "org/chat", "--port", "${host_port}"]


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        report(
            "GPUs",
            "vllm-project/vllm#47846",
            "tensor and prefill context parallelism of 8 each on 8 GPUs, which makes 64",
            "refused: the product and the number of gpus are told",
            {"gpus": list(range(8)), "args": {"prefill_context_parallel_size": 8, "tensor_parallel_size": 8}},
            "args take 64 GPUs",
        ),
        report(
            "options",
            "vllm-project/vllm#13907",
            "a server on a socket file (--uds)",
            "refused by name at once",
            {"start_command": [*SERVE, "--uds", "/run/chat.sock"]},
            "start_command: --uds: the server listens on a socket file",
        ),
        report(
            "options",
            "MiaAI-Lab/DeepSeek-v4-Flash-DSpark-2x-DGX-Spark#112",
            "the second host of two, which is headless and has no port",
            "refused by name at once",
            {"args": {"headless": True}},
            "args.headless: the server has no API",
        ),
        report(
            "options",
            "red-hat-data-services/agentic-starter-kits#95",
            "a server in a container that speaks TLS",
            "refused by name, with TLS in a proxy as the remedy",
            {"args": {"ssl_certfile": "/tls/cert.pem", "ssl_keyfile": "/tls/key.pem"}},
            "args.ssl_certfile: a container's port is published on this host only",
        ),
        report(
            "options",
            "vllm-project/vllm#9797",
            "--host with the name of an interface",
            "refused: an address is wanted",
            {"start_command": [*SERVE, "--host", "wg0"]},
            "start_command: --host: wg0 is a host name",
        ),
    ],
)
def test_options_that_are_refused(fields: dict[str, Any], refused: str) -> None:
    with pytest.raises(InventoryError) as error:
        declared(**fields)
    assert refused in str(error.value)


@pytest.mark.parametrize(
    ("words", "address", "tls"),
    [
        report(
            "options",
            "MiaAI-Lab/DeepSeek-v4-Flash-DSpark-2x-DGX-Spark#187",
            "--host with the host's address in the LAN, so that nothing listens on loopback",
            "asked at that address",
            ["--host", "192.0.2.7"],
            "192.0.2.7",
            False,
        ),
        report(
            "options",
            "mythrantic/ollama-docker#45",
            "TLS on the server itself (there the web interface), so that a plain health check fails",
            "asked by TLS",
            ["--ssl-certfile", "/tls/cert.pem", "--ssl-keyfile", "/tls/key.pem"],
            "127.0.0.1",
            True,
        ),
    ],
)
def test_options_that_are_followed(words: list[str], address: str, tls: bool) -> None:
    assert declared(start_command=[*SERVE, *words]).listens == (address, tls)


# ---- Open WebUI ----------------------------------------------------------------------------------

TOOLS = {"args": {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}}
LOOPBACK = "localhost,127.0.0.1,::1"


@pytest.mark.parametrize(
    ("models", "env", "expected"),
    [
        report(
            "Open WebUI",
            "vllm-project/vllm#9986",
            "tools in a chat, and a model without a parser for them: vLLM answers 400",
            "tools go into the prompt as long as one of the models has no parser",
            [TOOLS, {}],
            {},
            {"DEFAULT_MODEL_PARAMS": '{"function_calling": "legacy"}'},
        ),
        report(
            "Open WebUI",
            "vllm-project/vllm#30865",
            "a model with a tool parser",
            "nothing is set",
            [TOOLS],
            {},
            {"DEFAULT_MODEL_PARAMS": None},
        ),
        report(
            "Open WebUI",
            "open-webui/open-webui#9073",
            "accounts of the role user see no model",
            "they see all",
            [{}],
            {},
            {"BYPASS_MODEL_ACCESS_CONTROL": "True"},
        ),
        report(
            "Open WebUI",
            "open-webui/open-webui#10001",
            "a list of servers that is empty becomes api.openai.com",
            "no list at all, and the API is off",
            [],
            {},
            {"ENABLE_OPENAI_API": "False", "OPENAI_API_BASE_URLS": None, "OPENAI_API_KEYS": None},
        ),
        report(
            "Open WebUI",
            "open-webui/open-webui#9727",
            "each start asks a hub, and hangs where there is none",
            "offline",
            [{}],
            {},
            {"OFFLINE_MODE": "True"},
        ),
        report(
            "Open WebUI",
            "open-webui/open-webui#24153",
            "behind a company's proxy the list of models does not come, whatever no_proxy says",
            "both spellings have what was given, loopback and the containers; the list is waited for 3 s",
            [{}],
            {"HTTP_PROXY": "http://proxy.example:3128", "no_proxy": "intra.example"},
            {
                "NO_PROXY": f"intra.example,{LOOPBACK},vllm-m0",
                "no_proxy": f"intra.example,{LOOPBACK},vllm-m0",
                "AIOHTTP_CLIENT_TIMEOUT_MODEL_LIST": "3",
            },
        ),
        report(
            "Open WebUI",
            "open-webui/open-webui#1109",
            "several servers, one of them with a key",
            "as many keys as addresses, none empty, no semicolon at the end",
            [{"args": {"api_key": "k"}}, {}],
            {},
            {
                "OPENAI_API_BASE_URLS": "http://vllm-m0:8000/v1;http://vllm-m1:8000/v1",
                "OPENAI_API_KEYS": "${MODEL_8001_API_KEY};dummy",
            },
        ),
    ],
)
def test_open_webui(models: list[dict[str, Any]], env: dict[str, Any], expected: dict[str, Any]) -> None:
    found = open_webui_environment(plain(*models) if models else [], env)
    assert {name: found.get(name) for name in expected} == expected


# ---- the firewall --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "wanted"),
    [
        report(
            "firewall",
            "moby/moby#41872",
            "a port on loopback of an old engine (Debian 12 ships 20.10), reached from the LAN by a forged packet",
            "rules of the collection's own keep neighbours from loopback's ports",
            "20.10.24+dfsg1",
            "present",
        ),
        report(
            "firewall",
            "moby/moby#45610",
            "the same of engine 26.1 (Debian 13), and the container's own address reached by a route",
            "and from the containers",
            "26.1.5+dfsg1",
            "present",
        ),
        report(
            "firewall",
            "docker/docs#22602",
            "an engine from 28 on, which drops such packets itself",
            "no rules",
            "28.5.1",
            "absent",
        ),
    ],
)
def test_firewall(engine: str, wanted: str) -> None:
    known: dict[str, Any] = {"__docker_host_found": {"engine": engine}, "docker_host_firewall": "auto"}
    major = role_variable("docker_host", "__docker_host_engine_major", **known)
    known["__docker_host_engine_major"] = major
    assert role_variable("docker_host", "__docker_host_firewall_wanted", **known) == wanted
    rules = template("docker_host", "homegpt-firewall.nft.j2", __docker_host_firewall_left_open=[])
    drops = [line.split(" drop ")[0].strip() for line in rules.splitlines() if " drop " in line]
    assert drops[0] == "ip daddr 127.0.0.0/8"
    assert [drop.split()[-1] for drop in drops[1:]] == ['"docker0"', '"br-*"']
    assert rules.index('iif "lo" accept') < rules.index(drops[0])


# ---- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "secrets"),
    [
        report(
            "secrets",
            "neutree-ai/neutree#80",
            "an empty token, which a hub refuses as an empty header",
            "no secret and no file of one",
            {"HF_TOKEN": "", "VLLM_API_KEY": ""},
            {},
        ),
        report(
            "secrets",
            "tenstorrent/tt-inference-server#23",
            "a token by the environment",
            "a reference in the compose file, the value apart",
            {"HF_TOKEN": "t"},
            {"MODEL_8001_HF_TOKEN": "t"},
        ),
    ],
)
def test_secrets(env: dict[str, str], secrets: dict[str, str]) -> None:
    models = plain({"env": env})
    assert stack_secrets(models) == secrets
    service = rendered({"env": env})
    assert service["environment"]["HF_TOKEN"] == ("${MODEL_8001_HF_TOKEN}" if secrets else "")
    assert "secrets" not in service


@pytest.mark.parametrize(
    ("before", "after"),
    [
        report(
            "secrets",
            "Mateusz-Dera/ROCm-AI-Installer#11",
            "a token that came after the container: it has the old one until it is made anew",
            "another token is another compose file, so that the container is made anew",
            "1111",
            "2222",
        ),
        report(
            "secrets",
            "eugr/spark-vllm-docker#81",
            "the first token of a host",
            "the container is made anew with the file of the token",
            "",
            "1111",
        ),
    ],
)
def test_a_changed_token(before: str, after: str) -> None:
    one, other = rendered({}, token_mark=before), rendered({}, token_mark=after)
    assert one != other
    assert ("secrets" in one, "secrets" in other) == (bool(before), True)


def test_a_token_of_a_compose_file_is_told() -> None:
    fields = {"command": "org/chat", "environment": ["HUGGING_FACE_HUB_TOKEN=${HF_TOKEN:-}"]}
    found = composed(fields)
    assert "env" not in found.variables["vllm_models"][0]
    assert told(found, "HUGGING_FACE_HUB_TOKEN", "vllm_hf_token")


# ---- the table -----------------------------------------------------------------------------------


def test_every_subject_has_reports() -> None:
    counted = Counter(row.subject for row in REPORTS)
    assert list(counted) == list(SUBJECTS)
    assert min(counted.values()) >= 2
    assert len({row.where for row in REPORTS}) == len(REPORTS) >= 27
