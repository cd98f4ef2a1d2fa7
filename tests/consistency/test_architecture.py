# SPDX-License-Identifier: MIT
"""docs/architecture.md against the code: its rooms, and its names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.part import ROOT

ENGINE = ROOT / "plugins" / "module_utils" / "switching"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# Where names are held to the table, by folder or file.
TREE = ("plugins", "playbooks", "roles", "tests", "bench", "docs", "tools", "README.md", "CONTRIBUTING.md")
TEXT = {".py", ".yml", ".md", ".sh", ".j2", ".svg"}
# Not in messages and the documentation of plugins. "changed by somebody else" is a result of the rollout table.
ARCHAIC = re.compile(
    r"\b(nobody|whoever|somebody(?! else)|anew|meanwhile|taken over|said nothing|is left with|has not the"
    r"|without a word|for want of|to do with each other|is meant)\b",
    re.IGNORECASE,
)


def table(head: str) -> list[list[str]]:
    """The cells of the table with this first cell of its head, without the head."""
    lines = PAGE.split(f"\n| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def modules() -> set[str]:
    """The modules of the engine."""
    return {path.stem for path in ENGINE.glob("*.py")} - {"__init__"}


def test_every_room_is_in_the_table() -> None:
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in table("room of the engine")))
    assert sorted(named) == sorted(modules())


def test_dependencies_of_the_engine_point_one_way() -> None:
    uses: dict[str, set[str]] = {}
    for name in modules():
        tree = ast.parse((ENGINE / f"{name}.py").read_text(encoding="utf-8"))
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                found |= {node.module} if node.module else {alias.name for alias in node.names}
        uses[name] = found & modules()
    while uses:
        free = {name for name, used in uses.items() if not used & uses.keys()}
        assert free, f"these import each other: {sorted(uses)}"
        uses = {name: used for name, used in uses.items() if name not in free}


def texts() -> Iterator[tuple[str, str]]:
    """Each file in which names are held to the table, with its text."""
    for top in TREE:
        for path in [ROOT / top] if (ROOT / top).is_file() else sorted((ROOT / top).rglob("*")):
            page = path in (ROOT / "docs" / "architecture.md", Path(__file__))
            if path.is_file() and path.suffix in TEXT and not page:
                yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def test_one_thing_has_one_name() -> None:
    term_of = {word: row[0] for row in table("term") for word in re.findall(r"`([^`]+)`", row[1])}
    assert term_of
    old = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, term_of)) + r")\b")
    wrong = [f"{file}: {word}: say {term_of[word]}" for file, text in texts() for word in old.findall(text)]
    assert not wrong


def messages(tree: ast.Module) -> Iterator[ast.Constant]:
    """The texts of a plugin that may be shown: all but docstrings."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


def test_messages_are_in_plain_english() -> None:
    assert ARCHAIC.search("Nobody can tell whether it is awake")
    wrong = [
        f"{path.relative_to(ROOT)}:{text.lineno}: {found.group()}"
        for path in sorted((ROOT / "plugins").rglob("*.py"))
        for text in messages(ast.parse(path.read_text(encoding="utf-8")))
        if (found := ARCHAIC.search(str(text.value)))
    ]
    assert not wrong


def test_the_page_names_no_file_that_is_gone() -> None:
    rows = " ".join(row[0] for row in table("elsewhere"))
    named = re.findall(r"`(?:plugin_utils|action|module_utils)/\w+`", rows)
    missing = [name for name in named if not Path(ROOT / "plugins" / f"{name.strip('`')}.py").exists()]
    assert not missing
