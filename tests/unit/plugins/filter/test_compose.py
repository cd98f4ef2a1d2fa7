# SPDX-License-Identifier: MIT
"""Compose files: secrets stay out of them, and whatever a value holds, compose reads back that very value."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.internal import FilterModule
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose
from hypothesis import example, given, settings
from hypothesis import strategies as st

FILTERS = FilterModule().filters()
compose_environment = FILTERS["compose_environment"]
compose_service = FILTERS["compose_service"]
dotenv_text = FILTERS["dotenv_text"]
entrypoints = FILTERS["entrypoints"]
stack_secrets = FILTERS["stack_secrets"]
yaml_text = FILTERS["yaml_text"]

TEMPLATES = Path(__file__).resolve().parents[4] / "roles" / "vllm_servers" / "templates"
# What no variable, and no file in UTF-8, can hold.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
NASTY = [
    'it\'s "$5" ${X} $$',
    "a: b # c",
    "\\",
    "\\'",
    '\\"',
    "\r\n\t",
    " x ",
    "- a",
    "{}",
    "\u2028\x85\ufeff\x7f😀",
    "~",
]


def models(*given: dict[str, Any]) -> list[dict[str, Any]]:
    entries = [
        {"id": f"m{number}", "model": "org/m", "host_port": 8001 + number, **m} for number, m in enumerate(given)
    ]
    return list(parse(entries).as_dict()["vllm_models"])


def service(model: dict[str, Any], access: str = "nvidia", env: Any = None, inline: bool = False) -> dict[str, Any]:
    (parsed,) = models(model)
    return compose_service(parsed, access, "image:1", env, inline=inline)


def render(parsed: list[dict[str, Any]], access: str = "nvidia", **more: Any) -> str:
    """Return the compose file of the first model, by the role's own template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    environment.filters["homegpt.vllm.compose_service"] = compose_service
    environment.filters["homegpt.vllm.yaml_text"] = yaml_text
    variables = {
        "vllm_servers_gpu_access": access,
        "vllm_servers_image": "image:1",
        "vllm_servers_env": {},
        "__vllm_servers_mounted": {"volumes": []},
        "__vllm_servers_token_mark": "12345678",
        "vllm_servers_network": "network",
        "__vllm_servers_caches": {"/cache/huggingface": "/root/.cache/huggingface"},
        "__vllm_servers_models": parsed,
        "item": parsed[0]["id"],
    }
    return environment.get_template("compose-vllm.yml.j2").render({**variables, **more})


@pytest.mark.parametrize(
    ("access", "variable", "value"),
    [
        ("nvidia", "CUDA_VISIBLE_DEVICES", "0,1"),
        ("cdi", "CUDA_VISIBLE_DEVICES", "0,1"),
        ("amd", "HIP_VISIBLE_DEVICES", "2,3"),
        ("none", "CUDA_VISIBLE_DEVICES", "2,3"),
    ],
)
def test_gpus(access: str, variable: str, value: str) -> None:
    environment = service({"gpus": [2, 3]}, access)["environment"]
    assert {name: text for name, text in environment.items() if "VISIBLE" in name} == {variable: value}


GPUS = ["GPU-8f3b7c1e-2d4a-4b6c-9e8f-0a1b2c3d4e5f", "GPU-8f3b7c1e-2d4a-4b6c-9e8f-0a1b2c3d4e50"]
AMD = ["GPU-4b2c1a9f8d3e6f7a", "GPU-4b2c1a9f8d3e6f7b"]


@pytest.mark.parametrize(
    ("access", "gpus", "visible"),
    [
        ("nvidia", GPUS, {"CUDA_VISIBLE_DEVICES": "0,1"}),
        ("cdi", GPUS, {"CUDA_VISIBLE_DEVICES": "0,1"}),
        ("amd", AMD, {"ROCR_VISIBLE_DEVICES": ",".join(AMD), "HIP_VISIBLE_DEVICES": "0,1"}),
        ("none", GPUS, {"CUDA_VISIBLE_DEVICES": ",".join(GPUS)}),
    ],
)
def test_gpus_by_uuid(access: str, gpus: list[str], visible: dict[str, str]) -> None:
    environment = service({"gpus": gpus}, access)["environment"]
    assert {name: text for name, text in environment.items() if "VISIBLE" in name} == visible


