# SPDX-License-Identifier: MIT
"""docs/manager.md: the settings and the metrics of the model manager, as its own modules have them."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import yaml
from ansible_collections.homegpt.vllm.plugins.plugin_utils.preflight_services import MANAGER_SETTINGS

from tests.consistency import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/manager.md"
MODULE = ROOT / "roles/model_manager/files/model_manager/config.py"


def settings() -> dict[str, tuple[str, str]]:
    """Return the default and the meaning of each setting, in order."""
    tree = ast.parse(MODULE.read_text(encoding="utf-8"))
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    found = {}
    for field, below in zip(config.body, config.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = (default(field.value), " ".join(str(below.value.value).split()))
    return found


def default(value: ast.expr | None) -> str:
    """Return a default as the page words it."""
    if isinstance(value, ast.Constant):
        shown = f"{value.value:g}" if isinstance(value.value, float) else str(value.value)
        shown = shown.lower() if isinstance(value.value, bool) else shown
        return f"`{shown}`" if shown else ""
    return "" if value is None else "`{}`" if "dict" in ast.unparse(value) else f"`{ast.unparse(value)}`"


def metrics() -> list[tuple[str, str, str]]:
    """Return the name, the type and the meaning of each metric, without those that any process has."""
    sys.path.insert(0, str(MODULE.parents[1]))
    from model_manager.metrics import Metrics
    from model_manager.view import View

    nothing = View(
        models={},
        active=[],
        switching=None,
        mode="auto",
        pinned=None,
        queue=[],
        age_seconds=0.0,
        lock_holder="",
        problem="",
        last_switch=None,
    )
    text = Metrics(lambda: nothing, dict).text()[0].decode()
    found = re.findall(r"^# HELP (homegpt_\S+) (.*)\n# TYPE \1 (\S+)$", text, re.MULTILINE)
    return sorted((name, kind, meaning) for name, meaning, kind in found)


def events() -> list[tuple[str, str]]:
    """Return the kinds of events and what their data has, as the docstring of the module of events tells."""
    docstring = str(ast.get_docstring(ast.parse((MODULE.parent / "events.py").read_text(encoding="utf-8"))))
    items = re.split(r"^- ", docstring.split("\n\n", 1)[1].split("\n\n", 1)[1], flags=re.MULTILINE)[1:]
    return [(kinds, " ".join(told.split())) for kinds, told in (item.split(": ", 1) for item in items)]


def source_options() -> list[list[str]]:
    """Return the options of the event source: name, default, meaning."""
    text = (ROOT / "extensions/eda/plugins/event_source/manager_events.py").read_text(encoding="utf-8")
    documentation = yaml.safe_load(text.split('DOCUMENTATION = r"""', 1)[1].split('"""', 1)[0])
    return [
        [
            f"`{name}`",
            f"`{option['default']}`" if "default" in option else "",
            re.sub(r"\b[COV]\(([^)]*)\)", r"`\1`", " ".join(option["description"])),
        ]
        for name, option in documentation["options"].items()
    ]


def rendered() -> dict[str, str]:
    """Return the blocks of the page."""
    rows = [[f"`{name}`", *told] for name, told in settings().items() if name not in MANAGER_SETTINGS]
    metric_rows = [[f"`{name}`", kind, meaning] for name, kind, meaning in metrics()]
    return {
        "manager-settings": blocks.table(["key", "default", "meaning"], rows),
        "manager-events": blocks.table(["kind", "data"], [list(each) for each in events()]),
        "eda-options": blocks.table(["option", "default", "meaning"], source_options()),
        "manager-metrics": blocks.table(["metric", "type", "meaning"], metric_rows),
    }
