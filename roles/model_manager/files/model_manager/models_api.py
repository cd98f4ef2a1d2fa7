# SPDX-License-Identifier: MIT
"""The manager's own API: what the models are, switches, and one model by hand."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool

from . import answers
from .asking import Endpoints, Wait, accepted, get, left_by, post
from .refusals import SWITCHING, Refused

ModelPath = Annotated[str, Path(min_length=1, max_length=200, description="A model's id, or another of its names.")]


class ModelsApi(Endpoints):
    """The endpoints of that API."""

    def router(self) -> APIRouter:
        """Their paths."""
        router = APIRouter()
        get(router, "/health", self.health)
        get(router, "/models", self.models)
        post(router, "/switch", self.switch, answers.SwitchAnswer, *SWITCHING)
        get(router, "/switches", self.switches, 422, 503)
        get(router, "/switches/{id}", self.switch_of_id, 404, 422)
        for verb in ("sleep", "wake", "load", "unload"):
            path = f"/api/models/{verb}/{{model:path}}"
            post(router, path, getattr(self, f"{verb}_model"), answers.ActionAnswer, *SWITCHING)
        return router

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
            return accepted(ticket)
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
            raise Refused(404, f"switch not found: {id}", "look for it in /switches")
        return answers.WholeTicketAnswer.whole(ticket)

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

    async def _act(self, request: Request, model: str, desired: str, wait: bool) -> Any:
        ticket = self._ask(request, model, desired)
        if not wait:
            return accepted(ticket)
        await self._done(request, ticket)
        state, level = left_by(ticket)
        return answers.ActionAnswer.model_validate(
            {"message": f"{ticket.model} is {state}", "model": ticket.model, "status": state, "level": level}
        )
