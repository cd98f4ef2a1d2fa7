# SPDX-License-Identifier: MIT
"""Which requests get to which server, and which to none."""

from __future__ import annotations

import concurrent.futures
import io
import json
import time
import wave
from typing import Any

import pytest
import requests

from tests.gateway import played
from tests.gateway.fake_link import FakeManager, model, playing
from tests.gateway.gatewaylib import Client, Gateway, Start
from tests.serverlib import Server

JSON_PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/audio/speech",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
]
# What a server has besides: none of it is anybody's business but the manager's.
HIDDEN = [
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/pause",
    "/resume",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/start_profile",
    "/stop_profile",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/load",
    "/metrics",
    "/version",
    "/ping",
    "/invocations",
    "/pooling",
    "/classify",
    "/docs",
    "/openapi.json",
    "/server_info",
    "/inference/v1/generate",
    "/standin/faults",
]


class Marks:
    """What the servers were asked since."""

    def __init__(self, servers: dict[str, Server]) -> None:
        self.servers = servers
        self.marks = {name: server.mark() for name, server in servers.items()}

    def asked(self) -> dict[str, list[str]]:
        found = {name: server.accesses(since=self.marks[name]) for name, server in self.servers.items()}
        return {name: calls for name, calls in found.items() if calls}


@pytest.fixture
def marks(servers: dict[str, Server]) -> Marks:
    return Marks(servers)


def post(gateway: Gateway, path: str, body: dict[str, Any], **more: Any) -> requests.Response:
    return requests.post(gateway.url + path, json=body, timeout=20, **more)


@pytest.mark.parametrize("path", JSON_PATHS)
def test_a_path_goes_to_the_server_of_the_model(gateway: Gateway, marks: Marks, path: str) -> None:
    for name in "ab":
        body = {
            "messages": [{"role": "user", "content": '"model": "none"'}],
            "prompt": "x",
            "input": "x",
            "model": name,
        }
        assert post(gateway, path, body).status_code in (200, 404)
    assert marks.asked() == {"a": [f"POST {path}"], "b": [f"POST {path}"]}


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
def test_a_form_goes_to_the_server_of_the_model(gateway: Gateway, marks: Marks, path: str) -> None:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b'\r\n--name="model"\r\n' * 9000)
    files = {"file": ("x.wav", sound.getvalue(), "audio/wav")}
    answer = requests.post(gateway.url + path, files=files, data={"language": "en", "model": "b"}, timeout=20)
    assert answer.status_code == 404  # of the server, which has no such call: it is none of speech
    assert answer.json() == {"detail": "Not Found"}
    assert marks.asked() == {"b": [f"POST {path}"]}


