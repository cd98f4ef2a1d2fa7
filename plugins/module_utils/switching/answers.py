# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What one server answers when it is asked as its users ask it: its names and adapters, a proof, a canary, a text."""

from __future__ import annotations

import re
import typing

from . import model_list
from .client import Client, printable
from .errors import BadAnswer, NoSuchAnswer, Refused
from .inventory import Model, Switching
from .kinds import HELLO, KINDS, POSSIBLE, TEXT, Reply

# A prompt has no more tokens than this, whatever is asked for and said to have room: it is put together in memory.
_MOST_TOKENS = 1_000_000


class AnsweringClient(Client):
    """A client of the calls that a model's users make, and of those that say what it is called."""

    def __init__(self, model: Model, switching: Switching) -> None:
        super().__init__(model, switching)
        self._served_name: str | None = None
        # The LoRA adapters that /v1/models has told, each with its path; None where it was not asked since observe().
        self.adapters: dict[str, str] | None = None
        self._kind = ""
        self._longest: int | None = None

    def prove(self) -> Reply:
        """A short answer: the last proof that the server can give one. NoSuchAnswer where it knows no call for that."""
        return self._answer("", HELLO)

    def canary(self, kind: str = "") -> Reply:
        """The answer to what the canary always asks; C(kind) is the one that it gave before."""
        return self._answer(kind, KINDS[TEXT].body)

    def list_adapters(self) -> dict[str, str]:
        """The LoRA adapters that the server lists now, each with its path."""
        self._check_identity()
        return self.adapters or {}

    def route_canary(self, route: str, kind: str, seconds: float | None = None) -> Reply:
        """The answer of an adapter, or with an empty name of the bare model, to what the canary always asks."""
        return self._ask(kind, KINDS[kind].body(route or self._served_name or self._check_identity()), seconds)

    def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter. Refused where the server does not allow that, or has no such adapter or no room for it.

        There is such a call only with C(VLLM_ALLOW_RUNTIME_LORA_UPDATING).
        """
        body = {"lora_name": name, "lora_path": path}
        try:
            self._call("POST", "/v1/load_lora_adapter", body, self.switching.request_timeout_seconds)
        except Refused as error:
            # By 404 it is said too that there are no such files; that is longer.
            if str(error).endswith('answered 404: {"detail":"Not Found"}'):
                raise Refused("VLLM_ALLOW_RUNTIME_LORA_UPDATING is not set", error.status) from None
            raise

    def complete(self, prompt: str | int, tokens: int, seconds: float) -> int:
        """Have a text, or as many tokens as there is room for, completed by more; how long the prompt was."""
        name = self._served_name or self._check_identity()
        asked: str | list[int]
        if isinstance(prompt, int):
            room = max(1, min(self._longest or _MOST_TOKENS, _MOST_TOKENS) - tokens)
            # Ordinary ids, which every vocabulary has; not one alone, which would reach only the same few experts.
            asked = [3 + index % 97 for index in range(min(prompt, room))]
        else:
            asked = prompt
        body = {"model": name, "prompt": asked, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        self._json("POST", "/v1/completions", self._call("POST", "/v1/completions", body, seconds))
        return len(asked)

    def _answer(self, before: str, text_body: typing.Callable[[str], tuple[str, bytes]]) -> Reply:
        """The answer to the first call that the server knows: a server of text is asked for nothing else."""
        name = self._served_name or self._check_identity()
        possible = POSSIBLE[self.model.kind]
        known = self._kind or before
        refusals = []
        for kind in sorted(possible, key=lambda one: one != known):
            try:
                reply = self._ask(kind, (text_body if kind == TEXT else KINDS[kind].body)(name))
            except Refused as error:
                # What is asked of a model of another kind it may as well refuse as not know.
                unknown = _is_unknown(error)
                if not unknown and (kind == TEXT or error.status >= 500):
                    raise
                why = str(error.status) if unknown else str(error).partition("answered ")[2]
                refusals.append(f"{KINDS[kind].path}: {why}")
                continue
            self._kind = kind
            return reply
        raise NoSuchAnswer(
            f"{self.model.id} is healthy, but answers none of the calls that show that it is ready "
            f"({', '.join(refusals)}): set its ready_completion to false if that is expected"
            + ("" if self.model.kind == "auto" else f", or its kind ({self.model.kind}) to what it is")
        )

    def _ask(self, kind: str, asked: tuple[str, bytes], seconds: float | None = None) -> Reply:
        """The answer to one call; C(asked) is its content type and body."""
        call = KINDS[kind]
        timeout = seconds or self.switching.request_timeout_seconds
        answer = self._call("POST", call.path, asked[1], timeout, content_type=asked[0])
        text = call.read(self._json("POST", call.path, answer))
        if text is None:
            raise self._bad_answer("POST", call.path, answer)
        return Reply(kind, text)

    def _check_identity(self) -> str:
        """The name to call the model by, as the server itself gives it."""
        try:
            answer = self._call("GET", "/v1/models")
        except Refused as error:
            if error.status != 401:
                raise
            raise BadAnswer(
                f"{self.model.id} requires an API key on port {self.model.host_port} (401 from /v1/models): set the "
                "correct one as args.api_key or env.VLLM_API_KEY of the model"
            ) from None
        told = model_list.parse(self._json("GET", "/v1/models", answer), self.model.names)
        if told is None:
            raise self._bad_answer("GET", "/v1/models", answer)
        for name in self.model.names:
            if name in told.served:
                self._served_name, self._longest, self.adapters = name, told.served[name], told.adapters
                return str(name)
        raise BadAnswer(
            f"port {self.model.host_port} serves {printable(', '.join(told.served)) or 'no model'}, not "
            f"{' or '.join(self.model.names)}: another server has taken the port, or --served-model-name is missing"
        )


def _is_unknown(error: Refused) -> bool:
    """Whether a server refuses a call since it knows none such, or not for its model.

    vLLM says so by 404, older ones by a 200 that has this text and 400 within (seen on 0.11.0), llama-server by 501.
    vLLM answers with 404 too when it is asked for a model that it does not have.
    """
    text = str(error)
    if error.status in (404, 405, 501):
        return "does not exist" not in text
    return re.search("does not support .{1,40}API", text) is not None
