# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be known to be wrong before a host is touched: which hosts are meant, what their variables say. Pure."""

from __future__ import annotations

import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import redaction
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import InventoryError, SwitchingError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gpus import is_amd, is_mig
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import map_text
from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose, door, preflight_services, rollout, weights
from ansible_collections.homegpt.vllm.plugins.plugin_utils.placement import names_of, place

# The variables of the inventory that no role has in its name.
WIDE = (
    "vllm_models",
    "vllm_switching",
    "vllm_active_model",
    "vllm_stack_dir",
    "vllm_image",
    "vllm_gpu_access",
    "vllm_cache_dir",
    "vllm_volumes",
    "vllm_env",
    "vllm_hf_token",
    "vllm_docker_host",
)
_OF_THE_ROLLOUT = ("switch_waves", "switch_max_failures", "switch_keep", "switch_on_stop")
_ROLLOUT = (*_OF_THE_ROLLOUT, "switch_timeout")
# What a playbook is told by extra variables.
ASKED: dict[str, tuple[str, ...]] = {
    "site": ("target",),
    "bootstrap": ("target",),
    "prefetch": ("target",),
    "status": ("target",),
    "teardown": ("target", "teardown_data", "teardown_caches"),
    "switch": ("target", "model", "record_canary", "timeline", *_ROLLOUT),
    "warm": ("target", "model"),
    "roll_back": ("target", "timeline", "switch_waves", "switch_timeout"),
    "awx": ("target",),
    "convert": (
        "homegpt_config",
        "homegpt_compose",
        "llama_swap_config",
        "llama_swap_servers",
        "convert_env",
        "convert_variables",
        "dest",
        "force",
    ),
}
# The playbooks that go from wave to wave.
ROLLOUTS = ("switch", "roll_back")
# The roles that a playbook plays.
ROLES: dict[str, tuple[str, ...]] = {
    "site": ("docker_host", "vllm_servers", "open_webui", "compose_stack", "model_manager", "model_gateway"),
    "bootstrap": ("vllm_servers", "open_webui", "model_manager", "model_gateway"),
    "prefetch": ("vllm_servers",),
    "teardown": ("compose_stack", "vllm_servers", "open_webui", "model_gateway", "docker_host"),
    "awx": ("awx",),
}
ALL_ROLES = ("awx", "compose_stack", "docker_host", "model_gateway", "model_manager", "open_webui", "vllm_servers")
PREFIXES = (*(f"{role}_" for role in ALL_ROLES), "vllm_", "switch_", "teardown_")
BOOLEAN = ("record_canary", "teardown_data", "teardown_caches", "vllm_docker_host")
# The playbooks that write what the models' containers are, or fetch it.
_DEPLOYING = ("site", "bootstrap", "prefetch")
# The secrets of roles whose names do not sound so. A test compares them with the roles' argument specs.
_SECRETS = ("model_manager_operator_tokens", "model_manager_reader_tokens")
# Where a container has what the role mounts into every one.
MOUNTS = (*weights.CACHES.values(), "/logs")
Values = typing.Mapping[str, typing.Any]


class Host(typing.NamedTuple):
    """A host of the target: the values of its variables, and what is wrong with those that have none.

    C(behind): the variables of the hosts to which its gateway routes; None for one that the inventory does not have.
    """

    name: str
    values: Values
    mistakes: list[str]
    behind: typing.Mapping[str, Values | None] = {}


def own_names(playbook: str, names: typing.Iterable[str]) -> list[str]:
    """Those that are judged by what the playbook knows: not those of roles that it does not play."""
    others = tuple(f"{role}_" for role in ALL_ROLES if role not in ROLES.get(playbook, ()))
    return [name for name in names if not name.startswith(others)]


