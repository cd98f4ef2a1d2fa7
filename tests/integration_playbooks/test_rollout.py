# SPDX-License-Identifier: MIT
"""Putting hosts back when a rollout stops, and what hosts say in the report. On real SSH hosts: tests/fleet."""

from __future__ import annotations

import functools
import http.server
import json
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.integration_playbooks.conftest import Inventory
from tests.playbooklib import Ansible, Host, is_sleeping, launched, served
from tests.serverlib import ROOT, Server, free_port, start_standin

WAVES = ("-e", "switch_waves=1,100%")
NEARLY_SSH = """
DOCUMENTATION = '''
name: nearly_ssh
author: somebody
short_description: this machine
description: As local.
extends_documentation_fragment: [connection_pipelining]
options:
  become_success_timeout: {description: seconds, type: int, default: 10}
  become_strip_preamble: {description: whether, type: bool, default: true}
'''
from ansible.plugins.connection.local import Connection as Local


class Connection(Local):
    transport = "ssh"
"""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, Server]]:
    """Four servers: a and b on GPU 0, c and d on GPU 1; b and c are awake."""
    started: dict[str, Server] = {}
    try:
        for name in "abcd":
            started[name] = start_standin(f"org/{name}", names=[name], log=tmp_path / f"{name}.log")
            if name in "ad":
                started[name].call("POST", "/sleep?level=1").raise_for_status()
        yield started
    finally:
        for server in started.values():
            server.kill()


def gpus(name: str) -> list[int]:
    return [1 if name in "cd" else 0]


def fleet(ansible_playbook: str, folder: Path, servers: dict[str, Server]) -> Ansible:
    """The host of the servers, and one on which nothing runs and nothing can be started."""
    entries = [served(server, name, gpus=gpus(name)) for name, server in servers.items()]
    model = {"weights_gb": 0.01, "start_command": ["/bin/false"], "env": {}}
    others = [{**model, "id": n, "model": f"org/{n}", "host_port": free_port(), "gpus": gpus(n)} for n in "abcd"]
    return Ansible(ansible_playbook, folder, [Host(folder, entries, name="one"), Host(folder, others, name="two")])


def operator(host: Host, *words: str) -> list[str]:
    """A start_command that fails once somebody has switched another host: in the wave after that one's."""
    host.stack.mkdir()
    models = {"vllm_models": host.models, "vllm_switching": {}}
    (host.stack / "models.json").write_text(json.dumps(models), encoding="utf-8")
    engine = shlex.join([sys.executable, "-m", "switching", "--stack-dir", str(host.stack), *words])
    folder, said = shlex.quote(f"{ROOT}/plugins/module_utils"), shlex.quote(f"{host.stack}/said")
    return ["sh", "-c", f"cd {folder} && {engine} > {said} 2>&1; exit 1"]


def awake(servers: dict[str, Server]) -> str:
    return "".join(name for name, server in servers.items() if not is_sleeping(server.port))


@pytest.mark.parametrize(
    ("before", "asked", "more"),
    [
        # The record is of an older switch: it has nothing to do with this one, which only records an answer.
        ("bc", "b", ("-e", "record_canary=true")),
        # Nothing was active on GPU 0, and c was on GPU 1.
        ("c", "a,d", ()),
        ("b", "a", ()),
        ("", "a", ()),
    ],
    ids=["nothing_displaced", "two_groups", "swap", "from_nothing"],
)
def test_a_host_gets_back_just_what_it_had(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server], before: str, asked: str, more: tuple[str, ...]
) -> None:
    ansible = fleet(ansible_playbook, tmp_path, servers)
    for older in ("a", "b"):
        assert ansible.play("switch", "-e", f"model={older}", "-l", "one").status == 0
    for name in "abcd":
        if name not in before and not is_sleeping(servers[name].port):
            servers[name].call("POST", "/sleep?level=1").raise_for_status()
    assert awake(servers) == before
    drawn = tmp_path / "a picture.svg"
    run = ansible.play("switch", "-e", f"model={asked}", *WAVES, *more, "-e", f"timeline='{drawn}'")
    assert run.status == 2
    assert awake(servers) == before
    rows = {row[0]: row for row in run.report}
    assert rows["two"][4] == "failed"
    assert rows["one"][4] == ("switched" if more else "rolled back")
    # Drawn once, at the end, with what putting it back took.
    assert run.output.count(f"timeline: {drawn}") == 1
    text = drawn.read_text(encoding="utf-8")
    assert "2 hosts in 2 waves" in text
    assert text.count("<title>sleep ") == (0 if more else len(before) + len(asked.split(",")))


