# SPDX-License-Identifier: MIT
"""A switch of many hosts: what may be asked for, when it stops, and what is said of every host."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import SwitchingError
from ansible_collections.homegpt.vllm.plugins.plugin_utils import rollout

SWITCHED = {"changed": True, "previous_model": "old", "active_model": "new", "elapsed_seconds": 1.25}
SAME = {"changed": False, "previous_model": "new", "active_model": "new", "elapsed_seconds": 0.1}
FAILED = {
    "failed": True,
    "msg": "new could not  be made active: no\nthe host is left with: old active",
    "previous_model": "old",
    "active_model": "old",
    "steps": [{"action": "sleep", "model": "old"}, {"action": "wake", "model": "new", "failed": "no"}],
}
GONE = {"unreachable": True, "msg": "no route"}
HUNG = {"failed": True, "msg": "not done in time", "timedout": {"period": 3}}
UNKNOWN = {"failed": True, "msg": "model new is not declared", "error": "UnknownModel"}


def settings(**given: object) -> rollout.Settings:
    return rollout.read({f"switch_{name}": value for name, value in given.items()})


def planned(hosts: str, **given: object) -> rollout.Plan:
    return rollout.make_plan([*hosts], settings(**given))


def results(found: list[dict[str, Any]]) -> list[str]:
    return [row["result"] for row in found]


@pytest.mark.parametrize("nothing", ["", None])
def test_defaults(nothing: object) -> None:
    names = ("waves", "max_failures", "keep", "on_stop", "timeout")
    assert rollout.read(dict.fromkeys([f"switch_{name}" for name in names], nothing)) == rollout.read({})
    assert rollout.read({}) == rollout.Settings(["100%"], None, 0, "roll_back")


@pytest.mark.parametrize("waves", ["1, 25%,100%", ["1", "25%", "100%"], [1, "25%", "100%"]])
def test_waves(waves: object) -> None:
    assert settings(waves=waves).waves == ["1", "25%", "100%"]


def test_failures_are_limited_where_a_rollout_can_stop() -> None:
    assert settings(waves="1,100%").max_failures == 0
    assert settings(waves="1,100%", max_failures="3").max_failures == 3
    assert settings(max_failures=0).max_failures == 0
    # Ansible makes many waves of one size.
    assert [settings(waves=waves).max_failures for waves in ("5", "25%", "100%")] == [0, 0, None]


def test_every_mistake_is_told_with_its_variable() -> None:
    with pytest.raises(SwitchingError) as caught:
        settings(waves="abc,0,101%,,-1", max_failures="few", keep=-1, on_stop="panic", timeout="0")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *["switch_waves"] * 5, "switch_on_stop", "switch_max_failures", "switch_keep", "switch_timeout"
    ]  # fmt: skip
    assert "'abc' is neither a number of hosts nor a percentage" in lines[0]


def test_what_became_of_each_host() -> None:
    given = {"a": SWITCHED, "b": SAME, "c": FAILED, "d": GONE, "e": HUNG, "f": UNKNOWN}
    found = rollout.rows(planned("abcdefg"), given, False)
    assert results(found) == [
        "switched", "unchanged", "failed", "unreachable", "hung", "no such model", "not tried"
    ]  # fmt: skip
    assert found[0] == {"host": "a", "from": "old", "to": "new", "seconds": 1.25, "result": "switched", "reason": ""}
    assert found[2]["reason"] == "new could not be made active: no"
    assert [row["host"] for row in rollout.failures(found)] == ["c", "d", "e"]
    assert results(rollout.rows(planned("ab"), given, True)) == ["would switch", "unchanged"]


@pytest.mark.parametrize(("kept", "result"), [("failed", "failed"), ("hung", "hung"), ("unreachable", "unreachable")])
def test_a_failure_that_was_left_to_the_report(kept: str, result: str) -> None:
    found = rollout.rows(planned("a"), {"a": {"failure": kept, "msg": "no"}}, False)
    assert results(found) == [result]
    assert rollout.failures(found) == found


def test_what_was_mended_is_the_reason() -> None:
    recovered = {**SWITCHED, "recovery": "new woke at the second attempt"}
    assert rollout.rows(planned("a"), {"a": recovered}, False)[0]["reason"] == "new woke at the second attempt"


def test_the_table_names_the_step_where_the_cause_is_told_already() -> None:
    found = rollout.rows(planned("cd"), {"c": FAILED, "d": GONE}, False)
    told = {"c": rollout.place(FAILED), "d": rollout.place(GONE)}
    assert [line.split("  ")[-1].strip() for line in rollout.table(found, told)[1:]] == ["at: wake new", "see above"]


def test_when_it_stops() -> None:
    """And which hosts are then rolled back, and which are those of the play after the waves."""
    switched = {**SWITCHED, "displaced": ["old"]}
    given = {"a": switched, "c": FAILED, "d": GONE}

    def report(check: bool = False, **asked: object) -> tuple[bool, list[str], list[str]]:
        found = rollout.report(planned("abcd", **asked), given, check, [*"acd"])
        assert not found["shown"]
        assert list(found["reasons"]) == ["c", "d"]
        return found["should_stop"], found["roll_back"], found["finish"]

    assert report() == (False, [], [*"cd"])
    assert report(max_failures=2) == (False, [], [*"cd"])
    assert report(max_failures=1) == (True, ["a"], [*"acd"])
    assert report(waves="1,100%") == (True, ["a"], [*"acd"])
    assert report(waves="1,100%", on_stop="keep") == (True, [], [*"cd"])
    assert report(check=True, waves="1,100%") == (True, [], [*"cd"])


def test_the_report_is_shown_when_all_were_tried_and_none_has_failed() -> None:
    plan = planned("ab", waves="1")
    first = rollout.report(plan, {"a": SWITCHED}, False, ["a"])
    assert (first["shown"], first["finish"], first["should_stop"]) == (False, [], False)
    both = rollout.report(plan, {"a": SWITCHED, "b": SAME}, False, ["a", "b"])
    assert both["shown"]
    assert [row["result"] for row in both["rows"]] == ["switched", "unchanged"]
    assert not rollout.report(plan, {"a": SWITCHED, "b": GONE}, False, ["a", "b"])["shown"]


def test_a_failed_host_is_failed_with_the_lines_of_what_failed_last() -> None:
    plan = planned("abc", waves="1")
    given = {"a": {**SWITCHED, "displaced": ["old"]}, "b": FAILED}
    back = {"a": {"failed": True, "msg": "not\nundone", "steps": [{"action": "wake", "model": "old", "failed": "no"}]}}
    found = rollout.report(plan, given, False, ["a", "b"], back)
    assert found["reasons"] == {"a": ["not", "undone"], "b": FAILED["msg"].splitlines()}  # type: ignore[attr-defined]
    assert ["at: wake old" in line for line in found["table"][1:]] == [True, False, False]


def test_hosts_without_the_model_are_no_failure_unless_all_are() -> None:
    hosts = "afd"
    assert results(rollout.rows(planned(hosts), {"f": UNKNOWN}, False)) == [
        "not tried",
        "no such model",
        "not tried",
    ]
    some = {"a": SWITCHED, "f": UNKNOWN, "d": GONE}
    assert results(rollout.rows(planned(hosts), some, False))[1] == "no such model"
    none = {"a": UNKNOWN, "f": UNKNOWN, "d": GONE}
    assert results(rollout.rows(planned(hosts), none, False)) == ["failed", "failed", "unreachable"]


def test_the_last_hosts_keep_their_model() -> None:
    """They are looked at in check mode, so that their results tell what would change."""
    looked = {"a": SWITCHED, "b": SWITCHED, "c": {**SWITCHED, "previous_model": None}, "d": GONE}
    found = rollout.rows(planned("abcde", keep=4), looked, False)
    assert results(found) == ["switched", "kept", "not kept", "unreachable", "not tried"]
    assert (found[1]["from"], found[1]["to"]) == ("old", "old")
    assert [row["host"] for row in rollout.failures(found)] == ["c", "d"]


def test_hosts_that_were_put_back() -> None:
    back = {"changed": True, "previous_model": "new", "active_model": "old"}
    found = rollout.rows(planned("ab"), {"a": SWITCHED, "b": SWITCHED}, False, {"a": back, "b": FAILED})
    assert results(found) == ["rolled back", "roll back failed"]
    assert [row["to"] for row in found] == ["old", "old"]
    assert [row["host"] for row in rollout.failures(found)] == ["b"]


def test_a_row_says_what_the_servers_say() -> None:
    """Of all GPUs that it is about; where they could not be asked, nothing."""
    both = {**SWITCHED, "previous_models": ["old", "o2"], "active_models": ["new", "n2"], "displaced": ["old", "o2"]}
    since = {"failure": "failed", "error": "ChangedSince", "msg": "other is active", "active_models": ["other"]}
    half = {**FAILED, "previous_models": ["old", "o2"], "active_models": ["old", "n2"], "activated": ["n2"]}
    given = {"a": both, "b": both, "c": both, "d": both, "e": half, "f": half}
    none: dict[str, Any] = {"active_models": [], "steps": []}
    undone = {
        "a": {"changed": True, "active_models": ["old", "o2"]},
        "b": since,
        "c": {"failure": "failed", "msg": "no", **none},
        "d": GONE,
        "e": {"changed": True, "active_models": ["old", "o2"]},
    }
    found = rollout.rows(planned("abcdef"), given, False, undone)
    assert [(row["from"], row["to"], row["result"], row["reason"]) for row in found] == [
        ("old, o2", "old, o2", "rolled back", "the rollout stopped"),
        ("old, o2", "other", "changed by somebody else", "other is active"),
        ("old, o2", None, "roll back failed", "no"),
        ("old, o2", None, "roll back failed", "no route"),
        ("old, o2", "old, o2", "failed", "new could not be made active: no"),
        ("old, o2", "old, n2", "failed", "new could not be made active: no"),
    ]
    assert [row["host"] for row in rollout.failures(found)] == [*"bcdef"]


def test_what_is_to_be_undone() -> None:
    """Not a switch that has changed nothing but a record, nor what a failed one has put back itself."""
    half = {**FAILED, "activated": ["n2"], "displaced": ["o2"]}
    given = {
        "a": {**SWITCHED, "displaced": ["old"], "activated": ["new"]},
        "b": {**SWITCHED, "displaced": [], "activated": ["new"]},
        "c": {**SWITCHED, "displaced": [], "activated": []},
        "d": {**FAILED, "displaced": ["old"], "activated": []},
        "e": half,
        "f": {**half, **HUNG},
    }
    rows = rollout.rows(planned("abcdefg"), given, False)
    assert [row["host"] for row in rows if rollout.to_undo(row, given.get(row["host"]))] == [*"abe"]


def test_a_placement() -> None:
    step = {"action": "wake", "seconds": None}
    drifts = {
        "a": {**SWITCHED, "steps": [step]},
        "b": {**SWITCHED, "steps": [{**step, "action": "start"}]},
        "c": {**SAME, "steps": []},
        "d": {"skipped": True},
        "f": UNKNOWN,
    }
    skipped = {name: {"skipped": True} for name in "bc"}
    done = {"a": {**SWITCHED, "steps": [{**step, "seconds": 0.1}]}, **skipped}
    found = rollout.places([*"abcdef"], drifts, done)
    assert results(found) == ["switched", "not loaded", "unchanged", "not declared", "failed", "no such model"]
    found = rollout.places([*"abcdef"], drifts, {"a": drifts["a"], **skipped})
    assert results(found)[0] == "would switch"
    assert found[4]["reason"] == "failed before its models were checked"


def test_what_a_host_says_is_no_template() -> None:
    said = {"a": ["{{ lookup('pipe', 'x') }}", {"b": "{% if %}{# #} { }"}], "n": 1}
    assert rollout.without_templates(said) == {
        "a": ["{ { lookup('pipe', 'x') }}", {"b": "{ % if %}{ # #} { }"}],
        "n": 1,
    }


def test_the_table_has_a_dash_for_nothing_and_cuts_what_is_long() -> None:
    found = rollout.rows(planned("ac"), {"a": SWITCHED, "c": {"failed": True, "msg": "x" * 500}}, False)
    header, first, second = rollout.table(found)
    assert header.split() == ["host", "from", "to", "seconds", "result", "reason"]
    assert first.split() == ["a", "old", "new", "1.2", "switched", "-"]
    assert second.endswith("xxx...")
    assert len(second) < 200
    assert found[1]["reason"] == "x" * 500


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ("100%", [10]),
        ("1,25%,100%", [1, 2, 7]),
        ("3", [3, 3, 3, 1]),
        ("50%,4", [5, 4, 1]),
        ("1%", [1] * 10),
        ("1,200", [1, 9]),
    ],
)
def test_the_waves_are_those_that_ansible_makes(asked: str, sizes: list[int]) -> None:
    hosts = [f"h{number}" for number in range(12)]
    plan = rollout.make_plan(hosts, settings(waves=asked, keep=2))
    assert [len(wave) for wave in plan.waves] == sizes
    assert plan.serial == [2, *sizes]
    assert plan.order == [*hosts[10:], *hosts[:10]]
    assert plan.hosts == hosts


def test_a_plan_holds_no_more_hosts_than_there_are() -> None:
    assert planned("ab", keep=9)[:3] == (["a", "b"], [], ["a", "b"])
    assert planned("ab", keep=9).serial == [2]
    assert planned("ab").serial == [2]


def test_rows_with_what_a_timeline_draws() -> None:
    step = {"action": "wake", "model": "new", "started_seconds": 0.1, "seconds": 1.0}
    given = {"a": {**SWITCHED, "steps": [step]}, "b": FAILED, "d": SWITCHED}
    back = {"a": {"active_model": "old", "elapsed_seconds": 2.0, "steps": [{**step, "model": "old"}]}}
    plan = planned("abcd", waves="1,100%", keep=1)
    plain = rollout.rows(plan, given, False, back)
    drawn = rollout.with_steps(plain, plan, given, back)
    assert [{key: row[key] for key in plain[0]} for row in drawn] == plain
    # One that was not tried has no wave, nor has one that keeps its model.
    assert [row["wave"] for row in drawn] == [1, 2, None, None]
    assert [len(row["steps"]) for row in drawn] == [1, 2, 0, 0]
    assert [row["back"] for row in drawn] == [[{**step, "model": "old"}], [], [], []]
