# SPDX-License-Identifier: MIT
"""The engine ends with every container, as in a reboot, and the host comes back by itself.

It restarts the engine of this machine under all that runs there, and so comes last of all tests.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.e2e.conftest import inventory_of
from tests.e2e.stack import PLAY, Stack, contained, inspect
from tests.playbooklib import Ansible, complete
from tests.serverlib import ROOT, two_awake

pytestmark = [pytest.mark.timeout(600), pytest.mark.whole]
SYSTEMD = Path("/run/systemd/system").is_dir()
CACHE = Path(
    os.environ.get("HOMEGPT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "homegpt.vllm")
)


def engine_pid() -> int:
    """Return the engine's process; 0 when there is none."""
    try:
        pid = int(Path("/var/run/docker.pid").read_text(encoding="ascii"))
        return pid if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == "dockerd" else 0
    except (OSError, ValueError):
        return 0


def may_be_restarted() -> bool:
    """Whether nobody minds: the engine is one that tools/engine.sh started, or it was said so."""
    if os.environ.get("CI") == "true" or os.environ.get("HOMEGPT_RESTART_ENGINE") == "1":
        return True
    try:
        return int((CACHE / "dockerd.pid").read_text(encoding="ascii").partition(" ")[0]) == engine_pid() != 0
    except (OSError, ValueError):
        return False


def stop_engine() -> None:
    """End the engine, and with it every container."""
    if SYSTEMD:
        subprocess.run(["systemctl", "stop", "docker.socket", "docker.service"], check=True, timeout=120)
        return
    os.kill(engine_pid(), signal.SIGTERM)
    deadline = time.monotonic() + 90
    while engine_pid():
        assert time.monotonic() < deadline, "the engine does not end"
        time.sleep(0.1)


def start_engine() -> None:
    """Start it as it is started where none runs."""
    subprocess.run(["bash", "tools/engine.sh"], cwd=ROOT, check=True, timeout=180, stdin=subprocess.DEVNULL)


class Unit:
    """What the systemd unit of the role runs, as systemd would."""

    def __init__(self, ansible: Ansible, folder: Path) -> None:
        ansible.play("tests/e2e/render_unit.yml", "-e", f"output={folder}").changed()
        text = (folder / "homegpt-restore.service").read_text(encoding="utf-8")
        settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
        self.command = shlex.split(settings["ExecStart"])
        self.folder = settings.get("WorkingDirectory", "/")
        assert "docker.service" in settings["After"]
        assert settings["Type"] == "oneshot"

    def run(self) -> subprocess.CompletedProcess[str]:
        # An environment as bare as systemd's.
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        if "HOME" in os.environ:
            env["HOME"] = os.environ["HOME"]  # where `docker compose` may be a plugin of the user's
        return subprocess.run(
            self.command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=200, check=False
        )


def test_the_host_comes_back_to_the_model_that_was_active(
    provision: Callable[..., tuple[Stack, Ansible]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not may_be_restarted():
        pytest.skip("this engine was not started by tools/engine.sh: HOMEGPT_RESTART_ENGINE=1 lets the test restart it")
    loading = {"STANDIN_LOAD_SECONDS": "2"}
    dying = {**loading, "STANDIN_FAULTS": json.dumps([{"path": "load", "fault": "die"}])}
    models = [
        contained("default", env=loading, startup_mode="active"),
        contained("chosen", env=loading),
        contained("broken", env=dying),
        contained("other", env=loading),
    ]
    stack, ansible = provision(models)
    ansible.play("site", timeout=PLAY).changed()
    assert ansible.play("bootstrap", timeout=PLAY).status == 2  # for the broken one
    ansible.play("switch", "-e", "model=chosen", timeout=PLAY).changed()
    assert stack.states() == {"default": "asleep", "chosen": "awake", "broken": "stopped", "other": "asleep"}
    answer = complete(stack.port("chosen"), "chosen")["text"]
    unit = Unit(ansible, tmp_path)
    ended = {name: seen.started for name, seen in stack.seen().items()}

    stop_engine()
    assert set(stack.states().values()) == {"stopped"}
    start_engine()
    # No server is started by the engine: four at once would not fit. The WebUI is.
    time.sleep(3)
    assert {name: seen.started for name, seen in stack.seen().items()} == ended
    assert [inspect(stack.container(name))["State"]["Running"] for name in ended] == [False] * 4
    before = len(stack.events())

    began = time.monotonic()
    run = unit.run()
    with capsys.disabled():
        print(f"\n  restored after {time.monotonic() - began:.1f} s, exit status {run.returncode}")
        print("    " + (run.stdout + run.stderr).strip().replace("\n", "\n    "))
    assert stack.states() == {"default": "asleep", "chosen": "awake", "broken": "stopped", "other": "asleep"}
    assert complete(stack.port("chosen"), "chosen")["text"] == answer

    # Never two on the GPU, neither loading nor awake, as the servers' own record says.
    events = stack.events()
    assert two_awake(events, before) == []
    loaded = [event["model"] for event in events[before:] if event["event"] == "loading"]
    assert sorted(loaded) == ["broken", "chosen", "default", "other"]  # each once
    assert loaded[-1] == "chosen"

    # The one that can't load is named, was tried once, and does not keep the others from coming back.
    assert run.returncode == 1
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("broken:")]
    assert "exit code 1" in line
    # With the log of this start, not of the bootstrap's.
    assert run.stderr.count("EngineCore failed to start") == 1
    dead = inspect(stack.container("broken"))
    assert (dead["State"]["Status"], dead["RestartCount"]) == ("exited", 0)
    time.sleep(3)
    assert len([event for event in stack.events()[before:] if event["event"] == "loading"]) == 4

    assert inspect(stack.webui)["State"]["Running"]
    listed = requests.get(f"http://127.0.0.1:{stack.webui_port}/api/models", timeout=30).text
    assert '"chosen"' in listed

    # Without the broken one there is nothing left to do, and the unit succeeds.
    stack.models[:] = [model for model in models if model["id"] != "broken"]
    before_site = stack.seen()
    inventory_of(ansible, stack).play("site", timeout=PLAY).changed()
    assert stack.seen() == {name: seen for name, seen in before_site.items() if name != "broken"}
    before = len(stack.events())
    again = unit.run()
    assert again.returncode == 0, again.stderr
    assert not [event for event in stack.events()[before:] if not event["event"].startswith("request")]