def test_what_an_earlier_play_of_the_run_found_is_not_told_again(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server]
) -> None:
    ansible = fleet(ansible_playbook, tmp_path, servers)
    both = tmp_path / "both.yml"
    both.write_text(
        "- import_playbook: homegpt.vllm.switch\n  vars: {model: a}\n"
        "- import_playbook: homegpt.vllm.switch\n  vars: {model: d, switch_waves: '1,100%'}\n",
        encoding="utf-8",
    )
    assert ansible.play("switch", "-e", "model=b", "-l", "one").status == 0
    servers.pop("d").kill()
    run = ansible.play(both, "-l", "one")
    assert [table[0].split()[4] for table in run.tables("host", "from")] == ["switched", "failed"]
    assert awake(servers) == "ac"


def test_a_host_that_somebody_has_switched_meanwhile_is_left_alone(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server]
) -> None:
    servers["c"].call("POST", "/sleep?level=1").raise_for_status()
    entries = [served(servers[name], name, gpus=[0]) for name in "abc"]
    ansible = fleet(ansible_playbook, tmp_path, servers)
    one, two = Host(tmp_path, entries, name="one"), ansible.hosts[1]
    two.models[0]["start_command"] = operator(one, "switch", "c")
    run = Ansible(ansible_playbook, tmp_path, [one, two]).play("switch", "-e", "model=a", *WAVES)
    assert run.status == 2
    assert awake(servers) == "c", (one.stack / "said").read_text(encoding="utf-8")
    rows = {row[0]: row for row in run.report}
    assert (*rows["one"][:3], rows["one"][4]) == ("one", "b", "c", "changed by somebody else")
    assert rows["two"][4] == "failed"
    assert "c is active" in run.output
    assert (run.count("changed", "one"), run.count("failed", "one")) == (1, 1)


@pytest.fixture
def pairs(ansible_playbook: str, tmp_path: Path, inventory: Inventory) -> Ansible:
    """Hosts that start their servers themselves: b and c are active on one, of a and b and c and d. The other fails."""
    models = [launched(name, gpus=gpus(name)) for name in "abcd"]
    for model in models:
        # Once there is such a file, it does not load any more.
        broken = shlex.quote(f"{tmp_path}/{model['id']}.broken")
        model["start_command"] = [
            "sh",
            "-c",
            f'test ! -e {broken} && exec "$@"',
            "sh",
            *model["start_command"],
        ]
    ansible = inventory(Host(tmp_path, models, name="one"), fleet(ansible_playbook, tmp_path, {}).hosts[1])
    assert ansible.play("switch", "-e", "model=b,c", "-l", "one").status == 0
    return ansible


def active(ansible: Ansible) -> str:
    return "".join(row[1] for row in ansible.play("status", "-l", "one").table if row[2] == "active")


def test_half_a_host_does_not_stay_on_the_new_model(pairs: Ansible, tmp_path: Path) -> None:
    (tmp_path / "d.broken").touch()
    run = pairs.play("switch", "-e", "model=a,d", *WAVES, "-e", "switch_max_failures=9")
    assert run.status == 2
    assert active(pairs) == "bc"
    assert [(*row[:3], row[4]) for row in run.report] == [
        ("one", "b, c", "b, c", "failed"),
        ("two", "-", "-", "failed"),
    ]


