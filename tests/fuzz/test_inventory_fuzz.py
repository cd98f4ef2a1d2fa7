# SPDX-License-Identifier: MIT
"""Whatever somebody writes into an inventory: it is refused in words, or the planner and docker compose take it.

FUZZ_SEED=N runs once more what another run has tried; every run prints its seed, by default the commit's own.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.internal import FilterModule
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import checks, schema
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan as planning
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import Blocked, InventoryError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import Observation, Plan, make_plan, predict
from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import given as given_values
from hypothesis import strategies as st

from tests.part import fewer
from tests.part import seed as seed_of_commit

FILTERS = FilterModule().filters()
compose_service = FILTERS["compose_service"]

ROLES = Path(__file__).resolve().parents[2] / "roles"
SEED = int(os.environ.get("FUZZ_SEED") or seed_of_commit())
# How many of either kind. The junk is nearly always refused.
JUNK = fewer("fuzz", "make faults", "examples of junk", 1000, 250)
HALF_RIGHT = fewer("fuzz", "make faults", "inventories that are nearly right", 4100, 1025)
# At most so many models go through docker compose, in projects of so many services.
COMPOSED, PROJECT = fewer("fuzz", "make faults", "models through docker compose", 400, 100), 50

pytestmark = pytest.mark.timeout(900)
FUZZ = settings(
    # In CI hypothesis would otherwise try the same examples every time.
    derandomize=False,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


class Seen:
    """What this run has tried so far."""

    examples = accepted = plans = blocked = composed = 0
    # Normalised models that have containers, each once.
    models: dict[str, dict[str, Any]] = {}  # noqa: RUF012


@pytest.fixture(scope="module", autouse=True)
def told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say at the end what was tried, also when all is well."""
    yield
    plugins = request.config.pluginmanager
    reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(
                f"fuzz: {Seen.examples} examples, {Seen.accepted} accepted, {Seen.composed} through docker compose "
                f"config ({Seen.plans} plans, {Seen.blocked} blocked; FUZZ_SEED={SEED})"
            )


# What people, and Jinja, write into inventories

NASTY = [
    *("", " ", "$", "$$", "${X}", "$X", "${", "${id}", "$${id}", "${${id}}", "${X:-y}", "a$b$$c$$$d", "{{ x }}", "%s"),
    *("'", '"', "\\", "\\n", "\\$", '\\"', "it's \"$5\"", "#", "a # b", ": ", "a: b", "- a", "-a", "--port=1", "*a"),
    *("!x", "|", ">", "[", "{}", "~", "null", "true", "No", "on", "12", "0x1f", "1_000", "1e3", "12:30:45"),
    *("\n", "a\nb", "\r\n", "\t", "\0", "\x01\x1b[0m", "\x7f", "\x85", "\u2028", "\ufeff", "é", "日本", "😀", "\ud800"),
    *("nan", "inf", "-1", "0", "1.5", "8001", "/", "/x", "../..", "a/b", "a;b", "`x`", "x" * 300, "(", "a{1,2}", "[[a"),
]  # fmt: skip
texts = st.sampled_from(NASTY) | st.text(st.sampled_from("$${}\"'\\:#-@!%&*|>?,[]`~ \n\tab1é😀\u2028"), max_size=12)
texts |= st.text(max_size=8)
NUMBERS = [0, 1, -1, 2, 8001, 65536, 10**30, 10**400, 1e300, 0.1, 1.5, -0.0, math.nan, math.inf, -math.inf]
scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.integers(-3, 70000)
    | st.floats()
    | texts
    # YAML has these too.
    | st.sampled_from([datetime.date(2024, 1, 1), b"bytes", (1, 2), {1, 2}])
)
keys = texts | st.sampled_from([*schema.MODEL_FIELDS, *schema.SWITCHING_FIELDS, "endpoint", "body", 1, None, 1.5, True])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)

# What is mostly right

