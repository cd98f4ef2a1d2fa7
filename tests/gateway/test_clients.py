# SPDX-License-Identifier: MIT
"""Clients that are slow, old, strange or many."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.gateway.fake_link import model, playing
from tests.gateway.gatewaylib import Client, Gateway, Start
from tests.gateway.played import Server, answers
from tests.part import fewer
from tests.serverlib import Server as Standin

CHAT = "/v1/chat/completions"
BODY = b'{"model":"b","messages":[{"role":"user","content":"x"}]}'


def memory(gateway: Gateway) -> int:
    """The memory of all workers, in kB."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 for pid in gateway.workers())


def test_a_thousand_idle_connections(start: Start, servers: dict[str, Standin]) -> None:
    with playing(model("b", servers["b"].port)) as manager:
        gateway = start(manager)
        before = memory(gateway)
        number = 1000
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(gateway)) for _number in range(number)]
            for client in clients:
                client.send("GET /v1/models HTTP/1.1\r\nHost: gateway\r\n\r\n")
            for client in clients:
                assert client.answer()[0] == 200
            assert (memory(gateway) - before) / number < 10
            # Each of them can go on, and others can come.
            for client in [*clients[:: fewer("gateway", "make gateway", "idle clients", 10, 100)], Client(gateway)]:
                assert client.post(CHAT, BODY).answer()[0] == 200


@pytest.mark.parametrize("part", ["head", "body"])
def test_slow_clients_are_cut_and_others_are_served(start: Start, servers: dict[str, Standin], part: str) -> None:
    def faster(conf: str) -> str:
        assert "client_header_timeout 15s" in conf
        assert "client_body_timeout 30s" in conf
        return conf.replace("client_header_timeout 15s", "client_header_timeout 1s").replace(
            "client_body_timeout 30s", "client_body_timeout 1s"
        )

    with playing(model("b", servers["b"].port)) as manager:
        gateway = start(manager, edit=faster)
        before = memory(gateway)
        begun = time.monotonic()
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(Client(gateway)) for _number in range(200)]
            for client in slow:
                if part == "head":
                    client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nX-Slow: ")
                else:
                    client.send(
                        "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000000\r\n\r\n{"
                    )
            with Client(gateway) as quick:
                assert quick.post(CHAT, BODY).answer()[0] == 200
            assert (memory(gateway) - before) / len(slow) < 100
            for client in slow:
                # A dribble does not help: each byte of a head counts against the same second.
                with contextlib.suppress(OSError):
                    if part == "head":
                        client.send("a")
            for client in slow:
                with contextlib.suppress(ConnectionResetError):
                    answer = client.receive()
                    assert answer == b"" or b" 408 " in answer.split(b"\r\n")[0]
        assert time.monotonic() - begun < 15
        manager.until(lambda: manager.in_flight() == 0, "nothing is in flight")


def test_large_headers(start: Start, servers: dict[str, Standin]) -> None:
    with playing(model("b", servers["b"].port)) as manager:
        gateway = start(manager)
        mark = servers["b"].mark()
        before = memory(gateway)
        for headers in (
            "X-Large: " + "x" * 10_000_000 + "\r\n",
            "".join(f"X-{n}: {'x' * 1000}\r\n" for n in range(10_000)),
        ):
            with Client(gateway) as client, contextlib.suppress(ConnectionResetError, BrokenPipeError):
                client.post(CHAT, BODY, headers=headers)
                status, _headers, body = client.answer()
                assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")
        with Client(gateway) as client:
            client.post(CHAT, BODY, headers="X-Large: " + "x" * 20_000 + "\r\n")
            status, _headers, body = client.answer()
            assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")
        with Client(gateway) as client:
            status, _headers, body = client.post("/v1/" + "x" * 100_000, BODY).answer()
            assert (status, json.loads(body)["error"]["code"]) == (414, "uri_too_long")
        assert servers["b"].accesses(since=mark) == []
        assert memory(gateway) - before < 5000
        with Client(gateway) as client:
            assert client.post(CHAT, BODY, headers="X-Large: " + "x" * 6_000 + "\r\n").answer()[0] == 200


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 100 + b"\r\n\r\n",
        b"POST\r\n\r\n",
        b"POST /v1/chat/completions HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: x\r\n\r\n",
        HEAD + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_no_request(gateway: Gateway, servers: dict[str, Standin], garbage: bytes) -> None:
    marks = {name: server.mark() for name, server in servers.items()}
    with Client(gateway) as client:
        answer = client.send(garbage).receive()
    head, _separator, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) in (400, 501, 505), answer
    assert json.loads(body)["error"]["type"] in ("invalid_request_error", "server_error")
    assert b"nginx/" not in answer
    for name, server in servers.items():
        assert server.accesses(since=marks[name]) == []


