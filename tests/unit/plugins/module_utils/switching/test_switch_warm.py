# SPDX-License-Identifier: MIT
"""Weights that a switch reads ahead, on stand-ins: when, how much, and what is told; and the command for it."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import __main__ as program
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import costs, memory, page_cache, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.page_cache import Place, Warmer
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from tests.weights import MB, cached, evicts, pinned, put

from .conftest import Host

SIZE = 60 * MB
READ = "0.1 GB of weights read ahead in "


@pytest.fixture
def weights(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models a and b share a GPU and sleep at level 2; where b has its weights."""
    # The tests that run beside it would leave it no time.
    monkeypatch.setattr(page_cache, "_be_idle", lambda: None)
    if not evicts(tmp_path):
        pytest.skip("allowed: the folder of the tests is in RAM, or this kernel does not tell of its page cache")
    folder = tmp_path / "weights"
    put(folder / "model.safetensors", SIZE / MB)
    for name in "ab":
        host.declare(name, sleep_level="2", standin={"sleep_seconds": 0.5})
    state_files.write(str(host.stack_dir), state_files.WEIGHTS, {"models": {"b": {"folders": [str(folder)]}}})
    return folder


def is_cached(weights: Path) -> bool:
    """Whether they are in the page cache; a machine may drop a part of what nobody has used for seconds."""
    return (cached(weights) or 0) > SIZE * 0.7


def notes(result: Result) -> list[tuple[str, str]]:
    """The steps that have a note, and the seconds left out."""
    return [(step["action"], step["note"].partition(" in ")[0]) for step in result.steps if "note" in step]


@pytest.fixture
def warmers(monkeypatch: pytest.MonkeyPatch) -> list[Warmer]:
    """Those that have been begun."""
    begun: list[Warmer] = []
    begin = Warmer.begin

    def seen(warmer: Warmer) -> None:
        begun.append(warmer)
        begin(warmer)

    monkeypatch.setattr(Warmer, "begin", seen)
    return begun


@pytest.fixture
def _read_whole(warmers: list[Warmer], monkeypatch: pytest.MonkeyPatch) -> None:
    """All is read before the switch goes on: the other model's sleep may be over sooner, which ends the reading."""
    begin = Warmer.begin

    def whole(warmer: Warmer) -> None:
        begin(warmer)
        warmer._thread.join(20)

    monkeypatch.setattr(Warmer, "begin", whole)


@pytest.mark.usefixtures("_read_whole")
def test_before_a_reload(host: Host, weights: Path, warmers: list[Warmer]) -> None:
    host.up(a="active", b=2)
    predicted = host.switch("b", check=True)
    assert notes(predicted) == [("wake", "0.1 GB of weights to be read ahead")]
    assert "step 3: wake b (level 2) (0.1 GB of weights to be read ahead)\n" in predicted.diff()["after"]
    assert (cached(weights), warmers) == (0, [])
    result = host.switch("b")
    assert notes(result) == [("wake", "0.1 GB of weights read ahead")]
    assert "read ahead" not in result.diff()["after"]
    assert is_cached(weights)
    with pinned(weights / "model.safetensors"):
        host.switch("a")
        assert notes(host.switch("b", check=True)) == []
        again = host.switch("b")
    assert notes(again) == []
    assert [step["warm"] for done in (result, again) for step in done.steps if "warm" in step] == [1.0, 1.0]
    known = costs.known(state_files.models(str(host.stack_dir), state_files.COSTS), host.model("b"))
    assert known[2].warm == (1.0, 1.0)


@pytest.mark.usefixtures("_read_whole")
def test_before_a_start(host: Host, weights: Path) -> None:
    host.up(a="active")
    assert notes(host.switch("b", check=True)) == [("start", "0.1 GB of weights to be read ahead")]
    assert notes(host.switch("b")) == [("start", "0.1 GB of weights read ahead")]
    assert is_cached(weights)


