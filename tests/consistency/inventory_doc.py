# SPDX-License-Identifier: MIT
"""docs/inventory.md: every key of the model inventory and every variable that the roles share.

What a key means stands beside its field in `switching/schema.py`, its
default is the field's, and what it takes is what its own check says about a value that is wrong. The variables'
defaults are those of the roles.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import inventory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import InventoryError

from tests.consistency import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/inventory.md"

# Defaults that another key gives, which `parse` fills in; a test asks it.
DERIVED = {
    "name": "`id`",
    "container_name": "`vllm-ID`",
    "weights_gb": "`gpu_memory_gb`",
    "ready_completion": "that of `vllm_switching`",
    "kind": "what its `args` say, else `auto`",
    "canary": "that of `vllm_switching`",
}
# Wrong in every way that a check tells apart: nothing that a key takes, too small, too odd.
WRONG: tuple[Any, ...] = (..., -1, "?!", ["?!"], {"?!": 1})
MINIMAL = {"id": "a", "model": "m", "host_port": 1}

# What the roles and playbooks take from the inventory under one name for all of them.
VARIABLES = {
    "vllm_models": "the models, see above",
    "vllm_switching": "the settings of the host, see above",
    "vllm_active_model": "the model that is to be active on the host: `bootstrap` loads it last, `site` switches to it "
    "if it is asleep, and a switch without `-e model=` selects it",
    "vllm_image": "the image of the models' containers",
    "vllm_gpu_access": "how containers get their GPUs: `nvidia`, `cdi`, `amd`, or `none`",
    "vllm_hf_token": "the token for Hugging Face; keep it in a vault. Containers get it as a compose secret: it is in "
    "no `docker inspect` and no log. If it changes, `site` recreates the containers",
    "vllm_cache_dir": "weights and compiled kernels, in `huggingface`, `vllm`, `triton`, `flashinfer`; see "
    "[Where the weights are](#where-the-weights-are)",
    "vllm_env": "environment variables of every model's container",
    "vllm_volumes": "additional volumes of every model's container, as `SOURCE:TARGET[:ro]`",
    "vllm_stack_dir": "the directory of the compose project",
    "vllm_docker_host": "whether `site` sets up Docker",
    "open_webui_enabled": "whether to deploy Open WebUI",
    "open_webui_address": "the address that it listens on. The first person who opens it becomes its administrator",
    "open_webui_port": "its port",
    "open_webui_env": "environment variables of its container; they override the values that the role sets",
    "open_webui_models_for_all": "whether every account may use every model; else an administrator shares each model",
    "model_manager_enabled": "whether to deploy the [model manager](manager.md)",
    "model_manager_listen": "the IP address that it listens on",
    "model_manager_port": "its port",
    "model_manager_operator_tokens": "the bearer tokens that allow everything; keep them in a vault",
    "model_manager_reader_tokens": "the bearer tokens that only allow reading",
    "model_manager_settings": "its other settings",
    "model_gateway_enabled": "whether to deploy the [gateway](gateway.md); it needs the model manager",
    "model_gateway_listen": "the IP address that it listens on",
    "model_gateway_port": "its port",
    "model_gateway_api_keys": "the API keys of clients; keep them in a vault",
    "model_gateway_without_keys": "whether it may listen on a network without asking for a key",
    "model_gateway_allowed_hosts": "the names by which clients may call it without a key",
    "model_gateway_tls_certificate": "its certificate, as PEM text",
    "model_gateway_tls_key": "the key of its certificate, as PEM text; keep it in a vault",
    "model_gateway_settings": "its limits and other settings",
    "model_gateway_link_port": "the port of `127.0.0.1` on which the model manager listens for it",
    "model_gateway_hosts": "for a host without models: the hosts to whose gateways its own "
    "[routes](gateway.md#many-hosts-one-door)",
    "compose_stack_project_name": "the name of the compose project",
    "compose_stack_network": "its network",
    "compose_stack_unit_dir": "where units of systemd are written",
    "teardown_data": "whether `teardown` also removes the logs, the data of Open WebUI and the history of the manager",
    "teardown_caches": "whether `teardown` also removes the weights of the models in the inventory",
}
# An empty list in an expression is no value that they have.
WITHOUT_DEFAULT = {"vllm_models": "required", "vllm_active_model": ""}
# Read from a default such as `{{ vllm_image | default('...') }}`, or a default under the variable's own name.
SHARED = re.compile(r"\b((?:vllm|teardown|open_webui|compose_stack)_\w+) \| default\(([^()]*)\)")


def meanings(cls: type) -> dict[str, str]:
    """Return what stands below each field of a dataclass in its source, by the field's name."""
    (body,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def default(field: dataclasses.Field[Any]) -> str:
    """Return the default of a field as the page words it."""
    value = field.default_factory() if callable(field.default_factory) else field.default
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return ""
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`"


def mistake(table: str, key: str, value: object) -> str:
    """Return what is said about one key with one value; nothing where it is right."""
    try:
        if table == "vllm_models":
            inventory.parse([{**MINIMAL, key: value}])
        else:
            inventory.parse([MINIMAL], {key: value})
    except InventoryError as error:
        told = str(error)
        where = re.search(rf": {key}(?P<at>\[0\]|\.\S+?)? must be (?P<what>.*?)(?:, is |$)", told, re.MULTILINE)
        if where:
            return (":" if where["at"] else "") + where["what"]
    return ""


def takes(table: str, key: str) -> str:
    """Return what a key takes, in the words of its check."""
    told = [text for text in dict.fromkeys(mistake(table, key, value) for value in WRONG) if text]
    # Of what is said of the value itself the last is the narrowest: "a number", then "a number of at least 0".
    whole = [text for text in told if not text.startswith(":")]
    if not whole:
        return "a call, see below"
    words = f"{whole[0]}, {whole[-1]}" if whole[-1].startswith("greater") else whole[-1]
    items = [text[1:] for text in told if text.startswith(":")]
    return words + (f"; each {items[0]}" if items and items[0].startswith("one of") else "")


def keys(table: str, cls: type, derived: dict[str, str]) -> str:
    """Return the table of a dataclass's keys."""
    told = meanings(cls)
    rows = []
    for field in dataclasses.fields(cls):
        rows.append(
            [f"`{field.name}`", takes(table, field.name), derived.get(field.name, default(field)), told[field.name]]
        )
    return blocks.table(["key", "takes", "default", "meaning"], rows)


def requests() -> str:
    """Return the table of the keys of a call."""
    told = {**meanings(inventory.Request), **meanings(inventory.StateRequest)}
    rows = []
    for field in dataclasses.fields(inventory.StateRequest):
        base = next((each for each in dataclasses.fields(inventory.Request) if each.name == field.name), None)
        words = "required in a `state_request`" if base is None else default(base)
        if base is not None and base.default != field.default:
            words += f", of a `state_request` {default(field)}"
        rows.append([f"`{field.name}`", "" if words == "`null`" else words, told[field.name]])
    return blocks.table(["key", "default", "meaning"], rows)


def shared() -> dict[str, str]:
    """Return the default of every variable that more than one role or playbook may read, from where it is read."""
    found: dict[str, str] = {}
    for path in (*sorted(ROOT.glob("roles/*/defaults/main.yml")), *sorted(ROOT.glob("playbooks/*.yml"))):
        for name, value in SHARED.findall(path.read_text(encoding="utf-8")):
            if value != "omit":
                # The second argument of `default` is none of the value's.
                found.setdefault(name, value.removesuffix(", true").strip("'\""))
    return found


def variables() -> str:
    """Return the table of the variables of a host."""
    defaults = shared()
    for path in sorted(ROOT.glob("roles/*/defaults/main.yml")):
        # Under its own name a default is not an expression.
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
        defaults.update(
            {name: str(value) for name, value in own.items() if name in VARIABLES and "{{" not in str(value)}
        )
    rows = []
    for name, meaning in VARIABLES.items():
        value = defaults.get(name, "")
        value = value.lower() if value in ("True", "False") else value
        words = WITHOUT_DEFAULT.get(name, f"`{value}`" if value else "")
        rows.append([f"`{name}`", words, meaning])
    return blocks.table(["variable", "default", "meaning"], rows)


def rendered() -> dict[str, str]:
    """Return the blocks of the page."""
    return {
        "models": keys("vllm_models", inventory.Model, DERIVED),
        "switching": keys("vllm_switching", inventory.Switching, {}),
        "requests": requests(),
        "variables": variables(),
    }
