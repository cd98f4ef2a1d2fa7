# SPDX-License-Identifier: MIT
"""Three hosts behind one door, each a container with systemd and its own Docker engine, set up by the playbooks.

Debian 12 and 13 by turns, stand-ins in containers, the managers and the door's service under systemd. The cases build
on one another, in this order. Figures are printed: `pytest -s`.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.hosts import STACK, ContainerHost, archive, may_make_hosts, network
from tests.e2e.managed import service_wheels
from tests.e2e.stack import STANDIN_IMAGE, docker
from tests.e2e.test_gateway import IMAGE
from tests.firewall.box import until
from tests.gateway.crowd import FAILED, Client, Crowd
from tests.playbooklib import Ansible, Run
from tests.serverlib import two_awake

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.whole,
    pytest.mark.skipif(not may_make_hosts(), reason="only root can make roots of Debian: sudo make e2e"),
]

DOOR, MANAGER = "homegpt-door.service", "homegpt-manager.service"
KEY, DIRECT, TOKEN = "sk-of-the-door-0123456789", "sk-of-another-0123456789", "token-of-the-managers-0123456789"
SUITES = {"one": "bookworm", "two": "trixie", "three": "bookworm"}
PLACED = {"one": "a", "two": "a", "three": "b"}
PORT = 8000
PORTS = {"a": 8101, "b": 8102}
# Those that ask for few tokens, and those whose streams take a while.
CLIENTS, LONG_CLIENTS = 16, 6
TOKENS_PER_SECOND = 60
LONG = 60
ANSWERS = 400
# Seconds for one playbook, and until a host has booted and serves, on two slow cores.
PLAY, PATIENCE = 900.0, 180.0
EVENTS = "/var/lib/gpus/events.jsonl"


def models() -> list[dict[str, Any]]:
    """Two for one GPU."""
    slow = {"STANDIN_SLEEP_SECONDS": "0.05", "STANDIN_WAKE_SECONDS": "0.05"}
    return [
        {
            "id": name,
            "model": f"org/{name}",
            "host_port": port,
            "weights_gb": 0.01,
            "startup_mode": "active" if name == "a" else "sleep",
            "env": {**slow, "STANDIN_TOKENS_PER_SECOND": str(TOKENS_PER_SECOND)},
        }
        for name, port in PORTS.items()
    ]


class Member(ContainerHost):
    """A host with models."""

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What its manager answers."""
        words = ["curl", "--silent", "--fail-with-body", "--max-time", "60", "--request", method]
        words += ["--header", f"Authorization: Bearer {TOKEN}", "--header", "Content-Type: application/json"]
        return json.loads(self.run(*words, *(["--data", json.dumps(body)] if body else []), f"127.0.0.1:9000{path}"))

    def place(self, model: str) -> None:
        """Have it switch."""
        if self.ask("GET", "/models")["active_model"] != model:
            self.ask("POST", "/switch", {"model_id": model})

    def events(self) -> list[dict[str, Any]]:
        """What its servers have done."""
        return [json.loads(line) for line in self.run("cat", EVENTS).splitlines()]

    def requests_to(self, model: str, since: float) -> int:
        """How many requests its server has had."""
        return sum(
            one["model"] == model and one["event"] == "request_start" and one["time"] > since for one in self.events()
        )

    def serves(self) -> bool:
        """Whether its own gateway answers and knows the models."""
        words = [
            "curl",
            "--silent",
            "--max-time",
            "5",
            "--header",
            f"Authorization: Bearer {DIRECT}",
            "--output",
            "/dev/null",
        ]
        return self.run(*words, "--write-out", "%{http_code}", f"127.0.0.1:{PORT}/v1/models", check=False) == "200"


