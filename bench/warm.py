# SPDX-License-Identifier: MIT
"""What reading weights ahead saves on real vLLM, and what it costs where there is nothing to be saved.

A model of 2.3 GB in shards, with random weights, sleeps at level 2; before each sample its files are dropped from the
page cache. The other model is a tiny one: its sleep takes no time here, so that it is given a request to finish.
It has one core to itself at most: on a GPU, too, an answer leaves the CPU to whoever reads.

On a CPU a reload takes a second for each GB, whatever the disk gives, so that the disk is slowed down as much, by a
control group of this process: a reload from it takes 2.7 times as long as one from the page cache. That is what was
measured of 30 GB on a GPU: 15.1 s and 5.5 s (https://github.com/vllm-project/vllm/pull/52462).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import page_cache
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.page_cache import Place, Warmer
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher

from tests.playbooklib import complete
from tests.serverlib import ROOT, Server, free_port, real_command, real_settings, real_venv, start_real

LARGE, TINY = "large", "tiny-a"
# Of the request that the tiny model finishes while the weights of the large one are read: four seconds, less than they
# take, so that the reading goes on beside the reload.
TOKENS = 1400
DISK_BYTES = 340_000_000  # in a second
CGROUP = Path("/sys/fs/cgroup")
LENGTH = 4096
RAM = Path("/dev/shm")
# Copies as much RAM as it is told, as a sleep at level 1 does, and prints the seconds. The pages are new each time.
COPY = """
import sys, time
held = bytearray(b"x") * int(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    bytes(held)
    print(time.perf_counter() - began, flush=True)
"""


class Pair:
    """The two models on real vLLM; C(folder) has the large one's weights."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.venv = real_venv()
        self.place = Place((str(weights / LARGE),))
        python, script = self.venv / "bin/python", ROOT / "tools/real_vllm_models.py"
        subprocess.run([python, script, "--large", weights, LARGE], stdin=subprocess.DEVNULL, check=True)
        self.stack = folder / "stack"
        self.models: list[dict[str, Any]] = []
        self.servers: dict[str, Server] = {}
        for name, path in ((LARGE, str(weights / LARGE)), (TINY, TINY)):
            port = free_port()
            self.servers[name] = start_real(
                self.venv, path, names=[name], port=port, log=folder / f"{name}.log", max_model_len=LENGTH
            )
            command = real_command(self.venv, path, port, [name], LENGTH)
            level = "2" if name == LARGE else "1"
            self.models.append(
                {
                    "id": name,
                    "model": str(weights / LARGE) if name == LARGE else name,
                    "host_port": port,
                    "start_command": command,
                    "env": real_settings(self.venv),
                    "sleep_level": level,
                    "weights_gb": 0.01,
                }
            )
            self.servers[name].call("POST", f"/sleep?level={level}", timeout=300).raise_for_status()
        one_core(self.servers[TINY])

    def read_ahead(self) -> None:
        """Read them, as the command `warm` does."""
        with ThreadPoolExecutor(1) as pool:  # whose thread keeps the low priority
            pool.submit(Warmer(self.place, 1e12).run).result()
        seen = page_cache.look(self.place)
        # A machine may drop a part at once of what nobody has used for seconds.
        assert seen.cached is not None and seen.cached > 0.9 * seen.size, seen

    def reload(self) -> float:
        """Return the seconds that the large model takes to load its weights again."""
        server = self.servers[LARGE]
        began = time.perf_counter()
        body = {"method": "reload_weights"}
        server.call("POST", "/collective_rpc", json=body, timeout=600).raise_for_status()
        return time.perf_counter() - began

    def switch(self, name: str, warm: bool) -> Result:
        """Make one of them active."""
        settings = {"warm": warm, "canary": "off", "drain_timeout_seconds": 300, "request_timeout_seconds": 600}
        with Switcher(parse(self.models, settings), str(self.stack)) as switcher:
            return switcher.switch(name)

    def timed_switch(self, warm: bool, busy: bool) -> float:
        """Return the seconds of a switch to the large model, while the tiny one finishes a request or has none."""
        self.switch(TINY, warm=False)
        drop(self.place)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(complete, self.servers[TINY].port, TINY, TOKENS) if busy else None
            while asked and not self.runs(TINY):
                assert not asked.done(), asked.result()
                time.sleep(0.01)
            result = self.switch(LARGE, warm)
            assert not asked or asked.result()["finish_reason"] == "length"
        read = [step for step in result.steps if "read ahead" in step.get("note", "")]
        assert bool(read) == (warm and busy), result.steps
        return result.elapsed_seconds

    def runs(self, name: str) -> bool:
        """Whether a model works on a request."""
        text = requests.get(f"{self.servers[name].url}/metrics", timeout=10).text
        lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
        return any(float(line.split()[-1]) > 0 for line in lines)

    def stop(self) -> None:
        """End both."""
        for server in self.servers.values():
            server.stop()


def one_core(server: Server) -> None:
    """Keep all threads of a server, which are one session, on the first core."""
    shown = subprocess.run(["ps", "-s", str(server.pid), "-L", "-o", "tid="], stdout=subprocess.PIPE, check=True)
    threads = [int(thread) for thread in shown.stdout.split()]
    assert len(threads) > 1, threads
    for thread in threads:
        os.sched_setaffinity(thread, {min(os.sched_getaffinity(0))})


def drop(place: Place) -> None:
    """Have the page cache forget the weights; those in RAM stay."""
    for path in page_cache.files_of(place):
        descriptor = os.open(path, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    seen = page_cache.look(place)
    assert seen.size > 2e9, seen
    assert seen.cached == 0 or str(RAM) in place.folders[0], seen


@contextlib.contextmanager
def slow_disk(folder: Path) -> Iterator[None]:
    """Let this process, and whatever it starts within, read no faster from the disk of the folder. Needs root."""
    device = os.stat(folder).st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    disk = block.parent if (block / "partition").exists() else block
    number = (disk / "dev").read_text(encoding="ascii").strip()
    old = CGROUP / "blkio"
    above = old if old.is_dir() else CGROUP
    group = above / f"homegpt-bench-{os.getpid()}"
    group.mkdir()
    try:
        if above == old:
            (group / "blkio.throttle.read_bps_device").write_text(f"{number} {DISK_BYTES}", encoding="ascii")
        else:
            (above / "cgroup.subtree_control").write_text("+io", encoding="ascii")
            (group / "io.max").write_text(f"{number} rbps={DISK_BYTES}", encoding="ascii")
        before = _group_of_this_process(above)
        (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        try:
            yield
        finally:
            for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
                with contextlib.suppress(ProcessLookupError):
                    (before / "cgroup.procs").write_text(pid, encoding="ascii")
    finally:
        group.rmdir()


def _group_of_this_process(above: Path) -> Path:
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    kind = "blkio" if above.name == "blkio" else ""
    name = next(path for _number, kinds, path in (line.split(":", 2) for line in lines) if kind in kinds.split(","))
    return above / name.lstrip("/")


@contextlib.contextmanager
def running(folder: Path, weights: Path) -> Iterator[Pair]:
    """The two models, whose servers end with the block."""
    folder.mkdir()
    pair = Pair(folder, weights)
    try:
        yield pair
    finally:
        pair.stop()


def by_turns(number: int, one: Any, other: Any) -> float:
    """Return what one takes over what the other takes; each comes first as often as the other."""
    if number % 2:
        first = one()
        return float(first / other())
    second = other()
    return float(one() / second)


def measure(folder: Path, rounds: int) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return the ratios: of a reload, of a switch, of a switch whose weights are in RAM, and of a copy within RAM."""
    disk: tuple[list[float], list[float]] = ([], [])
    with slow_disk(folder), running(folder / "disk", folder) as pair:

        def reload(ahead: bool) -> float:
            drop(pair.place)
            if ahead:
                pair.read_ahead()
            return pair.reload()

        pair.switch(LARGE, warm=False)
        for number in range(rounds):
            disk[0].append(by_turns(number, lambda: reload(True), lambda: reload(False)))
        for number in range(rounds):
            disk[1].append(
                by_turns(number, lambda: pair.timed_switch(True, True), lambda: pair.timed_switch(False, True))
            )
    copies = measure_copies(pair.place, rounds)
    with tempfile.TemporaryDirectory(dir=RAM) as weights, running(folder / "ram", Path(weights)) as pair:
        pair.switch(LARGE, warm=False)
        in_ram = [
            by_turns(number, lambda: pair.timed_switch(True, False), lambda: pair.timed_switch(False, False))
            for number in range(9 * rounds)  # each differs by ten times of what is looked for
        ]
    shutil.rmtree(folder / LARGE)
    return *disk, in_ram, copies


def measure_copies(place: Place, rounds: int) -> list[float]:
    """Return how long a copy within RAM takes while weights are read, over how long it takes alone."""
    copy = [sys.executable, "-c", COPY, "1000000000"]
    with subprocess.Popen(copy, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()

        def seconds(reading: bool) -> float:
            assert process.stdin
            assert process.stdout
            drop(place)
            warmer = Warmer(place, 1e12)
            if reading:
                warmer.begin()
                time.sleep(0.1)
            process.stdin.write("\n")
            process.stdin.flush()
            took = float(process.stdout.readline())
            read = warmer.stop()
            assert bool(read.read) == reading
            return took

        ratios = [by_turns(number, lambda: seconds(True), lambda: seconds(False)) for number in range(rounds)]
        process.stdin.close()
    return ratios
