# SPDX-License-Identifier: MIT
"""A stream whose request waits is told so, and gets its server's answer after it, whole or with words for why not."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.fake_link import FakeManager, model, playing
from tests.gateway.gatewaylib import Gateway, Start
from tests.gateway.played import DONE, Asked, Call, Script, Server, answers, streams, token, until

STREAM = {"model": "qwen", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
WEBUI = {"X-OpenWebUI-Chat": "c1"}


def data(event: str) -> Any:
    """The JSON of an event."""
    return json.loads(event.splitlines()[-1].removeprefix("data: "))


def let_in(manager: FakeManager) -> None:
    manager.until_waiting(1)
    manager.open("qwen")
    manager.go("qwen")


def after_wait(call: Call, manager: FakeManager) -> list[str]:
    """All events after those about the wait, of a call that was told of it and is let in now."""
    assert call.event() == ": Waiting for qwen"
    let_in(manager)
    events = call.events()
    return [each for each in events if not each.startswith(": Wait")]


def test_open_webui_is_told_by_its_own_events(start: Start) -> None:
    with (
        Server(streams()) as server,
        playing(model("qwen", server.port, "closed", names=["qwen", "Org/Qwen"])) as manager,
    ):
        manager.eta = 12.0
        manager.ahead = 2
        gateway = start(manager)
        with Call(gateway.port, STREAM | {"model": "Org/Qwen"}, headers=WEBUI) as call:
            assert call.status == 200
            assert call.headed - call.began < 5
            assert (call.header("Content-Type") or "").startswith("text/event-stream")
            assert call.header("X-Queue-Wait-Seconds") is None
            first = data(call.event())
            assert (first["choices"], first["object"], first["model"]) == ([], "chat.completion.chunk", "Org/Qwen")
            said = [first["event"]]
            while "place 3, about " not in said[-1]["data"]["description"]:
                said.append(data(call.event())["event"])
            assert all(each["type"] == "status" and each["data"]["done"] is False for each in said)
            assert said[-1]["data"]["description"].startswith("Waiting for Org/Qwen: place 3, about 1")
            let_in(manager)
            *told, hello, world, done = call.events()
            assert (hello + "\n\n", world + "\n\n", done + "\n\n") == (token("Hello"), token(" world"), DONE)
            last = data(told[-1])["event"]["data"]
            assert (last["done"], last["hidden"]) == (True, True)
            assert last["description"].startswith("Waited ")
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")


def test_others_are_told_by_comments(start: Start) -> None:
    with Server(streams()) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            assert call.event() == ": Waiting for qwen"
            assert call.event() == ": Waiting for qwen: place 1"
            let_in(manager)
            waited, *rest = call.events()
            assert waited.startswith(": Waited ")
            assert "\n\n".join(rest) + "\n\n" == token("Hello") + token(" world") + DONE


def test_only_what_is_new_is_told(start: Start) -> None:
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as first, Call(gateway.port, STREAM) as call:
            manager.until_waiting(2)
            assert first.status == call.status == 200
            time.sleep(6)
            manager.refuse("qwen", status=503, code="switch_failed", message="It was not to be.", retry_after=1)
            *told, _waited, _error = call.events()
            assert told == [": Waiting for qwen", ": Waiting for qwen: place 2"] or told == [
                ": Waiting for qwen",
                ": Waiting for qwen: place 1",
            ]


@pytest.mark.whole
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_long_wait_has_heartbeats(start: Start, path: str) -> None:
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM | {"max_tokens": 5}, path) as call:
            call.connection.timeout = 30
            assert call.event() == ": Waiting for qwen"
            last = [call.event() for _line in range(3 if path == "/v1/messages" else 1)][-1]
            since = time.monotonic()
            assert call.connection.sock is None or call.connection.sock.settimeout(30) is None
            beat = call.event()
            assert 13 < time.monotonic() - since < 25
            assert last
            assert beat == (
                ": still waiting" if path == "/v1/chat/completions" else 'event: ping\ndata: {"type": "ping"}'
            )


@pytest.mark.parametrize(
    ("mode", "headers", "told"),
    [
        ("auto", {"X-OpenWebUI-Task": ""}, "status"),
        ("auto", {"User-Agent": "OpenAI/Python 2.29.0"}, "comment"),
        ("webui", {}, "status"),
        ("comments", WEBUI, "comment"),
        ("off", WEBUI, "nothing"),
    ],
)
def test_how_it_is_told(start: Start, mode: str, headers: dict[str, str], told: str) -> None:
    with Server(streams()) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager, status_chunks=mode)
        with Call(gateway.port, STREAM, headers=headers) as call:
            manager.until_waiting(1)
            if told == "nothing":
                time.sleep(1)
                assert not call.answered
                let_in(manager)
                assert call.event() + "\n\n" == token("Hello")
                assert float(call.header("X-Queue-Wait-Seconds") or 0) >= 1
            else:
                assert call.event().startswith('data: {"id":"wait-' if told == "status" else ": Waiting")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
def test_status_chunks_are_for_chats_alone(start: Start, path: str) -> None:
    with Server(streams()) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager, status_chunks="webui")
        with Call(gateway.port, STREAM, path, WEBUI) as call:
            assert call.event() == ": Waiting for qwen"


def test_what_is_no_stream_is_not_begun(start: Start) -> None:
    """`stream` means something to some paths only."""
    with Server() as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM, "/v1/embeddings") as call:
            manager.until_waiting(1)
            time.sleep(0.5)
            assert not call.answered
            let_in(manager)
            assert (call.status, call.json()) == (200, {"ok": True})


def test_anthropic_has_pings_and_its_own_errors(start: Start) -> None:
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager)
        with Call(
            gateway.port, STREAM | {"max_tokens": 5}, "/v1/messages", {"anthropic-version": "2023-06-01"}
        ) as call:
            assert call.event() == ": Waiting for qwen"
            assert call.event() == 'event: ping\ndata: {"type": "ping"}'
            manager.until_waiting(1)
            manager.refuse("qwen", status=503, code="switch_failed", message="It was not to be.", retry_after=1)
            last = call.events()[-1]
            assert last.startswith("event: error\n")
            assert data(last)["type"] == "error"
            assert data(last)["error"]["message"] == "It was not to be."


def test_a_failure_of_responses(start: Start) -> None:
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM | {"input": "Hi"}, "/v1/responses") as call:
            manager.until_waiting(1)
            assert call.status == 200
            manager.refuse("qwen", status=503, code="switch_failed", message="It was not to be.", retry_after=1)
            last = call.events()[-1]
            assert last.startswith("event: error\n")
            assert (data(last)["type"], data(last)["code"], data(last)["message"]) == (
                "error",
                "switch_failed",
                "It was not to be.",
            )


def test_a_failure_after_headers_is_an_event(start: Start) -> None:
    with playing(model("qwen", 9, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM, headers=WEBUI) as call:
            manager.until_waiting(1)
            assert call.status == 200
            manager.refuse("qwen", status=503, code="switch_failed", message='No "memory"\nleft', retry_after=1)
            *_told, hidden, error = call.events()
            assert data(hidden)["event"]["data"]["hidden"] is True
            assert data(error)["error"]["code"] == "switch_failed"
            assert data(error)["error"]["message"] == 'No "memory"\nleft'
        assert gateway.logged(error="switch_failed")[0]["status"] == 200
        assert manager.in_flight() == 0


# ---- the server's stream


def test_it_is_passed_on_as_it_comes(start: Start) -> None:
    """Each event before the next is made, by each of the ways in which an answer may be framed."""
    texts = [f" {number}" for number in range(8)]
    whole = "".join(token(text) for text in texts) + DONE

    def paced(chunked: bool, head: str) -> Script:
        def script(asked: Asked) -> None:
            asked.head(*([head] if head else []))
            for text in [*(token(text) for text in texts), DONE]:
                if chunked:
                    asked.chunk(text)
                else:
                    asked.send(text)
                if text != DONE:
                    time.sleep(0.15)
            if chunked:
                asked.chunk("")

        return script

    with Server() as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        for script in (
            paced(True, "Transfer-Encoding: chunked"),
            paced(False, f"Content-Length: {len(whole)}"),
            paced(False, ""),
        ):
            server.script = script
            manager.close("qwen")
            with Call(gateway.port, STREAM) as call:
                assert call.event() == ": Waiting for qwen"
                let_in(manager)
                came = []
                while event := call.event():
                    if not event.startswith(":"):
                        came.append((event + "\n\n", time.monotonic()))
                assert "".join(event for event, _at in came) == whole
                gaps = [after - before for (_a, before), (_b, after) in itertools.pairwise(came)]
                assert sorted(gaps)[3] > 0.1
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")


def cut(how: str) -> Script:
    """A server that dies after a token and a half."""

    def script(asked: Asked) -> None:
        if how == "reset":
            asked.head("Transfer-Encoding: chunked")
            asked.chunk(token("Hello"))
            asked.chunk(token("cut")[:20])
            time.sleep(0.3)
            asked.reset()
        elif how == "chunked":
            asked.head("Transfer-Encoding: chunked")
            asked.chunk(token("Hello"))
            asked.send("40\r\n" + token("cut")[:20])
        elif how == "between chunks":
            asked.head("Transfer-Encoding: chunked")
            asked.chunk(token("Hello"))
        elif how == "length":
            asked.head("Content-Length: 10000")
            asked.send(token("Hello") + token("cut")[:20])
        else:
            asked.head()
            asked.send(token("Hello") + token("cut")[:20])

    return script


@pytest.mark.parametrize("how", ["reset", "chunked", "between chunks", "length", "closed"])
def test_a_server_that_dies_in_the_middle(start: Start, how: str) -> None:
    with Server(cut(how)) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            hello, error = after_wait(call, manager)
            assert hello + "\n\n" == token("Hello")
            assert data(error)["error"]["code"] == "server_failed"
            assert data(error)["error"]["message"].startswith("The server of qwen broke off its answer")
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")


def test_a_server_that_says_nothing_or_is_not_there(start: Start) -> None:
    with Server(lambda asked: asked.reset()) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            (error,) = after_wait(call, manager)
            assert data(error)["error"]["code"] == "server_failed"
            assert "did not answer" in data(error)["error"]["message"]
        manager.set_models(model("qwen", 1, "closed"))
        with Call(gateway.port, STREAM) as call:
            (error,) = after_wait(call, manager)
            assert data(error)["error"]["code"] == "server_failed"
            assert "connection refused" in data(error)["error"]["message"]
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"error": {"message": "Too long", "type": "BadRequestError", "param": None, "code": 400}}, "Too long"),
        ({"object": "error", "message": "Too long", "code": 400}, "The server of qwen answered 400: Too long"),
        ({"detail": "Too long"}, "The server of qwen answered 400: Too long"),
    ],
)
def test_a_servers_refusal_is_an_event(start: Start, said: Any, message: str) -> None:
    script = answers(said, "400 Bad Request")
    with Server(script) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            (error,) = after_wait(call, manager)
            assert data(error)["error"]["message"] == message


def test_a_whole_answer_becomes_an_event(start: Start) -> None:
    with Server(answers({"choices": []})) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            assert [data(each) for each in after_wait(call, manager)] == [{"choices": []}]


def test_a_client_that_goes_away_ends_the_servers_work(start: Start) -> None:
    noticed: list[bool] = []

    def script(asked: Asked) -> None:
        asked.head("Transfer-Encoding: chunked")
        asked.chunk(token("Hello"))
        noticed.append(asked.gone(10))

    with Server(script) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            assert call.event() == ": Waiting for qwen"
            let_in(manager)
            while call.event() + "\n\n" != token("Hello"):
                pass
            assert manager.in_flight() == 1
            call.close()
            until(lambda: noticed, "the server notices")
            assert noticed == [True]
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")


def test_a_client_that_reads_slowly_slows_its_server(start: Start) -> None:
    sent = [0]
    event = token("x" * 60_000)

    def script(asked: Asked) -> None:
        asked.head("Transfer-Encoding: chunked")
        for _number in range(1000):
            asked.chunk(event)
            sent[0] += len(event)
        asked.chunk(DONE)
        asked.chunk("")

    with Server(script) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            assert call.event() == ": Waiting for qwen"
            let_in(manager)
            until(lambda: sent[0] > 0, "it streams")
            time.sleep(1)
            before = sent[0]
            time.sleep(1)
            assert sent[0] == before
            assert before < 30_000_000
            assert memory_of(gateway) < 100_000_000
            whole = call.answer.read()
            assert whole.count(b"x" * 60_000) == 1000
            assert whole.endswith(DONE.encode())


def memory_of(gateway: Gateway) -> int:
    """The most that a worker has, in bytes."""
    pages = []
    for pid in gateway.workers():
        with open(f"/proc/{pid}/statm") as file:
            pages.append(int(file.read().split()[1]))
    return max(pages) * 4096


@pytest.mark.parametrize("size", [0, 10_000, 100_000, 20_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_arrives_as_it_was(start: Start, size: int, chunked: bool) -> None:
    """From memory or from a file."""
    body = json.dumps({"messages": [{"content": "\N{SNOWMAN}" + "x" * size}], "stream": True, "model": "qwen"}).encode()
    with Server(streams()) as server, playing(model("qwen", server.port, "closed")) as manager:
        gateway = start(manager)
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        path = "/v1/chat/completions?timeout=5"
        if chunked:
            pieces = (body[i : i + 100_000] for i in range(0, len(body), 100_000))
            connection.request("POST", path, pieces, {"Content-Type": "application/json"}, encode_chunked=True)
        else:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        let_in(manager)
        assert answer.read().endswith(DONE.encode())
        connection.close()
        (asked,) = server.asked
        assert asked.line == f"POST {path} HTTP/1.1"
        assert hashlib.sha256(asked.body).digest() == hashlib.sha256(body).digest()
        assert asked.header("Content-Length") == str(len(body))
        assert asked.header("Transfer-Encoding") is None


def test_a_server_that_answers_before_it_has_read_all(start: Start) -> None:
    """As one does that refuses long bodies."""

    def listener(sock: socket.socket) -> None:
        sock.recv(1000)
        text = json.dumps({"error": {"message": "Too large", "type": "x", "param": None, "code": 413}})
        sock.sendall(f"HTTP/1.1 413 X\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode())
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.5)

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        with playing(model("qwen", server.getsockname()[1], "closed")) as manager:
            gateway = start(manager)
            with Call(gateway.port, STREAM | {"user": "x" * 8_000_000}) as call:
                assert call.event() == ": Waiting for qwen"
                let_in(manager)
                sock, _address = server.accept()
                with sock:
                    listener(sock)
                    error = [each for each in call.events() if not each.startswith(":")][-1]
                    assert data(error)["error"]["message"] == "Too large"


def test_what_a_server_sees_of_the_client(start: Start) -> None:
    """Its own key, never the client's."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(streams()))
        with playing(model("qwen", server.port, "closed", api_key="server-key")) as manager:
            gateway = start(manager, keys=[{"name": "alice", "key": "client-key"}])
            headers = {"Authorization": "Bearer client-key", "X-Request-Id": "r1", "Accept-Encoding": "gzip", "TE": "x"}
            for stream in (True, False):
                manager.close("qwen")
                with Call(gateway.port, STREAM | {"stream": stream}, headers=headers) as call:
                    if stream:
                        assert call.event() == ": Waiting for qwen"
                    let_in(manager)
                    assert call.status == 200
                    call.answer.read()
            held, proxied = server.asked
            for asked in (held, proxied):
                assert asked.header("Authorization") == "Bearer server-key"
                assert asked.header("X-Request-Id") == "r1"
                assert asked.header("Content-Type") == "application/json"
                assert "client-key" not in str(asked.headers)
            assert held.header("Accept-Encoding") is None
            assert held.header("TE") is None
            own = {"accept-encoding", "te", "connection"}
            names = [{name.lower() for name, _value in asked.headers} - own for asked in server.asked]
            assert names[0] == names[1]


