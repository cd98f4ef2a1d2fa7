# SPDX-License-Identifier: MIT
"""A fleet of real SSH hosts: provisioned, loaded, switched by waves under load, with hosts that fail and that hang.

The cases build on one another, in this order. Figures are printed: `pytest -s`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import docker
from tests.fleet.fleet import FORKS, IMAGES, NEW, OLD, PLAY, Fleet, SshHost
from tests.part import fewer
from tests.playbooklib import Ansible, Run

pytestmark = pytest.mark.timeout(3600)

SIZE = fewer("fleet", "make fleet", "hosts", 20, 12)
PAUSE = 1.0  # seconds between two requests of a client
# Seconds until a host that hangs is given up, by the play's own settings of ssh (15, some times over), on a machine
# that may be busy. One that is not given up lasts until PLAY.
HUNG = 300


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    missing = [image for image in IMAGES if not docker("images", "--quiet", image, check=False)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not there: make images")
    with Fleet(tmp_path_factory.mktemp("fleet"), SIZE) as made:
        yield made


@pytest.fixture(scope="module")
def ansible(fleet: Fleet, ansible_playbook: str) -> Ansible:
    return Ansible(ansible_playbook, fleet.folder, fleet.hosts)


def switch(ansible: Ansible, model: str, *more: str, **variables: object) -> Run:
    given = [part for name, value in variables.items() for part in ("-e", f"switch_{name}={value}")]
    shown = {"ANSIBLE_SHOW_CUSTOM_STATS": "1"}
    run = ansible.play("switch", "-e", f"model={model}", *given, *FORKS, *more, timeout=PLAY, env=shown)
    print(f"\n  switch to {model} {variables} took {run.seconds:.1f} s, exit status {run.status}")
    return run


def handed_on(run: Run) -> list[dict[str, Any]]:
    """The report as set_stats hands it on."""
    (text,) = re.findall(r"^\tRUN: (\{.*\})$", run.output, re.MULTILINE)
    rows: list[dict[str, Any]] = json.loads(text)["vllm_switch"]
    # The table for people says the same.
    assert [[row["host"], row["result"]] for row in rows] == [[cells[0], cells[4]] for cells in run.report]
    return rows


def by_result(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["result"], []).append(row["host"])
    return found


def names(hosts: Sequence[SshHost]) -> list[str]:
    return [host.name for host in hosts]


def failed_outside(hosts: list[SshHost], since: float) -> tuple[int, int, list[str]]:
    """Requests of these hosts' clients; how many failed during the own host's switch; those that failed otherwise."""
    count, during, outside = 0, 0, []
    for host in hosts:
        moments = [event["time"] for event in host.moves(since)]
        for began, ended, port, problem in host.asked():
            if began < since:
                continue
            count += 1
            if problem and moments and ended > min(moments) - 0.5 and began < max(moments) + 0.5:
                during += 1
            elif problem:
                outside.append(f"{host.name} at {began - since:.1f} s on {port}: {problem}")
    return count, during, outside


def test_hosts_are_provisioned(ansible: Ansible, fleet: Fleet) -> None:
    run = ansible.play("site", *FORKS, timeout=PLAY)
    print(f"\n  site on {SIZE} hosts took {run.seconds:.1f} s")
    assert all(run.changed(host.name) > 0 for host in fleet.hosts)
    # Debian 12 and 13.
    assert {host.run("sh", "-c", ". /etc/os-release; echo $VERSION_ID") for host in fleet.hosts} == {"12", "13"}
    again = ansible.play("site", *FORKS, "-l", "gpu01,gpu02", timeout=PLAY)
    assert [again.changed(name) for name in ("gpu01", "gpu02")] == [0, 0]


def test_they_are_bootstrapped(ansible: Ansible, fleet: Fleet) -> None:
    run = ansible.play("bootstrap", *FORKS, timeout=PLAY)
    print(f"\n  bootstrap on {SIZE} hosts took {run.seconds:.1f} s")
    assert all(run.changed(host.name) > 0 for host in fleet.hosts)
    assert [host.states() for host in fleet.hosts] == [{OLD: "active", NEW: "sleeping"}] * SIZE


def test_a_switch_by_waves_costs_no_client_a_request(ansible: Ansible, fleet: Fleet) -> None:
    for host in fleet.hosts:
        host.ask(PAUSE)
    time.sleep(2 * PAUSE)
    since = time.time()
    run = switch(ansible, NEW, waves="1,25%,100%")
    time.sleep(2 * PAUSE)

    assert run.status == 0, run.output
    rows = handed_on(run)
    assert by_result(rows) == {"switched": names(fleet.hosts)}
    assert {(row["from"], row["to"]) for row in rows} == {(OLD, NEW)}
    assert all(row["seconds"] > 0 and not row["reason"] for row in rows)
    assert run.output.count("PLAY [Switch the active model]") == 3
    assert [host.active() for host in fleet.hosts] == [[NEW]] * SIZE
    # One wave after the other: a host's switch begins when all of the wave before have ended.
    moments = [[event["time"] for event in host.moves(since)] for host in fleet.hosts]
    second = 1 + SIZE // 4
    for before, wave in ((moments[:1], moments[1:second]), (moments[1:second], moments[second:])):
        assert max(map(max, before)) < min(map(min, wave))
    count, during, outside = failed_outside(fleet.hosts, since)
    print(f"  {count} requests; failed: {during} during the own host's switch, {len(outside)} otherwise")
    assert count >= SIZE * 3
    assert outside == []


def test_it_stops_and_puts_back_when_too_many_fail(ansible: Ansible, fleet: Fleet) -> None:
    """Of the second wave, one host's model can't wake and one host hangs; one failure is allowed."""
    usual = switch(ansible, OLD)
    assert usual.status == 0
    broken, hung = fleet.hosts[3], fleet.hosts[5]
    first, tried, spared = fleet.hosts[:2], fleet.hosts[2:10], fleet.hosts[10:]
    broken.break_down(NEW)
    docker("pause", hung.container)
    since = time.time()
    try:
        run = switch(ansible, NEW, waves="2,8,100%", max_failures=1)
    finally:
        docker("unpause", hung.container)

    assert run.status == 2
    # It switches most hosts there and back.
    assert run.seconds < HUNG + 2 * usual.seconds
    rows = handed_on(run)
    rolled_back = [host for host in first + tried if host not in (broken, hung)]
    assert by_result(rows) == {
        "rolled back": names(rolled_back),
        "failed": [broken.name],
        "unreachable": [hung.name],
        "not tried": names(spared),
    }
    told = {row["host"]: row for row in rows}
    assert told[broken.name]["from"] == told[broken.name]["to"] == OLD
    assert "new could not be made active" in told[broken.name]["reason"]
    assert told[spared[0].name]["reason"] == "the rollout had stopped"
    # And it is the truth.
    assert [host.active() for host in fleet.hosts] == [[OLD]] * SIZE
    assert {event["model"] for event in broken.moves(since) if event["event"] == "awake"} == {OLD}
    assert not any(host.moves(since) for host in spared)
    broken.repair(NEW)
    count, during, outside = failed_outside([host for host in fleet.hosts if host is not hung], since)
    print(f"  {count} requests; failed: {during} during the own host's switch, {len(outside)} otherwise")
    assert outside == []


@pytest.mark.whole
def test_the_hosts_already_switched_may_keep_the_model_and_be_put_back_later(ansible: Ansible, fleet: Fleet) -> None:
    chosen = fleet.hosts[10:14]
    good, broken, *spared = chosen
    limit = ("-l", ",".join(names(chosen)))
    broken.break_down(NEW)
    run = switch(ansible, NEW, *limit, waves="2,100%", on_stop="keep")
    broken.repair(NEW)
    assert run.status == 2
    expected = {"switched": [good.name], "failed": [broken.name], "not tried": names(spared)}
    assert by_result(handed_on(run)) == expected
    assert [host.active() for host in chosen] == [[NEW], [OLD], [OLD], [OLD]]

    back = ansible.play("roll_back", "-l", good.name)
    assert back.changed(good.name) == 1
    assert [row[:3] for row in back.report] == [[good.name, NEW, OLD]]
    assert ansible.play("roll_back", "-l", good.name).changed(good.name) == 0
    assert good.active() == [OLD]


@pytest.mark.whole
def test_hosts_that_differ_hold_up_no_other(ansible: Ansible, fleet: Fleet, tmp_path: Path) -> None:
    """One has no such model, one can't be reached, one keeps its model; and without waves nobody is put back."""
    chosen = fleet.hosts[14:19]
    other, away, *good, kept = chosen
    # Not under the models' loopback port: it stays what it is, but the inventory does not know it.
    other.models, others_models = other.models[:1], other.models
    away.more["ansible_port"] = 1
    try:
        differing = Ansible(ansible.command, tmp_path, chosen)
        run = switch(differing, NEW, keep=1)
        nobody = switch(differing, "nowhere")
    finally:
        other.models = others_models
        del away.more["ansible_port"]
    assert run.status == 2
    rows = handed_on(run)
    assert by_result(rows) == {
        "no such model": [other.name],
        "unreachable": [away.name],
        "switched": names(good),
        "kept": [kept.name],
    }
    assert "the models are: old" in next(row for row in rows if row["host"] == other.name)["reason"]
    assert (run.count("failed", away.name), run.count("failed", other.name)) == (1, 0)
    assert [host.active() for host in chosen] == [[OLD], [OLD], *[[NEW] for _host in good], [OLD]]
    # Where no host has it, it is the name that is wrong, and no host is asked.
    assert all(": model nowhere is not declared" in mistake for mistake in nobody.mistakes)
    hosts = [mistake.split(": ")[0] for mistake in nobody.mistakes]
    assert hosts == [other.name, f"{away.name}, {good[0].name} and 2 more"]
    assert list(nobody.recap) == ["localhost"]


