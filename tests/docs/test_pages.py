# SPDX-License-Identifier: MIT
"""What the pages show is so: every command of theirs is run, every example is read, every link leads somewhere.

The commands are run on a host that is this machine, with stand-ins for vLLM (tests/docs/world.py). No kind of block is
left out: one that no rule here knows is a failure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import yaml
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse

from tests.docs import commands, pages
from tests.docs.world import ANSIBLE_CFG, World, build

BLOCKS = [block for page in pages.PAGES for block in pages.blocks(page)]
# What a test of its own does with each kind; `text` is output that stands by itself, with nothing to run or to read.
KINDS = ("console", "yaml", "json", "ini", "text")


# Of the whole page that begins with nothing, when the machine has other things to do.


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[commands.Reader]:
    """A reader who has done what the first page says, from nothing to a switch."""
    folder = tmp_path_factory.mktemp("pages")
    world = World(folder / "world", build(folder))
    try:
        reader = commands.Reader(world)
        different = reader.read(commands.START, until=commands.END)
        assert not different, told(commands.START, different)
        yield reader
    finally:
        world.end()


def told(page: str, different: dict[str, list[str]]) -> str:
    outputs = "\n".join(f"{command}\n" + "\n".join(printed) for command, printed in different.items())
    return f"{page} shows other output; `.venv/bin/python -m tests.docs.commands` writes it:\n{outputs}"


@pytest.mark.parametrize("page", commands.others())
def test_every_command_of_the_page_works(page: str, loaded: commands.Reader) -> None:
    loaded.begin()
    different = loaded.read(page)
    assert not different, told(page, different)


def test_what_is_run_elsewhere_is_run_there() -> None:
    for page, test in commands.ELSEWHERE.items():
        text = pages.read(test)
        assert f'"{page}"' in text
        assert "commands.Reader(world).read(PAGE)" in text
    shown = [command.line for page in pages.PAGES for command in commands.shown(page)]
    for line, test in commands.ENGINE.items():
        assert line in shown
        (playbook,) = re.findall(r"homegpt\.vllm\.(\w+)", line)
        assert re.search(rf'play\("{playbook}", .*"--check"', pages.read(test)), test


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_rule_covers_the_block(block: pages.Block) -> None:
    assert block.language in KINDS, f"{block}: use a fenced block of one of {KINDS}"
    if block.language == "console":
        assert pages.commands(block)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("yaml", "json", "ini")], ids=str)
def test_the_example_is_right(block: pages.Block) -> None:
    if block.language == "ini":
        # What the commands are run with.
        assert block.text == ANSIBLE_CFG
        return
    said = yaml.safe_load(block.text) if block.language == "yaml" else json.loads(block.text)
    assert said
    if isinstance(said, dict) and "vllm_models" in said:
        parse(said["vllm_models"], said.get("vllm_switching"))
    elif isinstance(said, dict) and "vllm_switching" in said:
        parse([{"id": "a", "model": "a", "host_port": 1}], said["vllm_switching"])
    else:
        # Not an inventory that escapes the engine because of how it is written.
        assert "host_port" not in block.text


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_link_within_the_repository_leads_somewhere(page: str) -> None:
    broken = [
        target
        for target in pages.links(page)
        if not target.startswith(("https://", "http://")) and not pages.exists(page, target)
    ]
    assert not broken


def test_a_wrong_page_is_noticed(monkeypatch: pytest.MonkeyPatch, loaded: commands.Reader) -> None:
    """What the tests above rest on: a command that fails, another output, a target that CI does not run."""
    text = "```console\n# cd /opt/homegpt\n# python3 -m switching lint\nnothing of the sort\n```\n"
    monkeypatch.setattr(pages, "read", lambda page: text)
    assert list(loaded.read("x.md")) == ["x.md:2: python3 -m switching lint"]
    text = "```console\n$ ansible-playbook homegpt.vllm.switch -i inventory -e model=none\n```\n"
    with pytest.raises(commands.Mismatch, match="none is not declared"):
        loaded.read("x.md")
    text = "```console\n$ make coffee\n```\n"
    with pytest.raises(AssertionError, match="there is no make coffee"):
        loaded.read("x.md")


def test_output_is_compared_by_its_shape() -> None:
    shown = ["step a  0.12 s", "...", "end"]
    assert commands.alike(shown, ["step a   3.4 s", "x", "y", "end"])
    assert commands.alike(shown, ["step a  0.1 s", "end", ""])
    assert not commands.alike(shown, ["step b  0.12 s", "x", "end"])
    assert not commands.alike(shown, ["step a  0.12 s", "x"])
    assert not commands.alike(["a"], ["a", "b"])


def test_the_first_page_ends_with_nothing_left(loaded: commands.Reader) -> None:
    """The last test here, since the others need what it removes."""
    loaded.begin()
    assert not loaded.read(commands.START, since=commands.END)
    assert not loaded.world.stack.exists() or not list(loaded.world.stack.glob("run/*.pid"))
