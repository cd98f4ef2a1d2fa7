# SPDX-License-Identifier: MIT
"""A stand-in for AWX's REST API, as far as the modules of awx.awx that roles/awx uses need it.

    with Awx(project_folder) as awx:
        ...  # CONTROLLER_HOST=awx.url CONTROLLER_OAUTH_TOKEN=awx.token
        assert awx.named("projects")["homeGPT"]["scm_type"] == "git"

It keeps its objects in memory and refuses what AWX 24.6.1 refuses of them: unknown fields and objects, names that are
taken, a playbook that the project has not (as AWX finds playbooks), a survey or an answer that is not valid, a rule
without an interval. It is not AWX: nothing is fetched and no job is run.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import threading
from pathlib import Path
from typing import Any

from aiohttp import web

Object = dict[str, Any]

COMMON = {"name": None, "description": ""}
# The fields that can be written, with what AWX sets where nothing is given.
FIELDS: dict[str, Object] = {
    "organizations": {**COMMON, "max_hosts": 0, "default_environment": None},
    "credentials": {**COMMON, "organization": None, "kind": ""},
    "execution_environments": {**COMMON, "image": None, "pull": "", "organization": None, "credential": None},
    "projects": {
        **COMMON,
        "organization": None,
        "scm_type": "",
        "scm_url": "",
        "scm_branch": "",
        "scm_update_on_launch": False,
        "credential": None,
    },
    "inventories": {**COMMON, "organization": None, "kind": "", "host_filter": None, "variables": ""},
    "inventory_sources": {
        **COMMON,
        "inventory": None,
        "source": "",
        "source_project": None,
        "source_path": "",
        "overwrite": False,
        "overwrite_vars": False,
        "update_on_launch": False,
    },
    "job_templates": {
        **COMMON,
        "organization": None,
        "job_type": "run",
        "project": None,
        "playbook": "",
        "inventory": None,
        "execution_environment": None,
        "forks": 0,
        "ask_job_type_on_launch": False,
        "ask_diff_mode_on_launch": False,
        "ask_limit_on_launch": False,
        "ask_verbosity_on_launch": False,
        "ask_variables_on_launch": False,
        "allow_simultaneous": False,
        "survey_enabled": False,
    },
    "schedules": {**COMMON, "unified_job_template": None, "rrule": "", "extra_data": {}, "enabled": True},
}
REFERENCES = {
    "organization": "organizations",
    "project": "projects",
    "source_project": "projects",
    "inventory": "inventories",
    "execution_environment": "execution_environments",
    "default_environment": "execution_environments",
    "credential": "credentials",
    "unified_job_template": "job_templates",
}
RELATIONS = {"organizations": {"galaxy_credentials"}, "job_templates": {"credentials"}, "schedules": set[str]()}
# Within what a name has to be the only one.
SCOPE = {
    "projects": "organization",
    "inventories": "organization",
    "inventory_sources": "inventory",
    "job_templates": "organization",
    "schedules": "unified_job_template",
}
ANSWER_TYPES: dict[str, type] = {"text": str, "textarea": str, "multiplechoice": str, "integer": int, "float": float}


class Refused(Exception):
    """What AWX answers with 400."""

    def __init__(self, **reasons: object) -> None:
        super().__init__(str(reasons))
        self.reasons = reasons


class Awx:
    """The stand-in, on a port of the loopback interface while the block runs."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.token = secrets.token_hex(16)
        self.url = ""
        self.changes: list[str] = []  # the calls that changed something
        self.objects: dict[str, dict[int, Object]] = {kind: {} for kind in FIELDS}
        self.surveys: dict[int, Object] = {}
        self.related: dict[tuple[str, int, str], list[int]] = {}
        self._last = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Awx:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _start(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = "http://127.0.0.1:%d" % self._runner.addresses[0][1]

    # What a test asks

    def named(self, kind: str) -> dict[str, Object]:
        """Return the objects of a kind by their names."""
        return {one["name"]: one for one in self.objects[kind].values()}

    def survey(self, template: str) -> dict[str, Object]:
        """Return a job template's questions by their variables."""
        spec = self.surveys[self.named("job_templates")[template]["id"]]
        return {question["variable"]: question for question in spec["spec"]}

    def extra_vars(self, template: str, answers: Object) -> Object:
        """Return the variables of a job, or refuse the answers as a launch does."""
        questions = self.survey(template)
        complain(list(questions.values()), answers)
        defaults = {name: question["default"] for name, question in questions.items() if "default" in question}
        return {**defaults, **answers}

    def add(self, kind: str, /, **fields: object) -> Object:
        """Put an object there, as somebody else would have."""
        self._last += 1
        self.objects[kind][self._last] = made = {"id": self._last, **FIELDS[kind], **fields}
        return made

    # What the modules call

    async def _answer(self, request: web.Request) -> web.Response:
        headers = {"X-API-Product-Name": "AWX", "X-API-Product-Version": "24.6.1"}
        parts = request.path.strip("/").split("/")
        if parts[:2] != ["api", "v2"]:
            return web.json_response({"detail": "Not found."}, status=404, headers=headers)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"detail": "Invalid token."}, status=401, headers=headers)
        if request.method != "GET":
            self.changes.append(f"{request.method} {request.path}")
        body = await request.json() if request.method in ("POST", "PATCH") and request.can_read_body else {}
        try:
            status, answer = self._route(request.method, parts[2:], dict(request.query), body)
        except Refused as refused:
            status, answer = 400, refused.reasons
        except KeyError:
            status, answer = 404, {"detail": "Not found."}
        if status == 204:
            return web.Response(status=204, headers=headers)
        return web.json_response(answer, status=status, headers=headers)

    def _route(self, method: str, parts: list[str], query: dict[str, str], body: Object) -> tuple[int, Object]:
        kind = parts[0]
        if kind == "project_updates":
            return 200, {"id": int(parts[1]), "status": "successful", "finished": True, "failed": False}
        if kind == "unified_job_templates" and method == "GET":
            return 200, self._listed("job_templates", query)
        if len(parts) == 1:
            return (201, self._create(kind, body)) if method == "POST" else (200, self._listed(kind, query))
        one = self.objects[kind][int(parts[1])]
        if len(parts) == 2:
            if method == "PATCH":
                self._change(kind, one, body)
            elif method == "DELETE":
                del self.objects[kind][one["id"]]
                return 204, {}
            return 200, self._shown(kind, one)
        if kind == "job_templates" and parts[2] == "survey_spec":
            return self._survey(method, one, body)
        if parts[2] not in RELATIONS.get(kind, ()):
            raise KeyError(parts[2])
        return self._relate(method, (kind, one["id"], parts[2]), body)

    def _listed(self, kind: str, query: dict[str, str]) -> Object:
        either = {key[4:]: value for key, value in query.items() if key.startswith("or__")}
        every = {key: value for key, value in query.items() if not key.startswith("or__")}
        if unknown := {*every, *either} - {"id", "name", *FIELDS[kind]}:
            raise Refused(detail=f"{kind} has no {unknown}")
        found = [
            self._shown(kind, one)
            for one in self.objects[kind].values()
            if all(str(one[key]) == value for key, value in every.items())
            and (not either or any(str(one[key]) == value for key, value in either.items()))
        ]
        return {"count": len(found), "next": None, "previous": None, "results": found}

    def _shown(self, kind: str, one: Object) -> Object:
        url = f"/api/v2/{kind}/{one['id']}/"
        shown = {**one, "type": kind.removesuffix("s"), "url": url, "related": {}, "summary_fields": {}}
        if kind == "job_templates":
            shown["related"]["survey_spec"] = url + "survey_spec/"
        if kind == "projects":
            shown["scm_revision"] = "0" * 40
            # The first fetch begins by itself.
            shown["summary_fields"]["current_update"] = {"id": one["id"]}
        return shown

    def _create(self, kind: str, body: Object) -> Object:
        one = dict(FIELDS[kind])
        self._change(kind, one, body)
        self._last += 1
        one["id"] = self._last
        self.objects[kind][self._last] = one
        return self._shown(kind, one)

    def _change(self, kind: str, one: Object, body: Object) -> None:
        if unknown := set(body) - set(FIELDS[kind]):
            raise Refused(detail=f"{kind} has no {unknown}")
        new = {**one, **body}
        if missing := [
            key
            for key, default in FIELDS[kind].items()
            if default is None and key in ("name", "image") and not new[key]
        ]:
            raise Refused(**{key: ["This field may not be blank."] for key in missing})
        for key, target in REFERENCES.items():
            if new.get(key) is not None and new[key] not in self.objects[target]:
                raise Refused(**{key: [f'Invalid pk "{new[key]}" - object does not exist.']})
        if kind == "projects" and new["scm_type"] and not new["scm_url"]:
            raise Refused(scm_url=["SCM URL is required."])
        if kind == "inventory_sources":
            self._check_source(new)
        if kind == "job_templates":
            self._check_template(new)
        if kind == "schedules":
            self._check_schedule(new)
        scope = SCOPE.get(kind)
        for other in self.objects[kind].values():
            same = other["name"] == new["name"] and (scope is None or other[scope] == new[scope])
            if same and other["id"] != one.get("id"):
                raise Refused(__all__=[f"{kind} with this name already exists."])
        one.update(new)

    def _check_source(self, new: Object) -> None:
        if new["source"] == "scm" and new["source_project"] is None:
            raise Refused(source_project=["Project required for scm type sources."])
        if not (self.project / new["source_path"]).is_file():
            raise Refused(source_path=["No such file in the project."])

    def _check_template(self, new: Object) -> None:
        if new["project"] is None or new["inventory"] is None:
            raise Refused(project=["This field is required."])
        if new["playbook"] not in playbooks(self.project):
            raise Refused(playbook=["Playbook not found for project."])
        # It can't be chosen.
        new["organization"] = self.objects["projects"][new["project"]]["organization"]

    def _check_schedule(self, new: Object) -> None:
        if new["unified_job_template"] is None:
            raise Refused(unified_job_template=["This field is required."])
        if mistakes := rule_mistakes(new["rrule"]):
            raise Refused(rrule=mistakes)
        complain(self.surveys.get(new["unified_job_template"], {"spec": []})["spec"], new["extra_data"], True)

    def _survey(self, method: str, template: Object, body: Object) -> tuple[int, Object]:
        if method == "POST":
            check_survey(body)
            self.surveys[template["id"]] = body
            return 200, {}
        if method == "DELETE":
            self.surveys.pop(template["id"], None)
            return 200, {}
        return 200, self.surveys.get(template["id"], {})

    def _relate(self, method: str, key: tuple[str, int, str], body: Object) -> tuple[int, Object]:
        ids = self.related.setdefault(key, [])
        if method == "GET":
            found = [self._shown("credentials", self.objects["credentials"][one]) for one in ids]
            return 200, {"count": len(found), "next": None, "previous": None, "results": found}
        if body["id"] not in self.objects["credentials"]:
            raise Refused(detail="no such credential")
        if body.get("disassociate"):
            ids.remove(body["id"])
        else:
            ids.append(body["id"])
        return 204, {}


