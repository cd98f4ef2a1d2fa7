# SPDX-License-Identifier: MIT
"""What a client sees of a server: streams as they flow, and an end that is no end."""

from __future__ import annotations

import http.client
import json
import threading
import time
from pathlib import Path

import pytest
import requests

from tests.gateway.fake_link import model, playing
from tests.gateway.gatewaylib import Client, Start, until
from tests.gateway.played import Asked, Call, Script, Server, answers, token
from tests.serverlib import free_port, start_standin

CHAT = "/v1/chat/completions"
STREAM = {"model": "m", "stream": True, "messages": []}
WHOLE = {"model": "m", "messages": []}


def dies_before(asked: Asked) -> None:
    asked.sock.close()


def dies_reset(asked: Asked) -> None:
    asked.reset()


def dies_in_head(asked: Asked) -> None:
    asked.send("HTTP/1.1 200 OK\r\nContent-")


def not_http(asked: Asked) -> None:
    asked.send("garbage\r\n\r\n")


def dies_in_body(asked: Asked) -> None:
    asked.head("Content-Length: 1000", kind="application/json")
    asked.send('{"id": 1')


def dies_in_stream(asked: Asked) -> None:
    asked.head("Transfer-Encoding: chunked")
    asked.chunk(token("one"))
    asked.chunk(token("two"))
    time.sleep(0.1)


def resets_in_stream(asked: Asked) -> None:
    dies_in_stream(asked)
    asked.reset()


@pytest.mark.parametrize("script", [dies_before, dies_reset, dies_in_head])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_server_that_dies_before_it_answers(start: Start, script: Script, version: str) -> None:
    with Server(script) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        with Client(gateway) as client:
            status, headers, body = client.post(CHAT, json.dumps(WHOLE).encode(), version=version).answer()
        assert status == 502
        assert headers["content-type"] == "application/json"
        assert json.loads(body)["error"] == {
            "message": "The server of m ended the connection before it had answered.",
            "type": "server_error",
            "param": None,
            "code": "server_failed",
        }
        with Client(gateway) as client:
            status, _headers, body = client.post("/v1/messages", json.dumps(WHOLE).encode()).answer()
        assert (status, json.loads(body)["error"]["type"]) == (502, "api_error")
        # A request is sent once, whatever becomes of it.
        assert len(server.asked) == 2
        until(lambda: manager.in_flight() == 0, "nothing is in flight")
        assert gateway.logged(2, status=502, model="m", error="server_failed")


def test_a_server_that_speaks_no_http(start: Start) -> None:
    """nginx takes it for HTTP/0.9 and passes on what comes: no client takes that for an answer."""
    with Server(not_http) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        for body in (WHOLE, STREAM):
            with pytest.raises(requests.RequestException):
                requests.post(gateway.url + CHAT, json=body, timeout=20)
        until(lambda: manager.in_flight() == 0, "nothing is in flight")


def test_a_server_that_is_not_there(start: Start) -> None:
    with playing(model("m", free_port())) as manager:
        gateway = start(manager)
        for body in (WHOLE, STREAM):
            answer = requests.post(gateway.url + CHAT, json=body, timeout=20)
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "server_failed")
        until(lambda: manager.in_flight() == 0, "nothing is in flight")


def test_a_server_that_dies_in_its_answer(start: Start) -> None:
    with Server(dies_in_body) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        for version in ("1.0", "1.1"):
            with Client(gateway) as client:
                data = client.post(CHAT, json.dumps(WHOLE).encode(), version=version).receive()
            # It said how long it would be, and so the client knows.
            assert b"Content-Length: 1000\r\n" in data
            assert data.endswith(b'{"id": 1')
        until(lambda: manager.in_flight() == 0, "nothing is in flight")
        assert gateway.logged(2, status=200, model="m")


@pytest.mark.parametrize("script", [dies_in_stream, resets_in_stream])
def test_a_server_that_dies_in_a_stream(start: Start, script: Script) -> None:
    with Server(script) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            assert call.event() == token("one").strip()
            assert call.event() == token("two").strip()
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                call.answer.read()
        until(lambda: manager.in_flight() == 0, "nothing is in flight")
        assert "upstream prematurely closed" in gateway.error_log() or "reset by peer" in gateway.error_log()


@pytest.mark.parametrize("script", [dies_in_stream, resets_in_stream])
def test_an_http_10_client_is_told_of_a_death_in_a_stream(start: Start, script: Script) -> None:
    with Server(script) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        with Client(gateway) as client:
            data = client.post(CHAT, json.dumps(STREAM).encode(), version="1.0").receive()
        head, _separator, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        events = body.decode().strip().split("\n\n")
        assert events[:2] == [token("one").strip(), token("two").strip()]
        assert "broke off" in json.loads(events[2].removeprefix("data: "))["error"]["message"]
        assert len(events) == 3
        until(lambda: manager.in_flight() == 0, "nothing is in flight")