def test_a_put_back_that_fails_leaves_what_it_says(pairs: Ansible, tmp_path: Path) -> None:
    one = pairs.hosts[0]
    assert pairs.play("switch", "-e", "model=d", "-l", "one").status == 0
    requests.post(f"http://127.0.0.1:{one.port('d')}/sleep?level=1", timeout=10).raise_for_status()
    requests.post(f"http://127.0.0.1:{one.port('c')}/sleep?level=1", timeout=10).raise_for_status()
    assert active(pairs) == "b"
    # Nothing is active on the other GPU. From the second wave on b can't come back.
    order = {"path": "/wake_up", "fault": "status_500", "times": 0}
    requests.post(f"http://127.0.0.1:{one.port('b')}/standin/faults", json=order, timeout=10).raise_for_status()
    (tmp_path / "b.broken").touch()
    run = pairs.play("switch", "-e", "model=a,d", *WAVES)
    assert run.status == 2
    assert active(pairs) == "ad"
    (row,) = [row for row in run.report if row[0] == "one"]
    assert (*row[:3], row[4]) == ("one", "b", "a, d", "roll back failed")


def test_a_host_that_is_lost_before_it_is_put_back_is_not_said_to_have_anything(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server]
) -> None:
    ansible = fleet(ansible_playbook, tmp_path, servers)
    one, two = ansible.hosts
    # The lock is held by somebody for longer than this host waits for it.
    one.switching = {"lock_timeout_seconds": 0.1}
    lock = shlex.quote(f"{one.stack}/run/switch.lock")
    holder = f"setsid flock {lock} sleep 90 > /dev/null 2>&1 &"
    held = f"while flock -n {lock} true; do sleep 0.05; done"
    two.models[0]["start_command"] = ["sh", "-c", f"{holder} {held}; exit 1"]
    run = Ansible(ansible_playbook, tmp_path, [one, two]).play("switch", "-e", "model=a", *WAVES)
    assert run.status == 2
    assert awake(servers) == "ac"
    (row,) = [row for row in run.report if row[0] == "one"]
    assert (*row[:3], row[4]) == ("one", "b", "-", "roll back failed")


@pytest.mark.versions
def test_what_only_sounds_secret_is_no_reason_to_feed_asterisks_to_a_host(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server]
) -> None:
    """All of the names have a 1 in them, as a variable that is called like a token."""
    env = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    names = {"a": "model-14b", "b": "model-1b", "c": "other-14b", "d": "other-1b"}
    entries = [
        served(server, name, id=names[name], aliases=[name], gpus=gpus(name), env=env)
        for name, server in servers.items()
    ]
    two = fleet(ansible_playbook, tmp_path, servers).hosts[1]
    for model in two.models:
        model.update(id=names[model["id"]], env=env)
    run = Ansible(ansible_playbook, tmp_path, [Host(tmp_path, entries, name="one"), two]).play(
        "switch", "-e", "model=model-14b,other-1b", *WAVES
    )
    assert awake(servers) == "bc"
    assert "****" not in "\n".join(" ".join(row) for row in run.report)
    rows = {row[0]: row for row in run.report}
    assert (*rows["one"][:3], rows["one"][4]) == ("one", "model-1b, other-14b", "model-1b, other-14b", "rolled back")
    assert rows["two"][4] == "failed"


