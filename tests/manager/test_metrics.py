# SPDX-License-Identifier: MIT
"""What Prometheus is told: of switches by the manager's events, of the host by its view, of nothing that is unknown."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from model_manager import view as states
from model_manager.events import Event
from model_manager.metrics import Metrics
from model_manager.usage import Use
from model_manager.view import ModelView, TicketView, View
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.manager.prometheus import DASHBOARD, RULES, alerts, panels

NOW = 1_800_000_000.0
LEAK = {"sleeps": 12, "held_gb": 1.5, "gb_per_sleep": 0.1, "switches_left": 7}
IDLE = ModelView(
    id="a",
    name="A",
    description="",
    container_name="vllm-a",
    port=8000,
    host_port=8001,
    gpu_memory_gb=20.0,
    startup_mode="sleep",
    state=states.ASLEEP,
    level=1,
    problem="",
    note="",
    unknown=False,
    desired="sleeping",
    last_active=None,
    active_seconds=None,
    in_flight=None,
    idle_seconds=None,
    queue_depth=0,
    eta_seconds=None,
    breaker=None,
    eviction={"weights": "offload", "process": "keep_running"},
    gpu_memory_held_gb=None,
    leak=None,
)
BUSY = dataclasses.replace(
    IDLE,
    id="b",
    state=states.ERROR,
    level=2,
    last_active=NOW - 60,
    in_flight=3,
    queue_depth=2,
    eta_seconds=4.5,
    breaker={"state": "open", "failures": 3, "retry_at": NOW + 300},
    gpu_memory_held_gb=20.0,
    leak=LEAK,
)
WAITING = TicketView(
    id="1",
    model="b",
    desired="active",
    level=None,
    by="test",
    status="queued",
    asked_at=NOW - 400,
    begun_at=None,
    ended_at=None,
    waiters=2,
    position=1,
    eta_seconds=4.5,
)
RUNNING = dataclasses.replace(WAITING, id="0", model="a", status="running", asked_at=NOW - 900, begun_at=NOW - 1)
HOST = View(
    models={"a": IDLE, "b": BUSY},
    active=[],
    switching=("b", "a"),
    mode="manual",
    pinned=None,
    queue=[RUNNING, WAITING],
    age_seconds=120.0,
    lock_holder="process 7",
    problem="models.json is damaged",
    last_switch=None,
)


def step(action: str, model: str, seconds: float, level: int | None = None, **more: Any) -> Event:
    data = {"ticket": "0", "action": action, "model": model, "level": level, "started_seconds": 0.0, "seconds": seconds}
    return Event(1, "step_ended", NOW, {**data, **more})


def switch(model: str, **more: Any) -> Event:
    data = {
        **dataclasses.asdict(RUNNING),
        "model": model,
        "ended_at": NOW + 2,
        "from_model": "a",
        "result": {"changed": True, "rung": ""},
        "error": None,
    }
    return Event(1, "switch_ended", NOW, {**data, **more})


SEEN = {"models": ["a"], "state": "active", "ended": NOW, "seconds": 2.0, "result": "done", "rung": None, "reason": ""}
EVENTS = [
    step("drain", "a", 0.25),
    step("sleep", "a", 1.0, level=1),
    step("wake", "b", 2.0, level=2),
    step("verify", "b", 3.0, answer_seconds=0.5),
    step("wake", "b", 120.0, level=2, failed="b: no answer"),
    step("verify", "a", 4.0, escalation="roll_back"),
    switch("b"),
    switch("b", result={"changed": False, "rung": ""}),
    switch("b", error={"message": "no answer"}, result={"changed": True, "rung": "roll_back"}),
    switch("b", error={"message": "blocked"}, result=None),
    switch("b", error={"message": "withdrawn"}, result=None, begun_at=None),
    Event(1, "switch_seen", NOW, SEEN),
    Event(1, "queue", NOW, {"queue": []}),
]


def filled(shown: View = HOST) -> Metrics:
    """Metrics in which every one has a sample."""
    metrics = Metrics(lambda: shown, lambda: {"a": Use(5, 50, 500, 60.5)}, now=lambda: NOW)
    for event in EVENTS:
        metrics.feed(event)
    return metrics


Samples = dict[tuple[str, ...], float]


def samples(metrics: Metrics) -> Samples:
    """Each sample by its name and the values of its labels, sorted by the labels' names."""
    found = {}
    for family in text_string_to_metric_families(metrics.text()[0].decode()):
        for one in family.samples:
            found[(one.name, *(value for _label, value in sorted(one.labels.items())))] = one.value
    return found


def named(found: Samples, name: str) -> dict[tuple[str, ...], float]:
    return {key[1:]: value for key, value in found.items() if key[0] == name}


