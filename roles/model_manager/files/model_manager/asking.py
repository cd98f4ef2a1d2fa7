# SPDX-License-Identifier: MIT
"""How an endpoint asks for a switch, waits for it and answers what has become of it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from . import answers, refusals
from .config import Config
from .manager import Manager, Ticket
from .refusals import Gone, Refused
from .tickets import FAILED

Wait = Annotated[
    bool, Query(description="Whether to answer when it is done; false: at once (202), with a URL that tells of it.")
]


class Endpoints:
    """Endpoints that ask the manager. A method is an endpoint, and its docstring is what OpenAPI says of it."""

    def __init__(self, manager: Manager, config: Config) -> None:
        self._manager = manager
        self._config = config

    def _ask(
        self, request: Request, model: str, desired: str = "active", level: int | None = None, manual: bool = False
    ) -> Ticket:
        return self._manager.request(model, desired, level=level, by=caller(request), manual=manual)

    async def _done(self, request: Request, ticket: Ticket, failed: int = 502) -> None:
        """Wait until a switch is done. Raises Refused if it fails or takes too long, Gone if the caller goes away."""
        ended: asyncio.Future[Any] = asyncio.wrap_future(ticket.future)
        gone: asyncio.Future[Any] = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({ended, gone}, timeout=self._config.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        finally:
            ended.cancel()  # this caller's wait; the switch goes on
            gone.cancel()
        if not ticket.ended:
            if gone.done() and not gone.cancelled():
                ticket.cancel()
                raise Gone
            raise Refused(
                504,
                f"{ticket.model} is not {ticket.desired} after {self._config.answer_seconds:g} s; the switch goes on",
                url=answers.ticket_url(ticket.id),
            )
        if ticket.status == FAILED:
            error = ticket.error or {}
            status = refusals.STATUS_OF_KIND.get(error.get("kind", ""), failed)
            raise Refused(status, error.get("message", ""), error.get("remedy", ""), url=answers.ticket_url(ticket.id))


def left_by(ticket: Ticket) -> tuple[str, int | None]:
    """State and sleep level of the model when its switch ended: the next one may have begun since.

    Who asks for a sleep may find the model stopped, where it can't sleep or is not meant to.
    """
    seen = (ticket.result or {}).get("models", {}).get(ticket.model, {"state": ticket.desired, "level": None})
    return seen["state"], seen["level"]


def accepted(ticket: Ticket) -> Response:
    """The answer to who does not wait."""
    answer = answers.TicketAnswer.of(ticket.view())
    return JSONResponse(answer.model_dump(mode="json"), 202, headers={"Location": answer.url})


def caller(request: Request) -> str:
    """Who asks, for people."""
    return f"HTTP {request.client.host}" if request.client else "HTTP"


def get(router: APIRouter, path: str, endpoint: Any, *statuses: int, **options: Any) -> None:
    """Add an endpoint that reads; `statuses` are the errors that it may answer."""
    router.add_api_route(path, endpoint, methods=["GET"], responses=refusals.described(*statuses), **options)


def post(router: APIRouter, path: str, endpoint: Any, answer: Any, *statuses: int, switches: bool = True) -> None:
    """Add an endpoint that changes something, by a switch or not."""
    responses = refusals.described(*statuses)
    if switches:
        responses[202] = {"model": answers.TicketAnswer, "description": "It was asked for (`wait=false`)."}
    router.add_api_route(path, endpoint, methods=["POST"], response_model=answer, responses=responses)


async def _left(request: Request) -> None:
    """Return when the caller closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