@pytest.mark.versions
def test_what_a_host_answers_is_no_template_on_the_controller(ansible_playbook: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Hostile(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = f'{{{{ lookup("pipe", "touch {mark}") }}}}'.encode()
            self.send_response(418)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as hostile:
        threading.Thread(target=hostile.serve_forever, daemon=True).start()
        model = {"id": "a", "model": "org/a", "host_port": hostile.server_address[1], "start_command": ["/bin/false"]}
        run = Ansible(ansible_playbook, tmp_path, [Host(tmp_path, [{**model, "env": {}}])]).play(
            "switch", "-e", "model=a", env={"ANSIBLE_SHOW_CUSTOM_STATS": "1"}
        )
        hostile.shutdown()
    assert run.status == 2
    assert "lookup(" in run.output
    assert run.report[0][4] == "failed"
    assert not mark.exists()


def test_a_group_without_hosts_is_refused(ansible_playbook: str, tmp_path: Path) -> None:
    ansible = Ansible(ansible_playbook, tmp_path, [Host(tmp_path, [])])
    for playbook in ("switch", "roll_back"):
        for more in ((), ("-e", "switch_keep=1")):
            assert (
                "no host matches typo" in ansible.play(playbook, "-e", "target=typo", "-e", "model=a", *more).failure()
            )


def test_options_of_ssh_are_kept(ansible_playbook: str, tmp_path: Path) -> None:
    """Also those of the configuration and of the command line."""
    host = Host(tmp_path, [{"id": "a", "model": "a", "host_port": 1}])
    remote = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    host.variables = lambda: {**Host.variables(host), **remote}  # type: ignore[method-assign]
    ansible = Ansible(ansible_playbook, tmp_path, [host])
    by_environment = ansible.play("switch", "-e", "model=a", "-vvv", env={"ANSIBLE_SSH_EXTRA_ARGS": "-o Tag=mine"})
    by_option = ansible.play("switch", "-e", "model=a", "-vvv", "--ssh-extra-args=-o Tag=mine")
    for run in (by_environment, by_option):
        assert "Tag=mine" in run.output
        assert "ServerAliveCountMax=3" in run.output


def test_a_connection_without_options_of_ssh_is_used_as_it_is(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server]
) -> None:
    """Plugins of others call themselves ssh too."""
    (tmp_path / "connections").mkdir()
    (tmp_path / "connections" / "nearly_ssh.py").write_text(NEARLY_SSH, encoding="utf-8")
    one = fleet(ansible_playbook, tmp_path, servers).hosts[0]
    one.variables = functools.partial(  # type: ignore[method-assign]
        dict, one.variables(), ansible_connection="nearly_ssh"
    )
    run = Ansible(ansible_playbook, tmp_path, [one]).play(
        "switch", "-e", "model=a", env={"ANSIBLE_CONNECTION_PLUGINS": str(tmp_path / "connections")}
    )
    assert run.status == 0, run.output
    assert run.report[0][4] == "switched"


def test_a_roll_back_by_waves_goes_on_where_some_fail(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server]
) -> None:
    one, two = fleet(ansible_playbook, tmp_path, servers).hosts
    ansible = Ansible(ansible_playbook, tmp_path, [two, one])
    assert ansible.play("switch", "-e", "model=a", "-l", "one").status == 0
    refused = ansible.play("roll_back", "-e", "switch_timeout=soon")
    assert refused.status != 0
    assert "switch_timeout: 'soon' is not a whole number" in refused.output
    assert awake(servers) == "ac"
    run = ansible.play("roll_back", "-e", "switch_waves=1")
    assert run.status == 2
    assert [row[4] for row in run.report] == ["failed", "switched"]
    assert awake(servers) == "bc"


@pytest.mark.versions
def test_the_last_hosts_keep_their_model(ansible_playbook: str, tmp_path: Path, servers: dict[str, Server]) -> None:
    hosts = []
    for name, pair, wanted in (("one", "ab", "a"), ("two", "cd", "d")):
        host = Host(tmp_path, [served(servers[model], model) for model in pair], name=name)
        host.variables = functools.partial(  # type: ignore[method-assign]
            dict, host.variables(), vllm_active_model=wanted
        )
        hosts.append(host)
    ansible = Ansible(ansible_playbook, tmp_path, hosts)
    for keep in (2, 9):
        run = ansible.play("switch", "-e", f"switch_keep={keep}", *WAVES)
        assert (run.status, run.count("changed", "one"), run.count("changed", "two")) == (0, 0, 0), run.output
        assert [(*row[:3], row[4]) for row in run.report] == [("one", "b", "b", "kept"), ("two", "c", "c", "kept")]
    run = ansible.play("switch", "-e", "switch_keep=1", *WAVES)
    assert (run.status, run.count("changed", "one"), run.count("changed", "two")) == (0, 1, 0), run.output
    assert [(*row[:3], row[4]) for row in run.report] == [("one", "b", "a", "switched"), ("two", "c", "c", "kept")]
    assert awake(servers) == "ac"
    # The limit says which hosts there are, and so which is the last.
    run = ansible.play("switch", "-e", "switch_keep=1", "-l", "one")
    assert [(*row[:3], row[4]) for row in run.report] == [("one", "a", "a", "kept")]
    # One of the inventory counts as well, where the hosts agree on it.
    hosts[0].variables = functools.partial(dict, hosts[0].variables(), switch_keep=1)  # type: ignore[method-assign]
    ansible = Ansible(ansible_playbook, tmp_path, hosts)
    run = ansible.play("switch", "-e", "model=b", "-l", "one")
    assert [(*row[:3], row[4]) for row in run.report] == [("one", "a", "a", "kept")]
    assert "switch_keep differs between hosts (1 on one, not set on two)" in ansible.play("switch").failure()
    assert awake(servers) == "ac"


