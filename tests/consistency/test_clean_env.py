# SPDX-License-Identifier: MIT
"""No check depends on what the shell of its caller exports: every recipe begins from a cleaned environment."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

WITHHELD = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": "/nowhere",
    "PYTEST_ADDOPTS": "--no-such-option",
    "ANSIBLE_CONFIG": "/nowhere/ansible.cfg",
    "ANSIBLE_STDOUT_CALLBACK": "none",
    "ANSIBLE_VAULT_PASSWORD_FILE": "/nowhere/password",
    "VLLM_API_KEY": "the caller's",
    "BASH_FUNC_ls%%": "() {  echo mine; }",
    "a.name.of-no-shell": "1",
}
PASSED = {
    "HOME": "/home/some one",
    "LC_ALL": "C.UTF-8",
    "https_proxy": "http://proxy.example.net:3128",
    "PIP_INDEX_URL": "https://index.example.net/simple",
    "HOMEGPT_CACHE": "/a cache/with spaces\nand 'lines' $HOME",
    "CI": "",
}


def environment(command: list[str]) -> dict[str, str]:
    """Return what a command shows that prints its environment."""
    given = {**os.environ, **WITHHELD, **PASSED}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=300, check=True)
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)


def cleaned(seen: dict[str, str]) -> bool:
    assert not WITHHELD.keys() & seen.keys()
    assert {name: seen.get(name) for name in PASSED} == PASSED
    foreign = {name for name in seen if name.startswith(("PYTHON", "ANSIBLE", "MAKE"))}
    return foreign <= {"PYTHON", "PYTHON_OF_TWO"}


def test_only_what_is_named_is_let_through() -> None:
    assert cleaned(environment(["bash", "tools/clean_env.sh", "env", "-0"]))


def test_what_the_whole_run_tells_its_steps_is_let_through() -> None:
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    told = dict.fromkeys(re.findall(r"(?<![\w$])([A-Z_]{2,})=", text), "1")
    assert {"QUICK", "PYTHON_OF_TWO", "TEST_COUNTS"} <= told.keys()
    command = ["bash", "tools/clean_env.sh", "env", "-0"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **told}, capture_output=True, text=True, timeout=300, check=True
    )
    assert told.keys() <= {entry.split("=", 1)[0] for entry in done.stdout.split("\0")}


def test_a_recipe_begins_so_and_sees_the_variables_of_its_command_and_the_tools_of_this_checkout(
    tmp_path: Path,
) -> None:
    probe = tmp_path / "probe.mk"
    probe.write_text("probe:\n\t@env -0\n", encoding="utf-8")
    seen = environment(["make", "--no-print-directory", "-f", "Makefile", "-f", str(probe), "probe", "KEEP=1"])
    assert cleaned(seen)
    assert seen["KEEP"] == "1"
    assert seen["PATH"].split(os.pathsep)[0] == str(ROOT / ".venv/bin")
