# SPDX-License-Identifier: MIT
"""The HTTP API of the manager. It asks the manager and tells what it says; it decides nothing about models."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Path, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from . import answers
from .config import Config
from .events import Subscription
from .history import HistoryError
from .manager import Manager, ManagerError, Ticket, UnknownModel, Unsupported
from .security import Guard, Rates, Tokens
from .tickets import FAILED

# What a switch that has failed is to the caller: by default the fault of a server.
_STATUS_OF_KIND = {
    "UnknownModel": 404,
    "Blocked": 409,
    "Conflict": 409,
    "NotProvisioned": 409,
    "Busy": 503,
    "LockTimeout": 503,
}
_RETRY_SECONDS = 10.0
# Proxies close a connection on which nothing comes for a minute.
_ALIVE_SECONDS = 15.0
_LONGEST_TEXT = 100

_RETRY_HEADER = {"Retry-After": {"description": "In how many seconds to try again.", "schema": {"type": "integer"}}}
_DESCRIPTIONS = {
    400: "The body is wrong.",
    401: "There is no valid token.",
    403: "The token, the address, the Host or the Origin does not allow this.",
    404: "There is no such model, switch or path.",
    409: "The model is disabled or pinned, or something else of the host's state is against it.",
    413: "The body is too long.",
    422: "The request is wrong, or there is no way to do that.",
    429: "Too many requests.",
    500: "The switch has failed.",
    502: "A model's server has failed.",
    503: "Not now: the queue is full, another switch holds the host, or the service ends.",
    504: "Not done in time; the switch goes on.",
}
_EVERY = (401, 403, 413, 429)
_SWITCHING = (404, 409, 422, 502, 503, 504)
_CONTROLLING = (404, 409, 422, 500, 503, 504)

Wait = Annotated[
    bool, Query(description="Whether to answer when it is done; false: at once (202), with a URL that tells of it.")
]
ModelPath = Annotated[str, Path(min_length=1, max_length=200, description="A model's id, or another of its names.")]
After = Annotated[int | None, Query(ge=0, description="The id of the last event that the reader has had.")]


class _Refused(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, error: str, remedy: str = "", retry_after: float | None = None, url: str = ""
    ) -> None:
        super().__init__(error)
        self.status = status
        self.remedy = remedy
        self.retry_after = _RETRY_SECONDS if retry_after is None and status == 503 else retry_after
        self.url = url


class _Gone(Exception):
    """The caller has closed the connection."""


class Api:
    """The endpoints. A method is an endpoint, and its docstring is what OpenAPI says of it."""

    def __init__(self, manager: Manager, config: Config) -> None:
        self._manager = manager
        self._config = config
        self._readers = 0

    # The manager's own API.

    async def health(self) -> answers.HealthAnswer:
        """Whether the service answers."""
        return answers.HealthAnswer()

    async def models(self) -> answers.ModelsAnswer:
        """The models of the host as they were observed last, and what goes on."""
        return answers.ModelsAnswer.of(self._manager.view())

    async def switch(self, request: Request, body: answers.SwitchBody, wait: Wait = True) -> Any:
        """Make a model active. Whoever asks for what is done or waits already joins it; anything else queues."""
        ticket = self._ask(request, body.model_id)
        if not wait:
            return _accepted(ticket)
        await self._done(request, ticket)
        result = ticket.result or {}
        return answers.SwitchAnswer(active_model=result.get("active_model") or ticket.model)

    async def switches(
        self, limit: Annotated[int, Query(ge=1, le=1000)] = 50, before: Annotated[int | None, Query(ge=1)] = None
    ) -> answers.SwitchesAnswer:
        """What goes on and waits, and the last switches, the newest first."""
        queue = [answers.TicketAnswer.of(one) for one in self._manager.view().queue]
        rows = await run_in_threadpool(self._manager.history.switches, limit, before)
        last = rows[-1]["id"] if len(rows) == limit else None
        return answers.SwitchesAnswer(
            queue=queue, switches=[answers.SwitchRecord.model_validate(row) for row in rows], before=last
        )

    async def switch_of_id(self, id: Annotated[str, Path(max_length=200)]) -> answers.WholeTicketAnswer:
        """One switch that was asked for, while it is not long ago. Switches that are, are in `/switches`."""
        ticket = self._manager.ticket(id)
        if ticket is None:
            raise _Refused(404, f"switch not found: {id}", "look for it in /switches")
        return answers.WholeTicketAnswer.whole(ticket)

    # One model by hand.

    async def sleep_model(self, request: Request, model: ModelPath, wait: Wait = True) -> Any:
        """Put a model to sleep. One that does not run is loaded for it."""
        return await self._act(request, model, "sleeping", wait)

    async def wake_model(self, request: Request, model: ModelPath, wait: Wait = True) -> Any:
        """Make a model active; it is started if it does not run. Models that share its GPUs make room."""
        return await self._act(request, model, "active", wait)

    async def load_model(self, request: Request, model: ModelPath, wait: Wait = True) -> Any:
        """Make a model active; it is started if it does not run. Models that share its GPUs make room."""
        return await self._act(request, model, "active", wait)

    async def unload_model(self, request: Request, model: ModelPath, wait: Wait = True) -> Any:
        """Stop a model's server."""
        return await self._act(request, model, "stopped", wait)

    # The control API.

    async def control_status(self) -> answers.ControlAnswer:
        """The host and its mode, as they were observed last."""
        return answers.ControlAnswer.of(self._manager.view())

    async def control_mode(self, body: answers.ModeBody) -> answers.MessageAnswer:
        """Set the mode: `auto`, or `manual`, in which only the control API switches. Nothing is pinned then."""
        self._manager.set_mode(body.mode)
        return answers.MessageAnswer(message=f"the mode is {body.mode}")

    async def control_pin(self, request: Request, body: answers.ModelBody, wait: Wait = True) -> Any:
        """Make a model active and keep it so, in manual mode. The former mode comes back if the switch fails."""
        ticket = self._manager.pin(body.model, by=_caller(request))
        return await self._controlled(request, ticket, wait, f"{ticket.model} is active and pinned")

    async def control_unpin(self) -> answers.MessageAnswer:
        """Let the pinned model make room again; the mode is then auto."""
        self._manager.unpin()
        return answers.MessageAnswer(message="nothing is pinned, the mode is auto")

    async def control_switch(self, request: Request, body: answers.ModelBody, wait: Wait = True) -> Any:
        """Make a model active. In manual mode, it is then the one that is pinned."""
        ticket = self._ask(request, body.model, manual=True)
        return await self._controlled(request, ticket, wait, f"{ticket.model} is active")

    async def control_wake(self, request: Request, body: answers.ModelBody, wait: Wait = True) -> Any:
        """Make a model active, as `/control/switch` does."""
        return await self.control_switch(request, body, wait)

    async def control_sleep(self, request: Request, body: answers.SleepBody, wait: Wait = True) -> Any:
        """Put a model to sleep, by its eviction or by the one that is given."""
        desired, level = "sleeping", None
        self._manager.eviction(body.model)  # 404 before 422
        if body.eviction:
            found = self._manager.eviction_level(body.eviction.weights, body.eviction.process)
            if not found:
                raise Unsupported("retain with keep_running leaves the model awake", "use offload or discard, or stop")
            desired, level = ("stopped", None) if found == "stop" else ("sleeping", int(found))
        ticket = self._ask(request, body.model, desired, level, manual=True)
        return await self._controlled(request, ticket, wait, f"{ticket.model} is {desired}")

    async def evictions(self) -> answers.EvictionsAnswer:
        """What is done to each model that has to make room."""
        return answers.EvictionsAnswer.model_validate(
            {"models": {name: one.eviction for name, one in self._manager.view().models.items()}}
        )

    async def set_eviction(self, body: answers.EvictionBody) -> answers.MessageAnswer:
        """Set what is done to a model that has to make room, until it is set anew."""
        pair = body.eviction
        self._manager.eviction(body.model)  # 404 before 422
        await run_in_threadpool(self._manager.set_eviction, body.model, pair.weights, pair.process)
        return answers.MessageAnswer(message=f"{body.model}: weights {pair.weights}, process {pair.process}")

    # Events.

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
        self._check_readers()
        return _EventStream(self._sent(after if last_event_id is None else last_event_id))

    async def socket(self, socket: WebSocket, after: After = None) -> None:
        """The same as a WebSocket."""
        try:
            self._check_readers()
        except _Refused as refused:
            await socket.close(1013, str(refused))
            return
        self._readers += 1
        first, subscription = self._subscribe(after)
        try:
            await socket.accept()
            gone = asyncio.ensure_future(_closed(socket))
            telling = asyncio.ensure_future(_tell(socket, first, subscription))
            await asyncio.wait({gone, telling}, return_when=asyncio.FIRST_COMPLETED)
            for task in (gone, telling):
                task.cancel()
            await asyncio.gather(gone, telling, return_exceptions=True)
        finally:
            subscription.close()
            self._readers -= 1

    async def _sent(self, after: int | None) -> AsyncIterator[str]:
        self._readers += 1
        first, subscription = self._subscribe(after)
        try:
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
        finally:
            subscription.close()
            self._readers -= 1

    def _check_readers(self) -> None:
        if self._readers >= self._config.max_readers:
            raise _Refused(503, f"{self._readers} others read the events already (max_readers)", "try again later")

    def _subscribe(self, after: int | None) -> tuple[list[dict[str, Any]], Subscription]:
        """What to send first, and the subscription to what comes then. No event between them is lost."""
        if after is not None:
            return [], self._manager.bus.subscribe(after)
        last = self._manager.bus.last_id
        subscription = self._manager.bus.subscribe(last)
        found = answers.ModelsAnswer.of(self._manager.view()).model_dump(mode="json", by_alias=True)
        return [{"id": last, "kind": "snapshot", "at": time.time(), "data": found}], subscription

    # What they have in common.

    def _ask(
        self, request: Request, model: str, desired: str = "active", level: int | None = None, manual: bool = False
    ) -> Ticket:
        return self._manager.request(model, desired, level=level, by=_caller(request), manual=manual)

    async def _act(self, request: Request, model: str, desired: str, wait: bool) -> Any:
        ticket = self._ask(request, model, desired)
        if not wait:
            return _accepted(ticket)
        await self._done(request, ticket)
        # What the engine saw at the end of this switch: the next one may have begun.
        seen = (ticket.result or {}).get("models", {}).get(ticket.model, {"state": desired, "level": None})
        return answers.ActionAnswer(
            message=f"{ticket.model} is {seen['state']}", model=ticket.model, status=seen["state"], level=seen["level"]
        )

    async def _controlled(self, request: Request, ticket: Ticket, wait: bool, message: str) -> Any:
        if not wait:
            return _accepted(ticket)
        await self._done(request, ticket, failed=500)
        return answers.MessageAnswer(message=message)

    async def _done(self, request: Request, ticket: Ticket, failed: int = 502) -> None:
        """Wait until a switch is done. Raises _Refused if it fails, takes too long, or the caller goes away."""
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
                raise _Gone
            raise _Refused(
                504,
                f"{ticket.model} is not {ticket.desired} after {self._config.answer_seconds:g} s; the switch goes on",
                url=answers.ticket_url(ticket.id),
            )
        if ticket.status == FAILED:
            error = ticket.error or {}
            status = _STATUS_OF_KIND.get(error.get("kind", ""), failed)
            raise _Refused(status, error.get("message", ""), error.get("remedy", ""), url=answers.ticket_url(ticket.id))