@pytest.mark.versions
def test_nothing_begins_where_a_host_has_no_model_to_keep(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server]
) -> None:
    run = fleet(ansible_playbook, tmp_path, servers).play("switch", "-e", "model=a", "-e", "switch_keep=1", *WAVES)
    assert run.status == 2
    assert [(row[0], row[4]) for row in run.report] == [("one", "not tried"), ("two", "not kept")]
    assert awake(servers) == "bc"


@pytest.mark.parametrize("strategy", ["free", "host_pinned"])
def test_a_strategy_of_the_configuration_does_not_keep_hosts_from_being_rolled_back(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server], strategy: str
) -> None:
    hosts = fleet(ansible_playbook, tmp_path, servers).hosts
    third = Host(tmp_path, hosts[1].models, name="three")
    run = Ansible(ansible_playbook, tmp_path, [*hosts, third]).play(
        "switch", "-e", "model=a", "-e", "switch_waves=2,1", env={"ANSIBLE_STRATEGY": strategy}
    )
    assert run.status == 2
    assert [(row[0], row[4]) for row in run.report] == [
        ("one", "rolled back"),
        ("two", "failed"),
        ("three", "not tried"),
    ]
    assert awake(servers) == "bc"


@pytest.mark.parametrize("playbook", ["switch", "roll_back"])
def test_the_hosts_of_a_rollout_can_be_listed(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server], playbook: str
) -> None:
    run = fleet(ansible_playbook, tmp_path, servers).play(playbook, "-e", "model=a", "--list-hosts")
    assert run.status == 0, run.output
    assert {"one", "two"} <= set(run.output.split()), run.output


def test_a_rollout_without_its_plan_does_not_pass_for_one_that_succeeded(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server]
) -> None:
    run = fleet(ansible_playbook, tmp_path, servers).play(
        "switch", "-e", "model=a", "--start-at-task", "Switch the active model"
    )
    assert run.status != 0, run.output
    assert awake(servers) == "bc"


@pytest.mark.parametrize("more", [{}, {"switch_max_failures": 1}])
def test_a_setting_of_zero_is_not_said_to_be_unset(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server], more: dict[str, int]
) -> None:
    one, two = fleet(ansible_playbook, tmp_path, servers).hosts
    for host, own in ((one, {"switch_keep": 0, "switch_max_failures": 0}), (two, {"switch_keep": 0, **more})):
        host.variables = functools.partial(dict, host.variables(), **own)  # type: ignore[method-assign]
    said = Ansible(ansible_playbook, tmp_path, [one, two]).play("switch", "-e", "model=a").failure()
    assert (
        f"switch_max_failures differs between hosts (0 on one, {more.get('switch_max_failures', 'not set')} on two)"
        in said
    )


@pytest.mark.parametrize("keep", [0, 1])
def test_a_host_whose_address_can_not_be_evaluated_is_a_failed_host(
    ansible_playbook: str, tmp_path: Path, servers: dict[str, Server], keep: int
) -> None:
    one, two = fleet(ansible_playbook, tmp_path, servers).hosts
    remote = {"ansible_connection": "ssh", "ansible_host": "{{ not_defined }}"}
    two.variables = functools.partial(dict, two.variables(), **remote)  # type: ignore[method-assign]
    run = Ansible(ansible_playbook, tmp_path, [one, two]).play(
        "switch", "-e", "model=a", *WAVES, "-e", f"switch_keep={keep}"
    )
    assert run.status == 2
    assert [(row[0], row[4]) for row in run.report] == [
        ("one", "not tried" if keep else "rolled back"),
        ("two", "failed"),
    ]
    assert awake(servers) == "bc"
