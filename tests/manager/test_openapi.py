# SPDX-License-Identifier: MIT
"""What the service says of its API in OpenAPI is true: schemathesis asks the process whatever that allows, and more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS, load_all_checks

from tests.manager.conftest import Service
from tests.part import fewer
from tests.unit.plugins.module_utils.switching.conftest import Host

CASES = 2000
PATIENCE_SECONDS = 60
OPERATOR, READER, WRONG = "o" * 32, "r" * 32, "w" * 32
# Names that schemathesis would not find: of models, also a disabled one, and another of the first one's names.
NAMES = ("a", "b", "first", "c")
# What vLLM has no way for is described, and refused with the reason.
NO_WAY = ("cuda_suspend", "checkpoint")


@pytest.fixture
def serve(host: Host) -> Iterator[Callable[..., Service]]:
    """Starts the service of a host: `a` is active, `b` asleep, `c` disabled."""
    begun: list[Service] = []

    def start(**chosen: Any) -> Service:
        host.declare("a", aliases=["first"])
        host.declare("b")
        host.declare("c", startup_mode="disabled")
        host.up(a="active", b=1)
        begun.append(Service(host, reconcile=False, requests_per_second=1e6, **chosen))
        return begun[-1]

    yield start
    for service in begun:
        service.process.kill()
        service.process.wait()


def _operations(service: Service, mode: schemathesis.GenerationMode, **options: Any) -> Iterator[Any]:
    """Those of the description; of which something can be wrong, where wrong requests are wanted."""
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", **options)
    for result in schema.exclude(path="/events").get_all_operations():  # this one has no end
        operation: Any = result.ok()  # type: ignore[union-attr]
        takes = bool(operation.body or operation.query or operation.headers or operation.path_parameters)
        if takes or mode == schemathesis.GenerationMode.POSITIVE:
            yield operation


def _examples(count: int) -> settings:
    # A failure is told as it was: to look for a smaller one takes minutes here.
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def _with_name(case: Any, name: str) -> None:
    """Have the request be about a model that there is, if it is about any."""
    if isinstance(case.body, dict):
        case.body.update({key: name for key in ("model", "model_id") if key in case.body})
    if "model" in case.path_parameters:
        case.path_parameters["model"] = name


def _has_no_way(case: Any) -> bool:
    """Whether what is asked for is well described, and can't be done."""
    eviction = case.body.get("eviction") if isinstance(case.body, dict) else None
    if not eviction:
        return False
    stays = case.path == "/control/sleep" and eviction == {"weights": "retain", "process": "keep_running"}
    return eviction["process"] in NO_WAY or stays


def test_whatever_is_asked_the_answer_is_as_described(
    host: Host, serve: Callable[..., Service], capsys: pytest.CaptureFixture[str]
) -> None:
    service = serve()
    load_all_checks()
    (accepted,) = CHECKS.get_by_names(["positive_data_acceptance"])
    each = fewer("manager", "make manager", "cases of schemathesis", 85, 8)
    statuses: dict[int, int] = {}
    tried: dict[str, set[str]] = {}
    for mode in schemathesis.GenerationMode:
        for operation in _operations(service, mode):
            # Of these, all requests that are right are alike.
            plain = mode == schemathesis.GenerationMode.POSITIVE and not (operation.body or operation.path_parameters)

            @_examples(min(each, 20) if plain else each)
            @given(case=operation.as_strategy(generation_mode=mode), name=st.sampled_from(NAMES * 2 + (None,) * 8))
            def check(case: Any, name: str | None) -> None:
                excluded = []
                if name and mode == schemathesis.GenerationMode.POSITIVE:  # noqa: B023
                    _with_name(case, name)
                # schemathesis takes names out of answers, too.
                if mode == schemathesis.GenerationMode.POSITIVE and _has_no_way(case):  # noqa: B023
                    excluded = [accepted]
                answer = case.call_and_validate(excluded_checks=excluded, timeout=PATIENCE_SECONDS)
                if excluded:
                    assert answer.status_code in (404, 409, 422), answer.text
                # No server has failed, the queue is never full, and the service does not end.
                assert answer.status_code < 500, answer.text
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                tried.setdefault(mode.value, set()).add(case.operation.label)  # noqa: B023

            check()
    cases = sum(statuses.values())
    with capsys.disabled():
        print(f"\n{cases} cases of schemathesis, by their statuses: {dict(sorted(statuses.items()))}")
    assert len(tried["positive"]) >= 19 and len(tried["negative"]) >= 13
    # A part of the cases need not have a switch that nobody waits for.
    assert {200, 404, 409, 422} | ({202} if each > 8 else set()) <= set(statuses)
    assert cases >= (CASES if each > 8 else 150)
    assert "Traceback" not in service.log.read_text()
    # Models were really switched.
    assert any(event["event"] == "sleeping" for event in host.events()[host.events_before :])


