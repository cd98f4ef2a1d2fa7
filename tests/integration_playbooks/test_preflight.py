# SPDX-License-Identifier: MIT
"""Every mistake that can be known before a host is touched: named by one line of one list, and nothing is touched.

One table for all playbooks. What only a host can tell is in test_refusals.py.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.playbooklib import Ansible, Host, Run, served
from tests.serverlib import ROOT, Server, start_standin

# Those that need nothing but hosts.
TARGETED = ("site", "bootstrap", "prefetch", "status", "teardown", "warm", "roll_back")
IDS = "the models are: a, b, off (disabled)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Something that would notice a request: the port of model `a` of every row."""
    server = start_standin("org/a", names=["a"], log=tmp_path_factory.mktemp("server") / "a.log")
    yield server
    server.stop()


@dataclass(frozen=True)
class Row:
    """A mistake: what differs from an inventory that is right, and the line that names it."""

    name: str
    playbook: str
    line: str
    arguments: tuple[str, ...] = ()
    model: dict[str, Any] = field(default_factory=dict)  # of b
    variables: dict[str, Any] = field(default_factory=dict)  # of the host
    hosts: int = 1
    versions: bool = False  # with every supported ansible-core


def extra(**variables: object) -> tuple[str, ...]:
    return ("-e", json.dumps(variables))


