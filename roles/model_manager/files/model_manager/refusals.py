# SPDX-License-Identifier: MIT
"""Answers of the API that are errors: their statuses, what OpenAPI says of them, from which exceptions they come."""

from __future__ import annotations

import math
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from .answers import ErrorAnswer
from .history import HistoryError
from .tickets import ManagerError, UnknownModel

# What a switch that has failed is to the caller: by default the fault of a server.
STATUS_OF_KIND = {
    "UnknownModel": 404,
    "Blocked": 409,
    "Conflict": 409,
    "NotProvisioned": 409,
    # The host's own files can't be used, or there is a mistake in the service.
    "SwitchingError": 500,
    "InternalError": 500,
    "Busy": 503,
    "LockTimeout": 503,
}
# Of every request; of those for a switch; of the control API's for a switch.
EVERY = (401, 403, 413, 429, 503)
SWITCHING = (404, 409, 422, 500, 502, 503, 504)
CONTROLLING = (404, 409, 422, 500, 503, 504)

# The only path whose wrong bodies are a 400.
MODE_PATH = "/control/mode"

_RETRY_SECONDS = 10.0
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
    503: "Not now: the queue or the service is full, another switch holds the host, or the service ends.",
    504: "Not done in time; the switch goes on.",
}


class Refused(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, error: str, remedy: str = "", retry_after: float | None = None, url: str = ""
    ) -> None:
        super().__init__(error)
        self.status = status
        self.remedy = remedy
        self.retry_after = _RETRY_SECONDS if retry_after is None and status == 503 else retry_after
        self.url = url


class Gone(Exception):
    """The caller has closed the connection."""


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How OpenAPI describes these answers."""
    return {
        status: {
            "model": ErrorAnswer,
            "description": _DESCRIPTIONS[status],
            **({"headers": _RETRY_HEADER} if status in (429, 503) else {}),
        }
        for status in statuses
    }


def handle(app: FastAPI) -> None:
    """Have the application answer what goes wrong as JSON with `error`."""
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Gone, _gone)
    app.add_exception_handler(ManagerError, _not_done)
    app.add_exception_handler(HistoryError, _no_history)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _broken)


def _answer(status: int, error: str, remedy: str = "", retry_after: float | None = None, url: str = "") -> JSONResponse:
    said = {"error": error, "remedy": remedy, "url": url}
    headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    return JSONResponse({key: value for key, value in said.items() if value or key == "error"}, status, headers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _answer(error.status, str(error), error.remedy, error.retry_after, error.url)


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the number is nginx's for this in logs


async def _not_done(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ManagerError)
    remedy = "" if isinstance(error, UnknownModel) else error.remedy  # clients know this answer as it is
    retry = _RETRY_SECONDS if error.status == 503 and error.retry_after is None else error.retry_after
    return _answer(error.status, str(error), remedy, retry)


async def _no_history(_request: Request, error: Exception) -> Response:
    return _answer(503, str(error), retry_after=_RETRY_SECONDS)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = []
    for one in error.errors():
        place = () if one["type"] == "json_invalid" else one["loc"][1:]  # there it is a number of characters
        said.append(f"{'.'.join(map(_text, place)) or one['loc'][0]}: {one['msg']}")
    is_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    in_body = any(one["loc"][0] == "body" for one in error.errors())
    remedy = "send JSON, with the header Content-Type: application/json" if in_body and not is_json else ""
    return _answer(_status_of_wrong(request), "; ".join(said[:10]), remedy)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # FastAPI's word for a body that is no JSON at all.
    status = _status_of_wrong(request) if error.status_code == 400 else error.status_code
    answer = _answer(status, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _broken(_request: Request, _error: Exception) -> Response:
    return _answer(500, "the manager has failed at this", "look into the service's log for the cause")


def _status_of_wrong(request: Request) -> int:
    return 400 if request.url.path == MODE_PATH else 422


def _text(given: object) -> str:
    """A part of a caller's request within a message: not too long, and with no half characters."""
    text = str(given).encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"