def test_a_server_that_fails_is_told_as_described(host: Host, serve: Callable[..., Service]) -> None:
    host.settings["escalation"] = ["roll_back"]
    service = serve()
    seen: dict[str, set[int]] = {}
    for operation in _operations(service, schemathesis.GenerationMode.POSITIVE):
        if operation.label not in ("POST /switch", "POST /api/models/wake/{model}", "POST /control/switch"):
            continue
        # A server whose wake has failed is started anew for the next one, and then fails no more.
        asleep = requests.post(service.url + "/api/models/sleep/b", timeout=PATIENCE_SECONDS)
        assert asleep.status_code == 200, asleep.text
        host.fault("b", "/wake_up", "status_500", times=0)

        @_examples(1)
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            _with_name(case, "b")
            case.query = {"wait": True}
            answer = case.call(timeout=PATIENCE_SECONDS)
            (not_broken,) = CHECKS.get_by_names(["not_a_server_error"])
            case.validate_response(answer, excluded_checks=[not_broken])
            assert answer.json().get("error") and answer.json()["url"], answer.text
            seen.setdefault(case.operation.label, set()).add(answer.status_code)

        check()
    assert seen == {
        "POST /switch": {502},
        "POST /api/models/wake/{model}": {502},
        "POST /control/switch": {500},
    }


def test_with_a_wrong_token_nothing_is_answered_and_nothing_is_done(
    host: Host, serve: Callable[..., Service], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"operator {OPERATOR}\nreader {READER}\n")
    service = serve(tokens_file=str(tokens))
    right = {"Authorization": f"Bearer {OPERATOR}"}
    before = host.all_changing_calls()
    wrong = [f"Bearer {WRONG}", f"Bearer {OPERATOR}x", f"Basic {OPERATOR}", OPERATOR, "Bearer", ""]
    statuses: dict[int, int] = {}
    each = fewer("manager", "make manager", "cases of schemathesis with a wrong token", 20, 3)
    for mode in schemathesis.GenerationMode:
        for operation in _operations(service, mode, headers=right):

            @_examples(each)
            @given(case=operation.as_strategy(generation_mode=mode), name=st.sampled_from((*NAMES, None)))
            def check(case: Any, name: str | None) -> None:
                if name and mode == schemathesis.GenerationMode.POSITIVE:  # noqa: B023
                    _with_name(case, name)
                for given_token in [*wrong, *([f"Bearer {READER}"] if case.method == "POST" else [])]:
                    headers = {"Authorization": given_token}
                    answer = case.call(headers=headers, timeout=PATIENCE_SECONDS)
                    sent = answer.request.headers.get("Authorization")  # schemathesis leaves it out, too
                    assert answer.status_code == (403 if sent == f"Bearer {READER}" else 401), answer.text
                    assert list(answer.json()) == ["error"]
                    statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

            check()
    cases = sum(statuses.values())
    with capsys.disabled():
        print(f"\n{cases} cases with a wrong token, by their statuses: {dict(sorted(statuses.items()))}")
    assert set(statuses) == {401, 403} and cases >= 300
    answer = requests.get(service.url + "/switches", headers=right, timeout=PATIENCE_SECONDS)
    assert (answer.status_code, answer.json()["queue"], answer.json()["switches"]) == (200, [], [])
    assert host.all_changing_calls() == before
    assert OPERATOR not in service.log.read_text() and WRONG not in json.dumps(answer.json())
