# SPDX-License-Identifier: MIT
"""Who may ask for what, and that no secret goes where it does not belong."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.plugin_utils.gateway import settings as gateway_settings

from tests.gateway.conftest import SERVER_KEY
from tests.gateway.fake_link import model, playing
from tests.gateway.gatewaylib import Client, Gateway, Start, hashed
from tests.gateway.played import Asked, Call, Server, answers, until

CHAT = "/v1/chat/completions"
ALL = "sk-of-alice-0123456789"
SOME = "sk-of-bob-0123456789"
KEYS: list[dict[str, Any]] = [
    {"name": "alice", "key": ALL},
    {"name": "bob", "key": SOME, "models": ["b"]},
]


def settings(**more: object) -> str:
    """The text of settings.json, with something else in it."""
    return json.dumps(gateway_settings(None) | more)


@pytest.fixture(scope="module")
def played() -> Iterator[Server]:
    with Server(answers({"ok": True})) as server:
        yield server


@pytest.fixture
def gateway(start: Start, played: Server) -> Iterator[Gateway]:
    """Its models: a, whose server has a key of its own, and b."""
    with playing(model("a", played.port, api_key=SERVER_KEY), model("b", played.port)) as manager:
        yield start(manager, keys=KEYS)


def ask(gateway: Gateway, name: str, **headers: str) -> requests.Response:
    return requests.post(gateway.url + CHAT, json={"model": name}, headers=headers, timeout=20)


def code(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_key_is_needed_and_stays_here(gateway: Gateway, played: Server) -> None:
    before = len(played.asked)
    assert code(ask(gateway, "a")) == (401, "missing_api_key")
    assert ask(gateway, "a").headers["WWW-Authenticate"] == "Bearer"
    for wrong in (ALL + "x", ALL[:-1], ALL.upper(), "", SERVER_KEY, hashed(KEYS[0])["sha256"]):
        assert ask(gateway, "a", Authorization=f"Bearer {wrong}").status_code == 401
        assert ask(gateway, "a", **{"x-api-key": wrong}).status_code == 401
    assert code(ask(gateway, "a", Authorization=f"Basic {ALL}")) == (401, "missing_api_key")
    assert requests.get(gateway.url + "/v1/models", timeout=20).status_code == 401
    assert len(played.asked) == before

    shown: list[dict[str, str]] = [
        {"Authorization": f"Bearer {ALL}"},
        {"Authorization": f"bearer  {ALL}"},
        {"x-api-key": ALL},
        {"x-api-key": ALL, "Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {ALL}", "x-api-key": SOME},
    ]
    for headers in [*shown, *shown]:  # the second time from what is remembered
        more = {"Cookie": "session=secret-cookie", "Api-Key": ALL, "Proxy-Authorization": "Basic secret"}
        assert ask(gateway, "a", **headers, **more).status_code == 200
        assert played.asked[-1].header("Authorization") == f"Bearer {SERVER_KEY}"
        assert ask(gateway, "b", **headers, **more).status_code == 200
        assert played.asked[-1].header("Authorization") is None
        for asked in played.asked[-2:]:
            text = json.dumps([asked.line, asked.headers])
            assert ALL not in text
            assert SOME not in text
            assert "secret-cookie" not in text
            assert "Basic" not in text


def test_a_key_has_its_models(gateway: Gateway, played: Server) -> None:
    before = len(played.asked)
    bob = {"Authorization": f"Bearer {SOME}"}
    refused = ask(gateway, "a", **bob)
    assert code(refused) == (403, "model_not_allowed")
    assert refused.json()["error"]["message"] == "The API key 'bob' may not use the model 'a'."
    assert code(requests.post(gateway.url + "/m/a" + CHAT, json={}, headers=bob, timeout=20)) == (
        403,
        "model_not_allowed",
    )
    listed = requests.get(gateway.url + "/v1/models", headers=bob, timeout=20).json()
    assert [one["id"] for one in listed["data"]] == ["b"]
    assert code(requests.get(gateway.url + "/v1/models/a", headers=bob, timeout=20)) == (404, "model_not_found")
    assert "'a'" not in ask(gateway, "a1", **bob).json()["error"]["message"]  # not as the nearest one either
    assert len(played.asked) == before
    assert ask(gateway, "b", **bob).status_code == 200


def test_anthropic_is_told_in_its_own_shape(gateway: Gateway) -> None:
    answer = requests.post(gateway.url + "/v1/messages", json={"model": "a"}, headers={"x-api-key": "no"}, timeout=20)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.json()["type"] == "error"


def test_nothing_secret_is_logged(gateway: Gateway) -> None:
    ask(gateway, "a", Authorization=f"Bearer {ALL}")
    ask(gateway, "a", Authorization="Bearer wrong-secret")
    requests.post(f"{gateway.url}{CHAT}?api_key={ALL}", json={"model": "a"}, timeout=20)
    rows = gateway.logged(2, path=CHAT, status=401)
    assert [row["key"] for row in rows] == ["", ""]
    assert gateway.logged(path=CHAT, status=200)[0]["key"] == "alice"
    text = (gateway.folder / "access.log").read_text() + gateway.error_log()
    for secret in (ALL, SERVER_KEY, "wrong-secret", gateway.token, hashed(KEYS[0])["sha256"]):
        assert secret not in text


def test_requests_a_minute(start: Start, played: Server) -> None:
    with playing(model("b", played.port)) as manager:
        gateway = start(manager, workers=2, keys=[{"name": "x", "key": "x", "requests_per_minute": 5}, *KEYS])
        if time.time() % 60 > 50:
            time.sleep(61 - time.time() % 60)  # the minute is not to end in the middle
        headers = {"Authorization": "Bearer x", "Connection": "close"}
        statuses = [ask(gateway, "b", **headers).status_code for _number in range(8)]
        assert statuses == [200] * 5 + [429] * 3
        refused = ask(gateway, "b", **headers)
        assert code(refused) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert ask(gateway, "b", Authorization=f"Bearer {ALL}").status_code == 200


def test_requests_at_once(start: Start) -> None:
    over = threading.Event()

    def slow(asked: Asked) -> None:
        if len(server.asked) <= 2:
            over.wait(20)
        answers({"ok": True})(asked)

    with Server(slow) as server, playing(model("b", server.port)) as manager:
        gateway = start(manager, workers=2, keys=[{"name": "x", "key": "x", "max_in_flight": 2}])
        headers = {"Authorization": "Bearer x", "Connection": "close"}
        calls = [Call(gateway.port, {"model": "b"}, headers=headers) for _number in range(2)]
        until(lambda: len(server.asked) == 2, "both are there")
        refused = ask(gateway, "b", **headers)
        assert code(refused) == (429, "too_many_at_once")
        assert refused.headers["Retry-After"] == "1"
        calls[0].close()  # a client that goes away makes room, as one that is answered does
        until(lambda: ask(gateway, "b", **headers).status_code == 200, "there is room")
        over.set()
        assert calls[1].status == 200
        until(lambda: manager.in_flight() == 0, "nothing is in flight")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("keys.json", "{", "keys.json: is no JSON list"),
        ("keys.json", '{"name": "x"}', "keys.json: is no JSON list"),
        ("keys.json", '[{"name": "x", "sha256": "00", "models": ["*"]}]', "keys.json: key 1: sha256 must be 64"),
        ("keys.json", json.dumps([{**hashed(KEYS[0]), "models": "a"}]), "key 1: models must be a list"),
        ("keys.json", json.dumps([hashed(KEYS[0]), hashed(KEYS[0])]), "key 2: is the same as that of alice"),
        (
            "keys.json",
            json.dumps([{**hashed(KEYS[0]), "max_in_flight": "2"}]),
            "max_in_flight must be a positive",
        ),
        ("link-token", " \n", "link-token: is missing or empty"),
        ("settings.json", settings(max_waiting=0), "settings.json: max_waiting must be a positive number"),
        ("settings.json", settings(max_waiting=None), "settings.json: max_waiting must be a positive number"),
        ("settings.json", settings(allowed_hosts="gpu1"), "settings.json: allowed_hosts must be a list"),
        ("settings.json", settings(allowed_hosts=[1]), "settings.json: allowed_hosts must be a list of texts"),
        ("settings.json", settings(status_chunks="on"), "settings.json: status_chunks must be auto, webui"),
    ],
)
def test_wrong_files_open_nothing(start: Start, file: str, text: str, said: str) -> None:
    with playing(model("b")) as manager:
        gateway = start(manager, keys=KEYS)
        path = gateway.folder / file
        before = path.read_text()
        path.write_text(text)
        assert gateway.process is not None
        gateway.process.send_signal(1)
        until(lambda: said in gateway.error_log(), f"nginx says {said}")
        # What was, goes on; and nginx does not begin with it either.
        assert ask(gateway, "b").status_code == 401
        with pytest.raises(AssertionError, match="nginx ended"):
            broken = Gateway(manager, keys=KEYS)
            try:
                (broken.folder / file).write_text(text)
                broken.start()
            finally:
                broken.stop()
        path.write_text(before)
        gateway.forgive("init_by_lua error", "failed to run init_by_lua")


def test_keys_change_by_a_reload(start: Start, played: Server) -> None:
    with playing(model("b", played.port)) as manager:
        gateway = start(manager, keys=[])
        assert ask(gateway, "b").status_code == 200
        gateway.keys = KEYS
        gateway.write()
        gateway.reload()
        assert ask(gateway, "b").status_code == 401
        gateway.keys = [{"name": "alice", "key": "another"}]
        gateway.write()
        gateway.reload()
        assert ask(gateway, "b", Authorization=f"Bearer {ALL}").status_code == 401
        assert ask(gateway, "b", Authorization="Bearer another").status_code == 200


def test_many_clients_with_keys(start: Start, played: Server) -> None:
    with playing(model("b", played.port)) as manager:
        keys = [{"name": f"key-{number}", "key": f"secret-{number}"} for number in range(200)]
        gateway = start(manager, workers=2, keys=keys)

        def one(number: int) -> int:
            return ask(gateway, "b", Authorization=f"Bearer secret-{number}").status_code

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(one, range(220))) == [200] * 200 + [401] * 20


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://elsewhere.example.net"},
        {"Origin": "null"},
    ],
)
def test_pages_of_other_sites_need_a_key(start: Start, played: Server, headers: dict[str, str]) -> None:
    with playing(model("a", played.port)) as manager:
        gateway = start(manager)
        before = len(played.asked)
        assert code(ask(gateway, "a", **headers)) == (403, "foreign_page")
        assert requests.get(gateway.url + "/v1/models", headers=headers, timeout=20).status_code == 403
        assert len(played.asked) == before
        own = {"Origin": gateway.url, "Sec-Fetch-Site": "same-origin"}
        assert ask(gateway, "a", **own).status_code == 200
        # Some clients and proxies leave a header empty instead of leaving it out.
        assert ask(gateway, "a", **dict.fromkeys(headers, "")).status_code == 200
    with playing(model("a", played.port)) as manager:
        gateway = start(manager, keys=KEYS)
        assert ask(gateway, "a", Authorization=f"Bearer {ALL}", **headers).status_code == 200


def test_names_of_others_need_a_key(start: Start, played: Server) -> None:
    """A web page may have a name that leads here: to its browser, the gateway is the same site."""
    with playing(model("a", played.port)) as manager:
        gateway = start(manager, allowed_hosts=["GPU1.example.com", "gpu2"])
        own = socket.gethostname().lower()
        allowed = [
            "127.0.0.1",
            "192.0.2.7:8000",
            "[::1]:8000",
            "[::ffff:192.0.2.7]",
            "localhost",
            "LocalHost:8000",
            "localhost.",
            "host.docker.internal:8000",
            "gpu1.example.com",
            "gpu1.EXAMPLE.com:8000",
            "gpu2",
            own,
            f"{own.partition('.')[0]}.local:8000",
        ]
        strange = [
            "evil.example",
            "evil.example:8000",
            "gpu1",
            "gpu2.example.com",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "1.2.3",
        ]
        for host in [*allowed, *allowed]:
            assert ask(gateway, "a", Host=host).status_code == 200, host
        before = len(played.asked)
        for host in strange:
            answer = ask(gateway, "a", Host=host)
            assert code(answer) == (403, "host_not_allowed"), host
            assert "add its name to model_gateway_allowed_hosts" in answer.json()["error"]["message"]
            listed = requests.get(gateway.url + "/v1/models", headers={"Host": host}, timeout=20)
            assert code(listed) == (403, "host_not_allowed")
            assert requests.get(gateway.url + "/health", headers={"Host": host}, timeout=20).status_code == 200
        assert len(played.asked) == before
        # Without any: so no browser asks.
        with Client(gateway) as client:
            body = b'{"model": "a"}'
            head = f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            assert client.send(head + body).receive().startswith(b"HTTP/1.1 200")
    with playing(model("a", played.port)) as manager:
        gateway = start(manager, keys=KEYS)
        assert ask(gateway, "a", Authorization=f"Bearer {ALL}", Host="evil.example").status_code == 200