words = texts.filter(lambda text: bool(text.strip()))
literals = words.filter(lambda text: "${" not in text)
leading = "abcxyz0179"
sizes = st.floats(0.1, 200) | st.sampled_from(["14", 24, "57.5", 1e300])
json_values = st.recursive(
    texts | st.booleans() | st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
argument_values = texts | st.booleans() | st.integers(0, 99999) | st.floats(0, 1) | st.lists(texts, max_size=3)
ARGUMENTS = {
    **dict.fromkeys(
        ["max_model_len", "max-num-seqs", "chat_template", "lora_modules", "allowed_origins", "middleware", "headless",
         "hf_overrides", "hf_overrides.x", "hf_token", "enable_prefix_caching", "quantization", "a.key", "a__key", "k.",
         "api_key_1", "api_key_2", "a-key.b-c", "default_chat_template_kwargs"],
        argument_values | json_values,
    ),
    **dict.fromkeys(["api_key", "api-key"], texts | st.lists(texts, max_size=3) | argument_values),
    "tensor_parallel_size": st.sampled_from([1, "1", 1.0, None]),
}  # fmt: skip
# Not all of these are what YAML takes for text.
ENVIRONMENT = [
    *("A", "B_1", "HF_TOKEN", "API_KEY", "ENV_API_KEY", "API_KEY_1", "VLLM_API_KEY", "a_key", "CUDA_VISIBLE_DEVICES"),
    *("null", "Null", "NULL", "NO", "y", "on", "True", "false", "_", "_1", "__1", "nan", "e1", "x", "HF_OVERRIDES"),
]
macros = st.dictionaries(st.sampled_from(["own", "more", "m-1", "dollar"]), texts | st.sampled_from(["$", 1, True]))
variables = st.sampled_from(
    ["${id}", "${model}", "${host_port}", "${own}", "$${id}", "${dollar}{id}", "${level}", "${"]
)
requests = st.fixed_dictionaries(
    {"endpoint": st.builds("/{}{}".format, variables, texts) | st.just("/sleep?level=${level}")},
    optional={
        "method": st.sampled_from(["get", "POST", "Put"]),
        "body": json_values | st.fixed_dictionaries({"a": variables}) | values,
        "timeout": sizes,
    },
)
commands = st.lists(words | variables, max_size=3)
KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "name": literals,
    "container_name": st.builds(
        lambda first, rest: first + rest,
        st.sampled_from(leading + "AZ"),
        st.text("abz019._-AZ", min_size=1, max_size=8),
    )
    | st.sampled_from(
        ["12", "null", "true", "No", "0x1f", "1_000", "1e3", "1.5", "0o7", "2024-01-01", "on", ".".join("ab")]
    ),
    "port": st.integers(1, 65535) | st.just("8000"),
    "gpus": st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)
    | st.sampled_from([["0"], [10**30], [1.0]]),
    "gpu_memory_gb": sizes,
    "weights_gb": sizes,
    "startup_mode": st.sampled_from(["sleep", "sleep", "active", "disabled"]),
    "sleep_level": st.sampled_from(["auto", 1, 2, "1", "2", "stop"]),
    "args": st.dictionaries(st.sampled_from(sorted(ARGUMENTS)), st.none(), max_size=5).flatmap(
        lambda chosen: st.fixed_dictionaries({name: ARGUMENTS[name] for name in chosen})
    ),
    "env": st.dictionaries(
        st.sampled_from(ENVIRONMENT), texts | st.booleans() | st.integers() | st.floats(), max_size=5
    ),
    "image": literals | st.sampled_from(["", "vllm/vllm-openai:v0.32.0", "localhost:5000/x@sha256:" + "0" * 64]),
    "aliases": st.lists(words, max_size=3, unique=True),
    "ready_completion": st.booleans() | st.sampled_from(["yes", "no", "TRUE"]),
    "kind": st.sampled_from(["auto", "auto", "text", "pooling", "speech"]),
    "sleep_requests": st.lists(requests, min_size=1, max_size=2),
    "wake_requests": st.lists(requests, min_size=1, max_size=2),
    "state_request": st.fixed_dictionaries({"endpoint": st.builds("/{}".format, variables), "sleeping": words}),
    "start_command": commands,
    "stop_command": commands,
    "macros": macros,
}


def _takes(field: checks.Field, value: Any) -> bool:
    try:
        field.check(value)
    except Exception:
        # Whether it is the right one is for the tests to see.
        return False
    return True


def _kind(key: str, field: checks.Field) -> st.SearchStrategy[Any]:
    """What a key takes: as told above, or, of a key that is newer than this file, whatever its check lets through."""
    if key in KNOWN:
        return KNOWN[key]
    pool = [
        *NUMBERS,
        *NASTY,
        True,
        False,
        "yes",
        "auto",
        "sleep",
        [],
        {},
        ["a"],
        ["a b", "$X"],
        [0],
        [0, 1],
        {"a": "b"},
    ]
    pool += [{"a": "$X"}, {"a": 1}, [{"endpoint": "/x"}], {"endpoint": "/x"}, {"endpoint": "/x", "sleeping": "x"}]
    pool += [getattr(cls, key) for cls in (Model, schema.Switching) if hasattr(cls, key)]
    taken = [value for value in pool if _takes(field, value)]
    # What none of these fits is only ever mutated.
    return st.sampled_from(taken) if taken else st.none()


