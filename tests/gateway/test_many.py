# SPDX-License-Identifier: MIT
"""A model with several servers, each the gateway of another host: who is asked, and what becomes of what they fail."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.gateway.fake_link import FakeManager, model, playing
from tests.gateway.gatewaylib import Client, Gateway, Start, until
from tests.gateway.played import DONE, Asked, Call, Script, Server, answers, streams, token
from tests.serverlib import free_port, start_standin

CHAT = "/v1/chat/completions"
WHOLE = {"model": "m", "messages": []}
STREAM = WHOLE | {"stream": True}


def at(name: str, port: int, **more: Any) -> dict[str, Any]:
    """A server of a model."""
    return {"name": name, "host": "127.0.0.1", "port": port, "tls": False, "api_key": None, "load": 0} | more


def many(*those: dict[str, Any], gate: str = "open", **more: Any) -> dict[str, Any]:
    """The model `m` with these servers, and none of its own."""
    return model("m", gate=gate, host=None, servers=list(those), **more) | {"port": None}


def error(code: str, status: str = "503 Service Unavailable") -> Script:
    said = {"message": f"It is {code}.", "type": "server_error", "param": None, "code": code}
    return answers({"error": said}, status)


def closes(asked: Asked) -> None:
    asked.sock.close()


def resets(asked: Asked) -> None:
    asked.reset()


def dies_in_head(asked: Asked) -> None:
    asked.send("HTTP/1.1 200 OK\r\nContent-")


def dies_after_head(asked: Asked) -> None:
    asked.head("Transfer-Encoding: chunked")
    time.sleep(0.1)


def dies_before_body(asked: Asked) -> None:
    asked.head("Content-Length: 100", kind="application/json")
    time.sleep(0.1)
    asked.reset()


def dies_in_stream(asked: Asked) -> None:
    asked.head("Transfer-Encoding: chunked")
    asked.chunk(token("one"))
    time.sleep(0.1)


class Holding:
    """A script that answers when it is let."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.let = threading.Event()

    def __call__(self, asked: Asked) -> None:
        self.let.wait(60)
        self.script(asked)


@contextlib.contextmanager
def calling(gateway: Gateway, count: int, body: dict[str, Any]) -> Iterator[list[Call]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Call(gateway.port, body)) for _number in range(count)]


def nothing_in_flight(manager: FakeManager) -> None:
    until(lambda: manager.in_flight() == 0, "nothing is in flight")


# ---- which of them


@pytest.mark.parametrize("workers", [1, 2])
def test_the_one_with_the_least_in_flight_is_asked(start: Start, workers: int) -> None:
    held = Holding(answers({"ok": True}))
    with Server(held) as a, Server(held) as b, Server(held) as c:
        servers = [at("a", a.port), at("b", b.port, load=2), at("c", c.port)]
        with playing(many(*servers)) as manager:
            gateway = start(manager, workers=workers)
            with contextlib.ExitStack() as stack:
                calls: list[Call] = []
                while len(calls) < 7:
                    calls.append(stack.enter_context(Call(gateway.port, WHOLE)))
                    until(lambda: len(a.asked) + len(b.asked) + len(c.asked) == len(calls), "it is asked")
                assert (len(a.asked), len(b.asked), len(c.asked)) == (3, 1, 3)
                held.let.set()
                assert {call.header("X-Gateway-Server") for call in calls} == {"a", "b", "c"}
                assert all(call.json() == {"ok": True} for call in calls)
            nothing_in_flight(manager)
            assert sorted(row["server"] for row in gateway.logged(7, status=200, model="m")) == [*"aaabccc"]


def test_equals_take_turns(start: Start) -> None:
    with Server() as a, Server() as b, playing(many(at("a", a.port), at("b", b.port))) as manager:
        gateway = start(manager)
        for _number in range(10):
            assert requests.post(gateway.url + CHAT, json=WHOLE, timeout=20).status_code == 200
        assert (len(a.asked), len(b.asked)) == (5, 5)


