# SPDX-License-Identifier: MIT
"""Weights read ahead: which files, what of them the page cache has, and reading the rest within its limits."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import page_cache, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.page_cache import Place, Warmed, Warmer

from tests.weights import MB, about, cached, evicts, pinned, put

COMMIT = "0123abcd"
BE_IDLE = page_cache._be_idle


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    """Nothing gives way to what runs beside the tests, and their own thread keeps its priority."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_cache, "_be_idle", lambda: None)
        yield


def index(folder: Path, *names: str, file: str = "model.safetensors.index.json") -> None:
    """An index that names these files, the last one first."""
    (folder / file).write_text(json.dumps({"weight_map": {f"w{n}": n for n in reversed(names)}}), encoding="utf-8")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    if not evicts(tmp_path):
        pytest.skip("allowed: the folder of the tests is in RAM, or this kernel does not tell of its page cache")
    return tmp_path


# ---- which files ------------------------------------------------------------------------------

# The files of a folder, load_format, the files that are read in their order.
FORMATS: list[tuple[str, list[str], str, list[str]]] = [
    ("one file", ["model.safetensors", "config.json"], "auto", ["model.safetensors"]),
    (
        "shards by their numbers",
        ["m-10-of-11.safetensors", "m-9-of-11.safetensors", "m-11-of-11.safetensors"],
        "auto",
        ["m-9-of-11.safetensors", "m-10-of-11.safetensors", "m-11-of-11.safetensors"],
    ),
    ("safetensors before bin", ["a.bin", "b.safetensors", "c.pt"], "auto", ["b.safetensors"]),
    ("bin before pt", ["a.bin", "c.pt"], "auto", ["a.bin"]),
    ("pt", ["c.pt"], "auto", ["c.pt"]),
    ("Mistral's own", ["consolidated.safetensors", "model.safetensors"], "auto", ["consolidated.safetensors"]),
    ("not where asked for otherwise", ["consolidated.safetensors", "m.bin"], "hf", ["consolidated.safetensors"]),
    ("pt where asked for", ["a.safetensors", "c.pt"], "PT", ["c.pt"]),
    ("no bin for safetensors", ["a.bin"], "safetensors", []),
    ("what a training leaves", ["optimizer.bin", "training_args.bin", "a.bin"], "auto", ["a.bin"]),
    ("nothing that a dummy reads", ["a.safetensors"], "dummy", []),
    ("past the page cache", ["a.safetensors"], "instanttensor", []),
    ("of an unknown format", ["a.safetensors"], "of-a-plugin", ["a.safetensors"]),
    ("the one GGUF", ["a.gguf"], "gguf", ["a.gguf"]),
    ("one of several GGUFs", ["a.gguf", "b.gguf"], "gguf", []),
    ("no weights", ["config.json"], "auto", []),
]


@pytest.mark.parametrize(("files", "load_format", "read"), [case[1:] for case in FORMATS], ids=[c[0] for c in FORMATS])
def test_which_files(tmp_path: Path, files: list[str], load_format: str, read: list[str]) -> None:
    for name in files:
        put(tmp_path / name)
    found = page_cache.files_of(Place((str(tmp_path),), load_format=load_format))
    assert found == [str(tmp_path / name) for name in read]


def test_what_the_index_names(tmp_path: Path) -> None:
    shards = ["m-1-of-2.safetensors", "m-2-of-2.safetensors"]
    for name in (*shards, "adapter.safetensors"):
        put(tmp_path / name)
    index(tmp_path, *shards, "m-3-of-2.safetensors")
    assert page_cache.files_of(Place((str(tmp_path),))) == [str(tmp_path / name) for name in shards]
    # vLLM refuses these, so there is nothing to read.
    index(tmp_path, "other.safetensors")
    assert page_cache.files_of(Place((str(tmp_path),))) == []


