# SPDX-License-Identifier: MIT
"""switch.yml on servers that run: what it does, what it leaves alone, and what it prints."""

from __future__ import annotations

import fcntl
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.integration_playbooks.conftest import Inventory, Start
from tests.playbooklib import Ansible, Host, complete, is_sleeping, served
from tests.serverlib import ROOT, Server, opened_by_others

Pair = tuple[Server, Server]
STEPS_TO_B = ["drain a", "sleep a (level 1)", "wake b (level 1)", "verify b"]


def changes(servers: Pair, marks: tuple[int, int] = (0, 0)) -> list[str]:
    """Return the calls that may change something; an answer that is asked for is no change."""
    calls = servers[0].accesses(since=marks[0]) + servers[1].accesses(since=marks[1])
    return [call for call in calls if not call.startswith(("GET ", "POST /v1/completions"))]


def marks(servers: Pair) -> tuple[int, int]:
    return servers[0].mark(), servers[1].mark()


@pytest.mark.versions
def test_switch_and_again(ansible: Ansible, pair: Pair) -> None:
    a, b = pair
    first = complete(a.port, "a")["text"]

    assert ansible.play("switch", "-e", "model=b").changed() == 1
    assert is_sleeping(a.port)
    assert not is_sleeping(b.port)
    assert complete(b.port, "b")["tokens"] == 16

    before = marks(pair)
    assert ansible.play("switch", "-e", "model=b").changed() == 0
    assert changes(pair, before) == []
    assert a.accesses("GET", before[0])

    # By what the server loads, and back: the weights are those that it had.
    assert ansible.play("switch", "-e", "model=org/a").changed() == 1
    assert complete(a.port, "a")["text"] == first


@pytest.mark.versions
def test_check_mode_tells_what_a_run_does(ansible: Ansible, pair: Pair) -> None:
    before = marks(pair)
    predicted = ansible.play("switch", "-e", "model=b", "--check", "--diff")
    assert predicted.changed() == 1
    assert predicted.steps == STEPS_TO_B
    assert changes(pair, before) == []
    assert (is_sleeping(pair[0].port), is_sleeping(pair[1].port)) == (False, True)

    done = ansible.play("switch", "-e", "model=b", "--diff")
    assert done.changed() == 1
    assert done.steps == STEPS_TO_B
    for line in ("-a: active", "-b: sleeping (level 1)", "+a: sleeping (level 1)", "+b: active"):
        for run in (predicted, done):
            assert f"\n{line}\n" in run.output

    settled = ansible.play("switch", "-e", "model=b", "--check", "--diff")
    assert settled.changed() == 0
    # It would be proved once more: which start of the server that was nobody can tell, it was not started by the stack.
    assert settled.steps == []
    assert re.search(r"^host +b +b +\S+ +unchanged ", settled.output, re.MULTILINE)


@pytest.mark.versions
def test_a_timeline_is_drawn(ansible: Ansible, pair: Pair, tmp_path: Path) -> None:
    # Not where the playbook is: where the command is typed.
    here = tmp_path / "here"
    here.mkdir()
    there = here / "switch.svg"
    playbook = ROOT / "playbooks/switch.yml"

    planned = ansible.play(playbook, "-e", "model=b", "-e", "timeline=switch.svg", "--check", cwd=here)
    assert planned.changed() == 1
    assert f"timeline: {there} is not written in check mode" in planned.output
    assert list(here.iterdir()) == []

    run = ansible.play(playbook, "-e", "model=b", "-e", "timeline=switch.svg", cwd=here)
    assert run.changed() == 1
    assert f"\ntimeline: {there}\n" in run.output
    text = there.read_text(encoding="utf-8")
    for word in ("host: a → b", "drain ", "sleep ", "wake ", "verify "):
        assert word in text

    # What can be known before is told before.
    run = ansible.play(playbook, "-e", "model=a", "-e", "timeline=none/switch.svg", cwd=here)
    assert run.failure() == f"timeline: {here}/none/switch.svg can't be written: there is no folder {here}/none"
    assert not is_sleeping(pair[1].port)
    # A switch is not lost because of it.
    run = ansible.play(playbook, "-e", "model=a", "-e", "timeline=/dev/full", cwd=here)
    assert run.changed() == 1
    assert run.report[0][4] == "switched"
    assert "timeline: /dev/full could not be written: No space left on device" in " ".join(run.output.split())
    assert not is_sleeping(pair[0].port)


