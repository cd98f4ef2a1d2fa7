# SPDX-License-Identifier: MIT
"""Real vLLM of several versions: the contract, what each does, and switches. `make vllm-versions` calls it.

    .venv/bin/python -m tests.versions.run [--write] [VERSION ...]

Without a version all are tried, or with QUICK=1 the oldest, the newest and one between. The versions that are not there
are installed first (minutes and gigabytes each). What differs from docs/vllm-versions.md is printed; --write writes it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.part import leave_out, quick
from tests.serverlib import REAL_VERSIONS, ROOT, real_venv
from tests.versions import page

PART = ("0.11.0", "0.17.1", "0.32.0")


def pytest_run(*arguments: str, **env: str) -> tuple[int, int]:
    """Run tests and return how many passed and failed; what they print is shown when one failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-rfE", f"--junitxml={report}", *arguments]
        kept = {name: value for name, value in os.environ.items() if name not in ("QUICK", "TEST_COUNTS")}
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env={**kept, **env},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if ended.returncode not in (0, 1) or not report.exists():
            print(ended.stdout, ended.stderr, flush=True)
            return 0, 1
        suite = next(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
        number = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        failed = number["failures"] + number["errors"]
        if failed:
            print(ended.stdout, flush=True)
        return number["tests"] - failed - number["skipped"], failed


def tried(version: str) -> tuple[dict[str, Any], int, int]:
    """Try one version; return what is to be known of it, and how many cases passed and failed."""
    began = time.monotonic()
    say = [f"\n==== vLLM {version}"]
    venv = real_venv(version)
    print(f"{say[0]} ({venv.name}, installed in {time.monotonic() - began:.0f} s)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "seen.json")
        contract = pytest_run("tests/contract", "--target", "real", "--vllm", version, SURVEY=str(told))
        seen: dict[str, str] = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}
    print(f"contract, real: {contract[0]} passed, {contract[1]} failed", flush=True)
    standin = pytest_run("tests/contract", "--vllm", version)
    print(f"contract, stand-in: {standin[0]} passed, {standin[1]} failed", flush=True)
    switches = pytest_run("tests/versions", REAL_VLLM=version, SLOW="" if quick() else "1")
    print(f"switches: {switches[0]} passed, {switches[1]} failed", flush=True)
    passed, failed = (contract[n] + standin[n] + switches[n] for n in (0, 1))
    print(f"{version}: {passed} passed, {failed} failed in {time.monotonic() - began:.0f} s", flush=True)
    today = datetime.now(timezone.utc).date().isoformat()
    return {"date": today, "contract": contract, "switches": switches, "seen": seen}, passed, failed


def main() -> int:
    """Try the versions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/vllm-versions.md")
    parser.add_argument("version", nargs="*", help="those that are tried")
    args = parser.parse_args()
    if unknown := set(args.version) - set(REAL_VERSIONS):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(REAL_VERSIONS)}")
    versions = args.version or (PART if quick() else REAL_VERSIONS)
    if quick() and not args.version:
        leave_out("versions", "make vllm-versions", [v for v in REAL_VERSIONS if v not in PART])
        leave_out("versions", "make vllm-versions", ["streams through slow proxies"], 6)
    known = page.read()
    lines, passed, failed = [], 0, 0
    for version in versions:
        found, p, f = tried(version)
        passed, failed = passed + p, failed + f
        lines.append(f"{version}: {p} passed, {f} failed")
        before = known.get(version, {}).get("seen", {})
        changed = [question for question, answer in found["seen"].items() if before.get(question) != answer]
        for question in changed:
            print(f"differs from {page.PAGE.name}: {question}: {before.get(question)} -> {found['seen'][question]}")
        known[version] = found
        if args.write:
            page.write(known)
    print("", *lines, f"{passed} passed, {failed} failed", sep="\n", flush=True)
    if "TEST_COUNTS" in os.environ:
        with open(os.environ["TEST_COUNTS"], "a", encoding="utf-8") as counts:
            counts.write(f"{passed} {failed}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / ".build"))
    sys.exit(main())
