# SPDX-License-Identifier: MIT
"""The real manager of a stack folder, and a gateway in front of its servers.

with front(host.stack, folder, keys=[{"name": "alice", "key": KEY}]) as (manager, gateway):
    requests.post(gateway.url + "/v1/chat/completions", json={"model": "a", ...}, headers=...)
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import gates

from tests.gateway.gatewaylib import Gateway, until
from tests.serverlib import ROOT, Server, free_port

TOKEN = "the-link-token-of-the-tests"
PACKAGE = ROOT / "roles" / "model_manager" / "files"


class Manager(Server):
    """The service of a stack folder, whose own files are in `folder`."""

    def __init__(self, stack: Path, folder: Path, **settings: Any) -> None:
        port = free_port()
        # What a Gateway has to know of it.
        self.link: Any = SimpleNamespace(port=free_port(), token=TOKEN)
        token, config = folder / "link-token", folder / "manager.json"
        token.write_text(TOKEN + "\n", encoding="utf-8")
        told = {"gateway_listen": f"127.0.0.1:{self.link.port}", "gateway_token_file": str(token), **settings}
        config.write_text(json.dumps({"stack_dir": str(stack), "port": port, **told}), encoding="utf-8")
        paths = os.pathsep.join([str(PACKAGE), *filter(None, sys.path)])  # as this test has it
        command = [sys.executable, "-m", "model_manager", str(config)]
        super().__init__(command, port, folder / "manager.log", {**os.environ, "PYTHONPATH": paths})

    def models(self) -> dict[str, dict[str, Any]]:
        """What it says of each model."""
        return {str(one["id"]): one for one in self.call("GET", "/models").json()["models"]}

    def switch(self, model: str) -> None:
        """Make a model active."""
        answer = self.call("POST", "/switch", json={"model_id": model}, timeout=300)
        assert answer.status_code == 200, f"{answer.text}\n{self.tail()}"

    def idle(self) -> bool:
        """Whether nobody waits, nothing is at a server, and no switch is made."""
        queue = self.call("GET", "/switches").json()["queue"]
        return not queue and not any(one["in_flight"] or one["queue_depth"] for one in self.models().values())


@contextlib.contextmanager
def front(
    stack: Path, folder: Path, keys: list[dict[str, Any]] | None = None, **settings: Any
) -> Iterator[tuple[Manager, Gateway]]:
    """Both, which know the models when they are returned. C(settings): the manager's."""
    manager = Manager(stack, folder, **settings)
    with manager:
        manager.wait_ready()
        with Gateway(manager.link, keys=keys, workers=2) as gateway:
            headers = {"Authorization": f"Bearer {keys[0]['key']}"} if keys else {}
            url = gateway.url + "/v1/models"
            until(lambda: requests.get(url, headers=headers, timeout=20).status_code == 200, "it knows the models")
            yield manager, gateway
        assert "Traceback" not in manager.text(), manager.text()
    # As the role does where the manager is no more: other tests switch the same servers.
    gates.remove(str(stack))
