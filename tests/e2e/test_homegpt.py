# SPDX-License-Identifier: MIT
"""The homeGPT inventory, as it is shipped, from a bare host to the whole stack and back to nothing.

Only what belongs to this machine is overridden, in the inventory's file of hosts: the image, the access to GPUs,
folders and the WebUI's port. The cases are one story and run in their order.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.processes import of_container

from tests.e2e.stack import PLAY, Stack, docker, inspect, wipe
from tests.playbooklib import Ansible, Run, complete
from tests.serverlib import ROOT, two_awake

pytestmark = pytest.mark.timeout(1800)
MANAGED = ("qwen3-vl-30b-a3b", "qwen3-vl-32b", "gpt-oss-20b")
DISABLED = "qwen3-next-80b-a3b-thinking"
DEFAULT = "qwen3-vl-30b-a3b"
FILES = {
    "docker-compose.yml": "0644",
    "compose-open-webui.yml": "0644",
    "vllm-logging.json": "0644",
    ".env": "0600",
    "models.json": "0600",
}


class HomeGpt(Stack):
    """The host of the shipped inventory, on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "inventory"
        shutil.copytree(ROOT / "inventory/homegpt", self.folder)
        models = yaml.safe_load(self.models_file.read_text(encoding="utf-8"))["vllm_models"]
        for model in models:
            model["container_name"] = f"vllm-{model['id']}"
        super().__init__(folder, models)
        variables = self.variables()
        del variables["vllm_models"], variables["vllm_switching"]
        hosts = {"vllm_hosts": {"hosts": {self.name: variables}}}
        (self.folder / "hosts.yml").write_text(json.dumps(hosts, indent=1), encoding="utf-8")

    @property
    def models_file(self) -> Path:
        """The file in which a user declares the models."""
        return self.folder / "group_vars/vllm_hosts.yml"

    def tree(self) -> dict[str, str]:
        """Return a sum of every file of the stack that a role wrote, and the mode of everything."""
        found = {}
        for path in sorted(self.stack.rglob("*")):
            name = str(path.relative_to(self.stack))
            if path.is_file() and not name.startswith(("logs/", "open-webui/", "run/")):
                found[name] = f"{path.stat().st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        return found

    def compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run docker compose as somebody logged in on the host does."""
        return subprocess.run(
            ["docker", "compose", *arguments], cwd=self.stack, capture_output=True, text=True, timeout=60, check=False
        )


class Story:
    """The host, and how the playbooks went that the cases share."""

    def __init__(self, stack: HomeGpt, ansible: Ansible) -> None:
        self.stack = stack
        self.ansible = ansible
        self.runs: dict[str, Run] = {}
        self.bare = False  # still, after the check mode's run

    def play(self, name: str, *arguments: str) -> Run:
        return self.ansible.play(name, *arguments, timeout=PLAY)


@pytest.fixture(scope="module")
def story(engine: None, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("homegpt")
    stack = HomeGpt(folder)
    busy = [str(model["container_name"]) for model in stack.models if inspect(str(model["container_name"]))]
    assert not busy, f"containers of these names are here already and are not the test's to remove: {busy}"
    ansible = Ansible(ansible_playbook, folder, [])
    ansible.inventory = stack.folder
    story = Story(stack, ansible)
    try:
        story.runs["bare site --check"] = story.play("site", "--check", "--diff")
        story.bare = not stack.stack.exists() and not stack.containers()
        story.runs["site"] = story.play("site")
        story.runs["bootstrap"] = story.play("bootstrap")
        yield story
    finally:
        stack.remove()
        wipe(folder / "inventory")


def test_check_mode_passes_on_a_bare_host_and_makes_nothing(story: Story) -> None:
    assert story.runs["bare site --check"].changed() > 0
    assert story.bare
    # What the real run changed afterwards, the check had predicted.
    assert story.runs["bare site --check"].changed() == story.runs["site"].changed()


def test_every_file_is_rendered(story: Story) -> None:
    assert story.runs["site"].changed() > 0
    stack = story.stack
    wanted = {**FILES, **{f"compose-vllm-{name}.yml": "0644" for name in (*MANAGED, DISABLED)}}
    found = {path.name: f"{path.stat().st_mode & 0o7777:04o}" for path in stack.stack.iterdir() if path.is_file()}
    assert found == wanted
    assert {path.name for path in (stack.stack / "logs").iterdir()} >= set(MANAGED)
    assert (stack.stack / "switching/__main__.py").exists()
    assert json.loads((stack.stack / "vllm-logging.json").read_text(encoding="utf-8"))["version"] == 1
    assert [model["id"] for model in json.loads((stack.stack / "models.json").read_text())["vllm_models"]] == [
        model["id"] for model in stack.models
    ]


def test_docker_compose_finds_no_fault(story: Story) -> None:
    checked = story.stack.compose("config", "--format", "json")
    # Neither a warning, as of a variable that is not set.
    assert (checked.returncode, checked.stderr) == (0, "")
    config = json.loads(checked.stdout)
    services = config["services"]
    assert set(services) == {f"vllm-{name}" for name in (*MANAGED, DISABLED)} | {"open-webui"}
    assert services["open-webui"]["restart"] == "always"
    for model in story.stack.models:
        service = services[str(model["container_name"])]
        (port,) = service["ports"]
        assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", str(model["host_port"]), 8000)
        assert service["restart"] == "no"
        assert service["ipc"] == "host"
        assert service["command"][0] == model["model"]
        assert f"--served-model-name {model['id']} {model['model']}" in " ".join(service["command"])
        assert "--tensor-parallel-size=2" in service["command"]
        assert "--enable-sleep-mode" in service["command"]
        assert service["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert service["environment"]["VLLM_SERVER_DEV_MODE"] == "1"
    assert [network["name"] for network in config["networks"].values()] == [story.stack.tag]


def test_the_models_sleep_but_the_default(story: Story) -> None:
    assert story.runs["bootstrap"].changed() > 0
    assert story.stack.states() == {**dict.fromkeys(MANAGED, "asleep"), DEFAULT: "awake", DISABLED: "stopped"}
    assert two_awake(story.stack.events()) == []
    assert [row[1:3] for row in story.play("status").table] == [
        [DEFAULT, "active"], ["qwen3-vl-32b", "sleeping"], [DISABLED, "disabled"], ["gpt-oss-20b", "sleeping"],
    ]  # fmt: skip
    assert complete(story.stack.port(DEFAULT), DEFAULT)["tokens"] == 16
    # The GPUs that the inventory says, as the servers themselves saw them.
    assert {tuple(event["gpus"]) for event in story.stack.events()} == {("0", "1")}


def test_the_webui_reaches_every_model_by_its_name(story: Story) -> None:
    container = inspect(story.stack.webui)
    env = dict(item.split("=", 1) for item in container["Config"]["Env"])
    urls = env["OPENAI_API_BASE_URLS"].split(";")
    assert urls == [f"http://vllm-{name}:8000/v1" for name in MANAGED]
    assert env["OPENAI_API_KEYS"].split(";") == ["dummy"] * len(urls)
    assert {f"vllm-{name}" for name in MANAGED} <= set(env["NO_PROXY"].split(","))
    # It starts before its first answer; the play does not wait for it.
    answer = requests.get(f"http://127.0.0.1:{story.stack.webui_port}/api/models", timeout=30)
    listed = json.dumps(answer.json())
    assert [name for name in MANAGED if f'"{name}"' not in listed] == []


def test_a_second_run_changes_nothing(story: Story) -> None:
    before = story.stack.tree(), story.stack.seen(story.stack.webui), len(story.stack.events())
    for name in ("site", "bootstrap"):
        for check in ((), ("--check", "--diff")):
            run = story.play(name, *check)
            assert run.changed() == 0, run.output
            assert run.diff == []
    assert (story.stack.tree(), story.stack.seen(story.stack.webui)) == before[:2]
    asked = story.stack.events()[before[2] :]
    assert {event["event"] for event in asked} <= {"request_start", "request_end"}


def test_check_and_diff_show_exactly_the_lines_that_an_edit_changes(story: Story) -> None:
    stack = story.stack
    before = stack.tree(), stack.seen(stack.webui), stack.states()
    text = stack.models_file.read_text(encoding="utf-8")
    assert text.count("max_model_len: 131072") == 1
    stack.models_file.write_text(text.replace("max_model_len: 131072", "max_model_len: 65536"), encoding="utf-8")
    try:
        run = story.play("site", "--check", "--diff")
    finally:
        stack.models_file.write_text(text, encoding="utf-8")
    assert run.changed() > 0
    assert [line[0] + line[1:].strip() for line in run.diff] == [
        '-- "--max-model-len=131072"',
        '+- "--max-model-len=65536"',
    ]
    assert (stack.tree(), stack.seen(stack.webui), stack.states()) == before


def addresses() -> list[str]:
    """Return this machine's addresses other than loopback's, the bridges' among them."""
    told = json.loads(subprocess.run(["ip", "-json", "address"], capture_output=True, check=True, timeout=20).stdout)
    every = [address["local"] for link in told for address in link["addr_info"] if address["scope"] == "global"]
    assert every
    return every


