# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: weights
positional: disabled
short_description: Which models have their weights on the Hugging Face Hub, and where these go
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Of the managed models with containers of their own, picks those whose C(model) is the name of a repository of the
    Hugging Face Hub that vLLM will look for in its cache. A path, a URL, a single GGUF file, and whatever
    C(args.download_dir) or ModelScope brings, is left to vLLM.
options:
  _input:
    description: The models, as P(homegpt.vllm.inventory#filter) returns them.
    type: list
    elements: dict
    required: true
  disabled:
    description: Whether disabled models count too.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show what is fetched
  ansible.builtin.debug:
    msg: "{{ (vllm_models | homegpt.vllm.inventory).vllm_models | homegpt.vllm.weights }}"
"""

RETURN = r"""
_value:
  description: >-
    A dictionary of dictionaries by the models' ids, each with the keys C(repo), C(revision), C(load_format), C(folder)
    (of the repository, in the cache's folder C(hub)) and C(marker) (the file in there that says that all is fetched).
  type: dict
"""

import re

# No second slash, no colon, nothing that begins with a dot: "." and ".." must never become a folder's name.
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*\Z")


def weights(models, disabled=False):
    """What is to be fetched for which model."""
    found = {}
    for model in models:
        args = model["args"]
        elsewhere = model["start_command"] or args.get("download_dir") or model["env"].get("VLLM_USE_MODELSCOPE")
        if elsewhere or not _REPOSITORY.match(model["model"]) or (model["startup_mode"] == "disabled" and not disabled):
            continue
        revision = str(args.get("revision") or "main")
        load_format = str(args.get("load_format") or "auto")
        found[model["id"]] = {
            "repo": model["model"],
            "revision": revision,
            "load_format": load_format,
            "folder": "models--" + model["model"].replace("/", "--"),
            "marker": ".homegpt-" + re.sub(r"[^A-Za-z0-9._-]", "-", f"{revision}.{load_format}"),
        }
    return found


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"weights": weights}
