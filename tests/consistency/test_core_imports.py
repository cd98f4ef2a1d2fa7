# SPDX-License-Identifier: MIT
"""The core stands alone: the standard library and itself, on every Python a managed host may have."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "plugins/module_utils/switching"
FILES = sorted(CORE.glob("*.py"))
BUILTIN_TYPES = {"bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "set", "str", "tuple", "type"}


def imported_packages(tree: ast.AST) -> Iterator[str]:
    """Top-level names of what is imported from outside the package, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level > 1:
            yield "." * node.level  # above the package: gone in a copy of the folder


def unions_at_run_time(tree: ast.AST) -> Iterator[int]:
    """Lines with ``X | Y`` of types outside annotations, which fails before Python 3.10."""
    annotations: set[int] = set()
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if isinstance(getattr(node, field, None), ast.AST):
                annotations.update(id(inner) for inner in ast.walk(getattr(node, field)))
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and id(node) not in annotations:
            for side in (node.left, node.right):
                inner = side.value if isinstance(side, ast.Subscript) else side
                is_none = isinstance(inner, ast.Constant) and inner.value is None
                if is_none or (isinstance(inner, ast.Name) and inner.id in BUILTIN_TYPES):
                    yield node.lineno
                    break


def test_there_is_a_core() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_only_the_standard_library_requests_and_itself(path: Path) -> None:
    foreign = set(imported_packages(ast.parse(path.read_text(encoding="utf-8"))))
    assert foreign - sys.stdlib_module_names == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_union_types_at_run_time(path: Path) -> None:
    assert list(unions_at_run_time(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_dependencies_point_one_way() -> None:
    imported = {
        path.stem: {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.level == 1
            for name in ([node.module] if node.module else [alias.name for alias in node.names])
        }
        for path in FILES
    }
    assert imported["switch"] > {"inventory", "result"}
    graphlib.TopologicalSorter(imported).prepare()  # raises CycleError, which names the circle


def test_the_page_about_the_architecture_has_every_file() -> None:
    page = (CORE.parents[2] / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| (`.*?) \|", page.partition("| elsewhere |")[0], re.MULTILINE)
    named = {name for room in rooms for name in re.findall(r"`(\w+)`", room)}
    assert named == {path.stem for path in FILES if path.stem != "__init__"}


def test_the_checks_see_what_they_look_for() -> None:
    tree = ast.parse(
        textwrap.dedent(
            """
            import json, ansible.errors
            from ..outside import name
            def function(given: int | None) -> str | None:
                from yaml import safe_load
                flags = os.O_RDONLY | os.O_CREAT
                return isinstance(given, int | str)
            Alias = list[str] | None
            """
        )
    )
    assert set(imported_packages(tree)) - sys.stdlib_module_names == {"ansible", "..", "yaml"}
    assert sorted(unions_at_run_time(tree)) == [7, 8]


def test_a_copy_imports_as_a_top_level_package_without_ansible(tmp_path: Path) -> None:
    """What the manager and the host's command line do, and what keeps the engine free of Ansible."""
    package = tmp_path / "switching"
    package.mkdir()
    for path in FILES:
        shutil.copy(path, package)
    modules = [f"switching.{path.stem}" for path in FILES if path.stem not in ("__init__", "__main__")]
    program = textwrap.dedent(
        f"""
        import importlib, importlib.abc, sys

        class Refuse(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("ansible", "ansible_collections"):
                    raise ImportError("the core asks for " + name)

        sys.meta_path.insert(0, Refuse())
        sys.path.insert(0, {str(tmp_path)!r})
        for name in {modules!r}:
            importlib.import_module(name)
        """
    )
    # -I: neither the working directory nor PYTHONPATH leads back to the collection.
    command = [sys.executable, "-I", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
