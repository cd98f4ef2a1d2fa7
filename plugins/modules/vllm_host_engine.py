#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_host_engine
short_description: Run a module of this collection with the engine on the host
version_added: 0.2.0
description:
  - Internal. The action plugins of M(homegpt.vllm.vllm_sleep_state), M(homegpt.vllm.vllm_sleep_state_info) and
    M(homegpt.vllm.vllm_warm) send this module first. It does not contain the engine, which is the largest part of those
    modules.
  - The copy that M(homegpt.vllm.vllm_engine) has installed is used only if its files are identical to those of the
    controller and only root and the user of the task can have written them. The source that was hashed is executed;
    cached bytecode is ignored. Otherwise, the action plugin sends the whole module.
  - This file is sent without Ansible's module code, which would be half of the payload. Arguments are checked on the
    controller; if they are invalid, the whole module reports that.
options:
  module:
    description: The full name of the module.
    type: str
    required: true
  request:
    description: The checked arguments of the module, as base64 of JSON.
    type: str
    required: true
  digest:
    description: The digest of the controller's engine.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: As the called module.
  diff_mode:
    support: full
    description: As the called module.
  idempotent:
    support: full
    description: As the called module.
seealso:
  - module: homegpt.vllm.vllm_sleep_state
  - module: homegpt.vllm.vllm_sleep_state_info
  - module: homegpt.vllm.vllm_warm
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Make gpt-oss-20b the active model, with the engine on the host if it is up to date
  homegpt.vllm.vllm_sleep_state:
    model: gpt-oss-20b
    models: "{{ vllm_models }}"
"""

RETURN = r"""
engine_unused:
  description: Why the engine on the host was not used. Otherwise, the result of the called module is returned.
  returned: when the engine was not used
  type: str
  sample: /opt/homegpt/switching is not the controller's engine
"""

import os
import sys

if __name__ == "__main__":
    # On a host it may be run in a folder in which anything may lie.
    for place in {"", ".", os.path.dirname(sys.argv[0])}.intersection(sys.path):
        sys.path.remove(place)

import base64
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import stat
import syslog
import typing

# Ansible puts the arguments into these places, and nothing else. <<INCLUDE_ANSIBLE_MODULE_JSON_ARGS>>
ARGUMENTS: object = "<<INCLUDE_ANSIBLE_MODULE_COMPLEX_ARGS>>"

PACKAGE = "switching"  # in the folder of the stack, too


class Unusable(Exception):
    """The engine on the host is not the controller's, or somebody else could have written it."""