def check(playbook: str, hosts: typing.Sequence[Host], unreadable: typing.Sequence[tuple[str, str]] = ()) -> list[str]:
    """Every mistake of the hosts' variables, each once; C(unreadable): hosts whose variables can't be read, and why."""
    found = list(unreadable)
    inventories: dict[str, Inventory] = {}
    parsed: list[tuple[typing.Any, Inventory | InventoryError]] = []
    for host in hosts:
        found += [(host.name, mistake) for mistake in host.mistakes]
        is_door = door.is_door(host.values)
        inventory = None if is_door else _inventory(playbook, host, parsed)
        if is_door:
            wrong = door.mistakes(playbook, host.name, host.values, host.behind)
            found += [(host.name, mistake) for mistake in wrong]
        elif isinstance(inventory, list):
            found += [(host.name, mistake) for mistake in inventory]
        elif inventory is not None:
            inventories[host.name] = inventory
            found += [(host.name, mistake) for mistake in _own(playbook, host, inventory)]
        found += [(host.name, mistake) for mistake in _booleans(host.values)]
    ids = {model.id for inventory in inventories.values() for model in inventory.models}
    for host in hosts:
        if host.name in inventories:
            found += [(host.name, mistake) for mistake in preflight_services.unknown_models(host.values, ids)]
    mistakes = grouped(found, len(hosts) + len(unreadable))
    if not hosts:
        return mistakes
    if playbook in ROLLOUTS:
        mistakes = _rollout(playbook, hosts) + mistakes
    if playbook in ("switch", "warm"):
        mistakes += _model(playbook, hosts, inventories)
    if playbook == "awx":
        mistakes += _awx(hosts, inventories)
    return mistakes


def grouped(found: typing.Iterable[tuple[str, str]], total: int) -> list[str]:
    """Each mistake once, behind the hosts that have it."""
    hosts: dict[str, list[str]] = {}
    for host, mistake in found:
        owners = hosts.setdefault(mistake, [])
        if host not in owners:
            owners.append(host)
    return [f"{_hosts(owners, total)}: {mistake}" for mistake, owners in hosts.items()]


def is_secret(name: str) -> bool:
    """Whether the value of a variable is a secret, or may be."""
    return redaction.is_secret_name(name) or name in _SECRETS


def secrets_of(values: Values) -> set[str]:
    """The texts in the variables of a host that no message may show."""
    # It is the name of a key.
    given = {name: value for name, value in values.items() if name != "model_gateway_hosts_key"}
    keys = given.get("model_gateway_api_keys")
    if isinstance(keys, list):
        # All of an entry stands below a name that sounds secret, but messages need these.
        given["model_gateway_api_keys"] = [
            {field: value for field, value in entry.items() if field not in ("name", "models")}
            if isinstance(entry, dict)
            else entry
            for entry in keys
        ]
    return redaction.secrets_of(given, {"secret": [given.get(name) for name in _SECRETS]})


def masked(mistakes: typing.Iterable[str], secrets: typing.Iterable[str]) -> list[str]:
    """The mistakes without the secrets."""
    hidden = sorted({secret for secret in secrets if secret.strip()}, key=len, reverse=True)

    def mask(text: str) -> str:
        for secret in hidden:
            text = text.replace(secret, "********")
        return text

    return [mask(mistake) for mistake in mistakes]


def _hosts(names: typing.Sequence[str], total: int) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    if len(names) == total:
        return f"all {total} hosts"
    return f"{', '.join(names[:2])} and {len(names) - 2} more"


def _inventory(
    playbook: str, host: Host, parsed: list[tuple[typing.Any, Inventory | InventoryError]]
) -> Inventory | list[str] | None:
    """The host's model inventory or its mistakes; nothing where it can't be judged, or where there may be none."""
    if "vllm_models" not in host.values:
        if playbook == "awx" or any(mistake.startswith("vllm_models") for mistake in host.mistakes):
            return None
        return [
            "vllm_models is not set: is the file that sets it, such as group_vars/vllm_hosts.yml, beside the inventory?"
        ]
    if any(mistake.startswith("vllm_switching") for mistake in host.mistakes):
        return None
    given = (host.values["vllm_models"], host.values.get("vllm_switching"))
    # Most hosts of a fleet say the same.
    result = next((known for key, known in parsed if key == given), None)
    if result is None:
        try:
            result = parse(*given)
        except InventoryError as error:
            result = error
        parsed.append((given, result))
    return list(result.mistakes) if isinstance(result, InventoryError) else result


