# SPDX-License-Identifier: MIT
"""The event source of Event-Driven Ansible: it passes on every event once, and finds its way back after any loss.

The manager is a scripted one here, which can do what a real one does only in bad moments. tests/manager/test_eda.py has
the real one, and ansible-rulebook.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import runpy
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from tests.serverlib import ROOT

FILE = ROOT / "extensions/eda/plugins/event_source/manager_events.py"
PATIENCE_SECONDS = 20
SOURCE = runpy.run_path(str(FILE))  # as ansible-rulebook does

Event = dict[str, Any]


def model(name: str, state: str, **more: Any) -> Event:
    """A model as a snapshot has it."""
    given = {"id": name, "state": state, "level": None, "problem": "", "desired": "active", "down": False}
    return {**given, "breaker": None, "host_port": 8001, **more}


def snapshot(number: int, *models: Event, queue: list[Event] | None = None) -> Event:
    data = {"models": list(models), "queue": queue or [], "mode": "auto", "pinned": None}
    return {"id": number, "kind": "snapshot", "at": 1.0, "data": data}


def state(number: int, name: str, what: str, **more: Any) -> Event:
    data = {"model": name, "state": what, "level": None, "problem": "", "desired": "active", "down": False}
    return {"id": number, "kind": "state", "at": 2.0, "data": {**data, "before": None, **more}}


class Manager:
    """A manager that follows a script: for each connection a status, or the events to send before it is closed.

    `None` in the events keeps the connection open. After the script, every connection stays open and silent.
    """

    def __init__(self, *script: int | list[Event | None]) -> None:
        self.script = list(script)
        self.asked: list[dict[str, str]] = []
        self.url = ""

    async def events(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.headers))
        step = self.script.pop(0) if self.script else [None]
        if isinstance(step, int):
            return web.json_response({"error": "no"}, status=step)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b": alive\n\n")
        for event in step:
            if event is None:
                await self.ending.wait()
            elif "raw" in event:
                await answer.write(event["raw"])
            else:
                frame = f"id: {event['id']}\nevent: {event['kind']}\ndata: {json.dumps(event)}\n\n"
                await answer.write(frame.encode())
        return answer

    async def start(self, port: int = 0, trust: ssl.SSLContext | None = None) -> None:
        """Have it listen."""
        self.ending = asyncio.Event()
        app = web.Application()
        app.router.add_get("/events", self.events)
        self.runner = web.AppRunner(app, shutdown_timeout=0)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port, ssl_context=trust).start()
        self.port = self.runner.addresses[0][1]
        self.url = f"http{'s' if trust else ''}://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """It listens no more, and closes its connections."""
        self.ending.set()
        await self.runner.cleanup()

    @contextlib.asynccontextmanager
    async def serve(self, trust: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        """Have it listen for as long as the test needs it."""
        await self.start(trust=trust)
        try:
            yield
        finally:
            await self.stop()


Next = Callable[[], Awaitable[Event]]


@contextlib.asynccontextmanager
async def source(**args: Any) -> AsyncIterator[Next]:
    """The source with these arguments; yields what returns the next event."""
    queue: asyncio.Queue[Event] = asyncio.Queue(1)  # as ansible-rulebook has it
    task = asyncio.ensure_future(SOURCE["main"](queue, {"max_delay_seconds": 0.2, **args}))

    async def following() -> Event:
        get = asyncio.ensure_future(queue.get())
        done, _rest = await asyncio.wait({get, task}, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        assert get in done, task.exception() if task in done else "no event came"
        return get.result()

    try:
        yield following
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def told(event: Event) -> tuple[str, Any]:
    """The kind of an event, and what of its data tells it from others."""
    data = event["data"]
    if event["kind"] == "state":
        return "state", (data["model"], data["state"])
    return event["kind"], data.get("up", data.get("length", data.get("mode", data)))


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 3 * PATIENCE_SECONDS))


FIRST = [("connection", True), ("state", ("a", "ready")), ("state", ("b", "asleep")), ("queue", 0), ("mode", "auto")]


def test_it_resumes_after_the_last_event_that_it_had() -> None:
    manager = Manager(
        [snapshot(10, model("a", "ready"), model("b", "asleep")), state(11, "a", "sleepPending")],
        [],  # closed at once
        503,
        [state(12, "a", "asleep"), None],
    )

    async def test() -> None:
        async with manager.serve(), source(url=manager.url, host="gpu1") as following:
            found = [await following() for _each in range(7)]
        assert list(map(told, found)) == [*FIRST, ("state", ("a", "sleepPending")), ("state", ("a", "asleep"))]
        assert {json.dumps(event["manager"]) for event in found} == {json.dumps({"host": "gpu1", "url": manager.url})}
        assert [event.get("at") for event in found] == [None, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0]
        assert [asked.get("Last-Event-ID") for asked in manager.asked] == [None, "11", "11", "11"]
        assert "Authorization" not in manager.asked[0]

    run(test())


def test_after_events_were_missed_it_tells_what_has_changed_and_nothing_else() -> None:
    lost = {"id": 20, "kind": "lost", "at": 3.0, "data": {"events": -1}}
    waiting = {"id": "x", "model": "b", "desired": "active", "position": 1, "eta_seconds": 2.0, "waiters": 1}
    open_ = {"state": "open", "failures": 3, "reason": "it broke", "retry_at": 9.0}
    manager = Manager(
        [snapshot(10, model("a", "ready"), model("b", "asleep"))],
        [lost, state(21, "a", "never told")],
        [snapshot(30, model("a", "error", down=True, breaker=open_), model("b", "asleep"), queue=[waiting]), None],
    )

    async def test() -> None:
        async with manager.serve(), source(url=manager.url) as following:
            found = [await following() for _each in range(9)]
        assert list(map(told, found[:5])) == FIRST
        assert found[0]["manager"]["host"] == "127.0.0.1"
        kinds = [event["kind"] for event in found[5:]]
        assert kinds == ["lost", "state", "breaker", "queue"]
        assert found[6]["data"] == {**state(0, "a", "error", down=True)["data"]}
        assert found[7]["data"] == {"model": "a", **open_}
        assert found[8]["data"] == {"queue": [waiting], "length": 1}
        assert [asked.get("Last-Event-ID") for asked in manager.asked] == [None, "10", None]

    run(test())


def test_only_the_kinds_that_are_asked_for_are_passed_on() -> None:
    manager = Manager([snapshot(1, model("a", "ready")), state(2, "a", "stopped", down=True), None])

    async def test() -> None:
        async with manager.serve(), source(url=manager.url, kinds=["state"]) as following:
            assert [told(await following())[1] for _each in range(2)] == [("a", "ready"), ("a", "stopped")]

    run(test())


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_is_set_up_wrongly_is_told_at_once_and_tried_again(status: int, tmp_path: Path) -> None:
    manager = Manager(status, status, [snapshot(1), None])
    secret = tmp_path / "token"
    secret.write_text("operator operator-0123456789\n# mine\nreader wrong-0123456789\n", encoding="utf-8")

    async def test() -> None:
        async with manager.serve(), source(url=manager.url, token_file=str(secret)) as following:
            event = await following()
            assert told(event) == ("connection", False)
            assert f"it answers {status}" in event["data"]["problem"]
            secret.write_text("right-0123456789\n", encoding="utf-8")  # it is read again
            assert told(await following()) == ("connection", True)
        given = [asked["Authorization"] for asked in manager.asked]
        assert (given[0], given[-1]) == ("Bearer wrong-0123456789", "Bearer right-0123456789")

    run(test())


def test_of_several_managers_one_that_is_down_is_told_once_and_stops_no_other() -> None:
    weak, strong = Manager([snapshot(1, model("a", "ready")), None]), Manager([snapshot(5, model("c", "ready"))])

    async def test() -> None:
        async with weak.serve(), strong.serve():
            managers = [{"url": weak.url, "host": "weak"}, {"url": strong.url, "host": "strong"}]
            async with source(managers=managers, kinds=["connection", "state"], down_seconds=0.5) as following:
                found = [await following() for _each in range(4)]
                assert sorted((event["manager"]["host"], *told(event)) for event in found) == [
                    ("strong", "connection", True),
                    ("strong", "state", ("c", "ready")),
                    ("weak", "connection", True),
                    ("weak", "state", ("a", "ready")),
                ]
                await weak.stop()
                event = await following()
                assert (event["manager"]["host"], told(event)) == ("weak", ("connection", False))
                assert event["data"]["problem"]
                await asyncio.sleep(1)  # it is not told again
                strong.script = [[state(6, "c", "asleep"), None]]
                await strong.stop()
                await strong.start(strong.port)  # too soon to be told
                event = await following()
                assert (event["manager"]["host"], told(event)) == ("strong", ("state", ("c", "asleep")))
                await weak.start(weak.port)
                event = await following()
                assert (event["manager"]["host"], told(event)) == ("weak", ("connection", True))

    run(test())


@pytest.mark.parametrize(
    "raw",
    [b"data: {\n\n", b"data: 7\n\n", b'data: {"id": 1, "kind": "state"}\n\n', b"data: \xff\n\n", b"x" * 9_000_000],
)
def test_what_is_no_event_does_not_end_it(raw: bytes) -> None:
    manager = Manager([{"raw": raw}], [snapshot(1, model("a", "ready")), None])

    async def test() -> None:
        async with manager.serve(), source(url=manager.url, kinds=["state"]) as following:
            assert told(await following()) == ("state", ("a", "ready"))
        assert len(manager.asked) == 2

    run(test())


def test_no_text_of_a_host_is_a_template_for_the_playbook_that_gets_it() -> None:
    evil = "{{ lookup('pipe', 'id') }} {{{% if 1 %}{# x #}"
    raw = json.dumps(state(2, evil, "error", problem=evil, more=[{evil: evil}])).replace("{{", "\\u007b\\u007b")
    assert "\\u007b" in raw
    manager = Manager([snapshot(1), {"raw": f"data: {raw}\n\n".encode()}, None])

    async def test() -> None:
        async with manager.serve(), source(url=manager.url, kinds=["state"]) as following:
            event = await following()
            text = json.dumps(event)
            assert "lookup" in text and not re.search(r"\{[{%#]", text)
            assert event["data"]["problem"] == "{ { lookup('pipe', 'id') }} { { { % if 1 %}{ # x #}"

    run(test())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody else trusts, with its key."""
    file = tmp_path_factory.mktemp("tls") / "manager.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=manager", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-keyout", str(file)]
    made = subprocess.run([*command, "-out", "/dev/stdout"], capture_output=True, text=True, check=True)
    file.write_text(file.read_text(encoding="utf-8") + made.stdout, encoding="utf-8")
    return file


