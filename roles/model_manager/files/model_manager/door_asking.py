# SPDX-License-Identifier: MIT
"""Which host is asked to make a model active for those who wait at a door, and what is said when none does.

One host at a time is asked for a model, the cheapest first. One that is lost or fails is followed by the next; only
when none is left are those who wait refused.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from . import door_models
from .door_host import RemoteHost, Switched
from .door_models import HostView

_LOG = logging.getLogger(__name__)

# A host that was lost comes back within this time, or nobody waits for it any more: its manager was started again.
GRACE_SECONDS = 5.0
# A host that has switched has opened its gate by then, or something else was switched to there.
_OPEN_SECONDS = 3.0
# A host that has not answered, or can't now, is asked again after this time.
_AGAIN_SECONDS = 1.0
# A host where a switch to a model has failed is not asked for it for so long, longer each time.
_REST_SECONDS = (10.0, 300.0)


# No answer, too many requests, a full queue or a manager that ends.
_LATER = (0, 429, 503)


class Refusal(NamedTuple):
    """Why those who wait for a model do so in vain; `retry` is in how many seconds they may try again."""

    status: int
    code: str
    message: str
    retry: float | None = None


@dataclasses.dataclass
class _Ask:
    """The search for a host of one model: those that were asked, and what they said."""

    host: str = ""
    task: asyncio.Task[None] | None = None
    said: dict[str, Switched] = dataclasses.field(default_factory=dict)


class Asking:
    """The searches of all models. `settle` is called with a model when there is something new in its search."""

    def __init__(
        self, hosts: Mapping[str, RemoteHost], settle: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._hosts = hosts
        self._settle = settle
        self._clock = clock
        self._asks: dict[str, _Ask] = {}
        # By host and model: until when it is not asked, and how often it has failed in a row.
        self._resting: dict[tuple[str, str], tuple[float, int]] = {}

    def host_of(self, model: str) -> str:
        """Which host is asked for a model now; empty: none."""
        ask = self._asks.get(model)
        return ask.host if ask and ask.task else ""

    def stop(self, model: str) -> None:
        """Nobody waits for the model any more, or it is active: take back what was asked for."""
        ask = self._asks.pop(model, None)
        if ask and ask.task:
            ask.task.cancel()

    def opened(self, host: str, model: str) -> None:
        """A host has the model active: whatever has failed there is over."""
        self._resting.pop((host, model), None)

    def see(self, model: str, views: list[HostView]) -> Refusal | None:
        """Somebody waits for a model that is active nowhere: have a host asked, or say why not."""
        ask = self._asks.setdefault(model, _Ask())
        having = door_models.declaring(views, model)
        if ask.task:
            if any(host.name == ask.host and host.up for host in having):
                return None
            ask.task.cancel()
            ask.task = None
            _LOG.warning("%s was asked for %s and is lost", ask.host, model)
        now = self._clock()
        free = [one for one in having if one.name not in ask.said and self._rests(one.name, model) <= now]
        asked = self._asked()
        host = door_models.cheapest(free, model, asked)
        if host is None:
            # All others have failed: those that may do better now.
            free = [one for one in having if one.name in ask.said and ask.said[one.name].status in _LATER]
            host = door_models.cheapest(free, model, asked)
        if host:
            ask.host = host.name
            ask.task = asyncio.ensure_future(self._run(ask, self._hosts[host.name], model))
            return None
        if any(not one.up and now - self._hosts[one.name].seen_at < GRACE_SECONDS for one in having):
            return None
        del self._asks[model]
        return self._refusal(model, having, ask.said, now)

    async def close(self) -> None:
        """End all searches."""
        tasks = [ask.task for ask in self._asks.values() if ask.task]
        for model in list(self._asks):
            self.stop(model)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, ask: _Ask, host: RemoteHost, model: str) -> None:
        _LOG.info("%s is asked for %s", host.name, model)
        said = await host.switch(model)
        if said.status == 200:
            # Its gate opens, which ends this. Else it has made room again at once, and is asked again like any other.
            await asyncio.sleep(_OPEN_SECONDS)
            self._asks.pop(model, None)
        elif said.status == 504:
            self._asks.pop(model, None)  # the switch goes on there, and is joined again
        elif said.status in _LATER:
            await asyncio.sleep(_AGAIN_SECONDS)
            ask.said[host.name] = said
        else:
            _LOG.warning("%s has not switched to %s: %s", host.name, model, said.reason)
            ask.said[host.name] = said
            if said.status in (500, 502):
                self._rest(host.name, model)
        ask.task = None
        self._settle(model)

    def _asked(self) -> dict[str, list[str]]:
        """Which models each host is asked for now."""
        found: dict[str, list[str]] = {}
        for model, ask in self._asks.items():
            if ask.task:
                found.setdefault(ask.host, []).append(model)
        return found

    def _rests(self, host: str, model: str) -> float:
        return self._resting.get((host, model), (0.0, 0))[0]

    def _rest(self, host: str, model: str) -> None:
        failures = self._resting.get((host, model), (0.0, 0))[1] + 1
        least, most = _REST_SECONDS
        self._resting[host, model] = self._clock() + min(most, least * 2 ** (failures - 1)), failures

    def _refusal(self, model: str, having: list[HostView], said: Mapping[str, Switched], now: float) -> Refusal:
        reasons, rest = [], []
        for host in having:
            if host.name in said:
                reasons.append(f"{host.name}: {said[host.name].reason}")
            elif not host.up:
                reasons.append(f"{host.name} can't be reached: {host.why}")
            else:
                rest.append(self._rests(host.name, model) - now)
                reasons.append(f"{host.name} has failed at it and is asked again later")
        message = f"{model} can't be made active: {'; '.join(reasons)}"
        if rest:
            return Refusal(503, "switch_failed" if said else "model_failing", message, max(1.0, min(rest)))
        if said and all(one.status == 409 for one in said.values()):
            return Refusal(409, "model_unavailable", message)
        return Refusal(503, "switch_failed" if said else "model_unavailable", message)
