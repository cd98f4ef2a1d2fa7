# SPDX-License-Identifier: MIT
"""What every test shares: which Ansible is under test, and that CI lets no test disappear."""

from __future__ import annotations

import locale
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import part

# The GPUs of tests are pretended. Those that this machine may have are not asked: no test is about them.
os.environ["PATH"] = f"{Path(__file__).parent / 'standin/bin'}{os.pathsep}{os.environ['PATH']}"

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# A skip whose reason begins like this may happen in CI too; say after it why.
ALLOWED_SKIP = "allowed: "
# The folders whose tests play playbooks, which takes most of the time.
PLAYED = ("integration_playbooks", "awx", "docs")
# Those of their fixtures that a file shares and that take long to make.
SHARED = {"loaded", "buttons"}
# Whether tests were left out that only `make all` runs.
LEFT_OUT = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def ansible_playbook() -> str:
    """The ansible-playbook to call: this environment's own, or the one that ANSIBLE_PLAYBOOK names."""
    return os.environ.get("ANSIBLE_PLAYBOOK") or str(Path(sys.executable).with_name("ansible-playbook"))


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_environment() -> Iterator[None]:
    """What a test leaves there, a later one of the same process meets in CI alone: which these are, differs."""

    def now() -> set[tuple[str, str]]:
        return {*os.environ.items(), ("(locale)", locale.setlocale(locale.LC_CTYPE))}

    before = now()
    yield
    # Names alone: a log is no place for what they hold.
    left = {name for name, _value in before ^ now()} - {"PYTEST_CURRENT_TEST"}
    assert not left, "the test has changed these and left them so"


# By which target a suite is run whole, where it has another name.
TARGETS = {
    "awx": "test",
    "contract": "real",
    "docs": "test",
    "fuzz": "faults",
    "integration_playbooks": "test",
    "test, a Python": "test",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `whole` where a part will do, and share the rest between two Pythons.

    Where PYTHON_OF_TWO is set, each of the two plays other playbooks, some are left to `make test`, and 2 runs a
    quarter of all else that 1 runs.
    """
    if not part.quick():
        return
    left: dict[str, list[pytest.Item]] = {}
    rest: list[pytest.Item] = []
    for item in items:
        if item.get_closest_marker("whole"):
            left.setdefault(_suite(item), []).append(item)
        else:
            rest.append(item)
    if "PYTHON_OF_TWO" in os.environ:
        first, second = shares(rest)
        mine, others = (first, second) if os.environ["PYTHON_OF_TWO"] == "1" else (second, first)
        for item in rest:
            if id(item) not in mine:
                suite = "test, a Python" if id(item) in others else _suite(item)
                left.setdefault(suite, []).append(item)
    config.stash[LEFT_OUT] = bool(left)
    for suite, those in left.items():
        target = TARGETS.get(suite, suite)
        part.leave_out(suite, f"make {target}", (item.nodeid for item in those))
        config.hook.pytest_deselected(items=those)
    everything = {id(item) for those in left.values() for item in those}
    items[:] = [item for item in items if id(item) not in everything]


def _suite(item: pytest.Item) -> str:
    """The folder below tests/ that a test is in."""
    return item.path.relative_to(part.ROOT).as_posix().split("/")[1]


def shares(items: list[pytest.Item]) -> tuple[set[int], set[int]]:
    """What each of two Pythons runs, by the ids of the objects: of what plays playbooks, some is in neither.

    What takes long to make is made once: of a file, those who use it run under one Python.
    """
    preparing = [item for item in items if plays_playbooks(item) and SHARED & set(getattr(item, "fixturenames", ()))]
    files = sorted({item.path for item in preparing})
    with_second = set(random.Random(part.seed()).sample(files, len(files) // 2))
    prepared = part.draw(preparing, 0.75, lambda item: item.path)
    single = {id(item) for item in preparing}
    items = [item for item in items if id(item) not in single]

    second = part.draw(items, 0.25, lambda item: item.path)
    seconds = {id(item) for item in second}
    others = [item for item in items if id(item) not in seconds]
    plays = part.draw([item for item in others if plays_playbooks(item)], 0.5, lambda item: item.path)
    first = [*(item for item in items if not plays_playbooks(item)), *plays]
    return (
        {id(item) for item in [*first, *(item for item in prepared if item.path not in with_second)]},
        seconds | {id(item) for item in prepared if item.path in with_second},
    )


def plays_playbooks(item: pytest.Item) -> bool:
    return item.path.parent.name in PLAYED


def _skips_refused(config: pytest.Config) -> list[str]:
    """The reasons of those skips that make a run in CI a failure."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None:
        return []
    reasons = []
    for report in reporter.stats.get("skipped", []):
        _path, _line, reason = report.longrepr
        if not reason.removeprefix("Skipped: ").startswith(ALLOWED_SKIP):
            reasons.append(f"{report.nodeid}: {reason}")
    return reasons


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a run with refused skips into a failure, and hand the counts to whoever adds them up."""
    if hasattr(session.config, "workerinput"):
        return  # an xdist worker; its controller sees all reports
    if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash.get(LEFT_OUT, False):
        session.exitstatus = pytest.ExitCode.OK  # all of it is left out
    refused = _skips_refused(session.config)
    if refused and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and "TEST_COUNTS" in os.environ:
        count = {outcome: len(reporter.stats.get(outcome, [])) for outcome in ("passed", "failed", "error")}
        with open(os.environ["TEST_COUNTS"], "a", encoding="utf-8") as counts:
            counts.write(f"{count['passed']} {count['failed'] + count['error'] + len(refused)}\n")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the skips that CI refuses."""
    refused = _skips_refused(config)
    if refused:
        terminalreporter.section("skips that CI refuses", red=True)
        for reason in refused:
            terminalreporter.line(reason)