MODEL = {
    key: _kind(key, field) for key, field in schema.MODEL_FIELDS.items() if key not in ("id", "model", "host_port")
}
SWITCHING = {key: _kind(key, field) for key, field in schema.SWITCHING_FIELDS.items()}
ids = st.builds(
    lambda first, rest: first + rest, st.sampled_from(leading), st.text("abcxyz0179._-", max_size=6)
) | st.sampled_from(["1", "null", "1e3", "0x1f", "1.5", "qwen3-32b"])


def _some(draw: st.DrawFn, kinds: dict[str, st.SearchStrategy[Any]], most: int) -> dict[str, Any]:
    """Values for a few of the keys: with all of them at once hardly anything would be right."""
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), max_size=most, unique=True))
    return {key: draw(kinds[key]) for key in chosen}


@st.composite
def half_right(draw: st.DrawFn) -> tuple[Any, Any]:
    """vllm_models and vllm_switching as people write them, often with a mistake or two."""
    models: list[Any] = []
    names = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    for number, name in enumerate(names):
        entry: dict[str, Any] = {"id": name, "model": draw(literals | st.just("org/model")), "host_port": 8001 + number}
        entry.update(_some(draw, MODEL, 5))
        # Lone ones are mistakes, and those have their turn below.
        if "sleep_requests" in entry or "wake_requests" in entry:
            for key in ("sleep_requests", "wake_requests"):
                entry[key] = entry.get(key) or draw(MODEL[key])
        if "stop_command" in entry and not entry.get("start_command"):
            del entry["stop_command"]
        if len(entry.get("gpus", [])) > 1 and draw(st.booleans()):
            entry.setdefault("args", {}).pop("tensor_parallel_size", None)
        models.append(entry)
    switching = _some(draw, SWITCHING, 3)
    for _turn in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3]))):
        place = draw(st.sampled_from([*models, switching]))
        if draw(st.integers(0, 9)):
            known = draw(
                st.sampled_from(sorted({*(schema.MODEL_FIELDS if "id" in place else schema.SWITCHING_FIELDS)}))
            )
            place[known] = draw(_deeper(place.get(known)))
        else:
            place[draw(keys)] = draw(values)
    return models, switching


def _deeper(value: Any) -> st.SearchStrategy[Any]:
    """Something else in this value's place, or in that of a part of it."""
    if isinstance(value, dict) and value:
        changed = st.builds(lambda key, item: {**value, key: item}, st.sampled_from(sorted(value, key=str)), values)
        return changed | st.builds(lambda key, item: {**value, key: item}, keys, values) | values
    if isinstance(value, list) and value:
        return st.builds(lambda item: [*value[:-1], item], values) | values
    return values


# The properties

PATH = re.compile(r"(vllm_models\[\d+\]( \(.+?\))?: .|vllm_models (is empty|must be)|vllm_switching: .)", re.DOTALL)


def check(models: Any, switching: Any, number: int) -> None:
    """Everything that must hold for one inventory; C(number) chooses what is observed."""
    Seen.examples += 1
    try:
        inventory = parse(models, switching)
    except InventoryError as error:
        assert error.mistakes
        assert [mistake for mistake in error.mistakes if not PATH.match(mistake)] == []
        # Somebody has to be able to read it.
        str(error).encode("utf-8", "backslashreplace")
        return
    Seen.accepted += 1
    plain = inventory.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    # models.json and the files of the stack are UTF-8.
    json.dumps(plain, ensure_ascii=False).encode("utf-8")
    again = parse(plain["vllm_models"], plain["vllm_switching"])
    assert again == inventory
    assert again.as_dict() == plain
    check_plans(inventory, random.Random(number))
    for model in plain["vllm_models"]:
        if not model["start_command"]:
            Seen.models.setdefault(json.dumps({**model, "host_port": 0}, sort_keys=True), model)