@pytest.mark.whole
def test_a_declared_placement(ansible: Ansible, fleet: Fleet, tmp_path: Path) -> None:
    """vllm_active_model: site.yml shows where hosts differ from it, and makes them follow."""
    chosen = fleet.hosts[:4]
    follows, unloaded, right, free = chosen
    for host, wanted in ((follows, NEW), (unloaded, NEW), (right, OLD)):
        host.more["vllm_active_model"] = wanted
    unloaded.run("sh", "-c", "cd /opt/homegpt && python3 -m switching switch new --state stopped --for-now")
    placed = Ansible(ansible.command, tmp_path, chosen)
    expected = [
        [follows.name, OLD, NEW, "would switch"],
        [unloaded.name, OLD, OLD, "not loaded"],
        [right.name, OLD, OLD, "unchanged"],
        [free.name, "-", "-", "not declared"],
    ]

    def seen(*more: str) -> tuple[Run, list[list[str]]]:
        run = placed.play("site", *more, *FORKS, timeout=PLAY)
        assert run.status == 0, run.output
        return run, [[*row[:3], row[4]] for row in run.report]

    run, rows = seen("--check")
    assert rows == expected
    assert [run.count("changed", host.name) for host in chosen] == [1, 0, 0, 0]
    assert follows.active() == [OLD]

    run, rows = seen()
    expected[0][3] = "switched"
    assert rows == expected
    assert [host.active() for host in chosen] == [[NEW], [OLD], [OLD], [OLD]]

    # What is not loaded is for bootstrap.yml to load, which then leaves it active.
    assert placed.play("bootstrap", *FORKS, timeout=PLAY).changed(unloaded.name) > 0
    run, rows = seen()
    assert [row[3] for row in rows] == ["unchanged", "unchanged", "unchanged", "not declared"]
    assert [run.count("changed", host.name) for host in chosen] == [0, 0, 0, 0]
    assert unloaded.active() == [NEW]