A = "vllm_models[0] (a)"
B = "vllm_models[1] (b)"
UNDEFINED = "refers to hf_tokn, which is not defined"
QUOTE = ": put it in quotes"
GATEWAY = {"model_manager_enabled": True, "model_gateway_enabled": True}
FALSE = "is a boolean (False, as YAML reads a bare off or no)"
TABLE = [
    # Which model.
    Row("unknown", "switch", f"host: model nope is not declared; {IDS}", extra(model="nope"), versions=True),
    Row("near", "switch", f"host: model of is not declared; did you mean off? {IDS}", extra(model="of")),
    Row(
        "none",
        "switch",
        f"host: no model given: set -e model=ID or vllm_active_model; {IDS}",
        versions=True,
    ),
    Row(
        "disabled",
        "switch",
        "host: model off is disabled: set its startup_mode to sleep or active in vllm_models to use it",
        extra(model="off"),
    ),
    Row(
        "two of one GPU",
        "switch",
        "host: a, b share GPUs, directly or through another model, and can't be switched in parallel: "
        "switch them one after the other",
        extra(model="a,b"),
    ),
    Row("none to read", "warm", f"host: no model given: set -e model=ID or vllm_active_model; {IDS}"),
    Row("unknown to read", "warm", f"host: model c is not declared; {IDS}", extra(model="c")),
    Row("a number", "switch", "host: model must be the name of a model, or a list of several, is 20", extra(model=20)),
    Row(
        "wanted unknown",
        "site",
        f"host: vllm_active_model: model c is not declared; {IDS}",
        variables={"vllm_active_model": "c"},
    ),
    Row(
        "wanted two",
        "bootstrap",
        "host: vllm_active_model: a and b share a GPU, so only one can be active",
        variables={"vllm_active_model": ["a", "b"]},
    ),
    # Which hosts.
    Row(
        "group",
        "switch",
        "no host matches typo (the groups are: vllm_hosts): put the GPU hosts into the group vllm_hosts, or name "
        "another host or group with -e target=NAME",
        extra(model="a", target="typo"),
        versions=True,
    ),
    *(
        Row(
            f"group of {playbook}",
            playbook,
            "no host matches vllm_host (did you mean vllm_hosts? the groups are: vllm_hosts): put the GPU hosts into "
            "the group vllm_hosts, or name another host or group with -e target=NAME",
            extra(target="vllm_host"),
        )
        for playbook in TARGETED
    ),
    Row(
        "part of a target",
        "switch",
        "target host,hots: there is no host or group hots; did you mean host?",
        extra(model="a", target="host,hots"),
    ),
    Row("target undefined", "status", "target refers to nobody, which is not defined", extra(target="{{ nobody }}")),
    Row(
        "limit",
        "switch",
        "--limit host1 leaves no host of host0, which has: host0",
        (*extra(model="a", target="host0"), "--limit", "host1"),
        hosts=2,
        versions=True,
    ),
    # Names and references.
    Row(
        "token", "site", f"host: vllm_hf_token {UNDEFINED}", variables={"vllm_hf_token": "{{ hf_tokn }}"}, versions=True
    ),
    Row(
        "token, in a switch",
        "switch",
        f"host: vllm_hf_token {UNDEFINED}; did you mean hf_token?",
        extra(model="a"),
        variables={"vllm_hf_token": "{{ hf_tokn }}", "hf_token": "hidden"},
    ),
    Row(
        "of a model",
        "bootstrap",
        f"host: vllm_models[1].env.HF_HOME {UNDEFINED}",
        model={"env": {"HF_HOME": "{{ hf_tokn }}/x"}},
    ),
    Row(
        "by another variable",
        "status",
        f"host: vllm_models[1].model {UNDEFINED}",
        model={"model": "{{ chosen }}"},
        variables={"chosen": "{{ hf_tokn }}"},
        versions=True,
    ),
    Row("of a role", "teardown", f"host: open_webui_port {UNDEFINED}", variables={"open_webui_port": "{{ hf_tokn }}"}),
    Row(
        "settings",
        "roll_back",
        f"host: vllm_switching.max_retries {UNDEFINED}",
        variables={"vllm_switching": {"max_retries": "{{ hf_tokn }}"}},
    ),
    Row(
        "a key that is not there",
        "prefetch",
        "host: vllm_image refers to vllm, which its object does not have",
        variables={"vllm_image": "{{ images.vllm }}", "images": {}},
        versions=True,
    ),
    Row(
        "itself",
        "status",
        "host: vllm_stack_dir refers to itself",
        variables={"vllm_stack_dir": "{{ vllm_stack_dir }}"},
    ),
    Row(
        "slip",
        "site",
        "host: there is no variable vllm_hf_tokn; did you mean vllm_hf_token?",
        variables={"vllm_hf_tokn": "x"},
    ),
    Row(
        "slip of a role",
        "site",
        "host: there is no variable open_webui_prt; did you mean open_webui_port?",
        variables={"open_webui_prt": 3001},
    ),
    Row("slip of the job", "status", "there is no variable targt; did you mean target?", extra(targt="host")),
    # The models.
    Row("port", "status", f"host: {B}: host_port PORT is taken by a", model={"host_port": "PORT"}),
    Row("required", "site", f"host: {B}: model is required", model={"model": None}, versions=True),
    Row("key", "teardown", f"host: {B}: unknown key sleep_levle; did you mean sleep_level?", model={"sleep_levle": 2}),
    Row(
        "off",
        "site",
        f"host: {B}: startup_mode must be one of active, sleep, disabled, {FALSE}",
        model={"startup_mode": False},
    ),
    Row("no", "site", f"host: {B}: name must be text, {FALSE}{QUOTE}", model={"name": False}),
    Row(
        "a number as a name", "site", f"host: vllm_models[1]: id must be text, is a number (7){QUOTE}", model={"id": 7}
    ),
    Row(
        "setting",
        "switch",
        "host: vllm_switching: unknown key max_retrys; did you mean max_retries?",
        extra(model="a"),
        variables={"vllm_switching": {"max_retrys": 3}},
    ),
    Row(
        "no models",
        "prefetch",
        "host: vllm_models is not set: is the file that sets it, such as group_vars/vllm_hosts.yml, beside the "
        "inventory?",
        variables={"vllm_models": None},
    ),
    Row(
        "empty models",
        "status",
        "host: vllm_models is empty: declare at least one model",
        variables={"vllm_models": []},
    ),
    Row(
        "many hosts",
        "status",
        "all 5 hosts: vllm_models is empty: declare at least one model",
        variables={"vllm_models": []},
        hosts=5,
    ),
    Row(
        "a path",
        "site",
        "host: b: model /srv/models/b is a path that its container can't see: mount the folder (vllm_volumes: "
        "['/srv/models:/models:ro'], then model: /models/...), or give the model an image that has it",
        model={"model": "/srv/models/b"},
    ),
    Row(
        "the host's path",
        "bootstrap",
        "host: b: model /srv/models/b is a path of the host; its container has it as /models/b",
        model={"model": "/srv/models/b"},
        variables={"vllm_volumes": ["/srv/models:/models:ro"]},
    ),
    # Ports and names that are taken.
    Row(
        "the web interface's port",
        "site",
        "host: b: host_port 3000 is Open WebUI's: choose another, or another open_webui_port",
        model={"host_port": 3000},
    ),
    Row(
        "the manager's port",
        "status",
        "host: b: host_port 9000 is the manager's: choose another",
        model={"host_port": 9000},
    ),
    Row(
        "both",
        "site",
        "host: open_webui_port 9000 is the manager's: choose another",
        variables={"open_webui_port": 9000},
    ),
    Row(
        "the manager's other port",
        "status",
        "host: b: host_port 9100 is the manager's: choose another",
        model={"host_port": 9100},
        variables={"model_manager_port": 9100},
    ),
    Row(
        "a short token",
        "site",
        "host: model_manager_reader_tokens[1] must have at least 16 characters, no space, and only ASCII: make one "
        "with `openssl rand -hex 32`",
        variables={"model_manager_reader_tokens": ["0123456789abcdef", "0123456789 abcdef"]},
    ),
    Row(
        "a token that is no list",
        "site",
        "host: model_manager_operator_tokens must be a list: write it as [TOKEN]",
        variables={"model_manager_operator_tokens": "0123456789abcdef"},
    ),
    *(
        Row(
            f"a token with {mark} in it, in {playbook}",
            playbook,
            "host: model_manager_operator_tokens[0] can't be evaluated (the error is not shown because the name looks "
            "secret)",
            variables={"model_manager_operator_tokens": [f"0123456789abcdef{mark}x"]},
            versions=True,
        )
        for mark, playbook in (("{%", "site"), ("{{", "status"), ("{#", "status"))
    ),
    Row(
        "a setting with a variable of its own",
        "bootstrap",
        "host: model_manager_settings.port has a variable of its own: set model_manager_port instead",
        variables={"model_manager_settings": {"port": 9001, "policy": "batched"}},
    ),
    Row(
        "the gateway without the manager",
        "site",
        "host: model_gateway_enabled needs the model manager, which switches for it: set model_manager_enabled: true, "
        "or model_gateway_enabled: false",
        variables={"model_gateway_enabled": True},
    ),
    Row(
        "the gateway's port",
        "site",
        "host: b: host_port 8000 is the gateway's: choose another, or another model_gateway_port",
        model={"host_port": 8000},
        variables=GATEWAY,
    ),
    Row(
        "its other port",
        "status",
        "host: b: host_port 9001 is the gateway's to the manager: choose another, or another model_gateway_link_port",
        model={"host_port": 9001},
        variables=GATEWAY,
    ),
    Row(
        "the gateway's port and the web interface's",
        "site",
        "host: open_webui_port 8000 is the gateway's: choose another",
        variables={**GATEWAY, "open_webui_port": 8000},
    ),
    Row(
        "the gateway's container",
        "site",
        "host: b: container_name model-gateway is the gateway's: choose another, or another "
        "model_gateway_container_name",
        model={"container_name": "model-gateway"},
        variables=GATEWAY,
    ),
    Row(
        "a key of the gateway",
        "site",
        "host: model_gateway_api_keys[0].key must have at least 16 characters, no space, and only ASCII: make one with "
        "`openssl rand -hex 32`",
        variables={**GATEWAY, "model_gateway_api_keys": [{"name": "alice", "key": "short"}]},
    ),
    Row(
        "a model of a key of the gateway",
        "site",
        "host: model_gateway_api_keys[0].models: there is no model zz; the models are: a, b, off",
        variables={**GATEWAY, "model_gateway_api_keys": [{"name": "alice", "key": "k" * 16, "models": ["b", "zz"]}]},
    ),
    Row(
        "a model of a long name of a key of the gateway",
        "site",
        "host: model_gateway_api_keys[0].models: there is no model qwen3-32b-wqa; did you mean qwen3-32b-awq?",
        model={"id": "qwen3-32b-awq"},
        variables={
            **GATEWAY,
            "model_gateway_api_keys": [{"name": "alice", "key": "k" * 16, "models": ["qwen3-32b-wqa"]}],
        },
    ),
    Row(
        "a gateway for everybody",
        "site",
        "host: model_gateway_listen 0.0.0.0 lets everybody on the network use the models: set model_gateway_api_keys, "
        "or model_gateway_without_keys: true if that is what you want",
        variables={**GATEWAY, "model_gateway_listen": "0.0.0.0"},
    ),
    Row(
        "the web interface's name",
        "site",
        "host: b: container_name open-webui is Open WebUI's: choose another, or another open_webui_container_name",
        model={"container_name": "open-webui"},
    ),
    Row(
        "an address that is none",
        "site",
        "host: open_webui_env.OPENAI_API_BASE_URLS contains an empty entry, which Open WebUI replaces by "
        "api.openai.com, with the key at that place: remove it with its semicolon, or write https://api.openai.com/v1",
        variables={"open_webui_env": {"OPENAI_API_BASE_URLS": "http://vllm-b:8000/v1;"}},
    ),
    Row(
        "a name in the shared environment",
        "site",
        "host: vllm_env.my-var is not a valid name of an environment variable: use letters, digits and underscores, "
        "and no digit first",
        variables={"vllm_env": {"my-var": 1}},
    ),
    Row(
        "a dash in a list",
        "site",
        "host: b: args.lora_modules[0] begins with a dash, which vLLM parses as another option: correct or remove it",
        model={"args": {"lora_modules": ["-x"]}},
    ),
    Row(
        "two keys in one",
        "bootstrap",
        "host: b: Open WebUI treats a semicolon as the end of a key: use an API key without one",
        model={"args": {"api_key": "key-one;key-two"}},
    ),
    # The roles' variables.
    Row(
        "whole number",
        "site",
        "host: open_webui_port must be a whole number, is 'http'",
        variables={"open_webui_port": "http"},
    ),
    Row(
        "choice",
        "site",
        "host: vllm_gpu_access must be one of nvidia, cdi, amd, none, is nvdia",
        variables={"vllm_gpu_access": "nvdia"},
        versions=True,
    ),
    Row(
        "truth",
        "site",
        "host: vllm_docker_host must be true or false, is 'ture'",
        variables={"vllm_docker_host": "ture"},
    ),
    Row(
        "list", "prefetch", "host: vllm_volumes must be a list, is a dictionary", variables={"vllm_volumes": {"a": "b"}}
    ),
    Row("text", "teardown", "host: vllm_stack_dir must be text, is a list", variables={"vllm_stack_dir": ["/opt"]}),
    Row("data", "teardown", "host: teardown_data must be true or false, is 'ture'", extra(teardown_data="ture")),
    # A rollout.
    Row(
        "waves",
        "switch",
        "switch_waves: '150%' is neither a number of hosts nor a percentage of them: give a list such as 1,25%,100%",
        extra(model="a", switch_waves="1,150%"),
        versions=True,
    ),
    Row("keep", "switch", "switch_keep: 'one' is not a whole number of 0 or more", extra(model="a", switch_keep="one")),
    Row(
        "on stop",
        "switch",
        "switch_on_stop: 'rollback' is neither roll_back nor keep",
        extra(model="a", switch_on_stop="rollback"),
    ),
    Row("time", "roll_back", "switch_timeout: 'soon' is not a whole number of 1 or more", extra(switch_timeout="soon")),
    Row(
        "canary",
        "switch",
        "host: record_canary must be true or false, is 'ture'",
        extra(model="a", record_canary="ture"),
    ),
]