def observation(chance: random.Random) -> Observation:
    """Any state that a server may be seen in."""
    state = chance.choice(
        [planning.ACTIVE, planning.SLEEPING, planning.SLEEPING, planning.LOADING, planning.STOPPED, planning.ERROR]
    )
    return Observation(
        state,
        level=chance.choice([None, 0, 1, 2]) if state == planning.SLEEPING else None,
        running=chance.choice([None, 0, 3]),
        waiting=chance.choice([None, 0, 1]),
        problem="it burns" if state == planning.ERROR else "",
        dead=state in (planning.ERROR, planning.LOADING) and chance.random() < 0.5,
        process=chance.choice([None, True, False]) if state == planning.ERROR else None,
    )


def holds(seen: Observation) -> bool:
    """Whether a server has GPU memory, or soon will."""
    if seen.state == planning.ERROR:
        return seen.dead and seen.process is not False
    return seen.state in (planning.ACTIVE, planning.LOADING) or seen.paused


def check_plans(inventory: Inventory, chance: random.Random) -> None:
    """The planner finds a safe way or says why there is none."""
    clean = {m.id: Observation(planning.STOPPED) for m in inventory.models}
    for target in inventory.enabled:
        for wanted in (planning.ACTIVE, planning.SLEEPING, planning.STOPPED):
            check_plan(inventory, clean, target, wanted, make_plan(inventory, clean, target, wanted, None))
            make_plan(inventory, clean, target, wanted, math.inf)
    observed = {m.id: observation(chance) for m in inventory.models}
    free = chance.choice([None, math.inf, 0.0, 1.0, 40.0, 200.0])
    for target in inventory.models:
        for wanted in (planning.ACTIVE, planning.SLEEPING, planning.STOPPED):
            try:
                plan = make_plan(inventory, observed, target, wanted, free)
            except Blocked as error:
                Seen.blocked += 1
                assert str(error)
            else:
                check_plan(inventory, observed, target, wanted, plan)


def check_plan(inventory: Inventory, observed: dict[str, Observation], target: Model, wanted: str, plan: Plan) -> None:
    """What is true of every plan."""
    Seen.plans += 1
    after = predict(observed, plan)
    conflicts = [(a, b) for a, b in itertools.combinations(inventory.enabled, 2) if a.conflicts_with(b)]

    def awake(seen: dict[str, Observation]) -> set[tuple[str, str]]:
        return {(a.id, b.id) for a, b in conflicts if seen[a.id].state == seen[b.id].state == planning.ACTIVE}

    assert awake(after) <= awake(observed), "the plan makes two models active that share a GPU"
    if wanted == planning.ACTIVE:
        assert after[target.id].state == planning.ACTIVE
        assert [pair for pair in awake(after) if target.id in pair] == []
    # One by one, as they may be done: nothing comes up while a server that is managed has its GPUs.
    now = dict(observed)
    ids_of = {m.id: m for m in inventory.models}
    for stage in plan.stages:
        before = dict(now)
        for lane in stage:
            for step in lane:
                model = ids_of[step.model]
                if step.action in (planning.WAKE, planning.START, planning.VERIFY):
                    holders = [o.id for o in inventory.conflicting(model) if not o.disabled and holds(before[o.id])]
                    assert holders == [], f"{step} in a stage that begins while its GPUs are taken"
                now = predict(now, Plan((((step,),),)))
    assert now == after
    disabled = {m.id for m in inventory.models if m.disabled} - {target.id}
    assert [step for step in plan.steps if step.model in disabled] == []
    # What is so already needs no plan, also where this very plan has brought it about.
    seen = observed[target.id]
    rivals = [observed[m.id] for m in inventory.conflicting(target)]
    alone = not any(holds(rival) or rival.state == planning.ERROR for rival in rivals)
    so = {
        planning.ACTIVE: seen.state == planning.ACTIVE and alone,
        planning.SLEEPING: seen.state == planning.SLEEPING and not seen.paused,
        planning.STOPPED: seen.state == planning.STOPPED,
    }
    if so[wanted]:
        assert plan.steps == ()
    assert make_plan(inventory, after, target, wanted, None).steps == ()


@settings(FUZZ, max_examples=JUNK)
@seed(SEED)
@given_values(
    values | st.lists(st.dictionaries(keys, values, max_size=6) | values, max_size=4),
    values | st.dictionaries(keys, values, max_size=4),
    st.integers(0, 2**32),
)
def test_junk(models: Any, switching: Any, number: int) -> None:
    check(models, switching, number)


