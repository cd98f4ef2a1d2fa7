# SPDX-License-Identifier: MIT
"""A headless Chromium for the status page, which notes what goes wrong in a page, and axe, which checks a page.

SCREENSHOTS=FOLDER keeps pictures of what failed, and of what axe has checked.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import shutil
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

SECONDS = 60  # for one step, on a busy machine
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}
# What axe calls serious or critical has to be corrected.
GRAVE = ("serious", "critical")


def find_chromium() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@contextlib.contextmanager
def started(chromium: str) -> Iterator[Browser]:
    """The browser, which is ended after."""
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page in a browser context of its own. C(errors) is what its console has had, and what was thrown in it."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(base_url=url, locale="en-US", **{"viewport": DESKTOP, **options})
        self.context.set_default_timeout(SECONDS * 1000)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _note(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.errors.append(said.text)

    def card(self, name: str) -> Any:
        """The card of a model, by the name that is shown."""
        return self.page.get_by_role("article", name=name, exact=True)

    def state(self, name: str) -> Any:
        """The state on that card."""
        return self.card(name).locator(".state")

    def picture(self, name: str) -> None:
        """Take a picture of the whole page, where SCREENSHOTS names a folder for that."""
        if folder := os.environ.get("SCREENSHOTS"):
            self.page.screenshot(path=os.path.join(folder, f"{name}.png"), full_page=True, animations="disabled")

    def grave(self) -> list[str]:
        """What axe finds that is serious or critical, with the elements."""
        self.page.evaluate(axe())
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert found["passes"], "axe has checked nothing"
        return [
            f"{one['impact']}: {one['id']}: {one['help']}: {[node['html'][:200] for node in one['nodes']]}"
            for one in found["violations"]
            if one["impact"] in GRAVE
        ]


@contextlib.contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Tab]:
    """Open the status page; its context is closed after."""
    tab = Tab(browser, url, **options)
    try:
        tab.page.goto("/")
        yield tab
    except BaseException:
        tab.picture(f"failed-{id(tab)}")
        raise
    finally:
        tab.context.close()


def axe() -> str:
    """The program of axe, which the package brings along."""
    return importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
