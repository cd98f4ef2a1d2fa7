# SPDX-License-Identifier: MIT
"""Takes the picture of the status page for docs/manager.md: `python -m tests.manager.screenshot FILE`.

The service, its page and the switches are real, the servers are stand-ins. Only the requests of the last day are made
up: there was no such day.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import requests

from tests.manager.browser import find_chromium, started, visit
from tests.manager.conftest import Service
from tests.serverlib import ROOT
from tests.unit.plugins.module_utils.switching.conftest import MARK, Host, Processes

WIDTH, HEIGHT = 1200, 900
# Name, description, GB when active, seconds to wake, GB that each sleep leaves behind; requests in the busiest hour.
MODELS: dict[str, tuple[str, str, float, float, float, int]] = {
    "llama-70b": ("Llama 3.3 70B", "General chat", 76, 1.9, 0.05, 420),
    "qwen-coder": ("Qwen3 Coder 30B", "Code completion and review", 62, 1.1, 0.0, 260),
    "mistral-small": ("Mistral Small 24B", "Summaries and tools", 50, 0.8, 0.12, 140),
    "gemma-27b": ("Gemma 3 27B", "Images and text", 56, 0.9, 0.0, 60),
}
ROUND = ("qwen-coder", "mistral-small", "llama-70b")


def declare(host: Host) -> None:
    """The models of the picture."""
    host.settings["canary"] = "auto"
    for name, (shown, description, gb, wake, leak, _most) in MODELS.items():
        settings: dict[str, object] = {
            "gpu_total_gb": 80,
            "vram_gb": gb,
            "asleep_gb": 0.8,
            "leak_gb": leak,
            "sleep_seconds": wake / 3,
            "wake_seconds": wake,
            "load_seconds": 4 * wake,
            "tokens_per_second": 100,
        }
        host.declare(name, name=shown, description=description, gpu_memory_gb=gb, standin=settings)
    host.declare("phi-4", name="Phi-4 14B", description="For experiments", startup_mode="disabled")


def use(host: Host) -> None:
    """Make up the requests of the last day."""
    from model_manager.history import History

    (host.stack_dir / "run").mkdir(parents=True, exist_ok=True)
    history = History(str(host.stack_dir / "run" / "manager.sqlite"))
    now = time.time()
    for back in range(24):
        for number, (name, model) in enumerate(MODELS.items()):
            share = 0.12 + max(0.0, math.sin((24 - back + 2 * number) / 24 * 2 * math.pi - 2.2)) ** 1.5
            asked = round(model[-1] * share * (0.8 + 0.4 * math.sin(back * (number + 1.7))))
            if asked > 0:
                tokens = {"prompt_tokens": asked * 700, "generation_tokens": asked * 220}
                history.add_usage(name, requests=asked, **tokens, seconds_active=60.0, at=now - 3600 * back)
    history.close()


def ask(host: Host, model: str) -> None:
    """Have a request in flight for a while."""
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 1000}

    def call() -> None:
        with contextlib.suppress(requests.RequestException):  # the server ends before
            host.call(model, "POST", "/v1/completions", json=body)

    threading.Thread(target=call, daemon=True).start()


def take(file: Path, folder: Path, chromium: str) -> None:
    """Make the host, and take the picture of its page."""
    host = Host(folder / "stack")
    declare(host)
    use(host)
    service = Service(host, reconcile=False, report_seconds=1)
    calls = [*(f"wake/{model}" for model in MODELS), "unload/gemma-27b", *(f"wake/{model}" for model in 5 * ROUND)]
    for call in calls:
        requests.post(f"{service.url}/api/models/{call}", timeout=120).raise_for_status()
    with (
        started(chromium) as browser,
        visit(
            browser,
            service.url,
            viewport={"width": WIDTH, "height": HEIGHT},
            color_scheme="light",
            device_scale_factor=1.25,
        ) as tab,
    ):
        tab.card("Qwen3 Coder 30B").get_by_role("button", name="Switch to").click()
        tab.page.locator("#now .eyebrow", has_text="Active model").wait_for()
        # What it holds is known a moment later.
        tab.card("Qwen3 Coder 30B").get_by_text("62.0 GB of 62 GB").wait_for()
        for _number in range(6):
            ask(host, "qwen-coder")
        tab.page.locator("dl", has_text="In flight6").wait_for()
        tab.page.mouse.move(0, 0)
        tab.page.screenshot(path=file, full_page=True, animations="disabled")
    service.end()


def main() -> int:
    """Take it; the exit status."""
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    chromium = find_chromium()
    if chromium is None:
        print("There is no Chromium here: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PATH"] = f"{ROOT / 'tests/standin/bin'}{os.pathsep}{os.environ['PATH']}"
        os.environ.update(
            {MARK: name, "STANDIN_GPU_DIR": f"{name}/gpus", "STANDIN_GPU_TOTAL_GB": "80", "STANDIN_GPU_COUNT": "1"}
        )
        try:
            take(Path(sys.argv[1]).resolve(), folder, chromium)
        finally:
            Processes(name).kill()
    print(f"{sys.argv[1]} is written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