def _own(playbook: str, host: Host, inventory: Inventory) -> typing.Iterator[str]:
    """What is wrong with one host, whose inventory is right."""
    if host.values.get("vllm_active_model"):
        try:
            place(inventory, names_of(host.values["vllm_active_model"]))
        except SwitchingError as error:
            yield str(error)
    if any(not model.start_command for model in inventory.enabled):
        yield from _volumes(host.values)
    if playbook in _DEPLOYING:
        yield from _uncomposed(host, inventory)
    yield from preflight_services.mistakes(playbook, host.values, inventory)
    for model in inventory.models:
        yield from _foreign(model, host.values)
        if redaction.secrets_in_shell(model.entrypoint):
            yield (
                f"{model.id}: entrypoint contains a secret, and every user can read the compose file: put it "
                "into the model's env, or into vllm_hf_token, and name the variable"
            )
        if playbook in _DEPLOYING and not model.disabled:
            yield from _unseen(model, host.values)


def _uncomposed(host: Host, inventory: Inventory) -> typing.Iterator[str]:
    """What no compose file can say. It would fail a task that must not show why."""
    models = [model for model in inventory.as_dict()["vllm_models"] if not model["start_command"]]
    name = "vllm_servers_env" if "vllm_servers_env" in host.values else "vllm_env"
    # What the role's argument spec refuses is told already.
    if models and not any(mistake.startswith(f"{name} must be") for mistake in host.mistakes):
        yield from compose.shared_mistakes(host.values.get(name), name)
    for model in models:
        try:
            compose.service(model, "none", "")  # how GPUs are given is checked elsewhere
        except ValueError as error:
            yield str(error)


def _foreign(model: Model, values: Values) -> typing.Iterator[str]:
    """GPUs of another vendor than the one that the model's container is given."""
    access = values.get("vllm_servers_gpu_access", values.get("vllm_gpu_access", "nvidia"))
    foreign = {"nvidia": is_amd, "cdi": is_amd, "amd": is_mig}.get(str(access))
    lost = [gpu for gpu in model.gpus if foreign and foreign(gpu)]
    if lost and not model.start_command:
        vendor = "NVIDIA" if access == "amd" else "AMD"
        yield f"{model.id}: gpus names {lost[0]}, which only {vendor} GPUs have, but vllm_gpu_access is {access}"


def _volumes(values: Values) -> typing.Iterator[str]:
    """Volumes that compose would refuse in words of its own, in the midst of the run."""
    name = "vllm_servers_volumes" if "vllm_servers_volumes" in values else "vllm_volumes"
    given = values.get(name)
    for number, text in enumerate(given if isinstance(given, list) else []):
        problem = weights.volume_problem(text) if isinstance(text, str) else ""
        if problem:
            yield f"{name}[{number}]: {problem}"


def _unseen(model: Model, values: Values) -> typing.Iterator[str]:
    """What a model loads and its container does not have, or not for long."""
    if model.start_command:
        return
    volumes, env = (values.get(f"vllm_servers_{name}", values.get(f"vllm_{name}")) for name in ("volumes", "env"))
    texts = [volume for volume in volumes or [] if isinstance(volume, str)]
    given = weights.all_volumes("/cache", texts, "/stack", modelscope=True)
    environment = {**(env if isinstance(env, dict) else {}), **model.env}
    try:
        found = weights.weights_of(model.model, model.args, environment, given)
    except ValueError as error:
        yield f"{model.id}: {error}"
        return
    # Another image than vLLM's own may have it inside.
    image = model.image or values.get("vllm_servers_image") or values.get("vllm_image") or ""
    if image and "vllm/vllm-openai" not in str(image):
        return
    if found is not None and not found.folder.kept:
        yield (
            f"{model.id}: its weights would be in {found.cache.inside} of its container, which is not in a volume: "
            "they would be lost with the container. Mount a directory "
            f"(vllm_volumes: ['/srv/weights:{found.cache.inside}']), or remove the setting that puts them "
            "there (HF_HOME and the like in vllm_env or its env, args.download_dir)"
        )
    if not model.model.startswith(("/", "~", "./", "../")):
        return
    if any(weights.within(model.model, target) for target in (*MOUNTS, *(volume.target for volume in given))):
        return
    outside = next((volume for volume in given if volume.folder and weights.within(model.model, volume.folder)), None)
    if outside:
        inside = outside.target.rstrip("/") + model.model[len(outside.folder.rstrip("/")) :]
        yield f"{model.id}: model {model.model} is a path of the host; its container has it as {inside}"
    else:
        folder = model.model.rpartition("/")[0] or "/srv/models"
        yield (
            f"{model.id}: model {model.model} is a path that its container can't see: mount the folder "
            f"(vllm_volumes: ['{folder}:/models:ro'], then model: /models/...), or give the model an image that has it"
        )


