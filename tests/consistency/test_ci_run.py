# SPDX-License-Identifier: MIT
"""What `.ci/run` makes of its steps, in a checkout whose targets do next to nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.consistency import support_doc

ROOT = Path(__file__).resolve().parents[2]
# What uses the engine, which one of them restarts.
ENGINE = {"images", "e2e", "faults", "fleet", "molecule"}
STEP = """\
.SILENT:
{targets}:
\techo "$@ begins $$(date +%s%N) $(CURDIR)" >>"$(LOG)"
\techo "$@ says one"; sleep 0.03; echo "$@ says two"
\techo "1 0" >>"$$TEST_COUNTS"
\tprintf '%s\\tmake %s\\t2\\tcases\\n' $@ $@ >>"$$LEFT_OUT"
\tif [ -e "$(DIR)/$@.sh" ]; then exec bash "$(DIR)/$@.sh"; fi
\techo "$@ ends $$(date +%s%N) $$PYTHON_OF_TWO" >>"$(LOG)"
"""


class Checkout:
    """`.ci/run` with what it calls; `script` says what a target does beside."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.scripts = folder / "scripts"
        self.log = folder / "log"
        for each in (self.root / "tools", self.root / ".ci", self.root / ".venv/bin", self.scripts):
            each.mkdir(parents=True)
        self.log.touch()
        for name in (".ci/run", "tools/clean_env.sh", "tools/clean_copy.sh", "tests/part.py"):
            (self.root / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        # An oldest and a newest Python; no engine to be stopped.
        (self.root / "tools/python.sh").write_text('echo "${PYTHON:-$PWD/.venv/bin/python$1}"\n', encoding="utf-8")
        (self.root / "tools/engine.sh").write_text(f"echo engine $1 >>'{self.log}'\n", encoding="utf-8")
        for name in ("python", "python3.14"):
            (self.root / ".venv/bin" / name).symlink_to(sys.executable)
        targets = " ".join({*support_doc.ci_targets(), "soak", "firewall", "fresh"})
        makefile = f"LOG := {self.log}\nDIR := {self.scripts}\n{STEP.format(targets=targets)}"
        (self.root / "Makefile").write_text(makefile, encoding="utf-8")
        for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
            git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.net", *command]
            subprocess.run(git, cwd=self.root, check=True, timeout=60)

    def script(self, target: str, text: str) -> None:
        (self.scripts / f"{target}.sh").write_text(text, encoding="utf-8")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "PART_SEED")}
        # In the background of a script interrupts are ignored, under nohup hangups; a shell can't take that back.
        return subprocess.Popen(
            ["env", "--default-signal", "bash", ".ci/run", *arguments],
            cwd=self.root,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        running = self.start(*arguments)
        output, _nothing = running.communicate(timeout=120)
        return running.returncode, output

    def spans(self) -> list[tuple[str, int, int]]:
        """Each step with when it began and ended, in the order of the beginnings."""
        said = [line.split() for line in self.log.read_text(encoding="utf-8").splitlines()]
        began = [(words[0], int(words[2])) for words in said if words[1] == "begins"]
        ends = [(words[0], int(words[2])) for words in said if words[1] == "ends"]
        spans = []
        for name, start in began:
            end = next(each for each in ends if each[0] == name and each[1] > start)
            ends.remove(end)
            spans.append((name, start, end[1]))
        return spans


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def together(one: tuple[str, int, int], other: tuple[str, int, int]) -> bool:
    return one[1] < other[2] and other[1] < one[2]


def test_all_steps_run_once_in_two_lanes_and_those_of_the_engine_one_after_the_other(checkout: Checkout) -> None:
    status, output = checkout.run()
    assert status == 0, output
    spans = checkout.spans()
    names = [name for name, _start, _end in spans]
    assert sorted(names) == sorted([*support_doc.ci_targets(), "test"])
    assert (names[0], names[-1]) == ("setup", "bench")
    pairs = [(one, other) for number, one in enumerate(spans) for other in spans[:number] if together(one, other)]
    assert pairs
    assert not [pair for pair in pairs if {pair[0][0], pair[1][0]} <= ENGINE or "bench" in (pair[0][0], pair[1][0])]
    # No third one beside two.
    for one, other in pairs:
        assert not [
            each for each in spans if each not in (one, other) and together(each, one) and together(each, other)
        ]
    # What a step prints is not mixed with what the other lane's prints.
    for name in names:
        assert f"==== make {name}\n{name} says one\n{name} says two\n==== {name}: ok after" in output or name == "test"
    assert re.search(r"^test says one\ntest says two\n==== test \d\.\d+: ok after", output, re.MULTILINE)
    assert re.search(r"^e2e        ok +\d+ s +\d+ s of CPU$", output, re.MULTILINE)
    assert re.search(r"^e2e +2 cases  make e2e$", output, re.MULTILINE)
    assert re.search(r"^firewall +2 cases  make firewall$", output, re.MULTILINE)
    assert output.endswith(f"\n{len(names)} passed, 0 failed\n")
    said = checkout.log.read_text(encoding="utf-8")
    assert said.endswith("engine stop\n")
    # The two Pythons run each a share, the second one in a checkout of its own.
    assert sorted(re.findall(r"^test ends \d+ (\d)", said, re.MULTILINE)) == ["1", "2"]
    assert len(set(re.findall(r"^test begins \d+ (.*)", said, re.MULTILINE))) == 2


def test_everything_has_more_steps(checkout: Checkout) -> None:
    for quick in ("fresh", "bench"):
        checkout.script(quick, 'test "$QUICK" = 1')
    checkout.script("soak", 'test -z "$QUICK"')
    status, output = checkout.run("all")
    assert status == 0, output
    assert {name for name, _start, _end in checkout.spans()} >= {"soak", "firewall", "fresh"}


def test_failed_steps_are_counted_and_named_and_the_others_run(checkout: Checkout) -> None:
    checkout.script("manager", 'echo 3 2 >>"$TEST_COUNTS"; exit 1')
    checkout.script("fleet", "exit 1")
    status, output = checkout.run()
    assert status == 1
    assert re.search(r"^manager    FAILED +\d+ s", output, re.MULTILINE)
    count = len(support_doc.ci_targets()) + 1
    assert len({line.split()[0] for line in output.splitlines() if line.endswith("of CPU")}) == count - 1
    assert re.search(rf"^failed: (manager fleet|fleet manager)\n{count + 3} passed, 4 failed\n\Z", output, re.MULTILINE)


def test_nothing_runs_without_a_setup(checkout: Checkout) -> None:
    checkout.script("setup", "exit 1")
    status, output = checkout.run()
    assert status == 1
    assert output.endswith("failed: setup\n1 passed, 1 failed\n")
    assert "make lint" not in output


def test_a_step_that_no_lane_makes_is_a_failure(checkout: Checkout) -> None:
    # Each lane takes it for one that the other makes.
    checkout.script("setup", 'mkdir "${TEST_COUNTS%/*}/lint"')
    status, output = checkout.run()
    assert status == 1
    assert "make lint" not in output.split("Left out")[0]
    assert re.search(r"^failed: lint\n\d+ passed, 1 failed\n\Z", output, re.MULTILINE)


@pytest.mark.parametrize(
    "sent", [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.whole) for each in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_signal_ends_both_lanes_and_is_a_failure(checkout: Checkout, sent: signal.Signals) -> None:
    for name in ("e2e", "manager"):
        # As pytest does: what it has started ends first.
        ends = f"sleep 0.3; echo {name} ended >>'{checkout.log}'; exit 1"
        # Not one long sleep: a signal that comes just before it would be heeded after it.
        works = "for n in {1..500}; do sleep 0.1; done"
        checkout.script(name, f"trap \"{ends}\" INT\necho {name} waits >>'{checkout.log}'\n{works}\n")
    running = checkout.start()
    deadline = time.monotonic() + 120
    while not {"e2e", "manager"} <= set(re.findall(r"^(\w+) waits", checkout.log.read_text(), re.MULTILINE)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(sent)
    output, _nothing = running.communicate(timeout=30)
    assert running.returncode != 0
    assert "\nall of it" in output
    # What they said before tells what hung.
    for name in ("e2e", "manager"):
        assert f"==== make {name}\n{name} says one\n{name} says two\n" in output
        assert re.search(rf"^==== {name}: not ended$", output, re.MULTILINE)
    assert re.search(r"\n\d+ passed, 1 failed\n\Z", output)
    said = checkout.log.read_text(encoding="utf-8")
    assert {"e2e ended", "manager ended"} <= set(said.splitlines())
    assert said.endswith("engine stop\n")
    assert "test begins" not in said
