#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_engine
short_description: Install a copy of the switching engine on a host
version_added: 0.1.0
description:
  - Writes the engine that the modules of this collection use into a directory of the host, as a Python package. The
    host can then show, switch and restore its models by itself (C(python3 -m switching)).
  - Ansible sends the engine along with the module, so that one task is enough for all files.
options:
  dest:
    description:
      - The directory. Its last part is the name of the package. Its parent directory must exist.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Writes nothing.
  diff_mode:
    support: partial
    description: Shows the names of the files with a digest of their content, not the content.
  idempotent:
    support: full
    description: Files that are up to date are not changed.
seealso:
  - module: homegpt.vllm.vllm_sleep_state
author:
  - HomeGPT (@homegpt)
"""

EXAMPLES = r"""
- name: Install the command line of the host
  homegpt.vllm.vllm_engine:
    dest: /opt/homegpt/switching
"""

RETURN = r"""
written:
  description: The names of the files that were written.
  returned: success
  type: list
  elements: str
  sample: [plan.py]
removed:
  description: The names of the removed Python files that do not belong to the engine.
  returned: success
  type: list
  elements: str
  sample: []
"""

import hashlib
import os
import pkgutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homegpt.vllm.plugins.module_utils import switching

# Brings the whole engine along: Ansible sends what is imported.
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import __main__ as dummy  # noqa: F401
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import task as dummy2  # noqa: F401


def engine():
    """The text of every file of the engine by its name."""
    names = ["__init__"] + [found.name for found in pkgutil.iter_modules(switching.__path__)]
    return {name + ".py": pkgutil.get_data(switching.__name__, name + ".py") for name in names}


def present(folder):
    """The text of every Python file in the folder by its name; None where it is no file, or has another mode."""
    texts: dict[str, bytes | None] = {}
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name.endswith(".py"):
            path = os.path.join(folder, name)
            texts[name] = None
            if os.path.isfile(path) and os.stat(path).st_mode & 0o777 == 0o644:
                with open(path, "rb") as file:
                    texts[name] = file.read()
    return texts


def replace(module, dest, texts, removed):
    """Write the texts by their names into the folder, made where it is missing, and remove the others."""
    if not os.path.isdir(dest):
        os.mkdir(dest)
        module.set_mode_if_different(dest, "0755", False)
    for name, text in texts.items():
        number, path = tempfile.mkstemp(dir=module.tmpdir)
        with os.fdopen(number, "wb") as file:
            file.write(text)
        # A file that is replaced would hand its mode on.
        module.atomic_move(path, os.path.join(dest, name))
        module.set_mode_if_different(os.path.join(dest, name), "0644", True)
    for name in removed:
        os.unlink(os.path.join(dest, name))


def listing(texts):
    """The names, a line each, with a digest of the text."""
    digests = {name: hashlib.sha256(text).hexdigest()[:12] if text else "-" for name, text in texts.items()}
    return "".join(f"{name} {digests[name]}\n" for name in sorted(digests))


def main():
    module = AnsibleModule(
        argument_spec={"dest": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    dest = module.params["dest"]
    wanted = engine()
    try:
        found = present(dest)
        written = sorted(name for name, text in wanted.items() if found.get(name) != text)
        removed = sorted(set(found) - set(wanted))
        if not module.check_mode:
            replace(module, dest, {name: wanted[name] for name in written}, removed)
    except OSError as error:
        module.fail_json(msg=f"the engine can't be written to {dest}: {error.strerror} ({error.filename})")
    module.exit_json(
        changed=bool(written or removed),
        written=written,
        removed=removed,
        diff={"before_header": dest, "after_header": dest, "before": listing(found), "after": listing(wanted)},
    )


if __name__ == "__main__":
    main()