@pytest.mark.parametrize("name", ["a", "a-alias", "Org/A", "lora-a"])
def test_all_names_of_a_model_are_found(gateway: Gateway, marks: Marks, name: str) -> None:
    answer = post(gateway, "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "x"}]})
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"]
    assert answer.headers["X-Queue-Wait-Seconds"] == "0"
    assert marks.asked() == {"a": ["POST /v1/chat/completions"]}


@pytest.mark.parametrize(
    "path",
    ["//v1//chat///completions", "/v1/chat/./completions", "/x/../v1/chat/completions", "/v1/chat%2Fcompletions"],
)
def test_what_was_matched_is_what_is_sent(gateway: Gateway, marks: Marks, path: str) -> None:
    with Client(gateway) as client:
        body = json.dumps({"model": "b", "messages": [{"role": "user", "content": "x"}]}).encode()
        assert client.post(path, body).answer()[0] == 200
    assert marks.asked() == {"b": ["POST /v1/chat/completions"]}


def test_a_query_is_sent_on(gateway: Gateway, marks: Marks) -> None:
    post(gateway, "/v1/messages?beta=true", {"model": "b"})
    assert marks.asked() == {"b": ["POST /v1/messages?beta=true"]}
    assert gateway.logged(path="/v1/messages", model="b")  # without it


@pytest.mark.parametrize("name", ["a", "a-alias", "Org/A", "Org%2FA"])
def test_a_base_url_may_mean_one_model(gateway: Gateway, marks: Marks, name: str) -> None:
    with Client(gateway) as client:
        body = b'{"messages": [{"role": "user", "content": "x"}]}'
        assert client.post(f"/m/{name}/v1/chat/completions", body).answer()[0] == 200
        assert client.post(f"/m/{name}/tokenize", b'{"prompt": "x"}').receive(b"Not Found")
    assert marks.asked() == {"a": ["POST /v1/chat/completions", "POST /tokenize"]}


def test_a_base_url_of_one_model_takes_no_other(gateway: Gateway, marks: Marks) -> None:
    answer = post(gateway, "/m/a/v1/chat/completions", {"model": "b", "messages": []})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert marks.asked() == {}
    assert post(gateway, "/m/a/v1/messages", {"model": "a-alias"}).status_code == 404  # of the server
    assert marks.asked() == {"a": ["POST /v1/messages"]}


def encodings(path: str) -> list[str]:
    """Return ways to write a path that some server may take for it."""
    hexed = "".join(f"%{ord(letter):02x}" for letter in path[1:])
    return [
        path,
        path + "/",
        path + "?model=a",
        "/" + path,
        "/" + hexed,
        path.replace("e", "%65").replace("a", "%61"),
        "/v1/.." + path,
        "/v1/chat/completions/../../.." + path,
        "/v1/chat/completions%2f..%2f..%2f.." + path,
        "/m/a" + path,
        "/m/a/v1/.." + path,
        path.upper(),
        path + "%00",
        path + ";v1/chat/completions",
        "/v1/chat/completions" + path,
        "http://gateway" + path,
    ]


@pytest.mark.parametrize("path", HIDDEN)
def test_no_server_sees_other_paths(gateway: Gateway, marks: Marks, path: str) -> None:
    body = b'{"model": "a", "lora_name": "x", "lora_path": "/etc"}'
    for method in ("GET", "POST"):
        for written in encodings(path):
            with Client(gateway) as client:
                head = f"{method} {written} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
                client.send(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
                answer = client.receive()
            # A NUL is no part of a path at all.
            status = b"400" if "%00" in written else b"404"
            assert answer.startswith(b"HTTP/1.1 " + status), (method, written, answer[:200])
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert marks.asked() == {}


def test_a_path_of_any_bytes_is_a_line_of_the_log(start: Start) -> None:
    with playing(model("m", 9)) as manager:
        gateway = start(manager)
        for path in ("/%FF%FE", "/v1/models/%C3%28", "/m/%80/v1/chat/completions"):
            with Client(gateway) as client:
                assert client.post(path, b"{}").answer()[0] in (404, 405)
        gateway.logged(3, path="(not ASCII)")
        # Each line by itself: the reader of the tests takes what is no UTF-8 for a failure.
        assert (gateway.folder / "access.log").read_bytes().isascii()


def test_only_posts_are_sent_on(gateway: Gateway, marks: Marks) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"):
        answer = requests.request(method, gateway.url + "/v1/chat/completions", json={"model": "a"}, timeout=20)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST"), method
    assert requests.post(gateway.url + "/v1/models", json={}, timeout=20).status_code == 405
    assert marks.asked() == {}


def test_an_unknown_model_names_the_nearest(gateway: Gateway, marks: Marks) -> None:
    answer = post(gateway, "/v1/chat/completions", {"model": "org/a-alia", "messages": []})
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {
        "error": {
            "message": "There is no model 'org/a-alia'; the nearest is 'a-alias'. GET /v1/models lists all.",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    answer = post(gateway, "/v1/messages", {"model": "zzz", "messages": []})
    assert answer.status_code == 404
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "not_found_error"
    assert "nearest" not in answer.json()["error"]["message"]
    assert marks.asked() == {}


def test_the_list_comes_from_the_state(gateway: Gateway, marks: Marks) -> None:
    listed = requests.get(gateway.url + "/v1/models", timeout=20)
    assert listed.headers["Content-Type"] == "application/json"
    assert [one["id"] for one in listed.json()["data"]] == ["a", "lora-a", "b"]
    assert listed.json()["data"][0]["loaded"] is True
    assert '"permission": []' in listed.text  # as it came: an empty list is no object
    for path in ("/v1/models/lora-a", "/v1//models/lora-a"):
        assert requests.get(gateway.url + path, timeout=20).json()["parent"] == "a"
    assert requests.get(gateway.url + "/v1/models/Org%2FA", timeout=20).json()["id"] == "a"
    one = requests.get(gateway.url + "/m/a-alias/v1/models", timeout=20).json()
    assert [entry["id"] for entry in one["data"]] == ["a", "lora-a"]
    for path in ("/v1/models/c", "/m/c/v1/models"):
        assert requests.get(gateway.url + path, timeout=20).json()["error"]["code"] == "model_not_found"
    assert requests.head(gateway.url + "/v1/models", timeout=20).status_code == 200
    assert marks.asked() == {}


def test_the_list_follows_the_state_in_all_workers(start: Start) -> None:
    with playing(model("a"), model("b", gate="closed")) as manager:
        gateway = start(manager, workers=3)
        for models in (["a"], ["c", "a", "b"], [], ["b"]):
            manager.set_models(*(model(name) for name in models))

            def listed() -> list[str]:
                found = requests.get(gateway.url + "/v1/models", headers={"Connection": "close"}, timeout=20).json()
                return [one["id"] for one in found["data"]]

            manager.until(lambda: listed() == models, "the list")  # noqa: B023
            # From then on whichever worker is asked.
            assert [listed() for _number in range(20)] == [models] * 20


def test_before_the_first_state_nothing_is_unknown(start: Start) -> None:
    with FakeManager() as manager:
        manager.stop()
        gateway = start(manager, known=False, link_grace_seconds=1)
        answers = [
            post(gateway, "/v1/chat/completions", {"model": "a"}),
            post(gateway, "/m/a/v1/chat/completions", {"model": "a"}),
            requests.get(gateway.url + "/v1/models", timeout=20),
            requests.get(gateway.url + "/v1/models/a", timeout=20),
        ]
        for answer in answers:
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "starting"
            assert answer.headers["Retry-After"] == "1"
        assert post(gateway, "/sleep", {}).status_code == 404


def test_who_comes_before_the_first_state_waits_for_it(start: Start) -> None:
    """As after a restart of the gateway under load."""
    with FakeManager() as manager, played.Server() as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        manager.stop()
        gateway = start(manager, known=False, workers=2)
        asked = [
            *(
                pool.submit(post, gateway, "/v1/chat/completions", {"model": "a", "user": "x" * size})
                for size in (1, 1, 1, 200_000)
            ),
            pool.submit(post, gateway, "/m/b/v1/chat/completions", {"model": "b"}),
            pool.submit(post, gateway, "/v1/chat/completions", {"model": "nobody"}),
            pool.submit(requests.get, gateway.url + "/v1/models", timeout=20),
            pool.submit(requests.get, gateway.url + "/v1/models/a", timeout=20),
        ]
        time.sleep(1)
        assert not [one for one in asked if one.done()]
        manager.set_models(model("a", server.port), model("b", server.port))
        manager.start()
        answers = [one.result(20) for one in asked]
        assert [answer.status_code for answer in answers] == [*[200] * 5, 404, 200, 200]
        assert [one["id"] for one in answers[6].json()["data"]] == ["a", "b"]


def test_a_model_may_move_while_its_gate_is_open(start: Start, servers: dict[str, Server], marks: Marks) -> None:
    with playing(model("a", port=9)) as manager:
        gateway = start(manager, workers=3)
        manager.set_models(model("a", servers["b"].port))
        manager.until(lambda: post(gateway, "/v1/score", {"model": "a"}).status_code == 404, "one worker has it")
        # The first to hear of it tells all: no request goes to where it was.
        for _number in range(20):
            assert post(gateway, "/v1/score", {"model": "a"}, headers={"Connection": "close"}).status_code == 404
        assert set(marks.asked()) == {"b"}
