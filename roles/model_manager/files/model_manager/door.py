# SPDX-License-Identifier: MIT
"""The door of many hosts: `python3 -m model_manager.door CONFIG`.

It is to a gateway what the manager is to that of its own host, but decides nothing about models: it asks the managers
of the hosts what is active where, and for a switch where nothing is. It needs Python alone, no packages.

It ends on SIGTERM. Exit status: 0 ended as asked, 1 failed, 2 set up wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from . import door_models, gateway_link
from .config import ConfigError
from .door_asking import Asking, Refusal
from .door_config import DoorConfig, read
from .door_host import RemoteHost, following
from .door_models import KEYS, HostView
from .door_room import DoorRoom
from .gateway_counts import Link, Version

_LOG = logging.getLogger("model_manager.door")
_TICK_SECONDS = 0.5
# Hosts that have not answered by then are down.
_FIRST_SECONDS = 1.5
_TELL_SECONDS = 2.0


class Door:
    """What the workers of the gateway are told, by what the hosts tell. All of it runs in one event loop."""

    def __init__(self, config: DoorConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.hosts = {one.name: RemoteHost(one, self.refresh, clock) for one in config.hosts}
        self._models_file = config.models_file
        self._asking = Asking(self.hosts, self._settle, clock)
        self._room = DoorRoom(self, clock)
        self._links: list[Link] = []
        self._views: list[HostView] = []
        self._shown: list[dict[str, Any]] = []
        self._boot, self._number = int(time.time() * 1000), 0
        self._began = self._told_at = clock()
        self._kept = ""
        self._seq = 0
        self._recall()
        self._look()

    # The workers; gateway_link calls these.

    def connected(self, link: Link) -> None:
        """A worker has come: tell it all, as soon as all hosts were asked."""
        self._links.append(link)
        self._room.connected(link)
        if self._is_ready():
            link.send(self._message())

    def lost(self, link: Link) -> None:
        """A worker has gone."""
        if link in self._links:
            self._links.remove(link)
            self._room.lost(link)

    def take(self, link: Link, messages: Iterable[Mapping[str, Any]]) -> None:
        """What a worker says, in order. Raises ValueError, KeyError, TypeError or AttributeError at what is wrong."""
        concerned: dict[str | None, None] = {}
        try:
            for message in messages:
                kind = message["t"]
                if kind == "wait":
                    concerned[self._room.wait(link, message)] = None
                elif kind == "gone":
                    concerned[self._room.gone(link, int(message["id"]))] = None
                elif kind == "counts":
                    self._count(message)
        finally:
            for model in concerned:
                if model is not None:
                    self._room.settle(model)

    def tick(self) -> float:
        """Do what is due; in how many seconds to call this again."""
        # Not with each change: that would be a message to all workers with each request of others.
        for host in self.hosts.values():
            host.measure()
        self.refresh()
        # Before the first state, they hold none that they could name.
        if self._links and self._number:
            self._seq += 1
            self._links[0].send({"t": "counts?", "seq": self._seq})
            # One that hangs is not asked for ever.
            self._links.append(self._links.pop(0))
        if self._clock() - self._told_at >= _TELL_SECONDS:
            self._told_at = self._clock()
            self._room.tell_places()
        return _TICK_SECONDS

    # The models; the room asks for these.

    def find(self, name: str) -> str | None:
        """The id of the model with this name."""
        return door_models.find(self._views, name)

    def is_open(self, model: str) -> bool:
        """Whether a host has it active."""
        return any(host.has_open(model) for host in self._views)

    def eta(self, model: str) -> float | None:
        """In how many seconds it may be active: by the host that is asked for it, else by the cheapest."""
        asked = self._asking.host_of(model)
        host = next((one for one in self._views if one.name == asked), None)
        host = host or door_models.cheapest(self._views, model)
        found = host.models[model]["eta_seconds"] if host and model in host.models else None
        return None if found is None else float(found)

    def ask(self, model: str) -> Refusal | None:
        """Somebody waits for it: see that a host makes it active, or say why none does."""
        return self._asking.see(model, self._views)

    def leave(self, model: str) -> None:
        """Nobody waits for it any more."""
        self._asking.stop(model)

    # The hosts.

    def refresh(self) -> None:
        """Something may be new with the hosts: tell the workers, and see to those who wait."""
        was_ready = bool(self._number)
        news = self._look()
        if self._is_ready() and (news or not was_ready):
            self._number += 1
            message = self._message()
            for link in self._links:
                link.send(message)
            self._keep()
        self._room.settle_all()

    async def close(self) -> None:
        """End what is asked of the hosts."""
        await self._asking.close()

    def _settle(self, model: str) -> None:
        self._room.settle(model)

    def _look(self) -> bool:
        """Take over what the hosts tell; whether the message is another one."""
        self._views = [host.view() for host in self.hosts.values()]
        for host in self._views:
            for model in host.models:
                if host.has_open(model):
                    self._asking.opened(host.name, model)
        shown = door_models.state(self._views)
        news, self._shown = shown != self._shown, shown
        return news

    def _is_ready(self) -> bool:
        """Whether all hosts were asked: from then on, the list of the models is complete."""
        return self._clock() - self._began >= _FIRST_SECONDS or all(host.tried for host in self.hosts.values())

    def _message(self) -> bytes:
        told = {"t": "state", "version": (self._boot, self._number), "models": self._shown}
        return json.dumps(told, separators=(",", ":")).encode() + b"\n"

    def _count(self, message: Mapping[str, Any]) -> None:
        """What the workers have at the servers, and which state they hold."""
        boot, number = message["version"]
        version: Version = (int(boot), int(number))
        if version > (self._boot, self._number):
            # The clock was set back since that state was made.
            self._boot, self._number = version[0] + 1, 0
            self._shown = []
            self.refresh()
        for model, one in (message["counts"] or {}).items():
            servers = one.get("servers") or {}
            for name, host in self.hosts.items():
                host.own(str(model), int(servers.get(name, 0)) if isinstance(servers, dict) else 0)

    # What is known of the models of hosts that are down when the door is started.

    def _recall(self) -> None:
        try:
            with open(self._models_file, encoding="utf-8") as file:
                known = json.load(file)
            for name, models in known.items():
                if name in self.hosts:
                    self.hosts[name].models = {one["id"]: {key: one[key] for key in KEYS} for one in models}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _LOG.warning("%s can't be used (%s): models of hosts that are down are not known", self._models_file, error)

    def _keep(self) -> None:
        known = {
            name: [{**one, "gate": door_models.CLOSED, "state": "stopped", "eta_seconds": None} for one in models]
            for name, models in ((host.name, host.models.values()) for host in self.hosts.values())
        }
        # Entries say what a model is at the moment; that alone is no reason to write.
        lasting = json.dumps(
            {name: [(one["id"], one["names"], one["adapters"]) for one in models] for name, models in known.items()}
        )
        if lasting == self._kept:
            return
        try:
            new = self._models_file + ".new"
            with open(new, "w", encoding="utf-8") as file:
                json.dump(known, file)
            os.replace(new, self._models_file)
            self._kept = lasting
        except OSError as error:
            _LOG.warning("%s can't be written (%s)", self._models_file, error.strerror)


async def serve(config: DoorConfig, token: str, listening: socket.socket) -> None:
    """Serve the gateway's workers until a signal asks to end."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    door = Door(config)
    async with gateway_link.serving(door, token, listening), following(list(door.hosts.values())):
        try:
            await ended.wait()
        finally:
            await door.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 -m model_manager.door", description="Serve the models of many hosts."
    )
    parser.add_argument("config", help="the JSON file of the settings")
    parser.add_argument("--check", action="store_true", help="only check the settings")
    options = parser.parse_args(argv)
    # The journal has the time of each line.
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        config = read(options.config)
        if options.check:
            return 0
        token = gateway_link.read_token(config)
        listening = gateway_link.listen(config)
    except ConfigError as error:
        _LOG.error("%s", error)
        return 2
    except OSError as error:
        _LOG.error("%s", error)
        return 1
    with contextlib.closing(listening):
        asyncio.run(serve(config, token, listening))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
