# SPDX-License-Identifier: MIT
"""How the model is found in a body, whatever the body is."""

from __future__ import annotations

import gzip
import json
import random
import string
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.fake_link import model, playing
from tests.gateway.gatewaylib import Client, Gateway, missing, until
from tests.gateway.played import Server, answers
from tests.part import fewer

CHAT = "/v1/chat/completions"
# More than nginx keeps in memory of a body: it goes through a file.
LARGE = "x" * 200_000


@pytest.fixture(scope="module")
def played() -> Iterator[tuple[Gateway, Server]]:
    """A gateway with one model, m, whose server keeps what it was asked."""
    if missing():
        pytest.skip(missing())
    with (
        Server(answers({"ok": True})) as server,
        playing(model("m", server.port)) as manager,
        Gateway(manager) as gateway,
    ):
        yield gateway.wait_known(), server


def sent(played: tuple[Gateway, Server], body: bytes | str, kind: str = "application/json") -> tuple[int, Any]:
    """Send a body; return the status and the error's code, or the body as the server got it."""
    gateway, server = played
    before = len(server.asked)
    data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    answer = requests.post(gateway.url + CHAT, data=data, headers={"Content-Type": kind}, timeout=30)
    if answer.status_code == 200:
        assert len(server.asked) == before + 1
        return 200, server.asked[-1].body
    assert len(server.asked) == before
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m"}',
        ' \t\r\n{ "model" : "m" } \n',
        '{"messages":[{"content":"{\\"model\\":\\"x\\"}"}],"model":"m"}',
        '{"a":{"model":"x"},"b":[{"model":"x"},[]],"model":"m","c":{}}',
        '{"a":"\\\\","b":"\\\\\\"","model":"m"}',
        '{"a":1e5,"b":-0.1,"c":true,"d":false,"e":null,"model":"m","stream":false}',
        '{"\\u006dodel":"m"}',
        '{"mod\\u0065l":"\\u006d"}',
        '{"Model":"x","model ":"x","models":"x","mode":"x","model":"m"}',
        '{"ü":"\\ud83d\\ude00 ü","model":"m"}',
        '{"a":"' + LARGE + '","model":"m"}',
        '{"a":"' + LARGE + '\\\\","b":[["' + LARGE + '"]],"model":"m"}',
        '{"model":"m","a":[' + "1," * 100_000 + "1]}",
        '{"model":"m","a":' + "[" * 50_000 + "]" * 50_000 + "}",
    ],
)
def test_the_model_is_found(played: tuple[Gateway, Server], body: str) -> None:
    assert sent(played, body) == (200, body.encode())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", "invalid_json"),
        ("model=m", "invalid_json"),
        ("[]", "invalid_json"),
        ('"m"', "invalid_json"),
        ("{", "invalid_json"),
        ('{"model":"m"', "invalid_json"),
        ('{"model":"m"}}', "invalid_json"),
        ('{"model":"m"} {"model":"x"}', "invalid_json"),
        ('{"model":"m",}', "invalid_json"),
        ('{"model" "m"}', "invalid_json"),
        ('{"model":}', "invalid_json"),
        ('{"model":"m" "a":1}', "invalid_json"),
        ('{model:"m"}', "invalid_json"),
        ('{"a":[1,"model":"m"}', "invalid_json"),
        ('{"a":"' + LARGE + ',"model":"m}', "invalid_json"),
        ('{"a":"' + LARGE + '"', "invalid_json"),
        ("\ufeff" + '{"model":"m"}', "invalid_json"),
        ('{"model":"m"}'.encode("utf-16"), "invalid_json"),
        ('{"model":"m"}'.encode("utf-32-le"), "invalid_json"),
        ("{}", "model_required"),
        ('{"messages":[]}', "model_required"),
        ('{"model":"m","model":"m"}', "duplicate_model"),
        ('{"model":"m","mod\\u0065l":"x"}', "duplicate_model"),
        ('{"\\u006d\\u006f\\u0064\\u0065\\u006c":"m","a":"' + LARGE + '","model":"x"}', "duplicate_model"),
        ('{"model":null}', "invalid_model"),
        ('{"model":1}', "invalid_model"),
        ('{"model":["m"]}', "invalid_model"),
        ('{"model":{"m":1}}', "invalid_model"),
        ('{"model":"\\ud800"}', "invalid_model"),
        ('{"model":"a\nb"}', "invalid_model"),
    ],
)
def test_what_is_not_clear_is_refused(played: tuple[Gateway, Server], body: str | bytes, code: str) -> None:
    assert sent(played, body) == (400, code)


@pytest.mark.parametrize("name", ["", "M", "m ", "m\\u0000", "x" * 100, "x" * 10_000, "\\u00e4" * 3000, "\ufffd" * 50])
def test_strange_names_are_unknown(played: tuple[Gateway, Server], name: str) -> None:
    gateway, _server = played
    answer = requests.post(
        gateway.url + CHAT,
        data=f'{{"model":"{name}"}}'.encode(),
        headers={"Content-Type": "application/json"},
        timeout=20,
    )
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert len(answer.content) < 600


