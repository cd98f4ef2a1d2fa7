# SPDX-License-Identifier: MIT
"""A gateway in front of another host's, as site deploys it, on the real engine. Both hosts are this machine.

The services run without systemd.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.stack import docker, inspect
from tests.e2e.test_gateway import IMAGE, KEY, SECONDS, Gated, Story, until
from tests.playbooklib import Ansible, Host, Run, launched
from tests.serverlib import free_port

pytestmark = [pytest.mark.timeout(900), pytest.mark.whole]

TOKEN = "token-of-the-manager-0123456789"


class Front(Host):
    """The host in front, without models."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [], name="front")
        self.entry = free_port()
        self.link = free_port()
        self.tag = f"door{self.link}"
        self.service: subprocess.Popen[bytes] | None = None

    def variables(self) -> dict[str, Any]:
        own = super().variables()
        del own["vllm_models"]
        return {
            **own,
            "compose_stack_project_name": self.tag,
            "model_gateway_container_name": self.tag,
            "model_gateway_enabled": True,
            "model_gateway_hosts": ["host"],
            "model_gateway_hosts_key": "alice",
            "model_gateway_image": IMAGE,
            "model_gateway_port": self.entry,
            "model_gateway_link_port": self.link,
            "model_gateway_systemd": False,
        }

    def start(self, run: Run) -> None:
        """Start the service by the command that the role has shown."""
        shown = re.search(r"run `(cd .+? && .+?)`", " ".join(run.output.replace("\\n", " ").split()))
        assert shown, run.output
        with (self.stack.parent / "door.log").open("ab") as log:
            self.service = subprocess.Popen(["sh", "-c", shown[1].replace("&& ", "&& exec ")], stdout=log, stderr=log)

    def remove(self) -> None:
        """Remove all that the test may have made."""
        if self.service is not None:
            self.service.kill()
            self.service.wait()
        docker("rm", "--force", "--volumes", self.tag, check=False)


@pytest.fixture
def hosts(engine: None, ansible_playbook: str, tmp_path: Path) -> Iterator[tuple[Story, Front]]:
    """A host with a gateway and two models, provisioned, and the one in front of it, of which nothing is left."""
    if not docker("images", "--quiet", IMAGE):
        pytest.skip(f"{IMAGE} not there: make images")
    stack, front = Gated(tmp_path, [launched("a", startup_mode="active"), launched("b")]), Front(tmp_path)
    stack.more.update(model_gateway_address="127.0.0.1", model_manager_operator_tokens=[TOKEN])
    story = Story(stack, Ansible(ansible_playbook, tmp_path, [stack, front]))
    try:
        story.play("site", target="host")
        story.play("bootstrap", target="host")
        story.start_manager()
        story.until_known()
        yield story, front
    finally:
        story.stop_manager()
        stack.remove()
        front.remove()


def test_a_host_in_front_is_set_up_serves_and_is_removed(hosts: tuple[Story, Front]) -> None:
    story, front = hosts
    url = f"http://127.0.0.1:{front.entry}"
    assert story.play("site", "--check", target="front").changed("front") > 0
    assert not front.stack.exists()
    run = story.play("site", "-vvv", "--diff", target="front")
    assert KEY not in run.output
    assert TOKEN not in run.output
    front.start(run)
    until(
        lambda: requests.get(f"{url}/v1/models", timeout=SECONDS).status_code == 200,
        lambda: docker("logs", front.tag, check=False),
    )
    assert {one["id"] for one in requests.get(f"{url}/v1/models", timeout=SECONDS).json()["data"]} >= {"a", "b"}
    for model in "ab":
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        assert answer.headers["X-Gateway-Server"] == "host"
    assert story.stack.states() == {"a": "asleep", "b": "awake"}
    # Of all hosts, as a user with both in one group runs it.
    assert story.play("site", target="host,front").changed("front") == 0
    assert story.play("site", "--check", target="front").changed("front") == 0
    front.remove()
    assert story.play("site", target="front").changed("front") > 0  # its container is there again
    assert story.play("teardown", "--check", target="front").changed("front") > 0
    story.play("teardown", target="front")
    assert inspect(front.tag) == {}
    assert not front.stack.exists()
    assert story.play("teardown", target="front").changed("front") == 0
