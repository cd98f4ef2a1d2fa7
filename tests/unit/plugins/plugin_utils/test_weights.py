# SPDX-License-Identifier: MIT
"""Where weights are: what users write about caches and volumes, and the folder of the host that it comes down to."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.internal import FilterModule
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose
from ansible_collections.homegpt.vllm.plugins.plugin_utils.weights import CACHES, command_folders, volume_problem

FILTERS = FilterModule().filters()
container_volumes = FILTERS["container_volumes"]
host_folders = FILTERS["host_folders"]
service_weights = FILTERS["service_weights"]
weights = FILTERS["weights"]
weights_on_host = FILTERS["weights_on_host"]

HUB = "/root/.cache/huggingface/hub"
REPO = "models--org--m"
MODELSCOPE = "modelscope"


def found(
    env: dict[str, Any] | None = None, volumes: list[str] | None = None, own: dict[str, Any] | None = None, **model: Any
) -> dict[str, str]:
    """Return what there is to know of the one model."""
    entry = {"id": "m", "model": "org/m", "host_port": 8001, "env": own or {}, **model}
    models = parse([entry]).as_dict()["vllm_models"]
    return dict(weights(models, env or {}, "/cache", volumes or [], "/opt/homegpt", "/home/u").get("m", {}))


# vllm_env, vllm_volumes, the model's env: the container's cache, the host's folder of the repository, what is done.
PLACES: list[tuple[str, dict[str, Any], list[str], dict[str, Any], tuple[str, str, str]]] = [
    ("as it comes", {}, [], {}, (HUB, f"/cache/huggingface/hub/{REPO}", "fetch")),
    (
        "HF_HOME on a NAS",
        {"HF_HOME": "/nas/hf"},
        ["/mnt/nas:/nas"],
        {},
        ("/nas/hf/hub", f"/mnt/nas/hf/hub/{REPO}", "fetch"),
    ),
    ("HF_HUB_CACHE", {"HF_HUB_CACHE": "/w"}, ["/srv/w:/w"], {}, ("/w", f"/srv/w/{REPO}", "fetch")),
    ("its old name", {"HUGGINGFACE_HUB_CACHE": "/w"}, ["/srv/w:/w"], {}, ("/w", f"/srv/w/{REPO}", "fetch")),
    (
        "HF_HUB_CACHE wins",
        {"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c", "XDG_CACHE_HOME": "/d"},
        ["/srv:/a"],
        {},
        ("/a", f"/srv/{REPO}", "fetch"),
    ),
    (
        "then its old name",
        {"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"},
        ["/s:/b"],
        {},
        ("/b", f"/s/{REPO}", "fetch"),
    ),
    ("then HF_HOME", {"HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, ["/s:/c"], {}, ("/c/hub", f"/s/hub/{REPO}", "fetch")),
    (
        "then XDG_CACHE_HOME",
        {"XDG_CACHE_HOME": "/d"},
        ["/s:/d"],
        {},
        ("/d/huggingface/hub", f"/s/huggingface/hub/{REPO}", "fetch"),
    ),
    (
        "no weights by TRANSFORMERS_CACHE",
        {"TRANSFORMERS_CACHE": "/t"},
        ["/s:/t"],
        {},
        (HUB, f"/cache/huggingface/hub/{REPO}", "fetch"),
    ),
    (
        "a model's env wins",
        {"HF_HOME": "/a"},
        ["/s:/a", "/t:/b"],
        {"HF_HOME": "/b"},
        ("/b/hub", f"/t/hub/{REPO}", "fetch"),
    ),
    (
        "the model's HF_HOME does not win over the HF_HUB_CACHE of all",
        {"HF_HUB_CACHE": "/a"},
        ["/s:/a", "/t:/b"],
        {"HF_HOME": "/b"},
        ("/a", f"/s/{REPO}", "fetch"),
    ),
    ("a tilde in the container", {"HF_HOME": "~/hf"}, ["/s:/root/hf"], {}, ("/root/hf/hub", f"/s/hub/{REPO}", "fetch")),
    (
        "another home",
        {"HOME": "/data"},
        ["/s:/data"],
        {},
        ("/data/.cache/huggingface/hub", f"/s/.cache/huggingface/hub/{REPO}", "fetch"),
    ),
    (
        "variables are expanded",
        {"HF_HOME": "${BASE}/hf", "BASE": "/b"},
        ["/s:/b"],
        {},
        ("/b/hf/hub", f"/s/hf/hub/{REPO}", "fetch"),
    ),
    ("a volume over the cache", {}, ["/nas/hf:/root/.cache/huggingface"], {}, (HUB, f"/nas/hf/hub/{REPO}", "fetch")),
    (
        "over the folder above",
        {},
        ["/nas/cache:/root/.cache"],
        {},
        (HUB, f"/nas/cache/huggingface/hub/{REPO}", "fetch"),
    ),
    ("over the home", {}, ["/nas/home:/root/"], {}, (HUB, f"/nas/home/.cache/huggingface/hub/{REPO}", "fetch")),
    ("over the hub", {}, ["/nas/hub:/root/.cache/huggingface/hub/"], {}, (HUB, f"/nas/hub/{REPO}", "fetch")),
    (
        "the deepest counts",
        {},
        [f"/nas/hub:{HUB}", "/nas/cache:/root/.cache", "/nas/hf:/root/.cache/huggingface"],
        {},
        (HUB, f"/nas/hub/{REPO}", "fetch"),
    ),
    (
        "one that is only called alike",
        {},
        ["/x:/root/.cache/huggingface2"],
        {},
        (HUB, f"/cache/huggingface/hub/{REPO}", "fetch"),
    ),
    # Whatever the folder is called: it may not be removed.
    ("over the repository itself", {}, [f"/nas/qwen:{HUB}/{REPO}"], {}, (HUB, "", "ask")),
    ("read-only", {"HF_HOME": "/nas"}, ["/mnt/nas:/nas:ro"], {}, ("/nas/hub", "", "look")),
    ("read-only and more", {"HF_HOME": "/nas"}, ["/mnt/nas:/nas:ro,z"], {}, ("/nas/hub", "", "look")),
    ("not read-only", {"HF_HOME": "/nas"}, ["/mnt/nas:/nas:rw,z"], {}, ("/nas/hub", f"/mnt/nas/hub/{REPO}", "fetch")),
    ("read-only above, its own below", {}, ["/a:/root/.cache:ro", f"/b:{HUB}"], {}, (HUB, f"/b/{REPO}", "fetch")),
    ("relative", {"HF_HOME": "/hf"}, ["./hf:/hf"], {}, ("/hf/hub", f"/opt/homegpt/hf/hub/{REPO}", "fetch")),
    ("relative, above", {"HF_HOME": "/hf"}, ["../hf/:/hf"], {}, ("/hf/hub", f"/opt/hf/hub/{REPO}", "fetch")),
    (
        "of a home",
        {},
        ["~/.cache/huggingface:/root/.cache/huggingface"],
        {},
        (HUB, f"/home/u/.cache/huggingface/hub/{REPO}", "fetch"),
    ),
    ("a volume of Docker's", {}, ["hf-cache:/root/.cache/huggingface"], {}, (HUB, "", "ask")),
    ("one without a name", {"HF_HOME": "/hf"}, ["/hf"], {}, ("/hf/hub", "", "look")),
    ("in no volume", {"HF_HOME": "/hf"}, [], {}, ("/hf/hub", "", "look")),
    (
        "odd slashes",
        {"HF_HOME": "//hf/./x/"},
        ["//mnt//nas/:/hf//"],
        {},
        ("/hf/x/hub", f"/mnt/nas/x/hub/{REPO}", "fetch"),
    ),
    ("all is mounted", {}, ["/nas:/"], {}, (HUB, f"/nas/root/.cache/huggingface/hub/{REPO}", "fetch")),
]


@pytest.mark.parametrize(
    ("env", "volumes", "own", "expected"), [row[1:] for row in PLACES], ids=[row[0] for row in PLACES]
)
def test_where_the_weights_are(
    env: dict[str, Any], volumes: list[str], own: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    told = found(env, volumes, own)
    assert (told["cache"], told["folder"], told["fetch"]) == expected
    assert told["marker"] == ".homegpt-main.auto"
    # The container's own compose file says the same, when nobody remembers the model.
    entry = {"id": "m", "model": "org/m", "host_port": 8001, "env": own}
    (model,) = parse([entry]).as_dict()["vllm_models"]
    said = compose.service(model, "none", "image:1", env)
    mounted = container_volumes(volumes, "/cache", "/opt/homegpt", "/home/u")
    service = {**said, "volumes": [f"{s}:{t}" for s, t in mounted["caches"].items()] + mounted["volumes"]}
    assert service_weights(service, "/opt/homegpt", "/elsewhere") == told


@pytest.mark.parametrize(
    ("value", "env", "hub"),
    [
        ("True", {}, MODELSCOPE),
        ("true", {}, MODELSCOPE),
        (True, {}, MODELSCOPE),
        (1, {}, MODELSCOPE),
        (" TRUE ", {}, MODELSCOPE),
        ("False", {}, "huggingface"),
        (False, {}, "huggingface"),
        ("0", {}, "huggingface"),
        ("", {}, "huggingface"),
        ("yes", {}, "huggingface"),
        # The model's own wins, in both directions.
        ("False", {"VLLM_USE_MODELSCOPE": "True"}, "huggingface"),
        ("True", {"VLLM_USE_MODELSCOPE": "False"}, MODELSCOPE),
    ],
)
def test_modelscope_is_what_vllm_takes_for_it(value: Any, env: dict[str, Any], hub: str) -> None:
    told = found(env, own={"VLLM_USE_MODELSCOPE": value})
    assert told["hub"] == hub
    assert told["fetch"] == ("leave" if hub == MODELSCOPE else "fetch")
    # Of all models it counts as well.
    assert found({"VLLM_USE_MODELSCOPE": value})["hub"] == (
        MODELSCOPE if str(value).strip().lower() in ("true", "1") else "huggingface"
    )


def test_the_cache_of_modelscope() -> None:
    on = {"VLLM_USE_MODELSCOPE": "True"}
    assert found(on)["cache"] == "/root/.cache/modelscope"
    assert found({**on, "MODELSCOPE_CACHE": "/ms"})["cache"] == "/ms"
    # What is in there nobody but ModelScope knows: it is never removed.
    assert (found(on)["folder"], found(on)["locks"]) == ("", "")
    # It outlives the container only where a model has it.
    assert "/cache/modelscope" not in container_volumes([], "/cache", "/opt/homegpt")["caches"]
    caches = container_volumes([], "/cache", "/opt/homegpt", modelscope=True)["caches"]
    assert caches["/cache/modelscope"] == "/root/.cache/modelscope"


def test_download_dir_has_the_weights_alone() -> None:
    told = found(volumes=["/nas:/w"], args={"download_dir": "/w/x"})
    assert (told["cache"], told["folder"], told["fetch"]) == ("/w/x", f"/nas/x/{REPO}", "leave")
    with pytest.raises(AnsibleFilterError, match=r"m: args.download_dir must be a full path in the container, is w"):
        found(args={"download_dir": "w"})


@pytest.mark.parametrize("model", ["/models/a", "./a/b", "https://x/y", "s3://b/m", "org/m:Q4", "m", "../x", "./.."])
def test_what_is_in_no_cache(model: str) -> None:
    assert found(model=model) == {}


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"HF_HOME": ""}, "HF_HOME must be a full path in the container, is empty: leave it out"),
        ({"HF_HOME": "hf"}, "HF_HOME must be a full path in the container, is hf"),
        ({"HF_HUB_CACHE": "./hub"}, r"HF_HUB_CACHE must be a full path in the container, is \./hub"),
        ({"HF_HOME": "$NOWHERE/x"}, r"HF_HOME must be a full path in the container, is \$NOWHERE/x"),
        ({"XDG_CACHE_HOME": "cache"}, "XDG_CACHE_HOME must be a full path in the container, is cache"),
    ],
)
def test_a_folder_that_nobody_knows(env: dict[str, Any], said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=f"m: {said}"):
        found(env)


def test_a_disabled_model_is_left_alone_mistaken_or_not() -> None:
    entry = {"id": "m", "model": "org/m", "host_port": 8001, "startup_mode": "disabled", "env": {"HF_HOME": "x"}}
    models = parse([entry]).as_dict()["vllm_models"]
    assert weights(models) == weights(models, disabled=True) == {}
    models = parse([{**entry, "env": {}}]).as_dict()["vllm_models"]
    assert weights(models) == {}
    assert list(weights(models, disabled=True)) == ["m"]


def test_locks_lie_beside_the_repositories() -> None:
    assert found(volumes=["/nas:/root/.cache"])["locks"] == f"/nas/huggingface/hub/.locks/{REPO}"
    # A volume of a repository's own has none of them.
    told = found(volumes=[f"/nas/{REPO}:{HUB}/{REPO}"])
    assert (told["folder"], told["locks"]) == (f"/nas/{REPO}", f"/cache/huggingface/hub/.locks/{REPO}")


def test_only_caches_that_would_hide_a_volume_are_left_out() -> None:
    def caches(*volumes: str) -> set[str]:
        return set(container_volumes(list(volumes), "/cache", "/opt/homegpt")["caches"])

    every = {f"/cache/{name}" for name in CACHES}
    assert caches() == every
    assert caches("/x:/models", "/y:/root/.cache/huggingface/hub") == every
    assert caches("/x:/root/.cache/huggingface") == every - {"/cache/huggingface"}
    assert caches("/x:/root/.cache") == {"/cache/triton"}
    assert caches("/x:/root") == set()


def test_what_containers_are_given() -> None:
    given = ["~/m:/m:ro", "./x:/x", "vol:/v", "/anonymous", "/srv/w:/w", "~:/home"]
    told = container_volumes(given, "/cache", "/opt/homegpt", "/home/u")
    assert told["volumes"] == ["/home/u/m:/m:ro", "./x:/x", "vol:/v", "/anonymous", "/srv/w:/w", "/home/u:/home"]
    assert told["named"] == ["vol"]
    assert told["caches"] == {f"/cache/{name}": target for name, target in CACHES.items()}
    # ~ is also where nobody knows whose it is.
    assert container_volumes(["~/m:/m"], "/cache", "/opt/homegpt")["volumes"] == ["~/m:/m"]


CONTAINED = {"id": "a", "model": "org/a", "host_port": 8001}
COMMAND = {
    "id": "b",
    "model": "org/b",
    "host_port": 8002,
    "gpus": [1],
    "start_command": ["/opt/vllm/bin/vllm", "serve"],
}


@pytest.mark.parametrize(
    ("models", "volumes", "expected"),
    [
        ([CONTAINED], [], [f"/cache/{name}" for name in CACHES]),
        (
            [CONTAINED],
            ["/mnt/nas:/root/.cache", "./x:/x", "~/m:/m:ro", "vol:/v", "/mnt/nas:/again"],
            ["/cache/triton", "/mnt/nas", "/opt/homegpt/x", "~/m"],
        ),
        (
            [{**CONTAINED, "env": {"VLLM_USE_MODELSCOPE": "True"}}],
            [],
            [*(f"/cache/{name}" for name in CACHES), "/cache/modelscope"],
        ),
        # Without a container: what its command and its environment name. The volumes are nothing to it.
        ([COMMAND], ["/mnt/nas:/nas"], ["/opt/vllm/bin/vllm", HUB]),
        ([{**COMMAND, "env": {"HF_HOME": "/disk/hf"}}], [], ["/opt/vllm/bin/vllm", "/disk/hf/hub"]),
        ([{**COMMAND, "env": {"HF_HOME": "hf"}}], [], ["/opt/vllm/bin/vllm"]),
        ([{**COMMAND, "model": "/disk/b", "start_command": ["vllm"]}], [], ["/disk/b"]),
        ([CONTAINED, {**COMMAND, "startup_mode": "disabled"}], ["/x:/root"], ["/x"]),
        ([{**CONTAINED, "startup_mode": "disabled"}], ["/x:/root"], []),
    ],
)
def test_what_has_to_be_mounted_at_boot(models: list[Any], volumes: list[str], expected: list[str]) -> None:
    assert host_folders(models, {}, "/cache", volumes, "/opt/homegpt") == expected


@pytest.mark.parametrize(
    ("staying", "removed"),
    [
        ({"model": "org/other"}, True),
        ({"model": "org/m-2"}, True),
        ({"model": "other/org/m"}, True),
        ({"model": "org/m"}, False),
        # Its server may read the same cache, and its command has no volumes that would tell.
        ({"model": "org/m", "start_command": ["vllm", "serve", "org/m", "--port", "8102"]}, False),
        ({"model": "any", "start_command": ["bash", "-c", "exec vllm serve \\\norg/m"]}, False),
        ({"args": {"speculative_config": {"model": "org/m"}}}, False),
        ({"args": {"tokenizer": "org/m"}, "env": {"HF_HOME": "/srv/elsewhere"}}, False),
        # Mistaken, so that nobody knows where it is, and left alone.
        ({"model": "org/m", "env": {"HF_HOME": "here"}, "startup_mode": "disabled"}, False),
    ],
)
def test_weights_that_a_model_names_are_not_removed_with_another(staying: dict[str, Any], removed: bool) -> None:
    service = {"command": ["org/m"], "environment": {}, "volumes": ["/cache/huggingface:/root/.cache/huggingface"]}
    models = parse([{"id": "b", "model": "org/b", "host_port": 8102, **staying}]).as_dict()["vllm_models"]
    told = service_weights(service, "/opt/homegpt", "/root", models)
    assert told["folder"] == (f"/cache/huggingface/hub/{REPO}" if removed else "")
    assert bool(told["locks"]) == removed


@pytest.mark.parametrize(
    "service",
    [
        {},
        {"command": "org/m", "environment": {}, "volumes": []},
        {"command": ["org/m"], "environment": ["A=1"], "volumes": []},
        {"command": ["org/m"], "environment": {}, "volumes": None},
    ],
)
def test_of_a_service_that_somebody_else_wrote_nothing_is_removed(service: dict[str, Any]) -> None:
    assert service_weights(service, "/opt/homegpt") == {}


def test_a_boot_waits_for_the_folders_in_the_options_of_a_command() -> None:
    command = ["vllm", "serve", "org/m", "--download-dir=/mnt/weights", "--chat-template", "/mnt/t.jinja"]
    assert command_folders("org/m", {}, {}, command) == ["/mnt/weights", "/mnt/t.jinja", "/mnt/weights"]
    # It is given nothing of args.
    told = command_folders("org/m", {"download_dir": "/mnt/no"}, {}, ["vllm", "serve", "org/m"])
    assert told == ["/root/.cache/huggingface/hub"]


# vllm_volumes, the model, and the folders of the host with the revision and load_format that the engine is told.
ON_HOST: list[tuple[str, list[str], dict[str, Any], tuple[list[str], str, str] | None]] = [
    ("in the cache", [], {}, ([f"/cache/huggingface/hub/{REPO}"], "main", "auto")),
    (
        "as its arguments say",
        ["/nas:/w"],
        {"args": {"download_dir": "/w/x", "revision": "v1", "load_format": "pt"}},
        ([f"/nas/x/{REPO}"], "v1", "pt"),
    ),
    ("a path in a volume", ["/nas:/w"], {"model": "/w/m"}, (["/nas/m"], "main", "auto")),
    ("a path in no volume", [], {"model": "/w/m"}, None),
    ("a volume of Docker's", ["hub:/w"], {"env": {"HF_HOME": "/w"}}, None),
    ("a URL", [], {"model": "s3://bucket/m"}, None),
    ("a disabled model", [], {"startup_mode": "disabled"}, None),
    ("a folder that nobody knows", [], {"env": {"HF_HOME": "relative"}}, None),
    (
        "a command's",
        ["/nas:/w"],
        {"start_command": ["vllm", "serve", "org/m", "--revision", "v2"], "env": {"HF_HOME": "/srv"}},
        ([f"/srv/hub/{REPO}"], "v2", "auto"),
    ),
    ("a command's path, which the engine knows", [], {"start_command": ["vllm"], "model": "/srv/m"}, None),
    (
        "ModelScope",
        [],
        {"model": "org/m-1.5", "env": {"VLLM_USE_MODELSCOPE": "1"}},
        (
            [
                "/cache/modelscope/" + name
                for name in (
                    "models/org--m-1.5",
                    "hub/models/org/m-1___5",
                    "hub/models/org/m-1.5",
                    "models/org/m-1___5",
                    "models/org/m-1.5",
                    "hub/org/m-1___5",
                    "hub/org/m-1.5",
                )
            ],
            "main",
            "auto",
        ),
    ),
    (
        "ModelScope's in a volume of Docker's",
        ["hub:/w"],
        {"env": {"VLLM_USE_MODELSCOPE": "1", "MODELSCOPE_CACHE": "/w"}},
        None,
    ),
]


@pytest.mark.parametrize(("volumes", "model", "told"), [case[1:] for case in ON_HOST], ids=[c[0] for c in ON_HOST])
def test_what_the_engine_is_told(
    volumes: list[str], model: dict[str, Any], told: tuple[list[str], str, str] | None
) -> None:
    models = parse([{"id": "m", "model": "org/m", "host_port": 8001, **model}]).as_dict()["vllm_models"]
    # What all containers get is not for commands.
    env = {"HF_HOME": "/nowhere"} if "start_command" in model else {}
    found = weights_on_host(models, env, "/cache", volumes, "/opt/homegpt", "/home/u")
    expected = dict(zip(("folders", "revision", "load_format"), told, strict=True)) if told else None
    assert found == {"models": {"m": expected} if expected else {}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/srv/w:/w", ""),
        ("/srv/w:/w:ro,z", ""),
        ("~:/w", ""),
        ("~/w:/w", ""),
        ("./w:/w", ""),
        ("../w:/w", ""),
        ("weights-2.x:/w", ""),
        ("/w", ""),
        ("${HOME}/w:/w", "${HOME}/w is neither a folder of the host nor a volume's name"),
        ("srv/w:/w", "srv/w is neither"),
        ("~bob/w:/w", "~bob/w is neither"),
        (":/w", "nothing is neither"),
        ("/srv/w:", "must end in a full path of the container (SOURCE:/TARGET), is /srv/w:"),
        ("/srv/w:w", "must end in a full path of the container"),
        ("", "must end in a full path of the container (SOURCE:/TARGET), is empty"),
    ],
)
def test_volumes_that_compose_would_refuse(text: str, told: str) -> None:
    problem = volume_problem(text)
    assert problem.startswith(told)
    assert bool(problem) == bool(told)
