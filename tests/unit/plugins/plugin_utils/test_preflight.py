# SPDX-License-Identifier: MIT
"""What can be known to be wrong before a host is touched. In playbooks: integration_playbooks/test_preflight.py."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from ansible_collections.homegpt.vllm.plugins.plugin_utils import preflight, preflight_words, role_variables
from ansible_collections.homegpt.vllm.plugins.plugin_utils.preflight import Host

from tests.serverlib import ROOT

A = {"id": "a", "model": "org/a", "host_port": 8001}


def host(name: str = "gpu1", model: dict[str, Any] | None = None, **values: Any) -> Host:
    return Host(name, {"vllm_models": [{**A, **(model or {})}], **values}, [])


def test_one_mistake_of_many_hosts_is_said_once() -> None:
    hosts = [host(f"gpu{n}", {"host_port": 0} if n else {}) for n in range(51)]
    mistake = "vllm_models[0] (a): host_port must be a port from 1 to 65535, is 0"
    assert preflight.check("status", hosts) == [f"gpu1, gpu2 and 48 more: {mistake}"]
    assert preflight.check("status", hosts[1:]) == [f"all 50 hosts: {mistake}"]
    assert preflight.check("status", hosts[1:4]) == [f"gpu1, gpu2, gpu3: {mistake}"]
    assert preflight.check("status", hosts[:1]) == []


def test_a_model_that_one_host_of_many_has_is_no_mistake() -> None:
    hosts = [host("gpu1"), host("gpu2", {"id": "b", "model": "org/b"})]
    asked = [one._replace(values={**one.values, "model": "b"}) for one in hosts]
    assert preflight.check("switch", asked) == []
    asked = [one._replace(values={**one.values, "model": "c"}) for one in hosts]
    assert preflight.check("switch", asked) == [
        "gpu1: model c is not declared; the models are: a",
        "gpu2: model c is not declared; the models are: b",
    ]


def test_models_of_one_gpu_are_read_together_but_not_switched() -> None:
    models = [A, {**A, "id": "b", "model": "org/b", "host_port": 8002}]
    both = Host("gpu1", {"vllm_models": models, "model": "a,b"}, [])
    assert preflight.check("warm", [both]) == []
    assert "can't be switched in parallel" in preflight.check("switch", [both])[0]


def test_the_settings_of_a_rollout_are_those_of_all_hosts() -> None:
    own: dict[str, Any] = {"vllm_active_model": "a", "switch_keep": "1"}
    same = [host(f"gpu{n}", **own, switch_timeout=n) for n in (1, 2, 3)]
    assert preflight.check("switch", same) == []
    plan = preflight.plan("switch", same)
    assert (plan.waves, plan.held, plan.max_failures) == ([["gpu1", "gpu2"]], ["gpu3"], None)
    other = [*same, host("gpu4", vllm_active_model="a", switch_keep=2)]
    (mistake,) = preflight.check("switch", other)
    assert mistake.startswith("switch_keep differs between hosts (1 on gpu1, 2 on gpu4)")
    waves = [host("gpu1", switch_waves="1"), host("gpu2", switch_waves="1")]
    assert preflight.plan("switch", waves).max_failures == 0
    assert preflight.check("roll_back", [host("gpu1"), host("f,g")]) == [
        "host 'f,g': a host name must not contain a comma: rename it"
    ]
    # It goes on where some fail.
    assert preflight.plan("roll_back", waves)[1:] == ([["gpu1"], ["gpu2"]], [], None, "roll_back")


def test_what_has_no_value_hides_no_other_mistake() -> None:
    broken = Host("gpu1", {"vllm_active_model": "a", "record_canary": "ture"}, ["vllm_models[0].env.X refers to y"])
    assert preflight.check("switch", [broken, host("gpu2", {"host_port": 0})]) == [
        "gpu1: vllm_models[0].env.X refers to y",
        "gpu1: record_canary must be true or false, is 'ture'",
        "gpu2: vllm_models[0] (a): host_port must be a port from 1 to 65535, is 0",
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "'hf_tokn' is undefined. 'hf_tokn' is undefined",
            "refers to hf_tokn, which is not defined; did you mean hf_token?",
        ),
        ("Error while resolving value for 'a': 'nowhere' is undefined", "refers to nowhere, which is not defined"),
        ("object of type 'dict' has no attribute 'x'", "refers to x, which its object does not have"),
        (
            "Attempting to decrypt but no vault secrets found",
            "is encrypted, and there is no vault password: give --ask-vault-pass or --vault-password-file",
        ),
        (
            "Decryption failed (no vault secrets were found that could decrypt)",
            "is encrypted, and none of the vault passwords matches",
        ),
        ("Recursive loop detected in template: maximum recursion depth exceeded", "refers to itself"),
        ("No filter named\n'x'.", "can't be evaluated: No filter named 'x'."),
    ],
)
def test_why_a_variable_has_no_value(error: str, said: str) -> None:
    assert preflight_words.unresolved(error, False, ["hf_token"]) == said


@pytest.mark.parametrize(
    ("model", "volumes", "seen"),
    [
        ("/srv/models/b", [], False),
        ("/srv/models/b", ["/srv/models:/srv/models:ro"], True),
        ("/models/b", ["/srv/models:/models"], True),
        ("/modelsb", ["/srv/models:/models"], False),
        ("~/b", [], False),
        ("/root/.cache/huggingface/hub/b", [], True),
        ("org/b", [], True),
    ],
)
def test_a_path_is_to_be_one_of_the_container(model: str, volumes: list[str], seen: bool) -> None:
    found = preflight.check("site", [host(model={"model": model}, vllm_volumes=volumes)])
    assert (found == []) is seen
    assert preflight.check("site", [host(model={"model": model, "image": "baked"}, vllm_volumes=volumes)]) == []
    assert preflight.check("site", [host(model={"model": model}, vllm_image="baked", vllm_volumes=volumes)]) == []
    mirrored = host(model={"model": model}, vllm_image="mirror:5000/vllm/vllm-openai:v0.32.0", vllm_volumes=volumes)
    assert preflight.check("site", [mirrored]) == found
    assert preflight.check("site", [host(model={"model": model, "start_command": ["x"]}, vllm_volumes=volumes)]) == []


def test_a_host_without_a_web_interface_has_its_port_free() -> None:
    taken = {"host_port": 3000}
    assert len(preflight.check("site", [host(model=taken)])) == 1
    assert preflight.check("site", [host(model=taken, open_webui_enabled=False)]) == []
    assert preflight.check("site", [host(model={**taken, "start_command": ["x"]})]) == []
    assert preflight.check("site", [host(model=taken, open_webui_port=3001)]) == []


def test_the_variables_without_a_role_are_known() -> None:
    """Whatever the playbooks and roles read."""
    files = [*ROOT.glob("playbooks/**/*.yml"), *ROOT.glob("roles/*/*/*.yml")]
    read = {
        name for file in files for name in re.findall(r"(?<!\w)vllm_[a-z_]+(?!\w)", file.read_text(encoding="utf-8"))
    }
    modules = {file.stem for file in (ROOT / "plugins/modules").glob("*.py")}
    roles = {file.name for file in (ROOT / "roles").iterdir()}
    rest = {name for name in read - modules - roles if not name.startswith("vllm_servers_")}
    # The group, the names of what is registered, shown and handed on.
    assert rest - {"vllm_hosts", "vllm_status", "vllm_switch", "vllm_placement"} == set(preflight.WIDE)


def test_a_variable_of_any_role_is_no_slip_in_any_playbook() -> None:
    specs = {role: role_variables.read(ROOT / "roles", [role]) for role in preflight.ALL_ROLES}
    assert sorted(specs) == sorted(folder.name for folder in (ROOT / "roles").iterdir())
    every = [name for options in specs.values() for name in options]
    for playbook, asked in preflight.ASKED.items():
        played = role_variables.read(ROOT / "roles", preflight.ROLES.get(playbook, ()))
        known = {*preflight.WIDE, *asked, *played}
        for name in preflight.own_names(playbook, every):
            assert preflight_words.mistaken_names([name], known) == [], playbook


@pytest.mark.parametrize(
    ("env", "own", "volumes", "said"),
    [
        ({}, {}, [], []),
        ({"HF_HOME": "/nas"}, {}, ["/mnt/nas:/nas:ro"], []),
        ({"HF_HOME": "/nas"}, {"HF_HOME": "/root/.cache/huggingface"}, [], []),
        ({"VLLM_USE_MODELSCOPE": "True"}, {}, [], []),
        ({"VLLM_USE_MODELSCOPE": "True", "MODELSCOPE_CACHE": "/ms"}, {}, ["vol:/ms"], []),
        ({"VLLM_USE_MODELSCOPE": "True", "MODELSCOPE_CACHE": "/ms"}, {}, [], ["/ms"]),
        ({"HF_HOME": "/nas"}, {}, ["/mnt/nas:/nass"], ["/nas/hub"]),
        ({}, {"HF_HUB_CACHE": "/w"}, ["/w"], ["/w"]),
    ],
)
def test_weights_are_to_outlive_the_container(
    env: dict[str, str], own: dict[str, str], volumes: list[str], said: list[str]
) -> None:
    given: dict[str, Any] = {"vllm_env": env, "vllm_volumes": volumes}
    found = preflight.check("site", [host(model={"env": own}, **given)])
    assert [
        re.findall(r"its weights would be in (\S+) of its container, which is not in a volume", one) for one in found
    ] == [[folder] for folder in said]
    # An image of one's own may have them inside.
    assert preflight.check("site", [host(model={"env": own, "image": "baked"}, **given)]) == []
    assert preflight.check("teardown", [host(model={"env": own}, **given)]) == []


def test_a_cache_that_nobody_knows_is_told_with_its_variable() -> None:
    assert preflight.check("prefetch", [host(vllm_env={"HF_HOME": "cache"})]) == [
        "gpu1: a: HF_HOME must be a full path in the container, is cache"
    ]


def test_what_is_taken_for_the_web_interface_is_what_its_role_has() -> None:
    defaults = yaml.safe_load((ROOT / "roles/open_webui/defaults/main.yml").read_text(encoding="utf-8"))
    port, name = defaults["open_webui_port"], defaults["open_webui_container_name"]
    (mistake,) = preflight.check("site", [host(model={"host_port": port})])
    assert f"host_port {port} is Open WebUI's" in mistake
    (mistake,) = preflight.check("site", [host(model={"container_name": name})])
    assert name in mistake


def test_the_roles_say_what_their_variables_may_be() -> None:
    specs = role_variables.read(ROOT / "roles", preflight.ROLES["site"])
    # One that no role has in its name is what the role's own is that takes its default from it.
    assert specs["vllm_gpu_access"]["choices"] == ["nvidia", "cdi", "amd", "none"]
    assert {name for name in preflight.WIDE if name in specs} >= {
        "vllm_volumes",
        "vllm_image",
        "vllm_env",
        "vllm_hf_token",
    }
    values = {
        "vllm_gpu_access": False,
        "vllm_volumes": [1, {"a": "b"}],
        "open_webui_port": "3001",
        "open_webui_enabled": "yes",
        "docker_host_gpus": [["x"]],
        "vllm_models": "checked elsewhere",
    }
    assert role_variables.mistakes(values, specs, ("vllm_models",)) == [
        "docker_host_gpus[0] must be text, is a list",
        "vllm_gpu_access must be one of nvidia, cdi, amd, none, is False (YAML reads a bare on, off, yes, no as true "
        "or false: put it in quotes)",
        "vllm_volumes[1] must be text, is a dictionary",
    ]


def test_what_open_webui_would_get_wrong_is_told_where_it_is_deployed() -> None:
    wrong: dict[str, Any] = {"open_webui_env": {"OPENAI_API_BASE_URLS": "http://x/v1;", "DEFAULT_MODEL_PARAMS": "x"}}
    key = {"args": {"api_key": "one;two"}}
    told = preflight.check("site", [host(model=key, **wrong)])
    assert [line.partition(":")[0] for line in told] == ["gpu1"] * 3
    assert [part in line for part, line in zip(("a: Open WebUI", "BASE_URLS", "PARAMS"), told, strict=True)] == [
        True
    ] * 3
    assert preflight.check("bootstrap", [host(model=key, **wrong)]) == told
    assert preflight.check("status", [host(model=key, **wrong)]) == []
    assert preflight.check("site", [host(model=key, open_webui_enabled=False, **wrong)]) == []
    # One that it is not told of has its key for itself.
    assert preflight.check("site", [host(model={**key, "startup_mode": "disabled"})]) == []
    # What is no dictionary is told by its type.
    assert preflight.check("site", [host(open_webui_env=["x"])]) == []


def test_what_no_compose_file_can_say_is_told_before_a_task_that_hides_it() -> None:
    wrong = {"my-var": 1, "EMPTY": None, "LIST": ["hidden-value"], "VLLM_API_KEY": "hidden-value"}
    told = [
        "gpu1: vllm_env.my-var is not a valid name of an environment variable: use letters, digits and underscores, "
        "and no digit first",
        "gpu1: vllm_env.EMPTY must be text or a number, is nothing: put it in quotes, or remove it",
        "gpu1: vllm_env.LIST must be text or a number, is a list: put it in quotes, or remove it",
        "gpu1: vllm_env must not contain VLLM_API_KEY: set each model's own key in its env",
    ]
    for playbook in ("site", "bootstrap", "prefetch"):
        assert preflight.check(playbook, [host(vllm_env=wrong)]) == told, playbook
    assert preflight.check("status", [host(vllm_env=wrong)]) == []
    # The role's own variable wins, and the message names the one that counts.
    assert preflight.check("site", [host(vllm_env=wrong, vllm_servers_env={})]) == []
    (mistake,) = preflight.check("site", [host(vllm_servers_env={"A": None})])
    assert mistake.startswith("gpu1: vllm_servers_env.A must be")
    # A server without a container gets nothing of it.
    assert preflight.check("site", [host(model={"start_command": ["x"]}, vllm_env=wrong)]) == []
    # What is no dictionary is said once, here or by the role's argument spec.
    (mistake,) = preflight.check("site", [host(vllm_env="A=b")])
    assert mistake == "gpu1: vllm_env must be a dictionary: write it as {NAME: VALUE}"
    by_its_spec = host(vllm_env=["x"])._replace(mistakes=["vllm_env must be a dictionary, is a list"])
    assert preflight.check("site", [by_its_spec]) == ["gpu1: vllm_env must be a dictionary, is a list"]


def test_a_word_that_vllm_would_take_for_an_option_hides_no_other_mistake() -> None:
    model = {"args": {"lora_modules": ["x=y", "-z"], "api_key": "hidden-value"}}
    dash = "gpu1: a: args.lora_modules[1] begins with a dash, which vLLM parses as another option: correct or remove it"
    for more in ({}, {"startup_mode": "disabled"}):
        told = preflight.check("site", [host(model={**model, **more}, record_canary="ture", vllm_env={"A": None})])
        assert told == [
            "gpu1: vllm_env.A must be text or a number, is nothing: put it in quotes, or remove it",
            dash,
            "gpu1: record_canary must be true or false, is 'ture'",
        ]


def test_what_is_a_secret_of_the_variables() -> None:
    keys = [{"name": "alice-smith", "key": "k" * 16, "models": ["qwen3-32b-awq"], "kye": "s" * 16}, "t" * 16]
    values = {
        "model_gateway_api_keys": keys,
        "model_gateway_hosts_key": "front-door",
        "model_manager_operator_tokens": ["o" * 16],
        "model_manager_reader_tokens": "r" * 16,
        "vllm_hf_token": "h" * 16,
        "vllm_image": "vllm/vllm-openai",
    }
    assert preflight.secrets_of(values) == {letter * 16 for letter in "kstorh"}
    # What has another shape than it should have is hidden as a whole.
    wrong = {"alice-smith": {"key": "k" * 16, "models": ["qwen3-32b-awq"]}}
    assert preflight.secrets_of({"model_gateway_api_keys": wrong}) == {"k" * 16, "qwen3-32b-awq"}


def test_what_a_role_does_not_log_is_a_secret() -> None:
    specs = role_variables.read(ROOT / "roles", preflight.ALL_ROLES)
    hidden = [name for name, spec in specs.items() if spec.get("no_log")]
    assert [name for name in hidden if not preflight.is_secret(name)] == []
    assert "model_manager_operator_tokens" in hidden
    assert not preflight.is_secret("vllm_image")


@pytest.mark.parametrize(
    ("access", "gpu", "vendor"),
    [
        ("nvidia", "GPU-4b2c1a9f8d3e6f7a", "AMD"),
        ("cdi", "GPU-4b2c1a9f8d3e6f7a", "AMD"),
        ("amd", "MIG-8f3b7c1e-2d4a-5b6c-9e8f-0a1b2c3d4e5f", "NVIDIA"),
        ("nvidia", "MIG-8f3b7c1e-2d4a-5b6c-9e8f-0a1b2c3d4e5f", ""),
        ("amd", "GPU-4b2c1a9f8d3e6f7a", ""),
        ("none", "GPU-4b2c1a9f8d3e6f7a", ""),
        ("nvidia", 0, ""),
    ],
)
def test_a_gpu_of_another_vendor(access: str, gpu: str | int, vendor: str) -> None:
    wrong = [f"gpu1: a: gpus names {gpu}, which only {vendor} GPUs have, but vllm_gpu_access is {access}"]
    assert preflight.check("status", [host(model={"gpus": [gpu]}, vllm_gpu_access=access)]) == (wrong if vendor else [])
    started = {"gpus": [gpu], "start_command": ["x"]}
    assert preflight.check("status", [host(model=started, vllm_gpu_access=access)]) == []


def test_a_secret_in_an_entrypoint() -> None:
    words = ["bash", "-c", 'export HF_TOKEN=hf_abcdefghijk; exec vllm serve "$@"', "--"]
    (wrong,) = preflight.check("site", [host(model={"entrypoint": words})])
    assert wrong.startswith("gpu1: a: entrypoint contains a secret")
    assert "hf_abcdefghijk" not in wrong
    for named in ('"$MY_TOKEN"', "${MY_TOKEN}", "$(cat /run/secrets/hf_token)", "`cat /run/secrets/hf_token`"):
        words[2] = f'export HF_TOKEN={named}; exec vllm serve "$@"'
        assert preflight.check("site", [host(model={"entrypoint": words})]) == [], named


def test_volumes_are_looked_at_where_there_are_containers() -> None:
    wrong: dict[str, Any] = {"vllm_volumes": ["/srv/w:/w", "${HOME}/w:/x"]}
    (told,) = preflight.check("site", [host(model={}, **wrong)])
    assert "vllm_volumes[1]: ${HOME}/w is neither a folder" in told
    assert preflight.check("site", [host(model={}, vllm_servers_volumes=[], **wrong)]) == []
    assert preflight.check("site", [host(model={"start_command": ["x"]}, **wrong)]) == []