def test_a_damaged_index_is_none(tmp_path: Path) -> None:
    put(tmp_path / "a.safetensors")
    for text in ("", "[]", '{"weight_map": 1}', "{}"):
        (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        assert page_cache.files_of(Place((str(tmp_path),))) == [str(tmp_path / "a.safetensors")]


def test_shards_in_a_folder_of_their_own(tmp_path: Path) -> None:
    for number in (1, 2):
        put(tmp_path / f"shards/{number}.safetensors")
    index(tmp_path, "shards/1.safetensors", "shards/2.safetensors")
    assert page_cache.files_of(Place((str(tmp_path),))) == [str(tmp_path / f"shards/{n}.safetensors") for n in (1, 2)]


def test_consolidated_ones_have_an_index_of_their_own(tmp_path: Path) -> None:
    names = ["consolidated-1.safetensors", "consolidated-2.safetensors"]
    for name in (*names, "model.safetensors"):
        put(tmp_path / name)
    index(tmp_path, "model.safetensors")
    index(tmp_path, *names, file="consolidated.safetensors.index.json")
    assert page_cache.files_of(Place((str(tmp_path),))) == [str(tmp_path / name) for name in names]


def repository(folder: Path, revision: str = "main", commit: str = COMMIT, megabytes: float = 0) -> Path:
    """A repository in the cache of Hugging Face: its files are links to blobs."""
    blob = put(folder / "blobs/abc", megabytes)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blob, snapshot))
    reference = folder / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit + "\n", encoding="utf-8")
    return snapshot / "model.safetensors"


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", COMMIT])
def test_the_snapshot_of_the_revision(tmp_path: Path, revision: str) -> None:
    file = repository(tmp_path, "main" if revision == COMMIT else revision)
    put(tmp_path / "snapshots/another/model.safetensors")
    assert page_cache.files_of(Place((str(tmp_path),), revision)) == [str(file)]


def test_a_revision_that_is_not_there(tmp_path: Path) -> None:
    file = repository(tmp_path)
    # It can only be this one; ModelScope calls it master.
    assert page_cache.files_of(Place((str(tmp_path),), "master")) == [str(file)]
    put(tmp_path / "snapshots/another/model.safetensors")
    assert page_cache.files_of(Place((str(tmp_path),), "master")) == []


def test_the_first_folder_that_has_weights(tmp_path: Path) -> None:
    put(tmp_path / "first/config.json")
    file = put(tmp_path / "second/model.safetensors")
    folders = [str(tmp_path / name) for name in ("missing", "first", "second")]
    assert page_cache.files_of(Place(tuple(folders))) == [str(file)]
    assert page_cache.files_of(Place((*folders[:2], str(file)))) == [str(file)]
    assert page_cache.files_of(Place(tuple(folders[:2]))) == []


def test_a_dangling_link_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to("nowhere")
    os.mkfifo(tmp_path / "b.safetensors")
    assert page_cache.files_of(Place((str(tmp_path),))) == []


# ---- where they are ---------------------------------------------------------------------------


def placed(stack: Path, **model: Any) -> Place | None:
    models = parse([{"id": "m", "model": "org/m", "host_port": 8001, **model}])
    return page_cache.place_of(str(stack), models.models[0])


def test_where_the_state_file_says(tmp_path: Path) -> None:
    known = {"folders": ["/a", "/b"], "revision": "v1", "load_format": "pt"}
    state_files.write(str(tmp_path), state_files.WEIGHTS, {"models": {"m": known}})
    assert placed(tmp_path) == Place(("/a", "/b"), "v1", "pt")
    state_files.write(str(tmp_path), state_files.WEIGHTS, {"models": {"m": {"folders": ["/a"]}}})
    assert placed(tmp_path) == Place(("/a",), "main", "auto")


@pytest.mark.parametrize("content", [{}, {"models": []}, {"models": {"m": []}}, {"models": {"m": {"folders": []}}}])
def test_a_state_file_that_does_not_say(tmp_path: Path, content: dict[str, Any]) -> None:
    state_files.write(str(tmp_path), state_files.WEIGHTS, content)
    assert placed(tmp_path) is None


def test_a_path_that_a_command_of_this_host_loads(tmp_path: Path) -> None:
    vllm = ["vllm", "serve", "${model}", "--load-format", "pt"]
    assert placed(tmp_path, model="/srv/m", start_command=vllm) == Place(("/srv/m",), load_format="pt")
    other = placed(tmp_path, model="/srv/m.gguf", start_command=["llama-server", "-m", "${model}"])
    assert other == Place(("/srv/m.gguf",))
    assert placed(tmp_path, model="org/m", start_command=vllm) is None
    assert placed(tmp_path, model="/in/the/container") is None