def test_a_name_that_is_no_text_at_all(played: tuple[Gateway, Server]) -> None:
    assert sent(played, b'{"model":"\xff\xfe\x80"}') == (404, "model_not_found")


def test_compressed_bodies_are_refused(played: tuple[Gateway, Server]) -> None:
    gateway, server = played
    before = len(server.asked)
    for encoding, body in (
        ("gzip", gzip.compress(b'{"model":"m"}')),
        ("identity, deflate", zlib.compress(b'{"model":"m"}')),
    ):
        answer = requests.post(gateway.url + CHAT, data=body, headers={"Content-Encoding": encoding}, timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert len(server.asked) == before


# ---- forms ------------------------------------------------------------------------------------


def form(*parts: tuple[str, bytes], boundary: str = "XX", end: str = "--XX--\r\n") -> bytes:
    """A form of such headers and values."""
    return (
        b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + value + b"\r\n" for head, value in parts) + end.encode()
    )


NAMED = 'Content-Disposition: form-data; name="model"'
FILE = 'Content-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav'


@pytest.mark.parametrize(
    "body",
    [
        form((NAMED, b"m")),
        form((FILE, b'\r\n--X\r\nname="model"\r\n\r\nx'), (NAMED, b"m")),
        form((FILE, LARGE.encode() + b"\r\n-" * 1000), (NAMED, b"m"), (FILE, b"")),
        b"a preamble\r\n" + form((NAMED, b"m")),
        form(('content-disposition: FORM-DATA; NAME="model"'.replace("NAME", "name"), b"m")),
        form(("Content-Type: text/plain\r\nContent-Disposition: form-data; name=model", b"m")),
        form((NAMED, b"m"), ('Content-Disposition: form-data; name="x"', b"")),
    ],
)
def test_the_model_is_found_in_a_form(played: tuple[Gateway, Server], body: bytes) -> None:
    for boundary in ("XX", '"XX"', "XX; charset=utf-8"):
        assert sent(played, body, f"multipart/form-data; boundary={boundary}") == (200, body)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"nothing", "invalid_form"),
        (form((NAMED, b"m"), end=""), "invalid_form"),
        (form((NAMED, b"m"), end="--XX"), "invalid_form"),
        (form((FILE, b"x")), "model_required"),
        (form((FILE.replace("file", "model", 1), b"m")), "model_required"),
        (form((NAMED, b"m"), (NAMED, b"x")), "duplicate_model"),
        (form((NAMED, b"m"), (FILE, LARGE.encode()), (NAMED, b"m")), "duplicate_model"),
    ],
)
def test_what_is_not_clear_in_a_form_is_refused(played: tuple[Gateway, Server], body: bytes, code: str) -> None:
    assert sent(played, body, "multipart/form-data; boundary=XX") == (400, code)


def test_what_is_json_and_a_form_at_once_is_what_its_type_says(played: tuple[Gateway, Server]) -> None:
    """vLLM's reader of forms passes over what comes before the first mark, if that begins with a line break."""
    inner = form(("Content-Disposition: form-data; name=model", b"x")).decode()
    body = b'\r\n{"model":"m","a":"\r\n' + inner.encode() + b'"}'
    assert '"' not in inner
    assert sent(played, body, "multipart/form-data; boundary=XX") == (404, "model_not_found")
    assert sent(played, body) == (200, body)


def test_a_form_without_a_boundary(played: tuple[Gateway, Server]) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "X" * 300):
        assert sent(played, form((NAMED, b"m")), kind) == (400, "invalid_form")


# ---- against a parser that knows ---------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["model", "stream", "a", "messages", 'm"', "\\"]) | st.text(max_size=6)


@settings(max_examples=fewer("gateway", "make gateway", "a body", 1500, 150))
@given(pairs=st.lists(st.tuples(KEYS, VALUES), max_size=6), ascii_only=st.booleans(), name=st.sampled_from(["m", None]))
def test_any_json_is_read_as_a_parser_reads_it(
    played: tuple[Gateway, Server], pairs: list[tuple[str, Any]], ascii_only: bool, name: str | None
) -> None:
    pairs = [("model", "m") if key == "model" and name else (key, value) for key, value in pairs]
    inner = (f"{json.dumps(key, ensure_ascii=ascii_only)}: {json.dumps(value)}" for key, value in pairs)
    body = "{" + ", ".join(inner) + "}"
    try:
        body.encode()
    except UnicodeEncodeError:
        return
    models = [value for key, value in pairs if key == "model"]
    status, found = sent(played, body)
    if len(models) > 1:
        assert (status, found in ("duplicate_model", "invalid_model")) == (400, True)
    elif not models:
        assert (status, found) == (400, "model_required")
    elif not isinstance(models[0], str):
        assert (status, found) == (400, "invalid_model")
    elif models[0] == "m":
        assert (status, found) == (200, body.encode())
    else:
        assert status in (400, 404)


