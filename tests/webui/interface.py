# SPDX-License-Identifier: MIT
"""Open WebUI on this machine, in the environment that its role gives it.

Instead of names of containers and of the host there are addresses of the loopback interface; all else is what the role
renders.
"""

from __future__ import annotations

import json
import os
import string
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.playbooklib import Ansible
from tests.serverlib import ROOT, Server, free_port

# The answer is short and always the same.
GENERATION = json.dumps({"max_new_tokens": 24, "temperature": 0})
MESSAGE = "Does the model sleep?"


def webui_venv() -> Path:
    """The virtual environment of Open WebUI, which is built when it is not there (minutes)."""
    return Path(subprocess.check_output(["bash", ROOT / "tools" / "open_webui.sh"], text=True).strip())


def render(ansible: Ansible, addresses: Mapping[str, str], **variables: Any) -> dict[str, Any]:
    """The service as the role writes it for the host, with `addresses` for names."""
    written = ansible.inventory.with_name("project.yml")
    extra = json.dumps({"output": str(written), **variables})
    assert ansible.play("tests/webui/render.yml", "-e", extra).changed() == 1
    text = written.read_text(encoding="utf-8")
    for name, address in addresses.items():
        assert name in text
        text = text.replace(name, address)
    service: dict[str, Any] = yaml.safe_load(text)["services"]["open-webui"]
    return service


def start(venv: Path, service: Mapping[str, Any], folder: Path, secrets: Mapping[str, str]) -> tuple[Server, Any]:
    """Start it, with what `.env` would have; return it and its environment."""
    port = free_port()
    environment = {
        # As compose reads it: single dollars.
        **{name: string.Template(text).substitute(secrets) for name, text in service["environment"].items()},
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "DATA_DIR": str(folder / "data"),  # the image has it in a folder of its own
    }
    command = [str(venv / "bin" / "python"), str(venv / "bin" / "open-webui"), "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    return Server(command, port, folder / "open-webui.log", environment), environment


def visit(venv: Path, program: str, chromium: str, interface: Server, folder: Path) -> dict[str, Any]:
    """What people saw who did what the program says; screenshots are in the folder."""
    visited = subprocess.run(
        [str(venv / "bin" / "python"), "-m", f"tests.webui.{program}", chromium, interface.url, str(folder), MESSAGE],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert visited.returncode == 0, f"{visited.stderr}\n{interface.tail()}"
    seen: dict[str, Any] = json.loads(visited.stdout)
    return seen