# ---- what the page cache has ------------------------------------------------------------------


def test_residency_falls_and_rises(disk: Path) -> None:
    file = put(disk / "model.safetensors", 3.5)
    assert cached(file) == 0
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        opened.read(MB)
    assert 0 < (cached(file) or 0) < 3.5 * MB
    file.read_bytes()
    assert cached(file) == about(3.5 * MB)
    os.truncate(file, 10)
    assert cached(file) == 10


def test_mincore_tells_the_same(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(disk / "model.safetensors", 20)
    kernel = page_cache._kernel()
    assert kernel
    monkeypatch.setattr(page_cache._Kernel, "cachestat", lambda *_arguments: None)  # before Linux 6.5
    assert cached(file) == 0
    file.read_bytes()
    assert cached(file) == about(20 * MB)
    (disk / "empty").touch()
    assert cached(disk / "empty") == 0


def test_nobody_can_tell(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(disk / "model.safetensors", 2)
    monkeypatch.setattr(page_cache._Kernel, "cachestat", lambda *_arguments: None)
    monkeypatch.setattr(page_cache, "_may_write", lambda _descriptor: False)  # mincore says then that all is there
    assert cached(file) is None
    monkeypatch.undo()
    monkeypatch.setattr(page_cache, "_kernel", lambda: None)
    assert cached(file) is None
    assert Warmer(Place((str(file),)), 1e9).run()._replace(seconds=0) == Warmed(2 * MB, 0, 2 * MB)
    monkeypatch.undo()
    assert cached(file) == about(2 * MB)


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_other_systems(disk: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    file = put(disk / "model.safetensors", 1)
    page_cache._kernel.cache_clear()
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(machine=machine))
    try:
        # The C library has mincore everywhere on Linux; the other calls go by numbers.
        assert cached(file) == (None if system == "darwin" else 0)
        assert Warmer(Place((str(file),)), 1e9).run().read == MB
    finally:
        page_cache._kernel.cache_clear()


# ---- reading ahead ----------------------------------------------------------------------------


def shards(folder: Path, *megabytes: float) -> list[Path]:
    names = [f"m-{number}-of-{len(megabytes)}.safetensors" for number in range(1, len(megabytes) + 1)]
    index(folder, *names)
    return [put(folder / name, size) for name, size in zip(names, megabytes, strict=True)]


def test_all_is_read_and_nothing_twice(disk: Path) -> None:
    files = shards(disk, 17, 2)
    place = Place((str(disk),))
    files[1].read_bytes()
    read: list[int] = []

    def counted(descriptor: int, buffer: Any, at: int) -> int:
        read.append(os.preadv(descriptor, [buffer], at))
        return read[-1]

    warmer = Warmer(place, 1e9, read=counted)
    done = warmer.run()
    assert done._replace(seconds=0) == Warmed(19 * MB, about(2 * MB), about(17 * MB))
    assert sum(read) == done.read
    with pinned(files[0]), pinned(files[1]):
        assert page_cache.look(place) == (2, 19 * MB, 19 * MB)
        read.clear()
        assert Warmer(place, 1e9, read=counted).run() == Warmed(19 * MB, 19 * MB)
        assert read == []


def test_links_to_blobs(disk: Path) -> None:
    file = repository(disk, megabytes=4)
    warmer = Warmer(Place((str(disk),)), 1e9)
    warmer.begin()
    warmer._thread.join(20)
    assert warmer.stop().read == 4 * MB
    assert cached(file) == about(4 * MB)


def test_in_the_order_of_use_up_to_the_limit(disk: Path) -> None:
    files = shards(disk, 16, 16, 16)
    files[0].read_bytes()
    done = Warmer(Place((str(disk),)), 33 * MB).run()
    # What is there already has its place in the RAM, too.
    assert done._replace(seconds=0) == Warmed(48 * MB, about(16 * MB), about(16 * MB), limited=True)
    assert [cached(file) for file in files] == [about(16 * MB), about(16 * MB), 0]
    assert done._replace(read=10**9, seconds=2.0).note == (
        "1.0 GB of weights read ahead in 2.0 s, not enough free RAM for the rest"
    )
    assert Warmer(Place((str(disk),)), 1).run() == Warmed(48 * MB, limited=True)


def test_what_is_told() -> None:
    assert Warmed(size=10**11, cached=10**11).note == ""
    assert Warmed(size=10**6, read=10**6).note == ""
    assert Warmed(read=12_340_000_000, seconds=4.08).note == "12.3 GB of weights read ahead in 4.1 s"


def test_what_is_predicted(disk: Path) -> None:
    files = shards(disk, 100, 40)
    place = Place((str(disk),))
    assert Warmer(place, 1e9).predict() == "0.1 GB of weights to be read ahead"
    assert Warmer(place, 1e6).predict() == ""
    files[0].read_bytes()
    assert Warmer(place, 1e9).predict() == ""  # not worth it
    assert Warmer(Place((str(disk / "missing"),)), 1e9).predict() == ""


def test_a_slow_disk_is_given_up_at_once(disk: Path) -> None:
    shards(disk, 40)
    begun = threading.Event()

    def slow(descriptor: int, buffer: Any, at: int) -> int:
        begun.set()
        time.sleep(0.2)  # 5 MB/s
        return os.preadv(descriptor, [buffer], at)

    warmer = Warmer(Place((str(disk),)), 1e9, read=slow)
    warmer.begin()
    assert begun.wait(20)
    done = warmer.stop()
    warmer._thread.join(20)
    assert not warmer._thread.is_alive()
    assert done.read <= warmer.stop().read < 40 * MB
    assert done.problem == ""


def test_a_disk_that_hangs_is_not_waited_for(disk: Path) -> None:
    shards(disk, 1)
    hangs, begun = threading.Event(), threading.Event()

    def hang(*_arguments: Any) -> int:
        begun.set()
        hangs.wait(60)
        return 0

    warmer = Warmer(Place((str(disk),)), 1e9, read=hang)
    warmer.begin()
    assert begun.wait(20)
    started = time.monotonic()
    assert warmer.stop().read == 0
    assert time.monotonic() - started < 30
    hangs.set()


def test_one_that_was_never_begun_is_stopped() -> None:
    assert Warmer(Place(("/nowhere",)), 1e9).stop() == Warmed()


def test_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    warmer = Warmer(Place(("/nowhere",)), 1e9)
    warmer.begin()
    assert warmer.stop() == Warmed()


def test_a_file_that_cannot_be_read(disk: Path) -> None:
    shards(disk, 1, 1)

    def broken(*_arguments: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    done = Warmer(Place((str(disk),)), 1e9, read=broken).run()
    assert (done.read, done.problem, done.note) == (0, "[Errno 5] Input/output error", "")


def test_a_file_that_becomes_shorter(disk: Path) -> None:
    (file,) = shards(disk, 3)

    def cut(descriptor: int, buffer: Any, at: int) -> int:
        os.truncate(file, MB)
        return os.preadv(descriptor, [buffer], at)

    assert Warmer(Place((str(disk),)), 1e9, read=cut).run().problem == ""


def test_nothing_there(tmp_path: Path) -> None:
    assert Warmer(Place((str(tmp_path),)), 1e9).run() == Warmed()
    assert Warmer(Place((str(tmp_path / "missing"),)), 1e9).run() == Warmed()
    assert page_cache.look(Place((str(tmp_path),))) == (0, 0, 0)


def test_it_takes_nothing_from_anybody(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(disk, 1)
    monkeypatch.setattr(page_cache, "_be_idle", BE_IDLE)
    told: list[tuple[int, int]] = []

    def look(descriptor: int, buffer: Any, at: int) -> int:
        kernel = page_cache._kernel()
        assert kernel
        get = kernel._ioprio_set + 1  # ioprio_get
        told.append((os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), kernel._libc.syscall(get, 1, 0)))
        return os.preadv(descriptor, [buffer], at)

    before = os.getpriority(os.PRIO_PROCESS, 0)
    warmer = Warmer(Place((str(disk),)), 1e9, read=look)
    warmer.begin()
    warmer._thread.join(20)
    assert told == [(19, page_cache._IDLE)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before  # of that thread alone
