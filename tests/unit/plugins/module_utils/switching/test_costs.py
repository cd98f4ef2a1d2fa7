# SPDX-License-Identifier: MIT
"""The level that auto chooses by what levels have taken: the choice, what is kept of switches, and three stand-ins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import __main__ as program
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import costs, memory, state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.costs import Choice, Cost, Measure, choose
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import NoMemory, SwitchFailed
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Model, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.lifecycle import Command
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    SLEEP,
    SLEEPING,
    VERIFY,
    WAKE,
    Observation,
    make_plan,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.result import Result, measures
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.tables import status_lines
from hypothesis import given
from hypothesis import strategies as st

from .conftest import Host

RAM, VERSION = "RAM does not allow level 1", "of its version"


def cost(sleep: float, wake: float, count: int = 1) -> Cost:
    return Cost((sleep,) * count, (wake,) * count, (None,) * count)


# ---- the choice ---------------------------------------------------------------------------------

CHOICES: list[tuple[dict[int, Cost], str, str, bool, Choice]] = [
    ({}, "", "", False, Choice(1, "level 1: RAM allows it, level 1 and level 2 never measured")),
    ({1: cost(1, 9)}, "", "", False, Choice(1, "level 1: RAM allows it, level 2 never measured")),
    ({2: cost(1, 1)}, "", "", False, Choice(1, "level 1: RAM allows it, level 1 never measured")),
    # A sleep alone is no measure.
    ({1: cost(1, 9), 2: Cost((1.0,))}, "", "", False, Choice(1, "level 1: RAM allows it, level 2 never measured")),
    (
        {1: cost(6.4, 6.4, 2), 2: cost(0.5, 6.3, 3)},
        "",
        "",
        False,
        Choice(2, "level 2: 6.8 s measured (3), level 1: 12.8 s (2)", True),
    ),
    (
        {1: cost(1, 2, 2), 2: cost(1, 5, 3)},
        "",
        "",
        False,
        Choice(1, "level 1: 3.0 s measured (2), level 2: 6.0 s (3)", True),
    ),
    (
        {1: cost(5, 5), 2: cost(5, 4.5)},
        "",
        "",
        False,
        Choice(1, "level 1: 10.0 s measured (1), level 2: 9.5 s (1) (equal, RAM allows it)", True),
    ),
    (
        {1: cost(5, 5), 2: cost(5, 4.4)},
        "",
        "",
        False,
        Choice(2, "level 2: 9.4 s measured (1), level 1: 10.0 s (1)", True),
    ),
    ({1: cost(1, 1), 2: cost(1, 9)}, RAM, "", True, Choice(2, f"level 2: {RAM}")),
    ({1: cost(9, 9), 2: cost(1, 1)}, "", VERSION, True, Choice(1, f"level 1: RAM allows it, no level 2: {VERSION}")),
    ({1: cost(9, 9), 2: cost(1, 1)}, RAM, VERSION, True, Choice(None, f"stop: {VERSION}")),
    # Asked to measure: what the RAM rule prefers comes first.
    ({}, "", "", True, Choice(1, "level 1: never measured, so it is tried (measure_levels)", True)),
    ({1: cost(1, 1)}, "", "", True, Choice(2, "level 2: never measured, so it is tried (measure_levels)", True)),
    (
        {1: cost(1, 1), 2: Cost(failed=1)},
        "",
        "",
        True,
        Choice(1, "level 1: RAM allows it, level 2 never measured"),
    ),
    # Its wakes never come to be measured, for whatever reason.
    (
        {1: cost(1, 1), 2: Cost((1.0, 1.0))},
        "",
        "",
        True,
        Choice(2, "level 2: never measured, so it is tried (measure_levels)", True),
    ),
    (
        {1: cost(1, 1), 2: Cost((1.0, 1.0, 1.0))},
        "",
        "",
        True,
        Choice(1, "level 1: RAM allows it, level 2 never measured"),
    ),
    # One failure may have any reason, two in a row have that of the level.
    (
        {1: cost(5, 5), 2: cost(1, 1)._replace(failed=1)},
        "",
        "",
        False,
        Choice(2, "level 2: 2.0 s measured (1), level 1: 10.0 s (1)", True),
    ),
    (
        {1: cost(5, 5), 2: cost(1, 1)._replace(failed=2)},
        "",
        "",
        False,
        Choice(1, "level 1: 10.0 s measured (1), level 2: 2.0 s (1), failed the last 2 times", True),
    ),
    (
        {1: cost(1, 1)._replace(failed=3), 2: cost(5, 5)},
        "",
        "",
        False,
        Choice(2, "level 2: 10.0 s measured (1), level 1: 2.0 s (1), failed the last 3 times", True),
    ),
    (
        {1: cost(5, 5)._replace(failed=2), 2: cost(1, 1)._replace(failed=2)},
        RAM,
        "",
        False,
        Choice(2, f"level 2: {RAM}"),
    ),
]


@pytest.mark.parametrize(("known", "no_level_1", "no_level_2", "measure", "choice"), CHOICES)
def test_the_choice(known: dict[int, Cost], no_level_1: str, no_level_2: str, measure: bool, choice: Choice) -> None:
    assert choose(known, no_level_1, no_level_2, measure) == choice


TIMES = st.lists(st.floats(0, 1000), max_size=4)
COSTS = st.builds(
    lambda sleep, wake, failed: Cost(tuple(sleep), tuple(wake), (None,) * len(wake), failed),
    TIMES,
    TIMES,
    st.integers(0, 3),
)


@given(
    one=COSTS,
    two=COSTS,
    budget=st.sampled_from([0, 63, 64, 99, 100, 200]),
    free=st.sampled_from([None, 10.0, 109.0, 111.0]),
    shared=st.booleans(),
    no_level_2=st.sampled_from(["", VERSION]),
    measure=st.booleans(),
)
def test_no_plan_has_a_level_that_it_may_not_have(
    one: Cost, two: Cost, budget: float, free: float | None, shared: bool, no_level_2: str, measure: bool
) -> None:
    model = {"id": "a", "model": "org/a", "host_port": 8001, "weights_gb": 100}
    inventory = parse([model], {"available_ram_gb": budget, "measure_levels": measure})
    (a,) = inventory.models
    content = costs_file(a, {1: one, 2: two})
    plan = make_plan(
        inventory, {"a": Observation(ACTIVE, no_level_2=no_level_2)}, a, SLEEPING, free, 0.0, shared, content
    )
    step = plan.steps[-1]
    assert step.choice is not None
    assert step.choice.level == step.level
    ram = not shared and budget >= 100 and (free is None or free >= 110)
    allowed = [level for level, may in ((1, ram), (2, not no_level_2)) if may]
    if len(allowed) < 2:
        assert ([step.level] if step.level else []) == allowed
        return
    sums = {n: c.seconds for n, c in ((1, one), (2, two))}
    unmeasured = [level for level in allowed if sums[level] is None]
    if not unmeasured:
        first, second = sums[1], sums[2]
        assert first is not None
        assert second is not None
        equal = abs(first - second) <= 0.05 * max(first, second)
        if (one.failed >= 2) != (two.failed >= 2):
            assert step.level == (2 if one.failed >= 2 else 1)
        else:
            assert step.level == (2 if second < first and not equal else 1)
    elif step.level in unmeasured and step.level != 1:
        assert measure
        assert not two.failed
    else:
        assert step.level == 1, "level 2 may be slower than level 1, which was never measured"
    if unmeasured and measure and not any(c.failed or len(c.sleep) > 2 for c in (one, two)):
        assert step.level == unmeasured[0]


def costs_file(model: Model, known: dict[int, Cost]) -> dict[str, Any]:
    """The state file's models, with these costs of one."""
    levels = {
        str(level): {
            "sleep": [*c.sleep],
            "wake": [[*pair] for pair in zip(c.wake, c.warm, strict=True)],
            "failed": c.failed,
        }
        for level, c in known.items()
    }
    return {model.id: {"served": costs.served(model), "levels": levels}}


