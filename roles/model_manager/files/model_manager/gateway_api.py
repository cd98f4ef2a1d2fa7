# SPDX-License-Identifier: MIT
"""What a door asks the manager of each of its hosts: the state that the host's own gateway has, and its requests."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from .answers import GatewayAnswer
from .asking import get
from .manager import Manager
from .refusals import Refused


class GatewayApi:
    """The endpoint of that."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def router(self) -> APIRouter:
        """Its path."""
        router = APIRouter()
        get(router, "/gateway", self.gateway, 404, 422, response_model=GatewayAnswer)
        return router

    async def gateway(
        self,
        wait: Annotated[float, Query(ge=0, le=30, description="For how many seconds to wait for news.")] = 0,
        if_none_match: Annotated[str | None, Header(description="The `ETag` that the caller has.")] = None,
    ) -> Any:
        """What the host's gateway is told of the models, and its requests.

        A caller that has it already gets what is new as soon as there is any, or 304 after `wait` seconds.
        """
        if not self._manager.gateway.on:
            raise Refused(404, "this host has no gateway", "set model_gateway_enabled: true for it, and run site")
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        subscription = self._manager.bus.subscribe()
        try:
            while True:
                body = json.dumps(self._manager.gateway.told()).encode()
                tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
                left = end - loop.time()
                if tag != if_none_match or left <= 0:
                    break
                try:
                    if await subscription.next(left) is None:
                        break  # the service ends
                except (asyncio.TimeoutError, TimeoutError):
                    pass
        finally:
            subscription.close()
        if tag == if_none_match:
            return Response(status_code=304, headers={"ETag": tag})
        return Response(body, media_type="application/json", headers={"ETag": tag})