class Importer(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads the modules of the package out of their texts."""

    def __init__(self, folder, texts):
        self.folder = folder
        self.texts = texts

    def find_spec(self, fullname, path=None, target=None):
        if fullname != PACKAGE and not fullname.startswith(PACKAGE + "."):
            return None
        if self._name(fullname) not in self.texts:
            # Nobody else is to find one by this name.
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return importlib.util.spec_from_loader(fullname, self, origin=self._path(fullname))

    def is_package(self, fullname):
        return fullname == PACKAGE

    def get_code(self, fullname):
        return self.source_to_code(self.texts[self._name(fullname)], self._path(fullname))

    def get_source(self, fullname):
        return self.texts[self._name(fullname)].decode()

    def _name(self, fullname):
        return (fullname[len(PACKAGE) + 1 :] or "__init__") + ".py"

    def _path(self, fullname):
        return os.path.join(self.folder, self._name(fullname))


def texts_of(folder, check=None):
    """The text of every Python file of the folder by its name. C(check) is given each file, and what it is."""
    texts = {}
    for name in os.listdir(folder):
        if name.endswith(".py"):
            path = os.path.join(folder, name)
            # No link is followed, and a pipe is not waited for.
            flags = os.O_RDONLY | (os.O_NOFOLLOW | os.O_NONBLOCK if check else 0)
            with os.fdopen(os.open(path, flags), "rb") as file:
                if check:
                    check(path, os.fstat(file.fileno()), stat.S_ISREG)
                texts[name] = file.read()
    return texts


def digest_of(texts):
    """One for all names and texts."""
    total = hashlib.sha256()
    for name in sorted(texts):
        total.update(f"{name}\0{len(texts[name])}\0".encode())
        total.update(texts[name])
    return total.hexdigest()


def check_ownership(path, found, kind, parent=False):
    """Raise Unusable unless only root and this user can have written it."""
    if not kind(found.st_mode):
        raise Unusable(f"{path} is not of the expected type")
    if found.st_uid not in (0, os.geteuid()):
        raise Unusable(f"{path} belongs to another user")
    # In a folder such as /tmp nobody can replace what is root's or this user's.
    sticky = parent and found.st_uid == 0 and found.st_mode & stat.S_ISVTX
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        raise Unusable(f"{path} may be written by other users")


def use_engine(folder, digest):
    """Have the package imported from the folder. Raises Unusable."""
    folder = os.path.realpath(folder)
    try:
        check_ownership(folder, os.lstat(folder), stat.S_ISDIR)
        above = folder
        while above != os.path.dirname(above):
            above = os.path.dirname(above)
            check_ownership(above, os.lstat(above), stat.S_ISDIR, parent=True)
        texts = texts_of(folder, check_ownership)
    except OSError as error:
        raise Unusable(f"{error.filename or folder}: {error.strerror}") from error
    if digest_of(texts) != digest:
        raise Unusable(f"{folder} is not the controller's engine")
    sys.meta_path.insert(0, Importer(folder, texts))


def masked(value, secrets):
    """The value as AnsibleModule returns it: without the secrets, longest first."""
    if isinstance(value, dict):
        return {key: masked(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, secrets) for item in value]
    if value is None or isinstance(value, bool):
        return value
    text = str(value)
    if text in secrets:
        return "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
    if not isinstance(value, str):
        return "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER" if any(secret in text for secret in secrets) else value
    for secret in secrets:
        text = text.replace(secret, "********")
    return text


def log(given, params, secrets):
    """Write what AnsibleModule writes into the system log."""
    if not given.get("_ansible_no_log"):
        shown = " ".join(f"{name}={masked(str(value), secrets)}" for name, value in params.items())
        info = given.get("_ansible_target_log_info")
        syslog.openlog("ansible-" + given["module"], 0, syslog.LOG_USER)
        syslog.syslog(syslog.LOG_INFO, f"{info} Invoked with {shown}" if info else f"Invoked with {shown}")


def run(given):
    """What the module called returns."""
    params = json.loads(base64.b64decode(given["request"]))
    try:
        use_engine(os.path.join(params["stack_dir"], PACKAGE), given["digest"])
    except Unusable as error:
        return {"changed": False, "engine_unused": str(error)}
    task = importlib.import_module(PACKAGE + ".task")
    secrets = task.secrets_of(params["models"], params["switching"])

    def longest_first():
        return sorted(secrets, key=len, reverse=True)

    log(given, params, longest_first())
    work = getattr(task, given["module"].rpartition("vllm_")[2])
    result = work(params, given["_ansible_check_mode"], secrets.update)
    if not result.get("warnings"):
        result.pop("warnings", None)
    # ansible-core 2.21 says whether it is wanted.
    if given.get("_ansible_inject_invocation", True):
        result["invocation"] = {"module_args": params}
    return masked(result, longest_first())


def main():
    if isinstance(ARGUMENTS, str):
        # No host runs this: those who read modules, to document and to check them, look what arguments they declare.
        importlib.import_module("ansible.module_utils.basic").AnsibleModule(
            argument_spec={name: {"type": "str", "required": True} for name in ("module", "request", "digest")},
            supports_check_mode=True,
        )
        return
    if not os.access(os.curdir, os.F_OK | os.R_OK):
        os.chdir(os.path.sep)  # it is another user's
    result = run(json.loads(typing.cast(bytes, ARGUMENTS)))
    sys.stdout.write(f"\n{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
