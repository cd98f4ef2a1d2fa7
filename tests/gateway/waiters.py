# SPDX-License-Identifier: MIT
"""What thousands of waiters cost the gateway, and whether all of them are answered.

    python -m tests.gateway.waiters [--waiters 5000] [--seconds 60] [--workers 1]

Half of them are streams, of which half are Open WebUI's. The memory is that of nginx's workers (RssAnon), without
the kernel's for the connections; CPU time is theirs while all wait. Fails if one is above the limits below, or a waiter
has no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".build"))  # pytest knows that by itself

from tests.gateway.fake_link import model, playing
from tests.gateway.gatewaylib import Gateway
from tests.gateway.played import DONE, token
from tests.serverlib import free_port

MOST_BYTES = 20_000
MOST_CPU = 0.03


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests of one connection, streams and others."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            stream = json.loads(await reader.readexactly(length))["stream"]
            text = (token("Hello") + DONE if stream else '{"ok": true}').encode()
            kind = "text/event-stream" if stream else "application/json"
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


class Server:
    """The model's server, on a loop of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()

        def run() -> None:
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", self.port, backlog=4096))
            ready.set()
            self.loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        ready.wait(10)


def request(number: int) -> bytes:
    """One of the waiters' requests."""
    stream = number % 2 == 1
    body = json.dumps(
        {"messages": [{"role": "user", "content": "Hi " * 50}], "model": "qwen", "stream": stream}
    ).encode()
    webui = "X-OpenWebUI-Chat: c\r\n" if number % 4 == 1 else ""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    return f"{head}{webui}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def wait_one(number: int, port: int) -> str:
    """Ask, and read to the end. Returns what was wrong with the answer, or nothing."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as problem:
        return f"no connection: {problem}"
    try:
        writer.write(request(number))
        text = await reader.read(-1)
    except OSError as problem:
        return f"the connection was lost: {problem}"
    finally:
        writer.close()
    end = (DONE.strip() if number % 2 else '{"ok": true}').encode()
    return "" if text.startswith(b"HTTP/1.1 200") and end in text else text[-300:].decode(errors="replace")


async def ask(count: int, port: int, came: list[str]) -> None:
    """Ask so many times at once; what is wrong with each answer goes into `came`."""
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(wait_one(number, port)))
        tasks[-1].add_done_callback(lambda task: came.append(task.result()))
        if number % 50 == 49:
            await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)


def memory(pids: list[int]) -> int:
    """The memory of processes that is theirs alone, in bytes."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def cpu(pids: list[int]) -> float:
    """The CPU seconds of processes."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


class Waited(NamedTuple):
    """The memory of each in bytes, the share of a core while they waited, and who of them was answered."""

    bytes_each: float
    bytes_each_at_most: float
    cpu: float
    answered: int
    answered_seconds: float
    in_flight: int
    wrong: list[str]


def measure(count: int, seconds: float, workers: int = 1) -> Waited:
    """Have so many wait so long, and let them go."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 3 * count:
        sys.exit(f"This needs {3 * count} open files, and {hard} are allowed: raise the hard limit (ulimit -Hn).")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    server = Server()
    with playing(model("qwen", server.port, "closed")) as manager:
        manager.tell_seconds = 2
        manager.eta = 90
        with Gateway(manager, workers=workers, max_waiting=count, max_waiting_per_model=count) as gateway:
            gateway.wait_known()
            pids = gateway.workers()
            memory_before = memory(pids)
            came: list[str] = []
            client = threading.Thread(target=lambda: asyncio.run(ask(count, gateway.port, came)), daemon=True)
            client.start()
            manager.until(lambda: len(manager.waiters) == count or came, f"{count} wait", 120)
            assert not came, f"somebody does not wait: {came[0]}"
            time.sleep(2)
            each = (memory(pids) - memory_before) / count
            began, used = time.monotonic(), cpu(pids)
            while time.monotonic() - began < seconds:
                time.sleep(1)
                manager.eta = max(5.0, 90 - (time.monotonic() - began))
            share = (cpu(pids) - used) / (time.monotonic() - began)
            most = max(each, (memory(pids) - memory_before) / count)
            manager.open("qwen")
            opened = time.monotonic()
            manager.go("qwen")
            client.join(120)
            took = time.monotonic() - opened
            wrong = [problem for problem in came if problem]
            return Waited(each, most, share, len(came) - len(wrong), took, manager.in_flight(), wrong)


def main() -> int:
    """Run it and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--waiters", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    count = options.waiters
    found = measure(count, options.seconds, options.workers)
    print(f"{count} waiters for {options.seconds:g} s in {options.workers} worker(s):")
    print(
        f"{found.bytes_each / 1000:.1f} kB each when all had come, {found.bytes_each_at_most / 1000:.1f} kB at most; "
        f"{found.cpu:.2%} CPU while they waited;"
    )
    print(f"{found.answered} answered within {found.answered_seconds:.1f} s of the go;")
    print(f"in flight after it: {found.in_flight}")
    for problem in found.wrong[:3]:
        print("wrong:", problem)
    good = found.answered == count and found.in_flight == 0
    good = good and found.bytes_each_at_most <= MOST_BYTES and found.cpu <= MOST_CPU
    print("as it should be" if good else "NOT as it should be")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