@settings(FUZZ, max_examples=HALF_RIGHT)
@seed(SEED)
@given_values(half_right(), st.integers(0, 2**32))
def test_inventories_that_are_nearly_right(variables: tuple[Any, Any], number: int) -> None:
    check(*variables, number)


# Hypothesis can't print it either. YAML has such numbers: the limit is for decimal ones.
ENDLESS = 16**5000


@pytest.mark.parametrize("key", sorted({*schema.MODEL_FIELDS, *schema.SWITCHING_FIELDS, "unknown"}))
def test_a_number_that_python_does_not_print(key: str) -> None:
    for number, value in enumerate(
        (ENDLESS, [ENDLESS], {"a": ENDLESS}, {"A": [ENDLESS]}, {ENDLESS: 1}, [{"body": ENDLESS}])
    ):
        check([{"id": "a", "model": "m", "host_port": 1, key: value}], {}, number)
        check([{"id": "a", "model": "m", "host_port": 1}], {key: value}, number)
    check([{"id": "a", "model": "m", "host_port": 1, ENDLESS: 1}], {ENDLESS: 1}, 0)


def test_the_fuzz_is_not_empty() -> None:
    assert Seen.examples >= 0.98 * (JUNK + HALF_RIGHT), "run the whole file"
    assert Seen.accepted > Seen.examples * 0.2
    assert Seen.plans > Seen.accepted
    assert 0 < Seen.blocked < Seen.plans


# Compose