# ---- what is kept -------------------------------------------------------------------------------


def model_of(**keys: Any) -> Model:
    entry = {"id": "a", "model": "org/a", "host_port": 8001, **keys}
    return parse([entry], {}).models[0]


def test_the_last_nine_are_kept() -> None:
    model = model_of()
    content: dict[str, Any] = {}
    for number in range(12):
        found = [Measure("a", 2, "sleep", float(number)), Measure("a", 2, "wake", 100.0 + number, 0.5)]
        content = costs.merged(content, found, {"a": model})
    known = costs.known(json.loads(json.dumps(content)), model)
    assert known[2] == Cost(tuple(map(float, range(3, 12))), tuple(103.0 + n for n in range(9)), (0.5,) * 9)
    assert known[2].seconds == 7 + 107
    assert known[1] == Cost()
    assert costs.told(known) == [
        {"level": 2, "sleep_seconds": 7.0, "sleeps": 9, "wake_seconds": 107.0, "wakes": 9, "warm": 0.5}
    ]


def test_the_median_of_an_even_number() -> None:
    assert [costs.median(values) for values in ([], [3.0], [9.0, 1.0], [9.0, 1.0, 2.0])] == [None, 3.0, 5.0, 2.0]


def test_a_failure_is_kept_until_a_success() -> None:
    models = {"a": model_of()}
    content: dict[str, Any] = {}
    for failed in (1, 2, *range(3, 10), 9):
        content = costs.merged(content, [Measure("a", 2, "sleep", None)], models)
        content = json.loads(json.dumps(content))
        assert costs.known(content, models["a"])[2] == Cost(failed=failed)
    content = costs.merged(content, [Measure("a", 2, "sleep", 1.0)], models)
    assert costs.known(content, models["a"])[2] == Cost((1.0,))


