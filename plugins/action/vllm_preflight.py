# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first task of every playbook. What is wrong is decided in plugin_utils/preflight; here it is asked of Ansible."""

from __future__ import annotations

import glob
import pathlib
import uuid

from ansible.errors import AnsibleError
from ansible.inventory.manager import split_host_pattern
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.template import Templar
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import is_secret_name
from ansible_collections.homegpt.vllm.plugins.plugin_utils import (
    door,
    live,
    preflight,
    preflight_words,
    role_variables,
)
from ansible_collections.homegpt.vllm.plugins.plugin_utils.plain import plain

_ROLES = pathlib.Path(__file__).resolve().parents[2] / "roles"


class ActionModule(ActionBase):
    """Looks at the inventory and at the variables, and never connects to a host."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Fail with the mistakes, if there are any."""
        result = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            {"playbook": {"type": "str", "required": True, "choices": list(preflight.ASKED)}}
        )
        self.secrets: set[str] = set()
        self.looks: list[preflight.Host] = []
        playbook = arguments["playbook"]
        mistakes = self.mistakes(playbook, task_vars)
        if mistakes:
            mistakes = preflight.masked(mistakes, self.secrets)
            return {**result, **live.failed(mistakes)}
        result["changed"] = False
        if playbook in preflight.ROLLOUTS:
            plan = preflight.plan(playbook, self.looks)
            # Names only where held hosts come first: the pattern of the target is what the user wrote.
            hosts = plan.order if plan.held else self.target(playbook, task_vars)
            # By this a host knows what this run of the playbook has changed, and no other.
            change = f"rollout {uuid.uuid4().hex}"
            result["rollout"] = {**plan._asdict(), "play_hosts": hosts, "serial": plan.serial, "change": change}
        return result

    def mistakes(self, playbook, task_vars):
        """All that is wrong."""
        hostvars = task_vars["hostvars"]
        self.inventory, self.variables = hostvars._inventory, hostvars._variable_manager
        extra = self.variables.extra_vars
        found = preflight_words.mistaken_names(
            (name for name in extra if name not in preflight.WIDE), (*preflight.ASKED[playbook], *preflight.WIDE)
        )
        if playbook == "convert":
            return found + self.conversion(task_vars)
        try:
            target = self.target(playbook, task_vars)
        except _Unresolved as error:
            return [*found, f"target {error}"]
        hosts, lost = self.hosts(target, task_vars)
        found += lost
        if not hosts:
            return found
        specs = role_variables.read(_ROLES, preflight.ROLES.get(playbook, ()))
        unreadable = []
        for host in hosts:
            try:
                look = self.look(host, hostvars, playbook, specs)
                self.looks.append(look._replace(behind=self.behind(look, hostvars, playbook)))
            except AnsibleError as error:
                files = list(_files(task_vars.get("ansible_inventory_sources") or ()))
                unreadable.append((host.name, preflight_words.unreadable(str(error), files)))
        return found + preflight.check(playbook, self.looks, unreadable) + _undrawable(self.looks)

    def conversion(self, task_vars):
        """What is wrong with the files of convert.yml, and with what is in them."""
        wrong = preflight_words.conversion(task_vars)
        if wrong:
            return [wrong]

        def evaluated(name):
            return plain(self._templar.template(task_vars[name]))

        named = [evaluated("__convert_file")] if evaluated("__convert_name") else []
        files = [pathlib.Path(name) for name in (*named, *evaluated("__convert_env"))]
        found = [f"{file} is not there, or is no file" for file in files if not file.is_file()]
        lost = [pattern for pattern in evaluated("__convert_globs") if not glob.glob(pattern)]
        found += [f"homegpt_compose: there is no file {pattern}" for pattern in lost]
        if found:
            return found
        try:
            text = evaluated("__converted")["text"]
        except AnsibleError as error:
            return preflight_words.unconverted(str(error))
        dest = pathlib.Path(evaluated("__convert_dest"))
        forced = boolean(task_vars.get("force", False), strict=False)
        if dest.exists() and not (dest.is_file() and (forced or dest.read_bytes() == text.encode())):
            return [f"{dest} is there already and says something else: choose another dest, or give -e force=true"]
        return []

    def target(self, playbook, task_vars):
        """The pattern of hosts that the plays after this one have."""
        names = ("awx_target", "target") if playbook == "awx" else ("target",)
        for name in names:
            if task_vars.get(name):
                return self.value(task_vars[name], self._templar, False, task_vars)
        return "vllm_hosts"

    def hosts(self, target, task_vars):
        """The hosts of the target, and what is wrong with it."""

        def matching(pattern, **how):
            return list(self.inventory.get_hosts(pattern, ignore_restrictions=True, **how))

        selection = preflight_words.Selection(
            target,
            task_vars.get("ansible_limit"),
            task_vars.get("ansible_inventory_sources") or (),
            task_vars["groups"],
            list(self.inventory.hosts),
        )
        lost = preflight_words.missing_parts(target, split_host_pattern(target), selection)
        unlimited = [] if lost else matching(target, ignore_limits=True)
        hosts = matching(target) if unlimited else []
        if not hosts and not (lost and len(split_host_pattern(target)) > 1):
            files = list(_files(selection.sources))
            selection = selection._replace(unlimited=[host.name for host in unlimited], files=files)
            lost = [preflight_words.no_host(selection)]
        return hosts, lost

    def look(self, host, hostvars, playbook, specs):
        """A host's variables, each for itself, so that one without a value does not hide the others."""
        raw = self.variables.get_vars(play=self._task.get_play(), host=host, include_hostvars=False)
        raw["hostvars"] = hostvars
        templar = Templar(loader=self._loader, variables=raw)
        asked = preflight.ASKED[playbook]
        values: dict = {}
        given: dict = {}
        mistakes: list[str] = []
        for name in raw:
            if name not in asked and not name.startswith(preflight.PREFIXES):
                continue
            value = self.walk(raw[name], name, preflight.is_secret(name), templar, raw, mistakes)
            if value is not _Unresolved:
                values[name] = value
            # A secret that is taken for a template has no value, and is to be shown nowhere either.
            given[name] = raw[name] if value is _Unresolved else value
        self.secrets.update(preflight.secrets_of(given))
        known = {*preflight.WIDE, *asked, *specs}
        mistakes += preflight_words.mistaken_names(preflight.own_names(playbook, values), known)
        mistakes += role_variables.mistakes(values, specs, ("vllm_models", "vllm_switching"))
        return preflight.Host(host.name, values, mistakes)

    def behind(self, look, hostvars, playbook):
        """The variables of the hosts to which the gateway of this one routes, and of all others for their names."""
        named = look.values.get("model_gateway_hosts")
        if playbook not in door.PLAYBOOKS or not isinstance(named, list):
            return {}
        known = self.inventory.hosts
        return {name: self.look(known[name], hostvars, playbook, {}).values if name in named else {} for name in known}

    def walk(self, value, path, secret, templar, names, mistakes):
        """The value with every template in it evaluated; _Unresolved where one can't be."""
        if isinstance(value, dict):
            items = {
                key: self.walk(item, f"{path}.{key}", secret or is_secret_name(key), templar, names, mistakes)
                for key, item in value.items()
            }
            return _Unresolved if _Unresolved in items.values() else items
        if isinstance(value, (list, tuple)):
            listed = [self.walk(item, f"{path}[{i}]", secret, templar, names, mistakes) for i, item in enumerate(value)]
            return _Unresolved if _Unresolved in listed else listed
        try:
            return self.value(value, templar, secret, names)
        except _Unresolved as error:
            mistakes.append(f"{path} {error}")
            return _Unresolved

    def value(self, value, templar, secret, names):
        """What a text comes to; raises _Unresolved."""
        encrypted = "Encrypted" in type(value).__name__
        if not encrypted and not (isinstance(value, str) and "{" in value):
            return value
        try:
            if encrypted:
                value = str(value)
                self.secrets.add(value)
                return value
            return plain(templar.template(value))
        except AnsibleError as error:
            if type(error).__name__ == "AnsibleValueOmittedError":
                return None
            raise _Unresolved(preflight_words.unresolved(str(error), secret, names)) from error


def _undrawable(looks):
    """What keeps the timelines that are asked for from being written."""
    files = {str(look.values["timeline"]) for look in looks if look.values.get("timeline")}
    if not files:
        return []
    # Not above: few ask for one.
    from ansible_collections.homegpt.vllm.plugins.plugin_utils.timeline import unwritable

    return sorted({unwritable(file) for file in files} - {""})


def _files(sources):
    """What is written in the files of the inventory and of the variables beside it."""
    for source in map(pathlib.Path, sources):
        beside = [source.parent / "group_vars", source.parent / "host_vars"] if source.is_file() else []
        for folder in (source, *beside):
            for file in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
                if file.is_file():
                    yield str(file), file.read_text(encoding="utf-8", errors="replace")


class _Unresolved(Exception):
    """A variable has no value; the text goes behind its name. The class itself stands for such a value."""