def test_switches_are_counted_by_how_they_ended() -> None:
    found = samples(filled())
    # The labels are from, result, rung, state, to.
    assert named(found, "homegpt_switches_total") == {
        ("a", "done", "", "active", "b"): 1,
        ("a", "unchanged", "", "active", "b"): 1,
        ("a", "failed", "roll_back", "active", "b"): 1,
        ("a", "failed", "", "active", "b"): 1,
    }
    assert named(found, "homegpt_foreign_switches_total") == {("done", "", "active", "a"): 1}
    # One that never failed is there too: a counter that begins at 1 has never increased.
    assert named(found, "homegpt_switch_failures_total") == {("a",): 0, ("b",): 2}
    assert named(found, "homegpt_switch_duration_seconds_sum") == {("active", "b"): 3}
    assert named(found, "homegpt_switch_duration_seconds_count") == {("active", "b"): 1}
    assert named(found, "homegpt_switch_queue_duration_seconds_sum") == {(): 4 * 899}


def test_the_time_of_a_switch_is_split_into_its_parts() -> None:
    found = samples(filled())
    # The labels are level, model, phase. What failed is no measure.
    assert named(found, "homegpt_switch_phase_duration_seconds_sum") == {
        ("", "a", "drain"): 0.25,
        ("1", "a", "sleep"): 1,
        ("2", "b", "wake"): 2,
        ("", "b", "ready"): 2.5,
        ("", "b", "canary"): 0.5,
        ("", "a", "ready"): 4,
    }


def test_each_model_is_in_one_state() -> None:
    found = named(samples(filled()), "homegpt_model_state")
    assert {key for key, value in found.items() if value} == {("a", states.ASLEEP), ("b", states.ERROR)}
    words = [states.READY, states.SLEEP_PENDING, states.ASLEEP, states.WAKING]
    words += [states.STOPPED, states.STARTING, states.ERROR, states.DISABLED]
    assert found.keys() == {(model, word) for model in "ab" for word in words}


def test_what_is_unknown_has_no_sample() -> None:
    found = samples(filled())
    assert named(found, "homegpt_model_requests_in_flight") == {("b",): 3}
    assert named(found, "homegpt_model_switch_eta_seconds") == {("b",): 4.5}
    assert named(found, "homegpt_model_last_active_timestamp_seconds") == {("b",): NOW - 60}
    assert named(found, "homegpt_model_gpu_memory_bytes") == {("b",): 20e9}
    assert named(found, "homegpt_model_sleep_memory_bytes") == {("b",): 1.5e9}
    assert named(found, "homegpt_model_sleep_memory_growth_bytes") == {("b",): 0.1e9}
    assert named(found, "homegpt_model_switches_left") == {("b",): 7}
    assert named(found, "homegpt_model_sleeps_total") == {("b",): 12}
    told = dataclasses.replace(BUSY, leak={**LEAK, "held_gb": None, "switches_left": None})
    found = samples(filled(dataclasses.replace(HOST, models={"b": told})))
    assert named(found, "homegpt_model_sleep_memory_bytes") == named(found, "homegpt_model_switches_left") == {}


def test_the_host_and_its_queue() -> None:
    found = samples(filled())
    assert named(found, "homegpt_model_breaker_open") == {("a",): 0, ("b",): 1}
    assert named(found, "homegpt_model_queue_depth") == {("a",): 0, ("b",): 2}
    assert named(found, "homegpt_model_requests_total") == {("a",): 5, ("b",): 0}
    assert named(found, "homegpt_model_active_seconds_total") == {("a",): 60.5, ("b",): 0}
    host = ("queue_length", "queue_oldest_wait_seconds")
    assert [found["homegpt_switch_" + name,] for name in host] == [1, 400]
    flags = ("switching", "host_locked", "manual_mode", "inventory_refused")
    assert [found["homegpt_" + name,] for name in flags] == [1, 1, 1, 1]
    assert found["homegpt_observation_age_seconds",] == 120
    calm = dataclasses.replace(HOST, switching=None, mode="auto", queue=[], lock_holder="", problem="")
    found = samples(filled(calm))
    assert [found["homegpt_" + name,] for name in flags] == [0, 0, 0, 0]
    assert [found["homegpt_switch_" + name,] for name in host] == [0, 0]


def test_a_closed_breaker_is_not_open() -> None:
    closed = dataclasses.replace(BUSY, breaker={"state": "closed", "failures": 1, "retry_at": None})
    found = samples(filled(dataclasses.replace(HOST, models={"b": closed})))
    assert named(found, "homegpt_model_breaker_open") == {("b",): 0}