def test_with_https_only_a_certificate_of_the_given_authority_is_trusted(certificate: Path) -> None:
    manager = Manager([snapshot(1, model("a", "ready")), None])
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(certificate)

    async def test() -> None:
        async with manager.serve(trust=trust):
            async with source(url=manager.url, down_seconds=0.1, kinds=["connection"]) as following:
                event = await following()
                assert told(event) == ("connection", False)
                assert "certificate" in event["data"]["problem"].lower()
            assert manager.asked == []
            async with source(url=manager.url, ca=str(certificate), kinds=["state"]) as following:
                assert told(await following()) == ("state", ("a", "ready"))

    run(test())


def test_files_that_can_not_be_read_are_told_with_their_option(tmp_path: Path) -> None:
    async def test(**args: Any) -> None:
        async with source(url="https://127.0.0.1:1", down_seconds=0.1, **args) as following:
            problem = (await following())["data"]["problem"]
        option = next(iter(args))
        assert problem.startswith(f"{option} {args[option]} ")

    run(test(ca=str(tmp_path / "none.pem")))
    run(test(token_file=str(tmp_path / "none")))
    (tmp_path / "empty").write_text("# nothing\n", encoding="utf-8")
    run(test(token_file=str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("args", "mistake"),
    [
        ({}, "managers is missing: list the managers, each with its url"),
        ({"managers": "gpu1"}, "managers must be a list of dictionaries"),
        ({"managers": [{"url": "gpu1:9000"}]}, "managers[0].url must be the URL of a manager: write it as http://"),
        ({"managers": [{"url": "http://a"}, {"url": "http://b:x"}]}, "managers[1].url must be the URL"),
        ({"managers": [{"uri": "http://a"}]}, "managers[0].uri is unknown; did you mean url?"),
        ({"managers": [{"xyz": 1}]}, "managers[0].xyz is unknown: use some of url, host, token, token_file, ca"),
        (
            {"url": "http://a", "xyz": 1},
            "xyz is unknown: use some of managers, url, host, token, token_file, ca, kinds, ",
        ),
        ({"url": "http://a:1", "managers": [{"url": "http://a:2"}]}, "two have the same host"),
        ({"host": "gpu1"}, "host goes with url"),
        ({"url": "http://a", "kind": ["state"]}, "kind is unknown; did you mean kinds?"),
        ({"url": "http://a", "kinds": ["states"]}, "kinds: states is unknown; did you mean state?"),
        ({"url": "http://a", "kinds": "state"}, "kinds must be a list of kinds of events"),
        ({"url": "http://a", "down_seconds": 0}, "down_seconds must be a number above 0, is 0"),
        ({"url": "http://a", "max_delay_seconds": True}, "max_delay_seconds must be a number above 0"),
        ({"url": "http://a", "token": 1}, "managers[0].token must be a text: put it in quotes"),
        ({"url": "http://a", "token": "x", "token_file": "y"}, "token and token_file exclude each other"),
    ],
)
def test_wrong_arguments_end_it_with_what_to_do(args: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValueError, match=re.escape(mistake)):
        asyncio.run(asyncio.wait_for(SOURCE["main"](asyncio.Queue(), args), PATIENCE_SECONDS))


def test_all_mistakes_are_told_and_no_token() -> None:
    with pytest.raises(ValueError, match="down_seconds") as caught:
        SOURCE["parse"]({"url": "x", "token": "very-secret", "token_file": "y", "down_seconds": -1})
    assert "exclude each other" in str(caught.value)
    assert "url must be" in str(caught.value)
    assert "very-secret" not in str(caught.value)


def test_a_manager_may_have_a_token_of_its_own() -> None:
    managers = [{"url": "http://a/"}, {"url": "http://b", "token": "own", "host": "gpu2"}]
    found, _kinds = SOURCE["parse"]({"managers": managers, "token_file": "/shared", "ca": "/ca", "token": None})
    times = {"down_seconds": 30.0, "max_delay_seconds": 30.0}
    assert found == [
        {"url": "http://a", "host": "a", "token_file": "/shared", "ca": "/ca", **times},
        {"url": "http://b", "host": "gpu2", "token": "own", "ca": "/ca", **times},
    ]


def test_its_documentation_has_its_arguments_and_kinds() -> None:
    documentation = yaml.safe_load(SOURCE["DOCUMENTATION"])
    assert tuple(documentation["options"]) == SOURCE["_OPTIONS"]
    example = yaml.safe_load(SOURCE["EXAMPLES"])[0]
    found, kinds = SOURCE["parse"](example["homegpt.vllm.manager_events"])
    assert [one["host"] for one in found] == ["gpu1", "gpu2"]
    assert kinds == ["state", "breaker"]
    for name, option in documentation["options"].items():
        if "default" in option:
            assert found[0][name] == option["default"]
    # What the manager publishes, as events.py of the service describes it.
    text = (ROOT / "roles/model_manager/files/model_manager/events.py").read_text(encoding="utf-8")
    published = {line.split("`")[1] for line in text.split('"""')[1].splitlines() if line.startswith("- `")}
    published |= {"switch_begun", "switch_ended", "step_ended"}
    assert set(SOURCE["_KINDS"]) == published | {"connection"}
