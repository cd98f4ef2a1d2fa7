# SPDX-License-Identifier: MIT
"""Adding, changing and removing a model: an edit of the inventory and one run, while a client uses another model."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import inventory_of
from tests.e2e.stack import PLAY, Seen, Stack, asking, contained, docker, inspect
from tests.playbooklib import Ansible, complete

pytestmark = pytest.mark.timeout(1800)
Show = Callable[[str, dict[str, Seen]], dict[str, Seen]]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    """Print which containers there are, for whoever reads the run's log."""

    def printed(when: str, seen: dict[str, Seen]) -> dict[str, Seen]:
        with capsys.disabled():
            print(f"\n  {when}")
            for name, container in seen.items():
                print(f"    {name:10} {container}")
        return seen

    return printed


@pytest.fixture(scope="module")
def loaded(provision: Callable[..., tuple[Stack, Ansible]]) -> tuple[Stack, Ansible]:
    """A host with `first` active and `second` asleep on one GPU."""
    stack, ansible = provision([contained("first", startup_mode="active"), contained("second")])
    ansible.play("site", timeout=PLAY).changed()
    ansible.play("bootstrap", timeout=PLAY).changed()
    return stack, ansible


def command(stack: Stack, name: str) -> list[str]:
    """Return the words that a model's container was started with."""
    words: list[str] = inspect(stack.container(name))["Config"]["Cmd"]
    return words


def test_add_change_and_remove_a_model_under_load(loaded: tuple[Stack, Ansible], show: Show) -> None:
    stack, ansible = loaded
    before = show("before", stack.seen(stack.webui))
    assert set(before) == {"first", "second", stack.webui}
    # On a GPU of its own: it can be loaded while the client uses `first`.
    third: dict[str, Any] = stack.adopt(contained("third", gpus=[1]))
    weights = Path(stack.variables()["vllm_cache_dir"]) / "huggingface/hub/models--org--third/weights"

    with asking(stack.port("first"), "first") as client:
        stack.models.append(third)
        ansible = inventory_of(ansible, stack)
        ansible.play("site", timeout=PLAY).changed()
        # The WebUI lists one model more, so it is made anew; no model's container is touched.
        added = show("third added by site.yml", stack.seen(stack.webui))
        assert {name: added[name] for name in ("first", "second")} == {
            name: before[name] for name in ("first", "second")
        }
        assert "third" not in added
        assert added[stack.webui].id != before[stack.webui].id
        ansible.play("bootstrap", timeout=PLAY).changed()
        booted = show("third loaded by bootstrap.yml", stack.seen(stack.webui))
        assert {name: seen for name, seen in booted.items() if name != "third"} == added
        assert stack.states() == {"first": "awake", "second": "asleep", "third": "asleep"}

        third["args"] = {"max_model_len": 2048}
        ansible = inventory_of(ansible, stack)
        run = ansible.play("site", "--diff", timeout=PLAY)
        assert run.changed()
        changed = show("one flag of third changed by site.yml", stack.seen(stack.webui))
        assert {name: seen for name, seen in changed.items() if name != "third"} == added
        assert [line.split() for line in run.diff if "max-model-len" in line] == [["+", "-", '"--max-model-len=2048"']]
        ansible.play("bootstrap", timeout=PLAY).changed()
        again = show("third loaded by bootstrap.yml", stack.seen(stack.webui))
        assert {name: seen for name, seen in again.items() if name != "third"} == added
        assert again["third"].id != booted["third"].id
        assert "--max-model-len=2048" in command(stack, "third")

        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_text("gigabytes")
        logs = stack.stack / "logs/third"
        assert logs.is_dir()
        stack.models.remove(third)
        ansible = inventory_of(ansible, stack)
        ansible.play("site", timeout=PLAY).changed()
        removed = show("third removed by site.yml", stack.seen(stack.webui, third["container_name"]))
        assert {name: removed[name] for name in ("first", "second")} == {
            name: before[name] for name in ("first", "second")
        }
        assert set(removed) == {"first", "second", stack.webui}
        assert not logs.exists()
        assert not (stack.stack / "compose-vllm-third.yml").exists()
        assert "third" not in (stack.stack / "docker-compose.yml").read_text(encoding="utf-8")
        assert weights.read_text() == "gigabytes"
        assert third["container_name"] not in docker("ps", "--all", "--format", "{{.Names}}").split()

    show(f"{client.asked} completions of first, {len(client.errors)} errors, longest {client.longest:.2f} s", removed)
    assert client.errors == []
    assert client.asked > 100
    assert ansible.play("site", timeout=PLAY).changed() == 0


