# SPDX-License-Identifier: MIT
"""Try the models' ports from a neighbour's place: neighbour.py '[{"id": ..., "port": ..., "container": ...}, ...]'

The neighbour is a network namespace, joined to this host by a pair of interfaces that ends with it. It has a route by
the host to the host's 127.0.0.0/8 and to everything else, as everybody on its network segment may have. Only what
answers the host itself is tried, so that silence tells something, and only when the neighbour's packets arrive here.
C(container) is empty for a server without one. IPv4 alone: nothing of the stack listens on IPv6.

Prints one line of JSON: C(open), sentences on what the neighbour has reached; C(not_tried), on what could not be tried
and why; C(closed), how many addresses were tried in vain. Exits with 0 whatever was found.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

PATHS = ("/is_sleeping", "/metrics", "/v1/models")
SECONDS = 2.0  # for an answer across a few interfaces of one machine
CLONE_NEWNET = 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# A network for tests of network devices (RFC 2544), which no host uses. Each run has four addresses of its own.
NETWORK = "198.18.{}.{}"


class NotTried(Exception):
    """Why nothing can be tried."""


def run(*command: str) -> str:
    """Return what a command printed; raise NotTried where it failed."""
    ended = subprocess.run(command, capture_output=True, timeout=20, check=False)
    if ended.returncode:
        raise NotTried("{}: {}".format(" ".join(command), ended.stderr.decode(errors="replace").strip()))
    return ended.stdout.decode(errors="replace")


def reached(targets: list[tuple[str, int]]) -> set[tuple[str, int]]:
    """Return the addresses that accept a connection."""
    waiting = {}
    for target in targets:
        made = socket.socket()
        made.setblocking(False)
        if made.connect_ex(target) in (0, errno.EINPROGRESS):
            waiting[made.fileno()] = made, target
        else:
            made.close()
    found = set()
    poll = select.poll()
    for number in waiting:
        poll.register(number, select.POLLOUT)
    end = time.monotonic() + SECONDS
    while waiting and end > time.monotonic():
        for number, _events in poll.poll(max(0.0, end - time.monotonic()) * 1000):
            poll.unregister(number)
            made, target = waiting.pop(number)
            if not made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                found.add(target)
            made.close()
    for made, _target in waiting.values():
        made.close()
    return found


def answers(target: tuple[str, int]) -> str:
    """Return what the server says to the neighbour."""
    told = []
    for path in PATHS:
        connection = http.client.HTTPConnection(*target, timeout=SECONDS)
        try:
            connection.request("GET", path)
            told.append(f"{path} {connection.getresponse().status}")
        except (OSError, http.client.HTTPException) as error:
            told.append(f"{path} {type(error).__name__}")
        finally:
            connection.close()
    return ", ".join(told)


def containers(names: list[str]) -> dict[str, list[tuple[str, int]]]:
    """Return the addresses and ports of the containers that there are, by name."""
    if not names or not shutil.which("docker"):
        return {}
    command = ["docker", "inspect", "--type", "container", *names]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=False)
    try:
        seen = json.loads(ended.stdout.decode() or "[]")
    except ValueError:
        return {}
    found = {}
    for one in seen:
        ports = [
            int(port.partition("/")[0]) for port in one["HostConfig"]["PortBindings"] or {} if port.endswith("tcp")
        ]
        networks = (one["NetworkSettings"]["Networks"] or {}).values()
        addresses = [network["IPAddress"] for network in networks if network.get("IPAddress")]
        found[one["Name"].lstrip("/")] = [(address, port) for address in addresses for port in ports]
    return found


def own_addresses() -> list[str]:
    """Return the addresses of this host but those of loopback."""
    words = [line.split() for line in run("ip", "-4", "-o", "address", "show").splitlines()]
    found = [line[line.index("inet") + 1].partition("/")[0] for line in words if "inet" in line]
    return [address for address in found if not address.startswith("127.")]


def within(host: str, own: str, name: str, targets: list[tuple[str, int]]) -> dict[str, object]:
    """Be the neighbour: return what is reached, and what that says; raise NotTried."""
    run("ip", "address", "add", own + "/30", "dev", name)
    run("ip", "link", "set", name, "up")
    # What comes from a loopback address is taken, as a neighbour would.
    with open("/proc/sys/net/ipv4/conf/all/route_localnet", "w", encoding="ascii") as setting:
        setting.write("1")
    run("ip", "route", "add", "default", "via", host, "dev", name)
    run("ip", "route", "add", "127.0.0.0/8", "via", host, "dev", name)
    found = reached(targets)
    if "lladdr" not in run("ip", "neighbour", "show", host, "dev", name):
        raise NotTried("packets from a neighbour do not reach this host")
    return {"reached": [[*target, answers(target)] for target in sorted(found)]}


def neighbour(targets: list[tuple[str, int]]) -> list[tuple[str, int, str]]:
    """Return what a neighbour reaches of the targets, and what that says to it; raise NotTried where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()
    name = f"hgn{parent}"
    block = parent * 4 % 65536
    host, own = (NETWORK.format(block // 256, block % 256 + n) for n in (1, 2))
    ready, go, answer = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                return []
            for end in (ready[0], go[1], answer[0]):
                os.close(end)
            told: dict[str, object]
            try:
                if libc.unshare(CLONE_NEWNET):
                    raise NotTried("can't create a network namespace: " + os.strerror(ctypes.get_errno()))
                os.write(ready[1], b"1")
                os.close(ready[1])
                if not os.read(go[0], 1):
                    return []
                told = within(host, own, name, targets)
            except (NotTried, OSError, subprocess.SubprocessError) as error:
                told = {"not_tried": str(error)}
            with os.fdopen(answer[1], "w") as out:
                json.dump(told, out)
            status = 0
        finally:
            os._exit(status)
    for end in (ready[1], go[0], answer[1]):
        os.close(end)
    try:
        # Nothing where the child could not make the namespace; its reason is read below.
        if os.read(ready[0], 1):
            run("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", str(child))
            quiet = f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6"
            if os.path.exists(quiet):
                with open(quiet, "w", encoding="ascii") as setting:
                    setting.write("1")
            run("ip", "address", "add", host + "/30", "dev", name)
            run("ip", "link", "set", name, "up")
            os.write(go[1], b"1")
        os.close(go[1])
        with os.fdopen(answer[0]) as said:
            told = json.loads(said.read() or '{"not_tried": "the neighbour process ended without output"}')
    finally:
        # At the latest they end with the namespace, and that with the child; but the kernel takes its time for it.
        with contextlib.suppress(NotTried, OSError, subprocess.SubprocessError):
            run("ip", "link", "delete", name)
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if "not_tried" in told:
        raise NotTried(told["not_tried"])
    return [tuple(one) for one in told["reached"]]


def main() -> int:
    """See the module."""
    signal.alarm(100)
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.environ["LC_ALL"] = "C"
    models = json.loads(sys.argv[1])
    targets: dict[tuple[str, int], str] = {}
    not_tried: list[str] = []
    found: list[str] = []
    closed = 0
    try:
        if os.geteuid():
            raise NotTried("requires root (ansible_become)")
        if not shutil.which("ip"):
            raise NotTried("the command ip is missing (package iproute2)")
        inside = containers([model["container"] for model in models if model["container"]])
        addresses = own_addresses()
        for model in models:
            port = model["port"]
            loopback = ("127.0.0.1", port)
            targets[loopback] = model["id"]
            targets.update(((address, port), model["id"]) for address in addresses)
            targets.update((target, model["id"]) for target in inside.get(model["container"], []))
        here = reached(list(targets))
        # A server of a start_command may listen at another address of the host alone.
        heard = {targets[target] for target in here}
        silent = [model["id"] for model in models if model["id"] not in heard]
        for target in set(targets) - here:
            del targets[target]
        if targets:
            for address, port, said in neighbour(list(targets)):
                found.append(f"{targets[address, port]}: {address}:{port} answers neighbours of this host ({said})")
            closed = len(targets) - len(found)
        if silent:
            not_tried = [
                ", ".join(silent) + ": nothing listens on these ports; run site again when the models are loaded"
            ]
    except (NotTried, OSError, subprocess.SubprocessError) as error:
        not_tried = ["{}: {}".format(", ".join(model["id"] for model in models), error)]
    print(json.dumps({"open": sorted(found), "not_tried": not_tried, "closed": closed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
