# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: yaml_text
short_description: A value on one line of a YAML file
version_added: 0.1.0
author:
  - HomeGPT (@homegpt)
description:
  - Writes a value as YAML that is read back as that very value, on one line, texts between double quotes.
  - Unlike JSON it can stand in every YAML file, since some characters that JSON allows mean something else to YAML.
options:
  _input:
    description: Text, a number, V(true) or V(false), null, a list or a dictionary.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Write a file
  ansible.builtin.copy:
    content: "greeting: {{ 'say \"hello\": #1' | homegpt.vllm.yaml_text }}"
    dest: /tmp/greeting.yml
    mode: "0644"
"""

RETURN = r"""
_value:
  description: The YAML.
  type: str
"""

import json


def yaml_text(value):
    """The YAML of a value."""
    if isinstance(value, dict):
        return "{%s}" % ", ".join(yaml_text(str(key)) + ": " + yaml_text(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[%s]" % ", ".join(map(yaml_text, value))
    if not isinstance(value, str):
        return json.dumps(value)
    return '"%s"' % "".join(map(_quoted, value))


def _quoted(character):
    if character in '"\\':
        return "\\" + character
    # Spaces of other kinds, line ends, the byte order mark: what can't be seen is escaped.
    if character.isprintable():
        return character
    number = ord(character)
    return "\\x%02x" % number if number < 0x100 else "\\u%04x" % number if number < 0x10000 else "\\U%08x" % number


class FilterModule:
    """The filter of this file."""

    def filters(self):
        return {"yaml_text": yaml_text}