def answers(address: str, port: int) -> bool:
    """Whether something accepts a connection there."""
    try:
        with socket.create_connection((address, port), timeout=3):
            return True
    except OSError:
        return False


def test_no_model_answers_from_outside_loopback(story: Story) -> None:
    stack = story.stack
    (network,) = json.loads(docker("network", "inspect", stack.tag))
    gateway = network["IPAM"]["Config"][0]["Gateway"]
    outside = addresses()
    assert gateway in outside  # the bridge that all containers of the stack reach this machine by
    for model in stack.models:
        port = int(model["host_port"])
        assert answers("127.0.0.1", port) == (model["id"] in MANAGED)
        assert [address for address in outside if answers(address, port)] == []
        # Nor does the engine listen where the test has no address to try.
        bindings = inspect(str(model["container_name"])).get("HostConfig", {}).get("PortBindings", {})
        assert all(binding["HostIp"] == "127.0.0.1" for bound in bindings.values() for binding in bound)
    # The same way of asking does find a port that is open; the WebUI's is on all addresses of IPv4.
    # An address that is gone by now was that of another test's bridge.
    silent = [address for address in outside if ":" not in address and not answers(address, stack.webui_port)]
    assert [address for address in silent if address in addresses()] == []


def test_the_processes_of_a_container_are_those_that_docker_tells(story: Story) -> None:
    """Without `docker top`, which needs `ps` on the host."""
    for container in (str(one["container_name"]) for one in story.stack.models if one["id"] in MANAGED):
        for _attempt in range(10):
            before = of_container(str(inspect(container)["Id"]))
            top = docker("top", container, "-eo", "pid").split()[1:]
            assert top
            if sorted(before) == sorted(map(int, top)):
                break
            time.sleep(0.3)  # a health check has begun or ended between the two
        else:
            raise AssertionError((before, top))