def playbooks(project: Path) -> set[str]:
    """Return what AWX takes for playbooks: YAML files with a line that begins with one of these two words."""
    found = set()
    for folder, _folders, files in os.walk(project):
        relative = Path(folder).relative_to(project)
        if {"roles", "tasks", "group_vars", "host_vars"} & set(relative.parts) or any(
            part.startswith(".") for part in relative.parts
        ):
            continue
        for file in files:
            path = Path(folder) / file
            if path.suffix in (".yml", ".yaml"):
                text = path.read_text(encoding="utf-8")
                # Not ansible.builtin.import_playbook: AWX does not know it.
                if re.search(r"^\s*-?\s*(hosts|import_playbook):", text, re.MULTILINE):
                    found.add(str(path.relative_to(project)))
    return found


def fits(value: object, kind: type) -> bool:
    """Whether a value is of a type; true and false are no numbers."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_survey(spec: Object) -> None:
    """Refuse the survey that AWX refuses."""
    if not all(isinstance(spec.get(key), kind) for key, kind in (("name", str), ("description", str), ("spec", list))):
        raise Refused(error="name, description and spec are needed")
    if not spec["spec"]:
        raise Refused(error="'spec' doesn't contain any items.")
    variables = set()
    for number, question in enumerate(spec["spec"]):
        for key, kind in (("type", str), ("question_name", str), ("variable", str), ("required", bool)):
            if not isinstance(question.get(key), kind):
                raise Refused(error=f"'{key}' in survey question {number} expected to be {kind}")
        if question["variable"] in variables:
            raise Refused(error=f"'variable' duplicated in survey question {number}")
        variables.add(question["variable"])
        if question["type"] not in ANSWER_TYPES:
            raise Refused(error=f"type of survey question {number}")
        if "default" in question and not fits(question["default"], ANSWER_TYPES[question["type"]]):
            raise Refused(error=f"Default value in survey question {number}")
        if any(not fits(question[key], int) for key in ("min", "max") if key in question):
            raise Refused(error=f"limit in survey question {number} expected to be integer.")
        if question["type"] == "multiplechoice":
            if not isinstance(question.get("choices"), list) or not question["choices"]:
                raise Refused(error=f"Survey question {number} must specify choices.")
            if "default" in question and question["default"] not in question["choices"]:
                raise Refused(error="Default choice must be answered from the choices listed.")


def complain(questions: list[Object], answers: Object, incomplete: bool = False) -> None:
    """Refuse the answers that AWX refuses."""
    mistakes = []
    for question in questions:
        name = question["variable"]
        if name not in answers:
            if question["required"] and "default" not in question and not incomplete:
                mistakes.append(f"'{name}' value missing")
            continue
        value = answers[name]
        if not fits(value, ANSWER_TYPES[question["type"]]):
            mistakes.append(f"Value {value} for '{name}' expected to be {question['type']}.")
        elif question["type"] == "multiplechoice" and value not in question["choices"]:
            mistakes.append(f"Value {value} for '{name}' expected to be one of {question['choices']}.")
        else:
            size: Any = len(value) if isinstance(value, str) else value
            if not question.get("min", size) <= size <= question.get("max", size):
                mistakes.append(f"'{name}' value {value} is too small or too large.")
    unknown = set(answers) - {question["variable"] for question in questions}
    if unknown:
        mistakes.append(f"Variables {', '.join(sorted(unknown))} are not allowed on launch.")
    if mistakes:
        raise Refused(variables_needed_to_start=mistakes)


def rule_mistakes(rule: str) -> list[str]:
    """Return what AWX says of a schedule's rule."""
    mistakes = []
    starts = re.findall(r"DTSTART(?:;TZID=([^:]+))?:\d{8}T\d{6}(Z?)(?= |$)", rule)
    if len(starts) != 1:
        mistakes.append("Valid DTSTART required in rrule. Value should start with: DTSTART:YYYYMMDDTHHMMSSZ")
    elif starts[0] == ("", ""):
        mistakes.append("DTSTART cannot be a naive datetime.")
    elif starts[0][0] and starts[0][0] not in zones():
        mistakes.append("A valid TZID must be provided")
    rules = re.findall(r"RRULE:(\S*)", rule)
    if not rules:
        mistakes.append("One or more rule required in rrule.")
    for one in rules:
        words = dict(word.partition("=")[::2] for word in one.split(";"))
        if "INTERVAL" not in words:
            mistakes.append("INTERVAL required in rrule")
        if words.get("FREQ") not in ("MINUTELY", "HOURLY", "DAILY", "WEEKLY", "MONTHLY", "YEARLY"):
            mistakes.append("rrule parsing failed validation")
        if re.search(r"BYDAY=\d", one):
            mistakes.append("BYDAY with numeric prefix not supported")
    return mistakes


def zones() -> set[str]:
    """Return the names of the time zones."""
    import zoneinfo

    return zoneinfo.available_timezones()


def unsafe(variables: Object) -> str:
    """Return a job's variables as AWX writes them for ansible-runner: what people typed is no template."""
    lines = [
        f"{name}: !unsafe {json.dumps(value)}" if isinstance(value, str) else f"{name}: {json.dumps(value)}"
        for name, value in variables.items()
    ]
    return "---\n" + "\n".join(lines) + "\n"