def test_a_killed_worker_counts_no_more(start: Start) -> None:
    held = Holding(answers({"ok": True}))
    with Server(held) as a, Server(held) as b, playing(many(at("a", a.port), at("b", b.port, load=4))) as manager:
        gateway = start(manager)
        with calling(gateway, 3, WHOLE):
            until(lambda: len(a.asked) == 3, "it is asked")
            gateway.kill_worker(gateway.workers()[0])
        held.let.set()
        gateway.wait_known()
        nothing_in_flight(manager)
        # The new worker takes the counts of the old one back within a second or two.
        held.let.clear()

        def all_are_at_a() -> bool:
            before = len(a.asked), len(b.asked)
            with calling(gateway, 4, WHOLE):
                until(lambda: len(a.asked) + len(b.asked) == sum(before) + 4, "all are asked")
            nothing_in_flight(manager)
            return len(b.asked) == before[1]

        until(all_are_at_a, "nothing is counted of the one that was killed")


def test_each_server_has_its_own_key_and_its_own_tls(start: Start, certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with Server() as plain, Server(closes, context) as secret:
        servers = [at("plain", plain.port, api_key="key-1"), at("secret", secret.port, api_key="key-2", tls=True)]
        with playing(many(*servers)) as manager:
            gateway = start(manager, keys=[{"name": "alice", "key": "client-key-of-alice"}])
            for _number in range(4):
                headers = {"Authorization": "Bearer client-key-of-alice", "X-Request-Id": "r1", "X-Gateway-Server": "x"}
                answer = requests.post(gateway.url + CHAT, json=WHOLE, headers=headers, timeout=20)
                assert (answer.status_code, answer.headers["X-Gateway-Server"]) == (200, "plain")
            secret.script = answers({"ok": 2})
            while not any(asked.header("X-Last") for asked in secret.asked):
                headers["X-Last"] = "1"
                assert requests.post(gateway.url + CHAT, json=WHOLE, headers=headers, timeout=20).status_code == 200
            for server, sent in ((plain, "key-1"), (secret, "key-2")):
                for asked in server.asked:
                    assert asked.header("Authorization") == f"Bearer {sent}"
                    assert asked.header("X-Gateway-Hop") == "1"
                    assert asked.header("X-Request-Id") == "r1"
                    assert json.loads(asked.body) == WHOLE
                    assert "alice" not in str(asked.headers)


def test_a_server_with_an_address_of_ipv6(start: Start) -> None:
    with Server(host="::1") as server, playing(many(at("a", server.port, host="[::1]"))) as manager:
        assert requests.post(start(manager).url + CHAT, json=WHOLE, timeout=20).json() == {"ok": True}
        assert server.asked[0].header("Host") == f"[::1]:{server.port}"


def test_a_model_that_only_the_path_names(start: Start) -> None:
    """A host would not know it from the body."""
    with Server() as server, playing(many(at("a", server.port))) as manager:
        gateway = start(manager)
        for prefix, body in (("/m/m", {"prompt": "x"}), ("", {"model": "m", "prompt": "x"})):
            answer = requests.post(f"{gateway.url}{prefix}/v1/completions?x=1", json=body, timeout=20)
            assert answer.json() == {"ok": True}
        assert [one.line for one in server.asked] == [
            "POST /m/m/v1/completions?x=1 HTTP/1.1",
            "POST /v1/completions?x=1 HTTP/1.1",
        ]


def test_connections_are_kept(start: Start, tmp_path: Path) -> None:
    with start_standin("m", log=tmp_path / "m.log") as server, playing(many(at("a", server.port))) as manager:
        gateway = start(manager)
        for stream in [False, True] * 10:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": stream}
            answer = requests.post(gateway.url + CHAT, json=body, timeout=20)
            assert answer.status_code == 200
            assert not stream or answer.text.endswith(DONE)
            if not stream:
                assert int(answer.headers["Content-Length"]) == len(answer.content)
                assert answer.headers["Content-Type"] == "application/json"
                assert answer.json()["choices"]
        ports = {line.split('"')[0] for line in server.text().splitlines() if f"POST {CHAT}" in line}
        assert len(ports) == 1


def test_of_a_silent_host_one_kept_connection_is_tried(start: Start) -> None:
    """A host that has lost its power closes none: each of them would take a second."""
    asked, silent = threading.Barrier(2), []

    def meet(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.recv(65536)
            asked.wait(20)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            if sock.recv(65536):
                silent.append(sock)
                sock.recv(65536)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=meet, args=(listener.accept()[0],), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    with Server() as other, playing(many(at("a", listener.getsockname()[1]))) as manager:
        gateway = start(manager)
        with calling(gateway, 2, WHOLE) as calls:
            assert [call.json() for call in calls] == [{}, {}]
        with Call(gateway.port, WHOLE) as call:
            until(lambda: silent, "it is asked again")
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            manager.set_models(many(at("other", other.port)))
            assert call.json() == {"ok": True}
        assert len(silent) == 1
        nothing_in_flight(manager)


def test_a_kept_connection_that_has_ended_costs_no_request(start: Start) -> None:
    """A server may end it just when it is used again: whoever has no other server asks this one once more."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked = 0

    def serve() -> None:
        nonlocal asked
        text = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        with contextlib.suppress(OSError):
            while True:
                sock, _address = listener.accept()
                with sock:
                    sock.recv(65536)
                    asked += 1
                    sock.sendall(text)
                    # The second request on this connection is what ends it.
                    if sock.recv(65536):
                        asked += 1

    threading.Thread(target=serve, daemon=True).start()
    with listener, playing(many(at("a", listener.getsockname()[1]))) as manager:
        gateway = start(manager)
        for _number in range(2):
            assert requests.post(gateway.url + CHAT, json=WHOLE, timeout=20).json() == {}
        assert asked == 3
        listener.shutdown(socket.SHUT_RDWR)


# ---- those that fail


@pytest.mark.parametrize("body", [WHOLE, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "script",
    [
        closes,
        resets,
        dies_in_head,
        dies_after_head,
        dies_before_body,
        error("manager_unavailable"),
        error("starting"),
        error("server_failed", "502 Bad Gateway"),
        error("invalid_api_key", "401 Unauthorized"),
        None,
    ],
    ids=[
        "closes",
        "resets",
        "dies in head",
        "dies after head",
        "dies before body",
        "no manager",
        "starting",
        "502",
        "401",
        "not there",
    ],
)
def test_another_one_is_asked(start: Start, script: Script | None, body: dict[str, Any]) -> None:
    good = streams() if "stream" in body else answers({"ok": True})
    with Server(script) as bad, Server(good) as other:
        servers = [at("bad", bad.port if script else free_port()), at("good", other.port, load=1)]
        with playing(many(*servers)) as manager:
            gateway = start(manager)
            answer = requests.post(gateway.url + CHAT + "?x=1", json=body, timeout=20)
            assert (answer.status_code, answer.headers["X-Gateway-Server"]) == (200, "good")
            assert answer.text == (token("Hello") + token(" world") + DONE if "stream" in body else '{"ok": true}')
            assert len(bad.asked) == (1 if script else 0)
            (asked,) = other.asked
            assert (asked.line, json.loads(asked.body)) == (f"POST {CHAT}?x=1 HTTP/1.1", body)
            nothing_in_flight(manager)
            (row,) = gateway.logged(model="m")
            assert (row["status"], row["server"], row["error"], row["sent"]) == (200, "good", "", "OK")


def test_a_long_body_is_sent_whole_again(start: Start) -> None:
    body = json.dumps(WHOLE | {"user": "x" * 20_000_000}).encode()

    def reads_and_dies(asked: Asked) -> None:
        assert asked.body == body
        asked.reset()

    with (
        Server(reads_and_dies) as bad,
        Server() as good,
        playing(many(at("bad", bad.port), at("good", good.port, load=1))) as manager,
    ):
        gateway = start(manager)
        answer = requests.post(gateway.url + CHAT, data=body, timeout=60)
        assert (answer.status_code, answer.headers["X-Gateway-Server"]) == (200, "good")
        assert [asked.body == body for asked in good.asked] == [True]


@pytest.mark.parametrize(
    "script",
    [
        error("switch_failed"),
        error("x", "400 Bad Request"),
        error("x", "404 Not Found"),
        error("x", "429 Too Many Requests"),
        error("x", "500 Internal Server Error"),
        error("wait_timeout", "504 Gateway Timeout"),
    ],
)
def test_other_errors_are_answers(start: Start, script: Script) -> None:
    with (
        Server(script) as one,
        Server() as other,
        playing(many(at("one", one.port), at("other", other.port, load=1))) as manager,
    ):
        answer = requests.post(start(manager).url + CHAT, json=WHOLE, timeout=20)
        assert answer.status_code >= 400
        assert answer.json()["error"]["message"].startswith("It is ")
        assert (len(one.asked), len(other.asked)) == (1, 0)
        nothing_in_flight(manager)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_what_has_begun_is_not_repeated(start: Start, version: str) -> None:
    """Its client is told by an event: SDKs take an end of the connection for the end of the stream, or for anything."""
    with (
        Server(dies_in_stream) as bad,
        Server(streams()) as other,
        playing(many(at("bad", bad.port), at("good", other.port, load=1))) as manager,
    ):
        gateway = start(manager)
        with Client(gateway) as client:
            data = client.post(CHAT, json.dumps(STREAM).encode(), "Connection: close\r\n", version).receive()
        head, _separator, text = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"X-Gateway-Server: bad" in head
        assert token("one").strip().encode() in text
        (event,) = [line for line in text.decode().splitlines() if '"error"' in line]
        assert "broke off" in json.loads(event.removeprefix("data: "))["error"]["message"]
        assert text.endswith(b"0\r\n\r\n") == (version == "1.1")
        assert (len(bad.asked), len(other.asked)) == (1, 0)
        nothing_in_flight(manager)
        assert gateway.logged(model="m", error="server_failed", server="bad")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_a_stream_that_breaks_off_is_told_in_the_shape_of_its_api(start: Start, path: str) -> None:
    with Server(dies_in_stream) as bad, playing(many(at("bad", bad.port))) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM, path) as call:
            *_tokens, event = call.events()
        name, data = event.split("\n")
        assert name == "event: error"
        told = json.loads(data.removeprefix("data: "))
        assert told["type"] == "error"
        assert "broke off" in told["error"]["message"]
        nothing_in_flight(manager)


@pytest.mark.parametrize("body", [WHOLE, STREAM], ids=["whole", "stream"])
def test_within_an_event_or_an_answer_the_end_is_seen(start: Start, body: dict[str, Any]) -> None:
    """By the frame of HTTP/1.1: what is said there would be taken for a part of it."""

    def script(asked: Asked) -> None:
        asked.head("Transfer-Encoding: chunked", kind="text/event-stream" if "stream" in body else "application/json")
        asked.chunk(token("one") + 'data: {"choices"')
        time.sleep(0.1)

    with Server(script) as bad, playing(many(at("bad", bad.port))) as manager:
        gateway = start(manager)
        with Client(gateway) as client:
            data = client.post(CHAT, json.dumps(body).encode()).receive()
        assert data.partition(b"\r\n\r\n")[2].rstrip().endswith(b'data: {"choices"')
        nothing_in_flight(manager)


def test_a_stream_comes_as_it_flows(start: Start) -> None:
    """Each event before the next is made."""
    seen = threading.Semaphore(0)

    def script(asked: Asked) -> None:
        asked.head("Transfer-Encoding: chunked")
        for number in range(10):
            assert seen.acquire(timeout=20)
            asked.chunk(token(str(number)))
        asked.chunk(DONE)
        asked.chunk("")

    with Server(script) as server, playing(many(at("a", server.port))) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            for number in range(10):
                seen.release()
                assert call.event() == token(str(number)).strip()
            assert (call.status, call.header("Content-Type")) == (200, "text/event-stream; charset=utf-8")
            assert call.events() == [DONE.strip()]
        nothing_in_flight(manager)


def test_a_client_that_goes_away_ends_the_servers_work(start: Start) -> None:
    noticed = threading.Event()

    def script(asked: Asked) -> None:
        if asked.gone():
            noticed.set()

    with Server(script) as server, playing(many(at("a", server.port))) as manager:
        gateway = start(manager)
        with Call(gateway.port, WHOLE) as call:
            until(lambda: server.asked, "it is asked")
            call.close()
        assert noticed.wait(20)
        nothing_in_flight(manager)
        assert gateway.logged(status=499, server="a")


def test_a_request_that_breaks_servers_does_not_break_all(start: Start) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(resets)) for _number in range(5)]
        with playing(many(*(at(f"s{number}", one.port) for number, one in enumerate(servers)))) as manager:
            answer = requests.post(start(manager).url + CHAT, json=WHOLE, timeout=20)
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "server_failed"
            assert sorted(len(one.asked) for one in servers) == [0, 0, 1, 1, 1]
            nothing_in_flight(manager)


# ---- where none is left


@pytest.mark.parametrize("body", [WHOLE, STREAM], ids=["whole", "stream"])
def test_a_request_waits_again_when_the_gate_is_closed(start: Start, body: dict[str, Any]) -> None:
    good = streams() if "stream" in body else answers({"ok": True})
    with Server(good) as other, playing(many(at("gone", free_port()))) as manager:
        gateway = start(manager)
        with Call(gateway.port, body) as call:
            time.sleep(0.3)
            assert not call.answered
            manager.set_models(many(gate="closed"))
            manager.until_waiting(1)
            assert manager.in_flight() == 0
            if "stream" in body:
                assert call.event() == ": Waiting for m"
            time.sleep(0.2)
            manager.set_models(many(at("other", other.port)))
            manager.go("m")
            assert call.status == 200
            if "stream" in body:
                events = [event for event in call.events() if not event.startswith(":")]
                assert events == [token("Hello").strip(), token(" world").strip(), DONE.strip()]
            else:
                assert call.json() == {"ok": True}
                assert float(call.header("X-Queue-Wait-Seconds") or 0) >= 0.19
        nothing_in_flight(manager)
        assert gateway.logged(status=200, server="other", error="")


def test_a_stream_that_was_told_goes_elsewhere_and_waits_again(start: Start) -> None:
    with Server(dies_after_head) as bad, Server(streams()) as good, playing(many(gate="closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            assert call.event() == ": Waiting for m"
            manager.until_waiting(1)
            manager.set_models(many(at("bad", bad.port), at("gone", free_port())))
            manager.go("m")
            until(lambda: bad.asked, "the first is asked")
            manager.set_models(many(gate="closed"))
            manager.until_waiting(1)
            manager.set_models(many(at("good", good.port)))
            manager.go("m")
            events = call.events()
            assert [event for event in events if not event.startswith(":")] == [
                token("Hello").strip(),
                token(" world").strip(),
                DONE.strip(),
            ]
            assert len([event for event in events if event.startswith(": Waited")]) == 2
        nothing_in_flight(manager)
        assert gateway.logged(status=200, server="good", error="")


def test_a_wait_that_comes_again_has_the_same_end(start: Start) -> None:
    with playing(many(at("gone", free_port()))) as manager:
        gateway = start(manager, max_wait_seconds=3)
        began = time.monotonic()
        with Call(gateway.port, WHOLE) as call:
            time.sleep(0.5)
            manager.set_models(many(gate="closed"))
            manager.until_waiting(1)
            assert (call.status, call.json()["error"]["code"]) == (504, "wait_timeout")
            assert time.monotonic() - began >= 2.99


def test_one_that_comes_is_asked(start: Start) -> None:
    with Server() as good, playing(many(at("gone", free_port()))) as manager:
        gateway = start(manager)
        with Call(gateway.port, WHOLE) as call:
            time.sleep(0.3)
            manager.set_models(many(at("gone", free_port()), at("good", good.port)))
            assert (call.status, call.header("X-Gateway-Server")) == (200, "good")


@pytest.mark.parametrize("told", [False, True])
def test_where_none_helps_it_is_told_why(start: Start, told: bool) -> None:
    with Server(closes) as bad, playing(many(at("bad", bad.port), gate="closed" if told else "open")) as manager:
        gateway = start(manager)
        if told:
            with Call(gateway.port, STREAM) as call:
                assert call.event() == ": Waiting for m"
                manager.until_waiting(1)
                manager.open("m")
                manager.go("m")
                text = call.events()[-1].removeprefix("data: ")
        else:
            answer = requests.post(gateway.url + CHAT, json=STREAM, timeout=20)
            assert answer.status_code == 502
            text = answer.text
        assert json.loads(text)["error"]["message"] == "The server of m on bad did not answer: closed."
        assert len(bad.asked) == 1
        nothing_in_flight(manager)


# ---- a host that is gone without a word


@pytest.mark.parametrize("body", [WHOLE, STREAM], ids=["whole", "stream"])
def test_a_request_leaves_a_host_that_is_gone(start: Start, body: dict[str, Any]) -> None:
    """Its connection stays open: so it is where a host has lost its power."""
    held = Holding(answers({"ok": False}))
    good = streams() if "stream" in body else answers({"ok": True})
    with (
        Server(held) as gone,
        Server(good) as other,
        playing(many(at("gone", gone.port), at("other", other.port, load=1))) as manager,
    ):
        gateway = start(manager)
        with Call(gateway.port, body) as call:
            until(lambda: gone.asked, "it is asked")
            gone.__exit__()
            # Still listed: it may only be slow.
            time.sleep(2.5)
            assert not other.asked
            manager.set_models(many(at("other", other.port)))
            assert (call.status, call.header("X-Gateway-Server")) == (200, "other")
        held.let.set()
        nothing_in_flight(manager)


def test_a_host_whose_manager_alone_has_ended_goes_on(start: Start) -> None:
    held = Holding(answers({"ok": True}))
    with (
        Server(held) as one,
        Server() as other,
        playing(many(at("one", one.port), at("other", other.port, load=1))) as manager,
    ):
        gateway = start(manager)
        with Call(gateway.port, WHOLE) as call:
            until(lambda: one.asked, "it is asked")
            manager.set_models(many(at("other", other.port)))
            time.sleep(3)
            held.let.set()
            assert (call.status, call.header("X-Gateway-Server")) == (200, "one")
        # Whoever looked for it was no request.
        assert len(one.asked) == 1
        assert not other.asked


# ---- a gateway behind another one


def test_a_host_behind_another_gateway_does_not_tell(start: Start) -> None:
    with Server(streams()) as server, playing(model("m", server.port, "closed")) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM, headers={"X-Gateway-Hop": "1"}) as call:
            manager.until_waiting(1)
            time.sleep(1)
            assert not call.answered
            manager.open("m")
            manager.go("m")
            assert [event + "\n\n" for event in call.events()] == [token("Hello"), token(" world"), DONE]
            assert float(call.header("X-Queue-Wait-Seconds") or 0) >= 1


@pytest.mark.parametrize("body", [WHOLE, STREAM], ids=["whole", "stream"])
def test_the_wait_at_the_host_is_told(start: Start, body: dict[str, Any]) -> None:
    with Server(streams()) as server, playing(model("m", server.port, "closed")) as manager_of_host:
        host = start(manager_of_host)
        with playing(many(at("host", host.port))) as manager:
            gateway = start(manager)
            with Call(gateway.port, body) as call:
                manager_of_host.until_waiting(1)
                time.sleep(1)
                manager_of_host.open("m")
                manager_of_host.go("m")
                assert call.status == 200
                assert float(call.header("X-Queue-Wait-Seconds") or 0) >= 1
                assert call.answer.headers.get_all("X-Queue-Wait-Seconds") is not None
                assert len(call.answer.headers.get_all("X-Queue-Wait-Seconds") or []) == 1
                call.answer.read()
            assert float(gateway.logged(status=200, server="host")[0]["waited_seconds"]) >= 1
            assert host.logged(status=200, server="")


def test_a_loop_is_ended(start: Start) -> None:
    with playing() as manager:
        gateway = start(manager)
        manager.set_models(many(at("itself", gateway.port)))
        answer = requests.post(gateway.url + CHAT, json=WHOLE, timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (508, "gateway_loop")
        nothing_in_flight(manager)


# ---- under load


def test_a_host_dies_under_load(start: Start, tmp_path: Path) -> None:
    """No request is lost that had not begun to answer: also where its server is killed, and its gate closes late."""
    with contextlib.ExitStack() as stack:
        logs = [tmp_path / f"{name}.log" for name in "abc"]
        servers = [stack.enter_context(start_standin("m", log=log, tokens_per_second=400)) for log in logs]
        listed = [at(name, one.port) for name, one in zip("abc", servers, strict=True)]
        manager = stack.enter_context(playing(many(*listed)))
        gateway = start(manager, workers=2)
        wrong: list[str] = []
        done = 0
        ended = threading.Event()

        def client() -> None:
            nonlocal done
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 20}
            with requests.Session() as session:
                while not ended.is_set():
                    try:
                        answer = session.post(gateway.url + CHAT, json=body, timeout=60)
                        if answer.status_code != 200 or not answer.json()["choices"]:
                            wrong.append(answer.text)
                    except (requests.RequestException, http.client.HTTPException) as problem:
                        wrong.append(repr(problem))
                    done += 1

        threads = [threading.Thread(target=client, daemon=True) for _number in range(16)]
        for thread in threads:
            thread.start()

        def go_on() -> None:
            before = done
            until(lambda: done > before + 100, "requests are answered", 60)

        for number in range(2):
            go_on()
            servers[number].kill()
            time.sleep(0.5)
            manager.set_models(many(*listed[number + 1 :]))
        go_on()
        ended.set()
        for thread in threads:
            thread.join(60)
        assert not wrong, wrong[:3]
        nothing_in_flight(manager)
