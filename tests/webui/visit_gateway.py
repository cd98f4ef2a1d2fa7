# SPDX-License-Identifier: MIT
"""What two people do at once with Open WebUI before a gateway. Run by the Python of the venv of tools/open_webui.sh.

    python -m tests.webui.visit_gateway CHROMIUM URL FOLDER MESSAGE

tiny-a is active, tiny-b asleep. The second person says something to tiny-a. Then the first one says something to
tiny-b, and sees that it is waited for; meanwhile the second one says something to tiny-a in another chat, and waits
for that. Prints as JSON what each of them saw; FOLDER gets screenshots.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, Page, expect

from tests.webui.visit import SECONDS, call, chat, say, two_people

# Keeps each text about a wait that the page shows, in their order.
WATCH = """() => {
    window.told = [];
    new MutationObserver(() => {
        for (const [text] of document.body.innerText.matchAll(/Wait(ing|ed) [^\\n]*/g))
            if (window.told.at(-1) !== text) window.told.push(text);
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
WAITING = re.compile("Waiting for")


def listed(page: Page) -> dict[str, Any]:
    """The models that the person sees, and what is said of each."""
    models = call(page, "/api/models")["data"]
    return {str(one["id"]): {"loaded": one.get("loaded"), **(one.get("info") or {}).get("meta", {})} for one in models}


def write(page: Page, model: str, message: str) -> None:
    """Begin a new chat, up to the key that sends it."""
    page.goto(f"/?models={model}")
    page.locator("#chat-input").click()
    page.keyboard.type(message)
    page.evaluate(WATCH)


def answered(page: Page) -> dict[str, Any]:
    """Wait for the answer: what was shown before it and is shown now, what is kept, and what a reload shows."""
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=SECONDS * 1000)
    seen = {
        "told": page.evaluate("window.told"),
        "shown": page.locator(".chat-assistant").inner_text(),
        "left": page.get_by_text(WAITING).count(),
    }
    messages = chat(page)["history"]["messages"]
    page.reload()
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=SECONDS * 1000)
    kept = list(messages.values())
    return {**seen, "kept": kept, "reloaded": page.locator(".chat-assistant").inner_text()}


def main() -> None:
    """Visit it."""
    chromium, url, folder, message = sys.argv[1:]
    seen: dict[str, Any] = {}
    with two_people(chromium, url, folder) as (first, second):
        # What is new may be shown to an administrator, over all else.
        with contextlib.suppress(Error):
            first.get_by_role("button", name=re.compile("Okay, Let.s Go")).click(timeout=30000)
        seen["listed"] = listed(second)
        seen["active"] = say(second, "tiny-a", message)

        write(first, "tiny-b", message)
        write(second, "tiny-a", message)
        for page in (first, second):
            page.keyboard.press("Enter")
            page.get_by_text(WAITING).first.wait_for()
        for person, page in (("first", first), ("second", second)):
            page.screenshot(path=Path(folder, f"waiting-{person}.png"))
        seen["first"] = answered(first)
        seen["second"] = answered(second)
        first.screenshot(path=Path(folder, "answered-first.png"))
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