def create_app(manager: Manager, config: Config, routers: Iterable[APIRouter] = ()) -> FastAPI:
    """The application. `routers` are those of other parts, such as the metrics. Raises ConfigError."""
    tokens = Tokens.read(config.tokens_file)
    app = FastAPI(
        title="Model manager",
        summary="Switches the models of a host.",
        version="1",
        docs_url=None,  # their pages load code from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.include_router(_router(Api(manager, config)), responses=_errors(*_EVERY))
    for router in routers:
        app.include_router(router, responses=_errors(*_EVERY))
    app.add_exception_handler(_Refused, _refused)
    app.add_exception_handler(_Gone, _gone)
    app.add_exception_handler(ManagerError, _not_done)
    app.add_exception_handler(HistoryError, _no_history)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(
        Guard,
        tokens=tokens,
        hosts=config.allowed_hosts,
        max_body_bytes=config.max_body_bytes,
        rates=Rates(config.requests_per_second),
    )
    _describe(app, bool(tokens.digests))
    return app


def _router(api: Api) -> APIRouter:
    router = APIRouter()

    def get(path: str, endpoint: Any, *statuses: int, **options: Any) -> None:
        router.add_api_route(path, endpoint, methods=["GET"], responses=_errors(*statuses), **options)

    def post(path: str, endpoint: Any, answer: Any, *statuses: int, switches: bool = True) -> None:
        responses = _errors(*statuses)
        if switches:
            responses[202] = {"model": answers.TicketAnswer, "description": "It was asked for (`wait=false`)."}
        router.add_api_route(path, endpoint, methods=["POST"], response_model=answer, responses=responses)

    get("/health", api.health)
    get("/models", api.models)
    post("/switch", api.switch, answers.SwitchAnswer, *_SWITCHING)
    get("/switches", api.switches, 422, 503)
    get("/switches/{id}", api.switch_of_id, 404, 422)
    for verb in ("sleep", "wake", "load", "unload"):
        path = f"/api/models/{verb}/{{model:path}}"
        post(path, getattr(api, f"{verb}_model"), answers.ActionAnswer, *_SWITCHING)
    get("/control/status", api.control_status)
    post("/control/mode", api.control_mode, answers.MessageAnswer, 400, 422, switches=False)
    post("/control/pin", api.control_pin, answers.MessageAnswer, *_CONTROLLING)
    post("/control/unpin", api.control_unpin, answers.MessageAnswer, switches=False)
    post("/control/switch", api.control_switch, answers.MessageAnswer, *_CONTROLLING)
    post("/control/sleep", api.control_sleep, answers.MessageAnswer, *_CONTROLLING)
    post("/control/wake", api.control_wake, answers.MessageAnswer, *_CONTROLLING)
    get("/control/eviction", api.evictions)
    post("/control/eviction", api.set_eviction, answers.MessageAnswer, 404, 409, 422, switches=False)
    get("/events", api.events, 422, 503, response_class=_EventStream)
    router.add_api_websocket_route("/events", api.socket)
    return router


class _EventStream(StreamingResponse):
    media_type = "text/event-stream"


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How OpenAPI describes these answers."""
    return {
        status: {
            "model": answers.ErrorAnswer,
            "description": _DESCRIPTIONS[status],
            **({"headers": _RETRY_HEADER} if status in (429, 503) else {}),
        }
        for status in statuses
    }


def _describe(app: FastAPI, with_tokens: bool) -> None:
    """Have OpenAPI say what FastAPI can't know: the tokens, and that a wrong mode is 400."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            schema["paths"]["/control/mode"]["post"]["responses"].pop("422", None)
            if with_tokens:
                bearer = {"type": "http", "scheme": "bearer"}
                schema.setdefault("components", {})["securitySchemes"] = {"bearer": bearer}
                schema["security"] = [{"bearer": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _accepted(ticket: Ticket) -> Response:
    answer = answers.TicketAnswer.of(ticket.view())
    return JSONResponse(answer.model_dump(mode="json"), 202, headers={"Location": answer.url})


def _caller(request: Request) -> str:
    return f"HTTP {request.client.host}" if request.client else "HTTP"


async def _left(request: Request) -> None:
    """Return when the caller closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


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


def _frame(event: dict[str, Any]) -> str:
    return f"id: {event['id']}\nevent: {event['kind']}\ndata: {json.dumps(event)}\n\n"


def _text(given: object) -> str:
    """A part of a caller's request within a message: not too long, and with no half characters."""
    text = str(given).encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"


def _refusal(
    status: int, error: str, remedy: str = "", retry_after: float | None = None, url: str = ""
) -> JSONResponse:
    said = {"error": error, "remedy": remedy, "url": url}
    headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    return JSONResponse({key: value for key, value in said.items() if value or key == "error"}, status, headers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, _Refused)
    return _refusal(error.status, str(error), error.remedy, error.retry_after, error.url)


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the number is nginx's for this in logs


async def _not_done(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ManagerError)
    remedy = "" if isinstance(error, UnknownModel) else error.remedy  # clients know this answer as it is
    retry = _RETRY_SECONDS if error.status == 503 and error.retry_after is None else error.retry_after
    return _refusal(error.status, str(error), remedy, retry)


async def _no_history(_request: Request, error: Exception) -> Response:
    return _refusal(503, str(error), retry_after=_RETRY_SECONDS)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = []
    for one in error.errors():
        place = () if one["type"] == "json_invalid" else one["loc"][1:]  # there it is a number of characters
        said.append(f"{'.'.join(map(_text, place)) or one['loc'][0]}: {one['msg']}")
    is_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    in_body = any(one["loc"][0] == "body" for one in error.errors())
    remedy = "send JSON, with the header Content-Type: application/json" if in_body and not is_json else ""
    return _refusal(_status_of_wrong(request), "; ".join(said[:10]), remedy)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # FastAPI's word for a body that is no JSON at all.
    status = _status_of_wrong(request) if error.status_code == 400 else error.status_code
    answer = _refusal(status, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _broken(_request: Request, _error: Exception) -> Response:
    return _refusal(500, "the manager has failed at this", "look into the service's log for the cause")


def _status_of_wrong(request: Request) -> int:
    return 400 if request.url.path == "/control/mode" else 422
