# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""What a model may answer, and the call by which its server shows that: text, vectors, scores, words that it hears.

The paths and bodies are those of vLLM 0.11.0 to 0.32.0, seen on real servers. Pure: no I/O.
"""

from __future__ import annotations

import json
import math
import struct
import typing

# How far numbers may be from those that were recorded, as a share of their length: for vectors of length 1 a cosine of
# 0.99875. A tiny BERT on real vLLM gave the very same numbers again, also in other batches and after every sleep; a GPU
# rounds otherwise from batch to batch. Calculated in bfloat16 instead of float32 they were 0.02 apart, with one of the
# layers or all of them of other weights 1.2 to 1.5.
_FARTHEST_SHARE = 0.05
# Of a long answer so many numbers are kept: the record is read with every switch.
_MOST_NUMBERS = 4096

_SENTENCE = "The capital of France is Paris, and the capital of Italy is"
# One pair that goes together and one that does not: weights that are no good make no such difference.
_QUESTION, _PASSAGES = "What is the capital of France?", ["The capital of France is Paris.", "Bread is made of flour."]
_BOUNDARY = "homegpt-vllm-9f2c61d4"
_SECOND_HERTZ = 16000


class Reply(typing.NamedTuple):
    """What a server has answered: C(text), which of several numbers is a list in JSON, and the C(kind) of call."""

    kind: str
    text: str

    def is_as(self, kind: str, text: str) -> bool:
        """Whether it is what was told before."""
        if self.kind != kind:
            return False
        return self.text == text or (kind in _NUMBERS and _close(self.text, text, KINDS[kind].shortest))


class Kind(typing.NamedTuple):
    """One call: its C(path), what is posted, and how its answer is read.

    C(body) makes (content type, body) of the model's name; C(read) gives the text of an answer, None for what is none.
    Numbers whose length is below C(shortest) are compared as if it were that.
    """

    path: str
    body: typing.Callable[[str], tuple[str, bytes]]
    read: typing.Callable[[typing.Mapping[str, typing.Any]], str | None]
    shortest: float = 0.0


def _json_body(**asked: typing.Any) -> typing.Callable[[str], tuple[str, bytes]]:
    return lambda name: ("application/json", json.dumps({"model": name, **asked}).encode())


def _silence(name: str) -> tuple[str, bytes]:
    """A form with a second of silence as a WAV file, and what is to be done with it."""
    sound = bytes(2 * _SECOND_HERTZ)
    heading = struct.pack("<HHIIHH", 1, 1, _SECOND_HERTZ, 2 * _SECOND_HERTZ, 2, 16)  # PCM, one channel of 16 bits
    file = b"RIFF" + struct.pack("<I", 36 + len(sound)) + b"WAVEfmt " + struct.pack("<I", len(heading)) + heading
    file += b"data" + struct.pack("<I", len(sound)) + sound
    parts = b"".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
        for field, value in (("model", name), ("temperature", "0"), ("response_format", "json"))
    )
    parts += f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="silence.wav"\r\n'.encode()
    parts += b"Content-Type: audio/wav\r\n\r\n" + file + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return f"multipart/form-data; boundary={_BOUNDARY}", parts


def _first(answer: typing.Mapping[str, typing.Any], key: str, within: str) -> typing.Any:
    entries = answer.get(within)
    first = entries[0] if isinstance(entries, list) and entries else None
    return first.get(key) if isinstance(first, dict) else None


def _text(answer: typing.Mapping[str, typing.Any]) -> str | None:
    return _storable(_first(answer, "text", "choices"))


def _heard(answer: typing.Mapping[str, typing.Any]) -> str | None:
    return _storable(answer.get("text"))


def _storable(text: typing.Any) -> str | None:
    """The text without what no file can hold: JSON may have halves of characters."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else None


def _vector(answer: typing.Mapping[str, typing.Any]) -> str | None:
    return _numbers(_first(answer, "embedding", "data"))


def _pooled(answer: typing.Mapping[str, typing.Any]) -> str | None:
    return _numbers(_first(answer, "data", "data"))


def _scores(answer: typing.Mapping[str, typing.Any]) -> str | None:
    entries = answer.get("data")
    if not isinstance(entries, list):
        return None
    return _numbers([entry.get("score") if isinstance(entry, dict) else None for entry in entries])


def _numbers(value: typing.Any) -> str | None:
    """A number, or lists of them within each other, as a list in JSON; None for what is none, or has no end."""
    found: list[float] = []
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += reversed(item)
        elif isinstance(item, bool) or not isinstance(item, (int, float)) or not abs(item) < 1e30:
            return None
        else:
            found.append(float(f"{item:.6g}"))
    return json.dumps(found[:_MOST_NUMBERS]) if found else None


def _close(one: str, other: str, shortest: float) -> bool:
    """Whether two lists of numbers are the same but for what rounding makes of them."""
    try:
        first, second = json.loads(one), json.loads(other)
        if len(first) != len(second):
            return False
        apart = math.sqrt(sum((a - b) ** 2 for a, b in zip(first, second)))
        length = math.sqrt(sum(b * b for b in second))
    except (ValueError, TypeError, OverflowError):
        return False  # somebody else has written that record
    return apart <= _FARTHEST_SHARE * max(length, shortest)


TEXT, EMBEDDING, SCORE, SPEECH, POOLING = "text", "embedding", "score", "speech", "pooling"

# By the kind of call, in the order in which a server is asked that has not said what it is.
KINDS: dict[str, Kind] = {
    # Long enough to run through all of the weights, short enough to cost little.
    TEXT: Kind("/v1/completions", _json_body(prompt=_SENTENCE, max_tokens=16, temperature=0), _text),
    EMBEDDING: Kind("/v1/embeddings", _json_body(input=_SENTENCE), _vector),
    # A score is mostly a share of 1, of which rounding takes as much whether it is small or not.
    SCORE: Kind("/score", _json_body(text_1=_QUESTION, text_2=_PASSAGES), _scores, shortest=0.4),
    SPEECH: Kind("/v1/audio/transcriptions", _silence, _heard),
    # What classifies or gives rewards; it answers with whatever its model pools.
    POOLING: Kind("/pooling", _json_body(input=_SENTENCE), _pooled, shortest=0.4),
}
_NUMBERS = (EMBEDDING, SCORE, POOLING)

# Enough to see that a server of text answers.
HELLO = _json_body(prompt="Hello", max_tokens=1, temperature=0)

# Which calls may be right for a model, by what its inventory says of it.
POSSIBLE: dict[str, tuple[str, ...]] = {
    "auto": tuple(KINDS),
    "text": (TEXT,),
    "pooling": (EMBEDDING, SCORE, POOLING),
    "speech": (SPEECH,),
}