def test_a_server_with_tls(start: Start, certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with Server(streams(), context) as server, playing(model("qwen", server.port, "closed", tls=True)) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM | {"user": "x" * 2_000_000}) as call:
            hello, world, done = after_wait(call, manager)
            assert (hello + "\n\n", world + "\n\n", done + "\n\n") == (token("Hello"), token(" world"), DONE)
        assert len(server.asked[0].body) > 2_000_000


@pytest.mark.parametrize("gate", ["open", "closed"])
def test_http_1_0_sees_a_death_too(start: Start, gate: str) -> None:
    """The end of its connection is the end of its answer: only words can tell that it was cut."""
    with Server(cut("reset")) as server, playing(model("qwen", server.port, gate)) as manager:
        gateway = start(manager)
        body = json.dumps(STREAM).encode()
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as sock:
            head = (
                f"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            sock.sendall(f"{head}\r\n\r\n".encode() + body)
            if gate == "closed":
                let_in(manager)
            text = b""
            while piece := sock.recv(65536):
                text += piece
        first, _blank, rest = text.decode().partition("\r\n\r\n")
        assert first.startswith("HTTP/1.1 200")
        *_some, error = [each for each in rest.split("\n\n") if each]
        assert token("Hello") in rest
        assert data(error)["error"]["code"] == "server_failed"
        until(lambda: manager.in_flight() == 0, "nothing is with the servers")