def test_garbage_never_harms_a_worker(played: tuple[Gateway, Server]) -> None:
    gateway, _server = played
    chance = random.Random(1)
    pid = gateway.workers()
    for _number in range(fewer("gateway", "make gateway", "garbage", 1000, 100)):
        body = "".join(chance.choices('{}[]":,\\ ab1\n', k=chance.randrange(60)))
        assert sent(played, '{"model":"m"' + body)[0] in (200, 400)
        kind = "multipart/form-data; boundary=" + "".join(chance.choices(string.ascii_letters + '"-', k=3))
        assert sent(played, "--" + kind[-3:] + body + "\r\n\r\n", kind)[0] in (200, 400)
    assert gateway.workers() == pid


# ---- large ones -------------------------------------------------------------------------------


def test_twenty_megabytes_of_an_image(played: tuple[Gateway, Server]) -> None:
    gateway, _server = played
    image = "iVBORw0KGgo" * 1_900_000
    body = json.dumps(
        {"messages": [{"content": [{"image_url": {"url": "data:image/png;base64," + image}}]}], "model": "m"}
    )
    began = time.monotonic()
    status, got = sent(played, body)
    assert time.monotonic() - began < 10
    assert status == 200
    assert got == body.encode()
    until(lambda: not list(gateway.spool.iterdir()), "what was spooled is gone")


def test_a_body_in_chunks_without_a_length(played: tuple[Gateway, Server]) -> None:
    gateway, server = played

    def pieces() -> Iterator[bytes]:
        yield b'{"messages":"'
        for _number in range(40):
            yield b"x" * 10_000
        yield b'","model":"m"}'

    answer = requests.post(gateway.url + CHAT, data=pieces(), timeout=20)
    assert answer.status_code == 200
    got = server.asked[-1]
    assert got.body == b'{"messages":"' + b"x" * 400_000 + b'","model":"m"}'
    assert got.header("Transfer-Encoding") is None


@pytest.mark.parametrize("with_length", [True, False])
def test_a_body_over_the_limit(played: tuple[Gateway, Server], with_length: bool) -> None:
    _gateway, server = played
    with playing(model("m", server.port)) as manager, Gateway(manager, max_body_bytes=100_000) as gateway:
        gateway.wait_known()
        before = len(server.asked)
        with Client(gateway) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: gateway\r\n"
            if with_length:
                client.send(head + "Content-Length: 100001\r\n\r\n")
            else:
                client.send(head + "Transfer-Encoding: chunked\r\n\r\n")
                client.send("186a1\r\n" + "x" * 100_001 + "\r\n0\r\n\r\n")
            status, _headers, body = client.answer()
        assert status == 413
        assert json.loads(body)["error"]["code"] == "request_too_large"
        assert len(server.asked) == before


def test_a_body_is_there_while_it_is_read(played: tuple[Gateway, Server]) -> None:
    """Lua's collector takes what nobody refers to, and a pointer is no reference: here it collects all the time."""
    _gateway, server = played

    def greedy(conf: str) -> str:
        begin = "init_worker_by_lua_block {"
        assert begin in conf
        return conf.replace(begin, begin + ' collectgarbage("setpause", 50) collectgarbage("setstepmul", 1000)')

    with playing(model("m", server.port)) as manager, Gateway(manager, edit=greedy) as gateway:
        gateway.wait_known()
        number = fewer("gateway", "make gateway", "bodies", 5_000, 300)
        with Client(gateway) as client:
            for index in range(number):
                # Unknown, so that no server is asked; as many keys as take some time.
                keys = ",".join(f'"key{index}{key}":["{"x" * key}"]' for key in range(20))
                client.post("/v1/score", f'{{{keys},"m\\u006fdel":"none","other":{{}}}}'.encode())
                status, _headers, body = client.answer()
                assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found"), index


def test_a_request_leaves_little_to_collect(played: tuple[Gateway, Server]) -> None:
    """Neither its body nor pointers to it become objects of Lua, which would have to be collected."""
    _gateway, server = played
    count = "content_by_lua_block { collectgarbage('stop') ngx.print(collectgarbage('count')) }"

    def counting(conf: str) -> str:
        assert "location = /health" in conf
        return conf.replace("location = /health", f"location = /count {{ {count} }} location = /health")

    body = json.dumps({"messages": [{"role": "user", "content": "x" * 20_000}], "model": "m", "stream": False}).encode()
    with playing(model("m", server.port)) as manager, Gateway(manager, edit=counting) as gateway:
        gateway.wait_known()
        with Client(gateway) as client:

            def ask(times: int) -> None:
                for _time in range(times):
                    assert client.post(CHAT, body).answer()[0] == 200

            ask(300)  # until it is compiled
            before = float(requests.get(gateway.url + "/count", timeout=5).text)
            ask(100)
            kilobytes = float(requests.get(gateway.url + "/count", timeout=5).text) - before
    assert kilobytes / 100 < 4
