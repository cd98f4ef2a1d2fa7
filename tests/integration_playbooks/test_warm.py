# SPDX-License-Identifier: MIT
"""warm.yml reads real files into the page cache of this machine; the models' servers are not even started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration_playbooks.conftest import Inventory
from tests.playbooklib import Ansible, Host, Run, launched
from tests.weights import MB, about, cached, evicts, pinned, put

SECRET = "sk-nobody-may-see-this"
SIZE = 60 * MB
THERE = "one: b: 0.1 GB of weights in 1 files, {} GB of them in the page cache"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    if not evicts(tmp_path):
        pytest.skip("allowed: the folder of the tests is in RAM, or this kernel does not tell of its page cache")
    put(tmp_path / "weights/model.safetensors", SIZE / MB)
    return tmp_path / "weights"


@pytest.fixture
def fleet(inventory: Inventory, weights: Path, tmp_path: Path) -> Ansible:
    """A host with a model that has weights, and one that has no such model."""
    second = launched("b", model=str(weights), env={"HF_TOKEN": SECRET})
    one = Host(tmp_path, [launched("a"), second], name="one")
    return inventory(one, Host(tmp_path, [launched("a")], name="two"))


def told(run: Run) -> list[str]:
    return [line for line in run.output.splitlines() if line.startswith(("one: ", "two: "))]


@pytest.mark.versions
def test_a_check_a_run_and_another(fleet: Ansible, weights: Path) -> None:
    run = fleet.play("warm", "-e", "model=b", "--check")
    assert (run.changed("one"), run.changed("two")) == (1, 0)
    assert sorted(told(run)) == [
        "one: b: 0.1 GB of weights in 1 files, 0.0 GB of them in the page cache",
        "one: b: 0.1 GB would be read",
        "two: model b is not declared; the models are: a",
    ]
    assert cached(weights) == 0

    # The model of the host's own choice, if none is given.
    run = fleet.play("warm", "-e", json.dumps({"vllm_active_model": "b"}), "-e", "target=one", "-vvv")
    assert run.changed("one") == 1
    assert SECRET not in run.output
    (result,) = [found for found in run.results("changed") if "lines" in found]
    figures = result["models"]["b"]
    assert figures.pop("seconds") >= 0
    assert figures == {"files": 1, "bytes": SIZE, "cached_bytes": 0, "read_bytes": SIZE, "limited": False}
    assert (THERE.format("0.0"), cached(weights)) == (told(run)[0], about(SIZE))

    with pinned(weights / "model.safetensors"):
        for more in (["--check"], []):
            run = fleet.play("warm", "-e", "model=b", *more)
            assert (run.changed("one"), run.changed("two")) == (0, 0)
            assert THERE.format("0.1") in told(run)


def test_a_host_whose_weights_nobody_knows(fleet: Ansible, weights: Path) -> None:
    run = fleet.play("warm", "-e", "model=a,b", "-e", "target=one")
    message = "it is unknown where the weights of a are on this host: run homegpt.vllm.site"
    assert run.failure().startswith(message)
    assert cached(weights) == 0  # nor is anything read of the other


def test_a_model_that_no_host_has(fleet: Ansible) -> None:
    assert fleet.play("warm", "-e", "model=c").mistakes == [
        "one: model c is not declared; the models are: a, b",
        "two: model c is not declared; the models are: a",
    ]