def test_back_from_level_2(pair: Pair, inventory: Inventory) -> None:
    a, b = pair
    ansible = inventory([served(a, "a", sleep_level=2), served(b, "b")])
    answer = complete(a.port, "a", 32)["text"]

    ansible.play("switch", "-e", "model=b").changed()
    assert a.call("GET", "/standin/state").json()["level"] == 2
    before = a.mark()
    run = ansible.play("switch", "-e", "model=a", "--diff")
    assert run.changed() == 1
    assert run.steps == ["drain b", "sleep b (level 1)", "wake a (level 2)", "verify a"]
    assert a.accesses("POST", before) == [
        "POST /wake_up?tags=weights",
        "POST /collective_rpc",
        "POST /wake_up?tags=kv_cache",
        "POST /reset_prefix_cache",
        "POST /v1/completions",  # a wake is no time to record its answer
    ]
    assert complete(a.port, "a", 32)["text"] == answer


@pytest.mark.parametrize(("ram", "level"), [(128, 1), (32, 2)])
def test_the_level_follows_the_ram_budget(pair: Pair, inventory: Inventory, ram: int, level: int) -> None:
    models = [served(pair[0], "a"), served(pair[1], "b")]
    inventory(models, available_ram_gb=ram).play("switch", "-e", "model=b").changed()
    assert pair[0].call("GET", "/standin/state").json()["level"] == level


@pytest.mark.parametrize(("version", "ask"), [("0.32.0", "stream"), ("0.11.0", "whole")])
def test_a_running_completion_is_finished(start: Start, inventory: Inventory, version: str, ask: str) -> None:
    settings = {"tokens_per_second": 100, "version": version, "sleep_seconds": 0.1, "wake_seconds": 0.1}
    b, a = start("b", asleep=1, **settings), start("a", **settings)
    ansible = inventory([served(a, "a"), served(b, "b")])
    lock_file = ansible.hosts[0].stack / "run/switch.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)

    with ThreadPoolExecutor(2) as pool, lock_file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # However long Ansible takes to start, the completion has just begun when the switch goes on.
        switched = pool.submit(ansible.play, "switch", "-e", "model=b", "-v")
        while not opened_by_others(lock_file):
            assert not switched.done(), "the switch ended without asking for the lock"
            time.sleep(0.05)
        asked = pool.submit(streamed if ask == "stream" else whole, a, 800)
        wait_until_running(a)
        fcntl.flock(lock, fcntl.LOCK_UN)
        run = switched.result()
        assert asked.result() == (["length"], 800)
    assert run.changed() == 1
    # It did run when the switch came.
    (result,) = run.results("changed")
    assert result["steps"][0]["action"] == "drain"
    assert result["steps"][0]["seconds"] > 0.5
    assert is_sleeping(a.port)
    assert complete(b.port, "b")["finish_reason"] == "length"
    events = [json.loads(line) for line in (a.log.parent / "gpus/events.jsonl").read_text().splitlines()]
    names = [event["event"] for event in events if event["model"] == "a"]
    assert names.index("request_end") < names.index("sleeping")


def whole(server: Server, tokens: int) -> tuple[list[str], int]:
    choice = complete(server.port, "a", tokens)
    return [choice["finish_reason"]], choice["tokens"]


