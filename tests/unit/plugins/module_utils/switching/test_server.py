# SPDX-License-Identifier: MIT
"""What a Server makes of everything that may answer on a model's port.

The stand-ins are real processes. What is no vLLM at all (another HTTP server, an SSH daemon, a port that drops
connections) listens in a thread. All of it is on loopback.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import http_connection
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import (
    BadAnswer,
    DevModeOff,
    InDoubt,
    Refused,
    ServerError,
    Unreachable,
    Unresponsive,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.metrics import Counters, counters
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    ERROR,
    LOADING,
    SLEEPING,
    STOPPED,
    Observation,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import summary
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.server import Server

from tests import serverlib

RELOADING_WAKE = [
    "POST /wake_up?tags=weights",
    "POST /collective_rpc",
    "POST /wake_up?tags=kv_cache",
    "POST /reset_prefix_cache",
]
# What a test may change before it makes a server.
SETTINGS: dict[str, Any] = {}


@contextlib.contextmanager
def server_for(port: int, settings: dict[str, Any] | None = None, **fields: Any) -> Iterator[Server]:
    """A Server for a model called m on this port."""
    inventory = parse([{"id": "m", "model": "org/m", "host_port": port, **fields}], {**SETTINGS, **(settings or {})})
    server = Server(inventory.models[0], inventory.switching)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def shared_standin() -> Iterator[serverlib.Server]:
    with serverlib.start_standin("org/m", names=["m"]) as running:
        yield running


@pytest.fixture
def standin(shared_standin: serverlib.Server) -> serverlib.Server:
    """One awake stand-in without faults; its weights are right."""
    shared_standin.call("DELETE", "/standin/faults")
    shared_standin.call("POST", "/wake_up")
    shared_standin.call("POST", "/collective_rpc", json={"method": "reload_weights"})
    return shared_standin


@pytest.fixture
def server(standin: serverlib.Server) -> Iterator[Server]:
    """The Server of the awake stand-in."""
    with server_for(standin.port) as server:
        yield server


@pytest.fixture(scope="module")
def old_standin() -> Iterator[serverlib.Server]:
    with serverlib.start_standin("org/m", names=["m"], version="0.11.0") as running:
        yield running


@pytest.fixture(scope="module")
def without_dev_mode() -> Iterator[serverlib.Server]:
    with serverlib.start_standin("org/m", names=["m"], dev_mode=False, flags=()) as running:
        yield running


@pytest.fixture(scope="module")
def with_api_key() -> Iterator[serverlib.Server]:
    with serverlib.start_standin("org/m", names=["m"], flags=("--api-key", "sesame")) as running:
        yield running


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "probe_timeout_seconds", 1)


def raised(call: Callable[[], object]) -> tuple[type[ServerError], str]:
    """The kind of error that the call raises, and its text."""
    with pytest.raises(ServerError) as caught:
        call()
    return type(caught.value), str(caught.value)


class NotVllm:
    """An HTTP server with answers of the test's choice; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {}
        self.seconds: dict[str, float] = {}
        self.requests: list[tuple[str, str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                outer.requests.append((self.command, self.path, body))
                time.sleep(outer.seconds.get(self.path, 0.0))
                status, text = outer.answers.get(self.path, (200, ""))
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(text.encode())))
                    self.end_headers()
                    self.wfile.write(text.encode())

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_arguments: object) -> None:
                """Print nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port: int = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        """Stop listening."""
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def not_vllm() -> Iterator[NotVllm]:
    listening = NotVllm()
    yield listening
    listening.close()


@contextlib.contextmanager
def listener(meet: Callable[[socket.socket], object]) -> Iterator[int]:
    """A TCP listener that does something to every connection; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        closing = threading.Event()

        def accept() -> None:
            listening.settimeout(0.05)
            while not closing.is_set():
                with contextlib.suppress(OSError):
                    connection, _peer = listening.accept()
                    with connection:
                        connection.settimeout(5)
                        meet(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            closing.set()
            thread.join()


# ---- observe ----------------------------------------------------------------------------------


def test_an_awake_server_is_active(server: Server) -> None:
    assert server.observe() == Observation(ACTIVE)


def test_requests_are_counted_when_asked_for(server: Server) -> None:
    assert server.observe(count_requests=True) == Observation(ACTIVE, running=0, waiting=0)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_sleeping_server_tells_its_level(standin: serverlib.Server, server: Server, level: int) -> None:
    standin.call("POST", f"/sleep?level={level}")
    assert server.observe() == Observation(SLEEPING, level=level, running=0, waiting=0)
    assert server.is_healthy()


def test_a_partly_awake_server_sleeps_at_its_level(standin: serverlib.Server, server: Server) -> None:
    standin.call("POST", "/sleep?level=2")
    standin.call("POST", "/wake_up?tags=weights")
    seen = server.observe()
    assert (seen.state, seen.level) == (SLEEPING, 2)


@pytest.mark.parametrize("level", [1, 2])
def test_an_old_server_does_not_tell_its_level(old_standin: serverlib.Server, level: int) -> None:
    with server_for(old_standin.port) as server:
        old_standin.call("POST", f"/sleep?level={level}")
        wait_for(server.is_sleeping)
        seen = server.observe()
        assert (seen.state, seen.level) == (SLEEPING, None)
        server.wake(None)
        wait_for(lambda: not server.is_sleeping())


def wait_for(done: Callable[[], object]) -> None:
    """Poll."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_listens() -> None:
    port = serverlib.free_port()
    with server_for(port) as server:
        assert server.observe() == Observation(STOPPED)
        kind, text = raised(server.is_healthy)
        assert kind is Unreachable
        assert text == f"m: GET http://127.0.0.1:{port}/health: connection refused"


def test_a_dead_engine(not_vllm: NotVllm) -> None:
    not_vllm.answers = {"/health": (503, ""), "/version": (200, '{"version": "0.32.0"}')}
    with server_for(not_vllm.port) as server:
        assert server.is_healthy() is False
        assert server.observe() == Observation(ERROR, problem="m's engine is dead (/health answers 503)", dead=True)
    assert {path for _method, path, _body in not_vllm.requests} == {"/health", "/version"}


@pytest.mark.parametrize("version", [(503, '{"error": {"message": "Loading model"}}'), (404, ""), (200, "{}")])
def test_one_that_may_listen_while_it_loads(not_vllm: NotVllm, version: tuple[int, str]) -> None:
    not_vllm.answers = {"/health": (503, ""), "/version": version}
    with server_for(not_vllm.port) as server:
        assert server.observe() == Observation(LOADING, problem="m is not ready (/health answers 503)")


@pytest.mark.usefixtures("quick_probes")
def test_a_server_that_hangs_is_unknown(standin: serverlib.Server, server: Server) -> None:
    standin.fault("/health", "hang", times=0)
    text = f"m: GET {standin.url}/health: no answer within 1 s"
    assert server.observe() == Observation(ERROR, problem=text, unknown=True)


@pytest.mark.parametrize("slept", [False, True])
def test_each_call_of_a_look_has_its_own_time(standin: serverlib.Server, slept: bool) -> None:
    if slept:
        standin.call("POST", "/sleep?level=1")
    standin.fault("*", "hang", seconds=0.6, times=0)
    # Its four calls take longer than this together.
    with server_for(standin.port, {"probe_timeout_seconds": 2}) as server:
        assert server.observe(count_requests=True).state == (SLEEPING if slept else ACTIVE)


@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/is_sleeping"])
def test_one_slow_answer_is_no_death(standin: serverlib.Server, server: Server, path: str) -> None:
    standin.fault(path, "hang", times=1)
    assert server.observe() == Observation(ACTIVE)


@pytest.mark.usefixtures("quick_probes")
def test_a_server_that_stops_within_an_answer_does_not_answer_in_time() -> None:
    def meet(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        connection.recv(1)  # until the other side gives up

    with listener(meet) as port, server_for(port) as server:
        seen = server.observe()
    assert (seen.state, seen.unknown, seen.dead) == (ERROR, True, False)
    assert f"m: GET http://127.0.0.1:{port}/health: " in seen.problem
    assert "listens" not in seen.problem


def test_dev_mode_off_says_how_to_turn_it_on(without_dev_mode: serverlib.Server) -> None:
    with server_for(without_dev_mode.port) as server:
        kind, text = raised(server.is_sleeping)
        assert kind is DevModeOff
        assert text == (
            "m answers 404 to /is_sleeping: start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment and "
            "--enable-sleep-mode on its command line"
        )
        # It has named its model before, so it is the server, whoever started it.
        assert server.observe() == Observation(ERROR, problem=text, process=True)


def test_a_model_that_is_stopped_to_rest_needs_no_dev_mode(without_dev_mode: serverlib.Server) -> None:
    with server_for(without_dev_mode.port, sleep_level="stop") as server:
        assert server.observe() == Observation(ACTIVE)


def test_custom_calls_without_a_state_request_on_a_server_that_is_not_vllm(without_dev_mode: serverlib.Server) -> None:
    calls = [{"endpoint": "/rest"}]
    with server_for(without_dev_mode.port, sleep_requests=calls, wake_requests=calls) as server:
        kind, text = raised(server.is_sleeping)
    assert kind is DevModeOff
    assert text.startswith("m has no /is_sleeping (404): give it a state_request")


@pytest.mark.parametrize(
    ("fault", "path", "gist"),
    [
        ("html", "/health", "not a vLLM answer: something else listens on port {port}: <!DOCTYPE html> <html>"),
        ("html", "/v1/models", "not a vLLM answer: something else listens on port {port}: <!DOCTYPE html>"),
        ("html", "/is_sleeping", "not a vLLM answer: something else listens on port {port}: <!DOCTYPE html>"),
        ("redirect", "/health", "redirected to /login, which vLLM never does: something else listens on port {port}"),
        ("redirect", "/is_sleeping", "redirected to /login, which vLLM never does: something else listens on port"),
        (
            "unauthorized",
            "/health",
            'answered 401: {{"error":"Unauthorized"}}; vLLM never does: something else listens',
        ),
        ("wrong_json", "/v1/models", 'not a vLLM answer: something else listens on port {port}: {{"unexpected"'),
        ("wrong_json", "/is_sleeping", "not a vLLM answer: something else listens on port {port}: "),
        ("empty_200", "/v1/models", "not a vLLM answer: something else listens on port {port}"),
        ("empty_200", "/is_sleeping", "not a vLLM answer: something else listens on port {port}"),
        ("status_500", "/is_sleeping", 'answered 500: {{"error":{{"message":"Call to the engine failed"'),
    ],
)
def test_a_wrong_answer_is_an_error_that_says_so(
    standin: serverlib.Server, server: Server, fault: str, path: str, gist: str
) -> None:
    standin.fault(path, fault)
    assert server.observe() == Observation(ACTIVE)  # once is not enough
    standin.fault(path, fault, times=0)
    seen = server.observe()
    expected = f"m: GET {standin.url}{path}: " + gist.format(port=standin.port)
    assert (seen.state, seen.dead) == (ERROR, False)
    assert seen.problem[: len(expected)] == expected


def test_401_on_everything_is_another_server(standin: serverlib.Server, server: Server) -> None:
    standin.fault("*", "unauthorized", times=2)
    kind, text = raised(server.is_healthy)
    assert kind is BadAnswer
    assert text.endswith(f"vLLM never does: something else listens on port {standin.port}")
    assert server.observe().dead is False


@pytest.mark.parametrize("wrong", [{}, {"args": {"api_key": "abracadabra"}}])
def test_a_missing_or_wrong_api_key(with_api_key: serverlib.Server, wrong: dict[str, Any]) -> None:
    with server_for(with_api_key.port, **wrong) as server:
        seen = server.observe()
    assert seen == Observation(
        ERROR,
        problem=f"m requires an API key on port {with_api_key.port} (401 from /v1/models): set the correct one as "
        "args.api_key or env.VLLM_API_KEY of the model",
    )


@pytest.mark.parametrize(
    "right", [{"args": {"api_key": "sesame"}}, {"args": {"api_key": ["sesame"]}}, {"env": {"VLLM_API_KEY": "sesame"}}]
)
def test_the_right_api_key(with_api_key: serverlib.Server, right: dict[str, Any]) -> None:
    with server_for(with_api_key.port, **right) as server:
        assert server.observe() == Observation(ACTIVE)
        assert server.prove().text


def test_the_api_key_is_sent_to_v1_only(not_vllm: NotVllm) -> None:
    heard: list[tuple[str, str | None]] = []

    def meet(connection: socket.socket) -> None:
        request = connection.recv(65536).decode()
        heard.append((request.split()[1], "sesame" if "Bearer sesame" in request else None))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

    with listener(meet) as port, server_for(port, args={"api_key": "sesame"}) as server:
        server.observe()
    assert heard == [("/health", None), ("/v1/models", "sesame")] * 2  # it looks twice before it calls it an error


def test_another_models_server_on_the_port(standin: serverlib.Server) -> None:
    with server_for(standin.port, id="other", model="org/other", aliases=["o"]) as server:
        assert server.observe() == Observation(
            ERROR,
            problem=f"port {standin.port} serves m, not other or o or org/other: another server has taken "
            "the port, or --served-model-name is missing",
        )


def test_an_ssh_daemon_on_the_port() -> None:
    def meet(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n")
        connection.recv(65536)

    with listener(meet) as port, server_for(port) as server:
        kind, text = raised(server.is_healthy)
        assert kind is BadAnswer
        assert text.startswith(f"m: GET http://127.0.0.1:{port}/health: not a vLLM answer: something else listens")
        assert "SSH-2.0-OpenSSH_9.2p1" in text
        assert (server.observe().state, server.observe().dead) == (ERROR, False)


@pytest.mark.parametrize("fault", ["refuse", "reset_mid_body"])
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/is_sleeping"])
def test_a_connection_that_breaks_off(standin: serverlib.Server, server: Server, fault: str, path: str) -> None:
    standin.fault(path, fault, times=0)
    seen = server.observe()
    # Dropped without a word: so does Docker for a container that does not listen yet. The process decides.
    loading = (fault, path) == ("refuse", "/health")
    assert seen.state == (LOADING if loading else ERROR)
    assert (seen.dead, seen.unknown) == (loading, not loading)
    assert seen.problem.startswith(f"m: GET {standin.url}{path}: the connection was lost: ")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/is_sleeping"])
def test_one_connection_that_breaks_off_is_no_death(standin: serverlib.Server, server: Server, path: str) -> None:
    standin.fault(path, "refuse", times=1)
    assert server.observe() == Observation(ACTIVE)


def test_who_goes_deaf_at_the_last_call_of_a_look_is_looked_at_again(standin: serverlib.Server) -> None:
    with server_for(standin.port) as server:
        standin.fault("/version", "refuse", times=1)
        assert server.observe() == Observation(ACTIVE)
    with serverlib.start_standin("org/m", names=["m"]) as deaf, server_for(deaf.port) as server:
        deaf.fault("/version", "deaf")
        assert server.observe() == Observation(STOPPED)


@pytest.mark.parametrize("fault", ["html", "odd_numbers", "empty_200", "wrong_json", "status_500"])
def test_metrics_that_can_not_be_read_do_not_make_a_paused_server_one_that_sleeps(
    standin: serverlib.Server, server: Server, fault: str
) -> None:
    standin.call("POST", "/sleep?level=0&mode=wait")
    standin.fault("/metrics", fault, times=1)
    assert server.observe().paused
    standin.fault("/metrics", fault, times=0)
    seen = server.observe()
    assert (seen.state, seen.level, seen.doubtful, seen.asleep) == (SLEEPING, None, True, False)
    assert seen.problem == "/metrics, which shows whether it is only paused, can't be read"


def test_before_servers_can_be_paused_so_the_metrics_do_not_matter(
    old_standin: serverlib.Server,
) -> None:
    old_standin.call("POST", "/sleep?level=1")
    old_standin.fault("/metrics", "html", times=0)
    try:
        with server_for(old_standin.port) as server:
            assert server.observe() == Observation(SLEEPING)
    finally:
        old_standin.call("DELETE", "/standin/faults")
        old_standin.call("POST", "/wake_up")


@pytest.mark.parametrize("fault", ["html", "odd_numbers", "empty_200", "wrong_json", "status_500"])
def test_no_sleep_is_proved_by_metrics_that_can_not_be_read(
    standin: serverlib.Server, server: Server, fault: str
) -> None:
    for level in (0, 1):
        standin.call("POST", f"/sleep?level={level}&mode=wait")
        standin.fault("/metrics", fault, times=2)
        kind, text = raised(server.is_asleep)
        assert kind is InDoubt
        assert text == "m reports that it sleeps, but /metrics, which shows whether it is only paused, can't be read"
        standin.fault("/metrics", fault, times=1)
        assert server.is_asleep() is (level == 1)


def test_a_sleep_of_one_of_two_engines_is_none(standin: serverlib.Server, server: Server) -> None:
    standin.call("POST", "/sleep?level=1&mode=wait")
    standin.fault("/metrics", "two_engines")
    assert not server.is_asleep()
    assert server.is_asleep()


@pytest.mark.parametrize(
    "metrics",
    [
        pytest.param((404, ""), id="not there"),
        pytest.param((403, "<html>"), id="kept from us"),
        pytest.param((200, "# HELP python_info Python platform information\n"), id="--disable-log-stats"),
        pytest.param((200, "vllm:num_requests_running 0.0\n"), id="no sleep gauge"),
    ],
)
def test_who_never_tells_a_level_is_believed_that_it_sleeps(not_vllm: NotVllm, metrics: tuple[int, str]) -> None:
    not_vllm.answers = {
        "/version": (200, '{"version": "0.32.0"}'),
        "/is_sleeping": (200, '{"is_sleeping": true}'),
        "/metrics": metrics,
    }
    with server_for(not_vllm.port) as server:
        assert server.is_asleep()
    assert [path for _method, path, _body in not_vllm.requests].count("/metrics") == 1


@pytest.mark.parametrize("version", ["0.16.0", ""])
def test_who_can_not_be_paused_is_believed_that_it_sleeps(not_vllm: NotVllm, version: str) -> None:
    not_vllm.answers = {
        "/version": (200, json.dumps({"version": version})),
        "/is_sleeping": (200, '{"is_sleeping": true}'),
        "/metrics": (200, "<html>"),
    }
    with server_for(not_vllm.port) as server:
        assert server.is_asleep()


def test_a_connection_that_is_reset_before_any_answer() -> None:
    def meet(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with listener(meet) as port, server_for(port) as server:
        kind, text = raised(server.is_healthy)
        assert server.observe().state == LOADING
    assert issubclass(kind, Unresponsive)
    assert text.startswith(f"m: GET http://127.0.0.1:{port}/health: the connection was lost: ")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models", "[]"),
        ("/v1/models", '{"data": [{"id": 7}]}'),
        ("/v1/models", '{"data": ["m"]}'),
        ("/is_sleeping", '{"is_sleeping": "no"}'),
        ("/is_sleeping", "null"),
    ],
)
def test_json_of_the_wrong_shape(not_vllm: NotVllm, path: str, body: str) -> None:
    not_vllm.answers = {
        "/v1/models": (200, '{"data": [{"id": "m"}]}'),
        "/is_sleeping": (200, '{"is_sleeping": false}'),
        path: (200, body),
    }
    with server_for(not_vllm.port) as server:
        seen = server.observe()
    assert (seen.state, seen.dead) == (ERROR, False)
    assert seen.problem.startswith(f"m: GET http://127.0.0.1:{not_vllm.port}{path}: not a vLLM answer")


@pytest.mark.parametrize("metrics", ["", "<html>", "vllm:num_requests_running NaN\n"])
def test_a_server_without_usable_metrics(not_vllm: NotVllm, metrics: str) -> None:
    not_vllm.answers = {
        "/v1/models": (200, '{"data": [{"id": "m"}]}'),
        "/is_sleeping": (200, '{"is_sleeping": true}'),
        "/metrics": (200, metrics) if metrics else (404, ""),
    }
    with server_for(not_vllm.port) as server:
        assert server.observe(count_requests=True) == Observation(SLEEPING)
        assert server.count_requests() is None


def test_what_a_server_has_done_is_told_by_its_counters(standin: serverlib.Server) -> None:
    with server_for(standin.port) as server:
        before = server.counters()
        body = {"model": "m", "prompt": "one two three", "max_tokens": 5}
        usage = standin.call("POST", "/v1/completions", json=body).json()["usage"]
        after = server.counters()
    numbers = [before.requests, before.prompt_tokens, before.generation_tokens]
    added = [1, usage["prompt_tokens"], usage["completion_tokens"]]
    told = [after.requests, after.prompt_tokens, after.generation_tokens]
    assert told == [(number or 0) + more for number, more in zip(numbers, added, strict=True)]
    assert before.started == after.started
    assert abs((after.started or 0) - time.time()) < 3600


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", Counters()),
        ("vllm:prompt_tokens_total NaN\nprocess_start_time_seconds x\n", Counters()),
        (
            # The client library's series of when each began count nothing, nor do those with longer names.
            'vllm:prompt_tokens_total{engine="0",model_name="m"} 2.0\n'
            'vllm:prompt_tokens_total{engine="1",model_name="m"} 1.5e+06\n'
            'vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09\n'
            'vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 7.0\n'
            'vllm:generation_tokens_total{engine="0",model_name="m"} 4.0\n'
            'vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 3.0\n'
            'vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 1.0\n'
            "process_start_time_seconds 1.7e+09\n",
            Counters(4, 1_500_002, 4, 1.7e9),
        ),
    ],
)
def test_what_counters_tell(text: str, told: Counters) -> None:
    assert counters(text) == told


def test_who_has_no_metrics_has_no_counters(not_vllm: NotVllm) -> None:
    not_vllm.answers["/metrics"] = (404, "")
    with server_for(not_vllm.port) as server:
        assert server.counters() == Counters()


def test_requests_of_all_engines_are_added_up(not_vllm: NotVllm) -> None:
    not_vllm.answers["/metrics"] = (
        200,
        "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
        'vllm:num_requests_running{engine="0",model_name="m"} 2.0\n'
        'vllm:num_requests_running{engine="1",model_name="m"} 1e1\n'
        'vllm:num_requests_waiting{engine="0",model_name="m"} 3.0\n',
    )
    with server_for(not_vllm.port) as server:
        assert sum(server.count_requests() or ()) == 15


@pytest.mark.parametrize(
    ("gauges", "counted"),
    [
        ("running 1.2.3", None),
        ("running 1e999", None),
        ("running -1", None),
        ("running -", None),
        ("running 2\nvllm:num_requests_waiting 1e999", None),
        ("running 2\nvllm:num_requests_waiting +Inf", None),
        # What one engine has is not all.
        ('running{engine="0"} 2\nvllm:num_requests_running{engine="1"} NaN', None),
        ("running 2.0", (2, 0)),
    ],
)
def test_gauges_that_are_no_numbers(not_vllm: NotVllm, gauges: str, counted: tuple[int, int] | None) -> None:
    not_vllm.answers["/metrics"] = (200, f"vllm:num_requests_{gauges}\n")
    with server_for(not_vllm.port) as server:
        assert server.count_requests() == counted


def sleep_gauge(engine: int, state: str) -> str:
    return "".join(
        f'vllm:engine_sleep_state{{engine="{engine}",model_name="m",sleep_state="{name}"}} {float(name == state)}\n'
        for name in ("awake", "weights_offloaded", "discard_all")
    )


@pytest.mark.parametrize(
    ("first", "second", "level", "doubtful"),
    [
        ("weights_offloaded", "weights_offloaded", 1, False),
        ("discard_all", "discard_all", 2, False),
        ("awake", "weights_offloaded", None, True),
        ("weights_offloaded", "awake", None, True),
        ("discard_all", "weights_offloaded", None, True),
    ],
)
def test_engines_that_sleep_otherwise_than_each_other(
    not_vllm: NotVllm, first: str, second: str, level: int | None, doubtful: bool
) -> None:
    not_vllm.answers = {
        "/v1/models": (200, '{"data": [{"id": "m"}]}'),
        "/is_sleeping": (200, '{"is_sleeping": true}'),
        "/metrics": (200, sleep_gauge(0, first) + sleep_gauge(1, second)),
    }
    with server_for(not_vllm.port) as server:
        seen = server.observe()
    assert (seen.state, seen.level, seen.doubtful) == (SLEEPING, level, doubtful)
    assert seen.problem == ("its engines do not sleep at the same level" if doubtful else "")


@pytest.mark.parametrize(
    ("version", "gauge", "level", "doubtful"),
    [
        # Awake and asleep at once: paused, or half awake; only from 0.31 on it is surely paused.
        ("0.33.0", "awake", 0, False),
        ("0.31.0", "awake", 0, False),
        ("0.30.1", "awake", 0, True),
        ("0.17.1", "awake", 0, True),
        ("0.12.0", "awake", 0, True),
        ("", "awake", 0, True),
        # Neither: paused at level 0, which before 0.17 was a sleep.
        ("0.33.0", "", 0, False),
        ("0.17.1", "", 0, False),
        ("0.16.0", "", None, False),
        ("", "", 0, False),
        ("0.17.1", "weights_offloaded", 1, False),
    ],
)
def test_a_gauge_that_does_not_say_asleep(
    not_vllm: NotVllm, version: str, gauge: str, level: int | None, doubtful: bool
) -> None:
    not_vllm.answers = {
        "/v1/models": (200, '{"data": [{"id": "m"}]}'),
        "/is_sleeping": (200, '{"is_sleeping": true}'),
        "/version": (200, json.dumps({"version": version})),
        "/metrics": (200, sleep_gauge(0, gauge)),
    }
    with server_for(not_vllm.port) as server:
        seen = server.observe()
    assert (seen.state, seen.level, seen.doubtful, bool(seen.problem)) == (SLEEPING, level, doubtful, doubtful)
    # It has given its memory back where that is known, and only there.
    assert seen.asleep is (level != 0)


DEEP = "[" * 200_000
HELL = [
    DEEP,
    '{"data": ' * 100_000,
    "1e999",
    "-1e999",
    "NaN",
    "9" * 5000,
    '"\\ud800"',
    '{"data": [{"id": "\\ud800\\u001b[2J\\nm"}], "is_sleeping": 1e999, "choices": 1e999, "version": "1.2.3.4"}',
    '{"data": [{"id": "m"}], "is_sleeping": true, "choices": [{"text": "\\ud800"}], "version": "%s.17"}' % ("9" * 5000),
    '{"data": [{"id": "m"}], "is_sleeping": false, "choices": [{"text": %s}], "version": 1e999}' % DEEP,
    "vllm:num_requests_running 1e999\nvllm:num_requests_waiting 1.2.3\nprocess_start_time_seconds 1e999\n",
    "vllm:num_requests_running --\nvllm:engine_sleep_state 1.2.3\nprocess_start_time_seconds 1.2.3\n",
    "vllm:num_requests_running{\nvllm:engine_sleep_state{} e\nprocess_start_time_seconds{ eeee\n",
    "\x00\x1b[2J\ufffe",
]


@pytest.mark.parametrize("number", range(len(HELL)))
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/is_sleeping", "/metrics", "/version", "/v1/completions"])
def test_whatever_is_answered_only_a_server_error_comes_of_it(not_vllm: NotVllm, path: str, number: int) -> None:
    not_vllm.answers = {
        "/v1/models": (200, '{"data": [{"id": "m"}]}'),
        "/is_sleeping": (200, '{"is_sleeping": true}'),
        "/version": (200, '{"version": "0.32.0"}'),
        "/v1/completions": (200, '{"choices": [{"text": " Hi"}]}'),
        path: (200, HELL[number]),
    }
    with server_for(not_vllm.port) as server:
        for call in (
            server.is_healthy,
            server.is_sleeping,
            server.count_requests,
            server.can_drain,
            server.canary,
            lambda: server.sleep(1),
            lambda: server.wake(None),
        ):
            try:
                said = str(call())
            except ServerError as error:
                said = str(error)
            # It can be printed, stored, and does not move the cursor.
            assert said.encode().decode().isprintable()
        seen = server.observe(count_requests=True)
        assert json.loads(json.dumps(summary(seen), allow_nan=False))["problem" if seen.problem else "state"]
        assert seen.problem.encode().decode().isprintable()
        assert all(count is None or count >= 0 for count in (seen.running, seen.waiting))


def test_running_requests_are_counted() -> None:
    body = {"model": "m", "prompt": "x", "max_tokens": 400, "stream": True}
    # Nested, since ansible-test compiles this file with Python 3.8 too.
    with serverlib.start_standin("org/m", names=["m"], tokens_per_second=20) as running:
        asked = requests.post(running.url + "/v1/completions", json=body, stream=True, timeout=30)
        with asked, server_for(running.port) as server:
            wait_for(lambda: server.count_requests() == (1, 0))
            assert server.observe(count_requests=True).running == 1


# ---- sleep and wake ---------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("mode", ["wait", "abort", "keep"])
def test_level_and_mode_are_in_the_query(standin: serverlib.Server, server: Server, level: int, mode: str) -> None:
    mark = standin.mark()
    server.sleep(level, mode)
    assert standin.accesses("POST", mark) == [f"POST /sleep?level={level}&mode={mode}"]
    assert server.observe().level == level


@pytest.mark.parametrize(
    ("slept", "told", "calls"),
    [
        (0, 0, ["POST /wake_up"]),
        (1, 1, ["POST /wake_up"]),
        (2, 2, RELOADING_WAKE),
        (1, None, RELOADING_WAKE),
        (2, None, RELOADING_WAKE),
    ],
)
def test_the_wake_that_a_level_needs(
    standin: serverlib.Server, server: Server, slept: int, told: int | None, calls: list[str]
) -> None:
    answer = server.prove().text
    standin.call("POST", f"/sleep?level={slept}")
    mark = standin.mark()
    server.wake(told)
    assert standin.accesses("POST", mark) == calls
    assert server.observe() == Observation(ACTIVE)
    assert standin.call("GET", "/standin/state").json()["weights_right"] is True
    assert server.prove().text == answer


def test_a_half_done_wake_from_level_2_is_finished(standin: serverlib.Server, server: Server) -> None:
    standin.call("POST", "/sleep?level=2")
    standin.call("POST", "/wake_up?tags=weights")
    server.wake(server.observe().level)
    assert server.observe() == Observation(ACTIVE)
    assert standin.call("GET", "/standin/state").json()["weights_right"] is True


@pytest.mark.parametrize("level", [1, 2])
def test_an_old_server_sleeps_and_wakes(old_standin: serverlib.Server, level: int) -> None:
    with server_for(old_standin.port) as server:
        server.sleep(level)
        wait_for(server.is_sleeping)
        mark = old_standin.mark()
        server.wake(server.observe().level)
        wait_for(lambda: not server.is_sleeping())
        assert old_standin.accesses("POST", mark) == RELOADING_WAKE
        assert old_standin.call("GET", "/standin/state").json()["weights_right"] is True


def test_a_refused_call_ends_the_wake(standin: serverlib.Server, server: Server) -> None:
    standin.call("POST", "/sleep?level=2")
    standin.fault("/collective_rpc", "status_500")
    mark = standin.mark()
    with pytest.raises(Refused) as caught:
        server.wake(2)
    assert caught.value.status == 500
    assert str(caught.value).startswith(f"m: POST {standin.url}/collective_rpc: answered 500: ")
    assert "Call to the engine failed" in str(caught.value)
    assert standin.accesses("POST", mark) == RELOADING_WAKE[:2]


def test_a_prefix_cache_that_is_held_is_reset_again(not_vllm: NotVllm) -> None:
    not_vllm.answers["/reset_prefix_cache"] = (200, '{"success": false}')
    with server_for(not_vllm.port) as server:
        server.wake(2)
    assert [path for _method, path, _body in not_vllm.requests].count("/reset_prefix_cache") > 1


def test_sleep_without_dev_mode_is_refused(without_dev_mode: serverlib.Server) -> None:
    with server_for(without_dev_mode.port) as server, pytest.raises(Refused, match=r"/sleep.*: answered 404"):
        server.sleep(1)


# ---- custom requests --------------------------------------------------------------------------


def test_custom_requests_are_made_in_order_as_declared(not_vllm: NotVllm) -> None:
    sleep_requests = [
        {"endpoint": "/engines/${id}/pause", "method": "put", "body": {"level": "${level}", "why": ["a ${level}"]}},
        {"endpoint": "/unload?depth=${level}", "method": "DELETE"},
    ]
    wake_requests = [{"endpoint": "/load", "body": "port=${port}"}, {"endpoint": "/warm", "method": "GET"}]
    with server_for(not_vllm.port, sleep_requests=sleep_requests, wake_requests=wake_requests) as server:
        server.sleep(2)
        server.wake(None)
    (put, *others) = not_vllm.requests
    assert put[:2] == ("PUT", "/engines/m/pause")
    assert json.loads(put[2]) == {"level": "2", "why": ["a 2"]}
    assert others == [("DELETE", "/unload?depth=2", ""), ("POST", "/load", "port=8000"), ("GET", "/warm", "")]


def test_an_answer_that_is_not_200_ends_custom_requests(not_vllm: NotVllm) -> None:
    calls = [{"endpoint": "/one"}, {"endpoint": "/two"}, {"endpoint": "/three"}]
    not_vllm.answers["/two"] = (202, "later")
    with server_for(not_vllm.port, sleep_requests=calls, wake_requests=calls) as server:
        kind, text = raised(lambda: server.sleep(1))
    assert kind is Refused
    assert text == f"m: POST http://127.0.0.1:{not_vllm.port}/two: answered 202: later"
    assert [path for _method, path, _body in not_vllm.requests] == ["/one", "/two"]


def test_a_custom_request_has_its_own_timeout(not_vllm: NotVllm) -> None:
    calls = [{"endpoint": "/slow", "timeout": 0.2}]
    not_vllm.seconds["/slow"] = 20.0
    with server_for(not_vllm.port, sleep_requests=calls, wake_requests=calls) as server:
        started = time.monotonic()
        kind, text = raised(lambda: server.wake(1))
        assert time.monotonic() - started < 15
    assert kind is Unresponsive
    assert text == f"m: POST http://127.0.0.1:{not_vllm.port}/slow: no answer within 0.2 s"


@pytest.mark.parametrize(("body", "asleep"), [('{"state": "resting"}', True), ('{"state": "up"}', False)])
def test_a_state_request_tells_whether_it_sleeps(not_vllm: NotVllm, body: str, asleep: bool) -> None:
    not_vllm.answers["/state?of=m"] = (200, body)
    state_request = {"endpoint": "/state?of=${id}", "method": "POST", "body": {"q": 1}, "sleeping": '"rest(ing)?"'}
    with server_for(not_vllm.port, state_request=state_request) as server:
        assert server.is_sleeping() is asleep
    assert not_vllm.requests == [("POST", "/state?of=m", '{"q": 1}')]


def test_a_server_that_is_not_vllm_is_observed_by_its_state_request(not_vllm: NotVllm) -> None:
    not_vllm.answers = {
        "/v1/models": (200, '{"data": [{"id": "m"}]}'),
        "/is_sleeping": (404, ""),
        "/metrics": (404, ""),
        "/state": (200, "resting"),
    }
    with server_for(not_vllm.port, state_request={"endpoint": "/state", "sleeping": "resting"}) as server:
        assert server.observe() == Observation(SLEEPING)
        not_vllm.answers["/state"] = (200, "up")
        assert server.observe() == Observation(ACTIVE)


# ---- completion -------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "used"), [(["m", "org/m"], "m"), (["big", "alias"], "alias"), (["org/m"], "org/m")])
def test_a_completion_uses_the_name_that_the_server_gives(not_vllm: NotVllm, names: list[str], used: str) -> None:
    not_vllm.answers = {
        "/v1/models": (200, json.dumps({"data": [{"id": name} for name in names]})),
        "/v1/completions": (200, '{"choices": [{"text": " Hi"}]}'),
    }
    with server_for(not_vllm.port, aliases=["alias"]) as server:
        assert server.prove().text == " Hi"
    body = json.loads(not_vllm.requests[-1][2])
    assert (body["model"], body["max_tokens"], body["temperature"]) == (used, 1, 0)


def test_a_completion_of_a_real_answer(server: Server) -> None:
    assert server.prove().text.strip()


@pytest.mark.parametrize("body", ["{}", '{"choices": []}', '{"choices": ["x"]}', '{"choices": {"0": 1}}', "[1]", "Hi"])
def test_a_completion_that_is_none(not_vllm: NotVllm, body: str) -> None:
    not_vllm.answers = {"/v1/models": (200, '{"data": [{"id": "m"}]}'), "/v1/completions": (200, body)}
    with server_for(not_vllm.port) as server:
        kind, text = raised(server.prove)
    assert kind is BadAnswer
    assert text.startswith(f"m: POST http://127.0.0.1:{not_vllm.port}/v1/completions: not a vLLM answer")


# ---- connections ------------------------------------------------------------------------------


def test_many_calls_use_one_connection(standin: serverlib.Server, server: Server) -> None:
    mark = standin.mark()
    for _round in range(3):
        server.observe(count_requests=True)
        server.sleep(2)
        server.wake(2)
        server.prove()
    text = standin.text()[mark:]
    calls = len(re.findall(r'^INFO: .* "(?:GET|POST) ', text, re.MULTILINE))
    assert calls == 3 * (4 + 1 + 4 + 1) + 1, "and its version once"
    assert len(set(re.findall(r"^INFO: +127\.0\.0\.1:(\d+) - ", text, re.MULTILINE))) == 1


def test_a_connection_that_was_idle_is_not_used_again(
    standin: serverlib.Server, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may be about to close it: what is asked then has no answer."""
    monkeypatch.setattr(http_connection, "_IDLE_SECONDS", 1.0)
    mark = standin.mark()
    for _each in range(2):
        server.wake(2)
        time.sleep(1.2)
    peers = re.findall(r'^INFO: +127\.0\.0\.1:(\d+) - "POST /wake_up', standin.text()[mark:], re.MULTILINE)
    assert len(set(peers)) == 2


def test_a_server_that_was_restarted_is_reached_again() -> None:
    port = serverlib.free_port()
    with server_for(port) as server:
        for _start in range(2):
            with serverlib.start_standin("org/m", names=["m"], port=port):
                assert server.observe() == Observation(ACTIVE)
            assert server.observe() == Observation(STOPPED)


def test_proxies_and_netrc_of_the_environment_are_ignored(
    standin: serverlib.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    nowhere = f"http://127.0.0.1:{serverlib.free_port()}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, nowhere)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with server_for(standin.port) as server:
        assert server.observe() == Observation(ACTIVE)
        assert server.prove().text


def test_the_connect_timeout_is_its_own() -> None:
    with socket.socket() as listening, contextlib.ExitStack() as clients:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        for _client in range(4):  # fill the queue of what nobody accepts
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        with server_for(port, {"connect_timeout_seconds": 0.2, "probe_timeout_seconds": 60}) as server:
            started = time.monotonic()
            seen = server.observe()
            assert time.monotonic() - started < 30
    assert seen == Observation(
        ERROR, problem=f"m: GET http://127.0.0.1:{port}/health: no connection within 0.2 s", unknown=True
    )


def test_the_request_timeout_is_its_own(standin: serverlib.Server) -> None:
    with server_for(standin.port, {"connect_timeout_seconds": 0.1, "request_timeout_seconds": 5}) as server:
        standin.fault("/sleep", "hang", seconds=0.5)
        server.sleep(1)
    with server_for(standin.port, {"connect_timeout_seconds": 5, "request_timeout_seconds": 0.2}) as server:
        standin.fault("/wake_up", "hang", seconds=1)
        kind, text = raised(lambda: server.wake(1))
    assert kind is Unresponsive
    assert text == f"m: POST {standin.url}/wake_up: no answer within 0.2 s"
    standin.call("POST", "/wake_up")
