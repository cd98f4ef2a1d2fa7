# SPDX-License-Identifier: MIT
"""The pages that people read, and the blocks of code on them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

from tests.serverlib import ROOT

# Every page of the repository.
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "roles/*/README.md")
    for path in ROOT.glob(pattern)
    # It is generated out of the fragments.
    if path.name != "CHANGELOG.md"
)
_PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """One block: its language, its text, and the first and the last of its lines, fences left out, from 0."""

    page: str
    language: str
    text: str
    first: int
    beyond: int
    indent: str

    def __str__(self) -> str:
        return f"{self.page}:{self.first + 1}"


@dataclass
class Command:
    """A command of a console block, the output that is shown below it, and where that stands (lines from 0)."""

    block: Block
    root: bool
    line: str
    output: list[str] = field(default_factory=list)
    first: int = 0
    beyond: int = 0

    def __str__(self) -> str:
        return f"{self.block}: {self.line}"


def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, text: str | None = None) -> Iterator[Block]:
    """Return the blocks of a page; one that is merely indented has no language."""
    text = read(page) if text is None else text
    lines = text.splitlines()
    for token in _PARSER.parse(text):
        if token.type in ("fence", "code_block") and token.map:
            fence = int(token.type == "fence")
            first, beyond = token.map[0] + fence, token.map[1] - fence
            indent = re.match(r" *", lines[token.map[0]])
            yield Block(page, token.info.strip(), token.content, first, beyond, indent[0] if indent else "")


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block."""
    found: list[Command] = []
    continued = False
    for number, line in enumerate(block.text.splitlines(), block.first):
        if continued:
            found[-1].line = found[-1].line[:-1] + line.strip()
        elif line.startswith(("$ ", "# ")):
            found.append(Command(block, line.startswith("#"), line[2:]))
        elif found:
            found[-1].output.append(line)
        else:
            raise ValueError(f"{block}: begins with no command ($ or, as root, #), but with {line}")
        continued = found[-1].line.endswith("\\") and not found[-1].output
        if not found[-1].output:
            found[-1].first = number + 1
        found[-1].beyond = number + 1
    return found


def links(page: str) -> Iterator[str]:
    """Return the targets of a page's links and pictures."""
    for token in _PARSER.parse(read(page)):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield str(target)


def anchors(page: str) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    tokens = _PARSER.parse(read(page))
    found = set()
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in inline.children or ())
            found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


def exists(page: str, target: str) -> bool:
    """Whether what a link within the repository names is there."""
    path, _hash, anchor = target.partition("#")
    place = (ROOT / page).parent / path if path else ROOT / page
    if not place.exists():
        return False
    return not anchor or (place.suffix == ".md" and anchor in anchors(str(place.resolve().relative_to(Path(ROOT)))))
