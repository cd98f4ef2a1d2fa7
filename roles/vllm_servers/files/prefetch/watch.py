# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Wait until one of a host's downloads has ended, at most for a while, and tell how all of them fare.

On standard input: {"label": LABEL, "seconds": 15, "pulling": [IMAGE, ...], "models": [ID, ...], "services": {ID: NAME},
"markers": {ID: FILE}}. On standard output: {"running": [ID, ...], "problems": {ID: TEXT}, "lines": [TEXT, ...],
"fetched": [ID, ...]}. A model has a marker where the host sees its cache and it can be written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

NOTHING = {"state": "fetching", "done": 0, "total": 0, "note": "", "marked": False}


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run docker to its end."""
    return subprocess.run(
        ("docker", *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def read(model: str) -> dict:
    """What the model's container has told last."""
    try:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), model + ".json"), encoding="utf-8") as file:
            return {**NOTHING, **json.load(file)}
    except (OSError, ValueError):
        return NOTHING


def look(task: dict) -> tuple[list[str], list[str]]:
    """The models whose containers run, and the images that are still missing."""
    names = docker("ps", "--filter", "label=" + task["label"], "--format", "{{.Names}}").stdout.split()
    running = [model for model in task["models"] if task["services"][model] + "-prefetch" in names]
    missing = [image for image in task["pulling"] if docker("image", "inspect", image).returncode != 0]
    return running, missing


def wait(task: dict) -> list[str]:
    """Wait for the end of any download; return the models whose containers run."""
    deadline = time.monotonic() + task["seconds"]
    first = running, missing = look(task)
    while (running, missing) == first and (running or task["pulling"]) and time.monotonic() < deadline:
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
        running, missing = look(task)
    return running


def is_complete(told: dict, marker: str | None) -> bool:
    """Whether all is there. Where the container has left a marker that the host can see, that one counts."""
    return os.path.exists(marker) if marker and told["marked"] else told["state"] == "complete"


def size(told: dict) -> str:
    """How much of it is there."""
    if not told["total"]:
        return ""
    unit, name = (1e9, "GB") if told["total"] >= 1e8 else (1e6, "MB")
    return f"{told['done'] / unit:.1f} of {told['total'] / unit:.1f} {name}"


def main() -> None:
    """Wait, then tell."""
    task = json.load(sys.stdin)
    began = time.monotonic()
    before = {model: read(model) for model in task["models"]}
    running = wait(task)
    seconds = max(time.monotonic() - began, 0.001)
    problems = {}
    fetched = []
    lines = [f"{image}: being pulled" for image in task["pulling"]]
    for model in task["models"]:
        told = read(model)
        if model in running:
            speed = (told["done"] - before[model]["done"]) / seconds
            how_fast = f", {speed / 1e6:.1f} MB/s" if told["total"] and speed > 0 else ""
            lines.append(f"{model}: fetching {size(told)}".rstrip() + how_fast)
        elif told["state"] == "failed":
            problems[model] = told["note"]
            lines.append(f"{model}: FAILED, {told['note']}")
        elif is_complete(told, task["markers"].get(model)):
            fetched += [model] if told["marked"] else []
            note = f" ({told['note']})" if told["note"] else ""
            lines.append(f"{model}: complete, {size(told)}{note}")
        else:
            problems[model] = (
                f"its download ended without an error message after {size(told) or 'nothing'}, as if killed for lack "
                "of memory: run prefetch.yml again, which continues with the missing files"
            )
            lines.append(f"{model}: FAILED, {problems[model]}")
    print(json.dumps({"running": running, "problems": problems, "lines": lines, "fetched": fetched}))


if __name__ == "__main__":
    main()