def test_a_server_that_is_started_otherwise_was_never_measured() -> None:
    model = model_of()
    content = costs.merged({}, [Measure("a", 1, "sleep", 1.0)], {"a": model})
    same = model_of(name="A", description="other words", sleep_level="2", startup_mode="active")
    assert costs.known(content, same)[1].sleep == (1.0,)
    for keys in ({"model": "org/b"}, {"args": {"max_model_len": 1}}, {"env": {"A": "1"}}, {"image": "other"}):
        assert costs.known(content, model_of(**keys)) == {}
    content = costs.merged(content, [Measure("a", 1, "sleep", 2.0)], {"a": model_of(image="other")})
    assert costs.known(content, model_of(image="other"))[1].sleep == (2.0,)


@pytest.mark.parametrize(
    "garbage",
    [
        [],
        {"served": "0"},
        {"levels": []},
        {"levels": {"1": []}},
        {"levels": {"1": {"sleep": {"a": 1}, "wake": 7}}},
        {"levels": {"1": {"failed": -1}, "2": {"failed": "2"}}},
        {"levels": {"1": {"sleep": [True, -1, "1", None, 1e99, float("nan")], "wake": [3, [1], [1, 2, 3], ["1", 0]]}}},
    ],
)
def test_garbage_counts_as_never_measured(garbage: Any) -> None:
    model = model_of()
    if isinstance(garbage, dict) and "levels" in garbage:
        garbage["served"] = costs.served(model)
    assert {cost.seconds for cost in costs.known({"a": garbage}, model).values()} <= {None}
    assert costs.told(costs.known({"a": garbage}, model)) == []
    content = costs.merged({"a": garbage}, [Measure("a", 1, "sleep", 1.0)], {"a": model})
    assert costs.known(content, model)[1] == Cost((1.0,))


def step(action: str, seconds: float, level: int | None = None, model: str = "a", **more: Any) -> dict[str, Any]:
    return {"action": action, "model": model, "level": level, "seconds": seconds, **more}