def play(row: Row, server: Server, ansible_playbook: str, folder: Path) -> tuple[Run, list[Host]]:
    """The playbook with an inventory that has just this mistake."""

    def ported(text: Any) -> Any:
        return server.port if text == "PORT" else text

    hosts = []
    for number in range(row.hosts):
        b = {"id": "b", "model": "org/b", "host_port": 8002, **{key: ported(value) for key, value in row.model.items()}}
        off = {"id": "off", "model": "org/off", "host_port": 8003, "startup_mode": "disabled"}
        host = Host(folder, [served(server, "a"), b, off], name="host" if row.hosts == 1 else f"host{number}")
        variables = {key: value for key, value in {**host.variables(), **row.variables}.items() if value is not None}
        host.variables = functools.partial(dict, variables)  # type: ignore[method-assign]
        hosts.append(host)
    return Ansible(ansible_playbook, folder, hosts).play(row.playbook, *row.arguments), hosts


def refused(run: Run) -> list[str]:
    """The mistakes, when nothing else was said or done."""
    assert run.output.count("\n") <= 25, run.output
    assert "[ERROR]" not in run.output, run.output
    assert "Finalization" not in run.output, run.output
    return run.mistakes


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.name.replace(" ", "_"), marks=[pytest.mark.versions] * row.versions) for row in TABLE],
)
def test_a_mistake_is_named_before_anything_is_touched(
    row: Row, server: Server, ansible_playbook: str, tmp_path: Path
) -> None:
    mark = server.mark()
    run, hosts = play(row, server, ansible_playbook, tmp_path)
    line = row.line.replace("PORT", str(server.port))
    assert refused(run) == [line]
    assert run.output.count(json.dumps(line)) == 1
    assert server.accesses(since=mark) == []
    assert not any(host.stack.exists() for host in hosts)


