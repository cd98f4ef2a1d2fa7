# SPDX-License-Identifier: MIT
"""ansible-runner runs each button's playbook in the layout in which AWX runs it, with the answers of its survey.

The buttons are those that awx.yml has made in the stand-in of AWX's API; the project is the one that the collection
brings; the inventory is what AWX makes of the project's; the answers are written as AWX writes them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.awx.api import Refused, unsafe
from tests.awx.conftest import TEMPLATES, Fleet, make_fleet
from tests.playbooklib import Host, is_sleeping, launched
from tests.serverlib import ROOT
from tests.weights import put


class Bare(Host):
    """A host without a unit that acts at boot: this machine's own would get it."""

    def variables(self) -> dict[str, Any]:
        return {**super().variables(), "compose_stack_restore": False}


class Job:
    """What ansible-runner left of a run."""

    def __init__(self, folder: Path) -> None:
        self.rc = int((folder / "rc").read_text())
        self.status = (folder / "status").read_text()
        self.stdout = (folder / "stdout").read_text(encoding="utf-8")
        files = sorted((folder / "job_events").glob("[0-9]*.json"), key=lambda file: int(file.name.split("-")[0]))
        self.events = [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the data of the events of a kind."""
        return [event["event_data"] for event in self.events if event["event"] == kind]

    @property
    def stats(self) -> dict[str, Any]:
        """The recap, with what set_stats left for AWX to show."""
        (stats,) = self.of("playbook_on_stats")
        return stats

    def succeeded(self) -> Job:
        assert (self.rc, self.status) == (0, "successful"), self.stdout
        return self


class Buttons(Fleet):
    """The job templates, and what happens when one is pressed."""

    jobs = 0

    @classmethod
    def of(cls, fleet: Fleet) -> Buttons:
        return cls(fleet.ansible, fleet.project, fleet.awx)

    def press(self, name: str, *cmdline: str, refused: bool = False, **answers: Any) -> Job:
        """Launch a job template; with `refused` the answers are those that AWX itself would not let through."""
        template = f"homeGPT {name}"
        if refused:
            with pytest.raises(Refused):
                self.awx.extra_vars(template, answers)
            questions = self.awx.survey(template).items()
            variables = {**{name: one["default"] for name, one in questions if "default" in one}, **answers}
        else:
            variables = self.awx.extra_vars(template, answers)
        return self.run(self.awx.named("job_templates")[template], variables, cmdline)

    def run(self, template: dict[str, Any], variables: dict[str, Any], cmdline: tuple[str, ...]) -> Job:
        self.jobs += 1
        private = self.project.parent / f"awx_{self.jobs}"
        (private / "env").mkdir(parents=True)
        shutil.copytree(self.project, private / "project")
        self.write_inventory(private / "inventory")
        ours = {"awx_job_id": self.jobs, "awx_job_template_name": template["name"]}
        (private / "env/extravars").write_text(unsafe({**ours, **variables}), encoding="utf-8")
        (private / "env/cmdline").write_text(" ".join(["--forks", str(template["forks"]), *cmdline]), encoding="utf-8")
        settings = {"idle_timeout": 0, "job_timeout": 280, "pexpect_timeout": 5, "suppress_ansible_output": True}
        (private / "env/settings").write_text(json.dumps(settings), encoding="utf-8")
        envvars = {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build"), "ANSIBLE_FORCE_COLOR": "0"}
        (private / "env/envvars").write_text(json.dumps(envvars), encoding="utf-8")
        # The project's own ansible.cfg counts.
        env = {name: value for name, value in self.ansible.env.items() if name != "ANSIBLE_CONFIG"}
        runner = Path(self.ansible.command).with_name("ansible-runner")
        env["PATH"] = f"{runner.parent}:{env['PATH']}"
        subprocess.run(
            [runner, "run", private, "-p", template["playbook"], "-i", "job"],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
            check=False,
        )
        return Job(private / "artifacts/job")

    def write_inventory(self, folder: Path) -> None:
        """Write the inventory as AWX does: what it has read from the project's file, printed by a script."""
        command = Path(self.ansible.command).with_name("ansible-inventory")
        source = self.project / "inventory/hosts.yml"
        read = subprocess.run(
            [command, "--list", "--export", "-i", source],
            env=self.ansible.env,
            check=True,
            capture_output=True,
            timeout=300,
        )
        folder.mkdir()
        script = folder / "hosts"
        script.write_text(f"#!/usr/bin/env python3\nprint(r'''{read.stdout.decode()}''')\n", encoding="utf-8")
        script.chmod(0o700)


@pytest.fixture(scope="module")
def buttons(ansible_playbook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buttons]:
    """Two hosts with the same pair of models each, and the buttons for them."""
    folder = tmp_path_factory.mktemp("awx")
    hosts: list[Host] = []
    for name in ("one", "two"):
        second = launched("b", model=str(put(folder / "weights/model.safetensors", 1).parent))
        host = Bare(folder, [launched("a", startup_mode="active"), second], name=name)
        hosts.append(host)
    for fleet in make_fleet(ansible_playbook, folder, hosts):
        fleet.declare("--tags", "organization,project,inventory,templates").changed("localhost")
        yield Buttons.of(fleet)


@pytest.fixture(scope="module")
def loaded(buttons: Buttons) -> Job:
    """What the button that loads the models did."""
    return buttons.press("bootstrap")


def awake(buttons: Buttons) -> list[str]:
    names = [f"{host.name}-{model['id']}" for host in buttons.ansible.hosts for model in host.models]
    ports = [int(model["host_port"]) for host in buttons.ansible.hosts for model in host.models]
    return [name for name, port in zip(names, ports, strict=True) if not is_sleeping(port)]


def rows(job: Job) -> dict[str, dict[str, Any]]:
    """What AWX shows as the artifacts of a switch, by host."""
    return {row["host"]: row for row in job.stats["artifact_data"]["vllm_switch"]}


def provision(buttons: Buttons) -> None:
    one, two = buttons.ansible.hosts
    # One of them: it takes its time.
    job = buttons.press("provision", target="two").succeeded()
    assert (list(job.stats["changed"]), list(job.stats["processed"])) == (["two"], ["localhost", "two"])
    assert (two.stack / "models.json").exists()
    assert not (one.stack / "models.json").exists()


def bootstrap(buttons: Buttons, loaded: Job) -> None:
    loaded.succeeded()
    assert set(loaded.stats["ok"]) == {"localhost", "one", "two"}
    names = [data["task"] for data in loaded.of("playbook_on_task_start")]
    assert "Load and activate the default models" in names
    assert "PLAY RECAP" in loaded.stdout


def switch(buttons: Buttons) -> None:
    answers: dict[str, Any] = {"switch_waves": "1,100%", "switch_max_failures": "", "switch_keep": 0}
    answers["switch_on_stop"] = "keep"
    job = buttons.press("switch", model="b", target="vllm_hosts", **answers).succeeded()
    assert awake(buttons) == ["one-b", "two-b"]
    assert {host: (row["from"], row["to"]) for host, row in rows(job).items()} == {"one": ("a", "b"), "two": ("a", "b")}
    # One host, by the survey, and by the limit of a launch.
    buttons.press("switch", model="a", target="two").succeeded()
    assert awake(buttons) == ["one-b", "two-a"]
    buttons.press("switch", "--limit", "one", model="a").succeeded()
    assert awake(buttons) == ["one-a", "two-a"]
    # As a check it shows the steps and does none.
    job = buttons.press("switch", "--check", "--diff", model="b").succeeded()
    assert "wake b" in job.stdout
    assert awake(buttons) == ["one-a", "two-a"]


def warm(buttons: Buttons) -> None:
    job = buttons.press("warm", "--check", model="b").succeeded()
    lines = [line for line in job.stdout.splitlines() if " GB of weights in 1 files, " in line]
    assert sorted(line.split(" ")[0] for line in lines) == ["one:", "two:"]
    job = buttons.press("warm", model="b", target="two").succeeded()
    assert list(job.stats["processed"]) == ["localhost", "two"]
    assert re.search(r"^two: b: 0\.0 GB read in ", job.stdout, re.MULTILINE)


def status(buttons: Buttons) -> None:
    job = buttons.press("status", target="two").succeeded()
    assert list(job.stats["processed"]) == ["localhost", "two"]
    # As lines, whatever the format of results is, and AWX has them.
    rows = [line.split() for line in job.stdout.splitlines() if line.startswith("two  ") and " : " not in line]
    assert [row[:2] for row in rows[:2]] == [["two", "a"], ["two", "b"]]
    # Of its last switch: when that was, and the model that it was to.
    assert [row[4] for row in rows[2:3]] == ["a"]
    # What the levels have taken, if other buttons have made both models sleep and wake.
    assert [row[:2] for row in rows[3:]] in ([], [["two", "a"], ["two", "b"]])


def roll_back(buttons: Buttons) -> None:
    before = awake(buttons)
    other = "a" if "one-b" in before else "b"
    buttons.press("switch", model=other).succeeded()
    assert awake(buttons) == [f"one-{other}", f"two-{other}"]
    job = buttons.press("roll back", switch_waves="1,100%", switch_timeout="600").succeeded()
    waves = [data for data in job.of("playbook_on_task_start") if data["task"] == "Make the previous models active"]
    assert len(waves) == 2
    assert awake(buttons) == before


PRESSED: dict[str, Callable[..., None]] = {
    "site.yml": provision,
    "bootstrap.yml": bootstrap,
    "switch.yml": switch,
    "warm.yml": warm,
    "status.yml": status,
    "roll_back.yml": roll_back,
}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template["name"].replace(" ", "_"))
def test_every_button(buttons: Buttons, template: dict[str, Any], request: pytest.FixtureRequest) -> None:
    press = PRESSED[template["playbook"]]
    if press is provision:
        press(buttons)
    else:
        loaded = request.getfixturevalue("loaded")
        press(*(buttons, loaded)[: press.__code__.co_argcount])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"model": "c"}, ["model c is not declared", "a, b"]),
        ({"model": "a", "switch_waves": "abc"}, ["switch_waves", "abc"]),
        ({"model": "a", "switch_max_failures": -1}, ["switch_max_failures", "-1"]),
        ({"model": "a", "switch_max_failures": "few"}, ["switch_max_failures", "few"]),
        ({"model": "a", "switch_keep": "-2"}, ["switch_keep", "-2"]),
        ({"model": "a", "switch_on_stop": "panic"}, ["switch_on_stop", "panic", "roll_back", "keep"]),
        ({"model": "a", "switch_timeout": "soon"}, ["switch_timeout", "soon"]),
    ],
    ids=["model", "waves", "failures", "no_number", "keep", "on_stop", "timeout"],
)
def test_a_wrong_answer_gets_a_clear_message(
    buttons: Buttons, loaded: Job, answers: dict[str, Any], message: list[str]
) -> None:
    before = awake(buttons)
    # Waves, failures and seconds are text, so AWX lets them through. The rest it refuses, but it is not all that starts
    # a job.
    let_through = {"abc", "few", "soon"} & set(answers.values())
    job = buttons.press("switch", refused=not let_through, **answers)
    assert job.status == "failed", job.stdout
    assert job.rc != 0
    for part in message:
        assert part in job.stdout
    assert "Traceback" not in job.stdout
    assert awake(buttons) == before


def test_numbers_as_text(buttons: Buttons, loaded: Job) -> None:
    """A workflow or the API may hand them over so."""
    model = "b" if "one-a" in awake(buttons) else "a"
    buttons.press("switch", refused=True, model=model, switch_max_failures="0", switch_keep="0").succeeded()
    assert awake(buttons) == [f"one-{model}", f"two-{model}"]