def test_an_http_10_client_gets_whole_answers(start: Start, tmp_path: Path) -> None:
    with start_standin("m", log=tmp_path / "m.log") as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        for stream in (False, True):
            body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "x"}]}
            with Client(gateway) as client:
                data = client.post(CHAT, json.dumps(body).encode(), version="1.0").receive()
            head, _separator, text = data.partition(b"\r\n\r\n")
            assert b"Transfer-Encoding" not in head
            if stream:
                assert text.endswith(b"data: [DONE]\n\n")
            else:
                assert json.loads(text)["choices"]
        until(lambda: manager.in_flight() == 0, "nothing is in flight")


def test_a_stream_comes_as_it_flows(start: Start) -> None:
    """Each event before the next one is made."""
    seen = threading.Semaphore(0)

    def script(asked: Asked) -> None:
        asked.head("Transfer-Encoding: chunked")
        for number in range(20):
            assert seen.acquire(timeout=20)
            asked.chunk(token(str(number)))
        asked.chunk("data: [DONE]\n\n")
        asked.chunk("")

    with Server(script) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            for number in range(20):
                seen.release()
                assert call.event() == token(str(number)).strip()
            assert call.events() == ["data: [DONE]"]
        assert not any((gateway.folder / "temp").glob("proxy/*"))


def test_a_client_that_does_not_read_stops_the_server(start: Start) -> None:
    sent = 0

    def script(asked: Asked) -> None:
        nonlocal sent
        asked.sock.settimeout(2)
        asked.head("Transfer-Encoding: chunked")
        try:
            while sent < 100_000_000:
                asked.chunk(token("x" * 60_000))
                sent += 60_000
        except TimeoutError:
            pass

    with Server(script) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        with Call(gateway.port, STREAM) as call:
            assert call.status == 200
            until(lambda: server.asked, "the server is asked")
            time.sleep(3)
            assert sent < 30_000_000
            pid = gateway.workers()[0]
            assert rss(pid) < 60_000
        until(lambda: manager.in_flight() == 0, "nothing is in flight")


def rss(pid: int) -> int:
    """The memory of a process that is its own, in kB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4


def test_connections_to_a_server_are_kept(start: Start, tmp_path: Path) -> None:
    with start_standin("m", log=tmp_path / "m.log") as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        with requests.Session() as session:
            for _number in range(30):
                body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
                assert session.post(gateway.url + CHAT, json=body, timeout=20).status_code == 200
        ports = {line.split('"')[0] for line in server.text().splitlines() if f"POST {CHAT}" in line}
        assert len(ports) == 1


def test_an_error_of_the_server_stays_its_own(start: Start) -> None:
    said = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}
    for status in ("400 Bad Request", "404 Not Found", "500 Internal Server Error", "502 Bad Gateway", "503 No"):
        with Server(answers(said, status)) as server, playing(model("m", server.port)) as manager:
            answer = requests.post(start(manager).url + CHAT, json=WHOLE, timeout=20)
            assert (answer.status_code, answer.json()) == (int(status[:3]), said)


def test_the_log_tells_of_each_request(start: Start) -> None:
    def slow(asked: Asked) -> None:
        time.sleep(0.2)
        answers({"ok": True})(asked)

    with Server(slow) as server, playing(model("m", server.port)) as manager:
        gateway = start(manager)
        requests.post(gateway.url + CHAT + "?x=1", json=WHOLE, timeout=20)
        row = gateway.logged(model="m")[0]
        assert row["status"] == 200
        assert row["sent"] == "OK"
        assert row["method"] == "POST"
        assert row["path"] == CHAT
        assert row["client"] == "127.0.0.1"
        assert (row["key"], row["error"], row["waited_seconds"]) == ("", "", "")
        assert 0.2 <= float(row["upstream_seconds"]) <= float(row["seconds"]) + 0.002
        assert 0.2 <= float(row["first_byte_seconds"]) <= float(row["upstream_seconds"])
        assert row["bytes_in"] > 100
        assert row["bytes_out"] > 100
        # Whoever sends garbage can't write rows of his own.
        with Client(gateway) as client:
            client.send('POST /"},{"\x01 HTTP/1.1\r\nHost: x\r\n\r\n').receive()
        with Client(gateway) as client:
            client.send("\x16\x03\x01 garbage\r\n\r\n").receive()
        gateway.logged(2, status=400)
        assert [row["path"] for row in gateway.log() if row["path"] != "/v1/models"] == [CHAT, "/", "/"]


def test_a_server_with_tls(start: Start, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    port = free_port()
    flags = ["--ssl-keyfile", str(key), "--ssl-certfile", str(cert)]
    with start_standin("m", port=port, log=tmp_path / "m.log", flags=flags, wait=False) as server:
        until(lambda: "startup complete" in server.text(), "the server is up")
        with playing(model("m", port, tls=True, gate="closed"), model("n", port, tls=True, names=["m2"])) as manager:
            gateway = start(manager)
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
            with Call(gateway.port, body) as call:
                manager.until_waiting(1)
                manager.open("m")
                manager.go("m")
                assert call.status == 200
            manager.until(lambda: manager.in_flight() == 0, "nothing is in flight")
            # Its gate open from the start.
            assert requests.post(gateway.url + CHAT, json=body, timeout=20).status_code == 200
            assert len(server.accesses("POST")) == 2