def test_uuids_in_the_file() -> None:
    mig = GPUS[0].replace("GPU", "MIG")
    for gpus in (GPUS, [mig]):
        said = yaml.safe_load(render(models({"gpus": gpus})))["services"]["vllm-m0"]
        (device,) = said["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": gpus, "capabilities": ["gpu"]}
        said = yaml.safe_load(render(models({"gpus": gpus}), "cdi"))["services"]["vllm-m0"]
        assert said["devices"] == [f"nvidia.com/gpu={gpu}" for gpu in gpus]


def test_gpus_in_the_file() -> None:
    def described(access: str) -> dict[str, Any]:
        text = render(models({"gpus": [2, 3]}), access)
        return dict(yaml.safe_load(text)["services"]["vllm-m0"])

    (device,) = described("nvidia")["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["2", "3"], "capabilities": ["gpu"]}
    assert "devices" not in described("nvidia")
    assert described("cdi")["devices"] == ["nvidia.com/gpu=2", "nvidia.com/gpu=3"]
    assert described("amd")["devices"] == ["/dev/kfd", "/dev/dri"]
    assert described("amd")["group_add"] == ["video", "render"]
    for access in ("cdi", "amd", "none"):
        assert "deploy" not in described(access)
    assert "devices" not in described("none")


@pytest.mark.parametrize("name", ["12", "null", "1e3", "No"])
def test_names_that_yaml_takes_for_something_else(name: str) -> None:
    text = render(models({"container_name": name, "env": {"null": "a", "NO": "b"}}))
    ((service_name, said),) = yaml.safe_load(text)["services"].items()
    assert (service_name, said["container_name"]) == (name, name)
    assert (said["environment"]["null"], said["environment"]["NO"]) == ("a", "b")


def test_an_unknown_access_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="vllm_gpu_access must be one of nvidia, cdi, amd, none, is cuda"):
        service({}, "cuda")


def test_secrets_are_references() -> None:
    model = {
        "args": {"api_key": ["one", "two"], "max_num_seqs": 3, "hf_overrides": {"x": {"a_token": "deep"}}},
        "env": {"MY_PASSWORD": "pass", "TOKENIZERS_PARALLELISM": "false"},
    }
    shared = {"SHARED_SECRET": "all", "MY_PASSWORD": "other"}
    said = service(model, env=shared)
    assert said["command"][said["command"].index("--api-key") :] == [
        "--api-key",
        "${MODEL_8001_API_KEY_1}",
        "${MODEL_8001_API_KEY_2}",
        "--max-num-seqs=3",
        "--hf-overrides=${MODEL_8001_HF_OVERRIDES}",
    ]
    assert said["environment"]["MY_PASSWORD"] == "${MODEL_8001_MY_PASSWORD}"
    assert said["environment"]["SHARED_SECRET"] == "${MODEL_8001_SHARED_SECRET}"
    assert said["environment"]["TOKENIZERS_PARALLELISM"] == "false"
    assert stack_secrets(models(model), shared) == {
        "MODEL_8001_API_KEY_1": "one",
        "MODEL_8001_API_KEY_2": "two",
        "MODEL_8001_HF_OVERRIDES": '{"x": {"a_token": "deep"}}',
        "MODEL_8001_MY_PASSWORD": "pass",
        "MODEL_8001_SHARED_SECRET": "all",
    }


def test_an_argument_and_a_variable_of_one_name_stay_apart() -> None:
    model = {"args": {"api_key": "argument"}, "env": {"API_KEY": "variable", "PLAIN": "1"}}
    assert service(model)["environment"]["API_KEY"] == "${MODEL_8001_ENV_API_KEY}"
    assert service(model)["environment"]["PLAIN"] == "1"
    assert stack_secrets(models(model)) == {
        "MODEL_8001_API_KEY": "argument",
        "MODEL_8001_ENV_API_KEY": "variable",
    }