class Story:
    """The hosts, and what the cases share."""

    def __init__(self, members: dict[str, Member], front: ContainerHost, ansible: Ansible) -> None:
        self.members = members
        self.front = front
        self.ansible = ansible

    def play(self, playbook: str, *arguments: str, target: str) -> Run:
        run = self.ansible.play(playbook, *arguments, "-e", f"target={target}", timeout=PLAY)
        assert run.status == 0, run.output[-6000:]
        return run

    @property
    def url(self) -> str:
        return f"http://{self.front.address}:{PORT}"

    def models(self) -> dict[str, dict[str, Any]]:
        """What `/v1/models` of the door says, by id; nothing where it does not answer."""
        try:
            answer = requests.get(f"{self.url}/v1/models", timeout=10)
        except requests.RequestException:
            return {}
        return {one["id"]: one for one in answer.json()["data"]} if answer.status_code == 200 else {}

    def complete(self, model: str, tokens: int = 3) -> requests.Response:
        body = {"model": model, "prompt": "x", "max_tokens": tokens}
        return requests.post(f"{self.url}/v1/completions", json=body, timeout=90)

    def servers_of(self, model: str) -> set[str]:
        """Which hosts answer for a model, of some requests that go on at once."""
        found: list[str] = []

        def ask() -> None:
            with contextlib.suppress(requests.RequestException):
                found.append(self.complete(model, 10).headers.get("X-Gateway-Server", ""))

        threads = [threading.Thread(target=ask) for _each in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return set(found)

    def place(self, placed: dict[str, str]) -> None:
        """Have the hosts make these models active, and the door know it."""
        for name, model in placed.items():
            self.members[name].place(model)
        for model in set(placed.values()):
            wanted = {name for name in placed if placed[name] == model}
            until(lambda model=model, wanted=wanted: self.servers_of(model) == wanted, self.told, PATIENCE)  # type: ignore[misc]

    def crowd(self) -> Crowd:
        """Clients that ask for both models, whole and streaming."""
        address = (self.front.address, PORT)
        return Crowd(
            [Client(address, number) for number in range(CLIENTS)]
            + [Client(address, number, tokens=LONG) for number in range(LONG_CLIENTS)],
            ANSWERS,
        )

    def told(self) -> str:
        """What the services say."""
        said = [f"front: {self.front.journal(DOOR)}"]
        said.append(self.front.run("docker", "logs", "--tail", "10", "model-gateway", check=False))
        for member in self.members.values():
            with contextlib.suppress(AssertionError):
                said.append(f"{member.name}: {member.journal(MANAGER, lines=15)}")
        return "\n".join(said)

    def check(self) -> None:
        """See that no host had two models on its GPU at once."""
        for member in self.members.values():
            assert two_awake(member.events()) == [], member.name


@pytest.fixture(scope="module")
def story(engine: None, ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    if not docker("images", "--quiet", IMAGE):
        pytest.skip(f"{IMAGE} not there: make images")
    folder = tmp_path_factory.mktemp("hosts")
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network())
        served, both = folder / "front", folder / "members"
        for one in (served, both):
            one.mkdir()
        images = archive(both, IMAGE, STANDIN_IMAGE)
        members = {}
        for name, suite in SUITES.items():
            wheels = folder / f"wheels-{suite}"
            member = stack.enter_context(Member(folder, name, suite, net, models(), **variables(wheels)))
            if not wheels.exists():
                service_wheels(member, wheels)
            member.load(images)
            members[name] = member
        front = stack.enter_context(
            ContainerHost(
                folder,
                "front",
                "trixie",
                net,
                [],
                model_gateway_enabled=True,
                model_gateway_image=IMAGE,
                model_gateway_listen="0.0.0.0",
                model_gateway_without_keys=True,
                model_gateway_hosts=list(SUITES),
            )
        )
        front.load(archive(served, IMAGE))
        for file in (both, served):
            (file / "images.tar").unlink()
        story = Story(members, front, Ansible(ansible_playbook, folder, [*members.values(), front]))
        group = ",".join(members)
        for playbook in ("site", "bootstrap"):
            story.play(playbook, "-f", "3", target=group)
        story.play("site", target="front")
        until(lambda: {"a", "b"} <= set(story.models()), story.told, PATIENCE)
        yield story
        story.check()


def variables(wheels: Path) -> dict[str, Any]:
    """What a user sets for a host with models, with images that are there and no GPU."""
    return {
        "vllm_image": STANDIN_IMAGE,
        "vllm_gpu_access": "none",
        "vllm_volumes": [f"{Path(EVENTS).parent}:/gpus"],
        "vllm_env": {"STANDIN_GPU_DIR": "/gpus"},
        "open_webui_enabled": False,
        "model_manager_enabled": True,
        "model_manager_listen": "0.0.0.0",
        "model_manager_operator_tokens": [TOKEN],
        "model_manager_wheels_dir": str(wheels),
        "model_manager_settings": {"observe_seconds": 0.5, "linger_seconds": 0.5},
        "model_gateway_enabled": True,
        "model_gateway_image": IMAGE,
        "model_gateway_listen": "0.0.0.0",
        "model_gateway_api_keys": [{"name": "door", "key": KEY}, {"name": "direct", "key": DIRECT}],
    }


def test_the_playbooks_set_it_up_once(story: Story) -> None:
    everybody = [*story.members.values(), story.front]
    again = story.play("site", "-f", "4", target=",".join(host.name for host in everybody))
    assert {host.name: again.changed(host.name) for host in everybody} == {host.name: 0 for host in everybody}
    for host, service in [(member, MANAGER) for member in story.members.values()] + [(story.front, DOOR)]:
        unit = host.unit(service)
        assert (unit["ActiveState"], unit["UnitFileState"]) == ("active", "enabled"), (host.name, unit)
        print(host.name, host.run("sh", "-c", ". /etc/os-release; echo $PRETTY_NAME"), host.run("docker", "--version"))
    assert "OK" in story.front.run("systemd-analyze", "security", "--no-pager", DOOR)
    for name, model in PLACED.items():
        story.members[name].place(model)
    story.place(PLACED)
    for model in "ab":
        assert story.complete(model).headers["X-Gateway-Server"] in [name for name in PLACED if PLACED[name] == model]


def test_without_systemd_the_service_is_ended(story: Story) -> None:
    """And it is back where systemd may run it again."""
    off = ("-e", "model_gateway_systemd=false")
    predicted = story.play("site", "--check", *off, target="front").changed("front")
    assert predicted > 0
    assert story.front.unit(DOOR)["ActiveState"] == "active"
    assert story.play("site", *off, target="front").changed("front") == predicted
    assert story.front.unit(DOOR)["LoadState"] == "not-found"
    assert "model_manager.door" not in story.front.run(
        "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", check=False
    )
    assert story.play("site", *off, target="front").changed("front") == 0
    story.play("site", target="front")
    assert story.front.unit(DOOR)["ActiveState"] == "active"


End = Callable[[Member], float]
COMES_BACK: dict[str, tuple[End, Callable[[Member], None]]] = {
    "killed": (Member.halt, Member.boot),
    "unplugged": (Member.unplug, Member.plug),
}


@pytest.mark.parametrize("how", COMES_BACK)
@pytest.mark.parametrize("victim", ["one", "three"])
def test_a_host_dies_under_load_and_nothing_that_had_not_begun_is_lost(story: Story, victim: str, how: str) -> None:
    """`one` is one of two that have the model active, `three` the only one."""
    story.place(PLACED)
    end, back = COMES_BACK[how]
    member, crowd = story.members[victim], story.crowd()
    with crowd.asking():
        crowd.more(told=story.told)
        broken_before = len(crowd.broken())
        began = time.time()
        died = end(member)
        crowd.more(told=story.told)
        time.sleep(4)  # until streams at a host that closes no connection have been told, too
        left_out = story.front.said(DOOR, f"{victim} is left out", began)
        broken = crowd.broken()
        back(member)
        until(lambda: bool(story.front.said(DOOR, f"{victim} is up", died)), story.told, PATIENCE)
        returned = story.front.said(DOOR, f"{victim} is up", died)[0]
        crowd.more(told=story.told)
        until(lambda: victim in story.servers_of("a") | story.servers_of("b"), story.told, PATIENCE)
    text = (
        f"{victim} {how}: {sum(crowd.answered().values())} answered, {len(broken)} streams that had begun broke off, "
        f"{len(crowd.lost())} lost, {crowd.refused()} refused; left out {left_out[0] - died if left_out else -1:.2f} s "
        f"after its end, up {returned - died:.1f} s after it; the longest request took {crowd.longest():.1f} s"
    )
    print(text)
    assert crowd.lost() == [], text
    assert crowd.refused() == 0
    assert broken_before == 0, broken
    # At most those that it had at the moment; each was told.
    assert len(broken) <= CLIENTS + LONG_CLIENTS, text
    assert all(FAILED in one for one in crowd.broken()), crowd.broken()
    assert crowd.broken() == broken, "its return broke some"
    assert left_out and left_out[0] - died <= 1.0, text


def test_a_model_that_two_hosts_have_active_is_shared_by_the_requests_that_each_has(story: Story) -> None:
    story.place(PLACED)
    one, two = story.members["one"], story.members["two"]
    time.sleep(3)  # until nobody counts what has ended
    since = time.time()
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def long(host: ContainerHost, count: int) -> None:
        for _each in range(count):
            threads.append(threading.Thread(target=stream, args=(host,), daemon=True))
            threads[-1].start()

    def stream(host: ContainerHost) -> None:
        headers = {} if host is story.front else {"Authorization": f"Bearer {DIRECT}"}
        body = {"model": "a", "prompt": "x", "max_tokens": 4000, "stream": True}
        url = f"http://{host.address}:{PORT}/v1/completions"
        with (
            contextlib.suppress(requests.RequestException),
            requests.post(url, json=body, headers=headers, timeout=120, stream=True) as answer,
        ):
            for _line in answer.iter_lines():
                if ended.is_set():
                    return

    def at_servers() -> tuple[int, int]:
        return one.requests_to("a", since), two.requests_to("a", since)

    try:
        long(story.front, 12)
        until(lambda: sum(at_servers()) == 12, story.told)
        print("12 by the door:", at_servers())
        assert at_servers() == (6, 6)
        # Six of others at the one: the next six of the door's go to the other one.
        long(one, 6)
        until(lambda: sum(at_servers()) == 18, story.told)
        time.sleep(3)  # managers count what they have twice a second, and the door what is its own of that
        long(story.front, 6)
        until(lambda: sum(at_servers()) == 24, story.told)
        print("6 more at one by its own gateway, then 6 by the door:", at_servers())
        assert at_servers() == (12, 12)
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)