def test_many_requests_on_one_connection(gateway: Gateway) -> None:
    with Client(gateway) as client:
        for number in range(50):
            if number % 5 == 4:  # an error does not end the connection either
                assert client.post("/sleep", BODY).answer()[0] == 404
            assert client.post(CHAT, BODY).answer()[0] == 200
        # Sent before they are answered.
        for _number in range(5):
            client.post("/v1/score", b'{"model":"none"}')
        data = b""
        while data.count(b"model_not_found") < 5:
            data += client.sock.recv(65536)


def test_expect_100_continue(gateway: Gateway) -> None:
    with Client(gateway) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        client.send(head + f"Content-Length: {len(BODY)}\r\n\r\n")
        assert client.receive(b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        assert client.send(BODY).answer()[0] == 200


def test_a_client_that_closes_its_half_counts_as_gone(start: Start) -> None:
    server = Server(lambda asked: None if asked.gone(5) else answers({})(asked))
    with server, playing(model("b", server.port)) as manager:
        gateway = start(manager)
        with Client(gateway) as client:
            client.post(CHAT, BODY)
            client.sock.shutdown(socket.SHUT_WR)
            assert client.receive() == b""
        manager.until(lambda: manager.in_flight() == 0, "nothing is in flight")


def test_no_version_and_no_temporary_files_of_nginx(gateway: Gateway) -> None:
    answer = requests.get(gateway.url + "/nothing", timeout=20)
    assert answer.headers["Server"] == "nginx"
    assert "X-Powered-By" not in answer.headers
    conf = gateway.render()
    for setting in (
        "server_tokens off;",
        "proxy_buffering off;",
        "proxy_max_temp_file_size 0;",
        "proxy_next_upstream off;",
        f"client_body_temp_path {gateway.spool};",
        "lua_check_client_abort on;",
    ):
        assert setting in conf


def test_the_spool_is_emptied(start: Start, servers: dict[str, Standin]) -> None:
    with playing(model("b", servers["b"].port)) as manager:
        gateway = start(manager)
        large = json.dumps({"a": "x" * 3_000_000, "model": "b", "messages": []}).encode()
        with Client(gateway) as client:
            client.send(
                f"POST {CHAT} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(large)}\r\n\r\n".encode()
                + large[:2_000_000]
            )
            manager.until(lambda: list(gateway.spool.rglob("*")), "the body is spooled")
        manager.until(lambda: not list(gateway.spool.rglob("*")), "the spool is empty")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls(servers: dict[str, Standin], certificate: tuple[Path, Path], version: ssl.TLSVersion) -> None:
    with playing(model("b", servers["b"].port)) as manager, Gateway(manager, certificate=certificate) as gateway:
        gateway.wait_known()
        context = ssl.create_default_context(cafile=str(certificate[1]))
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert secure.recv(65536).startswith(b"HTTP/1.1 200")
        with Client(gateway) as client:
            status, _headers, body = client.post(CHAT, BODY).answer()
            assert (status, json.loads(body)["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "[::]"])
def test_tls_everywhere_and_none_on_one_address(
    servers: dict[str, Standin], certificate: tuple[Path, Path], everywhere: str
) -> None:
    """As on a host whose Open WebUI comes by Docker's bridge."""
    if everywhere == "[::]" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")

    def listens(port: int) -> list[dict[str, Any]]:
        found = [{"address": f"{one}:{port}", "tls": True} for one in dict.fromkeys((everywhere, "0.0.0.0"))]
        return [*found, {"address": f"127.0.0.2:{port}", "tls": False}]

    with (
        playing(model("b", servers["b"].port)) as manager,
        Gateway(manager, certificate=certificate, listens=listens) as gateway,
    ):
        gateway.wait_known()
        assert requests.get(f"http://127.0.0.2:{gateway.port}/v1/models", timeout=20).status_code == 200
