# SPDX-License-Identifier: MIT
"""awx.yml makes in AWX what is declared: the real modules of awx.awx against a stand-in of AWX's API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.awx.conftest import TEMPLATES, URL, Fleet
from tests.playbooklib import Run
from tests.serverlib import ROOT

CALENDAR: list[dict[str, Any]] = [
    {
        "name": "coder by day",
        "model": "coder",
        "at": "08:00",
        "days": ["mon", "fri"],
        "timezone": "Europe/Berlin",
        "warm_minutes": 20,
    },
    {
        "name": "vision by night",
        "model": "vision",
        "target": "two",
        "at": "20:30",
        "switch_waves": "1,100%",
        "warm_minutes": 30,
    },
    {
        "name": "late",
        "model": "vision",
        "target": "two",
        "at": "00:05",
        "days": ["mon", "sat"],
        "switch_keep": 1,
        "warm_minutes": 10,
    },
    {"name": "own rule", "model": "coder", "rrule": "DTSTART:20250101T000000Z RRULE:FREQ=MONTHLY;INTERVAL=1"},
]


def test_the_life_of_the_objects(fleet: Fleet) -> None:
    """Made as declared, left alone, and following an edited inventory. One test, since each run takes its time."""
    awx = fleet.awx
    for name in ("gpu hosts", "vault", "git"):
        awx.add("credentials", name=name)
    variables: dict[str, Any] = {
        "awx_credentials": ["gpu hosts", "vault"],
        "awx_project_credential": "git",
        "awx_execution_environment_image": "registry.example.net/ee:1",
        "awx_switch_calendar": CALENDAR,
    }
    run = fleet.declare("-vvv", awx_host=awx.url, awx_token=awx.token, token="from-elsewhere", **variables)
    assert run.changed("localhost") == 7
    no_secret_in(run, fleet)
    are_as_declared(fleet)

    # The token comes from the environment this time.
    before = list(awx.changes)
    run = fleet.declare("-vvv", **variables)
    assert run.changed("localhost") == 0
    assert awx.changes == before
    no_secret_in(run, fleet)

    new = {"id": "writer", "model": "org/writer", "host_port": 8009}
    fleet.ansible.hosts[1].models.append(new)
    fleet.rewrite()
    absent = [{"name": name, "state": "absent"} for name in ("vision by night", "late")]
    edited = [{**without(CALENDAR[0], "warm_minutes"), "enabled": False}, *absent, CALENDAR[3]]
    variables["awx_switch_calendar"] = edited

    run = fleet.declare("--check", "--tags", "templates,calendar", **variables)
    assert run.changed("localhost") == 2
    assert awx.changes == before
    assert "changed: [localhost] => (item=switch)" in run.output
    assert "ok: [localhost] => (item=status)" in run.output

    # Only what was asked for, and another target offers its own hosts and models.
    run = fleet.declare("-e", "target=two", "--tags", "templates", **variables)
    assert run.changed("localhost") == 1
    survey = awx.survey("homeGPT switch")
    assert survey["model"]["choices"] == ["coder", "vision", "writer"]
    assert survey["target"]["choices"] == ["two"]
    assert len(awx.named("schedules")) == 7
    assert fleet.declare("--tags", "calendar", **variables).changed("localhost") == 1
    assert {name: one["enabled"] for name, one in awx.named("schedules").items()} == {
        "homeGPT coder by day": False,
        "homeGPT own rule": True,
    }


def without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


def no_secret_in(run: Run, fleet: Fleet) -> None:
    assert fleet.awx.token not in run.output
    assert "sesame-1234" not in run.output
    assert "sesame-1234" not in json.dumps([fleet.awx.surveys, fleet.awx.objects])


def are_as_declared(fleet: Fleet) -> None:
    awx = fleet.awx
    organization = awx.named("organizations")["homeGPT"]
    galaxy = awx.named("credentials")["Ansible Galaxy"]["id"]
    assert awx.related["organizations", organization["id"], "galaxy_credentials"] == [galaxy]

    environment = awx.named("execution_environments")["homeGPT"]
    assert (environment["image"], environment["organization"]) == ("registry.example.net/ee:1", organization["id"])

    project = awx.named("projects")["homeGPT"]
    assert (project["scm_type"], project["scm_url"], project["scm_update_on_launch"]) == ("git", URL, True)
    assert project["credential"] == awx.named("credentials")["git"]["id"]

    inventory = awx.named("inventories")["homeGPT"]
    source = awx.named("inventory_sources")["homeGPT"]
    assert (source["inventory"], source["source_project"]) == (inventory["id"], project["id"])
    assert source["source_path"] == "inventory/hosts.yml"
    assert source["overwrite"] and source["overwrite_vars"] and source["update_on_launch"]

    templates = awx.named("job_templates")
    assert set(templates) == {f"homeGPT {one['name']}" for one in TEMPLATES}
    assert {"provision", "bootstrap", "switch", "warm", "status", "roll back"} <= {one["name"] for one in TEMPLATES}
    for one in TEMPLATES:
        template = templates[f"homeGPT {one['name']}"]
        assert (template["playbook"], template["inventory"]) == (one["playbook"], inventory["id"])
        assert (template["project"], template["execution_environment"]) == (project["id"], environment["id"])
        assert (template["job_type"], template["forks"]) == ("run", 50)
        assert template["ask_limit_on_launch"] and template["ask_job_type_on_launch"] and template["survey_enabled"]
        assert not template["allow_simultaneous"]
        assert not template["ask_variables_on_launch"]
        used = awx.related["job_templates", template["id"], "credentials"]
        assert {awx.objects["credentials"][number]["name"] for number in used} == {"gpu hosts", "vault"}

    # All hosts' ids, each once, and not that of a disabled model.
    survey = awx.survey("homeGPT switch")
    assert survey["model"]["choices"] == ["coder", "vision"]
    assert survey["target"]["choices"] == ["vllm_hosts", "one", "two"]
    assert survey["target"]["default"] == "vllm_hosts"
    keep, failures = survey["switch_keep"], survey["switch_max_failures"]
    assert (keep["type"], keep["default"], keep["min"]) == ("integer", 0, 0)
    assert (failures["type"], failures["default"], failures["required"]) == ("text", "", False)
    assert (survey["switch_waves"]["default"], survey["switch_on_stop"]["choices"]) == ("100%", ["roll_back", "keep"])
    assert list(awx.survey("homeGPT status")) == ["target"]
    assert list(awx.survey("homeGPT warm")) == ["model", "target"]
    assert awx.survey("homeGPT warm")["model"]["choices"] == ["coder", "vision"]
    assert list(awx.survey("homeGPT roll back")) == ["target", "switch_waves", "switch_timeout"]

    schedules = awx.named("schedules")
    for name, one in schedules.items():
        template = templates["homeGPT warm" if name.endswith(" (warm)") else "homeGPT switch"]
        assert one["unified_job_template"] == template["id"]
    shown = {name: (one["rrule"], one["extra_data"]) for name, one in schedules.items()}
    assert shown == {
        "homeGPT coder by day": (
            "DTSTART;TZID=Europe/Berlin:20240101T080000 RRULE:FREQ=WEEKLY;INTERVAL=1;BYDAY=MO,FR",
            {"model": "coder"},
        ),
        "homeGPT vision by night": (
            "DTSTART:20240101T203000Z RRULE:FREQ=DAILY;INTERVAL=1",
            {"model": "vision", "target": "two", "switch_waves": "1,100%"},
        ),
        "homeGPT late": (
            "DTSTART:20240101T000500Z RRULE:FREQ=WEEKLY;INTERVAL=1;BYDAY=MO,SA",
            {"model": "vision", "target": "two", "switch_keep": 1},
        ),
        "homeGPT own rule": (CALENDAR[3]["rrule"], {"model": "coder"}),
        # Of the model and the hosts of the switch, so many minutes before it.
        "homeGPT coder by day (warm)": (
            "DTSTART;TZID=Europe/Berlin:20240101T074000 RRULE:FREQ=WEEKLY;INTERVAL=1;BYDAY=MO,FR",
            {"model": "coder"},
        ),
        "homeGPT vision by night (warm)": (
            "DTSTART:20240101T200000Z RRULE:FREQ=DAILY;INTERVAL=1",
            {"model": "vision", "target": "two"},
        ),
        "homeGPT late (warm)": (
            "DTSTART:20240101T235500Z RRULE:FREQ=WEEKLY;INTERVAL=1;BYDAY=FR,SU",
            {"model": "vision", "target": "two"},
        ),
    }


def test_check_mode_on_an_empty_awx_tells_what_it_can_not_look_at(fleet: Fleet) -> None:
    run = fleet.declare("--check", awx_switch_calendar=CALENDAR)
    assert run.changed("localhost") == 2
    assert (
        "A real run would also create: the execution environment, the project, the inventory, the inventory source, "
        "the job templates, the schedules"
    ) in run.output
    assert fleet.awx.changes == []


def test_check_mode_where_awx_has_no_template_for_the_reading(fleet: Fleet) -> None:
    """As an older version has left it: the schedules of switches are looked at all the same."""
    awx = fleet.awx
    fleet.declare("--tags", "organization,project,inventory,templates").changed("localhost")
    del awx.objects["job_templates"][awx.named("job_templates")["homeGPT warm"]["id"]]
    before = list(awx.changes)
    run = fleet.declare("--check", awx_switch_calendar=[CALENDAR[0], without(CALENDAR[2], "warm_minutes")])
    assert run.changed("localhost") == 3
    for item in ("warm", "coder by day", "late"):
        assert f"changed: [localhost] => (item={item})" in run.output
    assert "A real run would also create: the schedules of the new job templates" in run.output
    assert awx.changes == before


def test_a_wrong_token(fleet: Fleet) -> None:
    run = fleet.declare("-vvv", awx_token="not-the-token")
    assert run.status == 2
    assert "Invalid authentication credentials" in run.output
    assert "not-the-token" not in run.output


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"awx_project_url": ""}, "awx_project_url is not set"),
        ({"awx_target": "nobody"}, "no host matches nobody"),
        ({"awx_forks": "many"}, "awx_forks"),
        (
            {"awx_switch_calendar": [{"name": "night", "model": "visoin", "at": "25:00"}]},
            "awx_switch_calendar[0] (night): model must be one of coder, vision, not 'visoin'",
        ),
        ({"awx_galaxy_credentials": ["nobody's"]}, "name=nobody%27s returned 0 items, expected 1"),
    ],
    ids=["project", "target", "forks", "calendar", "credential"],
)
def test_a_mistake_gets_a_message(fleet: Fleet, variables: dict[str, Any], message: str) -> None:
    run = fleet.declare(**variables)
    assert run.status == 2
    assert "Traceback" not in run.output
    assert message in run.output
    assert fleet.awx.changes == []


def test_a_mistake_in_a_hosts_models(fleet: Fleet) -> None:
    fleet.ansible.hosts[1].models[0]["host_port"] = "none"
    fleet.rewrite()
    run = fleet.declare()
    assert run.status == 2
    assert "two: vllm_models[0] " in run.mistakes[0]
    assert "host_port must be a whole number" in run.mistakes[0]
    assert fleet.awx.changes == []


def test_without_its_modules_it_says_what_is_missing(fleet: Fleet, tmp_path: Path) -> None:
    """As docs/awx.md has it; and the playbook can be read all the same."""
    collections = tmp_path / "collections/ansible_collections"
    (collections / "homegpt").mkdir(parents=True)
    (collections / "homegpt/vllm").symlink_to(ROOT)
    fleet.ansible.env["ANSIBLE_COLLECTIONS_PATH"] = str(tmp_path / "collections")
    # ansible.cfg names a folder where they are.
    del fleet.ansible.env["ANSIBLE_CONFIG"]
    play = fleet.ansible.play
    assert play("homegpt.vllm.awx", "--syntax-check", cwd=tmp_path).status == 0
    run = play("homegpt.vllm.awx", "-e", "awx_project_url=x", cwd=tmp_path)
    assert run.status != 0
    message = "could not resolve the module_defaults group awx.awx.controller"
    assert message in run.output
    assert f"| `{message}` |" in (ROOT / "docs/awx.md").read_text(encoding="utf-8")
