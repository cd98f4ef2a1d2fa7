# SPDX-License-Identifier: MIT
"""One of the hosts behind a door: what its manager tells, whether it is up, and switches that it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .door_client import Connection, Unanswered
from .door_models import KEYS, HostView, Server

_LOG = logging.getLogger(__name__)

# A manager that has nothing new says so after this time, and has so much more for it: a host that hangs is left out
# within a second.
_WAIT_SECONDS = 0.3
_LATE_SECONDS = 0.6
_CONNECT_SECONDS = 0.6
_RETRY_SECONDS = 0.25
# Requests of this door that its manager may still count have ended for so long at most.
_COUNTED_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class HostConfig:
    """How a host is reached. The addresses are names or IP addresses."""

    name: str
    address: str
    port: int
    manager_address: str
    manager_port: int
    tls: bool = False
    api_key: str = ""
    manager_token: str = ""


class Switched(NamedTuple):
    """What has become of a switch that a host was asked for; the status is that of HTTP, 0 where it did not answer."""

    status: int
    reason: str


class RemoteHost:
    """A host. `changed` is called when what is known of it is something else than before."""

    def __init__(self, config: HostConfig, changed: Callable[[], None], clock: Callable[[], float]) -> None:
        self.config = config
        self.name = config.name
        # Whether it has been asked at all, and when it was up last or began to be asked.
        self.tried = False
        self.seen_at = clock()
        self.models: dict[str, Mapping[str, Any]] = {}
        self._changed = changed
        self._clock = clock
        self._up = False
        self._why = "it was not asked yet"
        self._server: Server | None = None
        self._waiting = 0
        self._in_flight: dict[str, int] = {}
        self._load: dict[str, int] = {}
        # Requests of this door by model, with the time until which its manager may count them.
        self._own: dict[str, list[tuple[float, int]]] = {}

    def view(self) -> HostView:
        """It, as it is known now."""
        in_flight = sum(self._in_flight.values())
        return HostView(self.name, self._up, self._why, self._server, self.models, self._waiting, in_flight, self._load)

    def own(self, model: str, in_flight: int) -> None:
        """So many requests does this door have for the model there."""
        now = self._clock()
        kept = [one for one in self._own.get(model, ()) if one[0] > now and one[1] > in_flight]
        self._own[model] = [*kept, (now + _COUNTED_SECONDS, in_flight)]

    def measure(self) -> None:
        """See how many requests others have there: without ours, as its manager may have counted them a moment ago."""
        now, own = self._clock(), {}
        for model in self._in_flight:
            own[model] = max((number for until, number in self._own.get(model, ()) if until > now), default=0)
        self._load = {model: counted - own[model] for model, counted in self._in_flight.items() if counted > own[model]}

    async def follow(self) -> None:
        """Know what its manager tells, for ever."""
        while True:
            connection = None
            try:
                connection = await Connection.open(
                    self.config.manager_address, self.config.manager_port, self.config.manager_token, _CONNECT_SECONDS
                )
                address = await self._address(connection.peer)
                tag = ""
                while True:
                    answer = await connection.ask(
                        "GET", f"/gateway?wait={_WAIT_SECONDS}", tag=tag, seconds=_WAIT_SECONDS + _LATE_SECONDS
                    )
                    if answer.status not in (200, 304):
                        raise Unanswered(f"its manager answers {answer.status}: {_error(answer.body)}")
                    tag = answer.tag
                    if answer.status == 200:
                        self._take(answer.body, address)
                    else:
                        self.seen_at = self._clock() if self._up else self.seen_at
            except Unanswered as reason:
                self._lose(str(reason))
            except Exception as mistake:  # whatever it is, the host has to be asked again
                try:
                    self._lose(_senseless(mistake))
                except Exception:
                    _LOG.exception("what %s has told can't be used", self.name)
            finally:
                if connection:
                    connection.close()
            await asyncio.sleep(_RETRY_SECONDS)

    async def switch(self, model: str) -> Switched:
        """Ask for a switch to a model, and wait until it has ended. Whoever cancels this takes it back."""
        connection = None
        try:
            connection = await Connection.open(
                self.config.manager_address, self.config.manager_port, self.config.manager_token, _CONNECT_SECONDS
            )
            answer = await connection.ask("POST", "/switch", body={"model_id": model})
        except Unanswered as reason:
            return Switched(0, str(reason))
        except Exception as mistake:
            return Switched(0, _senseless(mistake))
        finally:
            if connection:
                connection.close()
        return Switched(answer.status, "" if answer.status == 200 else _error(answer.body))

    async def _address(self, peer: str) -> str:
        """The address of its gateway, as a number: nginx resolves no names. `peer` is that of its manager."""
        address = peer
        # Of the addresses of a name, the manager's connection has found one that answers.
        if self.config.address != self.config.manager_address:
            try:
                found = await asyncio.wait_for(
                    asyncio.get_running_loop().getaddrinfo(self.config.address, self.config.port), _CONNECT_SECONDS
                )
            except (OSError, asyncio.TimeoutError, TimeoutError):
                raise Unanswered(f"there is no address of {self.config.address}") from None
            address = str(found[0][4][0])
        # Without its brackets nginx takes the end of one for a port.
        return f"[{address}]" if ":" in address else address

    def _take(self, told: Mapping[str, Any], address: str) -> None:
        # What is missing shows here, and not where many hosts are put together.
        self.models = {str(one["id"]): {key: one[key] for key in KEYS} for one in told["models"]}
        self._waiting = sum(int(number) for number in told["waiting"].values())
        self._in_flight = {str(model): int(number) for model, number in told["in_flight"].items()}
        config = self.config
        self._server = Server(self.name, address, config.port, config.tls, config.api_key or None)
        if int(told["links"]) == 0:
            self._lose("its gateway does not run")
            return
        self.seen_at, self.tried = self._clock(), True
        if not self._up:
            self._up, self._why = True, ""
            _LOG.info("%s is up", self.name)
        self._changed()

    def _lose(self, why: str) -> None:
        if self._up or why != self._why:
            _LOG.warning("%s is left out: %s", self.name, why)
        self._up, self._why, self.tried = False, why, True
        self._changed()


def _senseless(mistake: Exception) -> str:
    return f"its manager's answer makes no sense ({mistake!r}): is it of the same release?"


def _error(body: Any) -> str:
    """What a manager says is wrong, in a line."""
    text = body.get("error") if isinstance(body, dict) else None
    return str(text).split("\n", 1)[0] if text else "it does not say why"


@contextlib.asynccontextmanager
async def following(hosts: list[RemoteHost]):  # type: ignore[no-untyped-def]
    """Follow all of them while the block runs."""
    tasks = [asyncio.ensure_future(host.follow()) for host in hosts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
