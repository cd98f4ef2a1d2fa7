# SPDX-License-Identifier: MIT
"""Run the commands that the pages show, compare what they print with what is shown, or write it anew:

.venv/bin/python -m tests.docs.commands
"""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path

from tests.consistency import support_doc
from tests.docs import pages
from tests.docs.world import World, build
from tests.serverlib import ROOT

# A line of output that stands for any number of them.
ANY = "..."
# The page whose reader begins with nothing. Other pages begin where it has got, before it ends with this command.
START = "docs/start.md"
END = "ansible-playbook homegpt.vllm.teardown -i inventory"
DEFAULT_MODEL = "qwen3-vl-30b-a3b"
# What a page's reader puts something of his own for.
PLACEHOLDERS = {"INVENTORY": "inventory", "ID": "gpt-oss-20b"}
# Pages whose commands need more than this host: the test that runs them, by `Reader.read` as well.
ELSEWHERE = {"docs/awx.md": "tests/awx/test_page.py"}
# Commands that need a container engine, and the test that runs them on one.
ENGINE = {"ansible-playbook homegpt.vllm.site -i hosts.yml --check": "tests/e2e/test_convert.py"}
# Run by CI instead, since a test that ran them would run itself or would take as long as all others together.
MAKE = re.compile(r"(?:bash )?(?:make (?P<target>[a-z0-9]+)|(?P<ci>\.ci/run))(?: PYTHON=\S+)?")


class Mismatch(AssertionError):
    """A command failed, or printed something else than its page shows."""


def shape(line: str) -> str:
    """Return a line of output without what differs from run to run: times, and the widths that they make."""
    line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "WHEN", line)
    return " ".join(re.sub(r"\d+\.\d+", "N", line).split())


def alike(shown: list[str], printed: list[str]) -> bool:
    """Whether the output is what the page shows, whose line ANY stands for any lines."""
    wanted = [shape(line) for line in shown]
    while wanted and not wanted[-1]:
        wanted.pop()
    pattern = "".join("(?:.*\n)*?" if line == ANY else re.escape(line) + "\n" for line in wanted)
    return re.fullmatch(pattern + r"\s*", "".join(shape(line) + "\n" for line in printed)) is not None


def made_by_ci(command: str) -> bool:
    """Whether a command is a target that CI runs by itself; AssertionError where there is no such target."""
    match = MAKE.fullmatch(command)
    if not match:
        return False
    if match["target"]:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{match['target']}:.*## ", makefile, re.MULTILINE), f"there is no make {match['target']}"
        assert match["target"] in support_doc.ci_targets(), f".ci/run does not run make {match['target']}"
    return True


class Reader:
    """Somebody who types what a page says, in order."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.folders = {False: world.here, True: Path("/")}

    def begin(self) -> None:
        """Start a page: in the folder of the inventory, with the default model active."""
        self.folders = {False: self.world.here, True: Path("/")}
        status, output = self.world.run(f"python3 -m switching switch {DEFAULT_MODEL}", self.world.stack)
        assert status == 0, output
        # What it shows of them does not depend on the pages before.
        (self.world.stack / "run" / "costs.json").unlink(missing_ok=True)

    def type(self, command: pages.Command) -> list[str]:
        """Run one command and return the lines that it printed; raise Mismatch when it failed."""
        line = re.sub(r"\b[A-Z]{2,}\b(?!=)", lambda match: PLACEHOLDERS.get(match[0], match[0]), command.line)
        moved = re.fullmatch(r"cd (\S+)", line)
        if moved:
            folder = self.folders[command.root] / self.world.real(moved[1])
            if not folder.is_dir():
                raise Mismatch(f"{command}\nthere is no such folder")
            self.folders[command.root] = folder
            return []
        folder = self.folders[command.root]
        if line.startswith((".venv/", "playbooks/")):
            # From a checkout, as those type it who change the collection.
            folder, line = ROOT, line.replace("-i inventory", f"-i {shlex.quote(str(self.world.here / 'inventory'))}")
        status, output = self.world.run(line, folder)
        if status:
            raise Mismatch(f"{command}\nended with {status}:\n{output}")
        return output.rstrip("\n").split("\n") if output.strip() else []

    def read(self, page: str, *, since: str = "", until: str = "", anew: bool = False) -> dict[str, list[str]]:
        """Type all that a page says, or a part of it; return what each command printed that is not as shown.

        C(anew) has it all returned that is below a command, also what differs in nothing but times.
        """
        different = {}
        for command in self.part(page, since, until):
            if made_by_ci(command.line) or command.line in ENGINE:
                continue
            printed = self.type(command)
            # ANY alone is a place for the whole output, which `main` fills.
            if command.output and (anew or command.output == [ANY] or not alike(command.output, printed)):
                different[str(command)] = printed
        return different

    def part(self, page: str, since: str, until: str) -> list[pages.Command]:
        """Return the commands of a page from one on, and up to another one."""
        found = shown(page)
        lines = [command.line for command in found]
        return found[lines.index(since) if since else 0 : lines.index(until) if until else None]


def shown(page: str) -> list[pages.Command]:
    """Return all commands of a page."""
    return [command for block in pages.blocks(page) if block.language == "console" for command in pages.commands(block)]


def write(page: str, different: dict[str, list[str]]) -> None:
    """Put what was printed below its command, where the whole of it is shown."""
    text = pages.read(page)
    lines = text.splitlines()
    for command in reversed(shown(page)):
        if str(command) in different and (command.output == [ANY] or ANY not in command.output):
            lines[command.first : command.beyond] = [
                (command.block.indent + line).rstrip() for line in different[str(command)]
            ]
    (ROOT / page).write_text("\n".join(lines) + "\n", encoding="utf-8")


def others() -> list[str]:
    """Return the pages that begin with a host whose models are loaded."""
    return [page for page in pages.PAGES if page != START and page not in ELSEWHERE]


def main() -> None:
    """Write the output on every page anew."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "world", build(Path(folder)))
        try:
            reader = Reader(world)
            write(START, reader.read(START, until=END, anew=True))
            for page in others():
                reader.begin()
                write(page, reader.read(page, anew=True))
        finally:
            world.end()


if __name__ == "__main__":
    main()
