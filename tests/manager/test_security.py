# SPDX-License-Identifier: MIT
"""Who may ask the manager for what: the guard before an application that tells what has reached it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from model_manager.config import ConfigError
from model_manager.security import Guard, Rates, Tokens

OPERATOR = "o" * 32
READER = "r" * 32


class Application:
    """An ASGI application that answers with the body it was given, and remembers what reached it."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.reached.append(f"{scope['method']} {scope['path']}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def application() -> Application:
    return Application()


def _tokens(tmp_path: Path, text: str, mode: int = 0o600) -> Tokens:
    path = tmp_path / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return Tokens.read(str(path))


def _both(tmp_path: Path) -> Tokens:
    return _tokens(tmp_path, f"# who may what\noperator {OPERATOR}\n\nreader {READER}\n")


def _ask(
    application: Application,
    tokens: Tokens,
    method: str = "POST",
    *,
    client: str = "127.0.0.1",
    base_url: str = "http://127.0.0.1:9000",
    rates: Rates | None = None,
    times: int = 1,
    public: Sequence[str] = (),
    **options: Any,
) -> httpx.Response:
    limits: dict[str, Any] = {"max_body_bytes": 100, "rates": rates or Rates(1000.0)}
    guard = Guard(application, tokens=tokens, hosts=["gpu.example"], public=public, **limits)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(guard, client=(client, 1234))
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as http:
            for _again in range(times - 1):
                await http.request(method, "/switch", **options)
            return await http.request(method, "/switch", **options)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("token", "method", "status"),
    [
        (OPERATOR, "POST", 200),
        (OPERATOR, "GET", 200),
        (READER, "GET", 200),
        (READER, "HEAD", 200),
        (READER, "POST", 403),
        (READER, "DELETE", 403),
        ("wrong" * 8, "GET", 401),
        (OPERATOR[:-1], "POST", 401),
        ("", "GET", 401),
    ],
)
def test_what_a_token_allows(application: Application, tmp_path: Path, token: str, method: str, status: int) -> None:
    answer = _ask(application, _both(tmp_path), method, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == status
    assert bool(application.reached) == (status == 200)
    if status == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert OPERATOR not in answer.text and READER not in answer.text


def test_loopback_needs_a_token_where_there_are_tokens(application: Application, tmp_path: Path) -> None:
    assert _ask(application, _both(tmp_path), "GET").status_code == 401
    basic = {"Authorization": f"Basic {OPERATOR}"}
    assert _ask(application, _both(tmp_path), "GET", headers=basic).status_code == 401


@pytest.mark.parametrize(
    ("client", "method", "status"),
    [
        ("127.0.0.1", "POST", 200),
        ("::1", "POST", 200),
        ("::ffff:127.0.0.1", "POST", 200),
        ("192.0.2.7", "GET", 200),
        ("192.0.2.7", "POST", 403),
        ("2001:db8::7", "POST", 403),
        ("", "POST", 403),
    ],
)
def test_without_tokens_only_loopback_may_write(
    application: Application, client: str, method: str, status: int
) -> None:
    assert _ask(application, Tokens(), method, client=client).status_code == status


def test_a_proxy_on_this_host_is_not_taken_for_a_program_of_it(application: Application) -> None:
    answer = _ask(application, Tokens(), headers={"X-Forwarded-For": "192.0.2.7"})
    assert (answer.status_code, application.reached) == (403, [])
    # Many a proxy adds a header of its own to what a client has sent, which may be an empty one.
    for name in ("Forwarded", "Via", "X-Forwarded-For", "X-Real-IP"):
        answer = _ask(application, Tokens(), headers=[(name, ""), (name, "192.0.2.7")])
        assert (answer.status_code, application.reached) == (403, []), name


@pytest.mark.parametrize(
    ("base_url", "status"),
    [
        ("http://127.0.0.1:9000", 200),
        ("http://localhost:9000", 200),
        ("http://LOCALHOST.:9000", 200),
        ("http://[::1]:9000", 200),
        ("http://192.0.2.1", 200),
        ("http://gpu.example", 200),
        ("http://evil.example:9000", 403),
        ("http://127.0.0.1.evil.example", 403),
    ],
)
def test_hosts_that_may_be_called(application: Application, base_url: str, status: int) -> None:
    for method in ("GET", "POST"):
        assert _ask(application, Tokens(), method, base_url=base_url).status_code == status


@pytest.mark.parametrize("host", ["", "[", "a b", "localhost@evil.example", "\xff"])
def test_a_host_that_is_no_host(application: Application, host: str) -> None:
    answer = _ask(application, Tokens(), headers={"Host": host.encode("latin-1")})
    assert (answer.status_code, application.reached) == (403, [])


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:9000", 200),
        ("https://127.0.0.1:9000", 200),
        ("http://127.0.0.1:8080", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_pages_of_other_sites_may_not_write(application: Application, origin: str, status: int) -> None:
    assert _ask(application, Tokens(), headers={"Origin": origin}).status_code == status


@pytest.mark.parametrize(
    ("site", "status"), [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)]
)
def test_a_browser_tells_whose_page_writes(application: Application, site: str, status: int) -> None:
    assert _ask(application, Tokens(), headers={"Sec-Fetch-Site": site}).status_code == status
    assert _ask(application, Tokens(), "GET", headers={"Sec-Fetch-Site": site}).status_code == 200


def test_a_public_path_may_be_read_without_a_token_and_not_written(application: Application, tmp_path: Path) -> None:
    slow = Rates(1.0, lambda: 0.0)
    statuses = [
        _ask(application, _both(tmp_path), "GET", public=["/switch"], rates=slow).status_code for _each in range(6)
    ]
    assert statuses == [200] * 5 + [429]
    # Nobody with a token waits for that.
    headers = {"Authorization": f"Bearer {OPERATOR}"}
    assert _ask(application, _both(tmp_path), public=["/switch"], rates=slow, headers=headers).status_code == 200
    assert _ask(application, _both(tmp_path), "POST", public=["/switch"]).status_code == 401
    assert _ask(application, _both(tmp_path), "GET", public=["/switch/"]).status_code == 401
    foreign = _ask(application, _both(tmp_path), "GET", public=["/switch"], base_url="http://evil.example")
    assert foreign.status_code == 403


def test_no_answer_lets_another_site_read_it(application: Application) -> None:
    answer = _ask(application, Tokens(), "GET", headers={"Origin": "https://evil.example"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_long_body_is_refused(application: Application) -> None:
    assert _ask(application, Tokens(), content=b"x" * 100).text == "x" * 100
    assert _ask(application, Tokens(), content=b"x" * 101).status_code == 413
    assert _ask(application, Tokens(), headers={"Content-Length": "9" * 5000}).status_code == 413

    async def chunks() -> Any:
        for _number in range(3):
            yield b"y" * 40

    assert _ask(application, Tokens(), content=chunks()).status_code == 413
    assert application.reached == ["POST /switch"]


def test_a_client_that_asks_too_often_waits() -> None:
    now = [0.0]
    rates = Rates(2.0, lambda: now[0])
    assert [rates.wait("a") for _number in range(10)] == [0.0] * 10
    assert rates.wait("a") == pytest.approx(0.5)
    assert rates.wait("b") == 0.0
    now[0] = 0.5
    assert rates.wait("a") == 0.0
    assert rates.wait("a") == pytest.approx(0.5)


def test_the_answer_to_who_asks_too_often(application: Application, tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {OPERATOR}"}
    slow = Rates(1.0, lambda: 0.0)
    answer = _ask(application, _both(tmp_path), rates=slow, times=6, headers=headers)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert json.loads(answer.text) == {"error": "too many requests: ask less often"}
    assert len(application.reached) == 5


def test_who_tries_tokens_is_slowed_down_and_keeps_nobody_waiting(application: Application, tmp_path: Path) -> None:
    tokens, slow = _both(tmp_path), Rates(1.0, lambda: 0.0)
    wrong, right = ({"Authorization": f"Bearer {token}"} for token in ("w" * 32, OPERATOR))
    assert _ask(application, tokens, rates=slow, times=5, headers=wrong).status_code == 401
    answer = _ask(application, tokens, rates=slow, headers=wrong)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert _ask(application, tokens, rates=slow, headers=right).status_code == 200


def test_forgotten_clients_take_no_memory() -> None:
    rates = Rates(1.0, lambda: 0.0)
    for number in range(10_000):
        rates.wait(str(number))
    assert len(rates._left) < 5000


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (f"operator {OPERATOR}\n", 0o640, "set its mode to 0600"),
        (f"admin {OPERATOR}\n", 0o600, "line 1 must be `operator TOKEN` or `reader TOKEN`"),
        (f"{OPERATOR}\n", 0o600, "line 1 must be"),
        ("reader short\n", 0o600, "fewer than 16 characters"),
        ("# nothing\n", 0o600, "it has no token"),
    ],
)
def test_a_file_of_tokens_that_can_not_be_used(tmp_path: Path, text: str, mode: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        _tokens(tmp_path, text, mode)
    assert OPERATOR not in str(caught.value)


def test_a_file_of_tokens_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        Tokens.read(str(tmp_path / "none"))