def restart_the_door(story: Story) -> None:
    story.front.run("systemctl", "restart", DOOR)


def kill_the_door(story: Story) -> None:
    story.front.run("systemctl", "kill", "--kill-whom", "main", "--signal", "KILL", DOOR)


def restart_a_manager(story: Story) -> None:
    story.members["three"].run("systemctl", "restart", MANAGER)


def kill_a_manager(story: Story) -> None:
    story.members["three"].run("systemctl", "kill", "--kill-whom", "main", "--signal", "KILL", MANAGER)


def restart_a_gateway(story: Story) -> None:
    story.members["one"].run("docker", "restart", "model-gateway")


@pytest.mark.parametrize(
    "what", [restart_the_door, kill_the_door, restart_a_manager, kill_a_manager, restart_a_gateway]
)
def test_a_service_starts_anew_under_load(story: Story, what: Callable[[Story], None]) -> None:
    story.place(PLACED)
    crowd = story.crowd()
    before = story.front.unit(DOOR)["InvocationID"]
    with crowd.asking():
        crowd.more(told=story.told)
        what(story)
        crowd.more(told=story.told)
    text = (
        f"{what.__name__}: {sum(crowd.answered().values())} answered, {len(crowd.broken())} broken, "
        f"{len(crowd.lost())} lost, {crowd.refused()} refused; the longest took {crowd.longest():.1f} s"
    )
    print(text)
    assert crowd.lost() == [], text
    assert crowd.broken() == [], text
    assert crowd.refused() == 0, text
    until(lambda: story.front.unit(DOOR)["ActiveState"] == "active", story.told)
    assert (story.front.unit(DOOR)["InvocationID"] != before) == what.__name__.endswith("door")