BROKEN: list[dict[str, Any]] = [
    {"id": "one", "model": "org/one", "host_port": 8001, "startup_mode": "active"},
    {"id": "two", "model": "org/two", "host_port": 8001, "startup_mode": "active"},
    {"id": "three", "host_port": 8003, "sleep_levle": 2},
    {"id": "four", "model": "org/four", "host_port": 8004, "sleep_requests": [{"endpoint": "/sleep"}]},
]
MISTAKES = [
    "vllm_switching: request_timeout_seconds must be greater than 0, is 0",
    "vllm_models[1] (two): host_port 8001 is taken by one",
    "vllm_models[1] (two): startup_mode active is taken by one: both use GPU 0 and only one of them can be awake; "
    "set one to sleep",
    "vllm_models[2] (three): unknown key sleep_levle; did you mean sleep_level?",
    "vllm_models[2] (three): model is required",
    "vllm_models[3] (four): sleep_requests requires wake_requests: set both lists or neither",
]


@pytest.mark.versions
@pytest.mark.parametrize("playbook", ["bootstrap", "switch"])
def test_all_mistakes_of_an_inventory_at_once(ansible_playbook: str, tmp_path: Path, playbook: str) -> None:
    host = Host(tmp_path, BROKEN, {"request_timeout_seconds": 0})
    run = Ansible(ansible_playbook, tmp_path, [host]).play(playbook, "-e", "model=one", "-e", "targt=x")
    first = "there is no variable targt; did you mean target?"
    assert sorted(refused(run)) == sorted([first, *(f"host: {mistake}" for mistake in MISTAKES)])
    assert not host.stack.exists()


