# SPDX-License-Identifier: MIT
"""README.md's support matrix, out of the files that say what is supported and what is tested."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests.consistency import blocks
from tests.serverlib import REAL_VERSIONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "README.md"


def text(name: str) -> str:
    """Return a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def ci_targets() -> set[str]:
    """Return the targets of make that .ci/run runs."""
    listed = re.findall(r"^(?:engine|free|alone)=\((.*)\)$", text(".ci/run"), re.MULTILINE)
    assert len(listed) == 3, ".ci/run has no lists as it used to"
    return {"setup", *re.sub(r"\$\{.*?\}", "", " ".join(listed)).split()}


def minor(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(map(int, version.split(".")[:2]))


def cores() -> list[tuple[str, str, str]]:
    """Return each ansible-core of `make versions`: version, oldest Python, first Python it does not run on."""
    found = re.findall(r'"(\d+\.\d+\.\d+) (\d+\.\d+) (\d+\.\d+)"', text("tools/versions.sh"))
    assert found, "tools/versions.sh names no version as it used to"
    return sorted(found, key=lambda row: minor(row[0]))


def debians() -> list[str]:
    """Return the Debian suites of the hosts that the molecule scenarios make ready."""
    platforms = yaml.safe_load(text("extensions/molecule/docker_host/molecule.yml"))["platforms"]
    return sorted(platform["image"].split(":")[1] for platform in platforms)


def matrix() -> str:
    """Return the table."""
    lowest = text("meta/runtime.yml").split(">=")[1].split('"')[0]
    tested = cores()
    newest = ".".join(map(str, minor(tested[-1][0])))
    pythons = [minor(row[1]) for row in tested], [minor(row[2]) for row in tested]
    python = [".".join(map(str, found)) for found in (min(pythons[0]), (max(pythons[1])[0], max(pythons[1])[1] - 1))]
    (oldest_remote,) = re.findall(r"--target=(\d\.\d+)-", text("Makefile"))
    (oldest, ubuntu) = re.findall(r"'debian': '(\d+)', 'ubuntu': '([\d.]+)'", text("roles/docker_host/vars/main.yml"))[
        0
    ]
    (image,) = re.findall(r"vllm/vllm-openai:v([\d.]+)", text("roles/vllm_servers/defaults/main.yml"))
    numbers = {"bookworm": "12", "trixie": "13"}
    return blocks.table(
        ["", "supported", "tested"],
        [
            ["ansible-core", f"{'.'.join(lowest.split('.')[:2])} to {newest}", ", ".join(row[0] for row in tested)],
            [
                "Python of the controller",
                f"{python[0]} to {python[1]}, as ansible-core wants it",
                "what is found there",
            ],
            [
                "Python of the hosts",
                f"{oldest_remote} or later",
                "the oldest found there, by sanity tests",
            ],
            [
                "hosts",
                f"Debian {oldest} or later, Ubuntu {ubuntu} or later",
                ", ".join(f"Debian {numbers[suite]}" for suite in debians()),
            ],
            [
                "vLLM",
                f"{'.'.join(REAL_VERSIONS[0].split('.')[:2])} or later; by default the image of {image}",
                ", ".join(REAL_VERSIONS),
            ],
        ],
    )


def rendered() -> dict[str, str]:
    """Return the blocks of the page."""
    return {"support": matrix()}