def test_it_goes_on_while_the_target_loads(host: Host, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop takes no time, the load does."""
    put(weights / "model.safetensors", SIZE / MB)
    host.models[0]["sleep_level"] = "stop"
    host.models[1]["env"]["STANDIN_LOAD_SECONDS"] = "6"
    started = threading.Event()

    def slow(descriptor: int, buffer: Any, at: int) -> int:
        started.wait(20)
        return os.preadv(descriptor, [buffer], at)

    make = Warmer.__init__
    monkeypatch.setattr(Warmer, "__init__", lambda self, place, limit: make(self, place, limit, read=slow))
    host.up(a="active")
    host.wait_until(lambda: host.answers("a"), "a is loaded")

    def watch() -> None:
        host.wait_until(lambda: not host.connects("a"), "a is stopped")
        started.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert notes(host.switch("b")) == [("start", "0.1 GB of weights read ahead")]
    watcher.join()


@pytest.mark.parametrize("why", ["off", "level 1", "nobody in the way", "no RAM", "unknown RAM", "shared", "not told"])
def test_where_nothing_is_to_be_read(host: Host, weights: Path, warmers: list[Warmer], why: str) -> None:
    ram: float | None = 1000.0
    host.up(a=2 if why == "nobody in the way" else "active", b=1 if why == "level 1" else 2)
    if why == "off":
        host.settings["warm"] = False
    elif why == "no RAM":
        host.models[0]["sleep_level"] = "1"
        ram = 12.0  # a takes 11 of them, and a tenth is left alone
    elif why == "unknown RAM":
        ram = None
    elif why == "shared":
        content = {**state_files.read(str(host.stack_dir), state_files.MEMORY), "shared": True}
        state_files.write(str(host.stack_dir), state_files.MEMORY, content)
        assert memory.remembered_shared(str(host.stack_dir))
    elif why == "not told":
        os.unlink(state_files.path(str(host.stack_dir), state_files.WEIGHTS))
    host.models[1]["weights_gb"] = 0.01
    assert notes(host.switch("b", check=True, mem_available_gb=lambda: ram)) == []
    assert notes(host.switch("b", mem_available_gb=lambda: ram)) == []
    assert (warmers, cached(weights)) == ([], 0)


@pytest.mark.usefixtures("_read_whole")
def test_no_more_than_the_sleep_leaves(host: Host, weights: Path) -> None:
    host.models[0].update(sleep_level="1", weights_gb=10)
    host.up(a="active", b=2)
    # The sleep takes 11 of them, a tenth is left alone: 52 MB are left, and so three windows of 16 MiB.
    result = host.switch("b", mem_available_gb=lambda: (11 + 0.052) / 0.9)
    assert notes(result) == [("wake", "0.1 GB of weights read ahead")]
    assert result.steps[2]["note"].endswith(", not enough free RAM for the rest")
    assert (cached(weights) or 0) < SIZE


def test_it_is_given_up_when_the_switch_fails(
    host: Host, weights: Path, warmers: list[Warmer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(descriptor: int, buffer: Any, at: int) -> int:
        time.sleep(0.1)
        return os.preadv(descriptor, [buffer], at)

    make = Warmer.__init__
    monkeypatch.setattr(Warmer, "__init__", lambda self, place, limit: make(self, place, limit, read=slow))
    host.settings["escalation"] = ["roll_back"]
    host.up(a="active", b=2)
    host.fault("b", "/wake_up", "status_500", times=0)
    with pytest.raises(SwitchFailed) as caught:
        host.switch("b")
    assert host.states()["a"] == "active"
    (warmer,) = warmers  # none for what is rolled back
    assert not warmer._thread.is_alive()
    assert (cached(weights) or 0) < SIZE
    assert [step["action"] for step in caught.value.result.steps if "read ahead" in step.get("note", "")] == []


def test_what_cannot_be_read_fails_no_switch(host: Host, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_place: Place) -> list[str]:
        raise PermissionError(13, "Permission denied", str(weights))

    monkeypatch.setattr(page_cache, "files_of", broken)
    host.up(a="active", b=2)
    assert notes(host.switch("b", check=True)) == []
    result = host.switch("b")
    assert (notes(result), result.active_model, result.warnings) == ([], "b", [])


# ---- the command ------------------------------------------------------------------------------


@pytest.fixture
def stack(host: Host, weights: Path) -> str:
    given = {"vllm_models": host.models, "vllm_switching": host.settings}
    (host.stack_dir / "models.json").write_text(json.dumps(given), encoding="utf-8")
    del weights
    return str(host.stack_dir)


def test_the_command(stack: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--stack-dir", stack, "warm", "b", "--check"]) == 0
    there = "b: 0.1 GB of weights in 1 files, 0.0 GB of them in the page cache"
    assert capsys.readouterr() == (f"{there}\nb: 0.1 GB would be read\n", "")
    assert cached(weights) == 0
    assert program.main(["--stack-dir", stack, "warm", "b"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == there
    assert second.startswith("b: 0.1 GB read in ")
    assert is_cached(weights)
    with pinned(weights / "model.safetensors"):
        assert program.main(["--stack-dir", stack, "warm", "b", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": "b",
        "files": 1,
        "bytes": SIZE,
        "cached_bytes": SIZE,
        "read_bytes": 0,
        "seconds": None,
        "limited": False,
    }


def test_what_the_command_cannot_do(
    stack: str, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program.main(["--stack-dir", stack, "warm", "a"]) == 1
    assert "it is unknown where the weights of a are on this host: run homegpt.vllm.site" in capsys.readouterr().err
    assert program.main(["--stack-dir", stack, "warm", "c"]) == 2
    with monkeypatch.context() as patched:
        patched.setattr(program, "Switcher", functools.partial(Switcher, mem_available_gb=lambda: None))
        assert program.main(["--stack-dir", stack, "warm", "b"]) == 1
        assert "nothing was read: it is unknown how much RAM is free" in capsys.readouterr().err
    (weights / "model.safetensors").unlink()
    assert program.main(["--stack-dir", stack, "warm", "b"]) == 1
    assert f"there are no weights of b in {weights}: run " in capsys.readouterr().err

    def broken(_place: Place) -> list[str]:
        raise PermissionError(13, "Permission denied", str(weights))

    monkeypatch.setattr(page_cache, "files_of", broken)
    assert program.main(["--stack-dir", stack, "warm", "b"]) == 1
    assert f"the weights of b can't be read: [Errno 13] Permission denied: '{weights}'" in capsys.readouterr().err