def test_the_hosts_own_command_line_tells_and_switches(story: Story, ansible_playbook: str) -> None:
    python = str(Path(ansible_playbook).with_name("python"))

    def switching(*arguments: str) -> str:
        command = [python, "-m", "switching", *arguments]
        ended = subprocess.run(command, cwd=story.stack.stack, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    switching("switch", "gpt-oss-20b")
    assert story.stack.states()["gpt-oss-20b"] == "awake"
    told: dict[str, Any] = json.loads(switching("status", "--json"))
    assert told["models"]["gpt-oss-20b"]["state"] == "active"
    assert story.play("switch", "-e", f"model={DEFAULT}").changed() == 1
    assert story.stack.states()[DEFAULT] == "awake"


def test_teardown_leaves_caches_and_data_only(story: Story) -> None:
    stack = story.stack
    cache = Path(stack.variables()["vllm_cache_dir"])
    weights = cache / "huggingface/weights"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_text("gigabytes")
    chats = stack.stack / "open-webui/webui.db"
    chats.parent.mkdir(exist_ok=True)
    chats.write_text("chats")

    predicted = story.play("teardown", "--check")
    assert stack.states()[DEFAULT] == "awake"
    run = story.play("teardown")
    assert 0 < run.changed() == predicted.changed()
    assert stack.containers() == []
    assert [name for name in docker("ps", "--all", "--format", "{{.Names}}").split() if name.startswith("vllm-")] == []
    assert stack.tag not in docker("network", "ls", "--format", "{{.Name}}").split()
    # Logs are data too.
    assert {path.name for path in stack.stack.iterdir()} == {"logs", "open-webui"}
    assert chats.read_text() == "chats"
    assert weights.read_text() == "gigabytes"

    again = story.play("teardown")
    assert again.changed() == 0, again.output