def test_a_slip_in_the_inventory_that_people_copy(ansible_playbook: str, tmp_path: Path) -> None:
    ansible = Ansible(ansible_playbook, tmp_path, [])
    ansible.inventory = ROOT / "inventory/homegpt"
    four = "qwen3-vl-30b-a3b, qwen3-vl-32b, qwen3-next-80b-a3b-thinking (disabled), gpt-oss-20b"
    for more in ((), ("--limit", "gpu1")):
        assert refused(ansible.play("switch", "-e", "model=gpt-oss-20", *more)) == [
            f"gpu1: model gpt-oss-20 is not declared; did you mean gpt-oss-20b? the models are: {four}"
        ]


NO_HOSTS = (
    "no host matches vllm_hosts: the inventory has no hosts ({file} is missing, empty or can't be read): name yours "
    "with -i, such as -i inventory"
)
SECRET = "tok-9f83hidden"


def run_with(ansible_playbook: str, folder: Path, files: dict[str, str], playbook: str, *arguments: str) -> Run:
    """The playbook with an inventory of these files, in place of a generated one."""
    ansible = Ansible(ansible_playbook, folder, [])
    ansible.inventory = folder / "inventory" / "hosts.yml"
    for name, text in files.items():
        (folder / "inventory" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "inventory" / name).write_text(text, encoding="utf-8")
    return ansible.play(playbook, *arguments)


@pytest.mark.versions
@pytest.mark.parametrize("playbook", [*TARGETED, "switch"])
@pytest.mark.parametrize("files", [{}, {"hosts.yml": ""}], ids=["missing", "empty"])
def test_an_inventory_without_hosts(
    ansible_playbook: str, tmp_path: Path, files: dict[str, str], playbook: str
) -> None:
    run = run_with(ansible_playbook, tmp_path, files, playbook)
    assert refused(run) == [NO_HOSTS.format(file=tmp_path / "inventory/hosts.yml")]


