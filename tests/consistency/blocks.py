# SPDX-License-Identifier: MIT
"""Pages of which some blocks are generated.

Such a block stands between `<!-- rendered: NAME -->` and `<!-- end -->`; the rest of the page is written by hand.
The command below writes all of them anew, and a test of each page fails when it is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

COMMAND = ".venv/bin/python -m tests.consistency.write"
BLOCK = re.compile(r"(<!-- rendered: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def names(page: str) -> list[str]:
    """Return the names of a page's blocks, in order."""
    return [match["name"] for match in BLOCK.finditer(page)]


def written(page: str, blocks: Mapping[str, str]) -> str:
    """Return the page with these texts in its blocks."""
    if sorted(names(page)) != sorted(blocks):
        raise ValueError(f"the page has the blocks {names(page)}, and not {list(blocks)}, each once")
    return BLOCK.sub(lambda match: f"{match[1]}{blocks[match['name']]}{match[3]}", page)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
