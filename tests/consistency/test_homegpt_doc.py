# SPDX-License-Identifier: MIT
"""docs/homegpt.md shows what the roles render today, and leaves out nothing of it."""

from __future__ import annotations

import pytest
import yaml

from tests.consistency import blocks, homegpt_doc


@pytest.fixture(scope="module")
def rendered(ansible_playbook: str) -> dict[str, str]:
    return homegpt_doc.render(ansible_playbook)


def test_the_page_shows_what_is_rendered(rendered: dict[str, str]) -> None:
    page = homegpt_doc.PAGE.read_text(encoding="utf-8")
    assert page == blocks.written(page, homegpt_doc.rendered(rendered)), f"run {blocks.COMMAND} and look at the diff"


def test_a_changed_rendering_is_noticed(rendered: dict[str, str]) -> None:
    page = homegpt_doc.PAGE.read_text(encoding="utf-8")
    name = f"compose-vllm-{homegpt_doc.EXAMPLE}.yml"
    assert page != blocks.written(
        page, homegpt_doc.rendered({**rendered, name: rendered[name].replace("127.0.0.1:", "0.0.0.0:")})
    )


def test_every_property_of_a_models_file_is_in_its_table(rendered: dict[str, str]) -> None:
    text = homegpt_doc.model_table(rendered)
    ((_name, said),) = yaml.safe_load(rendered[f"compose-vllm-{homegpt_doc.EXAMPLE}.yml"])["services"].items()
    assert set(said) == {
        *(
            "image",
            "container_name",
            "command",
            "environment",
            "labels",
            "ports",
            "volumes",
            "deploy",
            "ipc",
            "restart",
        ),
        *("pull_policy", "networks", "secrets", "logging"),
    }
    for name in said["environment"]:
        assert name in text
    for volume in said["volumes"]:
        assert volume in text
    flags = homegpt_doc.flags(rendered)
    for word in said["command"]:
        assert word.removeprefix("--").partition("=")[0] in flags