STEPS: list[tuple[list[dict[str, Any]], list[Measure]]] = [
    ([step(SLEEP, 1, 1)], [Measure("a", 1, SLEEP, 1)]),
    ([step(SLEEP, 1, 2, failed="no")], [Measure("a", 2, SLEEP, None)]),
    ([step(SLEEP, 1, 2, escalation="roll_back")], []),
    # A wake takes until it is verified, whatever other servers do meanwhile.
    (
        [step(WAKE, 1, 2, warm=0.5), step(SLEEP, 9, 1, "b"), step(VERIFY, 2)],
        [Measure("a", 2, WAKE, 3, 0.5), Measure("b", 1, SLEEP, 9)],
    ),
    ([step(WAKE, 1, 1)], []),
    ([step(WAKE, 1, 1), step(VERIFY, 2, model="b")], []),
    ([step(WAKE, 1), step(VERIFY, 2)], []),
    ([step(WAKE, 1, 0), step(VERIFY, 2)], []),
    (
        [step(WAKE, 1, 2), step(VERIFY, 2, failed="no"), step("reload", 1, escalation="retry")],
        [Measure("a", 2, WAKE, None)],
    ),
    (
        [step(WAKE, 1, 2, failed="no"), step(WAKE, 1, 2, escalation="retry"), step(VERIFY, 2, escalation="retry")],
        [Measure("a", 2, WAKE, None)],
    ),
]


@pytest.mark.parametrize(("steps", "measured"), STEPS)
def test_what_is_taken_from_steps(steps: list[dict[str, Any]], measured: list[Measure]) -> None:
    assert sorted(measures(steps)) == sorted(measured)


# ---- on a host ----------------------------------------------------------------------------------


def levels(result: Result) -> list[tuple[str, int | None]]:
    """Who was put to sleep at which level."""
    return [(done["model"], done["level"]) for done in result.steps if done["action"] == SLEEP]


@pytest.fixture
def three(host: Host) -> Host:
    """Three models on one GPU: a is quicker at level 1, b at level 2, and c as quick at both."""
    host.settings["measure_levels"] = True
    for name, slow, slow_2 in (("a", 0.1, 1.0), ("b", 1.0, 0.1), ("c", 0.2, 0.2)):
        host.declare(
            name,
            standin={"sleep_seconds": slow, "sleep_seconds_2": slow_2, "wake_seconds": slow, "wake_seconds_2": slow_2},
        )
    return host


def test_each_is_put_to_its_cheaper_level(three: Host) -> None:
    three.up(a="active", b=1, c=1)
    for tried in (1, 2):
        seen = dict(levels(three.switch(name))[0] for name in ("b", "c", "a"))
        assert seen == dict.fromkeys("abc", tried)
    for _again in (1, 2):
        predicted: dict[str, int | None] = {}
        seen = {}
        for name in ("b", "c", "a"):
            check = three.switch(name, check=True)
            done = three.switch(name)
            predicted.update(levels(check))
            seen.update(levels(done))
            assert [s.get("note") for s in check.steps if s["action"] == SLEEP] == [
                s.get("note") for s in done.steps if s["action"] == SLEEP
            ]
        assert seen == predicted
        assert (seen["a"], seen["b"]) == (1, 2)


def test_no_level_1_without_ram(three: Host) -> None:
    three.up(a="active", b=2)
    for _switch in range(4):
        assert levels(three.switch("b", mem_available_gb=lambda: 10.0)) == [("a", 2)]
        assert levels(three.switch("a", mem_available_gb=lambda: 10.0)) == [("b", 2)]


def test_nothing_is_tried_unless_it_is_asked_for(three: Host) -> None:
    three.settings["measure_levels"] = False
    three.up(a="active", b=1)
    for _switch in range(3):
        assert levels(three.switch("b")) == [("a", 1)]
        assert levels(three.switch("a")) == [("b", 1)]


