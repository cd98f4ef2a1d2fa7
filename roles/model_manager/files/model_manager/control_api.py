# SPDX-License-Identifier: MIT
"""The control API: mode, pin, evictions at run time, and switches that a person asks for in whatever mode."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from . import answers
from .asking import Endpoints, Wait, accepted, caller, get, left_by, post
from .manager import Ticket, Unsupported
from .refusals import CONTROLLING, MODE_PATH


class ControlApi(Endpoints):
    """The endpoints of that API."""

    def router(self) -> APIRouter:
        """Their paths."""
        router = APIRouter()
        get(router, "/control/status", self.control_status)
        post(router, MODE_PATH, self.control_mode, answers.MessageAnswer, 400, 422, switches=False)
        post(router, "/control/pin", self.control_pin, answers.MessageAnswer, *CONTROLLING)
        post(router, "/control/unpin", self.control_unpin, answers.MessageAnswer, switches=False)
        post(router, "/control/switch", self.control_switch, answers.MessageAnswer, *CONTROLLING)
        post(router, "/control/sleep", self.control_sleep, answers.MessageAnswer, *CONTROLLING)
        post(router, "/control/wake", self.control_wake, answers.MessageAnswer, *CONTROLLING)
        get(router, "/control/eviction", self.evictions)
        post(router, "/control/eviction", self.set_eviction, answers.MessageAnswer, 404, 409, 422, switches=False)
        return router

    async def control_status(self) -> answers.ControlAnswer:
        """The host and its mode, as they were observed last."""
        return answers.ControlAnswer.of(self._manager.view())

    async def control_mode(self, body: answers.ModeBody) -> answers.MessageAnswer:
        """Set the mode: `auto`, or `manual`, in which only the control API switches. Nothing is pinned then."""
        self._manager.set_mode(body.mode)
        return answers.MessageAnswer(message=f"the mode is {body.mode}")

    async def control_pin(self, request: Request, body: answers.ModelBody, wait: Wait = True) -> Any:
        """Make a model active and keep it so, in manual mode. The former mode comes back if the switch fails."""
        ticket = self._manager.pin(body.model, by=caller(request))
        return await self._controlled(request, ticket, wait, " and pinned")

    async def control_unpin(self) -> answers.MessageAnswer:
        """Let the pinned model make room again; the mode is then auto."""
        self._manager.unpin()
        return answers.MessageAnswer(message="nothing is pinned, the mode is auto")

    async def control_switch(self, request: Request, body: answers.ModelBody, wait: Wait = True) -> Any:
        """Make a model active. In manual mode, it is then the one that is pinned."""
        ticket = self._ask(request, body.model, manual=True)
        return await self._controlled(request, ticket, wait)

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
        return await self._controlled(request, ticket, wait)

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

    async def _controlled(self, request: Request, ticket: Ticket, wait: bool, more: str = "") -> Any:
        if not wait:
            return accepted(ticket)
        await self._done(request, ticket, failed=500)
        return answers.MessageAnswer(message=f"{ticket.model} is {left_by(ticket)[0]}{more}")