def test_secrets_of_nearly_the_same_name_stay_apart() -> None:
    args = {"a.key": "dotted", "a__key": "plain", "api_key_1": "one", "api_key": ["two", "three"]}
    env = {"API_KEY_1": "four", "ENV_API_KEY_1": "five"}
    values = ["dotted", "plain", "one", "two", "three", "four", "five"]
    assert sorted(stack_secrets(models({"args": args, "env": env})).values()) == sorted(values)
    said = service({"args": args, "env": env})
    assert len({*re.findall(r"\$\{\w+\}", str((said["command"], said["environment"])))}) == len(values)
    (parsed,) = models({"args": args})
    assert stack_secrets([parsed])[compose.api_key(parsed).secret] == "two"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, "dummy"),
        ({"args": {"api_key": "a"}}, "${MODEL_8001_API_KEY}"),
        ({"args": {"api_key": ["a", "b"]}}, "${MODEL_8001_API_KEY_1}"),
        ({"env": {"VLLM_API_KEY": "a"}}, "${MODEL_8001_VLLM_API_KEY}"),
        ({"args": {"api_key": "a"}, "env": {"VLLM_API_KEY": "b"}}, "${MODEL_8001_API_KEY}"),
    ],
)
def test_the_key_for_clients(model: dict[str, Any], expected: str) -> None:
    (parsed,) = models(model)
    assert compose.api_key(parsed).in_compose(inline=False) == expected


def test_a_key_for_all_models_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="vllm_env must not contain VLLM_API_KEY"):
        service({}, env={"VLLM_API_KEY": "a"})


def test_inline_secrets_stand_there_with_their_dollars_doubled() -> None:
    said = service({"args": {"api_key": "a$b"}, "env": {"A_KEY": "c$d"}}, inline=True)
    assert "--api-key=a$$b" in said["command"]
    assert said["environment"]["A_KEY"] == "c$$d"


def test_a_switch_is_no_secret() -> None:
    assert "--hf-token" in service({"args": {"hf_token": True}})["command"]
    assert stack_secrets(models({"args": {"hf_token": True}})) == {}


def test_other_environments() -> None:
    environment = {"A_SECRET": "x$y", "COST": "5$", "ON": True, "N": 3}
    expected = {"A_SECRET": "${P_A_SECRET}", "COST": "5$$", "ON": "true", "N": "3"}
    assert compose_environment(environment, "P_") == expected
    assert stack_secrets([], {}, {"P_": environment}) == {"P_A_SECRET": "x$y"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"a b": "1"}, ".a b is not a valid name of an environment variable: use letters, digits"),
        ({"1A": "1"}, ".1A is not a valid name"),
        ({"A": [1]}, ".A must be text or a number, is a list: put it in quotes, or remove it"),
        ({"A": None}, ".A must be text or a number, is nothing: "),
        ({"A": datetime.date(2026, 1, 2)}, ".A must be text or a number, is a date: "),
        (["A=1"], " must be a dictionary: write it as {NAME: VALUE}"),
        ("A=1", " must be a dictionary: "),
    ],
)
def test_what_is_no_environment_is_refused_by_its_variable(environment: Any, said: str) -> None:
    with pytest.raises(AnsibleFilterError, match="^" + re.escape("open_webui_env" + said)):
        compose_environment(environment, "OPEN_WEBUI_")
    with pytest.raises(AnsibleFilterError, match="^" + re.escape("vllm_env" + said)):
        service({}, env=environment)


def test_all_mistakes_of_an_environment_are_told() -> None:
    with pytest.raises(
        AnsibleFilterError, match=r"vllm_env\.A must be .*; vllm_env\.b c is .*; vllm_env must not contain"
    ):
        service({}, env={"A": None, "b c": 1, "VLLM_API_KEY": "k"})


@given(
    st.recursive(TEXTS | st.booleans() | st.none() | st.integers(), lambda s: st.lists(s) | st.dictionaries(TEXTS, s))
)
@example(NASTY)
def test_yaml_text_is_read_back(value: Any) -> None:
    assert "\n" not in yaml_text(value)
    assert yaml.safe_load("key: " + yaml_text(value)) == {"key": value}