def streamed(server: Server, tokens: int) -> tuple[list[str], int]:
    body = {"model": "a", "prompt": "Once", "max_tokens": tokens, "stream": True}
    reasons, count = [], 0
    with requests.post(server.url + "/v1/completions", json=body, stream=True, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith(b"data: {"):
                choice = json.loads(line[6:])["choices"][0]
                count += bool(choice["text"])
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    return reasons, count


def wait_until_running(server: Server) -> None:
    deadline = time.monotonic() + 60
    while server.call("GET", "/standin/state").json()["requests"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def fleet(start: Start, inventory: Inventory, tmp_path: Path) -> tuple[Ansible, dict[str, Server]]:
    """Two hosts with a pair each."""
    servers = {}
    hosts = []
    for name in ("one", "two"):
        for model, asleep in (("b", 1), ("a", 0)):
            servers[f"{name}-{model}"] = start(f"{name}-{model}", asleep=asleep, gpus=name)
        # The same ids on both hosts, as in an inventory of a fleet.
        models = [served(servers[f"{name}-{model}"], model, aliases=[f"{name}-{model}"]) for model in ("a", "b")]
        hosts.append(Host(tmp_path, models, name=name))
    return inventory(*hosts), servers


@pytest.mark.versions
def test_two_hosts_in_one_run(fleet: tuple[Ansible, dict[str, Server]]) -> None:
    ansible, servers = fleet
    run = ansible.play("switch", "-e", "model=b")
    assert (run.changed("one"), run.changed("two")) == (1, 1)
    assert {name for name, server in servers.items() if not is_sleeping(server.port)} == {"one-b", "two-b"}
    run = ansible.play("status", "-v")
    assert [row[:4] for row in run.table] == [
        ["one", "a", "sleeping", "1"],
        ["one", "b", "active", "-"],
        ["two", "a", "sleeping", "1"],
        ["two", "b", "active", "-"],
    ], run.output


def test_target_limits_the_hosts(fleet: tuple[Ansible, dict[str, Server]]) -> None:
    ansible, servers = fleet
    run = ansible.play("switch", "-e", "model=b", "-e", "target=two")
    assert list(run.recap) == ["localhost", "two"]
    assert run.changed("two") == 1
    assert {name for name, server in servers.items() if not is_sleeping(server.port)} == {"one-a", "two-b"}
    assert {row[0] for row in ansible.play("status", "-e", "target=one").table} == {"one"}


def test_the_status_of_one_host_that_fails_costs_no_other(
    fleet: tuple[Ansible, dict[str, Server]], tmp_path: Path
) -> None:
    ansible, _servers = fleet
    # As ssh ends where nobody answers; the machine that runs this may have none.
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'no route to host' >&2\nexit 255\n", encoding="ascii")
    ssh.chmod(0o755)
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_ssh_executable": str(ssh)}
    variables = {**ansible.hosts[0].variables(), **away}
    ansible.hosts[0].variables = lambda: variables  # type: ignore[method-assign]
    run = Ansible(ansible.command, ansible.inventory.parent, ansible.hosts).play("status")
    assert run.status == 4
    assert run.count("unreachable", ansible.hosts[0].name) == 1
    assert {row[0] for row in run.table} == {"two"}


def test_module_defaults_by_the_action_group(ansible: Ansible, tmp_path: Path) -> None:
    playbook = [
        {
            "hosts": "vllm_hosts",
            "gather_facts": False,
            "module_defaults": {
                "group/homegpt.vllm.switching": {"models": "{{ vllm_models }}", "stack_dir": "{{ vllm_stack_dir }}"}
            },
            "tasks": [
                {"homegpt.vllm.vllm_sleep_state": {"model": "b"}, "register": "switched"},
                {"homegpt.vllm.vllm_sleep_state_info": {}, "register": "seen"},
                {
                    "ansible.builtin.assert": {
                        "that": [
                            "switched.active_model == 'b'",
                            "switched.previous_model == 'a'",
                            "switched.models.a == {'state': 'sleeping', 'level': 1}",
                            "switched.steps | map(attribute='action') == ['drain', 'sleep', 'wake', 'verify']",
                            "switched.steps | map(attribute='seconds') | select('lt', 0) | length == 0",
                            "switched.steps | map(attribute='started_seconds') == "
                            "switched.steps | map(attribute='started_seconds') | sort",
                            "switched.elapsed_seconds > 0",
                            "seen.active_models == ['b']",
                            "seen.models.b.state == 'active'",
                            "seen.models.b.running == 0",
                        ]
                    }
                },
            ],
        }
    ]
    file = tmp_path / "play.yml"
    file.write_text(json.dumps(playbook), encoding="utf-8")
    assert ansible.play(file).changed() == 1
