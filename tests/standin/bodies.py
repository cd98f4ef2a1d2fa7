# SPDX-License-Identifier: MIT
"""The bodies of vLLM's answers, errors included."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from aiohttp import web

from .engine import Generation


def answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return JSON as Starlette writes it: compact, and not escaped."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return web.Response(body=text.encode(), status=status, content_type="application/json", headers=headers)


def error(message: str, kind: str, status: int, param: str | None = None) -> web.Response:
    """Return an OpenAI-style error."""
    return answer({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)


class Refused(Exception):
    """A request that is wrong; carries the answer."""

    def __init__(self, response: web.Response) -> None:
        super().__init__()
        self.response = response


def bad_request(message: str, param: str | None = None, *, kind: str = "BadRequestError") -> Refused:
    """Return a 400 to raise; vLLM's own checks say BadRequestError, FastAPI's say "Bad Request"."""
    return Refused(error(message, kind, 400, param))


def sse(body: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def family(name: str, kind: str, text: str) -> list[str]:
    """Return the two lines that stand before a metric."""
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def invalid(kind: str, place: str, message: str, value: str, context: dict[str, object] | None = None) -> Refused:
    """Return the 400 that vLLM makes of one of pydantic's complaints."""
    details: dict[str, object] = {"type": kind, "loc": place, "msg": message, "input": value}
    if context:
        details["ctx"] = context
    return bad_request(f"1 validation error:\n  {details}", place, kind="Bad Request")


def parse_level(text: str) -> int:
    """Read the sleep level as the new servers do."""
    try:
        level = int(text)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise invalid("int_parsing", "query.level", message, text) from None
    if level < 0:
        message = "Input should be greater than or equal to 0"
        raise invalid("greater_than_equal", "query.level", message, text, {"ge": 0})
    if level > 2:
        raise invalid("less_than_equal", "query.level", "Input should be less than or equal to 2", text, {"le": 2})
    return level


class OpenAiAnswer:
    """The bodies of one answer of the OpenAI API."""

    def __init__(self, chat: bool, model: str, fingerprint: str) -> None:
        self.chat = chat
        self.fingerprint = fingerprint
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex[:16]}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, generations: list[Generation]) -> dict[str, Any]:
        """Return the body of an answer that is not a stream."""
        choices = []
        for index, generation in enumerate(generations):
            content: dict[str, Any] = {"text": generation.text}
            if self.chat:
                nothing = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
                content = {"message": {"role": "assistant", "content": generation.text, **nothing}}
            ending = {"logprobs": None, "finish_reason": generation.finish, "stop_reason": None, "token_ids": None}
            choices.append({"index": index, **content, **ending})
        prompt_tokens = sum(generation.prompt_tokens for generation in generations)
        tokens = sum(generation.tokens for generation in generations)
        usage = {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + tokens,
            "completion_tokens": tokens,
            "prompt_tokens_details": None,
        }
        fingerprint = {"service_tier": None, "system_fingerprint": self.fingerprint}
        return {**self.head, "choices": choices, **fingerprint, "usage": usage, "kv_transfer_params": None}

    def first_chunk(self) -> dict[str, Any]:
        """Return the chunk with which a chat begins, before there is a token."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return {**self._stream_head(), "choices": [choice]}

    def chunk(self, text: str, finish: str | None, with_usage: bool) -> dict[str, Any]:
        """Return the chunk of one token."""
        content: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
        ends = {"logprobs": None, "finish_reason": finish, "stop_reason": None, "token_ids": None}
        choice = {"index": 0, **content, **ends}
        ending = {"system_fingerprint": self.fingerprint} if finish and not with_usage else {}
        return {**self._stream_head(), "choices": [choice], **ending}

    def usage_chunk(self, generation: Generation) -> dict[str, Any]:
        """Return the last chunk of a stream with include_usage."""
        usage = {
            "prompt_tokens": generation.prompt_tokens,
            "total_tokens": generation.prompt_tokens + generation.tokens,
            "completion_tokens": generation.tokens,
        }
        return {**self._stream_head(), "choices": [], "usage": usage, "system_fingerprint": self.fingerprint}

    def _stream_head(self) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk"} if self.chat else self.head