def test_the_gateway_of_the_door_starts_anew_under_load(story: Story) -> None:
    """What it has begun it answers.

    Meanwhile nobody listens, and the kernel resets what was not accepted yet. Who comes before it knows the models
    waits for that.
    """
    story.place(PLACED)
    crowd = story.crowd()
    with crowd.asking():
        crowd.more(told=story.told)
        began = time.time()
        story.front.run("docker", "restart", "model-gateway")
        seconds = time.time() - began
        crowd.more(told=story.told)
    text = (
        f"restarted in {seconds:.1f} s: {sum(crowd.answered().values())} answered, {len(crowd.broken())} broken, "
        f"{len(crowd.lost())} lost, {crowd.refused()} refused: {crowd.lost()[:3]}"
    )
    print(text)
    assert crowd.refused() > 0
    refused = re.compile(r"\w \w+ 0 (ConnectionResetError|RemoteDisconnected|BrokenPipeError)")
    assert [one for one in crowd.lost() if not refused.match(one)] == [], text
    assert crowd.broken() == [], text


def test_the_host_of_the_door_boots(story: Story) -> None:
    story.place(PLACED)
    story.front.halt()
    began = time.monotonic()
    story.front.boot()
    until(lambda: {"a", "b"} <= set(story.models()), story.told, PATIENCE)
    print(f"the door serves {time.monotonic() - began:.1f} s after its host's start")
    assert story.front.unit(DOOR)["ActiveState"] == "active"
    for model in "ab":
        assert story.complete(model).status_code == 200


def test_teardown_leaves_nothing_of_the_door(story: Story) -> None:
    assert story.play("teardown", "--check", target="front").changed("front") > 0
    story.play("teardown", target="front")
    assert story.front.unit(DOOR)["LoadState"] == "not-found"
    assert story.front.run("docker", "ps", "--all", "--quiet") == ""
    assert story.front.run("sh", "-c", f"ls {STACK}", check=False).endswith("No such file or directory")
    assert story.play("teardown", target="front").changed("front") == 0
    for member in story.members.values():
        assert member.serves()