@pytest.mark.versions
def test_a_limit_of_an_inventory_without_hosts(ansible_playbook: str, tmp_path: Path) -> None:
    """No play has a host then, not even localhost: the last thing that can fail is the first play's `hosts`."""
    run = run_with(ansible_playbook, tmp_path, {}, "switch", "-e", "model=a", "--limit", "host")
    assert run.status not in (0, 2)
    assert "the inventory has no hosts" in run.output
    assert "TASK" not in run.output


HOSTS = "vllm_hosts:\n  hosts:\n    gpu1:\n"


@pytest.mark.versions
@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            {"hosts.yml": "vllm_hosts:\n\thosts:\n\t\tgpu1:\n"},
            "no host matches vllm_hosts: {folder}/hosts.yml line 2 is indented with a tab, but YAML requires spaces",
        ),
        (
            {"hosts.yml": HOSTS, "group_vars/vllm_hosts.yml": "vllm_models:\n  - id: a\n\tmodel: org/a\n"},
            "gpu1: {folder}/group_vars/vllm_hosts.yml line 3 is indented with a tab, but YAML requires spaces",
        ),
    ],
    ids=["inventory", "variables"],
)
def test_a_tab(ansible_playbook: str, tmp_path: Path, files: dict[str, str], line: str) -> None:
    run = run_with(ansible_playbook, tmp_path, files, "site")
    assert run.mistakes == [line.format(folder=tmp_path / "inventory")]


def encrypted(ansible_playbook: str, text: str, password: Path) -> str:
    password.write_text("password\n", encoding="utf-8")
    vault = [str(Path(ansible_playbook).with_name("ansible-vault")), "encrypt", "--vault-password-file", str(password)]
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    return subprocess.run(vault, env=env, input=text, capture_output=True, text=True, check=True).stdout


@pytest.mark.versions
def test_a_vault_without_its_password(ansible_playbook: str, tmp_path: Path) -> None:
    text = encrypted(ansible_playbook, SECRET, tmp_path / "password")
    models = "vllm_models: [{id: a, model: org/a, host_port: 8001}]\n"
    value = f"{models}vllm_hf_token: !vault |\n  " + text.replace("\n", "\n  ")
    wrong = tmp_path / "wrong"
    wrong.write_text("other\n", encoding="utf-8")
    for arguments, why in (
        ((), "there is no vault password: give --ask-vault-pass or --vault-password-file"),
        (("--vault-password-file", str(wrong)), "none of the vault passwords matches"),
    ):
        run = run_with(
            ansible_playbook, tmp_path, {"hosts.yml": HOSTS, "group_vars/all.yml": value}, "site", *arguments
        )
        assert refused(run) == [f"gpu1: vllm_hf_token is encrypted, and {why}"]
    # The whole file.
    (tmp_path / "inventory/group_vars/all.yml").unlink()
    file = encrypted(ansible_playbook, f"{models}vllm_hf_token: {SECRET}\n", tmp_path / "password")
    run = run_with(ansible_playbook, tmp_path, {"hosts.yml": HOSTS, "group_vars/vllm_hosts.yml": file}, "switch")
    (line,) = refused(run)
    where = tmp_path / "inventory/group_vars/vllm_hosts.yml"
    assert (
        line
        == f"gpu1: {where} is encrypted, and there is no vault password: give --ask-vault-pass or --vault-password-file"
    )


def test_no_secret_is_shown(server: Server, ansible_playbook: str, tmp_path: Path) -> None:
    """Neither where it stands in another place too, nor where it is part of an expression."""
    row = Row(
        "",
        "site",
        "",
        ("-vvv",),
        model={"args": {"api_key": SECRET}, "sleep_level": SECRET},
        variables={"vllm_hf_token": f"{{{{ '{SECRET}' | no_such_filter }}}}"},
    )
    run, _hosts = play(row, server, ansible_playbook, tmp_path)
    why = "can't be evaluated (the error is not shown because the name looks secret)"
    assert run.mistakes == [
        f"host: vllm_hf_token {why}",
        f"host: {B}: sleep_level must be one of auto, 1, 2, stop, is ********",
    ]
    assert SECRET not in run.output


def test_the_table_is_whole() -> None:
    """No row twice, enough of them, and some for each playbook."""
    assert len({row.name for row in TABLE}) == len(TABLE) >= 40
    played = {row.playbook for row in TABLE}
    assert played == {file.stem for file in (ROOT / "playbooks").glob("*.yml")} - {"awx", "convert"}