def test_status_shows_the_figures(three: Host, capsys: pytest.CaptureFixture[str]) -> None:
    three.up(a=1, b="active")
    with three.switcher() as switcher:
        first = switcher.report()
    assert first["models"]["b"]["levels"] == []
    assert first["models"]["b"]["next_sleep"] == "level 1: never measured, so it is tried (measure_levels)"
    assert not any(line.startswith("host  model  level_1") for line in status_lines({"gpu1": first}))
    for name in "abab":
        three.switch(name)
    with three.switcher() as switcher:
        report = switcher.report()["models"]
    one, two = report["b"]["levels"]
    assert (one["level"], one["sleeps"], one["wakes"], one["warm"]) == (1, 1, 1, None)
    assert 1.0 <= one["sleep_seconds"] < 30
    assert (two["level"], two["sleeps"], two["wakes"]) == (2, 1, 1)
    assert report["b"]["next_sleep"].startswith("level 2: ")
    assert report["b"]["next_sleep"].endswith(" s (1)")
    given_files: dict[str, Any] = {"vllm_models": three.models, "vllm_switching": three.settings}
    (three.stack_dir / "models.json").write_text(json.dumps(given_files), encoding="utf-8")
    assert program.main(["--stack-dir", str(three.stack_dir), "status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    begin = next(n for n, line in enumerate(lines) if "level_1" in line)
    assert lines[begin].split() == ["host", "model", "level_1", "level_2", "next_sleep"]
    assert " s (1)  " in lines[begin + 2]
    three.models[1]["sleep_level"] = "1"
    given_files["vllm_switching"]["available_ram_gb"] = 0
    (three.stack_dir / "models.json").write_text(json.dumps(given_files), encoding="utf-8")
    program.main(["--stack-dir", str(three.stack_dir), "lint"])
    assert "advice: b would switch faster at another level (level 2: " in capsys.readouterr().out
    assert "level 2: " in lines[begin + 2]


def test_a_file_that_can_not_be_written_or_is_garbage_fails_no_switch(three: Host) -> None:
    three.up(a=1, b="active")
    path = Path(state_files.path(str(three.stack_dir), state_files.COSTS))
    path.mkdir(parents=True)
    result = three.switch("a")
    assert (result.active_model, result.warnings) == ("a", [])
    path.rmdir()
    path.write_text('{"models": {"a": {"levels": 7}, "b": []}}', encoding="utf-8")
    result = three.switch("b")
    assert (result.active_model, result.warnings) == ("b", [])
    assert costs.known(state_files.models(str(three.stack_dir), state_files.COSTS), three.model("b"))[1].times == 0


def test_a_wake_that_fails_is_no_measure_and_is_not_tried_again(three: Host) -> None:
    three.settings["escalation"] = ["roll_back"]
    three.up(a="active", b=1, c=1)
    three.switch("b")
    three.switch("a")
    assert levels(three.switch("b")) == [("a", 2)]
    three.fault("a", "/wake_up", "status_500", times=1)
    with pytest.raises(SwitchFailed):
        three.switch("a")
    known = costs.known(state_files.models(str(three.stack_dir), state_files.COSTS), three.model("a"))
    assert (known[2].wake, known[2].failed, known[1].times) == ((), 1, 1)
    three.switch("a")


def test_memory_that_others_hold_is_no_failure_of_a_level(three: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    three.up(a="active", b=1, c=1)
    three.switch("b")

    def short(*_arguments: object) -> None:
        raise NoMemory("another process holds it")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "await_free", short)
        patch.setattr(memory, "remembered", lambda _stack_dir: {"a": {0: 1.0}})
        patch.setattr(memory, "remembered_of", lambda _stack_dir, _model: Command.start_id(three.started[0]))
        with pytest.raises(SwitchFailed, match="another process holds it"):
            three.switch("a")
    known = costs.known(state_files.models(str(three.stack_dir), state_files.COSTS), three.model("a"))
    assert known[1] == Cost((known[1].sleep[0],))


def test_a_server_that_turns_out_to_have_no_level_2_sleeps_at_level_1(host: Host) -> None:
    """Its version is not known before it runs, and it was another one when level 2 was measured."""
    host.declare("a", standin={"version": "0.20.2"})
    content = costs_file(host.model("a"), {1: cost(5, 5), 2: cost(1, 1)})
    state_files.write(str(host.stack_dir), state_files.COSTS, {"models": content})
    assert levels(host.switch("a", "sleeping", check=True)) == [("a", 2)]
    result = host.switch("a", "sleeping")
    assert (levels(result), result.warnings) == ([("a", 1)], [])
    # Where it runs, it is known before.
    host.switch("a")
    assert levels(host.switch("a", "sleeping", check=True)) == [("a", 1)]
    assert levels(host.switch("a", "sleeping")) == [("a", 1)]
