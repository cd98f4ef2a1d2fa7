# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: dotenv_text
short_description: A value in the .env file of a compose project
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Writes a value as Docker compose reads it back out of C(.env), whatever it holds.
options:
  _input:
    description: The value.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Write a file
  ansible.builtin.copy:
    content: "PASSWORD={{ password | homegpt.vllm.dotenv_text }}"
    dest: /tmp/project/.env
    mode: "0600"
  no_log: true
"""

RETURN = r"""
_value:
  description: The value between double quotes.
  type: str
"""

from ansible.errors import AnsibleFilterError

_ESCAPES = {"\\": "\\\\", '"': '\\"', "$": "\\$", "\n": "\\n", "\r": "\\r"}


def dotenv_text(value):
    """The value between quotes; raises AnsibleFilterError for the one character that no variable can hold."""
    text = str(value)
    if "\0" in text:
        raise AnsibleFilterError("a secret of the stack has a NUL character in it, which no environment can hold")
    return '"%s"' % "".join(_ESCAPES.get(character, character) for character in text)


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"dotenv_text": dotenv_text}