def test_both_formats_can_be_read() -> None:
    metrics = filled()
    plain, content_type = metrics.text()
    assert content_type.startswith("text/plain; version=0.0.4")
    assert "_created" not in plain.decode()
    text, content_type = metrics.text("application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(text.decode())} >= {"homegpt_switches", "homegpt_model_state"}


@pytest.mark.parametrize("accept", ["text/plain;version=x", "application/openmetrics-text;version=x.y", "*/*", ";;,"])
def test_odd_formats_are_no_trouble(accept: str) -> None:
    content, content_type = filled().text(accept)
    assert content_type.split(";")[0] in ("text/plain", "application/openmetrics-text")
    assert b"homegpt_switches" in content


def test_names_follow_the_conventions() -> None:
    """What promtool checks, and what it does not: every metric has a sample here, and says what it is."""
    for family in text_string_to_metric_families(filled().text()[0].decode()):
        assert family.documentation, family.name
        assert family.samples, family.name
        assert re.fullmatch(r"(homegpt|process)_[a-z][a-z_]*[a-z]", family.name)
        ends = {one.name.removeprefix(family.name) for one in family.samples}
        wanted = {"counter": {"_total"}, "gauge": {""}, "histogram": {"_bucket", "_sum", "_count"}}
        assert ends == wanted[family.type], family.name
        for word in ("milliseconds", "minutes", "gb", "mb", "info"):
            assert word not in family.name.split("_")


def test_promtool_finds_no_fault_with_the_metrics() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("allowed: promtool is not here (apt-get install prometheus)")
    done = subprocess.run([promtool, "check", "metrics"], input=filled().text()[0], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def known_labels() -> dict[str, set[str]]:
    """The labels of each metric that there is."""
    found: dict[str, set[str]] = {"up": set()}  # Prometheus' own
    for family in text_string_to_metric_families(filled().text()[0].decode()):
        for one in family.samples:
            found.setdefault(one.name, set()).update(one.labels)
    return found


LABELS = known_labels()
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_MATCHERS = re.compile(r"\{([^}]*)\}")


def named_in(query: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels that a query names."""
    labels = {label.strip() for group in _GROUPING.findall(query) for label in group.split(",")}
    for matchers in _MATCHERS.findall(query):
        labels |= set(re.findall(r"(\w+)\s*[=!]", matchers))
    rest = _MATCHERS.sub("", _GROUPING.sub("", query))
    rest = re.sub(r"\[[^\]]*\]", "", rest)
    metrics = set(re.findall(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)(?!\w*\s*\()", rest))
    return metrics, labels


QUERIES = [*panels(), *alerts()]


@pytest.mark.parametrize(("where", "query", "text"), QUERIES, ids=[where for where, _query, _text in QUERIES])
def test_each_query_names_metrics_and_labels_that_exist(where: str, query: str, text: str) -> None:
    metrics, labels = named_in(query)
    assert metrics, where
    assert metrics <= LABELS.keys()
    there = {"instance", "job"}.union(*(LABELS[name] for name in metrics))
    told = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))
    assert labels | told <= there
    grouped = [{label.strip() for label in group.split(",")} for group in _GROUPING.findall(query)]
    for group in grouped[:1]:
        assert told <= group  # else the legend is empty


def test_the_reader_of_queries_sees_what_is_wrong() -> None:
    assert named_in('histogram_quantile(0.9, sum by (le, to) (rate(a_bucket{x=~"y"}[$__range]))) / b_total > 1e3') == (
        {"a_bucket", "b_total"},
        {"le", "to", "x"},
    )


def test_the_dashboard_shows_every_kind_of_metric() -> None:
    """Each metric of the manager that somebody has to look at is on a panel or in an alert."""
    used = {name for _where, query, _text in QUERIES for name in named_in(query)[0]}
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    all_there = {re.sub(r"_(bucket|sum|count)$", "", name) for name in LABELS if name.startswith("homegpt_")}
    assert all_there - used == {
        "homegpt_switching",
        "homegpt_host_locked",
        "homegpt_manual_mode",
        "homegpt_foreign_switches_total",
        "homegpt_model_last_active_timestamp_seconds",
        "homegpt_model_sleep_level",
        "homegpt_model_sleeps_total",
    }


def test_the_dashboard_can_be_imported() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        rows = range(place["y"], place["y"] + place["h"])
        cells = set(itertools.product(columns, rows))
        assert not cells & taken
        assert max(x for x, _y in cells) < 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
    assert {one["name"] for one in board["templating"]["list"]} == {"datasource", "job", "instance"}


def test_each_alert_says_what_to_do() -> None:
    rules = yaml.safe_load(Path(RULES).read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "$labels.instance" in rule["annotations"]["summary"]
        assert rule["annotations"]["description"].rstrip().endswith(".")
