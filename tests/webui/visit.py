# SPDX-License-Identifier: MIT
"""What people do with Open WebUI in a browser. Run by the Python of the venv that tools/open_webui.sh builds.

    python -m tests.webui.visit CHROMIUM URL FOLDER MESSAGE

The first one who comes signs up, and becomes the administrator, who makes an account of the role `user`. Who has that
signs in, says something to tiny-a and waits for the answer; and to tiny-b, when the administrator has given tools back
to that one. Prints as JSON what each of them saw; FOLDER gets screenshots.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

SECONDS = 120  # for one step, on a busy machine
ADMIN = {"name": "First", "email": "first@example.com", "password": "first-password"}
USER = {"name": "Second", "email": "second@example.com", "password": "second-password", "role": "user"}


def fill(page: Page, account: dict[str, str], *fields: str) -> None:
    """Fill in the form and send it, and wait until the person is in."""
    for field in fields:
        page.locator(f"#{field}").fill(account[field])
    page.locator(f"#{fields[-1]}").press("Enter")
    page.locator("#chat-input").wait_for()


def call(page: Page, path: str, data: dict[str, Any] | None = None) -> Any:
    """Ask Open WebUI's API as the person who is signed in."""
    token = page.evaluate("localStorage.token")
    headers = {"Authorization": f"Bearer {token}"}
    answer = page.request.post(path, data=data, headers=headers) if data else page.request.get(path, headers=headers)
    assert answer.ok, (path, answer.status, answer.text())
    return answer.json()


def listed(page: Page) -> list[str]:
    """The models that the person sees."""
    return sorted(str(model["id"]) for model in call(page, "/api/models")["data"])


def chat(page: Page) -> dict[str, Any]:
    """The chat that is shown, as it is kept."""
    # It may be answered before the browser has gone to its page.
    page.wait_for_url("**/c/*")
    return dict(call(page, f"/api/v1/chats/{page.url.rpartition('/')[2]}")["chat"])


def say(page: Page, model: str, message: str) -> dict[str, Any]:
    """Say something in a new chat; return what is shown of the answer, and what is kept of both."""
    page.goto(f"/?models={model}")
    page.locator("#chat-input").click()
    page.keyboard.type(message)
    page.keyboard.press("Enter")
    # What can be done with an answer is offered when it has ended.
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=SECONDS * 1000)
    kept = chat(page)["history"]["messages"]
    return {"shown": page.locator(".chat-assistant").inner_text(), "kept": list(kept.values())}


@contextlib.contextmanager
def two_people(chromium: str, url: str, folder: str) -> Iterator[tuple[Page, Page]]:
    """The first one who comes, who signs up, and the second one, who signs in. What fails leaves a picture of each."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        pages = []
        for _name in ("first", "second"):
            context = browser.new_context(base_url=url, locale="en-US")
            context.set_default_timeout(SECONDS * 1000)
            pages.append(context.new_page())
        first, second = pages
        try:
            first.goto("/auth")
            first.get_by_role("button", name="Get started").click()
            fill(first, ADMIN, "name", "email", "password")
            call(first, "/api/v1/auths/add", USER)
            second.goto("/auth")
            fill(second, USER, "email", "password")
            yield first, second
        except BaseException:
            first.screenshot(path=Path(folder, "first.png"))
            second.screenshot(path=Path(folder, "second.png"))
            raise
        browser.close()


def main() -> None:
    """Visit it."""
    chromium, url, folder, message = sys.argv[1:]
    seen: dict[str, Any] = {}
    with two_people(chromium, url, folder) as (first, second):
        for name, page in (("administrator", first), ("user", second)):
            seen[name] = {"role": call(page, "/api/v1/auths/")["role"], "models": listed(page)}
        seen["tiny-a"] = say(second, "tiny-a", message)
        second.screenshot(path=Path(folder, "answered.png"))

        # As in the settings of the model: Function Calling, Native.
        native = {"id": "tiny-b", "name": "tiny-b", "meta": {}, "params": {"function_calling": "native"}}
        call(first, "/api/v1/models/create", native)
        seen["tiny-b"] = say(second, "tiny-b", message)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