def _booleans(values: Values) -> typing.Iterator[str]:
    for name in BOOLEAN:
        if name in values and str(values[name]).lower() not in (
            "true",
            "false",
            "yes",
            "no",
            "on",
            "off",
            "1",
            "0",
            "",
        ):
            yield f"{name} must be true or false, is {values[name]!r}"


def plan(playbook: str, hosts: typing.Sequence[Host]) -> rollout.Plan:
    """The plan of a rollout over hosts without mistakes."""
    names = [host.name for host in hosts]
    made = rollout.make_plan(names, rollout.read(_settings(playbook, hosts[0])))
    # A roll back goes on where some fail.
    return made._replace(max_failures=None) if playbook == "roll_back" else made


def _settings(playbook: str, host: Host) -> Values:
    """The settings of the rollout as one host has them."""
    return {
        name: map_text(host.values[name], str)
        for name in ASKED[playbook]
        if name in _ROLLOUT and host.values.get(name) is not None
    }


def _rollout(playbook: str, hosts: typing.Sequence[Host]) -> list[str]:
    """What is wrong with the settings of a rollout, which are the same for all hosts."""
    given = [_settings(playbook, host) for host in hosts]
    read, mistakes = [], []
    for settings in given:
        try:
            read.append(rollout.read(settings))
        except SwitchingError as error:
            mistakes += str(error).splitlines()
    if mistakes:
        return list(dict.fromkeys(mistakes))
    # The last play names its hosts, and a comma separates names there: a failure of such a host would be lost.
    found = [
        f"host {host.name!r}: a host name must not contain a comma: rename it" for host in hosts if "," in host.name
    ]
    for name in _OF_THE_ROLLOUT:
        field = name[len("switch_") :]
        other = next((i for i, one in enumerate(read) if getattr(one, field) != getattr(read[0], field)), None)
        if other is not None:
            told = [f"{given[i].get(name, 'not set')} on {hosts[i].name}" for i in (0, other)]
            found.append(
                f"{name} differs between hosts ({', '.join(told)}), but applies to the whole rollout: give it as an "
                f"extra variable (-e {name}=...)"
            )
    return found


def _model(playbook: str, hosts: typing.Sequence[Host], inventories: typing.Mapping[str, Inventory]) -> list[str]:
    """The model that a switch is to. It may be missing on some hosts of many, but not on all."""
    found: list[tuple[str, str]] = []
    right = False
    for host in hosts:
        if host.name not in inventories:
            right = True  # it can't be told
            continue
        inventory = inventories[host.name]
        asked = host.values.get("model")
        if not asked and host.values.get("vllm_active_model"):
            right = True  # looked at with the inventory
            continue
        try:
            names = names_of(asked or "", "model")
            if not names:
                raise SwitchingError(
                    "no model given: set -e model=ID or vllm_active_model; the models are: " + inventory.listed()
                )
            models = [inventory.find(name) for name in names]
            if playbook == "switch":
                inventory.check_apart(models)
            right = True
        except SwitchingError as error:
            found.append((host.name, str(error)))
    return [] if right else grouped(found, len(hosts))


def _awx(hosts: typing.Sequence[Host], inventories: typing.Mapping[str, Inventory]) -> list[str]:
    found = []
    if not hosts[0].values.get("awx_project_url"):
        found.append(
            "awx_project_url is not set: set it to the address of the repository from which AWX fetches the project"
        )
    if not any(model for inventory in inventories.values() for model in inventory.enabled):
        found.append("no model of the hosts is enabled: enable one (startup_mode)")
    return found
