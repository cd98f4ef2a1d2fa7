# SPDX-License-Identifier: MIT
"""The status page: its files, which hold nothing secret, and what a browser is told about them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from . import security
from .asking import get

_FOLDER = Path(__file__).parent / "page"
_INDEX = "index.html"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# The attribute of the page's root by which its script knows that it has to ask for a token.
_OPEN, _CLOSED = 'data-tokens="none"', 'data-tokens="needed"'
_HEADERS = {
    # Nothing from elsewhere, nothing inline, no text that becomes code or markup, no frame, no form that is sent.
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class AccessAnswer(BaseModel):
    """What the caller may do."""

    role: Literal["operator", "reader"]
    reason: str = Field(description="Why the caller may not change anything; empty: it may.")


def _paths() -> dict[str, Path]:
    """The file that is served at each path."""
    files = sorted(path for path in _FOLDER.iterdir() if path.suffix in _TYPES)
    return {"/" if path.name == _INDEX else f"/page/{path.name}": path for path in files}


PATHS = _paths()


def router(with_tokens: bool) -> APIRouter:
    """The paths of the page, which are no part of the API, and what the caller of the API may do."""
    made = APIRouter()
    for path, file in PATHS.items():
        text = file.read_text(encoding="utf-8")
        if file.name == _INDEX and with_tokens:
            assert _OPEN in text
            text = text.replace(_OPEN, _CLOSED)
        made.add_route(path, _serving(text, _TYPES[file.suffix]), include_in_schema=False)
    get(made, "/access", access)
    return made


async def access(request: Request) -> AccessAnswer:
    """What the caller may do: an `operator` everything, a `reader` only look."""
    reason = security.why_not_write(request.scope)
    return AccessAnswer(role="reader" if reason else "operator", reason=reason)


def _serving(text: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = text.encode()

    async def serve(_request: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return serve
