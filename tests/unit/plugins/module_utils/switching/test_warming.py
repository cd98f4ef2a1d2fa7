# SPDX-License-Identifier: MIT
"""Reading weights ahead for those who ask for it: several models, the free RAM, and what a check says of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import page_cache, state_files, task, warming
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchingError, UnknownModel
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lock import HostLock
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.page_cache import Warmer

from tests.weights import MB, about, cached, evicts, pinned, put

ENTRIES: list[dict[str, Any]] = [
    {"id": name, "model": f"org/{name}", "host_port": 8001 + number, "aliases": [f"my-{name}"]}
    for number, name in enumerate("ab")
]


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two models with 40 MB of weights each; where their host has its records."""
    monkeypatch.setattr(page_cache, "_be_idle", lambda: None)
    if not evicts(tmp_path):
        pytest.skip("allowed: the folder of the tests is in RAM, or this kernel does not tell of its page cache")
    for name in "ab":
        put(tmp_path / name / "model.safetensors", 40)
    known = {name: {"folders": [str(tmp_path / name)]} for name in "ab"}
    state_files.write(str(tmp_path), state_files.WEIGHTS, {"models": known})
    return str(tmp_path)


@pytest.fixture
def inventory() -> Inventory:
    return parse(ENTRIES)


def ram(megabytes: float) -> Any:
    """As much free RAM that so many MB of it may be used."""
    return lambda: megabytes * MB / 1e9 / page_cache.RAM_SHARE


def in_cache(stack: str) -> dict[str, int | None]:
    return {name: cached(Path(stack, name)) for name in "ab"}


def test_several_models_one_after_the_other(stack: str, inventory: Inventory) -> None:
    done = warming.warm(inventory, stack, ["my-b", "a", "b"])
    assert [one.model for one in done] == ["b", "a"]
    assert in_cache(stack) == {"a": about(40 * MB), "b": about(40 * MB)}
    again = warming.warm(inventory, stack, ["a", "b"])
    assert [(one.seen.cached, one.warmed.read) for one in again] == [(about(40 * MB), about(0))] * 2


@pytest.mark.parametrize("megabytes", [0, 20, 50, 70, 200])
@pytest.mark.parametrize("before", [0, 10], ids=["", "some is there"])
def test_a_check_tells_what_a_run_does(stack: str, inventory: Inventory, megabytes: int, before: int) -> None:
    """All models together get no more than there is RAM."""
    for name in "ab":
        with Path(stack, name, "model.safetensors").open("rb") as file:
            # Otherwise the kernel reads ahead, and goes on with that in the midst of the test.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            file.read(before * MB)
    at_first = in_cache(stack)
    checked = warming.warm(inventory, stack, ["a", "b"], True, ram(megabytes))
    assert in_cache(stack) == {name: about(size or 0) for name, size in at_first.items()}
    done = warming.warm(inventory, stack, ["a", "b"], False, ram(megabytes))
    for predicted, real in zip(checked, done, strict=True):
        figures = real.as_dict()
        seen = {name: about(figures[name]) for name in ("cached_bytes", "read_bytes")}
        assert predicted.as_dict() == {**figures, **seen, "seconds": None}
    used = sum(one.warmed.cached + one.warmed.read for one in done)
    assert used == about(80 * MB) if megabytes == 200 else used <= megabytes * MB
    assert [one.warmed.limited for one in done] == [megabytes < 40, megabytes < 80]


def test_what_is_said(stack: str, inventory: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    (checked,) = warming.warm(inventory, stack, ["a"], True, ram(20))
    assert checked.lines[1] == "a: 0.0 GB would be read, not enough free RAM for the rest"
    monkeypatch.setattr(page_cache, "_kernel", lambda: None)
    (blind,) = warming.warm(inventory, stack, ["a"], True, ram(2000))
    assert blind.lines == [
        "a: 0.0 GB of weights in 1 files, an unknown part of them in the page cache",
        "a: 0.0 GB would be read",
    ]
    # What can't be looked at is read whole, however often.
    assert (blind.as_dict()["cached_bytes"], blind.warmed.read) == (None, 40 * MB)


def test_nothing_is_read_where_a_model_is_missing(
    stack: str, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kind: type[Exception] = SwitchingError, names: str = "ab", **more: Any) -> str:
        with pytest.raises(kind) as caught:
            warming.warm(inventory, stack, list(names), **more)
        assert in_cache(stack)["a"] == 0
        return str(caught.value)

    assert "model c is not declared" in refused(UnknownModel, "ac")
    assert "it is unknown how much RAM is free" in refused(mem_available_gb=lambda: None)
    content = state_files.read(stack, state_files.MEMORY)
    state_files.write(stack, state_files.MEMORY, {**content, "shared": True})
    assert "the GPU of this host shares its RAM" in refused()
    Path(state_files.path(stack, state_files.MEMORY)).unlink()
    Path(stack, "b/model.safetensors").unlink()
    assert f"there are no weights of b in {stack}/b: run prefetch first" in refused()
    state_files.write(stack, state_files.WEIGHTS, {"models": {"a": {"folders": [f"{stack}/a"]}}})
    assert "it is unknown where the weights of b are on this host: run homegpt.vllm.site" in refused()

    def broken(*_arguments: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    assert refused(names="a") == "the weights of a can't be read: [Errno 5] Input/output error"


def test_a_switch_is_not_waited_for(stack: str, inventory: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is another's, and the reading gives way."""
    idle: list[int] = []
    monkeypatch.setattr(page_cache, "_be_idle", lambda: idle.append(threading.get_ident()))
    with HostLock(stack).hold("a switch", 1, lambda taken, _seconds: taken()):
        (done,) = warming.warm(inventory, stack, ["a"])
    assert done.warmed.read == 40 * MB
    assert idle == [threading.get_ident()]


def test_as_a_task(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: set[str] = set()
    models = [{**ENTRIES[0], "env": {"HF_TOKEN": "hf-nobody-may-see"}}]
    params = {"models": models, "switching": {}, "stack_dir": stack, "model": ["my-a"]}
    result = task.warm(params, True, learned.update)
    assert (result["changed"], result["models"]["a"]["read_bytes"], in_cache(stack)["a"]) == (True, 40 * MB, 0)
    result = task.warm(params, False, learned.update)
    assert (result["changed"], in_cache(stack)["a"]) == (True, about(40 * MB))
    assert result["lines"][1].startswith("a: 0.0 GB read in ")
    with pinned(Path(stack, "a/model.safetensors")):
        assert task.warm(params, False, learned.update)["changed"] is False
        assert task.warm(params, True, learned.update)["changed"] is False
    assert learned == {"hf-nobody-may-see"}
    failed = task.warm({**params, "model": ["c"]}, False, learned.update)
    assert (failed["failed"], failed["error"]) == (True, "UnknownModel")
    monkeypatch.setattr(Warmer, "run", lambda self: page_cache.Warmed(problem="it is gone"))
    assert task.warm(params, False, learned.update)["msg"] == "the weights of a can't be read: it is gone"
