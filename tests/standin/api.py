# SPDX-License-Identifier: MIT
"""The stand-in's HTTP routes: what vLLM's API server answers, and the faults on top of it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import os
import signal
import socket
import struct
import time
import uuid
import wave
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from .bodies import OpenAiAnswer, Refused, answer, bad_request, error, family, invalid, parse_level, sse
from .engine import Engine, EngineDead, Generation
from .faults import Fault, Faults, die
from .settings import Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GUARDED = ("/v1", "/v2", "/inference", "/cohere")
UNAUTHORIZED = {"error": "Unauthorized"}
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
DEEP_JSON = b"[" * 100_000 + b"]" * 100_000
# Exposition formats differ, and proxies add their own.
ODD_NUMBERS = b"""\
vllm:num_requests_running{engine="0"} 1e999
vllm:num_requests_running{engine="1"} 1.2.3
vllm:num_requests_waiting{engine="0"} NaN
vllm:num_requests_waiting{engine="1"} e
vllm:engine_sleep_state{engine="0",sleep_state="awake"} +Inf
vllm:engine_sleep_state{engine="0",sleep_state="weights_offloaded"} --
process_start_time_seconds 1e999
"""
TWO_ENGINES = b"""\
vllm:num_requests_running{engine="0"} 1.0
vllm:num_requests_running{engine="1"} 0.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:num_requests_waiting{engine="1"} 0.0
vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",sleep_state="weights_offloaded"} 0.0
vllm:engine_sleep_state{engine="0",sleep_state="discard_all"} 0.0
vllm:engine_sleep_state{engine="1",sleep_state="awake"} 0.0
vllm:engine_sleep_state{engine="1",sleep_state="weights_offloaded"} 1.0
vllm:engine_sleep_state{engine="1",sleep_state="discard_all"} 0.0
"""
LOGIN_PAGE = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head><body>Please log in.</body></html>\n"
BACKLOG = 2048
DIMENSIONS = 64
# What a model of each kind is served by (seen on 0.11.0 and 0.32.0).
OFFERED = {
    "text": ("/v1/completions", "/v1/chat/completions"),
    "embedding": ("/v1/embeddings", "/pooling", "/score"),
    "score": ("/score", "/pooling", "/classify"),
    "classify": ("/classify", "/pooling"),
    "speech": ("/v1/audio/transcriptions",),
}
API_NAMES = {
    "/v1/completions": "Completions",
    "/v1/chat/completions": "Chat Completions",
    "/v1/embeddings": "Embeddings",
    "/pooling": "Pooling",
    "/score": "Score",
    "/classify": "Classification",
    "/v1/audio/transcriptions": "Transcriptions",
}
# What the engine core does, one call after the other.
CORE = ("/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache")
PHRASES = {status.value: status.phrase for status in HTTPStatus}


def seconds_of_late(fault: Fault) -> float:
    """How long a call that is done later waits."""
    return 1.5 if fault.seconds is None else fault.seconds


class Api:
    """The handlers; their state is the engine's and the faults'."""

    def __init__(self, settings: Settings, engine: Engine, faults: Faults) -> None:
        self.settings = settings
        self.family = settings.family
        self.engine = engine
        self.faults = faults
        self.loading = False  # of a server that listens while it loads, which no vLLM is
        # Of whoever listens; set when the server does.
        self.stop_listening: Callable[[], Awaitable[None]] | None = None
        self.listener: socket.socket | None = None
        self.load = 0
        self.to_do: list[asyncio.Future[web.StreamResponse]] = []
        self.turn: asyncio.Future[None] | None = None  # done when the last late wake is
        self.started = time.time()
        # Count, seconds and how many in flight, of each operation that there has been.
        self.operations: dict[str, list[float]] = {}
        self.fingerprint = f"vllm-{settings.version}-{hashlib.sha256(settings.model.encode()).hexdigest()[:8]}"

    def app(self) -> web.Application:
        """Build the application with the routes that the settings call for."""
        app = web.Application(middlewares=[self.outer], client_max_size=1 << 26)
        gets: dict[str, Handler] = {
            "/health": self.health,
            "/version": self.version,
            "/load": self.server_load,
            "/metrics": self.metrics,
            "/v1/models": self.models,
            "/standin/faults": self.faults_list,
            "/standin/state": self.state,
        }
        posts: dict[str, Handler] = {"/standin/faults": self.faults_add}
        offered = OFFERED[self.settings.kind]
        for path, handler in self.answers().items():
            if path in offered:
                posts[path] = handler
            elif self.family.knows_every_call:
                posts[path] = self.not_supported
        if self.settings.updates_adapters:
            posts["/v1/load_lora_adapter"] = self.load_adapter
            posts["/v1/unload_lora_adapter"] = self.unload_adapter
        if self.settings.dev_mode:
            gets["/is_sleeping"] = self.is_sleeping
            posts["/sleep"] = self.sleep
            posts["/wake_up"] = self.wake_up
            posts["/collective_rpc"] = self.collective_rpc
            posts["/reset_prefix_cache"] = self.reset_prefix_cache
        if self.family.pauses and (self.settings.dev_mode or not self.family.pauses_only_in_dev_mode):
            gets["/is_paused"] = self.is_paused
            posts["/pause"] = self.pause
            posts["/resume"] = self.resume
        for path, handler in gets.items():
            app.router.add_get(path, handler, allow_head=False)
        for path, handler in posts.items():
            app.router.add_post(path, handler)
        app.router.add_delete("/standin/faults", self.faults_clear)
        app.on_response_prepare.append(self.before_headers)
        return app

    def answers(self) -> dict[str, Handler]:
        """Return the calls by which clients use a model, of whatever kind."""
        return {
            "/v1/completions": self.completions,
            "/v1/chat/completions": self.chat_completions,
            "/v1/embeddings": self.embeddings,
            "/pooling": self.pooling,
            "/score": self.score,
            "/classify": self.classify,
            "/v1/audio/transcriptions": self.transcriptions,
        }

    # ---- around every call ----------------------------------------------------------------

    @web.middleware
    async def outer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Meet the faults, check the key, and turn exceptions into vLLM's answers."""
        if self.loading:
            return error("Loading model", "unavailable_error", 503)
        fault = self.faults.take(request.path, request.query_string)
        wakes_late = request.path == "/wake_up" and fault is not None and fault.fault == "late"

        async def take() -> web.StreamResponse:
            if fault is not None:
                return await self.meet(fault, request, handler)
            return await self.inner(request, handler)

        async def take_after(turn: asyncio.Future[None]) -> web.StreamResponse:
            await turn
            return await take()

        if self.turn is not None and not self.turn.done() and request.path in CORE and not wakes_late:
            # Also where its client has given up meanwhile.
            return await asyncio.shield(asyncio.ensure_future(take_after(self.turn)))
        return await take()

    async def inner(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer without a fault."""
        guarded = GUARDED[:1] if self.family.old else GUARDED
        if self.settings.api_keys and request.path.startswith(guarded):
            scheme, _separator, key = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or key not in self.settings.api_keys:
                return answer(UNAUTHORIZED, 401)
        try:
            return await handler(request)
        except Refused as exc:
            return exc.response
        except EngineDead:
            response = error(ENGINE_DEAD, "InternalServerError", 500)
            if self.family.fails_with_200 and request.path.startswith("/v1/"):
                response.set_status(200)
            return response
        except RuntimeError as exc:
            if not self.family.explains_its_errors:
                return web.Response(status=500, text="Internal Server Error")
            return error(str(exc), "InternalServerError", 500)
        except web.HTTPMethodNotAllowed as exc:
            return answer({"detail": "Method Not Allowed"}, 405, {"Allow": ", ".join(sorted(exc.allowed_methods))})
        except web.HTTPNotFound:
            return answer({"detail": "Not Found"}, 404)

    async def before_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Write the access log where uvicorn does: when the answer starts, so before the client sees it."""
        response.headers["Server"] = "uvicorn"
        response.headers["Vary"] = "Origin"
        if isinstance(response, web.Response) and (
            not response.body or response.content_type == "application/octet-stream"
        ):
            response.headers.popall("Content-Type", None)
        if request.path.startswith("/standin/") or request.get("unanswered"):
            return
        peer = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        status = f"{response.status} {PHRASES.get(response.status, '')}"
        print(f'INFO:     {peer[0]}:{peer[1]} - "{request.method} {request.raw_path} HTTP/1.1" {status}', flush=True)

    async def meet(self, fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer, or don't, as the fault says."""
        name = fault.fault
        simple = {
            "status_500": lambda: error("Call to the engine failed", "InternalServerError", 500),
            "empty_200": web.Response,
            "html": lambda: web.Response(body=LOGIN_PAGE, content_type="text/html"),
            "wrong_json": lambda: answer({"unexpected": ["shape"]}),
            "deep_json": lambda: web.Response(body=DEEP_JSON, content_type="application/json"),
            "odd_numbers": lambda: web.Response(body=ODD_NUMBERS, content_type="text/plain"),
            "two_engines": lambda: web.Response(body=TWO_ENGINES, content_type="text/plain"),
            "redirect": lambda: web.Response(status=302, headers={"Location": "/login"}),
            "unauthorized": lambda: answer(UNAUTHORIZED, 401),
            "not_ready": lambda: web.Response(status=503),
        }
        if name in simple:
            return simple[name]()
        if name == "hang":
            await asyncio.sleep(3600 if fault.seconds is None else fault.seconds)
        elif name == "full":
            self.take_nobody(1.5 if fault.seconds is None else fault.seconds)
        elif name == "wrong_text":
            request["wrong_text"] = True
        elif name in ("lose_adapters", "swap_adapters"):
            self.engine.wake_harms_adapters = name.partition("_")[0]
        elif name == "drop_adapters":
            self.engine.adapters.clear()
        elif name == "kill":
            die()
        elif name == "frees_nothing":
            self.engine.keeps_seconds = math.inf if fault.seconds is None else fault.seconds
        elif name == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif name == "late":
            return await asyncio.shield(asyncio.ensure_future(self.in_turn(fault, request, handler)))
        elif name == "early":
            # Kept, since nothing else holds a task.
            self.to_do.append(asyncio.ensure_future(self.later(fault, request, handler)))
            return self.usual(request)
        elif name == "oom":
            self.engine.die("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return error(ENGINE_DEAD, "InternalServerError", 500)
        elif name == "not_done":
            return self.usual(request)
        elif name == "deaf":
            if self.stop_listening is not None:
                await self.stop_listening()
            return await self.cut(request, with_half_an_answer=False)
        elif name in ("refuse", "reset_mid_body"):
            return await self.cut(request, with_half_an_answer=name == "reset_mid_body")

        response = await self.inner(request, handler)
        if name == "lost":
            return await self.cut(request, with_half_an_answer=False)
        if name == "slow":
            await asyncio.sleep(1.0 if fault.seconds is None else fault.seconds)
        if name == "slow_drip" and isinstance(response, web.Response):
            return await self.drip(request, response, 5.0 if fault.seconds is None else fault.seconds)
        if name == "die_after_200":
            await response.prepare(request)
            await response.write_eof()
            self.engine.host.event("dead", cause="die_after_200")
            die()
        return response

    def take_nobody(self, seconds: float) -> None:
        """Stand still, with a backlog so full that a connection is not even begun."""
        if self.listener is None:
            return
        waiting = []
        self.listener.listen(0)
        try:
            for _place in range(2):
                waiting.append(socket.socket(self.listener.family))
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(self.listener.getsockname())
            time.sleep(seconds)
        finally:
            self.listener.listen(BACKLOG)
            for sock in waiting:
                sock.close()

    async def in_turn(self, fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer after a while, and whoever comes later after that.

        So vLLM wakes, also where the client has given up: it is done before a sleep that comes after it (seen on
        0.11.0, 0.17.1 and 0.32.0, with the engine core stopped for a while, or the API server). A sleep has no such
        place: up to 0.16.0 a wake that comes after it may be done first, and on later ones while it drains.
        """
        if request.path != "/wake_up":
            return await self.later(fault, request, handler)
        ahead, mine = self.turn, asyncio.get_running_loop().create_future()
        self.turn = mine
        try:
            await asyncio.sleep(seconds_of_late(fault))
            if ahead is not None:
                await ahead
            return await self.inner(request, handler)
        finally:
            mine.set_result(None)

    async def later(self, fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer after a while."""
        await asyncio.sleep(seconds_of_late(fault))
        return await self.inner(request, handler)

    def usual(self, request: web.Request) -> web.Response:
        """Return what a call answers when it has done its work."""
        tags = request.query.getall("tags", None)
        bodies: dict[str, object] = {
            "/sleep": {"status": "sleeping", "level": int(request.query.get("level", "1"))},
            "/wake_up": {"status": "sleeping" if tags == ["weights"] else "awake", "tags": tags},
            "/collective_rpc": {"results": [None] * len(self.settings.gpus)},
            "/reset_prefix_cache": {"success": True},
        }
        silent = {
            "/sleep": not self.family.says_what_it_did,
            "/wake_up": not self.family.says_what_it_did,
            "/reset_prefix_cache": not self.family.tells_whether_the_cache_was_reset,
        }
        if silent.get(request.path):
            return web.Response()
        return answer(bodies[request.path]) if request.path in bodies else web.Response()

    async def cut(self, request: web.Request, *, with_half_an_answer: bool) -> web.StreamResponse:
        """Close the connection where the client expects an answer, or the rest of it."""
        response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        if with_half_an_answer:
            await response.prepare(request)
            await response.write(b'{"status":')
        request["unanswered"] = True
        if request.transport is not None:
            sock = request.transport.get_extra_info("socket")
            if with_half_an_answer:
                # Linger for no time: what follows is a reset, not an orderly end.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await asyncio.sleep(0.05)
            request.transport.abort()
        return response if with_half_an_answer else web.Response()

    async def drip(self, request: web.Request, response: web.Response, seconds: float) -> web.StreamResponse:
        """Send the answer's body slowly."""
        body = bytes(response.body) if isinstance(response.body, (bytes, bytearray)) else b""
        slow = web.StreamResponse(status=response.status, headers={"Content-Type": "application/json"})
        slow.content_length = len(body)
        await slow.prepare(request)
        for byte in body:
            await slow.write(bytes([byte]))
            await asyncio.sleep(seconds / len(body))
        await slow.write_eof()
        return slow

    # ---- the engine -----------------------------------------------------------------------

    async def health(self, _request: web.Request) -> web.Response:
        """200 as long as the engine lives: asleep, waking, whatever it does."""
        return web.Response(status=503 if self.engine.dead else 200)

    async def sleep(self, request: web.Request) -> web.Response:
        """POST /sleep?level=&mode="""
        text, mode = request.query.get("level", "1"), self.mode(request)
        if self.family.says_what_it_did:
            level = parse_level(text)
        else:
            try:
                level = int(text)
            except ValueError:
                if self.family.status_of_a_level_in_words == 500:
                    return web.Response(status=500, text="Internal Server Error")
                raise bad_request(f"invalid literal for int() with base 10: '{text}'") from None
        # A client that hangs up does not stop it.
        await asyncio.shield(asyncio.ensure_future(self.timed("sleep", self.engine.sleep(level, mode))))
        return answer({"status": "sleeping", "level": level}) if self.family.says_what_it_did else web.Response()

    def mode(self, request: web.Request) -> str:
        """Read what is to become of running requests: of /sleep and /pause."""
        mode = request.query.get("mode", "abort")
        if not self.family.old and mode not in ("abort", "wait", "keep"):
            if not self.family.says_what_it_did and request.path == "/sleep":
                raise RuntimeError(f"Call to sleep method failed: Invalid pause mode: {mode}")
            modes = "'abort', 'wait' or 'keep'"
            raise invalid("literal_error", "query.mode", f"Input should be {modes}", mode, {"expected": modes})
        return mode

    async def pause(self, request: web.Request) -> web.Response:
        """POST /pause?mode=, before 0.17 ?wait_for_inflight_requests="""
        waits = request.query.get("wait_for_inflight_requests", "false").lower() in ("true", "1", "yes", "on")
        waits = waits and self.family.pauses_by_its_old_name
        mode = "wait" if waits else "abort" if self.family.old else self.mode(request)
        await asyncio.shield(asyncio.ensure_future(self.engine.pause(mode)))
        return answer({"status": "paused"})

    async def resume(self, _request: web.Request) -> web.Response:
        """POST /resume"""
        await asyncio.shield(asyncio.ensure_future(self.engine.resume()))
        return answer({"status": "resumed"})

    async def is_paused(self, _request: web.Request) -> web.Response:
        """GET /is_paused"""
        return answer({"is_paused": await asyncio.shield(asyncio.ensure_future(self.engine.is_paused()))})

    async def wake_up(self, request: web.Request) -> web.Response:
        """POST /wake_up?tags="""
        tags = request.query.getall("tags", None)
        awake = await asyncio.shield(asyncio.ensure_future(self.timed("wake", self.engine.wake_up(tags))))
        if not self.family.says_what_it_did:
            return web.Response()
        return answer({"status": "awake" if awake else "sleeping", "tags": tags})

    async def timed(self, operation: str, work: Awaitable[Any]) -> Any:
        """Count one operation for the metrics."""
        counts = self.operations.setdefault(operation, [0, 0.0, 0])
        counts[2] += 1
        started = time.perf_counter()
        try:
            return await work
        finally:
            counts[2] -= 1
            counts[0] += 1
            counts[1] += time.perf_counter() - started

    async def is_sleeping(self, _request: web.Request) -> web.Response:
        """GET /is_sleeping"""
        return answer({"is_sleeping": await self.engine.is_sleeping()})

    async def collective_rpc(self, request: web.Request) -> web.Response:
        """POST /collective_rpc {"method": ...}"""
        text = await request.text()
        try:
            body = json.loads(text)
        except ValueError as exc:
            raise bad_request(f"JSON decode error: {exc}", kind="Bad Request") from exc
        if not isinstance(body, dict):
            raise bad_request("Request body must be a JSON object", kind="Bad Request")
        if body.get("method") is None:
            raise bad_request("Missing 'method' in request body", kind="Bad Request")
        results = await asyncio.shield(asyncio.ensure_future(self.engine.collective_rpc(body["method"])))
        return answer({"results": results})

    async def reset_prefix_cache(self, _request: web.Request) -> web.Response:
        """POST /reset_prefix_cache"""
        success = await self.engine.reset_prefix_cache()
        told = self.family.tells_whether_the_cache_was_reset
        return answer({"success": success}) if told else web.Response()

    # ---- the OpenAI API -------------------------------------------------------------------

    async def models(self, _request: web.Request) -> web.Response:
        """GET /v1/models"""
        now = int(time.time())
        permission = {
            "object": "model_permission",
            "created": now,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        cards = [
            {
                "id": name,
                "object": "model",
                "created": now,
                "owned_by": "vllm",
                "root": root,
                "parent": parent,
                "max_model_len": None if parent else self.settings.max_model_len,
                "permission": [{"id": f"modelperm-{uuid.uuid4().hex[:16]}", **permission}],
            }
            for name, root, parent in (
                *((name, self.settings.model, None) for name in self.settings.names),
                *((name, path, self.settings.names[0]) for name, path in self.engine.adapters.items()),
            )
        ]
        return answer({"object": "list", "data": cards})

    async def load_adapter(self, request: web.Request) -> web.Response:
        """POST /v1/load_lora_adapter"""
        body = await request.json()
        for key in ("lora_name", "lora_path"):
            if key not in body:
                raise invalid("missing", f"body.{key}", "Field required", f"<dict of {len(body)} items>")
        name, path = body["lora_name"], body["lora_path"]
        if not name or not path:
            raise Refused(error("Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput", 400))
        if name in self.settings.names:
            message = f"The lora adapter '{name}' conflicts with a served base model."
            raise Refused(error(message, "InvalidUserInput", 400))
        if name in self.engine.adapters and not body.get("load_inplace"):
            message = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place,"
            raise Refused(error(f"{message} set 'load_inplace' to True.", "InvalidUserInput", 400))
        if not self.settings.lora:
            message = "Call to add_lora method failed: LoRA is not enabled. Use --enable-lora to enable LoRA."
            raise Refused(error(message, "InternalServerError", 500))
        if not os.path.isdir(path):
            message = f"Loading lora {name} failed: No adapter found for {path}"
            raise Refused(error(message, "NotFoundError", 404))
        self.engine.adapters[name] = path
        return web.Response(body=f"Success: LoRA adapter '{name}' added successfully.".encode())

    async def unload_adapter(self, request: web.Request) -> web.Response:
        """POST /v1/unload_lora_adapter"""
        name = (await request.json()).get("lora_name")
        if name not in self.engine.adapters:
            raise Refused(error(f"The lora adapter '{name}' cannot be found.", "NotFoundError", 404))
        del self.engine.adapters[name]
        return web.Response(body=f"Success: LoRA adapter '{name}' removed successfully.".encode())

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions"""
        body = await self.openai_body(request)
        prompt = body.get("prompt")
        if not prompt:
            message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
            raise bad_request(message, "prompt")
        prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        return await self.run(request, body, prompts, chat=False)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions"""
        body = await self.openai_body(request)
        messages = body.get("messages")
        if messages is None:
            raise invalid("missing", "body.messages", "Field required", f"<dict of {len(body)} items>")
        if not messages:
            raise bad_request("Cannot apply chat template to an empty conversation. Provide at least one message.")
        prompt = "".join(f"<{message.get('role')}>{message.get('content')}" for message in messages)
        return await self.run(request, body, [prompt], chat=True)

    async def openai_body(self, request: web.Request) -> dict[str, Any]:
        """Read a request's JSON and check the model."""
        if request.content_type != "application/json":
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise bad_request(message, kind="Bad Request")
        try:
            body = json.loads(await request.text())
        except ValueError as exc:
            position = getattr(exc, "pos", 0)
            reason = {"error": getattr(exc, "msg", "")}
            raise invalid("json_invalid", f"body.{position}", "JSON decode error", "<dict of 0 items>", reason) from exc
        name = body.get("model")
        if name and name not in self.settings.names and name not in self.engine.adapters:
            message = f"The model `{name}` does not exist."
            if not self.family.old:
                message += f" Valid aliases: {', '.join(self.settings.names)}."
            raise Refused(error(message, "NotFoundError", 404, None if self.family.old else "model"))
        return body

    async def run(
        self, request: web.Request, body: dict[str, Any], prompts: list[str | list[int]], *, chat: bool
    ) -> web.StreamResponse:
        """Generate, and answer at once or as a stream."""
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if limit is None:
            limit = 32 if chat else 16
        elif limit < 1:
            message = f"max_tokens must be at least 1, got {limit}. (parameter=max_tokens, value={limit})"
            raise bad_request(message, "max_tokens")
        elif limit > self.settings.max_model_len:
            raise bad_request(
                f"max_tokens={limit} cannot be greater than max_model_len={self.settings.max_model_len}. "
                f"Please request fewer output tokens. (parameter=max_tokens, value={limit})",
                "max_tokens",
            )
        # A chat that gives no limit ends by itself.
        finish = "stop" if chat and not (body.get("max_completion_tokens") or body.get("max_tokens")) else "length"
        adapter = self.engine.adapters.get(body.get("model", ""), "")
        generations = [
            Generation(
                str(prompt),
                limit,
                finish,
                bool(request.get("wrong_text")),
                ids=len(prompt) if isinstance(prompt, list) else 0,
                adapter=adapter,
            )
            for prompt in prompts
        ]
        longest = max(generation.prompt_tokens for generation in generations)
        if longest + limit > self.settings.max_model_len:
            raise bad_request(
                f"This model's maximum context length is {self.settings.max_model_len} tokens. However, you requested "
                f"{limit} output tokens and your prompt contains {longest} input tokens.",
                "input_tokens",
            )
        form = OpenAiAnswer(chat, body["model"] if adapter else self.settings.names[0], self.fingerprint)
        self.load += self.settings.load_tracking
        try:
            if body.get("stream"):
                with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
                return await self.stream(request, generations[0], form, with_usage)
            await asyncio.gather(*(self.finish(generation) for generation in generations))
        finally:
            self.load -= self.settings.load_tracking
        return answer(form.whole(generations))

    async def finish(self, generation: Generation) -> None:
        """Wait until it has all its tokens, or was aborted."""
        async for _tokens in self.engine.generate(generation):
            pass

    async def stream(
        self, request: web.Request, generation: Generation, form: OpenAiAnswer, with_usage: bool
    ) -> web.StreamResponse:
        """Send server-sent events, one per token. The headers go at once, also when the model sleeps."""
        self.engine.check_alive()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if form.chat:
            await response.write(sse(form.first_chunk()))
        sent = 0
        try:
            async for tokens in self.engine.generate(generation):
                while sent < tokens:
                    sent += 1
                    finish = generation.finish if sent == tokens and generation.finish else None
                    await response.write(sse(form.chunk(generation.words[sent - 1], finish, with_usage)))
            if generation.finish == "abort" and generation.started:
                await response.write(sse(form.chunk("", "abort", with_usage)))
            if with_usage:
                await response.write(sse(form.usage_chunk(generation)))
        except EngineDead:
            failure = {"message": ENGINE_DEAD, "type": "InternalServerError", "param": None, "code": 500}
            await response.write(sse({"error": failure}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    # ---- models that complete no text -----------------------------------------------------

    async def not_supported(self, request: web.Request) -> web.Response:
        """Answer what the model can't do as the versions did that had every call: 200."""
        await request.read()
        refusal = f"The model does not support {API_NAMES[request.path]} API"
        return answer({"error": {"message": refusal, "type": "BadRequestError", "param": None, "code": 400}})

    async def pooled(self, request: web.Request, texts: list[str], dimensions: int = DIMENSIONS) -> list[list[float]]:
        """Return the numbers that the model gives for each text."""
        wrong = bool(request.get("wrong_text"))
        await asyncio.gather(*(self.finish(Generation(text, 1, pooled=True)) for text in texts))
        return [self.engine.numbers(text, dimensions, wrong) for text in texts]

    def pooling_answer(self, name: str, key: str, values: list[Any]) -> web.Response:
        """Answer with the numbers for each text, under the key that the call has for them."""
        data = [{"index": index, "object": name, key: value} for index, value in enumerate(values)]
        usage = {"prompt_tokens": 1, "total_tokens": 1, "completion_tokens": 0, "prompt_tokens_details": None}
        head = {"id": f"{name}-{uuid.uuid4().hex[:16]}", "object": "list", "created": int(time.time())}
        return answer({**head, "model": self.settings.names[0], "data": data, "usage": usage})

    async def embeddings(self, request: web.Request) -> web.Response:
        """POST /v1/embeddings"""
        vectors = await self.pooled(request, _texts((await self.openai_body(request)).get("input")))
        return self.pooling_answer("embedding", "embedding", vectors)

    async def pooling(self, request: web.Request) -> web.Response:
        """POST /pooling"""
        vectors = await self.pooled(request, _texts((await self.openai_body(request)).get("input")))
        return self.pooling_answer("pooling", "data", vectors)

    async def classify(self, request: web.Request) -> web.Response:
        """POST /classify"""
        vectors = await self.pooled(request, _texts((await self.openai_body(request)).get("input")), 2)
        return self.pooling_answer("classify", "probs", vectors)

    async def score(self, request: web.Request) -> web.Response:
        """POST /score"""
        body = await self.openai_body(request)
        first, others = _texts(body.get("text_1")), _texts(body.get("text_2"))
        vectors = await self.pooled(request, [f"{first[0]}\0{other}" for other in others], 2)
        return self.pooling_answer("score", "score", [abs(vector[0]) for vector in vectors])

    async def transcriptions(self, request: web.Request) -> web.Response:
        """POST /v1/audio/transcriptions"""
        if request.content_type != "multipart/form-data":
            raise invalid("missing", "body.file", "Field required", "None")
        form = await request.post()
        sound = form.get("file")
        if not isinstance(sound, web.FileField):
            raise invalid("missing", "body.file", "Field required", "None")
        try:
            with wave.open(io.BytesIO(sound.file.read())) as opened:
                seconds = opened.getnframes() / opened.getframerate()
        except (wave.Error, EOFError):
            raise bad_request("Invalid or unsupported audio file.") from None
        generation = Generation(f"{seconds} s", 3, wrong_text=bool(request.get("wrong_text")))
        await self.finish(generation)
        return answer({"text": generation.text, "usage": {"type": "duration", "seconds": int(seconds)}})

    # ---- what is told about it ------------------------------------------------------------

    async def version(self, _request: web.Request) -> web.Response:
        """GET /version"""
        if self.settings.listens_while_loading:
            raise web.HTTPNotFound  # such a server is no vLLM
        return answer({"version": self.settings.version})

    async def server_load(self, _request: web.Request) -> web.Response:
        """GET /load"""
        return answer({"server_load": self.load})

    async def metrics(self, _request: web.Request) -> web.Response:
        """GET /metrics: the ones that somebody who switches models looks at."""
        label = f'engine="0",model_name="{self.settings.names[0]}"'
        running, waiting = self.engine.gauges
        lines = [
            *family("vllm:num_requests_running", "gauge", "Number of requests in model execution batches."),
            f"vllm:num_requests_running{{{label}}} {float(running)}",
            *family("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed."),
            f"vllm:num_requests_waiting{{{label}}} {float(waiting)}",
        ]
        if self.family.has_the_sleep_gauge:
            sleeping, level = self.engine.reported_sleep
            states = {"awake": not sleeping, "weights_offloaded": level == 1, "discard_all": level == 2}
            lines += family(
                "vllm:engine_sleep_state",
                "gauge",
                "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; "
                "weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
            )
            lines += [f'vllm:engine_sleep_state{{{label},sleep_state="{s}"}} {float(on)}' for s, on in states.items()]
        lines += [
            *family("vllm:prompt_tokens_total", "counter", "Number of prefill tokens processed."),
            f"vllm:prompt_tokens_total{{{label}}} {float(self.engine.token_totals[0])}",
            *family("vllm:generation_tokens_total", "counter", "Number of generation tokens processed."),
            f"vllm:generation_tokens_total{{{label}}} {float(self.engine.token_totals[1])}",
            *family("vllm:request_success_total", "counter", "Count of successfully processed requests."),
        ]
        for reason, number in self.engine.finished.items():
            labels = f'engine="0",finished_reason="{reason}",model_name="{self.settings.names[0]}"'
            lines.append(f"vllm:request_success_total{{{labels}}} {float(number)}")
        if self.settings.speculative:
            for what, count in zip(("draft", "accepted"), self.engine.drafts, strict=True):
                name = f"vllm:spec_decode_num_{what}_tokens_total"
                lines += [*family(name, "counter", f"Number of {what} tokens."), f"{name}{{{label}}} {count}"]
        if self.family.times_the_sleep:
            name = "vllm:sleep_mode_operation_duration_seconds"
            lines += family(name, "histogram", "Duration of one sleep-mode operation.")
            for operation, counts in self.operations.items():
                lines.append(f'{name}_count{{operation="{operation}"}} {float(counts[0])}')
                lines.append(f'{name}_sum{{operation="{operation}"}} {counts[1]}')
            name = "vllm:sleep_mode_operations_in_flight"
            lines += family(name, "gauge", "Sleep-mode operations currently awaited.")
            lines += [f'{name}{{operation="{op}"}} {float(counts[2])}' for op, counts in self.operations.items()]
        lines += family("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.")
        lines.append(f"process_start_time_seconds {self.started:.2f}")
        text = "\n".join(lines) + "\n"
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"})

    # ---- the stand-in's own ---------------------------------------------------------------

    async def state(self, _request: web.Request) -> web.Response:
        """GET /standin/state: what no real server tells."""
        engine = self.engine
        return answer(
            {
                "asleep": sorted(engine.asleep),
                "level": engine.level,
                "paused": engine.paused,
                "weights_right": engine.weights_right,
                "drafts_right": engine.drafts_right,
                "requests": len(engine.generations),
                "door_shut": engine.door_shut,
                "held": engine.held,
                "finished": sum(engine.finished.values()),
            }
        )

    async def faults_list(self, _request: web.Request) -> web.Response:
        """GET /standin/faults"""
        return answer(self.faults.listed())

    async def faults_add(self, request: web.Request) -> web.Response:
        """POST /standin/faults"""
        try:
            self.faults.add(await request.json())
        except (TypeError, ValueError) as exc:
            return answer({"detail": str(exc)}, 400)
        return answer(self.faults.listed())

    async def faults_clear(self, _request: web.Request) -> web.Response:
        """DELETE /standin/faults"""
        self.faults.left.clear()
        return answer([])


def _texts(value: Any) -> list[str]:
    """Read one text or several; raise what vLLM answers where there is none."""
    if not value:
        raise invalid("missing", "body.input", "Field required", "None")
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
