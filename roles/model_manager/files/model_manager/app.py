# SPDX-License-Identifier: MIT
"""The HTTP API of the manager. It asks the manager and tells what it says; it decides nothing about models."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool

from . import gateway_link, page, refusals
from .config import Config
from .control_api import ControlApi
from .events_api import EventsApi
from .gateway_api import GatewayApi
from .manager import Manager
from .models_api import ModelsApi
from .security import Guard, Rates, Tokens


def create_app(
    manager: Manager, config: Config, routers: Iterable[APIRouter] = (), links: socket.socket | None = None
) -> FastAPI:
    """The application. `routers` are those of other parts, such as the metrics. Raises ConfigError.

    `links` is the socket at which the gateway's workers connect, where there is a gateway.
    """
    tokens = Tokens.read(config.tokens_file)
    link_token = gateway_link.read_token(config) if links else ""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if links is None:
            yield
            return
        async with gateway_link.serving(manager.gateway, link_token, links):
            yield
            # The workers are told how the last switch has left the models.
            await run_in_threadpool(manager.stop)

    app = FastAPI(
        lifespan=lifespan,
        title="Model manager",
        summary="Switches the models of a host.",
        version="1",
        docs_url=None,  # their pages load code from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    own = (
        ModelsApi(manager, config).router(),
        ControlApi(manager, config).router(),
        EventsApi(manager, config).router(),
        GatewayApi(manager).router(),
        page.router(bool(tokens.digests)),
    )
    for router in (*own, *routers):
        app.include_router(router, responses=refusals.described(*refusals.EVERY))
    refusals.handle(app)
    app.add_middleware(
        Guard,
        tokens=tokens,
        hosts=config.allowed_hosts,
        max_body_bytes=config.max_body_bytes,
        rates=Rates(config.requests_per_second),
        public=page.PATHS,
    )
    _describe(app, bool(tokens.digests))
    return app


def _describe(app: FastAPI, with_tokens: bool) -> None:
    """Have OpenAPI say what FastAPI can't know: the tokens, and that a wrong mode is 400."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            schema["paths"][refusals.MODE_PATH]["post"]["responses"].pop("422", None)
            if with_tokens:
                bearer = {"type": "http", "scheme": "bearer"}
                schema.setdefault("components", {})["securitySchemes"] = {"bearer": bearer}
                schema["security"] = [{"bearer": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