def test_dotenv_refuses_what_no_variable_can_hold() -> None:
    with pytest.raises(AnsibleFilterError, match="NUL"):
        dotenv_text("a\0b")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for compose projects, where compose is installed: it needs no engine for this."""
    found = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    )
    if not found or found.returncode != 0:
        pytest.skip("allowed: docker compose is not installed here; the tests with a real engine install it")
    return tmp_path_factory.mktemp("project")


@settings(max_examples=25)
@given(st.lists(TEXTS, min_size=6, max_size=6))
@example(NASTY[:6])
@example(NASTY[5:11])
def test_compose_reads_back_what_the_inventory_says(project: Path, texts: list[str]) -> None:
    word, item, variable, secret_word, secret_variable, volume = texts
    item = re.sub(r"\A-+", "", item)
    key = secret_word.strip() or "k"
    args = {"chat_template": word, "lora_modules": [item], "api_key": key, "hf_overrides": {"x": word}}
    parsed = models({"args": args, "env": {"VARIABLE": variable, "MY_SECRET": secret_variable}})
    # A colon parts the paths of a volume.
    source = "/srv/" + re.sub(r"[:/\r\n]", "", volume).strip() + "x"
    text = render(parsed, __vllm_servers_mounted={"volumes": [source + ":/x:ro"]})
    for secret in (secret_word, secret_variable):
        assert len(secret) < 8 or secret in (word, item, variable, volume) or secret not in text

    main = {"name": "p", "include": ["model.yml"], "networks": {"homegpt-network": {}}}
    main["secrets"] = {"hf_token": {"environment": "HF_TOKEN"}}
    (project / "docker-compose.yml").write_text(json.dumps(main), encoding="utf-8")
    (project / "model.yml").write_text(text, encoding="utf-8")
    values = {"HF_TOKEN": "t", **stack_secrets(parsed)}
    dotenv = "".join(f"{name}={dotenv_text(value)}\n" for name, value in values.items())
    (project / ".env").write_bytes(dotenv.encode())

    answer = subprocess.run(
        ["docker", "compose", "config", "--format", "json"],
        cwd=project,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    # It shows dollars as it wants them in a file.
    said = json.loads(answer.stdout.replace("$$", "$"))["services"]["vllm-m0"]
    assert said["command"] == [word.plain for word in compose.serve_words(parsed[0])]
    assert said["environment"]["VARIABLE"] == variable
    assert said["environment"]["MY_SECRET"] == secret_variable
    assert source in [mount["source"] for mount in said["volumes"]]


def test_the_entrypoint_is_the_image_s_own_unless_it_is_given() -> None:
    def described(model: dict[str, Any]) -> dict[str, Any]:
        return dict(yaml.safe_load(render(models(model)))["services"]["vllm-m0"])

    given = described({"entrypoint": ["/opt/start $x.sh", "vllm", "serve"], "env": {"A": "b"}})
    assert given["entrypoint"] == ["/opt/start $$x.sh", "vllm", "serve"]
    assert "entrypoint" not in described({"entrypoint": []})
    # What `vllm serve` is given is the same in both.
    assert given["command"] == described({})["command"]
    assert given["command"][0] == "org/m"


@pytest.mark.parametrize(
    ("own", "remedy"),
    [
        (["vllm", "serve"], None),
        (["/usr/bin/tini", "--", "/opt/venv/bin/vllm", "serve"], None),
        (["/opt/nvidia/nvidia_entrypoint.sh", "vllm", "serve"], None),
        (["python3", "-m", "vllm.entrypoints.cli.main", "serve"], None),
        (None, "[vllm, serve], or"),
        ([], "[vllm, serve], or"),
        (["/bin/bash"], "[vllm, serve], or"),
        (["/bin/sh", "-c", "vllm serve org/x"], "[vllm, serve], or"),
        (["vllm"], "[vllm, serve], or"),
        (["/opt/venv/bin/vllm"], "[/opt/venv/bin/vllm, serve], or"),
        (["vllm", "serve", "org/x", "--port=1"], "[vllm, serve], with `org/x --port=1` as its model and args, or"),
        (["python3", "-m", "vllm.entrypoints.openai.api_server"], "[vllm, serve], or"),
        (
            ["/start.sh"],
            "[/start.sh, vllm, serve], or to [/start.sh] if that runs `vllm serve` with what it is given, or",
        ),
    ],
)
def test_what_an_image_starts(own: list[str] | None, remedy: str | None) -> None:
    looked = [
        {"item": "image:1", "rc": 0, "stdout": json.dumps(own)},
        {"item": "absent:1", "rc": 1, "stdout": "", "stderr": "No such image"},
    ]
    given = models(
        {"entrypoint": ["/start.sh"]}, {"image": "absent:1"}, {"image": "image:1", "startup_mode": "disabled"}, {}
    )
    found = entrypoints(given, looked, "image:1")
    assert list(found) == (["m3"] if remedy else [])
    if remedy:
        assert f"set the model's entrypoint to {remedy} correct `image` or vllm_image" in found["m3"]
        assert found["m3"].startswith("the image image:1 ")


def test_a_changed_token_is_another_service_and_an_empty_one_no_secret() -> None:
    def described(mark: str) -> dict[str, Any]:
        return dict(yaml.safe_load(render(models({}), __vllm_servers_token_mark=mark))["services"]["vllm-m0"])

    assert described("12345678")["secrets"] == ["hf_token"]
    assert described("12345678") != described("87654321")
    assert "secrets" not in described("")
    assert "homegpt.vllm.token" not in described("")["labels"]


def test_the_cache_of_modelscope_is_of_those_that_use_it() -> None:
    caches = {"/cache/modelscope": "/root/.cache/modelscope"}

    def mounted(model: dict[str, Any], **more: Any) -> bool:
        return "/cache/modelscope:/root/.cache/modelscope" in render(
            models(model), __vllm_servers_caches=caches, **more
        )

    assert not mounted({})
    assert mounted({"env": {"VLLM_USE_MODELSCOPE": "True"}})
    assert mounted({}, vllm_servers_env={"VLLM_USE_MODELSCOPE": "1"})
    assert not mounted({"env": {"VLLM_USE_MODELSCOPE": "0"}}, vllm_servers_env={"VLLM_USE_MODELSCOPE": "1"})


@pytest.mark.parametrize("token", ["", " ", None])
def test_a_token_that_is_left_empty_is_none(token: str | None) -> None:
    """`vllm_hf_token:` with nothing behind it is null in YAML, and was the token None."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["hash"] = lambda text, kind: pytest.fail(f"{text} is no token ({kind})")
    roles = TEMPLATES.parents[1]
    said = yaml.safe_load((roles / "vllm_servers" / "vars" / "main.yml").read_text(encoding="utf-8"))
    mark = environment.from_string(said["__vllm_servers_token_mark"])
    assert mark.render(vllm_servers_hf_token=token) == ""

    (line,) = re.findall("^HF_TOKEN.*$", (roles / "compose_stack/templates/env.j2").read_text(encoding="utf-8"), re.M)
    environment.filters["homegpt.vllm.dotenv_text"] = dotenv_text
    assert environment.from_string(line).render(compose_stack_hf_token=token) == 'HF_TOKEN=""'


@pytest.mark.parametrize("role", ["vllm_servers", "compose_stack"])
def test_variables_that_are_left_empty_count_as_left_out(role: str) -> None:
    """`vllm_volumes:` of which every line is commented out is null in YAML."""
    said = yaml.safe_load((TEMPLATES.parents[1] / role / "defaults" / "main.yml").read_text(encoding="utf-8"))
    for name, meant in (("volumes", []), ("env", {}), ("hf_token", "")):
        template = jinja2.Environment(autoescape=False).from_string(said[f"{role}_{name}"])
        assert template.render(**{f"vllm_{name}": None}) == str(meant)