def test_a_changed_flag_of_the_active_model_restarts_that_model_alone(
    loaded: tuple[Stack, Ansible], show: Show
) -> None:
    stack, ansible = loaded
    before = show("before", stack.seen())
    (first,) = [model for model in stack.models if model["id"] == "first"]
    first["args"] = {"max_model_len": 1024}
    ansible = inventory_of(ansible, stack)
    predicted = ansible.play("site", "--check", timeout=PLAY)
    assert stack.seen() == before
    run = ansible.play("site", timeout=PLAY)
    assert run.changed() == predicted.changed()
    after = show("one flag of first changed", stack.seen())
    assert after["second"] == before["second"]
    assert after["first"].id != before["first"].id
    assert "--max-model-len=1024" in command(stack, "first")
    assert stack.states() == {"first": "awake", "second": "asleep"}
    assert complete(stack.port("first"), "first")["tokens"] == 16
    assert ansible.play("site", timeout=PLAY).changed() == 0


@pytest.mark.whole
def test_what_is_wrong_with_the_webui_is_refused_before_anything_is_touched(loaded: tuple[Stack, Ansible]) -> None:
    stack, ansible = loaded
    before = stack.seen(stack.webui), stack.states()
    (first,) = [model for model in stack.models if model["id"] == "first"]
    kept, first["args"] = first["args"], {"max_model_len": 512}
    ansible = inventory_of(ansible, stack)
    strange = f"{stack.tag}-strange"
    try:
        refused = ansible.play("site", "-e", "open_webui_address=nowhere", timeout=PLAY).failure()
        assert "docker compose rejects the configuration, check open_webui_*" in refused
        assert (stack.seen(stack.webui), stack.states()) == before
        # Somebody else's container of that name is neither taken nor removed.
        labels = ["--label", "com.docker.compose.project=other", "--label", "com.docker.compose.config-hash=x"]
        docker("create", "--name", strange, *labels, stack.more["vllm_image"], "org/x")
        refused = ansible.play("site", "-e", f"open_webui_container_name={strange}", timeout=PLAY).failure()
        assert f"{strange} on port {stack.webui_port} collides" in refused
        assert (stack.seen(stack.webui), stack.states()) == before
        first["args"] = kept
        ansible = inventory_of(ansible, stack)
        without = ["-e", f"open_webui_container_name={strange}", "-e", "open_webui_enabled=false"]
        ansible.play("site", *without, timeout=PLAY).changed()
        assert inspect(strange)
        assert not (stack.stack / "compose-open-webui.yml").exists()
    finally:
        docker("rm", "--force", strange, check=False)
        first["args"] = kept
        ansible = inventory_of(ansible, stack)
    assert ansible.play("site", timeout=PLAY).changed() > 0
    assert (stack.seen(stack.webui), stack.states()) == before


@pytest.mark.whole
def test_a_model_left_stopped_by_a_run_that_was_cut_off_is_made_active_again(loaded: tuple[Stack, Ansible]) -> None:
    stack, ansible = loaded
    python = str(Path(ansible.command).with_name("python"))
    stop = [python, "-m", "switching", "switch", "first", "--state", "stopped", "--for-now"]
    subprocess.run(stop, cwd=stack.stack, check=True, capture_output=True, timeout=60)
    assert stack.states() == {"first": "stopped", "second": "asleep"}
    assert ansible.play("site", timeout=PLAY).changed() == 1
    assert stack.states() == {"first": "awake", "second": "asleep"}


@pytest.mark.whole
def test_a_model_that_becomes_disabled_is_stopped(loaded: tuple[Stack, Ansible]) -> None:
    stack, ansible = loaded
    (second,) = [model for model in stack.models if model["id"] == "second"]
    second["startup_mode"] = "disabled"
    ansible = inventory_of(ansible, stack)
    ansible.play("site", timeout=PLAY).changed()
    assert stack.states() == {"first": "awake", "second": "stopped"}
    assert ansible.play("site", timeout=PLAY).changed() == 0