def template(role: str, name: str, **variables: Any) -> str:
    """Return what a role would write."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLES / role / "templates"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    environment.filters.update({f"homegpt.vllm.{called}": function for called, function in FILTERS.items()})
    return environment.get_template(name).render(variables)


def config(folder: Path, models: list[dict[str, Any]], access: str, inline: bool) -> tuple[str, dict[str, Any]]:
    """What compose says against these models, and how it reads them: as the roles try or, else, as they write them."""
    shared = {
        "vllm_servers_gpu_access": access,
        "vllm_servers_image": "image:1",
        "vllm_servers_env": {"FOR_ALL": "a$b", "ALL_SECRET": "${c}"},
        "__vllm_servers_token_mark": "12345678",
        "__vllm_servers_mounted": {"volumes": ["/srv/models:/models:ro"], "named": []},
        "vllm_servers_network": "network",
        "vllm_servers_project_name": "p",
        "__vllm_servers_caches": {"/cache/huggingface": "/root/.cache/huggingface"},
        "__vllm_servers_models": models,
        "__vllm_servers_in_containers": models,
    }
    command = ["docker", "compose", "--project-directory", str(folder)]
    if inline:
        command += ["--env-file", "/dev/null", "--file", "-"]
        text = template("vllm_servers", "project.yml.j2", **shared)
    else:
        text = ""
        for model in models:
            said = template("vllm_servers", "compose-vllm.yml.j2", item=model["id"], **shared)
            (folder / f"compose-vllm-{model['id']}.yml").write_text(said, encoding="utf-8")
        stack = {
            "compose_stack_project_name": "p",
            "compose_stack_network": "network",
            "compose_stack_hf_token": "hf_$x",
            "__compose_stack_mounted": {"named": []},
            "compose_stack_env": shared["vllm_servers_env"],
            "compose_stack_open_webui_env": {},
            "__compose_stack_webui_key": "key",
            "__compose_stack_gateway_key": "key",
            "__compose_stack_containers": models,
            "__compose_stack_includes": [f"compose-vllm-{model['id']}.yml" for model in models],
        }
        for target, source in (("docker-compose.yml", "docker-compose.yml.j2"), (".env", "env.j2")):
            (folder / target).write_bytes(template("compose_stack", source, **stack).encode("utf-8"))
    answer = subprocess.run(
        [*command, "config", "--format", "json"],
        cwd=folder,
        input=text.encode("utf-8"),
        # A variable of whoever runs this would win over one in .env.
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        check=False,
        timeout=100,
    )
    if answer.returncode:
        return answer.stderr.decode("utf-8", "replace"), {}
    # It shows dollars as it wants them in a file.
    return "", json.loads(answer.stdout.decode("utf-8").replace("$$", "$"))["services"]


def differences(model: dict[str, Any], access: str, said: dict[str, Any]) -> Iterator[str]:
    """What compose has read otherwise than the inventory means it."""
    wanted = [word.plain for word in compose.serve_words(model)]
    if said["command"] != wanted:
        yield f"command {said['command']} and not {wanted}"
    # Not out of the code that is under test.
    names = list(dict.fromkeys([model["id"], *model["aliases"], model["model"]]))
    if said["command"][: len(names) + 2] != [model["model"], "--served-model-name", *names]:
        yield f"names {said['command']} and not {names}"
    for key, value in model["args"].items():
        if isinstance(value, str):
            name, dot, part = key.partition(".")
            if f"--{name.replace('_', '-')}{dot}{part}={value}" not in said["command"]:
                yield f"args.{key} in {said['command']}"
    environment = {"FOR_ALL": "a$b", "ALL_SECRET": "${c}", "VLLM_SERVER_DEV_MODE": "1", **model["env"]}
    for name, value in environment.items():
        if said["environment"].get(name) != value:
            yield f"env.{name} is {said['environment'].get(name)!r} and not {value!r}"
    for key, value in {
        "container_name": model["container_name"],
        "image": model["image"] or "image:1",
        "labels": {
            "homegpt.vllm.model": model["id"],
            "homegpt.vllm.network": "network",
            "homegpt.vllm.token": "12345678",
        },
        "restart": "no",
    }.items():
        if said[key] != value:
            yield f"{key} is {said[key]!r} and not {value!r}"
    port = said["ports"][0]
    if (port["host_ip"], port["published"], port["target"]) != ("127.0.0.1", str(model["host_port"]), model["port"]):
        yield f"ports {said['ports']}"
    if access == "nvidia":
        (device,) = said["deploy"]["resources"]["reservations"]["devices"]
        if device["device_ids"] != [str(gpu) for gpu in model["gpus"]]:
            yield f"GPUs {device}"


def problems(folder: Path, models: list[dict[str, Any]], access: str, inline: bool) -> Iterator[str]:
    """What is wrong with which of the models: those of a project that compose refuses are tried by halves."""
    refused, services = config(folder, models, access, inline)
    if refused and len(models) > 1:
        half = len(models) // 2
        found = [*problems(folder, models[:half], access, inline), *problems(folder, models[half:], access, inline)]
        yield from found or [f"together, and not alone: {refused}"]
        return
    for model in models:
        wrong = [refused] if refused else list(differences(model, access, services[model["container_name"]]))
        if wrong:
            yield "{} {} {}: {}".format(access, "inline" if inline else "files", json.dumps(model), "; ".join(wrong))


def projects(models: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The models in groups that can be one project: nothing in it is called alike."""
    groups: list[dict[str, dict[str, Any]]] = []
    for model in models:
        names = {model["id"], model["container_name"]}
        free = (group for group in groups if len(group) < 2 * PROJECT and not names & group.keys())
        group = next(free, None)
        if group is None:
            groups.append(group := {})
        # A port decides about nothing but what secrets are called.
        numbered = {**model, "host_port": 10000 + len(group)}
        group.update(dict.fromkeys(names, numbered))
    for group in groups:
        yield list({model["host_port"]: model for model in group.values()}.values())


def refusal(model: dict[str, Any]) -> str:
    """What the roles say themselves before compose is asked, naming the model; they check what only containers have."""
    try:
        compose_service(model, "nvidia", "image:1")
    except AnsibleFilterError as error:
        assert str(error).startswith(f"{model['id']}: args."), error
        return str(error)
    return ""


def test_compose_reads_what_the_inventory_means(tmp_path: Path) -> None:
    found = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    )
    if not found or found.returncode != 0:
        pytest.skip("docker compose is not installed here: no engine is needed, its command line is")
    assert Seen.models, "run the whole file: the models are those that the tests before have accepted"
    models = [model for model in Seen.models.values() if not refusal(model)]
    random.Random(SEED).shuffle(models)
    wrong: list[str] = []
    for number, group in enumerate(projects(models[:COMPOSED])):
        folder = tmp_path / str(number)
        folder.mkdir()
        access = compose.GPU_ACCESS[number % len(compose.GPU_ACCESS)]
        wrong += problems(folder, group, access, inline=False)
        wrong += problems(folder, group, access, inline=True)
        Seen.composed += len(group)
    # The shortest say most.
    assert not wrong, f"{len(wrong)} of {Seen.composed}:\n" + "\n".join(sorted(wrong, key=len)[:10])
    assert Seen.composed >= 0.75 * COMPOSED
