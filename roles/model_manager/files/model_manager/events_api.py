# SPDX-License-Identifier: MIT
"""The events over HTTP: as a stream of server-sent events and as a WebSocket, for a bounded number of readers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, WebSocket
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from .answers import ModelsAnswer
from .asking import get
from .config import Config
from .events import Subscription
from .manager import Manager
from .refusals import Refused

# Proxies close a connection on which nothing comes for a minute.
_ALIVE_SECONDS = 15.0
# Who takes nothing for so long is gone, or hangs.
_TAKE_SECONDS = 60.0

After = Annotated[int | None, Query(ge=0, description="The id of the last event that the reader has had.")]


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, `ended` is called; it ends, too, if the reader no longer takes anything."""

    media_type = "text/event-stream"

    # FastAPI takes the status of its description from this default.
    def __init__(self, frames: AsyncIterator[str], status_code: int = 200, *, ended: Callable[[], None]) -> None:
        # nginx keeps back what it passes on, unless it is told not to.
        super().__init__(frames, status_code, {"X-Accel-Buffering": "no"})
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), _TAKE_SECONDS)

        try:
            await super().__call__(scope, receive, send_in_time)
        except (asyncio.TimeoutError, TimeoutError):
            pass  # the server closes the connection of an answer that is not complete
        finally:
            self._ended()


class EventsApi:
    """The endpoints of the events, one URL for both kinds."""

    def __init__(self, manager: Manager, config: Config) -> None:
        self._manager = manager
        self._config = config
        self._readers: set[Subscription] = set()

    def router(self) -> APIRouter:
        """Their path."""
        router = APIRouter()
        get(router, "/events", self.events, 422, 503, response_class=EventStream)
        router.add_api_websocket_route("/events", self.socket)
        return router

    async def events(
        self,
        after: After = None,
        last_event_id: Annotated[int | None, Header(ge=0, description="As `after`; takes precedence.")] = None,
    ) -> StreamingResponse:
        """What happens, as it happens: server-sent events, whose data is JSON with `id`, `kind`, `at` and `data`.

        A reader that says which event it has had last gets those since then, as far as they are kept. Any other gets
        first one of the kind `snapshot`, whose data is what `/models` answers. The same URL is a WebSocket, whose
        messages are the same objects.
        """
        first, subscription = self._subscribe(after if last_event_id is None else last_event_id)
        return EventStream(_frames(first, subscription), ended=lambda: self._forget(subscription))

    async def socket(self, socket: WebSocket, after: After = None) -> None:
        """The same as a WebSocket."""
        try:
            first, subscription = self._subscribe(after)
        except Refused as refused:
            await socket.close(1013, str(refused))
            return
        try:
            await socket.accept()
            tasks = [
                asyncio.ensure_future(_closed(socket)),
                asyncio.ensure_future(_tell(socket, first, subscription)),
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._forget(subscription)

    def _subscribe(self, after: int | None) -> tuple[list[dict[str, Any]], Subscription]:
        """What to send first, and the subscription to what comes then. No event between them is lost."""
        if len(self._readers) >= self._config.max_readers:
            raise Refused(503, f"{len(self._readers)} others read the events already (max_readers)", "try again later")
        first = []
        if after is None:
            after = self._manager.bus.last_id  # before the look, so that what comes during it is told after it
            found = ModelsAnswer.of(self._manager.view()).model_dump(mode="json", by_alias=True)
            first = [{"id": after, "kind": "snapshot", "at": time.time(), "data": found}]
        subscription = self._manager.bus.subscribe(after)
        self._readers.add(subscription)
        return first, subscription

    def _forget(self, subscription: Subscription) -> None:
        subscription.close()
        self._readers.discard(subscription)


async def _frames(first: Iterable[dict[str, Any]], subscription: Subscription) -> AsyncIterator[str]:
    for event in first:
        yield _frame(event)
    while True:
        try:
            found = await subscription.next(_ALIVE_SECONDS)
        except (asyncio.TimeoutError, TimeoutError):
            yield ": alive\n\n"
            continue
        if found is None:
            return
        yield _frame(found.as_dict())


def _frame(event: dict[str, Any]) -> str:
    return f"id: {event['id']}\nevent: {event['kind']}\ndata: {json.dumps(event)}\n\n"


async def _closed(socket: WebSocket) -> None:
    """Return when the reader closes the connection. What it says is of no interest."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _tell(socket: WebSocket, first: Iterable[dict[str, Any]], subscription: Subscription) -> None:
    for event in first:
        await socket.send_json(event)
    async for later in subscription:
        await socket.send_json(later.as_dict())
    await socket.close(1001, "the manager ends")
